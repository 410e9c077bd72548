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

VERSION = 1  # of what the formats make; a change of their code that changes tables raises it
A, A_END, B, B_END, LABEL = range(5)


class Format(Protocol):
    """`labels` names the batch fields it makes beyond the common ones; `random`: do passes differ; `between`: how many
    separators stand between two segments."""

    labels: tuple[str, ...]
    random: bool
    between: int

    def longest(self, length: int) -> int:
        """The most tokens that an example in a row of `length` may have."""

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        """The examples of `documents` in rows of `length` tokens, in pass `number`: int64 `[rows, (examples,) 5]`."""

    def fields(self, split: Split, spans: np.ndarray, start: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The fields of `labels` for rows of `length` tokens of a table `spans`, `[rows, examples, 5]`, whose examples
        stand at `start`, `[rows, examples]`."""


class Running:
    """What formats of running text have in common: one separator, and one label, the table's last column, or none."""

    label: str | None
    between: ClassVar[int] = 1

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,) if self.label else ()

    def longest(self, length: int) -> int:
        return length

    def fields(self, split: Split, spans: np.ndarray, start: np.ndarray, length: int) -> dict[str, np.ndarray]:
        return {label: spans[..., LABEL].astype(np.int32) for label in self.labels}


class Around:
    """What formats have in common that arrange the examples of another one, `format`."""

    format: Format

    @property
    def labels(self) -> tuple[str, ...]:
        return self.format.labels

    @property
    def between(self) -> int:
        return self.format.between

    @property
    def random(self) -> bool:
        return self.format.random

    def longest(self, length: int) -> int:
        return self.format.longest(length)

    def fields(self, split: Split, spans: np.ndarray, start: np.ndarray, length: int) -> dict[str, np.ndarray]:
        return self.format.fields(split, spans, start, length)


