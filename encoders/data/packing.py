"""EXAMPLES → ROWS: several examples share a row, which one example would leave partly empty.

The packing of Krell et al. (2021, https://arxiv.org/abs/2107.02027). Attention stays within an example, positions
start again with each, and every example has its own [CLS], so a row computes the same as its examples in separate rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encoders.data.distinct_batches import count_earlier_equal_texts
from encoders.data.example_table import Table, add_example_axis, build_empty_table, count_row_tokens
from encoders.data.formats import Format, FormatWrapper
from encoders.data.store import Split
from encoders.utils.errors import UserError


@dataclass(frozen=True)
class PackedFormat(FormatWrapper):
    """Examples of `format`, up to `max_examples_per_row` of them in a row.

    Of a format whose rows are groups of texts, so many groups. No row holds an equal text in two of them.
    """

    format: Format
    max_examples_per_row: int = 8

    def __post_init__(self):
        if isinstance(self.format, PackedFormat):
            raise UserError("the format of PackedFormat is PackedFormat; give it the inner format instead")
        if self.max_examples_per_row < 1:
            raise UserError(f"max_examples_per_row={self.max_examples_per_row} must be at least 1")

    def build_example_table(self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int) -> Table:
        examples = add_example_axis(self.format.build_example_table(split, documents, seq_length, seed, pass_index))
        if not self.separates_equal_texts:
            return self.pack_rows(examples, seq_length)
        counts = count_earlier_equal_texts(examples)
        rows = [self.pack_rows(examples[counts == count], seq_length) for count in range(counts.max(initial=0) + 1)]
        return np.concatenate(rows)

    def pack_rows(self, examples: Table, seq_length: int) -> Table:
        """Return rows of examples, or of groups of them, `[examples s]`."""
        lengths = count_row_tokens(examples, self.num_separators)
        row, slot = pack_examples(lengths, seq_length, self.max_examples_per_row)
        rows = build_empty_table(row.max(initial=-1) + 1, self.max_examples_per_row, examples.shape[1])
        rows[row, slot] = examples
        return rows.reshape(len(rows), self.max_examples_per_row * examples.shape[1])


def pack_examples(example_lengths: np.ndarray, seq_length: int, max_examples_per_row: int) -> np.ndarray:
    """Return the row of each example and its slot there, `[2, examples]`: the longest first, each in the fullest row.

    >>> pack_examples(np.array([3, 7, 5, 4]), 10, 8)[0].tolist()
    [0, 0, 1, 1]
    """
    order = np.argsort(-example_lengths, kind="stable")
    least, count = example_lengths.min(initial=seq_length), 0
    waiting: list[list[tuple[int, int]]] = [[] for _ in range(seq_length + 1)]  # (row, examples in it) by free tokens
    spaces = 0  # bit n is set where a row with n free tokens waits
    row_slots = []
    for size in example_lengths[order].tolist():
        if fitting := spaces >> size:
            space = size + (fitting & -fitting).bit_length() - 1
            row, slot = waiting[space].pop()
            if not waiting[space]:
                spaces ^= 1 << space
        else:
            space, row, slot, count = seq_length, count, 0, count + 1
        row_slots.append((row, slot))
        space_left = space - size
        if space_left >= least and slot + 1 < max_examples_per_row:
            waiting[space_left].append((row, slot + 1))
            spaces |= 1 << space_left
    placed = np.empty((2, len(order)), np.int64)
    placed[:, order] = np.array(row_slots, np.int64).reshape(-1, 2).T
    return placed
