"""Answers to questions: decoded from span scores of windows, and scored as in SQuAD."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from encoders.data.example_table import measure_segments
from encoders.data.store import Split

MAX_ANSWERS = 20  # for each question


@dataclass(frozen=True)
class Answer:
    """A substring of the context, its first and end character, and its score."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class QAPrediction:
    """The likeliest answers to a question, best first, and the score of there being none."""

    answers: tuple[Answer, ...]
    null_score: float

    def best_text(self, null_threshold: float | None) -> str:
        """Return the best answer, or "" without answers or with a null score above the threshold."""
        is_null = null_threshold is not None and self.null_score > null_threshold
        return "" if is_null or not self.answers else self.answers[0].text


QAPredictions = dict[int, QAPrediction]  # by the document of the question


def find_max_context_window(windows: np.ndarray, position: int) -> int:
    """Return the index of the window, of `[n]`, that shows a token with the most context.

    Context is the number of tokens on the shorter side plus a hundredth of the window's size; the first of equal
    windows counts, as in the released code of BERT.
    """
    begin, end = windows["b_start"], windows["b_end"]
    context = np.minimum(position - begin, end - 1 - position) + 0.01 * (end - begin)
    return int(np.where((position >= begin) & (position < end), context, -np.inf).argmax())


def decode_predictions(
    outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split, max_answer_length: int = 30
) -> QAPredictions:
    """Return the prediction for each question, by its document.

    `outputs` has for every window candidates `first` and `last`, counted from the window's first context token, with
    their `score`, all `[rows 1 n]`; and `null`, `[rows 1]`. A candidate counts in the window where its first token has
    the most context, and with at most `max_answer_length` tokens.
    """
    spans = rows[:, 0]
    first, last, score, null = (outputs[name][:, 0] for name in ("first", "last", "score", "null"))
    is_valid = (last >= first) & (last - first < max_answer_length) & np.isfinite(score) & (first >= 0)
    is_valid &= last < measure_segments(spans)[1][:, None]
    predictions = {}
    for document in dict.fromkeys(spans["document"].tolist()):
        document_rows = np.flatnonzero(spans["document"] == document)
        windows, candidates = spans[document_rows], []
        find_window = cache(partial(find_max_context_window, windows))
        for window, row in enumerate(document_rows):
            begin = int(windows["b_start"][window])
            for i in np.flatnonzero(is_valid[row]):
                token = begin + int(first[row, i])
                if find_window(token) == window:
                    candidates.append((float(score[row, i]), token, begin + int(last[row, i])))
        candidates.sort(key=lambda candidate: -candidate[0])
        answers = collect_answers(candidates, split.row_metadata[document]["context"], split.label_columns["places"])
        predictions[document] = QAPrediction(answers, float(null[document_rows].min()))
    return predictions


def collect_answers(candidates: list[tuple[float, int, int]], context: str, offsets: np.ndarray) -> tuple[Answer, ...]:
    """Return the different texts of sorted (score, first token, last token), at most `MAX_ANSWERS`."""
    answers: dict[str, Answer] = {}
    for score, first, last in candidates:
        start, end = int(offsets[first, 0]), int(offsets[last, 1])
        text = context[start:end]
        if text.strip() and text not in answers:
            answers[text] = Answer(text, start, end, score)
        if len(answers) == MAX_ANSWERS:
            break
    return tuple(answers.values())


def subtract_best_score(prediction: QAPrediction) -> QAPrediction:
    """Return the prediction with BERT's null score: the score of [CLS] as the answer minus the best answer's."""
    best_score = prediction.answers[0].score if prediction.answers else -np.inf
    return replace(prediction, null_score=prediction.null_score - best_score)


# Scores of the official evaluation scripts ---------------------------------------------------------------------------


def normalize_answer(text: str) -> str:
    """Return the text in lower case, without punctuation, articles and extra white space.

    >>> normalize_answer("The  Fox, an animal.")
    'fox animal'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def normalize_gold_answers(answers: Sequence[str]) -> list[str]:
    """Return the normalised answers that are not empty, or "" alone."""
    return [answer for answer in map(normalize_answer, answers) if answer] or [""]


def exact_match(predicted_answer: str, gold_answers: Sequence[str]) -> float:
    """Return 1 where the prediction equals a gold answer, all normalised; no gold answer counts as ""."""
    return float(normalize_answer(predicted_answer) in normalize_gold_answers(gold_answers))


def answer_f1(predicted_answer: str, gold_answers: Sequence[str]) -> float:
    """Return the largest F1 of the words of the prediction and of a gold answer."""
    words = normalize_answer(predicted_answer).split()
    return max(word_overlap_f1(words, answer.split()) for answer in normalize_gold_answers(gold_answers))


def word_overlap_f1(predicted_words: list[str], gold_words: list[str]) -> float:
    """Return the F1 of two multisets of words; 1 where both are empty."""
    if not predicted_words or not gold_words:
        return float(predicted_words == gold_words)
    num_common = (Counter(predicted_words) & Counter(gold_words)).total()
    return 2 * num_common / (len(predicted_words) + len(gold_words))


def score_questions(predictions: QAPredictions, metadata: Sequence[dict]) -> dict[str, float]:
    """Return exact match and F1 in percent.

    With unanswerable questions they hold at the null threshold that maximises F1 on these questions (the official
    `best_f1`). `threshold` is recorded for other questions, `f1_at_zero` is the F1 at threshold 0, and
    `no_answer_accuracy` the share of questions correctly classified as answerable or not.
    """
    golds = [metadata[document]["answers"] for document in predictions]
    best_texts = [prediction.best_text(None) for prediction in predictions.values()]
    exact, f1 = (np.array(list(map(score, best_texts, golds))) for score in (exact_match, answer_f1))
    if all(golds):
        return {"exact": 100 * float(exact.mean()), "f1": 100 * float(f1.mean())}
    nulls = np.array([prediction.null_score for prediction in predictions.values()])
    order = np.argsort(nulls, kind="stable")
    nulls = nulls[order]
    is_unanswerable = np.array([not gold for gold in golds], float)[order]
    is_empty = np.array([not text for text in best_texts], float)[order]  # predicts no answer at any threshold

    def total_by_num_answered(answered_scores: np.ndarray) -> np.ndarray:
        """Return total scores, `[n + 1]`, when the first 0 to n questions are answered and the others are not."""
        answered = np.where(is_unanswerable > 0, is_empty, answered_scores[order])
        unanswered_total = is_unanswerable.sum() - np.concatenate([[0], np.cumsum(is_unanswerable)])
        return np.concatenate([[0], np.cumsum(answered)]) + unanswered_total

    f1_totals, exact_totals = total_by_num_answered(f1), total_by_num_answered(exact)
    has_text_totals = total_by_num_answered(np.array([float(bool(text)) for text in best_texts]))
    # Equal null scores are on one side of a threshold.
    is_threshold = np.concatenate([[True], np.diff(nulls) > 0, [True]])
    num_answered = int(np.where(is_threshold, f1_totals, -1).argmax())
    num_answered_at_zero = int(np.searchsorted(nulls, 0.0, side="right"))
    return {
        "f1": 100 * float(f1_totals[num_answered]) / len(order),
        "exact": 100 * float(exact_totals[num_answered]) / len(order),
        "no_answer_accuracy": float(has_text_totals[num_answered]) / len(order),
        "threshold": float(nulls[num_answered - 1] if num_answered else nulls[0] - 1),
        "f1_at_zero": 100 * float(f1_totals[num_answered_at_zero]) / len(order),
    }
