"""Cells of a paper's table: the published numbers, our scores by seed, and the cost of a row."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from encoders.experiment import Experiment
from encoders.reporting.comparisons import ItemVariance, estimate_item_variance
from encoders.reporting.result_sources import ResultSource
from encoders.sweeps.paper_table import PaperRow, PaperTable
from encoders.sweeps.score_columns import NUM_PARAMS, ScoreColumn
from encoders.utils.errors import UserError


@dataclass(frozen=True)
class TableCell:
    """The published numbers and our scores by seed, in the paper's unit.

    `items` are the values of the test items `[m]` by seed, for the seeds where they are known.
    """

    published: tuple[float, ...] = ()
    scores: dict[int, float] = field(default_factory=dict)
    items: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def ours(self) -> tuple[float, ...]:
        """Return our scores in ascending order."""
        return tuple(sorted(self.scores.values()))

    @property
    def our_mean(self) -> float:
        return statistics.fmean(self.scores.values())

    @property
    def paper_difference(self) -> float | None:
        """Return our mean less the nearest published number, or None if one of them is missing."""
        if not self.published or not self.scores:
            return None
        return min((self.our_mean - number for number in self.published), key=abs)

    def format_published(self) -> str:
        return " / ".join(f"{number:g}" for number in self.published) or "-"


def build_cell(
    table: PaperTable, row: PaperRow, column: ScoreColumn, source: ResultSource, excluded: Collection[str] = ()
) -> TableCell:
    """Return the cell of a row and a column, without the scores of the experiments named in `excluded`.

    Of several recipes the cell shows the one with the best mean, as papers do. A mean of columns has the seeds that
    all of them have.
    """
    published = row.published[table.columns.index(column)]
    if column.mean_of:
        columns = {other.name: other for other in table.columns}
        build = lambda name: build_cell(table, row, columns[name], source, excluded)
        groups = [list(map(build, names)) for names in column.mean_of]
        seeds = set.intersection(*(set(cell.scores) for cells in groups for cell in cells))
        average = lambda seed: statistics.fmean(
            statistics.fmean(cell.scores[seed] for cell in cells) for cells in groups
        )
        return TableCell(published, {seed: average(seed) for seed in sorted(seeds)})
    if column.score == NUM_PARAMS.score:
        excluded = ()  # the number of parameters follows from the experiment
    groups = row.group_by_seed(column).values()
    recipes = [read_recipe([run for run in runs if run.name not in excluded], column, source) for runs in groups]
    sign = -1 if column.lower_is_better else 1
    best = max(filter(None, recipes), key=lambda recipe: sign * TableCell(scores=recipe[0]).our_mean, default=({}, {}))
    return TableCell(published, *best)


def read_recipe(
    experiments: Iterable[Experiment], column: ScoreColumn, source: ResultSource
) -> tuple[dict[int, float], dict[int, np.ndarray]] | None:
    """Return scores and items by seed of the experiments of one recipe; None if none of them has a score."""
    scores, items = {}, {}
    for experiment in experiments:
        score = source.read_score(experiment, column)
        if score is not None:
            seed = parse_seed(experiment)
            scores[seed] = score.value * column.factor
            if score.items is not None:
                items[seed] = score.items * column.factor
    return (scores, items) if scores else None


def parse_seed(experiment: Experiment) -> int:
    """Return the last seed in an experiment's name, which tells it from the others of its recipe, else its own."""
    seeds = re.findall(r"-seed(\d+)", experiment.name)
    return int(seeds[-1]) if seeds else experiment.seed


def find_item_variance(first: TableCell, second: TableCell | None = None) -> ItemVariance | None:
    """Return the variance by items of a cell's mean, or of the mean difference of two; None without all items.

    All seeds that count need items: those of the cell, or those that two cells share. Raises `UserError` for other
    numbers of items.
    """
    cells = [first] if second is None else [first, second]
    seeds = sorted(set.intersection(*(set(cell.scores) for cell in cells)))
    if not seeds or any(seed not in cell.items for seed in seeds for cell in cells):
        return None
    counts = {len(cell.items[seed]) for seed in seeds for cell in cells}
    if len(counts) > 1 or min(counts) < 2:
        numbers = " and ".join(map(str, sorted(counts)))
        raise UserError(
            f"runs of one column were measured on {numbers} items; measure them again, on the same two or more"
        )
    values = [np.stack([cell.items[seed] for seed in seeds]) for cell in cells]
    return estimate_item_variance(values[0] if second is None else values[0] - values[1])


def sum_row_cost(table: PaperTable, row: PaperRow, source: ResultSource, excluded: Collection[str] = ()) -> dict:
    """Return the cost of a row's runs and of those that they are initialised from, without the `excluded` ones.

    It is their tokens, FLOPs of matrix products, hours times devices, and kinds of device.
    """
    runs = (*row.pretrain_runs, *row.finetune_runs)
    experiments = {start.name: start for run in runs for start in table.trace_init_chain(run)}
    read = [source.read_cost(experiment) for name, experiment in experiments.items() if name not in excluded]
    costs = [cost for cost in read if cost is not None]
    return {
        "tokens": sum(cost.tokens for cost in costs),
        "flops": sum(cost.flops for cost in costs),
        "device_hours": sum(cost.device_seconds for cost in costs) / 3600,
        "devices": " and ".join(sorted({kind for cost in costs for kind in cost.devices})),
    }
