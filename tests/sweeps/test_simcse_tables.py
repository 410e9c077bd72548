"""The tables of SimCSE: their runs at both scales, the files that they read, and their scores."""

from dataclasses import replace

import pytest

from encoders.cli.experiment_files import find_experiment_file, import_experiment_file
from encoders.experiment import RunSpec
from encoders.families import bert
from encoders.finetuning import grids
from encoders.objectives.masked_lm import MaskedLM
from encoders.reporting.result_sources import RunsFolder
from encoders.reporting.table_results import collect_table_results
from encoders.sweeps.paper_table import Study
from tests.reporting.test_table_results import write_runs

TABLES = ("simcse_batch", "simcse_dropout", "simcse_pooling", "simcse_temperature")


def load_module(name: str):
    return import_experiment_file(find_experiment_file(name))


def make_table(name: str, **study):
    return load_module(name).table(Study(**study))


@pytest.fixture
def files(tmp_path):
    """A folder with three sentences, a row of NLI and a scored pair."""
    (tmp_path / "STS-B").mkdir()
    (tmp_path / "STS-B" / "dev.tsv").write_text("sentence1\tsentence2\tscore\na b\tc d\t5\n", encoding="utf-8")
    (tmp_path / "sentences.txt").write_text("a b\nc d\ne f\n", encoding="utf-8")
    (tmp_path / "nli.csv").write_text("sent0,sent1,hard_neg\na b,c d,e f\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_at_paper_scale_a_table_has_the_run_of_the_experiment_simcse(name, files, monkeypatch):
    known = RunSpec(name="known", model=bert.BASE, objective=MaskedLM())
    simcse = load_module("simcse")
    for module in (simcse, grids):
        monkeypatch.setattr(module, "load_run_spec", lambda run: known)
    argument = "nli" if name == "simcse_temperature" else "sentences"
    path = str(next(files.glob(f"{argument}.*")))
    (expected,) = simcse.experiments("runs/bert-base-uncased", f"{files}/STS-B/dev.tsv", **{argument: path})
    table = make_table(name, scale="paper", seeds=1, glue=str(files), **{argument: path})
    prefix = "simcse-nli" if argument == "nli" else "simcse"
    run = table.experiments_by_name[f"{prefix}-paper-seed0"]
    task = replace(run.data.task, files=expected.data.task.files)
    assert replace(run, name=expected.name, data=replace(run.data, task=task)) == expected
    root, named = files.resolve(), dict(run.data.task.files)
    assert (root / named["train"], root / named["dev"]) == (root / path, root / "STS-B" / "dev.tsv")


@pytest.mark.parametrize("name", TABLES)
def test_small_runs_start_from_the_masked_language_model_of_their_seed(name):
    table = make_table(name)
    for row in (row for row in table.rows if row.pretrain_runs):
        assert [run.init_from for run in row.pretrain_runs] == [f"runs/rate-mlm-15-small-seed{s}" for s in range(3)]
        assert [len(table.trace_init_chain(run)) for run in row.pretrain_runs] == [2, 2, 2]
    (default,) = [row for row in table.rows if row.pretrain_runs and row.pretrain_runs[0].name == "simcse-small-seed0"]
    run = default.pretrain_runs[0]
    assert (run.optimizer.learning_rate, run.phases[0].batch_size, run.num_steps) == (3e-4, 64, 625)  # 4 x 10,000 / 64
    assert (run.model.hidden_dropout, run.model.attention_dropout, run.data.max_train_examples) == (0.1, 0.1, 10_000)


def test_rates_keep_their_ratios_at_small_scale():
    rates = {
        scale: [row.pretrain_runs[0].optimizer.learning_rate for row in make_table("simcse_batch", **study).rows]
        for scale, study in {"paper": dict(scale="paper", seeds=1), "small": dict(seeds=1)}.items()
    }
    assert rates["paper"] == [1e-5, 3e-5, 5e-5] * 4 and rates["small"] == [1e-4, 3e-4, 5e-4] * 4


@pytest.mark.parametrize("missing, argument", [("sentences.txt", "sentences"), ("STS-B/dev.tsv", "glue")])
def test_a_missing_file_is_that_of_an_argument(missing, argument, files):
    (files / missing).unlink()
    study = Study(sentences=f"{files}/sentences.txt", glue=str(files))
    (data,) = {run.data for run in load_module("simcse_dropout").table(study).rows[0].pretrain_runs[:1]}
    assert study.find_argument(data) == argument


def test_rows_have_the_best_score_and_the_costs_and_texts_of_both_stages(tmp_path):
    table = make_table("simcse_pooling", seeds=1, corpus=("text.txt",))
    write_runs(tmp_path, table.rows[0].source_runs, {"mlm_accuracy": (0.5,)})
    write_runs(tmp_path, table.rows[0].pretrain_runs, {"spearman": (0.75,)}, "best")
    results = collect_table_results(table, RunsFolder(tmp_path))
    name = table.rows[0].name
    assert results.cells[name, "STS-B"].our_mean == 75 and results.cells[name, "STS-B"].published == (81.7,)
    source, run = table.rows[0].source_runs[0], table.rows[0].pretrain_runs[0]
    num_tokens = sum(e.num_steps * e.phases[0].batch_size * e.phases[0].seq_length // 2 for e in (source, run))
    assert results.costs[name]["tokens"] == num_tokens and results.corpora == ("text.txt",)
    assert results.training[name] == "L2 H128; 64 x 128, 625 steps, 0.0003"
    assert "supervised" not in [column.name for column in results.measured_columns]
