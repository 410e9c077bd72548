"""Batches of tests: any fields that matter, the others filled in."""

import numpy as np

from encoders.data.batch import Batch

TOKEN_FIELDS = ("input_ids", "example_ids", "token_type_ids", "position_ids")
EXAMPLE_FIELDS = ("cls_positions", "example_index", "pass_index", "example_mask")


def make_batch(input_ids, **fields) -> Batch:
    """Return a batch of `input_ids [b l]` and the given fields; the others are 0, with as many slots as the given ones.

    Fields that a batch has not are labels.
    """
    fields = {name: np.asarray(value) for name, value in fields.items()}
    slots = max((fields[name].shape[1] for name in EXAMPLE_FIELDS if name in fields), default=1)
    blank = dict.fromkeys(TOKEN_FIELDS, np.zeros(np.shape(input_ids), np.int32))
    blank |= dict.fromkeys(EXAMPLE_FIELDS, np.zeros((len(input_ids), slots), np.int32))
    labels = {name: fields.pop(name) for name in fields.keys() - blank.keys()}
    return Batch(**blank | fields | {"input_ids": np.asarray(input_ids)}, labels=labels)
