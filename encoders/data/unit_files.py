"""Files of a finished unit of work and of a store: tokens, offsets, counts, and their checksums.

unit.json                            what the unit holds (`FinishedUnit`)
counts.npy                           occurrences of each token of the training split
train/ heldout/                      tokens.bin, sentences.bin, documents.bin
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from encoders.data.store import OFFSET_FILES
from encoders.text.tokenization import VocabInfo
from encoders.utils.files import write_file_atomically

READ_BLOCK_NUMBERS = 1 << 20  # numbers of a file that are read at a time
TEXT_SPLITS = ("train", "heldout")


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

    def write_record(self, folder: Path) -> None:
        (folder / "unit.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read_intact(cls, folder: Path) -> FinishedUnit | None:
        """Return the record of a folder, or None where the bytes of its files are not those that were written."""
        try:
            unit = cls(**json.loads((folder / "unit.json").read_text(encoding="utf-8")))
            if hashlib.sha256((folder / "counts.npy").read_bytes()).hexdigest() != unit.counts_sha256:
                return None
            intact = all(hash_split_files(folder / split) == unit.splits[split]["sha256"] for split in TEXT_SPLITS)
            return unit if intact else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def describe_in_store(self) -> dict:
        """Return the fields that the store's own record keeps."""
        return {"name": self.name, "item_index": self.item_index, "splits": self.splits}


class SplitWriter:
    """Writer that appends documents to the three files of a split."""

    def __init__(self, stack: ExitStack, folder: Path, dtype, sep_id: int):
        folder.mkdir()
        self.files = {n: stack.enter_context(open(folder / f"{n}.bin", "wb")) for n in ("tokens", *OFFSET_FILES)}
        self.dtype, self.sep_id = dtype, sep_id
        self.tokens = self.sentences = self.documents = 0
        for name in OFFSET_FILES:
            self.write_numbers(name, np.zeros(1))

    def add_document(self, sentences: list[list[int]]) -> np.ndarray | None:
        """Write one document and return its tokens; leave out a document without any."""
        if not any(sentences):
            return None
        sizes = np.array([len(ids) for ids in sentences])
        sizes[-1] += 1
        tokens = np.fromiter(chain.from_iterable(sentences), self.dtype, sizes.sum() - 1)
        self.write_numbers("tokens", np.append(tokens, np.array([self.sep_id], self.dtype)))
        self.write_numbers("sentences", self.tokens + np.cumsum(sizes))
        self.tokens, self.sentences = self.tokens + int(sizes.sum()), self.sentences + len(sizes)
        self.documents += 1
        self.write_numbers("documents", np.array([self.sentences]))
        return tokens

    def write_numbers(self, name: str, numbers: np.ndarray) -> None:
        # Not `tofile`, whose error does not name a full disk.
        self.files[name].write(numbers.astype(self.dtype if name == "tokens" else np.int64).tobytes())

    def get_counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("documents", "sentences", "tokens")}


def choose_token_dtype(vocab: VocabInfo) -> type:
    return np.uint16 if vocab.vocab_size <= 1 << 16 else np.uint32


def save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file_atomically(path, encode_npy(array))


def encode_npy(array: np.ndarray) -> memoryview:
    """Return an array as the bytes of an .npy file; the error of `np.save` to a file does not name a full disk."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getbuffer()


def hash_split_files(folder: Path) -> str:
    """Return the SHA-256 of the three files of a unit's split."""
    digest = hashlib.sha256()
    for name in ("tokens", *OFFSET_FILES):
        with open(folder / f"{name}.bin", "rb") as file:
            for block in iter(partial(file.read, 1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def read_number_blocks(path: Path, dtype, start: int, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield the numbers of a file from `start` to `stop`, or to its end, in blocks."""
    dtype = np.dtype(dtype)
    with open(path, "rb") as file:
        file.seek(start * dtype.itemsize)
        while size := READ_BLOCK_NUMBERS if stop is None else min(READ_BLOCK_NUMBERS, stop - start):
            if not len(block := np.fromfile(file, dtype, size)):
                return
            yield block
            start += len(block)


def append_unit_split(unit_split_dir: Path, store_split_dir: Path, base_offsets: Counter) -> None:
    """Append the files of a unit's split to those of the store, its offsets shifted by `base_offsets`."""
    with open(unit_split_dir / "tokens.bin", "rb") as source, open(store_split_dir / "tokens.bin", "ab") as target:
        shutil.copyfileobj(source, target, 1 << 22)
    for name, start in zip(OFFSET_FILES, (base_offsets["tokens"], base_offsets["sentences"]), strict=True):
        with open(store_split_dir / f"{name}.bin", "ab") as target:
            for block in read_number_blocks(unit_split_dir / f"{name}.bin", np.int64, 1):
                target.write((block + start).tobytes())
