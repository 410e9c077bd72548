"""Many members: those that others begin with come first, and any number of processes share the work.

A process trains a member that is not finished, that no other process trains, and whose `start`, where that is a member
too, is finished; it ends when nothing is left that could become so. The same command, given twice on a machine or as
the tasks of an array on a cluster, does the work once; what a killed process leaves behind goes on from its checkpoint.
"""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from encoders.costs.ledger import run_flops
from encoders.experiment import Experiment
from encoders.run import loop
from encoders.run.folder import RunInUse, differing_fields, read_result
from encoders.run.preemption import STOPPED_STATUS, RunStopped, StopRequest
from encoders.training import distributed, metric_log
from encoders.utils.files import lock_owner, write_file_atomically

LogFn = Callable[[str], None]
NO_EXPERIMENT, SWEEP_STOPPED = -1, -2  # in the place of a member
# Processes that share members begin with different ones: else each would prepare what only one of them may train.
WORKER_VARIABLE = "ENCODERS_WORKER"
WORKER_INDEX = int(os.environ.get("SLURM_ARRAY_TASK_ID") or os.environ.get(WORKER_VARIABLE) or 0)
FAILURE_FILE = "failed.txt"  # of a member's folder: why, until it is started again


@dataclass
class Sweep:
    """Members in `runs`; `others` are those of the same file that are not to be trained now, but may be begun with.

    `is_expected` says of an error whether it speaks for itself; `after` is done with each finished member; `pause`
    seconds pass between two looks at what others train. What failed before `begun` may be tried again.
    """

    experiments: Sequence[Experiment]
    runs_dir: Path
    log: LogFn
    is_expected: Callable[[Exception], bool]
    other_experiments: Sequence[Experiment] = ()
    on_finished: Callable[[Experiment], None] = lambda member: None
    poll_seconds: float = 5.0
    started_at: float = field(default_factory=time.time)
    results: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        self.remaining = {member.name: member for member in self.experiments}
        self.failed_names: list[str] = []  # here, since this began
        self.finished_states: dict[str, str] = {}  # the states of those whose folders have a result
        self.is_waiting = False
        self.experiment_by_folder = {
            os.path.abspath(self.run_folder(each)): each for each in (*self.other_experiments, *self.experiments)
        }

    def run_folder(self, experiment: Experiment) -> Path:
        return self.runs_dir / experiment.name

    def find_source(self, experiment: Experiment) -> Experiment | None:
        """The member of this file that another one begins with."""
        return self.experiment_by_folder.get(os.path.abspath(experiment.init_from)) if experiment.init_from else None

    def has_other_experiment(self, experiment: Experiment) -> bool:
        """Whether the folder of a member, or of one that it begins with, holds another experiment."""
        first = self.find_source(experiment)
        return bool(
            differing_fields(experiment, self.run_folder(experiment)) or first and self.has_other_experiment(first)
        )

    def find_state(self, experiment: Experiment) -> str:
        """done; other, where its folder has the result of another experiment; failed, since this began; running
        elsewhere; ready; waiting for the one it begins with, or blocked where that has failed, is of another
        experiment or is not to be trained.
        """
        folder = self.run_folder(experiment)
        if experiment.name in self.failed_names:
            return "failed"
        if read_result(folder):
            if experiment.name not in self.finished_states:
                first = self.find_source(experiment)
                sound = "blocked" if first and self.has_other_experiment(first) else "done"
                self.finished_states[experiment.name] = "other" if differing_fields(experiment, folder) else sound
            return self.finished_states[experiment.name]
        failed = folder / FAILURE_FILE
        if failed.exists() and failed.stat().st_mtime > self.started_at:
            return "failed"
        first = self.find_source(experiment)
        if first and (before := self.find_state(first)) != "done":
            idle = before in ("failed", "blocked", "other") or (before == "ready" and first not in self.experiments)
            return "blocked" if idle else "waiting"
        return "running" if lock_owner(folder) else "ready"

    def choose_next(self, stop: StopRequest) -> Experiment | None:
        """The member to train now, or to look at where it is finished; None where nothing is left that waits for one.

        Raises `RunStopped` while it waits for what others train.
        """
        if len(self.experiments) == 1:
            return self.experiments[0]
        while True:
            states = {name: self.find_state(member) for name, member in self.remaining.items()}
            if now := [name for name, state in states.items() if state in ("ready", "done", "other")]:
                return self.remaining[now[WORKER_INDEX % len(now)]]
            if "waiting" not in states.values():
                return None
            if why := stop.get_local_reason():
                raise RunStopped(f"stopped by {why} while other processes train what is left")
            if not self.is_waiting:
                self.log("what is left begins with what other processes train, which this one waits for")
                self.is_waiting = True
            time.sleep(self.poll_seconds)

    def agree_on_next(self, stop: StopRequest) -> Experiment | None:
        """What `next` is for the primary one of several processes."""
        if not distributed.is_multi_process():
            return self.choose_next(stop)
        place, told = NO_EXPERIMENT, None
        if distributed.is_primary():
            try:
                member = self.choose_next(stop)
                place = self.experiments.index(member) if member else NO_EXPERIMENT
            except RunStopped as reason:
                place, told = SWEEP_STOPPED, reason
        place = int(distributed.gather_from_processes(np.array([place]))[0, 0])
        if place == SWEEP_STOPPED:
            raise told or RunStopped("process 0 was stopped")
        return None if place == NO_EXPERIMENT else self.experiments[place]

    def train(self, profile: bool, stop: StopRequest, hang_timeout: float) -> int:
        """Train until nothing is left; the status of the process."""
        try:
            while self.remaining and (member := self.agree_on_next(stop)):
                self.train_experiment(member, profile, stop, hang_timeout)
        except RunStopped as reason:
            self.log(f"{reason}; the same command goes on")
            return STOPPED_STATUS
        missing: dict[str, list[str]] = {}
        for member in self.experiments:
            if member.name not in self.results:
                missing.setdefault(self.find_state(member), []).append(member.name)
        elsewhere = missing.pop("running", []) + missing.pop("done", [])
        if elsewhere:
            self.log(f"left to other processes: {', '.join(elsewhere)}")
        if begin := missing.pop("blocked", []):
            self.log(f"not trained, since what they begin with is not: {', '.join(begin)}")
        if failed := [name for names in missing.values() for name in names]:
            self.log(f"failed: {', '.join(failed)}")
        return 1 if begin or failed else 0

    def train_experiment(self, experiment: Experiment, profile: bool, stop: StopRequest, hang_timeout: float) -> None:
        """Train a member. A failure is kept beside it and said, and raised where it is the only one."""
        folder = self.run_folder(experiment)
        try:
            if distributed.is_primary():
                (folder / FAILURE_FILE).unlink(missing_ok=True)
            found = loop.train(experiment, folder, self.log, profile, stop, hang_timeout)
            self.on_finished(experiment)
            self.results[experiment.name] = found
        except RunStopped:
            raise
        except Exception as error:
            # Of several processes, all are told in one kind of error what one has found.
            in_use = isinstance(error, RunInUse) or (distributed.is_multi_process() and lock_owner(folder))
            alone = len(self.experiments) == 1
            if not in_use and (folder.exists() or not alone):
                self.record_failure(experiment, error)
            if alone:
                raise
            if in_use:
                return
            if not self.is_expected(error):
                traceback.print_exc()
            self.log(f"{experiment.name} failed: {error}")
            self.failed_names.append(experiment.name)
        del self.remaining[experiment.name]

    def record_failure(self, experiment: Experiment, error: Exception) -> None:
        """Keep why a member failed beside it, if nothing else is there."""
        folder = self.run_folder(experiment)
        if distributed.is_primary() and not read_result(folder) and not differing_fields(experiment, folder):
            with suppress(OSError):  # of a full disk, perhaps the reason
                folder.mkdir(parents=True, exist_ok=True)
                write_file_atomically(folder / FAILURE_FILE, f"{type(error).__name__}: {error}\n".encode())


