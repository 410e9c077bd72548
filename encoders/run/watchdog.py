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

    def __init__(self, seconds: float, say: Callable[[str], None]):
        self.seconds, self.say = seconds, say
        self.heard, self.over, self.step = threading.Event(), False, 0
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.over = True
        self.heard.set()
        self.thread.join()

    def beat(self, step: int | None = None) -> None:
        """Something has happened: `step` has finished, or a part of what comes after it."""
        self.step = self.step if step is None else step
        self.heard.set()

    def watch(self) -> None:
        silent = False
        while not self.over:
            if self.heard.wait(self.seconds or None):
                self.heard.clear()
                silent = False
                continue
            if silent:
                self.say(f"still nothing after step {self.step:,}: the process ends; the same command goes on")
                os._exit(1)
            silent = True
            self.say(f"nothing has happened for {self.seconds:.0f} s after step {self.step:,}; what each thread does:")
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
