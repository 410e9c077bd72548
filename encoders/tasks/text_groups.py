"""Rows of texts that belong together, for training sentence embeddings: pairs, triplets, scored pairs, texts alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from encoders.data.example_table import Table, build_empty_table
from encoders.data.labelled import EncodedExample, Example, list_row_files
from encoders.data.mixing import MixedFormat
from encoders.data.row_files import Record, RowError, RowReader, has_lone_surrogate, read_records
from encoders.data.store import Split
from encoders.model.config import FamilyConventions
from encoders.objectives.embedding_losses import EmbeddingLoss, InfoNCE
from encoders.tasks.contrastive import Contrastive
from encoders.tasks.nli_groups import pair_hypotheses
from encoders.tasks.text_tasks import FLOAT32_MAX, LabelledFormat
from encoders.utils.buckets import parse_path
from encoders.utils.errors import UserError

NOT_SCORED = math.nan  # similarity of a row without one
SIDES = ("query", "passage")  # of a search, as sentence-transformers names their prompts


@dataclass(frozen=True)
class EmbeddingTask:
    """Rows of texts that belong together, in files of the suffixes that `read_records` accepts.

    - `text_columns`: the anchor, its positive text and hard negatives. A column of a .jsonl file may hold a list of
      texts. A row of one text is its own positive text, under another dropout (SimCSE, §3). A row has at most
      `num_texts` texts; further ones are left out.
    - `prompts`: a text for each of the columns, which is put in front of theirs, such as "query: ". The trained run has
      those of the first two as its prompts "query" and "passage".
    - `scored_splits`: splits whose rows are two texts of `scored_columns` and their similarity in `score_column`, from
      0 to `max_score`, which is divided by it.
    - `group_column`: rows of an equal value there are not negatives of each other.
    - `nli_label_column`: rows that are not scored have a premise and a hypothesis in the two `text_columns`, as SNLI
      and MNLI. This column says "entailment", "neutral" or "contradiction". `pair_hypotheses` makes rows of a premise,
      a hypothesis that it entails and one that contradicts it.
    - `vector_column`: a list of `vector_size` numbers, a teacher's vector of the first text of the row, or null for
      none; scored rows have none. `launch.py predict RUN embed --file FILE --json` writes such rows.
    - `sources`: training files in place of the one of `files`, each with its weight: a pass reads its rows so many
      times. The fraction of a weight resumes in the next pass, as in `MixedFormat`.
    - `column_names`: all columns of a training file without a header.
    - `pooling` and `loss` are those of the objective.
    """

    name: str = field(default="embeddings", metadata={"not_fingerprinted": True})
    text_columns: tuple[str, ...] = ("anchor", "positive")
    prompts: tuple[str, ...] = ()
    num_texts: int = 2
    scored_splits: tuple[str, ...] = ()
    scored_columns: tuple[str, str] = ("sentence1", "sentence2")
    score_column: str = "score"
    max_score: float = 5.0
    group_column: str | None = None
    nli_label_column: str | None = None
    vector_column: str | None = None
    vector_size: int | None = None
    column_names: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = field(
        default=(("train", "train.jsonl"), ("dev", "dev.jsonl")),
        metadata={"not_fingerprinted": True},  # they may be anywhere, and the key of a store covers their contents
    )
    sources: tuple[tuple[str, float], ...] = ()
    pooling: str = field(default="mean", metadata={"not_fingerprinted": True})
    loss: EmbeddingLoss = field(default=InfoNCE(), metadata={"not_fingerprinted": True})

    labels: ClassVar[tuple[str, ...]] = ()
    symmetric: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = False

    def __post_init__(self):
        if not self.text_columns:
            raise UserError(f"{self.name}: text_columns=() must name at least one column")
        if self.num_texts < 2:
            raise UserError(f"{self.name}: num_texts={self.num_texts} must be at least 2")
        if len(self.prompts) not in (0, len(self.text_columns)):
            raise UserError(f"{self.name}: prompts={self.prompts} must be one for each of {self.text_columns}, or ()")
        if not 0 < self.max_score < math.inf:
            raise UserError(f"{self.name}: max_score={self.max_score} must be above 0")
        if unknown := sorted(set(self.scored_splits) - set(list_row_files(self))):
            raise UserError(f"{self.name}: scored_splits={unknown} must be among {', '.join(list_row_files(self))}")
        if self.nli_label_column is not None and len(self.text_columns) != 2:
            accepted = "a premise and a hypothesis with nli_label_column"
            raise UserError(f"{self.name}: text_columns={self.text_columns} must be those of {accepted}")
        if (self.vector_column is None) != (self.vector_size is None):
            given = f"vector_column={self.vector_column!r} and vector_size={self.vector_size}"
            raise UserError(f"{self.name}: {given} must both be given, or neither")
        if self.vector_size is not None and self.vector_size < 1:
            raise UserError(f"{self.name}: vector_size={self.vector_size} must be at least 1, or None")
        weights = [weight for _, weight in self.sources]
        if not all(0 <= weight < math.inf for weight in weights) or (weights and not any(weights)):
            raise UserError(f"{self.name}: sources={self.sources} must have weights of at least 0, and one above 0")

    def build_objective_and_format(self, conventions: FamilyConventions, head_dropout: float, both_orders: bool):
        is_scored = any(split.startswith("dev") for split in self.scored_splits)
        best_score = "spearman" if is_scored else "accuracy"
        prompts = tuple(zip(SIDES, self.prompts, strict=False))  # of the anchor and its positive text
        row_format = TextGroups(self.num_texts, self.vector_size)
        if self.sources:
            row_format = MixedFormat(row_format, tuple(weight for _, weight in self.sources))
        return Contrastive(self.loss, self.pooling, best_score=best_score, prompts=prompts), row_format

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        is_scored = split in self.scored_splits
        parse_row = self.parse_scored_row if is_scored else self.parse_row
        for index, name in enumerate(list_row_files(self)[split]):
            path = parse_path(root).expanduser() / name
            rows = read_records(path, self.column_names if split == "train" else ())
            if self.nli_label_column is not None and not is_scored:
                rows = pair_hypotheses(rows, self.text_columns, self.nli_label_column, reader)
            yield from reader.convert_rows(rows, lambda row, index=index: replace(parse_row(row), source_index=index))

    def parse_row(self, row: Record) -> Example:
        """Return the texts of a row. Raises `RowError`."""
        prompts = self.prompts or ("",) * len(self.text_columns)
        texts = [
            prompt + text
            for column, prompt in zip(self.text_columns, prompts, strict=True)
            for text in get_texts(row, column)
        ]
        group = None if self.group_column is None else str(row[self.group_column])
        vector = None if self.vector_column is None else get_vector(row, self.vector_column, self.vector_size)
        return Example(row.location, tuple(texts[: self.num_texts]), (NOT_SCORED, group, vector))

    def parse_scored_row(self, row: Record) -> Example:
        """Return the texts of a scored row and their similarity. Raises `RowError`."""
        texts, score = tuple(row.get_text(column) for column in self.scored_columns), row[self.score_column]
        try:
            similarity = float(score) / self.max_score
        except (TypeError, ValueError):
            similarity = math.nan
        if not 0 <= similarity <= 1:
            problem = f"{self.score_column}={score!r} is not a number from 0 to max_score={self.max_score:g}"
            raise RowError(row.location, problem)
        return Example(row.location, texts, (similarity, None, None))

    def encode_labels(self, example: Example, encoded: EncodedExample) -> dict[str, np.ndarray]:
        similarity, group, vector = example.target
        group_id = 0 if group is None else number_content(group.encode())
        labels = {"similarity": np.array([similarity], np.float32), "group_id": np.array([group_id], np.int32)}
        if self.vector_size is not None:
            labels["teacher_vector"] = np.zeros((1, self.vector_size), np.float32) if vector is None else vector[None]
        return labels


def get_texts(row: Record, column: str) -> list[str]:
    """Return the text of a column, or its texts where it holds a list. Raises `RowError`."""
    value = row[column]
    if not isinstance(value, list):
        return [row.get_text(column)]
    if not value or not all(isinstance(text, str) and text.strip() and not has_lone_surrogate(text) for text in value):
        raise RowError(row.location, f"{column}={value!r} must be a list of texts in UTF-8")
    return value


def get_vector(row: Record, column: str, size: int) -> np.ndarray | None:
    """Return the vector `[size]` of a column, or None where it is null. Raises `RowError`."""
    value = row[column]
    if value is None:
        return None
    is_number = lambda number: type(number) in (float, int) and abs(number) <= FLOAT32_MAX
    if not isinstance(value, list) or len(value) != size or not all(map(is_number, value)):
        given = f"a list of {len(value)}" if isinstance(value, list) else f"{value!r:.40}"
        raise RowError(row.location, f"{column} must be a list of vector_size={size} numbers, or null; it is {given}")
    return np.array(value, np.float32)


def number_content(content: bytes) -> int:
    """Return a number from 1 to 2^31 - 1, equal for equal bytes; others share it once in 2 billion."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big") % (2**31 - 1) + 1


