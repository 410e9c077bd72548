"""Variance of the difference of two rows by seeds, estimated with the help of the other rows of the column.

With three seeds a pair alone has two degrees of freedom, and Student's quantile is 4.3. The rows of a column are
similar networks with the same seeds. Their scores are modelled as row + seed + noise: a two-way analysis of variance
with the seeds as blocks (Fisher, 1935, "The design of experiments", chapter 4), by least squares if some are missing.

- s², the variance of the n differences of the pair, has d = n - 1 degrees of freedom;
- r, twice the mean square of the other residuals of the column, has D of them, (k - 2)(n - 1) of k rows.

If all rows have one variance of the noise, s² and r estimate it independently. P(F ≥ s² / r) in Fisher's
distribution with d and D degrees of freedom says how well they agree. Its square root w is the weight of the pooled
variance, as Smyth (2004, doi:10.2202/1544-6115.1027) shrinks variances, but with a weight of each pair's own:

    variance = w (d s² + D r) / (d + D) + (1 - w) s²

Its degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2). A pair that varies more than the others is
thus judged by its own seeds. One that varies less has nearly the pooled variance, as few seeds cannot show less.

A row of far more variance, such as one that diverges, would widen all intervals. It is left out where the F test of its
part of the residuals has p < 0.05 after Bonferroni's correction. Its pairs have their own variance alone, as have those
of columns of two rows. One seed gives neither a variance to compare with r nor an interval.

Simulated coverage of the intervals of 95 %, in draws that the method was not chosen by: 10,000 tables of 3, 5 and 8
rows with 3 and 5 seeds, at worst over these. After "/" the noise has skewness 1. Brackets have the worst of Student's
intervals of pairs alone. Seeds' common effects cancel.

| standard deviations of the rows   | noisy and noisy  | noisy and quiet  | quiet and quiet  |
|-----------------------------------|------------------|------------------|------------------|
| equal                             | 95.9 / 96.0 [95] |                  |                  |
| of half of the rows three times   | 91.8 / 92.7 [95] | 94.1 / 93.5 [94] | 99.3 / 99.3 [95] |
| of half of the rows ten times     | 91.9 / 92.7 [95] | 90.9 / 89.1 [93] | 95.1 / 95.4 [95] |
| of one row three times            |                  | 90.4 / 90.1 [94] | 96.3 / 96.3 [95] |
| of one row ten times              |                  | 92.5 / 90.8 [93] | 95.1 / 95.4 [95] |
| of one row a tenth                | 93.6 / 94.5 [95] | 96.5 / 95.1 [93] |                  |

With 200 test items the intervals over seeds and items cover 95 to 97 % for equal variances, 91 to 99 % for unequal ones
(800 tables). The pooled variance alone covers 63 % where one of eight rows has ten times the deviation. Two seeds are
too few to find such a row: there intervals cover 86 % at worst.

With three seeds and equal variances a difference of four standard errors is found in 66, 78 and 81 % of the pairs of 3,
5 and 8 rows, by Student's intervals in 57 %. Quiet pairs beside noisy rows may be found less often than by these.
Bonferroni's correction for all pairs of a table of equal means decides one in at most 4 % of the tables where variances
are equal. It is 8 % where they are not, 13 % where half of the rows have ten times the deviation, and 17 % with two
seeds.

A cell's own interval stays Student's: its seeds' common effects are those of the other rows too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import fdtrc

from encoders.reporting.comparisons import ERROR_RATE, Estimate

ROUNDING = 1e-24  # sums of squares below this part of that of all scores are rounding
ScoresByRow = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Residuals:
    """The sum of squares that rows and seeds leave unexplained in a column, and its degrees of freedom."""

    sum_of_squares: float
    df: int


@dataclass(frozen=True)
class SeedNoise:
    """The residuals of the rows of a column that are pooled, and the names of those that vary far more."""

    residuals: Residuals
    rows: tuple[str, ...]
    noisy_rows: tuple[str, ...] = ()


def fit_residuals(scores: ScoresByRow) -> Residuals:
    """Return what a least-squares fit of row + seed leaves of the scores by row and seed."""
    cells = [(row, seed) for row, by_seed in scores.items() for seed in by_seed]
    if not cells:
        return Residuals(0.0, 0)
    values = np.array([scores[row][seed] for row, seed in cells])
    seeds = sorted({seed for _, seed in cells})
    by_row = np.array([[row == other for other in scores] for row, _ in cells], float)
    by_seed = np.array([[seed == other for other in seeds] for _, seed in cells], float)
    design = np.hstack([by_row, by_seed])
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    total = float(np.square(values - design @ solution).sum())
    is_rounding = total < ROUNDING * float(np.square(values).sum())
    return Residuals(0.0 if is_rounding else total, len(cells) - int(rank))


def estimate_seed_noise(scores: ScoresByRow) -> SeedNoise:
    """Return the pooled residuals of a column's scores by row and seed, without rows of far more variance.

    The row with the smallest p-value is left out as long as that is below 0.05 after the correction for all rows.
    """
    rows, noisy_rows = dict(scores), []
    residuals = fit_residuals(rows)
    while len(rows) > 2:
        others = {row: fit_residuals({name: rows[name] for name in rows if name != row}) for row in rows}
        p_values = {row: compare_row(residuals, rest) for row, rest in others.items()}
        noisiest = min(p_values, key=p_values.__getitem__)
        if p_values[noisiest] * len(rows) >= ERROR_RATE:
            break
        noisy_rows.append(noisiest)
        residuals = others[noisiest]
        del rows[noisiest]
    return SeedNoise(residuals, tuple(rows), tuple(noisy_rows))


def compare_row(residuals: Residuals, others: Residuals) -> float:
    """Return the p-value of a row whose residuals are all of a column's less those of the other rows."""
    df = residuals.df - others.df
    if not df or not others.df:
        return 1.0
    mean_square = (residuals.sum_of_squares - others.sum_of_squares) / df
    return compare_variances(mean_square, df, others.sum_of_squares / others.df, others.df)


