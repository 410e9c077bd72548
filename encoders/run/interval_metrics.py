"""Metrics of the steps since the last row of the log, and the row that they become."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax
import numpy as np

from encoders.training import distributed
from encoders.utils import metrics


@dataclass
class IntervalMetrics:
    """Metrics of the steps since the last row of the log; they stay on the device until the row is written."""

    sums: dict[str, metrics.Mean] = field(default_factory=dict)
    num_tokens: int = 0  # since the first step of the run
    pending_metrics: list[dict] = field(default_factory=list)
    start_time: float = field(default_factory=time.monotonic)
    tokens_at_start: int = 0
    seconds_waited: float = 0.0  # for devices and other processes, since the last row

    @classmethod
    def from_notes(cls, notes: dict) -> IntervalMetrics:
        """Return the metrics that a checkpoint's notes hold."""
        sums = {name: metrics.Mean(*map(np.float64, pair)) for name, pair in notes.get("pending", {}).items()}
        return cls(sums, notes.get("tokens", 0), tokens_at_start=notes.get("tokens", 0))

    def to_notes(self) -> dict:
        """Return the metrics as a JSON value for a checkpoint's notes."""
        self.fetch_pending()
        pending = {name: [float(x) for x in mean] for name, mean in self.sums.items()}
        return {"pending": pending, "tokens": self.num_tokens}

    def add_step(self, step_metrics: dict) -> None:
        """Add the metrics of a step, and wait until at most two steps are in flight.

        Several processes on CPUs have none in flight, since JAX below 0.12 hangs there.
        """
        jax.tree.map(lambda x: x.copy_to_host_async(), step_metrics)
        self.pending_metrics.append(step_metrics)
        in_flight = 0 if distributed.is_multi_process() and jax.default_backend() == "cpu" else 2
        if len(self.pending_metrics) > in_flight:
            with self.time_waiting():
                jax.block_until_ready(self.pending_metrics[-1 - in_flight])

    @contextmanager
    def time_waiting(self) -> Iterator[None]:
        started_at = time.monotonic()
        yield
        self.seconds_waited += time.monotonic() - started_at

    def fetch_pending(self) -> None:
        with self.time_waiting():
            fetched = jax.device_get(self.pending_metrics)
        self.num_tokens += sum(int(step_metrics.pop("tokens").total) for step_metrics in fetched)
        self.sums, self.pending_metrics = metrics.sum_means([self.sums, *fetched]), []

    def finish_interval(self) -> tuple[dict[str, metrics.Mean], dict[str, float]]:
        """Return the sums of the interval and its timing, and begin the next one."""
        self.fetch_pending()
        seconds = time.monotonic() - self.start_time
        timing = {
            "seconds": round(seconds, 3),
            "tokens_per_second": round((self.num_tokens - self.tokens_at_start) / seconds, 1),
            "waiting": round(self.seconds_waited, 3),
        }
        sums, self.sums, self.seconds_waited = self.sums, {}, 0.0
        self.start_time, self.tokens_at_start = time.monotonic(), self.num_tokens
        return sums, timing
