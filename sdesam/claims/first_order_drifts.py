"""This project: the drift of first order in `rho` of DNSAM and of RW-SAM, and which first-order
drifts are gradients at all.

A drift that is no gradient belongs to no modified loss: the optimizer descends nothing. Whether one
is, is seen in its Jacobian, which is symmetric for a gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.claims._base import Claim, Control, Measurement, Outcome, Preset
from sdesam.claims.luo2025 import (
    finite_population,
    micro_batches,
)
from sdesam.optim import Chain
from sdesam.problems import FiniteSum, torus
from sdesam.variants import NormEstimate
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.float64 import to_double, with_rho
from sdesam.verify.hypothesis import Hypothesis

_EPS = 0.1
"""About the size of a gradient on the torus problems: neither the norm nor its smoothing is
negligible.
"""


def dnsam(replace: bool, eps: float) -> Hypothesis:
    """`-grad f - rho grad(|grad f|^2/2 + c_b tr V/2) / sqrt(|grad f|^2 + eps^2)`."""

    def drift(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        factor = 1 / batch if replace else finite_population(problem.n, batch)
        slope = jax.grad(lambda y: (problem.grad_norm2(y) + factor * problem.trace_cov(y)) / 2)(x)
        return -problem.grad(x) - rho * slope / jnp.sqrt(problem.grad_norm2(x) + eps**2)

    return Hypothesis(drift=drift)


def rw_sam(replace: bool, eps: float, lam: float) -> Hypothesis:
    """`-grad f - rho E[H_gamma u_gamma]`, all mini-batches listed."""

    def drift(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        def each(y: Any) -> Any:
            return jax.vmap(jax.grad(problem.sample_loss), (None, 0))(y, problem.data)

        def bent(indices: Any) -> Any:
            g = each(x)[indices]
            p = jnp.exp(lam * jnp.linalg.norm(g, axis=1))
            v = p @ g / p.sum()
            return jax.jvp(
                lambda y: each(y)[indices].mean(axis=0), (x,), (v / jnp.sqrt(v @ v + eps**2),)
            )[1]

        return -problem.grad(x) - rho * jax.vmap(bent)(
            micro_batches(problem.n, batch, replace)
        ).mean(axis=0)

    return Hypothesis(drift=drift)


_CURL_POINTS = 6
_ROUNDING = 1e-10
"""Relative: Jacobians of sums over at most 625 mini-batches, through a second derivative and a
normaliser.
"""


def first_order(chain: Chain, points: np.ndarray, jacobian: bool = False) -> np.ndarray:
    """`A = d/drho E G` at `rho = 0`, shape `(p, d)`, or its Jacobian, shape `(p, d, d)`, from the
    optimizer's own step over all mini-batches.
    """
    batches, chance = list_batches(chain.sampling, chain.problem.n)
    with jax.enable_x64(True):
        kernel = to_double(chain.kernel)
        listed, weight = jnp.asarray(batches), jnp.asarray(chance)

        def mean(x: jax.Array, rho: jax.Array) -> jax.Array:
            G: jax.Array = weight @ jax.vmap(
                lambda batch: with_rho(kernel, rho).direction(x, batch)
            )(listed)
            return G

        def slope(x: jax.Array) -> jax.Array:
            A: jax.Array = jax.jvp(lambda rho: mean(x, rho), (jnp.zeros(()),), (jnp.ones(()),))[1]
            return A

        return np.asarray(
            jax.jit(jax.vmap(jax.jacfwd(slope) if jacobian else slope))(jnp.asarray(points))
        )


def _curl(J: np.ndarray) -> np.ndarray:
    """`J_12 - J_21`, all of the antisymmetric part in two dimensions."""
    return np.asarray(J[:, 0, 1] - J[:, 1, 0])


# A vector field A = h grad phi in the plane is a gradient where its Jacobian is symmetric. The
# Jacobian is h D^2 phi, which is symmetric, plus the outer product of grad h and grad phi, which is
# so only where the two are parallel. Without noise phi = |grad f|^2/2 and h = 1/|grad f| depend on
# the same number, and are.
def _dnsam_curl(problem: FiniteSum, points: np.ndarray, factor: float, eps: float) -> np.ndarray:
    """`(d_1 phi)(d_2 h) - (d_2 phi)(d_1 h)` for `h grad phi`, `phi = |grad f|^2/2 + factor tr V/2`,
    `h = 1/sqrt(|grad f|^2 + eps^2)`.
    """
    with jax.enable_x64(True):
        data = to_double(problem.data)

        def gradients(x: jax.Array) -> jax.Array:
            g: jax.Array = jax.vmap(jax.grad(problem.sample_loss), (None, 0))(x, data)
            return g

        def phi(x: jax.Array) -> jax.Array:
            g = gradients(x)
            gbar = g.mean(axis=0)
            return (gbar @ gbar + factor * jnp.mean(jnp.sum((g - gbar) ** 2, axis=1))) / 2

        def inverse(x: jax.Array) -> jax.Array:
            gbar = gradients(x).mean(axis=0)
            return 1 / jnp.sqrt(gbar @ gbar + eps**2)

        a, s = (np.asarray(jax.vmap(jax.grad(fn))(jnp.asarray(points))) for fn in (phi, inverse))
    # d_j (h d_k phi) = (d_j h)(d_k phi) + a symmetric part
    return np.asarray(a[:, 0] * s[:, 1] - a[:, 1] * s[:, 0])


def _run_gradients(preset: Preset, seed: int) -> Outcome:
    measurements: list[Measurement] = []
    controls: list[Control] = []
    data = {}
    rounding = (
        "rounding of Jacobians of the enumerated drift in float64, relative to the size of the"
        " Jacobian"
    )
    for s in [seed] if preset == "quick" else [seed + k for k in range(5)]:
        problem = torus(dim=2, samples=5, seed=400 + s)
        points = np.random.default_rng(s).uniform(0, 2 * np.pi, size=(_CURL_POINTS, 2))

        def measured(
            variant: str,
            lam: float | None = None,
            problem: FiniteSum = problem,
            points: np.ndarray = points,
        ) -> tuple[np.ndarray, float]:
            norms = None if lam is None else NormEstimate("exact")
            micro = 1 if variant == "m-sam" else None
            chain = Chain(
                variant,
                problem,
                lr=0.1,
                rho=0.1,
                batch=2,
                micro=micro,
                eps=_EPS,
                lam=lam,
                norms=norms,
            )
            J = first_order(chain, points, jacobian=True)
            return _curl(J), float(np.linalg.norm(J))

        shares = {}
        for variant in ("sam", "m-sam", "n-sam"):
            curl, size = measured(variant)
            shares[variant] = float(np.linalg.norm(curl)) / size
            measurements.append(
                Measurement(
                    f"{variant}: antisymmetric part, problem {s}",
                    0.0,
                    shares[variant],
                    _ROUNDING,
                    rounding,
                )
            )
        curl, size = measured("dnsam")
        shares["dnsam"] = float(np.linalg.norm(curl)) / size
        away = float(np.linalg.norm(curl - _dnsam_curl(problem, points, 1 / 2, _EPS))) / size
        measurements.append(
            Measurement(
                f"dnsam: antisymmetric part less that of its formula, problem {s}",
                0.0,
                away,
                _ROUNDING,
                rounding,
            )
        )
        weighted, size_weighted = measured("rw-sam", 20.0)
        shares["rw-sam"] = float(np.linalg.norm(weighted)) / size_weighted
        for variant in ("dnsam", "rw-sam"):
            # all there is to predict is that it is far from rounding
            low, high = 1e-4, 2.0
            basis = "half the length of the interval [1e-4, 2]: six orders above rounding"
            told = f"{variant}: antisymmetric part over the Jacobian, problem {s}"
            measurements.append(
                Measurement(told, (low + high) / 2, shares[variant], (high - low) / 2, basis)
            )
            controls.append(
                Control(
                    f"'the drift of {variant} is a gradient', problem {s}",
                    shares[variant],
                    _ROUNDING,
                )
            )
        controls.append(
            Control(f"'that of SAM is not', problem {s}", shares["sam"], _ROUNDING, mended=True)
        )
        unweighted, size_unweighted = measured("rw-sam", 0.0)
        share = float(np.linalg.norm(unweighted)) / size_unweighted
        controls.append(
            Control(f"RW-SAM without weights is SAM, problem {s}", share, _ROUNDING, mended=True)
        )
        wrong = float(np.linalg.norm(curl - _dnsam_curl(problem, points, 1.0, _EPS))) / size
        controls.append(Control(f"1 for 1/b in DNSAM's formula, problem {s}", wrong, _ROUNDING))
        data[s] = shares
    first = data[seed]
    return Outcome(
        tuple(measurements),
        tuple(controls),
        f"The antisymmetric part over the Jacobian: {first['dnsam']:.3f} for DNSAM,"
        f" {first['rw-sam']:.3f} for RW-SAM with lam = 20 and exact norms, {first['sam']:.0e} for"
        " SAM. DNSAM's drift is grad(|grad f|^2/2 + tr V/(2b)) over |grad f|: a gradient where"
        " grad tr V is parallel to grad |grad f|^2, as without noise, or in one dimension, where"
        " everything is.",
        {"antisymmetric part": data},
    )


CLAIMS = (
    Claim(
        id="L-grad",
        title="which first-order drifts are gradients",
        statement=(
            r"\mathbb E[H_\gamma u_\gamma] \text{ is a gradient for SAM, m-SAM and n-SAM, and in"
            r" general none for DNSAM and RW-SAM}"
        ),
        source="this project, docs/theory.md section 3",
        prediction=(
            "the rho^1 drift has a symmetric Jacobian for SAM, m-SAM, n-SAM; DNSAM's antisymmetric"
            " part has a closed form, RW-SAM's is not 0"
        ),
        recorded="confirmed",
        seconds=8,
        run=_run_gradients,
    ),
)
