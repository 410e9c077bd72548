"""AdamW, LAMB, StableAdamW and Muon as named chains of small optax transforms.

BERT and ELECTRA follow `optimization.py` of google-research/bert and google-research/electra, RoBERTa fairseq's `adam`.
ALBERT follows `lamb_optimizer.py` of google-research/albert (You et al., 2019, https://arxiv.org/abs/1904.00962).
ModernBERT follows `optimizer.py` of AnswerDotAI/ModernBERT (StableAdamW; Wortsman et al., 2023,
https://arxiv.org/abs/2304.13013).
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from encoders.model.encoder import is_stacked
from encoders.training.schedules import Schedule, ScheduleName, compute_rate_fraction
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields

GENERATOR_PARTS = ("generator", "tokens")  # top-level parameters of ELECTRA's generator
ENCODER_PREFIXES = ("encoder/", "discriminator/")  # of parameters below the heads, for layer-wise rates


def tree_paths(tree):
    """Return the tree with every leaf replaced by its path.

    >>> tree_paths({"layers": {"attend": {"bias": 0}}})
    {'layers': {'attend': {'bias': 'layers/attend/bias'}}}
    """
    join_keys = partial(jax.tree_util.keystr, simple=True, separator="/")
    return jax.tree.map_with_path(lambda path, _: join_keys(path), tree)


def flatten_with_paths(tree) -> list[tuple[str, Any]]:
    return list(zip(jax.tree.leaves(tree_paths(tree)), jax.tree.leaves(tree), strict=True))


class Moments(NamedTuple):
    """State of Adam: the number of updates, and moving averages of gradients and of their squares."""

    count: jax.Array
    m: dict
    v: dict


def init_adam_moments(params) -> Moments:
    """Return zeros in float32, of which no buffer occurs twice: they are donated."""
    make_zeros = lambda: optax.tree.zeros_like(params, dtype=jnp.float32)
    return Moments(jnp.zeros([], jnp.int32), make_zeros(), make_zeros())


def scale_by_adam(betas: tuple[float, float], eps: float, bias_correction: bool) -> optax.GradientTransformation:
    """Replace gradients by m / (√v + ε), with or without the bias correction of m and v.

    `optax.scale_by_adam` always corrects. Epsilon is added to the corrected root, as in apex and PyTorch.
    """
    beta1, beta2 = betas

    def update(gradients, state: Moments, params=None):
        count = optax.safe_increment(state.count)
        mean = m = optax.tree.update_moment(gradients, state.m, beta1, 1)
        square = v = optax.tree.update_moment(gradients, state.v, beta2, 2)
        if bias_correction:
            mean = optax.tree.bias_correction(m, beta1, count)
            square = optax.tree.bias_correction(v, beta2, count)
        updates = jax.tree.map(lambda mean, square: mean / (jnp.sqrt(square) + eps), mean, square)
        return updates, Moments(count, m, v)

    return optax.GradientTransformation(init_adam_moments, update)


def scale_by_stable_adam(betas: tuple[float, float], eps: float, decay: float, build_decay_mask):
    """Replace gradients g by (m / (√v + ε) + λ θ) / max(1, r) with r = √mean(g² / max(v, ε²)), and λ = `decay`.

    Bias is corrected inside the averages: their factor at update t is (β - βᵗ) / (1 - βᵗ). r is of one tensor, in
    stacked leaves of one layer; a fused projection is one tensor.
    """

    def correct_beta(beta: float, count):  # 1 - (1 - β) / (1 - βᵗ), of which float32 loses no digit
        return 1 - (1 - beta) / -jnp.expm1(count * (math.log(beta) if beta else -math.inf))

    def update(gradients, state: Moments, params):
        count = optax.safe_increment(state.count)
        m = optax.tree.update_moment(gradients, state.m, correct_beta(betas[0], count), 1)
        v = optax.tree.update_moment(gradients, state.v, correct_beta(betas[1], count), 2)

        def compute_update(path: str, gradient, m, v, param, decays: bool):
            axes = tuple(range(int(is_stacked(path)), param.ndim))
            square = jnp.square(gradient) / jnp.maximum(v, eps**2)
            ratio = jnp.sqrt(jnp.mean(square, axis=axes, keepdims=True))
            direction = m / (jnp.sqrt(v) + eps) + (decay if decays else 0.0) * param
            return direction / jnp.maximum(1.0, ratio)

        trees = tree_paths(params), gradients, m, v, params, build_decay_mask(params)
        return jax.tree.map(compute_update, *trees), Moments(count, m, v)

    return optax.GradientTransformation(init_adam_moments, update)


def scale_by_layer_muon(momentum: float, update_rms: float) -> optax.GradientTransformation:
    """Replace gradients of matrices, `[layers, in, out]`, by `optax.contrib`'s Muon times ρ √max(in, out) each."""
    dimensions = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    muon = optax.contrib.scale_by_muon(
        beta=momentum,
        mu_dtype=jnp.float32,
        weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: dimensions, updates),
    )
    scale_leaf = lambda update: update_rms * max(update.shape[-2:]) ** 0.5 * update
    return optax.chain(muon, optax.stateless(lambda updates, params: jax.tree.map(scale_leaf, updates)))


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """Scale each update to the norm of its weights, layer by layer in stacked leaves; a norm of 0 scales nothing."""

    def scale_leaf(path: str, update, param):
        axes = tuple(range(int(is_stacked(path)), param.ndim))
        compute_norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))
        weight_norm, update_norm = compute_norm(param.astype(update.dtype)), compute_norm(update)
        nonzero = (weight_norm > 0) & (update_norm > 0)
        return update * jnp.where(nonzero, weight_norm / jnp.where(nonzero, update_norm, 1.0), 1.0)

    return optax.stateless(lambda updates, params: jax.tree.map(scale_leaf, tree_paths(params), updates, params))


