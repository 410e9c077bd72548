"""Progress of a sweep: states, steps, and the time that is left."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, replace

from encoders.costs.ledger import run_flops
from encoders.experiment import Experiment
from encoders.run.folder import differing_fields
from encoders.sweeps.sweep import FAILURE_FILE, Sweep
from encoders.training import metric_log
from encoders.utils.files import lock_owner


@dataclass(frozen=True)
class RunProgress:
    """State and step of an experiment, and the seconds left, or None if no speed is known."""

    experiment: Experiment
    state: str
    step: int
    seconds_left: float | None
    note: str = ""


def measure_progress(sweep: Sweep) -> list[RunProgress]:
    """Return the progress of every experiment.

    The time left is that of its remaining FLOPs at its own speed, else at the median speed of runs on the same kind of
    data, else of all runs.
    """
    progress, speeds_by_data = [], {}
    for experiment in sweep.experiments:
        folder, flops = sweep.run_folder(experiment), run_flops(experiment)
        differences = differing_fields(experiment, folder)
        rows = [] if differences else list(metric_log.read_metric_rows(folder / "metrics.jsonl"))
        step, seconds = max((row["step"] for row in rows), default=0), sum(row["time"]["seconds"] for row in rows)
        state, note = describe_state(sweep, experiment, differences, step)
        flops_done, speeds = flops * step / experiment.num_steps, []
        if seconds:
            speeds = [flops_done / seconds]
            speeds_by_data.setdefault(type(experiment.data), []).extend(speeds)
        run = RunProgress(experiment, state, step, 0.0 if state == "done" else None, note)
        progress.append((run, flops - flops_done, speeds))
    all_speeds = list(itertools.chain(*speeds_by_data.values()))
    for index, (run, flops_left, speeds) in enumerate(progress):
        speeds = speeds or speeds_by_data.get(type(run.experiment.data), all_speeds)
        if speeds and run.state != "done":
            run = replace(run, seconds_left=flops_left / statistics.median(speeds))
        progress[index] = run
    return progress


def describe_state(sweep: Sweep, experiment: Experiment, differences: list[str], step: int) -> tuple[str, str]:
    """Return the state of an experiment, and a note: an error, the process that trains it, or what differs."""
    if differences:
        return "other", f"holds another experiment: {'; '.join(differences)}"
    folder, state = sweep.run_folder(experiment), sweep.find_state(experiment)
    if state == "failed":
        return state, (folder / FAILURE_FILE).read_text(encoding="utf-8").strip()
    if state == "running":
        return state, lock_owner(folder) or ""
    return ("interrupted" if state == "ready" and step else state), ""
