"""Classification and regression of one or two texts: the tasks of GLUE, and of a user's own files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from encoders.data.example_table import build_empty_table, measure_segments, swap_segments
from encoders.data.labelled import EncodedExample, Example, to_tfds_split
from encoders.data.row_files import Record, RowError, RowReader, read_records
from encoders.data.store import Split
from encoders.model.config import FamilyConventions
from encoders.tasks.classification import Classification
from encoders.text.tfds_reader import read_tfds_records
from encoders.utils.buckets import AnyPath, parse_path
from encoders.utils.errors import UserError

FLOAT32_MAX = float(np.finfo(np.float32).max)
AX_SOURCE = "tfds:glue/ax@test"
SUBMISSION_FILES = {"test": "{}.tsv", "test_matched": "{}-m.tsv", "test_mismatched": "{}-mm.tsv", "test_ax": "AX.tsv"}


@dataclass(frozen=True)
class TextTask:
    """Rows of one or two texts and a label: one of `labels`, or without them a number.

    `text_columns` and `label_column` name columns of the files; `column_names` names all columns of training and
    development files without a header. The first of `score_names` selects the best checkpoint. `symmetric` tasks do not
    depend on the order of the two texts. In TFDS the texts are in `tfds_columns`, and a label is its index.
    """

    name: str = field(metadata={"not_fingerprinted": True})
    text_columns: tuple[str, ...]
    label_column: str = "label"
    labels: tuple[str, ...] = ()
    score_names: tuple[str, ...] = field(default=(), metadata={"not_fingerprinted": True})
    files: tuple[tuple[str, str], ...] = (("train", "train.tsv"), ("dev", "dev.tsv"), ("test", "test.tsv"))
    column_names: tuple[str, ...] = ()
    symmetric: bool = field(default=False, metadata={"not_fingerprinted": True})
    tfds_columns: tuple[str, ...] = ()

    needs_offsets: ClassVar[bool] = False

    def __post_init__(self):
        if len(self.text_columns) not in (1, 2):
            raise UserError(f"{self.name}: text_columns={self.text_columns} must name one or two columns")
        if self.symmetric and len(self.text_columns) == 1:
            raise UserError(f"{self.name}: symmetric=True needs two text_columns, not {self.text_columns}")

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        if root.startswith("tfds:"):
            source = AX_SOURCE if split == "test_ax" else f"{root}@{to_tfds_split(split)}"
            rows = (Record(f"{source}:{i}", row) for i, row in enumerate(read_tfds_records(source)))
            task = replace(self, label_column="label", text_columns=self.tfds_columns or self.text_columns)
            label_values = tuple(range(len(self.labels)))
        else:
            path = self.find_split_file(root, split)
            rows = read_records(path, () if split.startswith("test") else self.column_names)
            task, label_values = self, self.labels
        yield from reader.convert_rows(rows, lambda row: task.parse_row(row, split, label_values))

    def find_split_file(self, root: str, split: str) -> AnyPath:
        """Return the file of a split: in `root`, or in a folder beside it named like the file, as GLUE's AX."""
        path = parse_path(root).expanduser() / dict(self.files)[split]
        sibling = path.parent.parent / path.stem / path.name
        return sibling if sibling.is_file() and not path.exists() else path

    def parse_row(self, row: Record, split: str, label_values: tuple) -> Example:
        """Return the example of a row; rows of test splits get a placeholder label. Raises `RowError`."""
        texts = tuple(row.get_text(column) for column in self.text_columns)
        target = 0 if self.labels else 0.0
        if not split.startswith("test"):
            target = self.parse_label(row.location, row[self.label_column], label_values)
        return Example(row.location, texts, target, {"index": row.values.get("index", row.values.get("id"))})

    def parse_label(self, location: str, label, label_values: tuple | None = None) -> int | float:
        """Return the index of a label in `label_values`, by default `labels`, or its number. Raises `RowError`."""
        if self.labels:
            names = [str(name) for name in (self.labels if label_values is None else label_values)]
            if str(label) in names:
                return names.index(str(label))
            raise RowError(location, f"{self.label_column}={label!r} is not one of {', '.join(names)}")
        try:
            number = float(label)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= FLOAT32_MAX:
            raise RowError(
                location, f"{self.label_column}={label!r} is not a number up to {FLOAT32_MAX:.3g}, as labels are"
            )
        return number

    def encode_labels(self, example: Example, encoded: EncodedExample) -> dict[str, np.ndarray]:
        return {"label": np.array([example.target], np.int32 if self.labels else np.float32)}

    def build_objective_and_format(self, conventions: FamilyConventions, head_dropout: float, both_orders: bool):
        labels = self.labels or ("number",)
        objective = Classification(labels, conventions.classifier_head, head_dropout, self.score_names)
        return objective, TextRows(self.symmetric and both_orders, conventions.num_separators)

    def build_submission(self, predictor, root: str) -> Iterator[tuple[str, str | None]]:
        """Yield name and content of each file that GLUE's server accepts; the content is None without rows."""
        for split in (split for split in SUBMISSION_FILES if split in dict(self.files)):
            name, content = SUBMISSION_FILES[split].format(self.name), None
            if root.startswith("tfds:") or self.find_split_file(root, split).is_file():
                rows = self.read_examples(root, split, RowReader())
                predictions = predictor.classify(row.texts if len(row.texts) == 2 else row.texts[0] for row in rows)
                values = [max(p, key=p.get) if self.labels else f"{next(iter(p.values())):.3f}" for p in predictions]
                content = "index\tprediction\n" + "".join(f"{i}\t{value}\n" for i, value in enumerate(values))
            yield name, content


