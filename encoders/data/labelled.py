"""LABELLED ROWS → STORE: a task's rows become documents of one or two texts, with label columns beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from encoders.data.beam_runner import LogFunction, Runner
from encoders.data.prepare import compute_unknown_rate, write_store
from encoders.data.row_files import OnBadRow, RowError, RowReader
from encoders.data.spec import MAX_UNKNOWN_RATE, check_share, hash_path
from encoders.data.store import SplitWriter, describe_vocab
from encoders.model.config import FamilyConventions
from encoders.text.tfds_reader import describe_tfds_version
from encoders.text.tokenization import TokenizerSpec
from encoders.utils.buckets import parse_path
from encoders.utils.errors import UserError
from encoders.utils.serialization import fingerprint_content

LABELLED_STORE_VERSION = 2  # of the store's layout; a change makes old stores another key


@dataclass(frozen=True)
class Example:
    """Row of a task: its location, texts and target, the metadata that its score needs, and the index of its file among
    those of its split."""

    location: str
    texts: tuple[str, ...]
    target: Any = None
    metadata: dict = field(default_factory=dict)
    source_index: int = 0


@dataclass(frozen=True)
class EncodedExample:
    """Texts of an example as tokens, and for tasks with `needs_offsets` the character span of each token."""

    token_ids: list[list[int]]
    offsets: list[list[tuple[int, int]]]


class TaskSpec(Protocol):
    """Labelled rows of a task and what is predicted of them; a frozen dataclass.

    `files` gives the file of each split: train, dev..., test...; the dev of a TFDS data set is its validation split. A
    task may have `sources`, training files with a weight each, which take the place of the file of train.
    `labels` are the classes, empty for a number. `symmetric` is true where the order of two texts means nothing.
    `needs_offsets` is true where labels depend on the character spans of tokens. A class whose rows are read otherwise
    than before takes the next `rows_version`, so that its stores are made anew; without one it has
    `LABELLED_STORE_VERSION`.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    symmetric: bool
    needs_offsets: bool

    def build_objective_and_format(self, conventions: FamilyConventions, head_dropout: float, both_orders: bool):
        """Return the objective and the format of rows under a family's conventions."""

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        """Yield the rows of a split. Raises `RowError` for a bad row where the reader stops at it."""

    def encode_labels(self, example: Example, encoded: EncodedExample) -> dict[str, np.ndarray]:
        """Return the labels of a row by name: one entry, or one for each token and for the separator at its end. Raises
        `RowError` for a target that does not fit the tokens."""


def list_row_files(task: TaskSpec) -> dict[str, tuple[str, ...]]:
    """Return the files of each split, relative to the folder of the rows; training has several `sources`, or one."""
    files = {split: (name,) for split, name in task.files}
    sources = getattr(task, "sources", ())
    return files | {"train": tuple(name for name, _ in sources)} if sources else files


def to_tfds_split(split: str) -> str:
    return split.replace("dev", "validation")


