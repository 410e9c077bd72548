"""Multiple choice: which of several answers to a question fits a text (RACE; RoBERTa §5.3, ALBERT appendix A.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.formats import LABEL, B
from encoders.data.labelled import Encoded, Example
from encoders.data.row_files import Reader, Record, RowError, damaged, records
from encoders.data.store import Split
from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.model.heads import ClassHead, Pooler, summary
from encoders.objectives.base import Metrics, Task, TaskModule
from encoders.objectives.losses import losses
from encoders.objectives.masking import Batch
from encoders.tasks.conventions import Conventions
from encoders.tasks.scores import accuracy
from encoders.tasks.text_tasks import shorten
from encoders.text.tokenization import Facts
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class MultipleChoice:
    """Rows of .jsonl files: a text, a question, `count` options, and the answer, a letter (RACE) or a number from 0."""

    count: int = 4
    text: str = "article"
    question: str = "question"
    options: str = "options"
    answer: str = "answer"
    name: str = field(default="choice", metadata={"aside": True})
    files: tuple[tuple[str, str], ...] = (("train", "train.jsonl"), ("dev", "dev.jsonl"), ("test", "test.jsonl"))

    labels: ClassVar[tuple[str, ...]] = ()
    symmetric: ClassVar[bool] = False
    needs_places: ClassVar[bool] = False

    def parts(self, family: Conventions, dropout: float, both_orders: bool) -> tuple[Choice, ChoiceRows]:
        return Choice(family.head, dropout), ChoiceRows(self.count, family.between)

    def read(self, root: str, split: str, reader: Reader) -> Iterator[Example]:
        yield from reader.read(records(Path(root).expanduser() / dict(self.files)[split]), self.example)

    def example(self, row: Record) -> Example:
        text, question = row.text(self.text), row.text(self.question)
        options, answer = row[self.options], row[self.answer]
        if not isinstance(options, list) or len(options) != self.count or not all(isinstance(x, str) for x in options):
            raise RowError(row.place, f"{self.options}={options!r} must be {self.count} texts")
        if any(map(damaged, options)):
            raise RowError(row.place, f"{self.options}={options!r} is not UTF-8")
        letters = [chr(ord("A") + i) for i in range(self.count)]
        known = {letter: i for i, letter in enumerate(letters)} | {i: i for i in range(self.count)}
        if not isinstance(answer, str | int) or answer not in known:
            raise RowError(row.place, f"{self.answer}={answer!r} is not one of {', '.join(letters)} or a number from 0")
        filled = [question.replace("_", option, 1) if "_" in question else f"{question} {option}" for option in options]
        return Example(row.place, (text, *filled), known[answer])

    def targets(self, example: Example, encoded: Encoded) -> dict[str, np.ndarray]:
        return {"label": np.array([example.target], np.int32)}


@dataclass(frozen=True)
class ChoiceRows:
    """`count` examples in a row, `[CLS] text [SEP] question with option [SEP]`, each of up to its share of the row."""

    count: int = 4
    between: int = 1

    labels: ClassVar[tuple[str, ...]] = ("label",)
    random: ClassVar[bool] = False

    def longest(self, length: int) -> int:
        return length // self.count

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        first = split.documents[documents.start : documents.stop, None] + np.arange(self.count + 2)
        edges = split.sentences[first]
        edges[:, -1] -= 1  # the separator that ends a document
        rows = np.zeros((len(documents), self.count, LABEL + 1), np.int64)
        rows[..., 0], rows[..., 1] = edges[:, :1], edges[:, 1:2]
        rows[..., B], rows[..., B + 1] = edges[:, 1:-1], edges[:, 2:]
        rows[..., LABEL] = np.array(documents)[:, None]
        shorten(rows.reshape(-1, LABEL + 1), self.longest(length), self.between)
        return rows

    def fields(self, split: Split, spans: np.ndarray, start: np.ndarray, length: int) -> dict[str, np.ndarray]:
        return {"label": split.columns["label"][spans[:, :1, LABEL]]}


@dataclass(frozen=True)
class Choice(Task):
    """A number for each option, and the cross-entropy of their softmax over the options of a row."""

    head: Literal["pooled", "linear", "tanh", "gelu"] = "pooled"
    dropout: float = 0.1

    goal: ClassVar[str] = "accuracy"
    needs: ClassVar[frozenset[str]] = frozenset({"label"})
    weights: ClassVar[dict[str, float]] = {"label_loss": 1.0}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return ChoiceModule(model, self, facts)

    def counts(self, batch: Batch) -> dict:
        return {"label_loss": batch["valid"][:, 0].sum()}

    def score(self, said: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[str, float]:
        return {"accuracy": accuracy(said["logits"].argmax(-1), split.columns["label"][rows[:, 0, LABEL]])}


class ChoiceModule(TaskModule):
    """An encoder, a pooler where the head reads it, and the head to one number."""

    model: Model
    objective: Choice
    facts: Facts

    def setup(self):
        objective = self.objective
        self.encoder = Encoder(self.model)
        if objective.head == "pooled":
            self.pooler = Pooler(self.model)
        activation = objective.head if objective.head in ("tanh", "gelu") else "none"
        self.choice = ClassHead(self.model, 1, objective.dropout, activation)

    def logits(self, batch: Batch, train: bool = False) -> Float[Array, "b s"]:
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"], train=train)
        vector = summary(self.model, hidden, batch)
        return self.choice(self.pooler(vector) if self.objective.head == "pooled" else vector, train)[..., 0]

    def metrics(self, logits: Float[Array, "b s"], batch: Batch) -> Metrics:
        valid, label = batch["valid"][:, 0].astype(jnp.float32), batch["label"][:, 0]
        return {
            "label_loss": Mean((losses(logits, label) * valid).sum(), valid.sum()),
            "label_accuracy": Mean(((logits.argmax(-1) == label) * valid).sum(), valid.sum()),
        }

    def said(self, logits: Float[Array, "b s"], batch: Batch) -> dict[str, Array]:
        return {"logits": logits}
