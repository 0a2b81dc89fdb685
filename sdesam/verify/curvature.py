"""The Hessian of the mean loss without the Hessian: its trace by random probes, its largest
eigenvalue by Lanczos.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigh_tridiagonal

from sdesam._util.checks import check_int
from sdesam._util.functions import compiled
from sdesam.ensemble import check_key
from sdesam.problems import FiniteSum, check_problem
from sdesam.problems.means import hessian_product

PyTree = Any


class Estimate(NamedTuple):
    """A number and how far off it may be.

    Args:
        value: the number.
        error: standard error, or a bound on the error, as said by who gives it.
    """

    value: float
    error: float


def hessian_trace(problem: FiniteSum, x: PyTree, key: jax.Array, probes: int = 64) -> Estimate:
    """`tr H` of the mean loss by Hutchinson's estimator, the mean of `z^T H z` over Rademacher
    probes `z`.

    Its variance is `2 sum_{i != j} H_ij^2` per probe.

    Args:
        problem: the finite sum.
        x: where; structure of `problem.x0`.
        key: of the probes.
        probes: how many, at least 2; each costs one Hessian-vector product over the data.

    Returns:
        The estimate with its standard error.

    Raises:
        ValueError: fewer than two probes, parameters of another structure.

    Source: M. F. Hutchinson 1989, Commun. Stat. Simul. Comput. 18.

    >>> import sdesam
    >>> problem = sdesam.problems.quadratic(dim=2, samples=4)
    >>> found = hessian_trace(problem, problem.x0, jax.random.key(0), probes=400)
    >>> exact = float(jnp.trace(problem.data["hessian"].mean(axis=0)))
    >>> abs(found.value - exact) < 4 * found.error
    True
    """
    check_problem(problem)
    count = check_int("probes", probes, least=2)
    # H = [[2, 1], [1, 3]] has the trace 5. The probe z = (1, 1) gives z^T H z = 7, z = (1, -1)
    # gives 3: the off-diagonal entries come in with random signs, and their mean is 0. So the
    # variance is 2 * (1 + 1) = 4, and no diagonal entry adds to it.
    values = np.asarray(
        _probe(
            problem.sample_loss,
            problem.chunk,
            count,
            problem.data,
            problem.check_params(x),
            check_key(key),
        ),
        np.float64,
    )
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / sqrt(count))


def largest_eigenvalue(
    problem: FiniteSum, x: PyTree, key: jax.Array, iterations: int = 40
) -> Estimate:
    """The largest (most positive) eigenvalue of the Hessian of the mean loss, by Lanczos with full
    reorthogonalisation.

    Args:
        problem: the finite sum.
        x: where; structure of `problem.x0`.
        key: of the random first vector.
        iterations: Hessian-vector products over the data; more than there are parameters are not
            made.

    Returns:
        The largest Ritz value `theta`, which is at most the eigenvalue, and the norm of its
        residual: some eigenvalue is that near to `theta`.

    Raises:
        ValueError: no iterations, parameters of another structure.

    Source: C. Lanczos 1950, J. Res. Natl. Bur. Stand. 45; B. N. Parlett, The Symmetric Eigenvalue
    Problem, chapter 13.

    >>> import sdesam
    >>> problem = sdesam.problems.quadratic(dim=2, samples=4)
    >>> found = largest_eigenvalue(problem, problem.x0, jax.random.key(0))
    >>> exact = float(jnp.linalg.eigvalsh(problem.data["hessian"].mean(axis=0))[-1])
    >>> abs(found.value - exact) < 1e-5
    True
    """
    x = check_problem(problem).check_params(x)
    count = min(check_int("iterations", iterations), problem.dim)
    a, b = (
        np.asarray(part, np.float64)
        for part in _lanczos(
            problem.sample_loss, problem.chunk, count, problem.data, x, check_key(key)
        )
    )
    # H = diag(1, 3) from q = (1, 1) / sqrt(2): a = (2, 2), b = (1,), and [[2, 1], [1, 2]] has the
    # eigenvalues 1 and 3 of H. After as many steps as H has distinct eigenvalues what is left of a
    # new vector is rounding, and so would be all that follows.
    small = np.flatnonzero(b < 1e-6 * max(abs(a).max(), b.max()))
    count = int(small[0]) + 1 if len(small) else count
    values, vectors = eigh_tridiagonal(a[:count], b[: count - 1])
    return Estimate(float(values[-1]), float(b[count - 1] * abs(vectors[-1, -1])))


@compiled(static=3)
def _probe(
    sample_loss: Any, chunk: int, probes: int, data: PyTree, x: PyTree, key: jax.Array
) -> jax.Array:
    flat, product = hessian_product(sample_loss, chunk, data, x)

    def one(key: jax.Array) -> jax.Array:
        z = jax.random.rademacher(key, flat.shape, flat.dtype)
        return z @ product(z)

    values: jax.Array = jax.lax.map(one, jax.random.split(key, probes))
    return values


@compiled(static=3)
def _lanczos(
    sample_loss: Any, chunk: int, count: int, data: PyTree, x: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Diagonal and off-diagonal of the tridiagonal matrix; the last off-diagonal entry is that of
    the residual.
    """
    flat, product = hessian_product(sample_loss, chunk, data, x)
    start = jax.random.normal(key, flat.shape, flat.dtype)

    def body(k: jax.Array, carry: Any) -> Any:
        Q, a, b, q = carry
        Q = Q.at[k].set(q)
        w = product(q)
        a = a.at[k].set(q @ w)
        for _ in range(2):  # twice is enough
            w = w - Q.T @ (Q @ w)
        norm = jnp.linalg.norm(w)
        return Q, a, b.at[k].set(norm), w / jnp.where(norm > 0, norm, 1)

    zero = jnp.zeros(count, flat.dtype)
    _, a, b, _ = jax.lax.fori_loop(
        0,
        count,
        body,
        (jnp.zeros((count, flat.size), flat.dtype), zero, zero, start / jnp.linalg.norm(start)),
    )
    return a, b
