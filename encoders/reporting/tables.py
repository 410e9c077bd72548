"""A paper's table beside ours: every cell's published number, our median over seeds, and what both cost and mean."""

from __future__ import annotations

import csv
import io
import itertools
import re
import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoders.costs.ledger import encoder_parameters, run_flops, run_rows
from encoders.experiment import Experiment
from encoders.inference import cross_evaluation
from encoders.objectives.base import Task
from encoders.reporting.page import Sheet, kind_of
from encoders.reporting.summaries import grid
from encoders.run.run import mismatch, read_record, result
from encoders.sweeps.paper_table import PARAMETERS, Column, Row, Table
from encoders.training import metric_log
from encoders.utils.overrides import shortened


@dataclass(frozen=True)
class Cell:
    """The published numbers and ours, one a seed, lowest first, in the paper's unit."""

    published: tuple[float, ...] = ()
    ours: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.ours)

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, the nearest one where it has two."""
        if not self.published or not self.ours:
            return None
        return min((self.median - each for each in self.published), key=abs)


@dataclass(frozen=True)
class Cost:
    """Of all runs of a row: tokens seen, FLOPs of their matrix products, hours of devices, and of which kinds."""

    tokens: float
    flops: float
    hours: float
    devices: str


def score(member: Experiment, column: Column, runs: Path) -> float | None:
    """A member's score for a column, if it has one yet."""
    if column.score == PARAMETERS.score:
        return float(encoder_parameters(member.model, member.objective))
    folder = runs / member.name
    if (found := result(folder)) is None:
        return None
    if column.under:
        return (cross_evaluation.known(folder, column.under) or {}).get(column.score)
    return found["best" if isinstance(member.objective, Task) else "heldout"].get(column.score)


def cell(table: Table, row: Row, column: Column, runs: Path, without: Collection[str] = ()) -> Cell:
    """The cell of a row and a column, of the members but those that are named; of several recipes it shows the one with
    the best median, as papers do."""
    published = row.published[table.columns.index(column)]
    if column.mean:
        columns = {each.name: each for each in table.columns}
        parts = [[cell(table, row, columns[name], runs, without) for name in part] for part in column.mean]
        whole = all(each.ours for part in parts for each in part)
        means = [statistics.mean(each.median for each in part) for part in parts] if whole else []
        return Cell(published, (statistics.mean(means),) if whole else ())
    groups = []
    for members in row.of(column).values():
        known = column.score == PARAMETERS.score  # from the experiment alone
        scores = [score(member, column, runs) for member in members if known or member.name not in without]
        if found := sorted(each * column.factor for each in scores if each is not None):
            groups.append(tuple(found))
    return Cell(published, max(groups, key=statistics.median, default=()))


def cost(table: Table, row: Row, runs: Path, without: Collection[str] = ()) -> Cost:
    """What all runs of a row have cost, and those that they begin with, but not those that are named."""
    tokens = flops = seconds = 0.0
    kinds = set()
    members = {each.name: each for run in (*row.runs, *row.tasks) for each in table.chain(run)}
    for member in (each for name, each in members.items() if name not in without):
        rows = list(metric_log.rows(runs / member.name / "metrics.jsonl"))
        seen = max((each.get("tokens", 0) for each in rows), default=0)
        full = sum(count * length for count, length in run_rows(member))
        tokens, flops = tokens + seen, flops + run_flops(member) * seen / full
        known = (runs / member.name / "experiment.json").exists()
        devices = read_record(runs / member.name)["devices"] if known else []
        seconds += sum(each["time"]["seconds"] for each in rows) * len(devices)
        kinds |= {kind_of(device) for device in devices}
    return Cost(tokens, flops, seconds / 3600, " and ".join(sorted(kinds)))


def trained(row: Row) -> str:
    """The size of a row's model, and how it is pre-trained, as far as the table's rows may differ in that."""
    if not row.runs:
        return "-"
    run = row.runs[0]
    model = run.model
    width = f" E{model.embedding}" * (model.embedding != model.hidden)
    heads = f" A{model.heads}" * (model.hidden != 64 * model.heads)
    sizes = " then ".join(f"{phase.batch:,} x {phase.length}" for phase in run.phases)
    size = f"L{model.layers} H{model.hidden}{width}{heads}"
    return f"{size}; {sizes}, {run.steps:,} steps, {run.optimizer.rate:g}"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def published(numbers: Sequence[float]) -> str:
    return " / ".join(f"{each:g}" for each in numbers) or "-"


def ours(found: Cell) -> str:
    if not found.ours:
        return "-"
    spread = f" ({number(found.ours[0])} to {number(found.ours[-1])})" if found.ours[0] < found.ours[-1] else ""
    return number(found.median) + spread


