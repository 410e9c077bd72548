"""Rows of one example each, and the same examples in one row."""

import numpy as np

from encoders.data.batch import Batch, build_single_example_batch


def make_rows(*lengths: int, vocab_size: int = 40) -> Batch:
    """Rows of random tokens, of these lengths."""
    ids = np.random.default_rng(0).integers(5, vocab_size, (len(lengths), max(lengths)))
    return build_single_example_batch(ids, lengths=np.array(lengths))


def pack_rows(batch: Batch, *lengths: int) -> Batch:
    """One row of all examples, with two tokens of padding behind them and an empty slot."""
    join = lambda field: np.pad(np.concatenate([x[:n] for x, n in zip(field, lengths, strict=True)]), (0, 2))[None]
    return batch.replace(
        input_ids=join(batch.input_ids),
        token_type_ids=join(batch.token_type_ids),
        position_ids=join(batch.position_ids),
        example_ids=np.pad(np.repeat(np.arange(len(lengths)) + 1, lengths), (0, 2))[None].astype(np.int32),
        cls_positions=np.cumsum([0, *lengths[:-1], 0]).astype(np.int32)[None],
    )
