"""Two elementary claims about gradients of mini-batches and random directions: enumeration and
quadrature, no simulation.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.integrate import quad

from sdesam.claims._base import Claim, Control, Measurement, Outcome, Preset
from sdesam.optim import Chain
from sdesam.problems import torus
from sdesam.sampling import Sampling
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.float64 import directions

_SAMPLES = 5
_SIZES = (1, 2, 3, 4)
_ROUNDING = 1e-12
"""Relative: sums of at most a few thousand terms of one sign."""
_BASIS = "rounding of a finite sum in float64, relative to its size"


def _gradient_sets(seed: int) -> dict[str, np.ndarray]:
    """Per-sample gradients, each of shape `(5, d)`."""
    rng = np.random.default_rng(seed)
    shape = (_SAMPLES, 3)
    return {
        "Gaussian": rng.normal(size=shape),
        "heavy-tailed (t, 1.5 dof)": rng.standard_t(1.5, size=shape),
        "one-sided (exponential, d = 3)": rng.exponential(size=shape),
        "collinear, same sign": rng.exponential(size=(_SAMPLES, 1)) * rng.normal(size=3),
        "positive, d = 1": rng.exponential(size=(_SAMPLES, 1)),
    }


_EQUAL = ("collinear, same sign", "positive, d = 1")


# Gradients 1 and -1, with replacement: a batch of one has the norm 1. A batch of two has the mean
# 1, 0, 0 or -1, each with chance 1/4: the mean norm is 1/2. Only where no two gradients cancel, as
# with positive multiples of one vector, does the mean stay as it is.
def _mean_norms(gradients: np.ndarray, replace: bool) -> np.ndarray:
    """`E|grad f_gamma|` for every batch size, all batches listed."""
    norms = []
    for size in _SIZES:
        batches, chance = list_batches(Sampling(size, replace=replace), len(gradients))
        norms.append(chance @ np.linalg.norm(gradients[batches[:, 0]].mean(axis=1), axis=-1))
    return np.array(norms)


def _torus_norms(seed: int, replace: bool) -> np.ndarray:
    """Norms of the batch gradients that the optimizer takes on a torus problem, at one random
    point.
    """
    problem = torus(dim=2, samples=_SAMPLES, seed=seed)
    point = np.random.default_rng(seed).uniform(0, 2 * np.pi, size=(1, 2))
    norms = []
    for size in _SIZES:
        chain = Chain("sgd", problem, lr=1.0, batch=size, replace=replace)
        batches, chance = list_batches(chain.sampling, problem.n)
        norms.append(chance @ np.linalg.norm(directions(chain, point, batches)[:, 0], axis=-1))
    return np.array(norms)


def _rise(values: np.ndarray) -> float:
    """The largest increase from one batch size to the next, relative to the values; 0 if there is
    none.
    """
    return float(max(0.0, np.diff(values).max()) / abs(values).max())


def _spread(values: np.ndarray) -> float:
    return float(np.ptp(values) / abs(values).max())


def _run_monotone(preset: Preset, seed: int) -> Outcome:
    measurements, controls = [], []
    data: dict[str, list[float]] = {}
    draws = range(seed, seed + (1 if preset == "quick" else 20))
    for replace in (True, False):
        drawn = "with" if replace else "without"
        families: dict[str, list[np.ndarray]] = {}
        for draw in draws:
            for name, gradients in _gradient_sets(draw).items():
                families.setdefault(name, []).append(_mean_norms(gradients, replace))
        families["torus2d"] = [_torus_norms(seed, replace)]
        for name, many in families.items():
            label = f"{name}, {drawn} replacement"
            data[label] = many[0].tolist()
            measurements.append(
                Measurement(
                    f"largest rise over b = 1..4: {label}",
                    0.0,
                    max(map(_rise, many)),
                    _ROUNDING,
                    _BASIS,
                )
            )
            if name in _EQUAL:
                measurements.append(
                    Measurement(
                        f"spread over b = 1..4 (equality): {label}",
                        0.0,
                        max(map(_spread, many)),
                        _ROUNDING,
                        _BASIS,
                    )
                )
        gaussian, one_sided = families["Gaussian"][0], families["one-sided (exponential, d = 3)"][0]
        sizes = np.array(_SIZES)
        controls += [
            Control(f"'is constant in b', Gaussian, {drawn}", _spread(gaussian), _ROUNDING),
            Control(f"'does not fall as b grows', Gaussian, {drawn}", _rise(-gaussian), _ROUNDING),
            Control(
                f"'b E|grad f_gamma| does not rise', Gaussian, {drawn}",
                _rise(sizes * gaussian),
                _ROUNDING,
            ),
            Control(
                f"'falls like b^(-1/2)', one-sided, {drawn}",
                _spread(np.sqrt(sizes) * one_sided),
                _ROUNDING,
            ),
        ]
    gaussian, heavy = (
        np.array(data[f"{name}, with replacement"])
        for name in ("Gaussian", "heavy-tailed (t, 1.5 dof)")
    )
    return Outcome(
        tuple(measurements),
        tuple(controls),
        "The mean of b gradients is the mean of its b leave-one-out means, so the claim is"
        " convexity of the norm: it holds for every data set, both samplings. From b = 1 to 4 with"
        f" replacement the expectation falls by a factor of {gaussian[0] / gaussian[-1]:.2f}"
        f" (Gaussian) and {heavy[0] / heavy[-1]:.2f} (heavy-tailed). It does not fall at all where"
        " all gradients are positive multiples of one vector: there a small batch regularises no"
        " more than a large one.",
        {"batch": list(_SIZES), "expected norm": data},
    )


def _moments(
    nodes: np.ndarray, weights: np.ndarray, gradient: np.ndarray
) -> tuple[float, float, float]:
    """`E(g.z)^2`, `Var (g.z)^2` and `E|g.z|` over independent entries with the given
    one-dimensional quadrature.
    """
    z = np.array(list(product(nodes, repeat=len(gradient))))
    chance = np.array([np.prod(w) for w in product(weights, repeat=len(gradient))])
    along = z @ gradient
    mean = float(chance @ along**2)
    return mean, float(chance @ (along**2 - mean) ** 2), float(chance @ abs(along))


def _entries() -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Distributions of mean 0 and variance 1: nodes, weights (exact up to degree 5 at least) and
    kurtosis.
    """
    hermite, legendre = np.polynomial.hermite_e.hermegauss(5), np.polynomial.legendre.leggauss(5)
    return {
        "Rademacher": (np.array([-1.0, 1.0]), np.array([0.5, 0.5]), 1.0),
        "Gaussian": (hermite[0], hermite[1] / np.sqrt(2 * np.pi), 3.0),
        "uniform": (np.sqrt(3) * legendre[0], legendre[1] / 2, 9 / 5),
        "two points, skewed": (np.array([2.0, -0.5]), np.array([0.2, 0.8]), 3.25),
        "sparse signs": (np.array([-2.0, 0.0, 2.0]), np.array([0.125, 0.75, 0.125]), 4.0),
    }


