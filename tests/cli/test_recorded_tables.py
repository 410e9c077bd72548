"""`table --record`, `table --from` and `report --results`: tables of a file of experiments without its runs."""

from dataclasses import replace

import pytest

from encoders.cli.experiment_files import find_experiment_file, import_experiment_file
from encoders.cli.parser import main
from encoders.reporting.records import read_record
from encoders.sweeps.paper_table import Study, save_table
from tests.refusals import assert_names
from tests.reporting.test_table_results import write_runs

NUM_ROWS, SEEDS = 2, (0, 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with runs of two rows of BERT's table 8, and their results in a file."""
    home = tmp_path_factory.mktemp("home")
    study = Study(seeds=2, corpus=("text.txt",))
    table = replace(import_experiment_file(find_experiment_file("bert_t8")).table(study), source_file="bert_t8")
    save_table(table, home / "runs")
    for number, row in enumerate(table.rows[:NUM_ROWS]):
        write_runs(home / "runs", row.pretrain_runs, {"mlm_accuracy": (0.2, 0.3)})
        write_runs(home / "runs", row.finetune_runs, {"accuracy": (0.72 - number / 10, 0.71 - number / 10)}, "best")
    assert main(["table", "bert_t8", "--runs", f"{home}/runs", "--record", f"{home}/results/bert_t8.json"]) == 0
    return home


def read_error(capsys, *words: str) -> str:
    assert main(list(words)) == 1
    return capsys.readouterr().err


def test_a_table_from_a_file_of_results_is_that_of_the_runs(home, capsys, tmp_path, monkeypatch):
    assert main(["table", "bert_t8", "--runs", f"{home}/runs", "--format", "csv"]) == 0
    from_runs = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)  # without runs
    assert main(["table", "bert_t8", "--from", f"{home}/results/bert_t8.json", "--format", "csv"]) == 0
    assert capsys.readouterr().out == from_runs and "mask 80 random 10 same 10 above mask 100" in from_runs
    assert main(["table", "bert_t8", "--from", f"{home}/results/bert_t8.json"]) == 0
    assert "8 runs on 2 cuda" in capsys.readouterr().out


def test_recording_again_prints_the_table_and_changes_nothing(home, capsys):
    path = home / "results" / "bert_t8.json"
    before = read_record(path)
    assert main(["table", "bert_t8", "--runs", f"{home}/runs", "--record", str(path)]) == 0
    shown = capsys.readouterr()
    assert "BERT, table 8" in shown.out and "replaces" not in shown.err and read_record(path) == before


def test_a_folder_of_results_is_one_markdown_page(home, capsys):
    assert main(["report", "--results", f"{home}/results", "--out", f"{home}/page.md", "--title", "All"]) == 0
    assert capsys.readouterr().out.strip() == f"{home}/page.md"
    page = (home / "page.md").read_text()
    assert page.startswith("# All\n") and "| bert_t8_small | SST-2, the paper's MNLI |" in page
    # MNLI: 84.2 of 80/10/10 and 84.3 of 100/0/0; ours is 10 points the other way.
    (line,) = [line for line in page.splitlines() if line.startswith("| bert_t8_small | SST-2")]
    assert_names(line, "mask 100 random 0 same 0 > mask 80 random 10 same 10", "differs", "-10.0", "+0.1")


def test_a_record_is_not_mixed_with_other_choices(home, capsys, tmp_path):
    path = f"{home}/results/bert_t8.json"
    assert_names(read_error(capsys, "table", "bert_t6", "--from", path), path, "bert_t8_small", "bert_t6.py")
    assert_names(read_error(capsys, "table", "bert_t8", "--from", path, "--with", "seeds=3"), "--with", "--from")
    assert_names(read_error(capsys, "table", "bert_t8", "--from", path, "--record", path), "--record", "--from")
    assert_names(read_error(capsys, "table", "quickstart", "--from", path), path, "quickstart.py")
    assert_names(read_error(capsys, "table", "bert_t8", "--from", f"{tmp_path}/none.json"), "none.json")
    assert_names(read_error(capsys, "report", "--results", str(tmp_path)), tmp_path, "--record")
    assert_names(read_error(capsys, "report", "--results", path, "--charts", "x"), "--charts", "--results")


def test_a_damaged_file_of_results_is_named(home, capsys, tmp_path):
    text = (home / "results" / "bert_t8.json").read_text()
    for name, content in {"short": text[:200], "changed": text.replace("0.72", "0.92")}.items():
        (tmp_path / f"{name}.json").write_text(content)
        assert_names(read_error(capsys, "table", "bert_t8", "--from", f"{tmp_path}/{name}.json"), f"{name}.json")
        assert_names(read_error(capsys, "report", "--results", str(tmp_path)), f"{name}.json")
        (tmp_path / f"{name}.json").unlink()
