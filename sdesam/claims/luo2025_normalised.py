"""Luo, Harandi, Phung & Le 2025, arXiv 2509.18001: the SDEs of normalised SAM (3.6 to 3.8), and
which first-order drifts are gradients at all.

As in `luo2025.py`, drift and covariance are written from the printed formulas and set beside the
optimizer's own one-step moments over all mini-batches: with `|v|` smoothed to
`sqrt(|v|^2 + eps^2)`, and with `eps = 0` at points where no micro-batch gradient is small.
Expectations over micro-batches are taken under the sampling of the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.claims._base import Claim, Control, Measurement, Outcome, Preset
from sdesam.claims.luo2025 import (
    BY_DEFINITION,
    Deviation,
    controls_of,
    deviation,
    finite_population,
    micro_batches,
    micro_covariance,
    variance,
)
from sdesam.discrete import Chain
from sdesam.exact.enumerate import list_batches
from sdesam.exact.float64 import to_double, with_rho
from sdesam.hypothesis import Hypothesis
from sdesam.problems import FiniteSum, torus
from sdesam.variants import NormEstimate

_PAPER = "Luo, Harandi, Phung & Le 2025, arXiv 2509.18001"
_EPS = 0.1
"""About the size of a gradient on the torus problems: neither the norm nor its smoothing is
negligible.
"""


def _length(v: Any, eps: float) -> Any:
    return jnp.sqrt(jnp.sum(v**2, axis=-1) + eps**2)


def _expected_norm(problem: FiniteSum, x: Any, size: int, eps: float, replace: bool) -> Any:
    """`E sqrt(|grad f_I|^2 + eps^2)` over all micro-batches of `size` samples."""
    g = jax.vmap(jax.grad(problem.sample_loss), (None, 0))(x, problem.data)
    return jnp.mean(_length(g[micro_batches(problem.n, size, replace)].mean(axis=1), eps))


def _norm_of_mean(problem: FiniteSum, x: Any, eps: float) -> Any:
    return _length(problem.grad(x), eps)


def _loss_and(
    norm: Callable[[FiniteSum, Any, int, int], Any], factor: float = 1.0
) -> Callable[..., Any]:
    """`f + factor rho norm(problem, x, b, m)`."""
    return lambda problem, x, lr, rho, batch, micro: (
        problem.loss(x) + factor * rho * norm(problem, x, batch, micro)
    )


def _micro_batch_covariance(
    replace: bool,
    eps: float,
    shift: float = 1.0,
    factor: Callable[[int, int], float] = lambda b, m: m / b,
) -> Callable[..., Any]:
    """`(m eta/b) Sigma^m`, `Sigma^m` the covariance of
    `grad f_I(x + rho grad f_I / |grad f_I|)`.
    """

    def covariance(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        return (
            lr
            * factor(batch, micro)
            * micro_covariance(
                problem, x, shift * rho, micro, replace, lambda g: g / _length(g, eps)
            )
        )

    return covariance


def _no_factor(batch: int, micro: int) -> float:
    return 1.0


def _whole_set_covariance(
    replace: bool, eps: float, factor: Callable[[int, int], float] | None = None, shift: float = 1.0
) -> Callable[..., Any]:
    """`eta V(x + rho grad f / |grad f|)` times `1/b`, or its finite-population form."""
    used = factor or ((lambda n, b: 1 / b) if replace else finite_population)

    def covariance(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        g = problem.grad(x)
        return (
            lr * used(problem.n, batch) * variance(problem, x + shift * rho * g / _length(g, eps))
        )

    return covariance


@dataclass(frozen=True)
class _Case:
    """A stated SDE, and the optimizer that it is about."""

    variant: str
    replace: bool
    eps: float
    sizes: list[tuple[int, int]]
    stated: Hypothesis

    def deviations(self, seed: int) -> dict[str, Deviation]:
        return deviation(self.variant, self.replace, self.sizes, seed, self.stated, self.eps)

    def __str__(self) -> str:
        return f"{'with' if self.replace else 'without'} replacement, eps = {self.eps:g}"


def _theorem(
    cases: list[_Case],
    broken: Mapping[str, _Case],
    remark: str = "",
    mended: Mapping[str, _Case] | None = None,
) -> Callable[[Preset, int], Outcome]:
    """A theorem as a runnable check: what it states in each case, and the same with one thing
    broken or mended.
    """

    def run(preset: Preset, seed: int) -> Outcome:
        measurements = []
        for s in [seed] if preset == "quick" else [seed + k for k in range(5)]:
            for case in cases:
                found = case.deviations(s)
                measurements += [
                    value.measurement(f"relative deviation of the {part}, {case}, problem {s}")
                    for part, value in found.items()
                ]

        def altered(theories: Mapping[str, _Case]) -> dict[str, Iterable[Deviation]]:
            return {name: case.deviations(seed).values() for name, case in theories.items()}

        return Outcome(
            tuple(measurements), tuple(controls_of(altered(broken), altered(mended or {}))), remark
        )

    return run


def sam(replace: bool, eps: float, covariance: bool = True) -> Hypothesis:
    """Theorems 3.6 and 3.8: `f + rho E|grad f_I|`, where a mini-batch of SAM is one micro-batch,
    and `(m eta/b) Sigma^m`.
    """
    potential = _loss_and(lambda p, x, b, m: _expected_norm(p, x, m, eps, replace))
    return Hypothesis(
        potential=potential,
        covariance=_micro_batch_covariance(replace, eps) if covariance else None,
    )


def n_sam(replace: bool, eps: float) -> Hypothesis:
    """Theorem 3.7: `f + rho |grad f|`, and the covariance of SGD at the perturbed point."""
    return Hypothesis(
        potential=_loss_and(lambda p, x, b, m: _norm_of_mean(p, x, eps)),
        covariance=_whole_set_covariance(replace, eps),
    )


def _sam(
    variant: str, sizes: list[tuple[int, int]], replace: bool, eps: float, covariance: bool = True
) -> _Case:
    return _Case(variant, replace, eps, sizes, sam(replace, eps, covariance))


def _n_sam(replace: bool, eps: float) -> _Case:
    return _Case("n-sam", replace, eps, [(2, 2), (3, 3)], n_sam(replace, eps))


def _n_sam_drift(eps: float, factor: float = 1.0) -> Hypothesis:
    return Hypothesis(potential=_loss_and(lambda p, x, b, m: _norm_of_mean(p, x, eps), factor))


def _wrong(variant: str, size: tuple[int, int], stated: Hypothesis, replace: bool = True) -> _Case:
    return _Case(variant, replace, _EPS, [size], stated)


def _drift_controls(variant: str, size: tuple[int, int]) -> dict[str, _Case]:
    def norm(eps: float) -> Callable[[FiniteSum, Any, int, int], Any]:
        return lambda p, x, b, m: _expected_norm(p, x, m, eps, True)

    potentials = {
        "sign of the norm flipped": _loss_and(norm(_EPS), -1.0),
        "norm ten per cent off": _loss_and(norm(_EPS), 1.1),
        "eps dropped": _loss_and(norm(0.0)),
        "|E grad f_I| for E|grad f_I|: n-SAM's theory": _loss_and(
            lambda p, x, b, m: _norm_of_mean(p, x, _EPS)
        ),
    }
    return {
        name: _wrong(variant, size, Hypothesis(potential=potential))
        for name, potential in potentials.items()
    }


_M_SIZES = [(4, 2), (3, 1)]


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
        id="L-3.6",
        title="SDE of SAM: its drift (the covariance holds by definition)",
        statement=(
            r"\mathrm dX = -\nabla\big(f + \rho\,\mathbb E\|\nabla f_\gamma\|\big)\mathrm dt +"
            r" \sqrt{\eta\,\Sigma^b}\,\mathrm dW"
        ),
        source=f"{_PAPER}, theorem 3.6",
        prediction=(
            "the rho^0 and rho^1 coefficients of the mean step, for both samplings, E over"
            " mini-batches under each"
        ),
        recorded="confirmed",
        seconds=10,
        run=_theorem(
            [
                _sam("sam", [(2, 2), (3, 3)], True, _EPS, covariance=False),
                _sam("sam", [(3, 3)], True, 0.0, covariance=False),
                _sam("sam", [(3, 3)], False, _EPS, covariance=False),
            ],
            {
                **_drift_controls("sam", (3, 3)),
                "E over uniform subsets for E over iid batches": _wrong(
                    "sam",
                    (3, 3),
                    Hypothesis(
                        potential=_loss_and(lambda p, x, b, m: _expected_norm(p, x, m, _EPS, False))
                    ),
                ),
            },
            f"{BY_DEFINITION} With eps > 0 the norm is sqrt(|.|^2 + eps^2); with eps = 0 the"
            " statement holds where no mini-batch gradient vanishes.",
        ),
    ),
    Claim(
        id="L-3.7",
        title="SDE of n-SAM",
        statement=(
            r"\mathrm dX = -\nabla\big(f + \rho\,\|\nabla f\|\big)\mathrm dt +"
            r" \sqrt{\eta\operatorname{Cov}\nabla f_\gamma"
            r"\big(X + \rho\tfrac{\nabla f}{\|\nabla f\|}\big)}\,\mathrm dW"
        ),
        source=f"{_PAPER}, theorem 3.7",
        prediction=(
            "no noise in the regulariser; the covariance is that of SGD at the perturbed point, V/b"
            " or (n-b)/(b(n-1)) V"
        ),
        recorded="confirmed",
        seconds=8,
        run=_theorem(
            [_n_sam(True, _EPS), _n_sam(True, 0.0), _n_sam(False, _EPS)],
            {
                "E|grad f_gamma| for |grad f|: SAM's theory": _wrong(
                    "n-sam",
                    (3, 3),
                    Hypothesis(
                        potential=_loss_and(lambda p, x, b, m: _expected_norm(p, x, b, _EPS, True))
                    ),
                ),
                **{
                    name: _wrong("n-sam", (3, 3), _n_sam_drift(eps, factor))
                    for name, eps, factor in (
                        ("sign of the norm flipped", _EPS, -1.0),
                        ("norm ten per cent off", _EPS, 1.1),
                        ("eps dropped", 0.0, 1.0),
                    )
                },
                "noise without its rho part": _wrong(
                    "n-sam",
                    (3, 3),
                    Hypothesis(covariance=_whole_set_covariance(True, _EPS, shift=0.0)),
                ),
                "1/b for the finite-population factor": _wrong(
                    "n-sam",
                    (3, 3),
                    Hypothesis(
                        covariance=_whole_set_covariance(False, _EPS, factor=lambda n, b: 1 / b)
                    ),
                    replace=False,
                ),
            },
        ),
    ),
    Claim(
        id="L-3.8",
        title="SDE of m-SAM",
        statement=(
            r"\mathrm dX = -\nabla\big(f + \rho\,\mathbb E\|\nabla f_I\|\big)\mathrm dt +"
            r" \sqrt{\tfrac{m\eta}{b}\,\Sigma^m}\,\mathrm dW,"
            r"\quad |I| = m"
        ),
        source=f"{_PAPER}, theorem 3.8",
        prediction=(
            "E over micro-batches of m samples, for both samplings; the covariance (m eta/b)"
            " Sigma^m with replacement"
        ),
        recorded="confirmed",
        seconds=10,
        run=_theorem(
            [
                _sam("m-sam", _M_SIZES, True, _EPS),
                _sam("m-sam", _M_SIZES[:1], True, 0.0, covariance=False),
                _sam("m-sam", _M_SIZES[:1], False, _EPS, covariance=False),
            ],
            {
                **_drift_controls("m-sam", (4, 2)),
                "E over mini-batches for E over micro-batches": _wrong(
                    "m-sam",
                    (4, 2),
                    Hypothesis(
                        potential=_loss_and(lambda p, x, b, m: _expected_norm(p, x, b, _EPS, True))
                    ),
                ),
                "covariance without m/b": _wrong(
                    "m-sam",
                    (4, 2),
                    Hypothesis(covariance=_micro_batch_covariance(True, _EPS, factor=_no_factor)),
                ),
                "noise without its rho part": _wrong(
                    "m-sam",
                    (4, 2),
                    Hypothesis(covariance=_micro_batch_covariance(True, _EPS, shift=0.0)),
                ),
            },
        ),
    ),
    Claim(
        id="L-3.8w",
        title="the printed covariance of m-SAM, without replacement",
        statement=(
            r"\operatorname{Cov}(G) = \tfrac{m}{b}\,\Sigma^m \text{ where mini-batches are uniform"
            r" subsets}"
        ),
        source=f"{_PAPER}, theorem 3.8",
        prediction=(
            "as L-3.8; micro-batches of a uniform subset are negatively correlated, so Cov(G) is"
            " not (m/b) Sigma^m for m < b"
        ),
        recorded="refuted",
        seconds=4,
        run=_theorem(
            [
                _Case(
                    "m-sam",
                    False,
                    _EPS,
                    _M_SIZES,
                    Hypothesis(covariance=_micro_batch_covariance(False, _EPS)),
                )
            ],
            {
                "covariance without m/b": _wrong(
                    "m-sam",
                    (4, 2),
                    Hypothesis(covariance=_micro_batch_covariance(False, _EPS, factor=_no_factor)),
                    False,
                )
            },
            "The drift of L-3.8 is right for uniform subsets too, with E over them. The leading"
            " covariance is the mini-batch's, (n-b)/(b(n-1)) V.",
            {
                "m = b, where there is one micro-batch": _Case(
                    "sam",
                    False,
                    _EPS,
                    [(3, 3)],
                    Hypothesis(covariance=_micro_batch_covariance(False, _EPS)),
                )
            },
        ),
    ),
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
