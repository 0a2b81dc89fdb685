"""Stated coefficients beside the optimizer's own: findings, and which finding decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sdesam._util.names import Status
from sdesam.optim import Chain
from sdesam.problems import FiniteSum
from sdesam.sampling import Sampling
from sdesam.symbolic import is_kept
from sdesam.verify.coefficients._reading import Field, Power, Read
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.float64 import mean_step, sample_sizes, step_coefficients

SAME, OTHER = 1e-5, 1e-3
"""A coefficient whose relative deviation is below the first is right, above the second wrong. Right
coefficients come out to about 1e-9, and the smallest wrong theory of interest is off by one per
cent. Nothing here is random: no right theory is refuted by chance."""
_FLOOR = 1e-3
"""A right coefficient below this part of what it could have been counts as zero: deviations are
then measured by this part.
"""


@dataclass(frozen=True)
class Setting:
    """A problem, the sizes of its batches and the points at which coefficients are compared.

    Args:
        problem: few enough mini-batches to list.
        sampling: how they are drawn.
        points: shape `(p, d)`.
        eps: of the normaliser.
        lam: of the Gibbs weights, whose norms are exact.
        own: names and values of the rule's own numbers.
    """

    problem: FiniteSum
    sampling: Sampling
    points: np.ndarray
    eps: float = 0.0
    lam: float | None = None
    own: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.problem.name} with n={self.problem.n}, b={self.sampling.batch},"
            f" m={self.sampling.m}"
        )


@dataclass(frozen=True)
class Finding:
    """One coefficient: of `eta^i rho^j` in the drift, or in the covariance divided by `eta`.

    Args:
        part: `"drift"` or `"covariance"`.
        power: `(i, j)`.
        deviation: distance of the stated from the right coefficient, relative to the right one, or
            to a thousandth of what it could have been where that is larger.
        factor: if the stated coefficient is the right one times a number, that number.
        setting: the problem and sizes.
        error: how far the deviation may be wrong, because the stated coefficient was still moving.
        vanishes: whether the right coefficient is zero.
        terms: what is wrong in it, a sentence for each term, where the terms are known.
    """

    part: str
    power: Power
    deviation: float
    factor: float | None
    setting: str
    error: float = 0.0
    vanishes: bool = False
    terms: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """Whether the coefficient is right, as far as its error lets one say."""
        if not self.deviation - self.error <= OTHER:
            return "refuted"
        return "confirmed" if self.deviation + self.error <= SAME else "inconclusive"

    def __str__(self) -> str:
        i, j = self.power
        monomial = " ".join(f"{name}^{k}" for name, k in (("eta", i), ("rho", j)) if k) or "leading"
        if self.status == "confirmed":
            return f"{monomial}: right (relative deviation {self.deviation:.0e})"
        if self.status == "inconclusive":
            if self.error > SAME:
                return (
                    f"{monomial}: open on {self.setting}: as eta and rho fall, the stated"
                    " coefficient does not settle well enough (relative deviation"
                    f" {self.deviation:.2g}, error {self.error:.2g}); an SDE that is analytic in"
                    " eta and rho would decide"
                )
            return (
                f"{monomial}: open on {self.setting}: relative deviation {self.deviation:.2g},"
                " neither rounding nor clearly wrong"
            )
        if self.vanishes:
            return (
                f"{monomial}: it must vanish on {self.setting}, and is"
                f" {_FLOOR * self.deviation:.3g} of what such a term could be"
            )
        told = (
            f"{monomial}: off by {self.deviation:.3g} of the right coefficient, on {self.setting}"
        )
        if self.factor is not None and abs(self.factor) < SAME:
            told += "; it is missing"
        elif self.factor is not None:
            told += f"; it is {self.factor:.4g} times the right one"
        return told


@dataclass(frozen=True)
class Expansion:
    """One part of a stated SDE in one setting, coefficient by coefficient.

    Args:
        part: `"drift"` or `"covariance"`.
        setting: where.
        found: the stated coefficients.
        right: the optimizer's own.
        scale: what deviations are relative to.
        vanishing: the powers whose right coefficient is zero.
    """

    part: str
    setting: Setting
    found: dict[Power, Read]
    right: dict[Power, np.ndarray]
    scale: dict[Power, float]
    vanishing: frozenset[Power]

    def findings(self) -> list[Finding]:
        """A finding for each coefficient; for `eta^-1` in the covariance only where there is
        something to say.
        """
        each = [self._finding(power) for power in self.right]
        return [
            finding for finding in each if finding.power[0] >= 0 or finding.status != "confirmed"
        ]

    def away(self, lr: float, rho: float) -> np.ndarray:
        """What the deviations of all coefficients add up to."""
        parts = [
            (read.value - self.right[i, j]) * lr**i * rho**j for (i, j), read in self.found.items()
        ]
        return np.asarray(sum(parts))

    def _finding(self, power: Power) -> Finding:
        (value, error), right, scale = self.found[power], self.right[power], self.scale[power]
        factor = None
        square = float(np.vdot(right, right))
        if power not in self.vanishing:
            ratio = float(np.vdot(value, right)) / square
            if _relative(value - ratio * right, scale) < 10 * SAME:
                factor = ratio
        deviation = _relative(value - right, scale)
        return Finding(
            self.part,
            power,
            deviation,
            factor,
            str(self.setting),
            _ratio(error, scale),
            power in self.vanishing,
        )


def kept_powers(order: tuple[int, int], part: str) -> list[Power]:
    """The powers `(i, j)` of `(eta, rho)` that an SDE of this order must have right; for a
    covariance, those of `covariance / eta`.

    At `alpha = 1` the leading covariance is asked for by custom, though no weak error sees it.
    """
    # Order (2, 3) keeps eta^i rho^j in the drift where i/2 + j/3 < 1: 1, rho, rho^2, eta and eta
    # rho. On the path rho = eta^(2/3) all others are as small as the error that is allowed. In the
    # covariance, divided by eta, 1 and rho are left.
    _, beta = order
    if part == "drift":
        return [(i, j) for i in range(2) for j in range(beta) if is_kept(order, i, j)]
    return [(0, j) for j in range(beta) if is_kept(order, 1, j) or j == 0]


def compare_coefficients(
    settings: Sequence[Setting],
    drifts: Sequence[Field | None],
    covariances: Sequence[Field | None],
    chains: Sequence[Callable[[float, float], Chain]],
    order: tuple[int, int],
) -> list[Finding]:
    """Stated against right coefficients, every setting judged: see :func:`summarised` for what is
    kept.

    Args:
        settings: where to compare.
        drifts: per setting, the stated drift of shape `(p, d)`; None where none is stated.
        covariances: per setting, the stated diffusion matrix of shape `(p, d, d)`.
        chains: per setting, the optimizer at given `(lr, rho)`.
        order: which powers to compare.
    """
    each = zip(settings, drifts, covariances, chains, strict=True)
    return summarised([expansion for one in each for expansion in expand(*one, order)])


def summarised(expansions: Sequence[Expansion]) -> list[Finding]:
    """The finding that decides each coefficient, and every open one.

    A refuted finding decides, wherever it was made; what is open elsewhere takes nothing from it,
    and is told beside it. Of several findings that say the same the one of largest deviation is
    kept.
    """
    by_power: dict[tuple[str, Power], list[Finding]] = {}
    for finding in (finding for expansion in expansions for finding in expansion.findings()):
        by_power.setdefault((finding.part, finding.power), []).append(finding)
    kept = []
    # One setting may show what another cannot: a right theory is right in all of them, and one
    # that is wrong somewhere is wrong.
    for findings in by_power.values():
        refuted = [f for f in findings if f.status == "refuted"]
        still_open = [f for f in findings if f.status == "inconclusive"]
        deciding = refuted or ([] if still_open else findings)
        # NaN, of a field that is not finite, counts as the largest
        kept += (
            [max(deciding, key=lambda f: np.nan_to_num(f.deviation, nan=np.inf))]
            if deciding
            else []
        )
        kept += still_open
    return kept


def expand(
    setting: Setting,
    drift: Field | None,
    covariance: Field | None,
    chain: Callable[[float, float], Chain],
    order: tuple[int, int],
) -> list[Expansion]:
    """The stated parts in powers of `eta` and `rho`, beside the optimizer's own."""
    # What is right is read off the optimizer, and no theory is asked. Its step over all
    # mini-batches has the mean E G and the covariance Cov G, both exact. The SDE that agrees with
    # it to order 2 has the drift -E G - (eta/2) (D E G) E G and the diffusion matrix eta Cov G. So
    # the coefficients of rho^j are, with eta^0, those of -E G, and with eta^1, those of the
    # correction.
    unperturbed = not chain(0.1, 0.0).variant.perturbed

    def powers(part: str) -> list[Power]:
        return [(i, j) for i, j in kept_powers(order, part) if not (unperturbed and j)]

    highest = tuple(
        1 + max(j for part, i, j in found)
        for found in _split(powers("drift"), powers("covariance"))
    )
    step = step_coefficients(
        chain(0.1, 0.0),
        setting.points,
        *list_batches(setting.sampling, setting.problem.n),
        highest,  # type: ignore[arg-type]
    )
    squares = sample_sizes(setting.problem, setting.points)
    gradient, bent = np.sqrt(squares.mean(axis=1))
    reach = _reach(float(gradient), float(bent), normalised=chain(0.1, 0.0).variant.normalised)
    scales = (reach[0], 0.0 if unperturbed else reach[1])
    expansions = []
    if drift is not None:
        right = {
            (i, j): -step.correction[j] / 2 if i else -step.mean[j] for i, j in powers("drift")
        }
        size = float(np.sqrt(squares[0].sum()))
        natural = {(i, j): size / reach[0] ** i / reach[1] ** j for i, j in right}
        expansions.append(_expansion("drift", setting, drift, right, natural, scales))
    if covariance is not None:
        right = {(0, j): step.covariance[j] for _, j in powers("covariance")}
        # a covariance must vanish with eta
        right |= {(-1, j): np.zeros_like(value) for (_, j), value in right.items()}
        size = float(np.linalg.norm(squares[0])) / setting.sampling.batch
        natural = {(i, j): size / reach[0] ** i / reach[1] ** j for i, j in right}
        expansions.append(_expansion("covariance", setting, covariance, right, natural, scales))
    return expansions


