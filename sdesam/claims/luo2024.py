"""Luo and others 2024: the flow of SAM to third order, and the top eigenvalue that it lowers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.claims._base import Claim, Outcome, Preset
from sdesam.claims._findings import Findings
from sdesam.optim import Chain
from sdesam.problems import FiniteSum, torus
from sdesam.verify.exact.float64 import directions, to_double

_POINTS = 5


def _loss(problem: FiniteSum) -> Any:
    data = to_double(problem.data)
    return lambda x: jnp.mean(jax.vmap(problem.sample_loss, (None, 0))(x, data))


def _coefficients(problem: FiniteSum, points: np.ndarray) -> np.ndarray:
    """The coefficients of rho^0, rho^1 and rho^2 of the package's SAM step with all samples, shape
    `(3, p, d)`: a polynomial through seven radii.
    """
    radii = 0.02 * np.arange(1, 8)
    every = np.arange(problem.n).reshape(1, 1, -1)
    steps = [
        directions(
            Chain("n-sam", problem, lr=0.1, rho=rho, batch=problem.n, replace=False), points, every
        )
        for rho in radii
    ]
    flat = np.array(steps).reshape(len(radii), -1)
    return np.linalg.solve(np.vander(radii, increasing=True), flat)[:3].reshape(3, *points.shape)


def _third(problem: FiniteSum, points: np.ndarray, u: np.ndarray, w: np.ndarray) -> np.ndarray:
    """`T[u, w]`, the derivative of the mean loss of third order, at every point."""
    with jax.enable_x64(True):
        grad = jax.grad(_loss(problem))

        def one(x: jax.Array, u: jax.Array, w: jax.Array) -> jax.Array:
            def along(y: jax.Array) -> jax.Array:
                slope: jax.Array = jax.jvp(grad, (y,), (u,))[1]
                return slope

            bent: jax.Array = jax.jvp(along, (x,), (w,))[1]
            return bent

        return np.asarray(jax.jit(jax.vmap(one))(*map(jnp.asarray, (points, u, w))))


def _first(problem: FiniteSum, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`grad f` and the Hessian of the mean loss at every point."""
    with jax.enable_x64(True):
        loss = _loss(problem)
        return tuple(  # type: ignore[return-value]
            np.asarray(jax.jit(jax.vmap(fn(loss)))(jnp.asarray(points)))
            for fn in (jax.grad, jax.hessian)
        )


def _eigenvalue_slope(problem: FiniteSum, points: np.ndarray) -> np.ndarray:
    """The gradient of the largest eigenvalue, by central differences of `eigvalsh`, error 1e-9."""
    h, d = 1e-3, points.shape[1]
    sizes = h * np.array([1, -1, 2, -2])
    places = points + sizes[:, None, None, None] * np.eye(d)[:, None]
    top = np.linalg.eigvalsh(_first(problem, places.reshape(-1, d))[1])[:, -1]
    near, back, far, behind = top.reshape(4, d, len(points))
    return np.asarray((8 * (near - back) - far + behind) / (12 * h)).T


def _run(preset: Preset, seed: int) -> Outcome:
    found = Findings(1e-5, "a polynomial through seven radii up to 0.14: about 1e-7")
    for draw in range(seed, seed + (1 if preset == "quick" else 5)):
        problem = torus(dim=2, samples=4, seed=800 + draw)
        offered = np.random.default_rng(draw).uniform(0, 2 * np.pi, size=(200, 2))
        # where the gradient is not small against its change over the largest radius, and l1 is
        # simple
        g, H = _first(problem, offered)
        values = np.linalg.eigvalsh(H)
        kept = (np.linalg.norm(g, axis=1) > 0.05) & (np.ptp(values, axis=1) > 0.1)
        points, g, H = offered[kept][:_POINTS], g[kept][:_POINTS], H[kept][:_POINTS]
        u = g / np.linalg.norm(g, axis=1, keepdims=True)
        zero, one, two = _coefficients(problem, points)
        bent = _third(problem, points, u, u)
        along = np.einsum("pjk,pk->pj", H, u)
        label = f"draw {draw}"
        found.agree(f"rho^0 of the step, grad f: {label}", g, zero)
        found.agree(f"rho^1 of the step, H u: {label}", along, one)
        found.agree(f"rho^2 of the step, T[u,u]/2: {label}", bent / 2, two)
        for name, stated in (
            ("T[u,u] for T[u,u]/2", bent),
            ("T[u,u]/2 dropped", 0 * bent),
            ("its sign flipped", -bent / 2),
            ("T[g,g]/2, not normalised", _third(problem, points, g, g) / 2),
            ("T[u,u]/6, as in the Taylor series of f", bent / 6),
        ):
            found.broken(f"{name}: {label}", stated, two)
        vectors = np.linalg.eigh(H)[1]
        second, top = vectors[:, :, 0], vectors[:, :, 1]
        slope = _eigenvalue_slope(problem, points)
        found.agree(
            f"T[v1,v1] against differences of the top eigenvalue: {label}",
            _third(problem, points, top, top),
            slope,
        )
        for name, pair in (
            ("T[v2,v2]", (second, second)),
            ("T[v1,v2]", (top, second)),
            ("T[u,u]", (u, u)),
        ):
            found.broken(f"{name} for T[v1,v1]: {label}", _third(problem, points, *pair), slope)
        found.broken(f"half of T[v1,v1]: {label}", _third(problem, points, top, top) / 2, slope)
    return found.outcome(
        "T[u,u] lowers the top eigenvalue as far as u is aligned with v1: away from there it is"
        " another vector (a control). Where the top eigenvalue is not simple it has no gradient."
        " For finite lr the correction (lr/2)(D G) G is of the size of the rho terms and is not in"
        " this flow.",
    )


CLAIMS = (
    Claim(
        id="LUO-3",
        title="the flow of SAM to third order, and grad l1 = T[v1, v1]",
        statement=(
            r"\dot x = -\big(\nabla f + \rho H u + \tfrac{\rho^2}{2} T[u,u]\big),\ u = \nabla f /"
            r" \|\nabla f\|;\quad \nabla l_1 = T[v_1, v_1] \text{ for simple } l_1"
        ),
        source="Luo et al. 2024, arXiv 2501.12666",
        prediction="the powers of rho in the step with all samples, and differences of l1",
        recorded="confirmed",
        seconds=2,
        run=_run,
    ),
)
