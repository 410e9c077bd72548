"""Members in the order of what they begin with, shared by processes, and what is said of how far they are."""

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
from tests.reporting.test_table_results import build_sst2_run
from tests.test_experiment import BASE

NO_STOP = StopRequest()


def member(name: str, start: str | None = None, runs=None):
    return replace(BASE, name=name, init_from=start and f"{runs}/{start}")


def finish(folder) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text('{"steps": 1}')
    return {"steps": 1}


@pytest.fixture
def trains(monkeypatch, tmp_path):
    """Makes a sweep of members whose training is only noted, with the errors that some are to have."""
    begun = []

    def make(*members, errors=None, **given):
        reasons = dict(errors or {})

        def train(experiment, folder, *rest):
            begun.append(experiment.name)
            if experiment.name in reasons:
                raise reasons.pop(experiment.name)
            return finish(folder)

        monkeypatch.setattr(sweeps.loop, "train", train)
        said = []
        return Sweep(members, tmp_path, said.append, lambda error: True, poll_seconds=0.01, **given), begun, said

    return make


def test_a_member_is_trained_after_the_one_it_begins_with_wherever_it_stands(trains, tmp_path):
    made, begun, _ = trains(member("c", "b", tmp_path), member("b", "a", tmp_path), member("a"))
    assert made.train(False, NO_STOP, 1) == 0 and begun == ["a", "b", "c"]


def test_what_begins_with_a_failed_one_is_not_trained_and_the_rest_is(trains, tmp_path):
    members = (member("a"), member("b", "a", tmp_path), member("c", "b", tmp_path), member("d"))
    made, begun, said = trains(*members, errors={"a": ValueError("no")})
    assert made.train(False, NO_STOP, 1) == 1 and begun == ["a", "d"]
    assert [made.find_state(each) for each in members] == ["failed", "blocked", "blocked", "done"]
    assert said[-2:] == ["not trained, since what they begin with is not: b, c", "failed: a"]
    assert (tmp_path / "a" / FAILURE_FILE).read_text() == "ValueError: no\n"


def test_a_lone_member_that_is_refused_before_it_begins_leaves_nothing(trains, tmp_path):
    made, _, _ = trains(member("a"), errors={"a": ValueError("no")})
    with pytest.raises(ValueError, match="no"):
        made.train(False, NO_STOP, 1)
    assert not list(tmp_path.iterdir())


def test_a_failed_member_is_tried_again_by_the_next_command(trains, tmp_path):
    made, begun, _ = trains(member("a"), member("b"), errors={"a": ValueError("no")})
    made.train(False, NO_STOP, 1)
    os.utime(tmp_path / "a" / FAILURE_FILE, (made.started_at - 10, made.started_at - 10))
    again, begun, _ = trains(member("a"), member("b"))
    assert again.train(False, NO_STOP, 1) == 0 and begun == ["a", "b", "a", "b"]
    assert not (tmp_path / "a" / FAILURE_FILE).exists()


def test_a_member_that_another_process_trains_is_left_to_it(trains, tmp_path):
    made, begun, said = trains(member("a"), member("b"))
    with lock_run(tmp_path / "a"):
        assert made.train(False, NO_STOP, 1) == 0
    assert begun == ["b"] and said == ["left to other processes: a"]


def test_what_begins_with_a_member_of_another_process_waits_for_it(trains, tmp_path):
    made, begun, said = trains(member("a"), member("b", "a", tmp_path))
    with lock_run(tmp_path / "a"):
        threading.Timer(0.3, lambda: finish(tmp_path / "a")).start()
        assert made.train(False, NO_STOP, 1) == 0
    assert begun == ["a", "b"] or begun == ["b", "a"]
    assert said == ["what is left begins with what other processes train, which this one waits for"]


def test_a_member_is_taken_up_when_the_process_that_trained_it_has_gone(trains, tmp_path):
    made, begun, _ = trains(member("a"), member("b", "a", tmp_path))
    gone, there = threading.Event(), threading.Event()

    def other():
        with lock_run(tmp_path / "a"):
            there.set()
            gone.wait(5)

    process = threading.Thread(target=other)
    process.start()
    there.wait(5)
    threading.Timer(0.3, gone.set).start()
    assert made.train(False, NO_STOP, 1) == 0 and begun == ["a", "b"]
    process.join()


def test_what_begins_with_a_member_that_is_not_to_be_trained_is_not_either(trains, tmp_path):
    alone, b = member("a"), member("b", "a", tmp_path)
    made, begun, said = trains(b, member("c"), other_experiments=[alone])
    assert made.train(False, NO_STOP, 1) == 1 and begun == ["c"]
    assert said == ["not trained, since what they begin with is not: b"]
    finish(tmp_path / "a")
    made, begun, said = trains(b, member("c"), other_experiments=[alone])
    assert made.train(False, NO_STOP, 1) == 0


def test_processes_that_share_members_begin_with_different_ones(trains, monkeypatch):
    monkeypatch.setattr(sweeps, "WORKER_INDEX", 4)
    made, begun, _ = trains(member("a"), member("b"), member("c"))
    assert made.train(False, NO_STOP, 1) == 0 and begun == ["b", "a", "c"]


