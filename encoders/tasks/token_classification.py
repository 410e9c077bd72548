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

from encoders.data.batch import Batch
from encoders.data.example_table import build_empty_table
from encoders.data.labelled import EncodedExample, Example
from encoders.data.row_files import Record, RowError, RowReader, has_lone_surrogate, read_records
from encoders.data.store import Split
from encoders.model.config import EncoderConfig, FamilyConventions
from encoders.model.encoder import Encoder
from encoders.model.ops import Dropout, make_dense
from encoders.objectives.base import Metrics, SupervisedObjective, TaskModule
from encoders.objectives.losses import cross_entropy
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean

IGNORED_TAG = -1  # the tag of tokens that are not the first of a word


@dataclass(frozen=True)
class TokenTask:
    """Rows of `words` and their `tags`, each one of `labels`.

    A .jsonl file has the lists "words" and "tags"; any other has a word and, last, its tag on a line, and a blank line
    between sentences (CoNLL).
    """

    labels: tuple[str, ...]
    name: str = field(default="tags", metadata={"not_fingerprinted": True})
    files: tuple[tuple[str, str], ...] = (("train", "train.txt"), ("dev", "dev.txt"), ("test", "test.txt"))

    symmetric: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = True

    def build_objective_and_format(
        self, conventions: FamilyConventions, head_dropout: float, both_orders: bool
    ) -> tuple[TokenClassification, TaggedRows]:
        return TokenClassification(self.labels, head_dropout), TaggedRows()

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        path = Path(root).expanduser() / dict(self.files)[split]
        rows = read_records(path) if path.suffix == ".jsonl" else read_conll_sentences(path)
        yield from reader.convert_rows(rows, self.parse_row)

    def parse_row(self, row: Record) -> Example:
        words, tags = row["words"], row["tags"]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
            raise RowError(row.location, f"words and tags must be two lists of one length, not {words!r} and {tags!r}")
        if empty := [word for word in words if not isinstance(word, str) or not word.strip()]:
            raise RowError(row.location, f"{empty[0]!r} is not a word")
        if bad := [word for word in words if has_lone_surrogate(word)]:
            raise RowError(row.location, f"the word {bad[0]!r} is not UTF-8")
        if unknown := [tag for tag in tags if tag not in self.labels]:
            raise RowError(row.location, f"the tag {unknown[0]!r} is not one of {', '.join(self.labels)}")
        ends = np.cumsum([len(word) + 1 for word in words])
        starts = [int(end) - len(word) - 1 for end, word in zip(ends, words, strict=True)]
        return Example(row.location, (" ".join(words),), (starts, [self.labels.index(tag) for tag in tags]))

    def encode_labels(self, example: Example, encoded: EncodedExample) -> dict[str, np.ndarray]:
        (places,), (starts, tags) = encoded.offsets, example.target
        row = np.full(len(places) + 1, IGNORED_TAG, np.int32)
        words, first = np.unique(np.searchsorted(starts, [a for a, _ in places], side="right") - 1, return_index=True)
        row[first] = np.array(tags)[words]
        return {"tags": row}


def read_conll_sentences(path: Path) -> Iterator[Record | RowError]:
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

    num_separators: ClassVar[int] = 1
    label_fields: ClassVar[tuple[str, ...]] = ("tags",)
    varies_by_pass: ClassVar[bool] = False

    def max_example_length(self, seq_length: int) -> int:
        return seq_length

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        rows = build_empty_table(len(documents))
        first = split.document_offsets[documents.start : documents.stop]
        rows["a_start"] = split.sentence_offsets[first]
        rows["a_end"] = np.minimum(split.sentence_offsets[first + 1] - 1, rows["a_start"] + seq_length - 2)
        rows["document"] = documents
        return rows

    def build_label_fields(
        self, split: Split, spans: np.ndarray, cls_positions: np.ndarray, seq_length: int
    ) -> dict[str, np.ndarray]:
        rows = np.full((len(spans), seq_length), IGNORED_TAG, np.int32)
        for row, begin, end in zip(rows, spans["a_start"][:, 0], spans["a_end"][:, 0], strict=True):
            row[1 : 1 + end - begin] = split.label_columns["tags"][begin:end]
        return {"tags": rows}


@dataclass(frozen=True)
class TokenClassification(SupervisedObjective):
    """One of `labels` for the first token of each word; judged by whole entities where tags begin with B- and I-."""

    labels: tuple[str, ...]
    head_dropout: float = 0.1

    best_metric: ClassVar[str] = "f1"
    required_fields: ClassVar[frozenset[str]] = frozenset({"tags"})
    loss_weights: ClassVar[dict[str, float]] = {"tag_loss": 1.0}

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> nn.Module:
        return TokenClassificationModule(config, self, vocab)

    def counts(self, batch: Batch) -> dict:
        return {"tag_loss": (batch.labels["tags"] >= 0).sum()}

    def score_outputs(
        self, outputs: dict[str, np.ndarray], example_table: np.ndarray, split: Split
    ) -> dict[str, float]:
        right = told = there = 0
        for tags, span in zip(outputs["tags"], example_table[:, 0], strict=True):
            true = split.label_columns["tags"][span["a_start"] : span["a_end"]]
            words = true >= 0
            gold, guess = (
                extract_entities([self.labels[t] for t in x[words]]) for x in (true, tags[1 : 1 + len(true)])
            )
            right, told, there = right + len(gold & guess), told + len(guess), there + len(gold)
        return {"f1": 2 * right / (told + there) if told + there else 0.0}


def extract_entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """First word, end and kind of each entity in B-, I- and O tags; an I- without its B- begins one (conlleval).

    Without such marks every tag but O is an entity of one word.

    >>> sorted(extract_entities(["B-PER", "I-PER", "O", "I-LOC"]))
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


class TokenClassificationModule(TaskModule):
    """An encoder and a linear layer on every token."""

    config: EncoderConfig
    objective: TokenClassification
    vocab: VocabInfo

    def setup(self):
        self.encoder = Encoder(self.config)
        self.drop = Dropout(self.objective.head_dropout)
        self.tags = make_dense(self.config, len(self.objective.labels))

    def compute_logits(self, batch: Batch, train: bool = False) -> Float[Array, "b l c"]:
        hidden = self.encoder(batch, train=train)
        return self.tags(self.drop(hidden, train)).astype(jnp.float32)

    def compute_metrics(self, logits: Float[Array, "b l c"], batch: Batch) -> Metrics:
        tags = jnp.broadcast_to(batch.labels["tags"], logits.shape[:2])
        real = (tags >= 0).astype(jnp.float32)
        wanted = jnp.maximum(tags, 0)
        return {
            "tag_loss": Mean((cross_entropy(logits, wanted) * real).sum(), real.sum()),
            "tag_accuracy": Mean(((logits.argmax(-1) == wanted) * real).sum(), real.sum()),
        }

    def compute_outputs(self, logits: Float[Array, "b l c"], batch: Batch) -> dict[str, Array]:
        return {"tags": logits.argmax(-1)}
