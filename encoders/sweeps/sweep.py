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
from encoders.run.preemption import STATUS, Stop, Stopped
from encoders.run.run import InUse, holder, mismatch, result
from encoders.training import distributed, metric_log
from encoders.utils.files import write_whole

Say = Callable[[str], None]
NONE, STOPPED = -1, -2  # in the place of a member
# Processes that share members begin with different ones: else each would prepare what only one of them may train.
WORKER = "ENCODERS_WORKER"
PLACE = int(os.environ.get("SLURM_ARRAY_TASK_ID") or os.environ.get(WORKER) or 0)
FAILED = "failed.txt"  # of a member's folder: why, until it is started again


@dataclass
class Sweep:
    """Members in `runs`; `others` are those of the same file that are not to be trained now, but may be begun with.

    `is_expected` says of an error whether it speaks for itself; `after` is done with each finished member; `pause`
    seconds pass between two looks at what others train. What failed before `begun` may be tried again.
    """

    members: Sequence[Experiment]
    runs: Path
    say: Say
    is_expected: Callable[[Exception], bool]
    others: Sequence[Experiment] = ()
    after: Callable[[Experiment], None] = lambda member: None
    pause: float = 5.0
    begun: float = field(default_factory=time.time)
    results: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        self.left = {member.name: member for member in self.members}
        self.failed: list[str] = []  # here, since this began
        self.finished: dict[str, str] = {}  # the states of those whose folders have a result
        self.waits = False
        self.folders = {os.path.abspath(self.folder(each)): each for each in (*self.others, *self.members)}

    def folder(self, member: Experiment) -> Path:
        return self.runs / member.name

    def start_of(self, member: Experiment) -> Experiment | None:
        """The member of this file that another one begins with."""
        return self.folders.get(os.path.abspath(member.start)) if member.start else None

    def is_foreign(self, member: Experiment) -> bool:
        """Whether the folder of a member, or of one that it begins with, holds another experiment."""
        first = self.start_of(member)
        return bool(mismatch(member, self.folder(member)) or first and self.is_foreign(first))

    def state(self, member: Experiment) -> str:
        """done; other, where its folder has the result of another experiment; failed, since this began; running
        elsewhere; ready; waiting for the one it begins with, or blocked where that has failed, is of another
        experiment or is not to be trained.
        """
        folder = self.folder(member)
        if member.name in self.failed:
            return "failed"
        if result(folder):
            if member.name not in self.finished:
                first = self.start_of(member)
                sound = "blocked" if first and self.is_foreign(first) else "done"
                self.finished[member.name] = "other" if mismatch(member, folder) else sound
            return self.finished[member.name]
        failed = folder / FAILED
        if failed.exists() and failed.stat().st_mtime > self.begun:
            return "failed"
        first = self.start_of(member)
        if first and (before := self.state(first)) != "done":
            idle = before in ("failed", "blocked", "other") or (before == "ready" and first not in self.members)
            return "blocked" if idle else "waiting"
        return "running" if holder(folder) else "ready"

    def next(self, stop: Stop) -> Experiment | None:
        """The member to train now, or to look at where it is finished; None where nothing is left that waits for one.

        Raises `Stopped` while it waits for what others train.
        """
        if len(self.members) == 1:
            return self.members[0]
        while True:
            states = {name: self.state(member) for name, member in self.left.items()}
            if now := [name for name, state in states.items() if state in ("ready", "done", "other")]:
                return self.left[now[PLACE % len(now)]]
            if "waiting" not in states.values():
                return None
            if why := stop.here():
                raise Stopped(f"stopped by {why} while other processes train what is left")
            if not self.waits:
                self.say("what is left begins with what other processes train, which this one waits for")
                self.waits = True
            time.sleep(self.pause)

    def agreed(self, stop: Stop) -> Experiment | None:
        """What `next` is for the primary one of several processes."""
        if not distributed.several():
            return self.next(stop)
        place, told = NONE, None
        if distributed.primary():
            try:
                member = self.next(stop)
                place = self.members.index(member) if member else NONE
            except Stopped as reason:
                place, told = STOPPED, reason
        place = int(distributed.gathered(np.array([place]))[0, 0])
        if place == STOPPED:
            raise told or Stopped("process 0 was stopped")
        return None if place == NONE else self.members[place]

    def train(self, profile: bool, stop: Stop, patience: float) -> int:
        """Train until nothing is left; the status of the process."""
        try:
            while self.left and (member := self.agreed(stop)):
                self.one(member, profile, stop, patience)
        except Stopped as reason:
            self.say(f"{reason}; the same command goes on")
            return STATUS
        missing: dict[str, list[str]] = {}
        for member in self.members:
            if member.name not in self.results:
                missing.setdefault(self.state(member), []).append(member.name)
        elsewhere = missing.pop("running", []) + missing.pop("done", [])
        if elsewhere:
            self.say(f"left to other processes: {', '.join(elsewhere)}")
        if begin := missing.pop("blocked", []):
            self.say(f"not trained, since what they begin with is not: {', '.join(begin)}")
        if failed := [name for names in missing.values() for name in names]:
            self.say(f"failed: {', '.join(failed)}")
        return 1 if begin or failed else 0

    def one(self, member: Experiment, profile: bool, stop: Stop, patience: float) -> None:
        """Train a member. A failure is kept beside it and said, and raised where it is the only one."""
        folder = self.folder(member)
        try:
            if distributed.primary():
                (folder / FAILED).unlink(missing_ok=True)
            found = loop.train(member, folder, self.say, profile, stop, patience)
            self.after(member)
            self.results[member.name] = found
        except Stopped:
            raise
        except Exception as error:
            # Of several processes, all are told in one kind of error what one has found.
            in_use = isinstance(error, InUse) or (distributed.several() and holder(folder))
            alone = len(self.members) == 1
            if not in_use and (folder.exists() or not alone):
                self.note(member, error)
            if alone:
                raise
            if in_use:
                return
            if not self.is_expected(error):
                traceback.print_exc()
            self.say(f"{member.name} failed: {error}")
            self.failed.append(member.name)
        del self.left[member.name]

    def note(self, member: Experiment, error: Exception) -> None:
        """Keep why a member failed beside it, if nothing else is there."""
        folder = self.folder(member)
        if distributed.primary() and not result(folder) and not mismatch(member, folder):
            with suppress(OSError):  # of a full disk, perhaps the reason
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / FAILED, f"{type(error).__name__}: {error}\n".encode())


