"""Scores equal those of scikit-learn and scipy, and are 0 where those are not defined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from encoders.tasks.scores import accuracy, f1, matthews, pearson, spearman

rows = lambda kind: st.lists(st.tuples(kind, kind), min_size=2, max_size=40).map(lambda x: np.array(x).T)


@pytest.mark.filterwarnings("ignore:A single label was found")  # what scikit-learn says of one class
@given(rows(st.integers(0, 1)))
def test_scores_of_two_classes(both):
    said, labels = both
    assert accuracy(said, labels) == pytest.approx(metrics.accuracy_score(labels, said))
    assert f1(said, labels) == pytest.approx(metrics.f1_score(labels, said, zero_division=0))
    assert matthews(said, labels) == pytest.approx(metrics.matthews_corrcoef(labels, said), abs=1e-12)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(rows(st.integers(0, 3)))
def test_scores_of_several_classes(both):
    said, labels = both
    assert matthews(said, labels) == pytest.approx(metrics.matthews_corrcoef(labels, said), abs=1e-12)


@given(rows(st.integers(-50, 50).map(lambda x: x / 7)))
def test_correlations(both):
    said, labels = both
    if np.ptp(said) == 0 or np.ptp(labels) == 0:
        assert pearson(said, labels) == spearman(said, labels) == 0
    else:
        assert pearson(said, labels) == pytest.approx(stats.pearsonr(said, labels)[0], abs=1e-9)
        assert spearman(said, labels) == pytest.approx(stats.spearmanr(said, labels)[0], abs=1e-9)


def test_one_class_only_and_constant_predictions_have_a_value():
    ones, mixed = np.ones(4, int), np.array([0, 1, 0, 1])
    assert (accuracy(ones, mixed), f1(ones, mixed), matthews(ones, mixed)) == (0.5, pytest.approx(2 / 3), 0.0)
    assert (accuracy(ones, ones), f1(ones, ones), matthews(ones, ones)) == (1.0, 1.0, 0.0)
    assert (f1(0 * ones, 0 * ones), matthews(mixed, ones)) == (0.0, 0.0)
    assert pearson(np.full(4, 0.1), mixed) == spearman(mixed, ones) == 0.0
