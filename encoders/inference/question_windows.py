"""Questions about contexts as the windows that question answering reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from encoders.data.example_table import Table
from encoders.data.store import Split
from encoders.experiment import Experiment
from encoders.inference.text_batch import build_split
from encoders.run.run import Run
from encoders.tasks.squad import ContextWindows

DEFAULT_WINDOW_LENGTH = 384  # tokens, for imported runs


def build_question_windows(
    run: Run,
    questions: Sequence[tuple[str, str]],
    rows: list[list[list[int]]],
    offsets: Sequence[list[tuple[int, int]]],
    max_length: int,
) -> tuple[Split, Table]:
    """Return questions and contexts as a split, and the table of their windows of at most `max_length` tokens.

    `rows` are the token ids of each question and context, `offsets` the spans of the tokens of each text in turn.
    Raises `RowError` for a question that leaves no room in a row.
    """
    row_format = ContextWindows(num_separators=run.spec.model.conventions.num_separators)
    seq_length = DEFAULT_WINDOW_LENGTH
    if isinstance(run.spec, Experiment):
        phase = run.spec.phases[-1]
        row_format, seq_length = phase.format, phase.seq_length
    # The separator that ends a document has an offset too.
    places = chain.from_iterable((*a, *b, (0, 0)) for a, b in zip(offsets[::2], offsets[1::2], strict=True))
    columns = {"answer": np.full((len(questions), 2), -1), "places": np.array([*places])}
    metadata = tuple({"context": context, "place": repr(question)} for question, context in questions)
    split = build_split(rows, run.vocab, columns, metadata)
    return split, row_format.build_example_table(split, range(split.num_documents), min(seq_length, max_length), 0, 0)
