"""A paper's table beside ours: each cell's published number, our median over seeds, their difference and the costs."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from encoders.costs.ledger import count_encoder_params, count_phase_rows, run_flops
from encoders.experiment import Experiment
from encoders.inference import cross_evaluation
from encoders.objectives.base import SupervisedObjective
from encoders.reporting.page import parse_device_kind
from encoders.reporting.table_formats import ReportTable, format_tables
from encoders.run.folder import RECORD_FILE, differing_fields, read_result, read_run_record, read_run_rows
from encoders.sweeps.paper_table import NUM_PARAMS, PaperRow, PaperTable, ScoreColumn
from encoders.utils.errors import UserError, describe_error
from encoders.utils.overrides import shorten_text


@dataclass(frozen=True)
class TableCell:
    """The published numbers, and ours in ascending order, one a seed, in the paper's unit."""

    published: tuple[float, ...] = ()
    ours: tuple[float, ...] = ()

    @property
    def our_median(self) -> float:
        return statistics.median(self.ours)

    @property
    def paper_difference(self) -> float | None:
        """Return our median less the nearest published number, or None if one of them is missing."""
        if not self.published or not self.ours:
            return None
        return min((self.our_median - number for number in self.published), key=abs)

    def format_published(self) -> str:
        return " / ".join(f"{number:g}" for number in self.published) or "-"

    def format_ours(self) -> str:
        """Return the median, followed by lowest and highest if they differ."""
        if not self.ours:
            return "-"
        lowest, median, highest = map(format_number, (self.ours[0], self.our_median, self.ours[-1]))
        return median if self.ours[0] == self.ours[-1] else f"{median} ({lowest} to {highest})"


def format_number(value: float) -> str:
    """Return a number with as many decimals as its size deserves: 1,234, 12.3 or 1.23."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


# Pairs of rows by how our order of them compares with the paper's.
ROW_ORDERS = {
    "agree": "in the paper's order, with all seeds of one above all of the other",
    "disagree": "in the opposite order, with all seeds of one above all of the other",
    "overlap": "within the spread of the seeds",
    "single_seed": "with one seed in a row, so without a spread",
    "equal": "equal in the paper",
}


def read_score(experiment: Experiment, column: ScoreColumn, runs_dir: Path) -> float | None:
    """Return the score of an experiment for a column, or None if it does not exist yet."""
    if column.score == NUM_PARAMS.score:
        return float(count_encoder_params(experiment.model, experiment.objective))
    folder = runs_dir / experiment.name
    result = read_result(folder)
    if result is None:
        return None
    if column.overrides:
        return (cross_evaluation.cached_scores(folder, column.overrides) or {}).get(column.score)
    return result["best" if isinstance(experiment.objective, SupervisedObjective) else "heldout"].get(column.score)


def build_cell(
    table: PaperTable, row: PaperRow, column: ScoreColumn, runs_dir: Path, excluded: Collection[str] = ()
) -> TableCell:
    """Return the cell of a row and a column, without the scores of the experiments named in `excluded`.

    Of several recipes the cell shows the one with the best median, as papers do.
    """
    published = row.published[table.columns.index(column)]
    if column.mean_of:
        columns = {other.name: other for other in table.columns}
        build = lambda name: build_cell(table, row, columns[name], runs_dir, excluded)
        groups = [list(map(build, names)) for names in column.mean_of]
        if not all(cell.ours for cells in groups for cell in cells):
            return TableCell(published)
        means = [statistics.mean(cell.our_median for cell in cells) for cells in groups]
        return TableCell(published, (statistics.mean(means),))
    if column.score == NUM_PARAMS.score:
        excluded = ()  # the number of parameters follows from the experiment
    recipes = []
    for experiments in row.group_by_seed(column).values():
        scores = [read_score(run, column, runs_dir) for run in experiments if run.name not in excluded]
        recipes.append(tuple(sorted(score * column.factor for score in scores if score is not None)))
    return TableCell(published, max(filter(None, recipes), key=statistics.median, default=()))


def sum_row_cost(table: PaperTable, row: PaperRow, runs_dir: Path, excluded: Collection[str] = ()) -> dict:
    """Return the cost of a row's runs and of those that they are initialised from, without the `excluded` ones.

    It is their tokens, FLOPs of matrix products, hours times devices, and kinds of device.
    """
    tokens = flops = seconds = 0.0
    kinds = set()
    runs = (*row.pretrain_runs, *row.finetune_runs)
    experiments = {source.name: source for run in runs for source in table.trace_init_chain(run)}
    for name in (name for name in experiments if name not in excluded):
        rows = read_run_rows(runs_dir / name)
        seen = max((row["tokens"] for row in rows if "tokens" in row), default=0)
        planned = sum(count * phase.seq_length for count, phase in count_phase_rows(experiments[name]))
        tokens += seen
        flops += run_flops(experiments[name]) * seen / planned
        if (runs_dir / name / RECORD_FILE).exists():
            devices = read_run_record(runs_dir / name)["devices"]
            seconds += sum(row["time"]["seconds"] for row in rows) * len(devices)
            kinds |= {parse_device_kind(device) for device in devices}
    devices = " and ".join(sorted(kinds))
    return {"tokens": tokens, "flops": flops, "device_hours": seconds / 3600, "devices": devices}


def describe_training(row: PaperRow) -> str:
    """Return size, batches, steps and learning rate of a row's pre-training, for example "L2 H128; 64 x 64, ..."."""
    if not row.pretrain_runs:
        return "-"
    run = row.pretrain_runs[0]
    size = f"L{run.model.num_layers} H{run.model.hidden_size}"
    if run.model.embedding_size != run.model.hidden_size:
        size += f" E{run.model.embedding_size}"
    if run.model.hidden_size != 64 * run.model.num_heads:
        size += f" A{run.model.num_heads}"
    batches = " then ".join(f"{phase.batch_size:,} x {phase.seq_length}" for phase in run.phases)
    return f"{size}; {batches}, {run.num_steps:,} steps, {run.optimizer.learning_rate:g}"


