"""Files of a finished unit of work and of a store: tokens, offsets, counts, and their checksums.

unit.json                            what the unit holds (`FinishedUnit`)
counts.npy                           occurrences of each token of the training split
train/ heldout/                      tokens.bin, sentences.bin, documents.bin
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encoders.data.store import OFFSET_FILES
from encoders.text.tokenization import VocabInfo
from encoders.utils.files import write_file_atomically

READ_BLOCK_NUMBERS = 1 << 20  # numbers of a file that are read at a time
TEXT_SPLITS = ("train", "heldout")
COUNT_NAMES = ("documents", "sentences", "tokens")


@dataclass(frozen=True)
class FinishedUnit:
    """Record of a finished unit: for each split its counts and the SHA-256 of its files."""

    name: str
    item_index: int
    splits: dict[str, dict]
    counts_sha256: str
    characters: int
    filtered: dict[str, int]
    seconds: float
    peak_memory_mb: int

    @classmethod
    def read_intact(cls, folder: Path) -> FinishedUnit | None:
        """Return the record of a folder, or None where the bytes of its files are not those that were written."""
        try:
            unit = cls(**json.loads((folder / "unit.json").read_text(encoding="utf-8")))
            intact = hashlib.sha256((folder / "counts.npy").read_bytes()).hexdigest() == unit.counts_sha256
            intact &= all(hash_split_files(folder / split) == unit.splits[split]["sha256"] for split in TEXT_SPLITS)
            return unit if intact else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


class SplitWriter:
    """Writer that appends documents to the three files of a split, and counts what it wrote."""

    def __init__(self, stack: ExitStack, folder: Path, vocab: VocabInfo):
        folder.mkdir()
        self.files = {n: stack.enter_context(open(folder / f"{n}.bin", "wb")) for n in ("tokens", *OFFSET_FILES)}
        self.dtype, self.sep_id = choose_token_dtype(vocab), vocab.sep_id
        self.counts = Counter(dict.fromkeys(COUNT_NAMES, 0))
        self.token_counts = np.zeros(vocab.vocab_size, np.int64)  # separators aside
        for name in OFFSET_FILES:
            self.write_numbers(name, np.zeros(1))

    def add_document(self, sentences: list[list[int]]) -> bool:
        """Write a document; leave out a document without any token, and return False."""
        if not any(sentences):
            return False
        sizes = np.array([len(ids) for ids in sentences])
        sizes[-1] += 1
        tokens = np.fromiter(chain.from_iterable(sentences), self.dtype, sizes.sum() - 1)
        self.write_numbers("tokens", np.append(tokens, np.array([self.sep_id], self.dtype)))
        self.write_numbers("sentences", self.counts["tokens"] + np.cumsum(sizes))
        self.counts.update(documents=1, sentences=len(sizes), tokens=int(sizes.sum()))
        self.write_numbers("documents", np.array([self.counts["sentences"]]))
        self.token_counts += np.bincount(tokens, minlength=len(self.token_counts))
        return True

    def write_numbers(self, name: str, numbers: np.ndarray) -> None:
        # Not `tofile`, whose error does not name a full disk.
        self.files[name].write(numbers.astype(self.dtype if name == "tokens" else np.int64).tobytes())


def choose_token_dtype(vocab: VocabInfo) -> type:
    return np.uint16 if vocab.vocab_size <= 1 << 16 else np.uint32


def describe_vocab(vocab: VocabInfo, token_counts: np.ndarray) -> dict:
    """Return the fields of `store.json` on a vocabulary that occurs `token_counts` times in the training split."""
    ordinary_counts = token_counts.copy()
    ordinary_counts[list(vocab.special_ids)] = 0
    counted = replace(vocab, most_frequent_id=int(ordinary_counts.argmax()))
    return {"dtype": np.dtype(choose_token_dtype(vocab)).name, "vocab": counted.to_json_value()}


def save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file_atomically(path, encode_npy(array))


def encode_npy(array: np.ndarray) -> memoryview:
    """Return an array as the bytes of an .npy file; the error of `np.save` to a file does not name a full disk."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getbuffer()


def hash_split_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("tokens", *OFFSET_FILES):
        with open(folder / f"{name}.bin", "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


class UnitSpan(NamedTuple):
    """Position of a unit's numbers in one file of a split, and the offset that is added to them there."""

    file_name: str
    dtype: np.dtype
    start: int
    stop: int
    base_offset: int


def locate_unit(end_counts: Counter, counts: Mapping[str, int], dtype) -> list[UnitSpan]:
    """Return the spans of a unit behind the `end_counts` of the units before it, to which its own counts are added."""
    spans = [UnitSpan("tokens.bin", np.dtype(dtype), end_counts["tokens"], end_counts["tokens"] + counts["tokens"], 0)]
    for name, counted in (("sentences", "tokens"), ("documents", "sentences")):
        start = end_counts[name] + 1  # behind the first offset, 0
        spans.append(UnitSpan(f"{name}.bin", np.dtype(np.int64), start, start + counts[name], end_counts[counted]))
    end_counts.update({name: counts[name] for name in COUNT_NAMES})
    return spans


def read_number_blocks(path: Path, dtype: np.dtype, start: int, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield the numbers of a file from `start` to `stop`, or to its end, in blocks."""
    with open(path, "rb") as file:
        file.seek(start * dtype.itemsize)
        while size := READ_BLOCK_NUMBERS if stop is None else min(READ_BLOCK_NUMBERS, stop - start):
            if not len(block := np.fromfile(file, dtype, size)):
                return
            yield block
            start += len(block)


def write_unit_split(unit_split_dir: Path, store_split_dir: Path, spans: Iterable[UnitSpan]) -> None:
    """Write the numbers of a unit's files to their positions in the store, offsets shifted."""
    for span in spans:
        with open(store_split_dir / span.file_name, "r+b") as target:
            target.seek(span.start * span.dtype.itemsize)
            num_skipped = 0 if span.file_name == "tokens.bin" else 1  # the unit's own first offset
            for block in read_number_blocks(unit_split_dir / span.file_name, span.dtype, num_skipped):
                target.write((block + span.dtype.type(span.base_offset)).tobytes())
