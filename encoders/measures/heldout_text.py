"""The held-out text that a pre-training run was evaluated on, for measures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from encoders.data.batch import Batch
from encoders.data.spec import PretrainingData
from encoders.data.stream import iter_eval_batches
from encoders.experiment import Experiment
from encoders.run.run import Run


def find_text_problem(run: Run) -> str | None:
    """Return why a run lacks held-out text, or None."""
    if not isinstance(run.spec, Experiment):
        return "it was imported and has no held-out text"
    return None if isinstance(run.spec.data, PretrainingData) else "it was trained on labelled rows, not on text"


def iter_heldout_batches(run: Run, max_batches: int) -> Iterator[Batch]:
    """Yield the held-out batches of a run in the format of its last phase, as its own evaluation reads them."""
    phase, tables_dir = run.experiment.phases[-1], run.store.path / "tables"
    yield from iter_eval_batches(run.store.eval_splits[0], run.vocab, phase, phase.batch_size, max_batches, tables_dir)


def count_train_tokens(run: Run) -> np.ndarray:
    """Return how often each ordinary token occurs in the training text, `[vocab_size]`; 0 for special tokens."""
    counts = np.bincount(run.store.train_split.tokens, minlength=run.vocab.vocab_size)
    counts[list(run.vocab.special_ids)] = 0
    return counts
