"""Means with intervals, a trend paired by seed, a difference paired by seed: what the experiments'
verdicts rest on.

Every table has one row per seed and one column per condition; a seed fixes the start and the data
of all its conditions, so conditions are compared within seeds. Both tests are exact, by
permutations within seeds: they keep their level with ties and with few seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import Any, Literal

import numpy as np
from scipy import stats

from sdesam._util.names import Status

LEVEL = 0.95
ALPHA = 0.01
"""A test's false-alarm rate, before the correction for their number: where conditions do not
differ, a test says so in at most one case in a hundred."""
_LISTED = 15
"""Up to so many seeds all patterns of signs are listed; beyond, as many are drawn as 15 seeds have,
which keeps the level too.
"""
_MOST_CONDITIONS = 12
"""The law of Page's statistic is a sum over subsets of the conditions."""

Direction = Literal["rises", "falls"]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval (Student's t).

    Args:
        mean: of the values.
        lower: end of the interval; NaN for a single value.
        upper: the same.
        count: how many values.
    """

    mean: float
    lower: float
    upper: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.lower:.4g}, {self.upper:.4g}]"


@dataclass(frozen=True)
class Trend:
    """Whether conditions are ordered as said, by Page's test, paired by seed.

    Args:
        direction: of the prediction.
        statistic: Page's L.
        p: one-sided p-value of the predicted order, exact.
        p_reversed: of the reversed order.
        ends: mean difference last minus first condition, with its interval.
        least: the least step from a condition to the next in the predicted direction, in standard
            errors; negative where a step goes the other way.
    """

    direction: Direction
    statistic: float
    p: float
    p_reversed: float
    ends: Interval
    least: float

    def corrected(self, p: float, tests: int) -> Trend:
        """The trend as one of several tests: with `p` from :func:`holm`, and the reversed order's
        multiplied by their number.
        """
        return replace(self, p=p, p_reversed=min(1.0, self.p_reversed * tests))

    @property
    def p_order(self) -> float:
        """The p-value of the order, and 1 where the conditions are not told apart: where a step is
        less than its own standard error.

        Page's test has a small p-value for many orders at once, such as 0, 5, 4.5. Where a step is
        within its standard error of 0, the order with its two ends exchanged stands as well, and
        neither is confirmed.
        """
        # means 0, 5, 4.5 "rise": both larger values are on the right, and Page's L is large. But
        # the step from 5 to 4.5 is negative, and 5, 4.5 exchanged rises as well.
        return self.p if self.least >= 1 else 1.0

    def verdict(self, alpha: float = ALPHA) -> Status:
        """`confirmed` if `p_order <= alpha`, `refuted` if the reversed order has `p <= alpha`, else
        `inconclusive`.

        False alarms: at most `alpha` where conditions do not differ. Where they differ but one step
        is zero, that step exceeds its standard error in one case of six.
        """
        return (
            "confirmed"
            if self.p_order <= alpha
            else "refuted"
            if self.p_reversed <= alpha
            else "inconclusive"
        )


@dataclass(frozen=True)
class Paired:
    """Whether one condition exceeds another, by the signs of the differences within seeds.

    Args:
        difference: mean of the differences, with its interval.
        p: two-sided p-value, at least `2^(1 - seeds)`: with fewer than eight seeds nothing is
            significant at 1 %.
    """

    difference: Interval
    p: float

    def verdict(self, direction: Direction, alpha: float = ALPHA) -> Status:
        """Whether the difference has the predicted sign: `confirmed` or `refuted` if `p <= alpha`,
        else `inconclusive`.

        False alarms: at most `alpha` for any number of seeds, ties among them or not.
        """
        if not self.p <= alpha:
            return "inconclusive"
        return "confirmed" if (self.difference.mean > 0) == (direction == "rises") else "refuted"


def interval(values: Any) -> Interval:
    """The mean of independent values and its 95 % interval, `mean +- t_{0.975, n-1} s / sqrt(n)`.

    Args:
        values: shape `(n,)`.

    >>> print(interval([1.0, 2.0, 3.0]))
    2 [-0.4841, 4.484]
    """
    values = np.asarray(values, np.float64)
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, np.nan, np.nan, count)
    half = (
        float(stats.t.ppf(0.5 + LEVEL / 2, count - 1)) * float(np.std(values, ddof=1)) / sqrt(count)
    )
    return Interval(mean, mean - half, mean + half, count)


def band(values: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the interval at each time.

    Args:
        values: shape `(n, times)`.
    """
    ends = [interval(column) for column in np.asarray(values, np.float64).T]
    return tuple(
        np.array([getattr(end, name) for end in ends]) for name in ("mean", "lower", "upper")
    )  # type: ignore[return-value]


def trend(table: Any, direction: Direction) -> Trend:
    """Page's trend test: do the columns of `table` rise (fall) from left to right, compared within
    rows?

    Its p-value is exact: of all ways to permute the values within each row, ties included, the
    share with as large an L.

    Args:
        table: shape `(seeds, conditions)`, the conditions in the order of the prediction, at least
            2 seeds and 3 to 12 conditions.
        direction: what is predicted from left to right.

    Raises:
        ValueError: too few seeds, too few or too many conditions, or values that are not finite.

    Source: E. B. Page 1963, J. Am. Stat. Assoc. 58.

    >>> found = trend([[1.0, 2.0, 3.0], [0.0, 2.0, 4.0], [1.0, 1.5, 2.0]], "rises")
    >>> round(found.p * 6**3, 9)  # the only one of 216 permutations with so large an L
    1.0
    """
    values = np.asarray(table, np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 3:
        raise ValueError(
            f"a trend needs a table of at least 2 seeds and 3 conditions, not shape {values.shape}"
        )
    if values.shape[1] > _MOST_CONDITIONS:
        raise ValueError(
            f"a trend over {values.shape[1]} conditions: at most {_MOST_CONDITIONS} can be tested"
            " exactly"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            "a trend cannot be tested on values that are not finite: some runs diverged"
        )
    wanted = values if direction == "rises" else -values
    doubled = np.round(2 * stats.rankdata(wanted, axis=1)).astype(int)  # tied ranks are halves
    chance = np.ones(1)
    for row in doubled:
        chance = np.convolve(chance, _row_chances(tuple(sorted(row))))
    found = int((doubled @ np.arange(1, doubled.shape[1] + 1)).sum())
    steps = np.diff(wanted, axis=1)
    p, p_reversed = (min(1.0, float(part.sum())) for part in (chance[found:], chance[: found + 1]))
    return Trend(
        direction,
        found / 2,
        p,
        p_reversed,
        interval(values[:, -1] - values[:, 0]),
        min(_in_errors(step) for step in steps.T),
    )


# How the law of L comes about, for one row of three conditions without ties. L = 1 r_1 + 2 r_2 +
# 3 r_3 with the ranks r in any order, all six equally likely:
#
#     order of ranks    1 2 3    1 3 2    2 1 3    2 3 1    3 1 2    3 2 1
#     L                   14       13       13       11       11       10
#
# So L is 14 with chance 1/6, 13 with 2/6, 11 with 2/6, 10 with 1/6. Rows are independent, and the L
# of a table is the sum of its rows', so the laws are convolved. With two rows the largest L, 28,
# has chance 1/36, and that is the p-value of a table in which both rows rise.
#
# Listing the orders of twelve conditions, 479 million, is too much. `_row_chances` places one rank
# after the other instead, and keeps for each *set* of ranks that are placed the law of what they
# add: 4,096 sets. Ranks are doubled because tied values share a rank, which may be a half.


@lru_cache(maxsize=64)
def _row_chances(doubled: tuple[int, ...]) -> np.ndarray:
    """The law of `2 sum_j j r_j` over all orders of one row's ranks: the chance of 0, 1, 2, ...

    For (2, 4), the doubled ranks 1 and 2: `1*2 + 2*4 = 10` and `1*4 + 2*2 = 8`, each with chance
    1/2.
    """
    k = len(doubled)
    most = sum(j * rank for j, rank in enumerate(doubled, 1))
    law = {0: np.ones(1)}  # by the set of ranks that are placed, as bits
    for placed in range(2**k - 1):
        chances, j = law.pop(placed), placed.bit_count() + 1
        for i in range(k):
            if not placed >> i & 1:
                after = law.setdefault(placed | 1 << i, np.zeros(most + 1))
                shift = j * doubled[i]
                after[shift : shift + len(chances)] += chances[: most + 1 - shift] / (k + 1 - j)
    return law[2**k - 1]


def _in_errors(differences: np.ndarray) -> float:
    """The mean of differences in its standard errors; infinite where all are equal, 0 where all are
    0.
    """
    mean, error = (
        float(differences.mean()),
        float(np.std(differences, ddof=1)) / sqrt(len(differences)),
    )
    return mean / error if error else float(np.sign(mean)) * np.inf if mean else 0.0


def paired(first: Any, second: Any) -> Paired:
    """The difference `first - second` within seeds, tested by exchanging the two in every way.

    If the conditions do not differ, a seed's difference is as likely as its negative. The p-value
    is the share of all patterns of signs whose sum is at least as far from 0 as the one that was
    found.

    Args:
        first: shape `(seeds,)`.
        second: the same seeds in the same order.

    Raises:
        ValueError: other shapes, fewer than two seeds, values that are not finite.

    >>> first, second = [2.0, 3.0, 4.5], [1.0, 2.0, 3.0]
    >>> paired(first, second).p  # 2 of 8 patterns: all differences positive, or all negative
    0.25
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"a paired difference needs the same seeds twice, at least 2, not shapes {a.shape} and"
            f" {b.shape}"
        )
    away = a - b
    if not np.isfinite(away).all():
        raise ValueError(
            "a difference cannot be tested on values that are not finite: some runs diverged"
        )
    # sums of equal numbers in another order differ by rounding
    far = abs(_signs(len(away)) @ away) >= abs(away.sum()) - 1e-12 * abs(away).sum()
    return Paired(interval(away), float(np.mean(far)))


@lru_cache(maxsize=4)
def _signs(seeds: int) -> np.ndarray:
    """Patterns of signs, one a row; the first is all plus, as found."""
    if seeds <= _LISTED:
        return np.asarray(1.0 - 2 * (np.arange(2**seeds)[:, None] >> np.arange(seeds) & 1))
    drawn = np.random.default_rng(0).choice([-1.0, 1.0], size=(2**_LISTED, seeds))
    drawn[0] = 1
    return drawn


# Three tests have the p-values 0.01, 0.04, 0.03. From the smallest up, each is multiplied by how
# many are left, and none may be smaller than the one before:
#
#     0.01 * 3 = 0.03
#     0.03 * 2 = 0.06
#     0.04 * 1 = 0.04, raised to 0.06
#
# At 5 % the first is significant and the others are not, though alone they would be. Multiplying
# all by 3 (Bonferroni) would be right as well, and weaker: 0.03, 0.12, 0.09.
def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the chance of any false alarm among all tests is below `alpha` if
    each is compared with `alpha`.

    Source: S. Holm 1979, Scand. J. Stat. 6.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, k in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[k])
        adjusted[k] = min(1.0, largest)
    return [float(p) for p in adjusted]
