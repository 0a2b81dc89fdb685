"""Finite sums: a per-sample loss, a data set, a start, and what to observe along the way.

A :class:`FiniteSum` checks what a user hands in, once. The sums are in `means`, what is observed
along a run is in `observing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam._util.checks import check_int, check_positive
from sdesam._util.functions import Function, compiled, failure
from sdesam._util.keys import seed_key
from sdesam._util.names import unknown
from sdesam._util.process import check_not_forked
from sdesam.autodiff.smoothness import nonsmooth_operations
from sdesam.problems.arrays import (
    check_structure,
    describe,
    numeric,
    parameters,
    refuse_traced,
    samples,
    where_not_finite,
)
from sdesam.problems.means import (
    SampleLoss,
    hessian_product,
    mean_grad,
)
from sdesam.problems.observing import (
    BUILT_IN,
    Observer,
    check_observables,
    make_observer,
    observe,
)

PyTree = Any

_CHUNK_NUMBERS = 2**20
"""Numbers (samples times parameters) that one chunk of per-sample vectors may hold: 4 MB in
float32.
"""


class FiniteSum:
    """`f(x) = (1/n) sum_i f_i(x)`: a per-sample loss over a data set.

    Args:
        sample_loss: `(params, sample) -> scalar`, written with jax.numpy; `sample` is `data`
            without its leading axis. Any callable will do: a function, a method, a module of
            equinox, a `functools.partial`. It must be pure. What it reads beside its arguments
            (globals, closures, attributes) is looked up anew with each call of the package, and
            what it changes is not seen.
        data: pytree of arrays whose leading axis is the sample, length `n`; a list of numbers,
            nested or not, is an array.
        x0: the start, any pytree of floating-point arrays, or a module of equinox: its
            floating-point arrays are the parameters, and functions get the module back. Results
            hold its arrays, as `equinox.partition` gives them.
        period: for problems on a torus, the period of every coordinate.
        observables: more named functions `params -> array` beside `loss`, `grad_norm2` and
            `trace_cov`, pure as the loss. One that holds arrays, such as images to test on, is best
            a `jax.tree_util.Partial` of a function of arrays and parameters, or a module: what is
            compiled serves other arrays too.
        name: for messages and stored results.
        chunk: samples per chunk of per-sample work; by default as many as keep a vector of each
            near 4 MB.

    Sums over samples are accumulated in float32 at least, and returned in the precision of the loss
    or of the parameters.

    Raises:
        TypeError: integer parameters, data or parameters that are no arrays, a function that cannot
            be called, numbers that jax traces.
        ValueError: data leaves of different length, no parameters, a loss that is not scalar or not
            finite at the start, a loss that does not have the stated period.

    >>> problem = FiniteSum(
    ...     lambda x, a: 0.5 * (x - a) ** 2, jax.numpy.array([0.0, 2.0]), jax.numpy.array(3.0)
    ... )
    >>> problem.n, float(problem.loss(problem.x0)), float(problem.trace_cov(problem.x0))
    (2, 2.5, 1.0)
    """

    def __init__(
        self,
        sample_loss: SampleLoss,
        data: PyTree,
        x0: PyTree,
        period: float | None = None,
        observables: Mapping[str, Callable[[Any], Any]] | None = None,
        *,
        name: str | None = None,
        chunk: int | None = None,
    ):
        if not callable(sample_loss):
            raise TypeError(
                f"sample_loss={sample_loss!r}: it must be a function (params, sample) -> scalar"
            )
        check_not_forked()
        self.name = name or getattr(sample_loss, "__name__", "user")
        self.data, self.n = samples(data)
        self.x0, self.rest = parameters(x0)
        self._loss = Function(sample_loss, self.rest)
        self.rest = self._loss.rest
        """What the start has beside arrays; None where it has nothing."""
        self._found: dict[str, tuple[Function, Any]] = {}
        if self._loss.traced:
            refuse_traced(f"{self._loss.traced[0]!r}, which the loss reads,")
        self.dim = sum(leaf.size for leaf in jax.tree.leaves(self.x0))
        self.period = period
        most = max(1, _CHUNK_NUMBERS // self.dim) if chunk is None else check_int("chunk", chunk)
        # nine samples, at most four at a time: three chunks of three and not 4 + 4 + 1. A rest of
        # another size would be compiled beside the loop.
        # as many chunks as `most` asks for, of even size
        self.chunk = -(-self.n // -(-self.n // most))
        self.observables = check_observables(observables or {})
        # a user's "loss" beside the built-in one would be two columns of one name in a result
        clash = sorted(set(BUILT_IN) & set(self.observables))
        if clash:
            raise ValueError(f"observable {clash[0]!r} is built in: choose another name")
        self._check_loss()

    @property
    def sample_loss(self) -> Function:
        """`(params, sample) -> scalar`, with what it reads at present."""
        self._loss = self._loss.now()
        return self._loss

    def __reads__(self) -> tuple[Any, ...]:
        return self._loss, self.rest, self.data, self.observables

    @property
    def vector_bytes(self) -> int:
        """Memory of one vector with the structure of `x0`."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.x0))

    def loss(self, x: PyTree) -> jax.Array:
        """`f(x)`, the mean loss."""
        value: jax.Array = self._value("loss", x)
        return value

    def grad(self, x: PyTree) -> PyTree:
        """`gbar`, the gradient of the mean loss; structure of `x`."""
        return _mean_grad(self.sample_loss, self.chunk, self.data, self.check_params(x))

    def grad_norm2(self, x: PyTree) -> jax.Array:
        """The squared norm `|gbar|^2` of the gradient of the loss."""
        value: jax.Array = self._value("grad_norm2", x)
        return value

    def trace_cov(self, x: PyTree) -> jax.Array:
        """`tr V = (1/n) sum_i |g_i - gbar|^2`, the trace of the covariance of the gradient of one
        sample.
        """
        value: jax.Array = self._value("trace_cov", x)
        return value

    def observer(self, names: Iterable[str]) -> Observer:
        """The named observables as one function of the parameters.

        Raises:
            TypeError: `names` are no names.
            ValueError: an unknown name; the message lists the valid ones.
        """
        if (
            isinstance(names, (str, Mapping))
            or not isinstance(names, Iterable)
            or not all(isinstance(name, str) for name in names)
        ):
            raise TypeError(
                f"observe={names!r}: it must be a list of names, such as ['loss']; functions of"
                " your own belong to the problem, FiniteSum(..., observables={'name':"
                " function}), or to the run of an SDE, simulate(..., observe={'name':"
                " function})"
            )
        names = tuple(dict.fromkeys(names))
        for name in names:
            if name not in BUILT_IN and name not in self.observables:
                raise unknown("observable", name, [*BUILT_IN, *self.observables])
        extra = {name: self.observables[name] for name in names if name in self.observables}
        return make_observer(names, extra, self.sample_loss, self.chunk, self.data, self.rest)

    def _value(self, name: str, x: PyTree) -> Any:
        return observe(self.observer([name]), self.check_params(x))[name]

    def _once(self, what: str, compute: Callable[[Function], Any]) -> Any:
        """Something that depends on the loss alone, computed again only where what the loss reads
        has changed.
        """
        # `self.sample_loss` reads anew what the loss reads; a Function is equal to an older one
        # where nothing of that has changed
        loss = self.sample_loss
        if what not in self._found or self._found[what][0] != loss:
            self._found[what] = (loss, compute(loss))
        return self._found[what][1]

    @property
    def curvature(self) -> float:
        """The largest curvature of `f` at the start: of the eigenvalues of its Hessian the one
        largest in size, from below, if it is positive.

        By 20 power iterations from a fixed vector; 0 where that eigenvalue is negative.
        """
        return max(
            0.0,
            float(
                self._once(
                    "curvature", lambda loss: _curvature(loss, self.chunk, self.data, self.x0)
                )
            ),
        )

    def check_gradient(self) -> None:
        """Refuse a loss whose gradient at the start is not finite; looked at before the first
        run.
        """
        bad = self._once(
            "gradient",
            lambda loss: where_not_finite(
                _mean_grad(loss, self.chunk, self.data, self.x0), "its gradient"
            ),
        )
        if bad is not None:
            raise ValueError(
                f"the loss at the start x0 is finite, but {bad}{self._cause(gradient=True)}: a"
                " norm, a root or |x| has no derivative at 0, and jnp.where gives NaN where the"
                " branch that is not taken does; move x0, or smooth the loss"
            )

    @property
    def nonsmooth(self) -> tuple[str, ...]:
        """The operations that keep the loss from being three times differentiable; empty where none
        was found.
        """
        found: tuple[str, ...] = self._once(
            "nonsmooth", lambda loss: nonsmooth_operations(loss, self.x0, self.sample(0))
        )
        return found

    def sample(self, i: int) -> PyTree:
        """Sample number `i`."""
        return jax.tree.map(lambda leaf: leaf[i], self.data)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of data and start, so that a stored result knows what it was computed on."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((self.data, self.x0)):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def check_params(self, x: PyTree) -> PyTree:
        """`x` as arrays, or a sentence saying that its structure is not that of `x0`."""
        return check_structure(x, self.x0, self.rest)

    def _check_loss(self) -> None:
        # traced and not run: the error of a loss that does not fit comes at once, and no sample but
        # the first is looked at. What it returned is kept aside, because eval_shape would turn a
        # Python number into an array and so hide that the loss returned none.
        returned = []
        try:
            jax.eval_shape(
                lambda x, sample: returned.append(self._loss(x, sample)), self.x0, self.sample(0)
            )
        except Exception as error:
            raise failure("sample_loss(x0, sample 0)", error) from error
        (value,) = returned
        if (
            not numeric(value)
            or jnp.shape(value) != ()
            or not jnp.issubdtype(jnp.result_type(value), jnp.floating)
        ):
            raise ValueError(
                "sample_loss must return one floating-point scalar, but it returns"
                f" {describe(value)}"
            )
        start = self.loss(self.x0)
        if isinstance(start, jax.core.Tracer):
            refuse_traced("what a FiniteSum is made of")
        if not bool(jnp.isfinite(start)):
            raise ValueError(
                f"the loss at the start x0 is {float(start)}: it must be finite{self._cause()}"
            )
        if self.period is not None:
            check_positive("period", self.period)
            self._check_period(float(start))

    def _check_period(self, start: float) -> None:
        # one coordinate at a time: a loss may have the period in some and not in others
        flat, rebuild = ravel_pytree(self.x0)
        for k in range(flat.size):
            moved = float(self.loss(rebuild(flat.at[k].add(self.period))))
            if not np.isclose(moved, start, rtol=1e-3, atol=1e-4):
                raise ValueError(
                    f"the loss does not have the period {self.period} in coordinate {k}: it is"
                    f" {start} at x0 and {moved} one period on"
                )

    def _cause(self, gradient: bool = False) -> str:
        """Where a loss or its gradient, not finite at the start, comes from."""
        # from the outside in: a start or a datum that is NaN explains a loss that is, and only if
        # all of these are finite is the loss asked sample by sample
        bad = where_not_finite(self.x0, "x0") or where_not_finite(self.data, "data", rows=True)
        if bad is None:
            each = np.asarray(_finite(self.sample_loss, self.chunk, gradient, self.data, self.x0))
            bad = f"that of sample {np.argmin(each)} is not" if not each.all() else None
        return "" if bad is None else f" ({bad})"

    def __repr__(self) -> str:
        return f"FiniteSum({self.name!r}, n={self.n}, parameters={self.dim})"


