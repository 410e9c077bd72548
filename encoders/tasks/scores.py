"""Scores of classes and numbers, equal to those of scikit-learn and scipy.

Where a score is not defined it is 0: F1 without a positive that is there or said, a correlation with a constant.
"""

from __future__ import annotations

import numpy as np


def accuracy_score(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows where they are equal.

    >>> accuracy_score(np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))
    0.75
    """
    return float((predictions == labels).mean())


def f1_score(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The harmonic mean of precision and recall of class 1."""
    right = ((predictions == 1) & (labels == 1)).sum()
    both = (predictions == 1).sum() + (labels == 1).sum()
    return float(2 * right / both) if both else 0.0


def matthews_corrcoef(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The correlation of Matthews (1975), over any number of classes as Gorodkin (2004) has it."""
    classes = int(max(predictions.max(), labels.max())) + 1
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, predictions), 1)
    there, told, count = table.sum(1), table.sum(0), table.sum()
    spread = (count**2 - (there**2).sum()) * (count**2 - (told**2).sum())
    return float((np.trace(table) * count - there @ told) / spread**0.5) if spread > 0 else 0.0


def pearson_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The linear correlation of two lists of numbers."""
    x, y = (np.asarray(each, np.float64) - np.mean(each, dtype=np.float64) for each in (predictions, labels))
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def spearman_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The correlation of ranks; equal numbers share the mean of theirs."""
    from scipy.stats import rankdata

    return pearson_correlation(rankdata(predictions), rankdata(labels))


CLASSIFICATION_SCORES = {"accuracy": accuracy_score, "f1": f1_score, "matthews": matthews_corrcoef}
REGRESSION_SCORES = {"pearson": pearson_correlation, "spearman": spearman_correlation}
