"""Texts as batches of few shapes, so that few programs are compiled: rows of one text or two, with their lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Int

from encoders.data.batch import Batch, HostOrDeviceArray, build_single_example_batch
from encoders.data.example_table import build_empty_table
from encoders.data.store import Split
from encoders.objectives.masking import MaskedBatch
from encoders.run.folder import RunError
from encoders.tasks.text_tasks import truncate_pairs
from encoders.text.tokenization import VocabInfo

MIN_LENGTH = 16  # of the default lengths
TextOrPair = str | tuple[str, str]
Texts = str | Iterable[TextOrPair]  # one string is one text
EncodeFn = Callable[[TextOrPair], list[list[int]]]  # returns the token ids of one text or two


class TextBatch(struct.PyTreeNode):
    """Rows `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` of b rows and l tokens, int32; the rest is padding.

    `lengths [b]` are the tokens of each row, and `first_lengths [b]` those up to the first separator. A row of length 0
    fills the batch.
    """

    input_ids: Int[HostOrDeviceArray, "b l"]
    lengths: Int[HostOrDeviceArray, "b"]
    first_lengths: Int[HostOrDeviceArray, "b"]

    def to_batch(self) -> Batch:
        """Return the batch that the network reads, inside of a compiled function."""
        positions = jnp.arange(self.input_ids.shape[1])
        is_second = (positions >= self.first_lengths[:, None]) & (positions < self.lengths[:, None])
        batch = build_single_example_batch(self.input_ids, is_second.astype(jnp.int32), self.lengths)
        return jax.tree.map(jnp.asarray, batch)

    def to_masked_batch(self, mask_id: int, num_positions: int) -> MaskedBatch:
        """Return the batch with the first masks of each row; other positions among them have the weight 0."""
        rows = self.to_batch()
        is_mask = rows.input_ids == mask_id
        positions = jnp.argsort(~is_mask, axis=1, stable=True)[:, :num_positions]
        return MaskedBatch(
            **rows.get_arrays(),
            clean_ids=rows.input_ids,
            masked_positions=positions,
            masked_labels=jnp.take_along_axis(rows.input_ids, positions, axis=1),
            masked_weights=jnp.take_along_axis(is_mask, positions, axis=1).astype(jnp.float32),
        )


def list_lengths(max_length: int) -> tuple[int, ...]:
    """Return the powers of two from 16 on and the numbers halfway between them, up to `max_length`.

    >>> list_lengths(100)
    (16, 24, 32, 48, 64, 96, 100)
    """
    powers = (MIN_LENGTH << exponent for exponent in range(max_length.bit_length()))
    lengths = chain.from_iterable((power, power * 3 // 2) for power in powers)
    return (*(length for length in lengths if length < max_length), max_length)


def list_batch_sizes(batch_size: int) -> tuple[int, ...]:
    """Return the powers of four below `batch_size`, and itself.

    >>> list_batch_sizes(32)
    (1, 4, 16, 32)
    """
    return (*(4**exponent for exponent in range(batch_size.bit_length()) if 4**exponent < batch_size), batch_size)


def check_shapes(lengths: Sequence[int], batch_size: int, max_positions: int) -> None:
    """Raise `RunError` for lengths that do not ascend from 8 to at most `max_positions`, and for an empty batch."""
    if batch_size < 1:
        raise RunError(f"batch_size={batch_size} must be at least 1")
    if not lengths or any(a >= b for a, b in pairwise((min(8, max_positions) - 1, *lengths, max_positions + 1))):
        accepted = f"ascending numbers from 8 to model.max_positions={max_positions}"
        raise RunError(f"lengths={tuple(lengths)} must be {accepted}")


def is_pair(text: object) -> bool:
    return isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text)


def iter_texts(texts: Texts) -> Iterator[TextOrPair]:
    """Yield each text; one string is one text. Raises `RunError` for what is neither a text nor a pair of texts."""
    for text in [texts] if isinstance(texts, str) else texts:
        if not isinstance(text, str) and not is_pair(text):
            raise RunError(f"{text!r} is not a text; accepted are a string and a pair of strings")
        yield text


def iter_pairs(pairs: tuple[str, str] | Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield each pair of texts; two strings are one pair. Raises `RunError` for a text alone."""
    for pair in iter_texts([pairs] if is_pair(pairs) else pairs):
        if isinstance(pair, str):
            raise RunError(f"{pair!r} needs a second text; accepted are pairs of strings")
        yield pair


