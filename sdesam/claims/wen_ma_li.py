"""Wen, Ma & Li 2023: full-batch SAM and SAM with batches of one sample go to different minima of
one loss.

The loss is `F1(x1, x2) x3^2 + F2(x1, x2) x4^2`, the mean of the samples `2 F1 x3^2` and
`2 F2 x4^2`. All points with x3 = x4 = 0 are minima. Along them full-batch SAM lowers the largest
eigenvalue, which is 2 F1, and one-sample SAM the mean of the samples' eigenvalues, 2 F1 + 2 F2.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from sdesam.claims._base import Claim, Control, Measurement, Outcome, Preset

_ALIKE = 0.1
"""Of the distance between the places that are told apart: what is left of rho, of the noise and of
the time may move an end by a few hundredths of it."""
_BASIS = "a tenth of the distance between the two places that the claims tell apart"


class _Valley:
    """`F_k = height_k + |(x1, x2) - centre_k|^2 / 2`, with `F1 > F2` where the paths go."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0, 2 * np.pi)
        apart = rng.uniform(0.5, 0.7) * np.array([np.cos(angle), np.sin(angle)])
        middle = rng.normal(size=2)
        self.centres = np.stack([middle, middle + apart])
        self.heights = np.array([1.5, 0.8])
        self.start = middle + apart / 2 + 0.5 * rng.normal(size=2) / np.sqrt(2)

    def F(self, place: np.ndarray) -> np.ndarray:
        """`F1` and `F2`, shape `(..., 2)`."""
        away = place[..., None, :] - self.centres
        return np.asarray(self.heights + np.sum(away**2, axis=-1) / 2)

    def gradients(self, x: np.ndarray) -> np.ndarray:
        """The gradients of the two samples at `x` of shape `(..., 4)`: shape `(..., 2, 4)`."""
        place, high = x[..., :2], x[..., 2:]
        slow = 2 * high[..., None] ** 2 * (place[..., None, :] - self.centres)
        fast = 4 * self.F(place) * high
        return np.concatenate([slow, fast[..., None] * np.eye(2)], axis=-1)

    def least(self, weights: np.ndarray | None, lr: float) -> np.ndarray:
        """Where `sum_k w_k grad F_k = 0`, from the start downhill; without weights they are those
        of the step `lr`, `(1 - lr l_k/2)^-2` with `l_k = 4 F_k`.
        """

        # (1 - 2 lr F)^-2 grad F is the gradient of 1 / (2 lr (1 - 2 lr F))
        def total(place: np.ndarray) -> float:
            F = self.F(place)
            each = F * weights if weights is not None else 1 / (2 * lr * (1 - 2 * lr * F))
            return float(each.sum())

        return np.asarray(minimize(total, self.centres.mean(axis=0), tol=1e-12).x)


# What a path does for x1, x2 held fixed, with the curvature l = 4 F of one sample along x3. SAM's
# step is x3 <- x3 - lr l (x3 + rho sign x3), which settles on +-a with a = lr rho l/(2 - lr l).
# There the slow gradient is taken at |x3| + rho, off the other side of the valley:
#
#     l = 4, lr = 0.1, rho = 0.3: a = 0.075, and a + rho = 0.375 = rho / (1 - lr l / 2)
#
# so that sample k pushes with rho^2 (1 - lr l_k / 2)^-2, and as lr l_k -> 0 all push alike.
def _ends(
    valley: _Valley, lr: float, rho: float, paths: int, seed: int, whole: bool
) -> tuple[np.ndarray, float]:
    """The mean of x1, x2 over the last half of paths of SAM and over paths, and its standard error:
    with the whole data set in a batch, or one sample.
    """
    rng = np.random.default_rng([seed, 5])
    x = np.concatenate([np.tile(valley.start, (paths, 1)), rho * rng.normal(size=(paths, 2))], 1)
    steps = int(8 / (lr * rho**2))
    total = np.zeros((paths, 2))
    for k in range(2 * steps):
        drawn = rng.integers(2, size=paths)

        def gradient(y: np.ndarray, drawn: np.ndarray = drawn) -> np.ndarray:
            g = valley.gradients(y)
            return np.asarray(g.mean(axis=-2) if whole else g[np.arange(paths), drawn])

        g = gradient(x)
        x = x - lr * gradient(x + rho * g / np.linalg.norm(g, axis=1, keepdims=True))
        total += x[:, :2] * (k >= steps)
    each = total / steps
    spread = each.std(axis=0, ddof=1).max() / np.sqrt(paths) if paths > 1 else 0.0
    return each.mean(axis=0), float(spread)


