"""Batches without two rows of an equal text: in contrastive training an equal text is not a negative."""

from __future__ import annotations

from collections import Counter

import numpy as np

from encoders.data.example_table import Table

LEFT_OUT = -1  # index of a row that no batch can hold


def separate_equal_texts(batches: np.ndarray, table: Table) -> np.ndarray:
    """Return batches `[n b]` of row indices in which no two rows of a batch share their first or their second text.

    A row that shares one is exchanged with a row of another batch. It becomes `LEFT_OUT` where no batch can take it.
    The label of an example is the number of its text, equal for equal texts.
    """
    batches = batches.copy()
    is_text = table["a_end"][:, :2] > table["a_start"][:, :2]
    row_texts = [set(row[mask].tolist()) for row, mask in zip(table["label"][:, :2], is_text, strict=True)]
    text_counts = [Counter(text for row in batch for text in row_texts[row]) for batch in batches]

    def fits(row: int, batch: int, removed: int) -> bool:
        counts, freed = text_counts[batch], row_texts[removed]
        return all(counts[text] - (text in freed) == 0 for text in row_texts[row])

    def find_exchange(batch: int, row: int) -> tuple[int, int] | None:
        for shift in range(1, len(batches)):
            other = (batch + shift) % len(batches)
            for position, other_row in enumerate(batches[other].tolist()):
                if other_row != LEFT_OUT and fits(row, other, other_row) and fits(other_row, batch, row):
                    return other, position
        return None

    for batch, position in np.ndindex(batches.shape):
        row = int(batches[batch, position])
        if row == LEFT_OUT or all(text_counts[batch][text] == 1 for text in row_texts[row]):
            continue
        exchange = find_exchange(batch, row)
        other_row = LEFT_OUT if exchange is None else int(batches[exchange])
        text_counts[batch] -= Counter(row_texts[row])
        batches[batch, position] = other_row
        if exchange is not None:
            text_counts[batch] += Counter(row_texts[other_row])
            text_counts[exchange[0]] = (
                text_counts[exchange[0]] - Counter(row_texts[other_row]) + Counter(row_texts[row])
            )
            batches[exchange] = row
    return batches
