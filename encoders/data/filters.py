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
        if self.deduplicate not in ("kept", *DEDUPLICATION_LEVELS):
            raise ValueError(f"filters.deduplicate={self.deduplicate!r} must be 'kept', 'documents' or 'paragraphs'")
        if self.max_paragraph_repeats is not None and self.max_paragraph_repeats < 1:
            raise ValueError(
                f"filters.max_paragraph_repeats={self.max_paragraph_repeats} must be at least 1 occurrence, or None"
            )
        if self.min_characters < 0:
            raise ValueError(f"filters.min_characters={self.min_characters} must be at least 0")
        if not 0 <= self.min_letter_fraction <= 1:
            raise ValueError(f"filters.min_letter_fraction={self.min_letter_fraction} must be a share from 0 to 1")

    @property
    def compared_levels(self) -> tuple[str, ...]:
        """Return the levels whose texts are compared over the whole corpus."""
        used = {self.deduplicate, "paragraphs" if self.max_paragraph_repeats else "kept"}
        return tuple(level for level in DEDUPLICATION_LEVELS if level in used)

    def classify_repeats(self, is_first: np.ndarray, num_occurrences: np.ndarray) -> np.ndarray:
        """Return the reason to drop each of some equal paragraphs: `DUPLICATE`, `BOILERPLATE`, or -1 to keep it."""
        reasons = np.where(is_first | (self.deduplicate != "paragraphs"), -1, DUPLICATE)
        if self.max_paragraph_repeats is None:
            return reasons
        return np.where(num_occurrences > self.max_paragraph_repeats, BOILERPLATE, reasons)

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

    def drop_repeats(
        self, documents: Iterable[Document], dropped: dict[str, np.ndarray], counts: Counter
    ) -> Iterator[Document]:
        """Yield the documents of one unit of work without repeats, which are counted in `counts`.

        `dropped` holds for each compared level the repeats: indices in the unit and reasons, `[n, 2]`.
        """
        reasons_by_level = {level: dict(repeats.tolist()) for level, repeats in dropped.items()}
        dropped_documents = reasons_by_level.get("documents", {})
        dropped_paragraphs, num_paragraphs = reasons_by_level.get("paragraphs", {}), 0
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
    """Return the share of letters among the characters of a document, white space not counted.

    Accents and vowel signs count as letters.
    """
    num_characters = num_letters = 0
    for line in document:
        num_characters += len(line) - line.count(" ")
        num_letters += sum(map(str.isalpha, line))
        if not line.isascii():
            num_letters += sum(unicodedata.category(letter)[0] == "M" for letter in line)
    return num_letters / max(num_characters, 1)


def hash_texts(documents: Iterable[Document], levels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return 128 hash bits and the index of each document or paragraph, uint64 `[n, 3]`, sorted by the hash."""
    hashes: dict[str, list[bytes]] = {level: [] for level in levels}
    hash_text = lambda text: hashlib.blake2b(text.encode(), digest_size=16).digest()
    for document in documents:
        if "documents" in hashes:
            hashes["documents"].append(hash_text("\n".join(document)))
        if "paragraphs" in hashes:
            hashes["paragraphs"] += map(hash_text, document)
    return {level: sort_hashes(np.frombuffer(b"".join(rows), ">u8").reshape(-1, 2)) for level, rows in hashes.items()}


def sort_hashes(hashes: np.ndarray) -> np.ndarray:
    rows = np.column_stack([hashes.astype(np.uint64), np.arange(len(hashes), dtype=np.uint64)])
    return rows[np.lexsort(rows.T[::-1])]


def find_bucket_repeats(unit_hashes: list[np.ndarray], level: str, filters: CorpusFilters) -> np.ndarray:
    """Return the repeats of a bucket: unit, index in the unit, reason, int64 `[m, 3]`.

    `unit_hashes` holds the bucket's hashes of each unit.
    """
    units = np.repeat(np.arange(len(unit_hashes)), [len(hashes) for hashes in unit_hashes])
    high, low, indices = (np.concatenate([hashes[:, i] for hashes in unit_hashes]) for i in range(3))
    order = np.lexsort((indices, units, low, high))
    high, low, units, indices = (column[order] for column in (high, low, units, indices))
    first = np.ones(len(order), bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    group = np.cumsum(first) - 1
    count = np.bincount(group, minlength=1)[group] if len(group) else group
    reasons = filters.classify_repeats(first, count) if level == "paragraphs" else np.where(first, -1, DUPLICATE)
    rows = np.column_stack([units, indices.astype(np.int64), reasons])[reasons >= 0]
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


def sum_filter_counts(counts: Iterable[Counter]) -> dict[str, int]:
    """Return the counts of all units, summed."""
    return dict(sum(counts, Counter()))
