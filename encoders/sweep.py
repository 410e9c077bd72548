"""Many members: those that others begin with come first, and any number of processes share the work.

A process trains the first member that is not finished, that no other process trains, and whose `start` is there. So the
same command, given twice on a machine or as the tasks of an array on a cluster, does the work once; what a killed
process leaves behind another one takes up from its checkpoint.
"""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from encoders.experiment import Experiment
from encoders.files import write_whole
from encoders.ledger import run_flops
from encoders.training import hosts, log, loop
from encoders.training.run import InUse, holder, result
from encoders.training.stopping import STATUS, Stop, Stopped

Say = Callable[[str], None]
NONE, STOPPED = -1, -2  # in the place of a member
FAILED = "failed.txt"  # of a member's folder: why, until it is started again


@dataclass
class Sweep:
    """Members in `runs`. `is_expected` says of an error whether it speaks for itself; `after` is done with each
    finished one; while others train what is left, `pause` seconds pass between two looks.
    """

    members: Sequence[Experiment]
    runs: Path
    say: Say
    is_expected: Callable[[Exception], bool]
    after: Callable[[Experiment], None] = lambda member: None
    pause: float = 5.0
    begun: float = field(default_factory=time.time)
    results: dict[str, dict] = field(default_factory=dict)
    waiting: bool = False

    def __post_init__(self):
        self.left = {member.name: member for member in self.members}

    def folder(self, member: Experiment) -> Path:
        return self.runs / member.name

    def start_of(self, member: Experiment) -> Experiment | None:
        """The member of this sweep that another one begins with."""
        if member.start is None:
            return None
        there = os.path.abspath(member.start)
        return next((each for each in self.members if os.path.abspath(self.folder(each)) == there), None)

    def state(self, member: Experiment) -> str:
        """done; failed, since this began; blocked by one that failed; waiting for one; running elsewhere; or ready."""
        folder = self.folder(member)
        if result(folder):
            return "done"
        failed = folder / FAILED
        if failed.exists() and failed.stat().st_mtime > self.begun:
            return "failed"
        first = self.start_of(member)
        if first and (before := self.state(first)) != "done":
            return "blocked" if before in ("failed", "blocked") else "waiting"
        return "running" if holder(folder) else "ready"

    def next(self, stop: Stop) -> Experiment | None:
        """The member to train now, or to look at where it is finished; where others train what is left, once that is
        over. None where nothing is left. Raises `Stopped` while it waits."""
        if len(self.members) == 1:
            return self.members[0]
        while True:
            states = {name: self.state(member) for name, member in self.left.items()}
            if now := [name for name, state in states.items() if state in ("ready", "done")]:
                return self.left[now[0]]
            if "running" not in states.values():
                return None
            if why := stop.here():
                raise Stopped(f"stopped by {why} while other processes train {', '.join(states)}")
            if not self.waiting:
                self.say("what is left is trained by other processes, which this one waits for")
                self.waiting = True
            time.sleep(self.pause)

    def agreed(self, stop: Stop) -> Experiment | None:
        """What `next` is for the primary one of several processes."""
        if not hosts.several():
            return self.next(stop)
        place, told = NONE, None
        if hosts.primary():
            try:
                member = self.next(stop)
                place = self.members.index(member) if member else NONE
            except Stopped as reason:
                place, told = STOPPED, reason
        place = int(hosts.gathered(np.array([place]))[0, 0])
        if place == STOPPED:
            raise told or Stopped("process 0 was stopped")
        return None if place == NONE else self.members[place]

    def train(self, profile: bool, stop: Stop, patience: float) -> int:
        """Train until nothing is left; the status of the process."""
        while self.left:
            try:
                member = self.agreed(stop)
                if member is None:
                    break
                if hosts.primary():
                    (self.folder(member) / FAILED).unlink(missing_ok=True)
                self.results[member.name] = loop.train(member, self.folder(member), self.say, profile, stop, patience)
                self.after(member)
            except Stopped as reason:
                self.say(f"{reason}; the same command goes on")
                return STATUS
            except Exception as error:
                if len(self.members) == 1:
                    self.note(member, error)
                    raise
                if isinstance(error, InUse):
                    continue
                self.note(member, error)
                if not self.is_expected(error):
                    traceback.print_exc()
                self.say(f"{member.name} failed: {error}")
            del self.left[member.name]
        missing = [member.name for member in self.members if member.name not in self.results]
        if missing:
            self.say(f"failed: {', '.join(missing)}")
        return 1 if missing else 0

    def note(self, member: Experiment, error: Exception) -> None:
        """Keep why a member failed beside it."""
        if hosts.primary() and not isinstance(error, InUse) and not result(self.folder(member)):
            self.folder(member).mkdir(parents=True, exist_ok=True)
            write_whole(self.folder(member) / FAILED, f"{type(error).__name__}: {error}\n".encode())


@dataclass(frozen=True)
class Progress:
    """How far a member is: its state, its step, and the seconds that are left by the speed of its like, if known."""

    member: Experiment
    state: str
    step: int
    left: float | None
    note: str = ""


def progress(sweep: Sweep) -> list[Progress]:
    """How far every member is. What is left is its FLOPs at the speed it had itself, or else those like it had."""
    known: dict[bool, list[float]] = {}
    spent = {}
    for member in sweep.members:
        step, seconds = spent[member.name] = taken(sweep.folder(member))
        if seconds:
            done = run_flops(member) * step / member.steps
            known.setdefault(member.start is None, []).append(done / seconds)
    found = []
    for member in sweep.members:
        (step, seconds), state, note = spent[member.name], sweep.state(member), ""
        folder, total = sweep.folder(member), run_flops(member)
        if state == "ready" and (folder / FAILED).exists():
            state, note = "failed", (folder / FAILED).read_text(encoding="utf-8").strip()
        elif state == "ready" and step:
            state = "interrupted"
        speeds = [total * step / member.steps / seconds] if seconds else known.get(member.start is None, [])
        left = None
        if state == "done":
            left = 0.0
        elif speeds:
            left = total * (1 - step / member.steps) / statistics.median(speeds)
        found.append(Progress(member, state, step, left, note))
    return found


def taken(folder: Path) -> tuple[int, float]:
    """The last step that a run has a row of, and the seconds that its rows took."""
    rows = list(log.rows(folder / "metrics.jsonl"))
    return max((row["step"] for row in rows), default=0), sum(row["time"]["seconds"] for row in rows)
