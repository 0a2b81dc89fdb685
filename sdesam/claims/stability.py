"""Up to which learning rate USAM and m-USAM are stable on quadratics, in the mean square.

Near a minimum that all samples share a step is `x+ = M x` with a random matrix `M` of the
mini-batch. The second moment dies out iff the spectral radius of `E[M (x) M]` is below 1. In one
dimension that is `lr < 2 E[a] / E[a^2]` with `M = 1 - lr a`, and the moments of `a` have closed
forms. Criteria of papers stand beside it: they leave out the noise, or the perturbation, or m.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import brentq

from sdesam.claims._base import Claim, Outcome, Preset
from sdesam.claims._findings import Findings
from sdesam.optim import Chain
from sdesam.problems import FiniteSum
from sdesam.sampling import Sampling
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.quadratic import Quadratic


def _half_square(x: Any, sample: dict[str, Any]) -> Any:
    return 0.5 * x @ sample["hessian"] @ x


class _Moments:
    """How a step of the package's m-USAM changes second moments, on samples `x . H_i x / 2` that
    share their minimum: from exact moments of one step, from enough starts to know a linear map.
    """

    def __init__(self, hessians: np.ndarray):
        d = hessians.shape[1]
        # the outer products of these with themselves span the symmetric matrices
        starts = [*np.eye(d), *(np.eye(d)[i] + np.eye(d)[j] for i, j in combinations(range(d), 2))]
        self.solvers = [
            Quadratic(FiniteSum(_half_square, {"hessian": hessians}, start, name="valley"), 1.0)
            for start in starts
        ]
        self.before = np.array([np.outer(start, start).ravel() for start in starts])

    def radius(self, lr: float, rho: float, b: int, m: int, replace: bool) -> float:
        """The largest factor of a second moment in a step."""
        after = []
        for solver in self.solvers:
            numbers: dict[str, Any] = {"lr": lr, "rho": rho, "batch": b, "micro": m}
            chain = Chain("m-usam", solver.problem, replace=replace, **numbers)
            after.append(solver.chain_path(chain, 1)[1, solver.problem.dim :])
        # every image is a combination of the starts' outer products, which do not depend on lr
        factors = np.linalg.lstsq(self.before.T, np.array(after).T, rcond=None)[0]
        return float(abs(np.linalg.eigvals(factors)).max())


# The curvature of a micro-batch of m draws is l + e with E e^2 = s2/m, E e^3 = s3/m^2 and
# E e^4 = 3 (s2/m)^2 + (s4 - 3 s2^2)/m^3, where s2, s3, s4 are central moments over the samples.
# USAM multiplies x by 1 - lr a, a = h + rho h^2 = l + rho l^2 + (1 + 2 rho l) e + rho e^2:
#
#     E a   = l + rho (l^2 + s2/m)
#     Var a = (1 + 2 rho l)^2 E e^2 + 2 rho (1 + 2 rho l) E e^3 + rho^2 (E e^4 - (E e^2)^2)
#
# and m/b of that for the mean of b/m micro-batches. Curvatures 1 and 3, m = b = 1, rho = 0:
# E a = 2, Var a = 1, and the largest lr is 2 * 2 / (4 + 1) = 0.8, not 2/2.
def largest(h: np.ndarray, rho: float, b: int, m: int) -> float:
    """`2 E[a] / E[a^2]` with replacement, one parameter; `h` the curvatures of the samples.

    >>> largest(np.array([1.0, 3.0]), rho=0.0, b=1, m=1)
    0.8
    """
    mean = h.mean()
    s2, s3, s4 = (np.mean((h - mean) ** k) for k in (2, 3, 4))
    e2, e3 = s2 / m, s3 / m**2
    e4 = 3 * e2**2 + (s4 - 3 * s2**2) / m**3
    slope = 1 + 2 * rho * mean
    first = mean + rho * (mean**2 + e2)
    spread = slope**2 * e2 + 2 * rho * slope * e3 + rho**2 * (e4 - e2**2)
    return float(2 * first / (first**2 + m / b * spread))


def _radius(hessians: np.ndarray, lr: float, rho: float, b: int, m: int, replace: bool) -> float:
    """The spectral radius of `E[M (x) M]`, all mini-batches listed."""
    batches, chance = list_batches(Sampling(b, m, replace), len(hessians))
    H = hessians[batches].mean(axis=2)
    M = np.eye(hessians.shape[1]) - lr * (H + rho * H @ H).mean(axis=1)
    square = np.einsum("q,qij,qkl->ikjl", chance, M, M).reshape(M.shape[1] ** 2, -1)
    return float(abs(np.linalg.eigvals(square)).max())


_SETTINGS = ((1, 1), (4, 1), (4, 2), (4, 4))


def _root(radius: Callable[[float], float], curvature: float) -> float:
    """The learning rate at which a radius is 1; nothing is stable far beyond gradient descent's
    edge.
    """
    ends = 0.05 / curvature, 2.2 / curvature
    return float(brentq(lambda lr: radius(lr) - 1, *ends, xtol=1e-12))


def _run(preset: Preset, seed: int) -> Outcome:
    found = Findings(1e-6, "root finding on exact moments, curvatures in float32: about 1e-7")
    told: dict[str, dict[str, float]] = {}

    def judge(label: str, stated: float, measured: float, criteria: dict[str, float]) -> None:
        found.agree(f"largest lr: {label}", stated, measured)
        for name, value in criteria.items():
            found.broken(f"{name}: {label}", value, measured)
        told[label] = {"largest": measured, **criteria}

    for draw in range(seed, seed + (1 if preset == "quick" else 5)):
        rng = np.random.default_rng(draw)
        h = np.float32(rng.uniform(0.2, 1.0, size=5) + np.array([0, 0, 0, 0, 2])).astype(float)
        rho, mean = float(rng.uniform(0.2, 0.5)), float(h.mean())
        moments = _Moments(h[:, None, None])
        for b, m in _SETTINGS:
            criteria = {
                "gradient descent, 2/l": 2 / mean,
                "USAM with all samples, 2/(l (1 + rho l))": 2 / (mean * (1 + rho * mean)),
                "SGD, 2 l / (l^2 + Var h / b)": largest(h, 0.0, b, 1),
                "the largest curvature, 2/max l_i": 2 / float(h.max()),
            }
            if m < b:
                criteria[_PLAIN] = largest(h, rho, b, b)
            measured = _root(partial(moments.radius, rho=rho, b=b, m=m, replace=True), mean)
            label = f"b = {b}, m = {m}, one parameter, draw {draw}"
            judge(label, largest(h, rho, b, m), measured, criteria)
        hessians = _turned(rng)
        top = float(np.linalg.eigvalsh(hessians.mean(axis=0))[-1])
        moments = _Moments(hessians)
        for b, m, replace in ((2, 1, True), (2, 1, False), (3, 3, True)):
            drawn = "with" if replace else "without"
            listed = partial(_radius, hessians, rho=rho, b=b, replace=replace)
            criteria = {
                "gradient descent, 2/l1": 2 / top,
                "USAM with all samples, 2/(l1 (1 + rho l1))": 2 / (top * (1 + rho * top)),
            }
            if m < b:
                criteria[_PLAIN] = _root(partial(listed, m=b), top)
            measured = _root(partial(moments.radius, rho=rho, b=b, m=m, replace=replace), top)
            label = f"b = {b}, m = {m}, two parameters, {drawn} replacement, draw {draw}"
            judge(label, _root(partial(listed, m=m), top), measured, criteria)
    few, many = (told[f"b = 4, m = {m}, one parameter, draw {seed}"] for m in (1, 4))
    beside = ", ".join(
        f"{value / few['largest']:.2f} for {name}"
        for name, value in few.items()
        if name != "largest"
    )
    return found.outcome(
        f"A smaller micro-batch lowers the edge at the same b: {few['largest']:.3g} at m = 1 and"
        f" {many['largest']:.3g} at m = 4 (b = 4). Published criteria, in units of the largest lr"
        " at"
        f" b = 4, m = 1: {beside}.",
        told,
    )


_PLAIN = "m = b: no micro-batches"


def _turned(rng: np.random.Generator) -> np.ndarray:
    """Hessians of four samples with axes of their own."""
    bases = [np.linalg.qr(rng.normal(size=(2, 2)))[0] for _ in range(4)]
    H = np.array([Q * rng.uniform(0.2, 3.0, size=2) @ Q.T for Q in bases])
    return np.asarray(np.float32((H + H.transpose(0, 2, 1)) / 2), float)


CLAIMS = (
    Claim(
        id="EDGE",
        title="the largest stable learning rate of m-USAM falls with m",
        statement=(
            r"\mathbb E\|x_k\|^2 \to 0 \iff \varrho\big(\mathbb E[M \otimes M]\big) < 1;\quad d ="
            r" 1:"
            r"\ \eta < 2\,\mathbb E a / \mathbb E a^2,\ a = \tfrac mb \textstyle\sum_I h_I(1 + \rho"
            r" h_I)"
        ),
        source=(
            "this project, docs/theory.md; beside it 2/l (gradient descent), 2/(l (1 + rho l))"
            " (Agarwala & Dauphin 2023, arXiv 2302.08692, for USAM with all samples), and SGD"
            " (Wu, Ma & E 2018)"
        ),
        prediction="closed moments in one dimension, listed M in two; roots on exact moments",
        recorded="confirmed",
        seconds=5,
        run=_run,
    ),
)
