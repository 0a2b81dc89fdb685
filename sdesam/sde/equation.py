"""An SDE as an object: drift, noise and covariance as jax functions, and where it starts."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam._util.functions import compiled
from sdesam.ensemble import check_key
from sdesam.problems import FiniteSum
from sdesam.problems.arrays import check_structure, parameters
from sdesam.sampling import Hyperparameters
from sdesam.sde._kernels import Kernel, TreeKernel, WrittenKernel
from sdesam.sde.by_numbers import DirectionKernel, from_direction
from sdesam.sde.written import check_written

PyTree = Any


class Source(NamedTuple):
    """Where an SDE comes from. Nothing is computed with it.

    Args:
        problem: the finite sum whose observables have names; None where there is none.
        config: what to record of the SDE with each of its results.
    """

    problem: FiniteSum | None
    config: dict[str, Any]


_READING: ContextVar[tuple[int, ...]] = ContextVar("_READING", default=())
"""The SDEs whose functions are being read, by `id`."""
_BY_HAND, _OF_JAX = Source(None, {"sde": "written by hand"}), Source(None, {"sde": "a pytree"})


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
        source: where the SDE comes from; left out, it is written by hand.

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

    Derived SDEs come from :meth:`sdesam.symbolic.ModifiedEquation.bind`; that of any optimizer's
    direction comes from :meth:`from_step`.

    An SDE is a pytree: its numbers and data are leaves, and its functions and trees are its
    structure. `jax.jit(lambda sde, x: sde.drift(x))` compiles once for SDEs that differ in numbers.

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
        source: Source = _BY_HAND,
    ):
        kernel = _kernel_of(drift, apply_noise)
        if kernel is None:
            kernel, x0 = _written(drift, apply_noise, noise_shape, x0, bool(batched))
        self._kernel = kernel
        self.x0, self.noise_shape = x0, tuple(noise_shape)
        self.problem, self.config = source.problem, dict(source.config)

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        noise_shape: tuple[int, ...],
        x0: PyTree,
        source: Source = _OF_JAX,
    ) -> SDE:
        """The SDE of a kernel, which is not checked: what :meth:`ModifiedEquation.bind` makes, and
        what jax puts together again from numbers.
        """
        return cls(kernel.drift, kernel.apply_noise, noise_shape, x0, source=source)

    @classmethod
    def from_step(
        cls,
        direction: Callable[[PyTree, PyTree, Any], PyTree],
        problem: FiniteSum,
        lr: float,
        rho: float | None = None,
        batch: int = 1,
        micro: int | None = None,
        *,
        replace: bool = True,
        order: tuple[int, int] = (2, 3),
        expectation: str = "sampled",
        micro_batches: int | None = None,
    ) -> SDE:
        """The SDE of any optimizer's direction that is smooth in `rho`, by differentiating it.

        It is for rules that have no trees, and a second way to the SDE of those that have.
        One step is `x+ = x - lr G`, `G` the mean over the `b/m` micro-batches of `direction`. Its
        Taylor coefficients `F_(I,j)` in `rho` at 0 are nested derivatives, `Gbar_j` their means
        over all micro-batches, and

            B     = -sum_j rho^j Gbar_j - (lr/2) sum_j rho^j sum_k (D Gbar_k) Gbar_(j-k)
            A A^T = lr Cov(G)

        with the powers that the order keeps, `Cov(G)` to `rho^1`. No coefficient is typed in. `lr`
        and `rho` are runtime values: others compile nothing anew.

        Args:
            direction: `(x, samples, rho) -> F_I(x)`, a jax function: the parameters, with the
                structure of `problem.x0`; the samples of ONE micro-batch, `problem.data` with a
                leading axis of any length `m`; a number. It returns a vector like `x`, the
                direction of that micro-batch, for example `g(x + rho * g(x, samples), samples)`
                with `g` the gradient of the mean loss of the samples. It is called with `rho` near
                0 alone, must be smooth in `x` and `rho` there, and deterministic; it may read more,
                such as `problem.grad`.
            problem: the finite sum.
            lr: `eta`.
            rho: the radius; 0 for a direction without one.
            batch: `b`.
            micro: `m`; left out, the mini-batch.
            replace: whether mini-batches are drawn with replacement.
            order: `(alpha, beta)`, as for :func:`sdesam.derive`.
            expectation: `"exact"` lists all micro-batches; `"sampled"` lists them where they are no
                more than the samples (or 64), else each step draws fresh ones, unbiased in drift
                and noise, and what is known exactly at `rho^0` is not drawn.
            micro_batches: how many fresh micro-batches a step draws for its noise, `n/2` (at least
                64) if left out; an eighth of that for each drift.

        Returns:
            An SDE. Its noise has one normal number for each sample. Where `direction` at `rho = 0`
            is no mean over samples, as in normalised gradient descent, it has one for each
            micro-batch.

        Raises:
            TypeError: no function, no real numbers.
            ValueError: a direction of another structure, that is not finite or not smooth at the
                start, not deterministic, or not made for micro-batches of any size; a loss with
                kinks at an order that asks for three derivatives (kinks of the direction itself in
                `x`, away from the start, are not looked for); sizes that do not fit, too many
                micro-batches to list; `rho` left out.

        Source: Li, Tai & E 2019, "Stochastic modified equations and dynamics of stochastic gradient
        algorithms I"; `docs/theory.md`, section 9.

        >>> import sdesam
        >>> problem = sdesam.problems.quadratic()
        >>> def gradient(x, samples):
        ...     losses = jax.vmap(problem.sample_loss, (None, 0))
        ...     return jax.grad(lambda x: jnp.mean(losses(x, samples)))(x)
        >>> def two_step_ascent(x, samples, rho):
        ...     once = gradient(x, samples)
        ...     twice = once + gradient(x + rho * once, samples)
        ...     return gradient(x + rho * twice, samples)
        >>> sde = SDE.from_step(two_step_ascent, problem, lr=0.1, rho=0.1, batch=4, micro=2)
        >>> sde.drift(sde.x0).shape, sde.noise_shape
        ((2,), (8,))
        """
        step = Hyperparameters(lr, rho, batch, micro, replace)
        kernel, noise_shape, config = from_direction(
            direction, problem, step, order, expectation, micro_batches
        )
        return cls.of(kernel, noise_shape, problem.x0, Source(problem, config))

    @property
    def kernel(self) -> Kernel:
        """The functions of the SDE with their numbers, and with what the functions read at
        present.
        """
        self._kernel = self._kernel.now()
        return self._kernel

    @cached_property
    def working_bytes(self) -> int:
        """Memory of one intermediate value of a step, for all samples that are looked at
        together.
        """
        return self._kernel.working_bytes(self.x0)

    def __reads__(self) -> tuple[Any, ...]:
        # A function that reads this SDE depends on what the functions of this SDE read. One of them
        # may be that function, as in a notebook: `drift` reads the global `sde`, which was another
        # SDE when `drift` was written and is this one now. The second time round it ends here.
        reading = _READING.get()
        if id(self) in reading:
            return (self.x0,)
        token = _READING.set((*reading, id(self)))
        try:
            return self.x0, self.kernel
        finally:
            _READING.reset(token)

    @property
    def vector_bytes(self) -> int:
        """Memory of one vector with the structure of `x0`."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.x0))

    def drift(self, x: PyTree) -> PyTree:
        """`B(x)`, the exact expectation; structure of `x`."""
        return _drift(self.kernel, self._check(x))

    def step_drift(self, x: PyTree, key: jax.Array) -> PyTree:
        """An unbiased and cheap draw of `B(x)`, which is what a step uses; `B(x)` itself with
        `expectation="exact"`.
        """
        return _step_drift(self.kernel, self._check(x), check_key(key))

    def apply_noise(self, x: PyTree, xi: jax.Array) -> PyTree:
        """`A(x) xi`, linear in `xi` (shape `noise_shape`)."""
        if jnp.shape(xi) != self.noise_shape:
            raise ValueError(
                f"xi has shape {jnp.shape(xi)}: it must have noise_shape={self.noise_shape}"
            )
        return _apply_noise(self.kernel, self._check(x), jnp.asarray(xi))

    def step_noise(self, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        """A draw of `A(x) xi`, unbiased given `xi`, which is what a step uses; `A(x) xi` itself
        unless micro-batches are drawn afresh.
        """
        if jnp.shape(xi) != self.noise_shape:
            raise ValueError(
                f"xi has shape {jnp.shape(xi)}: it must have noise_shape={self.noise_shape}"
            )
        return _step_noise(self.kernel, self._check(x), jnp.asarray(xi), check_key(key))

    def noise(self, x: PyTree, key: jax.Array) -> PyTree:
        """`A(x) xi` with `xi ~ N(0, I)` drawn from `key`; its covariance is :meth:`covariance`."""
        key_xi, key_step = jax.random.split(check_key(key))
        return self.step_noise(x, jax.random.normal(key_xi, self.noise_shape, _dtype(x)), key_step)

    def covariance(self, x: PyTree) -> jax.Array:
        """The diffusion matrix `A A^T` per unit of SDE time, learning rate included; dense, shape
        `(d, d)`, for small problems.

        For a derived SDE it is `eta c_b Cov_i h(i)`, the square of `h`, not truncated in `rho`.
        """
        matrix: jax.Array = _covariance(self.noise_shape, self.kernel, self._check(x))
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
        return check_structure(x, self.x0, self._kernel.rest)

    def __repr__(self) -> str:
        return f"SDE({', '.join(f'{name}={value}' for name, value in self.config.items())})"


# jax takes an SDE apart into the numbers of its kernel and its start. The problem and the record of
# hyperparameters stay behind, because nothing is computed with them. With the record two SDEs that
# differ in the learning rate would be of two structures, and a function of an SDE would be compiled
# for each. The record could also be wrong: jax.tree.map may have changed the numbers.
jax.tree_util.register_pytree_node(
    SDE,
    lambda sde: ((sde.kernel, sde.x0), sde.noise_shape),
    lambda noise_shape, parts: SDE.of(parts[0], noise_shape, parts[1]),
)


def _kernel_of(drift: Any, apply_noise: Any) -> Kernel | None:
    """The kernel whose methods both functions are; None where they are a user's."""
    owner = getattr(drift, "__self__", None)
    if isinstance(owner, TreeKernel | DirectionKernel | WrittenKernel):
        return owner if getattr(apply_noise, "__self__", None) is owner else None
    return None


def _written(
    drift: Callable[..., PyTree],
    apply_noise: Callable[..., PyTree],
    noise_shape: tuple[int, ...],
    x0: PyTree,
    batched: bool,
) -> tuple[WrittenKernel, PyTree]:
    """The kernel of two functions of a user and the arrays of the start, or one sentence saying
    what does not fit.
    """
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
    kernel = WrittenKernel.of(drift, apply_noise, batched, rest)
    # three paths tell the axis of paths from one of the state, or from one that is broadcast
    paths = (3,) if batched else ()
    at = (
        jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*paths, *leaf.shape)), start)
        if batched
        else start
    )
    check_written(kernel.drifts, kernel.noises, at, (*paths, *noise_shape))
    return kernel, start


def _dtype(x: PyTree) -> Any:
    return jnp.result_type(*jax.tree.leaves(x))


@compiled()
def _drift(kernel: Kernel, x: PyTree) -> PyTree:
    return kernel.drift(x)


@compiled()
def _step_drift(kernel: Kernel, x: PyTree, key: jax.Array) -> PyTree:
    return kernel.step_drift(x, key)


@compiled()
def _apply_noise(kernel: Kernel, x: PyTree, xi: jax.Array) -> PyTree:
    return kernel.apply_noise(x, xi)


@compiled()
def _step_noise(kernel: Kernel, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
    return kernel.step_noise(x, xi, key)


@compiled(static=1)
def _covariance(noise_shape: tuple[int, ...], kernel: Kernel, x: PyTree) -> jax.Array:
    size = int(np.prod(noise_shape))
    units = jnp.eye(size, dtype=_dtype(x)).reshape(size, *noise_shape)
    columns = jax.vmap(lambda xi: ravel_pytree(kernel.apply_noise(x, xi))[0])(units)
    return columns.T @ columns
