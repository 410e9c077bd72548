"""Several processes as one run: they come together or say why not, give the numbers of one, and end together."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from encoders.run import diagnostics, loop
from encoders.run.preemption import STOPPED_STATUS
from encoders.training import distributed
from encoders.training.distributed import DistributedError
from encoders.training.metric_log import read_metric_rows
from encoders.training.rendezvous import wait_for_all_processes
from tests import texts
from tests.refusals import raises_naming
from tests.run.test_loop import experiment, final_state, quiet, without_time

ROOT = Path(__file__).parents[2]


# Coming together ------------------------------------------------------------------------------------------------------


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def met(*places, at=None) -> list[str]:
    """Return the errors of processes that join with these numbers, (process, number of processes), or ""."""
    where, said = f"127.0.0.1:{at or port()}", [""] * len(places)

    def come(index: int, process: int, processes: int) -> None:
        try:
            wait_for_all_processes(where, processes, process, timeout=1.5)
        except ValueError as error:
            said[index] = str(error)

    threads = [threading.Thread(target=come, args=(index, *place)) for index, place in enumerate(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_processes_come_together_whoever_is_first():
    assert met((1, 3), (2, 3), (0, 3)) == ["", "", ""]
    assert met((0, 1)) == [""]


def test_a_process_that_does_not_come_is_named():
    primary, other = met((0, 3), (1, 3))
    assert primary == other
    assert "process 2 of 3" in primary


def test_processes_that_do_not_fit_are_named():
    said = met((0, 2), (1, 3))
    assert said == ["process 1 has processes 3, and process 0 has processes 2"] * 2
    (message,) = set(met((0, 3), (1, 3), (1, 3)))
    assert "two" in message and "process 1" in message


def test_a_coordinator_that_is_not_there_and_a_port_that_is_taken_are_named():
    assert "127.0.0.1:" in met((1, 2))[0]
    with socket.create_server(("", 0)) as taken:
        number = taken.getsockname()[1]
        assert f"port {number}" in met((0, 2), at=number)[0]


def test_what_answers_may_be_somebody_else():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            peer, _ = other.accept()
            peer.sendall(b"SSH-2.0\r\n")
            peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        number = other.getsockname()[1]
        said = met((1, 2), at=number)[0]
        thread.join()
    assert f"127.0.0.1:{number}" in said


@pytest.mark.parametrize("place", ["here", ":8476", "here:", "here:port", "here:0", "here:70000"])
def test_a_coordinator_must_be_a_host_and_a_port(place):
    with pytest.raises(ValueError, match=f"--coordinator '{place}'.*HOST:PORT"):
        wait_for_all_processes(place, 2, 1, timeout=1)


@pytest.mark.parametrize(("processes", "process"), [(None, 0), (2, None), (2, 2), (2, -1)])
def test_a_coordinator_needs_a_number_and_how_many(processes, process):
    with raises_naming(DistributedError, "--process", "0 to N - 1"):
        distributed.initialize_distributed("here:8476", processes, process, timeout=1)
    with raises_naming(DistributedError, "--process 1", "--coordinator"):
        distributed.initialize_distributed(None, None, 1, timeout=1)


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 0),
        ({"SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"SLURM_NTASKS": "4"}, 0),  # of a batch script, which srun has not started
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, 2),
        ({"TPU_WORKER_HOSTNAMES": ""}, 0),
    ],
)
def test_the_environment_says_how_many_were_started(environment, count, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.count_launched_processes() == count


def test_a_process_that_the_others_wait_for_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "gather_from_processes", lambda busy: np.float32([0.2, 0.3, busy]))
    assert diagnostics.describe_slowest_process(0.4, 10.0) is None
    assert (
        "process 2 was busy on its host for 4.0 of 10.0 s, the others for 0.2 s"
        in diagnostics.describe_slowest_process(4.0, 10.0)
    )


# Two processes --------------------------------------------------------------------------------------------------------

EXPERIMENTS = """
from dataclasses import replace
from pathlib import Path
from tests.run.test_loop import experiment
made = experiment({corpus!r}, "roberta", Path({folder!r}))
experiments = [replace(made, intervals=replace(made.intervals, log_every=1))]
"""
# What the program does, and one thing more in process 1.
DRIVER = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
import jax, launch
from encoders.cli import commands
from encoders.training.metric_log import MetricLog
commands.WORKER_COMMAND = [sys.executable, __file__]
advance, act = MetricLog.advance_progress, os.environ.get("ACT", "")
def watched(self, index, text=""):
    advance(self, index, text)
    if jax.process_index() == 1 and act:
        time.sleep(0.3)  # its neighbour waits
        if index == 4:
            os.kill(os.getpid(), getattr(signal, act))
MetricLog.advance_progress = watched
sys.exit(launch.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a program, an experiment of 12 steps, and its run by this process alone."""
    home = tmp_path_factory.mktemp("home")
    corpus = str(texts.write(home / "text.txt", documents=60))
    (home / "experiments.py").write_text(EXPERIMENTS.format(corpus=corpus, folder=str(home)))
    (home / "driver.py").write_text(DRIVER.format(root=str(ROOT)))
    made = experiment(corpus, "roberta", home)
    loop.train(replace(made, intervals=replace(made.intervals, log_every=1)), home / "alone" / made.name, quiet)
    return home