@dataclass(frozen=True)
class Progress:
    """How far a member is: its state, its step, and the seconds that are left, as far as some speed is known."""

    member: Experiment
    state: str
    step: int
    left: float | None
    note: str = ""


def progress(sweep: Sweep) -> list[Progress]:
    """How far every member is. What is left is its FLOPs at the speed it had itself, else at that of those like it,
    else at that of any."""
    known: dict[type, list[float]] = {}
    changed = {member.name: mismatch(member, sweep.folder(member)) for member in sweep.members}
    spent = {e.name: (0, 0.0) if changed[e.name] else taken(sweep.folder(e)) for e in sweep.members}
    for member in sweep.members:
        step, seconds = spent[member.name]
        if seconds:
            known.setdefault(type(member.data), []).append(run_flops(member) * step / member.steps / seconds)
    found, every = [], sum(known.values(), [])
    for member in sweep.members:
        (step, seconds), state, note = spent[member.name], sweep.state(member), ""
        folder, total = sweep.folder(member), run_flops(member)
        if changes := changed[member.name]:
            state, note = "other", f"is of another experiment: {'; '.join(changes)}"
        elif state == "failed":
            note = (folder / FAILED).read_text(encoding="utf-8").strip()
        elif state == "running":
            note = holder(folder) or ""
        elif state == "ready" and step:
            state = "interrupted"
        speeds = [total * step / member.steps / seconds] if seconds else known.get(type(member.data), every)
        left = None
        if state == "done":
            left = 0.0
        elif speeds:
            left = total * (1 - step / member.steps) / statistics.median(speeds)
        found.append(Progress(member, state, step, left, note))
    return found


def taken(folder: Path) -> tuple[int, float]:
    """The last step that a run has a row of, and the seconds that its rows took."""
    rows = list(metric_log.rows(folder / "metrics.jsonl"))
    return max((row["step"] for row in rows), default=0), sum(row["time"]["seconds"] for row in rows)
