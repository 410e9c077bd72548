"""SEVERAL CORPORA → ONE: how often a pass reads the documents of each, such as RoBERTa's five (§3.2 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor, inf

import numpy as np

from encoders.data.example_table import Table, build_empty_table
from encoders.data.formats import Format, FormatWrapper
from encoders.data.packing import PackedFormat
from encoders.data.store import Split
from encoders.utils.errors import UserError

REPEAT_STRIDE = 1 << 32  # between the pass indices under which a document is cut again in one pass


@dataclass(frozen=True)
class MixedFormat(FormatWrapper):
    """`format` over documents that a pass reads `corpus_weights` times, one weight for each item of `data.corpus`, or
    for each of the `sources` of a task.

    With weight 2 documents come twice, cut anew by random formats. With 0.5 one half comes in one pass and the other in
    the next; with 0 none comes. Held-out documents are read once, whatever their weight.
    """

    format: Format
    corpus_weights: tuple[float, ...]

    def __post_init__(self):
        if isinstance(self.format, PackedFormat | MixedFormat):
            raise UserError(
                f"the format of MixedFormat is {type(self.format).__name__}; put MixedFormat inside of PackedFormat, "
                "around a plain format"
            )
        if not all(0 <= weight < inf for weight in self.corpus_weights) or not any(self.corpus_weights):
            raise UserError(f"corpus_weights={self.corpus_weights} must each be at least 0, and one of them above 0")

    @property
    def varies_by_pass(self) -> bool:
        return self.format.varies_by_pass or any(weight % 1 for weight in self.corpus_weights)

    def build_example_table(self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int) -> Table:
        """Raise `ValueError` where the number of corpora differs from the number of weights."""
        if not split.corpus_ranges:
            raise UserError(f"{split.folder} does not record each corpus: remove the store and prepare it anew")
        weights, num_corpora = self.corpus_weights, len(split.corpus_ranges)
        if num_corpora != len(weights):
            raise UserError(f"corpus_weights={weights} has {len(weights)} weights for {num_corpora} corpora")
        tables = []
        for corpus, weight in zip(split.corpus_ranges, weights, strict=True):
            shared = range(max(corpus.start, documents.start), min(corpus.stop, documents.stop))
            for repeat, subset in iter_weighted_documents(shared, weight, pass_index):
                key = pass_index + REPEAT_STRIDE * repeat
                tables.append(self.format.build_example_table(split, subset, seq_length, seed, key))
        return np.concatenate(tables) if tables else build_empty_table(0)


def iter_weighted_documents(documents: range, weight: float, pass_index: int) -> Iterator[tuple[int, range]]:
    """Yield the documents of a pass, with the number of times that they came before in the pass.

    The fractional part of a weight resumes where the previous pass stopped.

    >>> list(iter_weighted_documents(range(5), 1.4, pass_index=0))
    [(0, range(0, 5)), (1, range(0, 2))]
    >>> list(iter_weighted_documents(range(5), 1.4, pass_index=2))
    [(0, range(0, 5)), (1, range(4, 5)), (1, range(0, 1))]
    """
    size = len(documents)
    num_repeats = floor(weight) if size else 0
    yield from ((repeat, documents) for repeat in range(num_repeats))
    start, stop = (floor((pass_index + i) * (weight - num_repeats) * size + 1e-9) for i in (0, 1))
    while start < stop:
        offset = start % size
        subset = documents[offset : offset + min(stop - start, size - offset)]
        yield num_repeats, subset
        start += len(subset)


def remove_mixing(example_format: Format) -> Format:
    """Return the format with every document once, packed or not."""
    if isinstance(example_format, PackedFormat):
        return replace(example_format, format=remove_mixing(example_format.format))
    return example_format.format if isinstance(example_format, MixedFormat) else example_format


def find_corpus_weights(example_format: Format) -> tuple[float, ...] | None:
    """Return the weights of a format of mixed corpora, packed or not; None for other formats."""
    inner = example_format.format if isinstance(example_format, PackedFormat) else example_format
    return inner.corpus_weights if isinstance(inner, MixedFormat) else None
