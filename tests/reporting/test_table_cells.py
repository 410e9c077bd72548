"""Cells with test items: the variance of a mean and of a difference, and what a table says with and without them."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from scipy import stats

from encoders.measures.base import Measurement
from encoders.measures.minimal_pairs import MinimalPairs
from encoders.reporting import result_sources
from encoders.reporting.comparisons import estimate_difference, estimate_item_variance
from encoders.reporting.result_sources import RunsFolder, Score
from encoders.reporting.seed_variances import borrow_variance, estimate_seed_noise
from encoders.reporting.table_cells import TableCell, find_item_variance, parse_seed
from encoders.reporting.table_results import collect_table_results
from encoders.sweeps.paper_table import PaperRow, PaperTable
from encoders.sweeps.score_columns import ScoreColumn
from encoders.utils.errors import UserError
from tests.test_experiment import BASE

COLUMN = ScoreColumn("BLiMP", "blimp")


@dataclass(frozen=True)
class ScoresAtHand(RunsFolder):
    """A source of scores by the name of an experiment."""

    scores: dict[str, Score] = field(default_factory=dict)

    def read_score(self, experiment, column):
        return self.scores.get(experiment.name)


def build_table(answers: dict[str, np.ndarray], tmp_path, with_items: bool = True):
    """Return the results of rows whose answers `[n m]` are right, 1, or wrong, 0, in n runs."""
    rows, scores = [], {}
    for number, (name, values) in enumerate(answers.items()):
        seeds = range(len(values))
        changed = replace(BASE, early_stopping=number + 1)
        runs = tuple(replace(changed, name=f"{name}-seed{seed}", seed=seed) for seed in seeds)
        rows.append(PaperRow(name, ((90.0 - number,),), runs))
        for run, items in zip(runs, values, strict=True):
            scores[run.name] = Score(items.mean(), items if with_items else None)
    table = PaperTable("t", "A table", (COLUMN,), tuple(rows), "tokens")
    return collect_table_results(table, ScoresAtHand(tmp_path / "none", scores))


def make_answers(num_rows: int = 2, num_seeds: int = 3, num_items: int = 400) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    difficulty = rng.normal(size=num_items)
    draw = lambda row: (0.8 - 0.4 * row + difficulty + rng.normal(size=(num_seeds, num_items)) > 0).astype(float)
    return {f"row{row}": draw(row) for row in range(num_rows)}


def test_the_interval_of_a_cell_and_of_a_pair_is_over_seeds_and_items(tmp_path):
    answers = make_answers()
    results = build_table(answers, tmp_path)
    first, second = answers.values()
    for estimate, values in (
        (results.estimate_cell("row0", "BLiMP"), 100 * first),
        (results.row_pairs[0].estimate, 100 * (first - second)),
    ):
        means = values.mean(axis=1)
        assert estimate.mean == pytest.approx(means.mean()) and estimate.items.num_items == 400
        seeds = stats.t.ppf(0.975, 2) * stats.sem(means)
        items = stats.t.ppf(0.975, 399) * estimate_item_variance(values).variance ** 0.5
        assert estimate.half_width == pytest.approx(np.hypot(seeds, items)) and items > 0
    assert results.row_pairs[0].agreement == "for"


def test_without_items_the_interval_is_over_seeds_alone(tmp_path):
    answers = make_answers()
    (pair,) = build_table(answers, tmp_path, with_items=False).row_pairs
    first, second = (100 * values.mean(axis=1) for values in answers.values())
    assert pair.estimate.items is None
    assert pair.estimate.interval == pytest.approx(tuple(stats.ttest_rel(first, second).confidence_interval()))


def test_pairs_of_three_rows_share_their_variance_and_a_row_that_varies_far_more_is_named(tmp_path):
    means = {"a": (0.70, 0.71, 0.69), "b": (0.60, 0.62, 0.61), "c": (0.65, 0.64, 0.66), "d": (0.30, 0.90, 0.55)}
    answers = {name: np.array([[value] * 2 for value in values]) for name, values in means.items()}
    results = build_table(answers, tmp_path, with_items=False)
    scores = {name: {seed: 100 * value for seed, value in enumerate(values)} for name, values in means.items()}
    noise = estimate_seed_noise(scores)
    for pair in results.row_pairs:
        alone = estimate_difference(scores[pair.first], scores[pair.second])
        expected = alone if "d" in (pair.first, pair.second) else borrow_variance(alone, noise, pair.first, pair.second)
        assert pair.estimate.interval == pytest.approx(expected.interval)
        assert (pair.estimate.seed_df is None) == ("d" in (pair.first, pair.second))
    assert results.list_order_notes()[-1].startswith("BLiMP: d varies more over seeds")
    assert "its own" in results.build_report_tables()[1].notes[-2]
    student = stats.t.interval(0.95, 2, 70, stats.sem([70, 71, 69]))
    assert results.estimate_cell("a", "BLiMP").interval == pytest.approx(student)


def test_one_seed_with_items_is_decided_for_these_runs_alone(tmp_path):
    (pair,) = build_table(make_answers(num_seeds=1), tmp_path).row_pairs
    assert pair.statement.startswith("row0 above row1 by ") and pair.statement.endswith(", of one seed")


def test_a_folder_of_runs_has_the_items_of_measures(tmp_path, monkeypatch):
    measurement = Measurement({"blimp": 0.75, "blimp_agreement": 0.5}, {"blimp": np.array([1.0, 0.5])})
    monkeypatch.setattr(result_sources, "read_measurement", lambda folder, measure: measurement)
    monkeypatch.setattr(result_sources, "read_result", lambda folder: {"heldout": {"mlm_accuracy": 0.25}})
    source, column = RunsFolder(tmp_path), replace(COLUMN, measure=MinimalPairs(path="blimp.jsonl"))
    score = source.read_score(BASE, column)
    assert score.value == 0.75 and score.items.tolist() == [1.0, 0.5]
    assert source.read_score(BASE, replace(column, score="blimp_agreement")) == Score(0.5)
    assert source.read_score(BASE, replace(column, score="blimp_islands")) is None
    assert source.read_score(BASE, ScoreColumn("MLM", "mlm_accuracy")) == Score(0.25)


def test_items_count_where_all_shared_seeds_have_them():
    items = make_answers()
    first = TableCell(scores={0: 1.0, 1: 2.0, 2: 3.0}, items=dict(enumerate(items["row0"])))
    second = TableCell(scores={0: 1.0, 2: 3.0, 5: 4.0}, items={0: items["row1"][0], 2: items["row1"][2]})
    expected = estimate_item_variance(items["row0"][[0, 2]] - items["row1"][[0, 2]])
    assert find_item_variance(first, second) == expected  # of seeds 0 and 2
    assert find_item_variance(first) == estimate_item_variance(items["row0"]) and find_item_variance(second) is None
    assert find_item_variance(first, replace(second, items={0: items["row1"][0]})) is None
    assert find_item_variance(first, TableCell(scores={7: 1.0})) is None


def test_other_numbers_of_items_are_refused():
    first, second = (TableCell(scores={0: 1.0}, items={0: np.ones(count)}) for count in (4, 5))
    with pytest.raises(UserError, match="4 and 5 items"):
        find_item_variance(first, second)


def test_a_seed_is_the_last_one_in_the_name():
    assert parse_seed(replace(BASE, name="bert-paper-seed0@SST-2-rate5e-05-seed3", seed=9)) == 3
    assert parse_seed(replace(BASE, name="bert", seed=9)) == 9


def test_eight_rows_of_many_items_are_compared_at_once(tmp_path):
    results = build_table(make_answers(num_rows=8, num_seeds=5, num_items=5000), tmp_path)
    assert len(results.row_pairs) == 28 and all(pair.estimate.items for pair in results.row_pairs)
    assert sum(pair.is_decided_in_family for pair in results.row_pairs) == 28
    (note,) = results.list_order_notes()
    assert "28 decided for the paper" in note and "1.00 in each of 5 seeds" in note