@dataclass(frozen=True)
class Filled:
    """A table with the cells that its runs give."""

    table: Table
    cells: dict[tuple[str, str], Cell]
    costs: dict[str, Cost]
    texts: tuple[str, ...] = ()  # that its runs were trained on
    left_out: tuple[str, ...] = ()  # members whose folders hold other experiments, or cannot be read

    @property
    def measured(self) -> list[Column]:
        """The columns of which at least one row has a number of ours; that of parameters has one always."""
        return [c for c in self.table.columns if any(self.cells[r.name, c.name].ours for r in self.table.rows)]

    def seeds(self, row: Row) -> int:
        """How many scores the fullest cell of a row has."""
        return max((len(self.cells[row.name, c.name].ours) for c in self.scored if not c.mean), default=0)

    @property
    def scored(self) -> list[Column]:
        """The measured columns of scores, which are no facts of the model."""
        return [column for column in self.measured if column.score != PARAMETERS.score]

    def sheet(self) -> list[list[str]]:
        """Head and rows of what was measured: for each column paper, ours with its range, and the difference."""
        head, seeds = ["", "ours", "seeds"], {row.name: self.seeds(row) for row in self.table.rows}
        rows = [[row.name, trained(row), str(seeds[row.name])] for row in self.table.rows]
        for column in self.measured:
            paper = any(self.cells[row.name, column.name].published for row in self.table.rows)
            compared = paper and column.score != PARAMETERS.score
            head += [f"{column.name}, paper", "ours"] if paper else [column.name]
            head += ["difference"] * compared
            for row, line in zip(self.table.rows, rows, strict=True):
                found = self.cells[row.name, column.name]
                gap = found.difference
                planned = max(map(len, row.of(column).values()), default=0)
                count, whole = len(found.ours), min(planned, seeds[row.name])
                few = f" [{count} of {whole}]" * (not column.mean and 0 < count < whole)
                line += [published(found.published)] * paper + [ours(found) + few]
                line += ["-" if gap is None else f"{gap:+.1f}"] * compared
        head += ["M tokens", "FLOPs", "device hours", "devices"]
        for row, line in zip(self.table.rows, rows, strict=True):
            spent = self.costs[row.name]
            line += [number(spent.tokens / 1e6), f"{spent.flops:.1e}", number(spent.hours), spent.devices or "-"]
        return [head, *rows]

    def rest(self) -> list[list[str]]:
        """Head and rows of the published columns that were not measured; empty where there are none."""
        left = [c for c in self.table.columns if c not in self.measured]
        left = [c for c in left if any(self.cells[r.name, c.name].published for r in self.table.rows)]
        rows = [[r.name, *(published(self.cells[r.name, c.name].published) for c in left)] for r in self.table.rows]
        return [["", *(column.name for column in left)], *rows] if left else []

    def notes(self) -> list[str]:
        """What the table's numbers mean."""
        lines = [
            f"Members are equal in {self.table.equal}. Ours: the median over seeds, and the lowest to the highest; "
            "costs are those of all runs of a row, of fine-tuning and of what they begin with too.",
            *(order for column in self.measured if (order := self.order(column))),
            *(f"Differs because {reason}." for reason in self.table.differs),
        ]
        if self.texts:
            lines.append(f"Text: {'; '.join(self.texts)}. The papers' is Wikipedia with books, or more.")
        return [*lines, f"Left out: {'; '.join(self.left_out)}."] if self.left_out else lines

    def order(self, column: Column) -> str | None:
        """Whether our rows stand in the paper's order: of each pair, only where the ranges of the seeds lie apart."""
        like = column.like or column.name
        towards = -1 if column.falls != next(c for c in self.table.columns if c.name == like).falls else 1
        rows = [
            r for r in self.table.rows if self.cells[r.name, column.name].ours and self.cells[r.name, like].published
        ]
        if len(rows) < 2 or column.score == PARAMETERS.score:
            return None
        agree = against = within = single = equal = 0
        for a, b in itertools.combinations(rows, 2):
            mine, other = (self.cells[row.name, column.name] for row in (a, b))
            paper = self.cells[a.name, like].published[0] - self.cells[b.name, like].published[0]
            apart = mine.ours[0] > other.ours[-1] or other.ours[0] > mine.ours[-1]
            if not paper:
                equal += 1
            elif min(len(mine.ours), len(other.ours)) < 2:
                single += 1
            elif not apart:
                within += 1
            elif (mine.median - other.median) * paper * towards > 0:
                agree += 1
            else:
                against += 1
        counts = (
            (agree, "in its order, the seeds of one all above those of the other"),
            (against, "against it in the same way"),
            (within, "within the spread of the seeds"),
            (single, "with one value in a row, which says nothing of the spread"),
            (equal, "equal in the paper"),
        )
        told = "; ".join(f"{count} {how}" for count, how in counts if count)
        compared = f" (the paper by {like})" if column.like else ""
        return f"{column.name}{compared}, pairs of rows: {told}."


