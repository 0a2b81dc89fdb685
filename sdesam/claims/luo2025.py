"""Luo, Harandi, Phung & Le 2025, "Unveiling m-Sharpness Through the Structure of Stochastic
Gradient Noise", arXiv 2509.18001.

Theorems 3.3 to 3.5, whose numbers follow a published summary of the paper: the SDEs of USAM, n-USAM
and m-USAM. Drift and covariance are written here from the printed formulas and set beside the
optimizer's own one-step moments over all mini-batches. `Sigma^m` is by definition the covariance of
one micro-batch's step; what is tested of the covariance is the factor `m/b`, that is, whether
micro-batches are independent. Where `m = b` there is one micro-batch and nothing to test, so that
the covariance of L-3.3 and L-3.6 is no measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.claims._base import Claim, Control, Measurement, Outcome, Preset
from sdesam.claims._theorem import Case, theorem
from sdesam.optim import Chain
from sdesam.problems import FiniteSum, torus
from sdesam.verify.exact.enumerate import one_step
from sdesam.verify.hypothesis import Hypothesis

_PAPER = "Luo, Harandi, Phung & Le 2025, arXiv 2509.18001"
Formula = Callable[..., Any]


def variance(problem: FiniteSum, x: Any) -> Any:
    """`V(x)`, the covariance of the gradient of one sample."""
    g = jax.vmap(jax.grad(problem.sample_loss), (None, 0))(x, problem.data)
    away = g - g.mean(axis=0)
    return away.T @ away / problem.n


def micro_batches(n: int, m: int, replace: bool) -> Any:
    """Every ordered micro-batch of `m` of `n` samples; all are equally likely."""
    return jnp.array(list(product(range(n), repeat=m) if replace else permutations(range(n), m)))


def micro_covariance(
    problem: FiniteSum,
    x: Any,
    rho: Any,
    m: int,
    replace: bool,
    perturbation: Callable[[Any], Any] = lambda gradient: gradient,
) -> Any:
    """`Sigma^m(x)`: the covariance of `grad f_I(x + rho u_I)` over micro-batches of `m` samples,
    `u_I` a function of `grad f_I(x)`.
    """

    def step(indices: Any) -> Any:
        part = jax.tree.map(lambda leaf: leaf[indices], problem.data)
        grad = jax.grad(lambda y: jnp.mean(jax.vmap(problem.sample_loss, (None, 0))(y, part)))
        return grad(x + rho * perturbation(grad(x)))

    G = jax.vmap(step)(micro_batches(problem.n, m, replace))
    away = G - G.mean(axis=0)
    return away.T @ away / len(G)


def _modified_loss(strength: Callable[[int, int, int], float]) -> Formula:
    """`f + (rho/2) |grad f|^2 + (rho/2) strength(n, b, m) tr V`."""

    def potential(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        return (
            problem.loss(x)
            + rho / 2 * problem.grad_norm2(x)
            + rho / 2 * strength(problem.n, batch, micro) * problem.trace_cov(x)
        )

    return potential


def _printed_covariance(
    replace: bool, factor: Callable[[int, int], float] = lambda b, m: m / b
) -> Formula:
    """`(m eta/b) Sigma^m`."""

    def covariance(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        return lr * factor(batch, micro) * micro_covariance(problem, x, rho, micro, replace)

    return covariance


def _shifted_covariance(factor: Callable[[int, int], float], shift: float = 1.0) -> Formula:
    """`eta factor(n, b) V(x + shift rho grad f(x))`."""

    def covariance(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        return lr * factor(problem.n, batch) * variance(problem, x + shift * rho * problem.grad(x))

    return covariance


def finite_population(n: int, k: int) -> float:
    """`c_k`, the covariance factor of a mean of `k` out of `n` samples drawn without
    replacement.
    """
    # n = 5, k = 2: 3/8, where draws with replacement have 1/2; k = 5: 0, because there is one
    # subset
    return (n - k) / (k * (n - 1))


_M_SIZES = [(4, 1), (4, 2), (3, 1)]
_DRIFT = Hypothesis(potential=_modified_loss(lambda n, b, m: 1 / m))
_WITH = Hypothesis(potential=_DRIFT.potential, covariance=_printed_covariance(True))
BY_DEFINITION = (
    "Its covariance is Sigma^b, the covariance of the step by definition: there is nothing to"
    " measure, and it is not counted."
)


def _drift_controls(right: Callable[[int, int, int], float]) -> dict[str, Hypothesis]:
    return {
        "tr V dropped": Hypothesis(potential=_modified_loss(lambda n, b, m: 0.0)),
        "sign of tr V flipped": Hypothesis(
            potential=_modified_loss(lambda n, b, m: -right(n, b, m))
        ),
        "tr V ten per cent off": Hypothesis(
            potential=_modified_loss(lambda n, b, m: 1.1 * right(n, b, m))
        ),
    }


def _less_noise(preset: Preset, seed: int) -> Outcome:
    """The covariance of m-USAM in units of that of USAM as rho -> 0, predicted as `m/b`; measured
    it does not depend on `m`.
    """
    b = 4
    problem = torus(dim=2, samples=5, seed=200 + seed)
    points = np.random.default_rng(seed).uniform(0, 2 * np.pi, size=(6, 2))
    # The limit is asked for, and rho = 0 itself is SGD for every m: so the ratio is computed at
    # Chebyshev's eight nodes in (0, 0.3), and the polynomial through them is read at 0.
    radii = 0.3 * (1 + np.cos(np.pi * (np.arange(8) + 0.5) / 8)) / 2

    def trace(m: int) -> np.ndarray:
        chains = [Chain("m-usam", problem, 0.1, float(rho), b, m) for rho in radii]
        return np.array(
            [
                np.trace(one_step(chain, points).covariance, axis1=1, axis2=2).sum()
                for chain in chains
            ]
        )

    whole_batch = trace(b)
    leading, slope = {}, {}
    for m in (1, 2):
        powers = np.linalg.solve(np.vander(radii, increasing=True), trace(m) / whole_batch)
        leading[m], slope[m] = float(powers[0]), float(powers[1])
    basis = (
        "extrapolated to rho = 0 from eight radii by exact enumeration; the polynomial through them"
        " is right to 1e-8"
    )
    measurements = tuple(
        Measurement(
            f"noise at m = {m} over that at m = b = {b}, rho -> 0", m / b, ratio, 1e-6, basis
        )
        for m, ratio in leading.items()
    )
    controls = (
        Control(
            "noise V/b for every m",
            max(abs(ratio - 1) for ratio in leading.values()),
            1e-6,
            mended=True,
        ),
        Control("noise rises like b/m", leading[1] - b, 1e-6),
    )
    told = ", ".join(f"{value:+.4f} rho at m = {m}" for m, value in slope.items())
    remark = (
        "Measured on m-USAM. At leading order the noise is V/b for every m: each micro-batch is"
        " noisier by b/m, and b/m of them are averaged. The difference is of order rho: relative"
        f" to m = b the trace changes by {told} on this problem."
    )
    return Outcome(measurements, controls, remark, {"leading": leading, "slope in rho": slope})


CLAIMS = (
    Claim(
        id="L-3.3",
        title="SDE of USAM, with replacement: its drift (the covariance holds by definition)",
        statement=(
            r"\mathrm dX = -\nabla\Big(f + \tfrac{\rho}{2}|\nabla f|^2 +"
            r" \tfrac{\rho}{2b}\operatorname{tr}V\Big)\mathrm dt"
            r" + \sqrt{\eta\,\Sigma^b}\,\mathrm dW"
        ),
        source=f"{_PAPER}, theorem 3.3",
        prediction="the rho^0 and rho^1 coefficients of the mean step",
        recorded="confirmed",
        seconds=6,
        run=theorem(
            [Case("usam", True, [(2, 2), (4, 4)], _DRIFT)],
            {
                **_drift_controls(lambda n, b, m: 1 / b),
                "finite-population c_b for 1/b": Hypothesis(
                    potential=_modified_loss(lambda n, b, m: finite_population(n, b))
                ),
            },
            BY_DEFINITION,
        ),
    ),
    Claim(
        id="L-3.3w",
        title="the printed SDE of USAM, without replacement",
        statement=r"\text{L-3.3 where mini-batches are uniform subsets}",
        source=f"{_PAPER}, theorem 3.3",
        prediction="as L-3.3; a finite population asks for c_b = (n-b)/(b(n-1)) in place of 1/b",
        recorded="refuted",
        seconds=6,
        run=theorem(
            [
                Case(
                    "usam",
                    False,
                    [(2, 2), (4, 4)],
                    Hypothesis(potential=_modified_loss(lambda n, b, m: 1 / b)),
                )
            ],
            _drift_controls(lambda n, b, m: 1 / b),
            "Without replacement the variance regulariser is rho c_b/2 tr V (claim L-c).",
            {
                "c_b for 1/b": Hypothesis(
                    potential=_modified_loss(lambda n, b, m: finite_population(n, b))
                )
            },
        ),
    ),
    Claim(
        id="L-3.4",
        title="SDE of n-USAM, with replacement",
        statement=r"\mathrm dX = -\nabla\Big(f + \tfrac{\rho}{2}|\nabla f|^2\Big)\mathrm dt"
        r" + \sqrt{\tfrac{\eta}{b} V(X + \rho\nabla f(X))}\,\mathrm dW",
        source=f"{_PAPER}, theorem 3.4",
        prediction="no tr V in the drift; the covariance is that of SGD at the perturbed point",
        recorded="confirmed",
        seconds=5,
        run=theorem(
            [
                Case(
                    "n-usam",
                    True,
                    [(2, 2), (3, 3)],
                    Hypothesis(
                        potential=_modified_loss(lambda n, b, m: 0.0),
                        covariance=_shifted_covariance(lambda n, b: 1 / b),
                    ),
                )
            ],
            {
                "tr V as in USAM": Hypothesis(potential=_modified_loss(lambda n, b, m: 1 / b)),
                "covariance at the unperturbed point": Hypothesis(
                    covariance=_shifted_covariance(lambda n, b: 1 / b, shift=0.0)
                ),
                "covariance of one sample": Hypothesis(
                    covariance=_shifted_covariance(lambda n, b: 1.0)
                ),
            },
        ),
    ),
    Claim(
        id="L-3.4w",
        title="the printed SDE of n-USAM, without replacement",
        statement=r"\text{L-3.4 where mini-batches are uniform subsets}",
        source=f"{_PAPER}, theorem 3.4",
        prediction=(
            "as L-3.4; a finite population asks for the factor (n-b)/(n-1) in the covariance"
        ),
        recorded="refuted",
        seconds=5,
        run=theorem(
            [
                Case(
                    "n-usam",
                    False,
                    [(2, 2), (3, 3)],
                    Hypothesis(
                        potential=_modified_loss(lambda n, b, m: 0.0),
                        covariance=_shifted_covariance(lambda n, b: 1 / b),
                    ),
                )
            ],
            {
                "covariance of one sample": Hypothesis(
                    covariance=_shifted_covariance(lambda n, b: 1.0)
                )
            },
            "The drift is right; the covariance is right with (n-b)/(n-1), which is claim L-cn.",
            {
                "finite-population factor in the covariance": Hypothesis(
                    covariance=_shifted_covariance(finite_population)
                )
            },
        ),
    ),
    Claim(
        id="L-3.5",
        title="SDE of m-USAM, with replacement",
        statement=(
            r"\mathrm dX = -\nabla\Big(f + \tfrac{\rho}{2}|\nabla f|^2 +"
            r" \tfrac{\rho}{2m}\operatorname{tr}V\Big)\mathrm dt"
            r" + \sqrt{\tfrac{m\eta}{b}\,\Sigma^m}\,\mathrm dW"
        ),
        source=f"{_PAPER}, theorem 3.5",
        prediction=(
            "variance regularisation of strength rho/(2m), and the covariance (m eta/b) Sigma^m"
        ),
        recorded="confirmed",
        seconds=6,
        run=theorem(
            [Case("m-usam", True, _M_SIZES, _WITH)],
            {
                **_drift_controls(lambda n, b, m: 1 / m),
                "1/b for 1/m": Hypothesis(potential=_modified_loss(lambda n, b, m: 1 / b)),
                "finite-population c_m for 1/m": Hypothesis(
                    potential=_modified_loss(lambda n, b, m: finite_population(n, m))
                ),
                "covariance without m/b": Hypothesis(
                    covariance=_printed_covariance(True, lambda b, m: 1.0)
                ),
                "covariance without its rho part": Hypothesis(
                    covariance=_shifted_covariance(lambda n, b: 1 / b, shift=0.0)
                ),
            },
        ),
    ),
    Claim(
        id="L-3.5w",
        title="the printed SDE of m-USAM, without replacement",
        statement=r"\text{L-3.5 where mini-batches are uniform subsets}",
        source=f"{_PAPER}, theorem 3.5",
        prediction=(
            "as L-3.5; micro-batches of a uniform subset are negatively correlated, so Cov(G) is"
            " not (m/b) Sigma^m for m < b"
        ),
        recorded="refuted",
        seconds=6,
        run=theorem(
            [
                Case(
                    "m-usam",
                    False,
                    _M_SIZES,
                    Hypothesis(
                        potential=_modified_loss(lambda n, b, m: 1 / m),
                        covariance=_printed_covariance(False),
                    ),
                )
            ],
            {"1/b for 1/m": Hypothesis(potential=_modified_loss(lambda n, b, m: 1 / b))},
            "The drift is right with c_m in place of 1/m (claim L-c); the covariance too is another"
            " one.",
            {
                "c_m for 1/m in the drift": Hypothesis(
                    potential=_modified_loss(lambda n, b, m: finite_population(n, m))
                )
            },
        ),
    ),
    Claim(
        id="L-c",
        title="finite-population drift of m-USAM, without replacement",
        statement=(
            r"\text{drift } -\nabla\Big(f + \tfrac{\rho}{2}|\nabla f|^2 + \tfrac{\rho"
            r" c_m}{2}\operatorname{tr}V\Big),"
            r"\quad c_m = \tfrac{n-m}{m(n-1)}"
        ),
        source=(
            "this project, docs/theory.md section 3; corrects L-3.3 and L-3.5 for uniform subsets"
        ),
        prediction="variance regularisation of strength rho c_m / 2",
        recorded="confirmed",
        seconds=5,
        run=theorem(
            [
                Case(
                    "m-usam",
                    False,
                    _M_SIZES,
                    Hypothesis(potential=_modified_loss(lambda n, b, m: finite_population(n, m))),
                )
            ],
            {
                **_drift_controls(lambda n, b, m: finite_population(n, m)),
                "1/m for c_m": Hypothesis(potential=_modified_loss(lambda n, b, m: 1 / m)),
            },
        ),
    ),
    Claim(
        id="L-cn",
        title="finite-population SDE of n-USAM, without replacement",
        statement=r"\text{L-3.4 with covariance } \tfrac{\eta(n-b)}{b(n-1)} V(X + \rho\nabla f(X))",
        source="this project, docs/theory.md; corrects L-3.4 for uniform subsets",
        prediction="no tr V in the drift; the covariance of L-3.4 times (n-b)/(n-1)",
        recorded="confirmed",
        seconds=4,
        run=theorem(
            [
                Case(
                    "n-usam",
                    False,
                    [(2, 2), (3, 3)],
                    Hypothesis(
                        potential=_modified_loss(lambda n, b, m: 0.0),
                        covariance=_shifted_covariance(finite_population),
                    ),
                )
            ],
            {
                "1/b for the finite-population factor": Hypothesis(
                    covariance=_shifted_covariance(lambda n, b: 1 / b)
                )
            },
        ),
    ),
    Claim(
        id="L-3.5n",
        title="reading: m-SAM has less noise by m/b",
        statement=r"\operatorname{Cov}(G^{m}) = \tfrac{m}{b}\operatorname{Cov}(G^{b})",
        source=f"{_PAPER}, a reading of the factor m eta/b in theorem 3.5",
        prediction="the trace of the one-step covariance at m = 1, 2 over that at m = b is m/b",
        recorded="refuted",
        seconds=2,
        run=_less_noise,
    ),
)
