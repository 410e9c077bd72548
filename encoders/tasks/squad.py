"""Questions about a text, as SQuAD 1.1 and 2.0 have them, and the windows a long text is read through (BERT §4.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from encoders.data.formats import A_END, B_END, LABEL, A, B
from encoders.data.labelled import Encoded, Example, tfds_split
from encoders.data.row_files import Reader, RowError, damaged
from encoders.data.store import Split
from encoders.tasks import question_answering as objectives
from encoders.tasks.conventions import Conventions
from encoders.text.tfds_reader import tfds_records


@dataclass(frozen=True)
class Questions:
    """Questions with the text that answers them, or that does not (`is_impossible`; `unanswerable`: are there such).

    A question of more than `longest` tokens is a bad row; without it windows cut questions, as the released code does.
    """

    name: str = field(default="SQuAD", metadata={"aside": True})
    files: tuple[tuple[str, str], ...] = (("train", "train-v1.1.json"), ("dev", "dev-v1.1.json"))
    longest: int | None = None
    unanswerable: bool = field(default=False, metadata={"aside": True})

    labels: ClassVar[tuple[str, ...]] = ()
    symmetric: ClassVar[bool] = False
    needs_places: ClassVar[bool] = True

    def read(self, root: str, split: str, reader: Reader) -> Iterator[Example]:
        if root.startswith("tfds:"):
            source = f"{root}@{tfds_split(split)}"
            rows = ((source, row) for row in tfds_records(source))
        else:
            rows = questions(Path(root).expanduser() / dict(self.files)[split])
        yield from reader.read(rows, lambda row: example(*row))

    def targets(self, example: Example, encoded: Encoded) -> dict[str, np.ndarray]:
        """The first and the last token of the answer, counted in the text, or -1; and the place of every token."""
        (question, _), (places, text) = encoded.ids, encoded.places
        if self.longest is not None and len(question) > self.longest:
            raise RowError(example.place, f"the question has {len(question)} tokens, more than {self.longest}")
        answer = (-1, -1)
        if example.target is not None:
            start, end = example.target
            among = [i for i, (a, b) in enumerate(text) if a < end and b > start and a < b]
            if not among:
                raise RowError(example.place, f"no token holds the answer at {start}")
            answer = among[0], among[-1]
        return {
            "answer": np.array([answer], np.int32),
            "places": np.array([*places, *text, (0, 0)], np.int32),
        }

    def parts(self, family: Conventions, dropout: float, both_orders: bool) -> tuple[objectives.Questions, Windows]:
        """Whether there is an answer is asked only where there may be none."""
        return (family.unanswerable if self.unanswerable else objectives.Spans()), Windows(between=family.between)

    def submission(self, predictor, root: str) -> Iterator[tuple[str, str]]:
        """The answers to the questions of the development set by their ids, as the official scripts read them."""
        rows = list(self.read(root, "dev", Reader()))
        said = list(predictor.answer(row.texts for row in rows))
        by_id = lambda name: {row.note["id"]: each[name] for row, each in zip(rows, said, strict=True)}
        yield "predictions.json", json.dumps(by_id("answer"), ensure_ascii=False, indent=1)
        yield "null_odds.json", json.dumps(by_id("null"), indent=1)


V1, V2 = (
    Questions(
        f"SQuAD {version}",
        (("train", f"train-v{version}.json"), ("dev", f"dev-v{version}.json")),
        unanswerable=version == "2.0",
    )
    for version in ("1.1", "2.0")
)

QUESTIONS = {"SQuAD 1.1": 87_599, "SQuAD 2.0": 130_319}  # that train


def rows_in(root: str, task: Questions) -> str:
    """Where the questions are: in a folder, or in TFDS where `root` says "tfds"."""
    return root if root != "tfds" else "tfds:squad/v2.0" if task.unanswerable else "tfds:squad"


def questions(path: Path) -> Iterator[tuple[str, dict] | RowError]:
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


def example(place: str, row: dict) -> Example:
    """A question with its answers' texts and starts as lists, as TFDS has them. Raises `RowError` naming its place."""
    place = f"{place}, question {row.get('id')}" if "question" not in place else place
    for name in ("id", "question", "context"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise RowError(place, f"{name} is empty or missing")
        if damaged(row[name]):
            raise RowError(place, f"{name} is not UTF-8")
    answers, text = row["answers"], row["context"]
    texts, starts = [str(answer) for answer in answers["text"]], list(answers["answer_start"])
    for answer, start in zip(texts, starts, strict=True):
        if not isinstance(start, int | np.integer) or text[start : start + len(answer)] != answer or not answer:
            at = text[start : start + len(answer)] if isinstance(start, int) else None
            raise RowError(place, f"answer_start={start} has {at!r} and not the answer {answer!r}")
    impossible = bool(row.get("is_impossible", False))
    if not impossible and not texts:
        raise RowError(place, "there is no answer, and is_impossible is not true")
    target = None if impossible else (int(starts[0]), int(starts[0]) + len(texts[0]))
    note = {"id": row["id"], "context": text, "answers": [] if impossible else texts, "place": place}
    return Example(place, (row["question"], text), target, note)


@dataclass(frozen=True)
class Windows:
    """`[CLS] question [SEP] part of the text [SEP]`: parts that fill the row and begin `stride` tokens apart.

    A question is cut to its first `question` tokens. `first` and `last` are the places in the row of the answer's
    tokens where the part holds it whole, and else of [CLS]; `answerable` says which.
    """

    stride: int = 128
    question: int = 64
    between: int = 1

    labels: ClassVar[tuple[str, ...]] = ("first", "last", "answerable")
    random: ClassVar[bool] = False

    def __post_init__(self):
        for name in ("stride", "question"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def longest(self, length: int) -> int:
        return length

    def table(self, split: Split, documents: range, length: int, seed: int, number: int) -> np.ndarray:
        rows = []
        for document in documents:
            first = split.documents[document]
            a, b, end = (int(x) for x in split.sentences[first : first + 3])
            a_end, end = min(b, a + self.question), end - 1
            room = length - (a_end - a) - 2 - self.between
            if room < 1:
                place = split.notes[document]["place"]
                raise RowError(place, f"its {a_end - a} tokens leave no room for text in rows of {length}")
            step = min(self.stride, room)
            count = 1 + max(0, -(-(end - b - room) // step))
            rows += [(a, a_end, at, min(at + room, end), document) for at in range(b, b + count * step, step)]
        return np.array(rows, np.int64).reshape(-1, LABEL + 1)

    def fields(self, split: Split, spans: np.ndarray, start: np.ndarray, length: int) -> dict[str, np.ndarray]:
        documents = spans[..., LABEL]
        text = split.sentences[split.documents[documents] + 1]
        answer = split.columns["answer"][documents] + text[..., None]  # as tokens of the split
        begin, end = spans[..., B, None], spans[..., B_END, None]
        known = split.columns["answer"][documents][..., 0] >= 0
        inside = known & ((answer >= begin) & (answer < end)).all(-1)
        offset = start + 1 + spans[..., A_END] - spans[..., A] + self.between
        places = np.where(inside[..., None], answer - begin + offset[..., None], start[..., None])
        both = {name: places[..., i].astype(np.int32) for i, name in enumerate(("first", "last"))}
        return both | {"answerable": inside.astype(np.int32)}
