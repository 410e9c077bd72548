"""Token classification, such as named entities: a tag for every word, said at its first token (BERT §5.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.formats import A_END, LABEL, A
from encoders.data.labelled import Encoded, Example
from encoders.data.row_files import Reader, Record, RowError, damaged, records
from encoders.data.store import Split
from encoders.model.config import Model
from encoders.model.encoder import Encoder
from encoders.model.layers import Dropout, dense
from encoders.objectives.base import Metrics, Task, TaskModule
from encoders.objectives.losses import losses
from encoders.objectives.masking import Batch
from encoders.tasks.conventions import Conventions
from encoders.text.tokenization import Facts
from encoders.utils.metrics import Mean

NONE = -1  # the tag of tokens that are not the first of a word


@dataclass(frozen=True)
class Words:
    """Rows of `words` and their `tags`, each one of `labels`.

    A .jsonl file has the lists "words" and "tags"; any other has a word and, last, its tag on a line, and a blank line
    between sentences (CoNLL).
    """

    labels: tuple[str, ...]
    name: str = field(default="tags", metadata={"aside": True})
    files: tuple[tuple[str, str], ...] = (("train", "train.txt"), ("dev", "dev.txt"), ("test", "test.txt"))

    symmetric: ClassVar[bool] = False
    needs_places: ClassVar[bool] = True

    def parts(self, family: Conventions, dropout: float, both_orders: bool) -> tuple[Tags, TaggedRows]:
        return Tags(self.labels, dropout), TaggedRows()

    def read(self, root: str, split: str, reader: Reader) -> Iterator[Example]:
        path = Path(root).expanduser() / dict(self.files)[split]
        rows = records(path) if path.suffix == ".jsonl" else sentences(path)
        yield from reader.read(rows, self.example)

    def example(self, row: Record) -> Example:
        words, tags = row["words"], row["tags"]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
            raise RowError(row.place, f"words and tags must be two lists of one length, not {words!r} and {tags!r}")
        if empty := [word for word in words if not isinstance(word, str) or not word.strip()]:
            raise RowError(row.place, f"{empty[0]!r} is not a word")
        if bad := [word for word in words if damaged(word)]:
            raise RowError(row.place, f"the word {bad[0]!r} is not UTF-8")
        if unknown := [tag for tag in tags if tag not in self.labels]:
            raise RowError(row.place, f"the tag {unknown[0]!r} is not one of {', '.join(self.labels)}")
        ends = np.cumsum([len(word) + 1 for word in words])
        starts = [int(end) - len(word) - 1 for end, word in zip(ends, words, strict=True)]
        return Example(row.place, (" ".join(words),), (starts, [self.labels.index(tag) for tag in tags]))

    def targets(self, example: Example, encoded: Encoded) -> dict[str, np.ndarray]:
        (places,), (starts, tags) = encoded.places, example.target
        row = np.full(len(places) + 1, NONE, np.int32)
        words, first = np.unique(np.searchsorted(starts, [a for a, _ in places], side="right") - 1, return_index=True)
        row[first] = np.array(tags)[words]
        return {"tags": row}


def sentences(path: Path) -> Iterator[Record | RowError]:
    """The sentences of a file with a word and its tag on a line."""
    words, tags, began, empty = [], [], 1, True
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate([*file, "\n"], 1):
            fields = line.split()
            if not fields and words:
                yield Record(f"{path}:{began}", {"words": words, "tags": tags})
                words, tags, empty = [], [], False
            elif len(fields) == 1:
                yield RowError(f"{path}:{number}", f"{fields[0]!r} has no tag beside it")
            elif fields and fields[0] != "-DOCSTART-":
                began = began if words else number
                words.append(fields[0])
                tags.append(fields[-1])
    if empty:
        raise RowError(str(path), "there are no rows")


@dataclass(frozen=True)
class TaggedRows:
    """`[CLS] text [SEP]`, cut at its end, with the tag of each token that is the first of a word."""

    between: ClassVar[int] = 1
    labels: ClassVar[tuple[str, ...]] = ("tags",)
    random: ClassVar[bool] = False

    def longest(self, length: int) -> int:
        return length

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        rows = np.zeros((len(documents), LABEL + 1), np.int64)
        first = split.documents[documents.start : documents.stop]
        rows[:, A] = split.sentences[first]
        rows[:, A_END] = np.minimum(split.sentences[first + 1] - 1, rows[:, A] + length - 2)
        rows[:, LABEL] = documents
        return rows

    def fields(self, split: Split, spans: np.ndarray, start: np.ndarray, length: int) -> dict[str, np.ndarray]:
        rows = np.full((len(spans), length), NONE, np.int32)
        for row, begin, end in zip(rows, spans[:, 0, A], spans[:, 0, A_END], strict=True):
            row[1 : 1 + end - begin] = split.columns["tags"][begin:end]
        return {"tags": rows}


@dataclass(frozen=True)
class Tags(Task):
    """One of `labels` for the first token of each word; judged by whole entities where tags begin with B- and I-."""

    labels: tuple[str, ...]
    dropout: float = 0.1

    goal: ClassVar[str] = "f1"
    needs: ClassVar[frozenset[str]] = frozenset({"tags"})
    weights: ClassVar[dict[str, float]] = {"tag_loss": 1.0}

    @property
    def answers(self) -> tuple[str, ...]:
        return self.labels

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return TagsModule(model, self, facts)

    def counts(self, batch: Batch) -> dict:
        return {"tag_loss": (batch["tags"] >= 0).sum()}

    def score(self, said: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[str, float]:
        right = told = there = 0
        for tags, span in zip(said["tags"], rows[:, 0], strict=True):
            true = split.columns["tags"][span[A] : span[A_END]]
            words = true >= 0
            gold, guess = (entities([self.labels[t] for t in x[words]]) for x in (true, tags[1 : 1 + len(true)]))
            right, told, there = right + len(gold & guess), told + len(guess), there + len(gold)
        return {"f1": 2 * right / (told + there) if told + there else 0.0}


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """First word, end and kind of each entity in B-, I- and O tags; an I- without its B- begins one (conlleval).

    Without such marks every tag but O is an entity of one word.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC"]))
    [(0, 2, 'PER'), (3, 4, 'LOC')]
    """
    found, start, kind = set(), 0, None
    for place, tag in enumerate([*tags, "O"]):
        mark, dash, name = tag.partition("-")
        name = name if dash else tag
        if kind is not None and not (mark == "I" and dash and name == kind):
            found.add((start, place, kind))
            kind = None
        if tag != "O" and kind is None:
            start, kind = place, name
    return found


class TagsModule(TaskModule):
    """An encoder and a linear layer on every token."""

    model: Model
    objective: Tags
    facts: Facts

    def setup(self):
        self.encoder = Encoder(self.model)
        self.drop = Dropout(self.objective.dropout)
        self.tags = dense(self.model, len(self.objective.labels))

    def logits(self, batch: Batch, train: bool = False) -> Float[Array, "b l c"]:
        hidden = self.encoder(batch["tokens"], batch["example"], batch["segments"], batch["positions"], train=train)
        return self.tags(self.drop(hidden, train)).astype(jnp.float32)

    def metrics(self, logits: Float[Array, "b l c"], batch: Batch) -> Metrics:
        tags = jnp.broadcast_to(batch["tags"], logits.shape[:2])
        real = (tags >= 0).astype(jnp.float32)
        wanted = jnp.maximum(tags, 0)
        return {
            "tag_loss": Mean((losses(logits, wanted) * real).sum(), real.sum()),
            "tag_accuracy": Mean(((logits.argmax(-1) == wanted) * real).sum(), real.sum()),
        }

    def said(self, logits: Float[Array, "b l c"], batch: Batch) -> dict[str, Array]:
        return {"tags": logits.argmax(-1)}
