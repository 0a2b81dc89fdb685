"""The exact mean step, and the influence of a sample on it, in powers of `rho`: all batches listed;
and trees at the same points. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam._util.functions import compiled
from sdesam.problems import FiniteSum
from sdesam.sde.by_numbers import taylor
from sdesam.sde.compile import Samples, evaluate_trees
from sdesam.symbolic import MARK, Tree
from sdesam.verify.exact.float64 import Rebuild, to_double, with_rho

_AT_ONCE = 2**22
"""Numbers of gradients that are there at once, 32 MB: of one batch, those of each sample at each
point.
"""


class Batches(NamedTuple):
    """All batches of some size, listed.

    Args:
        indices: of their samples, shape `(q, b/m, m)`, or `(q, m)` of micro-batches.
        probability: shape `(q,)`.
        replace: whether they are drawn with replacement.
    """

    indices: np.ndarray
    probability: np.ndarray
    replace: bool

    @property
    def size(self) -> int:
        """The number of samples in each."""
        return int(np.prod(self.indices.shape[1:]))


class Moments(NamedTuple):
    """What is known of a step at some points; the first axis is the power of `rho`.

    Args:
        mean: the mean step, shape `(k, p, d)`.
        influence: `h(i)` for each sample, of mean 0 over the samples, shape `(l, n, p, d)`.
        left: the largest part of a power of the covariance that is not the covariance of `h`.
        size: the length of a batch's step over all points, root mean square, shape `(k,)`.
    """

    mean: np.ndarray
    influence: np.ndarray
    left: float
    size: np.ndarray


# A worked example: a step is the mean g_I of two of the three numbers g = (0, 3, 6), drawn without
# replacement. The batches are 01, 02, 12, of the means 1.5, 3, 4.5, and the mean step is 3.
#
# Sample 0 is in the batches 01 and 02, of the mean 2.25. So its deviation is -0.75, and the
# influence is h(0) = b (n-1)/(n-b) * -0.75 = 2 * 2 * -0.75 = -3, which is g_0 - gbar.
# Cov_i h(i) is (9 + 0 + 9)/3 = 6, and c_b = (n-b)/(b (n-1)) = 1/4 of it is 1.5: the variance of
# 1.5, 3, 4.5. Here the step is a mean over its samples. Where it is not, as for the rho^2 part of
# USAM, h is only the first of several parts of it.


def moments(coefficients: np.ndarray, batches: Batches, n: int, highest: int) -> Moments:
    """Mean, influence and what the influence leaves out, from the Taylor coefficients of each
    batch.

    With replacement, "sample `i` is in the batch" means that it stands at one given position: a
    batch counts for as many positions as it has of `i`.

    Args:
        coefficients: of each batch's step in `rho`, shape `(q, k, p, d)`.
        batches: what was listed.
        n: how many samples there are.
        highest: the highest power of the influence.
    """
    probability, b = batches.probability, batches.size
    mean = np.einsum("q,qkpd->kpd", probability, coefficients)
    squares = np.einsum("q,qkpd->k", probability, coefficients**2)
    away = (coefficients - mean)[:, : highest + 1]
    flat = batches.indices.reshape(len(probability), -1)
    counts = (flat[:, :, None] == np.arange(n)).sum(axis=1)
    if not batches.replace and b == n:
        return Moments(mean, np.zeros((highest + 1, n, *mean.shape[1:])), 0.0, np.sqrt(squares))
    scale = 1.0 if batches.replace else (n - 1) / (n - b)
    influence = scale * n * np.einsum("q,qi,qkpd->kipd", probability, counts, away)
    # c_b, times 1/n for the mean over i
    share = 1 / (b * scale * n)
    left = 0.0
    for power in range(highest + 1):
        own = _covariance(np.moveaxis(away, 1, 0), probability, power)
        projected = _covariance(influence, np.full(n, share), power)
        # a covariance that is rounding is none
        size = max(float(np.linalg.norm(own)), 1e-8 * float(squares[: power + 1].max()))
        left = max(left, float(np.linalg.norm(own - projected)) / size if size else 0.0)
    return Moments(mean, influence, left, np.sqrt(squares))


def _covariance(away: np.ndarray, weights: np.ndarray, power: int) -> np.ndarray:
    """The coefficient of a power of `rho` in a weighted sum of squares of deviations."""
    pairs = ((j, power - j) for j in range(power + 1))
    return np.asarray(sum(np.einsum("q,qpj,qpk->pjk", weights, away[j], away[k]) for j, k in pairs))


def expanded(
    kernel: Any,
    step: Callable[..., Any],
    problem: FiniteSum,
    points: np.ndarray,
    batches: Batches,
    highest: int,
) -> np.ndarray:
    """The Taylor coefficients in `rho` of a step of each batch, shape `(q, k, p, d)`.

    Args:
        kernel: a pytree, handed to `step`.
        step: `(kernel, x, indices, rho) -> direction`, one of this module's functions.
        problem: for the structure of the parameters.
        points: shape `(p, d)`.
        batches: what is listed.
        highest: the highest power.
    """
    with jax.enable_x64(True):
        found = _expanded(
            step,
            Rebuild(problem.x0),
            highest,
            to_double(kernel),
            jnp.asarray(points, jnp.float64),
            jnp.asarray(batches.indices),
        )
        return np.asarray(found)


def chain_step(kernel: Any, x: Any, indices: jax.Array, rho: jax.Array) -> Any:
    """The direction of a mini-batch, by the step kernel of a chain."""
    return with_rho(kernel, rho).direction(x, indices)


def direction_step(kernel: Any, x: Any, indices: jax.Array, rho: jax.Array) -> Any:
    """The direction of a micro-batch, by a user's function."""
    return kernel.value(x, jax.tree.map(lambda leaf: leaf[indices], kernel.data), rho)


