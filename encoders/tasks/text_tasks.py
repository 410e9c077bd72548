"""Tasks of one text or two with a class or a number: GLUE's, and those of a user's own files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from encoders.data.formats import A_END, B_END, LABEL, A, B
from encoders.data.labelled import Encoded, Example, tfds_split
from encoders.data.row_files import Reader, Record, RowError, records
from encoders.data.store import Split
from encoders.tasks.classification import Classification
from encoders.tasks.conventions import Conventions
from encoders.text.tfds_reader import tfds_records

AX = "tfds:glue/ax@test"
SUBMITTED = {"test": "{}.tsv", "test_matched": "{}-m.tsv", "test_mismatched": "{}-mm.tsv", "test_ax": "AX.tsv"}


@dataclass(frozen=True)
class Texts:
    """Rows of one or two `texts`, named by their columns, and a `label`: one of `labels`, or without them a number.

    `columns` names those of training and development files that have no head. `scores` are what it is judged by, the
    first of them by which a checkpoint is the best. `symmetric`: the order of the two texts means nothing. In a TFDS
    data set the texts are in the columns `tfds`, and a label is its number.
    """

    name: str = field(metadata={"aside": True})
    texts: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] = ()
    scores: tuple[str, ...] = field(default=(), metadata={"aside": True})
    files: tuple[tuple[str, str], ...] = (("train", "train.tsv"), ("dev", "dev.tsv"), ("test", "test.tsv"))
    columns: tuple[str, ...] = ()
    symmetric: bool = field(default=False, metadata={"aside": True})
    tfds: tuple[str, ...] = ()

    needs_places: ClassVar[bool] = False

    def __post_init__(self):
        if len(self.texts) not in (1, 2):
            raise ValueError(f"{self.name}: texts={self.texts} must name one column or two")
        if self.symmetric and len(self.texts) == 1:
            raise ValueError(f"{self.name}: symmetric is for two texts, and texts={self.texts} names one")

    def read(self, root: str, split: str, reader: Reader) -> Iterator[Example]:
        if root.startswith("tfds:"):
            source = AX if split == "test_ax" else f"{root}@{tfds_split(split)}"
            rows = (Record(f"{source}:{i}", row) for i, row in enumerate(tfds_records(source)))
            numbered = replace(self, label="label", texts=self.tfds or self.texts)
            yield from reader.read(rows, lambda row: numbered.example(row, split, tuple(range(len(self.labels)))))
        else:
            path = self.path(root, split)
            rows = records(path, () if split.startswith("test") else self.columns)
            yield from reader.read(rows, lambda row: self.example(row, split, self.labels))

    def path(self, root: str, split: str) -> Path:
        """The file of a split: in the folder, or in one beside it that is called like the file, as GLUE has AX's."""
        path = Path(root).expanduser() / dict(self.files)[split]
        beside = path.parent.parent / path.stem / path.name
        return beside if beside.is_file() and not path.exists() else path

    def example(self, row: Record, split: str, labels: tuple) -> Example:
        """A row whose label is one of `labels`."""
        found = tuple(row.text(column) for column in self.texts)
        target = self.unknown if split.startswith("test") else self.target(row.place, row[self.label], labels)
        return Example(row.place, found, target, {"index": row.values.get("index", row.values.get("id"))})

    @property
    def unknown(self) -> int | float:
        """The label of a row whose label is not known."""
        return 0 if self.labels else 0.0

    def target(self, place: str, label, labels: tuple | None = None) -> int | float:
        """The number that a row's label stands for."""
        if not self.labels:
            try:
                number = float(label)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise RowError(place, f"{self.label}={label!r} is not a number")
            return number
        names = [str(name) for name in (self.labels if labels is None else labels)]
        if str(label) not in names:
            raise RowError(place, f"{self.label}={label!r} is not one of {', '.join(names)}")
        return names.index(str(label))

    def targets(self, example: Example, encoded: Encoded) -> dict[str, np.ndarray]:
        return {"label": np.array([example.target], np.int32 if self.labels else np.float32)}

    def parts(self, family: Conventions, dropout: float, both_orders: bool) -> tuple[Classification, TextRows]:
        objective = Classification(self.labels or ("number",), family.head, dropout, self.scores)
        return objective, TextRows(self.symmetric and both_orders, family.between)

    def submission(self, predictor, root: str) -> Iterator[tuple[str, str | None]]:
        """GLUE's files: a head, then the number of each row and its label, or the number that was said of it. None in
        the place of a file whose rows are not there."""
        for split in (each for each in SUBMITTED if each in dict(self.files)):
            name = SUBMITTED[split].format(self.name)
            if not root.startswith("tfds:") and not self.path(root, split).is_file():
                yield name, None
            else:
                rows = self.read(root, split, Reader())
                said = predictor.classify(row.texts if len(row.texts) == 2 else row.texts[0] for row in rows)
                lines = [f"{i}\t{self.answer(each)}" for i, each in enumerate(said)]
                yield name, "\n".join(["index\tprediction", *lines]) + "\n"

    def answer(self, said: dict[str, float]) -> str:
        return max(said, key=said.get) if self.labels else f"{next(iter(said.values())):.3f}"


@dataclass(frozen=True)
class TextRows:
    """`[CLS] text [SEP]` or `[CLS] text 1 [SEP] text 2 [SEP]`, the longer text shortened at its end to fit.

    With `symmetric` training sees every pair in both orders (ELECTRA's `double_unordered`). RoBERTa has two separators
    `between` the texts.
    """

    symmetric: bool = False
    between: int = 1

    labels: ClassVar[tuple[str, ...]] = ("label",)
    random: ClassVar[bool] = False

    def longest(self, length: int) -> int:
        return length

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        first = split.documents[documents.start : documents.stop]
        ends = split.documents[documents.start + 1 : documents.stop + 1]
        rows = np.zeros((len(documents), LABEL + 1), np.int64)
        rows[:, A], rows[:, A_END] = split.sentences[first], split.sentences[first + 1]
        pair = ends - first == 2
        rows[pair, B], rows[pair, B_END] = split.sentences[first[pair] + 1], split.sentences[ends[pair]]
        rows[np.arange(len(rows)), np.where(pair, B_END, A_END)] -= 1  # the separator that ends a document
        rows[:, LABEL] = documents
        if self.symmetric and split.name == "train":
            rows = np.concatenate([rows, rows[:, [B, B_END, A, A_END, LABEL]]])
        shorten(rows, length, self.between)
        return rows

    def fields(self, split: Split, spans: np.ndarray, start: np.ndarray, length: int) -> dict[str, np.ndarray]:
        return {"label": split.columns["label"][spans[..., LABEL]]}


def shorten(rows: np.ndarray, length: int, between: int) -> None:
    """Cut texts at their ends until rows have at most `length` tokens, one token at a time from the longer text.

    Of two that are equally long the second is cut, as `_truncate_seq_pair` of google-research/bert does.
    """
    a, b = rows[:, A_END] - rows[:, A], rows[:, B_END] - rows[:, B]
    room = length - np.where(b > 0, 2 + between, 2)
    excess = np.maximum(a + b - room, 0)
    level = np.minimum(excess, np.abs(a - b))
    rest = excess - level
    rows[:, A_END] -= np.where(a > b, level, 0) + rest // 2
    rows[:, B_END] -= np.where(a > b, 0, level) + (rest + 1) // 2
