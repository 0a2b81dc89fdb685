"""The step of an optimizer in plain numpy, averaged over ALL batches: what every derived quantity
is held against.

Nothing here is shared with the package: losses are polynomials of degree 3 or 4, whose derivatives
are written out, and batches are listed."""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np


def _symmetric(tensor):
    """A stack of tensors made symmetric in all axes but the first."""
    axes = list(permutations(range(1, tensor.ndim)))
    return sum(tensor.transpose(0, *p) for p in axes) / len(axes)


@dataclass
class Polynomials:
    """`f_i(x) = a_i . x + x^T A_i x / 2 + C_i[x, x, x] / 6 + Q_i[x, x, x, x] / 24`."""

    a: np.ndarray
    A: np.ndarray
    C: np.ndarray
    Q: np.ndarray

    @classmethod
    def random(cls, n, d, seed, quartic=False):
        rng = np.random.default_rng(seed)
        a, A, C, Q = (rng.normal(size=(n, *(d,) * k)) for k in (1, 2, 3, 4))
        return cls(a, _symmetric(A), _symmetric(C), _symmetric(Q) * quartic)

    @property
    def n(self):
        return len(self.a)

    def g(self, x):
        cubic = np.einsum("njkl,k,l->nj", self.C, x, x) / 2
        return self.a + self.A @ x + cubic + np.einsum("njklp,k,l,p->nj", self.Q, x, x, x) / 6

    def H(self, x):
        return (
            self.A
            + np.einsum("njkl,l->njk", self.C, x)
            + np.einsum("njklp,l,p->njk", self.Q, x, x) / 2
        )

    def T(self, x):
        return self.C + np.einsum("njklp,p->njkl", self.Q, x)


def batches(n, b, replace):
    """Every ordered mini-batch; all are equally likely."""
    return list(product(range(n), repeat=b)) if replace else list(permutations(range(n), b))


LAM = 0.8
"""Of RW-SAM's weights, whose norms are exact here."""

SOURCE = {
    "sgd": "none",
    "usam": "batch",
    "m-usam": "batch",
    "n-usam": "all",
    "sam": "batch",
    "m-sam": "batch",
    "n-sam": "all",
    "dnsam": "batch",
    "rw-sam": "weighted",
    # in the vocabulary, but not in the registry
    "m-dnsam": "batch",
    "m-rw-sam": "weighted",
    "rw-usam": "weighted",
    "m-rw-usam": "weighted",
    "rw-dnsam": "weighted",
    "m-rw-dnsam": "weighted",
    "n-sam of the data set": "all",
}
NORM_OF = {"sam": "own", "m-sam": "own", "n-sam": "own", "dnsam": "all", "rw-sam": "own"}
NORM_OF |= {
    "m-dnsam": "all",
    "m-rw-sam": "own",
    "rw-dnsam": "all",
    "m-rw-dnsam": "all",
    "n-sam of the data set": "all",
}


def perturbation(variant, g, H, members, eps):
    """`u_I` and its Jacobian in x, from the gradients and Hessians of all samples."""
    gI, HI, gbar, Hbar = g[members].mean(0), H[members].mean(0), g.mean(0), H.mean(0)
    v, Dv = {
        "none": lambda: (0 * gI, 0 * HI),
        "batch": lambda: (gI, HI),
        "all": lambda: (gbar, Hbar),
        "weighted": lambda: reweighted(g[members], H[members]),
    }[SOURCE[variant]]()
    if variant not in NORM_OF:
        return v, Dv
    w, Dw = {"own": (v, Dv), "all": (gbar, Hbar)}[NORM_OF[variant]]
    r = np.sqrt(w @ w + eps**2)
    return v / r, Dv / r - np.outer(v, Dw.T @ w) / r**3


def reweighted(g, H):
    """`v = sum_i p_i g_i`, `p_i` proportional to `exp(LAM |g_i|)`, and its Jacobian
    `sum_i p_i H_i + g_i (D p_i)`.
    """
    nu = np.linalg.norm(g, axis=1)
    p = np.exp(LAM * nu) / np.exp(LAM * nu).sum()
    Dnu = np.einsum("ijk,ij->ik", H, g) / nu[:, None]
    Dp = LAM * p[:, None] * (Dnu - p @ Dnu)
    return p @ g, np.einsum("i,ijk->jk", p, H) + g.T @ Dp


def expansion(losses, x, variant, batch, m, eps=0.0):
    """Of one mini-batch: the step's direction `G_0 .. G_3` by power of rho, exact for quartics, and
    the derivatives of `G_0, G_1` in x.
    """
    g, H, T = losses.g(x), losses.H(x), losses.T(x)
    parts = []
    for start in range(0, len(batch), m):
        members = list(batch[start : start + m])
        gI, HI, TI, QI = (derivative[members].mean(0) for derivative in (g, H, T, losses.Q))
        u, Du = perturbation(variant, g, H, members, eps)
        Tu = TI @ u
        # D(H_I u) = T_I[u, .] + H_I Du
        parts.append((gI, HI @ u, Tu @ u / 2, QI @ u @ u @ u / 6, HI, Tu + HI @ Du))
    return [np.mean([part[k] for part in parts], axis=0) for k in range(6)]


@dataclass
class Moments:
    """The mean step, its correction and the covariance, each as a list by power of rho."""

    mean: list
    correction: list
    covariance: list


def moments(losses, x, variant, b, m, replace, eps=0.0):
    listed = [
        expansion(losses, x, variant, batch, m, eps) for batch in batches(losses.n, b, replace)
    ]
    columns = [np.array([one[k] for one in listed]) for k in range(6)]
    mean, (D0, D1) = [part.mean(0) for part in columns[:4]], [part.mean(0) for part in columns[4:]]
    Z0, Z1 = columns[0] - mean[0], columns[1] - mean[1]
    cross = Z0.T @ Z1 / len(listed)
    return Moments(
        mean=mean,
        correction=[D0 @ mean[0], D0 @ mean[1] + D1 @ mean[0]],
        covariance=[Z0.T @ Z0 / len(listed), cross + cross.T],
    )
