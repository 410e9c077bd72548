"""Sweeps: experiments in the order of their dependencies, shared by processes, and their progress."""

import json
import os
import threading
from dataclasses import replace

import pytest

from encoders.costs.ledger import make_blank_vocab, run_flops
from encoders.run.folder import RunError, RunInUse, build_run_record, lock_run
from encoders.run.preemption import STOPPED_STATUS, RunStopped, StopRequest
from encoders.sweeps import sweep as sweeps
from encoders.sweeps.sweep import FAILURE_FILE, Sweep, measure_progress
from encoders.training.metric_log import TIMES_FILE, format_row
from tests.reporting.test_table_results import build_sst2_run
from tests.test_experiment import BASE

NO_STOP = StopRequest()


def named(name: str, source: str | None = None, runs=None):
    return replace(BASE, name=name, init_from=source and f"{runs}/{source}")


def finish(folder) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    result = {"name": folder.name, "steps": 1, "parameters": 7, "tokens_per_second": 1.0, "heldout": {}}
    (folder / "result.json").write_text(json.dumps(result))
    return result


@pytest.fixture
def build_sweep(monkeypatch, tmp_path):
    """Make a sweep whose training is only recorded, with errors for some of its experiments."""
    trained = []

    def make(*experiments, errors=None, **options):
        reasons = dict(errors or {})

        def train(experiment, folder, *rest):
            trained.append(experiment.name)
            if experiment.name in reasons:
                raise reasons.pop(experiment.name)
            return finish(folder)

        monkeypatch.setattr(sweeps.loop, "train", train)
        lines = []
        return (
            Sweep(experiments, tmp_path, lines.append, poll_seconds=0.01, **options),
            trained,
            lines,
        )

    return make


def test_an_experiment_is_trained_after_its_source_in_any_order_of_the_file(build_sweep, tmp_path):
    made, trained, _ = build_sweep(named("c", "b", tmp_path), named("b", "a", tmp_path), named("a"))
    assert made.train(False, NO_STOP, 1) == 0 and trained == ["a", "b", "c"]


def test_experiments_that_start_from_a_failed_one_are_not_trained_and_the_rest_are(build_sweep, tmp_path):
    experiments = (named("a"), named("b", "a", tmp_path), named("c", "b", tmp_path), named("d"))
    made, trained, lines = build_sweep(*experiments, errors={"a": ValueError("no")})
    assert made.train(False, NO_STOP, 1) == 1 and trained == ["a", "d"]
    assert [made.find_state(each) for each in experiments] == ["failed", "blocked", "blocked", "done"]
    assert lines[-2].endswith(": b, c") and "init_from" in lines[-2] and lines[-1] == "failed: a"
    assert (tmp_path / "a" / FAILURE_FILE).read_text() == "ValueError: no\n"


def test_a_lone_experiment_that_is_refused_leaves_no_file(build_sweep, tmp_path):
    made, _, _ = build_sweep(named("a"), errors={"a": ValueError("no")})
    with pytest.raises(ValueError, match="no"):
        made.train(False, NO_STOP, 1)
    assert not list(tmp_path.iterdir())


def test_a_failed_experiment_is_tried_again_by_the_next_command(build_sweep, tmp_path):
    made, trained, _ = build_sweep(named("a"), named("b"), errors={"a": ValueError("no")})
    made.train(False, NO_STOP, 1)
    os.utime(tmp_path / "a" / FAILURE_FILE, (made.started_at - 10, made.started_at - 10))
    again, trained, _ = build_sweep(named("a"), named("b"))
    assert again.train(False, NO_STOP, 1) == 0 and trained == ["a", "b", "a", "b"]
    assert not (tmp_path / "a" / FAILURE_FILE).exists()


def test_an_experiment_that_another_process_trains_is_left_to_it(build_sweep, tmp_path):
    made, trained, lines = build_sweep(named("a"), named("b"))
    with lock_run(tmp_path / "a"):
        assert made.train(False, NO_STOP, 1) == 0
    assert trained == ["b"] and lines == ["left to other processes: a"]


def test_an_experiment_waits_for_a_source_that_another_process_trains(build_sweep, tmp_path):
    made, trained, lines = build_sweep(named("a"), named("b", "a", tmp_path))
    with lock_run(tmp_path / "a"):
        threading.Timer(0.3, lambda: finish(tmp_path / "a")).start()
        assert made.train(False, NO_STOP, 1) == 0
    assert trained == ["a", "b"] or trained == ["b", "a"]
    assert len(lines) == 1 and "other processes" in lines[0]