@dataclass(frozen=True)
class TableResults:
    """A table with a cell for each row and column by their names, and the cost of each row.

    `corpora` are those that its runs were trained on; `excluded` gives the reasons why runs are left out.
    """

    table: PaperTable
    cells: dict[tuple[str, str], TableCell]
    costs: dict[str, dict]
    corpora: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    def list_cells(self, column: ScoreColumn) -> list[TableCell]:
        return [self.cells[row.name, column.name] for row in self.table.rows]

    @property
    def measured_columns(self) -> list[ScoreColumn]:
        """Return the columns in which at least one row has a number of ours."""
        return [c for c in self.table.columns if any(cell.ours for cell in self.list_cells(c))]

    @property
    def scored_columns(self) -> list[ScoreColumn]:
        """Return the measured columns without the number of parameters."""
        return [column for column in self.measured_columns if column.score != NUM_PARAMS.score]

    def has_published(self, column: ScoreColumn) -> bool:
        return any(cell.published for cell in self.list_cells(column))

    def count_seeds(self, row: PaperRow) -> int:
        """Return the number of scores in the row's cell that has the most."""
        return max((len(self.cells[row.name, c.name].ours) for c in self.scored_columns if not c.mean_of), default=0)

    def format_cell(self, row: PaperRow, column: ScoreColumn) -> str:
        """Return our number, with "[2 of 3]" if seeds are missing that other cells of the row have."""
        cell = self.cells[row.name, column.name]
        planned = max(map(len, row.group_by_seed(column).values()), default=0)
        num_expected = min(planned, self.count_seeds(row))
        if not column.mean_of and 0 < len(cell.ours) < num_expected:
            return f"{cell.format_ours()} [{len(cell.ours)} of {num_expected}]"
        return cell.format_ours()

    def build_report_tables(self) -> list[ReportTable]:
        """Return the comparison and, unless it is empty, the table of columns that were not measured."""
        measured, tables = self.measured_columns, [self.build_comparison_table()]
        unmeasured = [c for c in self.table.columns if c not in measured and self.has_published(c)]
        if unmeasured:
            names = [row.name for row in self.table.rows]
            columns = [[cell.format_published() for cell in self.list_cells(column)] for column in unmeasured]
            header, rows = ("", *(column.name for column in unmeasured)), tuple(zip(names, *columns, strict=True))
            tables.append(ReportTable(f"{self.table.title}: published, not measured here", header, rows))
        return tables

    def build_comparison_table(self) -> ReportTable:
        """Return the measured columns: the paper's number, ours with its range, and the difference."""
        rows, costs = self.table.rows, [self.costs[row.name] for row in self.table.rows]
        columns = [
            ("", [row.name for row in rows]),
            ("ours", [describe_training(row) for row in rows]),
            ("seeds", [str(self.count_seeds(row)) for row in rows]),
        ]
        for column in self.measured_columns:
            cells, ours = self.list_cells(column), [self.format_cell(row, column) for row in rows]
            if not self.has_published(column):
                columns.append((column.name, ours))
                continue
            columns += [(f"{column.name}, paper", [cell.format_published() for cell in cells]), ("ours", ours)]
            if column in self.scored_columns:
                gaps = [cell.paper_difference for cell in cells]
                columns.append(("difference", ["-" if gap is None else f"{gap:+.1f}" for gap in gaps]))
        columns += [
            ("M tokens", [format_number(cost["tokens"] / 1e6) for cost in costs]),
            ("FLOPs", [f"{cost['flops']:.1e}" for cost in costs]),
            ("device hours", [format_number(cost["device_hours"]) for cost in costs]),
            ("devices", [cost["devices"] or "-" for cost in costs]),
        ]
        header, cells = zip(*columns, strict=True)
        return ReportTable(self.table.title, header, tuple(zip(*cells, strict=True)), tuple(self.build_notes()))

    def build_notes(self) -> list[str]:
        """Return what a reader needs to interpret the numbers, a sentence or two each."""
        notes = [
            f"The experiments are equal in {self.table.equal_in}. Ours: the median over seeds (lowest to highest). "
            "Costs are those of all runs of a row, with fine-tuning and the runs that they are initialised from."
        ]
        notes += [note for column in self.scored_columns if (note := self.describe_row_order(column))]
        notes += [f"Differs because {reason}." for reason in self.table.caveats]
        if self.corpora:
            notes.append(f"Text: {'; '.join(self.corpora)}. The papers' is Wikipedia with books, or more.")
        if self.excluded:
            notes.append(f"Left out: {'; '.join(self.excluded)}.")
        return notes

    def compare_row_order(self, column: ScoreColumn) -> Counter[str] | None:
        """Return the numbers of pairs of rows by `ROW_ORDERS`; the order counts only if the ranges of seeds are apart.

        Returns None if fewer than two rows have numbers of both.
        """
        paper_column = next(c for c in self.table.columns if c.name == (column.order_column or column.name))
        cells = zip(self.list_cells(column), self.list_cells(paper_column), strict=True)
        rows = [(cell, paper_cell.published[0]) for cell, paper_cell in cells if cell.ours and paper_cell.published]
        if len(rows) < 2 or column.score == NUM_PARAMS.score:
            return None
        same_direction = column.lower_is_better == paper_column.lower_is_better

        def compare_pair(first: TableCell, first_published: float, second: TableCell, second_published: float) -> str:
            paper_gap, our_gap = first_published - second_published, first.our_median - second.our_median
            if not paper_gap:
                return "equal"
            if min(len(first.ours), len(second.ours)) < 2:
                return "single_seed"
            if first.ours[0] <= second.ours[-1] and second.ours[0] <= first.ours[-1]:
                return "overlap"
            return "agree" if (our_gap * paper_gap > 0) == same_direction else "disagree"

        return Counter(compare_pair(*first, *second) for first, second in itertools.combinations(rows, 2))

    def describe_row_order(self, column: ScoreColumn) -> str | None:
        """Return the comparison of `compare_row_order` as a sentence."""
        counts = self.compare_row_order(column)
        if counts is None:
            return None
        pairs = "; ".join(f"{counts[order]} {meaning}" for order, meaning in ROW_ORDERS.items() if counts[order])
        by_column = f" (the paper by {column.order_column})" if column.order_column else ""
        return f"{column.name}{by_column}, pairs of rows: {pairs}."


