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


def test_words_stand_in_a_text_with_their_places_and_tags(tmp_path):
    (tmp_path / "train.txt").write_text("-DOCSTART- O\n\nAda NNP B-PER\nwrote VBD O\n\nOn IN O\n", encoding="utf-8")
    assert read(WORDS, tmp_path)[0] == [(("Ada wrote",), ([0, 4], [1, 0])), (("On",), ([0], [0]))]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"Ada X", "train.txt:3: the tag 'X' is not one of O, B-PER"),
        (b"Ada", "train.txt:3: 'Ada' has no tag beside it"),
        (b"Ad\xe9 O", "train.txt:3: the word .* is not UTF-8"),
    ],
)
def test_a_bad_word_stops_or_is_skipped_and_counted(tmp_path, line, said):
    (tmp_path / "train.txt").write_bytes(b"On O\n\n" + line + b"\n\nIn O\n")
    with pytest.raises(RowError, match=said):
        read(WORDS, tmp_path)
    rows, skipped = read(WORDS, tmp_path, "skip")
    assert [texts for texts, _ in rows] == [("On",), ("In",)] and len(skipped) == 1


def test_an_option_takes_the_blank_of_its_question_or_stands_behind_it(tmp_path):
    lines = [GOOD, GOOD | {"question": "Who?", "answer": 0}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (first, right), (second, zero) = read(CHOICE, tmp_path)[0]
    assert first == ("A text.", "Who is a ?", "Who is b ?", "Who is c ?", "Who is d ?") and right == 1
    assert second[1:] == ("Who? a", "Who? b", "Who? c", "Who? d") and zero == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "E"}, "answer='E' is not one of A, B, C, D or a number from 0"),
        ({"options": ["a", "b"]}, "must be 4 texts"),
        ({"options": ["a", "b", "c", "\ud800"]}, "options=.* is not UTF-8"),
        ({"article": "\ud800"}, "article is not UTF-8"),
        ({"question": " "}, "question is empty"),
    ],
)
def test_a_bad_question_stops_or_is_skipped_and_counted(tmp_path, change, said):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, (GOOD, GOOD | change))), encoding="utf-8")
    with pytest.raises(RowError, match=f"train.jsonl:2: .*{said}"):
        read(CHOICE, tmp_path)
    rows, skipped = read(CHOICE, tmp_path, "skip")
    assert len(rows) == len(skipped) == 1
