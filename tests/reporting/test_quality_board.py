"""The board of the fastest recorded runs that reach a score."""

from encoders.reporting.quality_board import build_quality_board
from encoders.reporting.records import RecordedRuns, read_record
from tests.reporting.test_records import build_table, measurements, record_seeds  # noqa: F401  (a fixture)


def record_attempts(tmp_path, **attempts: tuple[float, float]) -> RecordedRuns:
    """Record one run of each row, and give it a BLiMP score and device hours."""
    table, path = build_table(1), tmp_path / "t.json"
    record_seeds(path, tmp_path / "runs", table, range(1))
    record = read_record(path)
    for row, (score, hours) in attempts.items():
        run = record["runs"][f"{row}-small-seed0"]
        run["scores"]["BLiMP"], run["cost"]["device_seconds"] = score, 3600 * hours
    return RecordedRuns(path, record, table)


def test_the_fastest_run_that_reaches_the_goal_leads(tmp_path):
    board = build_quality_board([record_attempts(tmp_path, a=(0.70, 2.5), b=(0.66, 1.5), c=(0.60, 0.5))])
    ((goal, hardware, run, command, score, hours),) = board.rows
    assert (goal, run, score, hours) == ("BLiMP 65", "b-small-seed0", "66.0", "1.50")
    assert hardware.startswith("2 cuda (") and command.startswith("train t --with corpus=text.txt")


def test_without_a_run_that_reaches_the_goal_the_nearest_is_named(tmp_path):
    board = build_quality_board([record_attempts(tmp_path, a=(0.55, 2.5), b=(0.64, 1.5), c=(0.60, 0.5))])
    ((_, _, run, _, score, hours),) = board.rows
    assert (run, score, hours) == ("b-small-seed0", "64.0", "not reached in 1.50")


def test_each_kind_of_hardware_has_a_line_of_its_own(tmp_path):
    recorded = record_attempts(tmp_path, a=(0.70, 2.0), b=(0.70, 3.0), c=(0.70, 4.0))
    machine = recorded.record["sessions"][0] | {"devices": ["cpu:0"], "processor": "EPYC"}
    recorded.record["sessions"].append(machine)
    recorded.record["runs"]["c-small-seed0"]["session"] = 1
    lines = {hardware: (run, hours) for _, hardware, run, _, _, hours in build_quality_board([recorded]).rows}
    assert lines["1 cpu (EPYC)"] == ("c-small-seed0", "4.00") and len(lines) == 2


def test_records_without_scores_that_have_goals_have_no_board(tmp_path):
    recorded = record_attempts(tmp_path)
    for run in recorded.record["runs"].values():
        run["scores"].pop("BLiMP", None)
    assert build_quality_board([recorded]) is None
