"""Progress of a sweep: states, steps, and the time that is left."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from encoders.costs.ledger import run_flops
from encoders.experiment import Experiment
from encoders.run.folder import differing_fields, read_run_rows
from encoders.sweeps.sweep import FAILURE_FILE, Sweep
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
    progress, speeds_by_data = {}, {}
    for experiment in sweep.experiments:
        differences = differing_fields(experiment, sweep.run_folder(experiment))
        step, seconds = (0, 0.0) if differences else read_step_and_seconds(sweep.run_folder(experiment))
        fraction = step / experiment.num_steps
        speed = run_flops(experiment) * fraction / seconds if seconds else None
        progress[experiment.name] = (differences, step, fraction, speed)
        if speed is not None:
            speeds_by_data.setdefault(type(experiment.data), []).append(speed)
    all_speeds = [speed for speeds in speeds_by_data.values() for speed in speeds]
    rows = []
    for experiment in sweep.experiments:
        differences, step, fraction, speed = progress[experiment.name]
        state, note = describe_state(sweep, experiment, differences, step)
        speeds = speeds_by_data.get(type(experiment.data), all_speeds) if speed is None else [speed]
        seconds_left = None
        if state == "done":
            seconds_left = 0.0
        elif speeds:
            seconds_left = run_flops(experiment) * (1 - fraction) / statistics.median(speeds)
        rows.append(RunProgress(experiment, state, step, seconds_left, note))
    return rows


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


def read_step_and_seconds(folder: Path) -> tuple[int, float]:
    """Return the last logged step of a run, and the seconds of all its rows."""
    rows = read_run_rows(folder)
    return max((row["step"] for row in rows), default=0), sum(row["time"]["seconds"] for row in rows)
