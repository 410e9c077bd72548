"""TOKENS → EXAMPLES: formats turn the sentences of a split into a table of token spans.

A table (`encoders.data.example_table`) is a pure function of (seed, pass, documents) and is built shard by shard.
`match_released_code` follows the authors' code exactly; otherwise its known errors are corrected, as each format says.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from random import Random
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from encoders.data.example_table import Table, build_empty_table, measure_segments, rows_to_table, swap_segments
from encoders.data.store import Split
from encoders.utils.errors import UserError

TABLE_VERSION = 2  # raised by every change of the code that changes the tables


@runtime_checkable
class Format(Protocol):
    """Way of cutting a split into examples.

    `label_fields` names the batch fields that the format adds. `varies_by_pass` is true where two passes differ.
    `num_separators` is the number of separators between two segments. `separates_equal_texts` is true where no batch
    may hold an equal text twice; its rows are groups of `num_texts` texts, and the label of an example in the table
    is the number of its text.
    """

    label_fields: tuple[str, ...]
    varies_by_pass: bool
    num_separators: int
    separates_equal_texts: bool

    def max_example_length(self, seq_length: int) -> int:
        """Return the largest number of tokens of an example in a row of `seq_length`."""

    def build_example_table(self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int) -> Table:
        """Return the examples of `documents` in rows of `seq_length` tokens, `[rows]` or `[rows, examples]`."""

    def build_label_fields(
        self, split: Split, spans: Table, cls_positions: np.ndarray, seq_length: int
    ) -> dict[str, np.ndarray]:
        """Return the `label_fields` of rows of a table; `spans` and `cls_positions` are `[rows, examples]`."""


class RunningTextFormat:
    """Base of the formats of running text: one separator, and at most one label field, which holds `label`."""

    label_fields: ClassVar[tuple[str, ...]] = ()
    num_separators: ClassVar[int] = 1
    separates_equal_texts: ClassVar[bool] = False

    def max_example_length(self, seq_length: int) -> int:
        return seq_length

    def build_label_fields(self, split, spans, cls_positions, seq_length) -> dict[str, np.ndarray]:
        return {name: spans["label"].astype(np.int32) for name in self.label_fields}


class FormatWrapper:
    """Base of the formats that arrange the examples of another one, `format`."""

    format: Format

    num_texts = property(attrgetter("format.num_texts"))  # of formats of several texts a row
    vector_size = property(attrgetter("format.vector_size"))
    label_fields = property(attrgetter("format.label_fields"))
    num_separators = property(attrgetter("format.num_separators"))
    varies_by_pass = property(attrgetter("format.varies_by_pass"))
    separates_equal_texts = property(attrgetter("format.separates_equal_texts"))
    max_example_length = property(attrgetter("format.max_example_length"))
    build_label_fields = property(attrgetter("format.build_label_fields"))


def make_keyed_rng(*key: int) -> Random:
    """Return the generator of a key, the same on all machines."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def truncate_span(start: int, end: int, num_dropped: int, rng: Random) -> tuple[int, int]:
    """Drop tokens of a span, each from the front or the back with equal chance (BERT's truncation)."""
    num_from_front = rng.getrandbits(num_dropped).bit_count() if num_dropped else 0
    return start + num_from_front, end - (num_dropped - num_from_front)


def truncate_pair(a: tuple[int, int], b: tuple[int, int], max_tokens: int, rng: Random) -> tuple[int, int, int, int]:
    """Shorten the longer of two spans, one token at a time, until together they have at most `max_tokens`."""
    size_a, size_b = a[1] - a[0], b[1] - b[0]
    excess = max(size_a + size_b - max_tokens, 0)
    num_until_equal = min(excess, abs(size_a - size_b))
    drop_a = (excess - num_until_equal) // 2 + (num_until_equal if size_a > size_b else 0)
    return *truncate_span(*a, drop_a, rng), *truncate_span(*b, excess - drop_a, rng)


class PairFormat(RunningTextFormat):
    """`[CLS] A [SEP] B [SEP]` of chunks of consecutive sentences, each split into A and B.

    Half of the Bs are random (`negatives="random"`), or half of the pairs are swapped (`"swapped"`). `iter_chunks` of a
    subclass yields the first sentence, the first sentence of B and the end of each chunk.
    """

    negatives: Literal["random", "swapped"]
    varies_by_pass: ClassVar[bool] = True

    def __post_init__(self):
        if self.negatives not in ("random", "swapped"):
            raise UserError(f"negatives={self.negatives!r} must be 'random' or 'swapped'")

    @property
    def label_fields(self) -> tuple[str, ...]:
        return ("next_sentence" if self.negatives == "random" else "sentence_order",)

    def build_example_table(self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int) -> Table:
        rows, rngs = [], []
        for document in documents:
            rng = make_keyed_rng(seed, pass_index, document)
            offsets = split.get_sentence_offsets(document)
            for first, middle, last in self.iter_chunks(offsets, seq_length - 3, rng):
                is_negative = rng.random() < 0.5
                spans = offsets[first], offsets[middle], offsets[middle], offsets[last]
                rows.append((*spans, is_negative, document))
                rngs.append(rng)
        table = rows_to_table(rows)
        negative_rows = np.flatnonzero(table["label"])
        if self.negatives == "random":
            exchange_second_segments(table, negative_rows)
        else:  # before truncation, which shortens the second of two equal segments, whichever it is
            table.put(negative_rows, swap_segments(table.take(negative_rows)))
        for row in np.flatnonzero(sum(measure_segments(table)) > seq_length - 3).tolist():
            a_start, a_end, b_start, b_end, label, document = table[row].item()
            spans = truncate_pair((a_start, a_end), (b_start, b_end), seq_length - 3, rngs[row])
            table[row] = *spans, label, document
        return table