def cut_texts(ids: list[list[int]], max_length: int, num_separators: int) -> list[list[int]]:
    """Return the token ids of one text or two, cut at their ends as in training, so that their row fits."""
    table = build_empty_table(1)
    for name, text_ids in zip(("a_end", "b_end"), ids, strict=False):
        table[name] = len(text_ids)
    truncate_pairs(table, max_length, num_separators)
    return [text_ids[: table[name][0]] for name, text_ids in zip(("a_end", "b_end"), ids, strict=False)]


def measure_row(ids: list[list[int]], num_separators: int) -> int:
    """Return the length of the row of one text or two, special tokens included."""
    return sum(map(len, ids)) + (2 if len(ids) == 1 else 2 + num_separators)


def iter_text_batches(
    rows: Sequence[list[list[int]]],
    lengths: Sequence[int],
    batch_sizes: Sequence[int],
    vocab: VocabInfo,
    num_separators: int,
) -> Iterator[tuple[list[int], TextBatch]]:
    """Yield the indices of rows, longest first, and their batch.

    `rows` are the token ids of one text or two that fit into the last of `lengths`. A batch has the least length and
    the least size that hold its rows.
    """
    sizes = [measure_row(ids, num_separators) for ids in rows]
    order = sorted(range(len(rows)), key=sizes.__getitem__, reverse=True)
    for start in range(0, len(rows), batch_sizes[-1]):
        indices = order[start : start + batch_sizes[-1]]
        length = next(length for length in lengths if length >= sizes[indices[0]])
        batch_size = next(size for size in batch_sizes if size >= len(indices))
        yield indices, build_text_batch([rows[i] for i in indices], (batch_size, length), vocab, num_separators)


def build_text_batch(
    rows: Sequence[list[list[int]]], shape: tuple[int, int], vocab: VocabInfo, num_separators: int
) -> TextBatch:
    """Return rows as a batch of a shape."""
    input_ids = np.full(shape, vocab.pad_id, np.int32)
    lengths, first_lengths = np.zeros((2, shape[0]), np.int32)
    for row, ids in enumerate(rows):
        joined, first_lengths[row] = join_texts(ids, vocab, num_separators)
        lengths[row] = len(joined)
        input_ids[row, : len(joined)] = joined
    return TextBatch(input_ids, lengths, first_lengths)


def join_texts(ids: list[list[int]], vocab: VocabInfo, num_separators: int) -> tuple[list[int], int]:
    """Return the row of one text or two, and its length up to the first separator.

    The second of two separators (RoBERTa) belongs to the second text.
    """
    first, *second = ids
    joined = [vocab.cls_id, *first, vocab.sep_id]
    first_length = len(joined)
    if second:
        joined += [*[vocab.sep_id] * (num_separators - 1), *second[0], vocab.sep_id]
    return joined, first_length


def make_padding_batch(shape: tuple[int, int]) -> TextBatch:
    """Return a batch of padding, for shapes."""
    row_counts = np.zeros(shape[0], np.int32)
    return TextBatch(np.zeros(shape, np.int32), row_counts, row_counts)


def name_tokens(batch: TextBatch, values: Sequence, name_token: Callable[[int], str]) -> list[list[tuple]]:
    """Return for each row of `values [b l ...]` the names of its tokens with their values, without padding."""
    rows = []
    for ids, row_values, size in zip(batch.input_ids.tolist(), values, batch.lengths.tolist(), strict=True):
        rows.append(list(zip(map(name_token, ids[:size]), row_values[:size], strict=True)))
    return rows


def chunk_items(items: Iterable, size: int) -> Iterator[tuple]:
    """Yield the items in tuples of `size`; `itertools.batched` needs Python 3.12."""
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


def build_split(rows: list[list[list[int]]], vocab, columns: dict, metadata: tuple[dict, ...] = ()) -> Split:
    """Return rows of one or two token sequences as a split in memory: a row is a document, a sequence a sentence."""
    tokens = list(chain.from_iterable(ids for sequences in rows for ids in (*sequences, [vocab.sep_id])))
    sizes = [size for sequences in rows for size in (*map(len, sequences[:-1]), len(sequences[-1]) + 1)]
    sentence_offsets, document_offsets = np.cumsum([0, *sizes]), np.cumsum([0, *map(len, rows)])
    return Split("new", np.array(tokens), sentence_offsets, document_offsets, columns, in_memory_metadata=metadata)
