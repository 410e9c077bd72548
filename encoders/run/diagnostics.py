"""Is a run well? What it is told of itself in words, with what to change."""

from __future__ import annotations

import shutil
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from encoders.costs.ledger import estimate_memory, format_gibibytes
from encoders.training import distributed, step
from encoders.training.optimizer import flatten_with_paths

SPIKE_DEVIATIONS, SPIKE_WINDOW = 6.0, 50  # deviations above the mean of as many rows of the log before
SLOW_PROCESS_RATIO = 2.0  # times the usual time, and more than a tenth of all


@partial(jax.jit, static_argnames=("module", "grad_accum_steps"))
def check_finite(params: dict, batch: dict, seed, step_index, *, module, grad_accum_steps: int) -> tuple[dict, dict]:
    """Which loss terms of an update are finite, and which leaves of their gradient."""
    (_, metrics), grads = step.compute_gradients(
        params, batch, seed, step_index, module=module, grad_accum_steps=grad_accum_steps
    )
    terms = {name: jnp.isfinite(metrics[name].total) for name in module.objective.loss_weights}
    return terms, jax.tree.map(lambda x: jnp.isfinite(x).all(), grads)


def describe_nonfinite_update(run, state: step.TrainState, batch: dict, step_index: int) -> str:
    """What of an update that was left out was not finite: loss terms, or else leaves of the gradient.

    The update left `state` as it was, so that it can be looked at again with the `batch` of step `at` (from 0).
    """
    settings = {"module": run.module, "grad_accum_steps": run.experiment.grad_accum_steps}
    terms, grads = jax.device_get(check_finite(state.params, batch, run.experiment.seed, step_index, **settings))
    named = [name for name, fine in terms.items() if not fine]
    named = named or [f"the gradient of {path}" for path, fine in flatten_with_paths(grads) if not fine]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more or "nothing: its gradient is a spike, or its norm overflows"


def describe_loss_spike(losses: list[float]) -> str | None:
    """A line where the last loss lies far above those before it."""
    *before, last = losses[-SPIKE_WINDOW - 1 :]
    if len(before) < SPIKE_WINDOW // 5:
        return None
    usual, spread = statistics.fmean(before), statistics.pstdev(before)
    if last <= usual + SPIKE_DEVIATIONS * max(spread, 1e-3 * abs(usual)):
        return None
    return (
        f"the loss is {last:.3f}, and was {usual:.3f} with a deviation of {spread:.3f}; where this comes again, a "
        "lower optimizer.learning_rate, a longer optimizer.warmup_steps or a lower optimizer.clip_norm may help"
    )


def describe_slowest_process(busy_seconds: float, interval_seconds: float) -> str | None:
    """A line where one process of several was busy itself for much longer than the others, which waited for it."""
    times = distributed.gather_from_processes(np.float32(busy_seconds))
    worst, usual = int(times.argmax()), float(np.median(np.delete(times, times.argmax())))
    if times[worst] < max(SLOW_PROCESS_RATIO * usual, 0.1 * interval_seconds):
        return None
    return (
        f"process {worst} was busy beside its devices for {times[worst]:.1f} of {interval_seconds:.1f} s, the "
        f"others for {usual:.1f} s: they wait for its batches, its disk or its processor"
    )


def describe_disk_shortage(run) -> str | None:
    """A line where the disk has no room for a run's checkpoints: those kept, the best one, and one on its way."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.state_shapes))
    there = sum(path.stat().st_size for path in (run.folder / "checkpoints").rglob("*") if path.is_file())
    needed, free = size * (run.experiment.intervals.keep_checkpoints + 2) - there, shutil.disk_usage(run.folder).free
    if needed <= free:
        return None
    return (
        f"{run.folder}: checkpoints may take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free; a lower "
        "intervals.keep_checkpoints needs less"
    )


def describe_out_of_memory(run, error: BaseException) -> str:
    """What to change, with sizes, where a device has too little memory."""
    experiment, estimate = run.experiment, format_gibibytes(estimate_memory(run.experiment, run.mesh))
    line = next((line for line in str(error).splitlines() if "memory" in line.lower()), str(error))
    return (
        f"{experiment.name}: out of memory ({line.strip()[:150]}). Estimated there: {estimate}. With the "
        f"same numbers: a higher grad_accum_steps (now {experiment.grad_accum_steps}), model.remat=dots or full (now "
        f"{experiment.model.remat}), or a higher mesh.fsdp (now {run.mesh.shape['fsdp']}) on more devices. With other "
        f"ones: a lower phases.batch_size (now {max(phase.batch_size for phase in experiment.phases)}) or "
        "phases.seq_length"
    )


def is_out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    ours = isinstance(error, jax.errors.JaxRuntimeError) and ("resource_exhausted" in said or "out of memory" in said)
    return ours or isinstance(error, MemoryError)
