"""Papers' tables beside ours: medians, spread, order, cost, and the four ways of writing them."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from encoders.costs.ledger import count_encoder_params, make_blank_vocab, run_flops
from encoders.finetuning.grids import Recipe, build_finetuning
from encoders.inference import cross_evaluation
from encoders.reporting.tables import FORMATS, build_cell, build_report_tables, collect_table_results
from encoders.run.run import build_run_record
from encoders.sweeps.paper_table import NUM_PARAMS, PaperRow, PaperTable, ScoreColumn, load_saved_tables, save_table
from encoders.tasks.glue import GLUE_TASKS
from tests.test_experiment import BASE

MLM, SST2 = ScoreColumn("MLM", "mlm_accuracy"), ScoreColumn("SST-2", "accuracy", "SST-2")
NSP = ScoreColumn("NSP, crossed", "nsp_accuracy", overrides=("objective.sentence_task=NextSentencePrediction",))
AVERAGE = ScoreColumn("Avg", "mean", mean_of=(("MLM",), ("SST-2", "NSP, crossed")))
PROXY = ScoreColumn("MLM again", "mlm_accuracy", order_column="SST-2")
COLUMNS = (MLM, SST2, AVERAGE, NSP, NUM_PARAMS, PROXY)
OTHER_TEXT = {"corpus": ("other.txt",)}


def member(name: str, seed: int):
    return replace(BASE, name=f"{name}-small-seed{seed}", seed=seed)


def fine(run, rate: float, task: str = "SST-2"):
    recipe, rows = Recipe(rate, 8), GLUE_TASKS[task]
    return build_finetuning(
        f"{run.name}@{task}-rate{rate:g}-seed{run.seed}", rows, "r", recipe, 16, init_from=f"runs/{run.name}",
        config=run.model, tokenizer_path="v", seed=run.seed,
    )  # fmt: skip


def row(name: str, published: tuple, seeds: int = 3, rates=(1e-3, 2e-3)) -> PaperRow:
    runs = tuple(member(name, seed) for seed in range(seeds))
    return PaperRow(name, published, runs, tuple(fine(run, rate) for run in runs for rate in rates))


@pytest.fixture
def table(tmp_path) -> tuple[PaperTable, Path]:
    """Three rows, of which two are trained: a beats b on SST-2, and on MLM their seeds overlap."""
    rows = (
        row("a", ((50.0,), (90.0,), (70.0,), (), (2.0,), ())),
        row("b", ((40.0,), (80.0, 81.0), (60.0,), (), (3.0,), ())),
        PaperRow("c & d_e", ((30.0,), (85.0,), (55.0,), (), (), ())),
    )
    made = PaperTable("t", "A table, small scale", COLUMNS, rows, "tokens", ("a reason",))
    write(tmp_path, rows[0].pretrain_runs, {"mlm_accuracy": (0.30, 0.20, 0.40)})
    write(tmp_path, rows[1].pretrain_runs, {"mlm_accuracy": (0.25, 0.35, 0.33)})
    for one, scores in ((rows[0], (0.7, 0.8, 0.9)), (rows[1], (0.4, 0.5, 0.6))):
        slow = [m for m in one.finetune_runs if "rate0.001" in m.name]
        write(tmp_path, slow, {"accuracy": scores}, "best")
        write(tmp_path, [m for m in one.finetune_runs if m not in slow], {"accuracy": (0.1, 0.1, 0.1)}, "best")
    return made, tmp_path


def write(runs: Path, members, scores: dict[str, tuple[float, ...]], part: str = "heldout") -> None:
    """Folders of finished runs, each of half of its tokens in 36 seconds."""
    for number, each in enumerate(members):
        folder = runs / each.name
        folder.mkdir()
        found = {name: values[number] for name, values in scores.items()}
        (folder / "result.json").write_text(json.dumps({"heldout": {}, "best": {}} | {part: found}))
        told = build_run_record(each, "0" * 16, make_blank_vocab(each.model.vocab_size)) | {
            "devices": ["cuda:0", "cuda:1"]
        }
        (folder / "experiment.json").write_text(json.dumps(told))
        seen = each.num_steps * each.phases[0].batch_size * each.phases[0].seq_length // 2
        time = {"seconds": 36.0}
        lines = [{"step": 1, "split": "train", "tokens": seen, "time": time}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_cell_is_the_median_over_seeds_in_the_papers_unit_with_lowest_and_highest(table):
    made, runs = table
    found = build_cell(made, made.rows[0], MLM, runs)
    assert found.ours == pytest.approx((20, 30, 40)) and found.median == pytest.approx(30)
    assert found.published == (50.0,) and found.difference == pytest.approx(-20)


def test_of_several_recipes_the_one_with_the_best_median_counts(table):
    made, runs = table
    assert build_cell(made, made.rows[0], SST2, runs).ours == pytest.approx((70, 80, 90))


def test_where_the_paper_has_two_numbers_both_stand_and_the_nearer_one_is_compared(table):
    made, runs = table
    found = build_cell(made, made.rows[1], SST2, runs)
    assert found.published == (80.0, 81.0) and found.difference == pytest.approx(50 - 80)
    assert "80 / 81" in FORMATS["text"](collect_table_results(made, runs))


def test_an_average_of_columns_and_of_means_of_columns_is_there_when_all_of_them_are(table):
    made, runs = table
    assert build_cell(made, made.rows[0], AVERAGE, runs).ours == ()
    crossed_scores(made.rows[0], runs)
    assert build_cell(made, made.rows[0], AVERAGE, runs).ours == pytest.approx(((30 + (80 + 60) / 2) / 2,))


def crossed_scores(row: PaperRow, runs: Path) -> None:
    """Scores of 0.5, 0.7 and 0.6 under the settings of `NSP`."""
    for each, score in zip(row.pretrain_runs, (0.5, 0.7, 0.6), strict=True):
        path = cross_evaluation.score_path(runs / each.name, NSP.overrides)
        path.parent.mkdir()
        path.write_text(json.dumps({"scores": {"nsp_accuracy": score}}))


def test_what_is_not_trained_is_a_dash_and_its_parameters_are_known_all_the_same(table):
    made, runs = table
    untrained = row("e", ((),) * len(COLUMNS))
    assert build_cell(replace(made, rows=(untrained,)), untrained, MLM, runs).ours == ()
    count = count_encoder_params(BASE.model, BASE.objective) / 1e6
    assert build_cell(replace(made, rows=(untrained,)), untrained, NUM_PARAMS, runs).ours == pytest.approx((count,) * 3)


def test_scores_under_other_settings_are_those_that_were_kept(table):
    made, runs = table
    assert build_cell(made, made.rows[0], NSP, runs).ours == ()
    crossed_scores(made.rows[0], runs)
    assert build_cell(made, made.rows[0], NSP, runs).ours == pytest.approx((50, 60, 70))


def test_the_order_of_rows_counts_only_where_the_seeds_of_two_lie_apart(table):
    found = collect_table_results(*table)
    assert found.describe_row_order(MLM) == "MLM, pairs of rows: 1 within the spread of the seeds."
    assert (
        found.describe_row_order(SST2)
        == "SST-2, pairs of rows: 1 in its order, the seeds of one all above those of the other."
    )
    assert (
        found.describe_row_order(PROXY)
        == "MLM again (the paper by SST-2), pairs of rows: 1 within the spread of the seeds."
    )
    assert found.describe_row_order(NUM_PARAMS) is None and found.describe_row_order(NSP) is None


def test_where_lower_is_better_the_order_of_a_score_that_rises_is_turned(table):
    made, runs = table
    falls = replace(PROXY, order_column="SST-2", lower_is_better=True)
    first, second = made.rows[0].pretrain_runs, made.rows[1].pretrain_runs
    for runs_of, values in ((first, (4.0, 4.1, 4.2)), (second, (5.0, 5.1, 5.2))):
        for run, value in zip(runs_of, values, strict=True):
            (runs / run.name / "result.json").write_text(json.dumps({"heldout": {"mlm_accuracy": value}}))
    told = lambda column: collect_table_results(
        replace(made, columns=(*COLUMNS[:-1], column)), runs
    ).describe_row_order(column)
    assert "1 in its order" in told(falls) and "1 against it" in told(PROXY)


def test_the_order_says_what_stands_against_the_paper_and_of_what_nothing_can_be_said(table):
    made, runs = table
    turned = replace(made, rows=(replace(made.rows[0], published=((50.0,), (70.0,), (), (), (), ())), *made.rows[1:]))
    assert (
        collect_table_results(turned, runs).describe_row_order(SST2)
        == "SST-2, pairs of rows: 1 against it in the same way."
    )
    for each in made.rows[1].finetune_runs:
        if each.seed:
            (runs / each.name / "result.json").unlink()
    assert "1 with one value in a row" in collect_table_results(made, runs).describe_row_order(SST2)


def test_the_cost_of_a_row_is_that_of_all_its_runs(table):
    made, runs = table
    members = (*made.rows[0].pretrain_runs, *made.rows[0].finetune_runs)
    spent = collect_table_results(made, runs).costs["a"]
    full = sum(m.num_steps * m.phases[0].batch_size * m.phases[0].seq_length for m in members)
    assert spent.tokens == pytest.approx(full / 2, abs=len(members))
    assert spent.flops == pytest.approx(sum(map(run_flops, members)) / 2, rel=1e-3)
    assert spent.device_hours == pytest.approx(len(members) * 2 * 36 / 3600)


def test_text_has_what_is_measured_and_what_is_only_published(table):
    made, runs = table
    less = replace(made, columns=COLUMNS[:1] + (ScoreColumn("RACE", "accuracy", "RACE"),), rows=tuple(
        replace(each, published=(each.published[0], (float(n),))) for n, each in enumerate(made.rows)
    ))  # fmt: skip
    shown = FORMATS["text"](collect_table_results(less, runs))
    measured, rest = shown.split("A table, small scale: published, not measured here")
    assert "30.0 (20.0 to 40.0)" in measured and "-20.0" in measured and "RACE" not in measured
    assert "Differs because a reason." in measured and "Members are equal in tokens." in measured
    assert "L3 H8 E4 A2; " in measured and "RACE" in rest
    assert measured.endswith("Text: text.txt. The papers' is Wikipedia with books, or more.\n\n")


def test_csv_has_a_line_a_cell_with_unrounded_numbers(table):
    made, runs = table
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](collect_table_results(made, runs)))))
    found = {(line["row"], line["column"]): line for line in lines}
    assert len(found) == len(lines) == 3 * (len(COLUMNS) + 4)
    assert float(found["b", "MLM"]["median"]) == pytest.approx(33) and found["b", "MLM"]["n"] == "3"
    assert found["b", "SST-2"]["paper, elsewhere"] == "81.0" and found["c & d_e", "MLM"]["median"] == ""
    assert float(found["a", "device_hours"]["median"]) == pytest.approx(9 * 72 / 3600)
    assert found["a", "devices"]["median"] == "cuda"


def test_markdown_and_latex_have_as_many_cells_in_every_line_of_a_table(table):
    found = collect_table_results(*table)
    for part in FORMATS["markdown"](found).split(": published, not measured here"):
        lines = [line for line in part.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 3
    shown = FORMATS["latex"](found)
    assert r"c \& d\_e" in shown and shown.count(r"\end{tabular}") == 2
    for part in shown.split(r"\begin{tabular}")[1:]:
        lines = [
            line for line in part.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\") and " & " in line
        ]
        assert len(lines) == 1 + 3 and len({line.replace(r"\&", "").count("&") for line in lines}) == 1


def test_a_table_kept_beside_its_runs_reads_back_equal_and_makes_the_same_sheets(table):
    made, runs = table
    save_table(made, runs)
    assert load_saved_tables(runs) == [made]
    first = build_report_tables(collect_table_results(made, runs))[0]
    assert first.title == made.title and len(first.rows) == 3 and first.rows[0][0] == "a"


def test_a_row_has_a_published_number_or_none_for_every_column():
    with pytest.raises(ValueError, match="t, a: 1 for 6 columns"):
        PaperTable("t", "A table", COLUMNS, (PaperRow("a", ((1.0,),)),), "tokens")


def test_a_run_of_other_settings_is_left_out_with_what_begins_with_it(table):
    made, runs = table
    first = made.rows[0].pretrain_runs[0]
    facts = make_blank_vocab(BASE.model.vocab_size)
    other = build_run_record(replace(first, seed=9, data=replace(BASE.data, **OTHER_TEXT)), "0" * 16, facts)
    (runs / first.name / "experiment.json").write_text(json.dumps(other))
    found = collect_table_results(made, runs)
    assert found.cells["a", "MLM"].ours == pytest.approx((20, 40))
    assert found.cells["a", "SST-2"].ours == pytest.approx((80, 90))
    assert found.costs["a"].device_hours == pytest.approx(6 * 36 * 2 / 3600) and found.corpora == (
        "text.txt",
    )  # of nine runs
    why = f"{first.name} was trained otherwise (seed is 9 there and 0 here)"
    assert found.build_notes()[-1] == f"Left out: {why}, and what begins with it."
    for each in made.rows[0].finetune_runs:
        shutil.rmtree(runs / each.name)
    assert collect_table_results(made, runs).build_notes()[-1] == f"Left out: {why}."


@pytest.mark.parametrize("file", ["result.json", "experiment.json"])
def test_a_damaged_run_is_left_out_and_the_cells_that_have_fewer_seeds_say_so(table, file):
    made, runs = table
    damaged = next(m for m in made.rows[0].finetune_runs if m.seed == 1 and "rate0.001" in m.name)
    (runs / damaged.name / file).write_text('{"heldo')
    found = collect_table_results(made, runs)
    assert len(found.excluded) == 1 and found.excluded[0].startswith(f"{damaged.name} cannot be read (")
    shown = dict(zip(*found.build_comparison_rows()[:2], strict=True))
    assert shown["seeds"] == "3" and "80.0 (70.0 to 90.0) [2 of 3]" in found.build_comparison_rows()[1]


def test_a_cell_of_runs_is_whole_where_each_is_fine_tuned_with_several_seeds(table):
    made, runs = table
    one = replace(made.rows[0], pretrain_runs=made.rows[0].pretrain_runs[:1])
    shown = collect_table_results(replace(made, rows=(one, *made.rows[1:])), runs).build_comparison_rows()
    assert shown[1][2] == "3" and not any("[" in cell for cell in shown[1])


def test_the_text_is_what_the_runs_were_trained_on_whatever_is_said_now(table):
    made, runs = table
    moved = made.map_experiments(
        lambda each: replace(each, data=replace(each.data, **OTHER_TEXT)) if each.init_from is None else each
    )
    assert (
        collect_table_results(moved, runs).corpora == ("text.txt",) and not collect_table_results(moved, runs).excluded
    )


def test_a_mean_of_a_column_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="Avg is a mean of SST-2, which is no column"):
        PaperTable("t", "A table", (MLM, AVERAGE), (), "tokens")
