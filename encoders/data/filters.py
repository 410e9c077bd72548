"""Filters of a corpus: duplicates, boilerplate, and documents that hold little text. All are off by default."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from encoders.text.source import Document
from encoders.utils.errors import UserError

DEDUPLICATION_LEVELS = ("documents", "paragraphs")  # that can be compared
DUPLICATE, BOILERPLATE = range(2)


@dataclass(frozen=True)
class CorpusFilters:
    """Documents and paragraphs of running text that are dropped; the store's record counts each kind.

    Filters of single documents come first, then those that compare the rest of the corpus.

    Args:
        deduplicate: Drop all but the first of equal "documents" or "paragraphs"; "kept" drops none.
        max_paragraph_repeats: Drop every paragraph that occurs more often, as boilerplate.
        min_characters: Drop documents with fewer characters, white space not counted.
        min_letter_fraction: Drop documents with a smaller share of letters, of any script, among their characters.
    """

    deduplicate: Literal["kept", "documents", "paragraphs"] = "kept"
    max_paragraph_repeats: int | None = None
    min_characters: int = 0
    min_letter_fraction: float = 0.0

    def __post_init__(self):
        repeats = self.max_paragraph_repeats
        for name, is_valid, accepted in (
            ("deduplicate", self.deduplicate in ("kept", *DEDUPLICATION_LEVELS), "'kept', 'documents' or 'paragraphs'"),
            ("max_paragraph_repeats", repeats is None or repeats >= 1, "at least 1 occurrence, or None"),
            ("min_characters", self.min_characters >= 0, "at least 0"),
            ("min_letter_fraction", 0 <= self.min_letter_fraction <= 1, "a share from 0 to 1"),
        ):
            if not is_valid:
                raise UserError(f"filters.{name}={getattr(self, name)!r} must be {accepted}")

    @property
    def compared_levels(self) -> tuple[str, ...]:
        """Return the levels whose texts are compared over the whole corpus."""
        used = {self.deduplicate, "paragraphs" if self.max_paragraph_repeats else "kept"}
        return tuple(level for level in DEDUPLICATION_LEVELS if level in used)

    def filter_documents(self, documents: Iterable[Document], counts: Counter) -> Iterator[Document]:
        """Yield the documents that pass the filters of single documents; count the others in `counts`."""
        for document in documents:
            counts["documents read"] += 1
            if self.min_characters and sum(len(line) - line.count(" ") for line in document) < self.min_characters:
                counts["short documents"] += 1
            elif self.min_letter_fraction and compute_letter_fraction(document) < self.min_letter_fraction:
                counts["documents with few letters"] += 1
            else:
                yield document

    def drop_repeats(self, documents: Iterable[Document], dropped: dict, counts: Counter) -> Iterator[Document]:
        """Yield the documents of one unit of work without repeats, which are counted in `counts`. `dropped` holds for
        each compared level the repeats: indices in the unit and reasons, `[n, 2]`."""
        dropped_documents, dropped_paragraphs = (
            dict(dropped[level].tolist()) if level in dropped else {} for level in DEDUPLICATION_LEVELS
        )
        num_paragraphs = 0
        for number, document in enumerate(documents):
            if dropped_paragraphs:
                reasons = [dropped_paragraphs.get(num_paragraphs + i) for i in range(len(document))]
                counts["duplicate paragraphs"] += reasons.count(DUPLICATE)
                counts["boilerplate paragraphs"] += reasons.count(BOILERPLATE)
                num_paragraphs += len(document)
                document = [line for line, reason in zip(document, reasons, strict=True) if reason is None]
            if number in dropped_documents:
                counts["duplicate documents"] += 1
            elif not document:
                counts["documents without a paragraph left"] += 1
            else:
                yield document


def compute_letter_fraction(document: Document) -> float:
    """Return the share of letters, accents and vowel signs among the characters other than white space."""
    text = "".join(document).replace(" ", "")
    num_letters = sum(map(str.isalpha, text))
    if not text.isascii():
        num_letters += sum(unicodedata.category(letter)[0] == "M" for letter in text)
    return num_letters / max(len(text), 1)


def hash_texts(documents: Iterable[Document], levels: tuple[str, ...], unit_index: int) -> dict[str, np.ndarray]:
    """Return 128 hash bits, the unit and the index in it of each document or paragraph, uint64 `[n, 4]`."""
    digests, tables = {level: bytearray() for level in levels}, {}
    for document in documents:
        for level in levels:
            for text in ["\n".join(document)] if level == "documents" else document:
                digests[level] += hashlib.blake2b(text.encode(), digest_size=16).digest()
    for level in levels:
        hashes = np.frombuffer(digests[level], ">u8").reshape(-1, 2).astype(np.uint64)
        indices = np.arange(len(hashes), dtype=np.uint64)
        tables[level] = np.column_stack([hashes, np.full_like(indices, unit_index), indices])
    return tables


def find_bucket_repeats(rows: np.ndarray, level: str, filters: CorpusFilters) -> np.ndarray:
    """Return the repeats of a bucket: unit, index in the unit, reason, int64 `[m, 3]`. `rows` are those of `hash_texts`
    in any order."""
    rows = rows[np.lexsort(rows.T[::-1])]  # equal hashes in the order of the corpus
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    group = np.cumsum(is_first) - 1
    reasons = np.where(is_first | (level != filters.deduplicate), -1, DUPLICATE)
    if level == "paragraphs" and filters.max_paragraph_repeats is not None:
        reasons[np.bincount(group)[group] > filters.max_paragraph_repeats] = BOILERPLATE
    repeats = np.column_stack([rows[:, 2:].astype(np.int64), reasons])[reasons >= 0]
    return repeats[np.lexsort((repeats[:, 1], repeats[:, 0]))]
