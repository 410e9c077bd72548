"""Account of a run's time, over all processes that trained it, one after the other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from encoders.run.folder import RECORD_FILE, read_run_record
from encoders.training.metric_log import METRICS_FILE, TIMES_FILE, format_row, reopen_rows, scan_metric_rows


class TimeAccount:
    """Seconds of a process by what it does, first its preparation; together they are the time since it began.

    Rows of `times.jsonl` hold the sums so far, so a process that is killed loses what follows its last row.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.begun_at = clock, time.time()
        self.seconds: Counter[str] = Counter()
        self.activity, self.activity_began = "preparation", clock()
        self.file: IO[str] | None = None
        self.owner: str | None = None
        self.num_rows = self.start_step = self.step = 0  # `step` is the last one that was begun

    def switch_to(self, activity: str) -> str:
        """Count what follows as `activity`, and return the one before."""
        previous, now = self.activity, self.clock()
        self.seconds[previous] += now - self.activity_began
        self.activity, self.activity_began = activity, now
        return previous

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        previous = self.switch_to(activity)
        try:
            yield
        finally:
            self.switch_to(previous)

    def move_to(self, activity: str, seconds: float) -> None:
        """Count seconds of the present activity as those of another."""
        self.seconds[activity] += seconds
        self.seconds[self.activity] -= seconds

    def open(self, folder: Path, log: Callable[[str], None]) -> None:
        """Append rows to the file in a run's folder; intact rows of a damaged file are kept, and `log` says so."""
        self.owner = read_owner(folder)
        rows, problems = scan_time_rows(folder, self.owner)
        self.num_rows, self.start_step = len(rows), self.step
        self.file = reopen_rows(folder / TIMES_FILE, rows, problems, log)
        self.write_row()

    def write_row(self) -> None:
        """Write the sums so far, in the process that opened the file."""
        if self.file is None:
            return
        self.switch_to(self.activity)
        self.num_rows += 1
        row = {"step": self.step, "split": "times", "start_step": self.start_step, "begun_at": self.begun_at}
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        self.file.write(format_row(self.num_rows, row | {"owner": self.owner, "time": seconds}))
        self.file.flush()

    def close(self) -> None:
        """Write the last row and close the file, if it was opened."""
        if self.file:
            self.write_row()
            self.file.close()


@dataclass(frozen=True)
class TimeReport:
    """The time of a run from its beginning to its last row, in seconds by what was done."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Return the share of the time that went into steps, without those that were done twice."""
        return self.seconds.get("steps", 0.0) / self.total if self.total else 0.0


def read_owner(folder: Path) -> str | None:
    """Return the fingerprint of the run in a folder."""
    return read_run_record(folder)["fingerprint"] if (folder / RECORD_FILE).exists() else None


def scan_time_rows(folder: Path, owner: str | None) -> tuple[list[dict], list[str]]:
    """Return the intact rows that the run with the fingerprint `owner` wrote, and a description of each damage.

    Rows of earlier versions have no owner.
    """
    rows, problems = scan_metric_rows(folder / TIMES_FILE)
    own_rows = [row for row in rows if row.get("owner", owner) == owner]
    if len(own_rows) < len(rows):
        problems.append(f"{len(rows) - len(own_rows)} of its rows are those of another run")
    return own_rows, problems


def count_logged_steps(folder: Path) -> int:
    """Return the last step of which a row of a run's metrics or times tells, or 0."""
    time_rows, _ = scan_time_rows(folder, read_owner(folder))
    metric_rows, _ = scan_metric_rows(folder / METRICS_FILE)
    return max((row["step"] for row in (*metric_rows, *time_rows)), default=0)


def read_time_report(folder: Path) -> TimeReport | None:
    """Return where the time of a run went, or None without intact rows.

    Time between processes counts as "not running", and so does what a killed process did after its last row. The
    preparation of all but the first process is that of restarts. Steps up to the last one of an earlier process are
    done twice, and take as long as others of their process.
    """
    rows, _ = scan_time_rows(folder, read_owner(folder))
    last_rows = {row["begun_at"]: row for row in rows}
    seconds: Counter[str] = Counter()
    furthest_step, ended_at = 0, None
    for begun_at, row in sorted(last_rows.items()):
        spent, num_steps = Counter(row["time"]), row["step"] - row["start_step"]
        if ended_at is not None:
            seconds["not running"] += max(begun_at - ended_at, 0.0)
            seconds["restarts"] += spent.pop("preparation", 0.0)
        num_repeated = min(max(furthest_step - row["start_step"], 0), num_steps)
        repeated = spent["steps"] * num_repeated / num_steps if num_steps else 0.0
        seconds += spent + Counter({"steps": -repeated, "steps done twice": repeated})
        furthest_step, ended_at = max(furthest_step, row["step"]), begun_at + sum(row["time"].values())
    return TimeReport(dict(seconds)) if rows else None


def format_time(reports: Iterable[TimeReport]) -> str:
    """Return the shares of the time of runs as text, the largest first."""
    seconds = sum((Counter(report.seconds) for report in reports), Counter())
    shares = ((value / seconds.total(), name) for name, value in seconds.items())
    return ", ".join(f"{name} {share:.1%}" for share, name in sorted(shares, reverse=True) if share >= 0.0005)
