"""Training state of a run, and its pure steps: a training step and an evaluation step."""

from collections.abc import Iterable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from encoders.data.batch import Batch, build_single_example_batch
from encoders.objectives.base import TaskModule
from encoders.text.tokenization import make_blank_vocab
from encoders.training.optimizer import OptimizerConfig
from encoders.training.sharding import constrain_to_mesh, map_rows, unshard_fsdp
from encoders.utils.metrics import Mean

PARAMS_STREAM, DROPOUT_STREAM = 100, 101  # streams of random keys, beside those of objectives/masking.py
SPIKE_MIN_UPDATES = 64  # updates before any is a spike
SPIKE_MEAN_UPDATES = 128  # updates that the mean gradient norm is taken over


class TrainState(struct.PyTreeNode):
    """All that a checkpoint holds; random keys are folded from (seed, step) and never stored.

    `update_guard` counts the skipped updates: `skipped_updates` in all and `consecutive_skips`. An optimiser that skips
    spikes also has `mean_gradient_norm` and the number of updates in that mean, `measured_updates`.
    """

    step: jax.Array
    params: dict
    moments: dict  # state of each transform of the optimiser, for AdamW and LAMB `moments["adam"]`
    update_guard: dict[str, jax.Array]


def make_blank_batch(seq_length: int, required_fields: Iterable[str] = ()) -> Batch:
    """Return one row of the token 1 with labels of 0, to trace shapes with."""
    labels = {name: np.zeros((1, 1), np.int32) for name in required_fields}
    return build_single_example_batch(np.ones((1, seq_length), np.int32), labels=labels)


def init_params(seed, module) -> dict:
    """Return fresh parameters of an objective's module."""
    objective = module.objective
    blank = jax.tree.map(jnp.asarray, make_blank_batch(8, objective.required_fields))
    key = jax.random.fold_in(jax.random.key(seed), PARAMS_STREAM)
    return module.init(key, objective.corrupt(blank, module.vocab, 0))["params"]


@lru_cache(maxsize=32)
def trace_param_shapes(module) -> dict:
    return jax.eval_shape(partial(init_params, 0, module))


def eval_module_shapes(module) -> dict:
    """Return the shapes of the parameters of an objective's module, without memory; it is traced once a process.

    They do not depend on the words of a vocabulary: a run shares the trace with the checks before it reads its store.
    """
    blank = module.clone(vocab=make_blank_vocab(module.config.vocab_size))
    return jax.tree.map(lambda shape: shape, trace_param_shapes(blank))


def init_train_state(seed, *, module, optimizer: OptimizerConfig) -> TrainState:
    """Return the state before the first step."""
    return begin_training(init_params(seed, module), optimizer=optimizer)


def eval_state_shapes(*, module, optimizer: OptimizerConfig) -> TrainState:
    """Return the shapes of the state before the first step, without memory."""
    return jax.eval_shape(partial(begin_training, optimizer=optimizer), eval_module_shapes(module))


def begin_training(params: dict, *, optimizer: OptimizerConfig) -> TrainState:
    """Return the state before the first step, with these parameters."""
    make_zero = lambda: jnp.zeros((), jnp.int32)  # a donated buffer may occur once
    guard = {"skipped_updates": make_zero(), "consecutive_skips": make_zero()}
    if optimizer.skip_spikes_above is not None:
        guard |= {"mean_gradient_norm": jnp.zeros(()), "measured_updates": make_zero()}
    return TrainState(make_zero(), params, optimizer.init_moments(params), guard)


def build_static_args(experiment, module) -> dict:
    """Return the arguments of `train_step` that its compilation depends on, besides shapes."""
    return {
        "module": module,
        "optimizer": experiment.optimizer,
        "total_steps": experiment.num_steps,
        "grad_accum_steps": experiment.grad_accum_steps,
    }


def detect_spike(update_guard: dict, gradient_norm, skip_spikes_above: float | None):
    """Return `(is_spike, statistics)`: is the norm above `skip_spikes_above` times the mean, and the mean with it."""
    if skip_spikes_above is None:
        return False, {}
    count, mean = update_guard["measured_updates"], update_guard["mean_gradient_norm"]
    new_mean = mean + (gradient_norm - mean) / jnp.minimum(count + 1, SPIKE_MEAN_UPDATES)
    is_spike = (count >= SPIKE_MIN_UPDATES) & (gradient_norm > skip_spikes_above * mean)
    return is_spike, {"mean_gradient_norm": new_mean, "measured_updates": count + 1}


