"""EXAMPLES → ROWS: several examples share a row, which one example would leave partly empty.

The packing of Krell et al. (2021, https://arxiv.org/abs/2107.02027). Attention stays within an example, positions
start again with each, and every example has its own [CLS], so a row computes the same as its examples in separate rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encoders.data.example_table import build_empty_table, count_row_tokens
from encoders.data.formats import Format, FormatWrapper
from encoders.data.store import Split


@dataclass(frozen=True)
class PackedFormat(FormatWrapper):
    """Examples of `format`, up to `max_examples_per_row` of them in a row."""

    format: Format
    max_examples_per_row: int = 8

    def __post_init__(self):
        if isinstance(self.format, PackedFormat):
            raise ValueError(
                f"the format of PackedFormat is {type(self.format).__name__}; give it the inner format instead"
            )
        if self.max_examples_per_row < 1:
            raise ValueError(f"max_examples_per_row={self.max_examples_per_row} must be at least 1")

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        examples = self.format.build_example_table(split, documents, seq_length, seed, pass_index)
        row, slot = pack_examples(
            count_row_tokens(examples, self.num_separators), seq_length, self.max_examples_per_row
        )
        rows = build_empty_table(row.max(initial=-1) + 1, self.max_examples_per_row)
        rows[row, slot] = examples
        return rows


def pack_examples(
    example_lengths: np.ndarray, seq_length: int, max_examples_per_row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each example and its slot there: the longest first, each in the fullest row that it fits.

    >>> pack_examples(np.array([3, 7, 5, 4]), 10, 8)[0].tolist()
    [0, 0, 1, 1]
    """
    rows, slots = np.empty((2, len(example_lengths)), np.int64)
    order = np.argsort(-example_lengths, kind="stable")
    least, count = example_lengths.min(initial=seq_length), 0
    waiting: list[list[tuple[int, int]]] = [[] for _ in range(seq_length + 1)]  # (row, examples in it) by free tokens
    spaces = 0  # bit n is set where a row with n free tokens waits
    slots_taken = []
    for size in example_lengths[order].tolist():
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row, slot = waiting[space].pop()
            if not waiting[space]:
                spaces ^= 1 << space
        else:
            space, row, slot, count = seq_length, count, 0, count + 1
        slots_taken.append((row, slot))
        space_left = space - size
        if space_left >= least and slot + 1 < max_examples_per_row:
            waiting[space_left].append((row, slot + 1))
            spaces |= 1 << space_left
    rows[order], slots[order] = np.array(slots_taken, np.int64).reshape(-1, 2).T
    return rows, slots
