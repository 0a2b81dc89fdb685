"""Expectations on a torus without sampling: the chain's transition operator and the SDE's generator
as matrices.

Functions live on a grid of `N^d` points, `d` 1 or 2, and are trigonometric interpolants between
them. One step of the chain maps `u` to `E u(x - eta G(x))`, all mini-batches listed; the SDE maps
`u` to `exp(t L) u`, `L u = B . grad u + (1/2) C : grad grad u`. Convergence in `N` is exponential;
it is shown, not assumed, by refining `N`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import toeplitz
from scipy.sparse.linalg import expm_multiply

from sdesam.ensemble import steps_of
from sdesam.optim import Chain
from sdesam.sde import SDE
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.float64 import covariance, directions, drift

_TEST_WAVES = {1: ((1,), (2,)), 2: ((1, 0), (0, 1), (1, 1), (1, -1))}


@dataclass(frozen=True)
class Torus:
    """A solver for problems of a given period and dimension.

    Args:
        period: of every coordinate.
        dim: 1 or 2.
        size: `N`, grid points per coordinate, even.
        horizon: SDE time at which expectations are taken.
    """

    period: float
    dim: int
    size: int
    horizon: float

    def __post_init__(self) -> None:
        if self.dim not in _TEST_WAVES:
            raise ValueError(f"dim={self.dim}: torus problems have 1 or 2 parameters")
        if self.size < 4 or self.size % 2:
            raise ValueError(
                f"size={self.size}: the grid needs an even number of points per side, at least 4"
            )

    @property
    def points(self) -> np.ndarray:
        """The grid, shape `(N^d, d)`."""
        line = np.arange(self.size) * self.period / self.size
        return np.stack(np.meshgrid(*[line] * self.dim, indexing="ij"), axis=-1).reshape(
            -1, self.dim
        )

    @property
    def tests(self) -> np.ndarray:
        """The test functions on the grid: cosines and sines of low waves, shape `(N^d, q)`."""
        phases = 2 * np.pi / self.period * self.points @ np.array(_TEST_WAVES[self.dim]).T
        return np.concatenate([np.cos(phases), np.sin(phases)], axis=1)

    # Expectations of a chain without a draw, in a small example: one parameter on a circle, a grid
    # of four points, and two batches of equal chance that move x to x - lr G_1(x) and x - lr
    # G_2(x).
    #
    # A function phi is known by its values at the four points, v = (phi(x_1), ..., phi(x_4)). Its
    # expectation after one step from x_1 is (phi(x_1 - lr G_1) + phi(x_1 - lr G_2)) / 2. These two
    # places lie between grid points, where phi is the trigonometric interpolant of v: a row of
    # weights times v. So there is a matrix P with
    #
    #     (E phi(x after a step) from each grid point) = P v
    #
    # and k steps are P^k v. The error is that of the interpolation alone, which falls faster than
    # any power of the grid's spacing where the loss is smooth. Doubling the grid shows how large it
    # is, and :func:`sdesam.weak_error` does that.
    #
    # For the SDE the same vector obeys dv/dt = L v, where L has the drift times a first derivative,
    # and half the diffusion matrix times a second one: `flow`.

    # The rows of weights, on four points of a circle of length 2 pi: at x = pi/4, half way between
    # the first two points, they are
    #
    #     0.604  0.604  -0.104  -0.104                   sum 1
    #
    # and at a grid point they are 1 there and 0 elsewhere. The derivative at the first point has
    # the weights 0, 1/2, 0, -1/2, and the second derivative -3/2, 1, -1/2, 1. Of the values
    # 0, 1, 0, -1 of the sine they make (1 + 1) / 2 = 1 and 0: cos 0 and -sin 0, without error.

    def chain(self, chain: Chain) -> np.ndarray:
        """`E phi(x_k)` from every grid point, `k = horizon / lr`: shape `(N^d, q)`."""
        steps = steps_of(self.horizon, chain.lr, "horizon", "lr")
        batches, probability = list_batches(chain.sampling, chain.problem.n)
        moves = directions(chain, self.points, batches)
        # P is the mean over batches of the interpolation at the places they lead to; it acts on
        # test functions and not on densities, so that all starts are answered at once
        operator = np.zeros((self.size**self.dim,) * 2)
        for one, G in zip(probability, moves, strict=True):
            operator += one * self.interpolation(self.points - chain.lr * G)
        values = self.tests
        for _ in range(steps):
            values = operator @ values
        return values

    def sde(self, sde: SDE) -> np.ndarray:
        """`E phi(X_T)` from every grid point: shape `(N^d, q)`."""
        points = self.points
        return self.flow(drift(sde, points), covariance(sde, points))

    def flow(self, B: np.ndarray, C: np.ndarray) -> np.ndarray:
        """`exp(T L) phi` for a drift of shape `(N^d, d)` and a diffusion matrix of shape
        `(N^d, d, d)` on the grid.
        """
        first, second = self._derivatives()
        one = np.eye(self.size)
        generator = np.zeros((self.size**self.dim,) * 2)
        for j in range(self.dim):
            # a derivative along one axis leaves the other alone: a Kronecker product with 1
            along = [one] * self.dim
            along[j] = first
            generator += B[:, j, None] * _kron(along)
            along[j] = second
            generator += 0.5 * C[:, j, j, None] * _kron(along)
        # the two mixed derivatives are alike: 2 * 1/2 C_01
        if self.dim == 2:
            generator += C[:, 0, 1, None] * _kron([first, first])
        return np.asarray(expm_multiply(self.horizon * generator, self.tests))

    def common(self, values: np.ndarray) -> np.ndarray:
        """The interpolant of `values` at 64 points that lie on no grid, the same for every size."""
        places = np.random.default_rng(0).uniform(0, self.period, size=(64, self.dim))
        return np.asarray(self.interpolation(places) @ values)

    def interpolation(self, places: np.ndarray) -> np.ndarray:
        """The matrix that evaluates the interpolant at `places`, shape `(p, N^d)`."""
        line = np.arange(self.size) * self.period / self.size
        weights = [self._dirichlet(places[:, j, None] - line) for j in range(self.dim)]
        if self.dim == 1:
            return weights[0]
        return np.asarray(np.einsum("pi,pj->pij", *weights).reshape(len(places), -1))

    def _dirichlet(self, distance: np.ndarray) -> np.ndarray:
        angle = np.pi * distance / self.period
        tangent = np.tan(angle)
        # at a grid point the formula is 0/0 and the weight 1; tan and not sin in the divisor,
        # because the number of points is even (the highest wave is a cosine alone)
        near = abs(tangent) < 1e-13
        return np.where(
            near, 1.0, np.sin(self.size * angle) / (self.size * np.where(near, 1.0, tangent))
        )

    def _derivatives(self) -> tuple[np.ndarray, np.ndarray]:
        """Fourier differentiation matrices, first and second order (Trefethen 2000, *Spectral
        Methods in MATLAB*, chapter 3).
        """
        N, h = self.size, 2 * np.pi / self.size
        k = np.arange(1, N)
        signs = (-1.0) ** k
        row = np.concatenate([[0.0], 0.5 * signs / np.tan(k * h / 2)])
        first = toeplitz(row, -row)
        second = toeplitz(
            np.concatenate(
                [[-(np.pi**2) / (3 * h**2) - 1 / 6], -0.5 * signs / np.sin(k * h / 2) ** 2]
            )
        )
        scale = 2 * np.pi / self.period
        return first * scale, second * scale**2


def _kron(factors: list[np.ndarray]) -> np.ndarray:
    return factors[0] if len(factors) == 1 else np.kron(*factors)
