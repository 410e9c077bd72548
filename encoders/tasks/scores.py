"""Scores of classes and numbers, from scikit-learn and scipy, and of entities.

Functions of one score take the predictions and the labels of all rows, `[n]`. An undefined score is 0: F1 without a
predicted or labelled positive, a correlation with a constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from encoders.objectives.base import Scores


def score_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows whose prediction equals the label."""
    return float((predictions == labels).mean())


def score_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall of class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels == 1, predictions == 1, zero_division=0))


def score_macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean F1 of the classes that are predicted or labelled."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def score_matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the correlation of Matthews (1975), over any number of classes as in Gorodkin (2004)."""
    from sklearn.metrics import matthews_corrcoef

    if has_constant(predictions, labels):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def score_pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the linear correlation of two lists of numbers."""
    from scipy.stats import pearsonr

    if has_constant(predictions, labels):
        return 0.0
    return float(pearsonr(np.asarray(predictions, np.float64), np.asarray(labels, np.float64)).statistic)


def score_spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the correlation of ranks; equal numbers share their mean rank."""
    from scipy.stats import spearmanr

    if has_constant(predictions, labels):
        return 0.0
    return float(spearmanr(predictions, labels).statistic)


def has_constant(*arrays: np.ndarray) -> bool:
    return any(np.ptp(values) == 0 for values in arrays)


def score_classes(predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
    """Return what the scores of all classes hide: `accuracy_baseline`, of always answering the commonest class,
    `macro_f1`, the scores of each class by its name, and `confusion`, rows by their label and by their prediction."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(labels, predictions, labels=range(len(names)))
    counts = zip(matrix.diagonal().tolist(), matrix.sum(0).tolist(), matrix.sum(1).tolist(), strict=True)
    return {
        "macro_f1": score_macro_f1(predictions, labels),
        "accuracy_baseline": score_baseline(labels),
        "classes": {name: score_counts(*row) for name, row in zip(names, counts, strict=True)},
        "confusion": {
            name: dict(zip(names, row.tolist(), strict=True)) for name, row in zip(names, matrix, strict=True)
        },
    }


def score_baseline(labels: np.ndarray) -> float:
    """Return the accuracy of always answering the commonest label."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def score_entities(predicted_rows: Sequence[set[tuple]], gold_rows: Sequence[set[tuple]]) -> Scores:
    """Return precision, recall and F1 of the entities of all rows, `macro_f1`, and the scores of each type by its name.

    An entity's last element is its type.
    """
    by_type = [Counter(), Counter(), Counter()]  # correct, predicted, gold
    for predicted, gold in zip(predicted_rows, gold_rows, strict=True):
        for counter, entities in zip(by_type, (predicted & gold, predicted, gold), strict=True):
            counter.update(entity[-1] for entity in entities)
    total = score_counts(*(counter.total() for counter in by_type))
    types = sorted(by_type[1] | by_type[2])
    classes = {name: score_counts(*(counter[name] for counter in by_type)) for name in types}
    macro_f1 = float(np.mean([scores["f1"] for scores in classes.values()])) if classes else 0.0
    return {name: total[name] for name in ("f1", "precision", "recall")} | {"macro_f1": macro_f1, "classes": classes}


def score_counts(num_correct: int, num_predicted: int, num_gold: int) -> Scores:
    """Return precision, recall and F1, and the numbers of gold (`count`) and predicted ones that they are of."""
    return {
        "precision": num_correct / max(num_predicted, 1),
        "recall": num_correct / max(num_gold, 1),
        "f1": 2 * num_correct / max(num_gold + num_predicted, 1),
        "count": num_gold,
        "predicted": num_predicted,
    }


RANKED_ANCHORS = 256  # whose cosines with all texts are in memory at a time


def score_positive_ranks(vectors: np.ndarray, has_text: np.ndarray, text_ids: np.ndarray) -> Scores:
    """Return `accuracy`, the share of rows whose positive text is nearest to the anchor, and `mrr`, the mean 1 / rank.

    `vectors [n s d]` have length 1; the first text of a row is the anchor, and the second is positive. The anchor is
    compared with the other texts of all rows, each once, those equal to its own anchor aside. A tie counts half.
    """
    _, firsts = np.unique(np.where(has_text, text_ids, -1)[:, 1:], return_index=True)
    row_of, slot_of = np.unravel_index(firsts, has_text[:, 1:].shape)
    row_of, slot_of = (index[has_text[row_of, slot_of + 1]] for index in (row_of, slot_of))
    candidates, candidate_ids = vectors[row_of, slot_of + 1], text_ids[row_of, slot_of + 1]
    ranks = []
    for start in range(0, len(vectors), RANKED_ANCHORS):
        block = slice(start, start + RANKED_ANCHORS)
        cosines = vectors[block, 0] @ candidates.T
        positive = (vectors[block, 0] * vectors[block, 1]).sum(-1, keepdims=True)
        is_other = (candidate_ids != text_ids[block, :1]) & (candidate_ids != text_ids[block, 1:2])
        is_tied = np.isclose(cosines, positive, rtol=0, atol=1e-9)
        higher = ((cosines > positive) & ~is_tied & is_other).sum(1)
        ranks.append(1 + higher + (is_tied & is_other).sum(1) / 2)
    ranks = np.concatenate(ranks)
    return {"accuracy": float((ranks == 1).mean()), "mrr": float((1 / ranks).mean())}


CLASSIFICATION_SCORES = {"accuracy": score_accuracy, "f1": score_f1, "matthews": score_matthews}
REGRESSION_SCORES = {"pearson": score_pearson, "spearman": score_spearman}
