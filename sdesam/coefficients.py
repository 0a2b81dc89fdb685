"""Coefficients in powers of `eta` and `rho`: those of a stated SDE beside the optimizer's own.

The optimizer's are derivatives at `rho = 0` of its one-step mean and covariance, all mini-batches listed. A stated field is only
evaluated: polynomials through its values at positive `eta` and `rho` are taken on ever shorter intervals until their coefficients
stand still. So a field that depends on `eta` and `rho` analytically, to any order, has its coefficients read right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from sdesam._names import Status
from sdesam.discrete import Chain
from sdesam.exact.double import mean_step, sample_sizes, step_coefficients
from sdesam.exact.enumerate import list_batches
from sdesam.problems import FiniteSum
from sdesam.sampling import Sampling

Field = Callable[[float, float], np.ndarray]
"""`(lr, rho) -> values at some points`, leading axis the points."""
Power = tuple[int, int]
"""`(i, j)` of `eta^i rho^j`."""

SAME, OTHER = 1e-5, 1e-3
"""A coefficient whose relative deviation is below the first is right, above the second wrong. Right coefficients come out to about 1e-9,
and the smallest wrong theory of interest is off by one per cent. Nothing here is random: no right theory is refuted by chance."""
_FLOOR = 1e-3
"""A right coefficient below this part of what it could have been counts as zero: deviations are then measured by this part."""
_LEVELS = 9
_SHRINK = 4.0
"""Each interval is so many times shorter than the one before; the last is 65536 times shorter than the first, below which rounding wins."""
_STILL = 1e-2 * SAME
_START = 0.4
"""Of the scale on which a field is expected to change: the first interval."""


@dataclass(frozen=True)
class Setting:
    """A problem, the sizes of its batches and the points at which coefficients are compared.

    Args:
        problem: few enough mini-batches to list.
        sampling: how they are drawn.
        points: shape `(p, d)`.
        eps: of the normaliser.
        lam: of the Gibbs weights, whose norms are exact.
    """

    problem: FiniteSum
    sampling: Sampling
    points: np.ndarray
    eps: float = 0.0
    lam: float | None = None

    def __str__(self) -> str:
        return f"{self.problem.name} with n={self.problem.n}, b={self.sampling.batch}, m={self.sampling.m}"


@dataclass(frozen=True)
class Finding:
    """One coefficient: of `eta^i rho^j` in the drift, or in the covariance divided by `eta`.

    Args:
        part: `"drift"` or `"covariance"`.
        power: `(i, j)`.
        deviation: distance of the stated from the right coefficient, relative to the right one, or to a thousandth of what it could have been
            where that is larger.
        factor: if the stated coefficient is the right one times a number, that number.
        setting: the problem and sizes.
        error: how far the deviation may be wrong, because the stated coefficient was still moving.
        vanishes: whether the right coefficient is zero.
    """

    part: str
    power: Power
    deviation: float
    factor: float | None
    setting: str
    error: float = 0.0
    vanishes: bool = False

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
                    f"{monomial}: open on {self.setting}: as eta and rho fall, the stated coefficient does not settle well enough "
                    f"(relative deviation {self.deviation:.2g}, error {self.error:.2g}); an SDE that is analytic in eta and rho would decide"
                )
            return f"{monomial}: open on {self.setting}: relative deviation {self.deviation:.2g}, neither rounding nor clearly wrong"
        if self.vanishes:
            return f"{monomial}: it must vanish on {self.setting}, and is {_FLOOR * self.deviation:.3g} of what such a term could be"
        told = f"{monomial}: off by {self.deviation:.3g} of the right coefficient, on {self.setting}"
        if self.factor is not None and abs(self.factor) < SAME:
            told += "; it is missing"
        elif self.factor is not None:
            told += f"; it is {self.factor:.4g} times the right one"
        return told


class Read(NamedTuple):
    """A stated coefficient, and how far it still moved."""

    value: np.ndarray
    error: float


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
        """A finding for each coefficient; for `eta^-1` in the covariance only where there is something to say."""
        each = [self._finding(power) for power in self.right]
        return [finding for finding in each if finding.power[0] >= 0 or finding.status != "confirmed"]

    def away(self, lr: float, rho: float) -> np.ndarray:
        """What the deviations of all coefficients add up to."""
        parts = [(read.value - self.right[i, j]) * lr**i * rho**j for (i, j), read in self.found.items()]
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
        return Finding(self.part, power, deviation, factor, str(self.setting), _ratio(error, scale), power in self.vanishing)


def kept_powers(order: tuple[int, int], part: str) -> list[Power]:
    """The powers `(i, j)` of `(eta, rho)` that an SDE of this order must have right; for a covariance, those of `covariance / eta`.

    At `alpha = 1` the leading covariance is asked for by custom, though no weak error sees it.
    """
    alpha, beta = order

    def kept(i: int, j: int) -> bool:
        return Fraction(i, alpha) + Fraction(j, beta) < 1

    if part == "drift":
        return [(i, j) for i in range(2) for j in range(beta) if kept(i, j)]
    return [(0, j) for j in range(beta) if kept(1, j) or j == 0]


def compare_coefficients(
    settings: Sequence[Setting],
    drifts: Sequence[Field | None],
    covariances: Sequence[Field | None],
    chains: Sequence[Callable[[float, float], Chain]],
    order: tuple[int, int],
) -> list[Finding]:
    """Stated against right coefficients, every setting judged: see :func:`summarised` for what is kept.

    Args:
        settings: where to compare.
        drifts: per setting, the stated drift `(lr, rho) -> (p, d)`; None where none is stated.
        covariances: per setting, the stated diffusion matrix `(lr, rho) -> (p, d, d)`.
        chains: per setting, the optimizer at given `(lr, rho)`.
        order: which powers to compare.
    """
    each = zip(settings, drifts, covariances, chains, strict=True)
    return summarised([expansion for one in each for expansion in expand(*one, order)])


def summarised(expansions: Sequence[Expansion]) -> list[Finding]:
    """Of each coefficient the finding that decides, and every open one.

    A refuted finding decides, wherever it was made; what is open elsewhere takes nothing from it, and is told beside it. Of several
    findings that say the same the one of largest deviation is kept.
    """
    by_power: dict[tuple[str, Power], list[Finding]] = {}
    for finding in (finding for expansion in expansions for finding in expansion.findings()):
        by_power.setdefault((finding.part, finding.power), []).append(finding)
    kept = []
    for findings in by_power.values():
        refuted = [f for f in findings if f.status == "refuted"]
        still_open = [f for f in findings if f.status == "inconclusive"]
        deciding = refuted or ([] if still_open else findings)
        # NaN, of a field that is not finite, counts as the largest
        kept += [max(deciding, key=lambda f: np.nan_to_num(f.deviation, nan=np.inf))] if deciding else []
        kept += still_open
    return kept


def expand(
    setting: Setting, drift: Field | None, covariance: Field | None, chain: Callable[[float, float], Chain], order: tuple[int, int]
) -> list[Expansion]:
    """The stated parts in powers of `eta` and `rho`, beside the optimizer's own."""
    unperturbed = chain(0.1, 0.0).variant.perturbation == "none"

    def powers(part: str) -> list[Power]:
        return [(i, j) for i, j in kept_powers(order, part) if not (unperturbed and j)]

    highest = tuple(1 + max(j for part, i, j in found) for found in _split(powers("drift"), powers("covariance")))
    step = step_coefficients(chain(0.1, 0.0), setting.points, *list_batches(setting.sampling, setting.problem.n), highest)  # type: ignore[arg-type]
    squares = sample_sizes(setting.problem, setting.points)
    gradient, bent = np.sqrt(squares.mean(axis=1))
    reach = _reach(float(gradient), float(bent), normalised=chain(0.1, 0.0).variant.normaliser != "none")
    expansions = []
    if drift is not None:
        right = {(i, j): -step.correction[j] / 2 if i else -step.mean[j] for i, j in powers("drift")}
        size = float(np.sqrt(squares[0].sum()))
        natural = {(i, j): size / reach[0] ** i / reach[1] ** j for i, j in right}
        expansions.append(_expansion("drift", setting, drift, right, natural, reach, unperturbed))
    if covariance is not None:
        right = {(0, j): step.covariance[j] for _, j in powers("covariance")}
        # a covariance must vanish with eta
        right |= {(-1, j): np.zeros_like(value) for (_, j), value in right.items()}
        size = float(np.linalg.norm(squares[0])) / setting.sampling.batch
        natural = {(i, j): size / reach[0] ** i / reach[1] ** j for i, j in right}
        expansions.append(_expansion("covariance", setting, covariance, right, natural, reach, unperturbed))
    return expansions


