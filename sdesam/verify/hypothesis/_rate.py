"""How fast the weak error of a stated drift falls along a path `rho = c eta^(alpha/beta)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from sdesam.optim import Chain
from sdesam.sampling import Sampling
from sdesam.variants import Variant
from sdesam.verify.coefficients import (
    Setting,
)
from sdesam.verify.exact.enumerate import one_step
from sdesam.verify.exact.torus import Torus
from sdesam.verify.exact.weak import TOLERANCE, fit_slope
from sdesam.verify.hypothesis._settings import chain_at, own_problem
from sdesam.verify.hypothesis._stated import Hypothesis, Stated

RATES = ((1 / 32, 1 / 64, 1 / 128), (1 / 128, 1 / 256, 1 / 512), (1 / 512, 1 / 1024, 1 / 2048))
"""Learning rates at which the weak error is measured, and smaller ones in case it does not fall as
it should at the first.
"""
_PATH = 0.5
"""`c` of the path `rho = c eta^(alpha/beta)`."""
_HORIZON = 1.0


def path_radius(
    setting: Setting, chain: Callable[[float, float], Chain], lr: float, order: tuple[int, int]
) -> float:
    """`rho` on the path to the weak error's limit."""
    alpha, beta = order
    return _PATH * lr ** (alpha / beta) if chain(lr, 0.0).variant.perturbed else 0.0


# What the slope says. Order (1, 2) claims an error of order eta where rho = 0.5 eta^(1/2): at eta =
# 1/32, 1/64, 1/128 that is rho = 0.088, 0.0625, 0.044. For a right drift the error halves with eta,
# which is slope 1. With a wrong coefficient of rho the error is of the order of rho, that is of
# eta^(1/2), and the slope is 1/2. Coefficients see the limit, the slope sees the rate.
#
# The SDE has the optimizer's own covariance. So whatever error is left is the drift's.
def weak_slope(
    hypothesis: Hypothesis,
    variant: Variant,
    setting: Setting,
    order: tuple[int, int],
    patient: bool,
) -> float:
    """The slope of the weak error of the stated drift, with the true one-step covariance so that it
    alone is judged.

    Args:
        hypothesis: with a drift.
        variant: the optimizer.
        setting: on a torus.
        order: of the SDE.
        patient: whether to go on to smaller rates while the slope is below that of the order.
    """
    chain = partial(chain_at, variant, setting)
    grids = [Torus(2 * np.pi, 2, size, _HORIZON) for size in (22, 30)]
    ends = np.cumsum([len(grid.points) for grid in grids])[:-1]
    stated = Stated(hypothesis, setting, np.concatenate([grid.points for grid in grids]))
    slope = np.nan
    for rates in RATES if patient else RATES[:1]:
        errors, moved = [], []
        for lr in rates:
            rho = path_radius(setting, chain, lr, order)
            drifts = np.split(stated.drift(lr, rho), ends)
            if not all(np.isfinite(drift).all() for drift in drifts):
                raise ValueError(
                    f"the drift is not finite at some of the points it is checked at, on {setting}"
                )
            differences = []
            for grid, drift in zip(grids, drifts, strict=True):
                covariance, expected = _optimizer_on(
                    grid, variant, setting.sampling, setting.eps, setting.own, lr, rho
                )
                # the finer grid measures, and how far the coarser one is from it says how well
                differences.append(grid.common(grid.flow(drift, covariance) - expected))
            errors.append(float(abs(differences[-1]).max()))
            moved.append(float(abs(differences[1] - differences[0]).max()))
        slope = fit_slope(np.array(rates), np.array(errors), np.array(moved))[0]
        if slope >= order[0] - TOLERANCE:
            break
    return slope


@lru_cache(maxsize=64)
def _optimizer_on(
    grid: Torus,
    variant: Variant,
    sampling: Sampling,
    eps: float,
    own: tuple[tuple[str, float], ...],
    lr: float,
    rho: float,
) -> tuple[np.ndarray, np.ndarray]:
    """On the check's own problem, `eta Cov G` at the points of a grid and the optimizer's
    expectations at the horizon.
    """
    setting = Setting(own_problem(), sampling, grid.points, eps, own=own)
    chain = chain_at(variant, setting, lr, rho)
    return lr * one_step(chain, grid.points).covariance, grid.chain(chain)
