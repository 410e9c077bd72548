"""Rows of words with tags, and of questions with options: what is read, and what is refused by its place."""

import json

import pytest

from encoders.data.row_files import RowError, RowReader
from encoders.tasks.multiple_choice import MultipleChoiceTask
from encoders.tasks.token_classification import TokenTask

WORDS, CHOICE = TokenTask(("O", "B-PER")), MultipleChoiceTask()
GOOD = {"article": "A text.", "question": "Who is _ ?", "options": ["a", "b", "c", "d"], "answer": "B"}


def read(task, root, errors="stop"):
    reader = RowReader(errors)
    return [(row.texts, row.target) for row in task.read_examples(str(root), "train", reader)], reader.skipped_rows


def test_words_are_joined_with_their_positions_and_tags(tmp_path):
    (tmp_path / "train.txt").write_text("-DOCSTART- O\n\nAda NNP B-PER\nwrote VBD O\n\nOn IN O\n", encoding="utf-8")
    assert read(WORDS, tmp_path)[0] == [(("Ada wrote",), ([0, 4], [1, 0])), (("On",), ([0], [0]))]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"Ada X", "train.txt:3: .*'X' .*O, B-PER"),
        (b"Ada", "train.txt:3: .*'Ada' .*tag"),
        (b"Ad\xe9 O", "train.txt:3: .*UTF-8"),
    ],
)
def test_a_bad_word_stops_or_is_skipped_and_counted(tmp_path, line, wrong):
    (tmp_path / "train.txt").write_bytes(b"On O\n\n" + line + b"\n\nIn O\n")
    with pytest.raises(RowError, match=wrong):
        read(WORDS, tmp_path)
    rows, skipped = read(WORDS, tmp_path, "skip")
    assert [texts for texts, _ in rows] == [("On",), ("In",)] and len(skipped) == 1


def test_an_option_fills_the_blank_of_its_question_or_follows_it(tmp_path):
    lines = [GOOD, GOOD | {"question": "Who?", "answer": 0}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (first, right), (second, zero) = read(CHOICE, tmp_path)[0]
    assert first == ("A text.", "Who is a ?", "Who is b ?", "Who is c ?", "Who is d ?") and right == 1
    assert second[1:] == ("Who? a", "Who? b", "Who? c", "Who? d") and zero == 0


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"answer": "E"}, "answer='E' .*A, B, C, D"),
        ({"options": ["a", "b"]}, "options=.*4 texts"),
        ({"options": ["a", "b", "c", "\ud800"]}, "options=.*UTF-8"),
        ({"article": "\ud800"}, "article .*UTF-8"),
        ({"question": " "}, "question "),
    ],
)
def test_a_bad_question_stops_or_is_skipped_and_counted(tmp_path, change, wrong):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, (GOOD, GOOD | change))), encoding="utf-8")
    with pytest.raises(RowError, match=f"train.jsonl:2: .*{wrong}"):
        read(CHOICE, tmp_path)
    rows, skipped = read(CHOICE, tmp_path, "skip")
    assert len(rows) == len(skipped) == 1
