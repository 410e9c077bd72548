"""Token classification such as named entities: a tag for every word, predicted at its first token (BERT §5.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.data.example_table import build_empty_table
from encoders.data.labelled import EncodedExample, Example
from encoders.data.row_files import Record, RowError, RowReader, has_lone_surrogate
from encoders.data.store import Split
from encoders.model.config import FamilyConventions
from encoders.model.encoder import Encoder
from encoders.model.ops import Dropout, make_dense
from encoders.objectives.base import Metrics, Scores, SupervisedObjective, TaskModule
from encoders.tasks.classification import compute_label_metrics
from encoders.tasks.conll import OUTSIDE, extract_entities, parse_tags, read_sentences
from encoders.tasks.scores import score_entities
from encoders.tasks.text_tasks import LabelledFormat
from encoders.utils.buckets import parse_path
from encoders.utils.errors import UserError

IGNORED_TAG = -1  # of tokens that are not the first of a word


@dataclass(frozen=True)
class TokenTask:
    """Rows of words and their tags, each one of `labels`, in a scheme of `parse_tags`.

    A .jsonl file has the lists "words" and "tags". Any other is in CoNLL format, as `read_conll_sentences` reads it.
    """

    labels: tuple[str, ...]
    name: str = field(default="tags", metadata={"not_fingerprinted": True})
    files: tuple[tuple[str, str], ...] = (("train", "train.txt"), ("dev", "dev.txt"), ("test", "test.txt"))

    symmetric: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = True
    rows_version: ClassVar[int] = 4

    def __post_init__(self):
        parse_tags(self.labels)

    def build_objective_and_format(self, conventions: FamilyConventions, head_dropout: float, both_orders: bool):
        return TokenClassification(self.labels, head_dropout, conventions.token_classifier_head), TaggedRows()

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        path = parse_path(root).expanduser() / dict(self.files)[split]
        yield from reader.convert_rows(read_sentences(path, self.labels), self.parse_row)

    def parse_row(self, row: Record) -> Example:
        """Return the words as one text; the target is each word's first character and tag. Raises `RowError`."""
        words, tags = row["words"], row["tags"]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
            problem = f"words and tags must be two lists of equal length, not {words!r} and {tags!r}"
            raise RowError(row.location, problem)
        for word, tag in zip(words, tags, strict=True):
            if not isinstance(word, str) or not word.strip():
                raise RowError(row.location, f"the word {word!r} is not a text or is empty")
            if has_lone_surrogate(word):
                raise RowError(row.location, f"the word {word!r} is not UTF-8")
            if tag not in self.labels:
                raise RowError(row.location, f"the tag {tag!r} is not one of {', '.join(self.labels)}")
        ends = np.cumsum([len(word) + 1 for word in words])
        starts = [int(end) - len(word) - 1 for end, word in zip(ends, words, strict=True)]
        return Example(row.location, (" ".join(words),), (starts, [self.labels.index(tag) for tag in tags]))

    def encode_labels(self, example: Example, encoded: EncodedExample) -> dict[str, np.ndarray]:
        """Return the tag of each word at its first token. Raises `RowError` for a word without tokens."""
        (text,), (offsets,), (word_starts, tags) = example.texts, encoded.offsets, example.target
        words, first_tokens = find_first_tokens(word_starts, offsets)
        if missing := sorted({*range(len(tags))}.difference(words.tolist())):
            word = text[word_starts[missing[0]] :].partition(" ")[0]
            raise RowError(example.location, f"the word {word!r} gives no tokens")
        token_tags = np.full(len(offsets) + 1, IGNORED_TAG, np.int32)
        token_tags[first_tokens] = tags
        return {"tags": token_tags}


def find_first_tokens(word_starts: Sequence[int], offsets: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the words that have tokens, and the first token of each, from first characters and the tokens' spans."""
    token_words = np.searchsorted(word_starts, [start for start, _ in offsets], side="right") - 1
    return np.unique(token_words, return_index=True)


@dataclass(frozen=True)
class TaggedRows(LabelledFormat):
    """Format `[CLS] text [SEP]`, cut at its end, with the tag of each token that is the first of a word."""

    num_separators: ClassVar[int] = 1
    label_fields: ClassVar[tuple[str, ...]] = ("tags",)

    def build_example_table(self, split: Split, documents: range, seq_length: int, *_) -> np.ndarray:
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


class TokenClassificationModule(TaskModule):
    """Module of an encoder and a linear layer on every token, after the pooler with the head "pooled"."""

    def setup(self):
        self.encoder = Encoder(self.config)
        if self.objective.token_head == "pooled":
            self.pooler = self.config.pooler(self.config)
        self.drop = Dropout(self.objective.head_dropout)
        self.tags = make_dense(self.config, len(self.objective.labels))

    def compute_logits(self, batch: Batch, train: bool = False) -> Float[Array, "b l c"]:
        hidden = self.encoder(batch, train=train)
        if self.objective.token_head == "pooled":
            hidden = self.pooler(hidden)
        return self.tags(self.drop(hidden, train)).astype(jnp.float32)

    def compute_metrics(self, logits: Float[Array, "b l c"], batch: Batch) -> Metrics:
        tags = jnp.broadcast_to(batch.labels["tags"], logits.shape[:2])
        return compute_label_metrics("tag", logits, jnp.maximum(tags, 0), (tags >= 0).astype(jnp.float32))

    def compute_outputs(self, logits: Float[Array, "b l c"], batch: Batch) -> dict[str, Array]:
        return {"tags": logits.argmax(-1)}


@dataclass(frozen=True)
class TokenClassification(SupervisedObjective):
    """Prediction of one of `labels` for the first token of each word; the score is the F1 of entities."""

    labels: tuple[str, ...]
    head_dropout: float = 0.1
    token_head: Literal["linear", "pooled"] = "linear"

    module_class: ClassVar[type[TaskModule]] = TokenClassificationModule
    best_metric: ClassVar[str] = "f1"
    required_fields: ClassVar[frozenset[str]] = frozenset({"tags"})
    loss_weights: ClassVar[dict[str, float]] = {"tag_loss": 1.0}

    def __post_init__(self):
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise UserError(f"objective.labels={self.labels} must be one or more different names")
        if not 0 <= self.head_dropout < 1:
            raise UserError(f"objective.head_dropout={self.head_dropout} must be at least 0 and below 1")

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> Scores:
        """Return the scores of `score_entities`, and the accuracy of all words beside that of the commonest tag.

        A word behind the cut of a row counts as tagged "O", and as wrong.
        """
        tags, predicted_rows, gold_rows, num_right, tag_counts = parse_tags(self.labels), [], [], 0, Counter()
        for row_tags, span in zip(outputs["tags"], rows[:, 0], strict=True):
            start, end = split.get_sentence_offsets(int(span["document"]))
            gold, size = split.label_columns["tags"][start:end], int(span["a_end"]) - start
            predicted = np.concatenate([row_tags[1 : 1 + size], np.full(len(gold) - size, IGNORED_TAG)])
            is_word = gold != IGNORED_TAG
            num_right += int((predicted == gold)[is_word].sum())
            tag_counts.update(gold[is_word].tolist())
            for entity_rows, row in ((predicted_rows, predicted), (gold_rows, gold)):
                entity_rows.append(extract_entities([tags[t] if t != IGNORED_TAG else OUTSIDE for t in row[is_word]]))
        num_words = max(tag_counts.total(), 1)
        accuracy = {
            "tag_accuracy": num_right / num_words,
            "tag_baseline": max(tag_counts.values(), default=0) / num_words,
        }
        return accuracy | score_entities(predicted_rows, gold_rows)
