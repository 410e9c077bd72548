"""Questions about a text, as SQuAD 1.1 and 2.0 have them, and the windows a long text is read through (BERT §4.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from encoders.data.example_table import measure_segments, rows_to_table
from encoders.data.labelled import EncodedExample, Example, to_tfds_split
from encoders.data.row_files import RowError, RowReader, has_lone_surrogate
from encoders.data.store import Split
from encoders.model.config import FamilyConventions
from encoders.tasks import question_answering as objectives
from encoders.text.tfds_reader import read_tfds_records


@dataclass(frozen=True)
class QATask:
    """Questions with the text that answers them, or that does not (`is_impossible`; `unanswerable`: are there such).

    A question of more than `longest` tokens is a bad row; without it windows cut questions, as the released code does.
    """

    name: str = field(default="SQuAD", metadata={"not_fingerprinted": True})
    files: tuple[tuple[str, str], ...] = (("train", "train-v1.1.json"), ("dev", "dev-v1.1.json"))
    reject_questions_above: int | None = None
    has_unanswerable: bool = field(default=False, metadata={"not_fingerprinted": True})

    labels: ClassVar[tuple[str, ...]] = ()
    symmetric: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = True

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        if root.startswith("tfds:"):
            source = f"{root}@{to_tfds_split(split)}"
            rows = ((source, row) for row in read_tfds_records(source))
        else:
            rows = read_squad_questions(Path(root).expanduser() / dict(self.files)[split])
        yield from reader.convert_rows(rows, lambda row: parse_squad_question(*row))

    def encode_labels(self, example: Example, encoded: EncodedExample) -> dict[str, np.ndarray]:
        """The first and the last token of the answer, counted in the text, or -1; and the place of every token."""
        (question, _), (places, text) = encoded.token_ids, encoded.offsets
        if self.reject_questions_above is not None and len(question) > self.reject_questions_above:
            raise RowError(
                example.location, f"the question has {len(question)} tokens, more than {self.reject_questions_above}"
            )
        answer = (-1, -1)
        if example.target is not None:
            start, end = example.target
            among = [i for i, (a, b) in enumerate(text) if a < end and b > start and a < b]
            if not among:
                raise RowError(example.location, f"no token holds the answer at {start}")
            answer = among[0], among[-1]
        return {
            "answer": np.array([answer], np.int32),
            "places": np.array([*places, *text, (0, 0)], np.int32),
        }

    def build_objective_and_format(
        self, conventions: FamilyConventions, head_dropout: float, both_orders: bool
    ) -> tuple[objectives.QAObjective, ContextWindows]:
        """Whether there is an answer is asked only where there may be none."""
        answerability = conventions.answerability if self.has_unanswerable else "null_span"
        return objectives.ANSWERABILITY_OBJECTIVES[answerability], ContextWindows(
            num_separators=conventions.num_separators
        )

    def build_submission(self, predictor, root: str) -> Iterator[tuple[str, str]]:
        """The answers to the questions of the development set by their ids, as the official scripts read them."""
        rows = list(self.read_examples(root, "dev", RowReader()))
        said = list(predictor.answer_questions(row.texts for row in rows))
        map_question_ids = lambda name: {row.metadata["id"]: each[name] for row, each in zip(rows, said, strict=True)}
        yield "predictions.json", json.dumps(map_question_ids("answer"), ensure_ascii=False, indent=1)
        yield "null_odds.json", json.dumps(map_question_ids("null"), indent=1)


SQUAD_1_1, SQUAD_2_0 = (
    QATask(
        f"SQuAD {version}",
        (("train", f"train-v{version}.json"), ("dev", f"dev-v{version}.json")),
        has_unanswerable=version == "2.0",
    )
    for version in ("1.1", "2.0")
)

NUM_SQUAD_TRAIN_QUESTIONS = {"SQuAD 1.1": 87_599, "SQuAD 2.0": 130_319}  # that train


def locate_squad_rows(root: str, task: QATask) -> str:
    """Where the questions are: in a folder, or in TFDS where `root` says "tfds"."""
    return root if root != "tfds" else "tfds:squad/v2.0" if task.has_unanswerable else "tfds:squad"


def read_squad_questions(path: Path) -> Iterator[tuple[str, dict] | RowError]:
    """The questions of a file of SQuAD's layout, each with its place. Raises `RowError` for another layout."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(str(path), f"not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise RowError(str(path), f"not JSON: {error}") from None
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list) or not all(isinstance(article, dict) for article in articles):
        raise RowError(str(path), 'not JSON with a list "data" of articles in it')
    for article in articles:
        for number, paragraph in enumerate(article.get("paragraphs", ())):
            for row in paragraph.get("qas", ()):
                place = f"{path}: {article.get('title', 'no title')}, paragraph {number}, question {row.get('id')}"
                answers = row.get("answers", ())
                flat = {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}
                yield place, row | {"context": paragraph.get("context"), "answers": flat}


