"""Batches without two rows of an equal text: in contrastive training an equal text is not a negative."""

from __future__ import annotations

from collections import Counter

import numpy as np

from encoders.data.example_table import Table

LEFT_OUT = -1  # index of a row that no batch can hold


def list_row_texts(table: Table, num_texts: int) -> list[set[int]]:
    """Return the numbers of the first and the second text of each group of `num_texts` texts, for each row.

    The label of an example is the number of its text, equal for equal texts.
    """
    pairs = table.reshape(len(table), -1, num_texts)[:, :, :2].reshape(len(table), -1)
    is_text = pairs["a_end"] > pairs["a_start"]
    return [set(row[mask].tolist()) for row, mask in zip(pairs["label"], is_text, strict=True)]


def count_earlier_equal_texts(groups: Table) -> np.ndarray:
    """Return a number for each group, `[n]`: groups of one number share no first or second text.

    It is 0 for the first group of a text, 1 for the second one, and so on.
    """
    numbers, next_numbers = np.zeros(len(groups), np.int64), {}  # of each group, and the least one free for a text
    for i, texts in enumerate(list_row_texts(groups, groups.shape[1])):
        numbers[i] = max((next_numbers.get(text, 0) for text in texts), default=0)
        next_numbers |= dict.fromkeys(texts, numbers[i] + 1)
    return numbers


def separate_equal_texts(batches: np.ndarray, table: Table, num_texts: int) -> np.ndarray:
    """Return batches `[n b]` of row indices in which no two rows of a batch share the first or second text of a group.

    A row that shares one is exchanged with a row of another batch. It becomes `LEFT_OUT` where no batch can take it.
    """
    batches = batches.copy()
    row_texts = list_row_texts(table, num_texts)
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
