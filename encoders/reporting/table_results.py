"""A paper's table beside ours: each cell's published number, our mean over seeds with its interval, and the costs."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from encoders.experiment import Experiment
from encoders.inference import cross_evaluation
from encoders.measures.base import load_or_measure
from encoders.reporting.comparisons import Estimate, ItemVariance, estimate_mean, format_estimate
from encoders.reporting.result_sources import ResultSource
from encoders.reporting.row_pairs import (
    RowPair,
    build_column_pairs,
    build_pairs_table,
    correct_pairs,
    correlate_with_paper,
    describe_order,
    estimate_column_noise,
)
from encoders.reporting.seed_variances import describe_noisy_rows
from encoders.reporting.table_cells import TableCell, build_cell, find_item_variance, sum_row_cost
from encoders.reporting.table_formats import ReportTable, format_number, format_tables
from encoders.sweeps.paper_table import PaperRow, PaperTable
from encoders.sweeps.score_columns import NUM_PARAMS, ScoreColumn


@dataclass(frozen=True)
class TableResults:
    """A table with a cell for each row and column by their names, and the cost of each row.

    `training` describes the pre-training of each row. `item_variances` are those of the means of cells and of the
    differences of pairs, by the column and one row or two. `corpora` are those that the runs were trained on;
    `excluded` gives the reasons why runs are left out; `source_notes` are those of the source.
    """

    table: PaperTable
    cells: dict[tuple[str, str], TableCell]
    costs: dict[str, dict]
    training: dict[str, str]
    item_variances: Mapping[tuple[str, ...], ItemVariance] = field(default_factory=dict)
    corpora: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    source_notes: tuple[str, ...] = ()

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

    def estimate_cell(self, row_name: str, column_name: str) -> Estimate | None:
        """Return the mean of a cell over its seeds with its variances, or None for an empty cell."""
        scores = list(self.cells[row_name, column_name].scores.values())
        return estimate_mean(scores, self.item_variances.get((column_name, row_name))) if scores else None

    def format_cell(self, row: PaperRow, column: ScoreColumn) -> str:
        """Return our mean ± half of its interval, with "[2 of 3]" if seeds are missing that other cells have."""
        estimate = self.estimate_cell(row.name, column.name)
        if estimate is None:
            return "-"
        if column.score == NUM_PARAMS.score or estimate.half_width is None:
            text = format_number(estimate.mean)
        else:
            text = format_estimate(estimate.mean, estimate.half_width)
        planned = max(map(len, row.group_by_seed(column).values()), default=0)
        num_expected = min(planned, self.count_seeds(row))
        if not column.mean_of and estimate.num_seeds < num_expected:
            return f"{text} [{estimate.num_seeds} of {num_expected}]"
        return text

    def select_cells(self, column: ScoreColumn) -> dict[str, TableCell]:
        """Return the cells of a column by row."""
        return {row.name: self.cells[row.name, column.name] for row in self.table.rows}

    def find_paper_column(self, column: ScoreColumn) -> ScoreColumn:
        """Return the column whose published numbers a column is compared with."""
        return next(c for c in self.table.columns if c.name == (column.order_column or column.name))

    @cached_property
    def row_pairs(self) -> list[RowPair]:
        """The pairs of rows of every scored column, corrected for their number."""
        pairs = []
        for column in self.scored_columns:
            paper_column = self.find_paper_column(column)
            paper_cells = self.select_cells(paper_column)
            cells = self.select_cells(column)
            pairs += build_column_pairs(column, cells, paper_column, paper_cells, self.item_variances)
        return correct_pairs(pairs)

    def list_order_notes(self) -> list[str]:
        """Return how the pairs of each column compare with the paper's, and which rows vary far more over seeds."""
        notes = []
        for column in self.scored_columns:
            paper_column = self.find_paper_column(column)
            same_direction = column.lower_is_better == paper_column.lower_is_better
            tau = correlate_with_paper(self.select_cells(column), self.select_cells(paper_column), same_direction)
            if pairs := [pair for pair in self.row_pairs if pair.column == column.name]:
                order_column = column.order_column if any(pair.published is not None for pair in pairs) else ""
                notes.append(describe_order(column.name, pairs, tau, order_column))
                if noisy_rows := estimate_column_noise(self.select_cells(column)).noisy_rows:
                    notes.append(describe_noisy_rows(column.name, noisy_rows))
        return notes

    def build_report_tables(self) -> list[ReportTable]:
        """Return the comparison and, unless they are empty, pairs of rows and columns that were not measured."""
        measured, tables = self.measured_columns, [self.build_comparison_table()]
        if self.row_pairs:
            tables.append(build_pairs_table(self.table.title, self.row_pairs, self.list_order_notes()))
        unmeasured = [c for c in self.table.columns if c not in measured and self.has_published(c)]
        if unmeasured:
            names = [row.name for row in self.table.rows]
            columns = [[cell.format_published() for cell in self.list_cells(column)] for column in unmeasured]
            header, rows = ("", *(column.name for column in unmeasured)), tuple(zip(names, *columns, strict=True))
            tables.append(ReportTable(f"{self.table.title}: published, not measured here", header, rows))
        return tables

    def build_comparison_table(self) -> ReportTable:
        """Return the measured columns: the paper's number, ours with its interval, and the difference."""
        rows, costs = self.table.rows, [self.costs[row.name] for row in self.table.rows]
        columns = [
            ("", [row.name for row in rows]),
            ("ours", [self.training[row.name] for row in rows]),
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
            f"The experiments are equal in {self.table.equal_in}. Ours: the mean over seeds ± half of its 95 % "
            "interval, over seeds and, where they are known, test items; of one seed over items alone. Costs are those "
            "of all runs of a row, with fine-tuning and the runs that they are initialised from."
        ]
        notes += [f"Differs because {reason}." for reason in self.table.caveats]
        if self.corpora:
            notes.append(f"Text: {'; '.join(self.corpora)}. The papers' is Wikipedia with books, or more.")
        if self.excluded:
            notes.append(f"Left out: {'; '.join(self.excluded)}.")
        return [*notes, *self.source_notes]


