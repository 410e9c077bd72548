"""Results as records: the same table without runs, seeds that accumulate, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from encoders.measures.base import Measurement
from encoders.measures.minimal_pairs import MinimalPairs
from encoders.reporting import records, result_sources
from encoders.reporting.comparisons import format_estimate
from encoders.reporting.records import (
    RecordedRuns,
    flatten_json,
    format_command,
    merge_records,
    merge_studies,
    parse_study,
    read_record,
    record_table,
)
from encoders.reporting.result_sources import RunsFolder
from encoders.reporting.results_page import format_results_page
from encoders.reporting.table_results import TableResults, collect_table_results, format_results
from encoders.run.folder import build_run_record
from encoders.sweeps.paper_table import PaperRow, PaperTable, Study
from encoders.sweeps.score_columns import NUM_PARAMS, ScoreColumn
from encoders.text.tokenization import make_blank_vocab
from encoders.utils.errors import UserError
from encoders.utils.files import write_signed_json
from tests.refusals import raises_naming
from tests.reporting.test_table_results import MLM, SST2, build_sst2_run, write_runs
from tests.test_experiment import BASE

AVERAGE = ScoreColumn("Avg", "mean", mean_of=(("MLM",), ("SST-2",)))
PAIRS = ScoreColumn("BLiMP", "blimp", measure=MinimalPairs(path="pairs.jsonl"))
COLUMNS = (MLM, SST2, AVERAGE, PAIRS, NUM_PARAMS)
PUBLISHED = {"a": (50.0, 90.0), "b": (40.0, 80.0), "c": (45.0, 80.0)}
NUM_ITEMS = 60


def build_table(num_seeds: int, **changes) -> PaperTable:
    """Return a table of three rows, each pre-trained and fine-tuned with `num_seeds` seeds."""
    rows = []
    for number, (name, (mlm, sst2)) in enumerate(PUBLISHED.items()):
        experiment = replace(BASE, early_stopping=number + 1, **changes)
        runs = [replace(experiment, name=f"{name}-small-seed{seed}", seed=seed) for seed in range(num_seeds)]
        tuned = tuple(build_sst2_run(run, 1e-3) for run in runs)
        rows.append(PaperRow(name, ((mlm,), (sst2,), (), (), ()), tuple(runs), tuned))
    study = Study(seeds=num_seeds, corpus=("text.txt",), blimp="pairs.jsonl")
    return PaperTable("t_small", "A table", COLUMNS, tuple(rows), "tokens", study=study, source_file="t")


def write_seeds(runs_dir: Path, table: PaperTable, seeds) -> Path:
    """Write finished runs of some seeds, whose scores follow from their names."""
    runs_dir.mkdir(exist_ok=True)
    for number, row in enumerate(table.rows):
        for runs, key, score in (
            (row.pretrain_runs, "heldout", "mlm_accuracy"),
            (row.finetune_runs, "best", "accuracy"),
        ):
            chosen = [run for run in runs if run.seed in seeds]
            values = tuple(0.5 - 0.1 * number + 0.01 * ((3 * run.seed + number) % 5) for run in chosen)
            write_runs(runs_dir, chosen, {score: values}, key)
    return runs_dir


@pytest.fixture(autouse=True)
def measurements(monkeypatch):
    """Every pre-trained run has measured items that follow from its name."""

    def read_measurement(folder: Path, measure):
        name, _, seed = folder.name.partition("-small-seed")
        rng = np.random.default_rng([ord(name), int(seed)])
        items = (np.linspace(-1, 1, NUM_ITEMS) + rng.normal(size=NUM_ITEMS) > 0).astype(float)
        return Measurement({"blimp": float(items.mean())}, {"blimp": items})

    monkeypatch.setattr(result_sources, "read_measurement", read_measurement)


def record_seeds(path: Path, runs_dir: Path, table: PaperTable, seeds) -> list[str]:
    """Record a folder with the runs of some seeds, and return the lines of the log."""
    lines: list[str] = []
    record_table(path, table, write_seeds(runs_dir, table, seeds), lines.append)
    return lines


def collect_recorded(path: Path, table: PaperTable) -> TableResults:
    return collect_table_results(table, RecordedRuns(path, read_record(path), table))


# Round trip -----------------------------------------------------------------------------------------------------------


def test_a_table_of_records_is_that_of_the_runs(tmp_path):
    table, path = build_table(3), tmp_path / "results" / "t.json"
    assert record_seeds(path, tmp_path / "runs", table, range(3)) == []
    from_runs = collect_table_results(table, RunsFolder(tmp_path / "runs"))
    recorded = collect_recorded(path, table)
    assert recorded.cells == from_runs.cells and recorded.costs == from_runs.costs
    assert recorded.row_pairs == from_runs.row_pairs and len(recorded.row_pairs) == 4 * 3
    assert all(pair.estimate.items.num_items == NUM_ITEMS for pair in recorded.row_pairs if pair.column == "BLiMP")
    for output_format in ("csv", "text", "markdown"):
        expected = format_results(from_runs, output_format)
        shown = format_results(replace(recorded, source_notes=()), output_format)
        assert shown == expected
    assert recorded.corpora == ("text.txt",) and parse_study(read_record(path), path) == replace(
        table.study, tasks=("SST-2",)
    )


def test_a_record_names_hardware_versions_and_the_command(tmp_path):
    table, path = build_table(2), tmp_path / "t.json"
    record_seeds(path, tmp_path / "runs", table, range(2))
    record = read_record(path)
    (session,) = record["sessions"]
    assert session["devices"] == ["cuda:0", "cuda:1"] and session["accelerator"] is None and session["processor"]
    assert session["versions"] == {"jax": jax.__version__, "numpy": np.__version__}
    (note,) = collect_recorded(path, table).source_notes
    assert "12 runs on 2 cuda (" in note and "train t --with corpus=text.txt seeds=2 blimp=pairs.jsonl" in note
    run = record["runs"]["b-small-seed1"]
    assert (run["row"], run["seed"], run["num_items"]) == ("b", 1, {"BLiMP": NUM_ITEMS})
    assert run["scores"].keys() == {"MLM", "BLiMP", "M parameters"} and run["cost"]["device_seconds"] == 72


def test_a_command_has_what_differs_from_the_defaults():
    table = build_table(3)
    assert format_command(replace(table, study=Study())) == "train t"
    assert format_command(replace(table, study=Study(tasks=("SST-2", "MRPC")))) == "train t --with tasks=SST-2,MRPC"
    assert format_command(replace(table, study=Study(tasks=()))) == "train t --with 'tasks=()'"


def test_the_page_of_records_lists_relations_of_the_papers_and_the_tables(tmp_path):
    table, path = build_table(3), tmp_path / "t.json"
    record_seeds(path, tmp_path / "runs", table, range(3))
    results, recorded = collect_recorded(path, table), RecordedRuns(path, read_record(path), table)
    page = format_results_page([recorded], "Results")
    lines = [line for line in page.splitlines() if line.startswith("| t_small")]
    assert len(lines) == 3 + 2  # of SST-2 two rows are equal in the paper
    relations = {tuple(cell.strip() for cell in line.split("|")[2:4]): line for line in lines}
    assert relations.keys() == {
        ("MLM", "a > b"),
        ("MLM", "a > c"),
        ("MLM", "c > b"),
        ("SST-2", "a > b"),
        ("SST-2", "a > c"),
    }
    by_rows = {(pair.column, pair.first, pair.second): pair for pair in results.row_pairs}
    for rows, agreement, published, verdict in (
        (("c", "b"), "against", 5, "differs"),
        (("a", "b"), "for", 10, "agrees"),
    ):
        pair = by_rows["MLM", *rows]
        assert (pair.agreement, pair.published) == (agreement, published)
        cells = [cell.strip() for cell in relations["MLM", " > ".join(rows)].split("|")]
        ours = format_estimate(pair.estimate.mean, pair.estimate.half_width, "+")
        assert cells[4:7] == [f"+{published}", ours, verdict + pair.mark]
    assert page.startswith("# Results\n\n### Published relations") and "### A table: pairs of rows" in page
    assert "Of 5 relations of the papers: differs 1, agrees 4." in page and "12 runs on 2 cuda" not in page


# Merging --------------------------------------------------------------------------------------------------------------


def test_seeds_of_two_machines_accumulate(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    record_seeds(path, tmp_path / "first", build_table(2), range(2))
    monkeypatch.setattr(
        records, "describe_machine", lambda table: {"commit": "c", "command": "x", "processor": "other"}
    )
    table = build_table(4)
    assert record_seeds(path, tmp_path / "second", table, (2, 3)) == []
    recorded = collect_recorded(path, table)
    everything = collect_table_results(table, RunsFolder(write_seeds(tmp_path / "all", table, range(4))))
    assert recorded.cells == everything.cells and recorded.costs == everything.costs
    assert parse_study(read_record(path), path).seeds == 4
    notes = recorded.source_notes
    assert len(notes) == 2 and "12 runs" in notes[0] and "12 runs" in notes[1] and "other" in notes[1]


def test_the_variance_by_items_is_kept_from_the_session_with_more_seeds(tmp_path):
    path, table = tmp_path / "t.json", build_table(4)
    record_seeds(path, tmp_path / "first", table, (0, 1, 2))
    before = read_record(path)["item_variances"]
    assert {entry["num_seeds"] for entry in before} == {3} and len(before) == 3 + 3
    record_seeds(path, tmp_path / "second", table, (3,))
    assert read_record(path)["item_variances"] == before
    record_seeds(path, tmp_path / "third", table, range(4))
    assert {entry["num_seeds"] for entry in read_record(path)["item_variances"]} == {4}


def test_the_same_run_keeps_the_machine_of_its_first_record(tmp_path, monkeypatch):
    path, table = tmp_path / "t.json", build_table(2)
    record_seeds(path, tmp_path / "runs", table, range(2))
    before = read_record(path)
    monkeypatch.setattr(
        records, "describe_machine", lambda table: {"commit": "c", "command": "x", "processor": "other"}
    )
    lines: list[str] = []
    record_table(path, table, tmp_path / "runs", lines.append)
    assert read_record(path) == before and lines == []


def test_another_execution_of_a_run_replaces_the_recorded_one_and_is_logged(tmp_path):
    path, table = tmp_path / "t.json", build_table(2)
    record_seeds(path, tmp_path / "runs", table, range(2))
    folder = tmp_path / "runs" / "a-small-seed1"
    row = json.loads((folder / "metrics.jsonl").read_text())
    (folder / "metrics.jsonl").write_text(json.dumps(row | {"time": {"seconds": 50.0}}) + "\n")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"heldout": {"mlm_accuracy": 0.125}}))
    lines: list[str] = []
    record_table(path, table, tmp_path / "runs", lines.append)
    run = read_record(path)["runs"]["a-small-seed1"]
    assert (run["scores"]["MLM"], run["cost"]["device_seconds"]) == (0.125, 100)
    (line,) = lines
    assert "a-small-seed1" in line and str(path) in line


def test_later_scores_of_the_same_execution_are_added(tmp_path):
    path, table = tmp_path / "t.json", build_table(2)
    without_measure = replace(table, columns=(*COLUMNS[:3], NUM_PARAMS, ScoreColumn("x", "")))
    record_seeds(path, tmp_path / "runs", without_measure, range(2))
    assert "BLiMP" not in read_record(path)["runs"]["a-small-seed0"]["scores"]
    record_table(path, table, tmp_path / "runs", [].append)
    scores = read_record(path)["runs"]["a-small-seed0"]["scores"]
    assert scores.keys() == {"MLM", "M parameters", "BLiMP"}


def test_a_merged_study_has_the_seeds_tasks_and_measures_of_both():
    old = Study(seeds=5, tasks=("SST-2", "MRPC"), blimp="old.jsonl", corpus=("here.txt",))
    new = Study(seeds=3, tasks=("RTE", "SST-2"), sts="sts", corpus=("there.txt",))
    merged = merge_studies(old, new)
    assert merged == replace(new, seeds=5, tasks=("SST-2", "MRPC", "RTE"), blimp="old.jsonl")
    assert (
        merge_studies(replace(old, tasks=None), new).tasks == new.tasks
        and merge_studies(Study(), Study()).tasks is None
        and merge_studies(Study(tasks=()), Study(tasks=())).tasks == ()
    )


# Refusals -------------------------------------------------------------------------------------------------------------


def test_other_settings_under_the_same_row_are_refused_and_the_file_stays(tmp_path):
    path = tmp_path / "t.json"
    record_seeds(path, tmp_path / "first", build_table(2), range(2))
    before = path.read_bytes()
    other = build_table(3, optimizer=replace(BASE.optimizer, learning_rate=0.25))
    with raises_naming(UserError, path, "a-small", "optimizer.learning_rate is 0.001 there and 0.25 here"):
        record_seeds(path, tmp_path / "second", other, (2,))
    assert path.read_bytes() == before


@pytest.mark.parametrize("field", ["store_key", "fingerprint"])
def test_other_data_under_the_same_settings_are_refused(tmp_path, field):
    path, table = tmp_path / "t.json", build_table(2)
    for number in range(2):
        runs_dir = write_seeds(tmp_path / str(number), table, (number,) if field == "store_key" else (0,))
        for folder in runs_dir.iterdir():
            record = json.loads((folder / "experiment.json").read_text())
            (folder / "experiment.json").write_text(json.dumps(record | {field: f"content {number}"}))
    record_table(path, table, tmp_path / "0", [].append)
    with raises_naming(UserError, path, "a-small", field if field == "fingerprint" else "data.corpus"):
        record_table(path, table, tmp_path / "1", [].append)


def test_another_table_and_a_folder_without_its_runs_are_refused(tmp_path):
    path, table = tmp_path / "t.json", build_table(2)
    record_seeds(path, tmp_path / "runs", table, range(2))
    with raises_naming(UserError, path, "t_small", "u_small"):
        record_table(path, replace(table, name="u_small"), tmp_path / "runs", [].append)
    with raises_naming(UserError, tmp_path / "none", "t_small"):
        record_table(path, table, tmp_path / "none", [].append)
    with raises_naming(UserError, "t_small", "study"):
        record_table(path, replace(table, study=None), tmp_path / "runs", [].append)


def test_runs_that_cannot_count_are_not_recorded(tmp_path):
    path, table = tmp_path / "t.json", build_table(2)
    runs_dir = write_seeds(tmp_path / "runs", table, range(2))
    other = replace(table.rows[0].pretrain_runs[1], seed=9)
    record = build_run_record(other, "0" * 16, make_blank_vocab(BASE.model.vocab_size))
    (runs_dir / other.name / "experiment.json").write_text(json.dumps(record))
    lines: list[str] = []
    record_table(path, table, runs_dir, lines.append)
    (line,) = lines
    assert other.name in line and "seed" in line
    recorded = read_record(path)["runs"]
    assert len(recorded) == 12 - 2 and other.name not in recorded  # nor the one that starts from it


DAMAGE = {
    "no JSON": lambda record: b'{"table": ',
    "null": lambda record: b"null",
    "another object": lambda record: b'{"class": {"type": 3}, "facts": [1]}',
    "a changed score": lambda record: json.dumps(record).replace("0.5", "0.6").encode(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_stays(tmp_path, damage):
    path, table = tmp_path / "t.json", build_table(2)
    record_seeds(path, tmp_path / "runs", table, range(2))
    path.write_bytes(DAMAGE[damage](json.loads(path.read_text())))
    before = path.read_bytes()
    with raises_naming(UserError, path):
        read_record(path)
    with raises_naming(UserError, path):
        record_table(path, table, tmp_path / "runs", [].append)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [{"runs": {}}, {"study": {"class": "Experiment"}}, {"study": {"class": "AdamW"}}, {"settings": []}],
    ids=str,
)
def test_a_signed_file_of_another_shape_is_named(tmp_path, change):
    path, table = tmp_path / "t.json", build_table(2)
    record_seeds(path, tmp_path / "runs", table, range(2))
    record = read_record(path)
    if "runs" in change:  # of a session that is not there
        change = {"runs": {"a": record["runs"]["a-small-seed0"] | {"session": 7}}}
    write_signed_json(path, record | change)
    with raises_naming(UserError, path):
        parse_study(read_record(path), path)


def test_a_missing_file_is_named(tmp_path):
    with raises_naming(UserError, tmp_path / "none.json", "--record"):
        read_record(tmp_path / "none.json")


def test_settings_that_the_file_has_no_longer_are_in_the_notes(tmp_path):
    path = tmp_path / "t.json"
    record_seeds(path, tmp_path / "runs", build_table(2), range(2))
    today = build_table(2, optimizer=replace(BASE.optimizer, learning_rate=0.25))
    recorded = collect_recorded(path, today)
    notes = [note for note in recorded.source_notes if "optimizer.learning_rate is 0.001 there and 0.25 here" in note]
    assert len(notes) == 3 and recorded.cells["a", "MLM"].ours
    assert "0.001" in recorded.training["a"] and "0.25" not in recorded.training["a"]


def test_nested_settings_have_paths():
    nested = {"phases": [{"until_step": 5}, {"until_step": 9}], "split": [0.8, 0.2], "model": {"class": "M"}}
    assert flatten_json(nested) == {
        "phases.0.until_step": 5,
        "phases.1.until_step": 9,
        "split": [0.8, 0.2],
        "model.class": "M",
    }


def test_sessions_that_no_run_names_any_longer_leave_the_record(tmp_path):
    old = {"table": "t", "file": "t", "training": {}, "settings": {}, "item_variances": []}
    old["study"] = records.to_json_value(Study(seeds=1))
    run = {"store_key": None, "fingerprint": "f", "scores": {}, "num_items": {}, "finished": None, "session": 0}
    first, second = (run | {"cost": {"tokens": tokens}} for tokens in (1, 2))
    merged = merge_records(
        old | {"runs": {"a": first}, "sessions": [{"processor": "x"}]},
        old | {"runs": {"a": second}, "sessions": [{"processor": "y"}]},
        tmp_path,
        [].append,
    )
    assert merged["sessions"] == [{"processor": "y"}] and merged["runs"]["a"] == second | {"session": 0}


def test_a_text_of_this_machine_is_named_without_its_folder(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").touch()
    content = {"experiment": {"data": {"corpus": [f"{tmp_path}/wiki.txt", "texts/books.txt", "tfds:wiki40b/en"]}}}
    monkeypatch.setattr(result_sources, "read_run_record", lambda folder: content)
    corpus = RunsFolder(tmp_path).read_corpus(SimpleNamespace(name="run"))
    assert corpus == "wiki.txt, texts/books.txt, tfds:wiki40b/en"
