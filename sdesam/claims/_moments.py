"""First and second moments of linear equations and of SGD with momentum on quadratics, written in
numpy apart from the package's own solvers.

Both act on `E z z^T` with a one in `z`, so that a mean is a column of a second moment.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import expm

from sdesam.problems import FiniteSum
from sdesam.verify.exact.quadratic import Quadratic


def per_sample(problem: FiniteSum) -> np.ndarray:
    """`K_i` with `g_i(x) = K_i (x, 1)`, shape `(n, d, d + 1)`."""
    return Quadratic(problem, 1.0).affine[1]


# One parameter, B = -x and no noise: J = [[-1, 0], [0, 0]] and E x^2 obeys dM/dt = -2 M. The noise
# of SGD adds lr Cov(g): with D_i = K_i - mean K, that is the mean of (D_i y)(D_i y)^T.
def generator(
    K: np.ndarray, lr: float, correction: float, noise: float | None = None
) -> np.ndarray:
    """The matrix of `dM/dt` for `dX = -(gbar + correction lr Hbar gbar) dt + sqrt(lr V) dW`,
    `M = E y y^T`, `y = (x, 1)`: shape `((d+1)^2, (d+1)^2)`.

    Args:
        K: of every sample, `(n, d, d+1)`.
        lr: of the correction and, unless `noise` is given, of the noise.
        correction: `1/2` for the modified equation of SGD.
        noise: the factor of `V`.
    """
    d = K.shape[1]
    mean = K.mean(axis=0)
    J = np.zeros((d + 1, d + 1))
    J[:d] = -(mean + correction * lr * mean[:, :d] @ mean)
    D = np.zeros((len(K), d + 1, d + 1))
    D[:, :d] = K - mean
    one = np.eye(d + 1)
    spread = np.einsum("nab,ncd->acbd", D, D).reshape((d + 1) ** 2, -1) / len(K)
    return np.asarray(np.kron(J, one) + np.kron(one, J) + (lr if noise is None else noise) * spread)


def flow(generator: np.ndarray, start: np.ndarray, time: float) -> np.ndarray:
    """Mean and second moments of `x` at a time, from a fixed start: shape `(d + d^2,)`."""
    y = np.append(start, 1.0)
    M = (expm(time * generator) @ np.outer(y, y).ravel()).reshape(len(y), -1)
    return np.concatenate([M[:-1, -1], M[:-1, :-1].ravel()])


def with_momentum(
    K: np.ndarray, lr: float, beta: float, start: np.ndarray, steps: int
) -> np.ndarray:
    """Mean and second moments of `x` after some steps `v+ = beta v + g_i(x)`, `x+ = x - lr v+` with
    one sample `i` each, from `v = 0`: shape `(d + d^2,)`.
    """
    n, d, _ = K.shape
    # z = (x, v, 1), and A_i z the next one
    A = np.zeros((n, 2 * d + 1, 2 * d + 1))
    grad = np.concatenate([K[:, :, :d], np.zeros((n, d, d)), K[:, :, d:]], axis=2)
    A[:, d : 2 * d] = grad
    A[:, d : 2 * d, d : 2 * d] += beta * np.eye(d)
    A[:, :d] = -lr * A[:, d : 2 * d]
    A[:, :d, :d] += np.eye(d)
    A[:, -1, -1] = 1.0
    z = np.concatenate([start, np.zeros(d), [1.0]])
    step = np.einsum("nab,ncd->acbd", A, A).reshape(z.size**2, -1) / n
    M = (np.linalg.matrix_power(step, steps) @ np.outer(z, z).ravel()).reshape(z.size, -1)
    return np.concatenate([M[:d, -1], M[:d, :d].ravel()])
