"""Batches of rows of several texts, as `TextGroups` makes them."""

import numpy as np

from encoders.data.batch import Batch
from encoders.data.store import Split
from encoders.data.stream import assemble_rows
from encoders.inference.text_batch import build_split
from encoders.tasks.text_groups import TextGroups
from tests.networks import make_vocab


def make_split(rows: list[list[list[int]]], similarity=None, group_ids=None) -> Split:
    """Return rows of texts, which are lists of token ids, as a split."""
    columns = {
        "similarity": np.full(len(rows), np.nan, np.float32)
        if similarity is None
        else np.array(similarity, np.float32),
        "group_id": np.zeros(len(rows), np.int32) if group_ids is None else np.array(group_ids, np.int32),
    }
    return build_split(rows, make_vocab(400), columns)


def make_table(split: Split, num_texts: int, seq_length: int) -> np.ndarray:
    return TextGroups(num_texts).build_example_table(split, range(split.num_documents), seq_length)


def make_text_batch(num_rows: int, num_texts: int, seq_length: int = 36, seed: int = 0) -> Batch:
    """Return rows of texts of random tokens and different lengths."""
    rng = np.random.default_rng(seed)
    rows = [[rng.integers(5, 400, rng.integers(2, 9)).tolist() for _ in range(num_texts)] for _ in range(num_rows)]
    split = make_split(rows)
    table = make_table(split, num_texts, seq_length)
    return assemble_rows(split, table, seq_length, make_vocab(400), TextGroups(num_texts))
