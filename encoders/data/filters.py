"""What of a corpus is left out: duplicates, boilerplate, and documents that are hardly text. Nothing, unless asked."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from encoders.text.source import Document

DEDUPLICATION_LEVELS = ("documents", "paragraphs")  # what is compared
DUPLICATE, BOILERPLATE = range(2)


@dataclass(frozen=True)
class CorpusFilters:
    """What is left out of running text; the report counts each.

    First, of documents as they are read: those with fewer `characters`, white space aside, and those with a smaller
    share of `letters`, in any script, among their characters. Then, over all that is left: `duplicates`, of equal
    documents, or of equal paragraphs wherever they stand, all but the first one; and as `boilerplate` every paragraph
    that occurs more often than this, in documents that are equal too.
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
        """What has to be compared over the whole corpus before anything is left out."""
        wanted = {self.deduplicate, "paragraphs" if self.max_paragraph_repeats else "kept"}
        return tuple(kind for kind in DEDUPLICATION_LEVELS if kind in wanted)

    def classify_repeats(self, is_first: np.ndarray, num_occurrences: np.ndarray) -> np.ndarray:
        """Why each of some equal paragraphs goes: `DUPLICATE`, `BOILERPLATE`, or -1 where it stays."""
        again = np.where(is_first | (self.deduplicate != "paragraphs"), -1, DUPLICATE)
        return (
            again
            if self.max_paragraph_repeats is None
            else np.where(num_occurrences > self.max_paragraph_repeats, BOILERPLATE, again)
        )

    def filter_documents(self, documents: Iterable[Document], counts: Counter) -> Iterator[Document]:
        """The documents that are text enough; `counts` has what is left out."""
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
        """The documents of one unit of work without what stands elsewhere too, which `counts` counts.

        `dropped` has, for each kind of `compared`, what goes: places in the unit and reasons, `[n, 2]`.
        """
        gone = {kind: dict(places.tolist()) for kind, places in dropped.items()}
        twice, lines, at = gone.get("documents", {}), gone.get("paragraphs", {}), 0
        for number, document in enumerate(documents):
            if lines:
                reasons = [lines.get(at + i) for i in range(len(document))]
                counts["duplicate paragraphs"] += reasons.count(DUPLICATE)
                counts["boilerplate paragraphs"] += reasons.count(BOILERPLATE)
                at += len(document)
                document = [line for line, why in zip(document, reasons, strict=True) if why is None]
            if number in twice:
                counts["duplicate documents"] += 1
            elif not document:
                counts["documents without a paragraph left"] += 1
            else:
                yield document


def compute_letter_fraction(document: Document) -> float:
    """The share of letters among the characters of a document, white space aside; accents and vowel signs are part of
    a letter."""
    total = found = 0
    for line in document:
        total += len(line) - line.count(" ")
        found += sum(map(str.isalpha, line))
        if not line.isascii():
            found += sum(unicodedata.category(letter)[0] == "M" for letter in line)
    return found / max(total, 1)


def hash_texts(documents: Iterable[Document], levels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """128 bits of each document or paragraph and its place, uint64 `[n, 3]`, in the order of the bits."""
    found: dict[str, list[bytes]] = {kind: [] for kind in levels}
    hash_text = lambda text: hashlib.blake2b(text.encode(), digest_size=16).digest()
    for document in documents:
        if "documents" in found:
            found["documents"].append(hash_text("\n".join(document)))
        if "paragraphs" in found:
            found["paragraphs"] += map(hash_text, document)
    return {kind: sort_hashes(np.frombuffer(b"".join(rows), ">u8").reshape(-1, 2)) for kind, rows in found.items()}


def sort_hashes(hashes: np.ndarray) -> np.ndarray:
    rows = np.column_stack([hashes.astype(np.uint64), np.arange(len(hashes), dtype=np.uint64)])
    return rows[np.lexsort(rows.T[::-1])]


def find_bucket_repeats(unit_hashes: list[np.ndarray], level: str, filters: CorpusFilters) -> np.ndarray:
    """What goes of one bucket: unit, place, reason, int64 `[m, 3]`; a slice has the bucket's hashes of each unit."""
    units = np.repeat(np.arange(len(unit_hashes)), [len(each) for each in unit_hashes])
    high, low, place = (np.concatenate([each[:, i] for each in unit_hashes]) for i in range(3))
    order = np.lexsort((place, units, low, high))
    high, low, units, place = (column[order] for column in (high, low, units, place))
    first = np.ones(len(order), bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    group = np.cumsum(first) - 1
    count = np.bincount(group, minlength=1)[group] if len(group) else group
    why = filters.classify_repeats(first, count) if level == "paragraphs" else np.where(first, -1, DUPLICATE)
    rows = np.column_stack([units, place.astype(np.int64), why])[why >= 0]
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


def sum_filter_counts(counts: Iterable[Counter]) -> dict[str, int]:
    """The counts of all units, summed."""
    return dict(sum(counts, Counter()))
