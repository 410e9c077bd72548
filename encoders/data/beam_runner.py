"""Runners of units of work: this process, several processes of this machine, or Apache Beam."""

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
from typing import Protocol

from encoders.text.source import CorpusError, import_optional
from encoders.utils.errors import UserError

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h

LogFunction = Callable[[str], None]


class UnfinishedWork(UserError):
    """Work that was interrupted for a reason outside the corpus; finished units stay, and the same command resumes."""


class Runner(Protocol):
    def check_available(self) -> None:
        """Raise `ValueError` for missing packages, before any work."""

    def run_items(self, function: Callable, items: list, on_done: Callable[[int], None], log: LogFunction) -> None:
        """Call `function(item, log)` for every item, in any order, and `on_done` with the number of finished items.
        Raises the first error."""


@dataclass(frozen=True)
class LocalRunner:
    """Runner on this machine with `num_workers` processes; 1 is this process, whose libraries use all cores."""

    num_workers: int = 1

    def __post_init__(self):
        if self.num_workers < 1:
            raise UserError(f"--workers {self.num_workers} must be at least 1")

    def check_available(self) -> None:
        pass

    def run_items(self, function, items, on_done, log) -> None:
        if self.num_workers == 1 or len(items) < 2:
            for number, item in enumerate(items, 1):
                function(item, log)
                on_done(number)
            return
        # Not forked: a fork copies the locks of JAX's threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(self.num_workers, len(items)), context, setup_worker) as pool:
            try:
                for number, future in enumerate(as_completed([pool.submit(function, item) for item in items]), 1):
                    future.result()
                    on_done(number)
            except BrokenProcessPool:
                raise UnfinishedWork(
                    f"one of {self.num_workers} workers was killed, possibly because memory ran out; run the same "
                    "command again to resume, with fewer --workers to use less memory"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


DEFAULT_RUNNER = LocalRunner()


def setup_worker() -> None:
    """Set up a worker: one thread for each, and an end with the process that started it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with suppress(OSError, AttributeError):  # exists on Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class BeamRunner:
    """Apache Beam runner by its name, with pipeline options in the form of Beam's command line. Its workers need this
    package, and the corpus and the folder of stores under the same paths."""

    runner_name: str
    pipeline_options: tuple[str, ...] = ()

    def check_available(self) -> None:
        import_optional("apache_beam", f"--runner {self.runner_name}", "'encoders[beam]'")

    def run_items(self, function, items, on_done, log) -> None:
        beam = import_optional("apache_beam", f"--runner {self.runner_name}", "'encoders[beam]'")
        options = import_optional("apache_beam.options.pipeline_options", "--runner").PipelineOptions
        try:
            with beam.Pipeline(options=options([f"--runner={self.runner_name}", *self.pipeline_options])) as pipeline:
                work = pipeline | beam.Create(items) | beam.Reshuffle()
                work | beam.Map(function).with_output_types(type(None))
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            # A runner may pass on the whole traceback of a worker.
            errors = [line for line in str(error).splitlines() if re.match(r"(\w+\.)*\w+(Error|Exception): ", line)]
            line = f"--runner {self.runner_name}: {errors[-1] if errors else error}"
            if "No space left" in line:
                raise OSError(errno.ENOSPC, line) from error
            raise (CorpusError if "CorpusError" in line else UnfinishedWork)(line) from error
        on_done(len(items))
