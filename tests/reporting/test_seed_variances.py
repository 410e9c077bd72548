"""Variances of differences with the help of other rows: analysis of variance, noisy rows, coverage and power."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from encoders.reporting.comparisons import Estimate, estimate_difference, estimate_item_variance
from encoders.reporting.seed_variances import (
    Residuals,
    SeedNoise,
    borrow_variance,
    describe_noisy_rows,
    estimate_seed_noise,
    fit_residuals,
)

SCORES = {
    "a": {0: 71.0, 1: 70.2, 2: 73.5},
    "b": {0: 69.5, 1: 69.9, 2: 70.0},
    "c": {0: 66.1, 1: 66.9, 2: 67.7},
    "d": {0: 70.4, 1: 69.0, 2: 71.6},
}


def estimate_pair(scores, first: str, second: str) -> Estimate:
    estimate = estimate_difference(scores[first], scores[second])
    return borrow_variance(estimate, estimate_seed_noise(scores), first, second)


def sum_residuals(scores) -> float:
    """Return the residual sum of squares of a balanced two-way analysis of variance, by its explicit formula."""
    rows, seeds = list(scores), list(next(iter(scores.values())))
    grand = sum(scores[row][seed] for row in rows for seed in seeds) / len(rows) / len(seeds)
    of_row = {row: sum(scores[row].values()) / len(seeds) for row in rows}
    of_seed = {seed: sum(scores[row][seed] for row in rows) / len(rows) for seed in seeds}
    return sum((scores[row][seed] - of_row[row] - of_seed[seed] + grand) ** 2 for row in rows for seed in seeds)


# Balanced columns -----------------------------------------------------------------------------------------------------


def test_residuals_are_those_of_a_two_way_analysis_of_variance():
    assert fit_residuals(SCORES) == Residuals(pytest.approx(sum_residuals(SCORES)), 3 * 2)
    assert fit_residuals({"a": SCORES["a"]}) == Residuals(0.0, 0) and fit_residuals({}) == Residuals(0.0, 0)


@pytest.mark.parametrize("first, second", list(itertools.combinations("abcd", 2)))
def test_the_variance_of_a_pair_is_drawn_to_that_of_the_other_residuals_by_the_root_of_the_p_value(first, second):
    own = np.var([SCORES[first][seed] - SCORES[second][seed] for seed in range(3)], ddof=1)
    rest = 2 * (sum_residuals(SCORES) - own) / 4  # n - 1 is 2, and a difference has the variance of two scores
    weight = math.sqrt(stats.f.sf(own / rest, 2, 4))
    pooled = (2 * own + 4 * rest) / 6
    estimate = estimate_pair(SCORES, first, second)
    assert 0 < weight < 1 and estimate.num_seeds == 3
    assert estimate.seed_variance == pytest.approx(weight * pooled + (1 - weight) * own)
    parts = ((1 - weight + weight / 3) * own, weight * 2 / 3 * rest)
    assert estimate.seed_df == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 4))
    half = stats.t.ppf(0.975, estimate.seed_df) * math.sqrt(estimate.seed_variance / 3)
    assert estimate.half_width == pytest.approx(half)
    p_value = 2 * stats.t.sf(abs(estimate.mean) / math.sqrt(estimate.seed_variance / 3), estimate.seed_df)
    assert estimate.p_value == pytest.approx(p_value, rel=1e-6)


def test_common_effects_of_seeds_change_nothing():
    shifted = {row: {seed: score + 10.0 * seed for seed, score in scores.items()} for row, scores in SCORES.items()}
    first, second = (estimate_pair(scores, "a", "c") for scores in (SCORES, shifted))
    assert (first.mean, first.seed_variance, first.seed_df) == pytest.approx(
        (second.mean, second.seed_variance, second.seed_df)
    )


def test_two_rows_and_one_seed_are_as_without_other_rows():
    two = {row: SCORES[row] for row in "ab"}
    assert estimate_pair(two, "a", "b") == estimate_difference(two["a"], two["b"])
    single = SCORES | {"e": {1: 70.0}}
    assert estimate_pair(single, "a", "e") == Estimate(pytest.approx(0.2), 1, None)
    first, second = (
        estimate_pair(single, "a", "b"),
        estimate_pair(SCORES, "a", "b"),
    )  # one score of a row explains itself
    assert (first.seed_variance, first.seed_df) == pytest.approx((second.seed_variance, second.seed_df))


def test_rows_of_equal_scores_have_no_variance_and_two_of_them_have_that_of_the_others():
    equal = {row: {0: 68.4, 1: 68.4, 2: 68.4} for row in "abc"}
    estimate = estimate_pair(equal, "a", "b")
    assert (estimate.interval, estimate.p_value) == ((0.0, 0.0), 1.0)
    apart = {row: {seed: 0.1 * number + 0.7 * seed for seed in range(3)} for number, row in enumerate("abcd")}
    assert estimate_pair(apart, "a", "d").half_width == pytest.approx(0.0, abs=1e-9)
    twins = {**SCORES, "e": SCORES["a"]}
    rest = 2 * sum_residuals(twins) / 6  # their own variance of 0 takes no part in the residuals
    estimate = estimate_pair(twins, "a", "e")
    assert estimate.mean == 0 and estimate.seed_variance == pytest.approx(6 / 8 * rest) and estimate.seed_df == 6


def test_more_seeds_have_more_degrees_of_freedom_in_proportion():
    estimate = Estimate(1.0, 3, 2.0, seed_df=7.5)
    reach = lambda count: stats.t.ppf(0.975, 7.5 * (count - 1) / 2) * math.sqrt(2.0 / count)
    needed = next(count for count in range(4, 200) if reach(count) < 1.0)
    assert reach(3) > 1 and reach(needed - 1) >= 1.0 and estimate.count_more_seeds() == needed - 3
    assert estimate.compute_half_width(num_seeds=9) == pytest.approx(reach(9))


# Missing seeds and noisy rows -----------------------------------------------------------------------------------------


def test_a_column_with_missing_seeds_is_fitted_by_least_squares():
    scores = {
        "a": {0: 71.0, 1: 70.2, 2: 73.5},
        "b": {0: 69.5, 1: 69.9, 2: 70.0, 3: 68.0},
        "c": {1: 66.9, 2: 67.7, 3: 66.0},
        "d": {7: 60.0, 8: 61.0},  # shares no seed
    }
    # The normal equations by hand: each row's mean of residuals is 0, and each seed's.
    cells = [(row, seed) for row in "abc" for seed in scores[row]]
    columns = [*"abc", 1, 2, 3]  # seed 0 is the reference
    design = np.array([[float(name in cell) for name in columns] for cell in cells])
    values = np.array([scores[row][seed] for row, seed in cells])
    residuals = values - design @ np.linalg.solve(design.T @ design, design.T @ values)
    assert fit_residuals(scores) == Residuals(pytest.approx(float(residuals @ residuals)), 10 - 6)
    own = np.var([scores["b"][seed] - scores["c"][seed] for seed in (1, 2, 3)], ddof=1)
    rest = 2 * (float(residuals @ residuals) - own) / 2
    weight = math.sqrt(stats.f.sf(own / rest, 2, 2))
    estimate = estimate_pair(scores, "b", "c")
    assert estimate.num_seeds == 3
    assert estimate.seed_variance == pytest.approx(weight * (own + rest) / 2 + (1 - weight) * own)
    assert estimate_difference(scores["a"], scores["d"]) is None


def test_a_row_of_far_more_variance_is_left_out_and_judged_by_its_own_seeds():
    scores = SCORES | {"e": {0: 20.0, 1: 75.0, 2: 50.0}}
    noise = estimate_seed_noise(scores)
    assert noise == SeedNoise(fit_residuals(SCORES), ("a", "b", "c", "d"), ("e",))
    assert estimate_pair(scores, "a", "e") == estimate_difference(scores["a"], scores["e"])
    assert estimate_pair(scores, "a", "b") == estimate_pair(SCORES, "a", "b")
    assert estimate_seed_noise(SCORES).noisy_rows == ()
    assert describe_noisy_rows("MNLI", ("e",)).startswith("MNLI: e varies more")


def test_a_row_is_left_out_where_its_f_test_is_significant_after_bonferroni():
    scaled = lambda factor: SCORES | {"e": {0: 70.0, 1: 70.0 - factor, 2: 70.0 + factor}}

    def compute_p(scores) -> float:
        others = sum_residuals(SCORES)
        return 5 * stats.f.sf((sum_residuals(scores) - others) / 2 / (others / 6), 2, 6)

    factors = np.linspace(0.5, 15, 30)
    p_values = [compute_p(scaled(factor)) for factor in factors]
    assert p_values[0] > 0.05 > p_values[-1]
    for factor, p_value in zip(factors, p_values, strict=True):
        assert (estimate_seed_noise(scaled(factor)).noisy_rows == ("e",)) == (p_value < 0.05)


# Coverage -------------------------------------------------------------------------------------------------------------


def measure_coverage(stds, num_seeds: int, num_tables: int, skewed: bool = False) -> dict[tuple[float, float], float]:
    """Return the coverage of true differences by the deviations of the two rows, with effects of the seeds."""
    rng, names = np.random.default_rng(11), [str(number) for number in range(len(stds))]
    hits: dict[tuple[float, float], list[bool]] = {}
    for _ in range(num_tables):
        shape = (len(stds), num_seeds)
        noise = (rng.gamma(4.0, size=shape) - 4) / 2 if skewed else rng.normal(size=shape)
        values = 60 + 2 * rng.normal(size=num_seeds) + np.array(stds)[:, None] * noise
        scores = {name: dict(enumerate(row)) for name, row in zip(names, values.tolist(), strict=True)}
        column = estimate_seed_noise(scores)
        for first, second in itertools.combinations(range(len(stds)), 2):
            pair = names[first], names[second]
            estimate = borrow_variance(estimate_difference(scores[pair[0]], scores[pair[1]]), column, *pair)
            low, high = estimate.interval
            hits.setdefault(tuple(sorted((stds[first], stds[second]))), []).append(low <= 0 <= high)
    return {kind: float(np.mean(values)) for kind, values in hits.items()}


@pytest.mark.parametrize("num_rows, num_seeds", [(3, 3), (5, 3), (8, 3), (5, 5)])
def test_intervals_cover_rows_of_equal_variance(num_rows, num_seeds):
    ((_, coverage),) = measure_coverage([1.0] * num_rows, num_seeds, 400).items()
    assert 0.94 <= coverage <= 0.98


@pytest.mark.parametrize(
    "stds, num_seeds, skewed",
    [
        ([3.0, 3.0, 1.0], 3, False),
        ([10.0] + [1.0] * 4, 3, True),
        *(
            pytest.param(*case, marks=pytest.mark.live)
            for case in (
                ([3.0] * 3 + [1.0] * 2, 3, False),
                ([3.0] * 4 + [1.0] * 4, 3, True),
                ([10.0, 1.0, 1.0], 3, False),
                ([10.0] + [1.0] * 4, 5, False),
                ([0.1] + [1.0] * 4, 3, False),
                ([3.0] + [1.0] * 4, 3, False),
            )
        ),
    ],
)
def test_intervals_cover_every_kind_of_pair_of_rows_of_unequal_variance(stds, num_seeds, skewed):
    coverage = measure_coverage(stds, num_seeds, 400, skewed)
    assert len(coverage) >= 2 and min(coverage.values()) >= 0.895


def test_a_difference_is_found_more_often_than_by_a_pair_alone():
    rng, found = np.random.default_rng(12), {"alone": 0, "column": 0}
    for _ in range(300):
        values = np.array([4 * math.sqrt(2 / 3), 0, 0, 0, 0])[:, None] + rng.normal(size=(5, 3))
        scores = {str(number): dict(enumerate(row)) for number, row in enumerate(values.tolist())}
        alone = estimate_difference(scores["0"], scores["1"])
        column = borrow_variance(alone, estimate_seed_noise(scores), "0", "1")
        found["alone"] += alone.interval[0] > 0
        found["column"] += column.interval[0] > 0
    assert 0.5 < found["alone"] / 300 < 0.65 and 0.72 < found["column"] / 300 < 0.86


@pytest.mark.parametrize("seed_std, item_std", [(0.3, 0.2), (0.05, 0.6)])
def test_intervals_over_seeds_of_a_column_and_items_cover_the_truth(seed_std, item_std):
    rng, hits, num_rows, num_seeds, num_items = np.random.default_rng(13), [], 4, 3, 200
    abilities = np.linspace(0.0, 0.6, num_rows)
    shares = stats.norm.cdf(abilities / math.sqrt(1 + item_std**2 + seed_std**2 + 0.25))
    for _ in range(200):
        latent = abilities[:, None, None] + rng.normal(size=num_items)
        latent = latent + rng.normal(0, item_std, (num_rows, 1, num_items))
        latent = latent + rng.normal(0, seed_std, (num_rows, num_seeds, 1))
        answers = (latent + rng.normal(0, 0.5, (num_rows, num_seeds, num_items)) > 0).astype(float)
        scores = {str(row): dict(enumerate(answers[row].mean(axis=1).tolist())) for row in range(num_rows)}
        column = estimate_seed_noise(scores)
        for first, second in itertools.combinations(range(num_rows), 2):
            items = estimate_item_variance(answers[first] - answers[second])
            estimate = estimate_difference(scores[str(first)], scores[str(second)], items)
            low, high = borrow_variance(estimate, column, str(first), str(second)).interval
            hits.append(low <= shares[first] - shares[second] <= high)
    assert 0.93 <= np.mean(hits) <= 0.985
