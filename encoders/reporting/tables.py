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

from encoders.costs.ledger import count_encoder_params, count_phase_rows, run_flops
from encoders.experiment import Experiment
from encoders.inference import cross_evaluation
from encoders.objectives.base import SupervisedObjective
from encoders.reporting.page import ReportTable, parse_device_kind
from encoders.reporting.summaries import format_grid
from encoders.run.run import differing_fields, read_result, read_run_record
from encoders.sweeps.paper_table import NUM_PARAMS, PaperRow, PaperTable, ScoreColumn
from encoders.training import metric_log
from encoders.utils.overrides import shorten_text


@dataclass(frozen=True)
class TableCell:
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
class RowCost:
    """Of all runs of a row: tokens seen, FLOPs of their matrix products, hours of devices, and of which kinds."""

    tokens: float
    flops: float
    device_hours: float
    devices: str


def read_score(experiment: Experiment, column: ScoreColumn, runs_dir: Path) -> float | None:
    """A member's score for a column, if it has one yet."""
    if column.score == NUM_PARAMS.score:
        return float(count_encoder_params(experiment.model, experiment.objective))
    folder = runs_dir / experiment.name
    if (found := read_result(folder)) is None:
        return None
    if column.overrides:
        return (cross_evaluation.cached_scores(folder, column.overrides) or {}).get(column.score)
    return found["best" if isinstance(experiment.objective, SupervisedObjective) else "heldout"].get(column.score)


def build_cell(
    table: PaperTable, row: PaperRow, column: ScoreColumn, runs_dir: Path, excluded: Collection[str] = ()
) -> TableCell:
    """The cell of a row and a column, of the members but those that are named; of several recipes it shows the one with
    the best median, as papers do."""
    published = row.published[table.columns.index(column)]
    if column.mean_of:
        columns = {each.name: each for each in table.columns}
        parts = [
            [build_cell(table, row, columns[name], runs_dir, excluded) for name in part] for part in column.mean_of
        ]
        whole = all(each.ours for part in parts for each in part)
        means = [statistics.mean(each.median for each in part) for part in parts] if whole else []
        return TableCell(published, (statistics.mean(means),) if whole else ())
    groups = []
    for members in row.group_by_seed(column).values():
        known = column.score == NUM_PARAMS.score  # from the experiment alone
        scores = [read_score(member, column, runs_dir) for member in members if known or member.name not in excluded]
        if found := sorted(each * column.factor for each in scores if each is not None):
            groups.append(tuple(found))
    return TableCell(published, max(groups, key=statistics.median, default=()))


def sum_row_cost(table: PaperTable, row: PaperRow, runs_dir: Path, excluded: Collection[str] = ()) -> RowCost:
    """What all runs of a row have cost, and those that they begin with, but not those that are named."""
    tokens = flops = seconds = 0.0
    kinds = set()
    members = {
        each.name: each for run in (*row.pretrain_runs, *row.finetune_runs) for each in table.trace_init_chain(run)
    }
    for member in (each for name, each in members.items() if name not in excluded):
        rows = list(metric_log.read_metric_rows(runs_dir / member.name / "metrics.jsonl"))
        seen = max((each.get("tokens", 0) for each in rows), default=0)
        full = sum(count * length for count, length in count_phase_rows(member))
        tokens, flops = tokens + seen, flops + run_flops(member) * seen / full
        known = (runs_dir / member.name / "experiment.json").exists()
        devices = read_run_record(runs_dir / member.name)["devices"] if known else []
        seconds += sum(each["time"]["seconds"] for each in rows) * len(devices)
        kinds |= {parse_device_kind(device) for device in devices}
    return RowCost(tokens, flops, seconds / 3600, " and ".join(sorted(kinds)))


def describe_training(row: PaperRow) -> str:
    """The size of a row's model, and how it is pre-trained, as far as the table's rows may differ in that."""
    if not row.pretrain_runs:
        return "-"
    run = row.pretrain_runs[0]
    model = run.model
    width = f" E{model.embedding_size}" * (model.embedding_size != model.hidden_size)
    heads = f" A{model.num_heads}" * (model.hidden_size != 64 * model.num_heads)
    sizes = " then ".join(f"{phase.batch_size:,} x {phase.seq_length}" for phase in run.phases)
    size = f"L{model.num_layers} H{model.hidden_size}{width}{heads}"
    return f"{size}; {sizes}, {run.num_steps:,} steps, {run.optimizer.learning_rate:g}"


def format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def format_published(numbers: Sequence[float]) -> str:
    return " / ".join(f"{each:g}" for each in numbers) or "-"


def format_ours(cell: TableCell) -> str:
    if not cell.ours:
        return "-"
    spread = (
        f" ({format_number(cell.ours[0])} to {format_number(cell.ours[-1])})" if cell.ours[0] < cell.ours[-1] else ""
    )
    return format_number(cell.median) + spread