class LabelledFormat:
    """Base of the formats of labelled rows, which are the same in every pass; by default a document has a label."""

    label_fields: ClassVar[tuple[str, ...]] = ("label",)
    varies_by_pass: ClassVar[bool] = False
    separates_equal_texts: ClassVar[bool] = False
    length_setting: ClassVar[str] = "seq_length"  # the field of a phase that says which rows are cut

    def max_example_length(self, seq_length: int) -> int:
        return seq_length

    def build_label_fields(self, split: Split, spans: np.ndarray, *_) -> dict[str, np.ndarray]:
        return {"label": split.label_columns["label"][spans["document"]]}


@dataclass(frozen=True)
class TextRows(LabelledFormat):
    """Format `[CLS] text [SEP]` or `[CLS] text 1 [SEP] text 2 [SEP]`; the longer text is cut at its end to fit.

    `both_orders` trains on every pair in both orders (ELECTRA's `double_unordered`).
    """

    both_orders: bool = False
    num_separators: int = 1

    def build_example_table(self, split: Split, documents: range, seq_length: int, *_) -> np.ndarray:
        edges, offsets = split.document_offsets[documents.start : documents.stop + 1], split.sentence_offsets
        first, ends, rows = edges[:-1], edges[1:], build_empty_table(len(documents))
        rows["a_start"], rows["a_end"] = offsets[first], offsets[first + 1]
        is_pair = ends - first == 2
        rows["b_start"][is_pair], rows["b_end"][is_pair] = offsets[first[is_pair] + 1], offsets[ends[is_pair]]
        rows["a_end"] -= ~is_pair  # drop the separator that ends a document
        rows["b_end"] -= is_pair
        rows["document"] = documents
        if self.both_orders and split.name == "train":
            rows = np.concatenate([rows, swap_segments(rows)])
        truncate_pairs(rows, seq_length, self.num_separators)
        return rows


def truncate_pairs(example_table: np.ndarray, max_length: int, num_separators: int) -> None:
    """Cut texts at their ends, in place, until rows have at most `max_length` tokens with [CLS] and separators.

    The longer text loses one token at a time, of equal ones the second: `_truncate_seq_pair` of google-research/bert.
    """
    a, b = measure_segments(example_table)
    excess = np.maximum(a + b + np.where(b > 0, 2 + num_separators, 2) - max_length, 0)
    level = np.minimum(excess, np.abs(a - b))
    rest = excess - level
    example_table["a_end"] -= np.where(a > b, level, 0) + rest // 2
    example_table["b_end"] -= np.where(a > b, 0, level) + (rest + 1) // 2
