"""SEVERAL CORPORA → ONE: how often an epoch has the documents of each, such as RoBERTa's five (§3.2 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor, inf

import numpy as np

from encoders.data.example_table import build_empty_table
from encoders.data.formats import Format, FormatWrapper
from encoders.data.packing import PackedFormat
from encoders.data.store import Split

REPEAT_STRIDE = 1 << 32  # between the numbers of a pass that has a document twice


@dataclass(frozen=True)
class MixedFormat(FormatWrapper):
    """`format` over documents that an epoch has `weights` times, one weight for each item of `data.corpus`.

    With 2 they come twice, cut anew by formats that draw; with 0.5 half of them in one epoch and half in the next; with
    0 never. What is held out is read once, whatever its weight.
    """

    format: Format
    corpus_weights: tuple[float, ...]

    def __post_init__(self):
        if isinstance(self.format, PackedFormat | MixedFormat):
            kind = type(self.format).__name__
            raise ValueError(
                f"the format of MixedFormat is {kind}; MixedFormat stands inside of PackedFormat, around a plain format"
            )
        if not all(0 <= weight < inf for weight in self.corpus_weights) or not any(self.corpus_weights):
            raise ValueError(f"corpus_weights={self.corpus_weights} must be at least 0 each, and one of them above 0")

    @property
    def varies_by_pass(self) -> bool:
        return self.format.varies_by_pass or any(weight % 1 for weight in self.corpus_weights)

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        """Raises `ValueError` where the store has another number of corpora than there are weights."""
        if not split.corpus_ranges:
            raise ValueError(f"{split.folder} does not tell its corpora apart: remove its store, and prepare it anew")
        if len(split.corpus_ranges) != len(self.corpus_weights):
            raise ValueError(
                f"corpus_weights={self.corpus_weights} are {len(self.corpus_weights)}, and the corpora "
                f"{len(split.corpus_ranges)}"
            )
        tables = [
            self.format.build_example_table(split, some, seq_length, seed, pass_index + REPEAT_STRIDE * again)
            for corpus, weight in zip(split.corpus_ranges, self.corpus_weights, strict=True)
            for again, some in iter_weighted_documents(intersect_ranges(corpus, documents), weight, pass_index)
        ]
        return np.concatenate([build_empty_table(0), *tables])


def intersect_ranges(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))


def iter_weighted_documents(documents: range, weight: float, pass_index: int) -> Iterator[tuple[int, range]]:
    """What pass `number` has of the documents, and the how many-th time: what a weight of 0.4 takes goes on where the
    pass before stopped.

    >>> [[(a, list(some)) for a, some in iter_weighted_documents(range(5), 1.4, n)] for n in (0, 2)]
    [[(0, [0, 1, 2, 3, 4]), (1, [0, 1])], [(0, [0, 1, 2, 3, 4]), (1, [4]), (1, [0])]]
    """
    whole, size = floor(weight), len(documents)
    if not size:
        return
    yield from ((again, documents) for again in range(whole))
    first, last = (floor((pass_index + i) * (weight - whole) * size + 1e-9) for i in (0, 1))
    while first < last:
        at = first % size
        some = documents[at : at + min(last - first, size - at)]
        yield whole, some
        first += len(some)


def remove_mixing(example_format: Format) -> Format:
    """The format with every document once, packed or not."""
    if isinstance(example_format, PackedFormat):
        return replace(example_format, format=remove_mixing(example_format.format))
    return example_format.format if isinstance(example_format, MixedFormat) else example_format


def find_corpus_weights(example_format: Format) -> tuple[float, ...] | None:
    """The weights of a format of mixed corpora, packed or not."""
    inner = example_format.format if isinstance(example_format, PackedFormat) else example_format
    return inner.corpus_weights if isinstance(inner, MixedFormat) else None
