"""Runs that are asked to end: by a signal or at a time limit they finish the step, save, and say how to go on."""

from __future__ import annotations

import re
import signal
import threading
import time
from types import FrameType

from encoders.training import distributed

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
SECONDS_PER_UNIT = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


class RunStopped(Exception):
    """A run that was asked to end, and has saved where it is."""


class StopRequest:
    """A context in which SIGTERM, SIGINT and `seconds` ask the run to end; a second signal ends the process at once.

    Signals reach the main thread alone; elsewhere only the time counts. Of several processes each is told what one is:
    there SIGTERM stays with JAX, which tells the others and finds a step that all of them can end after.
    """

    def __init__(self, time_limit: float | None = None):
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.received_signal: signal.Signals | None = None
        self.previous_handlers: dict[signal.Signals, object] = {}
        self.was_broadcast, self.is_agreed, self.num_polls = False, False, 0

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGINT,) if distributed.is_multi_process() else (signal.SIGTERM, signal.SIGINT):
                self.previous_handlers[each] = signal.signal(each, self.handle_signal)
        return self

    def __exit__(self, *error) -> None:
        for each, handler in self.previous_handlers.items():
            signal.signal(each, handler)

    def handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self.received_signal:
            raise KeyboardInterrupt
        self.received_signal = signal.Signals(signal_number)

    def get_local_reason(self) -> str | None:
        """Why this process alone is to end, if it is."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return self.received_signal.name if self.received_signal else "the time limit" if late else None

    def poll_reason(self) -> str | None:
        """Why the run is to end after this step, if it is. Of several processes each asks after every step."""
        self.num_polls += 1  # unlike steps they go on from one member to the next, as what is agreed on has to
        why = self.get_local_reason()
        if not distributed.is_multi_process():
            return why
        if why and not self.was_broadcast:
            self.was_broadcast = True
            distributed.broadcast_stop()
        self.is_agreed = self.is_agreed or distributed.stop_requested_at(self.num_polls)
        return (why or "a signal to one of its processes") if self.is_agreed else None


def parse_duration(text: str) -> float:
    """A duration such as 3h55m or 90s. Raises `ValueError` for anything else.

    >>> parse_duration("3h55m"), parse_duration("90s"), parse_duration("1d")
    (14100.0, 90.0, 86400.0)
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not text.strip() or not found:
        raise ValueError(f"{text!r} is no duration such as 3h55m, 90s or 1d")
    return float(
        sum(int(count or 0) * size for count, size in zip(found.groups(), SECONDS_PER_UNIT.values(), strict=True))
    )


def format_duration(seconds: float) -> str:
    """Seconds as `parse_duration` reads them, in the two largest units.

    >>> format_duration(14_100), format_duration(59.6), format_duration(100_000)
    ('3h55m', '1m', '1d3h')
    """
    left, parts = round(seconds), []
    for unit, size in SECONDS_PER_UNIT.items():
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
        elif parts:
            break
    return "".join(parts[:2])