def scale_by_layer_rates(schedule: optax.Schedule, decay: float, decay_top_layer_twice: bool):
    """Scale by minus the learning rate, times `decay` to the power of a layer's distance from the heads.

    The top one of n layers has the power 1; embeddings and the projection after them have n + 1.
    With `decay_top_layer_twice` each power is one higher.
    """

    def compute_factor(path: str, param, num_layers: int):
        if not path.startswith(ENCODER_PREFIXES):
            return np.float32(1)
        power = np.asarray(num_layers + 1)
        if "/layers/" in path:
            power = np.arange(num_layers, 0, -1).reshape(-1, *[1] * (param.ndim - 1))
        return np.float32(decay) ** (power + int(decay_top_layer_twice))

    def update(updates, state: optax.ScaleByScheduleState, params):
        rate = schedule(state.count)
        num_layers = max((len(leaf) for path, leaf in flatten_with_paths(params) if "/layers/" in path), default=0)
        scale_leaf = lambda path, update, param: -rate * compute_factor(path, param, num_layers) * update
        updates = jax.tree.map(scale_leaf, tree_paths(params), updates, params)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(optax.scale_by_schedule(schedule).init, update)


def clip_networks_apart(max_norm: float) -> optax.GradientTransformation:
    """Clip the gradients of a generator with its head, and those of all other parameters, each to `max_norm`."""
    clip = optax.clip_by_global_norm(max_norm)

    def clip_networks(updates, params):
        is_generator = lambda name: "generator" in updates and name in GENERATOR_PARTS
        networks = [{n: tree for n, tree in updates.items() if is_generator(n) == flag} for flag in (True, False)]
        first, second = (clip.update(network, optax.EmptyState())[0] for network in networks)
        return first | second

    return optax.stateless(clip_networks)


