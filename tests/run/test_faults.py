"""Runs whose checkpoints are damaged, that are stopped, or that two processes want: nothing is lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.run import loop
from encoders.run.folder import RunError, RunInUse, lock_run
from encoders.run.preemption import STOPPED_STATUS, RunStopped, StopRequest, parse_duration
from encoders.run.run import Run
from encoders.training import checkpoint, metric_log
from encoders.training.checkpoint import Checkpoints
from encoders.utils.files import write_signed_json
from tests import texts
from tests.refusals import raises_naming
from tests.run.test_loop import assert_same_run, experiment, quiet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return str(texts.write(tmp_path_factory.mktemp("texts") / "text.txt", documents=60))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """An experiment of 12 steps that saves every third, and the folder of its uninterrupted run."""
    home = tmp_path_factory.mktemp("whole")
    base = experiment(corpus, "bert", home)
    base = replace(base, intervals=replace(base.intervals, keep_checkpoints=4))
    loop.train(base, home / "run", quiet)
    return base, home / "run"


@pytest.fixture
def unfinished(finished, tmp_path):
    """The same run after nine steps."""
    folder = tmp_path / "run"
    shutil.copytree(finished[1], folder)
    shutil.rmtree(folder / "checkpoints" / "12")
    (folder / "result.json").unlink()
    write_signed_json(folder / checkpoint.SAVED_STEPS_FILE, {"latest": 9, "best": 9})
    assert steps(folder) == ["3", "6", "9"]
    return folder


def steps(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(finished, unfinished):
    flip(largest(unfinished / "checkpoints" / "9"))
    lines = []
    loop.train(finished[0], unfinished, lines.append)
    assert any("checkpoint 9 " in line for line in lines) and f"{finished[0].name}: resumes from step 6" in lines
    assert len(list((unfinished / "damaged").iterdir())) == 1
    assert_same_run(unfinished, finished[1])


def test_a_number_that_is_not_the_one_that_was_saved_is_named(finished, unfinished):
    run = Run.open(unfinished)
    checkpoints = run.open_checkpoints()
    _, state, notes = run.restore_latest(checkpoints, pytest.fail)
    checkpoints.close()
    recorded = notes["checksums"]["params"]
    assert checkpoint.find_changed_leaves(state.params, recorded) == []
    path = sorted(recorded)[3]
    assert checkpoint.find_changed_leaves(state.params, recorded | {path: [0, 0]}) == [path]


@pytest.mark.parametrize("seed", range(4))
def test_any_file_that_is_cut_off_or_gone_costs_three_steps_and_no_more(finished, unfinished, seed):
    draw = random.Random(seed)
    files = sorted(
        path for path in (unfinished / "checkpoints" / "9").rglob("*") if path.is_file() and path.stat().st_size
    )
    path = draw.choice(files)
    path.unlink() if draw.random() < 0.5 else os.truncate(path, draw.randrange(path.stat().st_size))
    run = Run.open(unfinished)
    checkpoints, lines = run.open_checkpoints(keep_checkpoints=4), []
    at, state, _ = run.restore_latest(checkpoints, lines.append)
    checkpoints.close()
    # Some files, such as the time of writing, say nothing about the numbers.
    assert at == 6 and "checkpoint 9 cannot be read" in lines[0] or at == 9 and not lines, path
    assert all(len(line) < 600 and "\n" not in line for line in lines)
    assert int(state.step) == at


def test_a_replaced_hook_is_not_freed_while_a_thread_may_call_it():
    hooks = []
    for _ in range(2):
        with checkpoint.quiet_orbax():
            hooks.append(sys.unraisablehook)
    assert hooks[0] is hooks[1] is not sys.unraisablehook


def test_folders_and_files_that_are_not_checkpoints_are_ignored(finished, unfinished):
    (unfinished / "checkpoints" / "11").mkdir()
    (unfinished / "checkpoints" / "10").mkdir()
    (unfinished / "checkpoints" / "10" / "junk").write_text("junk")
    (unfinished / "checkpoints" / "7").write_text("a file")
    loop.train(finished[0], unfinished, quiet)
    assert_same_run(unfinished, finished[1])


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(finished, unfinished):
    for step in steps(unfinished):
        flip(largest(unfinished / "checkpoints" / step / "params"))
    with raises_naming(RunError, unfinished, "checkpoint 9 ", "checkpoint 3"):
        loop.train(finished[0], unfinished, quiet)
    assert steps(unfinished) == ["3", "6", "9"]
    with raises_naming(RunError, "checkpoint 9 ", "--step", "3, 6"):
        Run.open(unfinished).load_params("latest")


def act_at(monkeypatch, step, act):
    """Call `act` when the progress bar reaches `step`."""
    advance = metric_log.MetricLog.advance_progress

    def watched(self, index, text=""):
        advance(self, index, text)
        if index == step:
            act()

    monkeypatch.setattr(metric_log.MetricLog, "advance_progress", watched)


def test_a_signal_ends_a_run_after_its_step_which_is_saved(finished, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        act_at(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        with StopRequest() as stop, pytest.raises(RunStopped, match="SIGTERM.* step 4"):
            loop.train(finished[0], tmp_path / "run", quiet, stop=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps(tmp_path / "run") == ["3", "4"]
    loop.train(finished[0], tmp_path / "run", quiet)
    assert_same_run(tmp_path / "run", finished[1])


def test_a_second_signal_ends_the_process_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.poll_reason() == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_signal_while_the_first_is_saved_costs_no_checkpoint(finished, tmp_path, monkeypatch):
    save = Checkpoints.save

    def interrupted(self, step, *args):
        save(self, step, *args)  # continues in the background
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        act_at(patch, 4, lambda: signal.raise_signal(signal.SIGINT))
        patch.setattr(Checkpoints, "save", interrupted)
        with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
            loop.train(finished[0], tmp_path / "run", quiet, stop=stop)
    loop.train(finished[0], tmp_path / "run", quiet)
    assert_same_run(tmp_path / "run", finished[1])


def test_a_time_limit_ends_a_run_after_its_step(finished, unfinished):
    with raises_naming(RunStopped, "time limit", "step 10"):
        loop.train(finished[0], unfinished, quiet, stop=StopRequest(0))
    assert steps(unfinished) == ["10", "3", "6", "9"]


@pytest.mark.parametrize("text", ["", "3", "h", "3h 5m", "-1s", "1.5h", "5m3h"])
def test_a_text_that_is_not_a_duration_is_refused(text):
    with pytest.raises(ValueError, match=f"'{text}'"):
        parse_duration(text)


def test_a_second_process_on_a_run_is_refused(finished, unfinished):
    with lock_run(unfinished), pytest.raises(RunInUse, match=rf"{unfinished}.* process {os.getpid()} on .* since 20"):
        loop.train(finished[0], unfinished, quiet)
    assert steps(unfinished) == ["3", "6", "9"]


# Checksums


def tree():
    draw = np.random.default_rng(0)
    return {
        "a": jnp.asarray(draw.standard_normal((8, 5, 3), np.float32)),
        "b": {"c": jnp.asarray(draw.integers(0, 9, 7, np.int32)), "d": jnp.bfloat16(draw.standard_normal((2, 4)))},
        "e": jnp.asarray(draw.integers(0, 2, 5) == 1),
        "f": jnp.float32(3.5),
        "g": jnp.zeros((0, 4)),
    }


def test_checksums_are_the_same_on_the_host_and_on_devices(monkeypatch):
    here = checkpoint.compute_checksums(tree())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert checkpoint.compute_checksums(tree()) == here
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "BLOCK_ELEMENTS", 7)
    assert checkpoint.compute_checksums(tree()) == here


def test_a_changed_bit_and_two_elements_in_each_others_place_are_noticed():
    arrays = tree()
    recorded = checkpoint.compute_checksums(arrays)
    assert checkpoint.find_changed_leaves(arrays, recorded) == []
    bits = np.asarray(arrays["a"]).copy()
    bits.view(np.uint32)[3, 2, 1] ^= 1 << 22
    assert checkpoint.find_changed_leaves(arrays | {"a": bits}, recorded) == ["a"]
    assert checkpoint.find_changed_leaves(arrays | {"a": np.asarray(arrays["a"])[::-1]}, recorded) == ["a"]
    assert checkpoint.find_changed_leaves(arrays | {"f": -arrays["f"]}, recorded) == ["f"]


TERMINATED = """
import os, signal, sys
import launch
from encoders.training.metric_log import MetricLog
advance = MetricLog.advance_progress
def watched(self, index, text=""):
    advance(self, index, text)
    if index == 4:
        os.kill(os.getpid(), signal.SIGTERM)
MetricLog.advance_progress = watched
sys.exit(launch.main(sys.argv[1:]))
"""


@pytest.mark.live
def test_a_stopped_command_ends_with_its_own_status_and_resumes(corpus, tmp_path):
    settings = [
        "phases.*.until_step=8",
        "phases.0.until_step=3",
        "phases.*.batch_size=4",
        "intervals.log_every=2",
        "optimizer.warmup_steps=2",
        "data.heldout_fraction=0.2",
    ]
    command = ["train", "quickstart", "--only", "quickstart-b*", "--runs", str(tmp_path), "--set", *settings]
    command += [f"data.corpus={corpus}", f"data.store_dir={tmp_path / 'stores'}", "data.sentence_splitting=lines"]
    done = subprocess.run([sys.executable, "-c", TERMINATED, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == STOPPED_STATUS, done.stderr
    assert "stopped by SIGTERM; saved checkpoint at step 4" in done.stderr
    again = subprocess.run([sys.executable, "launch.py", *command], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "resumes from step 4" in again.stderr, again.stderr
