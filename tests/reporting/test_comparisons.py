"""Differences of rows: intervals by seeds and items, statements, Holm's correction and Kendall's tau."""

import math

import numpy as np
import pytest
from scipy import stats

from encoders.reporting.comparisons import (
    Estimate,
    ItemVariance,
    choose_margin,
    correct_p_values,
    correlate_orders,
    describe_difference,
    estimate_difference,
    estimate_item_variance,
    estimate_mean,
    format_estimate,
    judge_difference,
)

FIRST, SECOND = {0: 71.0, 1: 70.2, 2: 73.5, 4: 72.0}, {0: 69.5, 1: 69.9, 2: 70.0, 3: 80.0, 4: 71.1}


def test_a_difference_over_shared_seeds_is_that_of_a_paired_t_test():
    estimate = estimate_difference(FIRST, SECOND)
    test = stats.ttest_rel([71.0, 70.2, 73.5, 72.0], [69.5, 69.9, 70.0, 71.1])
    assert estimate.num_seeds == 4 and estimate.mean == pytest.approx(1.55)
    assert estimate.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert estimate.p_value == pytest.approx(test.pvalue, rel=1e-9)


def test_rows_without_a_shared_seed_have_no_difference_and_one_seed_has_no_interval():
    assert estimate_difference({0: 1.0}, {1: 2.0}) is None
    estimate = estimate_difference({0: 1.0, 2: 5.0}, {0: 2.5})
    assert (estimate.mean, estimate.num_seeds) == (-1.5, 1)
    assert estimate.half_width is estimate.interval is estimate.p_value is None


def test_the_variance_by_items_is_that_of_a_two_way_analysis_of_variance():
    items = np.array([[1.0, 0.0, 0.5, 1.0, 0.0], [1.0, 0.5, 1.0, 1.0, 0.0], [0.5, 0.0, 1.0, 1.0, 0.5]])
    num_seeds, num_items = items.shape
    grand = items.sum() / items.size
    by_item = [sum(items[s][i] for s in range(num_seeds)) / num_seeds for i in range(num_items)]
    by_seed = [sum(items[s]) / num_items for s in range(num_seeds)]
    mean_square_items = num_seeds * sum((mean - grand) ** 2 for mean in by_item) / (num_items - 1)
    residual = sum(
        (items[s][i] - by_seed[s] - by_item[i] + grand) ** 2 for s in range(num_seeds) for i in range(num_items)
    )
    mean_square_error = residual / ((num_seeds - 1) * (num_items - 1))
    expected = (mean_square_items - mean_square_error) / num_seeds / num_items
    assert estimate_item_variance(items) == ItemVariance(pytest.approx(expected), 5)


def test_a_variance_by_items_is_never_negative():
    # Each item has the same mean, so all variation is that of seeds and rounding.
    assert estimate_item_variance(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])).variance == 0


def test_one_seed_with_items_has_the_interval_of_a_t_test_over_its_items():
    differences = np.array([1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.5, 0.0])
    estimate = estimate_mean([differences.mean()], estimate_item_variance(differences[None]))
    test = stats.ttest_1samp(differences, 0.0)
    assert estimate.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert estimate.p_value == pytest.approx(test.pvalue, rel=1e-9)


def test_the_half_widths_of_seeds_and_items_add_up_as_squares():
    estimate = Estimate(1.0, 3, 0.6, ItemVariance(0.02, 100))
    seeds, items = stats.t.ppf(0.975, 2) * math.sqrt(0.6 / 3), stats.t.ppf(0.975, 99) * math.sqrt(0.02)
    assert estimate.half_width == pytest.approx(math.hypot(seeds, items))
    assert estimate.compute_half_width(estimate.p_value) == pytest.approx(1.0)
    assert Estimate(0.0, 3, 0.6).p_value == 1 and Estimate(2.0, 3, 0.0).p_value == 0


# Coverage -------------------------------------------------------------------------------------------------------------


