"""Ways to make a wrong theory from a right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.symbolic import ModifiedEquation, derive
from sdesam.verify.coefficients import Setting

Change = Callable[[ModifiedEquation], ModifiedEquation]


def scaled(name: str, factor: Any) -> Change:
    """The equation with the coefficients of one part multiplied."""

    def change(equation: ModifiedEquation) -> ModifiedEquation:
        parts = tuple(
            replace(p, trees=p.trees * factor) if p.name == name else p for p in equation.parts
        )
        split = len(equation.drift_parts)
        return replace(equation, drift_parts=parts[:split], noise_parts=parts[split:])

    return change


def without(term: str) -> Change:
    return lambda equation: equation.without(term)


def of_other_sampling(what: str) -> Change:
    """Drift or noise of the equation for the other sampling."""

    def change(equation: ModifiedEquation) -> ModifiedEquation:
        other = derive(equation.variant, equation.order, not equation.replace)
        if what == "drift":
            return replace(equation, drift_parts=other.drift_parts)
        return replace(equation, noise_parts=other.noise_parts)

    return change


def _gbar(setting: Setting) -> np.ndarray:
    grads = jax.vmap(setting.problem.grad)(jnp.asarray(setting.points, setting.problem.x0.dtype))
    return np.asarray(grads, float)


def not_centred(
    B: np.ndarray, C: np.ndarray, lr: float, setting: Setting
) -> tuple[np.ndarray, np.ndarray]:
    # E[g g^T] / b in place of Cov(g) / b: the mean's own square is not taken off
    g = _gbar(setting)
    return B, C + lr / setting.sampling.batch * g[:, :, None] * g[:, None, :]


def too_little(
    B: np.ndarray, C: np.ndarray, lr: float, setting: Setting
) -> tuple[np.ndarray, np.ndarray]:
    g = _gbar(setting)
    return B, C - 0.1 * lr * g[:, :, None] * g[:, None, :]
