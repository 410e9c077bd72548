"""SEVERAL CORPORA → ONE: how often an epoch has the documents of each, such as RoBERTa's five (§3.2 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor, inf

import numpy as np

from encoders.data.formats import LABEL, Around, Format
from encoders.data.packing import Packed
from encoders.data.store import Split

AGAIN = 1 << 32  # between the numbers of a pass that has a document twice


@dataclass(frozen=True)
class Mixed(Around):
    """`format` over documents that an epoch has `weights` times, one weight for each item of `data.corpus`.

    With 2 they come twice, cut anew by formats that draw; with 0.5 half of them in one epoch and half in the next; with
    0 never. What is held out is read once, whatever its weight.
    """

    format: Format
    weights: tuple[float, ...]

    def __post_init__(self):
        if isinstance(self.format, Packed | Mixed):
            kind = type(self.format).__name__
            raise ValueError(f"the format of Mixed is {kind}; Mixed stands inside of Packed, around a plain format")
        if not all(0 <= weight < inf for weight in self.weights) or not any(self.weights):
            raise ValueError(f"weights={self.weights} must be at least 0 each, and one of them above 0")

    @property
    def random(self) -> bool:
        return self.format.random or any(weight % 1 for weight in self.weights)

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        """Raises `ValueError` where the store has another number of corpora than there are weights."""
        if not split.corpora:
            raise ValueError(f"{split.folder} does not tell its corpora apart: remove its store, and prepare it anew")
        if len(split.corpora) != len(self.weights):
            raise ValueError(f"weights={self.weights} are {len(self.weights)}, and the corpora {len(split.corpora)}")
        tables = [
            self.format.table(split, some, length, seed, number + AGAIN * again)
            for corpus, weight in zip(split.corpora, self.weights, strict=True)
            for again, some in turns(overlap(corpus, documents), weight, number)
        ]
        return np.concatenate([np.zeros((0, LABEL + 1), np.int64), *tables])


def overlap(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))


def turns(documents: range, weight: float, number: int) -> Iterator[tuple[int, range]]:
    """What pass `number` has of the documents, and the how many-th time: what a weight of 0.4 takes goes on where the
    pass before stopped.

    >>> [[(a, list(some)) for a, some in turns(range(5), 1.4, n)] for n in (0, 2)]
    [[(0, [0, 1, 2, 3, 4]), (1, [0, 1])], [(0, [0, 1, 2, 3, 4]), (1, [4]), (1, [0])]]
    """
    whole, size = floor(weight), len(documents)
    if not size:
        return
    yield from ((again, documents) for again in range(whole))
    first, last = (floor((number + i) * (weight - whole) * size + 1e-9) for i in (0, 1))
    while first < last:
        at = first % size
        some = documents[at : at + min(last - first, size - at)]
        yield whole, some
        first += len(some)


def unmixed(form: Format) -> Format:
    """The format with every document once, packed or not."""
    if isinstance(form, Packed):
        return replace(form, format=unmixed(form.format))
    return form.format if isinstance(form, Mixed) else form


def weights_of(form: Format) -> tuple[float, ...] | None:
    """The weights of a format of mixed corpora, packed or not."""
    inner = form.format if isinstance(form, Packed) else form
    return inner.weights if isinstance(inner, Mixed) else None
