"""UNITS OF WORK: a corpus falls into them, each becomes finished files on its own, on any process of any machine.

    work/
      tokenizer.json
      documents/ paragraphs/       hashes and what goes, where duplicates are looked for
      parts/000012/                part.json, counts.npy, and of each split tokens.bin, sentences.bin, documents.bin

What a unit becomes depends on the corpus and its number alone. A folder or file that has its name is whole, and is not
made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from encoders.data import filters
from encoders.data.beam_runner import LogFunction
from encoders.data.store import OFFSET_FILES
from encoders.text import corpus, tokenization
from encoders.text.source import ByteRange, Document
from encoders.utils.files import atomic_dir, write_file_atomically

if TYPE_CHECKING:
    from encoders.data.prepare import PretrainingData

TOKENIZE_CHUNK_CHARS = 4_000_000  # characters that are tokenised at a time
MAX_SAMPLED_UNITS = 64  # units that a sample is taken from
READ_BLOCK_NUMBERS = 1 << 20  # numbers of a file that are read at a time
MAX_BUCKET_HASHES = 1 << 22  # hashes that are compared at a time
TEXT_SPLITS = ("train", "heldout")


def ignore_log_line(line: str) -> None:
    pass


@dataclass(frozen=True)
class WorkUnit:
    """Parts of one item of the corpus, next to each other."""

    unit_index: int
    item_index: int
    byte_ranges: tuple[ByteRange, ...]

    def __str__(self) -> str:
        first, last = self.byte_ranges[0], self.byte_ranges[-1]
        return str(first) + (f" to {last}" if len(self.byte_ranges) > 1 else "")  # without folders: stores may move


@dataclass(frozen=True)
class PreparationJob:
    """A corpus and the folder where its finished units lie: all that a process needs."""

    data: PretrainingData
    work_dir: Path

    def list_units(self) -> list[WorkUnit]:
        found: list[WorkUnit] = []
        for item, source in enumerate(corpus.make_sources(self.data.corpus, self.data.text_field)):
            held: list[ByteRange] = []
            size = 0
            for part in chain(source.split_ranges(corpus.RANGE_BYTES), [None]):
                if held and (part is None or size + part.approx_bytes > corpus.RANGE_BYTES):
                    found.append(WorkUnit(len(found), item, tuple(held)))
                    held, size = [], 0
                if part:
                    held.append(part)
                    size += part.approx_bytes
        return found

    def read_paragraphs(self, unit: WorkUnit) -> Iterator[Document]:
        """The documents of a unit as they are read."""
        source = make_source_cached(self.data.corpus[unit.item_index], self.data.text_field)
        for part in unit.byte_ranges:
            yield from source.read_documents(part)

    def read_filtered_documents(self, unit: WorkUnit, counts: Counter) -> Iterator[Document]:
        """The documents of a unit that are text enough."""
        return self.data.filters.filter_documents(self.read_paragraphs(unit), counts)

    def read_sentences(self, unit: WorkUnit, counts: Counter) -> Iterator[Document]:
        """The documents of a unit as sentences, without what is left out."""
        split = corpus.make_sentence_splitter(self.data.sentence_splitting, self.data.language)
        dropped = {kind: self.load_repeats(kind, unit) for kind in self.data.filters.compared_levels}
        for document in self.data.filters.drop_repeats(self.read_filtered_documents(unit, counts), dropped, counts):
            if sentences := [sentence for line in document for sentence in split(line)]:
                yield sentences
            else:
                counts["documents without a sentence"] += 1

    def load_repeats(self, level: str, unit: WorkUnit) -> np.ndarray:
        """What `repeats` has found in a unit: places and reasons, `[n, 2]`."""
        found = []
        for path in sorted((self.work_dir / level).glob("drop-*.npy")):
            rows = np.load(path, mmap_mode="r")
            first, last = np.searchsorted(rows[:, 0], [unit.unit_index, unit.unit_index + 1])
            found.append(np.array(rows[first:last, 1:]))  # a copy: a file that stays mapped stays open
        return np.concatenate(found)

    def get_unit_dir(self, unit_index: int) -> Path:
        return self.work_dir / "parts" / f"{unit_index:06}"

    @property
    def tokenizer(self):
        path = self.work_dir / "tokenizer.json"
        return load_tokenizer_cached(path, path.stat().st_mtime_ns)


make_source_cached = lru_cache(maxsize=64)(corpus.make_source)  # a glob of many files is looked up once


@lru_cache(maxsize=1)
def load_tokenizer_cached(path: Path, modified_ns: int) -> tokenization.Tokenizer:
    return tokenization.load_tokenizer(path)


# What is done with a unit, in this order. Each is done by any process, and twice does no harm.


def hash_unit(job: PreparationJob, unit: WorkUnit, log: LogFunction = ignore_log_line) -> None:
    """The hashes of a unit's documents or paragraphs, in order."""
    kinds = job.data.filters.compared_levels
    paths = {kind: job.work_dir / kind / f"hash-{unit.unit_index:06}.npy" for kind in kinds}
    if not all(path.exists() for path in paths.values()):
        for kind, rows in filters.hash_texts(job.read_filtered_documents(unit, Counter()), kinds).items():
            save_array(paths[kind], rows)