def parse_squad_question(location: str, row: dict) -> Example:
    """A question with its answers' texts and starts as lists, as TFDS has them. Raises `RowError` naming its place."""
    location = f"{location}, question {row.get('id')}" if "question" not in location else location
    for name in ("id", "question", "context"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise RowError(location, f"{name} is empty or missing")
        if has_lone_surrogate(row[name]):
            raise RowError(location, f"{name} is not UTF-8")
    answers, text = row["answers"], row["context"]
    texts, starts = [str(answer) for answer in answers["text"]], list(answers["answer_start"])
    for answer, start in zip(texts, starts, strict=True):
        if not isinstance(start, int | np.integer) or text[start : start + len(answer)] != answer or not answer:
            at = text[start : start + len(answer)] if isinstance(start, int) else None
            raise RowError(location, f"answer_start={start} has {at!r} and not the answer {answer!r}")
    impossible = bool(row.get("is_impossible", False))
    if not impossible and not texts:
        raise RowError(location, "there is no answer, and is_impossible is not true")
    target = None if impossible else (int(starts[0]), int(starts[0]) + len(texts[0]))
    note = {"id": row["id"], "context": text, "answers": [] if impossible else texts, "place": location}
    return Example(location, (row["question"], text), target, note)


@dataclass(frozen=True)
class ContextWindows:
    """`[CLS] question [SEP] part of the text [SEP]`: parts that fill the row and begin `stride` tokens apart.

    A question is cut to its first `question` tokens. `first` and `last` are the places in the row of the answer's
    tokens where the part holds it whole, and else of [CLS]; `answerable` says which.
    """

    doc_stride: int = 128
    max_query_length: int = 64
    num_separators: int = 1

    label_fields: ClassVar[tuple[str, ...]] = ("first", "last", "answerable")
    varies_by_pass: ClassVar[bool] = False

    def __post_init__(self):
        for name in ("doc_stride", "max_query_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def max_example_length(self, seq_length: int) -> int:
        return seq_length

    def build_example_table(
        self, split: Split, documents: range, seq_length: int, seed: int, pass_index: int
    ) -> np.ndarray:
        rows = []
        for document in documents:
            first = split.document_offsets[document]
            a, b, end = (int(x) for x in split.sentence_offsets[first : first + 3])
            a_end, end = min(b, a + self.max_query_length), end - 1
            room = seq_length - (a_end - a) - 2 - self.num_separators
            if room < 1:
                place = split.row_metadata[document]["place"]
                raise RowError(place, f"its {a_end - a} tokens leave no room for text in rows of {seq_length}")
            step = min(self.doc_stride, room)
            count = 1 + max(0, -(-(end - b - room) // step))
            rows += [(a, a_end, at, min(at + room, end), 0, document) for at in range(b, b + count * step, step)]
        return rows_to_table(rows)

    def build_label_fields(
        self, split: Split, spans: np.ndarray, cls_positions: np.ndarray, seq_length: int
    ) -> dict[str, np.ndarray]:
        documents = spans["document"]
        text = split.sentence_offsets[split.document_offsets[documents] + 1]
        answer = split.label_columns["answer"][documents] + text[..., None]  # as tokens of the split
        begin, end = spans["b_start"][..., None], spans["b_end"][..., None]
        known = split.label_columns["answer"][documents][..., 0] >= 0
        inside = known & ((answer >= begin) & (answer < end)).all(-1)
        offset = cls_positions + 1 + measure_segments(spans)[0] + self.num_separators
        places = np.where(inside[..., None], answer - begin + offset[..., None], cls_positions[..., None])
        both = {name: places[..., i].astype(np.int32) for i, name in enumerate(("first", "last"))}
        return both | {"answerable": inside.astype(np.int32)}
