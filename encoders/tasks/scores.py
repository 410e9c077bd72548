"""Scores of classes and numbers, from scikit-learn and scipy.

Each function takes the predictions and the labels of all rows, `[n]`. An undefined score is 0: F1 without a predicted
or labelled positive, a correlation with a constant.
"""

from __future__ import annotations

import numpy as np


def score_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows whose prediction equals the label."""
    return float((predictions == labels).mean())


def score_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall of class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels == 1, predictions == 1, zero_division=0))


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


CLASSIFICATION_SCORES = {"accuracy": score_accuracy, "f1": score_f1, "matthews": score_matthews}
REGRESSION_SCORES = {"pearson": score_pearson, "spearman": score_spearman}
