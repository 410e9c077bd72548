"""TOKENS → EXAMPLES: how sentences become rows, as a table of token spans.

A table has one row an example: start and end of segment A, start and end of segment B (empty where there is one
segment only), and a number that says which label it has. Where several examples share a row it is
`[rows, examples, 5]`, with zeros behind the last one. It is a pure function of (seed, pass, documents), built shard by
shard. `released` follows the authors' code to the letter; otherwise its known slips are put right, as each format says.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, Protocol

import numpy as np

from encoders.data.store import Split

TABLE_VERSION = 1  # of what the formats make; a change of their code that changes tables raises it
A_START, A_END, B_START, B_END, LABEL = range(5)


class Format(Protocol):
    """`labels` names the batch fields it makes beyond the common ones; `random`: do passes differ; `between`: how many
    separators stand between two segments."""

    label_fields: tuple[str, ...]
    varies_by_pass: bool
    num_separators: int

    def max_example_length(self, seq_length: int) -> int:
        """The most tokens that an example in a row of `length` may have."""

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        """The examples of `documents` in rows of `length` tokens, in pass `number`: int64 `[rows, (examples,) 5]`."""

    def build_label_fields(
        self, split: Split, spans: np.ndarray, cls_positions: np.ndarray, seq_length: int
    ) -> dict[str, np.ndarray]:
        """The fields of `labels` for rows of `length` tokens of a table `spans`, `[rows, examples, 5]`, whose examples
        stand at `start`, `[rows, examples]`."""


class RunningTextFormat:
    """What formats of running text have in common: one separator, and one label, the table's last column, or none."""

    label_field: str | None
    num_separators: ClassVar[int] = 1

    @property
    def label_fields(self) -> tuple[str, ...]:
        return (self.label_field,) if self.label_field else ()

    def max_example_length(self, seq_length: int) -> int:
        return seq_length

    def build_label_fields(
        self, split: Split, spans: np.ndarray, cls_positions: np.ndarray, seq_length: int
    ) -> dict[str, np.ndarray]:
        return {label: spans[..., LABEL].astype(np.int32) for label in self.label_fields}


class FormatWrapper:
    """What formats have in common that arrange the examples of another one, `format`."""

    format: Format

    @property
    def label_fields(self) -> tuple[str, ...]:
        return self.format.label_fields

    @property
    def num_separators(self) -> int:
        return self.format.num_separators

    @property
    def varies_by_pass(self) -> bool:
        return self.format.varies_by_pass

    def max_example_length(self, seq_length: int) -> int:
        return self.format.max_example_length(seq_length)

    def build_label_fields(
        self, split: Split, spans: np.ndarray, cls_positions: np.ndarray, seq_length: int
    ) -> dict[str, np.ndarray]:
        return self.format.build_label_fields(split, spans, cls_positions, seq_length)