def _variance(gradient: np.ndarray, kurtosis: float) -> float:
    """The printed formula."""
    return float(2 * (gradient @ gradient) ** 2 + (kurtosis - 3) * np.sum(gradient**4))


def _sphere_variance(gradient: np.ndarray) -> float:
    """`Var (g.z)^2` for `z` uniform on the sphere of radius `sqrt(3)`, by quadrature: Gauss in the
    height, equidistant in the angle.
    """
    height, weights = np.polynomial.legendre.leggauss(6)
    angle = np.arange(12) * np.pi / 6
    flat = np.sqrt(1 - height**2)
    z = np.sqrt(3) * np.stack(
        [
            np.outer(flat, np.cos(angle)),
            np.outer(flat, np.sin(angle)),
            np.outer(height, np.ones(12)),
        ],
        axis=-1,
    )
    square = (z @ gradient) ** 2
    chance = np.outer(weights / 2, np.full(12, 1 / 12))
    return float(np.sum(chance * (square - np.sum(chance * square)) ** 2))


def _gaussian_first_moment(gradient: np.ndarray) -> float:
    """`E|g.z|` for Gaussian `z` in the plane: a radial integral times a mean over 4000 angles
    (kinks: error of order `1/4000^2`).
    """
    angle = (np.arange(4000) + 0.5) * 2 * np.pi / 4000
    return float(
        quad(lambda r: r**2 * np.exp(-(r**2) / 2), 0, 40)[0]
        * np.mean(abs(gradient[0] * np.cos(angle) + gradient[1] * np.sin(angle)))
    )


