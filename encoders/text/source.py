"""Interface of the sources of a corpus: byte ranges, and the documents in a range."""

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

from encoders.utils.buckets import get_version, make_absolute
from encoders.utils.errors import UserError
from encoders.utils.files import write_json

Document = list[str]  # its paragraphs, or its sentences: not empty, with single spaces


class CorpusError(UserError):
    """A corpus that does not exist or cannot be read."""


@dataclass(frozen=True)
class ByteRange:
    """Range that is read in one go, from `start` to `stop` (None: to the end). The unit is bytes of a text file, row
    groups of a Parquet file, or records of a TFDS data set."""

    name: str
    start: int = 0
    stop: int | None = None
    approx_bytes: int = 0

    def __str__(self) -> str:
        name = self.name.rpartition("/")[2]
        return name if self.stop is None else f"{name} from {self.start:,} to {self.stop:,}"


class DigestCache:
    """SHA-256 of files, cached in `cache_path` so that a corpus of 1 TB is not read again whenever a run starts. A
    cached digest is valid as long as the size and the time of its file stay the same."""

    MIN_CACHED_BYTES = 64 << 20  # a cache is written after so many bytes were hashed

    def __init__(self, cache_path: Path | None = None):
        self.cache_path, self.cached_digests, self.bytes_hashed = cache_path, {}, 0
        if cache_path:
            with suppress(OSError, ValueError):
                self.cached_digests = json.loads(cache_path.read_text(encoding="utf-8"))

    def hash_file(self, path: Path) -> str:
        try:
            name, entry = str(make_absolute(path)), get_version(path)
            if self.cached_digests.get(name, [])[:2] == entry:
                return self.cached_digests[name][2]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CorpusError(f"{path} cannot be opened: {error.strerror or error}") from error
        self.cached_digests[name] = [*entry, digest]
        self.bytes_hashed += entry[0]
        return digest

    def save_cache(self) -> None:
        """Write the cache, if many bytes were hashed."""
        if self.cache_path and self.bytes_hashed >= self.MIN_CACHED_BYTES:
            with suppress(OSError):  # a read-only folder
                self.cache_path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.cache_path, self.cached_digests)


class CorpusSource(Protocol):
    """One item of a corpus. Every method raises `CorpusError`."""

    def check_readable(self) -> None:
        """Find the errors that show without reading everything."""

    def describe_content(self, digest_cache: DigestCache) -> list[dict]:
        """Return JSON-able values that determine the content, in reading order and without its location."""

    def split_ranges(self, target_bytes: int) -> Iterator[ByteRange]:
        """Yield ranges of about `target_bytes` that cover the item in order; one that cannot be cut is larger."""

    def read_documents(self, byte_range: ByteRange) -> Iterator[Document]:
        """Yield the documents of a range."""


def split_paragraphs(text: str) -> Document:
    """Return the lines of a text that are not empty, with single spaces."""
    return [" ".join(words) for line in text.split("\n") if (words := line.split())]


def import_optional(module_name: str, purpose: str, requirement: str | None = None):
    """Import a module where it is used. Raises `CorpusError` that names the pip requirement where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's deprecations
            return importlib.import_module(module_name)
    except ImportError as error:
        requirement = requirement or module_name.partition(".")[0].replace("_", "-")
        raise CorpusError(f"{purpose} needs {module_name} ({error}): pip install {requirement}") from error