def nearer_than_read(
    expansion: Expansion,
    drift: Callable[[float, float], np.ndarray],
    chain: Callable[[float, float], Chain],
    lr: float,
    rho: float,
) -> bool:
    """Whether a stated drift is nearer to the optimizer's at given sizes than its coefficients say.

    Then these describe it below the sizes alone, and say nothing of an error measured at them.
    """
    setting = expansion.setting
    mean, bent = mean_step(
        chain(lr, rho), setting.points, *list_batches(setting.sampling, setting.problem.n)
    )
    distance = np.linalg.norm(drift(lr, rho) + mean + lr / 2 * bent)
    return bool(distance < 0.5 * np.linalg.norm(expansion.away(lr, rho)))


def _split(
    drift: list[Power], covariance: list[Power]
) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """The powers of the mean, and those of correction and covariance."""
    every = [("drift", i, j) for i, j in drift] + [("covariance", i, j) for i, j in covariance]
    return [p for p in every if p[:2] == ("drift", 0)], [p for p in every if p[:2] != ("drift", 0)]


def _reach(gradient: float, bent: float, normalised: bool) -> tuple[float, float]:
    """The scales of `eta` and `rho` on which a step changes: `|g| / |H g|`, and the `rho` for which
    `rho u` is a step of that length.
    """
    # a gradient that changes nowhere has no scale, and any will do
    scale = gradient / bent if bent and gradient else 1.0
    return scale, scale * (gradient if normalised and gradient else 1.0)