@dataclass(frozen=True)
class LabelledData:
    """Rows of `task` in the folder `root` (or "tfds:NAME"), under an existing vocabulary. `on_bad_row` stops at a bad
    row, or skips and counts it. Training reads the first `max_train_examples` rows, or all. A share of unknown tokens
    above `max_unknown_rate` is refused."""

    task: TaskSpec
    root: str
    tokenizer: TokenizerSpec
    on_bad_row: OnBadRow = "stop"
    store_dir: str = field(default="stores", metadata={"not_fingerprinted": True})
    max_train_examples: int | None = None
    max_unknown_rate: float = field(default=MAX_UNKNOWN_RATE, metadata={"not_fingerprinted": True})

    def __post_init__(self):
        if self.tokenizer.path is None:
            raise UserError("data.tokenizer.path is missing: labelled rows are read with a vocabulary that exists")
        if (limit := self.max_train_examples) is not None and limit < 1:
            raise UserError(f"data.max_train_examples={limit} must be at least 1, or None for all rows")
        if limit is not None and (sources := getattr(self.task, "sources", ())):
            raise UserError(f"data.max_train_examples={limit} must be None with the {len(sources)} data.task.sources")
        check_share("data.max_unknown_rate", self.max_unknown_rate)

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.task.labels

    def find_split_sources(self) -> dict[str, tuple[Path | str, ...]]:
        """Return the files, or the TFDS data set and its split, of training and of each existing development set."""
        files = {split: names for split, names in list_row_files(self.task).items() if not split.startswith("test")}
        if self.root.startswith("tfds:"):
            return {split: (f"{self.root}@{to_tfds_split(split)}",) for split in files}
        folder = parse_path(self.root).expanduser()
        paths = {split: tuple(folder / name for name in names) for split, names in files.items()}
        return {split: sources for split, sources in paths.items() if all(path.is_file() for path in sources)}

    def check_readable(self) -> None:
        found, files = self.find_split_sources(), list_row_files(self.task)
        expected = ", ".join(name for names in files.values() for name in names)
        for source in (source for sources in found.values() for source in sources):
            if isinstance(source, str):
                describe_tfds_version(source)
        if not found:
            raise UserError(f"{self.task.name}: {self.root} holds none of {expected}")
        lacking = tuple(kind for kind in ("train", "dev") if not any(split.startswith(kind) for split in found))
        names = [name for split, names in files.items() if split.startswith(lacking) for name in names]
        missing = [name for name in names if not (parse_path(self.root).expanduser() / name).is_file()]
        if missing:
            raise UserError(f"{self.task.name}: {self.root} lacks {' and '.join(missing)}; it must hold {expected}")

    def describe_content(self) -> dict:
        describe_source = lambda source: describe_tfds_version(source) if isinstance(source, str) else hash_path(source)
        files = {split: list(map(describe_source, sources)) for split, sources in self.find_split_sources().items()}
        content = {
            "task": fingerprint_content(self.task),
            "files": {split: hashes if hashes[1:] else hashes[0] for split, hashes in files.items()},
            "tokenizer": fingerprint_content(self.tokenizer) | {"path": hash_path(self.tokenizer.path)},
            "on_bad_row": self.on_bad_row,
            "version": getattr(self.task, "rows_version", LABELLED_STORE_VERSION),
        }
        return content | ({"max_train_examples": self.max_train_examples} if self.max_train_examples else {})

    def encode_split(self, split: str, reader: RowReader, tokenizer) -> Iterator[tuple[Example, list[list[int]], dict]]:
        """Yield the rows of a split, their tokens and their labels. Raises `RowError` for a text without tokens."""
        max_examples = self.max_train_examples if split == "train" else None
        examples = list(islice(self.task.read_examples(self.root, split, reader), max_examples))
        texts = [text for example in examples for text in example.texts]
        if self.task.needs_offsets:
            ids, offsets = map(iter, tokenizer.encode_with_offsets(texts))
        else:
            ids, offsets = iter(tokenizer.encode_batch(texts)), repeat(())

        def encode_row(example):
            size = len(example.texts)
            encoded = EncodedExample(list(islice(ids, size)), list(islice(offsets, size)))
            if not all(encoded.token_ids):
                raise RowError(example.location, "a text gives no tokens")
            return example, encoded.token_ids, self.task.encode_labels(example, encoded)

        yield from reader.convert_rows(iter(examples), encode_row)


@write_store.register
def write_labelled_store(data: LabelledData, path: Path, work_dir: Path, runner: Runner, log: LogFunction) -> dict:
    """Write a store of labelled rows, which are few enough for one process."""
    tokenizer = data.tokenizer.load()
    tokenizer.save(path / "tokenizer.json")
    splits, skipped, token_counts, source_documents = {}, {}, {}, {}
    for split in data.find_split_sources():
        reader = RowReader(data.on_bad_row)
        columns, metadata_lines, documents_by_source = {}, [], Counter()
        with ExitStack() as stack:
            writer = SplitWriter(stack, path / split, tokenizer.vocab)
            for example, ids, labels in data.encode_split(split, reader, tokenizer):
                writer.add_document(ids)
                documents_by_source[example.source_index] += 1
                metadata_lines.append(json.dumps(example.metadata) + "\n")
                for column, values in labels.items():
                    columns.setdefault(column, []).append(values)
        if not metadata_lines:
            raise RowError(f"{data.root}, {split}", "no row is left")
        for column, values in columns.items():
            np.save(path / split / f"{column}.npy", np.concatenate(values))
        (path / split / "notes.jsonl").write_text("".join(metadata_lines), encoding="utf-8")
        splits[split], skipped[split] = writer.counts, len(reader.skipped_rows)
        token_counts[split] = writer.token_counts
        for line in reader.skipped_rows[:5]:
            log(f"skipped: {line}")
        log(f"{data.task.name}, {split}: {len(metadata_lines):,} rows, {skipped[split]:,} skipped")
        names = list_row_files(data.task)[split]
        source_documents[split] = [documents_by_source[index] for index in range(len(names))]
        if len(names) > 1:
            counts = zip(names, source_documents[split], strict=True)
            described = ", ".join(f"{count:,} of {name}" for name, count in counts)
            log(f"{data.task.name}, {split}: {described}")
    unknown_rate = compute_unknown_rate(tokenizer.vocab, token_counts["train"])
    content = {"splits": splits, "source_documents": source_documents, "skipped": skipped, "unknown_rate": unknown_rate}
    return describe_vocab(tokenizer.vocab, token_counts["train"]) | content
