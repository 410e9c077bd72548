"""Premises with a hypothesis that they entail and one that contradicts them, from rows of natural language inference.

SNLI is that of Bowman et al. (2015, https://arxiv.org/abs/1508.05326), and MNLI that of Williams et al. (2018,
https://arxiv.org/abs/1704.05426).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import NamedTuple

from encoders.data.row_files import Record, RowError, RowReader

NLI_LABELS = ("entailment", "neutral", "contradiction")
PAIRED_LABELS = ("entailment", "contradiction")
NO_LABELS = (None, "", "-")  # "-" is that of a row whose annotators do not agree


class Hypothesis(NamedTuple):
    """Row of a premise and a hypothesis, and its label, None for a row that is left out."""

    row: Record
    premise: str = ""
    text: str = ""
    label: str | None = None


def pair_hypotheses(
    rows: Iterator, text_columns: tuple[str, str], label_column: str, reader: RowReader
) -> Iterator[Record]:
    """Yield rows whose second column of texts holds two hypotheses: one that the premise, the first column, entails and
    one that contradicts it (SimCSE, Gao et al., 2021, https://arxiv.org/abs/2104.08821, §4).

    The n-th entailed hypothesis of a premise comes with its n-th contradicting one, as soon as the file has named both;
    the other values are those of the later row. Hypotheses that remain are left out. Rows without a label are left out
    as well, and listed in `reader.skipped_rows`. Raises `RowError` for another label where the reader stops at it.
    """
    premise_column, hypothesis_column = text_columns

    def read_hypothesis(row: Record) -> Hypothesis:
        label = row[label_column]
        if label in NO_LABELS:
            reader.skipped_rows.append(f"{row.location}: {label_column}={label!r}, the row has no label")
            return Hypothesis(row)
        if label not in NLI_LABELS:
            accepted = f"{', '.join(NLI_LABELS)}, or '-' for none"
            raise RowError(row.location, f"{label_column}={label!r} must be one of {accepted}")
        if label not in PAIRED_LABELS:
            return Hypothesis(row)
        return Hypothesis(row, row.get_text(premise_column), row.get_text(hypothesis_column), label)

    waiting = defaultdict(lambda: {label: deque() for label in PAIRED_LABELS})  # hypotheses of each premise
    for row, premise, text, label in reader.convert_rows(rows, read_hypothesis):
        if label is None:
            continue
        hypotheses = waiting[premise]
        hypotheses[label].append(text)
        if all(hypotheses.values()):
            pair = [texts.popleft() for texts in hypotheses.values()]
            yield Record(row.location, row.values | {hypothesis_column: pair})
        if not any(hypotheses.values()):
            del waiting[premise]
