"""Scores equal those of scikit-learn and scipy, and are 0 where those are not defined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from encoders.tasks.scores import accuracy_score, f1_score, matthews_corrcoef, pearson_correlation, spearman_correlation

rows = lambda kind: st.lists(st.tuples(kind, kind), min_size=2, max_size=40).map(lambda x: np.array(x).T)


@pytest.mark.filterwarnings("ignore:A single label was found")  # what scikit-learn says of one class
@given(rows(st.integers(0, 1)))
def test_scores_of_two_classes(both):
    said, labels = both
    assert accuracy_score(said, labels) == pytest.approx(metrics.accuracy_score(labels, said))
    assert f1_score(said, labels) == pytest.approx(metrics.f1_score(labels, said, zero_division=0))
    assert matthews_corrcoef(said, labels) == pytest.approx(metrics.matthews_corrcoef(labels, said), abs=1e-12)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(rows(st.integers(0, 3)))
def test_scores_of_several_classes(both):
    said, labels = both
    assert matthews_corrcoef(said, labels) == pytest.approx(metrics.matthews_corrcoef(labels, said), abs=1e-12)


@given(rows(st.integers(-50, 50).map(lambda x: x / 7)))
def test_correlations(both):
    said, labels = both
    if np.ptp(said) == 0 or np.ptp(labels) == 0:
        assert pearson_correlation(said, labels) == spearman_correlation(said, labels) == 0
    else:
        assert pearson_correlation(said, labels) == pytest.approx(stats.pearsonr(said, labels)[0], abs=1e-9)
        assert spearman_correlation(said, labels) == pytest.approx(stats.spearmanr(said, labels)[0], abs=1e-9)


def test_one_class_only_and_constant_predictions_have_a_value():
    ones, mixed = np.ones(4, int), np.array([0, 1, 0, 1])
    assert (accuracy_score(ones, mixed), f1_score(ones, mixed), matthews_corrcoef(ones, mixed)) == (
        0.5,
        pytest.approx(2 / 3),
        0.0,
    )
    assert (accuracy_score(ones, ones), f1_score(ones, ones), matthews_corrcoef(ones, ones)) == (1.0, 1.0, 0.0)
    assert (f1_score(0 * ones, 0 * ones), matthews_corrcoef(mixed, ones)) == (0.0, 0.0)
    assert pearson_correlation(np.full(4, 0.1), mixed) == spearman_correlation(mixed, ones) == 0.0
