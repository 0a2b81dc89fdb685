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


class Series:
    """A vector or a number as a power series in rho, to third order."""

    def __init__(self, *parts):
        self.parts = [*parts, *(0 * parts[0] for _ in range(4 - len(parts)))]

    def __add__(self, other):
        return Series(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def __sub__(self, other):
        return self + -1.0 * other

    def __mul__(self, other):
        """A product of two series; a number times one."""
        if not isinstance(other, Series):
            return Series(*(a * other for a in self.parts))
        return self.product(other, lambda a, b: a * b)

    __rmul__ = __mul__

    def product(self, other, multiply):
        return Series(
            *(
                sum(multiply(self.parts[k], other.parts[j - k]) for k in range(j + 1))
                for j in range(4)
            )
        )

    def times_rho(self):
        return Series(0 * self.parts[0], *self.parts[:3])


def slope(losses, members, at):
    """The mean gradient of some cubic losses at a point that is a series."""
    a, A, C = (part[members].mean(0) for part in (losses.a, losses.A, losses.C))
    linear = Series(*(A @ x for x in at.parts))
    square = at.product(at, lambda x, y: np.einsum("jkl,k,l->j", C, x, y) / 2)
    return Series(a) + linear + square


def unit_of(v, w, eps):
    """`v / sqrt(|w|^2 + eps^2)`, by Newton's iteration on series."""
    square = w.product(w, lambda x, y: x @ y) + Series(np.array(eps**2))
    inverse = Series(1 / np.sqrt(square.parts[0]))
    for _ in range(3):
        inverse = inverse * (Series(np.array(3.0)) - square * inverse * inverse) * 0.5
    return v.product(inverse, lambda x, y: x * y)


# Rules as their papers write them. `g(samples, at=u)` is grad f_samples(x + rho u); I, B, D and J
# are the samples of the micro-batch, the mini-batch, the data set and a batch drawn apart; z is a
# random direction.
SIGMA, PENALTY = 0.7, 0.3
WRITTEN = {
    "f-usam": lambda g, s, u: g(s.I, at=g(s.I) - SIGMA * g(s.D)),
    "f-sam": lambda g, s, u: g(s.I, at=u(g(s.I) - SIGMA * g(s.D))),
    "fresh-usam": lambda g, s, u: g(s.I, at=g(s.J)),
    "fresh-sam": lambda g, s, u: g(s.I, at=u(g(s.J))),
    "gradient-norm penalty": lambda g, s, u: (
        (1 - PENALTY) * g(s.I) + PENALTY * g(s.I, at=u(g(s.I)))
    ),
    "two-step usam": lambda g, s, u: g(s.I, at=g(s.I) + g(s.I, at=g(s.I))),
    "two-step sam": lambda g, s, u: g(s.I, at=u(g(s.I)) + u(g(s.I, at=u(g(s.I))))),
    "unit of two steps": lambda g, s, u: g(s.I, at=u(g(s.I, at=g(s.I)))),
    "random": lambda g, s, u: g(s.I, at=s.z),
    "ascent and noise": lambda g, s, u: g(s.I, at=g(s.I) + 0.5 * s.z),
    "noisy ascent": lambda g, s, u: g(s.I, at=s.z + g(s.I, at=s.z)),
    "mini-batch ascent": lambda g, s, u: g(s.I, at=2.0 * g(s.B) - g(s.I)),
    "mini-batch descent": lambda g, s, u: g(s.B, at=g(s.I)),
    "extra": lambda g, s, u: 2.0 * g(s.I, at=-1.0 * g(s.D)) - g(s.I),
    "difference": lambda g, s, u: g(s.I, at=u(2.0 * g(s.D) - 0.5 * g(s.I))),
    "fresh norm": lambda g, s, u: g(s.I, at=u(g(s.D), of=g(s.J))),
    "ascent of the data set": lambda g, s, u: g(s.I, at=u(g(s.D, at=u(g(s.I))))),
    "norm of the data set": lambda g, s, u: g(s.I, at=u(g(s.I), of=2.0 * g(s.D))),
}


@dataclass
class Drawn:
    """The samples of one micro-batch, its mini-batch, the data set and a batch drawn apart, and a
    random direction.
    """

    I: list  # noqa: E741
    B: list
    D: list
    J: list
    z: Series


def written_moments(losses, x, rule, b, m, replace, eps=0.0):
    """The moments of a rule of :data:`WRITTEN` on cubic losses, over everything that is drawn."""
    n, d = losses.a.shape
    apart = batches(n, m, replace) if rule.startswith("fresh") else [()]
    signs = (
        list(product([-1.0, 1.0], repeat=d)) if "nois" in rule or rule == "random" else [(0,) * d]
    )
    seen = {}

    def direction(I, B, point):  # noqa: E741
        key = (I, B if rule.startswith("mini") else None, point.tobytes())
        if key not in seen:
            start = Series(point)

            def g(members, at=None):
                where = start if at is None else start + at.times_rho()
                return slope(losses, members, where)

            def u(v, of=None):
                return unit_of(v, of if of is not None else v, eps)

            found = [
                WRITTEN[rule](
                    g, Drawn(list(I), list(B), list(range(n)), list(J), Series(np.array(z))), u
                ).parts
                for J, z in product(apart, signs)
            ]
            seen[key] = [np.mean([one[j] for one in found], axis=0) for j in range(4)]
        return seen[key]

    def step(B, point):
        parts = [direction(B[start : start + m], B, point) for start in range(0, b, m)]
        return [np.mean([part[j] for part in parts], axis=0) for j in range(4)]

    listed = batches(n, b, replace)

    def mean(point):
        steps = [step(B, point) for B in listed]
        return [np.mean([one[j] for one in steps], axis=0) for j in range(4)], steps

    means, steps = mean(x)
    # a complex step: Im f(x + i h v) / h is the derivative along v, to all digits
    along = [[part.imag / 1e-30 for part in mean(x + 1e-30j * v)[0]] for v in means[:2]]
    Z0, Z1 = (np.array([one[j] for one in steps]) - means[j] for j in (0, 1))
    cross = Z0.T @ Z1 / len(listed)
    return Moments(
        mean=means,
        correction=[along[0][0], along[1][0] + along[0][1]],
        covariance=[Z0.T @ Z0 / len(listed), cross + cross.T],
    )