def simulate_differences(rng, num_seeds: int, num_items: int, seed_std: float, item_std: float):
    """Return the item differences `[n m]` of two rows whose answers are right, 1, or wrong, 0, and the true mean."""
    abilities, noise_std = (0.6, 0.3), 0.5
    difficulty = rng.normal(size=num_items)  # of both rows
    answers, shares = [], []
    for ability in abilities:
        latent = ability + difficulty + rng.normal(0, item_std, num_items) + rng.normal(0, seed_std, (num_seeds, 1))
        answers.append(latent + rng.normal(0, noise_std, (num_seeds, num_items)) > 0)
        shares.append(stats.norm.cdf(ability / math.sqrt(1 + item_std**2 + seed_std**2 + noise_std**2)))
    return answers[0].astype(float) - answers[1], shares[0] - shares[1]


@pytest.mark.parametrize("num_seeds, seed_std, item_std", [(5, 0.3, 0.2), (5, 0.1, 0.5), (5, 0.02, 1.0), (3, 0.3, 0.2)])
def test_intervals_over_seeds_and_items_cover_the_truth_as_often_as_they_say(num_seeds, seed_std, item_std):
    rng, num_covered, num_experiments = np.random.default_rng(7), 0, 400
    for _ in range(num_experiments):
        differences, truth = simulate_differences(rng, num_seeds, 200, seed_std, item_std)
        estimate = estimate_mean(list(differences.mean(axis=1)), estimate_item_variance(differences))
        low, high = estimate.interval
        num_covered += low <= truth <= high
    assert 0.92 <= num_covered / num_experiments <= 0.98


def test_seeds_alone_cover_too_little_where_items_vary():
    rng, num_covered = np.random.default_rng(7), 0
    for _ in range(400):
        differences, truth = simulate_differences(rng, 5, 200, 0.02, 1.0)
        low, high = estimate_mean(list(differences.mean(axis=1))).interval
        num_covered += low <= truth <= high
    assert num_covered / 400 < 0.75


# Statements -----------------------------------------------------------------------------------------------------------


def describe(mean: float, seed_variance: float | None, num_seeds: int = 5, items=None, margin: float = 1.0) -> str:
    return describe_difference(Estimate(mean, num_seeds, seed_variance, items), "A", "B", margin)


def test_a_decided_difference_names_the_row_with_the_larger_number_first():
    half = stats.t.ppf(0.975, 4) * math.sqrt(0.25 / 5)
    assert describe(2.1, 0.25) == f"A above B by 2.10 ± {half:.2f}"
    assert describe(-2.1, 0.25) == f"B above A by 2.10 ± {half:.2f}"
    assert [judge_difference(Estimate(mean, 5, 0.25), 1.0) for mean in (2.1, -2.1)] == ["above", "below"]


def test_an_interval_within_the_margin_is_no_difference():
    half = stats.t.ppf(0.975, 4) * math.sqrt(0.25 / 5)
    assert half < 0.9 < 0.3 + half < 1.0
    assert describe(0.3, 0.25) == f"no difference larger than {0.3 + half:.2f}"
    assert describe(-0.3, 0.25, margin=0.9).startswith("cannot be told")


@pytest.mark.parametrize("mean, seed_variance", [(1.0, 2.0), (0.5, 2.0), (3.0, 9.0)])
def test_the_seeds_that_are_missing_are_the_fewest_that_would_exclude_zero(mean, seed_variance):
    reach = lambda count: stats.t.ppf(0.975, count - 1) * math.sqrt(seed_variance / count)
    needed = next(count for count in range(2, 1000) if reach(count) < mean)
    assert needed > 5 and reach(needed - 1) >= mean
    words = "1 more seed would" if needed == 6 else f"{needed - 5} more seeds would"
    assert describe(mean, seed_variance) == f"cannot be told: about {words}"


def test_more_than_a_hundred_seeds_are_not_counted():
    assert describe(0.01, 2.0) == "cannot be told: more than 100 more seeds would"
    assert describe(0.0, 2.0) == "cannot be told: more than 100 more seeds would"


