"""Question answering in SQuAD's layout, 1.1 and 2.0, and the windows of a long context (BERT §4.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from reprlib import repr as shorten
from typing import ClassVar

import numpy as np

from encoders.data.example_table import measure_segments, rows_to_table
from encoders.data.labelled import EncodedExample, Example, to_tfds_split
from encoders.data.row_files import RowError, RowReader, has_lone_surrogate
from encoders.data.store import Split
from encoders.model.config import FamilyConventions
from encoders.tasks.question_answering import ANSWERABILITY_OBJECTIVES
from encoders.tasks.text_tasks import LabelledFormat
from encoders.text.tfds_reader import read_tfds_records
from encoders.utils.buckets import AnyPath, parse_path
from encoders.utils.errors import UserError


@dataclass(frozen=True)
class QATask:
    """Questions with a context that answers them, or with `has_unanswerable` may not (`is_impossible` in a row).

    A question of more than `reject_questions_above` tokens is a bad row; by default long questions are cut, as in the
    released code.
    """

    name: str = field(default="SQuAD", metadata={"not_fingerprinted": True})
    files: tuple[tuple[str, str], ...] = (("train", "train-v1.1.json"), ("dev", "dev-v1.1.json"))
    reject_questions_above: int | None = None
    has_unanswerable: bool = field(default=False, metadata={"not_fingerprinted": True})

    labels: ClassVar[tuple[str, ...]] = ()
    symmetric: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = True
    rows_version: ClassVar[int] = 3

    def read_examples(self, root: str, split: str, reader: RowReader) -> Iterator[Example]:
        if root.startswith("tfds:"):
            source = f"{root}@{to_tfds_split(split)}"
            rows = ((source, row) for row in read_tfds_records(source))
        else:
            rows = read_squad_questions(parse_path(root).expanduser() / dict(self.files)[split])
        yield from reader.convert_rows(rows, lambda row: parse_squad_question(*row))

    def encode_labels(self, example: Example, encoded: EncodedExample) -> dict[str, np.ndarray]:
        """Return the answer's first and last token in the context, or -1, and each token's character offsets.

        Raises `RowError`.
        """
        (question, _), (question_offsets, context_offsets) = encoded.token_ids, encoded.offsets
        if self.reject_questions_above is not None and len(question) > self.reject_questions_above:
            limit = f"reject_questions_above={self.reject_questions_above}"
            raise RowError(example.location, f"the question has {len(question)} tokens, more than {limit}")
        tokens = [-1]
        if example.target is not None:
            start, end = example.target
            tokens = [i for i, (a, b) in enumerate(context_offsets) if a < end and b > start and a < b]
            if not tokens:
                raise RowError(example.location, f"the answer at character {start} is not covered by any token")
        places = np.array([*question_offsets, *context_offsets, (0, 0)], np.int32)
        return {"answer": np.array([(tokens[0], tokens[-1])], np.int32), "places": places}

    def build_objective_and_format(self, conventions: FamilyConventions, head_dropout: float, both_orders: bool):
        """Return objective and format; tasks whose questions are all answerable get plain span prediction."""
        answerability = conventions.answerability if self.has_unanswerable else "null_span"
        return ANSWERABILITY_OBJECTIVES[answerability], ContextWindows(num_separators=conventions.num_separators)

    def build_submission(self, predictor, root: str) -> Iterator[tuple[str, str]]:
        """Yield the files of the official scripts: answers and null scores of the development set by question id."""
        rows = list(self.read_examples(root, "dev", RowReader()))
        predictions = list(predictor.answer_questions(row.texts for row in rows))
        for name, key in (("predictions.json", "answer"), ("null_odds.json", "null")):
            values = {row.metadata["id"]: prediction[key] for row, prediction in zip(rows, predictions, strict=True)}
            yield name, json.dumps(values, ensure_ascii=False, indent=1)


SQUAD_1_1 = QATask("SQuAD 1.1", (("train", "train-v1.1.json"), ("dev", "dev-v1.1.json")))
SQUAD_2_0 = QATask("SQuAD 2.0", (("train", "train-v2.0.json"), ("dev", "dev-v2.0.json")), has_unanswerable=True)
NO_ANSWERS = (None, [], {"text": [], "answer_start": []})
NUM_SQUAD_TRAIN_QUESTIONS = {"SQuAD 1.1": 87_599, "SQuAD 2.0": 130_319}


def locate_squad_rows(root: str, task: QATask) -> str:
    """Return the location of the questions: the folder `root`, or a TFDS name for the root "tfds"."""
    tfds_name = "tfds:squad/v2.0" if task.has_unanswerable else "tfds:squad"
    return tfds_name if root == "tfds" else root


def read_squad_questions(path: AnyPath) -> Iterator[tuple[str, dict] | RowError]:
    """Yield location and row of each question in a file of SQuAD's layout, or of Hugging Face's rows in its "data".

    A part of another shape is yielded as a `RowError`. Raises `RowError` for a file of another layout.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RowError(str(path), f"it is not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise RowError(str(path), f"it is not JSON: {error}") from None
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list) or not all(isinstance(article, dict) for article in articles):
        raise RowError(str(path), 'it must be a JSON object with a list "data" of articles')
    for article in articles:
        location = f"{path}: {article.get('title', 'no title')}"
        if "question" in article:  # Hugging Face's rows; without is_impossible, a question without answers is
            place = f"{location}, question {article.get('id')}"
            yield place, {"is_impossible": article.get("answers") in NO_ANSWERS} | article
            continue
        paragraphs = list_objects(article, "paragraphs")
        for number, paragraph in enumerate(paragraphs or ()):
            questions, place = list_objects(paragraph, "qas"), f"{location}, paragraph {number}"
            for row in questions or ():
                yield f"{place}, question {row.get('id')}", row | {"context": paragraph.get("context")}
            if questions is None:
                yield RowError(place, f"qas={shorten(paragraph.get('qas'))} is not a list of questions")
        if paragraphs is None:
            yield RowError(location, f"paragraphs={shorten(article.get('paragraphs'))} is not a list of objects")


