"""Where the time of a run went, over all of its processes."""

import itertools
import json
from collections import Counter

import pytest

from encoders.run.time_account import TimeAccount, TimeReport, count_logged_steps, format_time, read_time_report
from encoders.text.tokenization import make_blank_vocab
from encoders.training.metric_log import TIMES_FILE, format_row
from encoders.utils.files import write_signed_json


def test_the_parts_of_a_process_add_up_to_the_time_since_it_began(tmp_path):
    now = itertools.count()  # each look at the clock takes a second
    account = TimeAccount(lambda: next(now))
    account.open(tmp_path, print)
    account.switch_to("steps")
    with account.measure("evaluation"), account.measure("compilation"):
        account.move_to("waiting for data", 0.125)
        account.move_to("waiting for data", 0.125)
    account.step = 4
    account.close()
    report = read_time_report(tmp_path)
    assert report.total == next(now) - 1
    assert report.seconds == {
        "preparation": 2, "steps": 2, "evaluation": 2, "compilation": 0.75, "waiting for data": 0.25
    }  # fmt: skip


def write_rows(folder, *rows) -> None:
    """Write rows of (begun at, start step, step, seconds)."""
    written = (
        {"step": step, "split": "times", "start_step": start, "begun_at": begun_at, "time": seconds}
        for begun_at, start, step, seconds in rows
    )
    (folder / TIMES_FILE).write_text("".join(format_row(number, row) for number, row in enumerate(written, 1)))


def test_restarts_repeated_steps_and_the_time_between_processes_are_told_apart(tmp_path):
    write_rows(
        tmp_path,
        (1000.0, 0, 0, {"preparation": 10.0}),
        (1000.0, 0, 30, {"preparation": 10.0, "compilation": 5.0, "steps": 60.0}),  # killed: a row each hour or so
        (1100.0, 20, 60, {"preparation": 4.0, "compilation": 1.0, "steps": 80.0, "checkpoints": 5.0}),
        (1200.0, 60, 60, {"preparation": 6.0}),
    )
    report = read_time_report(tmp_path)
    assert report.seconds == {
        "preparation": 10.0, "compilation": 6.0, "steps": 60.0 + 60.0, "steps done twice": 20.0, "checkpoints": 5.0,
        "restarts": 10.0, "not running": 25.0 + 10.0,
    }  # fmt: skip
    assert report.total == 1206.0 - 1000.0
    assert report.goodput == 120 / 206


def test_a_damaged_row_is_named_and_the_others_are_kept(tmp_path):
    write_rows(tmp_path, (1000.0, 0, 5, {"steps": 10.0}), (1000.0, 0, 9, {"steps": 20.0}))
    path = tmp_path / TIMES_FILE
    path.write_bytes(path.read_bytes().replace(b'"steps": 10.0', b'"steps": 11.0'))
    lines, account = [], TimeAccount()
    account.open(tmp_path, lines.append)
    account.close()
    assert len(lines) == 1 and str(path) in lines[0]
    assert read_time_report(tmp_path).seconds["steps"] == 20.0


def test_rows_of_another_run_are_named_and_do_not_count(tmp_path):
    write_signed_json(tmp_path / "experiment.json", build_record(fingerprint="here"))
    account = TimeAccount()
    account.step = 7
    account.open(tmp_path, pytest.fail)
    account.close()
    assert count_logged_steps(tmp_path) == 7
    write_signed_json(tmp_path / "experiment.json", build_record(fingerprint="there"))
    assert read_time_report(tmp_path) is None and count_logged_steps(tmp_path) == 0
    lines, account = [], TimeAccount()
    account.open(tmp_path, lines.append)
    account.close()
    assert len(lines) == 1 and "another run" in lines[0]
    assert {json.loads(line)["owner"] for line in (tmp_path / TIMES_FILE).read_text().splitlines()} == {"there"}


def build_record(fingerprint: str) -> dict:
    facts = make_blank_vocab(8).to_json_value()
    return {"fingerprint": fingerprint, "versions": {}, "devices": [], "facts": facts, "experiment": {"model": {}}}


def test_a_row_that_a_killed_process_did_not_finish_is_left_out(tmp_path):
    write_rows(tmp_path, (1000.0, 0, 5, {"steps": 10.0}))
    with (tmp_path / TIMES_FILE).open("a") as file:
        file.write('{"step": 9, "spl')
    account = TimeAccount()
    account.open(tmp_path, pytest.fail)
    account.close()
    assert len((tmp_path / TIMES_FILE).read_text().splitlines()) == 3
    assert read_time_report(tmp_path).seconds["steps"] == 10.0


def test_a_folder_without_rows_has_no_report(tmp_path):
    assert read_time_report(tmp_path) is None


def test_shares_are_of_the_time_of_all_runs_and_the_largest_is_first():
    reports = [TimeReport({"steps": 60.0, "evaluation": 10.0}), TimeReport({"steps": 20.0, "checkpoints": 10.0})]
    assert format_time(reports) == "steps 80.0%, evaluation 10.0%, checkpoints 10.0%"


@pytest.mark.parametrize("seconds, goodput", [({}, 0.0), ({"steps": 3.0, "restarts": 1.0}, 0.75)])
def test_goodput_is_the_share_of_steps(seconds, goodput):
    assert TimeReport(Counter(seconds)).goodput == goodput
