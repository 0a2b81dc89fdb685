"""Coefficients in powers of `eta` and `rho`: those of a stated SDE beside the optimizer's own.

The optimizer's are derivatives at `rho = 0` of its one-step mean and covariance, all mini-batches
listed. Those of a stated field are derivatives too, taken at positive `eta` and `rho` that fall to
zero, because a formula may divide by either. So a field that depends on `eta` and `rho`
analytically, to any order, has its coefficients read right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._names import Status
from sdesam.discrete import Chain
from sdesam.exact.enumerate import list_batches
from sdesam.exact.float64 import mean_step, sample_sizes, step_coefficients
from sdesam.problems import FiniteSum
from sdesam.sampling import Sampling

Power = tuple[int, int]
"""`(i, j)` of `eta^i rho^j`."""

SAME, OTHER = 1e-5, 1e-3
"""A coefficient whose relative deviation is below the first is right, above the second wrong. Right
coefficients come out to about 1e-9, and the smallest wrong theory of interest is off by one per
cent. Nothing here is random: no right theory is refuted by chance."""
_FLOOR = 1e-3
"""A right coefficient below this part of what it could have been counts as zero: deviations are
then measured by this part.
"""
_LEVELS = 12
_SHRINK = 4.0
"""Each `eta` and `rho` is so many times smaller than the one before; the last are 4 million times
smaller than the first.
"""
_STEPS = 3
"""Of Richardson's extrapolation: what is left of a coefficient's change falls like the fourth power
of `eta` and `rho`.
"""
_START = 0.01
"""The first `eta` and `rho`, as a part of the scale on which a field is expected to change."""


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


class Read(NamedTuple):
    """A stated coefficient, and how far it still moved."""

    value: np.ndarray
    error: float


Field = Callable[[Sequence[Power], tuple[float, float]], "dict[Power, Read] | None"]
"""A reader of one field's coefficients: `(powers, scales of eta and rho) -> coefficients`, None
where the field is not finite. A scale of zero says that `rho` is always zero."""


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


def differentiated(field: Callable[[jax.Array, jax.Array], jax.Array]) -> Field:
    """The reader of a jax function `(lr, rho) -> values`, by automatic differentiation at positive
    `lr` and `rho`.

    A worked example: `exp(lr)` has the coefficient 1 of `lr`. Its derivative is 1.0100 at
    `lr = 0.01` and 1.0025 at a fourth of that. Richardson's extrapolation
    `(4 * 1.0025 - 1.0100) / 3` is 1.0000, and goes on in the same way with smaller `lr`. The error
    of a coefficient is how far it moved from one `lr` to the next; the one of least error is taken.
    So a formula such as `expm1(lr) / lr`, in which rounding grows as `lr` falls, is read where
    rounding is small.

    The first `lr` and `rho` lie far below 1 and far below the field's own scales, because a tail
    may have either for its scale: on losses of size 1e-4 a step changes on the scale 1e4, where
    `(1 + lr)^-4` stands still at zero.

    >>> found = differentiated(lambda lr, rho: jnp.exp(-lr) / (1 + rho))([(1, 2)], (1.0, 1.0))
    >>> round(float(found[1, 2].value), 6), found[1, 2].error < 1e-8
    (-1.0, True)
    """

    def read(powers: Sequence[Power], scales: tuple[float, float]) -> dict[Power, Read] | None:
        highest = {i: max(j for k, j in powers if k == i) for i, _ in powers}

        @jax.jit
        def local(lr: jax.Array, rho: jax.Array) -> dict[Power, jax.Array]:
            """The Taylor coefficients about `lr`, `rho`."""
            # where a field is infinite, its derivative may be zero
            finite = jnp.isfinite(field(lr, rho)).all()
            found: dict[Power, jax.Array] = {}
            for i, most in highest.items():
                of_rho = partial(_derivative, field, lr, i)
                for j, value in enumerate(_derivatives(of_rho, rho, most)):
                    found[i, j] = jnp.where(finite, value / (factorial(i) * factorial(j)), jnp.nan)
            return {power: found[power] for power in powers}

        tables: dict[Power, list[np.ndarray]] = {power: [] for power in powers}
        for level in range(_LEVELS):
            lr, rho = (_START * min(scale, 1.0) / _SHRINK**level for scale in scales)
            with jax.enable_x64(True):
                for power, value in local(jnp.float64(lr), jnp.float64(rho)).items():
                    tables[power].append(np.asarray(value))
        found = {power: _limit(values) for power, values in tables.items()}
        return (
            {power: read for power, read in found.items() if read is not None}
            if None not in found.values()
            else None
        )

    return read


def interpolated(field: Callable[[float, float], np.ndarray], degree: int = 4) -> Field:
    """The reader of a polynomial in `lr` and `rho` that can only be evaluated, such as the SDE of a
    modified equation.

    Args:
        field: `(lr, rho) -> values`.
        degree: at least that of the polynomial in `lr`, and in `rho`.

    >>> found = interpolated(lambda lr, rho: np.array(3 * lr * rho**2))(
    ...     [(1, 1), (1, 2)], (1.0, 1.0)
    ... )
    >>> round(float(found[1, 2].value), 9)
    3.0
    """

    def read(powers: Sequence[Power], scales: tuple[float, float]) -> dict[Power, Read] | None:
        nodes = (1 - np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))) / 2
        # Chebyshev's
        lrs, rhos = (0.4 * scale * nodes if scale else np.zeros(1) for scale in scales)
        values = np.array([[field(float(lr), float(rho)) for rho in rhos] for lr in lrs])
        if not np.isfinite(values).all():
            return None
        polynomial = _coefficients(_coefficients(values, lrs, axis=0), rhos, axis=1)
        return {power: Read(polynomial[power], 0.0) for power in powers}

    return read


def _derivative(
    field: Callable[[jax.Array, jax.Array], jax.Array], lr: jax.Array, order: int, rho: jax.Array
) -> jax.Array:
    """The derivative of a field in `lr`."""
    return _derivatives(lambda x: field(x, rho), lr, order)[order]


def _derivatives(fn: Callable[[jax.Array], jax.Array], at: jax.Array, most: int) -> list[jax.Array]:
    """A function of one number and its derivatives up to the order `most`, each the derivative of
    the one before.
    """
    if most == 0:
        return [fn(at)]
    one = jnp.ones_like(at)
    lower, higher = jax.jvp(lambda x: _derivatives(fn, x, most - 1), (at,), (one,))
    return [*lower, higher[-1]]


def _limit(values: list[np.ndarray]) -> Read | None:
    """The limit of a coefficient as `eta` and `rho` fall, extrapolated; None if it is finite at no
    two of them in a row.
    """
    best: Read | None = None
    for step in range(_STEPS + 1):
        before = None
        for last, value in pairwise(values):
            if not (np.isfinite(last).all() and np.isfinite(value).all()):
                before = None
                continue
            moved = float(np.linalg.norm(value - last))
            # a move that is small by chance is no sign of rest
            error = (
                moved
                if before is None
                else max(_to_come(moved, before), before / _SHRINK ** (step + 1))
            )
            before = moved
            if best is None or error < best.error:
                best = Read(value, error)
        rate = _SHRINK ** (step + 1)
        values = [(rate * value - last) / (rate - 1) for last, value in pairwise(values)]
    return best


def _to_come(moved: float, before: float) -> float:
    """How far a coefficient may still move, when it moved so far at this `eta` and `rho` and at the
    ones before.

    If moves shrink like a geometric series, all to come add up to its rest. A field with a power
    that is no whole number shrinks so slowly that the rest is many times the last move; an analytic
    one so fast that the last move is above the rest.
    """
    if not before or not moved:
        return moved
    ratio = moved / before
    return moved * max(1.0, ratio / (1 - ratio)) if ratio < 1 else np.inf


def _coefficients(values: np.ndarray, nodes: np.ndarray, axis: int) -> np.ndarray:
    """The coefficients of the polynomial through `values` at `nodes` along an axis, in place of
    that axis.
    """
    moved = np.moveaxis(values, axis, 0)
    # powers of nodes in [0, 1] keep the system well conditioned
    scale = max(float(nodes.max()), 1e-300)
    system = np.vander(nodes / scale, increasing=True)
    solved = np.linalg.solve(system, moved.reshape(len(nodes), -1)).reshape(moved.shape)
    powers = scale ** np.arange(len(nodes), dtype=float)
    return np.moveaxis(solved / powers.reshape(-1, *[1] * (moved.ndim - 1)), 0, axis)


def _relative(difference: np.ndarray, scale: float) -> float:
    return _ratio(float(np.linalg.norm(difference)), scale)


def _ratio(size: float, scale: float) -> float:
    # where nothing could have been there, anything that is there is wrong
    return size / scale if scale else 0.0 if size == 0 else np.inf
