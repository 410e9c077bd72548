"""Several short texts in a row: rows hold hardly any padding, and few shapes are compiled.

Attention stays within a text and positions start anew, as in packed training rows, so a text has the vector that it
has alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Int

from encoders.data.batch import Batch, HostOrDeviceArray
from encoders.data.packing import pack_examples
from encoders.inference import text_batch
from encoders.inference.text_batch import TextBatch
from encoders.text.tokenization import VocabInfo

MAX_ROW_LENGTH, TOKENS_PER_TEXT = 64, 8  # a row of l tokens holds at most l / 8 texts
MIN_BATCHES = 4  # of short texts: fewer are not packed


class PackedTexts(struct.PyTreeNode):
    """Rows of b rows, l tokens and up to s texts, int32; the rest of a row is padding.

    `lengths [b s]` are the tokens of each text, 0 behind the last, and `first_lengths [b s]` those up to its first
    separator.
    """

    input_ids: Int[HostOrDeviceArray, "b l"]
    lengths: Int[HostOrDeviceArray, "b s"]
    first_lengths: Int[HostOrDeviceArray, "b s"]

    def to_batch(self) -> Batch:
        """Return the batch that the network reads, inside of a compiled function."""
        lengths = jnp.asarray(self.lengths)
        ends = jnp.cumsum(lengths, axis=1)
        starts, row_positions = ends - lengths, jnp.arange(self.input_ids.shape[1])[None]
        is_token = row_positions < ends[:, -1:]
        # The number of texts that end before a token, which is the slot of its own.
        slots = (row_positions[..., None] >= ends[:, None]).sum(-1)
        take_own = lambda values: jnp.take_along_axis(values, jnp.minimum(slots, ends.shape[1] - 1), axis=1)
        positions = jnp.where(is_token, row_positions - take_own(starts), 0)
        is_second = is_token & (positions >= take_own(jnp.asarray(self.first_lengths)))
        zeros = jnp.zeros_like(starts)
        return Batch(
            input_ids=jnp.asarray(self.input_ids),
            example_ids=jnp.where(is_token, slots + 1, 0).astype(jnp.int32),
            token_type_ids=is_second.astype(jnp.int32),
            position_ids=positions.astype(jnp.int32),
            cls_positions=jnp.minimum(starts, self.input_ids.shape[1] - 1),
            example_index=zeros,
            pass_index=zeros,
            example_mask=(lengths > 0).astype(jnp.int32),
        )


AnyTextBatch = TextBatch | PackedTexts


def choose_row_length(lengths: Sequence[int]) -> int | None:
    """Return the longest of the lengths up to 64, or None where its rows hold one text."""
    length = max((length for length in lengths if length <= MAX_ROW_LENGTH), default=0)
    return length if length >= 2 * TOKENS_PER_TEXT else None


def list_row_counts(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of packed rows of a batch: a row holds several texts, so they are half of the batch sizes."""
    return text_batch.list_batch_sizes(max(batch_sizes[-1] // 2, 1))


def iter_packed_batches(
    rows: Sequence[list[list[int]]],
    lengths: Sequence[int],
    batch_sizes: Sequence[int],
    vocab: VocabInfo,
    num_separators: int,
) -> Iterator[tuple[list[int], AnyTextBatch]]:
    """Yield the indices of rows and their batch, as `iter_text_batches`; many short rows are packed.

    The texts of a packed batch are in the order of its rows and their slots.
    """
    row_length = choose_row_length(lengths)
    sizes = [text_batch.measure_row(ids, num_separators) for ids in rows]
    short = [i for i, size in enumerate(sizes) if row_length and size <= row_length]
    if len(short) < MIN_BATCHES * batch_sizes[-1]:
        short = []
    unpacked = sorted(set(range(len(rows))).difference(short))
    unpacked_rows = [rows[i] for i in unpacked]
    for indices, batch in text_batch.iter_text_batches(unpacked_rows, lengths, batch_sizes, vocab, num_separators):
        yield [unpacked[i] for i in indices], batch
    if not short:
        return
    max_texts, row_counts = row_length // TOKENS_PER_TEXT, list_row_counts(batch_sizes)
    packed: dict[int, list[int]] = {}
    for index, row in zip(short, pack_examples(np.array(sizes)[short], row_length, max_texts)[0], strict=True):
        packed.setdefault(int(row), []).append(index)
    for start in range(0, len(packed), row_counts[-1]):
        contents = [packed[row] for row in range(start, min(start + row_counts[-1], len(packed)))]
        shape = next(count for count in row_counts if count >= len(contents)), row_length, max_texts
        texts = [[rows[i] for i in indices] for indices in contents]
        yield [*chain.from_iterable(contents)], build_packed_texts(texts, shape, vocab, num_separators)


def build_packed_texts(
    rows: Sequence[Sequence[list[list[int]]]], shape: tuple[int, int, int], vocab: VocabInfo, num_separators: int
) -> PackedTexts:
    """Return rows of texts, each the token ids of one text or two, as packed texts of the shape `(b, l, s)`."""
    input_ids = np.full(shape[:2], vocab.pad_id, np.int32)
    lengths, first_lengths = np.zeros((2, shape[0], shape[2]), np.int32)
    for row, texts in enumerate(rows):
        start = 0
        for slot, ids in enumerate(texts):
            joined, first_lengths[row, slot] = text_batch.join_texts(ids, vocab, num_separators)
            lengths[row, slot] = len(joined)
            input_ids[row, start : start + len(joined)] = joined
            start += len(joined)
    return PackedTexts(input_ids, lengths, first_lengths)


def iter_padding_batches(lengths: Sequence[int], batch_sizes: Sequence[int]) -> Iterator[PackedTexts]:
    """Yield a batch of padding of each shape."""
    if row_length := choose_row_length(lengths):
        for count in list_row_counts(batch_sizes):
            text_counts = np.zeros((count, row_length // TOKENS_PER_TEXT), np.int32)
            yield PackedTexts(np.zeros((count, row_length), np.int32), text_counts, text_counts)
