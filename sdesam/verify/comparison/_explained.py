"""The share of a term's effect that an SDE explains: its value, its interval, the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from sdesam._util.names import Status

LEVEL = 0.95
"""Of the intervals that are shown. A verdict rests on one end of such an interval, and is wrong
with probability 2.5 % at most.
"""
ENOUGH = 0.9
"""The share whose lower confidence bound confirms."""
VISIBLE = 4.0
"""Standard errors by which the SDE without the term must miss the chain to count as rejected; a
true theory is rejected by chance with probability 6e-5 per comparison (two-sided, normal)."""


@dataclass(frozen=True)
class ExplainedShare:
    """How much of the gap that is left without a term the full SDE closes, in one observable at the
    final time.

    Args:
        value: `1 - |SDE - chain| / |SDE without - chain|`.
        lower: its 95 % confidence interval (Fieller's, for the ratio of the two signed
            differences); -inf where unbounded.
        upper: the same.
        gap: `SDE - chain`, in standard errors.
        ablation: `SDE without - chain`, in standard errors.
        effect: `SDE without - SDE`, in standard errors: whether the term moves the observable at
            all.
    """

    value: float
    lower: float
    upper: float
    gap: float
    ablation: float
    effect: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


# How a share is computed, with numbers. The optimizer ends at 5.00(0.5), the SDE at 5.02(1.0), the
# SDE without the term at 5.60(1.0); in brackets the standard errors, in units of 0.01.
#
#     A = SDE - optimizer         = 0.02      +- sqrt(0.005^2 + 0.01^2) = 0.011
#     B = SDE without - optimizer = 0.60      +- 0.011
#     share = 1 - |A / B|         = 1 - 0.033 = 0.967
#
# B is 54 of its standard errors away from 0, so that its own error matters little: A/B lies in
# 0.033 +- 1.96 * 0.011 / 0.60, that is between -0.003 and 0.070. This interval contains 0, where
# the SDE would agree with the optimizer exactly, so that the share lies in [0.93, 1]: confirmed.
#
#     an SDE at 5.30: share 0.50 in [0.46, 0.54], below 0.9 for certain: refuted
#     the SDE without the term at 5.05: share 0.60 in [0.06, 1]. The term moves the observable by 2
#     standard errors only. More runs would tell; these cannot: inconclusive
#
# That A and B share the optimizer's mean, and the two SDEs their noise, is why the covariance of
# all three means is asked for and not three errors.
def share_explained(
    chain: float, sde: float, without: float, covariance: np.ndarray, quantile: float
) -> ExplainedShare:
    """The share of the gap without a term that the SDE closes, with Fieller's interval.

    With `A = sde - chain` and `B = without - chain` the interval of `r = A/B` is the set where
    `(A - rB)^2 <= q^2 Var(A - rB)`; it is bounded only where `B` differs from 0. The share is
    `1 - |r|`.

    Args:
        chain: mean of the optimizer's runs.
        sde: mean of the SDE.
        without: mean of the SDE without the term.
        covariance: of the three means, shape `(3, 3)`.
        quantile: `q`, of Student's t.

    Source: E. C. Fieller 1954, J. R. Stat. Soc. B 16.

    >>> share = share_explained(0.0, 0.1, 2.0, np.diag([1e-4, 1e-4, 1e-4]), 1.96)
    >>> round(share.value, 3), round(share.lower, 2), round(share.upper, 2)
    (0.95, 0.94, 0.96)
    """
    a, b = sde - chain, without - chain
    to_a, to_b = np.array([-1.0, 1.0, 0.0]), np.array([-1.0, 0.0, 1.0])
    var_a, var_b, cov_ab = (
        float(u @ covariance @ v) for u, v in ((to_a, to_a), (to_b, to_b), (to_a, to_b))
    )
    # Fieller's set is {r : (A - rB)^2 <= q^2 Var(A - rB)}, a quadratic inequality in r. Where B is
    # not different from 0 (q2 <= 0) the set is a half-line, its complement, or everything.
    lower, upper = -inf, 1.0
    # q2 r^2 + q1 r + q0 <= 0
    q2, q1, q0 = (
        b**2 - quantile**2 * var_b,
        -2 * (a * b - quantile**2 * cov_ab),
        a**2 - quantile**2 * var_a,
    )
    if q2 > 0:
        middle, half = -q1 / (2 * q2), sqrt(max(q1**2 - 4 * q2 * q0, 0.0)) / (2 * q2)
        # r may have either sign, because an SDE may overshoot: |r| is largest at one of the ends,
        # and its least value is 0 where the interval contains 0
        ends = abs(middle - half), abs(middle + half)
        lower = 1 - max(ends)
        upper = 1.0 if half >= abs(middle) else 1 - min(ends)
    return ExplainedShare(
        value=1 - abs(a / b) if b else -inf,
        lower=lower,
        upper=upper,
        gap=a / sqrt(var_a) if var_a else np.nan,
        ablation=b / sqrt(var_b) if var_b else np.nan,
        # identical runs have an effect of exactly zero, with no error
        effect=(
            (b - a) / sqrt(var_a + var_b - 2 * cov_ab)
            if var_a + var_b > 2 * cov_ab
            else 0.0
            if a == b
            else np.inf
        ),
    )


def judge(share: ExplainedShare, observable: str, term: str) -> tuple[Status, str]:
    """The verdict on one share, and its reason."""
    if share.effect == 0:
        return (
            "inconclusive",
            (
                f"{term!r} does not move {observable} at all here: the term vanishes on this"
                " problem or at these numbers"
            ),
        )
    # Two things must be seen before a share means anything: that the runs reject the SDE without
    # the term (B), and that the term moves the observable (B - A). Otherwise the share is noise
    # over noise.
    if not min(abs(share.ablation), abs(share.effect)) > VISIBLE:
        return (
            "inconclusive",
            (
                f"without {term!r} the SDE misses {observable} by {abs(share.ablation):.1f}"
                f" standard errors and moves by {abs(share.effect):.1f}, both of which must exceed"
                f" {VISIBLE:g} before the runs can tell whether the term is right; more runs would"
            ),
        )
    seen = f"without {term!r} it misses by {abs(share.ablation):.1f} standard errors"
    if share.lower >= ENOUGH:
        return (
            "confirmed",
            f"the SDE closes a share {share} of the gap in {observable} without the term; {seen}",
        )
    if share.upper < ENOUGH:
        return (
            "refuted",
            (
                f"the SDE closes only a share {share} of the gap in {observable} without the term;"
                f" {seen}"
            ),
        )
    return (
        "inconclusive",
        (
            f"the share {share} of the gap in {observable} without the term may be above or below"
            f" {ENOUGH}; {seen}"
        ),
    )