def list_objects(parent: dict, name: str) -> list[dict] | None:
    """Return a list of JSON objects, or None for a value of another shape."""
    values = parent.get(name)
    return values if isinstance(values, list) and all(isinstance(value, dict) for value in values) else None


def list_answers(location: str, row: dict) -> tuple[list, list]:
    """Return texts and first characters of a row's answers: objects as in SQuAD, two lists as in TFDS, or null.

    Raises `RowError`.
    """
    answers = row.get("answers")
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if all(isinstance(values, list | np.ndarray) for values in (texts, starts)) and len(texts) == len(starts):
            return list(texts), list(starts)
    elif answers is None or list_objects(row, "answers") is not None:
        answers = answers or ()
        return [answer.get("text") for answer in answers], [answer.get("answer_start") for answer in answers]
    raise RowError(location, f"answers={shorten(answers)} are not a list of answers")


def parse_squad_question(location: str, row: dict) -> Example:
    """Return the example of a row whose answers are as `list_answers` takes them. Raises `RowError`."""
    location = f"{location}, question {row.get('id')}" if "question" not in location else location
    row = row | ({"id": str(row["id"])} if type(row.get("id")) is int else {})
    for name in ("id", "question", "context"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise RowError(location, f"{name} is empty or missing")
        if has_lone_surrogate(row[name]):
            raise RowError(location, f"{name} is not UTF-8")
    (texts, starts), context, is_impossible = (
        list_answers(location, row),
        row["context"],
        row.get("is_impossible", False),
    )
    for answer, start in zip(texts, starts, strict=True):
        is_number = isinstance(start, int | np.integer) and not isinstance(start, bool)
        is_index = is_number and isinstance(answer, str) and start >= 0
        actual = context[start : start + len(answer)] if is_index else None
        if actual != answer or not answer:
            raise RowError(location, f"the text at answer_start={start} is {actual!r} and not the answer {answer!r}")
    if not isinstance(is_impossible, bool | np.bool_):
        raise RowError(location, f"is_impossible={shorten(is_impossible)} must be true or false")
    if not texts and not is_impossible:
        raise RowError(location, "it lacks answers, which only a question with is_impossible=true may do")
    target = None if is_impossible else (int(starts[0]), int(starts[0]) + len(texts[0]))
    metadata = {"id": row["id"], "context": context, "answers": [] if is_impossible else texts, "place": location}
    return Example(location, (row["question"], context), target, metadata)


@dataclass(frozen=True)
class ContextWindows(LabelledFormat):
    """Format `[CLS] question [SEP] window of the context [SEP]`: windows fill the row, `doc_stride` tokens apart.

    A question is cut to its first `max_query_length` tokens. Label fields: `first` and `last` are the positions in the
    row of the answer's tokens, or of [CLS] in a window without the complete answer; `answerable` is 1 with it, else 0.
    """

    doc_stride: int = 128
    max_query_length: int = 64
    num_separators: int = 1

    label_fields: ClassVar[tuple[str, ...]] = ("first", "last", "answerable")
    length_setting: ClassVar[str] = "format.max_query_length"

    def __post_init__(self):
        for name in ("doc_stride", "max_query_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")

    def build_example_table(self, split: Split, documents: range, seq_length: int, *_) -> np.ndarray:
        rows = []
        for document in documents:
            first = split.document_offsets[document]
            question, context, end = (int(x) for x in split.sentence_offsets[first : first + 3])
            question_end = min(context, question + self.max_query_length)
            end -= 1  # drop the separator that ends a document
            window_size = seq_length - (question_end - question) - 2 - self.num_separators
            if window_size < 1:
                problem = f"its {question_end - question} question tokens fill rows of {seq_length}"
                raise RowError(split.row_metadata[document]["place"], f"{problem}; raise phases.seq_length")
            step = min(self.doc_stride, window_size)
            num_windows = 1 + max(0, -(-(end - context - window_size) // step))
            for start in range(context, context + num_windows * step, step):
                rows.append((question, question_end, start, min(start + window_size, end), 0, document))
        return rows_to_table(rows)

    def build_label_fields(
        self, split: Split, spans: np.ndarray, cls_positions: np.ndarray, *_
    ) -> dict[str, np.ndarray]:
        documents = spans["document"]
        context = split.sentence_offsets[split.document_offsets[documents] + 1]
        answer = split.label_columns["answer"][documents]  # in tokens of the context
        tokens, begin, end = answer + context[..., None], spans["b_start"][..., None], spans["b_end"][..., None]
        is_inside = (answer[..., 0] >= 0) & ((tokens >= begin) & (tokens < end)).all(-1)
        window_position = cls_positions + 1 + measure_segments(spans)[0] + self.num_separators
        positions = tokens - begin + window_position[..., None]
        positions = np.where(is_inside[..., None], positions, cls_positions[..., None]).astype(np.int32)
        return {"first": positions[..., 0], "last": positions[..., 1], "answerable": is_inside.astype(np.int32)}
