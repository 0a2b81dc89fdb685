"""A vector as a combination of others: the coefficients, what is left, and what is not unique."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

DEPENDENT = 1e-10
"""Vectors of length 1 whose combination with coefficients of square sum 1 is shorter than this are
dependent. Rounding leaves about 1e-15; the trees of up to four nodes on the problems that are made
here are above 0.02.
"""
SMALL = 1e-3
"""A vector below this part of the largest of those that it is written in counts as zero: what is
left of it is then measured by this part.
"""
_DIFFERENCE = 1e-4
"""A difference below this part of its terms counts as zero: rounding of them is up to 1e-14."""
_RATIONAL = 1e-10
_MOST_DENOMINATOR = 20_000
"""Falling factorials of sizes up to 7 have no larger denominators. By chance a number lies as near
to such a fraction with a probability of 3 %; formulas ask for agreement at several sizes.
"""


class Combination(NamedTuple):
    """A vector in terms of others.

    Args:
        coefficients: one for each of the others; NaN where it is not unique.
        residual: the length of what is left, relative to `scale`.
        scale: the length of the vector, or a thousandth of the longest of the others where the
            vector is shorter.
        together: the others that cannot be told apart, in groups; a group of one vanishes.
    """

    coefficients: np.ndarray
    residual: float
    scale: float
    together: tuple[tuple[int, ...], ...]


# A worked example, in the plane: v = (2, 3) in terms of a = (1, 0), b = (0, 1), c = (0, 2). The
# vectors b and c point the same way. The null space of the matrix with the rows a, b/|b|, c/|c| is
# spanned by (0, 1, -1)/sqrt(2), and the projection on it has the rows 0; (0, 1/2, -1/2);
# (0, -1/2, 1/2). So a is told apart, with the coefficient 2, and b and c are one group: 3 b and
# 1.5 c are the same, and neither has a coefficient. Nothing is left, so the residual is 0.


def combination(vector: np.ndarray, others: np.ndarray, before: float = 0.0) -> Combination:
    """A vector as a combination of others, by least squares.

    Args:
        vector: any shape.
        others: the same shape behind a leading axis.
        before: the length of what was subtracted to get them, where they are differences: below
            1e-10 of it the others vanish, and what is left is measured by 1e-4 of it at least.

    >>> found = combination(np.array([2.0, 3.0]), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]))
    >>> found.coefficients, found.together
    (array([ 2., nan, nan]), ((1, 2),))
    """
    y, rows = vector.ravel(), others.reshape(len(others), -1)
    lengths = np.linalg.norm(rows, axis=1)
    longest = float(lengths.max(initial=0.0))
    present = lengths > DEPENDENT * max(longest, before)
    units = np.where(present[:, None], rows, 0) / np.where(present, lengths, 1)[:, None]
    # with fewer equations than vectors, equations 0 = 0 beside them, so that `left` is square
    more = max(0, len(units) - units.shape[1])
    left, values, right = np.linalg.svd(np.pad(units, ((0, 0), (0, more))), full_matrices=False)
    kept = values > DEPENDENT
    null = left[:, ~kept]
    inner = right[kept] @ np.pad(y, (0, more))
    coefficients = left[:, kept] @ (inner / values[kept]) / np.where(present, lengths, 1)
    scale = max(float(np.linalg.norm(y)), SMALL * longest, _DIFFERENCE * before)
    rest = float(np.linalg.norm(y - coefficients @ np.where(present[:, None], rows, 0)))
    projection = null @ null.T
    together = _groups(abs(projection) > 1e-6)
    for group in together:
        coefficients[list(group)] = np.nan
    return Combination(coefficients, rest / scale if scale else 0.0, scale, together)


def _groups(linked: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The connected parts of a graph, without nodes that are not linked to themselves."""
    found: list[tuple[int, ...]] = []
    left = [k for k in range(len(linked)) if linked[k, k]]
    while left:
        group, grown = {left[0]}, True
        while grown:
            more = {k for k in left if any(linked[k, j] for j in group)} - group
            group, grown = group | more, bool(more)
        found.append(tuple(sorted(group)))
        left = [k for k in left if k not in group]
    return tuple(found)


def rational(number: float) -> Fraction | float:
    """The fraction that a number is to 1e-10, or the number itself.

    >>> rational(1 / 3 + 1e-12), rational(0.5**0.5)
    (Fraction(1, 3), 0.7071067811865476)
    """
    if not np.isfinite(number):
        return number
    fraction = Fraction(number).limit_denominator(_MOST_DENOMINATOR)
    return fraction if abs(float(fraction) - number) < _RATIONAL * max(1, abs(number)) else number