def _run_directional(preset: Preset, seed: int) -> Outcome:
    measurements, controls = [], []
    entries = _entries()
    shares: list[float] = []
    for draw in range(seed, seed + (1 if preset == "quick" else 20)):
        rng = np.random.default_rng(draw)
        wide, narrow = rng.normal(size=6), rng.normal(size=3)
        cases = [("Rademacher", wide), *((name, narrow) for name in entries)]
        found: dict[tuple[str, int], tuple[float, float, float]] = {}
        for name, g in cases:
            nodes, weights, kurtosis = entries[name]
            mean, variance, first = found[name, len(g)] = _moments(nodes, weights, g)
            size, label = float(g @ g), f"{name}, d = {len(g)}, draw {draw}"
            measurements += [
                Measurement(f"E(g.z)^2: {label}", size, mean, _ROUNDING * size, _BASIS),
                Measurement(
                    f"Var (g.z)^2: {label}",
                    _variance(g, kurtosis),
                    variance,
                    _ROUNDING * size**2,
                    _BASIS,
                ),
            ]
            if name == "Rademacher":
                half = (1 - np.sqrt(0.5)) / 2
                share = first / np.sqrt(size)
                shares.append(share)
                range_basis = "half the length of the interval [1/sqrt 2, 1], and rounding"
                measurements.append(
                    Measurement(
                        f"E|g.z|/|g| in [1/sqrt 2, 1]: {label}",
                        1 - half,
                        share,
                        half + _ROUNDING,
                        range_basis,
                    )
                )
                controls += [
                    Control(
                        f"kappa = 3: {label}", (variance - _variance(g, 3.0)) / size**2, _ROUNDING
                    ),
                    Control(f"E|g.z| = |g|: {label}", share - 1, _ROUNDING),
                    Control(
                        f"kappa - 2 for kappa - 3: {label}",
                        (variance - _variance(g, 2.0)) / size**2,
                        _ROUNDING,
                    ),
                ]
        size = float(narrow @ narrow)
        excess = min(found[name, 3][1] - found["Rademacher", 3][1] for name in entries)
        least = "how far any of the other distributions is below Rademacher in variance"
        measurements.append(
            Measurement(
                f"{least}, draw {draw}", 0.0, max(0.0, -excess), _ROUNDING * size**2, _BASIS
            )
        )
        planar = narrow[:2]
        norm = float(np.linalg.norm(planar))
        first = _gaussian_first_moment(planar)
        coarse = "kinks of |.| on 4000 angles: relative 4e-7 at most"
        measurements.append(
            Measurement(
                f"E|g.z| = sqrt(2/pi) |g|: Gaussian, draw {draw}",
                np.sqrt(2 / np.pi) * norm,
                first,
                1e-6 * norm,
                coarse,
            )
        )
        controls.append(Control(f"E|g.z| = |g|: Gaussian, draw {draw}", first / norm - 1, 1e-6))
        controls.append(
            Control(
                f"kappa = 1: Gaussian, draw {draw}",
                (found["Gaussian", 3][1] - _variance(narrow, 1.0)) / size**2,
                _ROUNDING,
            )
        )
    nodes, weights, _ = entries["Rademacher"]
    for name, g, share in (
        ("(1, 1)", np.array([1.0, 1.0]), np.sqrt(0.5)),
        ("(1, 0)", np.array([1.0, 0.0]), 1.0),
    ):
        first = _moments(nodes, weights, g)[2] / float(np.linalg.norm(g))
        measurements.append(
            Measurement(
                f"E|g.z|/|g| at g = {name}, Rademacher: an end of the interval",
                float(share),
                first,
                _ROUNDING,
                _BASIS,
            )
        )
    ones = np.ones(3)
    sphere = _sphere_variance(ones)
    measurements.append(
        Measurement(
            "Var (g.z)^2 on the sphere, g = (1, 1, 1): 2|g|^4 (d-1)/(d+2)",
            2 * 9 * 2 / 5,
            sphere,
            1e-11,
            _BASIS,
        )
    )
    return Outcome(
        tuple(measurements),
        tuple(controls),
        "The entries must have mean 0. Rademacher entries are least because kappa >= 1 for unit"
        " variance, with equality only for z_j^2 = 1; among dependent entries the sphere can be"
        f" less: at g = (1, 1, 1) its variance is {sphere:.3g} against"
        f" {_moments(nodes, weights, ones)[1]:.3g}. |g.z| itself is a biased estimate of |g|:"
        f" E|g.z|/|g| was {min(shares):.3f} to {max(shares):.3f} for Rademacher here (any value"
        " from 0.707 to 1 occurs, depending on the direction of g) and 0.798 for Gaussian entries"
        " whatever g.",
        {"E|g.z|/|g|": shares},
    )


CLAIMS = (
    Claim(
        id="L-3.9",
        title="smaller batches have larger expected gradient norms",
        statement=(
            r"\mathbb E\,\|\nabla f_\gamma(x)\| \text{ does not rise as the batch size } |\gamma|"
            r" \text{ grows}"
        ),
        source=(
            "Luo, Harandi, Phung, Le 2025, arXiv 2509.18001, 3.9 (numbered as in a published"
            " summary)"
        ),
        prediction=(
            "the largest rise of E|grad f_gamma| over b = 1..4 is 0, for every data set and both"
            " samplings"
        ),
        recorded="confirmed",
        seconds=2.0,
        run=_run_monotone,
    ),
    Claim(
        id="L-RW2",
        title="one random direction estimates the squared gradient norm",
        statement=(
            r"\mathbb E (g^{\mathsf T} z)^2 = \|g\|^2,\quad \operatorname{Var} (g^{\mathsf T} z)^2"
            r" = 2\|g\|^4 + "
            r"(\kappa - 3) \textstyle\sum_j g_j^4, "
            r"\text{ least for Rademacher among independent entries } z_j \text{ of mean } 0 \text{"
            r" and variance } 1"
        ),
        source=(
            "Luo, Harandi, Phung, Le 2025, arXiv 2509.18001, the norm estimate of reweighted SAM"
        ),
        prediction=(
            "mean and variance by the formulas, kappa the kurtosis of the entries; E|g.z| is biased"
        ),
        recorded="confirmed",
        seconds=0.2,
        run=_run_directional,
    ),
)