def make_keyed_rng(*key: int) -> Random:
    """A generator of its own for every key, the same on all machines."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def rows_to_table(rows: list[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 5)


def add_example_axis(table: np.ndarray) -> np.ndarray:
    """A table as `[rows, examples, 5]`, also where a row holds one."""
    return table if table.ndim == 3 else table[:, None]


def count_row_tokens(table: np.ndarray, num_separators: int = 1) -> np.ndarray:
    """The tokens of each row, special ones included."""
    a, a_end, b, b_end, _ = np.moveaxis(add_example_axis(table), -1, 0)
    return ((a_end - a + 2) * (a_end > a) + (b_end - b + num_separators) * (b_end > b)).sum(axis=1)


def truncate_span(start: int, end: int, num_dropped: int, rng: Random) -> tuple[int, int]:
    """The span without `drop` tokens, each taken from the front or the back with equal chance (BERT's truncation)."""
    front = rng.getrandbits(num_dropped).bit_count() if num_dropped else 0
    return start + front, end - (num_dropped - front)


def truncate_pair(a: tuple[int, int], b: tuple[int, int], max_tokens: int, rng: Random) -> tuple[int, int, int, int]:
    """Both spans, shortened from the longer one at a time until together they have at most `budget` tokens."""
    size_a, size_b = a[1] - a[0], b[1] - b[0]
    excess = max(size_a + size_b - max_tokens, 0)
    level = min(excess, abs(size_a - size_b))
    drop_a, drop_b = (level, 0) if size_a > size_b else (0, level)
    drop_a, drop_b = drop_a + (excess - level) // 2, drop_b + (excess - level + 1) // 2
    return *truncate_span(*a, drop_a, rng), *truncate_span(*b, drop_b, rng)


class PairFormat(RunningTextFormat):
    """`[CLS] A [SEP] B [SEP]` of chunks of consecutive sentences, each split into A and B: half of the Bs are random
    (`negatives="random"`), or half of the pairs swapped."""

    negatives: Literal["random", "swapped"]

    varies_by_pass: ClassVar[bool] = True

    def __post_init__(self):
        if self.negatives not in ("random", "swapped"):
            raise ValueError(f"negatives={self.negatives!r} must be 'random' or 'swapped'")

    @property
    def label_field(self) -> str:
        return "next_sentence" if self.negatives == "random" else "sentence_order"

    def iter_chunks(self, offsets: list[int], max_tokens: int, rng: Random) -> Iterator[tuple[int, int, int]]:
        """First sentence, first of B and end of each chunk."""
        raise NotImplementedError

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        rows, owners, rngs = [], [], []
        for document in documents:
            rng = make_keyed_rng(seed, pass_index, document)
            offsets = split.get_sentence_offsets(document)
            for first, middle, last in self.iter_chunks(offsets, seq_length - 3, rng):
                rows.append((offsets[first], offsets[middle], offsets[middle], offsets[last], rng.random() < 0.5))
                owners.append(document)
                rngs.append(rng)
        table = rows_to_table(rows)
        if self.negatives == "random":
            exchange_second_segments(table, np.array(owners), np.flatnonzero(table[:, LABEL]))
        else:  # before the pair is fitted: of two equal segments the second one is shortened, whichever it is
            swapped = table[:, LABEL] == 1
            table[swapped, :LABEL] = table[swapped][:, [B_START, B_END, A_START, A_END]]
        for row, rng in zip(table, rngs, strict=True):
            a, a_end, b, b_end = row[:LABEL].tolist()
            if a_end - a + b_end - b > seq_length - 3:
                row[:LABEL] = truncate_pair((a, a_end), (b, b_end), seq_length - 3, rng)
        return table


@dataclass(frozen=True)
class SentencePairs(PairFormat):
    """RoBERTa's SENTENCE-PAIR (§4.2, never released): two natural sentences, the second one the next in its document
    or one of another, matched by length. Far shorter than a row, so the paper raises the batch."""

    negatives: Literal["random", "swapped"] = "random"

    def iter_chunks(self, offsets: list[int], max_tokens: int, rng: Random) -> Iterator[tuple[int, int, int]]:
        """Two sentences at a time, in every pass from the first or from the second one on."""
        count = len(offsets) - 1
        for first in range(rng.randint(0, 1) if count > 2 else 0, count - 1, 2):
            yield first, first + 1, first + 2


@dataclass(frozen=True)
class SegmentPairs(PairFormat):
    """`[CLS] A [SEP] B [SEP]` of BERT (`negatives="random"`: half of the Bs are random) and ALBERT ("swapped").

    Released code: a chunk of one sentence always gets a random B from another document with label 1, also for SOP; a
    random B fills the row; the sentence that overflows the row is always B's, so B is the longer segment and a swap
    shows. All three betray the label. Corrected, which is the default: a chunk has two sentences at least, a lone last
    sentence is left out, random Bs are the true ones of other documents matched by length, and half of the documents
    are cut into chunks from their end.
    `short` is the share of documents cut into shorter rows, with a target drawn once a document.
    """

    negatives: Literal["random", "swapped"] = "random"
    short_seq_prob: float = 0.1
    match_released_code: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.short_seq_prob <= 1:
            raise ValueError(f"short_seq_prob={self.short_seq_prob} must be from 0 to 1")

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        if self.match_released_code:
            return rows_to_table(
                [row for d in documents for row in self.iter_released_rows(split, d, seq_length - 3, seed, pass_index)]
            )
        return super().build_example_table(split, documents, seq_length, seed, pass_index)

    def draw_target_length(self, max_tokens: int, rng: Random) -> int:
        return rng.randint(2, max_tokens) if rng.random() < self.short_seq_prob else max_tokens

    def iter_chunks(self, offsets: list[int], max_tokens: int, rng: Random) -> Iterator[tuple[int, int, int]]:
        """First sentence, first of B and end of each chunk: sentences until the target, at least two."""
        target, first, count = self.draw_target_length(max_tokens, rng), 0, len(offsets) - 1
        from_end = rng.random() < 0.5
        if from_end:
            offsets = [-offset for offset in reversed(offsets)]
        while first + 2 <= count:
            last = min(max(bisect_left(offsets, offsets[first] + target, first + 1), first + 2), count)
            middle = first + rng.randint(1, last - first - 1)
            yield (count - last, count - middle, count - first) if from_end else (first, middle, last)
            first = last

    def iter_released_rows(
        self, split: Split, document: int, max_tokens: int, seed: int, pass_index: int
    ) -> Iterator[tuple]:
        """`create_instances_from_document` of google-research/bert and of google-research/albert."""
        rng = make_keyed_rng(seed, pass_index, document)
        offsets, target, first = split.get_sentence_offsets(document), 0, 0
        target, count = self.draw_target_length(max_tokens, rng), len(offsets) - 1
        while first < count:
            last = min(bisect_left(offsets, offsets[first] + target, first + 1), count)
            middle = first + (rng.randint(1, last - first - 1) if last - first > 1 else 1)
            a, b = (offsets[first], offsets[middle]), (offsets[middle], offsets[last])
            alone, coin = last - first == 1, rng.random() < 0.5
            elsewhere = alone or (coin and self.negatives == "random")
            if elsewhere:
                b, last = draw_span_elsewhere(split, document, target - (a[1] - a[0]), rng), middle
            elif coin:
                a, b = b, a
            yield *truncate_pair(a, b, max_tokens, rng), int(elsewhere or coin)
            first = last


def draw_span_elsewhere(split: Split, document: int, num_tokens: int, rng: Random) -> tuple[int, int]:
    """Sentences of another document, from a random one on, until they have `size` tokens (ten tries, as released)."""
    other = document
    for _ in range(10):
        other = rng.randrange(split.num_documents)
        if other != document:
            break
    offsets = split.get_sentence_offsets(other)
    first = rng.randrange(len(offsets) - 1)
    last = min(bisect_left(offsets, offsets[first] + num_tokens, first + 1), len(offsets) - 1)
    return offsets[first], offsets[last]


def exchange_second_segments(table: np.ndarray, document_ids: np.ndarray, negative_rows: np.ndarray) -> None:
    """Give each chosen row the B of the chosen row next in length that comes from another document.

    Bs of both labels are then drawn from the same spans, and lengths tell nothing. A row for which there is none keeps
    its own B and the label of a true pair.
    """
    order = negative_rows[np.argsort(table[negative_rows, B_END] - table[negative_rows, B_START], kind="stable")]
    spans, owner = table[order][:, [B_START, B_END]], document_ids[order]
    donor = np.arange(len(order))
    missing = np.ones(len(order), bool)
    for shift in range(1, min(len(order), 64)):
        candidate = (np.arange(len(order)) + shift) % len(order)
        found = missing & (owner[candidate] != owner)
        donor[found] = candidate[found]
        missing &= ~found
        if not missing.any():
            break
    table[order[:, None], [B_START, B_END]] = spans[donor]
    table[order[missing], LABEL] = 0


@dataclass(frozen=True)
class ElectraPairs(RunningTextFormat):
    """ELECTRA's rows: consecutive sentences, nine in ten split into two segments near the middle, no sentence label.

    As `build_pretraining_dataset.py`: what lies beyond the row is thrown away, and one row in twenty is shorter. There
    a short sentence may also go back to the first segment once the second has begun; here segments stay contiguous.
    """

    label_field: ClassVar[None] = None
    varies_by_pass: ClassVar[bool] = True

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        return rows_to_table(
            [
                row
                for d in documents
                for row in self.iter_rows(
                    split.get_sentence_offsets(d), seq_length, make_keyed_rng(seed, pass_index, d)
                )
            ]
        )

    def iter_rows(self, offsets: list[int], seq_length: int, rng: Random) -> Iterator[tuple]:
        first, count = 0, len(offsets) - 1
        while first < count:
            target = rng.randint(5, seq_length) if rng.random() < 0.05 else seq_length
            last = min(bisect_left(offsets, offsets[first] + target, first + 1), count)
            start, end = offsets[first], offsets[last]
            half = 100_000 if rng.random() < 0.1 else (target - 3) // 2
            # Sentences fit the first half, or straddle its end and are put there by a coin; the first always does.
            middle = bisect_left(offsets, start + half, first + 1, last)
            straddles = offsets[middle] - start >= half and offsets[middle - 1] - start < half and middle - 1 > first
            if straddles and rng.random() < 0.5:
                middle -= 1
            a_end = min(offsets[middle], start + seq_length - 2)
            b, room = offsets[middle], max(0, seq_length - (a_end - start) - 3)
            b_end = min(end, b + room)
            yield start, a_end, *((b, b_end) if b_end > b else (0, 0)), 0
            first = last


@dataclass(frozen=True)
class FullSentences(RunningTextFormat):
    """RoBERTa's FULL-SENTENCES (§4.2): whole sentences up to the row's length, over documents, one extra separator
    between two; with `within` DOC-SENTENCES, rows that end with their document. A longer sentence is cut.

    fairseq's binarised text has a separator behind every line as well, of which the paper says nothing; on Wikipedia's
    paragraphs that is some 3 % more rows.
    """

    within_document: bool = False

    label_field: ClassVar[None] = None
    varies_by_pass: ClassVar[bool] = False

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        budget = seq_length - 2
        first, last = split.document_offsets[documents.start], split.document_offsets[documents.stop]
        units = np.asarray(split.sentence_offsets[first : last + 1])
        ends = np.asarray(split.sentence_offsets[split.document_offsets[documents.start + 1 : documents.stop + 1]])
        text_ends = units - np.isin(units, ends)  # a separator that ends a row is the row's own [SEP]
        long = np.flatnonzero(text_ends[1:] - units[:-1] > budget)
        pieces = [np.arange(units[i] + budget, text_ends[i + 1], budget) for i in long]
        units = np.unique(np.concatenate([units, *pieces]))
        text_ends = units - np.isin(units, ends)
        after = np.searchsorted(text_ends, units + budget, side="right") - 1
        if self.within_document:
            own_end = ends[np.searchsorted(ends, units, side="right").clip(max=len(ends) - 1)]
            after = np.minimum(after, np.searchsorted(units, own_end))
        chain, at, after = [0], 0, after.tolist()
        while at < len(units) - 1:
            at = max(after[at], at + 1)
            chain.append(at)
        edges = units[chain]
        start, end = edges[:-1], edges[1:]
        end = end - np.isin(end, ends)
        keep = end > start
        zero = np.zeros(keep.sum(), np.int64)
        return np.stack([start[keep], end[keep], zero, zero, zero], axis=1)
