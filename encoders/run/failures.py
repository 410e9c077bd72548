"""Failures of a run: explained in one line, and fatal at once in one of several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from encoders.experiment import Experiment
from encoders.run import diagnostics
from encoders.run.folder import RunError
from encoders.run.preemption import RunStopped
from encoders.training import distributed
from encoders.utils.files import is_disk_full


@contextmanager
def explain_failures(experiment: Experiment, folder: Path) -> Iterator[ExitStack]:
    """Yield a stack for what the run opens, close it at the end, and raise errors that say what to change.

    If one of several processes fails alone, it ends at once: closing checkpoints would wait for the others. An error
    that all processes have agreed on is raised as it is.
    """
    resources, stopped = ExitStack(), None
    try:
        try:
            yield resources
        except RunStopped as reason:
            stopped = reason
        resources.close()
    except BaseException as error:
        explained = explain_error(experiment, folder, error)
        if distributed.is_multi_process() and not isinstance(error, distributed.DistributedError):
            distributed.abort_all(explained)
        with suppress(Exception):  # the first error is the reason
            resources.close()
        if explained is error:
            raise
        raise explained from error
    if stopped:
        raise stopped


def explain_error(experiment: Experiment, folder: Path, error: BaseException) -> BaseException:
    """Return an error with advice for a full disk or too little memory, and any other error as it is."""
    if diagnostics.is_out_of_memory(error):
        return RunError(diagnostics.describe_out_of_memory(experiment, error))
    if is_disk_full(error):
        return RunError(
            f"no space is left in {folder}; earlier checkpoints are intact, and the same command resumes from the "
            "newest"
        )
    return error
