"""Bartlett, Long & Bousquet 2023, and Long & Bartlett 2024: SAM with all samples on a quadratic
bounces along the top eigenvector; and up to which curvature its gradient shrinks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from scipy.optimize import brentq

from sdesam.claims._base import Claim, Outcome, Preset
from sdesam.claims._findings import Findings
from sdesam.optim import Chain
from sdesam.problems import FiniteSum
from sdesam.verify.exact.float64 import directions

_EVERY = np.zeros((1, 1, 1), int)
"""The mini-batch of the only sample."""


def _half_square(x: jax.Array, sample: dict[str, jax.Array]) -> Any:
    return 0.5 * x @ sample["hessian"] @ x


def _problem(hessian: np.ndarray) -> FiniteSum:
    start = np.ones(len(hessian))
    return FiniteSum(_half_square, {"hessian": hessian[None]}, start, name="a quadratic")


def _step(hessian: np.ndarray, lr: float, rho: float, x: np.ndarray) -> np.ndarray:
    """One step of the package's SAM with all samples, float64."""
    chain = Chain("n-sam", _problem(hessian), lr=lr, rho=rho, batch=1)
    return np.asarray(x - lr * directions(chain, x[None], _EVERY)[0, 0])


# Along an eigenvector of the eigenvalue l a step is x <- x - lr l (x + rho sign x), which has the
# 2-cycle x = +-a with a = lr rho l / (2 - lr l). Other directions die out, for near the cycle the
# perturbation points along the top eigenvector, and there |x| is largest.
def _run_cycle(preset: Preset, seed: int) -> Outcome:
    found = Findings(1e-6, "what 3000 steps leave of the other directions, and float32 data, 1e-7")
    for draw in range(seed, seed + (1 if preset == "quick" else 5)):
        rng = np.random.default_rng(draw)
        turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        values = np.array([1.0, rng.uniform(0.5, 0.7), rng.uniform(0.2, 0.4)])
        hessian = np.asarray((turned * values) @ turned.T, np.float32).astype(float)
        low, mid, top = np.linalg.eigh(hessian)[0]
        vector, second = np.linalg.eigh(hessian)[1].T[[2, 1]]
        lr, rho = float(rng.uniform(0.5, 1.5)), float(rng.uniform(0.05, 0.5))
        x = _path(hessian, lr, rho, rng.normal(size=3))
        after = _path(hessian, lr, rho, x, steps=1)

        def amplitude(value: float, lr: float = lr, rho: float = rho) -> float:
            return lr * rho * value / (2 - lr * value)

        sign = np.sign(x @ vector)
        label = f"lr = {lr:.3g}, rho = {rho:.3g}, draw {draw}"
        found.agree(f"the end, +a v1: {label}", sign * amplitude(top) * vector, x)
        found.agree(f"a step later, -a v1: {label}", -sign * amplitude(top) * vector, after)
        for name, size in (
            ("lr rho l1/2, as lr l1 -> 0", lr * rho * top / 2),
            ("the second eigenvalue", amplitude(mid)),
            ("rho for a", rho),
            ("a fixed point and no cycle", 0.0),
        ):
            found.broken(f"{name}: {label}", size, abs(x @ vector))
        found.broken(f"along v2: {label}", amplitude(mid) * second * np.sign(x @ second), x)
        found.broken(f"no change of sign: {label}", x, after)
    return found.outcome(
        "Three conditions: lr l1 < 2, a simple l1, and a start that is not orthogonal to its"
        " eigenvector (along v2 there is a cycle of the second eigenvalue, which is unstable)."
        f" Last setting: eigenvalues {low:.3g}, {mid:.3g}, {top:.3g}.",
    )


def _path(
    hessian: np.ndarray, lr: float, rho: float, x: np.ndarray, steps: int = 3000
) -> np.ndarray:
    """Where SAM with all samples is after some steps: the package's step first, to see that this
    loop is it, then numpy.
    """

    def step(y: np.ndarray) -> np.ndarray:
        g = hessian @ y
        return np.asarray(y - lr * hessian @ (y + rho * g / np.linalg.norm(g)))

    assert np.allclose(step(x), _step(hessian, lr, rho, x), rtol=1e-9)
    for _ in range(steps):
        x = step(x)
    return x


