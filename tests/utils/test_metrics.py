import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from encoders.utils.metrics import Mean, binomial_standard_error, mean_value, roc_auc, sum_means


def area(histogram):
    """scikit-learn's area, of one sample a count."""
    bins = np.arange(histogram.shape[1])
    samples = [np.repeat(bins, row) for row in histogram]
    return roc_auc_score(np.repeat([0, 1], [len(row) for row in samples]), np.concatenate(samples))


@pytest.mark.parametrize("bins, most", [(2, 3), (7, 2), (50, 40), (1024, 5)])
def test_the_area_is_that_of_scikit_learn(bins, most):
    for seed in range(5):
        histogram = np.random.default_rng(seed).integers(0, most + 1, (2, bins))
        histogram[:, 0] += 1  # both classes have somebody
        assert roc_auc(histogram)[0] == pytest.approx(area(histogram), abs=1e-12)  # float64


@pytest.mark.parametrize(
    "histogram, expected",
    [
        ([[4, 0, 0], [0, 0, 3]], 1.0),
        ([[0, 0, 4], [3, 0, 0]], 0.0),
        ([[0, 4, 0], [0, 3, 0]], 0.5),
        ([[1, 0, 0], [0, 0, 1]], 1.0),
    ],
)
def test_the_area_of_one_sided_histograms(histogram, expected):
    histogram = np.array(histogram)
    assert roc_auc(histogram)[0] == expected == area(histogram)
    assert np.isfinite(roc_auc(histogram)[1])


@pytest.mark.parametrize("histogram", [[[0, 0], [1, 2]], [[3, 1], [0, 0]], [[0, 0], [0, 0]]])
def test_a_class_without_members_leaves_a_coin(histogram):
    assert roc_auc(np.array(histogram)) == (0.5, 0.0)


def test_the_error_of_the_area_is_that_of_hanley_and_mcneil():
    # Area 7/8 of two and two: q1 = 7/9, q2 = 49/60, and A(1 - A) + (q1 - A²) + (q2 - A²) over four.
    variance = (7 / 64 + (7 / 9 - 49 / 64) + (49 / 60 - 49 / 64)) / 4
    assert roc_auc(np.array([[1, 1, 0], [0, 1, 1]]))[1] == pytest.approx(variance**0.5, rel=1e-12)


def test_a_mean_over_batches_is_the_mean_over_their_elements():
    sums = sum_means([{"loss": Mean(6.0, 2)}, {"loss": Mean(0.0, 1)}])
    assert mean_value(sums["loss"]) == 2.0  # not (3 + 0) / 2


def test_sums_are_kept_in_float64():
    one = np.float32(1)
    sums = sum_means([{"n": Mean(np.float32(2**24), one)}, {"n": Mean(one, one)}, {"n": Mean(one, one)}])
    assert float(sums["n"].total) == 2**24 + 2 and sums["n"].total.dtype == np.float64


def test_a_metric_that_some_batches_lack_is_summed_over_the_others():
    sums = sum_means([{"a": Mean(1, 1)}, {"b": Mean(2, 4)}, {"a": Mean(5, 2)}])
    assert {name: (float(m.total), float(m.count)) for name, m in sums.items()} == {"a": (6, 3), "b": (2, 4)}


def test_histograms_add_up_bin_by_bin():
    sums = sum_means([{"h": Mean(np.array([[1, 2], [3, 4]]), 10)}] * 2)
    np.testing.assert_array_equal(sums["h"].total, [[2, 4], [6, 8]])


def test_nothing_counted_is_zero():
    assert (
        mean_value(Mean(np.float64(0), np.float64(0)))
        == 0.0
        == binomial_standard_error(Mean(np.float64(0), np.float64(0)))
    )


def test_the_error_of_an_accuracy_is_binomial():
    assert binomial_standard_error(Mean(np.float64(50), np.float64(100))) == pytest.approx(0.05)
    assert binomial_standard_error(Mean(np.float64(100), np.float64(100))) == 0.0
