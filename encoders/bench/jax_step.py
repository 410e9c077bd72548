"""Units of work of this package: a training step, the encoder alone, and the device's peak rates."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from encoders.bench.inputs import load_batches
from encoders.bench.rounds import choose_num_repeats
from encoders.costs.ledger import count_params
from encoders.model.encoder import Encoder
from encoders.objectives.base import total_loss
from encoders.text.tokenization import VocabInfo
from encoders.training import step
from encoders.utils.serialization import from_json_value

TimedWork = tuple[Callable[[], object], dict]


def build_jax_work(spec: dict) -> TimedWork:
    """Return a unit of work to time, and facts about it."""
    builders = {
        "train": build_train_work,
        "infer": build_inference_work,
        "product": build_matmul_work,
        "copy": build_copy_work,
    }
    return builders[spec["task"]](spec)


def describe_jax_device(**info) -> dict:
    """Return the device and the versions of libraries, with `info`."""
    device = jax.devices()[0]
    return {
        "device": device.platform,
        "kind": device.device_kind,
        "versions": {package.__name__: package.__version__ for package in (jax, np)},
    } | info


def compile_with_stats(function, *arguments, **static_args) -> tuple[Callable, dict]:
    """Return the executable of a jitted function, its processor seconds of compilation and its bytes of workspace."""
    jax.block_until_ready(arguments)  # else their computation is counted
    start = time.process_time()
    executable = function.lower(*arguments, **static_args).compile()
    seconds, memory = time.process_time() - start, executable.memory_analysis()
    stats = {"compile_seconds": seconds}
    if memory is not None:
        stats["temporary_bytes"] = memory.temp_size_in_bytes
    return executable, stats


def build_train_work(spec: dict) -> TimedWork:
    """Return `train_step` of an experiment, with batches from host memory."""
    experiment, vocab = from_json_value(spec["experiment"]), VocabInfo.from_json_value(spec["vocab"])
    batches = load_batches(spec["inputs"])
    module = experiment.objective.module(experiment.model, vocab)
    first = jax.jit(step.init_train_state, static_argnames=("module", "optimizer"))
    state, seed = first(0, module=module, optimizer=experiment.optimizer), jnp.int32(0)
    settings, count = step.build_static_args(experiment, module), count_params(state.params)
    run_step, taken = compile_with_stats(step.train_step, state, jax.device_put(batches[0]), seed, **settings)
    terms, number = experiment.objective.loss_weights, 0

    def run_train_step():
        nonlocal state, number
        state, metrics = run_step(state, jax.device_put(batches[number % len(batches)]), seed)
        number += 1
        return total_loss({name: metrics[name].total / metrics[name].count for name in terms}, terms)

    return run_train_step, describe_jax_device(parameters=count, **taken)


def build_inference_work(spec: dict) -> TimedWork:
    """The hidden states of an encoder, from batches in host memory; its parameters in the dtype it computes in."""
    model, batches = from_json_value(spec["experiment"]).model, load_batches(spec["inputs"])
    encoder = Encoder(model)
    params = encoder.init(jax.random.key(0), step.make_blank_batch(8))
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    call, taken = compile_with_stats(jax.jit(encoder.apply), params, jax.device_put(batches[0]))
    number = 0

    def run_encoder():
        nonlocal number
        hidden = call(params, jax.device_put(batches[number % len(batches)]))
        number += 1
        return hidden[0, 0, 0]

    return run_encoder, describe_jax_device(parameters=count_params(params), **taken)


def build_matmul_work(spec: dict) -> TimedWork:
    """Return repeated products of the sizes of a feed-forward layer, the peak rate of the device."""
    n, d, f = spec["sizes"]
    a, b = jnp.full((n, d), 0.5, spec["dtype"]), jnp.ones((d, f), spec["dtype"])

    def repeat_matmul(a, b, num_repeats):  # each product depends on the one before, so that XLA keeps all
        multiply_once = lambda _, x: (x @ b)[:, :d] * jnp.asarray(1 / d, x.dtype)
        return jax.lax.fori_loop(0, num_repeats, multiply_once, a)[0, 0]

    call, taken = compile_with_stats(jax.jit(repeat_matmul), a, b, jnp.int32(1))
    times = choose_num_repeats(lambda: jax.block_until_ready(call(a, b, jnp.int32(1))))
    return lambda: call(a, b, jnp.int32(times)), describe_jax_device(flops=2.0 * n * d * f * times, **taken)


def build_copy_work(spec: dict) -> TimedWork:
    """Return the addition of 1 to a large array, the rate at which memory is read and written."""
    count = spec["bytes"] // 4
    x = jnp.zeros(count, jnp.float32)
    call, taken = compile_with_stats(jax.jit(lambda x: x + 1, donate_argnums=0), x)

    def add_one():
        nonlocal x
        x = call(x)
        return x[0]

    return add_one, describe_jax_device(bytes=8.0 * count, **taken)
