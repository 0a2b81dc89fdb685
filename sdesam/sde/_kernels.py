"""The functions of an SDE apart from its numbers: of a derived one, and of one written by hand."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from sdesam._functions import Function, bare, failure
from sdesam._precision import like, wide
from sdesam.problems.arrays import describe, numeric, shapes
from sdesam.sde.compile import MicroBatches, Norms, Samples, evaluate_trees
from sdesam.symbolic import Tree
from sdesam.variants import NormEstimate

PyTree = Any


class Kernel(Hashable, Protocol):
    """The functions of an SDE, apart from their numbers; hashable, so that SDEs that differ in
    numbers share compiled code.
    """

    def now(self) -> Kernel:
        """This kernel, with what its functions read at present."""
        ...

    def drift(self, params: Any, x: PyTree) -> PyTree:
        """The drift `B(x)`."""
        ...

    def step_drift(self, params: Any, x: PyTree, key: jax.Array) -> PyTree:
        """An unbiased draw of `B(x)`."""
        ...

    def apply_noise(self, params: Any, x: PyTree, xi: jax.Array) -> PyTree:
        """`A(x) xi`."""
        ...

    def step_noise(self, params: Any, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        """An unbiased draw of `A(x) xi` given `xi`."""
        ...

    def step_both(
        self, params: Any, x: PyTree, dt: Any, xi: jax.Array, keys: tuple[jax.Array, jax.Array]
    ) -> PyTree:
        """`dt` times a draw of `B(x)`, and one of `A(x) xi`; the keys are those of noise and
        drift.
        """
        ...


class SDENumbers(NamedTuple):
    """What distinguishes two SDEs with one kernel: all runtime values, so that a sweep compiles
    once.
    """

    data: PyTree
    drift: np.ndarray
    noise: np.ndarray
    noise_scale: float
    eps: float
    lam: float
    micro_batches: MicroBatches | None
    own: dict[str, float]


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


@dataclass(frozen=True)
class TreeKernel:
    """A derived SDE on a finite sum."""

    sample_loss: Function
    chunk: int
    drift_trees: tuple[Tree, ...]
    noise_trees: tuple[Tree, ...]
    sampled: bool
    draw: FreshBatches | None
    norms: NormEstimate | None

    def now(self) -> TreeKernel:
        return replace(self, sample_loss=self.sample_loss.now())

    def drift(self, params: SDENumbers, x: PyTree) -> PyTree:
        return self._combine(self.drift_trees, params.drift, params, x, self._listed(params))

    def step_drift(self, params: SDENumbers, x: PyTree, key: jax.Array) -> PyTree:
        micro_batches = (
            params.micro_batches
            if self.draw is None
            else self.draw.for_drift(jax.random.fold_in(key, 1))
        )
        return self._combine(
            self.drift_trees,
            params.drift,
            params,
            x,
            micro_batches,
            key=key if self.sampled else None,
        )

    def apply_noise(self, params: SDENumbers, x: PyTree, xi: jax.Array) -> PyTree:
        return self._noise(params, x, xi, self._listed(params))

    def step_noise(self, params: SDENumbers, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        return self._noise(
            params, x, xi, params.micro_batches if self.draw is None else self.draw(key)
        )

    def step_both(
        self,
        params: SDENumbers,
        x: PyTree,
        dt: Any,
        xi: jax.Array,
        keys: tuple[jax.Array, jax.Array],
    ) -> PyTree:
        if self.draw is not None or not self.noise_trees:
            return step_apart(self, params, x, dt, xi, keys)
        # one evaluation: gradients, and the passes over the data, serve both
        coefficients = jnp.concatenate([dt * jnp.asarray(params.drift), jnp.asarray(params.noise)])
        key = keys[1] if self.sampled else None
        return self._combine(
            self.drift_trees + self.noise_trees,
            coefficients,
            params,
            x,
            params.micro_batches,
            mark=self._weights(params, xi),
            key=key,
        )

    def _listed(self, params: SDENumbers) -> MicroBatches | None:
        if self.draw is not None:
            raise ValueError(
                f"this SDE draws {self.draw.count} fresh micro-batches a step, so its exact"
                " expectation is not known: use step_drift or step_noise with a key, or bind with"
                " expectation='exact' where the micro-batches can be listed"
            )
        return params.micro_batches

    def _noise(
        self, params: SDENumbers, x: PyTree, xi: jax.Array, micro_batches: MicroBatches | None
    ) -> PyTree:
        if not self.noise_trees:
            return jax.tree.map(jnp.zeros_like, x)
        return self._combine(
            self.noise_trees, params.noise, params, x, micro_batches, mark=self._weights(params, xi)
        )

    @staticmethod
    def _weights(params: SDENumbers, xi: jax.Array) -> jax.Array:
        """The weights of the samples in the noise, of mean 0."""
        xi = wide(xi)
        return (xi - jnp.mean(xi)) * params.noise_scale

    def _combine(
        self,
        trees: tuple[Tree, ...],
        coefficients: jax.Array | np.ndarray,
        params: SDENumbers,
        x: PyTree,
        micro_batches: MicroBatches | None,
        *,
        mark: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> PyTree:
        samples = Samples(self.sample_loss, params.data, self.chunk)
        norms = Norms(params.eps, params.lam, self.norms, params.own)
        return evaluate_trees(
            trees,
            coefficients,
            samples,
            x,
            mark=mark,
            key=key,
            micro_batches=micro_batches,
            norms=norms,
        )


@dataclass(frozen=True)
class WrittenKernel:
    """An SDE given as two functions; its numbers are the arrays that they hold."""

    drift_fn: Function
    noise_fn: Function
    batched: bool

    def now(self) -> WrittenKernel:
        return WrittenKernel(self.drift_fn.now(), self.noise_fn.now(), self.batched)

    def drift(self, params: Any, x: PyTree) -> PyTree:
        return (_for_many(self.drifts) if self.batched else self.drifts)(params, x)

    def step_drift(self, params: Any, x: PyTree, key: jax.Array) -> PyTree:
        return self.drift(params, x)

    def apply_noise(self, params: Any, x: PyTree, xi: jax.Array) -> PyTree:
        return (_for_many(self.noises) if self.batched else self.noises)(params, x, xi)

    def step_noise(self, params: Any, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        return self.apply_noise(params, x, xi)

    def step_both(
        self, params: Any, x: PyTree, dt: Any, xi: jax.Array, keys: tuple[jax.Array, jax.Array]
    ) -> PyTree:
        return step_apart(self, params, x, dt, xi, keys)

    def drifts(self, params: Any, x: PyTree) -> PyTree:
        """`B(x)` as the user's function gives it, of one path or of many."""
        return self._vector("drift(x0)", self.drift_fn.filled(params[0]), x)

    def noises(self, params: Any, x: PyTree, xi: jax.Array) -> PyTree:
        """`A(x) xi` in the same way."""
        return self._vector("apply_noise(x0, xi)", self.noise_fn.filled(params[1]), x, xi)

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


def step_apart(
    kernel: Kernel,
    params: Any,
    x: PyTree,
    dt: Any,
    xi: jax.Array,
    keys: tuple[jax.Array, jax.Array],
) -> PyTree:
    noise, drift = kernel.step_noise(params, x, xi, keys[0]), kernel.step_drift(params, x, keys[1])
    return jax.tree.map(lambda b, s: dt * b + s, drift, noise)


def _for_many(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of numbers and of many paths at once as a function of one path, which jax.vmap
    turns back into `fn` itself.
    """

    @custom_vmap
    def one(params: Any, *arguments: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: leaf[0], fn(params, *jax.tree.map(lambda leaf: leaf[None], arguments))
        )

    @one.def_vmap
    def many(size: int, mapped: Any, params: Any, *arguments: PyTree) -> Any:
        def spread(leaf: jax.Array, has_axis: bool) -> jax.Array:
            return leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))

        out = fn(params, *jax.tree.map(spread, arguments, tuple(mapped[1:])))
        return out, jax.tree.map(lambda leaf: True, out)

    return one
