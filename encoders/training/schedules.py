"""Learning-rate schedules of the four papers, as fractions of the peak rate.

After t of T updates, with w warm-up steps, the warm-up is min(1, t / w) and the linear decay is max(0, 1 - t / T).
Each schedule takes `(step, warmup_steps, total_steps)` and returns a float32 fraction of the shape of `step`.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

ScheduleName = Literal["replace", "peak", "product", "constant"]


def linear_warmup(step, warmup_steps: int) -> jax.Array:
    """Return min(1, t / w), which is 1 where w is 0."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(1.0, step / warmup_steps) if warmup_steps else jnp.ones_like(step)


def linear_decay(step, total_steps: int) -> jax.Array:
    """Return max(0, 1 - t / T)."""
    return jnp.maximum(0.0, 1.0 - jnp.asarray(step, jnp.float32) / total_steps)


def warmup_replaces_decay(step, warmup_steps: int, total_steps: int) -> jax.Array:
    """Return t / w before w and 1 - t / T from there, as in BERT and ALBERT: the rate drops by w / T at t = w."""
    return jnp.where(step < warmup_steps, linear_warmup(step, warmup_steps), linear_decay(step, total_steps))


def decay_from_peak(step, warmup_steps: int, total_steps: int) -> jax.Array:
    """Return t / w before w and (T - t) / (T - w) from there, as in RoBERTa.

    fairseq builds its scheduler with the rate of t = 1, but its trainer sets the rate of t = 0 before the first update.
    """
    decay = linear_decay(step, total_steps) * total_steps / max(total_steps - warmup_steps, 1)
    return jnp.where(step < warmup_steps, linear_warmup(step, warmup_steps), decay)


def warmup_times_decay(step, warmup_steps: int, total_steps: int) -> jax.Array:
    """Return min(1, t / w) (1 - t / T), as in ELECTRA: the largest fraction is below 1."""
    return linear_warmup(step, warmup_steps) * linear_decay(step, total_steps)


def constant_after_warmup(step, warmup_steps: int, total_steps: int) -> jax.Array:
    """Return min(1, t / w)."""
    return linear_warmup(step, warmup_steps)


SCHEDULES = {
    "replace": warmup_replaces_decay,
    "peak": decay_from_peak,
    "product": warmup_times_decay,
    "constant": constant_after_warmup,
}


def build_schedule(name: ScheduleName, learning_rate: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Return the function from the number of updates done to the rate of the next one.

    >>> schedule = build_schedule("peak", learning_rate=1.0, warmup_steps=2, total_steps=6)
    >>> [round(float(schedule(step)), 3) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return lambda step: learning_rate * SCHEDULES[name](step, warmup_steps, total_steps)
