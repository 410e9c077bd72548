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

Schedule = Literal["replace", "peak", "product", "constant"]

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


BODIES = ("encoder/", "discriminator/")  # in a path: what fine-tuning begins with


class Moments(NamedTuple):
    """What an optimiser remembers: updates done, and the moving averages of gradients and of their squares."""

    count: jax.Array
    m: dict
    v: dict


def paths(tree):
    """The tree with every leaf replaced by its path.

    >>> paths({"layers": {"attend": {"bias": 0}}})
    {'layers': {'attend': {'bias': 'layers/attend/bias'}}}
    """
    name = lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(name, tree)


def leaves(tree) -> list[tuple[str, Any]]:
    """The path of every leaf, and the leaf."""
    return list(zip(jax.tree.leaves(paths(tree)), jax.tree.leaves(tree), strict=True))


def stacked(path: str) -> bool:
    """Whether the first axis of the leaf at `path` counts layers, or groups of layers that share parameters."""
    return re.search(r"(^|/)(layers|shared)/", path) is not None


@dataclass(frozen=True)
class Optimizer:
    """What AdamW and LAMB have in common: a schedule, clipping, moments and decoupled weight decay.

    `exclude` are regexes of the paths that weight decay leaves out. Raises `ValueError` for a value out of range.
    """

    rate: float
    warmup: int  # steps
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6
    clip: float | None = 1.0  # of the global norm; None is off
    correction: bool = False  # Adam's bias correction: RoBERTa has it, the code of BERT, ALBERT and ELECTRA has not
    schedule: Schedule = "replace"
    exclude: tuple[str, ...] = (r"norm/", r"bias$")  # () for RoBERTa, where everything decays
    layer_decay: float = 1.0  # each layer's rate is this times that of the layer above; the heads have `rate` (ELECTRA)
    released_layer_decay: bool = False  # the top layer's rate has the factor twice, as in all numbers of ELECTRA's code
    spike: float | None = None  # leave updates out whose gradient is so many times as long as those of late

    def __post_init__(self):
        def require(name, fits, accepted):
            if not fits:
                raise ValueError(f"optimizer.{name}={getattr(self, name)!r} must be {accepted}")

        finite = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
        require("rate", finite(self.rate) and self.rate > 0, "a number above 0")
        require("warmup", type(self.warmup) is int and self.warmup >= 0, "a whole number of steps, 0 or more")
        require("decay", finite(self.decay) and self.decay >= 0, "a number, 0 or more")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        require("betas", pair and all(finite(x) and 0 <= x < 1 for x in self.betas), "two numbers from 0 to below 1")
        require("epsilon", finite(self.epsilon) and self.epsilon > 0, "a number above 0")
        require("clip", self.clip is None or finite(self.clip) and self.clip > 0, "a number above 0, or None")
        require("spike", self.spike is None or finite(self.spike) and self.spike > 1, "a number above 1, or None")
        require("layer_decay", finite(self.layer_decay) and 0 < self.layer_decay <= 1, "above 0 and at most 1")
        require("correction", isinstance(self.correction, bool), "True or False")
        known = get_args(Schedule)
        require("schedule", self.schedule in known, f"one of {', '.join(known)}")
        require("exclude", isinstance(self.exclude, tuple) and all(map(regex, self.exclude)), "a tuple of regexes")

    def learning_rate(self, step, total_steps: int) -> jax.Array:
        """The rate of the update that follows `step` updates, in a run of `total_steps`."""
        t = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, t / self.warmup) if self.warmup else jnp.ones_like(t)
        line = jnp.maximum(0.0, 1.0 - t / total_steps)
        return self.rate * SCHEDULES[self.schedule](t, self.warmup, total_steps, rise, line)

    def init(self, params) -> Moments:
        """The state before the first update."""
        zeros = lambda: optax.tree.zeros_like(params, dtype=jnp.float32)
        return Moments(jnp.zeros([], jnp.int32), zeros(), zeros())  # two trees: a donated buffer may occur once

    def transform(self, total_steps: int) -> optax.GradientTransformation:
        """The update as optax has it; its state is a `Moments`, kept in float32 like the updates."""
        if total_steps < 1 or self.warmup > total_steps:
            raise ValueError(f"optimizer.warmup={self.warmup} must not exceed the {total_steps} steps of the run")
        first, second = self.betas
        # Over the global batch. The released BERT clips on every replica before the all-reduce.
        clip = optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip)

        def update(grads, state: Moments, params):
            grads, _ = clip.update(optax.tree.cast(grads, jnp.float32), clip.init(params))
            count = optax.safe_increment(state.count)
            m = optax.tree.update_moment(grads, state.m, first, 1)
            v = optax.tree.update_moment(grads, state.v, second, 2)
            rate = self.learning_rate(state.count, total_steps)
            # Epsilon is added to the corrected root, as in apex and PyTorch; fairseq's fallback corrects it too.
            mean = optax.tree.bias_correction(m, first, count) if self.correction else m
            square = optax.tree.bias_correction(v, second, count) if self.correction else v

            shares = self.shares(params)

            def step(path, mean, square, param):
                direction, param = mean / (jnp.sqrt(square) + self.epsilon), param.astype(jnp.float32)
                if not any(re.search(pattern, path) for pattern in self.exclude):
                    direction = self.adapt(path, direction + self.decay * param, param)
                return -rate * shares[path] * direction

            return jax.tree.map(step, paths(params), mean, square, params), Moments(count, m, v)

        return optax.GradientTransformation(self.init, update)

    def shares(self, params) -> dict[str, np.ndarray]:
        """The share of the rate that each leaf has: `layer_decay` to the power of its distance from the heads.

        Of n layers the top one has the power 1, and the embeddings with the projection after them n + 1.
        """
        found = dict(leaves(params))
        count = max((len(leaf) for path, leaf in found.items() if "/layers/" in path), default=0)
        top = 2 if self.released_layer_decay else 1

        def power(path, leaf):
            if not path.startswith(BODIES):
                return np.zeros(())
            if "/layers/" not in path:
                return np.full((), count + top)
            return np.arange(count, 0, -1).reshape(-1, *[1] * (leaf.ndim - 1)) + top - 1

        return {path: np.float32(self.layer_decay) ** power(path, leaf) for path, leaf in found.items()}

    def adapt(self, path: str, direction: jax.Array, param: jax.Array) -> jax.Array:
        """The direction of a leaf that is not excluded, scaled by what the leaf itself asks for."""
        return direction


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay; the defaults are those of BERT's code.

    >>> float(AdamW(rate=1e-4, warmup=10_000).learning_rate(0, total_steps=1_000_000))
    0.0
    """


@dataclass(frozen=True)
class Lamb(Optimizer):
    """LAMB: every layer's direction is scaled to the norm of its weights; the defaults are ALBERT's.

    What `exclude` names is left out of weight decay and of the scaling.
    """

    rate: float = 1.76e-3
    warmup: int = 3125

    def adapt(self, path: str, direction: jax.Array, param: jax.Array) -> jax.Array:
        axes = tuple(range(int(stacked(path)), param.ndim))  # a stack has one norm a layer
        norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))
        weights, size = norm(param), norm(direction)
        moving = (weights > 0) & (size > 0)
        return direction * jnp.where(moving, weights / jnp.where(moving, size, 1.0), 1.0)


def regex(pattern) -> bool:
    """Whether `pattern` is a regular expression."""
    try:
        return isinstance(pattern, str) and re.compile(pattern) is not None
    except re.error:
        return False