@dataclass(frozen=True)
class TableResults:
    """A table with the cells that its runs give."""

    table: PaperTable
    cells: dict[tuple[str, str], TableCell]
    costs: dict[str, RowCost]
    corpora: tuple[str, ...] = ()  # that its runs were trained on
    excluded: tuple[str, ...] = ()  # members whose folders hold other experiments, or cannot be read

    @property
    def measured_columns(self) -> list[ScoreColumn]:
        """The columns of which at least one row has a number of ours; that of parameters has one always."""
        return [c for c in self.table.columns if any(self.cells[r.name, c.name].ours for r in self.table.rows)]

    def count_seeds(self, row: PaperRow) -> int:
        """How many scores the fullest cell of a row has."""
        return max((len(self.cells[row.name, c.name].ours) for c in self.scored_columns if not c.mean_of), default=0)

    @property
    def scored_columns(self) -> list[ScoreColumn]:
        """The measured columns of scores, which are no facts of the model."""
        return [column for column in self.measured_columns if column.score != NUM_PARAMS.score]

    def build_comparison_rows(self) -> list[list[str]]:
        """Head and rows of what was measured: for each column paper, ours with its range, and the difference."""
        head, seeds = ["", "ours", "seeds"], {row.name: self.count_seeds(row) for row in self.table.rows}
        rows = [[row.name, describe_training(row), str(seeds[row.name])] for row in self.table.rows]
        for column in self.measured_columns:
            paper = any(self.cells[row.name, column.name].published for row in self.table.rows)
            compared = paper and column.score != NUM_PARAMS.score
            head += [f"{column.name}, paper", "ours"] if paper else [column.name]
            head += ["difference"] * compared
            for row, line in zip(self.table.rows, rows, strict=True):
                found = self.cells[row.name, column.name]
                gap = found.difference
                planned = max(map(len, row.group_by_seed(column).values()), default=0)
                count, whole = len(found.ours), min(planned, seeds[row.name])
                few = f" [{count} of {whole}]" * (not column.mean_of and 0 < count < whole)
                line += [format_published(found.published)] * paper + [format_ours(found) + few]
                line += ["-" if gap is None else f"{gap:+.1f}"] * compared
        head += ["M tokens", "FLOPs", "device hours", "devices"]
        for row, line in zip(self.table.rows, rows, strict=True):
            spent = self.costs[row.name]
            line += [
                format_number(spent.tokens / 1e6),
                f"{spent.flops:.1e}",
                format_number(spent.device_hours),
                spent.devices or "-",
            ]
        return [head, *rows]

    def build_unmeasured_rows(self) -> list[list[str]]:
        """Head and rows of the published columns that were not measured; empty where there are none."""
        left = [c for c in self.table.columns if c not in self.measured_columns]
        left = [c for c in left if any(self.cells[r.name, c.name].published for r in self.table.rows)]
        rows = [
            [r.name, *(format_published(self.cells[r.name, c.name].published) for c in left)] for r in self.table.rows
        ]
        return [["", *(column.name for column in left)], *rows] if left else []

    def build_notes(self) -> list[str]:
        """What the table's numbers mean."""
        lines = [
            f"Members are equal in {self.table.equal_in}. Ours: the median over seeds, and the lowest to the highest; "
            "costs are those of all runs of a row, of fine-tuning and of what they begin with too.",
            *(order for column in self.measured_columns if (order := self.describe_row_order(column))),
            *(f"Differs because {reason}." for reason in self.table.caveats),
        ]
        if self.corpora:
            lines.append(f"Text: {'; '.join(self.corpora)}. The papers' is Wikipedia with books, or more.")
        return [*lines, f"Left out: {'; '.join(self.excluded)}."] if self.excluded else lines

    def describe_row_order(self, column: ScoreColumn) -> str | None:
        """Whether our rows stand in the paper's order: of each pair, only where the ranges of the seeds lie apart."""
        like = column.order_column or column.name
        towards = (
            -1 if column.lower_is_better != next(c for c in self.table.columns if c.name == like).lower_is_better else 1
        )
        rows = [
            r for r in self.table.rows if self.cells[r.name, column.name].ours and self.cells[r.name, like].published
        ]
        if len(rows) < 2 or column.score == NUM_PARAMS.score:
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
        compared = f" (the paper by {like})" if column.order_column else ""
        return f"{column.name}{compared}, pairs of rows: {told}."


