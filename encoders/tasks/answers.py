"""From what is said of windows to answers that are parts of the text, and their scores as SQuAD has them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from encoders.data.formats import B_END, LABEL, B
from encoders.data.store import Split

KEPT = 20  # answers of a question


@dataclass(frozen=True)
class Answer:
    """A part of the text, its place there, and its score."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Verdict:
    """The likeliest answers to a question, the best first, and how much more likely it is that there is none."""

    answers: tuple[Answer, ...]
    null: float

    def text(self, threshold: float | None) -> str:
        """The best answer, or "" where there is none or `null` exceeds the threshold."""
        if not self.answers or (threshold is not None and self.null > threshold):
            return ""
        return self.answers[0].text


def widest(spans: np.ndarray, position: int) -> int:
    """Which of the windows `[n 5]` shows a token with the most context: the lesser side, and a hundredth of its size.

    Of equal ones the first, as in the released code.
    """
    begin, end = spans[:, B], spans[:, B_END]
    score = np.minimum(position - begin, end - 1 - position) + 0.01 * (end - begin)
    return int(np.where((position >= begin) & (position < end), score, -np.inf).argmax())


def verdicts(said: dict[str, np.ndarray], rows: np.ndarray, split: Split, longest: int = 30) -> dict[int, Verdict]:
    """A verdict for each question, by its document.

    `said` has for every window candidates `first` and `last`, counted from the window's first token of text, with their
    `score`; and `null`. A candidate counts where its first token has its widest context and it has at most `longest`
    tokens.
    """
    spans, by_document, found = rows[:, 0], {}, {}
    for row, document in enumerate(spans[:, LABEL].tolist()):
        by_document.setdefault(document, []).append(row)
    first, last, score, null = (said[name][:, 0] for name in ("first", "last", "score", "null"))
    fits = (last >= first) & (last - first < longest) & np.isfinite(score) & (first >= 0)
    fits &= last < (spans[:, B_END] - spans[:, B])[:, None]
    for document, mine in by_document.items():
        windows = spans[mine]
        owner: dict[int, int] = {}
        candidates = []
        for number, row in enumerate(mine):
            begin = int(windows[number, B])
            for i in np.flatnonzero(fits[row]):
                at = begin + int(first[row, i])
                if len(mine) > 1:
                    if at not in owner:
                        owner[at] = widest(windows, at)
                    if owner[at] != number:
                        continue
                candidates.append((float(score[row, i]), at, begin + int(last[row, i])))
        candidates.sort(key=lambda each: -each[0])
        text, places = split.notes[document]["context"], split.columns["places"]
        answers: dict[str, Answer] = {}
        for points, a, b in candidates:
            start, end = int(places[a, 0]), int(places[b, 1])
            if text[start:end].strip() and text[start:end] not in answers:
                answers[text[start:end]] = Answer(text[start:end], start, end, points)
            if len(answers) == KEPT:
                break
        found[document] = Verdict(tuple(answers.values()), float(null[mine].min()))
    return found


def relative(verdict: Verdict) -> Verdict:
    """BERT's way: the score of [CLS] as answer, less that of the best one."""
    best = verdict.answers[0].score if verdict.answers else -np.inf
    return Verdict(verdict.answers, verdict.null - best)


# Scores, as the official evaluation scripts have them -----------------------------------------------------------------


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space.

    >>> normalised("The  Fox, an animal.")
    'fox animal'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def gold(answers: Sequence[str]) -> list[str]:
    """The answers, normalised, without those of which nothing is left; "" where there is none."""
    return [each for each in map(normalised, answers) if each] or [""]


def exact(said: str, answers: Sequence[str]) -> float:
    """1 where `said` equals one of the answers once both are normalised; none at all is answered by ""."""
    return float(any(normalised(said) == answer for answer in gold(answers)))


def f1(said: str, answers: Sequence[str]) -> float:
    """The best overlap in words with one of the answers."""
    return max(overlap(normalised(said).split(), answer.split()) for answer in gold(answers))


def overlap(said: list[str], answer: list[str]) -> float:
    common = (Counter(said) & Counter(answer)).total()
    if not said or not answer:
        return float(said == answer)
    return 2 * common / (len(said) + len(answer))


def question_scores(found: dict[int, Verdict], notes: list[dict]) -> dict[str, float]:
    """Exact match and F1 in percent; where some questions have no answer, with the best threshold on these very rows.

    That is the official `best_f1`: the threshold is recorded and meant for other rows. `no_answer_accuracy` is the
    share of questions of which it is rightly said whether they have an answer.
    """
    golds = {document: notes[document]["answers"] for document in found}
    best = {document: verdict.text(None) for document, verdict in found.items()}
    points = {name: {d: measure(best[d], golds[d]) for d in found} for name, measure in (("exact", exact), ("f1", f1))}
    if all(golds.values()):
        return {name: 100 * float(np.mean(list(each.values()))) for name, each in points.items()}
    nulls = np.array([verdict.null for verdict in found.values()])
    order = np.argsort(nulls, kind="stable")
    empty = np.array([not golds[document] for document in found], float)[order]
    silent = np.array([not best[document] for document in found], float)[order]  # no candidate at any threshold

    def at(values: dict[int, float]) -> np.ndarray:
        """The sum of scores when the first n questions are answered, for every n."""
        answered = np.where(empty > 0, silent, np.array(list(values.values()))[order])
        return np.concatenate([[0], np.cumsum(answered)]) + empty.sum() - np.concatenate([[0], np.cumsum(empty)])

    whole, right = at(points["f1"]), at({d: float(bool(best[d])) for d in found})
    sums = {"f1": whole, "exact": at(points["exact"]), "no_answer_accuracy": right}
    apart = np.concatenate([[True], np.diff(nulls[order]) > 0, [True]])  # equal ones fall on one side
    cut = int(np.where(apart, whole, -1).argmax())
    edges = np.concatenate([[nulls[order[0]] - 1], nulls[order]])
    scale = {"no_answer_accuracy": 1.0}
    scores = {name: scale.get(name, 100) * float(values[cut]) / len(found) for name, values in sums.items()}
    untuned = int(np.searchsorted(nulls[order], 0.0, side="right"))
    return scores | {"threshold": float(edges[cut]), "f1_at_zero": 100 * float(whole[untuned]) / len(found)}