@dataclass(frozen=True)
class RunProgress:
    """How far a member is: its state, its step, and the seconds that are left, as far as some speed is known."""

    experiment: Experiment
    state: str
    step: int
    seconds_left: float | None
    note: str = ""


def measure_progress(sweep: Sweep) -> list[RunProgress]:
    """How far every member is. What is left is its FLOPs at the speed it had itself, else at that of those like it,
    else at that of any."""
    known: dict[type, list[float]] = {}
    changed = {member.name: differing_fields(member, sweep.run_folder(member)) for member in sweep.experiments}
    spent = {
        e.name: (0, 0.0) if changed[e.name] else read_step_and_seconds(sweep.run_folder(e)) for e in sweep.experiments
    }
    for member in sweep.experiments:
        step, seconds = spent[member.name]
        if seconds:
            known.setdefault(type(member.data), []).append(run_flops(member) * step / member.num_steps / seconds)
    found, every = [], sum(known.values(), [])
    for member in sweep.experiments:
        (step, seconds), state, note = spent[member.name], sweep.find_state(member), ""
        folder, total = sweep.run_folder(member), run_flops(member)
        if changes := changed[member.name]:
            state, note = "other", f"is of another experiment: {'; '.join(changes)}"
        elif state == "failed":
            note = (folder / FAILURE_FILE).read_text(encoding="utf-8").strip()
        elif state == "running":
            note = lock_owner(folder) or ""
        elif state == "ready" and step:
            state = "interrupted"
        speeds = [total * step / member.num_steps / seconds] if seconds else known.get(type(member.data), every)
        left = None
        if state == "done":
            left = 0.0
        elif speeds:
            left = total * (1 - step / member.num_steps) / statistics.median(speeds)
        found.append(RunProgress(member, state, step, left, note))
    return found


def read_step_and_seconds(folder: Path) -> tuple[int, float]:
    """The last step that a run has a row of, and the seconds that its rows took."""
    rows = list(metric_log.read_metric_rows(folder / "metrics.jsonl"))
    return max((row["step"] for row in rows), default=0), sum(row["time"]["seconds"] for row in rows)
