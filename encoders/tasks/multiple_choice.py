"""Multiple choice: several options answer a question about a text (RACE; RoBERTa §5.3, ALBERT appendix A.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.data.example_table import build_empty_table
from encoders.data.labelled import EncodedExample, Example
from encoders.data.row_files import Record, RowError, RowReader, has_lone_surrogate, read_records
from encoders.data.store import Split
from encoders.model.config import FamilyConventions
from encoders.objectives.base import Metrics, Scores, SupervisedObjective, TaskModule
from encoders.tasks.classification import ClassificationModule, compute_label_metrics
from encoders.tasks.scores import score_accuracy, score_baseline
from encoders.tasks.text_tasks import LabelledFormat, truncate_pairs
from encoders.utils.buckets import parse_path


@dataclass(frozen=True)
class MultipleChoiceTask:
    """Rows of .jsonl files: a text, a question, `num_choices` options, and the answer, a letter or an index from 0."""

    num_choices: int = 4
    text_column: str = "article"
    question_column: str = "question"
    options_column: str = "options"
    answer_column: str = "answer"
    name: str = field(default="choice", metadata={"not_fingerprinted": True})
    files: tuple[tuple[str, str], ...] = (("train", "train.jsonl"), ("dev", "dev.jsonl"), ("test", "test.jsonl"))

    labels: ClassVar[tuple[str, ...]] = ()
    symmetric: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = False

    def build_objective_and_format(self, conventions: FamilyConventions, head_dropout: float, both_orders: bool):
        objective = MultipleChoiceObjective(conventions.classifier_head, head_dropout)
        return objective, MultipleChoiceRows(self.num_choices, conventions.num_separators)

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        path = parse_path(root).expanduser() / dict(self.files)[split]
        yield from reader.convert_rows(read_records(path), self.parse_row)

    def parse_row(self, row: Record) -> Example:
        """Return the example of a row; an option fills the question's "_" or follows it. Raises `RowError`."""
        text, question = row.get_text(self.text_column), row.get_text(self.question_column)
        column, options, answer = self.options_column, row[self.options_column], row[self.answer_column]
        is_valid = isinstance(options, list) and len(options) == self.num_choices
        if not is_valid or not all(isinstance(option, str) for option in options):
            raise RowError(row.location, f"{column}={options!r} must be a list of {self.num_choices} texts")
        if any(map(has_lone_surrogate, options)):
            raise RowError(row.location, f"{column}={options!r} is not UTF-8")
        letters = [chr(ord("A") + i) for i in range(self.num_choices)]
        indices = {letter: i for i, letter in enumerate(letters)} | {i: i for i in range(self.num_choices)}
        if not isinstance(answer, str | int) or answer not in indices:
            accepted = f"{', '.join(letters)} or a number from 0 to {self.num_choices - 1}"
            raise RowError(row.location, f"{self.answer_column}={answer!r} is not one of {accepted}")
        pattern = question if "_" in question else f"{question} _"
        questions = [pattern.replace("_", option, 1) for option in options]
        return Example(row.location, (text, *questions), indices[answer])

    def encode_labels(self, example: Example, encoded: EncodedExample) -> dict[str, np.ndarray]:
        return {"label": np.array([example.target], np.int32)}


@dataclass(frozen=True)
class MultipleChoiceRows(LabelledFormat):
    """Format of `num_choices` examples a row, `[CLS] text [SEP] question with option [SEP]`, of one maximal length."""

    num_choices: int = 4
    num_separators: int = 1

    def max_example_length(self, seq_length: int) -> int:
        return seq_length // self.num_choices

    def build_example_table(self, split: Split, documents: range, seq_length: int, *_) -> np.ndarray:
        first = split.document_offsets[documents.start : documents.stop, None] + np.arange(self.num_choices + 2)
        edges = split.sentence_offsets[first]
        edges[:, -1] -= 1  # drop the separator that ends a document
        rows = build_empty_table(len(documents), self.num_choices)
        rows["a_start"], rows["a_end"] = edges[:, :1], edges[:, 1:2]
        rows["b_start"], rows["b_end"] = edges[:, 1:-1], edges[:, 2:]
        rows["document"] = np.array(documents)[:, None]
        truncate_pairs(rows.reshape(-1), self.max_example_length(seq_length), self.num_separators)
        return rows


class MultipleChoiceModule(ClassificationModule):
    """Module of a classification with one logit for each example of a row."""

    head_name: ClassVar[str] = "choice"
    num_logits: ClassVar[int] = 1

    def compute_logits(self, batch: Batch, train: bool = False) -> Float[Array, "b s"]:
        return super().compute_logits(batch, train)[..., 0]

    def compute_metrics(self, logits: Float[Array, "b s"], batch: Batch) -> Metrics:
        row_mask = batch.example_mask[:, 0].astype(jnp.float32)
        return compute_label_metrics("label", logits, batch.labels["label"][:, 0], row_mask)


@dataclass(frozen=True)
class MultipleChoiceObjective(SupervisedObjective):
    """Cross-entropy over the options of a row, each with one logit."""

    head: Literal["pooled", "linear", "tanh", "gelu"] = "pooled"
    head_dropout: float = 0.1

    module_class: ClassVar[type[TaskModule]] = MultipleChoiceModule
    best_metric: ClassVar[str] = "accuracy"
    required_fields: ClassVar[frozenset[str]] = frozenset({"label"})
    loss_weights: ClassVar[dict[str, float]] = {"label_loss": 1.0}

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> Scores:
        labels = split.label_columns["label"][rows["document"][:, 0]]
        accuracy = score_accuracy(outputs["logits"].argmax(-1), labels)
        return {"accuracy": accuracy, "accuracy_baseline": score_baseline(labels)}