def test_an_experiment_is_resumed_when_the_process_that_trained_it_has_ended(build_sweep, tmp_path):
    made, trained, _ = build_sweep(named("a"), named("b", "a", tmp_path))
    gone, there = threading.Event(), threading.Event()

    def other():
        with lock_run(tmp_path / "a"):
            there.set()
            gone.wait(5)

    process = threading.Thread(target=other)
    process.start()
    there.wait(5)
    threading.Timer(0.3, gone.set).start()
    assert made.train(False, NO_STOP, 1) == 0 and trained == ["a", "b"]
    process.join()


def test_an_experiment_whose_source_is_not_to_be_trained_is_blocked(build_sweep, tmp_path):
    alone, b = named("a"), named("b", "a", tmp_path)
    made, trained, lines = build_sweep(b, named("c"), other_experiments=[alone])
    assert made.train(False, NO_STOP, 1) == 1 and trained == ["c"]
    assert len(lines) == 1 and "init_from" in lines[0] and lines[0].endswith(": b")
    finish(tmp_path / "a")
    made, trained, lines = build_sweep(b, named("c"), other_experiments=[alone])
    assert made.train(False, NO_STOP, 1) == 0


def test_workers_start_with_different_experiments(build_sweep, monkeypatch):
    monkeypatch.setattr(sweeps, "WORKER_INDEX", 4)
    made, trained, _ = build_sweep(named("a"), named("b"), named("c"))
    assert made.train(False, NO_STOP, 1) == 0 and trained == ["b", "a", "c"]


@pytest.mark.parametrize("name", ["result.json", "experiment.json"])
def test_a_damaged_run_is_named_and_the_rest_is_trained(build_sweep, tmp_path, name):
    made, trained, lines = build_sweep(named("a", "b", tmp_path), named("b"), named("c"))
    finish(tmp_path / "b")
    (tmp_path / "b" / name).write_text("{")
    assert made.train(False, NO_STOP, 1) == 1 and trained == ["c"]
    (line,) = [line for line in lines if f"b/{name}" in line]
    assert line.startswith("b ") and lines[-1] == "failed: b"
    assert not (tmp_path / "b" / FAILURE_FILE).exists()


