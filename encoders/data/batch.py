"""The rows of one training step, as one typed value that is passed whole from the data to the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Int

HostOrDeviceArray = np.ndarray | Array


class Batch(struct.PyTreeNode, kw_only=True):
    """Rows of tokens, numpy arrays on the host and jax arrays on a device.

    Axes: b rows, l tokens of a row, s examples of a row. A row holds one example unless its format packs several. All
    arrays are int32, labels aside.

    - `input_ids [b l]`: token ids, the padding id behind the last example.
    - `example_ids [b l]`: 0 on padding and n on the tokens of the row's n-th example. Attention stays within one id.
    - `token_type_ids [b l]`: 1 on the second text of an example and its last separator, else 0.
    - `position_ids [b l]`: position of the token in its example; 0 on padding.
    - `cls_positions [b s]`: position in the row of each example's first token, [CLS].
    - `example_index [b s]`: index of the example in its table, `row * s + slot`. Masks are drawn from it.
    - `pass_index [b s]`: number of the pass over the data, from 0.
    - `example_mask [b s]`: 1 where the slot holds an example, else 0.
    - `labels`: by name. A label of an example is `[b s]`, and one of a token `[b l]`. A label of a group of texts is
      `[b g]`, and its vector `[b g d]`.

    A row of three slots with two examples, "a b" before "c", and "d" alone:

        input_ids:      [CLS]  a  b  [SEP]  c  [SEP]  [CLS]  d  [SEP]  [PAD]
        example_ids:      1    1  1    1    1    1      2    2    2      0
        token_type_ids:   0    0  0    0    1    1      0    0    0      0
        position_ids:     0    1  2    3    4    5      0    1    2      0
        cls_positions:    0    6  0
        example_mask:     1    1  0
    """

    input_ids: Int[HostOrDeviceArray, "b l"]
    example_ids: Int[HostOrDeviceArray, "b l"]
    token_type_ids: Int[HostOrDeviceArray, "b l"]
    position_ids: Int[HostOrDeviceArray, "b l"]
    cls_positions: Int[HostOrDeviceArray, "b s"]
    example_index: Int[HostOrDeviceArray, "b s"]
    pass_index: Int[HostOrDeviceArray, "b s"]
    example_mask: Int[HostOrDeviceArray, "b s"]
    labels: Mapping[str, HostOrDeviceArray] = struct.field(default_factory=dict)

    @property
    def num_tokens(self):
        return (self.example_ids > 0).sum()

    def get_arrays(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def build_single_example_batch(
    input_ids: np.ndarray,
    token_type_ids: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
    first_index: int = 0,
) -> Batch:
    """Return rows of one example each, which fill `lengths [b]` tokens of `input_ids [b l]`, by default all.

    >>> batch = build_single_example_batch(np.array([[2, 9, 3], [2, 3, 0]]), lengths=np.array([3, 2]))
    >>> batch.position_ids.tolist(), batch.example_ids.tolist()
    ([[0, 1, 2], [0, 1, 0]], [[1, 1, 1], [1, 1, 0]])
    """
    num_rows, seq_length = input_ids.shape
    positions = np.broadcast_to(np.arange(seq_length, dtype=np.int32), input_ids.shape)
    is_token = positions < (seq_length if lengths is None else lengths[:, None])
    zeros = np.zeros((num_rows, 1), np.int32)
    return Batch(
        input_ids=input_ids.astype(np.int32),
        example_ids=is_token.astype(np.int32),
        token_type_ids=np.zeros(input_ids.shape, np.int32) if token_type_ids is None else token_type_ids,
        position_ids=positions * is_token,
        cls_positions=zeros,
        example_index=zeros + np.arange(first_index, first_index + num_rows, dtype=np.int32)[:, None],
        pass_index=zeros,
        example_mask=zeros + 1,
        labels=labels or {},
    )
