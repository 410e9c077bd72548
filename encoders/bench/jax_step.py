"""Units of work of this package: a training step, the encoder alone, and the device's peak rates."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from encoders.bench.rounds import choose_num_repeats
from encoders.costs.ledger import count_params
from encoders.model.encoder import Encoder
from encoders.objectives.base import total_loss
from encoders.training import step
from encoders.utils.serialization import from_json_value

TimedWork = tuple[Callable[[], object], dict]


def build_jax_work(spec: dict) -> TimedWork:
    """Return a unit of work to time, and facts about it, the device and the versions of libraries."""
    builders = {
        "train": build_train_work,
        "infer": build_inference_work,
        "product": build_matmul_work,
        "copy": build_copy_work,
    }
    run_unit, info = builders[spec["task"]](spec)
    device = jax.devices()[0]
    versions = {package.__name__: package.__version__ for package in (jax, np)}
    return run_unit, {"device": device.platform, "kind": device.device_kind, "versions": versions} | info


def compile_with_stats(function, *arguments, **static_args) -> tuple[Callable, dict]:
    """Return the executable of a jitted function, its processor seconds of compilation and its bytes of workspace."""
    jax.block_until_ready(arguments)  # else their computation is counted
    start = time.process_time()
    executable = function.lower(*arguments, **static_args).compile()
    stats = {"compile_seconds": time.process_time() - start}
    if (memory := executable.memory_analysis()) is not None:
        stats["temporary_bytes"] = memory.temp_size_in_bytes
    return executable, stats


def build_train_work(spec: dict) -> TimedWork:
    """Return `train_step` of an experiment, with batches from host memory."""
    experiment, (vocab, batches) = from_json_value(spec["experiment"]), pickle.loads(Path(spec["inputs"]).read_bytes())
    module = experiment.objective.module(experiment.model, vocab)
    state = jax.jit(partial(step.init_train_state, module=module, optimizer=experiment.optimizer))(0)
    seed, static_args = jnp.int32(0), step.build_static_args(experiment, module)
    run_step, stats = compile_with_stats(step.train_step, state, jax.device_put(batches[0]), seed, **static_args)
    loss_weights, endless_batches = experiment.objective.loss_weights, itertools.cycle(batches)

    def run_train_step():
        nonlocal state
        state, metrics = run_step(state, jax.device_put(next(endless_batches)), seed)
        return total_loss({name: metrics[name].total / metrics[name].count for name in loss_weights}, loss_weights)

    return run_train_step, stats | {"parameters": count_params(state.params)}


def build_inference_work(spec: dict) -> TimedWork:
    """Return the hidden states of an encoder, from batches in host memory; parameters in the dtype it computes in."""
    model, (_, batches) = from_json_value(spec["experiment"]).model, pickle.loads(Path(spec["inputs"]).read_bytes())
    encoder, endless_batches = Encoder(model), itertools.cycle(batches)
    params = encoder.init(jax.random.key(0), step.make_blank_batch(8))
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    call, stats = compile_with_stats(jax.jit(encoder.apply), params, jax.device_put(batches[0]))
    run_encoder = lambda: call(params, jax.device_put(next(endless_batches)))[0, 0, 0]
    return run_encoder, stats | {"parameters": count_params(params)}


def build_matmul_work(spec: dict) -> TimedWork:
    """Return repeated products of the sizes of a feed-forward layer, the peak rate of the device."""
    n, d, f = spec["sizes"]
    a, b = jnp.full((n, d), 0.5, spec["dtype"]), jnp.ones((d, f), spec["dtype"])

    def repeat_matmul(a, b, num_repeats):  # each product depends on the one before, so that XLA keeps all
        multiply_once = lambda _, x: (x @ b)[:, :d] * jnp.asarray(1 / d, x.dtype)
        return jax.lax.fori_loop(0, num_repeats, multiply_once, a)[0, 0]

    call, stats = compile_with_stats(jax.jit(repeat_matmul), a, b, jnp.int32(1))
    num_repeats = choose_num_repeats(lambda: jax.block_until_ready(call(a, b, jnp.int32(1))))
    return lambda: call(a, b, jnp.int32(num_repeats)), stats | {"flops": 2.0 * n * d * f * num_repeats}


def build_copy_work(spec: dict) -> TimedWork:
    """Return the addition of 1 to a large array, the rate at which memory is read and written."""
    x = jnp.zeros(spec["bytes"] // 4, jnp.float32)
    call, stats = compile_with_stats(jax.jit(lambda x: x + 1, donate_argnums=0), x)

    def add_one():
        nonlocal x
        x = call(x)
        return x[0]

    return add_one, stats | {"bytes": 2.0 * spec["bytes"]}