@dataclass(frozen=True)
class TextGroups(LabelledFormat):
    """Format of up to `num_texts` examples a row, `[CLS] text [SEP]`, each cut at its end to its share of the row.

    A row of one text holds it twice. The label of an example numbers its text. With `vector_size` a batch has the label
    `teacher_vector`, `[b g vector_size]`: of the first text of a group, zeros where the teacher's vector is unknown.
    """

    num_texts: int = 2
    vector_size: int | None = None

    num_separators: ClassVar[int] = 1
    separates_equal_texts: ClassVar[bool] = True

    @property
    def label_fields(self) -> tuple[str, ...]:
        return ("text_id", "group_id", "similarity", *(() if self.vector_size is None else ("teacher_vector",)))

    def max_example_length(self, seq_length: int) -> int:
        return seq_length // self.num_texts

    def build_example_table(self, split: Split, documents: range, seq_length: int, *_) -> Table:
        edges = split.document_offsets[documents.start : documents.stop + 1]
        num_texts, slots = np.diff(edges)[:, None], np.arange(self.num_texts)
        sentences = edges[:-1, None] + np.where(num_texts > 1, slots, 0)
        has_text = slots < np.maximum(num_texts, 2)
        sentences = np.where(has_text, sentences, edges[:-1, None])
        starts, ends = split.sentence_offsets[sentences], split.sentence_offsets[sentences + 1]
        ends = ends - (sentences + 1 == edges[1:, None])  # drop the separator that ends a document
        rows = build_empty_table(*has_text.shape)
        rows["label"] = number_texts(split, starts, ends)
        rows["a_start"], rows["a_end"] = starts, np.minimum(ends, starts + self.max_example_length(seq_length) - 2)
        rows["document"] = np.array(documents)[:, None]
        rows[~has_text] = build_empty_table()
        return rows

    def build_label_fields(self, split: Split, spans: Table, *_) -> dict[str, np.ndarray]:
        firsts = spans[:, :: self.num_texts]  # of each group
        columns = {name: split.label_columns[name][firsts["document"]] for name in ("group_id", "similarity")}
        if self.vector_size is not None:
            vectors = np.zeros((*firsts.shape, self.vector_size), np.float32)
            has_text = firsts["a_end"] > firsts["a_start"]  # false for a row that is left out
            vectors[has_text] = split.label_columns["teacher_vector"][firsts["document"][has_text]]
            columns["teacher_vector"] = vectors
        return {"text_id": spans["label"].astype(np.int32)} | columns


def number_texts(split: Split, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return a number for the tokens of each range, equal for equal tokens."""
    tokens = np.asarray(split.tokens)
    ranges = zip(starts.ravel().tolist(), ends.ravel().tolist(), strict=True)
    return np.reshape([number_content(tokens[start:end].tobytes()) for start, end in ranges], starts.shape)
