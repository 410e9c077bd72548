"""Example table: which tokens of a split each row of a batch holds.

A table is a NumPy array of `SPAN_DTYPE`, `[rows]`, or `[rows, examples]` where several examples share a row; zeros fill
the slots that are not used.
"""

from __future__ import annotations

import numpy as np

from encoders.data.store import Split

# One example: its segments as ranges of the split's tokens (B is empty, 0 to 0, where there is one segment only), the
# label of the pair, and the document that A begins in. All fields are int64, so that a table is built from one array.
SPAN_FIELDS = ("a_start", "a_end", "b_start", "b_end", "label", "document")
SPAN_DTYPE = np.dtype([(name, np.int64) for name in SPAN_FIELDS])
Table = np.ndarray  # of SPAN_DTYPE


def build_empty_table(*shape: int) -> Table:
    return np.zeros(shape, SPAN_DTYPE)


def rows_to_table(rows: list[tuple[int, ...]]) -> Table:
    """Return the table of rows that hold the fields in the order of `SPAN_FIELDS`."""
    return np.array(rows, np.int64).reshape(-1, len(SPAN_FIELDS)).view(SPAN_DTYPE)[:, 0]


def add_example_axis(table: Table) -> Table:
    """Return a table as `[rows, examples]`, also where each row holds one example."""
    return table if table.ndim == 2 else table[:, None]


def measure_segments(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of tokens of A and of B."""
    return table["a_end"] - table["a_start"], table["b_end"] - table["b_start"]


def count_row_tokens(table: Table, num_separators: int = 1) -> np.ndarray:
    """Return the number of tokens of each row, `[rows]`, special tokens included."""
    size_a, size_b = measure_segments(add_example_axis(table))
    return ((size_a + 2) * (size_a > 0) + (size_b + num_separators) * (size_b > 0)).sum(axis=1)


def count_cut_documents(table: Table, split: Split) -> int:
    """Return how many documents of a split have a token that no row of the table holds, the last separator aside."""
    changes = np.zeros(len(split.tokens) + 1, np.int64)
    for start, end in (("a_start", "a_end"), ("b_start", "b_end")):
        changes += np.bincount(table[start].ravel(), minlength=len(changes))
        changes -= np.bincount(table[end].ravel(), minlength=len(changes))
    is_held = np.cumsum(changes[:-1]) > 0
    edges = split.sentence_offsets[split.document_offsets]
    is_held[edges[1:] - 1] = True
    return int((~np.logical_and.reduceat(is_held, edges[:-1])).sum())


def swap_segments(table: Table) -> Table:
    """Return a copy of a table in which A and B have changed places."""
    swapped = table.copy()
    swapped["a_start"], swapped["a_end"] = table["b_start"], table["b_end"]
    swapped["b_start"], swapped["b_end"] = table["a_start"], table["a_end"]
    return swapped
