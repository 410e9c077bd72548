"""Sweeps: many experiments in the order of their dependencies, shared by any number of processes.

A process trains an experiment that is unfinished, that no other process trains, and whose `init_from`, if it is an
experiment of the sweep, is finished. It ends when nothing is left that it could train. The same command, given twice
on a machine or as the tasks of a cluster's job array, does the work once. A run whose process was killed
resumes from its checkpoint.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from encoders.costs.ledger import run_flops
from encoders.experiment import Experiment
from encoders.run import loop
from encoders.run.folder import RunInUse, count_saved_steps, differing_fields, read_result, read_run_rows
from encoders.run.preemption import STOPPED_STATUS, RunStopped, StopRequest
from encoders.run.time_account import TimeReport, read_time_report
from encoders.training import distributed
from encoders.utils.buckets import get_modified_at
from encoders.utils.errors import UserError, describe_error, is_expected, suppress_expected_errors
from encoders.utils.files import lock_owner, write_file_atomically

LogFn = Callable[[str], None]
NO_EXPERIMENT, SWEEP_STOPPED = -1, -2  # instead of the index of an experiment
# Workers start with different experiments, or each would prepare what only one of them may train.
WORKER_VARIABLE = "ENCODERS_WORKER"
WORKER_INDEX = int(os.environ.get("SLURM_ARRAY_TASK_ID") or os.environ.get(WORKER_VARIABLE) or 0)
FAILURE_FILE = "failed.txt"  # the error of a run, until the run is started again


@dataclass
class Sweep:
    """Experiments whose runs are in `runs_dir`; `other_experiments` are not trained now, but others may start from
    them.

    `on_finished` is called with every finished experiment; other processes are polled every `poll_seconds`. Failures
    before `started_at` are tried again.
    """

    experiments: Sequence[Experiment]
    runs_dir: Path
    log: LogFn
    other_experiments: Sequence[Experiment] = ()
    on_finished: Callable[[Experiment], None] = lambda experiment: None
    poll_seconds: float = 5.0
    started_at: float = field(default_factory=time.time)
    results: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        self.remaining = {experiment.name: experiment for experiment in self.experiments}
        self.failed_names: list[str] = []  # in this process
        self.finished_states: dict[str, str] = {}  # cached states of folders that hold a result
        self.is_waiting = False
        known = (*self.other_experiments, *self.experiments)
        self.experiment_by_folder = {os.path.abspath(self.run_folder(experiment)): experiment for experiment in known}

    def run_folder(self, experiment: Experiment) -> Path:
        return self.runs_dir / experiment.name

    def find_source(self, experiment: Experiment) -> Experiment | None:
        """Return the experiment of the same file that `init_from` names, if it is one."""
        return self.experiment_by_folder.get(os.path.abspath(experiment.init_from)) if experiment.init_from else None

    def find_state(self, experiment: Experiment) -> str:
        """Return the state of an experiment.

        done: it is finished.
        other: its folder holds the result of another experiment.
        failed: it has failed since the sweep started, or its folder is damaged.
        running: another process trains it.
        ready: it can be trained now.
        waiting: the experiment that it starts from is unfinished.
        blocked: that one has failed, is another experiment, or is not to be trained.
        """
        folder = self.run_folder(experiment)
        if experiment.name in self.failed_names:
            return "failed"
        try:
            if read_result(folder):
                if experiment.name not in self.finished_states:
                    self.finished_states[experiment.name] = self.find_finished_state(experiment)
                return self.finished_states[experiment.name]
        except UserError as error:  # a damaged file
            self.log(f"{experiment.name} failed: {describe_error(error)}")
            self.failed_names.append(experiment.name)
            return "failed"
        failure = folder / FAILURE_FILE
        if failure.exists() and get_modified_at(failure) > self.started_at:
            return "failed"
        source = self.find_source(experiment)
        if source and (source_state := self.find_state(source)) != "done":
            is_untrained = source_state == "ready" and source not in self.experiments
            return "blocked" if is_untrained or source_state in ("failed", "blocked", "other") else "waiting"
        return "running" if lock_owner(folder) else "ready"

    def find_finished_state(self, experiment: Experiment) -> str:
        """Return the state of an experiment with a result, by what its folder and those it depends on hold."""
        if differing_fields(experiment, self.run_folder(experiment)):
            return "other"
        source = self.find_source(experiment)
        return "done" if source is None or self.find_finished_state(source) == "done" else "blocked"

    def choose_next(self, stop: StopRequest) -> Experiment | None:
        """Return the experiment to train next, or to check if it is finished; None if nothing is left to wait for.

        Raises `RunStopped` if a stop is requested while other processes train what is left.
        """
        if len(self.experiments) == 1:
            return self.experiments[0]
        while True:
            states = {name: self.find_state(experiment) for name, experiment in self.remaining.items()}
            if trainable := [name for name, state in states.items() if state in ("ready", "done", "other")]:
                return self.remaining[trainable[WORKER_INDEX % len(trainable)]]
            if "waiting" not in states.values():
                return None
            if reason := stop.get_local_reason():
                raise RunStopped(f"stopped by {reason} while other processes train what is left")
            if not self.is_waiting:
                self.log("waiting for other processes, which train what the remaining experiments start from")
                self.is_waiting = True
            time.sleep(self.poll_seconds)

    def agree_on_next(self, stop: StopRequest) -> Experiment | None:
        """Return what `choose_next` returns in the primary process."""
        if not distributed.is_multi_process():
            return self.choose_next(stop)
        index, stopped = NO_EXPERIMENT, None
        if distributed.is_primary():
            try:
                if experiment := self.choose_next(stop):
                    index = self.experiments.index(experiment)
            except RunStopped as reason:
                index, stopped = SWEEP_STOPPED, reason
        index = int(distributed.gather_from_processes(np.array([index]))[0, 0])
        if index == SWEEP_STOPPED:
            raise stopped or RunStopped("process 0 was stopped")
        return None if index == NO_EXPERIMENT else self.experiments[index]

    def train(self, profile: bool, stop: StopRequest, hang_timeout: float) -> int:
        """Train until nothing is left to do, and return the exit status of the process."""
        try:
            while self.remaining and (experiment := self.agree_on_next(stop)):
                self.train_experiment(experiment, profile, stop, hang_timeout)
        except RunStopped as reason:
            self.log(f"{reason}; the same command resumes")
            return STOPPED_STATUS
        return self.report_missing()

    def train_experiment(self, experiment: Experiment, profile: bool, stop: StopRequest, hang_timeout: float) -> None:
        """Train an experiment. A failure is recorded and logged, and raised if it is the only experiment."""
        folder = self.run_folder(experiment)
        try:
            if distributed.is_primary():
                (folder / FAILURE_FILE).unlink(missing_ok=True)
            result = loop.train(experiment, folder, self.log, profile, stop, hang_timeout)
            self.on_finished(experiment)
            self.results[experiment.name] = result
        except RunStopped:
            raise
        except Exception as error:
            # Several processes all get the same kind of error from the one that failed.
            in_use = isinstance(error, RunInUse) or (distributed.is_multi_process() and lock_owner(folder))
            is_alone = len(self.experiments) == 1
            if not in_use and (folder.exists() or not is_alone):
                self.record_failure(experiment, error)
            if is_alone:
                raise
            if in_use:
                return
            if not is_expected(error):
                traceback.print_exc()
            self.log(f"{experiment.name} failed: {describe_error(error)}")
            self.failed_names.append(experiment.name)
        del self.remaining[experiment.name]

    def record_failure(self, experiment: Experiment, error: Exception) -> None:
        """Write the reason of a failure into a folder that holds no result, no other experiment and no damage."""
        folder = self.run_folder(experiment)
        with suppress_expected_errors():  # a full disk may be the reason
            if distributed.is_primary() and not read_result(folder) and not differing_fields(experiment, folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_file_atomically(
                    folder / FAILURE_FILE, f"{type(error).__name__}: {describe_error(error)}\n".encode()
                )

    def report_missing(self) -> int:
        """Log the experiments that this process did not finish, and return its exit status."""
        states = {e.name: self.find_state(e) for e in self.experiments if e.name not in self.results}
        select_names = lambda *accepted: [name for name, state in states.items() if state in accepted]
        elsewhere, blocked = select_names("running", "done"), select_names("blocked")
        failed = select_names("failed", "other", "ready", "waiting")
        messages = ("left to other processes", "not trained, since their init_from is not", "failed")
        for message, names in zip(messages, (elsewhere, blocked, failed), strict=True):
            if names:
                self.log(f"{message}: {', '.join(names)}")
        return 1 if blocked or failed else 0


# Progress -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunProgress:
    """State and step of an experiment; seconds left and where the time went, or None if that is not known."""

    experiment: Experiment
    state: str
    step: int
    seconds_left: float | None
    note: str = ""
    time_report: TimeReport | None = None


def measure_progress(sweep: Sweep) -> list[RunProgress]:
    """Return the progress of every experiment.

    The time left is that of its remaining FLOPs at its own speed, else at the median speed of runs on the same kind of
    data, else of all runs.
    """
    progress, speeds_by_data = [], {}
    for experiment in sweep.experiments:
        flops = run_flops(experiment)
        try:
            state, note, step, seconds = read_progress(sweep, experiment)
        except Exception as error:
            if not is_expected(error):
                raise
            state, note, step, seconds = "damaged", describe_error(error), 0, 0.0
        flops_done, speeds = flops * step / experiment.num_steps, []
        if seconds:
            speeds = [flops_done / seconds]
            speeds_by_data.setdefault(type(experiment.data), []).extend(speeds)
        time_report = None if state in ("damaged", "other") else read_time_report(sweep.run_folder(experiment))
        run = RunProgress(experiment, state, step, 0.0 if state == "done" else None, note, time_report)
        progress.append((run, flops - flops_done, speeds))
    all_speeds = list(itertools.chain(*speeds_by_data.values()))
    for index, (run, flops_left, speeds) in enumerate(progress):
        speeds = speeds or speeds_by_data.get(type(run.experiment.data), all_speeds)
        if speeds and run.state != "done":
            run = replace(run, seconds_left=flops_left / statistics.median(speeds))
        progress[index] = run
    return progress


def read_progress(sweep: Sweep, experiment: Experiment) -> tuple[str, str, int, float]:
    """Return state, note, step and seconds of a run: the step that is logged while it runs, else the one saved last.

    Raises `RunError` for a damaged run.
    """
    folder = sweep.run_folder(experiment)
    differences = differing_fields(experiment, folder)
    rows = [] if differences else read_run_rows(folder)
    logged_step, seconds = max((row["step"] for row in rows), default=0), sum(row["time"]["seconds"] for row in rows)
    saved_step = None if differences else count_saved_steps(folder)
    is_started = bool(logged_step or saved_step)
    state, note = describe_state(sweep, experiment, differences, is_started)
    step = logged_step if saved_step is None else saved_step
    return state, note, max(step, logged_step) if state == "running" else step, seconds


def describe_state(sweep: Sweep, experiment: Experiment, differences: list[str], is_started: bool) -> tuple[str, str]:
    """Return the state of an experiment, and a note: an error, the process that trains it, or what differs."""
    if differences:
        return "other", f"holds another experiment: {'; '.join(differences)}"
    folder, state = sweep.run_folder(experiment), sweep.find_state(experiment)
    if state == "failed":
        return state, (folder / FAILURE_FILE).read_text(encoding="utf-8").strip()
    if state == "running":
        return state, lock_owner(folder) or ""
    return ("interrupted" if state == "ready" and is_started else state), ""
