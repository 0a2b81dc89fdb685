"""Means with intervals, a trend paired by seed, a difference paired by seed: what the experiments' verdicts rest on.

Every table has one row per seed and one column per condition; a seed fixes the start and the data of all its conditions, so conditions are
compared within seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from scipy import stats

LEVEL = 0.95
ALPHA = 0.01
"""A test's false-alarm rate, before the correction for their number."""

Direction = Literal["rises", "falls"]
Verdict = Literal["confirmed", "refuted", "inconclusive"]


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
        p: one-sided p-value of the predicted order.
        p_reversed: of the reversed order.
        ends: mean difference last minus first condition, with its interval.
    """

    direction: Direction
    statistic: float
    p: float
    p_reversed: float
    ends: Interval

    def verdict(self, alpha: float = ALPHA) -> Verdict:
        """`confirmed` if the predicted order has `p <= alpha`, `refuted` if the reversed order has, else `inconclusive`."""
        return "confirmed" if self.p <= alpha else "refuted" if self.p_reversed <= alpha else "inconclusive"


@dataclass(frozen=True)
class Paired:
    """Whether one condition exceeds another, by Student's t test of the differences by seed.

    Args:
        difference: mean of the differences, with its interval.
        p: two-sided p-value.
    """

    difference: Interval
    p: float

    def verdict(self, direction: Direction, alpha: float = ALPHA) -> Verdict:
        """Whether the difference has the predicted sign: `confirmed` or `refuted` if `p <= alpha`, else `inconclusive`."""
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
    half = float(stats.t.ppf(0.5 + LEVEL / 2, count - 1)) * float(np.std(values, ddof=1)) / sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def band(values: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the interval at each time.

    Args:
        values: shape `(n, times)`.
    """
    ends = [interval(column) for column in np.asarray(values, np.float64).T]
    return tuple(np.array([getattr(end, name) for end in ends]) for name in ("mean", "lower", "upper"))  # type: ignore[return-value]


def trend(table: Any, direction: Direction) -> Trend:
    """Page's trend test: do the columns of `table` rise (fall) from left to right, compared within rows?

    Args:
        table: shape `(seeds, conditions)`, the conditions in the order of the prediction, at least 2 seeds and 3 conditions.
        direction: what is predicted from left to right.

    Raises:
        ValueError: too few seeds or conditions, or values that are not finite.

    Source: E. B. Page 1963, J. Am. Stat. Assoc. 58; `scipy.stats.page_trend_test`.

    >>> trend([[1.0, 2.0, 3.0], [0.0, 2.0, 4.0], [1.0, 1.5, 2.0]], "rises").p < 0.01
    True
    """
    values = np.asarray(table, np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 3:
        raise ValueError(f"a trend needs a table of at least 2 seeds and 3 conditions, not shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a trend cannot be tested on values that are not finite: some runs diverged")
    wanted = values if direction == "rises" else -values
    found, back = stats.page_trend_test(wanted), stats.page_trend_test(-wanted)
    return Trend(direction, float(found.statistic), float(found.pvalue), float(back.pvalue), interval(values[:, -1] - values[:, 0]))


def paired(first: Any, second: Any) -> Paired:
    """The difference `first - second` within seeds.

    Args:
        first: shape `(seeds,)`.
        second: the same seeds in the same order.

    Raises:
        ValueError: other shapes, fewer than two seeds.

    >>> round(paired([2.0, 3.0, 4.5], [1.0, 2.0, 3.0]).p, 3)
    0.02
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"a paired difference needs the same seeds twice, at least 2, not shapes {a.shape} and {b.shape}")
    away = a - b
    spread = float(np.std(away, ddof=1))
    if spread == 0:  # all seeds agree exactly: no test, and none is needed unless they agree on zero
        p = 1.0 if away[0] == 0 else 0.0
    else:
        p = float(2 * stats.t.sf(abs(away.mean()) / (spread / sqrt(len(away))), len(away) - 1))
    return Paired(interval(away), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the chance of any false alarm among all tests is below `alpha` if each is compared with `alpha`.

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
