"""Stop requests: after a signal or at a time limit a run finishes its step, saves a checkpoint and ends."""

import re
import signal
import threading
import time
from types import FrameType
from typing import Self

from encoders.run.preemption_notice import PreemptionNotice
from encoders.training import distributed
from encoders.utils.errors import UserError

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes
SECONDS_PER_UNIT = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


class RunStopped(Exception):
    """A run that has ended on request, after it saved a checkpoint."""


class StopRequest:
    """Context in which SIGTERM, SIGINT, a notice of Compute Engine and a time limit in seconds request a stop.

    A second signal ends the process.
    Signals reach the main thread alone. With several processes JAX handles SIGTERM: it informs the others, and finds a
    step after which all of them end.
    """

    def __init__(self, time_limit: float | None = None):
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.received_signal: signal.Signals | None = None
        self.previous_handlers: dict[signal.Signals, object] = {}
        self.was_broadcast = self.is_agreed = False
        self.num_polls, self.notice = 0, PreemptionNotice()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handled = (signal.SIGINT,) if distributed.is_multi_process() else (signal.SIGTERM, signal.SIGINT)
            for number in handled:
                self.previous_handlers[number] = signal.signal(number, self.handle_signal)
        self.notice.start()
        return self

    def __exit__(self, *error) -> None:
        self.notice.stop()
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self.received_signal:
            raise KeyboardInterrupt
        self.received_signal = signal.Signals(signal_number)

    def get_local_reason(self) -> str | None:
        """Return why this process should stop, or None."""
        if self.received_signal:
            return self.received_signal.name
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "the time limit"
        return self.notice.reason

    def poll_reason(self) -> str | None:
        """Return why the run stops after this step, or None. Each of several processes polls after every step."""
        # Unlike steps, polls count on from one experiment to the next, as JAX's agreement needs.
        self.num_polls += 1
        reason = self.get_local_reason()
        if not distributed.is_multi_process():
            return reason
        if reason and not self.was_broadcast:
            self.was_broadcast = True
            distributed.broadcast_stop()
        self.is_agreed = self.is_agreed or distributed.stop_requested_at(self.num_polls)
        return (reason or "a signal to one of its processes") if self.is_agreed else None


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as 3h55m or 90s. Raises `ValueError` for anything else.

    >>> parse_duration("3h55m"), parse_duration("90s"), parse_duration("1d")
    (14100.0, 90.0, 86400.0)
    """
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not text.strip() or not match:
        raise UserError(f"{text!r} is not a duration; write 3h55m, 90s or 1d")
    counts = [int(count or 0) for count in match.groups()]
    return float(sum(count * size for count, size in zip(counts, SECONDS_PER_UNIT.values(), strict=True)))


def format_duration(seconds: float) -> str:
    """Return seconds in the two largest units, as `parse_duration` reads them.

    >>> format_duration(14_100), format_duration(59.6), format_duration(100_000)
    ('3h55m', '1m', '1d3h')
    """
    remainder, counts = round(seconds), {}
    for unit, size in SECONDS_PER_UNIT.items():
        counts[unit], remainder = divmod(remainder, size)
    first = next((i for i, count in enumerate(counts.values()) if count), len(counts) - 1)
    largest = list(counts.items())[first : first + 2]
    return "".join(f"{count}{unit}" for unit, count in largest if count or len(largest) == 1)
