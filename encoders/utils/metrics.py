"""Sums on the device, means on the host."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Mean(NamedTuple):
    """A mean as its two sums, so that means over batches and devices add up to the mean over their elements."""

    total: Any
    count: Any


def sum_means(means: Iterable[dict[str, Mean]]) -> dict[str, Mean]:
    """Return the sums of all `means` by name, in float64."""
    sums: dict[str, Mean] = {}
    for batch_means in means:
        for name, mean in batch_means.items():
            pairs = zip(sums.get(name, (0, 0)), mean, strict=True)
            sums[name] = Mean(*(np.asarray(old + np.asarray(new, np.float64)) for old, new in pairs))
    return sums


def mean_value(mean: Mean) -> float:
    """Return total / count, or 0 where the count is 0."""
    return float(mean.total / max(mean.count, 1e-9)) if mean.count else 0.0


def binomial_standard_error(mean: Mean) -> float:
    p, n = mean_value(mean), float(mean.count)
    return (p * (1 - p) / n) ** 0.5 if n else 0.0


def roc_auc(histogram: np.ndarray) -> tuple[float, float]:
    """Return the area under the ROC curve and its standard error (Hanley and McNeil, 1982), from counts by score.

    `histogram[0, i]` negatives and `histogram[1, i]` positives have a score in the i-th bin, lowest first; a tie
    counts half. 0.5 ± 0 where one class is empty.
    """
    negative, positive = (np.asarray(row, np.float64) for row in histogram)
    n, m = negative.sum(), positive.sum()
    if not n or not m:
        return 0.5, 0.0
    below = np.cumsum(negative) - negative
    area = float((positive * (below + negative / 2)).sum() / (n * m))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)) / (n * m)
    return area, max(variance, 0.0) ** 0.5


def calibration_error(probabilities: np.ndarray, outcomes: np.ndarray, num_bins: int = 15) -> float:
    """Return the expected calibration error of probabilities `[n]` of outcomes `[n]`, which are 0 or 1.

    It is the mean over n of |share of outcomes - mean probability| in bins of equal width (Guo et al., 2017,
    https://arxiv.org/abs/1706.04599, eq. 3).

    >>> calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 1, 0, 1]))
    0.25
    """
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=np.asarray(outcomes, np.float64) - probabilities, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(probabilities))
