"""Processes on this machine: the processes of one run, or workers that share a sweep."""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from encoders.run.preemption import STOPPED_STATUS
from encoders.training.distributed import TOKEN_VARIABLE
from encoders.utils.code_files import build_child_environment

ACCEPTED_STATUSES = (None, 0, STOPPED_STATUS)
GRACE_SECONDS = 10  # for the others, after one has failed
PARENT_VARIABLE = "ENCODERS_PARENT"  # the descriptor of a pipe that its parent holds open
WRITE_ENDS: list[int] = []  # of these pipes; they close when this process ends, however it does
NVIDIA_GPUS_DIR = "/proc/driver/nvidia/gpus"


def launch_processes(
    program: Sequence[str], arguments: Sequence[str], num_processes: int, log: Callable[[str], None]
) -> int:
    """Run `program` as one run of several processes, and return its exit status.

    Signals reach all of them. When one dies, the others are ended and the first that died is logged.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [*program, *arguments, "--coordinator", f"127.0.0.1:{port}"]
    command += ["--processes", str(num_processes), "--process"]
    with forward_signals() as processes:
        environment = build_child_environment(**{TOKEN_VARIABLE: secrets.token_hex(16)})
        is_any_running = lambda: any(process.poll() is None for process in processes)
        for index in range(num_processes):  # in sessions of their own: Ctrl-C in a terminal would reach them twice
            processes.append(start_child([*command, str(index)], environment))
        while is_any_running() and all(process.poll() in ACCEPTED_STATUSES for process in processes):
            time.sleep(0.1)
        time.sleep(0.2)  # the others may have noticed sooner
        codes = [process.poll() for process in processes]
        if all(code in ACCEPTED_STATUSES for code in codes):
            return max(process.wait() for process in processes)
        failed = [index for index, code in enumerate(codes) if code not in ACCEPTED_STATUSES]
        # An error, and JAX's abort even more so, is likely to be an effect of another process's end.
        died = min(failed, key=lambda index: (codes[index] == -signal.SIGABRT, codes[index] > 0))
        is_killed = codes[died] < 0
        reason = f"was killed by signal {-codes[died]}; the same command resumes" if is_killed else "has failed"
        log(f"process {died} of {num_processes} {reason}; the others are ended")
        deadline = time.monotonic() + (0 if is_killed else GRACE_SECONDS)
        while is_any_running() and time.monotonic() < deadline:
            time.sleep(0.1)
        return codes[died] if codes[died] > 0 else 1


def launch_workers(
    program: Sequence[str], arguments: Sequence[str], num_jobs: int, worker_variable: str, log: Callable[[str], None]
) -> int:
    """Run `program` in `num_jobs` processes that share its experiments, and return the worst exit status.

    Each gets its share of the cores and of the GPUs, and its index in the environment variable `worker_variable`.
    Signals reach all of them; killed ones are logged.
    """
    command, cores, gpus = [*program, *arguments], sorted(os.sched_getaffinity(0)), list_gpus()
    with forward_signals() as processes:
        for index in range(num_jobs):
            environment = build_child_environment(**{worker_variable: str(index)})
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
                if (jobs_per_gpu := math.ceil(num_jobs / len(gpus))) > 1:
                    environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / jobs_per_gpu:.2f}"
            os.sched_setaffinity(0, cores[index::num_jobs] or cores)  # a child inherits it
            processes.append(start_child(command, environment, stdout=subprocess.DEVNULL))
        os.sched_setaffinity(0, cores)
        codes = [process.wait() for process in processes]
    for index, code in enumerate(codes):
        if code < 0:
            log(f"process {index} of {num_jobs} was killed by signal {-code}; the same command resumes")
    return max((abs(code) for code in codes if code not in ACCEPTED_STATUSES), default=max(codes))


def start_child(command: Sequence[str], environment: dict[str, str], **options) -> subprocess.Popen:
    """Start a process that ends with this one: it inherits the end of a pipe, which closes with its writer."""
    read_end, write_end = os.pipe()
    WRITE_ENDS.append(write_end)
    environment = environment | {PARENT_VARIABLE: str(read_end)}
    try:
        return subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=[read_end], **options)
    finally:
        os.close(read_end)


def end_with_parent() -> None:
    """Send this process SIGTERM once the one that started it has ended, if `start_child` has started it."""
    if read_end := os.environ.pop(PARENT_VARIABLE, None):

        def wait_for_parent() -> None:
            os.read(int(read_end), 1)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait_for_parent, name="parent", daemon=True).start()


def list_gpus() -> list[str]:
    """Return the numbers of the NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(len(list(Path(NVIDIA_GPUS_DIR).glob("*"))))]
    return [number for number in visible.split(",") if number]


@contextmanager
def forward_signals() -> Iterator[list[subprocess.Popen]]:
    """Yield a list of processes that receive this process's signals, and end them at the end."""
    processes: list[subprocess.Popen] = []
    num_signals = 0

    def send_to_children(signal_number: int, frame) -> None:
        nonlocal num_signals
        num_signals += 1
        if num_signals > 1:
            raise KeyboardInterrupt
        for process in processes:
            process.send_signal(signal.SIGTERM if signal_number == signal.SIGHUP else signal_number)

    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous_handlers = {number: signal.signal(number, send_to_children) for number in handled}
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()  # after SIGTERM JAX would continue
            process.wait()
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