def split_micro_batches(batch: Batch, num_micro_batches: int) -> Batch:
    """Reshape `[b ...]` to `[n, b / n, ...]`; row i goes to micro-batch i mod n, so that no row changes its device."""
    return jax.tree.map(lambda x: x.reshape(-1, num_micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)


def join_micro_batches(outputs):
    """Reshape arrays `[n, b / n, ...]` to `[b ...]`, the inverse of `split_micro_batches`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), outputs)


def encode_in_chunks(params: dict, micro_batches: Batch, key, *, module: TaskModule):
    """Return the outputs `[b ...]` of micro-batches `[n, b / n, ...]`, which are encoded one by one.

    Each is encoded again for its gradients, so the memory is that of one (Gao et al., 2021,
    https://arxiv.org/abs/2101.06983).
    """

    @jax.checkpoint
    def encode(params, micro_batch, index):
        rngs = {"dropout": jax.random.fold_in(key, index)}
        variables = {"params": unshard_fsdp(params)}
        return module.apply(variables, micro_batch, train=True, rngs=rngs, method=module.compute_logits)

    indices = jnp.arange(len(micro_batches.input_ids))
    outputs = jax.lax.map(lambda inputs: encode(params, *inputs), (micro_batches, indices))
    return join_micro_batches(outputs)


def compute_gradients(params: dict, batch: Batch, seed, step, *, module, grad_accum_steps: int = 1):
    """Return `((loss, metrics), gradients)` of the update after `step` others.

    Each loss term is a sum over its count in the whole batch, so the micro-steps add up to one large step. An objective
    that compares rows has the loss of all rows; only their encoding is divided into micro-steps.
    """
    objective = module.objective
    batch = map_rows(lambda rows: objective.corrupt(rows, module.vocab, seed), batch)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM), step)
    get_counts = lambda metrics: {name: metrics[name].count for name in objective.loss_weights}

    def sum_loss_terms(metrics, counts):
        scales = {name: weight / jnp.maximum(counts[name], 1) for name, weight in objective.loss_weights.items()}
        return sum(metrics[name].total * scale for name, scale in scales.items())

    def loss_fn(params, micro_batch, index, counts=None):
        rngs = {"dropout": jax.random.fold_in(key, index)}
        metrics = module.apply({"params": unshard_fsdp(params)}, micro_batch, train=True, rngs=rngs)
        return sum_loss_terms(metrics, get_counts(metrics) if counts is None else counts), metrics

    def whole_batch_loss_fn(params):
        outputs = encode_in_chunks(params, split_micro_batches(batch, grad_accum_steps), key, module=module)
        metrics = module.apply({"params": params}, outputs, batch, method=module.compute_metrics)
        return sum_loss_terms(metrics, get_counts(metrics)), metrics

    if objective.compares_rows and grad_accum_steps > 1:
        return jax.value_and_grad(whole_batch_loss_fn, has_aux=True)(params)
    loss_and_gradients = jax.value_and_grad(loss_fn, has_aux=True)
    if grad_accum_steps == 1:
        return loss_and_gradients(params, batch, 0)
    # The counts of the whole batch depend on no parameter: XLA removes the rest of this forward pass.
    counts = get_counts(module.apply({"params": params}, batch))
    micro_batches = split_micro_batches(batch, grad_accum_steps)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(loss_and_gradients, params, first, 0, counts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def accumulate(sums, micro_inputs):
        return jax.tree.map(jnp.add, sums, loss_and_gradients(params, *micro_inputs, counts)), None

    sums, _ = jax.lax.scan(accumulate, zeros, (micro_batches, jnp.arange(grad_accum_steps)))
    return sums


@partial(jax.jit, static_argnames=("module", "optimizer", "total_steps", "grad_accum_steps"), donate_argnums=0)
def train_step(
    state: TrainState, batch: Batch, seed, *, module, optimizer: OptimizerConfig, total_steps: int, grad_accum_steps=1
):
    """Return `(state, metrics)` after one update, in a run of `total_steps`, by `grad_accum_steps` micro-steps.

    An update that is not finite, or a spike, is skipped and counted.
    """
    (loss, metrics), gradients = compute_gradients(
        state.params, batch, seed, state.step, module=module, grad_accum_steps=grad_accum_steps
    )
    updates, new_moments = optimizer.build_transformation(total_steps).update(gradients, state.moments, state.params)
    new_params = optax.apply_updates(state.params, updates)
    new_params |= {name: state.params[name] for name in module.objective.frozen_params}  # without weight decay

    gradient_norm = optax.tree.norm(gradients)
    is_spike, statistics = detect_spike(state.update_guard, gradient_norm, optimizer.skip_spikes_above)
    is_applied = jnp.isfinite(loss) & jnp.isfinite(gradient_norm) & jnp.logical_not(is_spike)
    select_applied = lambda new, old: jax.tree.map(lambda n, o: jnp.where(is_applied, n, o), new, old)
    skipped = (~is_applied).astype(jnp.int32)
    guard = {
        "skipped_updates": state.update_guard["skipped_updates"] + skipped,
        "consecutive_skips": (state.update_guard["consecutive_skips"] + 1) * skipped,
    }
    guard |= select_applied(statistics, {name: state.update_guard[name] for name in statistics})
    new_params, new_moments = select_applied(new_params, state.params), select_applied(new_moments, state.moments)

    one = jnp.ones(())
    metrics |= {"gradient_norm": Mean(gradient_norm, one)}
    metrics = jax.tree.map(lambda x: jnp.where(is_applied, x, 0), metrics)
    metrics |= {"skipped": Mean(skipped, one), "tokens": Mean(batch.num_tokens, one)}
    return constrain_to_mesh(TrainState(state.step + 1, new_params, new_moments, guard)), metrics


@partial(jax.jit, static_argnames="module")
def eval_step(params: dict, batch: Batch, *, module) -> tuple[dict, dict]:
    """Return metrics of held-out rows, and outputs of labelled ones. Masks and samples ignore the run's seed."""
    batch = map_rows(lambda rows: module.objective.corrupt(rows, module.vocab, 0), batch)
    params = unshard_fsdp(params)
    if isinstance(module, TaskModule):
        return module.apply({"params": params}, batch, method=module.evaluate_batch)
    return module.apply({"params": params}, batch), {}