def check_problem(problem: Any) -> FiniteSum:
    """`problem`, or a sentence saying that it is none."""
    if not isinstance(problem, FiniteSum):
        raise TypeError(
            f"problem={problem!r}: it must be a sdesam.FiniteSum, such as sdesam.problems.digits()"
        )
    return problem


@compiled(static=2)
def _mean_grad(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> PyTree:
    return mean_grad(sample_loss, chunk, data, x)


@compiled(static=3)
def _finite(
    sample_loss: SampleLoss, chunk: int, gradient: bool, data: PyTree, x: PyTree
) -> jax.Array:
    """Whether the loss of each sample is finite, or its gradient."""

    def one(sample: PyTree) -> jax.Array:
        value = jax.grad(sample_loss)(x, sample) if gradient else sample_loss(x, sample)
        return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(value)]))

    flags: jax.Array = jax.lax.map(one, data, batch_size=chunk)
    return flags


@compiled(static=2)
def _curvature(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """Rayleigh's quotient of the Hessian after 20 power iterations."""
    flat, times = hessian_product(sample_loss, chunk, data, x)

    def normal(v: jax.Array) -> jax.Array:
        size = jnp.linalg.norm(v)
        return jnp.where(size > 0, v / size, v)

    v = jax.lax.fori_loop(
        0,
        20,
        lambda _, v: normal(times(v)),
        normal(jax.random.normal(seed_key(0), flat.shape, flat.dtype)),
    )
    quotient: jax.Array = v @ times(v)
    return quotient