def collect_table_results(table: PaperTable, runs_dir: Path) -> TableResults:
    """Return a table with the scores and costs of its runs in `runs_dir`."""
    present = [experiment for experiment in table.experiments if (runs_dir / experiment.name).exists()]
    reasons = {e.name: reason for e in present if (reason := exclusion_reason(table, e, runs_dir))}
    pairs = itertools.product(table.rows, table.columns)
    cells = {(row.name, column.name): build_cell(table, row, column, runs_dir, reasons) for row, column in pairs}
    costs = {row.name: sum_row_cost(table, row, runs_dir, reasons) for row in table.rows}
    runs = [runs_dir / run.name for row in table.rows for run in row.pretrain_runs if run.name not in reasons]
    records = [read_run_record(folder)["experiment"] for folder in runs if (folder / RECORD_FILE).exists()]
    corpora = dict.fromkeys(", ".join(record["data"]["corpus"]) for record in records)
    excluded = tuple(
        f"{reason}, and the runs initialised from it" if count > 1 else reason
        for reason, count in Counter(reasons.values()).items()
    )
    return TableResults(table, cells, costs, tuple(corpora), excluded)


def exclusion_reason(table: PaperTable, experiment: Experiment, runs_dir: Path) -> str | None:
    """Return why a run cannot count: its folder, or one it is initialised from, is damaged or holds other settings."""
    for source in table.trace_init_chain(experiment):
        try:
            read_result(runs_dir / source.name)
            read_run_rows(runs_dir / source.name)
            changes = differing_fields(source, runs_dir / source.name)
        except (UserError, OSError) as error:
            return f"{source.name} cannot be read ({describe_error(error)})"
        if changes:
            return f"{source.name} was trained with other settings ({shorten_text('; '.join(changes))})"
    return None


