"""Luo, Harandi, Phung & Le 2025, arXiv 2509.18001: the SDEs of normalised SAM (3.6 to 3.8).

As in `luo2025.py`, drift and covariance are written from the printed formulas and set beside the
optimizer's own one-step moments over all mini-batches: with `|v|` smoothed to
`sqrt(|v|^2 + eps^2)`, and with `eps = 0` at points where no micro-batch gradient is small.
Expectations over micro-batches are taken under the sampling of the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdesam.claims._base import Claim
from sdesam.claims._theorem import Case, theorem
from sdesam.claims.luo2025 import (
    BY_DEFINITION,
    finite_population,
    micro_batches,
    micro_covariance,
    variance,
)
from sdesam.problems import FiniteSum
from sdesam.verify.hypothesis import Hypothesis

_PAPER = "Luo, Harandi, Phung & Le 2025, arXiv 2509.18001"
_EPS = 0.1
"""About the size of a gradient on the torus problems: neither the norm nor its smoothing is
negligible.
"""


def _length(v: Any, eps: float) -> Any:
    return jnp.sqrt(jnp.sum(v**2, axis=-1) + eps**2)


# The norm is outside the expectation in n-SAM, |E g_I|, and inside in SAM and m-SAM, E |g_I|. With
# two samples of gradients 1 and -1 and m = 1 the first is 0 and the second 1: all that m-SAM
# regularises beyond n-SAM is this difference, and it depends on m.
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
) -> Case:
    return Case(variant, replace, sizes, sam(replace, eps, covariance), eps)


def _n_sam(replace: bool, eps: float) -> Case:
    return Case("n-sam", replace, [(2, 2), (3, 3)], n_sam(replace, eps), eps)


def _n_sam_drift(eps: float, factor: float = 1.0) -> Hypothesis:
    return Hypothesis(potential=_loss_and(lambda p, x, b, m: _norm_of_mean(p, x, eps), factor))


def _wrong(variant: str, size: tuple[int, int], stated: Hypothesis, replace: bool = True) -> Case:
    return Case(variant, replace, [size], stated, _EPS)


def _drift_controls(variant: str, size: tuple[int, int]) -> dict[str, Case]:
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
        run=theorem(
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
        run=theorem(
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
        run=theorem(
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
        run=theorem(
            [
                Case(
                    "m-sam",
                    False,
                    _M_SIZES,
                    Hypothesis(covariance=_micro_batch_covariance(False, _EPS)),
                    _EPS,
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
                "m = b, where there is one micro-batch": Case(
                    "sam",
                    False,
                    [(3, 3)],
                    Hypothesis(covariance=_micro_batch_covariance(False, _EPS)),
                    _EPS,
                )
            },
        ),
    ),
)