def _expansion(
    part: str,
    setting: Setting,
    field: Field,
    right: dict[Power, np.ndarray],
    natural: dict[Power, float],
    scales: tuple[float, float],
) -> Expansion:
    # A deviation is relative to the right coefficient. Where that is 0 there is nothing to divide
    # by, so that it is relative to a thousandth of what such a term could have been. An optimizer
    # that forgets its perturbation has no rho^1 at all: beside the theory of m-USAM its deviation
    # is 288, which says that the stated coefficient has 0.288 of the size it could have.
    norms = {power: float(np.linalg.norm(value)) for power, value in right.items()}
    vanishing = frozenset(power for power in right if norms[power] <= _FLOOR * natural[power])
    scale = {power: max(norms[power], _FLOOR * natural[power]) for power in right}
    # a covariance is compared divided by eta
    shift = 1 if part == "covariance" else 0
    stated = field([(i + shift, j) for i, j in right], scales)
    if stated is None:
        raise ValueError(
            f"the {part} is not finite at some of the points it is checked at, on {setting}"
        )
    found = {(i, j): stated[i + shift, j] for i, j in right}
    return Expansion(part, setting, found, right, scale, vanishing)


def _relative(difference: np.ndarray, scale: float) -> float:
    return _ratio(float(np.linalg.norm(difference)), scale)


def _ratio(size: float, scale: float) -> float:
    # where nothing could have been there, anything that is there is wrong
    return size / scale if scale else 0.0 if size == 0 else np.inf
