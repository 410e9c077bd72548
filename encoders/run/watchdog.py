"""A run that hangs says where, and ends."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable


class Watchdog:
    """A context that says what every thread does once nothing has been heard for `seconds`, and after as long again
    ends the process with status 1: what hangs in a device or in the network cannot be interrupted. 0 waits for ever.
    """

    def __init__(self, timeout_seconds: float, log: Callable[[str], None]):
        self.timeout_seconds, self.log = timeout_seconds, log
        self.progress_event, self.is_closed, self.last_step = threading.Event(), False, 0
        self.thread = threading.Thread(target=self.watch_progress, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.is_closed = True
        self.progress_event.set()
        self.thread.join()

    def record_progress(self, step: int | None = None) -> None:
        """Something has happened: `step` has finished, or a part of what comes after it."""
        self.last_step = self.last_step if step is None else step
        self.progress_event.set()

    def watch_progress(self) -> None:
        silent = False
        while not self.is_closed:
            if self.progress_event.wait(self.timeout_seconds or None):
                self.progress_event.clear()
                silent = False
                continue
            if silent:
                self.log(f"still nothing after step {self.last_step:,}: the process ends; the same command goes on")
                os._exit(1)
            silent = True
            self.log(
                f"nothing has happened for {self.timeout_seconds:.0f} s after step {self.last_step:,}; what each thread does:"
            )
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