def generator(*key: int) -> Random:
    """A generator of its own for every key, the same on all machines."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def as_table(rows: list[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 5)


def examples(table: np.ndarray) -> np.ndarray:
    """A table as `[rows, examples, 5]`, also where a row holds one."""
    return table if table.ndim == 3 else table[:, None]


def row_sizes(table: np.ndarray, between: int = 1) -> np.ndarray:
    """The tokens of each row, special ones included."""
    a, a_end, b, b_end, _ = np.moveaxis(examples(table), -1, 0)
    return ((a_end - a + 2) * (a_end > a) + (b_end - b + between) * (b_end > b)).sum(axis=1)


def cut(start: int, end: int, drop: int, rng: Random) -> tuple[int, int]:
    """The span without `drop` tokens, each taken from the front or the back with equal chance (BERT's truncation)."""
    front = rng.getrandbits(drop).bit_count() if drop else 0
    return start + front, end - (drop - front)


def fit(a: tuple[int, int], b: tuple[int, int], budget: int, rng: Random) -> tuple[int, int, int, int]:
    """Both spans, shortened from the longer one at a time until together they have at most `budget` tokens."""
    size_a, size_b = a[1] - a[0], b[1] - b[0]
    excess = max(size_a + size_b - budget, 0)
    level = min(excess, abs(size_a - size_b))
    drop_a, drop_b = (level, 0) if size_a > size_b else (0, level)
    drop_a, drop_b = drop_a + (excess - level) // 2, drop_b + (excess - level + 1) // 2
    return *cut(*a, drop_a, rng), *cut(*b, drop_b, rng)


class Pairs(Running):
    """`[CLS] A [SEP] B [SEP]` of chunks of consecutive sentences, each split into A and B: half of the Bs are random
    (`second="random"`), or half of the pairs swapped."""

    second: Literal["random", "swapped"]

    random: ClassVar[bool] = True

    def __post_init__(self):
        if self.second not in ("random", "swapped"):
            raise ValueError(f"second={self.second!r} must be 'random' or 'swapped'")

    @property
    def label(self) -> str:
        return "next_sentence" if self.second == "random" else "sentence_order"

    def chunks(self, offsets: list[int], budget: int, rng: Random) -> Iterator[tuple[int, int, int]]:
        """First sentence, first of B and end of each chunk."""
        raise NotImplementedError

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        rows, owners, rngs = [], [], []
        for document in documents:
            rng = generator(seed, number, document)
            offsets = split.offsets(document)
            for first, middle, last in self.chunks(offsets, length - 3, rng):
                rows.append((offsets[first], offsets[middle], offsets[middle], offsets[last], rng.random() < 0.5))
                owners.append(document)
                rngs.append(rng)
        table = as_table(rows)
        if self.second == "random":
            exchange(table, np.array(owners), np.flatnonzero(table[:, LABEL]))
        else:  # before the pair is fitted: of two equal segments the second one is shortened, whichever it is
            swapped = table[:, LABEL] == 1
            table[swapped, :LABEL] = table[swapped][:, [B, B_END, A, A_END]]
        for row, rng in zip(table, rngs, strict=True):
            a, a_end, b, b_end = row[:LABEL].tolist()
            if a_end - a + b_end - b > length - 3:
                row[:LABEL] = fit((a, a_end), (b, b_end), length - 3, rng)
        return table


@dataclass(frozen=True)
class SentencePairs(Pairs):
    """RoBERTa's SENTENCE-PAIR (§4.2, never released): two natural sentences, the second one the next in its document
    or one of another, matched by length. Far shorter than a row, so the paper raises the batch."""

    second: Literal["random", "swapped"] = "random"

    def chunks(self, offsets: list[int], budget: int, rng: Random) -> Iterator[tuple[int, int, int]]:
        """Two sentences at a time, in every pass from the first or from the second one on."""
        count = len(offsets) - 1
        for first in range(rng.randint(0, 1) if count > 2 else 0, count - 1, 2):
            yield first, first + 1, first + 2


@dataclass(frozen=True)
class SegmentPairs(Pairs):
    """`[CLS] A [SEP] B [SEP]` of BERT (`second="random"`: half of the Bs are random) and ALBERT ("swapped").

    Released code: a chunk of one sentence always gets a random B from another document with label 1, also for SOP; a
    random B fills the row; the sentence that overflows the row is always B's, so B is the longer segment and a swap
    shows. All three betray the label. Corrected, which is the default: a chunk has two sentences at least, a lone last
    sentence is left out, random Bs are the true ones of other documents matched by length, and half of the documents
    are cut into chunks from their end.
    `short` is the share of documents cut into shorter rows, with a target drawn once a document.
    """

    second: Literal["random", "swapped"] = "random"
    short: float = 0.1
    released: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.short <= 1:
            raise ValueError(f"short={self.short} must be from 0 to 1")

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        if self.released:
            return as_table([row for d in documents for row in self.as_released(split, d, length - 3, seed, number)])
        return super().table(split, documents, length, seed, number)

    def target(self, budget: int, rng: Random) -> int:
        return rng.randint(2, budget) if rng.random() < self.short else budget

    def chunks(self, offsets: list[int], budget: int, rng: Random) -> Iterator[tuple[int, int, int]]:
        """First sentence, first of B and end of each chunk: sentences until the target, at least two."""
        target, first, count = self.target(budget, rng), 0, len(offsets) - 1
        from_end = rng.random() < 0.5
        if from_end:
            offsets = [-offset for offset in reversed(offsets)]
        while first + 2 <= count:
            last = min(max(bisect_left(offsets, offsets[first] + target, first + 1), first + 2), count)
            middle = first + rng.randint(1, last - first - 1)
            yield (count - last, count - middle, count - first) if from_end else (first, middle, last)
            first = last

    def as_released(self, split: Split, document: int, budget: int, seed: int, number: int) -> Iterator[tuple]:
        """`create_instances_from_document` of google-research/bert and of google-research/albert."""
        rng = generator(seed, number, document)
        offsets, target, first = split.offsets(document), 0, 0
        target, count = self.target(budget, rng), len(offsets) - 1
        while first < count:
            last = min(bisect_left(offsets, offsets[first] + target, first + 1), count)
            middle = first + (rng.randint(1, last - first - 1) if last - first > 1 else 1)
            a, b = (offsets[first], offsets[middle]), (offsets[middle], offsets[last])
            alone, coin = last - first == 1, rng.random() < 0.5
            elsewhere = alone or (coin and self.second == "random")
            if elsewhere:
                b, last = elsewhere_span(split, document, target - (a[1] - a[0]), rng), middle
            elif coin:
                a, b = b, a
            yield *fit(a, b, budget, rng), int(elsewhere or coin)
            first = last


def elsewhere_span(split: Split, document: int, size: int, rng: Random) -> tuple[int, int]:
    """Sentences of another document, from a random one on, until they have `size` tokens (ten tries, as released)."""
    other = document
    for _ in range(10):
        other = rng.randrange(split.size)
        if other != document:
            break
    offsets = split.offsets(other)
    first = rng.randrange(len(offsets) - 1)
    last = min(bisect_left(offsets, offsets[first] + size, first + 1), len(offsets) - 1)
    return offsets[first], offsets[last]


def exchange(table: np.ndarray, owners: np.ndarray, chosen: np.ndarray) -> None:
    """Give each chosen row the B of the chosen row next in length that comes from another document.

    Bs of both labels are then drawn from the same spans, and lengths tell nothing. A row for which there is none keeps
    its own B and the label of a true pair.
    """
    order = chosen[np.argsort(table[chosen, B_END] - table[chosen, B], kind="stable")]
    spans, owner = table[order][:, [B, B_END]], owners[order]
    donor = np.arange(len(order))
    missing = np.ones(len(order), bool)
    for shift in range(1, min(len(order), 64)):
        candidate = (np.arange(len(order)) + shift) % len(order)
        found = missing & (owner[candidate] != owner)
        donor[found] = candidate[found]
        missing &= ~found
        if not missing.any():
            break
    table[order[:, None], [B, B_END]] = spans[donor]
    table[order[missing], LABEL] = 0


@dataclass(frozen=True)
class ElectraPairs(Running):
    """ELECTRA's rows: consecutive sentences, nine in ten split into two segments near the middle, no sentence label.

    As `build_pretraining_dataset.py`: what lies beyond the row is thrown away, and one row in twenty is shorter. There
    a short sentence may also go back to the first segment once the second has begun; here segments stay contiguous.
    """

    label: ClassVar[None] = None
    random: ClassVar[bool] = True

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        return as_table(
            [row for d in documents for row in self.rows(split.offsets(d), length, generator(seed, number, d))]
        )

    def rows(self, offsets: list[int], length: int, rng: Random) -> Iterator[tuple]:
        first, count = 0, len(offsets) - 1
        while first < count:
            target = rng.randint(5, length) if rng.random() < 0.05 else length
            last = min(bisect_left(offsets, offsets[first] + target, first + 1), count)
            start, end = offsets[first], offsets[last]
            half = 100_000 if rng.random() < 0.1 else (target - 3) // 2
            # Sentences fit the first half, or straddle its end and are put there by a coin; the first always does.
            middle = bisect_left(offsets, start + half, first + 1, last)
            straddles = offsets[middle] - start >= half and offsets[middle - 1] - start < half and middle - 1 > first
            if straddles and rng.random() < 0.5:
                middle -= 1
            a_end = min(offsets[middle], start + length - 2)
            b, room = offsets[middle], max(0, length - (a_end - start) - 3)
            b_end = min(end, b + room)
            yield start, a_end, *((b, b_end) if b_end > b else (0, 0)), 0
            first = last


@dataclass(frozen=True)
class FullSentences(Running):
    """RoBERTa's FULL-SENTENCES (§4.2): whole sentences up to the row's length, over documents, one extra separator
    between two; with `within` DOC-SENTENCES, rows that end with their document. A longer sentence is cut.

    fairseq's binarised text has a separator behind every line as well, of which the paper says nothing; on Wikipedia's
    paragraphs that is some 3 % more rows.
    """

    within: bool = False

    label: ClassVar[None] = None
    random: ClassVar[bool] = False

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        budget = length - 2
        first, last = split.documents[documents.start], split.documents[documents.stop]
        units = np.asarray(split.sentences[first : last + 1])
        ends = np.asarray(split.sentences[split.documents[documents.start + 1 : documents.stop + 1]])
        text_ends = units - np.isin(units, ends)  # a separator that ends a row is the row's own [SEP]
        long = np.flatnonzero(text_ends[1:] - units[:-1] > budget)
        pieces = [np.arange(units[i] + budget, text_ends[i + 1], budget) for i in long]
        units = np.unique(np.concatenate([units, *pieces]))
        text_ends = units - np.isin(units, ends)
        after = np.searchsorted(text_ends, units + budget, side="right") - 1
        if self.within:
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
