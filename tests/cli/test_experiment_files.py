"""A table saved beside its runs: refreshed by its file with the trained experiments, and unchanged by a refusal."""

import json
from dataclasses import replace

import pytest

import launch
from encoders.cli.experiment_files import (
    ExperimentChoice,
    find_experiment_file,
    import_experiment_file,
    load_experiment_file,
    refresh_table,
)
from encoders.costs.ledger import make_blank_vocab
from encoders.run.folder import build_run_record
from encoders.sweeps.paper_table import TABLE_SUFFIX, Study, load_saved_tables, save_table
from tests import task_examples, texts

ONLY = ["--only", "bert-small-seed0", "--only", "bert-small-seed0@*"]


def made(study: Study):
    return replace(import_experiment_file(find_experiment_file("bert_t8")).table(study), source_file="bert_t8")


def test_a_saved_table_has_the_rows_of_its_file_and_the_trained_experiments(tmp_path):
    table = made(Study(seeds=1, corpus=("text.txt",)))
    as_trained = lambda each: replace(each, seed=7) if each.name == "bert-small-seed0" else each
    old = replace(
        table.map_experiments(as_trained), caveats=("of old",), columns=(*table.columns[:-1], table.columns[0])
    )
    save_table(old, tmp_path)
    found = load_experiment_file(ExperimentChoice("bert_t8", runs=str(tmp_path), reuse_saved_table=True)).table
    assert found.columns == table.columns and found.caveats == table.caveats
    assert found.experiments_by_name["bert-small-seed0"].seed == 7
    assert (
        found.experiments_by_name.keys() == table.experiments_by_name.keys() and found.experiments != table.experiments
    )


def test_a_table_whose_file_is_gone_is_the_saved_one(tmp_path):
    table = replace(made(Study(seeds=1)), source_file="gone")
    save_table(table, tmp_path)
    assert refresh_table(load_saved_tables(tmp_path)[0]) == table


def test_experiments_that_are_not_chosen_stay_as_they_were_trained(tmp_path):
    save_table(made(Study(seeds=1)).map_experiments(lambda each: replace(each, seed=7)), tmp_path)
    choice = ExperimentChoice("bert_t8", ["seeds=1"], ["grad_accum_steps=2"], ONLY[1::2], str(tmp_path))
    found = load_experiment_file(choice)
    assert {(each.seed, each.grad_accum_steps) for each in found.experiments} == {(0, 2)} and len(
        found.experiments
    ) == 2
    assert {(each.seed, each.grad_accum_steps) for each in found.other_experiments} == {(7, 1)}
    assert {each.name for each in found.table.experiments} == {
        each.name for each in (*found.experiments, *found.other_experiments)
    }


@pytest.fixture
def given(tmp_path) -> list[str]:
    texts.write(tmp_path / "text.txt", documents=20)
    task_examples.classes(tmp_path / "GLUE" / "SST-2")
    return ["train", "bert_t8", "--runs", f"{tmp_path}/runs", *ONLY, "--with", f"glue={tmp_path}/GLUE", "seeds=1"]


def refused(capsys, *line: str) -> str:
    assert launch.main(list(line)) == 1
    return capsys.readouterr().err


def test_a_refused_command_leaves_the_saved_table_unchanged(given, tmp_path, capsys):
    runs, corpus = tmp_path / "runs", f"corpus={tmp_path}/text.txt"
    save_table(made(Study(seeds=1)), runs)
    before = (runs / f"bert_t8_small{TABLE_SUFFIX}").read_bytes()
    assert f"{tmp_path}/texts.txt" in refused(capsys, *given, f"corpus={tmp_path}/texts.txt")
    first = made(Study(seeds=1, corpus=("elsewhere.txt",), runs=str(runs))).rows[0].pretrain_runs[0]
    record = build_run_record(replace(first, seed=9), "0" * 16, make_blank_vocab(first.model.vocab_size))
    (runs / first.name).mkdir()
    (runs / first.name / "experiment.json").write_text(json.dumps(record))
    message = refused(capsys, *given, corpus)
    assert str(runs / first.name) in message and "seed is 9 there and 0 here" in message
    assert (runs / f"bert_t8_small{TABLE_SUFFIX}").read_bytes() == before


def test_a_saved_table_that_cannot_be_read_is_named(tmp_path, capsys):
    for text in ('{"class"', '{"class": "PaperTable", "rowz": 1}'):
        (tmp_path / f"t{TABLE_SUFFIX}").write_text(text)
        shown = refused(capsys, "report", str(tmp_path))
        assert str(tmp_path / f"t{TABLE_SUFFIX}") in shown and "remove it" in shown
