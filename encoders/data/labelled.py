"""LABELLED ROWS → STORE: a task's rows as documents of one or two texts, with their labels beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from encoders.data.beam_runner import Runner
from encoders.data.prepare import digest
from encoders.data.row_files import Errors, Reader, RowError
from encoders.data.work_units import Writer, kind_of
from encoders.text import tokenization
from encoders.text.tfds_reader import tfds_version
from encoders.text.tokenization import Vocabulary
from encoders.utils.overrides import essence

VERSION = 1  # of the store's layout; a change makes old stores another key


@dataclass(frozen=True)
class Example:
    """A row: where it stands, its texts, what it is labelled with, and what its score will need."""

    place: str
    texts: tuple[str, ...]
    target: Any = None
    note: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """The texts of an example as tokens, and for tasks that ask for them their places: first and end character."""

    ids: list[list[int]]
    places: list[list[tuple[int, int]]]


class Task(Protocol):
    """Rows and what is to be said of them; a frozen dataclass.

    `files` gives the file of each split: train, dev..., test...; a TFDS data set has validation for dev. `labels` are
    the classes, none for a number. `symmetric`: does the order of two texts mean nothing. `needs_places`: do labels
    depend on where tokens stand in their text.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    symmetric: bool
    needs_places: bool

    def parts(self, family, dropout: float, both_orders: bool):
        """The objective and the format of rows, by the `Conventions` of a family; `dropout` is the head's."""

    def read(self, root: str, split: str, reader: Reader) -> Iterator[Example]:
        """The rows of a split. Raises `RowError` for a bad one where the reader stops at it."""

    def targets(self, example: Example, encoded: Encoded) -> dict[str, np.ndarray]:
        """The labels of a row by name: one entry, or one for each token and for the separator at its end.

        Raises `RowError` for what does not fit its tokens.
        """


def tfds_split(split: str) -> str:
    """TFDS's name of a split."""
    return split.replace("dev", "validation")


@dataclass(frozen=True)
class Labelled:
    """The rows of `task` in the folder `root` (or "tfds:NAME"), under a vocabulary that exists.

    `errors`: stop at a bad row, or skip and count it. Training reads the first `limit` rows, or all.
    """

    task: Task
    root: str
    vocabulary: Vocabulary
    errors: Errors = "stop"
    folder: str = field(default="stores", metadata={"aside": True})
    limit: int | None = None

    def __post_init__(self):
        if self.vocabulary.path is None:
            raise ValueError("data.vocabulary.path is missing: labelled rows are read with a vocabulary that exists")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit={self.limit} must be at least 1, or None for all rows")

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.labels

    def present(self) -> dict[str, Path | str]:
        """The file, or the TFDS data set and its split, of training and of each development set that is there."""
        files = {split: name for split, name in self.task.files if not split.startswith("test")}
        if self.root.startswith("tfds:"):
            return {split: f"{self.root}@{tfds_split(split)}" for split in files}
        paths = {split: Path(self.root).expanduser() / name for split, name in files.items()}
        return {split: path for split, path in paths.items() if path.is_file()}

    def check(self) -> None:
        found = self.present()
        for item in found.values():
            if isinstance(item, str):
                tfds_version(item)
        expected = ", ".join(name for _, name in self.task.files)
        if not found:
            raise ValueError(f"{self.task.name}: {self.root} holds none of {expected}")
        missing = [name for split, name in self.task.files if split == "train" and split not in found]
        missing += [] if any(s.startswith("dev") for s in found) else [n for s, n in self.task.files if s[:3] == "dev"]
        if missing:
            raise ValueError(f"{self.task.name}: {self.root} has no {' and no '.join(missing)}; it takes {expected}")

    def content(self) -> dict:
        found = self.present().items()
        files = {split: digest(item) if isinstance(item, Path) else tfds_version(item) for split, item in found}
        words = essence(self.vocabulary) | {"path": digest(Path(self.vocabulary.path))}
        how = {"errors": self.errors, "version": VERSION} | ({"limit": self.limit} if self.limit else {})
        return {"task": essence(self.task), "files": files, "vocabulary": words} | how

    def write(self, path: Path, work: Path, runner: Runner, say: Callable[[str], None]) -> dict:
        """A store of labelled rows, which are few enough for one process in one go."""
        tokenizer = tokenization.load(self.vocabulary.path, self.vocabulary.lowercase)
        tokenizer.save(path / "tokenizer.json")
        facts = tokenizer.facts
        dtype = kind_of(facts)
        splits, skipped, counts = {}, {}, np.zeros(facts.size, np.int64)
        for split in self.present():
            reader = Reader(self.errors)
            columns, notes = {}, []
            with ExitStack() as stack:
                writer = Writer(stack, path / split, dtype, facts.sep)
                for example, ids, labels in self.encoded(split, reader, tokenizer):
                    counts += np.bincount(writer.add(ids), minlength=facts.size) * (split == "train")
                    notes.append(json.dumps(example.note) + "\n")
                    for column, values in labels.items():
                        columns.setdefault(column, []).append(values)
            if not notes:
                raise RowError(f"{self.root}, {split}", "no row is left")
            for column, values in columns.items():
                np.save(path / split / f"{column}.npy", np.concatenate(values))
            (path / split / "notes.jsonl").write_text("".join(notes), encoding="utf-8")
            splits[split], skipped[split] = writer.summary(), len(reader.skipped)
            for line in reader.skipped[:5]:
                say(f"skipped: {line}")
            say(f"{self.task.name}, {split}: {len(notes):,} rows, {skipped[split]:,} skipped")
        counts[list(facts.special)] = 0
        return {
            "dtype": np.dtype(dtype).name,
            "facts": replace(facts, common=int(counts.argmax())).to_json(),
            "splits": splits,
            "skipped": skipped,
        }

    def encoded(self, split: str, reader: Reader, tokenizer) -> Iterator[tuple[Example, list[list[int]], dict]]:
        """The rows of a split, their tokens and their labels. Raises `RowError` for a text that has no tokens."""
        examples = list(islice(self.task.read(self.root, split, reader), self.limit if split == "train" else None))
        texts = [text for example in examples for text in example.texts]
        if self.task.needs_places:
            ids, places = tokenizer.encode_places(texts)
        else:
            ids, places = tokenizer.encode_batch(texts), [()] * len(texts)
        rows, at = [], 0
        for example in examples:
            end = at + len(example.texts)
            rows.append((example, Encoded(ids[at:end], places[at:end])))
            at = end

        def labelled(row):
            example, tokens = row
            if not all(tokens.ids):
                raise RowError(example.place, "a text has no tokens")
            return example, tokens.ids, self.task.targets(example, tokens)

        yield from reader.read(iter(rows), labelled)