def compute_extra_scores(table: PaperTable, experiment: Experiment, runs_dir: Path) -> None:
    """Compute the scores under other settings that the table's columns need from a finished run."""
    if any(experiment in row.pretrain_runs for row in table.rows):
        for settings in dict.fromkeys(column.overrides for column in table.columns if column.overrides):
            cross_evaluation.load_or_compute_scores(runs_dir / experiment.name, settings)


CSV_COLUMNS = (
    "table", "row", "column", "paper", "paper, elsewhere", "n", "median", "lowest", "highest", "difference",
)  # fmt: skip


def format_as_csv(results: TableResults) -> str:
    """Return a line a cell, and one for each cost of a row, with unrounded numbers."""
    file, name = io.StringIO(), results.table.name
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row, column in itertools.product(results.table.rows, results.table.columns):
        cell = results.cells[row.name, column.name]
        line = {"table": name, "row": row.name, "column": column.name, "n": len(cell.ours)}
        if cell.published:
            line |= {"paper": cell.published[0], "paper, elsewhere": " ".join(map(str, cell.published[1:]))}
        if cell.ours:
            line |= {"median": cell.our_median, "lowest": cell.ours[0], "highest": cell.ours[-1]}
        if cell.paper_difference is not None and column.score != NUM_PARAMS.score:
            line["difference"] = cell.paper_difference
        writer.writerow(line)
    for row, costs in results.costs.items():
        writer.writerows({"table": name, "row": row, "column": cost, "median": costs[cost]} for cost in costs)
    return file.getvalue().rstrip("\n")


def format_results(results: TableResults, output_format: str = "text") -> str:
    """Return the results as "text", "markdown", "latex" or "csv"."""
    if output_format == "csv":
        return format_as_csv(results)
    return format_tables(results.build_report_tables(), output_format)