def _run(preset: Preset, seed: int) -> Outcome:
    measurements, controls = [], []
    data = {}
    told: list[str] = []
    for draw in range(seed, seed + (1 if preset == "quick" else 5)):
        valley = _Valley(draw)
        fine, coarse, rho = 0.02, 0.12, 0.2
        first, both = valley.centres[0], valley.least(np.ones(2), fine)
        apart = float(np.linalg.norm(first - both))
        places = {
            "all samples, to the minimum of F1": _ends(valley, fine, rho, 1, draw, True),
            "one sample, small lr, to that of F1 + F2": _ends(valley, fine, rho, 16, draw, False),
        }
        for (name, (end, error)), right, wrong in zip(
            places.items(), (first, both), (both, first), strict=True
        ):
            measurements.append(
                Measurement(
                    f"distance, in units of that between the two: {name}, draw {draw}",
                    0.0,
                    float(np.linalg.norm(end - right)) / apart,
                    _ALIKE,
                    _BASIS,
                )
            )
            controls.append(
                Control(
                    f"the other minimum: {name}, draw {draw}",
                    float(np.linalg.norm(end - wrong)) / apart,
                    _ALIKE,
                )
            )
            data[f"{name}, draw {draw}"] = {"end": end, "standard error": error}
        end, error = _ends(valley, coarse, rho, 16, draw, False)
        right = valley.least(None, coarse)
        moved = float(np.linalg.norm(right - both))
        measurements.append(
            Measurement(
                "distance, in units of that from the minimum of F1 + F2: one sample, lr ="
                f" {coarse},"
                f" weights (1 - lr l_k/2)^-2, draw {draw}",
                0.0,
                float(np.linalg.norm(end - right)) / moved,
                2 * _ALIKE,
                f"twice {_BASIS}: the step is large, and so is the noise",
            )
        )
        F = valley.F(right)
        for name, weights in (
            ("equal weights", np.ones(2)),
            ("weights (1 - lr l_k/2)^-1", 1 / (1 - 2 * coarse * F)),
            ("weights (1 + lr l_k/2)^-2", (1 + 2 * coarse * F) ** -2.0),
            ("F1 alone", np.array([1.0, 0.0])),
        ):
            off = float(np.linalg.norm(end - valley.least(weights, coarse))) / moved
            controls.append(
                Control(f"{name}, one sample, lr = {coarse}, draw {draw}", off, 2 * _ALIKE)
            )
        told.append(f"{4 * coarse * F[0]:.2f} and {4 * coarse * F[1]:.2f}")
        data[f"lr = {coarse}, draw {draw}"] = {"end": end, "standard error": error}
    return Outcome(
        tuple(measurements),
        tuple(controls),
        "One-sample SAM goes to the minimum of F1 + F2 as lr l_k -> 0. At a finite step each sample"
        " bounces on a cycle of its own, and pushes with (1 - lr l_k/2)^-2: where lr l_k was"
        f" {told[0]}, it ends elsewhere.",
        data,
    )


CLAIMS = (
    Claim(
        id="WML-4d",
        title="full-batch SAM goes to min F1, one-sample SAM to min F1 + F2 as lr l_k -> 0",
        statement=(
            r"f = F_1(x_1,x_2)\,x_3^2 + F_2(x_1,x_2)\,x_4^2,\ F_1 > F_2:\ \text{full-batch SAM} \to"
            r" \min F_1,\quad \text{one-sample SAM} \to \min (F_1 + F_2) \text{ as } \eta l_k \to"
            r" 0;"
            r"\ \text{else } \textstyle\sum_k (1 - \eta l_k/2)^{-2} \nabla F_k = 0,\ l_k = 4 F_k"
        ),
        source="Wen, Ma & Li 2023, arXiv 2211.05729; finite steps: docs/theory.md",
        prediction="where paths of both end, with small and with large steps",
        recorded="confirmed",
        seconds=3,
        run=_run,
    ),
)