@dataclass(frozen=True)
class SentencePairs(PairFormat):
    """RoBERTa's SENTENCE-PAIR (§4.2, never released): two natural sentences.

    The second is the next one of the document, or one of another document that is matched by length. Examples are far
    shorter than a row, so the paper raises the batch size.
    """

    negatives: Literal["random", "swapped"] = "random"

    def iter_chunks(self, offsets: list[int], max_tokens: int, rng: Random) -> Iterator[tuple[int, int, int]]:
        """Yield two sentences at a time, in each pass from the first or from the second sentence on."""
        count = len(offsets) - 1
        for first in range(rng.randint(0, 1) if count > 2 else 0, count - 1, 2):
            yield first, first + 1, first + 2


@dataclass(frozen=True)
class SegmentPairs(PairFormat):
    """`[CLS] A [SEP] B [SEP]` of BERT (`negatives="random"`: half of the Bs are random) and ALBERT ("swapped").

    `short_seq_prob` is the share of documents cut into shorter rows, with a target length drawn once a document.

    The released code betrays the label in three ways. A chunk of one sentence always gets a random B and label 1, also
    for SOP. A random B fills the row. The sentence that overflows the row is always B's, so B is the longer segment
    and a swap shows. By default all three are corrected: a chunk has two sentences at least, and a single last sentence
    is left out. Random Bs are the true ones of other documents, matched by length. Half of the documents are cut into
    chunks from their end. `match_released_code` restores the original.
    """

    negatives: Literal["random", "swapped"] = "random"
    short_seq_prob: float = 0.1
    match_released_code: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.short_seq_prob <= 1:
            raise UserError(f"short_seq_prob={self.short_seq_prob} must be from 0 to 1")

    def build_example_table(self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int) -> Table:
        if not self.match_released_code:
            return super().build_example_table(split, documents, seq_length, seed, pass_index)
        rows = []
        for document in documents:
            rows += self.iter_released_rows(split, document, seq_length - 3, make_keyed_rng(seed, pass_index, document))
        return rows_to_table(rows)

    def draw_target_length(self, max_tokens: int, rng: Random) -> int:
        return rng.randint(2, max_tokens) if rng.random() < self.short_seq_prob else max_tokens

    def iter_chunks(self, offsets: list[int], max_tokens: int, rng: Random) -> Iterator[tuple[int, int, int]]:
        """Yield chunks of sentences up to the target length, at least two."""
        target, first, count = self.draw_target_length(max_tokens, rng), 0, len(offsets) - 1
        from_end = rng.random() < 0.5
        if from_end:
            offsets = [-offset for offset in reversed(offsets)]
        while first + 2 <= count:
            last = min(max(bisect_left(offsets, offsets[first] + target, first + 1), first + 2), count)
            middle = first + rng.randint(1, last - first - 1)
            yield (count - last, count - middle, count - first) if from_end else (first, middle, last)
            first = last

    def iter_released_rows(self, split: Split, document: int, max_tokens: int, rng: Random) -> Iterator[tuple]:
        """Follow `create_instances_from_document` of google-research/bert and google-research/albert."""
        offsets, first = split.get_sentence_offsets(document), 0
        target, count = self.draw_target_length(max_tokens, rng), len(offsets) - 1
        while first < count:
            last = min(bisect_left(offsets, offsets[first] + target, first + 1), count)
            middle = first + (rng.randint(1, last - first - 1) if last - first > 1 else 1)
            a, b = (offsets[first], offsets[middle]), (offsets[middle], offsets[last])
            is_single, coin = last - first == 1, rng.random() < 0.5
            is_random = is_single or (coin and self.negatives == "random")
            if is_random:
                b, last = draw_span_elsewhere(split, document, target - (a[1] - a[0]), rng), middle
            elif coin:
                a, b = b, a
            yield *truncate_pair(a, b, max_tokens, rng), int(is_random or coin), document
            first = last


def draw_span_elsewhere(split: Split, document: int, num_tokens: int, rng: Random) -> tuple[int, int]:
    """Draw sentences of another document (ten tries, as released), from a random one on, up to `num_tokens`."""
    for _ in range(10):
        other = rng.randrange(split.num_documents)
        if other != document:
            break
    offsets = split.get_sentence_offsets(other)
    first = rng.randrange(len(offsets) - 1)
    last = min(bisect_left(offsets, offsets[first] + num_tokens, first + 1), len(offsets) - 1)
    return offsets[first], offsets[last]