def test_a_run_that_is_damaged_while_it_is_the_only_one_is_named(build_sweep, tmp_path):
    made, _, _ = build_sweep(named("a"), errors={"a": RunError("a/result.json is damaged")})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{")
    with pytest.raises(RunError, match="a/result.json"):
        made.train(False, NO_STOP, 1)


def test_an_experiment_that_another_process_has_just_started_is_not_a_failure(build_sweep, tmp_path):
    made, trained, lines = build_sweep(named("a"), named("b"), errors={"a": RunInUse("just now")})
    assert made.train(False, NO_STOP, 1) == 0 and trained == ["a", "a", "b"] and not lines
    assert not (tmp_path / "a" / FAILURE_FILE).exists()


def test_a_process_that_waits_for_others_ends_at_a_stop_request(build_sweep, tmp_path):
    made, trained, lines = build_sweep(named("a"), named("b", "a", tmp_path), named("c"))
    with lock_run(tmp_path / "a"):
        assert made.train(False, StopRequest(time_limit=0.0), 1) == STOPPED_STATUS
    assert trained == ["c"] and "the time limit" in lines[-1]


def test_a_stopped_experiment_stops_the_sweep(build_sweep):
    made, trained, lines = build_sweep(named("a"), named("b"), errors={"a": RunStopped("a: stopped after step 3")})
    assert made.train(False, NO_STOP, 1) == STOPPED_STATUS and trained == ["a"]
    assert len(lines) == 1 and lines[0].startswith("a: stopped after step 3")


def test_finished_experiments_are_reported_too(build_sweep, tmp_path):
    after = []
    made, _, _ = build_sweep(named("a"), named("b"), on_finished=lambda each: after.append(each.name))
    finish(tmp_path / "a")
    made.train(False, NO_STOP, 1)
    assert after == ["a", "b"]


def test_the_time_left_is_estimated_from_the_speed_of_similar_runs(build_sweep, tmp_path):
    experiments = (named("a"), named("b"), named("c", "a", tmp_path), named("d"))
    made, _, _ = build_sweep(*experiments, started_at=0.0)
    row = {"step": experiments[0].num_steps, "split": "train", "time": {"seconds": 100.0}}
    finish(tmp_path / "a"), (tmp_path / "b").mkdir(), (tmp_path / "d").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    half = row | {"step": experiments[1].num_steps // 2, "time": {"seconds": 100.0}}
    (tmp_path / "b" / "metrics.jsonl").write_text(json.dumps(half) + "\n")
    (tmp_path / "d" / FAILURE_FILE).write_text("RunError: a reason\n")
    a, b, c, d = measure_progress(made)
    assert (a.state, a.seconds_left, b.state, c.state) == ("done", 0.0, "interrupted", "ready")
    assert b.seconds_left == pytest.approx(100.0) and b.step == experiments[1].num_steps // 2
    assert c.seconds_left == d.seconds_left and (d.state, d.note) == ("failed", "RunError: a reason")
    assert d.seconds_left == pytest.approx(
        100 / 0.75
    )  # the median of the speeds of a and b, of which the second has half
    assert run_flops(experiments[0]) == run_flops(experiments[1])


def test_the_time_left_is_estimated_from_any_run_where_none_is_similar(build_sweep, tmp_path):
    experiments = (named("a"), build_sst2_run(named("a"), 1e-3))
    made, _, _ = build_sweep(*experiments, started_at=0.0)
    finish(tmp_path / "a")
    row = {"step": experiments[0].num_steps, "split": "train", "time": {"seconds": 100.0}}
    (tmp_path / "a" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert measure_progress(made)[1].seconds_left == pytest.approx(
        100 * run_flops(experiments[1]) / run_flops(experiments[0])
    )


def write_other_experiment(folder) -> None:
    """A finished run of another experiment, with more steps than it may have here."""
    other = replace(named(folder.name), seed=7)
    finish(folder)
    (folder / "experiment.json").write_text(
        json.dumps(build_run_record(other, "0" * 16, make_blank_vocab(BASE.model.vocab_size)))
    )
    row = {"step": 9 * other.num_steps, "split": "train", "time": {"seconds": 1.0}}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def test_a_folder_of_another_experiment_has_no_progress(build_sweep, tmp_path):
    made, _, _ = build_sweep(named("a"), named("b"))
    write_other_experiment(tmp_path / "a")
    a, b = measure_progress(made)
    assert (a.state, b.state) == ("other", "ready") and "seed is 7 there and 0 here" in a.note
    assert (a.step, a.seconds_left, b.seconds_left) == (0, None, None)


def test_a_folder_of_another_experiment_is_a_failure_and_blocks_its_dependents(build_sweep, tmp_path):
    made, trained, lines = build_sweep(
        named("a"), named("b", "a", tmp_path), named("c"), errors={"a": RunError("a belongs to another experiment")}
    )
    write_other_experiment(tmp_path / "a")
    assert made.train(False, NO_STOP, 1) == 1 and trained == ["a", "c"]
    assert lines[0] == "a failed: a belongs to another experiment"
    assert lines[-2].endswith(": b") and lines[-1] == "failed: a"


def test_a_finished_experiment_is_blocked_where_its_source_is_another_experiment(build_sweep, tmp_path):
    experiments = (named("a"), named("b", "a", tmp_path))
    made, trained, lines = build_sweep(*experiments, errors={"a": RunError("a belongs to another experiment")})
    write_other_experiment(tmp_path / "a"), finish(tmp_path / "b")
    assert [each.state for each in measure_progress(made)] == ["other", "blocked"]
    assert made.train(False, NO_STOP, 1) == 1 and trained == ["a"]
    assert lines[-2].endswith(": b") and lines[-1] == "failed: a"


def test_an_error_after_a_finished_experiment_is_a_failure(build_sweep, tmp_path):
    def after(each):
        raise ValueError(f"{each.name} cannot be scored")

    made, _, lines = build_sweep(named("a"), named("b"), on_finished=after)
    finish(tmp_path / "a")
    assert made.train(False, NO_STOP, 1) == 1
    assert lines[-1] == "failed: a, b" and "a failed: a cannot be scored" in lines


def test_status_counts_the_steps_of_the_newest_checkpoint_and_names_a_damaged_run(build_sweep, tmp_path):
    made, _, _ = build_sweep(named("a"), named("b"), named("c"))
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        row = {"step": 10, "split": "train", "time": {"seconds": 1.0}}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "a" / "saved_steps.json").write_text(json.dumps({"latest": 30, "best": 30}))
    (tmp_path / "b" / "saved_steps.json").write_text("{")
    a, b, c = measure_progress(made)
    assert (a.state, a.step) == ("interrupted", 30) and (c.state, c.step) == ("interrupted", 10)
    assert b.state == "damaged" and "b/saved_steps.json" in b.note
    assert a.time_report is None
    row = {"step": 30, "split": "times", "start_step": 0, "begun_at": 0.0, "time": {"steps": 3.0, "evaluation": 1.0}}
    (tmp_path / "a" / TIMES_FILE).write_text(format_row(1, row))
    assert measure_progress(made)[0].time_report.goodput == 0.75
