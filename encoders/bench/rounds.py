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

ResultRow = dict[str, object]  # of a table: column and value
MAX_WALL_TO_CPU = 1.3  # wall over processor time, above which no ratio is given
# glibc gives freed memory back to the system, from threads' own arenas always, and faults it in again in every step;
# both sides of a ratio keep it.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True)
class Variant:
    """One side of a comparison: `module` (ours, theirs or links) builds the work that `spec` describes."""

    name: str
    module: str
    spec: dict
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Timing:
    """What a variant said of itself, and processor and wall seconds of a unit of its work, a pair a round."""

    info: dict
    cpu_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def median_seconds(self) -> float:
        """The median of what counts on this device."""
        return statistics.median(self.get_device_seconds())

    def get_device_seconds(self) -> list[float]:
        return self.cpu_seconds if self.info.get("device", "cpu") == "cpu" else self.wall_seconds

    def compute_quartiles(self) -> list[float]:
        """The three quartiles, of two rounds or more."""
        return statistics.quantiles(self.get_device_seconds(), n=4, method="inclusive")

    def upper_quartile(self) -> float:
        """The upper quartile, by which the best of several is chosen: one that varies is no good choice."""
        return max(self.get_device_seconds()) if len(self.get_device_seconds()) < 4 else self.compute_quartiles()[2]

    def wall_to_cpu_ratio(self) -> float:
        """Wall over processor time, 1 where wall time counts anyway."""
        return (
            statistics.median(self.wall_seconds) / statistics.median(self.cpu_seconds)
            if self.get_device_seconds() is self.cpu_seconds
            else 1.0
        )

    def relative_spread(self) -> float:
        """The distance of the quartiles over the median."""
        if len(self.get_device_seconds()) < 2:
            return 0.0
        low, _, high = self.compute_quartiles()
        return (high - low) / self.median_seconds()


def compute_speedup(slow: Timing, fast: Timing) -> float | None:
    """How many times as long `slow` takes; None where the machine was too busy to say."""
    return (
        None
        if max(slow.wall_to_cpu_ratio(), fast.wall_to_cpu_ratio()) > MAX_WALL_TO_CPU
        else slow.median_seconds() / fast.median_seconds()
    )


def time_call(work: Callable[[], object]) -> tuple[float, float, object]:
    """Processor and wall seconds of `work`, and what it gives."""
    cpu, wall = time.process_time(), time.perf_counter()
    value = work()
    return time.process_time() - cpu, time.perf_counter() - wall, value


def choose_num_repeats(work: Callable[[], object], target_seconds: float = 0.5) -> int:
    """How often something short is to be done to take about `seconds`."""
    work()
    return max(1, round(target_seconds / max(time_call(work)[1], 1e-9)))


class VariantUnavailable(Exception):
    """A variant that cannot run here, and why."""


class VariantWorker:
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
            self.info = self.send_request({"module": variant.module, "spec": variant.spec, "core": core})
        except VariantUnavailable:
            self.close()
            raise

    def send_request(self, request: dict) -> dict:
        """The answer to a message. Raises `VariantUnavailable` with what the process said when it could not."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            raise VariantUnavailable(f"its process ended with {self.process.wait()}") from None
        if "error" in answer:
            raise VariantUnavailable(answer["error"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with suppress(OSError):  # what it did not read any more
            self.process.stdin.close()


@contextmanager
def drop_if_unavailable(
    variant_name: str, workers: dict[str, VariantWorker], log: Callable[[str], None]
) -> Iterator[None]:
    """A variant that fails inside is said to be left out, and its process ended."""
    try:
        yield
    except VariantUnavailable as error:
        log(f"{variant_name} is left out: {error}")
        if variant_name in workers:
            workers.pop(variant_name).close()


def time_alternately(
    variants: Sequence[Variant], rounds: int, units: int, core: int | None, log: Callable[[str], None]
) -> dict[str, Timing]:
    """Every variant's timing of `rounds` rounds, each of `units` units of work, in one run; the odd rounds backwards.

    A variant that cannot run here is left out, and `say` is told why.
    """
    workers: dict[str, VariantWorker] = {}
    try:
        for variant in variants:
            with drop_if_unavailable(variant.name, workers, log):
                workers[variant.name] = VariantWorker(variant, core)
        timings = {name: Timing(worker.info) for name, worker in workers.items()}
        for round in range(-1, rounds):  # the first one only warms up
            for name in list(workers)[:: -1 if round % 2 else 1]:
                with drop_if_unavailable(name, workers, log):
                    answer = workers[name].send_request({"units": units})
                    if not math.isfinite(answer["value"]):
                        raise VariantUnavailable(f"what it computes is {answer['value']}")
                    if round >= 0:
                        timings[name].cpu_seconds.append(answer["cpu"] / units)
                        timings[name].wall_seconds.append(answer["wall"] / units)
                        timings[name].values.append(answer["value"])
        for name in list(workers):
            with drop_if_unavailable(name, workers, log):
                timings[name].info |= workers[name].send_request({"units": 0})
        timings = {name: timing for name, timing in timings.items() if name in workers}
    finally:
        for worker in workers.values():
            worker.close()
    return timings
