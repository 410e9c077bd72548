"""EXAMPLES → ROWS: several examples in one row, where they would otherwise leave it partly empty.

The packing of Krell et al. (2021, https://arxiv.org/abs/2107.02027). Attention stays within an example, positions
start again with each, and every example has its own [CLS], so a row computes what its examples compute apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encoders.data.formats import LABEL, Around, Format, row_sizes
from encoders.data.store import Split


@dataclass(frozen=True)
class Packed(Around):
    """The examples of `format`, up to `most` of them in a row."""

    format: Format
    most: int = 8

    def __post_init__(self):
        if isinstance(self.format, Packed):
            raise ValueError("the format of Packed is Packed itself; its rows are packed already")
        if self.most < 1:
            raise ValueError(f"most={self.most} must be at least 1")

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        examples = self.format.table(split, documents, length, seed, number)
        row, slot = pack(row_sizes(examples, self.between), length, self.most)
        rows = np.zeros((row.max(initial=-1) + 1, self.most, LABEL + 1), np.int64)
        rows[row, slot] = examples
        return rows


def pack(sizes: np.ndarray, length: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of `length` tokens, and place in it, of each example: the largest first, each into the fullest row it fits.

    >>> pack(np.array([3, 7, 5, 4]), 10, 8)[0].tolist()
    [0, 0, 1, 1]
    """
    rows, slots = np.empty((2, len(sizes)), np.int64)
    order = np.argsort(-sizes, kind="stable")
    least, count = sizes.min(initial=length), 0
    waiting: list[list[tuple[int, int]]] = [[] for _ in range(length + 1)]  # by free tokens: row, examples in it
    spaces = 0  # bit n is set where a row with n free tokens waits
    placed = []
    for size in sizes[order].tolist():
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row, slot = waiting[space].pop()
            if not waiting[space]:
                spaces ^= 1 << space
        else:
            space, row, slot, count = length, count, 0, count + 1
        placed.append((row, slot))
        left = space - size
        if left >= least and slot + 1 < most:
            waiting[left].append((row, slot + 1))
            spaces |= 1 << left
    rows[order], slots[order] = np.array(placed, np.int64).reshape(-1, 2).T
    return rows, slots
