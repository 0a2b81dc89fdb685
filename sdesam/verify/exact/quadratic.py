"""First and second moments on quadratic losses, exactly, for any number of samples.

With quadratic `f_i` and a perturbation that is linear in gradients a step is affine, `G(x) = A y`
with `y = (x, 1)` and a random matrix `A` that is a polynomial of batch means. Means and second
moments then obey a linear recursion whose coefficients are expectations of products of at most four
batch means; those are sums over partitions of the factors into equal samples, in closed form. No
batch is listed. The SDE has affine drift and noise, and its moments a linear ODE, solved by `expm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import factorial, perm, prod
from string import ascii_lowercase, ascii_uppercase

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import expm_multiply

from sdesam.ensemble import steps_of
from sdesam.optim import Chain
from sdesam.optim.chain import check_chain
from sdesam.problems import FiniteSum
from sdesam.sampling import Sampling
from sdesam.sde import SDE
from sdesam.symbolic.expectation import set_partitions
from sdesam.variants import Gradient, Sum, Variant, Vector, variant
from sdesam.verify.exact.float64 import Rebuild, drift, noise_columns, start, to_double

MOST_PARAMETERS = 20


@dataclass(frozen=True)
class Quadratic:
    """A solver for quadratic per-sample losses of at most 20 parameters.

    Args:
        problem: the finite sum; its loss must be quadratic.
        horizon: SDE time at which moments are taken.

    Raises:
        ValueError: too many parameters, or a loss that is not quadratic.
    """

    problem: FiniteSum
    horizon: float

    def __post_init__(self) -> None:
        if self.problem.dim > MOST_PARAMETERS:
            raise ValueError(
                f"{self.problem!r}: the moment solver takes at most {MOST_PARAMETERS} parameters"
            )
        _ = self.affine

    # A worked example of the recursion of moments: one parameter, the losses (x - a_i)^2 / 2 with
    # a = (0, 2), SGD with b = 1, lr = 0.1 and x = 3.
    #
    # With y = (x, 1) a step is G = A y, A = [1, -a_i]. Two expectations over the drawn sample are
    # all that is needed:
    #
    #     E A             = [1, -1]                      mean of a_i: 1
    #     E A^T A         = [[1, -1], [-1, 2]]           mean of a_i^2: 2
    #
    # and M = E y y^T = [[9, 3], [3, 1]] goes to
    #
    #     E x_1           = x - lr E A y                 = 3 - 0.1 * 2           = 2.8
    #     E x_1^2         = x^2 - 2 lr E[x G] + lr^2 E[G^2]
    #                     = 9 - 0.2 * (9 - 3) + 0.01 * (9 - 6 + 2)               = 7.85
    #
    # By hand: x_1 is 2.7 or 2.9, of mean 2.8 and mean square (7.29 + 8.41) / 2 = 7.85. With a
    # perturbation, A is the polynomial K + rho H K of batch means, and E A^T A has products of up
    # to four of them: `_expected`.

    @cached_property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """`H_i`, shape `(n, d, d)`, and `K_i = [H_i, g_i(0)]` with `g_i(x) = K_i (x, 1)`, shape
        `(n, d, d + 1)`.
        """
        rebuild = Rebuild(self.problem.x0)
        with jax.enable_x64(True):
            data = to_double(self.problem.data)

            def loss(x: jax.Array, sample: object) -> jax.Array:
                return jnp.asarray(self.problem.sample_loss(rebuild(x), sample))

            grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
            x0 = start(self.problem)
            H = np.asarray(jax.jit(jax.vmap(jax.hessian(loss), (None, 0)))(jnp.asarray(x0), data))
            offset = np.asarray(grads(jnp.asarray(x0), data)) - H @ x0
            K = np.concatenate([H, offset[:, :, None]], axis=2)
            # H and K come from the start alone; that the loss is quadratic is then seen at places
            # near and far, where a cubic or a quartic term would show
            away = np.random.default_rng(0).normal(size=(8, self.problem.dim))
            probes = np.concatenate(
                [x0 + scale * (1 + abs(x0)) * away for scale in (0.1, 1.0, 10.0)] + [away]
            )
            found = np.array([grads(jnp.asarray(probe), data) for probe in probes])
        affine = np.einsum("njk,pk->pnj", K, np.column_stack([probes, np.ones(len(probes))]))
        if not np.allclose(found, affine, rtol=1e-9, atol=1e-9 * (1 + abs(affine).max())):
            raise ValueError(
                f"the loss of problem {self.problem.name!r} is not quadratic: its gradients are not"
                " affine in the parameters"
            )
        return H, K

    def chain(self, chain: Chain) -> np.ndarray:
        """Mean and second moments of the chain at the horizon: shape `(d + d^2,)`."""
        return np.asarray(
            self.chain_path(chain, steps_of(self.horizon, chain.lr, "horizon", "lr"))[-1]
        )

    def chain_path(self, chain: Chain, steps: int) -> np.ndarray:
        """Mean and second moments after each of `0 .. steps` steps: shape `(steps + 1, d +
        d^2)`.
        """
        check_chain(chain, "an exact expectation")
        check_affine(chain.variant)
        mean, square = self._step_moments(chain)
        d = self.problem.dim
        keep = np.eye(d, d + 1)
        M = _start_moment(self.problem)
        path = [_pack(M)]
        for _ in range(steps):
            # `keep` picks x out of (x, 1): keep M keep^T = E x x^T, and cross = E G x^T
            cross = mean @ M @ keep.T
            new = (
                keep @ M @ keep.T
                - chain.lr * (cross + cross.T)
                + chain.lr**2 * np.einsum("psru,ru->ps", square, M)
            )
            x = (keep - chain.lr * mean) @ M[:, -1]
            M = np.block([[new, x[:, None]], [x[None], np.ones((1, 1))]])
            path.append(_pack(M))
        return np.array(path)

    def sde(self, sde: SDE) -> np.ndarray:
        """Mean and second moments of the SDE at the horizon: shape `(d + d^2,)`."""
        generator = self.generator(sde)
        return _pack(
            expm_multiply(self.horizon * generator, _start_moment(self.problem).ravel()).reshape(
                self.problem.dim + 1, -1
            )
        )

    def generator(self, sde: SDE) -> np.ndarray:
        """The matrix `L` of `d/dt E[y y^T] = L E[y y^T]`, `y = (x, 1)`: shape
        `((d+1)^2, (d+1)^2)`.
        """
        d = self.problem.dim
        # an affine map is known from its values at 0 and at the unit vectors; the random point
        # after them is the check that it is affine
        points = np.vstack([np.zeros(d), np.eye(d), np.random.default_rng(1).normal(size=d)])
        J = np.zeros((d + 1, d + 1))
        J[:d] = _affine_map(drift(sde, points), points, "drift")
        columns = noise_columns(sde, points)
        N = np.zeros((columns.shape[1], d + 1, d + 1))
        for e in range(columns.shape[1]):
            N[e, :d] = _affine_map(columns[:, e], points, "noise")
        # dM/dt = J M + M J^T + sum_e N_e M N_e^T as a matrix that acts on the rows of M, one after
        # another: in that order of entries J M is kron(J, 1) and M J^T is kron(1, J)
        one = np.eye(d + 1)
        return np.asarray(
            np.kron(J, one)
            + np.kron(one, J)
            + np.einsum("eab,ecd->acbd", N, N).reshape((d + 1) ** 2, -1)
        )

    def _step_moments(self, chain: Chain) -> tuple[np.ndarray, np.ndarray]:
        """`E A`, shape `(d, d+1)`, and `E[A_pr A_su]` as an array `[p, s, r, u]`, for the step
        `G(x) = A (x, 1)`.
        """
        words = [
            (c, _per_sample(word, self.problem.n))
            for c, word in self._words(chain, chain.variant.direction)
        ]
        sampling, n = chain.sampling, self.problem.n
        mean = sum(c * _expected([w], [0] * len(w), sampling, n) for c, w in words)
        # G is a mean over groups, so E[G G] has two kinds of pairs: the same group twice, with
        # weight 1/groups, and two different ones
        groups = sampling.batch // sampling.m
        square = np.zeros(())
        for c, left in words:
            for e, right in words:
                same = _expected([left, right], [0] * (len(left) + len(right)), sampling, n)
                value = same / groups
                if groups > 1:
                    other = _expected(
                        [left, right], [0] * len(left) + [1] * len(right), sampling, n
                    )
                    value = value + (1 - 1 / groups) * other
                square = square + c * e * value
        return np.asarray(mean), square

    def _words(self, chain: Chain, v: Vector) -> list[tuple[float, list[np.ndarray]]]:
        """A direction as a sum of products of matrices, with numbers: `H (x, 1)`-affine gradients
        `K_S` and, at a point moved along `u`, `rho H_S u` beside them. A matrix with a leading axis
        of samples belongs to the batch, one without it is a mean over the data set.
        """
        H, K = self.affine
        if isinstance(v, Sum):
            numbers = chain.kernel.numbers.own
            return [
                (float(c.value(numbers)) * e, word)
                for c, part in v.terms
                for e, word in self._words(chain, part)
            ]
        assert isinstance(v, Gradient)
        h, k = (H.mean(axis=0), K.mean(axis=0)) if v.scope == "data" else (H, K)
        moved = [] if v.at is None else self._words(chain, v.at)
        return [(1.0, [k]), *((chain.rho * c, [h, *word]) for c, word in moved)]


def _per_sample(word: list[np.ndarray], n: int) -> list[np.ndarray]:
    """A product with every mean over the data set multiplied into a neighbour."""
    merged: list[np.ndarray] = []
    for matrix in word:
        if merged and 2 in (matrix.ndim, merged[-1].ndim):
            merged[-1] = merged[-1] @ matrix
        else:
            merged.append(matrix)
    alone = len(merged) == 1 and merged[0].ndim == 2
    return [np.broadcast_to(merged[0], (n, *merged[0].shape))] if alone else merged


def check_affine(rule: str | Variant) -> None:
    """Refuse a variant whose step is not affine on quadratic losses, or whose batches are not
    listed here.
    """
    rule = variant(rule)
    if rule.normalised:
        raise ValueError(
            f"a step of {rule.name} is not affine, because it normalises: its moments do not close;"
            " use a torus problem"
        )
    own = "micro" if rule.micro else "batch"
    if not all(isinstance(v, (Gradient, Sum)) for v in rule.direction.walk()) or not (
        rule.direction.scopes <= {own, "data"}
    ):
        raise ValueError(
            f"the moments of {rule.name} on quadratics are not known here: they are for sums of"
            " gradients of the micro-batch and of the data set; use a torus problem"
        )


# A worked example of `_expected`: E[mean_I(a) mean_I(b)] of two numbers per sample, over a
# micro-batch I of m = 2 samples. Each of the two means picks a position of I, with equal chances:
#
#     both pick the same position      2 of 4     E[a_i b_i]        one sample i
#     they pick different positions    2 of 4     E[a_i b_j]        two samples, i and j
#
# The two ways are the partitions of the factors {a, b} into positions, {ab} and {a}{b}. The number
# of ways to place p blocks on m positions is m (m-1) ... (m-p+1), here 2 and 2, of m^2 = 4 in all.
#
# With replacement i and j are independent, E[a_i b_j] = mean(a) mean(b), and we are done. Without
# replacement i and j differ: of the n^2 pairs the n with i = j are taken away,
#
#     E[a_i b_j] = (n^2 mean(a) mean(b) - n mean(a b)) / (n (n - 1))
#
# which is the sum over partitions of the *positions* into those that might agree, with the sign
# (-1)^(size - 1) (size - 1)! of each part. For n = 3, a = b = (0, 1, 2): (9 - 5) / 6 = 2/3, and by
# hand the pairs (0,1), (0,2), (1,2) have the products 0, 0 and 2, of mean 2/3.
#
# Factors of different micro-batches never share a position, so partitions that join them are left
# out; their samples may be equal with replacement, and never without.


def _expected(
    words: list[list[np.ndarray]], group: list[int], sampling: Sampling, n: int
) -> np.ndarray:
    """The expectation of a product of micro-batch means of per-sample matrices.

    Args:
        words: one or two products of matrices, each factor of shape `(n, ., .)` and standing for
            its mean over a micro-batch.
        group: the micro-batch, 0 or 1, of each factor in turn.
        sampling: how batches are drawn.
        n: the number of samples.

    Returns:
        `E[W]`, or `E[W_pr W'_su]` as an array `[p, s, r, u]`.
    """
    total = np.zeros(())
    m = sampling.m
    for positions in set_partitions(range(len(group))):
        homes = [{group[k] for k in block} for block in positions]
        if any(len(home) > 1 for home in homes):
            continue  # one position lies in one micro-batch
        per_group = [sum(home == {g} for home in homes) for g in (0, 1)]
        probability = prod(perm(m, count) for count in per_group) / m ** len(group)
        if not probability:
            continue
        if sampling.replace:
            total = total + probability * _plain(words, positions)
            continue
        # distinct positions hold distinct samples: inclusion-exclusion over which of them might
        # agree
        for merged in set_partitions(positions):
            sign = prod((-1) ** (len(part) - 1) * factorial(len(part) - 1) for part in merged)
            blocks = [[k for block in part for k in block] for part in merged]
            total = total + probability * sign * n ** len(blocks) / perm(
                n, len(positions)
            ) * _plain(words, blocks)
    return total


def _plain(words: list[list[np.ndarray]], blocks: list[list[int]]) -> np.ndarray:
    """The product with the factors of a block at one sample, every block averaged over the data
    set.
    """
    # a capital letter for the sample of each block, and a small one for each axis: a product of k
    # matrices has k + 1 axes, of which the first and the last stay
    index = {k: ascii_uppercase[which] for which, block in enumerate(blocks) for k in block}
    axes = iter(ascii_lowercase)
    operands, inputs, outputs, position = [], [], [], 0
    for word in words:
        letters = [next(axes) for _ in range(len(word) + 1)]
        for factor, row, column in zip(word, letters, letters[1:], strict=False):
            operands.append(factor)
            inputs.append(index[position] + row + column)
            position += 1
        outputs.append((letters[0], letters[-1]))
    out = "".join(pair[0] for pair in outputs) + "".join(pair[1] for pair in outputs)
    n = operands[0].shape[0]
    total: np.ndarray = np.einsum(",".join(inputs) + "->" + out, *operands, optimize="optimal")
    return total / float(n ** len(blocks))


def _affine_map(values: np.ndarray, points: np.ndarray, what: str) -> np.ndarray:
    """The matrix `A` with `values = A (x, 1)`, from values at 0, the unit vectors and one point
    more as a check.
    """
    d = points.shape[1]
    constant = values[0]
    matrix = np.column_stack([(values[1 : d + 1] - constant).T, constant])
    if not np.allclose(
        matrix @ np.append(points[-1], 1),
        values[-1],
        rtol=1e-9,
        atol=1e-9 * (1 + abs(values).max()),
    ):
        raise ValueError(
            f"the {what} of this SDE is not affine: the moment solver needs quadratic losses and"
            " affine rules"
        )
    return np.asarray(matrix)


def _start_moment(problem: FiniteSum) -> np.ndarray:
    y = np.append(start(problem), 1.0)
    return np.outer(y, y)


def _pack(M: np.ndarray) -> np.ndarray:
    """Mean and second moments of `x` from those of `(x, 1)`."""
    return np.concatenate([M[:-1, -1], M[:-1, :-1].ravel()])
