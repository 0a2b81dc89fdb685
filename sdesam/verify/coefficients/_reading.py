"""Reading the coefficients of a field in powers of `eta` and `rho`, from values at positive `eta`
and `rho`: by automatic differentiation, or through the polynomial that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Power = tuple[int, int]
"""`(i, j)` of `eta^i rho^j`."""
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


class Read(NamedTuple):
    """A stated coefficient, and how far it still moved."""

    value: np.ndarray
    error: float


Field = Callable[[Sequence[Power], tuple[float, float]], "dict[Power, Read] | None"]
"""A reader of one field's coefficients: `(powers, scales of eta and rho) -> coefficients`, None
where the field is not finite. A scale of zero says that `rho` is always zero."""


# How a coefficient is told from values nearby, with exp(eta), whose coefficient of eta is 1. Its
# derivative is read at eta = 0.01 and at a fourth of that, again and again (first column). If the
# error is of order eta, then (4 * next - this) / 3 has none of that order, and so on:
#
#     read        order 1 removed    order 2 removed
#     1.010050
#     1.002503    0.99998745
#     1.000625    0.99999922         1.00000000261
#     1.000156    0.99999995         1.00000000004
#
# With 12 values and 3 removals the coefficient comes out as 1 to the last digit. The error that
# goes with it is how far the extrapolated value still moved. Where nothing settles, this error is
# large:
#
#     eta + (2/3) eta^(3/2)   The derivatives 1.1, 1.05, 1.025 and so on halve their distance from
#                             1. They are read as 1.00003 with error 3e-5: eta^(1/2) is none of the
#                             powers that are removed.
#     sqrt(eta)               It has no coefficient of eta at all. The derivatives 5, 10, 20, 40
#                             double, and the least error, 5, says that nothing was found.
#
# So what is not analytic is neither taken for right nor for wrong: the finding stays open.
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
        # At Chebyshev's nodes (0.024, 0.206, 0.5, 0.794, 0.976 for degree 4) the polynomial through
        # the values is well conditioned, and none of them is 0, where a formula may divide by lr.
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
    # Moves of 0.10 and then 0.05 (ratio 1/2) are followed by 0.025, 0.0125 and so on: 0.05 in all,
    # as much as the last move. With ratio 0.9 what follows is nine times the last move. With ratio
    # 1 it never ends.
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
