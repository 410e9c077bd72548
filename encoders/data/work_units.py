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
from encoders.data.beam_runner import Say
from encoders.data.store import OFFSETS
from encoders.text import corpus, tokenization
from encoders.text.source import Document, Part
from encoders.utils.files import appearing, write_whole

if TYPE_CHECKING:
    from encoders.data.prepare import Data

CHUNK = 4_000_000  # characters that are tokenised at a time
SAMPLED = 64  # units that a sample is taken from
PIECE = 1 << 20  # numbers of a file that are read at a time
BUCKET = 1 << 22  # hashes that are compared at a time
SPLITS = ("train", "heldout")


def quiet(line: str) -> None:
    pass


@dataclass(frozen=True)
class Unit:
    """Parts of one item of the corpus, next to each other."""

    number: int
    item: int
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        first, last = self.parts[0], self.parts[-1]
        return str(first) + (f" to {last}" if len(self.parts) > 1 else "")  # without folders: stores may move


@dataclass(frozen=True)
class Work:
    """A corpus and the folder where its finished units lie: all that a process needs."""

    data: Data
    folder: Path

    def units(self) -> list[Unit]:
        found: list[Unit] = []
        for item, source in enumerate(corpus.sources(self.data.corpus, self.data.text)):
            held: list[Part] = []
            size = 0
            for part in chain(source.parts(corpus.PART), [None]):
                if held and (part is None or size + part.size > corpus.PART):
                    found.append(Unit(len(found), item, tuple(held)))
                    held, size = [], 0
                if part:
                    held.append(part)
                    size += part.size
        return found

    def paragraphs(self, unit: Unit) -> Iterator[Document]:
        """The documents of a unit as they are read."""
        source = opened(self.data.corpus[unit.item], self.data.text)
        for part in unit.parts:
            yield from source.documents(part)

    def passing(self, unit: Unit, counts: Counter) -> Iterator[Document]:
        """The documents of a unit that are text enough."""
        return self.data.filters.passing(self.paragraphs(unit), counts)

    def documents(self, unit: Unit, counts: Counter) -> Iterator[Document]:
        """The documents of a unit as sentences, without what is left out."""
        split = corpus.splitter(self.data.sentences, self.data.language)
        dropped = {kind: self.dropped(kind, unit) for kind in self.data.filters.compared}
        for document in self.data.filters.kept(self.passing(unit, counts), dropped, counts):
            if sentences := [sentence for line in document for sentence in split(line)]:
                yield sentences
            else:
                counts["documents without a sentence"] += 1

    def dropped(self, kind: str, unit: Unit) -> np.ndarray:
        """What `repeats` has found in a unit: places and reasons, `[n, 2]`."""
        found = []
        for path in sorted((self.folder / kind).glob("drop-*.npy")):
            rows = np.load(path, mmap_mode="r")
            first, last = np.searchsorted(rows[:, 0], [unit.number, unit.number + 1])
            found.append(np.array(rows[first:last, 1:]))  # a copy: a file that stays mapped stays open
        return np.concatenate(found)

    def part(self, number: int) -> Path:
        return self.folder / "parts" / f"{number:06}"

    @property
    def tokenizer(self):
        path = self.folder / "tokenizer.json"
        return loaded(path, path.stat().st_mtime_ns)


opened = lru_cache(maxsize=64)(corpus.source)  # a glob of many files is looked up once


@lru_cache(maxsize=1)
def loaded(path: Path, time: int) -> tokenization.Tokenizer:
    return tokenization.load(path)


# What is done with a unit, in this order. Each is done by any process, and twice does no harm.


def hash_unit(work: Work, unit: Unit, say: Say = quiet) -> None:
    """The hashes of a unit's documents or paragraphs, in order."""
    kinds = work.data.filters.compared
    paths = {kind: work.folder / kind / f"hash-{unit.number:06}.npy" for kind in kinds}
    if not all(path.exists() for path in paths.values()):
        for kind, rows in filters.hashed(work.passing(unit, Counter()), kinds).items():
            save(paths[kind], rows)


def find_repeats(work: Work, bucket: tuple[str, int, int, int], say: Say = quiet) -> None:
    """What goes, of the hashes of all `units` that fall into one of `buckets`."""
    kind, number, buckets, units = bucket
    path = work.folder / kind / f"drop-{number:06}.npy"
    if path.exists():
        return
    width = 2**64 // buckets
    low, high = np.uint64(number * width), np.uint64(min((number + 1) * width, 2**64) - 1)
    slices = []
    for unit in range(units):
        rows = np.load(work.folder / kind / f"hash-{unit:06}.npy", mmap_mode="r")
        first, last = np.searchsorted(rows[:, 0], low), np.searchsorted(rows[:, 0], high, side="right")
        slices.append(np.array(rows[first:last]))  # a copy: a file that stays mapped stays open
    save(path, filters.repeats(slices, kind, work.data.filters))


