"""Time to quality: for each goal the recorded run that reaches it in the fewest hours, on each kind of hardware."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from encoders.experiment import Experiment
from encoders.reporting.records import RecordedRuns, describe_hardware
from encoders.reporting.table_formats import ReportTable, format_number
from encoders.sweeps.score_columns import ScoreColumn

GOALS = {"BLiMP": 65.0, "parts of speech": 85.0, "STS": 70.0, "STS-B": 70.0}  # by column, in its unit


@dataclass(frozen=True)
class Attempt:
    """A pre-trained run with a score that has a goal, and the hours of its devices and those of the runs before it."""

    goal: str
    hardware: str
    score: float
    hours: float
    run: str
    command: str

    @property
    def reaches_goal(self) -> bool:
        return self.score >= GOALS[self.goal]

    @property
    def rank(self) -> tuple:
        """Return what sorts the best attempt first: the fastest that reaches its goal, else the nearest."""
        return (0, self.hours) if self.reaches_goal else (1, -self.score)


def list_attempts(recorded: RecordedRuns) -> Iterator[Attempt]:
    """Yield the recorded runs whose scores have goals."""
    columns = [column for column in recorded.table.columns if column.name in GOALS and not column.task]
    for column, run in itertools.product(columns, recorded.table.experiments):
        if attempt := build_attempt(recorded, run, column):
            yield attempt


def build_attempt(recorded: RecordedRuns, run: Experiment, column: ScoreColumn) -> Attempt | None:
    """Return a run's attempt at the goal of a column, or None where its score or a run before it was not recorded."""
    score = recorded.read_score(run, column)
    costs = [recorded.read_cost(part) for part in recorded.table.trace_init_chain(run)]
    if score is None or None in costs:
        return None
    hours = sum(cost.device_seconds for cost in costs) / 3600
    session = recorded.record["sessions"][recorded.record["runs"][run.name]["session"]]
    hardware = describe_hardware(session)
    return Attempt(column.name, hardware, score.value * column.factor, hours, run.name, session["command"])


def build_quality_board(records: Iterable[RecordedRuns]) -> ReportTable | None:
    """Return a line for each goal and hardware: the fastest run that reaches it, else the nearest."""
    attempts = itertools.chain.from_iterable(map(list_attempts, records))
    best: dict[tuple[str, str], Attempt] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt.rank):
        best.setdefault((attempt.goal, attempt.hardware), attempt)
    if not best:
        return None
    lines = tuple(
        (
            f"{goal} {GOALS[goal]:g}",
            hardware,
            attempt.run,
            attempt.command,
            format_number(attempt.score),
            format_number(attempt.hours) if attempt.reaches_goal else f"not reached in {format_number(attempt.hours)}",
        )
        for (goal, hardware), attempt in sorted(best.items())
    )
    note = "Hours are those of all devices, of the run and of those that it starts from, without measuring it."
    return ReportTable("Time to quality", ("goal", "hardware", "run", "command", "score", "hours"), lines, (note,), 4)
