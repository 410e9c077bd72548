"""AdamW and LAMB as in the four papers and their released code.

BERT and ELECTRA: `optimization.py` of google-research/bert and google-research/electra. RoBERTa: fairseq's `adam` and
`polynomial_decay`. ALBERT: `lamb_optimizer.py` of google-research/albert (You et al., 2019,
https://arxiv.org/abs/1904.00962). The four schedules differ, see `SCHEDULES`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

ScheduleName = Literal["replace", "peak", "product", "constant"]

# `rise` is min(1, t/w) and `line` is 1 - t/T, in steps t done so far, of w for the warm-up and T in all.
SCHEDULES = {
    # BERT, ALBERT: warm-up replaces the line, so the rate drops by w/T of the peak at t = w.
    "replace": lambda t, w, total, rise, line: jnp.where(t < w, rise, line),
    # RoBERTa: from the peak at w to 0 at T. fairseq's scheduler is built with the rate of t = 1, but the trainer sets
    # it to that of t = 0 before the first update, which is therefore 0 as in the others.
    "peak": lambda t, w, total, rise, line: jnp.where(t < w, rise, line * total / max(total - w, 1)),
    # ELECTRA: warm-up multiplies the line, so the peak is below `rate`.
    "product": lambda t, w, total, rise, line: rise * line,
    "constant": lambda t, w, total, rise, line: rise,
}


ENCODER_PREFIXES = ("encoder/", "discriminator/")  # in a path: what fine-tuning begins with


class Moments(NamedTuple):
    """What an optimiser remembers: updates done, and the moving averages of gradients and of their squares."""

    count: jax.Array
    m: dict
    v: dict


def tree_paths(tree):
    """The tree with every leaf replaced by its path.

    >>> tree_paths({"layers": {"attend": {"bias": 0}}})
    {'layers': {'attend': {'bias': 'layers/attend/bias'}}}
    """
    path_name = lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(path_name, tree)


def flatten_with_paths(tree) -> list[tuple[str, Any]]:
    """The path of every leaf, and the leaf."""
    return list(zip(jax.tree.leaves(tree_paths(tree)), jax.tree.leaves(tree), strict=True))


def is_stacked(path: str) -> bool:
    """Whether the first axis of the leaf at `path` counts layers, or groups of layers that share parameters."""
    return re.search(r"(^|/)(layers|shared)/", path) is not None


@dataclass(frozen=True)
class OptimizerConfig:
    """What AdamW and LAMB have in common: a schedule, clipping, moments and decoupled weight decay.

    `exclude` are regexes of the paths that weight decay leaves out. Raises `ValueError` for a value out of range.
    """

    learning_rate: float
    warmup_steps: int  # steps
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    clip_norm: float | None = 1.0  # of the global norm; None is off
    # Adam's bias correction: RoBERTa has it, the code of BERT, ALBERT and ELECTRA does not.
    bias_correction: bool = False
    schedule: ScheduleName = "replace"
    no_decay: tuple[str, ...] = (r"norm/", r"bias$")  # () for RoBERTa, where everything decays
    # Each layer's rate is this times that of the layer above; the heads have `learning_rate` (ELECTRA).
    layer_lr_decay: float = 1.0
    # The top layer's rate has the factor twice, as in all numbers of ELECTRA's code.
    decay_top_layer_twice: bool = False
    skip_spikes_above: float | None = None  # leave updates out whose gradient is so many times as long as those of late

    def __post_init__(self):
        def require_field(field_name, is_valid, accepted):
            if not is_valid:
                raise ValueError(f"optimizer.{field_name}={getattr(self, field_name)!r} must be {accepted}")

        is_finite = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
        require_field("learning_rate", is_finite(self.learning_rate) and self.learning_rate > 0, "a number above 0")
        require_field(
            "warmup_steps",
            type(self.warmup_steps) is int and self.warmup_steps >= 0,
            "a whole number of steps, 0 or more",
        )
        require_field("weight_decay", is_finite(self.weight_decay) and self.weight_decay >= 0, "a number, 0 or more")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        require_field(
            "betas", pair and all(is_finite(x) and 0 <= x < 1 for x in self.betas), "two numbers from 0 to below 1"
        )
        require_field("eps", is_finite(self.eps) and self.eps > 0, "a number above 0")
        require_field(
            "clip_norm",
            self.clip_norm is None or is_finite(self.clip_norm) and self.clip_norm > 0,
            "a number above 0, or None",
        )
        require_field(
            "skip_spikes_above",
            self.skip_spikes_above is None or is_finite(self.skip_spikes_above) and self.skip_spikes_above > 1,
            "a number above 1, or None",
        )
        require_field(
            "layer_lr_decay", is_finite(self.layer_lr_decay) and 0 < self.layer_lr_decay <= 1, "above 0 and at most 1"
        )
        require_field("bias_correction", isinstance(self.bias_correction, bool), "True or False")
        known = get_args(ScheduleName)
        require_field("schedule", self.schedule in known, f"one of {', '.join(known)}")
        require_field(
            "no_decay", isinstance(self.no_decay, tuple) and all(map(is_regex, self.no_decay)), "a tuple of regexes"
        )

    def compute_learning_rate(self, step, total_steps: int) -> jax.Array:
        """The rate of the update that follows `step` updates, in a run of `total_steps`."""
        t = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, t / self.warmup_steps) if self.warmup_steps else jnp.ones_like(t)
        line = jnp.maximum(0.0, 1.0 - t / total_steps)
        return self.learning_rate * SCHEDULES[self.schedule](t, self.warmup_steps, total_steps, rise, line)

    def init_moments(self, params) -> Moments:
        """The state before the first update."""
        make_zeros = lambda: optax.tree.zeros_like(params, dtype=jnp.float32)
        return Moments(
            jnp.zeros([], jnp.int32), make_zeros(), make_zeros()
        )  # two trees: a donated buffer may occur once

    def build_transformation(self, total_steps: int) -> optax.GradientTransformation:
        """The update as optax has it; its state is a `Moments`, kept in float32 like the updates."""
        if total_steps < 1 or self.warmup_steps > total_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.warmup_steps} must not exceed the {total_steps} steps of the run"
            )
        first, second = self.betas
        # Over the global batch. The released BERT clips on every replica before the all-reduce.
        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)

        def update(grads, state: Moments, params):
            grads, _ = clip.update(optax.tree.cast(grads, jnp.float32), clip.init(params))
            count = optax.safe_increment(state.count)
            m = optax.tree.update_moment(grads, state.m, first, 1)
            v = optax.tree.update_moment(grads, state.v, second, 2)
            rate = self.compute_learning_rate(state.count, total_steps)
            # Epsilon is added to the corrected root, as in apex and PyTorch; fairseq's fallback corrects it too.
            mean = optax.tree.bias_correction(m, first, count) if self.bias_correction else m
            square = optax.tree.bias_correction(v, second, count) if self.bias_correction else v

            shares = self.compute_rate_scales(params)

            def update_leaf(path, mean, square, param):
                direction, param = mean / (jnp.sqrt(square) + self.eps), param.astype(jnp.float32)
                if not any(re.search(pattern, path) for pattern in self.no_decay):
                    direction = self.scale_direction(path, direction + self.weight_decay * param, param)
                return -rate * shares[path] * direction

            return jax.tree.map(update_leaf, tree_paths(params), mean, square, params), Moments(count, m, v)

        return optax.GradientTransformation(self.init_moments, update)

    def compute_rate_scales(self, params) -> dict[str, np.ndarray]:
        """The share of the rate that each leaf has: `layer_decay` to the power of its distance from the heads.

        Of n layers the top one has the power 1, and the embeddings with the projection after them n + 1.
        """
        found = dict(flatten_with_paths(params))
        count = max((len(leaf) for path, leaf in found.items() if "/layers/" in path), default=0)
        top = 2 if self.decay_top_layer_twice else 1

        def compute_exponent(path, leaf):
            if not path.startswith(ENCODER_PREFIXES):
                return np.zeros(())
            if "/layers/" not in path:
                return np.full((), count + top)
            return np.arange(count, 0, -1).reshape(-1, *[1] * (leaf.ndim - 1)) + top - 1

        return {path: np.float32(self.layer_lr_decay) ** compute_exponent(path, leaf) for path, leaf in found.items()}

    def scale_direction(self, path: str, direction: jax.Array, param: jax.Array) -> jax.Array:
        """The direction of a leaf that is not excluded, scaled by what the leaf itself asks for."""
        return direction


@dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay; the defaults are those of BERT's code.

    >>> float(AdamW(learning_rate=1e-4, warmup_steps=10_000).compute_learning_rate(0, total_steps=1_000_000))
    0.0
    """


@dataclass(frozen=True)
class Lamb(OptimizerConfig):
    """LAMB: every layer's direction is scaled to the norm of its weights; the defaults are ALBERT's.

    What `exclude` names is left out of weight decay and of the scaling.
    """

    learning_rate: float = 1.76e-3
    warmup_steps: int = 3125

    def scale_direction(self, path: str, direction: jax.Array, param: jax.Array) -> jax.Array:
        axes = tuple(range(int(is_stacked(path)), param.ndim))  # a stack has one norm a layer
        norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))
        weights, size = norm(param), norm(direction)
        moving = (weights > 0) & (size > 0)
        return direction * jnp.where(moving, weights / jnp.where(moving, size, 1.0), 1.0)


def is_regex(pattern) -> bool:
    """Whether `pattern` is a regular expression."""
    try:
        return isinstance(pattern, str) and re.compile(pattern) is not None
    except re.error:
        return False
