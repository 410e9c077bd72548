"""Timing of variants in alternating rounds, each in a pinned process of its own.

On a shared machine wall time is unreliable, so the processor time of one pinned core counts. A speed-up is reported
only where wall time shows that the core was free. On an accelerator the wall time of many steps in a row counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from encoders.utils.code_files import build_child_environment

ResultRow = dict[str, object]  # values of a table's row, by column
MAX_WALL_TO_CPU = 1.3  # wall over processor time, above which no speed-up is reported
# glibc returns freed memory to the system and faults it in again in every step; with these settings it does not.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True)
class Variant:
    """One side of a comparison: the work that `spec` describes, of the library `builder`, "jax" or "torch"."""

    name: str
    builder: str
    spec: dict
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Timing:
    """Facts about a variant, and by round the processor and wall seconds of a unit of its work and its value."""

    info: dict
    cpu_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def device_seconds(self) -> list[float]:
        """Return processor seconds on a CPU, and wall seconds on an accelerator."""
        return self.cpu_seconds if self.info.get("device", "cpu") == "cpu" else self.wall_seconds

    def median_seconds(self) -> float:
        return statistics.median(self.device_seconds)

    def compute_quartiles(self) -> list[float]:
        """Return the three quartiles; those of a single round are equal."""
        seconds = self.device_seconds
        return statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3

    def upper_quartile(self) -> float:
        """Return the upper quartile, by which the best variant is chosen: a choice that varies is a bad one."""
        return max(self.device_seconds) if len(self.device_seconds) < 4 else self.compute_quartiles()[2]

    def wall_to_cpu_ratio(self) -> float:
        """Return wall over processor time, or 1 where wall time counts."""
        if self.device_seconds is self.wall_seconds:
            return 1.0
        return statistics.median(self.wall_seconds) / statistics.median(self.cpu_seconds)

    def relative_spread(self) -> float:
        """Return the distance of the quartiles over the median."""
        low, median, high = self.compute_quartiles()
        return (high - low) / median


def compute_speedup(slow: Timing, fast: Timing) -> float | None:
    """Return the seconds of `slow` over those of `fast`; None where the machine was too busy to compare them."""
    if max(slow.wall_to_cpu_ratio(), fast.wall_to_cpu_ratio()) > MAX_WALL_TO_CPU:
        return None
    return slow.median_seconds() / fast.median_seconds()


def time_call(work: Callable[[], object]) -> tuple[float, float, object]:
    """Return the processor and wall seconds of `work()`, and its value."""
    cpu, wall = time.process_time(), time.perf_counter()
    value = work()
    return time.process_time() - cpu, time.perf_counter() - wall, value


def choose_num_repeats(work: Callable[[], object], target_seconds: float = 0.5) -> int:
    """Return the number of repeats of a short piece of work that take about `target_seconds`."""
    work()
    return max(1, round(target_seconds / max(time_call(work)[1], 1e-9)))


class VariantUnavailable(Exception):
    """A variant that cannot run on this machine, with the reason."""


class VariantWorker:
    """The process of one variant, which answers requests line by line."""

    def __init__(self, variant: Variant, core: int | None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "encoders.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=build_child_environment(**{"PYTHONWARNINGS": "ignore"} | variant.environment),
        )
        try:
            self.info = self.send_request(builder=variant.builder, spec=variant.spec, core=core)
        except VariantUnavailable:
            self.close()
            raise

    def send_request(self, **request) -> dict:
        """Return the answer to a request. Raises `VariantUnavailable` with the error of the process."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            raise VariantUnavailable(f"its process ended with status {self.process.wait()}") from None
        if "error" in answer:
            raise VariantUnavailable(answer["error"])
        return answer

    def close(self) -> None:
        with suppress(OSError), self.process:  # of requests that were not read
            self.process.kill()


def time_alternately(
    variants: Sequence[Variant], rounds: int, units: int, core: int | None, log: Callable[[str], None]
) -> dict[str, Timing]:
    """Return the timing of every variant over `rounds` rounds of `units` units of work; odd rounds run backwards.

    A variant that cannot run is left out, and the reason is logged.
    """
    workers: dict[str, VariantWorker] = {}

    @contextmanager
    def drop_if_unavailable(name: str) -> Iterator[None]:
        try:
            yield
        except VariantUnavailable as error:
            log(f"{name} is left out: {error}")
            if name in workers:
                workers.pop(name).close()

    try:
        for variant in variants:
            with drop_if_unavailable(variant.name):
                workers[variant.name] = VariantWorker(variant, core)
        timings = {name: Timing(worker.info) for name, worker in workers.items()}
        for round_index in range(-1, rounds):  # round -1 warms up
            for name in list(workers)[:: -1 if round_index % 2 else 1]:
                with drop_if_unavailable(name):
                    answer = workers[name].send_request(units=units)
                    if round_index >= 0:
                        timings[name].cpu_seconds.append(answer["cpu"] / units)
                        timings[name].wall_seconds.append(answer["wall"] / units)
                        timings[name].values.append(answer["value"])
        for name in list(workers):
            with drop_if_unavailable(name):
                timings[name].info |= workers[name].send_request(units=0)
        return {name: timing for name, timing in timings.items() if name in workers}
    finally:
        for worker in workers.values():
            worker.close()
