"""Runs that are asked to end: by a signal or at a time limit they finish the step, save, and say how to go on."""

from __future__ import annotations

import re
import signal
import threading
import time
from types import FrameType

from encoders.training import distributed

STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


class Stopped(Exception):
    """A run that was asked to end, and has saved where it is."""


class Stop:
    """A context in which SIGTERM, SIGINT and `seconds` ask the run to end; a second signal ends the process at once.

    Signals reach the main thread alone; elsewhere only the time counts. Of several processes each is told what one is:
    there SIGTERM stays with JAX, which tells the others and finds a step that all of them can end after.
    """

    def __init__(self, seconds: float | None = None):
        self.until = None if seconds is None else time.monotonic() + seconds
        self.signal: signal.Signals | None = None
        self.before: dict[signal.Signals, object] = {}
        self.passed_on, self.agreed, self.asks = False, False, 0

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGINT,) if distributed.several() else (signal.SIGTERM, signal.SIGINT):
                self.before[each] = signal.signal(each, self.heard)
        return self

    def __exit__(self, *error) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)

    def heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def here(self) -> str | None:
        """Why this process alone is to end, if it is."""
        late = self.until is not None and time.monotonic() >= self.until
        return self.signal.name if self.signal else "the time limit" if late else None

    def asked(self) -> str | None:
        """Why the run is to end after this step, if it is. Of several processes each asks after every step."""
        self.asks += 1  # unlike steps they go on from one member to the next, as what is agreed on has to
        why = self.here()
        if not distributed.several():
            return why
        if why and not self.passed_on:
            self.passed_on = True
            distributed.pass_on()
        self.agreed = self.agreed or distributed.asked_at(self.asks)
        return (why or "a signal to one of its processes") if self.agreed else None


def seconds(text: str) -> float:
    """A duration such as 3h55m or 90s. Raises `ValueError` for anything else.

    >>> seconds("3h55m"), seconds("90s"), seconds("1d")
    (14100.0, 90.0, 86400.0)
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not text.strip() or not found:
        raise ValueError(f"{text!r} is no duration such as 3h55m, 90s or 1d")
    return float(sum(int(count or 0) * size for count, size in zip(found.groups(), UNITS.values(), strict=True)))


def duration(seconds: float) -> str:
    """Seconds as `seconds` reads them, in the two largest units.

    >>> duration(14_100), duration(59.6), duration(100_000)
    ('3h55m', '1m', '1d3h')
    """
    left, parts = round(seconds), []
    for unit, size in UNITS.items():
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
        elif parts:
            break
    return "".join(parts[:2])
