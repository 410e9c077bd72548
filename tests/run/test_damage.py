"""A damaged file of a run or of its store is named; no row, checkpoint or hour is lost. The live test draws more."""

import json
import shutil

import numpy as np
import pytest

from encoders.data.stream import ExampleTables
from encoders.run import loop
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import RunError, read_result, read_run_rows
from encoders.run.run import Run
from encoders.training import checkpoint
from encoders.training.metric_log import format_row
from encoders.utils.files import read_signed_json, write_signed_json
from tests.run.test_faults import corpus, finished, flip, largest, unfinished  # noqa: F401  (fixtures)
from tests.run.test_loop import assert_same_run, quiet


def change_line(path, line_number):
    """Change the middle of one line of a file."""
    lines = path.read_bytes().splitlines(keepends=True)
    line = bytearray(lines[line_number - 1])
    line[len(line) // 2] ^= 1
    path.write_bytes(b"".join([*lines[: line_number - 1], bytes(line), *lines[line_number:]]))


def resume(finished, folder) -> str:  # noqa: F811
    """Train a run to its end, and return what it logs."""
    lines = []
    loop.train(finished[0], folder, lines.append)
    return "\n".join(lines)


def test_a_changed_line_of_the_metrics_is_named_and_the_file_kept(finished, unfinished):  # noqa: F811
    path = unfinished / "metrics.jsonl"
    change_line(path, 3)
    before = path.read_bytes()
    with pytest.raises(RunError, match="metrics.jsonl.* 3 "):
        read_run_rows(unfinished)
    logged = resume(finished, unfinished)
    assert str(path) in logged and "line 3" in logged and "resumes from step 9" in logged
    (copy,) = (unfinished / "damaged").iterdir()
    assert copy.read_bytes() == before
    kept, whole = read_run_rows(unfinished), read_run_rows(finished[1])
    without_time = lambda rows: [{**row, "time": None} for row in rows]
    assert without_time(kept) == without_time([*whole[:2], *whole[3:]])  # all rows but the changed one


@pytest.mark.parametrize("change", ["repeat", "remove", "swap"])
def test_rows_that_are_repeated_missing_or_out_of_order_are_noticed(finished, unfinished, change):  # noqa: F811
    path = unfinished / "metrics.jsonl"
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    rows = {"repeat": [first, first, second], "remove": [second], "swap": [second, first]}[change]
    path.write_bytes(b"".join([*rows, *rest]))
    with pytest.raises(RunError, match="metrics.jsonl"):
        read_run_rows(unfinished)


def test_lost_rows_of_a_finished_run_are_noticed(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished[1], tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(RunError, match=str(len(read_run_rows(finished[1])))):
        read_run_rows(tmp_path / "run")


def test_the_result_and_the_rows_of_another_run_are_noticed(finished, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    shutil.copytree(finished[1], folder)
    rows, result = read_run_rows(folder), read_signed_json(folder / "result.json")
    rows[0] |= {"loss": 1.0}
    lines = "".join(format_row(number, row) for number, row in enumerate(rows, 1))
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")  # each line is intact
    with pytest.raises(RunError, match="metrics.jsonl.*another run"):
        read_run_rows(folder)
    write_signed_json(folder / "result.json", result | {"fingerprint": "0" * 16})
    with pytest.raises(RunError, match="result.json.*another run.*remove it"):
        loop.train(finished[0], folder, quiet)


def test_a_result_that_is_made_anew_has_all_steps_of_the_run(finished, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    shutil.copytree(finished[1], folder)
    (folder / "result.json").unlink()
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    loop.train(finished[0], folder, quiet)
    assert read_result(folder)["steps"] == finished[0].num_steps


def test_removed_checkpoints_do_not_begin_a_run_anew(finished, unfinished):  # noqa: F811
    shutil.rmtree(unfinished / "checkpoints")
    with pytest.raises(RunError, match="checkpoint 9"):
        loop.train(finished[0], unfinished, quiet)


@pytest.mark.parametrize("others", [["saved_steps.json", "metrics.jsonl"], ["saved_steps.json", "times.jsonl"]])
def test_removed_records_of_checkpoints_do_not_begin_a_run_anew_either(finished, unfinished, others):  # noqa: F811
    shutil.rmtree(unfinished / "checkpoints")
    for name in others:
        (unfinished / name).unlink()
    with pytest.raises(RunError, match="lost all its checkpoints"):
        loop.train(finished[0], unfinished, quiet)


def test_a_damaged_record_of_checkpoints_does_not_begin_a_run_anew(finished, unfinished):  # noqa: F811
    shutil.rmtree(unfinished / "checkpoints")
    flip(unfinished / "saved_steps.json")
    with pytest.raises(RunError, match="lost all its checkpoints"):
        loop.train(finished[0], unfinished, quiet)


def test_a_lost_record_of_checkpoints_names_no_old_one_that_was_removed(finished, unfinished):  # noqa: F811
    (unfinished / "saved_steps.json").unlink()
    shutil.rmtree(unfinished / "checkpoints" / "3")
    logged = resume(finished, unfinished)
    assert "resumes from step 9" in logged and "missing" not in logged
    assert_same_run(unfinished, finished[1])


def test_a_missing_newest_checkpoint_is_named_and_the_one_before_used(finished, unfinished):  # noqa: F811
    shutil.rmtree(unfinished / "checkpoints" / "9")
    with pytest.raises(RunError, match="latest.*3, 6"):
        Run.open(unfinished).load_params("latest")
    logged = resume(finished, unfinished)
    assert "checkpoint 9" in logged and "resumes from step 6" in logged
    assert_same_run(unfinished, finished[1])


def test_a_run_without_its_record_is_not_continued_by_another_experiment(finished, unfinished):  # noqa: F811
    (unfinished / "experiment.json").unlink()
    with pytest.raises(RunError, match="checkpoints.*experiment.json"):
        loop.train(finished[0], unfinished, quiet)


def test_a_checkpoint_under_another_step_is_not_taken_for_that_step(finished, unfinished):  # noqa: F811
    shutil.copytree(unfinished / "checkpoints" / "6", unfinished / "checkpoints" / "10")
    logged = resume(finished, unfinished)
    assert "checkpoint 10 holds step 6" in logged and "resumes from step 9" in logged
    assert_same_run(unfinished, finished[1])


@pytest.mark.parametrize(
    "field, value",
    [
        ("owner", "another run"),
        *(pytest.param(*case, marks=pytest.mark.live) for case in (("cost", -1.0), ("checksums", {}))),
    ],
)
def test_notes_of_a_checkpoint_that_were_changed_are_noticed(finished, unfinished, field, value):  # noqa: F811
    path = unfinished / "checkpoints" / "9" / "notes" / "metadata"
    path.write_text(json.dumps(read_signed_json(path) | {field: value}))
    logged = resume(finished, unfinished)
    assert "checkpoint 9" in logged and "resumes from step 6" in logged
    assert_same_run(unfinished, finished[1])


def test_a_checkpoint_of_another_run_is_noticed(finished, unfinished):  # noqa: F811
    path = unfinished / "checkpoints" / "9" / "notes" / "metadata"
    write_signed_json(path, read_signed_json(path) | {"owner": "another"})  # intact, but not of this run
    assert "owner another" in resume(finished, unfinished)


@pytest.mark.parametrize("name", ["experiment.json", "tokenizer.json", "result.json", "saved_steps.json"])
def test_a_changed_file_of_a_run_is_named(finished, tmp_path, name):  # noqa: F811
    folder = tmp_path / "run"
    shutil.copytree(finished[1], folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | {"added": 1}))
    with pytest.raises((RunError, ValueError), match=name):
        run = Run.open(folder)
        run.load_params("best"), run.tokenizer, read_run_rows(folder)


@pytest.mark.parametrize("content", ["[]", "[" * 100_000])
def test_the_file_that_orbax_writes_beside_a_step_is_named_where_it_holds_something_else(unfinished, content):  # noqa: F811
    (unfinished / "checkpoints" / "9" / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(ValueError, match="checkpoints"):
        Run.open(unfinished).load_params("latest")


@pytest.mark.parametrize(
    "name",
    ["train/tokens.bin", *(pytest.param(name, marks=pytest.mark.live) for name in ("tokenizer.json", "store.json"))],
)
def test_training_and_evaluation_check_their_store(finished, unfinished, name):  # noqa: F811
    run = Run.open(unfinished)
    path, content = run.store.path / name, (run.store.path / name).read_bytes()
    flip(path)
    try:
        with pytest.raises(ValueError, match=name):
            loop.train(finished[0], unfinished, quiet)
        with pytest.raises(ValueError, match=name):
            evaluate_run(Run.open(unfinished), run.load_params()[1])
    finally:
        path.write_bytes(content)


def test_a_changed_example_table_is_built_again(finished):  # noqa: F811
    store, phase = Run.open(finished[1]).store, finished[0].phases[0]
    build = lambda: ExampleTables(store.path / "tables", store.train_split, 0, 1).get_table(phase.format, 32, 0)
    before = build().copy()
    flip(largest(store.path / "tables"))
    assert (build() == before).all()


def test_an_example_table_under_another_name_is_built_again(finished, tmp_path):  # noqa: F811
    store, phase = Run.open(finished[1]).store, finished[0].phases[0]
    build = lambda length: ExampleTables(tmp_path, store.train_split, 0, 1).get_table(phase.format, length, 0)
    before = build(32).copy()
    (path,) = tmp_path.glob("*.npy")
    build(24)
    (other,) = set(tmp_path.glob("*.npy")) - {path}
    for suffix in (".npy", ".sha256"):
        shutil.copy(other.with_suffix(suffix), path.with_suffix(suffix))
    np.testing.assert_array_equal(build(32), before)


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(finished, tmp_path, monkeypatch):  # noqa: F811
    """Rows without a checkpoint are no evidence of lost work: none was ever saved."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_step", lambda *arguments: pytest.fail("stopped"))
        patch.setattr(checkpoint.Checkpoints, "save", lambda *arguments: None)
        with pytest.raises(pytest.fail.Exception):
            loop.train(finished[0], tmp_path / "run", quiet)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size
    resume(finished, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[1])