def collect_table_results(table: PaperTable, runs_dir: Path) -> TableResults:
    """A table with the scores and costs of its runs."""
    present = [each for each in table.experiments if (runs_dir / each.name).exists()]
    reasons = {each.name: reason for each in present if (reason := exclusion_reason(table, each, runs_dir))}
    pairs = itertools.product(table.rows, table.columns)
    cells = {(row.name, column.name): build_cell(table, row, column, runs_dir, reasons) for row, column in pairs}
    costs = {row.name: sum_row_cost(table, row, runs_dir, reasons) for row in table.rows}
    runs_of = (runs_dir / each.name for row in table.rows for each in row.pretrain_runs if each.name not in reasons)
    data = [
        read_run_record(folder)["experiment"]["data"] for folder in runs_of if (folder / "experiment.json").exists()
    ]
    texts = tuple(dict.fromkeys(", ".join(each["corpus"]) for each in data))
    counts = Counter(reasons.values())
    told = (f"{reason}, and what begins with it" if count > 1 else reason for reason, count in counts.items())
    return TableResults(table, cells, costs, texts, tuple(told))


def exclusion_reason(table: PaperTable, experiment: Experiment, runs_dir: Path) -> str | None:
    """Why a member's folder has nothing for the table: it, or that of what it begins with, cannot be read or holds
    another experiment."""
    for each in table.trace_init_chain(experiment):
        try:
            read_result(runs_dir / each.name)
            changes = differing_fields(each, runs_dir / each.name)
        except (ValueError, KeyError, TypeError) as error:
            return f"{each.name} cannot be read ({error})"
        if changes:
            return f"{each.name} was trained otherwise ({shorten_text('; '.join(changes))})"
    return None


def compute_extra_scores(table: PaperTable, experiment: Experiment, runs_dir: Path) -> None:
    """Compute what a table's columns ask of a finished member beyond its own scores."""
    for row in table.rows:
        if experiment in row.pretrain_runs:
            for column in table.columns:
                if column.overrides:
                    cross_evaluation.load_or_compute_scores(runs_dir / experiment.name, column.overrides)


def build_report_tables(results: TableResults) -> list[ReportTable]:
    """A table as those of a page."""
    first, *others = [sheet for sheet in (results.build_comparison_rows(), results.build_unmeasured_rows()) if sheet]
    parts = [(results.table.title, first, results.build_notes())]
    parts += [(f"{results.table.title}: published, not measured here", each, []) for each in others]
    return [
        ReportTable(title, tuple(rows[0]), tuple(map(tuple, rows[1:])), tuple(notes)) for title, rows, notes in parts
    ]


# As text --------------------------------------------------------------------------------------------------------------


def format_as_text(results: TableResults) -> str:
    parts = (
        (each.title, format_grid([each.header, *each.rows]), "\n".join(each.notes))
        for each in build_report_tables(results)
    )
    return "\n\n".join(filter(None, itertools.chain(*parts)))


def format_as_markdown(results: TableResults) -> str:
    format_row = lambda row: "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    format_table = lambda report_table: "\n".join(
        [format_row(report_table.header), "|" + "---|" * len(report_table.header), *map(format_row, report_table.rows)]
    )
    parts = ((f"### {each.title}", format_table(each), *each.notes) for each in build_report_tables(results))
    return "\n\n".join(itertools.chain(*parts))


def format_as_latex(results: TableResults) -> str:
    """Tabulars for the booktabs package."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escape_latex = lambda text: re.sub(r"[\\~^&%$#_{}]", lambda m: special.get(m[0], f"\\{m[0]}"), text)
    format_row = lambda row: " & ".join(map(escape_latex, row)) + r" \\"

    def format_tabular(report_table: ReportTable) -> list[str]:
        begin = rf"\begin{{tabular}}{{l{'r' * (len(report_table.header) - 1)}}}"
        body = [
            r"\toprule",
            format_row(report_table.header),
            r"\midrule",
            *map(format_row, report_table.rows),
            r"\bottomrule",
        ]
        return [
            f"% {report_table.title}",
            begin,
            *body,
            r"\end{tabular}",
            *(escape_latex(note) + r"\\" for note in report_table.notes),
        ]

    return "\n".join(itertools.chain(*map(format_tabular, build_report_tables(results))))


def format_as_csv(results: TableResults) -> str:
    """A line a cell, with unrounded numbers."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(["table", "row", "column", "paper", "paper, elsewhere", "n", "median", "lowest", "highest", "difference"])
    for row in results.table.rows:
        for column in results.table.columns:
            each = results.cells[row.name, column.name]
            numbers = (len(each.ours), each.median, each.ours[0], each.ours[-1]) if each.ours else (0, "", "", "")
            said = (*each.published[:1], " ".join(map(str, each.published[1:]))) if each.published else ("", "")
            compared = each.difference is not None and column.score != NUM_PARAMS.score
            gap = each.difference if compared else ""
            write([results.table.name, row.name, column.name, *said, *numbers, gap])
    for row in results.table.rows:
        for name, value in vars(results.costs[row.name]).items():
            write([results.table.name, row.name, name, "", "", "", value, "", "", ""])
    return out.getvalue().rstrip("\n")


FORMATS = {"text": format_as_text, "markdown": format_as_markdown, "latex": format_as_latex, "csv": format_as_csv}
