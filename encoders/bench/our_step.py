"""Units of work of ours: a training step, the encoder alone, and this device's ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from encoders.bench.inputs import load
from encoders.bench.rounds import repeats
from encoders.costs.ledger import parameters
from encoders.model.encoder import Encoder
from encoders.objectives.base import total_loss
from encoders.run.loop import static
from encoders.text.tokenization import Facts
from encoders.training import step
from encoders.utils.overrides import from_json

Work = tuple[Callable[[], object], dict]


def build(spec: dict) -> Work:
    """A unit of work to be timed, and facts about it."""
    return {"train": train, "infer": infer, "product": product, "copy": copy}[spec["task"]](spec)


def about(**facts) -> dict:
    device = jax.devices()[0]
    return {
        "device": device.platform,
        "kind": device.device_kind,
        "versions": {package.__name__: package.__version__ for package in (jax, np)},
    } | facts


def compiled(function, *arguments, **static) -> tuple[Callable, dict]:
    """The executable of a jitted function, and what making it took: processor seconds, and bytes it works in."""
    jax.block_until_ready(arguments)  # or making them is counted
    start = time.process_time()
    executable = function.lower(*arguments, **static).compile()
    seconds, memory = time.process_time() - start, executable.memory_analysis()
    facts = {"compile_seconds": seconds}
    return executable, facts | ({} if memory is None else {"temporary_bytes": memory.temp_size_in_bytes})


def train(spec: dict) -> Work:
    """`train_step` of an experiment, with batches from host memory."""
    experiment, facts = from_json(spec["experiment"]), Facts.from_json(spec["facts"])
    batches = load(spec["inputs"])
    module = experiment.objective.module(experiment.model, facts)
    first = jax.jit(step.init, static_argnames=("module", "optimizer"))
    state, seed = first(0, module=module, optimizer=experiment.optimizer), jnp.int32(0)
    settings, count = static(experiment, module), parameters(state.params)
    run_step, taken = compiled(step.train_step, state, jax.device_put(batches[0]), seed, **settings)
    terms, number = experiment.objective.weights, 0

    def run():
        nonlocal state, number
        state, metrics = run_step(state, jax.device_put(batches[number % len(batches)]), seed)
        number += 1
        return total_loss({name: metrics[name].total / metrics[name].count for name in terms}, terms)

    return run, about(parameters=count, **taken)


def infer(spec: dict) -> Work:
    """The hidden states of an encoder, from batches in host memory; its parameters in the dtype it computes in."""
    model, batches = from_json(spec["experiment"]).model, load(spec["inputs"])
    encoder = Encoder(model)
    fields = ("tokens", "example", "segments", "positions")
    rows = [tuple(batch[name] for name in fields) for batch in batches]
    params = encoder.init(jax.random.key(0), *(jnp.asarray(x[:1, :8]) for x in rows[0]))
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    call, taken = compiled(jax.jit(encoder.apply), params, *jax.device_put(rows[0]))
    number = 0

    def run():
        nonlocal number
        hidden = call(params, *jax.device_put(rows[number % len(rows)]))
        number += 1
        return hidden[0, 0, 0]

    return run, about(parameters=parameters(params), **taken)


def product(spec: dict) -> Work:
    """A product of matrices of a feed-forward layer: the rate that nothing here can exceed."""
    n, d, f = spec["sizes"]
    a, b = jnp.full((n, d), 0.5, spec["dtype"]), jnp.ones((d, f), spec["dtype"])

    def many(a, b, times):  # each product depends on the one before, so that none is left out
        body = lambda _, x: (x @ b)[:, :d] * jnp.asarray(1 / d, x.dtype)
        return jax.lax.fori_loop(0, times, body, a)[0, 0]

    call, taken = compiled(jax.jit(many), a, b, jnp.int32(1))
    times = repeats(lambda: jax.block_until_ready(call(a, b, jnp.int32(1))))
    return lambda: call(a, b, jnp.int32(times)), about(flops=2.0 * n * d * f * times, **taken)


def copy(spec: dict) -> Work:
    """Adding one to a large array: the rate at which memory is read and written."""
    count = spec["bytes"] // 4
    x = jnp.zeros(count, jnp.float32)
    call, taken = compiled(jax.jit(lambda x: x + 1, donate_argnums=0), x)

    def run():
        nonlocal x
        x = call(x)
        return x[0]

    return run, about(bytes=8.0 * count, **taken)