def edge(size: float, lr: float, rho: float) -> float:
    """The printed edge of stability of SAM, for a gradient of this size.

    >>> round(edge(1.0, 0.1, 1e-9), 3)  # without perturbation that of gradient descent, 2/lr
    20.0
    """
    return float(size / (2 * rho) * (np.sqrt(1 + 8 * rho / (lr * size)) - 1))


def _run_edge(preset: Preset, seed: int) -> Outcome:
    found = Findings(1e-6, "root finding on the package's own step, data in float32")
    shares = []
    for draw in range(seed, seed + (1 if preset == "quick" else 5)):
        rng = np.random.default_rng([draw, 1])
        for _ in range(3):
            lr, rho, size = (float(10 ** rng.uniform(*ends)) for ends in _RANGES)
            # a step along the eigenvector of the curvature l, from where the gradient has this size
            growth = partial(_growth, lr, rho, size)
            measured = float(brentq(growth, 1e-3 / lr, 2.5 / lr, xtol=1e-14, rtol=1e-12))
            label = f"lr = {lr:.2g}, rho = {rho:.2g}, |g| = {size:.2g}, draw {draw}"
            found.agree(
                f"curvature at which |g| neither falls nor rises: {label}",
                edge(size, lr, rho),
                measured,
            )
            shares.append(measured * lr / 2)
            for name, stated in (
                ("that of gradient descent, 2/lr", 2 / lr),
                ("4 for 8", size / (2 * rho) * (np.sqrt(1 + 4 * rho / (lr * size)) - 1)),
                ("rho for 2 rho", 2 * edge(size, lr, rho)),
                ("that of USAM, lr l (1 + rho l) = 2", edge(1.0, lr, rho)),
            ):
                found.broken(f"{name}: {label}", stated, measured)
    return found.outcome(
        "Said of a gradient along the top eigenvector: elsewhere |g| falls up to a larger"
        f" curvature. In units of 2/lr the edge was {min(shares):.2f} to {max(shares):.2f}; it goes"
        " to 0 with |g|, which is why SAM bounces near a minimum.",
    )


_RANGES = ((-1.5, 0.0), (-1.5, 0.0), (0.2, 1.0))
"""Powers of ten of lr, rho and |g|; |g| is not near 1, where USAM has the same edge."""


def _growth(lr: float, rho: float, size: float, curvature: float) -> float:
    """The share by which a step of the package's SAM lengthens a gradient of this size."""
    x = np.array([size / curvature])
    after = _step(np.array([[curvature]]), lr, rho, x)
    return float(abs(curvature * after[0]) / size - 1)


CLAIMS = (
    Claim(
        id="BLB",
        title="SAM on a quadratic bounces along the top eigenvector",
        statement=(
            r"f = \tfrac12 x^{\mathsf T} H x:\quad x_k \to \pm \frac{\eta \rho\, l_1}{2 - \eta l_1}"
            r" v_1 \text{ in turn, for } \eta l_1 < 2,\ l_1 \text{ simple},\ v_1^{\mathsf T} x_0"
            r" \ne"
            r" 0"
        ),
        source="Bartlett, Long & Bousquet 2023, arXiv 2210.01513",
        prediction="place and sign after 3000 steps, and after one more",
        recorded="confirmed",
        seconds=1,
        run=_run_cycle,
    ),
    Claim(
        id="LB-edge",
        title="the edge of stability of SAM",
        statement=(
            r"\|g\| \text{ falls in a step along the top eigenvector iff } l_1 <"
            r" \frac{\|g\|}{2\rho}\Big(\sqrt{1 + \frac{8\rho}{\eta\|g\|}} - 1\Big)"
        ),
        source="Long & Bartlett 2024, arXiv 2309.12488",
        prediction="the curvature at which a step leaves |g| as it is, by root finding",
        recorded="confirmed",
        seconds=1,
        run=_run_edge,
    ),
)
