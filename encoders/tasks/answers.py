"""From what is said of windows to answers that are parts of the text, and their scores as SQuAD has them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from encoders.data.example_table import measure_segments
from encoders.data.store import Split

MAX_ANSWERS = 20  # answers of a question


@dataclass(frozen=True)
class Answer:
    """A part of the text, its place there, and its score."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class QAPrediction:
    """The likeliest answers to a question, the best first, and how much more likely it is that there is none."""

    answers: tuple[Answer, ...]
    null_score: float

    def best_text(self, null_threshold: float | None) -> str:
        """The best answer, or "" where there is none or `null` exceeds the threshold."""
        if not self.answers or (null_threshold is not None and self.null_score > null_threshold):
            return ""
        return self.answers[0].text


def find_max_context_window(windows: np.ndarray, position: int) -> int:
    """Which of the windows `[n]` shows a token with the most context: the lesser side, and a hundredth of its size.

    Of equal ones the first, as in the released code.
    """
    begin, end = windows["b_start"], windows["b_end"]
    score = np.minimum(position - begin, end - 1 - position) + 0.01 * (end - begin)
    return int(np.where((position >= begin) & (position < end), score, -np.inf).argmax())


def decode_predictions(
    outputs: dict[str, np.ndarray], rows: np.ndarray, split: Split, max_answer_length: int = 30
) -> dict[int, QAPrediction]:
    """A verdict for each question, by its document.

    `said` has for every window candidates `first` and `last`, counted from the window's first token of text, with their
    `score`; and `null`. A candidate counts where its first token has its widest context and it has at most `longest`
    tokens.
    """
    spans, by_document, found = rows[:, 0], {}, {}
    for row, document in enumerate(spans["document"].tolist()):
        by_document.setdefault(document, []).append(row)
    first, last, score, null = (outputs[name][:, 0] for name in ("first", "last", "score", "null"))
    fits = (last >= first) & (last - first < max_answer_length) & np.isfinite(score) & (first >= 0)
    fits &= last < measure_segments(spans)[1][:, None]
    for document, mine in by_document.items():
        windows = spans[mine]
        owner: dict[int, int] = {}
        candidates = []
        for number, row in enumerate(mine):
            begin = int(windows["b_start"][number])
            for i in np.flatnonzero(fits[row]):
                at = begin + int(first[row, i])
                if len(mine) > 1:
                    if at not in owner:
                        owner[at] = find_max_context_window(windows, at)
                    if owner[at] != number:
                        continue
                candidates.append((float(score[row, i]), at, begin + int(last[row, i])))
        candidates.sort(key=lambda each: -each[0])
        text, places = split.row_metadata[document]["context"], split.label_columns["places"]
        answers: dict[str, Answer] = {}
        for points, a, b in candidates:
            start, end = int(places[a, 0]), int(places[b, 1])
            if text[start:end].strip() and text[start:end] not in answers:
                answers[text[start:end]] = Answer(text[start:end], start, end, points)
            if len(answers) == MAX_ANSWERS:
                break
        found[document] = QAPrediction(tuple(answers.values()), float(null[mine].min()))
    return found


def subtract_best_score(prediction: QAPrediction) -> QAPrediction:
    """BERT's way: the score of [CLS] as answer, less that of the best one."""
    best = prediction.answers[0].score if prediction.answers else -np.inf
    return QAPrediction(prediction.answers, prediction.null_score - best)


# Scores, as the official evaluation scripts have them -----------------------------------------------------------------


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space.

    >>> normalize_answer("The  Fox, an animal.")
    'fox animal'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def normalize_gold_answers(answers: Sequence[str]) -> list[str]:
    """The answers, normalised, without those of which nothing is left; "" where there is none."""
    return [each for each in map(normalize_answer, answers) if each] or [""]


def exact_match(predicted_answer: str, gold_answers: Sequence[str]) -> float:
    """1 where `said` equals one of the answers once both are normalised; none at all is answered by ""."""
    return float(any(normalize_answer(predicted_answer) == answer for answer in normalize_gold_answers(gold_answers)))


def answer_f1(predicted_answer: str, gold_answers: Sequence[str]) -> float:
    """The best overlap in words with one of the answers."""
    return max(
        word_overlap_f1(normalize_answer(predicted_answer).split(), answer.split())
        for answer in normalize_gold_answers(gold_answers)
    )


def word_overlap_f1(predicted_words: list[str], gold_words: list[str]) -> float:
    common = (Counter(predicted_words) & Counter(gold_words)).total()
    if not predicted_words or not gold_words:
        return float(predicted_words == gold_words)
    return 2 * common / (len(predicted_words) + len(gold_words))


def score_questions(predictions: dict[int, QAPrediction], notes: list[dict]) -> dict[str, float]:
    """Exact match and F1 in percent; where some questions have no answer, with the best threshold on these very rows.

    That is the official `best_f1`: the threshold is recorded and meant for other rows. `no_answer_accuracy` is the
    share of questions of which it is rightly said whether they have an answer.
    """
    golds = {document: notes[document]["answers"] for document in predictions}
    best = {document: verdict.best_text(None) for document, verdict in predictions.items()}
    points = {
        name: {d: measure(best[d], golds[d]) for d in predictions}
        for name, measure in (("exact", exact_match), ("f1", answer_f1))
    }
    if all(golds.values()):
        return {name: 100 * float(np.mean(list(each.values()))) for name, each in points.items()}
    nulls = np.array([verdict.null_score for verdict in predictions.values()])
    order = np.argsort(nulls, kind="stable")
    empty = np.array([not golds[document] for document in predictions], float)[order]
    silent = np.array([not best[document] for document in predictions], float)[order]  # no candidate at any threshold

    def sum_scores_by_cutoff(values: dict[int, float]) -> np.ndarray:
        """The sum of scores when the first n questions are answered, for every n."""
        answered = np.where(empty > 0, silent, np.array(list(values.values()))[order])
        return np.concatenate([[0], np.cumsum(answered)]) + empty.sum() - np.concatenate([[0], np.cumsum(empty)])

    whole, right = (
        sum_scores_by_cutoff(points["f1"]),
        sum_scores_by_cutoff({d: float(bool(best[d])) for d in predictions}),
    )
    sums = {"f1": whole, "exact": sum_scores_by_cutoff(points["exact"]), "no_answer_accuracy": right}
    apart = np.concatenate([[True], np.diff(nulls[order]) > 0, [True]])  # equal ones fall on one side
    cut = int(np.where(apart, whole, -1).argmax())
    edges = np.concatenate([[nulls[order[0]] - 1], nulls[order]])
    scale = {"no_answer_accuracy": 1.0}
    scores = {name: scale.get(name, 100) * float(values[cut]) / len(predictions) for name, values in sums.items()}
    untuned = int(np.searchsorted(nulls[order], 0.0, side="right"))
    return scores | {"threshold": float(edges[cut]), "f1_at_zero": 100 * float(whole[untuned]) / len(predictions)}
