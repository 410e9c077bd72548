"""A prepared corpus on disk: flat tokens with sentence and document offsets, memory-mapped.

    store/
      store.json                   what made it (its key), vocabulary facts, counts
      tokenizer.json
      train/ heldout/ ...          tokens.bin (uint16 or uint32), sentences.bin, documents.bin (int64 offsets); for
                                   labelled rows a document is a row, NAME.npy its labels, notes.jsonl what scores need
      tables/                      example tables, built when first needed

Each document ends with one separator token, so that a span over several documents holds one between any two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from encoders.text.tokenization import Facts

SHARD = 1 << 24  # tokens; example tables are built for one shard of documents at a time


@dataclass(frozen=True)
class Split:
    """Documents of one side of the held-out split.

    Sentence i is `tokens[sentences[i] : sentences[i + 1]]`; document j has the sentences from `documents[j]` to
    `documents[j + 1]`, and the last of them ends with the separator. `columns` are labels by name: a number or several
    for each document, or one for each token.
    """

    name: str
    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    folder: Path | None = None
    kept: tuple[dict, ...] | None = None  # notes that are in no file
    corpora: tuple[range, ...] = ()  # the documents of each item of the corpus

    @classmethod
    def open(cls, folder: Path, dtype: np.dtype, corpora: tuple[range, ...] = ()) -> Split:
        read = lambda name, kind: np.memmap(folder / name, kind, mode="r")
        columns = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
        offsets = (read(f"{name}.bin", np.int64) for name in OFFSETS)
        return cls(folder.name, read("tokens.bin", dtype), *offsets, columns, folder, corpora=corpora)

    @cached_property
    def notes(self) -> list[dict]:
        """What was kept of each labelled row, such as its name and its text."""
        if self.kept is not None:
            return list(self.kept)
        lines = (self.folder / "notes.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

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
        from encoders.text.tokenization import load

        return load(self.path / "tokenizer.json")

    def split(self, name: str) -> Split:
        """Raises `ValueError` for a split that the store has not."""
        if name not in self.meta["splits"]:
            raise ValueError(f"{self.path} has no split {name!r}; it has {', '.join(self.meta['splits'])}")
        return Split.open(self.path / name, np.dtype(self.meta["dtype"]), self.corpora(name))

    def corpora(self, name: str) -> tuple[range, ...]:
        """The documents of each item of the corpus in a split."""
        found: list[range] = []
        for part in self.meta.get("parts", ()):
            start = found[-1].stop if found else 0
            while len(found) <= part["item"]:
                found.append(range(start, start))
            found[-1] = range(found[-1].start, start + part["splits"][name]["documents"])
        return tuple(found)

    @cached_property
    def train(self) -> Split:
        return self.split("train")

    @cached_property
    def heldouts(self) -> list[Split]:
        """What is evaluated: of running text one split, of labelled rows every development set."""
        return [self.split(name) for name in self.meta["splits"] if name.startswith(("heldout", "dev"))]

    @property
    def heldout(self) -> Split:
        return self.heldouts[0]
