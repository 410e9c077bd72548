"""A table that is killed at random and started again is the table of a sweep that was left alone."""

import csv
import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import task_examples, texts

ROOT = Path(__file__).parents[2]
SIZES = (
    "model.num_layers=1",
    "model.hidden_size=8",
    "model.num_heads=2",
    "model.intermediate_size=16",
    "model.vocab_size=300",
)
SET = (
    *SIZES,
    "data.tokenizer.vocab_size=300",
    "phases.*.batch_size=8",
    "phases.*.seq_length=32",
    "intervals.save_every=2",
    "intervals.log_every=1",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    texts.write(home / "text.txt", documents=200)
    task_examples.classes(home / "GLUE" / "SST-2")
    return home


def command(home: Path, runs: Path, verb: str, *more: str) -> list[str]:
    given = [f"corpus={home / 'text.txt'}", f"glue={home / 'GLUE'}", "tokens=81920", "rows=64", "seeds=1"]
    line = [
        verb,
        "albert_t5",
        "--with",
        *given,
        "--set",
        *SET,
        f"data.store_dir={home / 'stores'}",
        "--runs",
        str(runs),
    ]
    return [sys.executable, "launch.py", *line, *more]


def table(home: Path, runs: Path) -> list[dict]:
    """The cells of the table, without the hours that they took."""
    shown = subprocess.run(command(home, runs, "table", "--format", "csv"), cwd=ROOT, check=True, capture_output=True)
    return [row for row in csv.DictReader(io.StringIO(shown.stdout.decode())) if row["column"] != "device_hours"]


def rows(runs: Path) -> int:
    """How many rows all runs have logged."""
    return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/metrics.jsonl"))


@pytest.mark.live
def test_a_sweep_killed_at_random_ends_with_the_table_of_one_left_alone(home, tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    subprocess.run(command(home, alone, "train", "--jobs", "2"), cwd=ROOT, check=True, capture_output=True)
    draw = random.Random(8)
    kills = sorted(draw.randrange(1, rows(alone) - 1) for _ in range(2))
    for at in [*kills, None]:
        jobs = ("--jobs", "2") if at is None or at % 2 else ()
        process = subprocess.Popen(
            command(home, killed, "train", *jobs), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while at is not None and rows(killed) < at and process.poll() is None:
            time.sleep(0.05)
        if at is not None:
            assert process.poll() is None, "it was over before it was killed"
            subprocess.run(["pkill", "-9", "-f", str(killed)], check=True)  # with those that it has started
        status = process.wait(timeout=600)
    assert status == 0
    theirs, ours = table(home, alone), table(home, killed)
    assert ours == theirs
    measured = [row for row in ours if row["n"] == "1" and not row["minus row"]]
    assert {row["column"] for row in measured} == {"MLM", "NSP", "SOP", "SST-2"} and len(measured) == 12


@pytest.mark.live
def test_status_says_what_is_running_and_what_waits(home, tmp_path):
    process = subprocess.Popen(
        command(home, tmp_path, "train"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until, shown = time.monotonic() + 120, ""
        while " running " not in shown and time.monotonic() < until:
            shown = subprocess.run(command(home, tmp_path, "status"), cwd=ROOT, check=True, capture_output=True).stdout
            shown = shown.decode()
        assert " running " in shown and " waiting " in shown and "6 experiments: " in shown
    finally:
        os.kill(process.pid, 9)
        process.wait()
    shown = subprocess.run(command(home, tmp_path, "status"), cwd=ROOT, check=True, capture_output=True, text=True)
    assert " running " not in shown.stdout
