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


CLASSIFICATION_SCORES = {"accuracy": score_accuracy, "f1": score_f1, "matthews": score_matthews}
REGRESSION_SCORES = {"pearson": score_pearson, "spearman": score_spearman}