def tree_values(problem: FiniteSum, points: np.ndarray, trees: tuple[Tree, ...]) -> np.ndarray:
    """Trees at some points, shape `(t, p, d)`; for trees with a marked sample less their mean over
    the samples, shape `(t, n, p, d)`.
    """
    marked = any(node.colour == MARK for tree in trees for node in tree.nodes())
    with jax.enable_x64(True):
        found = _tree_values(
            problem.sample_loss,
            Rebuild(problem.x0),
            trees,
            marked,
            to_double(problem.data),
            jnp.asarray(points, jnp.float64),
        )
        return np.asarray(found)


def _expanded_fn(
    step: Any, rebuild: Rebuild, highest: int, kernel: Any, points: jax.Array, indices: jax.Array
) -> jax.Array:
    # traced once, and then differentiated as a whole
    @jax.jit
    def direction(rho: jax.Array, x: jax.Array, batch: jax.Array) -> jax.Array:
        return ravel_pytree(step(kernel, rebuild(x), batch, rho))[0]

    def one(x: jax.Array, batch: jax.Array) -> jax.Array:
        return jnp.stack(taylor(lambda rho: direction(rho, x, batch), highest))

    at_points = jax.vmap(one, (0, None), 1)
    numbers = points.size * int(np.prod(indices.shape[1:]))
    found: jax.Array = jax.lax.map(
        lambda batch: at_points(points, batch),
        indices,
        batch_size=min(len(indices), max(1, _AT_ONCE // numbers)),
    )
    return found


def _tree_values_fn(
    sample_loss: Any,
    rebuild: Rebuild,
    trees: tuple[Tree, ...],
    marked: bool,
    data: Any,
    points: jax.Array,
) -> jax.Array:
    n = len(jax.tree.leaves(data)[0])
    samples = Samples(sample_loss, data, n)

    def value(x: jax.Array, numbers: jax.Array, mark: jax.Array | None) -> jax.Array:
        return ravel_pytree(evaluate_trees(trees, numbers, samples, rebuild(x), mark=mark))[0]

    each = jnp.eye(len(trees))
    if not marked:
        at = jax.vmap(partial(value, mark=None), (0, None))  # over points
        return jax.vmap(at, (None, 0))(points, each)
    marks = jnp.eye(n) - 1 / n
    over_points = jax.vmap(value, (0, None, None))
    over_samples = jax.vmap(over_points, (None, None, 0))
    found: jax.Array = jax.vmap(over_samples, (None, 0, None))(points, each, marks)
    return found


_expanded = compiled(static=3)(_expanded_fn)
_tree_values = compiled(static=4)(_tree_values_fn)
