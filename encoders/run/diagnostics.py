"""Is a run well? What it is told of itself in words, with what to change."""

from __future__ import annotations

import shutil
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from encoders.costs.ledger import gibibytes, memory
from encoders.training import distributed, step
from encoders.training.optimizer import leaves

SPIKE, WINDOW = 6.0, 50  # deviations above the mean of as many rows of the log before
SLOW = 2.0  # times the usual time, and more than a tenth of all


@partial(jax.jit, static_argnames=("module", "accumulate"))
def finite(params: dict, batch: dict, seed, at, *, module, accumulate: int) -> tuple[dict, dict]:
    """Which loss terms of an update are finite, and which leaves of their gradient."""
    (_, metrics), grads = step.gradients(params, batch, seed, at, module=module, accumulate=accumulate)
    terms = {name: jnp.isfinite(metrics[name].total) for name in module.objective.weights}
    return terms, jax.tree.map(lambda x: jnp.isfinite(x).all(), grads)


def not_finite(run, state: step.State, batch: dict, at: int) -> str:
    """What of an update that was left out was not finite: loss terms, or else leaves of the gradient.

    The update left `state` as it was, so that it can be looked at again with the `batch` of step `at` (from 0).
    """
    settings = {"module": run.module, "accumulate": run.experiment.accumulate}
    terms, grads = jax.device_get(finite(state.params, batch, run.experiment.seed, at, **settings))
    named = [name for name, fine in terms.items() if not fine]
    named = named or [f"the gradient of {path}" for path, fine in leaves(grads) if not fine]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more or "nothing: its gradient is a spike, or its norm overflows"


def spike(losses: list[float]) -> str | None:
    """A line where the last loss lies far above those before it."""
    *before, last = losses[-WINDOW - 1 :]
    if len(before) < WINDOW // 5:
        return None
    usual, spread = statistics.fmean(before), statistics.pstdev(before)
    if last <= usual + SPIKE * max(spread, 1e-3 * abs(usual)):
        return None
    return (
        f"the loss is {last:.3f}, and was {usual:.3f} with a deviation of {spread:.3f}; where this comes again, a "
        "lower optimizer.rate, a longer optimizer.warmup or a lower optimizer.clip may help"
    )


def slowest(busy: float, seconds: float) -> str | None:
    """A line where one process of several was busy itself for much longer than the others, which waited for it."""
    times = distributed.gathered(np.float32(busy))
    worst, usual = int(times.argmax()), float(np.median(np.delete(times, times.argmax())))
    if times[worst] < max(SLOW * usual, 0.1 * seconds):
        return None
    return (
        f"process {worst} was busy beside its devices for {times[worst]:.1f} of {seconds:.1f} s, the others for "
        f"{usual:.1f} s: they wait for its batches, its disk or its processor"
    )


def room(run) -> str | None:
    """A line where the disk has no room for a run's checkpoints: those kept, the best one, and one on its way."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.shapes))
    there = sum(path.stat().st_size for path in (run.folder / "checkpoints").rglob("*") if path.is_file())
    needed, free = size * (run.experiment.cadence.keep + 2) - there, shutil.disk_usage(run.folder).free
    if needed <= free:
        return None
    return (
        f"{run.folder}: checkpoints may take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free; a lower "
        "cadence.keep needs less"
    )


def out_of_memory(run, error: BaseException) -> str:
    """What to change, with sizes, where a device has too little memory."""
    experiment, estimate = run.experiment, gibibytes(memory(run.experiment, run.mesh))
    line = next((line for line in str(error).splitlines() if "memory" in line.lower()), str(error))
    return (
        f"{experiment.name}: out of memory ({line.strip()[:150]}). Estimated there: {estimate}. With the "
        f"same numbers: a higher accumulate (now {experiment.accumulate}), model.remat=dots or full (now "
        f"{experiment.model.remat}), or a higher mesh.fsdp (now {run.mesh.shape['fsdp']}) on more devices. With other "
        f"ones: a lower phases.batch (now {max(phase.batch for phase in experiment.phases)}) or phases.length"
    )


def is_out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    ours = isinstance(error, jax.errors.JaxRuntimeError) and ("resource_exhausted" in said or "out of memory" in said)
    return ours or isinstance(error, MemoryError)
