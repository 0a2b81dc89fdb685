"""The functions of an SDE, with their numbers: of a derived one, and of one written by hand.

A kernel is a pytree. Its leaves are numbers and data, which are arguments of compiled code; its
functions and trees are static, and compiled code is kept by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from sdesam._util.functions import Function, bare, failure
from sdesam._util.precision import like, wide
from sdesam.autodiff.outer_products import dense_layers
from sdesam.problems.arrays import describe, numeric, shapes
from sdesam.problems.means import computes_in_half, samples_without_vectors
from sdesam.sde.compile import MicroBatches, Norms, Samples, evaluate_trees, forms_vectors
from sdesam.symbolic import Tree
from sdesam.variants import NormEstimate

PyTree = Any


class Kernel(Protocol):
    """The functions of an SDE with the numbers that they compute with; a pytree, whose leaves are
    the numbers and the data. SDEs that differ in these alone share compiled code.
    """

    @property
    def rest(self) -> PyTree:
        """What the start has beside arrays; None where it has nothing."""
        ...

    def working_bytes(self, x0: PyTree) -> int:
        """Memory of one intermediate value of a step, for all samples that are looked at
        together.
        """
        ...

    def now(self) -> Kernel:
        """This kernel, with what its functions read at present."""
        ...

    def drift(self, x: PyTree) -> PyTree:
        """The drift `B(x)`."""
        ...

    def step_drift(self, x: PyTree, key: jax.Array) -> PyTree:
        """An unbiased draw of `B(x)`."""
        ...

    def apply_noise(self, x: PyTree, xi: jax.Array) -> PyTree:
        """`A(x) xi`."""
        ...

    def step_noise(self, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        """An unbiased draw of `A(x) xi` given `xi`."""
        ...

    def step_both(
        self, x: PyTree, dt: Any, xi: jax.Array, keys: tuple[jax.Array, jax.Array]
    ) -> PyTree:
        """`dt` times a draw of `B(x)`, and one of `A(x) xi`; the keys are those of noise and
        drift.
        """
        ...


@dataclass(frozen=True)
class FreshBatches:
    """How fresh micro-batches are drawn.

    What the noise's micro-batches add to the covariance is of size `rho^2 n / count`, and `n m / b`
    times what as many in the drift add: a share of them is plenty there.
    """

    count: int
    m: int
    n: int
    replace: bool
    directions: bool

    @property
    def for_drift(self) -> FreshBatches:
        """The draws of a drift."""
        return replace(self, count=max(2, self.count // 8))

    def __call__(self, key: jax.Array) -> MicroBatches:
        key_batches, key_directions = jax.random.split(key)
        indices = (
            jax.random.randint(key_batches, (self.count, self.m), 0, self.n)
            if self.replace
            else self._subsets(key_batches)
        )
        directions = jax.random.split(key_directions, self.count) if self.directions else None
        return MicroBatches(indices, jnp.full(self.count, 1 / self.count), directions, drawn=True)

    # Floyd's algorithm for m = 2 of n = 5 samples. The first number is drawn from 0..3, the second
    # from 0..4. If the second is there already, the largest that it could be, 4, takes its place:
    #
    #     drawn    (2, 0)    (2, 4)    (2, 2)
    #     subset   {2, 0}    {2, 4}    {2, 4}
    #
    # So 4 is in the subset with the chance 1/5 + 1/5 = 2/5, as every sample must be. It needs m
    # numbers where a shuffle needs n, and the number of its steps is known when it is compiled.

    def _subsets(self, key: jax.Array) -> jax.Array:
        """Uniform subsets of `m` of `n` (Floyd's algorithm: Bentley & Floyd 1987, Commun. ACM
        30).
        """
        last = self.n - self.m + jnp.arange(self.m)
        offered = jax.random.randint(key, (self.count, self.m), 0, last + 1)

        def add(k: jax.Array, chosen: jax.Array) -> jax.Array:
            new = offered[:, k]
            taken = jnp.any(chosen == new[:, None], axis=1)
            return chosen.at[:, k].set(jnp.where(taken, last[k], new))

        subsets: jax.Array = jax.lax.fori_loop(0, self.m, add, jnp.full((self.count, self.m), -1))
        return subsets


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("data", "drift_numbers", "noise_numbers", "noise_scale", "eps", "lam", "own", "listed")
    ],
    meta_fields=["sample_loss", "chunk", "drift_trees", "noise_trees", "sampled", "draw", "norms"],
)
@dataclass(frozen=True, eq=False)
class TreeKernel:
    """A derived SDE on a finite sum: `sum_t c_t tree_t(x)`, its trees static and their coefficients
    runtime values.

    Args:
        data: that of the finite sum, leading axis `n`.
        drift_numbers: a coefficient for each tree of the drift.
        noise_numbers: the same for the noise.
        noise_scale: what the centred normals of the noise are multiplied with.
        eps: of `sqrt(|g|^2 + eps^2)`.
        lam: of the Gibbs weights.
        own: the rule's own numbers, by name.
        listed: all micro-batches, where an expectation runs over them; None where there is none, or
            where they are drawn.
        sample_loss: `(params, sample) -> scalar`.
        chunk: samples per chunk of per-sample work.
        drift_trees: the trees of the drift.
        noise_trees: those of the noise, each with a marked sample.
        sampled: whether steps use probes where the exact drift costs O(n^2).
        draw: how fresh micro-batches are drawn; None where they are listed.
        norms: how norms of gradients are estimated.
    """

    data: PyTree
    drift_numbers: Any
    noise_numbers: Any
    noise_scale: Any
    eps: Any
    lam: Any
    own: dict[str, Any]
    listed: MicroBatches | None
    sample_loss: Function
    chunk: int
    drift_trees: tuple[Tree, ...]
    noise_trees: tuple[Tree, ...]
    sampled: bool
    draw: FreshBatches | None
    norms: NormEstimate | None

    def now(self) -> TreeKernel:
        return replace(self, sample_loss=self.sample_loss.now())

    def drift(self, x: PyTree) -> PyTree:
        return self._combine(self.drift_trees, self.drift_numbers, x, self._all())

    def step_drift(self, x: PyTree, key: jax.Array) -> PyTree:
        # with a key of their own: the probes are drawn from `key` itself
        micro_batches = (
            self.listed if self.draw is None else self.draw.for_drift(jax.random.fold_in(key, 1))
        )
        return self._combine(
            self.drift_trees,
            self.drift_numbers,
            x,
            micro_batches,
            key=key if self.sampled else None,
        )

    def apply_noise(self, x: PyTree, xi: jax.Array) -> PyTree:
        return self._noise(x, xi, self._all())

    def step_noise(self, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        return self._noise(x, xi, self.listed if self.draw is None else self.draw(key))

    def step_both(
        self, x: PyTree, dt: Any, xi: jax.Array, keys: tuple[jax.Array, jax.Array]
    ) -> PyTree:
        # a drift is content with fewer drawn micro-batches than the noise, so two evaluations with
        # as many as each needs cost less than one with the larger number
        if self.draw is not None or not self.noise_trees:
            return step_apart(self, x, dt, xi, keys)
        # one evaluation: gradients, and the passes over the data, serve both
        coefficients = jnp.concatenate(
            [dt * jnp.asarray(self.drift_numbers), jnp.asarray(self.noise_numbers)]
        )
        key = keys[1] if self.sampled else None
        return self._combine(
            self.drift_trees + self.noise_trees,
            coefficients,
            x,
            self.listed,
            mark=self._weights(xi),
            key=key,
        )

    @property
    def rest(self) -> PyTree:
        return self.sample_loss.rest

    def working_bytes(self, x0: PyTree) -> int:
        """A vector for each sample of a chunk, or what the layers put out for it where no such
        vectors are formed.
        """
        first, leaves = jax.tree.map(lambda leaf: leaf[0], self.data), jax.tree.leaves(x0)
        layers = dense_layers(self.sample_loss, x0, first)
        half = computes_in_half(self.sample_loss, x0, self.data)
        trees = (*self.drift_trees, *self.noise_trees)
        if not layers or half or any(forms_vectors(tree, self.sampled) for tree in trees):
            return _bytes(x0) * self.chunk
        each = sum(prod(out.shape) for out in layers.values()) + sum(
            leaf.size for k, leaf in enumerate(leaves) if k not in layers
        )
        n = jax.tree.leaves(self.data)[0].shape[0]
        samples = min(n, samples_without_vectors(layers, self.chunk, x0))
        return int(_bytes(x0) + jnp.result_type(*leaves).itemsize * each * samples)

    def _all(self) -> MicroBatches | None:
        """All micro-batches, for an exact expectation."""
        if self.draw is not None:
            raise ValueError(
                f"this SDE draws {self.draw.count} fresh micro-batches a step, so its exact"
                " expectation is not known: use step_drift or step_noise with a key, or bind with"
                " expectation='exact' where the micro-batches can be listed"
            )
        return self.listed

    def _noise(self, x: PyTree, xi: jax.Array, micro_batches: MicroBatches | None) -> PyTree:
        if not self.noise_trees:
            return jax.tree.map(jnp.zeros_like, x)
        return self._combine(
            self.noise_trees, self.noise_numbers, x, micro_batches, mark=self._weights(xi)
        )

    def _weights(self, xi: jax.Array) -> jax.Array:
        """The weights of the samples in the noise, of mean 0."""
        # sum_i (xi_i - mean xi) h(i) has the covariance n Cov_i h, and eta c_b Cov_i h is wanted:
        # the scale is sqrt(eta c_b / n)
        xi = wide(xi)
        weights: jax.Array = (xi - jnp.mean(xi)) * self.noise_scale
        return weights

    def _combine(
        self,
        trees: tuple[Tree, ...],
        coefficients: jax.Array | np.ndarray,
        x: PyTree,
        micro_batches: MicroBatches | None,
        *,
        mark: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> PyTree:
        return evaluate_trees(
            trees,
            coefficients,
            Samples(self.sample_loss, self.data, self.chunk),
            x,
            mark=mark,
            key=key,
            micro_batches=micro_batches,
            norms=Norms(self.eps, self.lam, self.norms, self.own),
        )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["drift_arrays", "noise_arrays"],
    meta_fields=["drift_fn", "noise_fn", "batched"],
)
@dataclass(frozen=True, eq=False)
class WrittenKernel:
    """An SDE given as two functions; its numbers are the arrays that they hold.

    Args:
        drift_arrays: those of the drift, such as the weights of a module; see
            :meth:`sdesam._util.functions.Function.apart`.
        noise_arrays: those of the noise.
        drift_fn: `x -> B(x)` with holes for its arrays.
        noise_fn: `(x, xi) -> A(x) xi` with holes for its arrays.
        batched: whether both take many paths at once.
    """

    drift_arrays: list[Any]
    noise_arrays: list[Any]
    drift_fn: Function
    noise_fn: Function
    batched: bool

    @classmethod
    def of(
        cls,
        drift: Callable[..., Any],
        apply_noise: Callable[..., Any],
        batched: bool,
        rest: PyTree = None,
    ) -> WrittenKernel:
        """A kernel of two functions; `rest` is what the start has beside arrays."""
        drift_fn, drift_arrays = Function.apart(drift, rest)
        noise_fn, noise_arrays = Function.apart(apply_noise, rest)
        return cls(drift_arrays, noise_arrays, drift_fn, noise_fn, batched)

    def now(self) -> WrittenKernel:
        return replace(self, drift_fn=self.drift_fn.now(), noise_fn=self.noise_fn.now())

    def drift(self, x: PyTree) -> PyTree:
        return self._of_one(WrittenKernel.drifts, x) if self.batched else self.drifts(x)

    def step_drift(self, x: PyTree, key: jax.Array) -> PyTree:
        return self.drift(x)

    def apply_noise(self, x: PyTree, xi: jax.Array) -> PyTree:
        return self._of_one(WrittenKernel.noises, x, xi) if self.batched else self.noises(x, xi)

    def step_noise(self, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        return self.apply_noise(x, xi)

    def step_both(
        self, x: PyTree, dt: Any, xi: jax.Array, keys: tuple[jax.Array, jax.Array]
    ) -> PyTree:
        return step_apart(self, x, dt, xi, keys)

    @property
    def rest(self) -> PyTree:
        return self.drift_fn.rest

    def working_bytes(self, x0: PyTree) -> int:
        return _bytes(x0)

    def drifts(self, x: PyTree) -> PyTree:
        """`B(x)` as the user's function gives it, of one path or of many."""
        return self._vector("drift(x0)", self.drift_fn.filled(self.drift_arrays), x)

    def noises(self, x: PyTree, xi: jax.Array) -> PyTree:
        """`A(x) xi` in the same way."""
        return self._vector("apply_noise(x0, xi)", self.noise_fn.filled(self.noise_arrays), x, xi)

    def _of_one(self, of_many: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
        """A method for many paths at once, for one path."""

        def fn(arrays: tuple[list[Any], list[Any]], *arguments: PyTree) -> PyTree:
            drift_arrays, noise_arrays = arrays
            kernel = replace(self, drift_arrays=drift_arrays, noise_arrays=noise_arrays)
            return of_many(kernel, *arguments)

        return _for_many(fn)((self.drift_arrays, self.noise_arrays), *arguments)

    def _vector(self, what: str, fn: Callable[..., Any], x: PyTree, *xi: jax.Array) -> PyTree:
        """What a function gives as a vector of the structure, the shapes and the precision of the
        state, or a sentence saying why it gives none.
        """
        try:
            value = bare(fn(x, *xi), self.drift_fn.rest)
        except Exception as error:
            raise failure(what, error) from error
        if shapes(value) != shapes(x):
            behind = (
                f" behind a leading axis of {len(jax.tree.leaves(x)[0])} paths"
                if self.batched
                else ""
            )
            raise ValueError(
                f"{what} must have the shapes of x0{behind}, {describe(x)}, but it returns"
                f" {describe(value)}"
            )
        kinds = (jnp.floating, jnp.integer)
        if not all(
            numeric(leaf) and any(jnp.issubdtype(jnp.result_type(leaf), kind) for kind in kinds)
            for leaf in jax.tree.leaves(value)
        ):
            raise TypeError(f"{what} must hold real numbers, but it returns {describe(value)}")
        return like(jax.tree.map(jnp.asarray, value), x)


def _bytes(x: PyTree) -> int:
    """Memory of one vector with the structure of `x`."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(x))


def step_apart(
    kernel: Kernel, x: PyTree, dt: Any, xi: jax.Array, keys: tuple[jax.Array, jax.Array]
) -> PyTree:
    """Drift and noise of a step by an evaluation each; see :meth:`Kernel.step_both`."""
    noise, drift = kernel.step_noise(x, xi, keys[0]), kernel.step_drift(x, keys[1])
    return jax.tree.map(lambda b, s: dt * b + s, drift, noise)


# An example. The drift `X -> -X @ A` is written for many paths, X of shape (paths, d). The engine
# and the user call the drift of one path, x of shape (d,), and the engine maps it over its paths.
# jax.vmap of `x -> (-x[None] @ A)[0]` would give products of a row and a matrix, one for each path.
# So the rule for vmap is given by hand: it calls the user's function once, with all paths.
#
#     one(arrays, x)               x: (d,)        -> fn(arrays, x[None])[0], a batch of one path
#     vmap(one, (None, 0))(X)      X: (paths, d)  -> fn(arrays, X), one product of matrices
#
# The arrays are arguments and not captured: jax refuses a rule for vmap that captures what another
# transformation maps or differentiates.


def _for_many(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of arrays and of many paths at once as a function of one path, which jax.vmap
    turns back into `fn` itself.
    """

    @custom_vmap
    def one(arrays: Any, *arguments: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: leaf[0], fn(arrays, *jax.tree.map(lambda leaf: leaf[None], arguments))
        )

    @one.def_vmap
    def many(size: int, mapped: Any, arrays: Any, *arguments: PyTree) -> Any:
        # what all paths share, such as the state in a covariance, has no axis of paths yet
        def spread(leaf: jax.Array, has_axis: bool) -> jax.Array:
            return leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))

        out = fn(arrays, *jax.tree.map(spread, arguments, tuple(mapped[1:])))
        return out, jax.tree.map(lambda leaf: True, out)

    return one
