"""Means over a data set: the loss, its gradient, the products of its Hessian, `tr V`.

Everything per sample is done in chunks and reduced at once, so memory does not grow with the data
set. Sums are taken in float32 at least, and the mean is returned in the precision of the loss or of
the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sdesam._util.precision import like, of_sums, wide
from sdesam.autodiff.interpreter import equations
from sdesam.autodiff.outer_products import Factors, dense_layers, deviations, factors, held

PyTree = Any
SampleLoss = Callable[[Any, Any], Any]


# A worked example of a chunked sum: the numbers 1 to 7 in chunks of three.
#
#     scan over full chunks    1 + 2 + 3 = 6,  then  6 + (4 + 5 + 6) = 21
#     what is left             21 + 7 = 28
#
# Only one chunk of per-sample values is in memory at a time. The rest is added outside of the scan
# because a scan takes chunks of one size; padding it with zeros would call the loss on samples that
# are none, and a loss may be NaN there.
#
# The sum is of float32 at least, whatever the loss is: seven gradients of 30,000 in float16 have
# the sum 210,000, which float16 cannot hold (its largest number is 65,504), though their mean is
# 30,000.


def fold_samples(fn: Callable[[Any], Any], per_sample: PyTree, chunk: int) -> Any:
    """`fn` of chunks of `per_sample` (leading axis: samples), summed over the chunks, in float32 at
    least.
    """
    n = jax.tree.leaves(per_sample)[0].shape[0]
    if n <= chunk:
        return wide(fn(per_sample))
    whole_chunks = n // chunk
    head = jax.tree.map(
        lambda a: a[: whole_chunks * chunk].reshape(whole_chunks, chunk, *a.shape[1:]), per_sample
    )
    # the shape of the sum is only known once the function has been traced for a chunk
    first = jax.tree.map(lambda a: a[0], head)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, of_sums(s.dtype)), jax.eval_shape(fn, first))

    def add(total: Any, part: Any) -> Any:
        return jax.tree.map(jnp.add, total, wide(fn(part)))

    total, _ = jax.lax.scan(lambda total, part: (add(total, part), None), zero, head)
    return (
        total
        if whole_chunks * chunk == n
        else add(total, jax.tree.map(lambda a: a[whole_chunks * chunk :], per_sample))
    )


def mean_loss(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """`f(x)`, chunk by chunk."""
    dtype = jax.eval_shape(sample_loss, x, first_sample(data)).dtype
    total: jax.Array = fold_samples(
        lambda part: jnp.sum(wide(jax.vmap(sample_loss, (None, 0))(x, part))), data, chunk
    )
    return (total / length(data)).astype(dtype)


def mean_grad(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> PyTree:
    """`gbar(x)`, chunk by chunk."""
    return like(mean_grad_wide(sample_loss, chunk, data, x), x)


def mean_grad_wide(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> PyTree:
    """`gbar(x)` as it was summed, in float32 at least."""
    narrow = computes_in_half(sample_loss, x, data)
    total = fold_samples(lambda part: summed_gradient(sample_loss, x, part, narrow), data, chunk)
    return jax.tree.map(lambda g: g / length(data), total)


def summed_gradient(
    fn: Callable[[Any, Any], Any], x: PyTree, items: PyTree, narrow: bool
) -> PyTree:
    """`sum_i grad fn(x, i)` over the leading axis of `items`.

    Where something is computed in half precision, the gradients of samples are formed and summed in
    float32. One reverse pass over the sum would add in half precision, in which a sum may be
    infinite though its mean is not.
    """
    # a gradient for each sample takes their memory; it is paid only where half precision is met
    if narrow:
        return jax.tree.map(
            lambda g: jnp.sum(wide(g), axis=0), jax.vmap(jax.grad(fn), (None, 0))(x, items)
        )
    return jax.grad(lambda y: jnp.sum(jax.vmap(fn, (None, 0))(y, items)))(x)


def computes_in_half(sample_loss: SampleLoss, x: PyTree, data: PyTree) -> bool:
    """Whether a loss of a sample has values of fewer than 32 bits on its way, read off its
    jaxpr.
    """
    values = [
        variable.aval
        for eqn in equations(jax.make_jaxpr(sample_loss)(x, first_sample(data)).jaxpr)
        for variable in eqn.outvars
        if hasattr(variable.aval, "dtype")
    ]
    return any(of_sums(value.dtype) != value.dtype for value in [*jax.tree.leaves(x), *values])


def grad_norm2(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """The squared norm `|gbar|^2` of the gradient of the loss."""
    return squared_norm(mean_grad_wide(sample_loss, chunk, data, x)).astype(_dtype(x))


def trace_cov(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """`tr V`, without the gradients of dense layers where the loss has any."""
    layers = dense_layers(sample_loss, x, first_sample(data))
    return (
        _trace_cov_dense(sample_loss, layers, chunk, data, x)
        if layers
        else trace_cov_generic(sample_loss, chunk, data, x)
    )


def trace_cov_generic(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """`tr V`, summed as squared deviations: the difference of two large means would lose digits in
    float32.
    """
    # Two gradients of one parameter, 4096.5 and 4097.5, of mean 4097 and variance 1/4. In float32
    # the mean of their squares minus the square of their mean comes out as -2: squares near 1.7e7
    # are two apart. The deviations -1/2 and 1/2 are exact, at the price of a second pass.
    gbar = mean_grad_wide(sample_loss, chunk, data, x)

    def deviation(sample: PyTree) -> jax.Array:
        return squared_norm(
            jax.tree.map(jnp.subtract, wide(jax.grad(sample_loss)(x, sample)), gbar)
        )

    total: jax.Array = fold_samples(lambda part: jnp.sum(jax.vmap(deviation)(part)), data, chunk)
    return (total / length(data)).astype(_dtype(x))


def _trace_cov_dense(
    sample_loss: SampleLoss, layers: dict[int, Any], chunk: int, data: PyTree, x: PyTree
) -> jax.Array:
    """`tr V = mean |g_i - c|^2 - |gbar - c|^2`, where `c` is made of the mean factors of the first
    samples, so that the second part is small.
    """
    many = samples_without_vectors(layers, chunk, x)
    n = length(data)

    def of(part: PyTree) -> Factors:
        group: Factors = wide(jax.vmap(partial(factors, sample_loss, layers, x))(part))
        return group

    # The centre c need not be the mean, because sum |g_i - c|^2 = sum |g_i - gbar|^2
    # + n |gbar - c|^2 for any c. It should be near it, so that what is subtracted is small, and it
    # must have factors of its own, which a mean of outer products has not.
    first = of(jax.tree.map(lambda leaf: leaf[:many], data))
    centre = jax.tree.map(lambda a: jnp.mean(a, axis=0), first)
    if n <= many:
        squares, sums = deviations(first, centre)
    else:
        squares, sums = fold_samples(lambda part: deviations(of(part), centre), data, many)
    return (squares / n - squared_norm([total / n for total in sums])).astype(_dtype(x))


def samples_without_vectors(layers: dict[int, Any], chunk: int, x: PyTree) -> int:
    """How many samples fill, by the factors of their gradients, the memory of `chunk` vectors."""
    # a layer of 64 x 32 weights: 2,048 numbers as a matrix, 96 as factors, so that 21 samples take
    # the memory of one gradient
    return (
        chunk * max(1, sum(leaf.size for leaf in jax.tree.leaves(x)) // held(layers, x))
        if layers
        else chunk
    )


def squared_norm(tree: PyTree) -> jax.Array:
    """`|v|^2` of a pytree, in float32 at least."""
    return jnp.sum(jnp.stack([jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(wide(tree))]))


def hessian_product(
    sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """`x` as a flat vector, and `v -> H v` of such vectors, in float32 at least."""
    flat, rebuild = ravel_pytree(wide(x))

    def times(v: jax.Array) -> jax.Array:
        # forward over reverse: one more pass forward, and no matrix is formed
        product = jax.jvp(
            lambda y: mean_grad_wide(sample_loss, chunk, data, y), (x,), (like(rebuild(v), x),)
        )[1]
        flat_product: jax.Array = ravel_pytree(product)[0]
        return flat_product

    return flat, times


def first_sample(data: PyTree) -> PyTree:
    """The first sample of a data set."""
    return jax.tree.map(lambda leaf: leaf[0], data)


def length(data: PyTree) -> int:
    """The number of samples of a data set."""
    return int(jax.tree.leaves(data)[0].shape[0])


def _dtype(x: PyTree) -> Any:
    return jnp.result_type(*jax.tree.leaves(x))
