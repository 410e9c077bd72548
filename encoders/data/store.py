"""A prepared corpus on disk: flat tokens with sentence and document offsets, memory-mapped.

    store/
      store.json                   what made it (its key), vocabulary facts, counts
      tokenizer.json
      train/ heldout/              tokens.bin (uint16 or uint32), sentences.bin, documents.bin (int64 offsets)
      tables/                      example tables, built when first needed

Each document ends with one separator token, so that a span over several documents holds one between any two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from encoders.text.vocab import Facts

SHARD = 1 << 24  # tokens; example tables are built for one shard of documents at a time


@dataclass(frozen=True)
class Split:
    """Documents of one side of the held-out split.

    Sentence i is `tokens[sentences[i] : sentences[i + 1]]`; document j has the sentences from `documents[j]` to
    `documents[j + 1]`, and the last of them ends with the separator.
    """

    name: str
    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray

    @classmethod
    def open(cls, folder: Path, dtype: np.dtype) -> Split:
        read = lambda name, kind: np.memmap(folder / name, kind, mode="r")
        return cls(folder.name, read("tokens.bin", dtype), *(read(f"{n}.bin", np.int64) for n in OFFSETS))

    @property
    def size(self) -> int:
        """The number of documents."""
        return len(self.documents) - 1

    def shards(self) -> list[range]:
        """Ranges of documents of about `SHARD` tokens each."""
        starts = self.sentences[self.documents]
        edges = np.searchsorted(starts, np.arange(0, len(self.tokens), SHARD))
        edges = sorted({int(edge) for edge in edges} | {self.size})
        return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    def offsets(self, document: int) -> list[int]:
        """Where each sentence of `document` starts, and where the last one ends, without the separator."""
        first, last = self.documents[document : document + 2]
        offsets = self.sentences[first : last + 1].tolist()
        offsets[-1] -= 1
        return offsets


OFFSETS = ("sentences", "documents")


@dataclass(frozen=True)
class Store:
    """An opened store. Raises `ValueError` where the folder does not hold a whole one."""

    path: Path
    meta: dict

    @classmethod
    def open(cls, path: Path) -> Store:
        try:
            return cls(path, json.loads((path / "store.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a prepared store (no readable store.json: {error})") from None

    @property
    def key(self) -> str:
        return self.meta["key"]

    @cached_property
    def facts(self) -> Facts:
        return Facts.from_json(self.meta["facts"])

    @cached_property
    def tokenizer(self):
        from encoders.text.vocab import load

        return load(self.path / "tokenizer.json")

    @cached_property
    def train(self) -> Split:
        return Split.open(self.path / "train", np.dtype(self.meta["dtype"]))

    @cached_property
    def heldout(self) -> Split:
        return Split.open(self.path / "heldout", np.dtype(self.meta["dtype"]))
