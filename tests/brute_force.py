"""The step of an optimizer in plain numpy, averaged over ALL batches: what every derived quantity is held against.

Nothing here is shared with the package: losses are cubic polynomials, whose derivatives are written out, and batches are listed.
"""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np


@dataclass
class Cubics:
    """`f_i(x) = a_i . x + x^T A_i x / 2 + C_i[x, x, x] / 6` with symmetric `A_i`, `C_i`."""

    a: np.ndarray
    A: np.ndarray
    C: np.ndarray

    @classmethod
    def random(cls, n, d, seed):
        rng = np.random.default_rng(seed)
        A = rng.normal(size=(n, d, d))
        C = rng.normal(size=(n, d, d, d))
        axes = [(0, 1 + p[0], 1 + p[1], 1 + p[2]) for p in permutations(range(3))]
        return cls(rng.normal(size=(n, d)), (A + A.transpose(0, 2, 1)) / 2, sum(C.transpose(s) for s in axes) / 6)

    @property
    def n(self):
        return len(self.a)

    def g(self, x):
        return self.a + self.A @ x + 0.5 * np.einsum("njkl,k,l->nj", self.C, x, x)

    def H(self, x):
        return self.A + np.einsum("njkl,l->njk", self.C, x)


def batches(n, b, replace):
    """Every ordered mini-batch; all are equally likely."""
    return list(product(range(n), repeat=b)) if replace else list(permutations(range(n), b))


def expansion(cubics, x, perturbation, batch, m):
    """`G_0, G_1, G_2` of one mini-batch and the derivatives of `G_0, G_1` in `x`, as the polynomial in rho that they are exactly."""
    g, H, T = cubics.g(x), cubics.H(x), cubics.C
    gbar, Hbar = g.mean(0), H.mean(0)
    parts = []
    for start in range(0, len(batch), m):
        micro = list(batch[start : start + m])
        gI, HI, TI = g[micro].mean(0), H[micro].mean(0), T[micro].mean(0)
        if perturbation == "none":
            u, Du = 0 * gI, 0 * HI
        elif perturbation == "data set":
            u, Du = gbar, Hbar
        else:
            u, Du = gI, HI
        Tu = np.einsum("jkl,l->jk", TI, u)
        # D(H_I u) = T_I[u, .] + H_I Du
        parts.append((gI, HI @ u, 0.5 * Tu @ u, HI, Tu + HI @ Du))
    return [np.mean([part[k] for part in parts], axis=0) for k in range(5)]


@dataclass
class Moments:
    """The mean step by power of rho, its correction, and the covariance by power of rho."""

    mean: list
    correction: list
    covariance: list


def moments(cubics, x, perturbation, b, m, replace):
    listed = [expansion(cubics, x, perturbation, batch, m) for batch in batches(cubics.n, b, replace)]
    G0, G1, G2, D0, D1 = (np.array([one[k] for one in listed]) for k in range(5))
    M0, M1, M2, DM0, DM1 = (part.mean(0) for part in (G0, G1, G2, D0, D1))
    Z0, Z1 = G0 - M0, G1 - M1
    cross = Z0.T @ Z1 / len(listed)
    return Moments(
        mean=[M0, M1, M2],
        correction=[DM0 @ M0, DM0 @ M1 + DM1 @ M0],
        covariance=[Z0.T @ Z0 / len(listed), cross + cross.T],
    )