def launched(home, runs, *options, act="", devices=1):
    environment = os.environ | {"ACT": act, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(home / "driver.py"), "train", str(home / "experiments.py"), "--runs", str(runs)]
    return subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip


def assert_alike(a: Path, b: Path):
    """Every score of every row within 1e-5 of the other's."""
    ours, theirs = without_time(a), without_time(b)
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        numbers = [name for name in one if name != "split"]
        np.testing.assert_allclose([one[n] for n in numbers], [two[n] for n in numbers], rtol=1e-5, atol=1e-5)


@pytest.mark.live
def test_two_processes_give_the_numbers_of_one_and_go_on_on_any_layout(home, tmp_path):
    name = "tiny-roberta"
    stopped = launched(home, tmp_path / "two", "--processes", "2", act="SIGTERM")
    assert stopped.returncode == STOPPED_STATUS, stopped.stderr
    assert "stopped by a signal to one of its processes" in stopped.stderr
    assert "process 1 was busy on its host" in stopped.stderr
    at = max(row["step"] for row in read_metric_rows(tmp_path / "two" / name / "metrics.jsonl"))
    assert 4 <= at < 12  # a step that both have agreed on
    assert str(at) in [path.name for path in (tmp_path / "two" / name / "checkpoints").iterdir()]
    shutil.copytree(tmp_path / "two", tmp_path / "four")
    for folder, options, devices in (("two", ["--processes", "2"], 1), ("four", [], 4)):  # one: see the next test
        done = launched(home, tmp_path / folder, *options, devices=devices)
        assert done.returncode == 0, done.stderr
        assert_alike(tmp_path / folder / name, home / "alone" / name)
        for x, y in zip(
            *map(jax.tree.leaves, map(final_state, (tmp_path / folder / name, home / "alone" / name))), strict=True
        ):
            np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.live
def test_a_process_that_is_killed_ends_the_run_which_goes_on(home, tmp_path):
    died = launched(home, tmp_path, "--processes", "2", act="SIGKILL")
    assert died.returncode == 1
    assert "process 1 of 2 was killed by signal 9" in died.stderr
    done = launched(home, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "tiny-roberta", home / "alone" / "tiny-roberta")


@pytest.mark.live
def test_the_survivor_of_a_killed_process_ends_with_one_line(home, tmp_path):
    at = f"127.0.0.1:{port()}"
    command = [sys.executable, str(home / "driver.py"), "train", str(home / "experiments.py"), "--runs", str(tmp_path)]
    command += ["--coordinator", at, "--processes", "2", "--process"]
    environment = os.environ | {"ACT": "SIGKILL", "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen([*command, index], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for index in "01"
    ]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL], told
    assert "Traceback" not in told[0], told[0][-1500:]
    assert "another process of the run has ended" in told[0].splitlines()[-1]


@pytest.mark.live
def test_what_one_process_refuses_all_refuse(home, tmp_path):
    (tmp_path / "tiny-roberta").mkdir()
    (tmp_path / "tiny-roberta" / "experiment.json").write_text("{")
    refused = launched(home, tmp_path, "--processes", "2")
    assert refused.returncode == 1
    assert "experiment.json" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert signal.strsignal(signal.SIGABRT) not in refused.stderr


@pytest.mark.live
def test_several_processes_say_what_was_not_finite_once(home, tmp_path):
    wild = [
        "optimizer.learning_rate=1e30",
        "optimizer.clip_norm=None",
        "optimizer.warmup_steps=0",
        "intervals.max_bad_updates=2",
    ]
    died = launched(
        home, tmp_path, "--processes", "2", "--set", *wild, "intervals.eval_every=100", "intervals.save_every=100"
    )
    assert died.returncode == 1
    assert "mlm_loss. Its 4 examples (pass:id) are 0:" in died.stderr
    assert "Traceback" not in died.stderr
