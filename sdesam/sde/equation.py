"""An SDE as jax functions: derived from a variant and bound to a problem, or written by hand.

`dX = B(X) dt + A(X) dW`, with `A(x) xi` = `apply_noise(x, xi)` linear in `xi`. No matrix is formed
unless `covariance` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from math import prod, sqrt
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.flatten_util import ravel_pytree

from sdesam._checks import check_int
from sdesam._functions import Function, bare, compiled, failure
from sdesam._precision import like, wide
from sdesam.discrete.kernel import check_delta_on
from sdesam.engine import check_key
from sdesam.problems import FiniteSum, check_problem
from sdesam.problems.arrays import check_structure, describe, numeric, parameters, shapes
from sdesam.problems.finite_sum import computes_in_half, samples_without_vectors
from sdesam.problems.outer_products import dense_layers
from sdesam.sampling import (
    Hyperparameters,
    Sampling,
    Step,
    count_micro_batches,
    list_micro_batches,
    told_count,
)
from sdesam.sde.compile import MicroBatches, Norms, Samples, evaluate_trees, forms_vectors
from sdesam.sde.written import check_written
from sdesam.symbolic import MARK, ModifiedEquation, Part, Tree, derive, evaluate
from sdesam.variants import NormEstimate

PyTree = Any

MOST_MICRO_BATCHES = 5000
"""More micro-batches than this are not listed."""

_FEW = 64
"""So few micro-batches are listed even where they are more than the samples."""


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


class _SDENumbers(NamedTuple):
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


@dataclass(frozen=True)
class _Draw:
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
    def for_drift(self) -> _Draw:
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
class _TreeKernel:
    """A derived SDE on a finite sum."""

    sample_loss: Function
    chunk: int
    drift_trees: tuple[Tree, ...]
    noise_trees: tuple[Tree, ...]
    sampled: bool
    draw: _Draw | None
    norms: NormEstimate | None

    def now(self) -> _TreeKernel:
        return replace(self, sample_loss=self.sample_loss.now())

    def drift(self, params: _SDENumbers, x: PyTree) -> PyTree:
        return self._combine(self.drift_trees, params.drift, params, x, self._listed(params))

    def step_drift(self, params: _SDENumbers, x: PyTree, key: jax.Array) -> PyTree:
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

    def apply_noise(self, params: _SDENumbers, x: PyTree, xi: jax.Array) -> PyTree:
        return self._noise(params, x, xi, self._listed(params))

    def step_noise(self, params: _SDENumbers, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        return self._noise(
            params, x, xi, params.micro_batches if self.draw is None else self.draw(key)
        )

    def step_both(
        self,
        params: _SDENumbers,
        x: PyTree,
        dt: Any,
        xi: jax.Array,
        keys: tuple[jax.Array, jax.Array],
    ) -> PyTree:
        if self.draw is not None or not self.noise_trees:
            return _step_apart(self, params, x, dt, xi, keys)
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

    def _listed(self, params: _SDENumbers) -> MicroBatches | None:
        if self.draw is not None:
            raise ValueError(
                f"this SDE draws {self.draw.count} fresh micro-batches a step, so its exact"
                " expectation is not known: use step_drift or step_noise with a key, or bind with"
                " expectation='exact' where the micro-batches can be listed"
            )
        return params.micro_batches

    def _noise(
        self, params: _SDENumbers, x: PyTree, xi: jax.Array, micro_batches: MicroBatches | None
    ) -> PyTree:
        if not self.noise_trees:
            return jax.tree.map(jnp.zeros_like, x)
        return self._combine(
            self.noise_trees, params.noise, params, x, micro_batches, mark=self._weights(params, xi)
        )

    @staticmethod
    def _weights(params: _SDENumbers, xi: jax.Array) -> jax.Array:
        """The weights of the samples in the noise, of mean 0."""
        xi = wide(xi)
        return (xi - jnp.mean(xi)) * params.noise_scale

    def _combine(
        self,
        trees: tuple[Tree, ...],
        coefficients: jax.Array | np.ndarray,
        params: _SDENumbers,
        x: PyTree,
        micro_batches: MicroBatches | None,
        *,
        mark: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> PyTree:
        samples = Samples(self.sample_loss, params.data, self.chunk)
        norms = Norms(params.eps, params.lam, self.norms)
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
class _WrittenKernel:
    """An SDE given as two functions; its numbers are the arrays that they hold."""

    drift_fn: Function
    noise_fn: Function
    batched: bool

    def now(self) -> _WrittenKernel:
        return _WrittenKernel(self.drift_fn.now(), self.noise_fn.now(), self.batched)

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
        return _step_apart(self, params, x, dt, xi, keys)

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


def _step_apart(
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


class SDE:
    """`dX = drift(X) dt + apply_noise(X, dW)`.

    Args:
        drift: `x -> B(x)`, structure of `x`, per unit of SDE time, sign included.
        apply_noise: `(x, xi) -> A(x) xi`, linear in `xi`; a step adds `sqrt(dt)` times it,
            `xi ~ N(0, I)`. It is the product, not the coefficient `A(x)` or `G(x)` that torchsde
            and diffrax ask for.
        noise_shape: the shape of `xi`.
        x0: the start, any pytree of floating-point arrays, or a module of equinox: its
            floating-point arrays are the state, and functions get the module back.
        batched: `drift` and `apply_noise` take many paths at once: every array, `xi` too, has a
            leading axis of paths of any length, and each path must depend on itself alone. For
            functions written by hand as matrix products over all paths; `x0` has no such axis.

    Any callable will do as a function: a method, a module of equinox, a `functools.partial`. It
    must be pure: what it reads beside its arguments (globals, closures, attributes) is looked up
    anew with each call of the package, and what it changes is not seen. Arrays of a function that
    is a pytree are runtime values: others do not compile anew. What functions return is computed
    with in the precision of `x0`.

    Raises:
        TypeError: functions that cannot be called or return no real numbers, a start that holds no
            floating-point arrays.
        ValueError: functions of other shapes, noise that is not linear in `xi`, values at `x0` that
            are not finite.

    Derived SDEs come from :meth:`sdesam.symbolic.ModifiedEquation.bind`.

    >>> ou = SDE(lambda x: -x, lambda x, xi: xi, noise_shape=(2,), x0=jax.numpy.ones(2))
    >>> ou.covariance(ou.x0)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    >>> A = jax.numpy.array([[2.0, 1.0], [1.0, 3.0]])
    >>> many = SDE(
    ...     lambda x: -x @ A, lambda x, xi: xi, noise_shape=(2,), x0=jax.numpy.ones(2), batched=True
    ... )
    >>> many.drift(many.x0)
    Array([-3., -4.], dtype=float32)
    """

    def __init__(
        self,
        drift: Callable[[PyTree], PyTree],
        apply_noise: Callable[[PyTree, jax.Array], PyTree],
        noise_shape: tuple[int, ...],
        x0: PyTree,
        *,
        batched: bool = False,
    ):
        for name, fn in (("drift", drift), ("apply_noise", apply_noise)):
            if not callable(fn):
                raise TypeError(f"{name}={fn!r}: it must be a function of the state")
        start, rest = parameters(x0)
        if not isinstance(noise_shape, (tuple, list)) or any(
            not isinstance(k, int) or k < 0 for k in noise_shape
        ):
            raise ValueError(
                f"noise_shape={noise_shape!r}: it must be a tuple of sizes, such as (3,), or () for"
                " one number"
            )
        (drift_fn, drift_arrays), (noise_fn, noise_arrays) = (
            Function.apart(drift, rest),
            Function.apart(apply_noise, rest),
        )
        kernel, params = (
            _WrittenKernel(drift_fn, noise_fn, bool(batched)),
            (
                drift_arrays,
                noise_arrays,
            ),
        )
        # three paths tell the axis of paths from one of the state, or from one that is broadcast
        paths = (3,) if batched else ()
        at = (
            jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*paths, *leaf.shape)), start)
            if batched
            else start
        )
        check_written(
            partial(kernel.drifts, params),
            partial(kernel.noises, params),
            at,
            (*paths, *noise_shape),
        )
        self._set(
            kernel, params, tuple(noise_shape), start, None, {"sde": "written by hand"}, rest=rest
        )

    def _set(
        self,
        kernel: Kernel,
        params: Any,
        noise_shape: tuple[int, ...],
        x0: PyTree,
        problem: FiniteSum | None,
        config: dict[str, Any],
        working_bytes: int | None = None,
        rest: PyTree = None,
    ) -> None:
        self._kernel, self.params, self.noise_shape = kernel, params, noise_shape
        self.x0, self.problem, self.config = x0, problem, config
        self.rest = rest
        """What the start has beside arrays; None where it has nothing."""
        self.working_bytes = self.vector_bytes if working_bytes is None else working_bytes
        """Memory of one intermediate value of a step, for all samples that are looked at
        together.
        """

    @property
    def kernel(self) -> Kernel:
        """The functions of the SDE, with what they read at present."""
        self._kernel = self._kernel.now()
        return self._kernel

    def __reads__(self) -> tuple[Any, ...]:
        return self._kernel, self.params

    @property
    def vector_bytes(self) -> int:
        """Memory of one vector with the structure of `x0`."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.x0))

    def drift(self, x: PyTree) -> PyTree:
        """`B(x)`, the exact expectation; structure of `x`."""
        return _drift(self.kernel, self.params, self._check(x))

    def step_drift(self, x: PyTree, key: jax.Array) -> PyTree:
        """An unbiased and cheap draw of `B(x)`, which is what a step uses; `B(x)` itself with
        `expectation="exact"`.
        """
        return _step_drift(self.kernel, self.params, self._check(x), check_key(key))

    def apply_noise(self, x: PyTree, xi: jax.Array) -> PyTree:
        """`A(x) xi`, linear in `xi` (shape `noise_shape`)."""
        if jnp.shape(xi) != self.noise_shape:
            raise ValueError(
                f"xi has shape {jnp.shape(xi)}: it must have noise_shape={self.noise_shape}"
            )
        return _apply_noise(self.kernel, self.params, self._check(x), jnp.asarray(xi))

    def step_noise(self, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        """A draw of `A(x) xi`, unbiased given `xi`, which is what a step uses; `A(x) xi` itself
        unless micro-batches are drawn afresh.
        """
        if jnp.shape(xi) != self.noise_shape:
            raise ValueError(
                f"xi has shape {jnp.shape(xi)}: it must have noise_shape={self.noise_shape}"
            )
        return _step_noise(
            self.kernel, self.params, self._check(x), jnp.asarray(xi), check_key(key)
        )

    def noise(self, x: PyTree, key: jax.Array) -> PyTree:
        """`A(x) xi` with `xi ~ N(0, I)` drawn from `key`; its covariance is :meth:`covariance`."""
        key_xi, key_step = jax.random.split(check_key(key))
        return self.step_noise(x, jax.random.normal(key_xi, self.noise_shape, _dtype(x)), key_step)

    def covariance(self, x: PyTree) -> jax.Array:
        """The diffusion matrix `A A^T` per unit of SDE time, learning rate included; dense, shape
        `(d, d)`, for small problems.

        For a derived SDE it is `eta c_b Cov_i h(i)`, the square of `h`, not truncated in `rho`.
        """
        matrix: jax.Array = _covariance(self.kernel, self.noise_shape, self.params, self._check(x))
        return matrix

    def to_diffrax(self, solver: Any, control: Any) -> Any:
        """The SDE as diffrax terms, `MultiTerm(ODETerm(B), ControlTerm(A, W))`, for one diffrax
        solver.

        The drift is the exact expectation. `A` is a linear operator that is never formed; for
        `diffrax.ItoMilstein` alone, which differentiates it, it is the dense matrix, and so for
        small problems (and, as diffrax says, for commutative noise).

        Args:
            solver: the diffrax solver that the terms are for: an Ito one (`diffrax.Euler`,
                `diffrax.ItoMilstein`); a Stratonovich one where the noise does not depend on `x`.
            control: a diffrax path with increments of shape `noise_shape`, such as
                `diffrax.VirtualBrownianTree(0, 1, 1e-3, sde.noise_shape, key)`. One key is one
                path: give each path its own.

        Returns:
            A `diffrax.MultiTerm`, to be used with `solver` and `y0=sde.x0`.

        Raises:
            ModuleNotFoundError: diffrax is not installed.
            TypeError: no SDE solver, or no diffrax path.
            ValueError: a Stratonovich solver where the noise depends on `x` (the message tells the
                conversion); a control of another shape.

        Source: Kidger 2021, arXiv 2202.02435, and the documentation of diffrax 0.7.

        >>> import diffrax
        >>> ou = SDE(lambda x: -x, lambda x, xi: 0.1 * xi, noise_shape=(2,), x0=jax.numpy.ones(2))
        >>> solver, path = diffrax.Euler(), diffrax.VirtualBrownianTree(
        ...     0, 1, 0.1, ou.noise_shape, jax.random.key(0)
        ... )
        >>> solution = diffrax.diffeqsolve(
        ...     ou.to_diffrax(solver, path), solver, 0, 1, dt0=0.25, y0=ou.x0
        ... )
        >>> solution.ys.shape
        (1, 2)
        """
        from sdesam.sde.diffrax import to_diffrax

        return to_diffrax(self, solver, control)

    def _check(self, x: PyTree) -> PyTree:
        return check_structure(x, self.x0, self.rest)

    def __repr__(self) -> str:
        return f"SDE({', '.join(f'{name}={value}' for name, value in self.config.items())})"


def bind(
    equation: ModifiedEquation,
    problem: FiniteSum,
    lr: float,
    rho: float | None = None,
    batch: int = 1,
    micro: int | None = None,
    expectation: str = "sampled",
    *,
    eps: float = 0.0,
    lam: float | None = None,
    norms: NormEstimate | None = None,
    micro_batches: int | None = None,
) -> SDE:
    """The SDE of a derived equation on a problem, as jax functions.

    Args:
        equation: from :func:`sdesam.derive`.
        problem: the finite sum.
        lr: `eta`.
        rho: perturbation radius; left out for a variant without perturbation.
        batch: `b`.
        micro: `m`; left out, the mini-batch.
        expectation: `"sampled"` steps with unbiased probes where the exact drift costs O(n^2), and
            with fresh micro-batches where a normalised variant has too many to list; `"exact"` does
            not.
        eps: of the normaliser `sqrt(|.|^2 + eps^2)`. At `eps = 0` a vanishing gradient perturbs
            nothing, and the theory, which asks for smooth coefficients, holds only where no
            gradient vanishes.
        lam: inverse temperature of the Gibbs weights, for rw-sam alone.
        norms: how rw-sam estimates gradient norms.
        micro_batches: how many fresh micro-batches a step draws, for SAM, m-SAM and RW-SAM. Left
            out, all are listed where they are no more than the samples (or 64), else `n/2` (at
            least 64) are drawn for the noise and an eighth of that for each drift. What is drawn is
            unbiased in drift and noise; it adds to the noise's covariance a part of size
            `rho^2 n / micro_batches`, below the kept order: 5 % on digits at `rho = 0.1`, where
            with an eighth as many, 43 %, it shifted the loss by 0.3 %
            (`experiments/fresh_micro_batches.py`).

    Raises:
        ValueError: sizes that do not fit, `rho < 0`, `lr <= 0`, a loss that is not smooth enough
            for the order, too many micro-batches to list.

    Changing `lr`, `rho`, `eps` or `lam` does not compile anew; nor does changing `batch` or `micro`
    but for SAM, m-SAM and RW-SAM.

    >>> import sdesam
    >>> sde = sdesam.derive("m-usam").bind(
    ...     sdesam.problems.quadratic(), lr=0.1, rho=0.1, batch=4, micro=2
    ... )
    >>> sde.drift(sde.x0).shape, sde.noise_shape
    ((2,), (8,))
    """
    check_problem(problem)
    if expectation not in ("exact", "sampled"):
        raise ValueError(f"expectation={expectation!r}: choose 'exact' or 'sampled'")
    given = Hyperparameters(lr, rho, batch, micro, equation.replace, eps, lam, norms)
    step = given.checked(equation.variant, problem.n)
    check_delta_on(step.norms, problem)
    lr, rho, sampling = step.lr, step.rho, step.sampling
    full = derive(equation.variant, equation.order, equation.replace)
    listed, draw = _micro_batches(full, problem.n, step, expectation, micro_batches)
    drift_trees, drift = _coefficients(
        equation.drift_parts, full.drift_parts, lr, rho, sampling, problem.n
    )
    noise_trees, noise = _coefficients(
        equation.noise_parts, full.noise_parts, lr, rho, sampling, problem.n
    )
    _check_smooth(equation, problem, (*drift_trees, *noise_trees))
    factor = evaluate(equation.noise_factor, sampling.batch, sampling.m, problem.n)
    kernel = _TreeKernel(
        problem.sample_loss,
        problem.chunk,
        drift_trees,
        noise_trees,
        expectation == "sampled",
        draw,
        step.norms,
    )
    noise_scale = sqrt(lr * factor / problem.n)
    numbers = _SDENumbers(problem.data, drift, noise, noise_scale, step.eps, step.lam, listed)
    config = {
        "variant": equation.variant.name,
        "order": list(equation.order),
        "without": list(equation.removed),
        "problem": problem.name,
        "samples": problem.n,
        "fingerprint": problem.fingerprint,
        "lr": lr,
        "rho": rho,
        "batch": sampling.batch,
        "micro": sampling.m,
        "replace": equation.replace,
        "expectation": expectation,
        **step.options(equation.variant),
    }
    if equation.whole_micro_batches:
        config["micro_batches"] = "all" if draw is None else draw.count
    sde = SDE.__new__(SDE)
    sde._set(
        kernel,
        numbers,
        (problem.n,),
        problem.x0,
        problem,
        config,
        _working_bytes(problem, kernel),
        problem.rest,
    )
    return sde


def _working_bytes(problem: FiniteSum, kernel: _TreeKernel) -> int:
    """A vector for each sample of a chunk, or what the layers put out for it where no such vectors
    are formed.
    """
    trees = (*kernel.drift_trees, *kernel.noise_trees)
    layers = dense_layers(problem.sample_loss, problem.x0, problem.sample(0))
    half = computes_in_half(problem.sample_loss, problem.x0, problem.data)
    if not layers or half or any(forms_vectors(tree, kernel.sampled) for tree in trees):
        return problem.vector_bytes * problem.chunk
    leaves = jax.tree.leaves(problem.x0)
    each = sum(prod(out.shape) for out in layers.values()) + sum(
        leaf.size for k, leaf in enumerate(leaves) if k not in layers
    )
    samples = min(problem.n, samples_without_vectors(layers, problem.chunk, problem.x0))
    return int(problem.vector_bytes + _dtype(problem.x0).itemsize * each * samples)


def _micro_batches(
    equation: ModifiedEquation, n: int, step: Step, expectation: str, count: int | None
) -> tuple[MicroBatches | None, _Draw | None]:
    """The micro-batches that an expectation runs over, all listed or a way to draw some, or neither
    where there is none.
    """
    if not equation.whole_micro_batches or not any(
        tree.micro_batches for part in equation.parts for tree in part.trees
    ):
        if count is not None:
            raise ValueError(
                f"micro_batches={count}: {equation.variant.name} at order {equation.order} has no"
                " expectation over whole micro-batches, so that none are drawn; leave"
                " micro_batches out"
            )
        return None, None
    m = step.sampling.m
    total = count_micro_batches(m, n, equation.replace)
    random = step.norms is not None and step.norms.random
    if expectation == "exact":
        if count is not None:
            raise ValueError(
                f"micro_batches={count}: an exact expectation lists all micro-batches; leave"
                " micro_batches out"
            )
        if random:
            raise ValueError(
                "the exact expectation over random directions is not known: use"
                " norms=NormEstimate(law='exact') or expectation='sampled'"
            )
        if total > MOST_MICRO_BATCHES:
            raise ValueError(
                f"n={n}, m={m} has {told_count(total)} micro-batches, more than the"
                f" {MOST_MICRO_BATCHES} that are listed: use expectation='sampled', or fewer"
                " samples"
            )
    if expectation == "exact" or (count is None and not random and total <= max(n, _FEW)):
        indices, probability = list_micro_batches(m, n, equation.replace)
        return MicroBatches(indices, probability), None
    return None, _Draw(
        check_int("micro_batches", max(_FEW, n // 2) if count is None else count, least=2),
        m,
        n,
        equation.replace,
        random,
    )


def _coefficients(
    parts: tuple[Part, ...],
    full: tuple[Part, ...],
    lr: float,
    rho: float,
    sampling: Sampling,
    n: int,
) -> tuple[tuple[Tree, ...], np.ndarray]:
    """The trees of some parts, each once, and their numbers.

    Trees that only the `full` equation has get the number 0: an equation with a term left out then
    shares its compiled code.
    """
    total: dict[Tree, float] = {tree: 0.0 for part in full for tree in part.trees} if parts else {}
    silent = (
        not sampling.replace and sampling.batch == n
    )  # every batch is the whole set: the influence h is not needed
    for part in parts:
        for tree, coefficient in part.trees.items():
            marked = any(node.colour == MARK for node in tree.nodes())
            exact = 0 if marked and silent else evaluate(coefficient, sampling.batch, sampling.m, n)
            total[tree] = total.get(tree, 0.0) + lr**part.term.eta * rho**part.term.rho * float(
                exact
            )
    return tuple(total), np.array(list(total.values()))


def _check_smooth(equation: ModifiedEquation, problem: FiniteSum, trees: tuple[Tree, ...]) -> None:
    """Third derivatives of a loss with kinks are not what the theory means by them."""
    highest = max((len(node.children) + 1 for tree in trees for node in tree.nodes()), default=1)
    if (equation.order[0] == 2 or highest >= 3) and problem.nonsmooth:
        raise ValueError(
            f"the loss of problem {problem.name!r} is not smooth enough for order {equation.order},"
            f" whose theory asks for three derivatives: it contains {', '.join(problem.nonsmooth)}"
            " (ReLU has such a kink); use tanh, gelu or softplus, or order (1, 2)"
        )


def _dtype(x: PyTree) -> Any:
    return jnp.result_type(*jax.tree.leaves(x))


@compiled(static=1)
def _drift(kernel: Kernel, params: Any, x: PyTree) -> PyTree:
    return kernel.drift(params, x)


@compiled(static=1)
def _step_drift(kernel: Kernel, params: Any, x: PyTree, key: jax.Array) -> PyTree:
    return kernel.step_drift(params, x, key)


@compiled(static=1)
def _apply_noise(kernel: Kernel, params: Any, x: PyTree, xi: jax.Array) -> PyTree:
    return kernel.apply_noise(params, x, xi)


@compiled(static=1)
def _step_noise(kernel: Kernel, params: Any, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
    return kernel.step_noise(params, x, xi, key)


@compiled(static=2)
def _covariance(kernel: Kernel, noise_shape: tuple[int, ...], params: Any, x: PyTree) -> jax.Array:
    size = int(np.prod(noise_shape))
    units = jnp.eye(size, dtype=_dtype(x)).reshape(size, *noise_shape)
    columns = jax.vmap(lambda xi: ravel_pytree(kernel.apply_noise(params, x, xi))[0])(units)
    return columns.T @ columns
