"""Messages of the command line: which errors speak for themselves, and where lines are logged."""

from __future__ import annotations

import sys

from encoders.data.beam_runner import UnfinishedWork
from encoders.data.row_files import RowError
from encoders.exchange.weights import CheckpointError
from encoders.run.folder import RunError
from encoders.text.source import CorpusError
from encoders.training import distributed
from encoders.utils.serialization import ExperimentError

EXPECTED_ERRORS = (
    ExperimentError, CorpusError, RowError, RunError, CheckpointError, UnfinishedWork, distributed.DistributedError,
)  # fmt: skip


def is_expected(error: Exception) -> bool:
    """Return whether the message of an error says all, so that no traceback is shown."""
    return isinstance(error, EXPECTED_ERRORS) or type(error) is ValueError


def log_to_stderr(line: str) -> None:
    if distributed.is_primary():
        print(line, file=sys.stderr)