def test_a_damaged_result_is_named(trains, tmp_path):
    made, _, _ = trains(member("a"), member("b"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{")
    with pytest.raises(RunError, match="a/result.json is damaged"):
        made.train(False, NO_STOP, 1)


def test_a_member_that_another_process_has_just_begun_is_no_failure(trains, tmp_path):
    made, begun, said = trains(member("a"), member("b"), errors={"a": RunInUse("just now")})
    assert made.train(False, NO_STOP, 1) == 0 and begun == ["a", "a", "b"] and not said
    assert not (tmp_path / "a" / FAILURE_FILE).exists()


def test_a_process_that_waits_for_others_ends_when_it_is_asked_to(trains, tmp_path):
    made, begun, said = trains(member("a"), member("b", "a", tmp_path), member("c"))
    with lock_run(tmp_path / "a"):
        assert made.train(False, StopRequest(time_limit=0.0), 1) == STOPPED_STATUS
    assert begun == ["c"] and "stopped by the time limit while other processes train what is left" in said[-1]


def test_what_stops_a_member_stops_the_sweep(trains):
    made, begun, said = trains(member("a"), member("b"), errors={"a": RunStopped("a: stopped after step 3")})
    assert made.train(False, NO_STOP, 1) == STOPPED_STATUS and begun == ["a"]
    assert said == ["a: stopped after step 3; the same command goes on"]


def test_what_is_done_after_a_member_is_done_for_finished_ones_too(trains, tmp_path):
    after = []
    made, _, _ = trains(member("a"), member("b"), on_finished=lambda each: after.append(each.name))
    finish(tmp_path / "a")
    made.train(False, NO_STOP, 1)
    assert after == ["a", "b"]


def test_progress_reckons_what_is_left_by_the_speed_of_its_like(trains, tmp_path):
    members = (member("a"), member("b"), member("c", "a", tmp_path), member("d"))
    made, _, _ = trains(*members, started_at=0.0)
    row = {"step": members[0].num_steps, "split": "train", "time": {"seconds": 100.0}}
    finish(tmp_path / "a"), (tmp_path / "b").mkdir(), (tmp_path / "d").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    half = row | {"step": members[1].num_steps // 2, "time": {"seconds": 100.0}}
    (tmp_path / "b" / "metrics.jsonl").write_text(json.dumps(half) + "\n")
    (tmp_path / "d" / FAILURE_FILE).write_text("RunError: a reason\n")
    a, b, c, d = measure_progress(made)
    assert (a.state, a.seconds_left, b.state, c.state) == ("done", 0.0, "interrupted", "ready")
    assert b.seconds_left == pytest.approx(100.0) and b.step == members[1].num_steps // 2
    assert c.seconds_left == d.seconds_left and (d.state, d.note) == ("failed", "RunError: a reason")
    assert d.seconds_left == pytest.approx(
        100 / 0.75
    )  # the median of the speeds of a and b, of which the second has half
    assert run_flops(members[0]) == run_flops(members[1])


def test_progress_reckons_with_the_speed_of_any_where_nothing_like_it_was_trained(trains, tmp_path):
    members = (member("a"), build_sst2_run(member("a"), 1e-3))
    made, _, _ = trains(*members, started_at=0.0)
    finish(tmp_path / "a")
    row = {"step": members[0].num_steps, "split": "train", "time": {"seconds": 100.0}}
    (tmp_path / "a" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert measure_progress(made)[1].seconds_left == pytest.approx(100 * run_flops(members[1]) / run_flops(members[0]))


def foreign(folder) -> None:
    """A finished run of another experiment, with more steps than it may have here."""
    other = replace(member(folder.name), seed=7)
    finish(folder)
    (folder / "experiment.json").write_text(
        json.dumps(build_run_record(other, "0" * 16, make_blank_vocab(BASE.model.vocab_size)))
    )
    row = {"step": 9 * other.num_steps, "split": "train", "time": {"seconds": 1.0}}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def test_a_folder_that_holds_another_experiment_is_no_progress_of_this_one(trains, tmp_path):
    made, _, _ = trains(member("a"), member("b"))
    foreign(tmp_path / "a")
    a, b = measure_progress(made)
    assert (a.state, a.note) == ("other", "is of another experiment: seed is 7 there and 0 here") and b.state == "ready"
    assert (a.step, a.seconds_left, b.seconds_left) == (0, None, None)


def test_a_folder_that_holds_another_experiment_is_a_failure_and_nothing_begins_with_it(trains, tmp_path):
    made, begun, said = trains(
        member("a"), member("b", "a", tmp_path), member("c"), errors={"a": RunError("a belongs to another experiment")}
    )
    foreign(tmp_path / "a")
    assert made.train(False, NO_STOP, 1) == 1 and begun == ["a", "c"]
    assert said[0] == "a failed: a belongs to another experiment"
    assert said[-2:] == ["not trained, since what they begin with is not: b", "failed: a"]


def test_what_is_finished_is_not_done_where_what_it_begins_with_is_another_experiment(trains, tmp_path):
    members = (member("a"), member("b", "a", tmp_path))
    made, begun, said = trains(*members, errors={"a": RunError("a belongs to another experiment")})
    foreign(tmp_path / "a"), finish(tmp_path / "b")
    assert [each.state for each in measure_progress(made)] == ["other", "blocked"]
    assert made.train(False, NO_STOP, 1) == 1 and begun == ["a"]
    assert said[-2:] == ["not trained, since what they begin with is not: b", "failed: a"]


def test_what_fails_after_a_finished_member_is_a_failure(trains, tmp_path):
    def after(each):
        raise ValueError(f"{each.name} cannot be scored")

    made, _, said = trains(member("a"), member("b"), on_finished=after)
    finish(tmp_path / "a")
    assert made.train(False, NO_STOP, 1) == 1
    assert said[-1] == "failed: a, b" and "a failed: a cannot be scored" in said