def collect_table_results(table: PaperTable, source: ResultSource) -> TableResults:
    """Return a table with the scores and costs of its runs in a source."""
    problems = {experiment.name: source.find_problem(table, experiment) for experiment in table.experiments}
    reasons = {name: reason for name, reason in problems.items() if reason}
    pairs = itertools.product(table.rows, table.columns)
    cells = {(row.name, column.name): build_cell(table, row, column, source, reasons) for row, column in pairs}
    costs = {row.name: sum_row_cost(table, row, source, reasons) for row in table.rows}
    pretrained = [run for row in table.rows for run in (*row.source_runs, *row.pretrain_runs)]
    runs = [run for run in pretrained if run.name not in reasons]
    corpora = dict.fromkeys(corpus for run in runs if (corpus := source.read_corpus(run)))
    excluded = tuple(
        f"{reason}, and the runs initialised from it" if count > 1 else reason
        for reason, count in Counter(reasons.values()).items()
    )
    training = {row.name: source.describe_training(row) for row in table.rows}
    variances = {**source.item_variances, **find_item_variances(table, cells)}
    return TableResults(table, cells, costs, training, variances, tuple(corpora), excluded, tuple(source.notes))


def find_item_variances(
    table: PaperTable, cells: Mapping[tuple[str, str], TableCell]
) -> dict[tuple[str, ...], ItemVariance]:
    """Return the variances by items of cells and of pairs of rows, by the column and one row or two."""
    variances, rows = {}, [row.name for row in table.rows]
    for column, size in itertools.product([column.name for column in table.columns], (1, 2)):
        for names in itertools.combinations(rows, size):
            if variance := find_item_variance(*(cells[name, column] for name in names)):
                variances[column, *names] = variance
    return variances


def compute_extra_scores(table: PaperTable, experiment: Experiment, runs_dir: Path, log: Callable[[str], None]) -> None:
    """Compute the scores under other settings, and the measures, that the columns need of a pre-trained run."""
    if any(experiment in row.pretrain_runs for row in table.rows):
        folder = runs_dir / experiment.name
        for settings in dict.fromkeys(column.overrides for column in table.columns if column.overrides):
            cross_evaluation.load_or_compute_scores(folder, settings)
        if measures := [*dict.fromkeys(column.measure for column in table.columns if column.measure)]:
            load_or_measure(folder, measures, log=log)


CSV_COLUMNS = (
    *("table", "row", "minus row", "column", "paper", "paper, elsewhere", "n", "mean", "low", "high", "difference"),
    *("seeds", "scores", "p", "p, corrected", "statement", "agreement"),
)  # fmt: skip


def format_as_csv(results: TableResults) -> str:
    """Return a line a cell, one for each pair of rows and each cost of a row, with unrounded numbers.

    `low` and `high` are the interval of the mean; `scores` are in the order of `seeds`. A pair of rows has the name of
    the second one in `minus row`, and the paper's difference of the two in `paper`.
    """
    file, name = io.StringIO(), results.table.name
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row, column in itertools.product(results.table.rows, results.table.columns):
        cell = results.cells[row.name, column.name]
        line = {"table": name, "row": row.name, "column": column.name}
        if cell.published:
            line |= {"paper": cell.published[0], "paper, elsewhere": " ".join(map(str, cell.published[1:]))}
        line |= list_estimate(results.estimate_cell(row.name, column.name))
        line |= {"seeds": " ".join(map(str, cell.scores)), "scores": " ".join(map(str, cell.scores.values()))}
        if cell.paper_difference is not None and column.score != NUM_PARAMS.score:
            line["difference"] = cell.paper_difference
        writer.writerow(line)
    for pair in results.row_pairs:
        line = {"table": name, "row": pair.first, "minus row": pair.second, "column": pair.column}
        line |= {"paper": pair.published, "statement": pair.statement, "agreement": pair.agreement}
        line |= {"p": pair.estimate and pair.estimate.p_value, "p, corrected": pair.corrected_p}
        writer.writerow(line | list_estimate(pair.estimate))
    for row, costs in results.costs.items():
        writer.writerows({"table": name, "row": row, "column": cost, "mean": costs[cost]} for cost in costs)
    return file.getvalue().rstrip("\n")


def list_estimate(estimate: Estimate | None) -> dict[str, float | int]:
    """Return the columns of the CSV file that an estimate fills."""
    if estimate is None:
        return {"n": 0}
    columns = {"n": estimate.num_seeds, "mean": estimate.mean}
    return columns | (dict(zip(("low", "high"), estimate.interval, strict=True)) if estimate.interval else {})


def format_results(results: TableResults, output_format: str = "text") -> str:
    """Return the results as "text", "markdown", "latex" or "csv"."""
    if output_format == "csv":
        return format_as_csv(results)
    return format_tables(results.build_report_tables(), output_format)