def nearer_than_read(expansion: Expansion, drift: Field, chain: Callable[[float, float], Chain], lr: float, rho: float) -> bool:
    """Whether a stated drift is nearer to the optimizer's at given sizes than its coefficients say.

    Then these describe it below the sizes alone, and say nothing of an error measured at them.
    """
    setting = expansion.setting
    mean, bent = mean_step(chain(lr, rho), setting.points, *list_batches(setting.sampling, setting.problem.n))
    distance = np.linalg.norm(drift(lr, rho) + mean + lr / 2 * bent)
    return bool(distance < 0.5 * np.linalg.norm(expansion.away(lr, rho)))


def _split(drift: list[Power], covariance: list[Power]) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """The powers of the mean, and those of correction and covariance."""
    every = [("drift", i, j) for i, j in drift] + [("covariance", i, j) for i, j in covariance]
    return [p for p in every if p[:2] == ("drift", 0)], [p for p in every if p[:2] != ("drift", 0)]


def _reach(gradient: float, bent: float, normalised: bool) -> tuple[float, float]:
    """How far the first interval of `eta` and of `rho` reaches: 0.4 of the scale on which a step changes.

    That is `|g| / |H g|` for `eta`, and the `rho` for which `rho u` is a step of that length.
    """
    # a gradient that changes nowhere has no scale, and any will do
    scale = gradient / bent if bent and gradient else 1.0
    return _START * scale, _START * scale * (gradient if normalised and gradient else 1.0)


