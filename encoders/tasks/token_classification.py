"""Token classification such as named entities: a tag for every word, predicted at its first token (BERT §5.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.data.example_table import build_empty_table
from encoders.data.labelled import EncodedExample, Example
from encoders.data.row_files import Record, RowError, RowReader, has_lone_surrogate, read_records
from encoders.data.store import Split
from encoders.model.config import FamilyConventions
from encoders.model.encoder import Encoder
from encoders.model.ops import Dropout, make_dense
from encoders.objectives.base import Metrics, SupervisedObjective, TaskModule
from encoders.tasks.classification import compute_label_metrics
from encoders.tasks.text_tasks import LabelledFormat

IGNORED_TAG = -1  # of tokens that are not the first of a word


@dataclass(frozen=True)
class TokenTask:
    """Rows of words and their tags, each one of `labels`.

    A .jsonl file has the lists "words" and "tags". Any other file is in CoNLL format: a line has a word and, last, its
    tag; a blank line ends a sentence.
    """

    labels: tuple[str, ...]
    name: str = field(default="tags", metadata={"not_fingerprinted": True})
    files: tuple[tuple[str, str], ...] = (("train", "train.txt"), ("dev", "dev.txt"), ("test", "test.txt"))

    symmetric: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = True

    def build_objective_and_format(self, conventions: FamilyConventions, head_dropout: float, both_orders: bool):
        return TokenClassification(self.labels, head_dropout), TaggedRows()

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        path = Path(root).expanduser() / dict(self.files)[split]
        rows = read_records(path) if path.suffix == ".jsonl" else read_conll_sentences(path)
        yield from reader.convert_rows(rows, self.parse_row)

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
        (offsets,), (word_starts, tags) = encoded.offsets, example.target
        token_tags = np.full(len(offsets) + 1, IGNORED_TAG, np.int32)
        token_words = np.searchsorted(word_starts, [start for start, _ in offsets], side="right") - 1
        words, first_tokens = np.unique(token_words, return_index=True)
        token_tags[first_tokens] = np.array(tags)[words]
        return {"tags": token_tags}


def read_conll_sentences(path: Path) -> Iterator[Record | RowError]:
    """Yield the sentences of a file in CoNLL format; a line without a tag is a bad row."""
    words, tags = [], []
    first_line, is_empty = 1, True
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate([*file, "\n"], 1):
            fields = line.split()
            if not fields and words:
                yield Record(f"{path}:{first_line}", {"words": words, "tags": tags})
                words, tags, is_empty = [], [], False
            elif len(fields) == 1:
                yield RowError(f"{path}:{number}", f"the word {fields[0]!r} lacks a tag")
            elif fields and fields[0] != "-DOCSTART-":
                first_line = first_line if words else number
                words.append(fields[0])
                tags.append(fields[-1])
    if is_empty:
        raise RowError(str(path), "it holds no sentences")


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
    """Module of an encoder and a linear layer on every token."""

    def setup(self):
        self.encoder = Encoder(self.config)
        self.drop = Dropout(self.objective.head_dropout)
        self.tags = make_dense(self.config, len(self.objective.labels))

    def compute_logits(self, batch: Batch, train: bool = False) -> Float[Array, "b l c"]:
        return self.tags(self.drop(self.encoder(batch, train=train), train)).astype(jnp.float32)

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

    module_class: ClassVar[type[TaskModule]] = TokenClassificationModule
    best_metric: ClassVar[str] = "f1"
    required_fields: ClassVar[frozenset[str]] = frozenset({"tags"})
    loss_weights: ClassVar[dict[str, float]] = {"tag_loss": 1.0}

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels

    def score_outputs(self, outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split) -> dict[str, float]:
        num_correct = num_entities = 0
        for row_tags, span in zip(outputs["tags"], rows[:, 0], strict=True):
            gold_tags = split.label_columns["tags"][span["a_start"] : span["a_end"]]
            predicted, gold = (
                extract_entities([self.labels[tag] for tag in tags[gold_tags >= 0]])
                for tags in (row_tags[1 : 1 + len(gold_tags)], gold_tags)
            )
            num_correct += len(gold & predicted)
            num_entities += len(gold) + len(predicted)
        return {"f1": 2 * num_correct / num_entities if num_entities else 0.0}


def extract_entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """Return first word, end and type of each entity in B-, I- and O tags; an I- without its B- starts one (conlleval).

    Without such prefixes every tag but O is an entity of one word.

    >>> sorted(extract_entities(["B-PER", "I-PER", "O", "I-LOC"]))
    [(0, 2, 'PER'), (3, 4, 'LOC')]
    """
    entities, start, entity_type = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, dash, name = tag.partition("-")
        continues = dash and prefix == "I" and name == entity_type
        if entity_type is not None and not continues:
            entities.add((start, i, entity_type))
            entity_type = None
        if tag != "O" and entity_type is None:
            start, entity_type = i, name if dash else tag
    return entities
