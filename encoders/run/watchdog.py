"""Watchdog: a run that hangs logs the stack of every thread, and ends."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from typing import Self


class Watchdog:
    """Context that logs the stacks of all threads after `timeout_seconds` without progress; a timeout of 0 never ends.

    After as many seconds again it ends the process with status 1: a hang in a device or a network is not interruptible.
    """

    def __init__(self, timeout_seconds: float, log: Callable[[str], None]):
        self.timeout_seconds, self.log = timeout_seconds, log
        self.progress_event, self.is_closed, self.last_step = threading.Event(), False, 0
        self.thread = threading.Thread(target=self.watch_progress, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.is_closed = True
        self.progress_event.set()
        self.thread.join()

    def record_progress(self, step: int | None = None) -> None:
        """Note progress: a finished step, or a batch of an evaluation."""
        if step is not None:
            self.last_step = step
        self.progress_event.set()

    def watch_progress(self) -> None:
        has_warned = False
        while not self.is_closed:
            if self.progress_event.wait(self.timeout_seconds or None):
                self.progress_event.clear()
                has_warned = False
            elif has_warned:
                self.log(
                    f"still no progress after step {self.last_step:,}: this process ends; the same command resumes"
                )
                os._exit(1)
            else:
                has_warned = True
                wait = f"{self.timeout_seconds:.0f} s"
                self.log(f"no progress for {wait} after step {self.last_step:,}; the stack of each thread:")
                faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
