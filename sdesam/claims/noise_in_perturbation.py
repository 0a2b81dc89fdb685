"""Which rules keep the noise of the mini-batch in their perturbation, and so regularise tr V:
F-SAM, VaSSO, and perturbations along another batch than that of the descent.

The drift of first order in rho of an unnormalised rule is `-rho (W Hbar gbar + w C)` with
`C = mean(H_i g_i) - Hbar gbar = grad tr V / 2`. `W` is how much of the mean gradient the
perturbation follows, and `w` how much it shares noise with the descent gradient. If small
micro-batches help by the noise in the perturbation, then rules with `w = 0` have lost that help.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.claims._base import Claim, Outcome, Preset
from sdesam.claims._findings import Findings
from sdesam.problems import FiniteSum, quadratic, torus
from sdesam.sampling import Sampling
from sdesam.symbolic import derive
from sdesam.variants import Gradient, Sum, Unit, Vector, variant
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.float64 import drift, to_double
from sdesam.verify.exact.quadratic import Quadratic

_BASIS = (
    "rounding of sums over all batches in float64; for rules with memory, the limit lr -> 0 by"
    " Richardson's extrapolation, 1e-8"
)
_TOLERANCE = 1e-6
_SIZES = ((4, 2), (3, 3))
_SAMPLES, _POINTS = 4, 5


def factor(n: int, k: int, replace: bool) -> float:
    """`c_k`: 1/k with replacement, (n-k)/(k(n-1)) without."""
    return 1 / k if replace else (n - k) / (k * (n - 1))


# What the listing does with "gradient(micro, at=gradient(fresh))" for m = 1 and two samples, in one
# dimension: micro-batches 0 and 1, each with the fresh batches 0 and 1. The slope in rho at rho = 0
# is H_i g_j, and its mean over the four pairs is mean(H) mean(g): the noise of the ascent is not
# that of the descent. For "at=gradient(micro)" the pairs have i = j, and the mean is mean(H g).
def _value(v: Vector, g: dict[str, np.ndarray], numbers: dict[str, float], eps: float) -> Any:
    """A vector of a rule at rho = 0, from the mean gradients of the batches of each scope."""
    if isinstance(v, Gradient):
        return g[v.scope]
    if isinstance(v, Sum):
        return sum(c.value(numbers) * _value(part, g, numbers, eps) for c, part in v.terms)
    assert isinstance(v, Unit)
    length = np.linalg.norm(_value(v.norm_of, g, numbers, eps))
    return _value(v.vector, g, numbers, eps) / np.sqrt(length**2 + eps**2)


def listed(
    rule: str,
    problem: FiniteSum,
    points: np.ndarray,
    sampling: Sampling,
    eps: float = 0.0,
    **numbers: float,
) -> np.ndarray:
    """`d/drho E G` at `rho = 0` of a rule `grad f_I(x + rho u)`, all pairs of a micro-batch and a
    fresh batch listed: shape `(p, d)`.
    """
    moved = variant(rule).direction
    assert isinstance(moved, Gradient)
    assert moved.at is not None
    own = Sampling(sampling.m, sampling.m, sampling.replace)
    batches, chance = list_batches(own, problem.n)
    found = []
    for g, H in zip(*derivatives(problem, points), strict=True):
        gs, Hs = g[batches[:, 0]].mean(axis=1), H[batches[:, 0]].mean(axis=1)
        total = np.zeros(g.shape[1])
        for i, j in product(range(len(chance)), repeat=2):
            scopes = {"micro": gs[i], "batch": gs[i], "fresh": gs[j], "data": g.mean(axis=0)}
            total += chance[i] * chance[j] * Hs[i] @ _value(moved.at, scopes, numbers, eps)
        found.append(total)
    return np.array(found)


def derivatives(problem: FiniteSum, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`g_i` and `H_i` in float64 at every point: shapes `(p, n, d)` and `(p, n, d, d)`."""
    with jax.enable_x64(True):
        data = to_double(problem.data)

        def each(fn: Any) -> Any:
            over = jax.vmap(fn(problem.sample_loss), (None, 0))
            return np.asarray(jax.vmap(lambda x: over(x, data))(jnp.asarray(points)))

        return each(jax.grad), each(jax.hessian)


