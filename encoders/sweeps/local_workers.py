"""Several processes on this machine, of one run or for one run each, started and watched by one that does no more."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from encoders.run.preemption import STOPPED_STATUS
from encoders.utils.code_files import build_child_environment

ACCEPTED_STATUSES = (None, 0, STOPPED_STATUS)
GRACE_SECONDS = 10  # seconds that the others have once one has died
NVIDIA_GPUS_DIR = "/proc/driver/nvidia/gpus"


def launch_processes(
    program: Sequence[str], arguments: Sequence[str], num_processes: int, log: Callable[[str], None]
) -> int:
    """Run `program` with `arguments` in `processes` processes as one run, and return its status.

    Signals reach them all. When one dies the others are ended, and `say` is told which it was.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(num_processes), "--process"]
    command = [*program, *arguments, *place]
    with forward_signals() as started:
        for number in range(num_processes):  # each of a session of its own: a terminal's Ctrl-C would reach it twice
            started.append(
                subprocess.Popen([*command, str(number)], start_new_session=True, env=build_child_environment())
            )
        while all(each.poll() in ACCEPTED_STATUSES for each in started) and any(
            each.poll() is None for each in started
        ):
            time.sleep(0.1)
        time.sleep(0.2)  # the others may have noticed sooner
        codes = [each.poll() for each in started]
        if all(code in ACCEPTED_STATUSES for code in codes):
            return max(each.wait() for each in started)
        # What was killed is the reason; JAX aborts, or fails, because of it.
        died = min(
            (n for n, code in enumerate(codes) if code not in ACCEPTED_STATUSES), key=lambda n: rank_exit_code(codes[n])
        )
        killed = codes[died] < 0
        how = f"was killed by signal {-codes[died]}; the same command goes on" if killed else "has failed"
        log(f"process {died} of {num_processes} {how}; the others are ended")
        until = time.monotonic() + (0 if killed else GRACE_SECONDS)
        while any(each.poll() is None for each in started) and time.monotonic() < until:
            time.sleep(0.1)
        return codes[died] if codes[died] > 0 else 1


def launch_workers(
    program: Sequence[str], arguments: Sequence[str], num_jobs: int, worker_variable: str, log: Callable[[str], None]
) -> int:
    """Run `program` with `arguments` in `jobs` processes that share its members, and return the worst status.

    Each has its part of the cores, and of the GPUs where there are some, and its number in the variable `worker`.
    Signals reach them all; `say` is told which were killed.
    """
    command, cores = [*program, *arguments], sorted(os.sched_getaffinity(0))
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = [str(i) for i in range(len(list(Path(NVIDIA_GPUS_DIR).glob("*"))))] if told is None else told.split(",")
    cards = [card for card in cards if card]
    with forward_signals() as started:
        for number in range(num_jobs):
            mine = cores[number::num_jobs] or cores
            places = build_child_environment(**{worker_variable: str(number)})
            if cards:
                places["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]
                part = math.ceil(num_jobs / len(cards))
                places |= {} if part == 1 else {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / part:.2f}"}
            os.sched_setaffinity(0, mine)  # which a process takes over from the one that starts it
            started.append(subprocess.Popen(command, start_new_session=True, env=places, stdout=subprocess.DEVNULL))
        os.sched_setaffinity(0, cores)
        codes = [each.wait() for each in started]
    for number, code in enumerate(codes):
        if code < 0:
            log(f"process {number} of {num_jobs} was killed by signal {-code}; the same command goes on")
    return max((abs(code) for code in codes if code not in ACCEPTED_STATUSES), default=max(codes))


@contextmanager
def forward_signals() -> Iterator[list[subprocess.Popen]]:
    """A list of processes that signals are passed on to, and that have ended afterwards."""
    started: list[subprocess.Popen] = []
    asked = 0

    def send_to_children(signal_number: int, frame) -> None:
        nonlocal asked
        asked += 1
        for each in started if asked == 1 else ():
            each.send_signal(signal.SIGTERM if signal_number == signal.SIGHUP else signal_number)
        if asked > 1:
            raise KeyboardInterrupt

    before = {each: signal.signal(each, send_to_children) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield started
    finally:
        for each in started:
            each.kill()  # after SIGTERM JAX would go on
            each.wait()
        for each, handler in before.items():
            signal.signal(each, handler)


def rank_exit_code(exit_code: int) -> int:
    """Which of several ends is the likeliest reason of the others, the least."""
    return 2 if exit_code == -signal.SIGABRT else 1 if exit_code > 0 else 0
