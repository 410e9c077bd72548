"""A table kept beside its runs: made anew by its file, of the members that were trained, and lost by no refusal."""

import json
from dataclasses import replace

import pytest

import launch
from encoders.cli.experiment_files import find, load, module_of, renewed
from encoders.costs.ledger import blank_facts
from encoders.run.run import record
from encoders.sweeps.paper_table import ENDING, Study, keep, kept
from tests import task_examples, texts

ONLY = ["--only", "bert-small-seed0", "--only", "bert-small-seed0@*"]


def options(*line: str):
    return launch.parser().parse_args(line)


def made(study: Study):
    return replace(module_of(find("bert_t8")).table(study), file="bert_t8")


def test_a_kept_table_has_what_its_file_says_today_and_the_members_that_were_trained(tmp_path):
    table = made(Study(seeds=1, corpus=("text.txt",)))
    as_trained = lambda each: replace(each, seed=7) if each.name == "bert-small-seed0" else each
    old = replace(table.changed(as_trained), differs=("of old",), columns=(*table.columns[:-1], table.columns[0]))
    keep(old, tmp_path)
    found = load(options("status", "bert_t8", "--runs", str(tmp_path))).table
    assert found.columns == table.columns and found.differs == table.differs
    assert found.places["bert-small-seed0"].seed == 7
    assert found.places.keys() == table.places.keys() and found.members != table.members


def test_a_table_whose_file_is_gone_is_the_one_that_was_kept(tmp_path):
    table = replace(made(Study(seeds=1)), file="gone")
    keep(table, tmp_path)
    assert renewed(kept(tmp_path)[0]) == table


def test_members_that_are_not_chosen_stay_as_they_were_trained(tmp_path):
    keep(made(Study(seeds=1)).changed(lambda each: replace(each, seed=7)), tmp_path)
    line = ["train", "bert_t8", "--runs", str(tmp_path), "--with", "seeds=1", *ONLY, "--set", "accumulate=2"]
    found = load(options(*line))
    assert {(each.seed, each.accumulate) for each in found.members} == {(0, 2)} and len(found.members) == 2
    assert {(each.seed, each.accumulate) for each in found.others} == {(7, 1)}
    assert {each.name for each in found.table.members} == {each.name for each in (*found.members, *found.others)}


@pytest.fixture
def given(tmp_path) -> list[str]:
    texts.write(tmp_path / "text.txt", documents=20)
    task_examples.classes(tmp_path / "GLUE" / "SST-2")
    return ["train", "bert_t8", "--runs", f"{tmp_path}/runs", *ONLY, "--with", f"glue={tmp_path}/GLUE", "seeds=1"]


def refused(capsys, *line: str) -> str:
    assert launch.main(list(line)) == 1
    return capsys.readouterr().err


def test_what_is_refused_leaves_the_kept_table_as_it_is(given, tmp_path, capsys):
    runs, corpus = tmp_path / "runs", f"corpus={tmp_path}/text.txt"
    keep(made(Study(seeds=1)), runs)
    before = (runs / f"bert_t8_small{ENDING}").read_bytes()
    assert "names no file" in refused(capsys, *given, f"corpus={tmp_path}/texts.txt")
    first = made(Study(seeds=1, corpus=("elsewhere.txt",), runs=str(runs))).rows[0].runs[0]
    told = record(replace(first, seed=9), "0" * 16, blank_facts(first.model.vocab))
    (runs / first.name).mkdir()
    (runs / first.name / "experiment.json").write_text(json.dumps(told))
    assert "belongs to another experiment: seed is 9 there and 0 here. Give" in refused(capsys, *given, corpus)
    assert (runs / f"bert_t8_small{ENDING}").read_bytes() == before


def test_a_kept_table_that_cannot_be_read_is_named(tmp_path, capsys):
    for text in ('{"class"', '{"class": "encoders.sweeps.paper_table.Table", "rowz": 1}'):
        (tmp_path / f"t{ENDING}").write_text(text)
        shown = refused(capsys, "report", str(tmp_path))
        assert f"t{ENDING} cannot be read (" in shown and "; remove it, and train writes it anew" in shown
