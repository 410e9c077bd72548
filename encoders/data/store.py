"""Prepared corpus on disk: flat tokens with sentence and document offsets, memory-mapped.

    store/
      store.json             its content and key, vocabulary, counts;
      tokenizer.json
      train/ heldout/ ...    tokens.bin (uint16 or uint32), sentences.bin, documents.bin (int64 offsets);
      tables/                example tables, built when first needed.

A document of labelled rows is a row; NAME.npy holds its labels, and notes.jsonl the metadata that scores need. Each
document ends with one separator token, so that a span over several documents has one between any two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from encoders.text.tokenization import Tokenizer, VocabInfo, load_tokenizer

SHARD_TOKENS = 1 << 24  # of a shard; example tables are built for one shard of documents at a time


@dataclass(frozen=True)
class Split:
    """Documents of one split, such as "train" or "heldout".

    Sentence i is `tokens[sentence_offsets[i] : sentence_offsets[i + 1]]`. Document j has the sentences from
    `document_offsets[j]` to `document_offsets[j + 1]`, and ends with the separator. `label_columns` are labels by name:
    one number or several for each document, or one for each token.
    """

    name: str
    tokens: np.ndarray
    sentence_offsets: np.ndarray
    document_offsets: np.ndarray
    label_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    folder: Path | None = None
    in_memory_metadata: tuple[dict, ...] | None = None  # instead of notes.jsonl
    corpus_ranges: tuple[range, ...] = ()  # the documents of each item of the corpus

    @cached_property
    def row_metadata(self) -> list[dict]:
        """Return the metadata of each labelled row, such as its name and its text."""
        if self.in_memory_metadata is not None:
            return list(self.in_memory_metadata)
        lines = (self.folder / "notes.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    @property
    def num_documents(self) -> int:
        return len(self.document_offsets) - 1

    def split_shards(self) -> list[range]:
        """Return ranges of documents of about `SHARD_TOKENS` tokens each."""
        starts = self.sentence_offsets[self.document_offsets]
        edges = np.searchsorted(starts, np.arange(0, len(self.tokens), SHARD_TOKENS))
        edges = sorted({int(edge) for edge in edges} | {self.num_documents})
        return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    def get_sentence_offsets(self, document: int) -> list[int]:
        """Return the start of each sentence of `document`, and the end of the last one without the separator."""
        first, last = self.document_offsets[document : document + 2]
        offsets = self.sentence_offsets[first : last + 1].tolist()
        offsets[-1] -= 1
        return offsets


OFFSET_FILES = ("sentences", "documents")


@dataclass(frozen=True)
class Store:
    """Opened store. Raises `ValueError` where the folder does not hold a complete one."""

    path: Path
    metadata: dict

    @classmethod
    def open(cls, path: Path) -> Store:
        try:
            return cls(path, json.loads((path / "store.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a prepared store (no readable store.json: {error})") from None

    @property
    def key(self) -> str:
        return self.metadata["key"]

    @cached_property
    def vocab(self) -> VocabInfo:
        return VocabInfo.from_json_value(self.metadata["vocab"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path / "tokenizer.json")

    def open_split(self, name: str) -> Split:
        """Open a split by name. Raises `ValueError` for an unknown one."""
        if name not in self.metadata["splits"]:
            raise ValueError(f"{self.path} lacks the split {name!r}; it has {', '.join(self.metadata['splits'])}")
        folder, ranges = self.path / name, []
        for unit in self.metadata.get("units", ()):
            start = ranges[-1].stop if ranges else 0
            ranges += [range(start, start)] * (unit["item_index"] + 1 - len(ranges))
            ranges[-1] = range(ranges[-1].start, start + unit["splits"][name]["documents"])
        return Split(
            name,
            np.memmap(folder / "tokens.bin", np.dtype(self.metadata["dtype"]), mode="r"),
            *(np.memmap(folder / f"{offsets}.bin", np.int64, mode="r") for offsets in OFFSET_FILES),
            {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))},
            folder,
            corpus_ranges=tuple(ranges),
        )

    @cached_property
    def train_split(self) -> Split:
        return self.open_split("train")

    @cached_property
    def eval_splits(self) -> list[Split]:
        """Return the splits that are evaluated: one of running text, every development set of labelled rows."""
        return [self.open_split(name) for name in self.metadata["splits"] if name.startswith(("heldout", "dev"))]
