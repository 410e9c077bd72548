"""Specification of a store: which corpus, cut into which units of work, tokenised how, and the key of the result."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from encoders.data.filters import CorpusFilters
from encoders.text import corpus as corpora
from encoders.text.source import ByteRange
from encoders.text.tokenization import TokenizerSpec
from encoders.utils.buckets import parse_path
from encoders.utils.errors import UserError

MAX_UNKNOWN_RATE = 0.2  # of a text's tokens, by default
STORE_VERSION = 2  # of the store's layout and of the names in its content; a change gives every store another key


class StoreSpec(Protocol):
    """Frozen dataclass from which a store is made; `data.prepare.write_store` has a function for each such class."""

    tokenizer: TokenizerSpec
    store_dir: str  # the folder of all stores
    label_names: tuple[str, ...]  # classes of labelled rows, empty for running text
    max_unknown_rate: float  # share of unknown tokens above which the text is refused

    def check_readable(self) -> None:
        """Raise `ValueError` for sources that cannot be read, before any long work."""

    def describe_content(self) -> dict:
        """Return what determines the store's content: hashes or versions of files rather than paths."""


@dataclass(frozen=True)
class WorkUnit:
    """Adjacent byte ranges of one item of the corpus."""

    unit_index: int
    item_index: int
    byte_ranges: tuple[ByteRange, ...]

    def __str__(self) -> str:
        first, last = self.byte_ranges[0], self.byte_ranges[-1]
        return str(first) if len(self.byte_ranges) == 1 else f"{first} to {last}"


@dataclass(frozen=True)
class PretrainingData:
    """Running text of a corpus, and how it becomes tokens.

    Args:
        corpus: Items to read. "embedded" is the docstrings of the installed packages, "tfds:NAME" a prepared TFDS data
            set. Any other item is a path or glob of text, JSON lines or Parquet files.
        tokenizer: A published vocabulary, or one to train on this corpus.
        sentence_splitting: "split" divides each line into sentences of `language`; "lines" takes a line as one.
        heldout_fraction: Share of the documents that evaluation reads and training does not.
        store_dir: Folder of the stores.
        text_field: JSON field or Parquet column of the text, "text" by default.
        document_per_line: True if a line of a text file is a document, such as a protein; else a blank line ends one.
        max_unknown_rate: Share of unknown tokens above which the text is refused.
        filters: Documents and paragraphs to leave out.
    """

    corpus: tuple[str, ...] = ("embedded",)
    tokenizer: TokenizerSpec = TokenizerSpec()
    sentence_splitting: Literal["split", "lines"] = "split"
    language: str = "en"
    heldout_fraction: float = 0.02
    store_dir: str = field(default="stores", metadata={"not_fingerprinted": True})
    text_field: str | None = None
    filters: CorpusFilters = CorpusFilters()
    document_per_line: bool = False
    max_unknown_rate: float = field(default=MAX_UNKNOWN_RATE, metadata={"not_fingerprinted": True})

    label_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if not self.corpus:
            raise UserError("data.corpus is empty; it takes 'embedded', 'tfds:NAME', or files")
        if not 0 < self.heldout_fraction < 1:
            raise UserError(f"data.heldout_fraction={self.heldout_fraction} must be above 0 and below 1")
        check_share("data.max_unknown_rate", self.max_unknown_rate)

    def check_readable(self) -> None:
        corpora.check_corpus(
            self.corpus, self.sentence_splitting, self.language, self.text_field, self.document_per_line
        )

    def describe_content(self) -> dict:
        # These keys are hashed: they keep their spelling when a field is renamed, so that stores stay valid.
        tokenizer = asdict(self.tokenizer)
        tokenizer["path"] = self.tokenizer.path and hash_path(self.tokenizer.path)
        content = {name: getattr(self, name) for name in ("sentence_splitting", "language", "heldout_fraction")}
        content |= {
            "corpus": corpora.describe_corpus(
                self.corpus, self.text_field, parse_path(self.store_dir) / ".digests.json"
            ),
            "tokenizer": tokenizer,
            "version": STORE_VERSION,
        }
        # Fields added after the first stores count only where they are used.
        if self.text_field is not None:
            content["text_field"] = self.text_field
        if not self.tokenizer.special_tokens:
            del tokenizer["special_tokens"]
        if self.document_per_line:
            content["document_per_line"] = True
        if self.filters != CorpusFilters():
            content["filters"] = asdict(self.filters)
        num_units = Counter(unit.item_index for unit in self.list_units())
        if num_units.total() > 1:  # the starts of units then decide which documents are held out
            items = [num_units[item] for item in range(len(self.corpus))]
            content["units"] = {"range_bytes": corpora.RANGE_BYTES, "items": items}
        return content

    def list_units(self) -> list[WorkUnit]:
        """Divide the corpus into units of about `RANGE_BYTES`, none of which crosses two items."""
        groups: list[tuple[int, list[ByteRange]]] = []
        for item, source in enumerate(corpora.make_sources(self.corpus, self.text_field, self.document_per_line)):
            num_bytes = inf  # of the last unit, so that a new item starts a new one
            for byte_range in source.split_ranges(corpora.RANGE_BYTES):
                if num_bytes + byte_range.approx_bytes > corpora.RANGE_BYTES:
                    groups.append((item, []))
                    num_bytes = 0
                groups[-1][1].append(byte_range)
                num_bytes += byte_range.approx_bytes
        return [WorkUnit(index, item, tuple(ranges)) for index, (item, ranges) in enumerate(groups)]


def check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"{name}={share} must be a share from 0 to 1")


def hash_path(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder."""
    path = parse_path(path).expanduser()
    if not path.exists():
        raise UserError(f"{str(path)!r} does not exist")
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()


def compute_store_key(data: StoreSpec) -> str:
    return hash_content(data.describe_content())


def hash_content(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
