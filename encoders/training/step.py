"""LOSS → UPDATE: the state of a run and the two pure functions that a run is made of."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from encoders.data.batch import Batch, build_single_example_batch
from encoders.objectives.base import TaskModule
from encoders.training.optimizer import Moments, OptimizerConfig
from encoders.training.sharding import constrain_to_mesh, map_rows, unshard_fsdp
from encoders.utils.metrics import Mean

PARAMS_STREAM, DROPOUT_STREAM = 100, 101  # streams of random keys, beside those of objectives/masking.py
SPIKE_MIN_UPDATES, SPIKE_MEAN_UPDATES = (
    64,
    128,
)  # updates before a spike is one, and over how many its gradient is compared


class TrainState(struct.PyTreeNode):
    """All that a checkpoint holds. Keys are folded from (seed, step), never stored."""

    step: jax.Array
    params: dict
    moments: Moments
    update_guard: (
        dict  # updates left out because loss or gradient was not finite, or a spike: in all, in a row; see `spiked`
    )


def make_blank_batch(seq_length: int, required_fields: Iterable[str] = ()) -> Batch:
    """Return one row of the token 1 with labels of 0, to trace shapes with."""
    labels = {name: np.zeros((1, 1), np.int32) for name in required_fields}
    return build_single_example_batch(np.ones((1, seq_length), np.int32), labels=labels)


def init_params(seed, module) -> dict:
    """Fresh parameters of an objective's module; under `eval_shape` their shapes, of any size without memory."""
    objective = module.objective
    batch = objective.corrupt(
        jax.tree.map(jnp.asarray, make_blank_batch(8, objective.required_fields)), module.vocab, 0
    )
    return module.init(jax.random.fold_in(jax.random.key(seed), PARAMS_STREAM), batch)["params"]


def init_train_state(seed, *, module, optimizer: OptimizerConfig) -> TrainState:
    """The state before the first step."""
    params = init_params(seed, module)
    make_zero = lambda: jnp.zeros((), jnp.int32)  # each its own: a donated buffer may occur once
    guard = {"skipped": make_zero(), "streak": make_zero()}
    if optimizer.skip_spikes_above is not None:
        guard |= {"norm": jnp.zeros(()), "made": make_zero()}
    return TrainState(make_zero(), params, optimizer.init_moments(params), guard)


def detect_spike(update_guard: dict, gradient_norm, skip_spikes_above: float | None):
    """Is a gradient of this norm a spike, more than `spike` times the mean of those of late; and that mean with it."""
    if skip_spikes_above is None:
        return False, {}
    made, mean = update_guard["made"], update_guard["norm"]
    after = mean + (gradient_norm - mean) / jnp.minimum(made + 1, SPIKE_MEAN_UPDATES)
    return (made >= SPIKE_MIN_UPDATES) & (gradient_norm > skip_spikes_above * mean), {"norm": after, "made": made + 1}


def split_micro_batches(batch: Batch, num_micro_batches: int) -> Batch:
    """`[b ...]` to `[count, b / count, ...]`; row i goes to part i mod count, so that no row changes its device."""
    return jax.tree.map(lambda x: x.reshape(-1, num_micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)


def compute_gradients(params: dict, batch: Batch, seed, step, *, module, grad_accum_steps: int = 1):
    """Loss and metrics of the update after `at` others, and the loss's gradient: `((loss, metrics), gradient)`.

    Each loss term is a sum over its count in the whole batch, so the micro-steps add up to one large step.
    """
    objective = module.objective
    batch = map_rows(lambda rows: objective.corrupt(rows, module.vocab, seed), batch)
    scale = {name: objective.loss_weights[name] / jnp.maximum(n, 1) for name, n in objective.counts(batch).items()}
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM), step)

    def loss_fn(params, micro_batch, index):
        rngs = {"dropout": jax.random.fold_in(key, index)}
        metrics = module.apply({"params": unshard_fsdp(params)}, micro_batch, train=True, rngs=rngs)
        return sum(metrics[name].total * factor for name, factor in scale.items()), metrics

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if grad_accum_steps == 1:
        return gradient(params, batch, 0)
    micros = split_micro_batches(batch, grad_accum_steps)
    first = jax.tree.map(lambda x: x[0], micros)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, first, 0))

    def accumulate_gradients(sums, micro_inputs):
        return jax.tree.map(jnp.add, sums, gradient(params, *micro_inputs)), None

    sums, _ = jax.lax.scan(accumulate_gradients, zeros, (micros, jnp.arange(grad_accum_steps)))
    return sums


@partial(jax.jit, static_argnames=("module", "optimizer", "total_steps", "grad_accum_steps"), donate_argnums=0)
def train_step(
    state: TrainState,
    batch: Batch,
    seed,
    *,
    module,
    optimizer: OptimizerConfig,
    total_steps: int,
    grad_accum_steps: int = 1,
):
    """One update on `batch`, of a run of `steps`, in `accumulate` micro-steps: `(state, metrics)`.

    An update that is not finite, or a spike, is left out and counted.
    """
    found = compute_gradients(state.params, batch, seed, state.step, module=module, grad_accum_steps=grad_accum_steps)
    (total, metrics), grads = found
    norm = optax.tree.norm(grads)
    updates, moments = optimizer.build_transformation(total_steps).update(grads, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    params |= {part: state.params[part] for part in module.objective.frozen_params}  # nor does weight decay reach them
    spike, calm = detect_spike(state.update_guard, norm, optimizer.skip_spikes_above)
    good = jnp.isfinite(total) & jnp.isfinite(norm) & jnp.logical_not(spike)
    select_finite = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    bad = (~good).astype(jnp.int32)
    guard = {"skipped": state.update_guard["skipped"] + bad, "streak": (state.update_guard["streak"] + 1) * bad}
    guard |= select_finite(calm, {name: state.update_guard[name] for name in calm})
    one = jnp.ones(())
    metrics = jax.tree.map(lambda x: jnp.where(good, x, 0), metrics | {"gradient_norm": Mean(norm, one)})
    metrics |= {"skipped": Mean(bad, one), "tokens": Mean(batch.num_tokens, one)}
    return constrain_to_mesh(
        TrainState(state.step + 1, select_finite(params, state.params), select_finite(moments, state.moments), guard)
    ), metrics


@partial(jax.jit, static_argnames="module")
def eval_step(params: dict, batch: Batch, *, module) -> tuple[dict, dict]:
    """Metrics of held-out rows, and of labelled ones what is said. No mask or sample depends on the run's seed."""
    batch = map_rows(lambda rows: module.objective.corrupt(rows, module.vocab, 0), batch)
    params = unshard_fsdp(params)
    if isinstance(module, TaskModule):
        return module.apply({"params": params}, batch, method="evaluate_batch")
    return module.apply({"params": params}, batch), {}
