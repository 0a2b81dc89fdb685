"""The ONE step of every optimizer of the family, read off the variant's declaration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdesam.problems import mean_grad
from sdesam.variants._base import Perturbation

PyTree = Any


class Numbers(NamedTuple):
    """Runtime values of a step."""

    data: PyTree
    lr: float
    rho: float


@dataclass(frozen=True)
class StepKernel:
    """`x+ = x - lr * mean_I grad f_I(x + rho u_I)`."""

    sample_loss: Callable[[Any, Any], jax.Array]
    chunk: int
    n: int
    perturbation: Perturbation
    batch: int
    micro: int
    replace: bool

    def __call__(self, params: Numbers, x: PyTree, key: jax.Array, xi: Any) -> PyTree:
        """One step with a batch drawn from `key`; there are no normals."""
        return self.step(params, x, self.draw(key))

    def draw(self, key: jax.Array) -> jax.Array:
        """The indices of a mini-batch in its micro-batches, shape `(b/m, m)`."""
        if self.replace:
            indices = jax.random.randint(key, (self.batch,), 0, self.n)
        else:
            indices = jax.random.choice(key, self.n, (self.batch,), replace=False)
        return indices.reshape(self.batch // self.micro, self.micro)

    def step(self, params: Numbers, x: PyTree, indices: jax.Array) -> PyTree:
        """One step with given micro-batches."""
        direction = self.direction(params, x, indices)
        return jax.tree.map(lambda leaf, g: leaf - params.lr * g, x, direction)

    def direction(self, params: Numbers, x: PyTree, indices: jax.Array) -> PyTree:
        """`G(x)`, the mean over the micro-batches of `grad f_I(x + rho u_I)`."""
        whole_set = None
        if self.perturbation == "data set":
            whole_set = mean_grad(self.sample_loss, self.chunk, params.data, x)

        def micro_batch(indices: jax.Array) -> PyTree:
            samples = jax.tree.map(lambda leaf: leaf[indices], params.data)

            def loss(y: PyTree) -> jax.Array:
                return jnp.mean(jax.vmap(self.sample_loss, (None, 0))(y, samples))

            if self.perturbation == "none":
                return jax.grad(loss)(x)
            u = jax.grad(loss)(x) if whole_set is None else whole_set
            return jax.grad(loss)(jax.tree.map(lambda leaf, g: leaf + params.rho * g, x, u))

        return jax.tree.map(lambda leaf: leaf.mean(axis=0), jax.vmap(micro_batch)(indices))
