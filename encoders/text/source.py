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
class Part:
    """What is read in one go, from `start` to `stop` (None: to the end): bytes of a file, row groups, or records.

    `size` says roughly how many bytes that is.
    """

    name: str
    start: int = 0
    stop: int | None = None
    size: int = 0

    def __str__(self) -> str:
        name = self.name.rpartition("/")[2]
        return name if self.stop is None else f"{name} from {self.start:,} to {self.stop:,}"


class Digests:
    """SHA-256 of files. Of a large corpus they are kept in the file `kept`, if one is given, for as long as the sizes
    and the times of its files stay: 1 TB is not read again whenever a run starts."""

    LARGE = 64 << 20  # bytes that have been read

    def __init__(self, kept: Path | None = None):
        self.kept = kept
        try:
            self.known = json.loads(kept.read_text(encoding="utf-8")) if kept else {}
        except (OSError, ValueError):
            self.known = {}
        self.read = 0

    def of(self, path: Path) -> str:
        try:
            facts = path.stat()
            name, entry = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
            if self.known.get(name, [])[:2] == entry:
                return self.known[name][2]
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CorpusError(f"{path} cannot be opened: {error.strerror or error}") from error
        self.known[name] = [*entry, digest]
        self.read += facts.st_size
        return digest

    def keep(self) -> None:
        """Write down what was read, if it was much and there is where."""
        if self.kept and self.read >= self.LARGE:
            with suppress(OSError):  # a folder that is only read
                self.kept.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.kept, self.known)


class Source(Protocol):
    """One item of a corpus. Every method raises `CorpusError`."""

    def check(self) -> None:
        """Finds what can be seen to be wrong without reading it all."""

    def identity(self, digests: Digests) -> list[dict]:
        """What decides its content, JSON-able and without its location, in reading order."""

    def parts(self, size: int) -> Iterator[Part]:
        """All of it, in order, in parts of about `size` bytes, or larger where it cannot be cut."""

    def documents(self, part: Part) -> Iterator[Document]:
        """The documents of one of its parts."""


def words(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())


def paragraphs(text: str) -> Document:
    """The lines of a text that are not empty."""
    return [line for part in text.split("\n") if (line := words(part))]


def needed(name: str, purpose: str, extra: str | None = None):
    """A module that is imported where it is used. Raises `CorpusError` with its remedy where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's deprecations
            return importlib.import_module(name)
    except ImportError as error:
        remedy = f"'encoders[{extra}]'" if extra else name.partition(".")[0].replace("_", "-")
        raise CorpusError(f"{purpose} needs {name} ({error}): pip install {remedy}") from error
