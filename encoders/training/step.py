"""LOSS → UPDATE: the state of a run and the two pure functions that a run is made of."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from encoders.objectives.base import TaskModule
from encoders.training.optimizer import Moments, Optimizer
from encoders.training.sharding import gathered, kept, row_by_row
from encoders.utils.metrics import Mean

PARAMETERS, DROPOUT = 100, 101  # streams of random keys, beside those of objectives/masking.py
CALM, LATE = 64, 128  # updates before a spike is one, and over how many its gradient is compared


class State(struct.PyTreeNode):
    """All that a checkpoint holds. Keys are folded from (seed, step), never stored."""

    step: jax.Array
    params: dict
    moments: Moments
    guard: dict  # updates left out because loss or gradient was not finite, or a spike: in all, in a row; see `spiked`


def blank(length: int, labels: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """A batch of one row of ones, for shapes; `labels` are its fields beyond those that every batch has."""
    fields = {name: np.ones((1, length), np.int32) for name in ("tokens", "example", "segments", "positions")}
    fields |= {name: np.zeros((1, 1), np.int32) for name in ("start", "id", "epoch", "valid")}
    return fields | {label: np.zeros((1, 1), np.int32) for label in labels}


def parameters(seed, module) -> dict:
    """Fresh parameters of an objective's module; under `eval_shape` their shapes, of any size without memory."""
    objective = module.objective
    batch = objective.corrupt(jax.tree.map(jnp.asarray, blank(8, objective.needs)), module.facts, 0)
    return module.init(jax.random.fold_in(jax.random.key(seed), PARAMETERS), batch)["params"]


def init(seed, *, module, optimizer: Optimizer) -> State:
    """The state before the first step."""
    params = parameters(seed, module)
    zero = lambda: jnp.zeros((), jnp.int32)  # each its own: a donated buffer may occur once
    guard = {"skipped": zero(), "streak": zero()}
    if optimizer.spike is not None:
        guard |= {"norm": jnp.zeros(()), "made": zero()}
    return State(zero(), params, optimizer.init(params), guard)


def spiked(guard: dict, norm, spike: float | None):
    """Is a gradient of this norm a spike, more than `spike` times the mean of those of late; and that mean with it."""
    if spike is None:
        return False, {}
    made, mean = guard["made"], guard["norm"]
    after = mean + (norm - mean) / jnp.minimum(made + 1, LATE)
    return (made >= CALM) & (norm > spike * mean), {"norm": after, "made": made + 1}


def micro_batches(batch: dict, count: int) -> dict:
    """`[b ...]` to `[count, b / count, ...]`; row i goes to part i mod count, so that no row changes its device."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def gradients(params: dict, batch: dict, seed, at, *, module, accumulate: int = 1):
    """Loss and metrics of the update after `at` others, and the loss's gradient: `((loss, metrics), gradient)`.

    Each loss term is a sum over its count in the whole batch, so the micro-steps add up to one large step.
    """
    objective = module.objective
    batch = row_by_row(lambda rows: objective.corrupt(rows, module.facts, seed), batch)
    scale = {name: objective.weights[name] / jnp.maximum(n, 1) for name, n in objective.counts(batch).items()}
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT), at)

    def loss(params, micro, index):
        rngs = {"dropout": jax.random.fold_in(key, index)}
        metrics = module.apply({"params": gathered(params)}, micro, train=True, rngs=rngs)
        return sum(metrics[name].total * factor for name, factor in scale.items()), metrics

    gradient = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return gradient(params, batch, 0)
    micros = micro_batches(batch, accumulate)
    first = jax.tree.map(lambda x: x[0], micros)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, first, 0))

    def more(sums, each):
        return jax.tree.map(jnp.add, sums, gradient(params, *each)), None

    sums, _ = jax.lax.scan(more, zeros, (micros, jnp.arange(accumulate)))
    return sums


@partial(jax.jit, static_argnames=("module", "optimizer", "steps", "accumulate"), donate_argnums=0)
def train_step(state: State, batch: dict, seed, *, module, optimizer: Optimizer, steps: int, accumulate: int = 1):
    """One update on `batch`, of a run of `steps`, in `accumulate` micro-steps: `(state, metrics)`.

    An update that is not finite, or a spike, is left out and counted.
    """
    found = gradients(state.params, batch, seed, state.step, module=module, accumulate=accumulate)
    (total, metrics), grads = found
    norm = optax.tree.norm(grads)
    updates, moments = optimizer.transform(steps).update(grads, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    params |= {part: state.params[part] for part in module.objective.frozen}  # nor does weight decay reach them
    spike, calm = spiked(state.guard, norm, optimizer.spike)
    good = jnp.isfinite(total) & jnp.isfinite(norm) & jnp.logical_not(spike)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    bad = (~good).astype(jnp.int32)
    guard = {"skipped": state.guard["skipped"] + bad, "streak": (state.guard["streak"] + 1) * bad}
    guard |= keep(calm, {name: state.guard[name] for name in calm})
    one = jnp.ones(())
    metrics = jax.tree.map(lambda x: jnp.where(good, x, 0), metrics | {"gradient_norm": Mean(norm, one)})
    metrics |= {"skipped": Mean(bad, one), "tokens": Mean((batch["example"] > 0).sum(), one)}
    return kept(State(state.step + 1, keep(params, state.params), keep(moments, state.moments), guard)), metrics


@partial(jax.jit, static_argnames="module")
def eval_step(params: dict, batch: dict, *, module) -> tuple[dict, dict]:
    """Metrics of held-out rows, and of labelled ones what is said. No mask or sample depends on the run's seed."""
    batch = row_by_row(lambda rows: module.objective.corrupt(rows, module.facts, 0), batch)
    params = gathered(params)
    if isinstance(module, TaskModule):
        return module.apply({"params": params}, batch, method="evaluate")
    return module.apply({"params": params}, batch), {}