def find_repeats_in_bucket(
    job: PreparationJob, bucket: tuple[str, int, int, int], log: LogFunction = ignore_log_line
) -> None:
    """What goes, of the hashes of all `units` that fall into one of `buckets`."""
    kind, number, buckets, units = bucket
    path = job.work_dir / kind / f"drop-{number:06}.npy"
    if path.exists():
        return
    width = 2**64 // buckets
    low, high = np.uint64(number * width), np.uint64(min((number + 1) * width, 2**64) - 1)
    slices = []
    for unit in range(units):
        rows = np.load(job.work_dir / kind / f"hash-{unit:06}.npy", mmap_mode="r")
        first, last = np.searchsorted(rows[:, 0], low), np.searchsorted(rows[:, 0], high, side="right")
        slices.append(np.array(rows[first:last]))  # a copy: a file that stays mapped stays open
    save_array(path, filters.find_bucket_repeats(slices, kind, job.data.filters))


def plan_hash_buckets(job: PreparationJob, num_units: int) -> list[tuple[str, int, int, int]]:
    """Pieces of the comparison of all hashes, each small enough for memory."""
    found = []
    for kind in job.data.filters.compared_levels:
        sizes = [np.load(path, mmap_mode="r").shape[0] for path in (job.work_dir / kind).glob("hash-*.npy")]
        count = 1 << (-(-sum(sizes) // MAX_BUCKET_HASHES) - 1).bit_length() if sum(sizes) > MAX_BUCKET_HASHES else 1
        found += [(kind, number, count, num_units) for number in range(count)]
    return found


def tokenize_unit(job: PreparationJob, unit: WorkUnit, log: LogFunction = ignore_log_line) -> None:
    """The tokens of a unit's documents, in a folder that appears when it is whole."""
    path = job.get_unit_dir(unit.unit_index)
    if (path / "part.json").exists():
        return
    try:
        with atomic_dir(path) as partial:
            write_finished_unit(job, unit, partial, log)
    except OSError:
        if not path.exists():  # else another process has finished it meanwhile
            raise


def write_finished_unit(job: PreparationJob, unit: WorkUnit, path: Path, log: LogFunction) -> None:
    began, tokenizer = time.monotonic(), job.tokenizer
    facts, filtered = tokenizer.vocab, Counter()
    counts, characters, size = np.zeros(facts.vocab_size, np.int64), 0, 0
    with ExitStack() as stack:
        writers = {
            split: SplitWriter(stack, path / split, choose_token_dtype(facts), facts.sep_id) for split in TEXT_SPLITS
        }
        for batch in batch_documents(job.read_sentences(unit, filtered)):
            lines = [
                (tokenizer.sentence_joiner if i else "") + line for document in batch for i, line in enumerate(document)
            ]
            ids = iter(tokenizer.encode_batch(lines))
            for document in batch:
                split = "heldout" if is_held_out(unit.unit_index, size, job.data.heldout_fraction) else "train"
                counted = writers[split].add_document([row for row in islice(ids, len(document)) if row])
                if counted is None:
                    filtered["documents without a token"] += 1
                elif split == "train":
                    counts += np.bincount(counted, minlength=facts.vocab_size)
                size += 1
            characters += sum(map(len, lines))
            speed = characters / 1e6 / (time.monotonic() - began)
            log(f"tokens: {size:,} documents, {characters / 1e6:,.0f} M characters, {speed:.1f} M/s")
    counted = encode_npy(counts)
    (path / "counts.npy").write_bytes(counted)
    summary = {
        "of": str(unit),
        "item": unit.item_index,
        "splits": {
            split: writer.get_counts() | {"sha256": hash_split_files(path / split)} for split, writer in writers.items()
        },
        "counts": hashlib.sha256(counted).hexdigest(),
        "characters": characters,
        "filtered": dict(filtered),
        "seconds": round(time.monotonic() - began, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    (path / "part.json").write_text(json.dumps(summary), encoding="utf-8")


def is_held_out(unit_index: int, document_index: int, heldout_fraction: float) -> bool:
    """Evenly spread over any stretch of a unit's documents; the first one of the first unit always is."""
    start = (
        int.from_bytes(hashlib.blake2b(str(unit_index).encode(), digest_size=8).digest(), "big") if unit_index else 0
    )
    return (start + document_index * 0x9E3779B97F4A7C15) % 2**64 < heldout_fraction * 2**64


def choose_token_dtype(vocab: tokenization.VocabInfo) -> type:
    return np.uint16 if vocab.vocab_size <= 1 << 16 else np.uint32


def sample_documents(job: PreparationJob, units: list[WorkUnit]) -> Iterator[Document]:
    """Documents from all over the corpus, of which a vocabulary is trained: the beginnings of up to `SAMPLED` units
    one after the other, and then, for who wants more, the rest."""
    step = -(-len(units) // MAX_SAMPLED_UNITS)
    order = [unit for first in range(step) for unit in units[first::step]]
    share, read = job.data.tokenizer.train_chars // min(len(units), MAX_SAMPLED_UNITS), {}
    for most in (share, None):
        for unit in order:
            begun, size = read.get(unit, 0), 0
            for number, document in enumerate(job.read_sentences(unit, Counter())):
                if number >= begun:
                    yield document
                    read[unit], size = number + 1, size + sum(map(len, document))
                    if most is not None and size >= most:
                        break


# Files of a part and of a store


def save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file_atomically(path, encode_npy(array))


def encode_npy(array: np.ndarray) -> bytes:
    """An array as an .npy file; `np.save` to a file does not say that the disk is full."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def hash_split_files(folder: Path) -> str:
    """SHA-256 of the three files of a part's split."""
    whole = hashlib.sha256()
    for name in ("tokens", *OFFSET_FILES):
        with open(folder / f"{name}.bin", "rb") as file:
            for piece in iter(partial(file.read, 1 << 20), b""):
                whole.update(piece)
    return whole.hexdigest()


def read_number_blocks(path: Path, dtype, start: int, stop: int | None = None) -> Iterator[np.ndarray]:
    """The numbers of a file from the `first` up to the `last`, or to its end."""
    dtype = np.dtype(dtype)
    with open(path, "rb") as file:
        file.seek(start * dtype.itemsize)
        while size := READ_BLOCK_NUMBERS if stop is None else min(READ_BLOCK_NUMBERS, stop - start):
            if not len(piece := np.fromfile(file, dtype, size)):
                return
            yield piece
            start += len(piece)


def batch_documents(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about `CHUNK` characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += sum(map(len, document))
        if size >= TOKENIZE_CHUNK_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class SplitWriter:
    """Appends documents to the three files of a split."""

    def __init__(self, stack: ExitStack, folder: Path, dtype, sep_id: int):
        folder.mkdir()
        self.files = {n: stack.enter_context(open(folder / f"{n}.bin", "wb")) for n in ("tokens", *OFFSET_FILES)}
        self.dtype, self.sep_id = dtype, sep_id
        self.tokens = self.sentences = self.documents = 0
        for name in OFFSET_FILES:
            self.write_numbers(name, np.zeros(1))

    def add_document(self, sentences: list[list[int]]) -> np.ndarray | None:
        """Write one document and return its tokens; one without any is left out."""
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
        # Not `tofile`, whose error does not say that the disk is full.
        self.files[name].write(numbers.astype(self.dtype if name == "tokens" else np.int64).tobytes())

    def get_counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("documents", "sentences", "tokens")}
