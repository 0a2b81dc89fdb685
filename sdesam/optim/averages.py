"""Means over micro-batches and over devices.

A micro-batch gives its perturbed gradient, its loss and its auxiliary values. What is averaged of
each depends on its type alone, so that one function serves a whole pytree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdesam._util.precision import wide
from sdesam.optim.kernel import Perturbed

PyTree = Any


def told_apart(params: PyTree, axis_name: str) -> PyTree:
    """`params` as values that differ between devices.

    `shard_map` sums the gradients of what it knows to be alike on all devices; a device's own
    perturbation needs its own gradient.
    """
    # Two devices with gradients 3 and -1 of their own samples: of a parameter that is known to be
    # the same on both, shard_map returns the gradient 2 on each, and both would be perturbed in the
    # same direction.
    # always true, and the compiler does not know it to be the same everywhere
    here = jax.lax.axis_index(axis_name) >= 0
    return jax.tree.map(lambda leaf: jnp.where(here, leaf, 0).astype(leaf.dtype), params)


def accumulated(
    micro_batch: Callable[[PyTree, Any], Perturbed], x: PyTree, parts: PyTree, numbers: jax.Array
) -> Perturbed:
    """The mean over micro-batches, one after the other."""

    def add(total: PyTree, one: tuple[PyTree, Any]) -> tuple[PyTree, tuple[Any, Any]]:
        found = micro_batch(*one)
        return jax.tree.map(jnp.add, total, wide(found.gradient)), (found.loss, found.aux)

    # x * 0, not zeros: it differs between devices where x does
    total, (loss, aux) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, wide(x)), (parts, numbers))
    G = jax.tree.map(lambda t, leaf: (t / numbers.shape[0]).astype(leaf.dtype), total, x)
    return Perturbed(G, mean_of_micro_batches(loss), jax.tree.map(mean_of_micro_batches, aux))


def mean_of_micro_batches(leaf: jax.Array) -> jax.Array:
    """The mean over micro-batches; of whole numbers the largest, of random keys the first."""
    # batch statistics are floats and their mean is the batch's; a counter that each micro-batch
    # counted up by one has gone up by one, and the mean of whole numbers would be no whole number
    if _is_key(leaf):
        return leaf[0]
    return (
        jnp.mean(leaf, axis=0)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else jnp.max(leaf, axis=0)
    )


def mean_of_devices(leaf: jax.Array, axis_name: str) -> jax.Array:
    """The mean over devices; of whole numbers the largest, of random keys those of the first."""
    if _is_key(leaf):
        # a key is no number that could be averaged: the words of the first device's, and zeros from
        # all others, are added up
        words = jax.random.key_data(leaf)
        first = jax.lax.psum(jnp.where(jax.lax.axis_index(axis_name) == 0, words, 0), axis_name)
        key: jax.Array = jax.random.wrap_key_data(first, impl=jax.random.key_impl(leaf))
        return key
    mean: jax.Array = (
        jax.lax.pmean(leaf, axis_name)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else jax.lax.pmax(leaf, axis_name)
    )
    return mean


def _is_key(leaf: jax.Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))
