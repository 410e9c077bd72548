"""Answers are parts of the text, and their scores are SQuAD's: by hand, by search, and as the released code has it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data.example_table import rows_to_table
from encoders.data.store import Split
from encoders.tasks.answers import (
    MAX_ANSWERS,
    Answer,
    QAPrediction,
    answer_f1,
    decode_predictions,
    exact_match,
    find_max_context_window,
    score_questions,
    subtract_best_score,
)

several = lambda count: settings(deadline=None, derandomize=True, max_examples=count)


# Exact match and F1


@pytest.mark.parametrize(
    "said, answers, equal, overlap",
    [
        ("The Fox!", ["fox"], 1, 1),
        ("an apple a day", ["Apple day."], 1, 1),
        ("a theme", ["me"], 0, 0),  # an article is a whole word
        ("quick brown fox", ["the quick fox"], 0, 4 / 5),  # two of 3 and 2
        ("no no no", ["no, no yes"], 0, 4 / 6),  # "no" counts twice
        ("fox", ["fox fox fox"], 0, 2 / 4),
        ("red fox", ["cat", "the fox", "one red hen"], 0, 2 / 3),  # 0, 2/3 and 2/5: the best
        ("red fox", ["cat", "Red Fox"], 1, 1),
        ("U.S.", ["US"], 1, 1),  # punctuation leaves no space
        ("well-known", ["well known"], 0, 0),
        ("in  the\tend", ["in end"], 1, 1),
        ("CAFÉ", ["café"], 1, 1),
        ("café noir", ["cafe noir"], 0, 2 / 4),  # accents are kept
        ("cafe\u0301", ["caf\u00e9"], 0, 0),  # and in the form they have
        ("the fox’s", ["foxs"], 0, 0),  # only ASCII has punctuation
        ("東京", ["東京。"], 0, 0),
        ("the", ["A."], 1, 1),  # nothing is left of both
        ("the", ["fox"], 0, 0),
        ("fox", ["The"], 0, 0),
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("fox", [], 0, 0),
        ("", ["fox"], 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(said, answers, equal, overlap):
    assert exact_match(said, answers) == equal
    assert answer_f1(said, answers) == pytest.approx(overlap)


# The scores of many questions


def verdict(text: str, null: float) -> QAPrediction:
    """One with the answer `text`, or with none where that is empty."""
    return QAPrediction((Answer(text, 0, len(text), 1.0),) if text else (), null)


def test_answerable_questions_are_scored_in_percent_regardless_of_null_scores():
    found = {4: verdict("red fox", 9.0), 0: verdict("fox", -9.0), 2: verdict("hen", 0.0)}
    notes = [{"answers": each} for each in (["the fox"], [], ["cat", "dog"], [], ["fox"])]  # rows 1 and 3 are not asked
    scores = score_questions(found, notes)
    assert scores == {"exact": pytest.approx(100 / 3), "f1": pytest.approx(100 * (2 / 3 + 1 + 0) / 3)}


def test_the_best_threshold_by_hand():
    rows = [  # what is said, what is right and how much speaks for no answer, in an order that is not that of the nulls
        ("cow", ["cow"], 0.75),
        ("fox", ["fox"], -2.0),
        ("dog", [], 3.0),
        ("red hen", ["fowl", "a hen coop"], -1.0),  # one of 2 and 2
        ("cat", [], 0.5),
    ]
    found = {n: verdict(text, null) for n, (text, _, null) in enumerate(rows)}
    scores = score_questions(found, [{"answers": answers} for _, answers, _ in rows])
    # Answered from the least null on: none 0 + 2, one 1 + 2, two 1.5 + 2, three 1.5 + 1, four 2.5 + 1, five 2.5.
    assert scores["f1"] == pytest.approx(100 * 3.5 / 5) and scores["threshold"] == -1  # of equal ones the first
    assert scores["exact"] == pytest.approx(100 * 3 / 5) and scores["no_answer_accuracy"] == pytest.approx(4 / 5)
    assert scores["f1_at_zero"] == pytest.approx(100 * 3.5 / 5)
    later = score_questions(found, [{"answers": answers} for answers in (["cow"], ["fox"], [], ["red hen"], ["cat"])])
    assert later["threshold"] == 0.75 and later["f1"] == later["exact"] == pytest.approx(100)
    assert later["f1_at_zero"] == pytest.approx(100 * 3 / 5)


SAID = ["fox", "red fox", "red fox ran", "hen", ""]  # "": no candidate was left
GOLD = [[], [], ["fox"], ["red fox", "hen"], ["ran"]]
questions = st.lists(
    st.tuples(st.sampled_from(SAID), st.sampled_from(GOLD), st.integers(-3, 3).map(lambda n: n / 2)),
    min_size=1,
    max_size=9,
)


def outcome(found: dict[int, QAPrediction], notes: list[dict], threshold: float) -> dict[str, float]:
    """The scores of what is said at a threshold, question by question."""
    said = [
        verdict.answers[0].text if verdict.answers and verdict.null_score <= threshold else ""
        for verdict in found.values()
    ]
    golds = [notes[document]["answers"] for document in found]
    pairs = list(zip(said, golds, strict=True))
    return {
        "f1": 100 * np.mean([answer_f1(*pair) for pair in pairs]),
        "exact": 100 * np.mean([exact_match(*pair) for pair in pairs]),
        "no_answer_accuracy": np.mean([bool(text) == bool(answers) for text, answers in pairs]),
    }


@given(questions.filter(lambda rows: not all(gold for _, gold, _ in rows)))
@several(150)
def test_no_threshold_has_a_better_f1(rows):
    found = {n: verdict(text, null) for n, (text, _, null) in enumerate(rows)}
    notes = [{"answers": gold} for _, gold, _ in rows]
    scores = score_questions(found, notes)
    tried = [outcome(found, notes, threshold)["f1"] for threshold in np.arange(-2, 2.01, 0.25)]
    assert scores["f1"] == pytest.approx(max(tried))
    assert scores["f1_at_zero"] == pytest.approx(outcome(found, notes, 0.0)["f1"])
    there = outcome(found, notes, scores["threshold"])
    assert {name: scores[name] for name in there} == pytest.approx(there)


def test_a_question_without_candidates_counts_as_unanswered_at_any_threshold():
    """The official script loses nothing by answering such a question where there is no answer."""
    found, notes = {0: verdict("", -1), 1: verdict("fox", 0)}, [{"answers": []}, {"answers": ["fox"]}]
    scores = score_questions(found, notes)
    assert (scores["f1"], scores["exact"], scores["f1_at_zero"]) == (100, 100, 100)
    assert scores["no_answer_accuracy"] == 1
    found, notes = {0: verdict("", -1), 1: verdict("fox", 0)}, [{"answers": ["hen"]}, {"answers": []}]
    assert score_questions(found, notes)["no_answer_accuracy"] == 1 / 2  # "hen" is not found at any threshold


def test_an_answer_is_dropped_only_above_the_threshold():
    assert [verdict("fox", 1.5).best_text(threshold) for threshold in (None, 2.0, 1.5, 1.25)] == [
        "fox",
        "fox",
        "fox",
        "",
    ]
    assert verdict("", -9.0).best_text(None) == verdict("", -9.0).best_text(0.0) == ""


def test_the_relative_null_score_subtracts_the_best_answers():
    answers = (Answer("fox", 0, 3, 2.5), Answer("hen", 4, 7, 1.0))
    assert subtract_best_score(QAPrediction(answers, 4.0)) == QAPrediction(answers, 1.5)
    assert subtract_best_score(QAPrediction((), 4.0)) == QAPrediction((), np.inf)


# Windows


def is_max_context(doc_spans: list[tuple[int, int]], cur_span_index: int, position: int) -> bool:
    """`_check_is_max_context` of google-research/bert, run_squad.py, with (start, length) for its named tuple."""
    best_score = None
    best_span_index = None
    for span_index, (start, length) in enumerate(doc_spans):
        end = start + length - 1
        if position < start:
            continue
        if position > end:
            continue
        num_left_context = position - start
        num_right_context = end - position
        score = min(num_left_context, num_right_context) + 0.01 * length
        if best_score is None or score > best_score:
            best_score = score
            best_span_index = span_index
    return cur_span_index == best_span_index


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=6), st.data())
@several(150)
def test_the_max_context_window_is_the_released_codes(windows, data):
    start, length = data.draw(st.sampled_from(windows))
    position = data.draw(st.integers(start, start + length - 1))
    spans = rows_to_table([(0, 3, start, start + length, 0, 7) for start, length in windows])
    found = find_max_context_window(spans, position)
    assert [is_max_context(windows, n, position) for n in range(len(windows))] == [
        n == found for n in range(len(windows))
    ]


# From candidates to answers

CONTEXT = "The  red fox, the old fox  ran on"
WORDS = [(0, 3), (5, 8), (9, 12), (12, 13), (14, 17), (18, 21), (22, 25), (27, 30), (31, 33)]
QUESTION = [(0, 2), (3, 9)]


def made(*windows, candidates, nulls=None, longest=30):
    """The verdict on a second question, of whose text the windows show tokens; a candidate is (first, last, score)."""
    begin = 5 + len(QUESTION)  # after a first question, of 4 tokens and a separator
    places = np.array([(0, 1)] * 5 + QUESTION + WORDS + [(0, 0)])
    split = Split(
        "dev",
        np.array([]),
        np.array([]),
        np.array([]),
        {"places": places},
        in_memory_metadata=({}, {"context": CONTEXT}),
    )
    rows = rows_to_table([(5, begin, begin + a, begin + b, 0, 1) for a, b in windows])[:, None]
    each = np.array(candidates, float)[:, None]
    said = {"first": each[..., 0].astype(int), "last": each[..., 1].astype(int), "score": each[..., 2]}
    return decode_predictions(said | {"null": np.array(nulls or [0.0] * len(rows))[:, None]}, rows, split, longest)[1]


def texts(verdict: QAPrediction) -> list[str]:
    return [answer.text for answer in verdict.answers]


def test_answers_are_substrings_of_the_context_best_first():
    found = made((0, 9), candidates=[[(1, 2, 1.5), (0, 2, 3.0), (6, 8, -2.0), (8, 8, 2.0)]])
    assert found.answers == (
        Answer("The  red fox", 0, 12, 3.0),
        Answer("on", 31, 33, 2.0),
        Answer("red fox", 5, 12, 1.5),
        Answer("fox  ran on", 22, 33, -2.0),
    )


def test_equal_texts_are_one_answer_at_its_likeliest_position():
    assert made((0, 9), candidates=[[(2, 2, 1.0), (6, 6, 2.0), (1, 1, 1.5)]]).answers == (
        Answer("fox", 22, 25, 2.0),
        Answer("red", 5, 8, 1.5),
    )


def test_candidates_outside_the_window_are_ignored():
    wrong = [(3, 2, 9.0), (8, 9, 8.0), (-1, 2, 7.0), (9, 9, 6.0), (0, 1, -np.inf)]
    assert texts(made((0, 9), candidates=[[*wrong, (2, 3, 1.0)]])) == ["fox,"]
    assert made((0, 9), candidates=[wrong], nulls=[-3.0]) == QAPrediction((), -3.0)
    assert texts(made((0, 3), candidates=[[(1, 2, 1.0), (2, 3, 2.0)]])) == ["red fox"]  # the fourth is not shown


def test_an_answer_has_at_most_max_answer_length_tokens():
    candidates = [[(2, 6, 3.0), (2, 5, 2.0), (2, 4, 1.0)]]
    assert texts(made((0, 9), candidates=candidates, longest=4)) == ["fox, the old", "fox, the"]
    assert len(made((0, 9), candidates=[[(0, 8, 1.0)]], longest=9).answers) == 1
    assert len(made((0, 9), candidates=[[(0, 8, 1.0)]], longest=8).answers) == 0


def test_an_answer_counts_in_the_window_with_the_most_context():
    """Of tokens 0-5 and 3-8 the fifth has (4, 1) and (1, 4) beside it, the fourth (3, 2) and (0, 5), the sixth the
    mirror image."""
    first = [(3, 3, 1.0), (4, 4, 2.0), (5, 5, 3.0)]
    second = [(0, 0, 4.0), (1, 1, 5.0), (2, 2, 6.0)]
    found = made((0, 6), (3, 9), candidates=[first, second], nulls=[2.0, -1.5])
    assert [(answer.text, answer.score) for answer in found.answers] == [("old", 6.0), ("the", 2.0), (",", 1.0)]
    assert found.null_score == -1.5  # the least of all windows


def test_every_question_has_at_most_twenty_answers():
    pairs = [(a, b, -float(a + b / 10)) for a in range(9) for b in range(a, 9)]
    whole = sorted(
        {CONTEXT[WORDS[a][0] : WORDS[b][1]]: score for a, b, score in reversed(pairs)}.items(), key=lambda x: -x[1]
    )
    assert len(whole) > MAX_ANSWERS == 20
    assert texts(made((0, 9), candidates=[pairs])) == [text for text, _ in whole[:20]]
