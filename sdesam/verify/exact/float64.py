"""Double precision, locally: the functions of a chain or an SDE on float64 data, without touching a
global flag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import factorial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam._util.functions import compiled
from sdesam.optim import Chain
from sdesam.optim.chain import check_chain
from sdesam.optim.kernel import StepKernel
from sdesam.problems import FiniteSum
from sdesam.sde import SDE

Field = Callable[[np.ndarray], np.ndarray]


def to_double(tree: Any) -> Any:
    """Every floating array of a pytree in float64; call inside `jax.enable_x64(True)`."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        array = np.asarray(leaf)
        return (
            jnp.asarray(array, np.float64)
            if np.issubdtype(array.dtype, np.floating)
            else jnp.asarray(array)
        )

    return jax.tree.map(convert, tree)


def with_rho(kernel: StepKernel, rho: Any) -> StepKernel:
    """A step with another radius, which may be traced."""
    return replace(kernel, numbers=kernel.numbers._replace(rho=rho))


def start(problem: FiniteSum) -> np.ndarray:
    """`x0` as a flat float64 vector, shape `(d,)`."""
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(problem.x0)]
    )


def directions(chain: Chain, points: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """`G(x)` for every point and every listed mini-batch, float64.

    Args:
        chain: the optimizer.
        points: shape `(p, d)`.
        batches: sample indices, shape `(q, b/m, m)`.

    Returns:
        Shape `(q, p, d)`.
    """
    _check_listed(chain)
    with jax.enable_x64(True):
        kernel, rebuild = to_double(chain.kernel), Rebuild(chain.problem.x0)
        return np.asarray(_directions(rebuild, kernel, jnp.asarray(points), jnp.asarray(batches)))


def mean_step(
    chain: Chain, points: np.ndarray, batches: np.ndarray, probability: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`Gbar(x)` and `(D Gbar) Gbar (x)` at every point, over listed mini-batches with their
    probabilities: two arrays `(p, d)`, float64.
    """
    _check_listed(chain)
    with jax.enable_x64(True):
        kernel, rebuild = to_double(chain.kernel), Rebuild(chain.problem.x0)
        listed = jnp.asarray(batches), jnp.asarray(probability)
        mean, correction = _mean_step(rebuild, kernel, jnp.asarray(points), *listed)
        return np.asarray(mean), np.asarray(correction)


class StepCoefficients(NamedTuple):
    """The Taylor coefficients of a step in `rho` at some points; the first axis is the power.

    Args:
        mean: of `Gbar`, shape `(k, p, d)`.
        correction: of `(D Gbar) Gbar`, shape `(l, p, d)`.
        covariance: of `Cov G`, shape `(l, p, d, d)`.
    """

    mean: np.ndarray
    correction: np.ndarray
    covariance: np.ndarray


def step_coefficients(
    chain: Chain,
    points: np.ndarray,
    batches: np.ndarray,
    probability: np.ndarray,
    powers: tuple[int, int],
) -> StepCoefficients:
    """Mean, correction and covariance of a step in powers of `rho`, by automatic differentiation at
    `rho = 0`, float64.

    Args:
        chain: the optimizer; its own `rho` is not used.
        points: shape `(p, d)`.
        batches: sample indices, shape `(q, b/m, m)`.
        probability: their probabilities, shape `(q,)`.
        powers: how many powers, from `rho^0` on: of the mean, and of correction and covariance.
    """
    _check_listed(chain)
    with jax.enable_x64(True):
        kernel, rebuild = to_double(chain.kernel), Rebuild(chain.problem.x0)
        listed = jnp.asarray(points, jnp.float64), jnp.asarray(batches), jnp.asarray(probability)
        found = _step_coefficients(rebuild, powers, kernel, *listed)
        return StepCoefficients(*(np.asarray(part) for part in found))


def sample_sizes(problem: FiniteSum, points: np.ndarray) -> np.ndarray:
    """Mean squares over the samples of `g_i` and of `H_i g_i` at every point, float64: shape
    `(2, p)`.

    They say how large means over samples could be, and on which scale a step changes,
    `|g| / |H g|`.
    """
    with jax.enable_x64(True):
        return np.asarray(
            _sample_sizes(
                problem.sample_loss,
                Rebuild(problem.x0),
                to_double(problem.data),
                jnp.asarray(points, jnp.float64),
            )
        )


def drift(sde: SDE, points: np.ndarray) -> np.ndarray:
    """`B(x)`, the exact expectation, at every point: shape `(p, d)`, float64."""
    with jax.enable_x64(True):
        return np.asarray(_drift(Rebuild(sde.x0), to_double(sde.kernel), jnp.asarray(points)))


def covariance(sde: SDE, points: np.ndarray) -> np.ndarray:
    """The diffusion matrix at every point: shape `(p, d, d)`, float64."""
    # A A^T from the columns A e: an SDE knows its noise as a map, and the matrix is formed only
    # where the dimension is small
    columns = noise_columns(sde, points)
    return np.asarray(np.einsum("pej,pek->pjk", columns, columns))


def noise_columns(sde: SDE, points: np.ndarray) -> np.ndarray:
    """`A(x) e` for every unit vector `e`: shape `(p, noise, d)`, float64."""
    with jax.enable_x64(True):
        return np.asarray(
            _columns(
                Rebuild(sde.x0),
                sde.noise_shape,
                to_double(sde.kernel),
                jnp.asarray(points),
            )
        )


def _check_listed(chain: Chain) -> None:
    check_chain(chain, "an exact expectation")
    if chain.variant.draws:
        raise ValueError(
            f"{chain.variant.name} draws batches or directions beside its mini-batch, which are not"
            " listed: average over runs"
        )
    if chain.kernel.norms is not None and chain.kernel.norms.random:
        raise ValueError(
            f"{chain.variant.name} draws random directions, which are not listed: use"
            " norms=NormEstimate(law='exact')"
        )


class Rebuild:
    """A map from a flat vector to the structure of `x0`; equal structures are equal, so that
    compiled code is shared.
    """

    def __init__(self, x0: Any):
        leaves, self.structure = jax.tree.flatten(x0)
        self.shapes = tuple(np.shape(leaf) for leaf in leaves)

    def __call__(self, flat: jax.Array) -> Any:
        """The parameters whose entries are `flat`."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        parts = jnp.split(flat, ends[:-1])
        return jax.tree.unflatten(
            self.structure,
            [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)],
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rebuild) and (self.structure, self.shapes) == (
            other.structure,
            other.shapes,
        )

    def __hash__(self) -> int:
        return hash((self.structure, self.shapes))


def _flat(tree: Any) -> jax.Array:
    return ravel_pytree(tree)[0]


def _directions_fn(
    rebuild: Rebuild, kernel: Any, points: jax.Array, batches: jax.Array
) -> jax.Array:
    def one(batch: jax.Array, x: jax.Array) -> jax.Array:
        return _flat(kernel.direction(rebuild(x), batch))

    return jax.vmap(lambda batch: jax.vmap(lambda x: one(batch, x))(points))(batches)


def _mean_step_fn(
    rebuild: Rebuild,
    kernel: Any,
    points: jax.Array,
    batches: jax.Array,
    probability: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    def mean(x: jax.Array) -> jax.Array:
        return probability @ jax.vmap(lambda batch: _flat(kernel.direction(rebuild(x), batch)))(
            batches
        )

    def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        G = mean(x)
        return G, jax.jvp(mean, (x,), (G,))[1]

    return jax.vmap(one)(points)


def _step_coefficients_fn(
    rebuild: Rebuild,
    powers: tuple[int, int],
    kernel: Any,
    points: jax.Array,
    batches: jax.Array,
    probability: jax.Array,
) -> tuple[jax.Array, ...]:
    # nested derivatives trace a function again at every level; under jit they meet its jaxpr
    @jax.jit  # traced once, and then differentiated as a whole
    def direction(rho: jax.Array, y: jax.Array, batch: jax.Array) -> jax.Array:
        return _flat(with_rho(kernel, rho).direction(rebuild(y), batch))

    def one(x: jax.Array) -> tuple[jax.Array, ...]:
        def each(rho: jax.Array, y: jax.Array = x) -> jax.Array:
            G: jax.Array = jax.vmap(partial(direction, rho, y))(batches)
            return G

        def second(rho: jax.Array) -> tuple[jax.Array, jax.Array]:
            G = each(rho)
            away = G - probability @ G
            bent = jax.jvp(lambda y: probability @ each(rho, y), (x,), (probability @ G,))[1]
            return bent, jnp.einsum("q,qj,qk->jk", probability, away, away)

        return _taylor(lambda rho: probability @ each(rho), powers[0]), *_taylor(second, powers[1])

    found: tuple[jax.Array, ...] = jax.vmap(one, out_axes=1)(points)
    return found


def _sample_sizes_fn(sample_loss: Any, rebuild: Rebuild, data: Any, points: jax.Array) -> jax.Array:
    def of_sample(x: jax.Array, sample: Any) -> jax.Array:
        grad = jax.grad(lambda y: sample_loss(rebuild(y), sample))
        g = grad(x)
        return jnp.stack([jnp.sum(g**2), jnp.sum(jax.jvp(grad, (x,), (g,))[1] ** 2)])

    sizes: jax.Array = jax.vmap(
        lambda x: jnp.mean(jax.vmap(of_sample, (None, 0))(x, data), axis=0), out_axes=1
    )(points)
    return sizes


# A worked example of nested derivatives: f(r) = exp(2 r) and three powers give f(0) = 1,
# f'(0) / 1! = 2 and f''(0) / 2! = 2, each by one forward derivative of the one before.


def _taylor(fn: Callable[[jax.Array], Any], powers: int) -> Any:
    """The Taylor coefficients of `fn` at 0, stacked; derivatives are nested, because `jet` lacks
    rules for common losses.
    """

    def derivative(f: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
        return lambda r: jax.jvp(f, (r,), (jnp.ones_like(r),))[1]

    values = []
    for k in range(powers):
        values.append(jax.tree.map(partial(jnp.multiply, 1 / factorial(k)), fn(jnp.zeros(()))))
        fn = derivative(fn)
    return jax.tree.map(lambda *parts: jnp.stack(parts), *values)


def _drift_fn(rebuild: Rebuild, kernel: Any, points: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: _flat(kernel.drift(rebuild(x))))(points)


def _columns_fn(
    rebuild: Rebuild, shape: tuple[int, ...], kernel: Any, points: jax.Array
) -> jax.Array:
    size = int(np.prod(shape))
    units = jnp.eye(size).reshape(size, *shape)
    return jax.vmap(lambda x: jax.vmap(lambda e: _flat(kernel.apply_noise(rebuild(x), e)))(units))(
        points
    )


_directions = compiled(static=1)(_directions_fn)
_mean_step = compiled(static=1)(_mean_step_fn)
_step_coefficients = compiled(static=2)(_step_coefficients_fn)
_sample_sizes = compiled(static=2)(_sample_sizes_fn)
_drift = compiled(static=1)(_drift_fn)
_columns = compiled(static=2)(_columns_fn)
