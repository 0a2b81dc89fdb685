"""Moments over paths, merged from those of chunks, of devices and of processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A worked example. One chunk has the values 1 and 3, another one 5, 7 and 9:
#
#     count  mean  squares                     count  mean  squares
#     2      2     (1-2)^2 + (3-2)^2 = 2       3      7     4 + 0 + 4 = 8
#
# The gap of the means is 5. Together there are 5 values of the mean 2 + 5 * 3/5 = 5, and the
# squared deviations are 2 + 8 + 5^2 * 2 * 3/5 = 40: those of 1, 3, 5, 7 and 9 from 5 are
# 16 + 4 + 0 + 4 + 16.
#
# Sums of squares about zero would be simpler to merge. But a mean of 1e6 with deviations of size 1
# has squares of 1e12, and their difference loses twelve of sixteen digits.


@dataclass
class Moments:
    """Moments over paths of one observable, merged in float64 (Chan, Golub & LeVeque 1983); arrays
    of shape `(times, ...)`.
    """

    count: np.ndarray
    """How many values are in the mean: those that are finite."""
    mean: np.ndarray
    squares: np.ndarray
    """The sum of squared deviations from the mean."""
    lost: np.ndarray
    """How many values are not finite."""

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Moments:
        """Those of no path."""
        return cls(
            np.zeros(shape, int), np.full(shape, np.nan), np.zeros(shape), np.zeros(shape, int)
        )

    def add(self, other: Moments) -> None:
        """Merge those of other paths."""
        total = self.count + other.count
        here, there = self.count > 0, other.count > 0
        both = here & there
        gap = np.where(both, other.mean, 0) - np.where(both, self.mean, 0)
        divisor = np.maximum(total, 1)
        self.squares = self.squares + other.squares + gap**2 * (self.count * other.count / divisor)
        self.mean = np.where(here, self.mean + gap * (other.count / divisor), other.mean)
        self.count, self.lost = total, self.lost + other.lost

    @property
    def stderr(self) -> np.ndarray:
        """The standard error of the mean; NaN for fewer than two values."""
        known = self.count > 1
        count = np.where(known, self.count, 2)
        return np.where(known, np.sqrt(self.squares / (count - 1) / count), np.nan)