def exchange_second_segments(table: Table, negative_rows: np.ndarray) -> None:
    """Give each negative row the B of the negative row next in length that comes from another document. Bs of both
    labels are then drawn from the same spans, so that lengths do not betray the label. A row without such a donor keeps
    its own B and gets the label of a true pair."""
    order = negative_rows[np.argsort(measure_segments(table)[1][negative_rows], kind="stable")]
    rows, donor, missing = table.take(order), np.arange(len(order)), np.ones(len(order), bool)
    for shift in range(1, min(len(order), 64)):
        candidate = (np.arange(len(order)) + shift) % len(order)
        accepted = missing & (rows["document"][candidate] != rows["document"])
        donor[accepted] = candidate[accepted]
        missing &= ~accepted
        if not missing.any():
            break
    table["b_start"][order], table["b_end"][order] = rows["b_start"][donor], rows["b_end"][donor]
    table["label"][order[missing]] = 0


@dataclass(frozen=True)
class ElectraPairs(RunningTextFormat):
    """ELECTRA's rows: consecutive sentences, nine in ten split into two segments near the middle, no sentence label.

    As in `build_pretraining_dataset.py`, text beyond the row is dropped, and one row in twenty is shorter. There a
    short sentence may also return to the first segment after the second has started; here segments are contiguous.
    """

    varies_by_pass: ClassVar[bool] = True

    def build_example_table(self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int) -> Table:
        rows = []
        for document in documents:
            rows += self.iter_rows(split, document, seq_length, make_keyed_rng(seed, pass_index, document))
        return rows_to_table(rows)

    def iter_rows(self, split: Split, document: int, seq_length: int, rng: Random) -> Iterator[tuple[int, ...]]:
        offsets, first = split.get_sentence_offsets(document), 0
        count = len(offsets) - 1
        while first < count:
            target = rng.randint(5, seq_length) if rng.random() < 0.05 else seq_length
            last = min(bisect_left(offsets, offsets[first] + target, first + 1), count)
            start, end = offsets[first], offsets[last]
            half = 100_000 if rng.random() < 0.1 else (target - 3) // 2
            # A sentence fits the first half, or straddles its end and is assigned by a coin; the first always fits.
            middle = bisect_left(offsets, start + half, first + 1, last)
            straddles = offsets[middle] - start >= half and offsets[middle - 1] - start < half and middle - 1 > first
            if straddles and rng.random() < 0.5:
                middle -= 1
            a_end = min(offsets[middle], start + seq_length - 2)
            b_end = min(end, offsets[middle] + max(0, seq_length - (a_end - start) - 3))
            yield start, a_end, *((offsets[middle], b_end) if b_end > offsets[middle] else (0, 0)), 0, document
            first = last


@dataclass(frozen=True)
class FullSentences(RunningTextFormat):
    """RoBERTa's FULL-SENTENCES (§4.2): whole sentences up to the row's length, over documents.

    One extra separator is between two documents. With `within_document` (DOC-SENTENCES) a row ends with its document.
    A sentence longer than a row is cut.

    fairseq's binarised text has a separator behind every line as well, which the paper does not mention; on
    Wikipedia's paragraphs that is some 3 % more rows.
    """

    within_document: bool = False
    varies_by_pass: ClassVar[bool] = False

    def build_example_table(self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int) -> Table:
        budget, edges = seq_length - 2, split.document_offsets[documents.start : documents.stop + 1]
        units = np.asarray(split.sentence_offsets[edges[0] : edges[-1] + 1])
        document_ends = units[edges[1:] - edges[0]]
        text_ends = units - np.isin(units, document_ends)  # a separator that ends a row is the row's own [SEP]
        long_units = np.flatnonzero(text_ends[1:] - units[:-1] > budget)
        pieces = [np.arange(units[i] + budget, text_ends[i + 1], budget) for i in long_units]
        units = np.unique(np.concatenate([units, *pieces]))
        text_ends = units - np.isin(units, document_ends)
        next_starts = np.searchsorted(text_ends, units + budget, side="right") - 1
        if self.within_document:
            own_end = np.append(document_ends, document_ends[-1])[np.searchsorted(document_ends, units, side="right")]
            next_starts = np.minimum(next_starts, np.searchsorted(units, own_end))
        row_starts, unit, next_starts = [0], 0, next_starts.tolist()
        while unit < len(units) - 1:
            unit = max(next_starts[unit], unit + 1)
            row_starts.append(unit)
        edges = units[row_starts]
        start, end = edges[:-1], edges[1:] - np.isin(edges[1:], document_ends)
        is_text = end > start
        table = build_empty_table(is_text.sum())
        table["a_start"], table["a_end"] = start[is_text], end[is_text]
        table["document"] = documents.start + np.searchsorted(document_ends, table["a_start"], side="right")
        return table
