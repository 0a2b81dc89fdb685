"""Two rules that move the parameters in other ways than SAM: a penalty on the gradient norm, and
random perturbations of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.claims._base import Claim, Outcome, Preset
from sdesam.claims._findings import Findings
from sdesam.claims.first_order_drifts import first_order
from sdesam.optim import Chain
from sdesam.problems import FiniteSum, torus
from sdesam.sampling import Sampling
from sdesam.symbolic import derive
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.float64 import drift, to_double

_EPS, _POINTS, _SAMPLES = 0.1, 6, 5


def _gradient_of(
    problem: FiniteSum, points: np.ndarray, potential: Callable[[Any, Any], Any]
) -> np.ndarray:
    """The gradient of `potential(x, each)`, `each(x)` the gradients of all samples, at every point,
    float64.
    """
    with jax.enable_x64(True):
        data = to_double(problem.data)

        def each(x: Any) -> Any:
            return jax.vmap(jax.grad(problem.sample_loss), (None, 0))(x, data)

        slope = jax.jit(jax.vmap(jax.grad(lambda x: potential(x, each))))
        return np.asarray(slope(jnp.asarray(points)))


def _expected_norm(sampling: Sampling, eps: float = _EPS) -> Callable[[Any, Any], Any]:
    """`E sqrt(|g_I|^2 + eps^2)` over micro-batches."""
    listed, chance = list_batches(Sampling(sampling.m, sampling.m, sampling.replace), _SAMPLES)

    def potential(x: Any, each: Any) -> Any:
        g = each(x)[listed[:, 0]].mean(axis=1)
        return chance @ jnp.sqrt(jnp.sum(g**2, axis=1) + eps**2)

    return potential


def _norm_of_mean(x: Any, each: Any) -> Any:
    return jnp.sqrt(jnp.sum(each(x).mean(axis=0) ** 2) + _EPS**2)


def _run_penalty(preset: Preset, seed: int) -> Outcome:
    found = Findings(1e-8, "all mini-batches listed, derivatives in float64: rounding, 1e-12")
    a = 0.3
    for draw, replace in product(
        range(seed, seed + (1 if preset == "quick" else 5)), (True, False)
    ):
        problem = torus(dim=2, samples=_SAMPLES, seed=900 + draw)
        points = np.random.default_rng(draw).uniform(0, 2 * np.pi, size=(_POINTS, 2))
        drawn = f"{'with' if replace else 'without'} replacement, draw {draw}"
        b, m = 4, 2
        sampling = Sampling(b, m, replace)
        numbers: dict[str, Any] = {"batch": b, "micro": m, "eps": _EPS, "a": a}
        chain = Chain("gnp", problem, lr=0.1, rho=0.1, replace=replace, **numbers)
        step = first_order(chain, points)
        equation = derive("gnp", (1, 2), replace)
        bound = equation.bind(problem, 0.1, 1.0, expectation="exact", **numbers)
        plain = equation.without("rho^1").bind(problem, 0.1, 1.0, expectation="exact", **numbers)
        derived = drift(plain, points) - drift(bound, points)
        right = _gradient_of(problem, points, _expected_norm(sampling))
        for way, measured in (("batches listed", step), ("derived equation", derived)):
            label = f"{way}, {drawn}"
            found.agree(f"rho^1 of the step, a grad E|g_I|: {label}", a * right, measured)
            for name, stated in (
                ("without a", right),
                ("1 - a for a", (1 - a) * right),
                ("the sign flipped", -a * right),
                ("|E g_I|: no noise", a * _gradient_of(problem, points, _norm_of_mean)),
                (
                    "mini-batches for micro-batches",
                    a * _gradient_of(problem, points, _expected_norm(Sampling(b, b, replace))),
                ),
                (
                    "|g_I|^2 / 2 for |g_I|",
                    a * _gradient_of(problem, points, _half_squares(sampling)),
                ),
            ):
                found.broken(f"{name}: {label}", stated, measured)
    return found.outcome(
        "To first order the penalty is SAM with a rho for rho. It keeps the noise in the"
        " perturbation: E|g_I|, and not |grad f|, which the paper writes for the loss of one batch."
        " The norm is sqrt(|.|^2 + eps^2), eps = 0.1. At rho^2 the two rules differ: a rho^2"
        " against"
        " (a rho)^2.",
        {"a": a},
    )


def _half_squares(sampling: Sampling) -> Callable[[Any, Any], Any]:
    listed, chance = list_batches(Sampling(sampling.m, sampling.m, sampling.replace), _SAMPLES)

    def potential(x: Any, each: Any) -> Any:
        return chance @ jnp.sum(each(x)[listed[:, 0]].mean(axis=1) ** 2, axis=1) / 2

    return potential


# E grad f(x + rho z) for a sum of waves of degree 2: 12 nodes a direction integrate products of
# polynomials of degree 23, and the waves' series in rho z, |k rho z| < 1, is at rounding by then.
def _mean_step(problem: FiniteSum, points: np.ndarray, rho: float, law: str) -> np.ndarray:
    """`E_z grad f(x + rho z)` at every point by Gauss's quadrature, or over all signs."""
    if law == "gaussian":
        nodes, weights = np.polynomial.hermite_e.hermegauss(12)
        weights = weights / np.sqrt(2 * np.pi)
    else:
        nodes, weights = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    z = np.array(list(product(nodes, repeat=2)))
    chance = np.array([np.prod(pair) for pair in product(weights, repeat=2)])
    places = (points[:, None] + rho * z).reshape(-1, 2)
    g = _gradient_of(problem, places, lambda x, each: _mean_loss(problem, x))
    return np.asarray(np.einsum("q,pqj->pj", chance, g.reshape(len(points), len(z), 2)))