@dataclass(frozen=True)
class OptimizerConfig(ABC):
    """Base class of optimisers: a learning rate with its schedule, clipping and decoupled weight decay.

    A subclass returns its transforms by name from `build_transforms`; any of optax's may be among them. In an
    experiment's own file:

        @encoders.register
        @dataclass(frozen=True)
        class Lion(OptimizerConfig):
            betas: tuple[float, float] = (0.9, 0.99)

            def build_transforms(self, total_steps):
                return {
                    "lion": optax.scale_by_lion(*self.betas),
                    "weight_decay": self.add_weight_decay(),
                    "learning_rate": self.scale_by_learning_rate(total_steps),
                }

    Raises `ValueError` for a value out of range.
    """

    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = (r"norm/", r"bias$")  # regexes of paths; () for RoBERTa, where everything decays
    clip_norm: float | None = 1.0  # of the global norm of gradients; None is off
    schedule: ScheduleName | Schedule = "replace"
    # Each layer's rate is this times that of the layer above; the heads have `learning_rate` (ELECTRA).
    layer_lr_decay: float = 1.0
    # The top layer's rate has the factor twice, as in all numbers of ELECTRA's code.
    decay_top_layer_twice: bool = False
    skip_spikes_above: float | None = None  # skip updates whose gradient norm exceeds so many times the recent mean
    clip_by_network: bool = False  # clip a generator's gradients apart from the others (DeBERTa-v3)

    def __post_init__(self):
        is_regexes = lambda value: isinstance(value, tuple) and all(map(is_regex, value))
        is_optional_number = lambda value, above: value is None or (is_number(value) and value > above)
        names = get_args(ScheduleName)
        checks = (
            ("learning_rate", lambda rate: is_number(rate) and rate > 0, "a number above 0"),
            ("warmup_steps", lambda steps: type(steps) is int and steps >= 0, "a whole number of steps, 0 or more"),
            ("weight_decay", lambda decay: is_number(decay) and decay >= 0, "a number, 0 or more"),
            ("no_decay", is_regexes, "a tuple of regexes"),
            ("clip_norm", lambda norm: is_optional_number(norm, 0), "a number above 0, or None"),
            ("skip_spikes_above", lambda ratio: is_optional_number(ratio, 1), "a number above 1, or None"),
            ("clip_by_network", lambda flag: isinstance(flag, bool), "True or False"),
            ("layer_lr_decay", lambda decay: is_number(decay) and 0 < decay <= 1, "above 0 and at most 1"),
            ("schedule", lambda x: isinstance(x, Schedule) or x in names, f"one of {', '.join(names)}, or a Schedule"),
        )
        check_fields(self, "optimizer.", checks)

    @abstractmethod
    def build_transforms(self, total_steps: int) -> dict[str, optax.GradientTransformation]:
        """Return the transforms in their order, by name; the names are those of their states in checkpoints."""

    def find_schedule_problem(self, total_steps: int) -> str | None:
        """Return why the schedule does not fit a run of `total_steps`, if it does not."""
        if total_steps < 1 or self.warmup_steps > total_steps:
            return (
                f"optimizer.warmup_steps={self.warmup_steps} exceeds the run's {total_steps} steps; lower it or raise "
                "phases.until_step"
            )
        is_value = isinstance(self.schedule, Schedule)
        return self.schedule.find_problem(self.warmup_steps, total_steps) if is_value else None

    def build_transformation(self, total_steps: int) -> optax.GradientTransformationExtraArgs:
        """Chain the transforms for a run of `total_steps`. Raises `ValueError` where the schedule does not fit it."""
        if problem := self.find_schedule_problem(total_steps):
            raise UserError(problem)
        return optax.named_chain(*self.build_transforms(total_steps).items())

    def init_moments(self, params) -> dict[str, Any]:
        """Return the state before the first update, by the name of each transform; no schedule changes it."""
        return optax.named_chain(*self.build_transforms(total_steps=1).items()).init(params)

    def compute_learning_rate(self, step, total_steps: int) -> jax.Array:
        """Return the rate of the update that follows `step` updates, in a run of `total_steps`."""
        return self.learning_rate * compute_rate_fraction(self.schedule, step, self.warmup_steps, total_steps)

    def build_decay_mask(self, params) -> Any:
        """Return True for every leaf that decays: whose path matches no regex of `no_decay`."""
        return jax.tree.map(lambda path: not any(re.search(regex, path) for regex in self.no_decay), tree_paths(params))

    def clip_gradients(self) -> optax.GradientTransformation:
        """Clip the norm of the global batch's gradient; the released BERT clips each replica's before adding them."""
        if self.clip_norm is None:
            return optax.identity()
        clip = clip_networks_apart if self.clip_by_network else optax.clip_by_global_norm
        return clip(self.clip_norm)

    def add_weight_decay(self) -> optax.GradientTransformation:
        """Add `weight_decay` times the parameters that decay."""
        return optax.add_decayed_weights(self.weight_decay, self.build_decay_mask)

    def scale_by_learning_rate(self, total_steps: int) -> optax.GradientTransformation:
        """Scale by minus the scheduled learning rate, of each layer where `layer_lr_decay` is not 1."""
        schedule = partial(self.compute_learning_rate, total_steps=total_steps)
        if self.layer_lr_decay == 1:
            return optax.scale_by_learning_rate(schedule)
        return scale_by_layer_rates(schedule, self.layer_lr_decay, self.decay_top_layer_twice)