def test_seeds_cannot_replace_items():
    items = ItemVariance(1.0, 100)  # a half-width of 1.98, whatever the seeds
    assert describe(1.9, 0.25, items=items) == "cannot be told: more test items would"
    assert describe(2.05, 0.25, items=items).startswith("cannot be told: about ")


def test_one_seed_is_named_as_such():
    assert describe(3.0, None, num_seeds=1) == "one seed"
    items = ItemVariance(0.25, 100)
    half = stats.t.ppf(0.975, 99) * 0.5
    assert describe(3.0, None, 1, items) == f"A above B by 3.00 ± {half:.2f}, of one seed"
    assert describe(0.5, None, 1, ItemVariance(0.01, 100)) == "A above B by 0.50 ± 0.20, of one seed"
    assert describe_difference(None, "A", "B", 1.0) == "no seed in common"


def test_the_margin_is_the_median_difference_of_the_papers_rows():
    assert choose_margin([90.6, 91.4, 90.6]) == pytest.approx(0.8)  # two of 0.8 and one of 0
    assert choose_margin([84.2, 84.3, 83.6]) == pytest.approx(0.6)  # 0.1, 0.6 and 0.7
    assert choose_margin([5.0]) == choose_margin([5.0, 5.0]) == choose_margin([]) == 1.0


def test_numbers_have_as_many_digits_as_their_interval_deserves():
    assert format_estimate(-20.0, 24.84) == "-20.0 ± 24.8" and format_estimate(0.1234567, 0.00345) == "0.1235 ± 0.0034"
    assert format_estimate(1234.56, 9.96, "+") == "+1,234.6 ± 10.0" and format_estimate(3.0, 0.0) == "3.00 ± 0.00"


# Tables ---------------------------------------------------------------------------------------------------------------


def test_p_values_are_corrected_by_holms_steps():
    assert correct_p_values([]) == []
    corrected = correct_p_values([0.04, 0.001, 0.03, 0.01, 0.6])
    # Sorted: 0.001 * 5, 0.01 * 4, 0.03 * 3, 0.04 * 2 raised to the one before, 0.6 * 1.
    assert corrected == pytest.approx([0.09, 0.005, 0.09, 0.04, 0.6])


def test_tau_is_the_mean_of_the_seeds_with_students_interval():
    published = [90.6, 91.4, 90.8, 92.8, 91.4]
    seeds = [[71.0, 70.3, 72.8, 73.1, 70.3], [70.1, 71.7, 72.5, 73.7, 71.6], [71.7, 70.3, 73.7, 68.3, 69.0]]
    taus = [count_tau(published, scores) for scores in seeds]
    assert taus[0] == pytest.approx(stats.kendalltau(published, seeds[0]).statistic)
    estimate = correlate_orders(published, seeds)
    half = stats.t.ppf(0.975, 2) * np.std(taus, ddof=1) / math.sqrt(3)
    assert estimate.mean == pytest.approx(np.mean(taus)) and estimate.half_width == pytest.approx(half)
    assert correlate_orders([1.0, 2.0, 3.0], [[5.0, 5.0, 5.0]]).mean == 0


def count_tau(x: list[float], y: list[float]) -> float:
    """Return tau-b by counting pairs (Kendall, 1945)."""
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i in range(len(x)) for j in range(i)]
    untied = [sum(pair[side] != 0 for pair in signs) for side in (0, 1)]
    return sum(first * second for first, second in signs) / math.sqrt(untied[0] * untied[1])


def test_intervals_of_tau_cover_its_expectation():
    rng, num_covered, num_experiments = np.random.default_rng(3), 0, 300
    means, published = np.array([0.0, 0.5, 0.4, 1.5, 1.0, 2.0]), list(range(6))
    samples = means + np.random.default_rng(4).normal(size=(20_000, 6))
    signs = [np.sign(samples[:, i] - samples[:, j]).mean() for i in range(6) for j in range(i)]
    for _ in range(num_experiments):
        low, high = correlate_orders(published, means + rng.normal(size=(5, 6))).interval
        num_covered += low <= np.mean(signs) <= high
    assert 0.92 <= num_covered / num_experiments <= 0.98
