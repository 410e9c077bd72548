"""Timing: each variant a process of its own, resident and pinned, all of them in turn, so that they share every moment.

On a shared machine wall time says little: what counts is the processor time of one pinned core, and a ratio is given
only where wall time shows that the core was free. On an accelerator the wall time of many steps in a row counts.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

Row = dict[str, object]  # of a table: column and value
BUSY = 1.3  # wall over processor time, above which no ratio is given
# glibc gives freed memory back to the system, from threads' own arenas always, and faults it in again in every step;
# both sides of a ratio keep it.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True)
class Variant:
    """One side of a comparison: `module` of this package builds the work that `spec` describes."""

    name: str
    module: str
    spec: dict
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Timing:
    """What a variant said of itself, and processor and wall seconds of a unit of its work, a pair a round."""

    facts: dict
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def seconds(self) -> float:
        """The median of what counts on this device."""
        return statistics.median(self.counted())

    def counted(self) -> list[float]:
        return self.cpu if self.facts.get("device", "cpu") == "cpu" else self.wall

    def quartiles(self) -> list[float]:
        """The three quartiles, of two rounds or more."""
        return statistics.quantiles(self.counted(), n=4, method="inclusive")

    def steady(self) -> float:
        """The upper quartile, by which the best of several is chosen: one that varies is no good choice."""
        return max(self.counted()) if len(self.counted()) < 4 else self.quartiles()[2]

    def busy(self) -> float:
        """Wall over processor time, 1 where wall time counts anyway."""
        return statistics.median(self.wall) / statistics.median(self.cpu) if self.counted() is self.cpu else 1.0

    def spread(self) -> float:
        """The distance of the quartiles over the median."""
        if len(self.counted()) < 2:
            return 0.0
        low, _, high = self.quartiles()
        return (high - low) / self.seconds()


def ratio(slow: Timing, fast: Timing) -> float | None:
    """How many times as long `slow` takes; None where the machine was too busy to say."""
    return None if max(slow.busy(), fast.busy()) > BUSY else slow.seconds() / fast.seconds()


def clocked(work: Callable[[], object]) -> tuple[float, float, object]:
    """Processor and wall seconds of `work`, and what it gives."""
    cpu, wall = time.process_time(), time.perf_counter()
    value = work()
    return time.process_time() - cpu, time.perf_counter() - wall, value


def repeats(once: Callable[[], object], seconds: float = 0.5) -> int:
    """How often something short is to be done to take about `seconds`."""
    once()
    return max(1, round(seconds / max(clocked(once)[1], 1e-9)))


class Unavailable(Exception):
    """A variant that cannot run here, and why."""


class Worker:
    """The process of one variant."""

    def __init__(self, variant: Variant, core: int | None):
        environment = os.environ | {"PYTHONWARNINGS": "ignore"} | variant.environment
        root = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "encoders.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))},
        )
        try:
            self.facts = self.ask({"module": variant.module, "spec": variant.spec, "core": core})
        except Unavailable:
            self.close()
            raise

    def ask(self, message: dict) -> dict:
        """The answer to a message. Raises `Unavailable` with what the process said when it could not."""
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            raise Unavailable(f"its process ended with {self.process.wait()}") from None
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with suppress(OSError):  # what it did not read any more
            self.process.stdin.close()


@contextmanager
def left_out(name: str, workers: dict[str, Worker], say: Callable[[str], None]) -> Iterator[None]:
    """A variant that fails inside is said to be left out, and its process ended."""
    try:
        yield
    except Unavailable as error:
        say(f"{name} is left out: {error}")
        if name in workers:
            workers.pop(name).close()


def alternate(
    variants: Sequence[Variant], rounds: int, units: int, core: int | None, say: Callable[[str], None]
) -> dict[str, Timing]:
    """Every variant's timing of `rounds` rounds, each of `units` units of work, in one run; the odd rounds backwards.

    A variant that cannot run here is left out, and `say` is told why.
    """
    workers: dict[str, Worker] = {}
    try:
        for variant in variants:
            with left_out(variant.name, workers, say):
                workers[variant.name] = Worker(variant, core)
        timings = {name: Timing(worker.facts) for name, worker in workers.items()}
        for round in range(-1, rounds):  # the first one only warms up
            for name in list(workers)[:: -1 if round % 2 else 1]:
                with left_out(name, workers, say):
                    answer = workers[name].ask({"units": units})
                    if not math.isfinite(answer["value"]):
                        raise Unavailable(f"what it computes is {answer['value']}")
                    if round >= 0:
                        timings[name].cpu.append(answer["cpu"] / units)
                        timings[name].wall.append(answer["wall"] / units)
                        timings[name].values.append(answer["value"])
        for name in list(workers):
            with left_out(name, workers, say):
                timings[name].facts |= workers[name].ask({"units": 0})
        timings = {name: timing for name, timing in timings.items() if name in workers}
    finally:
        for worker in workers.values():
            worker.close()
    return timings
