"""Small seeded problems with known structure: quadratics, linear regression, periodic losses on a
torus.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdesam._util.checks import check_int, check_nonnegative
from sdesam.problems.finite_sum import FiniteSum


def _quadratic_loss(x: Any, sample: Any) -> Any:
    away = x - sample["centre"]
    return 0.5 * away @ sample["hessian"] @ away


def quadratic(dim: int = 2, samples: int = 8, seed: int = 0) -> FiniteSum:
    """`f_i(x) = (x - a_i)^T A_i (x - a_i) / 2` with random centres `a_i ~ N(0, I)` and positive
    definite `A_i`.

    Args:
        dim: `d`, the number of parameters.
        samples: `n`.
        seed: of the random coefficients.

    >>> quadratic(dim=3, samples=5)
    FiniteSum('quadratic', n=5, parameters=3)
    """
    d, n = check_int("dim", dim), check_int("samples", samples)
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, d, d)) / np.sqrt(d)
    data = {
        "hessian": root @ root.transpose(0, 2, 1) + 0.5 * np.eye(d),
        "centre": rng.normal(size=(n, d)),
    }
    return FiniteSum(_quadratic_loss, data, np.ones(d), name="quadratic")


def _squared_error(x: Any, sample: Any) -> Any:
    return 0.5 * (sample["input"] @ x - sample["target"]) ** 2


def linear_regression(
    dim: int = 4, samples: int = 64, noise: float = 0.5, seed: int = 0
) -> FiniteSum:
    """`f_i(x) = (a_i . x - y_i)^2 / 2` with Gaussian inputs, a random true parameter and label
    noise of standard deviation `noise`.

    >>> linear_regression(dim=3, samples=5)
    FiniteSum('linear-regression', n=5, parameters=3)
    """
    d, n = check_int("dim", dim), check_int("samples", samples)
    rng = np.random.default_rng(seed)
    inputs, truth = rng.normal(size=(n, d)), rng.normal(size=d)
    targets = inputs @ truth + check_nonnegative("noise", noise) * rng.normal(size=n)
    return FiniteSum(
        _squared_error, {"input": inputs, "target": targets}, np.zeros(d), name="linear-regression"
    )


def _waves(x: Any, sample: Any) -> Any:
    phases = sample["frequency"] @ x
    return jnp.sum(sample["cos"] * jnp.cos(phases) + sample["sin"] * jnp.sin(phases))


def torus(dim: int = 2, samples: int = 4, seed: int = 0) -> FiniteSum:
    """Random trigonometric polynomials of degree up to 2, of period `2 pi` in each of `dim` (1 or
    2) coordinates.

    Every derivative exists and is bounded, so weak-error theory holds without a growth condition;
    `x0` has shape `(dim,)`.

    >>> torus(dim=2, samples=4)
    FiniteSum('torus2d', n=4, parameters=2)
    """
    n = check_int("samples", samples)
    if dim not in (1, 2):
        raise ValueError(f"dim={dim!r}: torus problems have 1 or 2 dimensions")
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(-2, 3)] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    frequencies = grid[len(grid) // 2 + 1 :]  # one of each pair +-k, without 0
    decay = 1 / (1 + np.sum(frequencies**2, axis=1))
    data = {
        "frequency": np.broadcast_to(frequencies, (n, *frequencies.shape)).astype(float),
        "cos": 0.1 * decay * rng.normal(size=(n, len(frequencies))),
        "sin": 0.1 * decay * rng.normal(size=(n, len(frequencies))),
    }
    return FiniteSum(_waves, data, np.full(dim, 0.5), period=2 * np.pi, name=f"torus{dim}d")


PROBLEMS = {
    "linear-regression": linear_regression,
    "quadratic": quadratic,
    "torus1d": partial(torus, dim=1),
    "torus2d": partial(torus, dim=2),
}