def compare_variances(first: float, first_df: float, second: float, second_df: float) -> float:
    """Return the p-value of the F test that the first variance is not larger than the second."""
    if first <= 0:
        return 1.0
    return float(fdtrc(first_df, second_df, first / second)) if second > 0 else 0.0


def borrow_variance(estimate: Estimate, noise: SeedNoise, first: str, second: str) -> Estimate:
    """Return the estimate of the difference of two rows with the variance and degrees of freedom of the model above.

    It is unchanged for one seed, for a noisy row, and where no other residuals are.
    """
    if estimate.seed_variance is None or not {first, second} <= set(noise.rows):
        return estimate
    own, own_df = estimate.seed_variance, estimate.num_seeds - 1
    own_squares = own * own_df / 2  # a difference has the variance of two scores
    rest_df = noise.residuals.df - own_df
    if rest_df < 1:
        return estimate
    rest = 2 * max(noise.residuals.sum_of_squares - own_squares, 0.0) / rest_df
    weight = math.sqrt(compare_variances(own, own_df, rest, rest_df))
    from_own = (1 - weight + weight * own_df / (own_df + rest_df)) * own
    from_rest = weight * rest_df / (own_df + rest_df) * rest
    variance = from_own + from_rest
    if not variance:
        return estimate
    df = variance**2 / (from_own**2 / own_df + from_rest**2 / rest_df)
    return replace(estimate, seed_variance=variance, seed_df=df)


def describe_noisy_rows(column: str, noisy_rows: Collection[str]) -> str:
    """Return the sentence that names the rows of a column that are judged by their own seeds."""
    verb = "varies" if len(noisy_rows) == 1 else "vary"
    return (
        f"{column}: {', '.join(noisy_rows)} {verb} more over seeds than the others; such pairs have their own variance."
    )
