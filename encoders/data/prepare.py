"""TEXT → STORE: corpus to tokens on disk, once, with memory that does not grow with the corpus."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np

from encoders.data.store import OFFSETS, Store
from encoders.files import appearing
from encoders.text import corpus as corpora
from encoders.text import vocab
from encoders.text.vocab import Vocabulary

VERSION = 1  # of the store's layout; a change makes old stores another key
CHUNK = 4_000_000  # characters that are tokenised at a time


class Source(Protocol):
    """What a store is made of; a frozen dataclass. The store is kept in `folder`."""

    vocabulary: Vocabulary
    folder: str
    labels: tuple[str, ...]  # what the rows are labelled with, if they are

    def check(self) -> None:
        """Raises a `ValueError` for what cannot be read, before any long work."""

    def content(self) -> dict:
        """What determines the store's content: file hashes or versions rather than paths."""

    def write(self, name: str, path: Path, say: Callable[[str], None]) -> None:
        """Fill the folder `path`, with `store.json`, which names it, last."""


@dataclass(frozen=True)
class Data:
    """Where text comes from and how it becomes tokens.

    `corpus` names what is read: "embedded" (the docstrings of the packages this one depends on), "tfds:NAME", or
    paths and globs of text files. `sentences`: are lines paragraphs to be split, or sentences. `heldout` is the share
    of documents that evaluation reads and training does not. Stores are kept in `folder`.
    """

    corpus: tuple[str, ...] = ("embedded",)
    vocabulary: Vocabulary = Vocabulary()
    sentences: Literal["split", "lines"] = "split"
    language: str = "en"
    heldout: float = 0.02
    folder: str = field(default="stores", metadata={"aside": True})

    labels: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if not self.corpus:
            raise ValueError("data.corpus is empty; it takes 'embedded', 'tfds:NAME', or text files")
        if not 0 < self.heldout < 1:
            raise ValueError(f"data.heldout={self.heldout} must be above 0 and below 1")

    def check(self) -> None:
        corpora.check(self.corpus, self.sentences, self.language)

    def content(self) -> dict:
        spec = asdict(self)
        del spec["folder"]
        spec["corpus"] = corpora.identity(self.corpus)
        if self.vocabulary.path:
            spec["vocabulary"]["path"] = digest(Path(self.vocabulary.path))
        return spec | {"version": VERSION}

    def write(self, name: str, path: Path, say: Callable[[str], None]) -> None:
        write(self, name, path, say)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder."""
    path = path.expanduser()
    if not path.exists():
        raise ValueError(f"there is no {str(path)!r}")
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()


def key(data: Source) -> str:
    """The content key of the store that `data` makes."""
    return hashlib.sha256(json.dumps(data.content(), sort_keys=True).encode()).hexdigest()[:16]


def is_held_out(document: int, share: float) -> bool:
    """Evenly spread over any stretch of documents; the first one always is."""
    return (document * 0x9E3779B97F4A7C15) % 2**64 < share * 2**64


def prepared(data: Source, say: Callable[[str], None] = lambda line: None) -> Store:
    """The store of `data`, made now if it is not there. Raises `CorpusError` or `ValueError` before any long work."""
    data.check()
    name = key(data)
    path = Path(data.folder) / name
    if not path.exists():
        try:
            with appearing(path) as partial:
                data.write(name, partial, say)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process has just finished the same store
                raise
    return Store.open(path)


def write(data: Data, name: str, path: Path, say: Callable[[str], None]) -> None:
    """A store of running text: vocabulary, then tokens, then `store.json`."""
    began = time.monotonic()
    texts = lambda: corpora.documents(data.corpus, data.sentences, data.language)
    spec = data.vocabulary
    say(f"vocabulary: {'read from ' + spec.path if spec.path else f'training {spec.kind} of {spec.size:,}'}")
    tokenizer = vocab.load(spec.path, spec.lowercase) if spec.path else vocab.train(spec, texts())
    tokenizer.save(path / "tokenizer.json")
    facts = tokenizer.facts
    trained = time.monotonic() - began
    dtype = np.uint16 if facts.size <= 1 << 16 else np.uint32
    counts, characters, size = np.zeros(facts.size, np.int64), 0, 0
    with ExitStack() as stack:
        splits = {s: Writer(stack, path / s, dtype, facts.sep) for s in ("train", "heldout")}
        for batch in chunks(texts()):
            lines = [(tokenizer.joiner if i else "") + line for document in batch for i, line in enumerate(document)]
            ids = iter(tokenizer.encode_batch(lines))
            for document in batch:
                split = "heldout" if is_held_out(size, data.heldout) else "train"
                counted = splits[split].add([row for row in islice(ids, len(document)) if row])
                if split == "train" and counted is not None:
                    counts += np.bincount(counted, minlength=facts.size)
                size += 1
            characters += sum(map(len, lines))
            seconds = time.monotonic() - began - trained
            speed = characters / 1e6 / seconds
            say(f"tokens: {size:,} documents, {characters / 1e6:,.0f} M characters, {speed:.1f} M/s")
    for split, writer in splits.items():
        if not writer.documents:
            raise ValueError(
                f"the {split} split is empty: {size} document(s) in {', '.join(data.corpus)}; documents are separated "
                f"by blank lines, and about {data.heldout:.0%} of them are held out"
            )
    ordinary = counts.copy()
    ordinary[list(facts.special)] = 0
    meta = {
        "key": name,
        "content": data.content(),
        "dtype": np.dtype(dtype).name,
        "facts": replace(facts, common=int(ordinary.argmax())).to_json(),
        "splits": {split: writer.summary() for split, writer in splits.items()},
        "unknown_rate": float(counts[facts.unk] / max(counts.sum(), 1)),
        "characters": characters,
        "seconds": {"vocabulary": round(trained, 2), "tokens": round(time.monotonic() - began - trained, 2)},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    (path / "store.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def chunks(documents: Iterator[list[str]]) -> Iterator[list[list[str]]]:
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
            np.zeros(1, np.int64).tofile(self.files[name])

    def add(self, sentences: list[list[int]]) -> np.ndarray | None:
        """Write one document and return its tokens; one without any is left out."""
        if not any(sentences):
            return None
        sizes = np.array([len(ids) for ids in sentences])
        sizes[-1] += 1
        tokens = np.fromiter(chain.from_iterable(sentences), self.dtype, sizes.sum() - 1)
        np.append(tokens, np.array([self.separator], self.dtype)).tofile(self.files["tokens"])
        (self.tokens + np.cumsum(sizes)).astype(np.int64).tofile(self.files["sentences"])
        self.tokens, self.sentences = self.tokens + int(sizes.sum()), self.sentences + len(sizes)
        self.documents += 1
        np.array([self.sentences], np.int64).tofile(self.files["documents"])
        return tokens

    def summary(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("documents", "sentences", "tokens")}
