"""Prepared corpus on disk: flat tokens with sentence and document offsets, memory-mapped.

    store/
      store.json             its content and key, vocabulary, counts, and the SHA-256 of every other file;
      tokenizer.json
      train/ heldout/ ...    tokens.bin (uint16 or uint32), sentences.bin, documents.bin (int64 offsets);
      tables/                example tables, built when first needed.

A document of labelled rows is a row; NAME.npy holds its labels, and notes.jsonl the metadata that scores need. Each
document ends with one separator token, so that a span over several documents has one between any two. A finished
group of units of work has the files of both splits, counts.npy of the training split's tokens, and units.json: the
records of the units (`UNIT_FIELDS`) and the SHA-256 of the files.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encoders.text.tokenization import VOCAB_SHAPE, Tokenizer, VocabInfo, load_tokenizer
from encoders.utils.errors import UserError
from encoders.utils.files import check_shape, hash_file, read_signed_json, write_file_atomically

STORE_FILE = "store.json"
SHARD_TOKENS = 1 << 24  # of a shard; example tables are built for one shard of documents at a time
READ_BLOCK_NUMBERS = 1 << 20  # numbers of a file that are read at a time
TEXT_SPLITS = ("train", "heldout")
OFFSET_FILES = ("sentences", "documents")
COUNT_NAMES = ("documents", "sentences", "tokens")
FINISHED_UNITS_FILE = "units.json"
UNIT_FIELDS = "name item_index splits characters filtered seconds peak_memory_mb".split()


STORE_SHAPE = {
    "key": str, "content": dict, "dtype": str, "vocab": VOCAB_SHAPE, "splits": {str: dict.fromkeys(COUNT_NAMES, int)},
}  # fmt: skip


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
    corpus_ranges: tuple[range, ...] = ()  # the documents of each item of the corpus, or of each file of labelled rows

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


@dataclass(frozen=True)
class Store:
    """Opened store. Raises `ValueError` where the folder does not hold a complete one."""

    path: Path
    metadata: dict

    @classmethod
    def open(cls, path: Path) -> Store:
        try:
            metadata = read_signed_json(path / STORE_FILE)
            check_shape(metadata, STORE_SHAPE, path / STORE_FILE)
            return cls(path, metadata)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a prepared store (no readable store.json: {error})") from None

    def verify(self) -> None:
        """Raise `ValueError` that names the files whose bytes are not those that were written.

        A store of an earlier version without checksums of its files passes.
        """
        recorded = self.metadata.get("files", {})
        with ThreadPoolExecutor() as threads:
            hashes = threads.map(hash_if_exists, [self.path / name for name in recorded])
            changed = [name for name, found in zip(recorded, hashes, strict=True) if found != recorded[name]]
        if changed:
            remedy = "remove the store, and it is prepared anew"
            if "units" in self.metadata:
                remedy = f"`prepare EXPERIMENT --repair` makes the damaged units again, or {remedy}"
            raise UserError(f"{self.path} is damaged in {', '.join(changed)}: {remedy}")

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
            raise UserError(f"{self.path} lacks the split {name!r}; it has {', '.join(self.metadata['splits'])}")
        folder, ranges = self.path / name, []
        for unit in self.metadata.get("units", ()):
            start = ranges[-1].stop if ranges else 0
            ranges += [range(start, start)] * (unit["item_index"] + 1 - len(ranges))
            ranges[-1] = range(ranges[-1].start, start + unit["splits"][name]["documents"])
        for count in self.metadata.get("source_documents", {}).get(name, ()):
            start = ranges[-1].stop if ranges else 0
            ranges.append(range(start, start + count))
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


def hash_if_exists(path: Path) -> str | None:
    return hash_file(path) if path.exists() else None


# Writing


def read_intact_units(folder: Path) -> list[dict] | None:
    """Return the records of a group of finished units, or None where its files are not those that were written."""
    try:
        content = json.loads((folder / FINISHED_UNITS_FILE).read_text(encoding="utf-8"))
        intact = all(hash_file(folder / name) == digest for name, digest in content["files"].items())
        intact &= all(unit.keys() == set(UNIT_FIELDS) for unit in content["units"])
        return content["units"] if intact else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
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


def hash_units(folder: Path, unit_counts: Iterable[Mapping[str, int]], dtype) -> Iterator[str]:
    """Yield the SHA-256 of each unit's numbers in the files of a split, as if they were those of files of its own."""
    end_counts = Counter()
    for counts in unit_counts:
        digest = hashlib.sha256()
        for file_name, file_dtype, start, stop, base_offset in locate_unit(end_counts, counts, dtype):
            if file_name != "tokens.bin":
                digest.update(bytes(8))  # the first offset of a unit's file is 0
            if (folder / file_name).exists():
                for block in read_number_blocks(folder / file_name, file_dtype, start, stop):
                    digest.update((block - file_dtype.type(base_offset)).tobytes())
        yield digest.hexdigest()


def sum_counts(units: Iterable[dict], split: str) -> Counter:
    """Return what a split of several units holds."""
    return Counter({name: sum(unit["splits"][split][name] for unit in units) for name in COUNT_NAMES})


def write_unit_split(unit_split_dir: Path, store_split_dir: Path, spans: Iterable[UnitSpan]) -> None:
    """Write the numbers of the files of a group of units to their positions in the store, offsets shifted."""
    for span in spans:
        with open(store_split_dir / span.file_name, "r+b") as target:
            target.seek(span.start * span.dtype.itemsize)
            num_skipped = 0 if span.file_name == "tokens.bin" else 1  # the group's own first offset
            for block in read_number_blocks(unit_split_dir / span.file_name, span.dtype, num_skipped):
                target.write((block + span.dtype.type(span.base_offset)).tobytes())