def parts(g: np.ndarray, H: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Hbar gbar` and `C = mean(H_i g_i) - Hbar gbar` at every point, shape `(p, d)` each."""
    mean = np.einsum("pjk,pk->pj", H.mean(axis=1), g.mean(axis=1))
    return mean, np.einsum("pnjk,pnk->pj", H, g) / g.shape[1] - mean


def coefficients(slopes: np.ndarray, basis: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """`(W, w, residual)`: least squares of the slopes on `Hbar gbar` and `C`."""
    A = np.column_stack([part.ravel() for part in basis])
    found, *_ = np.linalg.lstsq(A, slopes.ravel(), rcond=None)
    left = np.linalg.norm(slopes.ravel() - A @ found) / np.linalg.norm(slopes)
    return np.array([*found, left])


def _derived(
    rule: str, problem: FiniteSum, points: np.ndarray, sampling: Sampling, **numbers: float
) -> np.ndarray:
    """`d/drho E G` at `rho = 0` from the derived equation of the rule as it is declared."""
    given: dict[str, Any] = {"batch": sampling.batch, "expectation": "exact", **numbers}
    if variant(rule).micro:
        given["micro"] = sampling.m
    bound = derive(rule, (1, 2), sampling.replace).bind(problem, 0.1, 1.0, **given)
    g, _ = derivatives(problem, points)
    return np.asarray(-drift(bound, points) - g.mean(axis=1))


_Memory = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


# A rule with memory on a quadratic: x and the memory d are moved by a matrix of the drawn batch,
# which is independent of both. So means obey a linear recursion whose matrix is the mean matrix:
#
#     d+ = keep d + take g_gamma(x)              g_gamma(x) = H_gamma x + k_gamma
#     x+ = x - lr (g_gamma(x) + rho H_gamma u),  u = own g_gamma(x) + old d
#
# E[H_gamma g_gamma(x)] is the one product of two batch means in it, and is listed.
def _with_memory(
    problem: FiniteSum,
    sampling: Sampling,
    memory: tuple[float, float],
    ascent: tuple[float, float],
    starts: np.ndarray,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The slope in rho of the mean step of a rule with memory once the memory has settled, in the
    limit lr -> 0, and `Hbar gbar` and `C` at the same points.

    Args:
        problem: quadratic.
        sampling: of the mini-batch, one micro-batch.
        memory: `keep` and `take` of `d+ = keep d + take g_gamma(x)`.
        ascent: `own` and `old` of `u = own g_gamma(x) + old d`.
        starts: shape `(p, d)`.
    """
    H, K = Quadratic(problem, 1.0).affine
    batches, chance = list_batches(sampling, problem.n)
    HB, KB = H[batches[:, 0]].mean(axis=1), K[batches[:, 0]].mean(axis=1)
    own = np.einsum("q,qij,qjk->ik", chance, HB, KB)
    Hbar, Kbar = H.mean(axis=0), K.mean(axis=0)
    slopes = []
    steps = int(40 / (1 - memory[0])) + 4

    def rate(start: np.ndarray, lr: float) -> tuple[np.ndarray, np.ndarray]:
        y = np.append(start, 1.0)
        d = np.zeros(len(start))
        for _ in range(steps):
            up = ascent[0] * own @ y + ascent[1] * Hbar @ d
            d = memory[0] * d + memory[1] * Kbar @ y
            last, y = y, np.append(y[:-1] - lr * (Kbar @ y + up), 1.0)
        return up, last[:-1]

    ends = []
    for start in starts:
        (fine, at), (coarse, other) = (rate(start, lr) for lr in (1e-6, 2e-6))
        slopes.append(2 * fine - coarse)
        ends.append(2 * at - other)
    y = np.column_stack([ends, np.ones(len(ends))])
    g, HP = np.einsum("nij,pj->pni", K, y), np.broadcast_to(H, (len(ends), *H.shape))
    return np.array(slopes), parts(g, HP)


def _problem(seed: int) -> tuple[FiniteSum, np.ndarray]:
    points = np.random.default_rng(seed).uniform(0, 2 * np.pi, size=(_POINTS, 2))
    return torus(dim=2, samples=_SAMPLES, seed=700 + seed), points


def _quadratic(seed: int) -> tuple[FiniteSum, np.ndarray]:
    starts = np.random.default_rng([seed, 1]).normal(size=(_POINTS, 2))
    return quadratic(dim=2, samples=_SAMPLES, seed=700 + seed), starts


def _judge(
    found: Findings,
    label: str,
    predicted: tuple[float, float],
    measured: np.ndarray,
    wrong: dict[str, tuple[float, float]],
) -> None:
    """`(W, w)` and no residual, beside what was measured; and wrong pairs."""
    found.agree(f"W, w and what is left: {label}", [*predicted, 0.0], measured)
    for name, pair in wrong.items():
        found.broken(f"{name}: {label}", [*pair, 0.0], measured)


def _draws(preset: Preset, seed: int) -> range:
    return range(seed, seed + (1 if preset == "quick" else 5))


def _run_friendly(preset: Preset, seed: int) -> Outcome:
    found = Findings(_TOLERANCE, _BASIS)
    sigma, theta = 0.6, 0.3
    for draw, replace in product(_draws(preset, seed), (True, False)):
        problem, points = _problem(draw)
        basis = parts(*derivatives(problem, points))
        drawn = f"{'with' if replace else 'without'} replacement, draw {draw}"
        for b, m in _SIZES:
            sampling, c = Sampling(b, m, replace), factor(_SAMPLES, m, replace)
            label = f"F-USAM, b = {b}, m = {m}, {drawn}"
            wrong = {
                "tr V dropped": (1 - sigma, 0.0),
                "tr V weakened like |grad f|^2, by 1 - sigma": (1 - sigma, (1 - sigma) * c),
                "|grad f|^2 kept whole": (1.0, c),
            }
            if m < b:
                wrong["b for m"] = (1 - sigma, factor(_SAMPLES, b, replace))
            for way, slopes in (
                ("batches listed", listed("f-usam", problem, points, sampling, sigma=sigma)),
                ("derived equation", _derived("f-usam", problem, points, sampling, sigma=sigma)),
            ):
                _judge(found, f"{label}, {way}", (1 - sigma, c), coefficients(slopes, basis), wrong)
        problem, starts = _quadratic(draw)
        sampling, c = Sampling(2, 2, replace), factor(_SAMPLES, 2, replace)
        average = (1 - theta, theta)
        for words, ascent, w in (
            # u = g - sigma d, with d before the own batch; and u = g - sigma (keep d + take g)
            ("average without the own batch", (1.0, -sigma), 1.0),
            (
                "average with the own batch",
                (1 - sigma * theta, -sigma * (1 - theta)),
                1 - sigma * theta,
            ),
        ):
            measured = coefficients(*_with_memory(problem, sampling, average, ascent, starts))
            wrong = {
                "tr V dropped": (1 - sigma, 0.0),
                "the own batch the other way": (1 - sigma, (2 - sigma * theta - w) * c),
            }
            _judge(found, f"F-USAM, {words}, {drawn}", (1 - sigma, w * c), measured, wrong)
    return found.outcome(_normalised(seed), {"sigma": sigma, "theta": theta})


def _normalised(seed: int) -> str:
    """How much of the rho^1 drift of the normalised rules comes from noise that ascent and descent
    share.
    """
    problem, points = _problem(seed)
    sampling, eps = Sampling(2, 2), 0.1
    told = []
    for rule, numbers in (("sam", {}), ("f-sam", {"sigma": 0.6}), ("fresh-sam", {})):
        slopes = listed(rule, problem, points, sampling, eps, **numbers)
        apart = listed_apart(rule, problem, points, sampling, eps, **numbers)
        share = np.linalg.norm(slopes - apart) / np.linalg.norm(slopes)
        told.append(f"{share:.2f} for {variant(rule).title}")
    return (
        "These are unnormalised rules, for which the drift has two parts. Of the normalised, the"
        " share of the rho^1 drift E[H_I u_I] that is not Hbar E[u_I] is"
        f" {', '.join(told)} here (b = 2). F-SAM weakens |grad f|^2 and keeps tr V: if m-sharpness"
        " works through tr V, F-SAM must keep its gain."
    )


def listed_apart(
    rule: str,
    problem: FiniteSum,
    points: np.ndarray,
    sampling: Sampling,
    eps: float,
    **numbers: float,
) -> np.ndarray:
    """`Hbar E[u]`: the slope that a rule would have if its ascent were independent of its
    descent.
    """
    moved = variant(rule).direction
    assert isinstance(moved, Gradient)
    assert moved.at is not None
    batches, chance = list_batches(Sampling(sampling.m, sampling.m, sampling.replace), problem.n)
    found = []
    for g, H in zip(*derivatives(problem, points), strict=True):
        gs, whole = g[batches[:, 0]].mean(axis=1), g.mean(axis=0)
        u = [
            _value(moved.at, {"micro": a, "batch": a, "fresh": a, "data": whole}, numbers, eps)
            for a in gs
        ]
        found.append(H.mean(axis=0) @ (chance @ np.array(u)))
    return np.array(found)


def _run_vasso(preset: Preset, seed: int) -> Outcome:
    found = Findings(_TOLERANCE, _BASIS)
    for draw, replace, b in product(_draws(preset, seed), (True, False), (1, 2)):
        problem, starts = _quadratic(draw)
        sampling, c = Sampling(b, b, replace), factor(_SAMPLES, b, replace)
        for theta in (0.2, 0.7):
            ascent = (theta, 1 - theta)  # u = d+, the average with the own batch
            slopes = _with_memory(problem, sampling, (1 - theta, theta), ascent, starts)
            _judge(
                found,
                f"theta = {theta}, b = {b}, {'with' if replace else 'without'} replacement, draw"
                f" {draw}",
                (1.0, theta * c),
                coefficients(*slopes),
                {
                    "tr V kept whole, as in USAM": (1.0, c),
                    "tr V dropped": (1.0, 0.0),
                    "theta^2, as in the variance of d": (1.0, theta**2 * c),
                    "tr V with the sign flipped": (1.0, -theta * c),
                },
            )
    return found.outcome(
        "The average d is a better estimate of grad f, and by that it loses the noise that it"
        " shares with the descent: tr V has the coefficient theta c_b/2 for c_b/2. With theta = 0.2"
        " four fifths of the regulariser are gone. Normalised, the length of d falls with its"
        " noise, too, so that the numbers there are others.",
    )


def _run_apart(preset: Preset, seed: int) -> Outcome:
    found = Findings(_TOLERANCE, _BASIS)
    for draw, replace in product(_draws(preset, seed), (True, False)):
        problem, points = _problem(draw)
        basis = parts(*derivatives(problem, points))
        drawn = f"{'with' if replace else 'without'} replacement, draw {draw}"
        for b, m in _SIZES:
            sampling, c = Sampling(b, m, replace), factor(_SAMPLES, m, replace)
            for way, measure in (("batches listed", listed), ("derived equation", _derived)):
                slopes = measure("fresh-usam", problem, points, sampling)
                own = measure("m-usam", problem, points, sampling)
                label = f"b = {b}, m = {m}, {drawn}, {way}"
                measured = coefficients(slopes, basis)
                _judge(
                    found, f"fresh batch, {label}", (1.0, 0.0), measured, {"tr V kept": (1.0, c)}
                )
                found.mended(
                    f"the same batch keeps tr V: {label}", [1.0, c, 0.0], coefficients(own, basis)
                )
        problem, starts = _quadratic(draw)
        sampling, c = Sampling(2, 2, replace), factor(_SAMPLES, 2, replace)
        memory = partial(_with_memory, problem, sampling, (0.0, 1.0), starts=starts)
        _judge(
            found,
            f"gradient of the step before, {drawn}",
            (1.0, 0.0),
            coefficients(*memory(ascent=(0.0, 1.0))),
            {
                "tr V kept": (1.0, c),
                "half of it, a mixture of both batches": (1.0, c / 2),
                "tr V with the sign flipped": (1.0, -c),
            },
        )
        found.mended(
            f"its own gradient keeps tr V: {drawn}",
            [1.0, c, 0.0],
            coefficients(*memory(ascent=(1.0, 0.0))),
        )
    return found.outcome(
        "Ascent and descent that share no samples share no noise, and the regulariser is |grad"
        " f|^2/2 alone for every m. If m-sharpness works through tr V, such rules must lose its"
        " gain; rules that keep the batch (USAM, F-SAM) must not. A batch of the same mini-batch"
        " without replacement is not independent: there w = -1/(n-1).",
    )


_FORM = r"\text{drift of order } \rho:\ -\rho\,\nabla\big(\tfrac{W}{2}\|\nabla f\|^2 + \tfrac{w}{2}"

CLAIMS = (
    Claim(
        id="F-SAM",
        title="F-SAM (unnormalised) keeps the noise in its perturbation, and tr V whole",
        statement=_FORM
        + r"\operatorname{tr} V\big),\quad u = \nabla f_I - \sigma \nabla f:\ W = 1-\sigma,\ w ="
        r" c_m;"
        r"\ \text{moving average with the own batch: } w = (1 - \sigma\theta)\, c_b",
        source="Li et al. 2024, arXiv 2403.12350; coefficients: docs/theory.md",
        prediction="(W, w) = (1 - sigma, c_m): c_m = 1/m or (n-m)/(m(n-1)), for every sigma",
        recorded="confirmed",
        seconds=4,
        run=_run_friendly,
    ),
    Claim(
        id="VaSSO",
        title="VaSSO (unnormalised) keeps a share theta of tr V",
        statement=_FORM + r"\operatorname{tr} V\big),\quad d_k = (1-\theta) d_{k-1} + \theta \nabla"
        r" f_{\gamma_k},\ u ="
        r" d_k:\ W = 1,\ w = \theta c_b",
        source="Li & Giannakis 2023, arXiv 2309.15639; coefficients: docs/theory.md",
        prediction="(W, w) = (1, theta c_b), once the average has settled",
        recorded="confirmed",
        seconds=1,
        run=_run_vasso,
    ),
    Claim(
        id="ASYNC",
        title="a stale or a fresh batch in the perturbation loses tr V",
        statement=_FORM
        + r"\operatorname{tr} V\big),\quad u = \nabla f_J,\ J \text{ independent of } I \text{ or"
        r" of"
        r" the step before}:\ W = 1,\ w = 0",
        source=(
            "this project, docs/theory.md; stale perturbations are those of Jo, Lim & Lee 2025,"
            " arXiv"
            " 2503.11147, fresh ones a control for m-SAM"
        ),
        prediction="(W, w) = (1, 0) for every m, by listing, and by the derived equation",
        recorded="confirmed",
        seconds=4,
        run=_run_apart,
    ),
)
