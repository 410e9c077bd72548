"""Where units of work are done: in this process, in several of this machine, or on an Apache Beam runner."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from encoders.text.source import CorpusError, needed

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h

Item = TypeVar("Item")
Say = Callable[[str], None]


class Unfinished(ValueError):
    """Work that did not end, by no fault of the corpus: what is finished stays, and the same command goes on."""


class Runner(Protocol):
    def check(self) -> None:
        """Raises a `ValueError` for what is missing, before any work."""

    def run(self, function: Callable[[Item, Say], None], items: list[Item], done: Callable[[int], None], say: Say):
        """`function(item, say)` for every item, in any order; `done(n)` is told how many are done. What fails first
        is raised."""


@dataclass(frozen=True)
class Here:
    """This machine, with `workers` processes; with 1, this process and all cores for what can use them."""

    workers: int = 1

    def __post_init__(self):
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers} must be at least 1")

    def check(self) -> None:
        pass

    def run(self, function, items, done, say) -> None:
        if self.workers == 1 or len(items) < 2:
            for number, item in enumerate(items, 1):
                function(item, say)
                done(number)
            return
        # Not forked: a fork copies the locks of JAX's threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(self.workers, len(items)), context, one_core) as pool:
            try:
                for number, future in enumerate(as_completed([pool.submit(function, item) for item in items]), 1):
                    future.result()
                    done(number)
            except BrokenProcessPool:
                raise Unfinished(
                    f"one of {self.workers} workers was ended from outside, perhaps for want of memory; the same "
                    "command goes on with what is not done, and fewer --workers need less"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


HERE = Here()


def one_core() -> None:
    """Set up a worker: there are as many as cores, and they end with the process that made them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with suppress(OSError, AttributeError):  # of Linux alone
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class Beam:
    """An Apache Beam runner by its name, with pipeline options as Beam's command line has them.

    Its workers need this package, and the corpus and the folder of stores under the same paths as here.
    """

    runner: str
    options: tuple[str, ...] = ()

    def check(self) -> None:
        needed("apache_beam", f"--runner {self.runner}", "beam")

    def run(self, function, items, done, say) -> None:
        beam = needed("apache_beam", f"--runner {self.runner}", "beam")
        options = needed("apache_beam.options.pipeline_options", "--runner").PipelineOptions
        try:
            with beam.Pipeline(options=options([f"--runner={self.runner}", *self.options])) as pipeline:
                work = pipeline | beam.Create(items) | beam.Reshuffle()
                work | beam.Map(function).with_output_types(type(None))
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            # A runner may hand on the whole traceback of a worker.
            named = [line for line in str(error).splitlines() if re.match(r"(\w+\.)*\w+(Error|Exception): ", line)]
            line = f"--runner {self.runner}: {named[-1] if named else error}"
            if "No space left" in line:
                raise OSError(errno.ENOSPC, line) from error
            raise (CorpusError if "CorpusError" in line else Unfinished)(line) from error
        done(len(items))
