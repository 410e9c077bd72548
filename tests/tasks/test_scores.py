"""Scores agree with values computed by hand, and are 0 where they are undefined."""

import numpy as np
import pytest

from encoders.tasks.classification import Classification
from encoders.tasks.scores import (
    score_accuracy,
    score_classes,
    score_f1,
    score_macro_f1,
    score_matthews,
    score_pearson,
    score_spearman,
)


def test_scores_of_two_classes():
    predictions, labels = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])  # 2 true positives, 1 true negative
    assert score_accuracy(predictions, labels) == pytest.approx(3 / 5)
    assert score_f1(predictions, labels) == pytest.approx(2 * 2 / (3 + 3))
    assert score_matthews(predictions, labels) == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)


def test_scores_of_several_classes():
    predictions, labels = np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1])
    # Gorodkin: (c s - sum p t) / sqrt((s² - sum p²)(s² - sum t²)) with c = 3 right of s = 4 rows.
    assert score_matthews(predictions, labels) == pytest.approx((3 * 4 - 5) / ((16 - 6) * (16 - 6)) ** 0.5)
    assert score_macro_f1(predictions, labels) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_each_class_has_its_scores_and_the_baseline_is_that_of_the_commonest():
    predictions, labels = np.array([0, 1, 2, 2, 1]), np.array([0, 1, 2, 1, 1])
    scores = score_classes(predictions, labels, ("no", "yes", "maybe", "never"))
    assert scores["accuracy_baseline"] == pytest.approx(3 / 5)
    counts = {"no": (1, 1, 1), "yes": (1, 2 / 3, 4 / 5), "maybe": (1 / 2, 1, 2 / 3), "never": (0, 0, 0)}
    for name, expected in counts.items():
        assert [scores["classes"][name][key] for key in ("precision", "recall", "f1")] == pytest.approx(expected)
    assert scores["confusion"]["yes"] == {"no": 0, "yes": 2, "maybe": 1, "never": 0}
    assert scores["macro_f1"] == pytest.approx((1 + 4 / 5 + 2 / 3) / 3)  # of the classes that occur


@pytest.mark.parametrize("labels, f1", [(("a", "b"), 2 / 3), (("a", "b", "c"), (2 / 3 + 2 / 3) / 2)])
def test_f1_of_two_classes_is_that_of_the_second_and_of_more_their_mean(labels, f1):
    functions = Classification(labels).score_functions
    assert functions["f1"](np.array([0, 1, 1]), np.array([0, 0, 1])) == pytest.approx(f1)


def test_correlations_of_numbers_and_of_ranks_with_ties():
    predictions, labels = np.array([1.0, 2.0, 2.0, 9.0]), np.array([0.0, 1.0, 2.0, 3.0])
    assert score_pearson(predictions, labels) == pytest.approx(12 / (41 * 5) ** 0.5)
    assert score_spearman(predictions, labels) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_one_class_and_constant_predictions_have_a_score():
    ones, mixed = np.ones(4, int), np.array([0, 1, 0, 1])
    assert [score(ones, mixed) for score in (score_accuracy, score_f1, score_matthews)] == [0.5, 2 / 3, 0.0]
    assert [score(ones, ones) for score in (score_accuracy, score_f1, score_matthews)] == [1.0, 1.0, 0.0]
    assert (score_f1(0 * ones, 0 * ones), score_matthews(mixed, ones)) == (0.0, 0.0)
    assert score_pearson(np.full(4, 0.1), mixed) == score_spearman(mixed, ones) == 0.0