def _expansion(
    part: str,
    setting: Setting,
    field: Field,
    right: dict[Power, np.ndarray],
    natural: dict[Power, float],
    reach: tuple[float, float],
    unperturbed: bool,
) -> Expansion:
    norms = {power: float(np.linalg.norm(value)) for power, value in right.items()}
    vanishing = frozenset(power for power in right if norms[power] <= _FLOOR * natural[power])
    scale = {power: max(norms[power], _FLOOR * natural[power]) for power in right}
    found = read(field, scale, reach, unperturbed, shift=1 if part == "covariance" else 0)
    if found is None:
        raise ValueError(f"the {part} is not finite at some of the points it is checked at, on {setting}")
    return Expansion(part, setting, found, right, scale, vanishing)


def read(field: Field, scale: dict[Power, float], reach: tuple[float, float], unperturbed: bool = False, shift: int = 0) -> dict[Power, Read] | None:
    """The Taylor coefficients of a field at `eta = rho = 0`, from its values at positive `eta` and `rho`.

    On each interval, four times shorter than the one before, a polynomial goes through the values at Chebyshev nodes. The error of a
    coefficient is how far it moved from the interval before; of all intervals the one of least error is taken, for each coefficient on
    its own. Truncation falls with the interval like its fourth power, while rounding grows.

    Args:
        field: `(lr, rho) -> values`.
        scale: the powers to read, and the sizes of which a small part of an error will do.
        reach: the first interval in `eta` and in `rho`.
        unperturbed: whether `rho` is always 0.
        shift: added to the powers of `eta`: 1 for a covariance, whose powers are those of it divided by `eta`.

    Returns:
        None if the field is finite on no two intervals.

    >>> found = read(lambda lr, rho: np.array([np.exp(-lr) / (1 + rho)]), {(1, 2): 1.0}, (1.0, 1.0))
    >>> found[1, 2].value.round(4), found[1, 2].error < 1e-5
    (array([-1.]), True)
    """
    highest = [max(i + shift for i, _ in scale), max(j for _, j in scale)]
    best: dict[Power, Read] = {}
    last: dict[Power, float] = {}
    before = None
    for level in range(_LEVELS):
        more = 2 if level < 2 else 4  # few nodes are enough for a polynomial
        lrs, rhos = (_nodes(most + more, end / _SHRINK**level) for most, end in zip(highest, reach, strict=True))
        if unperturbed:
            rhos = np.zeros(1)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.array([[field(float(lr), float(rho)) for rho in rhos] for lr in lrs])
        if not np.isfinite(values).all():
            before = None
            continue
        polynomial = _coefficients(_coefficients(values, lrs, axis=0), rhos, axis=1)
        now = {(i, j): polynomial[i + shift, j] for i, j in scale}
        if before is not None:
            for power, value in now.items():
                moved = float(np.linalg.norm(value - before[power]))
                error = _to_come(moved, last.get(power))
                if power not in best or error < best[power].error:
                    best[power] = Read(value, error)
                last[power] = moved
            if all(best[power].error <= _STILL * size for power, size in scale.items()):
                break
        before = now
    return best or None


def _to_come(moved: float, before: float | None) -> float:
    """How far a coefficient may still move, when it moved so far on this interval and on the one before.

    If moves shrink like a geometric series, all to come add up to its rest. A field with a power that is no whole number shrinks so slowly that the
    rest is many times the last move; an analytic one so fast that the last move is above the rest.
    """
    if not before or not moved:
        return moved
    ratio = moved / before
    return moved * max(1.0, ratio / (1 - ratio)) if ratio < 1 else np.inf


def _nodes(count: int, most: float) -> np.ndarray:
    """Chebyshev nodes inside `(0, most)`."""
    return most * (1 - np.cos(np.pi * (np.arange(count) + 0.5) / count)) / 2


def _coefficients(values: np.ndarray, nodes: np.ndarray, axis: int) -> np.ndarray:
    """The coefficients of the polynomial through `values` at `nodes` along an axis, in place of that axis."""
    moved = np.moveaxis(values, axis, 0)
    scale = max(float(nodes.max()), 1e-300)  # powers of nodes in [0, 1] keep the system well conditioned
    system = np.vander(nodes / scale, increasing=True)
    solved = np.linalg.solve(system, moved.reshape(len(nodes), -1)).reshape(moved.shape)
    powers = scale ** np.arange(len(nodes), dtype=float)
    return np.moveaxis(solved / powers.reshape(-1, *[1] * (moved.ndim - 1)), 0, axis)


def _relative(difference: np.ndarray, scale: float) -> float:
    return _ratio(float(np.linalg.norm(difference)), scale)


def _ratio(size: float, scale: float) -> float:
    # where nothing could have been there, anything that is there is wrong
    return size / scale if scale else 0.0 if size == 0 else np.inf