def filled(table: Table, runs: Path) -> Filled:
    """A table with the scores and costs of its runs."""
    present = [each for each in table.members if (runs / each.name).exists()]
    reasons = {each.name: reason for each in present if (reason := useless(table, each, runs))}
    pairs = itertools.product(table.rows, table.columns)
    cells = {(row.name, column.name): cell(table, row, column, runs, reasons) for row, column in pairs}
    costs = {row.name: cost(table, row, runs, reasons) for row in table.rows}
    runs_of = (runs / each.name for row in table.rows for each in row.runs if each.name not in reasons)
    data = [read_record(folder)["experiment"]["data"] for folder in runs_of if (folder / "experiment.json").exists()]
    texts = tuple(dict.fromkeys(", ".join(each["corpus"]) for each in data))
    counts = Counter(reasons.values())
    told = (f"{reason}, and what begins with it" if count > 1 else reason for reason, count in counts.items())
    return Filled(table, cells, costs, texts, tuple(told))


def useless(table: Table, member: Experiment, runs: Path) -> str | None:
    """Why a member's folder has nothing for the table: it, or that of what it begins with, cannot be read or holds
    another experiment."""
    for each in table.chain(member):
        try:
            result(runs / each.name)
            changes = mismatch(each, runs / each.name)
        except (ValueError, KeyError, TypeError) as error:
            return f"{each.name} cannot be read ({error})"
        if changes:
            return f"{each.name} was trained otherwise ({shortened('; '.join(changes))})"
    return None


def complete(table: Table, member: Experiment, runs: Path) -> None:
    """Compute what a table's columns ask of a finished member beyond its own scores."""
    for row in table.rows:
        if member in row.runs:
            for column in table.columns:
                if column.under:
                    cross_evaluation.scored(runs / member.name, column.under)


def sheets(found: Filled) -> list[Sheet]:
    """A table as those of a page."""
    first, *others = [sheet for sheet in (found.sheet(), found.rest()) if sheet]
    parts = [(found.table.title, first, found.notes())]
    parts += [(f"{found.table.title}: published, not measured here", each, []) for each in others]
    return [Sheet(title, tuple(rows[0]), tuple(map(tuple, rows[1:])), tuple(notes)) for title, rows, notes in parts]


# As text --------------------------------------------------------------------------------------------------------------


def as_text(found: Filled) -> str:
    parts = ((each.title, grid([each.head, *each.rows]), "\n".join(each.notes)) for each in sheets(found))
    return "\n\n".join(filter(None, itertools.chain(*parts)))


def as_markdown(found: Filled) -> str:
    line = lambda row: "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    table = lambda each: "\n".join([line(each.head), "|" + "---|" * len(each.head), *map(line, each.rows)])
    parts = ((f"### {each.title}", table(each), *each.notes) for each in sheets(found))
    return "\n\n".join(itertools.chain(*parts))


def as_latex(found: Filled) -> str:
    """Tabulars for the booktabs package."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = lambda text: re.sub(r"[\\~^&%$#_{}]", lambda m: special.get(m[0], f"\\{m[0]}"), text)
    line = lambda row: " & ".join(map(escaped, row)) + r" \\"

    def part(each: Sheet) -> list[str]:
        begin = rf"\begin{{tabular}}{{l{'r' * (len(each.head) - 1)}}}"
        body = [r"\toprule", line(each.head), r"\midrule", *map(line, each.rows), r"\bottomrule"]
        return [f"% {each.title}", begin, *body, r"\end{tabular}", *(escaped(note) + r"\\" for note in each.notes)]

    return "\n".join(itertools.chain(*map(part, sheets(found))))


def as_csv(found: Filled) -> str:
    """A line a cell, with unrounded numbers."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(["table", "row", "column", "paper", "paper, elsewhere", "n", "median", "lowest", "highest", "difference"])
    for row in found.table.rows:
        for column in found.table.columns:
            each = found.cells[row.name, column.name]
            numbers = (len(each.ours), each.median, each.ours[0], each.ours[-1]) if each.ours else (0, "", "", "")
            said = (*each.published[:1], " ".join(map(str, each.published[1:]))) if each.published else ("", "")
            compared = each.difference is not None and column.score != PARAMETERS.score
            gap = each.difference if compared else ""
            write([found.table.name, row.name, column.name, *said, *numbers, gap])
    for row in found.table.rows:
        for name, value in vars(found.costs[row.name]).items():
            write([found.table.name, row.name, name, "", "", "", value, "", "", ""])
    return out.getvalue().rstrip("\n")


FORMATS = {"text": as_text, "markdown": as_markdown, "latex": as_latex, "csv": as_csv}
