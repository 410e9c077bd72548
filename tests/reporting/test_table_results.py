"""Papers' tables beside ours: means and intervals, pairs of rows, cost, and the four output formats."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import sem, t, ttest_rel

from encoders.costs.ledger import count_encoder_params, make_blank_vocab, run_flops
from encoders.finetuning.grids import Recipe, build_finetuning
from encoders.inference import cross_evaluation
from encoders.reporting.result_sources import RunsFolder
from encoders.reporting.table_cells import build_cell
from encoders.reporting.table_results import TableResults, collect_table_results, format_results
from encoders.run.folder import build_run_record
from encoders.sweeps.paper_table import PaperRow, PaperTable, load_saved_tables, save_table
from encoders.sweeps.score_columns import NUM_PARAMS, ScoreColumn
from encoders.tasks.glue import GLUE_TASKS
from tests.test_experiment import BASE

MLM, SST2 = ScoreColumn("MLM", "mlm_accuracy"), ScoreColumn("SST-2", "accuracy", "SST-2")
NSP = ScoreColumn("NSP of pairs", "nsp_accuracy", overrides=("objective.sentence_task=NextSentencePrediction",))
AVERAGE = ScoreColumn("Avg", "mean", mean_of=(("MLM",), ("SST-2", "NSP of pairs")))
MLM_BY_SST2 = ScoreColumn("MLM again", "mlm_accuracy", order_column="SST-2")
COLUMNS = (MLM, SST2, AVERAGE, NSP, NUM_PARAMS, MLM_BY_SST2)
OTHER_TEXT = {"corpus": ("other.txt",)}


def build_pretraining(name: str, seed: int):
    return replace(BASE, name=f"{name}-small-seed{seed}", seed=seed, early_stopping=ord(name[0]))


def build_sst2_run(run, rate: float, task: str = "SST-2"):
    return build_finetuning(
        f"{run.name}@{task}-rate{rate:g}-seed{run.seed}",
        GLUE_TASKS[task],
        "r",
        Recipe(rate, 8),
        16,
        init_from=f"runs/{run.name}",
        config=run.model,
        tokenizer_path="v",
        seed=run.seed,
    )


def build_row(name: str, published: tuple, num_seeds: int = 3) -> PaperRow:
    runs = tuple(build_pretraining(name, seed) for seed in range(num_seeds))
    return PaperRow(name, published, runs, tuple(build_sst2_run(run, rate) for run in runs for rate in (1e-3, 2e-3)))


@pytest.fixture
def table(tmp_path) -> tuple[PaperTable, Path]:
    """Three rows, of which two are trained: a beats b on SST-2, and on MLM their seeds overlap."""
    rows = (
        build_row("a", ((50.0,), (90.0,), (70.0,), (), (2.0,), ())),
        build_row("b", ((40.0,), (80.0, 81.0), (60.0,), (), (3.0,), ())),
        PaperRow("c & d_e", ((30.0,), (85.0,), (55.0,), (), (), ())),
    )
    write_runs(tmp_path, rows[0].pretrain_runs, {"mlm_accuracy": (0.30, 0.20, 0.40)})
    write_runs(tmp_path, rows[1].pretrain_runs, {"mlm_accuracy": (0.25, 0.35, 0.33)})
    for row, scores in ((rows[0], (0.7, 0.8, 0.9)), (rows[1], (0.4, 0.5, 0.6))):
        good = [run for run in row.finetune_runs if "rate0.001" in run.name]
        bad = [run for run in row.finetune_runs if run not in good]
        write_runs(tmp_path, good, {"accuracy": scores}, "best")
        write_runs(tmp_path, bad, {"accuracy": (0.1, 0.1, 0.1)}, "best")
    return PaperTable("t", "A table, small scale", COLUMNS, rows, "tokens", ("a reason",)), tmp_path


RESULT = {"name": "", "steps": 1, "parameters": 7, "tokens_per_second": 1.0, "heldout": {}, "best": {}}


def write_runs(runs_dir: Path, experiments, scores: dict[str, tuple[float, ...]], key: str = "heldout") -> None:
    """Write folders of finished runs, each of half of its tokens in 36 seconds on two devices."""
    for index, experiment in enumerate(experiments):
        folder = runs_dir / experiment.name
        folder.mkdir()
        result = RESULT | {key: {name: values[index] for name, values in scores.items()}}
        (folder / "result.json").write_text(json.dumps(result))
        record = build_run_record(experiment, "0" * 16, make_blank_vocab(experiment.model.vocab_size))
        (folder / "experiment.json").write_text(json.dumps(record | {"devices": ["cuda:0", "cuda:1"]}))
        num_tokens = count_tokens(experiment) // 2
        line = {"step": 1, "split": "train", "tokens": num_tokens, "time": {"seconds": 36.0}}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def count_tokens(experiment) -> int:
    return experiment.num_steps * experiment.phases[0].batch_size * experiment.phases[0].seq_length


def write_overridden_scores(row: PaperRow, runs_dir: Path) -> None:
    """Write scores of 0.5, 0.7 and 0.6 under the settings of `NSP`."""
    for run, score in zip(row.pretrain_runs, (0.5, 0.7, 0.6), strict=True):
        path = cross_evaluation.score_path(runs_dir / run.name, NSP.overrides)
        path.parent.mkdir()
        path.write_text(json.dumps({"scores": {"nsp_accuracy": score}}))


def collect(table: PaperTable, runs_dir: Path) -> TableResults:
    return collect_table_results(table, RunsFolder(runs_dir))


# Cells ----------------------------------------------------------------------------------------------------------------


def test_a_cell_has_a_score_for_each_seed_in_the_papers_unit_and_their_mean(table):
    paper_table, runs_dir = table
    cell = build_cell(paper_table, paper_table.rows[0], MLM, RunsFolder(runs_dir))
    assert cell.scores == pytest.approx({0: 30, 1: 20, 2: 40}) and cell.our_mean == pytest.approx(30)
    assert cell.published == (50.0,) and cell.paper_difference == pytest.approx(-20)


def test_of_several_recipes_the_one_with_the_best_mean_counts(table):
    paper_table, runs_dir = table
    assert build_cell(paper_table, paper_table.rows[0], SST2, RunsFolder(runs_dir)).ours == pytest.approx((70, 80, 90))


def test_of_two_published_numbers_both_are_shown_and_the_nearer_one_is_compared(table):
    paper_table, runs_dir = table
    cell = build_cell(paper_table, paper_table.rows[1], SST2, RunsFolder(runs_dir))
    assert cell.published == (80.0, 81.0) and cell.paper_difference == pytest.approx(50 - 80)
    assert "80 / 81" in format_results(collect(*table))


def test_a_mean_of_columns_has_the_seeds_that_all_of_them_have(table):
    paper_table, runs_dir = table
    row = paper_table.rows[0]
    assert build_cell(paper_table, row, AVERAGE, RunsFolder(runs_dir)).ours == ()
    assert build_cell(paper_table, row, NSP, RunsFolder(runs_dir)).ours == ()
    write_overridden_scores(row, runs_dir)
    assert build_cell(paper_table, row, NSP, RunsFolder(runs_dir)).ours == pytest.approx((50, 60, 70))
    average = build_cell(paper_table, row, AVERAGE, RunsFolder(runs_dir)).scores
    assert average == pytest.approx(
        {0: (30 + (70 + 50) / 2) / 2, 1: (20 + (80 + 70) / 2) / 2, 2: (40 + (90 + 60) / 2) / 2}
    )
    (runs_dir / row.pretrain_runs[1].name / "result.json").unlink()
    assert build_cell(paper_table, row, AVERAGE, RunsFolder(runs_dir)).scores.keys() == {0, 2}


def test_an_untrained_row_has_its_number_of_parameters_and_no_scores(table):
    paper_table, runs_dir = table
    untrained = build_row("e", ((),) * len(COLUMNS))
    paper_table = replace(paper_table, rows=(untrained,))
    assert build_cell(paper_table, untrained, MLM, RunsFolder(runs_dir)).ours == ()
    count = count_encoder_params(BASE.model, BASE.objective) / 1e6
    assert build_cell(paper_table, untrained, NUM_PARAMS, RunsFolder(runs_dir)).ours == pytest.approx((count,) * 3)


# Order and cost -------------------------------------------------------------------------------------------------------


def select_pairs(results: TableResults, column: ScoreColumn):
    return [pair for pair in results.row_pairs if pair.column == column.name]


def test_a_pair_of_rows_has_the_mean_difference_of_equal_seeds_with_the_interval_of_a_paired_test(table):
    results = collect(*table)
    (pair,) = select_pairs(results, MLM)
    test = ttest_rel([30, 20, 40], [25, 35, 33])
    assert (pair.first, pair.second, pair.published) == ("a", "b", 10.0)
    assert pair.estimate.mean == pytest.approx(-1) and pair.estimate.p_value == pytest.approx(test.pvalue, rel=1e-6)
    assert pair.estimate.interval == pytest.approx(tuple(test.confidence_interval()))
    assert pair.margin == 10.0  # of 50, 40 and 30
    assert pair.agreement == "cannot be told" and "more seeds would" in pair.statement


def test_a_pair_is_decided_for_or_against_the_paper(table):
    paper_table, runs_dir = table
    (pair,) = select_pairs(collect(paper_table, runs_dir), SST2)
    assert (pair.agreement, pair.statement) == ("for", "a above b by 30.00 ± 0.00")
    reversed_row = replace(paper_table.rows[0], published=((50.0,), (70.0,), (), (), (), ()))
    opposite = replace(paper_table, rows=(reversed_row, *paper_table.rows[1:]))
    (pair,) = select_pairs(collect(opposite, runs_dir), SST2)
    assert (pair.agreement, pair.first, pair.verdict, pair.published) == ("against", "b", "below", 10.0)
    assert pair.statement == "a above b by 30.00 ± 0.00"
    assert select_pairs(collect(paper_table, runs_dir), NUM_PARAMS) == []


def test_the_paper_has_the_order_of_another_column_where_it_lacks_a_score(table):
    results = collect(*table)
    (pair,) = select_pairs(results, MLM_BY_SST2)
    assert pair.published == 10.0 and pair.margin == 1.0
    (note,) = [note for note in results.list_order_notes() if note.startswith(MLM_BY_SST2.name)]
    assert "the paper by SST-2" in note and "1 cannot be told" in note


def test_the_order_of_a_score_that_is_better_when_lower_is_reversed(table):
    paper_table, runs_dir = table
    loss_column = replace(MLM_BY_SST2, lower_is_better=True)
    for row, losses in zip(paper_table.rows, ((4.0, 4.1, 4.2), (5.0, 5.1, 5.3)), strict=False):
        for run, loss in zip(row.pretrain_runs, losses, strict=True):
            (runs_dir / run.name / "result.json").write_text(json.dumps(RESULT | {"heldout": {"mlm_accuracy": loss}}))
    for column, agreement in ((loss_column, "for"), (MLM_BY_SST2, "against")):
        results = collect(replace(paper_table, columns=(*COLUMNS[:-1], column)), runs_dir)
        (pair,) = select_pairs(results, column)
        assert (pair.verdict, pair.agreement) == ("below", agreement) and pair.statement.startswith("b above a by ")


def test_rows_that_share_one_seed_or_none_are_not_compared(table):
    paper_table, runs_dir = table
    for run in paper_table.rows[1].finetune_runs:
        if run.seed:
            (runs_dir / run.name / "result.json").unlink()
    (pair,) = select_pairs(collect(paper_table, runs_dir), SST2)
    assert (pair.estimate.num_seeds, pair.statement, pair.agreement) == (1, "one seed", "cannot be told")
    for run in paper_table.rows[0].finetune_runs:
        if not run.seed:
            (runs_dir / run.name / "result.json").unlink()
    (pair,) = select_pairs(collect(paper_table, runs_dir), SST2)
    assert (pair.estimate, pair.statement) == (None, "no seed in common")


def test_pairs_that_are_equal_in_the_paper_are_counted_as_such(table):
    paper_table, runs_dir = table
    equal_row = replace(paper_table.rows[0], published=((40.0,), (80.0,), (), (), (), ()))
    results = collect(replace(paper_table, rows=(equal_row, *paper_table.rows[1:])), runs_dir)
    assert [pair.agreement for column in (MLM, SST2) for pair in select_pairs(results, column)] == [
        "equal in the paper"
    ] * 2


def test_the_correction_covers_all_pairs_of_the_table(table):
    results = collect(*table)
    p_values = {pair.column: pair.estimate.p_value for pair in results.row_pairs}
    corrected = {pair.column: pair.corrected_p for pair in results.row_pairs}
    assert p_values.keys() == {"MLM", "SST-2", "MLM again"} and p_values["SST-2"] == corrected["SST-2"] == 0
    assert corrected["MLM"] == corrected["MLM again"] == pytest.approx(min(1, 2 * p_values["MLM"]))
    assert "1 of 3 pairs, and 1 (*) after" in results.build_report_tables()[1].notes[-1]


def test_kendalls_tau_compares_the_order_of_three_rows_in_each_seed(table):
    paper_table, runs_dir = table
    third = build_row("c", ((30.0,), (), (), (), (), ()))
    write_runs(runs_dir, third.pretrain_runs, {"mlm_accuracy": (0.10, 0.50, 0.35)})
    results = collect(replace(paper_table, rows=(*paper_table.rows[:2], third)), runs_dir)
    # Of the pairs a > b > c of the paper seed 0 has all, seed 1 none, seed 2 two: 40, 33, 35.
    interval = t.interval(0.95, 2, loc=(1 - 1 + 1 / 3) / 3, scale=sem([1, -1, 1 / 3]))
    assert interval[0] < -1 and interval[1] > 1
    (note,) = [note for note in results.list_order_notes() if note.startswith("MLM:")]
    assert "0.11 (-1.00 to 1.00), 3 seeds" in note


def test_of_many_pairs_those_that_are_decided_are_listed_and_the_others_counted(table):
    paper_table, runs_dir = table
    rows = [build_row(name, ((float(number),), (), (), (), (), ())) for number, name in enumerate("defgh")]
    for number, row in enumerate(rows):
        scores = (0.300, 0.310 + 0.01 * number, 0.305 - 0.01 * number) if number else (0.600, 0.611, 0.605)
        write_runs(runs_dir, row.pretrain_runs, {"mlm_accuracy": scores})
    paper_table = replace(paper_table, rows=tuple(rows), columns=COLUMNS)
    results = collect(paper_table, runs_dir)
    pairs = results.build_report_tables()[1]
    lines = [line for line in pairs.rows if line[0] == "MLM"]
    assert [line[1] for line in lines] == ["e - d", "f - d", "g - d", "h - d", "6 other pairs"]
    assert all("d above" in line[2] and "against the paper" in line[2] for line in lines[:4])
    assert lines[4][2].startswith("6 ") and len(select_pairs(results, MLM)) == 10


def test_the_cost_of_a_row_is_the_sum_over_all_its_runs(table):
    paper_table, runs_dir = table
    runs = (*paper_table.rows[0].pretrain_runs, *paper_table.rows[0].finetune_runs)
    cost = collect(paper_table, runs_dir).costs["a"]
    assert cost["tokens"] == pytest.approx(sum(map(count_tokens, runs)) / 2, abs=len(runs))
    assert cost["flops"] == pytest.approx(sum(map(run_flops, runs)) / 2, rel=1e-3)
    assert cost["device_hours"] == pytest.approx(len(runs) * 2 * 36 / 3600)


# Output formats -------------------------------------------------------------------------------------------------------


def test_text_separates_measured_columns_from_those_that_are_only_published(table):
    paper_table, runs_dir = table
    columns = (MLM, ScoreColumn("RACE", "accuracy", "RACE"))
    rows = tuple(
        replace(row, published=(row.published[0], (float(index),))) for index, row in enumerate(paper_table.rows)
    )
    shown = format_results(collect(replace(paper_table, columns=columns, rows=rows), runs_dir), "text")
    measured, unmeasured = shown.split("A table, small scale: published, not measured here")
    half = t.ppf(0.975, 2) * 10 / 3**0.5
    assert f"30.0 ± {half:.1f}" in measured and "-20.0" in measured and "RACE" not in measured
    assert "a reason" in measured and "equal in tokens" in measured and "text.txt" in measured
    assert "L3 H8 E4 A2; " in measured and "RACE" in unmeasured


def test_csv_has_a_line_a_cell_and_a_pair_with_unrounded_numbers(table):
    lines = list(csv.DictReader(io.StringIO(format_results(collect(*table), "csv"))))
    keyed = {(line["row"], line["column"], line["minus row"]): line for line in lines}
    assert len(keyed) == len(lines)
    cells, pairs = ({key: line for key, line in keyed.items() if bool(key[2]) == is_pair} for is_pair in (False, True))
    cells = {key[:2]: line for key, line in cells.items()}
    assert len(cells) == 3 * (len(COLUMNS) + 4) and len(pairs) == 3
    cell = cells["b", "MLM"]
    assert float(cell["mean"]) == pytest.approx(31) and cell["n"] == "3" and cell["seeds"] == "0 1 2"
    assert list(map(float, cell["scores"].split())) == pytest.approx([25, 35, 33])
    interval = t.interval(0.95, 2, loc=31, scale=sem([25, 35, 33]))
    assert (float(cell["low"]), float(cell["high"])) == pytest.approx(interval)
    assert cells["b", "SST-2"]["paper, elsewhere"] == "81.0" and cells["c & d_e", "MLM"]["mean"] == ""
    assert float(cells["a", "device_hours"]["mean"]) == pytest.approx(9 * 72 / 3600)
    assert cells["a", "devices"]["mean"] == "cuda"
    pair = pairs["a", "SST-2", "b"]
    assert (float(pair["mean"]), float(pair["paper"]), pair["agreement"]) == (pytest.approx(30), 10.0, "for")
    assert pair["statement"] == "a above b by 30.00 ± 0.00" and float(pair["p, corrected"]) == 0


def test_markdown_and_latex_have_as_many_cells_in_every_line_of_a_table(table):
    results = collect(*table)
    for block in format_results(results, "markdown").split("\n### "):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 3
    latex = format_results(results, "latex")
    assert r"c \& d\_e" in latex and latex.count(r"\end{tabular}") == 3
    for block in latex.split(r"\begin{tabular}")[1:]:
        lines = block.split(r"\end{tabular}")[0].splitlines()
        rows = [line for line in lines if line.endswith(r"\\") and " & " in line]
        assert len(rows) == 1 + 3 and len({line.replace(r"\&", "").count("&") for line in rows}) == 1


# Saved tables and damaged runs ----------------------------------------------------------------------------------------


def test_a_saved_table_reads_back_equal_and_gives_the_same_report_tables(table):
    paper_table, runs_dir = table
    save_table(paper_table, runs_dir)
    assert load_saved_tables(runs_dir) == [paper_table]
    first = collect(paper_table, runs_dir).build_report_tables()[0]
    assert first.title == paper_table.title and len(first.rows) == 3 and first.rows[0][0] == "a"


def test_a_row_with_too_few_published_numbers_is_refused():
    with pytest.raises(ValueError, match=r"t, a: 1\b.*\b6 columns"):
        PaperTable("t", "A table", COLUMNS, (PaperRow("a", ((1.0,),)),), "tokens")


def test_a_mean_of_a_missing_column_is_refused():
    with pytest.raises(ValueError, match="Avg.*SST-2"):
        PaperTable("t", "A table", (MLM, AVERAGE), (), "tokens")


def test_a_run_with_other_settings_is_left_out_with_the_runs_initialised_from_it(table):
    paper_table, runs_dir = table
    first = paper_table.rows[0].pretrain_runs[0]
    other = replace(first, seed=9, data=replace(BASE.data, **OTHER_TEXT))
    record = build_run_record(other, "0" * 16, make_blank_vocab(BASE.model.vocab_size))
    (runs_dir / first.name / "experiment.json").write_text(json.dumps(record))
    results = collect(paper_table, runs_dir)
    assert results.cells["a", "MLM"].ours == pytest.approx((20, 40))
    assert results.cells["a", "SST-2"].ours == pytest.approx((80, 90))
    assert results.costs["a"]["device_hours"] == pytest.approx(6 * 36 * 2 / 3600)  # of nine runs
    assert results.corpora == ("text.txt",)
    (reason,) = results.excluded
    assert first.name in reason and "seed" in reason and "9" in reason and reason in results.build_notes()[-1]
    for run in paper_table.rows[0].finetune_runs:
        shutil.rmtree(runs_dir / run.name)
    (reason_of_one,) = collect(paper_table, runs_dir).excluded
    assert reason.startswith(reason_of_one) and reason != reason_of_one


@pytest.mark.parametrize("file", ["result.json", "experiment.json"])
def test_a_damaged_run_is_left_out_and_cells_with_fewer_seeds_show_it(table, file):
    paper_table, runs_dir = table
    damaged = next(run for run in paper_table.rows[0].finetune_runs if run.seed == 1 and "rate0.001" in run.name)
    (runs_dir / damaged.name / file).write_text('{"heldo')
    results = collect(paper_table, runs_dir)
    (reason,) = results.excluded
    assert damaged.name in reason
    comparison = results.build_comparison_table()
    assert dict(zip(comparison.header, comparison.rows[0], strict=True))["seeds"] == "3"
    half = t.ppf(0.975, 1) * 10  # of 70 and 90
    assert f"80.0 ± {half:.1f} [2 of 3]" in comparison.rows[0]


def test_one_pretrained_run_that_is_fine_tuned_with_three_seeds_is_complete(table):
    paper_table, runs_dir = table
    one_run = replace(paper_table.rows[0], pretrain_runs=paper_table.rows[0].pretrain_runs[:1])
    paper_table = replace(paper_table, rows=(one_run, *paper_table.rows[1:]))
    cells = collect(paper_table, runs_dir).build_comparison_table().rows[0]
    assert cells[2] == "3" and not any("[" in cell for cell in cells)


def test_the_corpus_is_the_one_that_the_runs_were_trained_on(table):
    paper_table, runs_dir = table

    def replace_corpus(experiment):
        if experiment.init_from:
            return experiment
        return replace(experiment, data=replace(experiment.data, **OTHER_TEXT))

    results = collect(paper_table.map_experiments(replace_corpus), runs_dir)
    assert results.corpora == ("text.txt",) and not results.excluded