def _mean_loss(problem: FiniteSum, x: Any) -> Any:
    return jnp.mean(jax.vmap(problem.sample_loss, (None, 0))(x, to_double(problem.data)))


def _run_random(preset: Preset, seed: int) -> Outcome:
    found = Findings(1e-6, "a fit of even powers of rho up to rho^8 at four radii: about 1e-8")
    radii = np.array([0.02, 0.04, 0.06, 0.08])
    powers = np.column_stack([radii ** (2 * k) for k in range(1, 5)])
    for draw in range(seed, seed + (1 if preset == "quick" else 5)):
        problem = torus(dim=2, samples=_SAMPLES, seed=900 + draw)
        points = np.random.default_rng(draw).uniform(0, 2 * np.pi, size=(_POINTS, 2))

        def trace(x: Any, each: Any, problem: FiniteSum = problem) -> Any:
            return jnp.trace(jax.hessian(lambda y: _mean_loss(problem, y))(x))

        def top(x: Any, each: Any, problem: FiniteSum = problem) -> Any:
            return jnp.linalg.eigvalsh(jax.hessian(lambda y: _mean_loss(problem, y))(x))[-1]

        right = _gradient_of(problem, points, trace)
        half = {
            "tr Hbar without 1/2": right,
            "the sign flipped": -right / 2,
            "the largest eigenvalue for the trace": _gradient_of(problem, points, top) / 2,
            "tr V / 2 for tr Hbar / 2": _gradient_of(problem, points, _trace_cov) / 2,
        }
        zero = _mean_step(problem, points, 1e-12, "gaussian")
        for law in ("gaussian", "rademacher"):
            steps = np.array([_mean_step(problem, points, rho, law) - zero for rho in radii])
            flat = steps.reshape(len(radii), -1)
            two = np.linalg.solve(powers, flat)[0].reshape(points.shape)
            label = f"{law}, quadrature, draw {draw}"
            found.agree(f"rho^2 of the step, grad tr Hbar / 2: {label}", right / 2, two)
            for name, stated in half.items():
                found.broken(f"{name}: {label}", stated, two)
        there, back = (_mean_step(problem, points, r, "gaussian") for r in (0.05, -0.05))
        size = float(np.linalg.norm(zero))
        found.agree(
            f"rho^1 of the step, over |grad f|: draw {draw}",
            0.0,
            float(np.linalg.norm(there - back)) / 0.1 / size,
        )
        bound = derive("rwp").without("eta").bind(problem, 0.1, 1.0, batch=2, expectation="exact")
        derived = -drift(bound, points) - zero
        label = f"derived equation, draw {draw}"
        found.agree(f"rho^2 of the drift, grad tr Hbar / 2: {label}", right / 2, derived)
        for name, stated in half.items():
            found.broken(f"{name}: {label}", stated, derived)
    return found.outcome(
        "Random directions see the trace of the Hessian, at the second power of rho, and no noise"
        " of"
        " the mini-batch: there is no m-sharpness in this rule at the orders kept. With unit"
        " vectors"
        " for z, as some codes have it, tr Hbar is divided by d."
    )


def _trace_cov(x: Any, each: Any) -> Any:
    g = each(x)
    return jnp.mean(jnp.sum((g - g.mean(axis=0)) ** 2, axis=1))


CLAIMS = (
    Claim(
        id="PGN",
        title="the gradient-norm penalty is SAM with a rho for rho, to first order",
        statement=(
            r"(1-a)\nabla f_I(x) + a \nabla f_I\big(x + \rho \nabla f_I/\|\nabla f_I\|\big):\quad"
            r" \text{drift } -\nabla\big(f + a \rho\, \mathbb E\|\nabla f_I\|\big)"
        ),
        source="Zhao, Zhang & Hu 2022, arXiv 2202.03599",
        prediction="a grad E|g_I|, E over micro-batches: batches listed, and the derived equation",
        recorded="confirmed",
        seconds=8,
        run=_run_penalty,
    ),
    Claim(
        id="RWP",
        title="random weight perturbation regularises tr H / 2, at rho^2",
        statement=(
            r"\mathbb E_z \nabla f(x + \rho z) = \nabla\big(f + \tfrac{\rho^2}{2} \operatorname{tr}"
            r" H\big) + O(\rho^4),\quad \mathbb E z z^{\mathsf T} = I"
        ),
        source="Bisla, Wang & Choromanska 2022, arXiv 2201.08025; expansion: docs/theory.md",
        prediction="no rho^1; at rho^2 grad tr Hbar / 2, for normal entries and for signs",
        recorded="confirmed",
        seconds=5,
        run=_run_random,
    ),
)