@dataclass(frozen=True)
class AdamOptimizer(OptimizerConfig):
    """Base class of optimisers with Adam's two moving averages."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        is_pair = lambda betas: isinstance(betas, tuple) and len(betas) == 2 and all(map(is_beta, betas))
        checks = (
            ("betas", is_pair, "two numbers from 0 to below 1"),
            ("eps", lambda eps: is_number(eps) and eps > 0, "a number above 0"),
        )
        check_fields(self, "optimizer.", checks)

    def prepare_gradients(self) -> dict[str, optax.GradientTransformation]:
        """Return the transforms before the moving averages: float32, and clipping."""
        to_float32 = optax.stateless(lambda updates, params: optax.tree.cast(updates, jnp.float32))
        return {"float32": to_float32, "clip": self.clip_gradients()}


@dataclass(frozen=True)
class AdamW(AdamOptimizer):
    """Adam with decoupled weight decay; the defaults are those of BERT's code.

    >>> float(AdamW(learning_rate=1e-4, warmup_steps=10_000).compute_learning_rate(0, total_steps=1_000_000))
    0.0
    """

    bias_correction: bool = False  # True for RoBERTa; the code of BERT, ALBERT and ELECTRA has none

    def __post_init__(self):
        super().__post_init__()
        checks = [("bias_correction", lambda flag: isinstance(flag, bool), "True or False")]
        check_fields(self, "optimizer.", checks)

    def build_transforms(self, total_steps: int) -> dict[str, optax.GradientTransformation]:
        return self.prepare_gradients() | {
            "adam": scale_by_adam(self.betas, self.eps, self.bias_correction),
            "weight_decay": self.add_weight_decay(),
            "learning_rate": self.scale_by_learning_rate(total_steps),
        }


@dataclass(frozen=True)
class Lamb(AdamW):
    """LAMB: AdamW with each layer's update scaled to the norm of its weights; the defaults are ALBERT's.

    `no_decay` leaves parameters out of weight decay and of the scaling.
    """

    learning_rate: float = 1.76e-3
    warmup_steps: int = 3125

    def build_transforms(self, total_steps: int) -> dict[str, optax.GradientTransformation]:
        *transforms, learning_rate = super().build_transforms(total_steps).items()
        trust_ratio = optax.masked(scale_by_layer_trust_ratio(), self.build_decay_mask)
        return dict([*transforms, ("trust_ratio", trust_ratio), learning_rate])


@dataclass(frozen=True)
class StableAdamW(AdamOptimizer):
    """AdamW whose update is clipped tensor by tensor, with fully decoupled decay; the defaults are ModernBERT's.

    With r = √mean(g² / max(v, ε²)) of a tensor and the scheduled rate over max(1, r) as η (Wortsman et al., 2023):
    θ ← θ (1 - `weight_decay` η / `learning_rate`) - η m / (√v + ε). The peak rate changes no decay, the schedule does.
    """

    weight_decay: float = 1e-5
    clip_norm: float | None = None
    betas: tuple[float, float] = (0.9, 0.98)

    def build_transforms(self, total_steps: int) -> dict[str, optax.GradientTransformation]:
        decay = self.weight_decay / self.learning_rate
        return self.prepare_gradients() | {
            "stable_adam": scale_by_stable_adam(self.betas, self.eps, decay, self.build_decay_mask),
            "learning_rate": self.scale_by_learning_rate(total_steps),
        }


@dataclass(frozen=True)
class Muon(AdamW):
    """Muon for the matrices of layers, AdamW for embeddings, heads, norms and biases.

    The momentum of a matrix is orthogonalised (Jordan, 2024, https://kellerjordan.github.io/posts/muon). It is scaled
    to the size of AdamW's updates, so both take one rate and one decay (Liu et al., 2025,
    https://arxiv.org/abs/2502.16982, §2.2). Each layer of a stack is a matrix of its own; a fused projection is one.
    """

    bias_correction: bool = True
    momentum: float = 0.95
    update_rms: float = 0.2  # of an orthogonal matrix's elements, times √max(in, out)

    def __post_init__(self):
        super().__post_init__()
        checks = (
            ("momentum", is_beta, "from 0 to below 1"),
            ("update_rms", lambda rms: is_number(rms) and rms > 0, "a number above 0"),
        )
        check_fields(self, "optimizer.", checks)

    def build_transforms(self, total_steps: int) -> dict[str, optax.GradientTransformation]:
        transforms = super().build_transforms(total_steps)
        muon = scale_by_layer_muon(self.momentum, self.update_rms)
        transforms["adam"] = optax.partition({"adam": transforms["adam"], "muon": muon}, label_layer_matrices)
        return transforms


def label_layer_matrices(params):
    """Return "muon" for stacked matrices, `[layers, in, out]`, and "adam" for all other leaves."""
    choose_label = lambda path, param: "muon" if is_stacked(path) and param.ndim == 3 else "adam"
    return jax.tree.map(choose_label, tree_paths(params), params)


def is_beta(value) -> bool:
    return is_number(value) and 0 <= value < 1


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_regex(pattern) -> bool:
    try:
        return isinstance(pattern, str) and re.compile(pattern) is not None
    except re.error:
        return False
