"""What a corpus is read from: the parts it falls into, and the documents of a part."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from encoders.utils.files import write_json

Document = list[str]  # its paragraphs, or its sentences: not empty, with single spaces


class CorpusError(ValueError):
    """A corpus that is not there or cannot be read."""


@dataclass(frozen=True)
class ByteRange:
    """What is read in one go, from `start` to `stop` (None: to the end): bytes of a file, row groups, or records.

    `size` says roughly how many bytes that is.
    """

    name: str
    start: int = 0
    stop: int | None = None
    approx_bytes: int = 0

    def __str__(self) -> str:
        name = self.name.rpartition("/")[2]
        return name if self.stop is None else f"{name} from {self.start:,} to {self.stop:,}"


class DigestCache:
    """SHA-256 of files. Of a large corpus they are kept in the file `kept`, if one is given, for as long as the sizes
    and the times of its files stay: 1 TB is not read again whenever a run starts."""

    MIN_CACHED_BYTES = 64 << 20  # bytes that have been read

    def __init__(self, cache_path: Path | None = None):
        self.cache_path = cache_path
        try:
            self.cached_digests = json.loads(cache_path.read_text(encoding="utf-8")) if cache_path else {}
        except (OSError, ValueError):
            self.cached_digests = {}
        self.bytes_hashed = 0

    def hash_file(self, path: Path) -> str:
        try:
            facts = path.stat()
            name, entry = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
            if self.cached_digests.get(name, [])[:2] == entry:
                return self.cached_digests[name][2]
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CorpusError(f"{path} cannot be opened: {error.strerror or error}") from error
        self.cached_digests[name] = [*entry, digest]
        self.bytes_hashed += facts.st_size
        return digest

    def save(self) -> None:
        """Write down what was read, if it was much and there is where."""
        if self.cache_path and self.bytes_hashed >= self.MIN_CACHED_BYTES:
            with suppress(OSError):  # a folder that is only read
                self.cache_path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.cache_path, self.cached_digests)


class CorpusSource(Protocol):
    """One item of a corpus. Every method raises `CorpusError`."""

    def check_readable(self) -> None:
        """Finds what can be seen to be wrong without reading it all."""

    def describe_content(self, digest_cache: DigestCache) -> list[dict]:
        """What decides its content, JSON-able and without its location, in reading order."""

    def split_ranges(self, target_bytes: int) -> Iterator[ByteRange]:
        """All of it, in order, in parts of about `size` bytes, or larger where it cannot be cut."""

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        """The documents of one of its parts."""


def normalize_spaces(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())


def split_paragraphs(text: str) -> Document:
    """The lines of a text that are not empty."""
    return [line for part in text.split("\n") if (line := normalize_spaces(part))]


def import_optional(module_name: str, purpose: str, extra: str | None = None):
    """A module that is imported where it is used. Raises `CorpusError` with its remedy where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's deprecations
            return importlib.import_module(module_name)
    except ImportError as error:
        remedy = f"'encoders[{extra}]'" if extra else module_name.partition(".")[0].replace("_", "-")
        raise CorpusError(f"{purpose} needs {module_name} ({error}): pip install {remedy}") from error