def buckets(work: Work, units: int) -> list[tuple[str, int, int, int]]:
    """Pieces of the comparison of all hashes, each small enough for memory."""
    found = []
    for kind in work.data.filters.compared:
        sizes = [np.load(path, mmap_mode="r").shape[0] for path in (work.folder / kind).glob("hash-*.npy")]
        count = 1 << (-(-sum(sizes) // BUCKET) - 1).bit_length() if sum(sizes) > BUCKET else 1
        found += [(kind, number, count, units) for number in range(count)]
    return found


def tokenise_unit(work: Work, unit: Unit, say: Say = quiet) -> None:
    """The tokens of a unit's documents, in a folder that appears when it is whole."""
    path = work.part(unit.number)
    if (path / "part.json").exists():
        return
    try:
        with appearing(path) as partial:
            write_part(work, unit, partial, say)
    except OSError:
        if not path.exists():  # else another process has finished it meanwhile
            raise


def write_part(work: Work, unit: Unit, path: Path, say: Say) -> None:
    began, tokenizer = time.monotonic(), work.tokenizer
    facts, filtered = tokenizer.facts, Counter()
    counts, characters, size = np.zeros(facts.size, np.int64), 0, 0
    with ExitStack() as stack:
        writers = {split: Writer(stack, path / split, kind_of(facts), facts.sep) for split in SPLITS}
        for batch in chunks(work.documents(unit, filtered)):
            lines = [(tokenizer.joiner if i else "") + line for document in batch for i, line in enumerate(document)]
            ids = iter(tokenizer.encode_batch(lines))
            for document in batch:
                split = "heldout" if is_held_out(unit.number, size, work.data.heldout) else "train"
                counted = writers[split].add([row for row in islice(ids, len(document)) if row])
                if counted is None:
                    filtered["documents without a token"] += 1
                elif split == "train":
                    counts += np.bincount(counted, minlength=facts.size)
                size += 1
            characters += sum(map(len, lines))
            speed = characters / 1e6 / (time.monotonic() - began)
            say(f"tokens: {size:,} documents, {characters / 1e6:,.0f} M characters, {speed:.1f} M/s")
    counted = as_bytes(counts)
    (path / "counts.npy").write_bytes(counted)
    summary = {
        "of": str(unit),
        "item": unit.item,
        "splits": {split: writer.summary() | {"sha256": digest(path / split)} for split, writer in writers.items()},
        "counts": hashlib.sha256(counted).hexdigest(),
        "characters": characters,
        "filtered": dict(filtered),
        "seconds": round(time.monotonic() - began, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    (path / "part.json").write_text(json.dumps(summary), encoding="utf-8")


def is_held_out(unit: int, document: int, share: float) -> bool:
    """Evenly spread over any stretch of a unit's documents; the first one of the first unit always is."""
    start = int.from_bytes(hashlib.blake2b(str(unit).encode(), digest_size=8).digest(), "big") if unit else 0
    return (start + document * 0x9E3779B97F4A7C15) % 2**64 < share * 2**64


def kind_of(facts: tokenization.Facts) -> type:
    return np.uint16 if facts.size <= 1 << 16 else np.uint32


def sample(work: Work, units: list[Unit]) -> Iterator[Document]:
    """Documents from all over the corpus, of which a vocabulary is trained: the beginnings of up to `SAMPLED` units
    one after the other, and then, for who wants more, the rest."""
    step = -(-len(units) // SAMPLED)
    order = [unit for first in range(step) for unit in units[first::step]]
    share, read = work.data.vocabulary.sample // min(len(units), SAMPLED), {}
    for most in (share, None):
        for unit in order:
            begun, size = read.get(unit, 0), 0
            for number, document in enumerate(work.documents(unit, Counter())):
                if number >= begun:
                    yield document
                    read[unit], size = number + 1, size + sum(map(len, document))
                    if most is not None and size >= most:
                        break


# Files of a part and of a store


def save(path: Path, rows: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, as_bytes(rows))


def as_bytes(rows: np.ndarray) -> bytes:
    """An array as an .npy file; `np.save` to a file does not say that the disk is full."""
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return buffer.getvalue()


def digest(folder: Path) -> str:
    """SHA-256 of the three files of a part's split."""
    whole = hashlib.sha256()
    for name in ("tokens", *OFFSETS):
        with open(folder / f"{name}.bin", "rb") as file:
            for piece in iter(partial(file.read, 1 << 20), b""):
                whole.update(piece)
    return whole.hexdigest()


def pieces(path: Path, kind, first: int, last: int | None = None) -> Iterator[np.ndarray]:
    """The numbers of a file from the `first` up to the `last`, or to its end."""
    kind = np.dtype(kind)
    with open(path, "rb") as file:
        file.seek(first * kind.itemsize)
        while size := PIECE if last is None else min(PIECE, last - first):
            if not len(piece := np.fromfile(file, kind, size)):
                return
            yield piece
            first += len(piece)


def chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about `CHUNK` characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += sum(map(len, document))
        if size >= CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Writer:
    """Appends documents to the three files of a split."""

    def __init__(self, stack: ExitStack, folder: Path, dtype, separator: int):
        folder.mkdir()
        self.files = {n: stack.enter_context(open(folder / f"{n}.bin", "wb")) for n in ("tokens", *OFFSETS)}
        self.dtype, self.separator = dtype, separator
        self.tokens = self.sentences = self.documents = 0
        for name in OFFSETS:
            self.write(name, np.zeros(1))

    def add(self, sentences: list[list[int]]) -> np.ndarray | None:
        """Write one document and return its tokens; one without any is left out."""
        if not any(sentences):
            return None
        sizes = np.array([len(ids) for ids in sentences])
        sizes[-1] += 1
        tokens = np.fromiter(chain.from_iterable(sentences), self.dtype, sizes.sum() - 1)
        self.write("tokens", np.append(tokens, np.array([self.separator], self.dtype)))
        self.write("sentences", self.tokens + np.cumsum(sizes))
        self.tokens, self.sentences = self.tokens + int(sizes.sum()), self.sentences + len(sizes)
        self.documents += 1
        self.write("documents", np.array([self.sentences]))
        return tokens

    def write(self, name: str, numbers: np.ndarray) -> None:
        # Not `tofile`, whose error does not say that the disk is full.
        self.files[name].write(numbers.astype(self.dtype if name == "tokens" else np.int64).tobytes())

    def summary(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("documents", "sentences", "tokens")}
