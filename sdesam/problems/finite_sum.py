"""Finite sums: a per-sample loss, a data set, a start, and what to observe along the way.

Everything per sample is done in chunks and reduced at once, so memory does not grow with the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam._keys import seed_key
from sdesam._names import unknown
from sdesam._precision import precisely
from sdesam._process import check_not_forked
from sdesam.problems.ghost import dense_layers, deviations, factors, held
from sdesam.problems.smoothness import nonsmooth_operations
from sdesam.sampling import positive, whole

PyTree = Any
SampleLoss = Callable[[Any, Any], Any]

_CHUNK_NUMBERS = 2**20
"""Numbers (samples times parameters) that one chunk of per-sample vectors may hold: 4 MB in float32."""


class FiniteSum:
    """`f(x) = (1/n) sum_i f_i(x)`: a per-sample loss over a data set.

    Args:
        sample_loss: `(params, sample) -> scalar`, written with jax.numpy; `sample` is `data` without its leading axis.
        data: pytree of arrays whose leading axis is the sample, length `n`.
        x0: the start, any pytree of floating-point arrays.
        period: for problems on a torus, the period of every coordinate.
        observables: more named functions `params -> scalar` beside `loss`, `grad_norm2` and `trace_cov`. One that holds arrays, such as images
            to test on, is best a `jax.tree_util.Partial` of a function of arrays and parameters: what is compiled serves other arrays too.
        name: for messages and stored results.
        chunk: samples per chunk of per-sample work; by default as many as keep a vector of each near 4 MB.

    Raises:
        TypeError: integer parameters.
        ValueError: data leaves of different length, no parameters, a loss that is not scalar or not finite at the start, a loss that
            does not have the stated period.

    >>> problem = FiniteSum(lambda x, a: 0.5 * (x - a) ** 2, jax.numpy.array([0.0, 2.0]), jax.numpy.array(3.0))
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
        if not callable(sample_loss) or not isinstance(sample_loss, Hashable):
            raise TypeError(f"sample_loss={sample_loss!r}: it must be a function (params, sample) -> scalar")
        check_not_forked()
        self.sample_loss = sample_loss
        self.name = name or getattr(sample_loss, "__name__", "user")
        self.data = jax.tree.map(jnp.asarray, data)
        self.n = _samples(self.data)
        self.x0 = parameters(x0)
        self.dim = sum(leaf.size for leaf in jax.tree.leaves(self.x0))
        self.period = period
        most = max(1, _CHUNK_NUMBERS // self.dim) if chunk is None else whole("chunk", chunk)
        self.chunk = -(-self.n // -(-self.n // most))  # as many chunks as `most` asks for, of even size
        self.observables = dict(observables or {})
        clash = sorted(set(BUILT_IN) & set(self.observables))
        if clash:
            raise ValueError(f"observable {clash[0]!r} is built in: choose another name")
        self._check_loss()

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
        """`|gbar|^2`."""
        value: jax.Array = self._value("grad_norm2", x)
        return value

    def trace_cov(self, x: PyTree) -> jax.Array:
        """`tr V = (1/n) sum_i |g_i - gbar|^2`, the trace of the covariance of the gradient of one sample."""
        value: jax.Array = self._value("trace_cov", x)
        return value

    def observer(self, names: Iterable[str]) -> tuple[Observer, PyTree]:
        """The named observables as one function of `(data, x)`, and that data.

        Raises:
            ValueError: an unknown name; the message lists the valid ones.
        """
        names = tuple(dict.fromkeys(names))
        for name in names:
            if name not in BUILT_IN and name not in self.observables:
                raise unknown("observable", name, [*BUILT_IN, *self.observables])
        extra = {name: self.observables[name] for name in names if name in self.observables}
        return make_observer(names, extra, self.sample_loss, self.chunk, self.data)

    def _value(self, name: str, x: PyTree) -> Any:
        return _observe(*self.observer([name]), self.check_params(x))[name]

    @cached_property
    def curvature(self) -> float:
        """The largest curvature of `f` at the start: of the eigenvalues of its Hessian the one largest in size, from below, if it is positive.

        By 20 power iterations from a fixed vector; 0 where that eigenvalue is negative.
        """
        return max(0.0, float(_curvature(self.sample_loss, self.chunk, self.data, self.x0)))

    @cached_property
    def nonsmooth(self) -> tuple[str, ...]:
        """The operations that keep the loss from being three times differentiable; empty where none was found."""
        return nonsmooth_operations(self.sample_loss, self.x0, self.sample(0))

    def sample(self, i: int) -> PyTree:
        """Sample number `i`."""
        return jax.tree.map(lambda leaf: leaf[i], self.data)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of data and start, so that a stored result knows what it was computed on."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((self.data, self.x0)):
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def check_params(self, x: PyTree) -> PyTree:
        """`x` as arrays, or a sentence saying that its structure is not that of `x0`."""
        return check_structure(x, self.x0)

    def _check_loss(self) -> None:
        try:
            shape = jax.eval_shape(self.sample_loss, self.x0, self.sample(0))
        except Exception as error:
            raise ValueError(f"sample_loss(x0, sample 0) fails with {type(error).__name__}: {error}") from error
        if not hasattr(shape, "shape") or shape.shape != () or not jnp.issubdtype(shape.dtype, jnp.floating):
            raise ValueError(f"sample_loss must return one floating-point scalar, but it returns {describe(shape)}")
        start = self.loss(self.x0)
        if not bool(jnp.isfinite(start)):
            raise ValueError(f"the loss at the start x0 is {float(start)}: it must be finite")
        if self.period is not None:
            positive("period", self.period)
            self._check_period(float(start))

    def _check_period(self, start: float) -> None:
        flat, rebuild = ravel_pytree(self.x0)
        for k in range(flat.size):
            moved = float(self.loss(rebuild(flat.at[k].add(self.period))))
            if not np.isclose(moved, start, rtol=1e-3, atol=1e-4):
                raise ValueError(f"the loss does not have the period {self.period} in coordinate {k}: it is {start} at x0 and {moved} one period on")

    def __repr__(self) -> str:
        return f"FiniteSum({self.name!r}, n={self.n}, parameters={self.dim})"


def describe(tree: PyTree) -> str:
    """The shapes of a pytree, for messages."""
    return str(jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", tree))


def fold_samples(fn: Callable[[Any], Any], per_sample: PyTree, chunk: int) -> Any:
    """`fn` of chunks of `per_sample` (leading axis: samples), summed over the chunks."""
    n = jax.tree.leaves(per_sample)[0].shape[0]
    if n <= chunk:
        return fn(per_sample)
    whole_chunks = n // chunk
    head = jax.tree.map(lambda a: a[: whole_chunks * chunk].reshape(whole_chunks, chunk, *a.shape[1:]), per_sample)
    first = jax.tree.map(lambda a: a[0], head)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, first))
    total, _ = jax.lax.scan(lambda acc, part: (jax.tree.map(jnp.add, acc, fn(part)), None), zero, head)
    if whole_chunks * chunk == n:
        return total
    tail = jax.tree.map(lambda a: a[whole_chunks * chunk :], per_sample)
    return jax.tree.map(jnp.add, total, fn(tail))


def mean_loss(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """`f(x)`, chunk by chunk."""
    total: jax.Array = fold_samples(lambda part: _sum_loss(sample_loss, x, part), data, chunk)
    return total / _samples(data)


def mean_grad(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> PyTree:
    """`gbar(x)`, chunk by chunk."""
    total = fold_samples(lambda part: jax.grad(_sum_loss, argnums=1)(sample_loss, x, part), data, chunk)
    return jax.tree.map(lambda g: g / _samples(data), total)


def grad_norm2(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """`|gbar|^2`."""
    return squared_norm(mean_grad(sample_loss, chunk, data, x))


def trace_cov(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """`tr V`, without the gradients of dense layers where the loss has any."""
    layers = dense_layers(sample_loss, x, jax.tree.map(lambda leaf: leaf[0], data))
    return _trace_cov_dense(sample_loss, layers, chunk, data, x) if layers else trace_cov_generic(sample_loss, chunk, data, x)


def trace_cov_generic(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """`tr V`, summed as squared deviations: the difference of two large means would lose digits in float32."""
    gbar = mean_grad(sample_loss, chunk, data, x)

    def deviation(sample: PyTree) -> jax.Array:
        g = jax.grad(sample_loss)(x, sample)
        return squared_norm(jax.tree.map(jnp.subtract, g, gbar))

    total: jax.Array = fold_samples(lambda part: jnp.sum(jax.vmap(deviation)(part)), data, chunk)
    return total / _samples(data)


def _trace_cov_dense(sample_loss: SampleLoss, layers: dict[int, Any], chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """`tr V = mean |g_i - c|^2 - |gbar - c|^2`, where `c` is made of the mean factors of the first samples, so that the second part is small."""
    many = samples_without_vectors(layers, chunk, x)
    n = _samples(data)
    of = jax.vmap(partial(factors, sample_loss, layers, x))
    first = of(jax.tree.map(lambda leaf: leaf[:many], data))
    centre = jax.tree.map(lambda a: jnp.mean(a, axis=0), first)
    if n <= many:
        squares, sums = deviations(first, centre)
    else:
        squares, sums = fold_samples(lambda part: deviations(of(part), centre), data, many)
    return squares / n - squared_norm([total / n for total in sums])


def samples_without_vectors(layers: dict[int, Any], chunk: int, x: PyTree) -> int:
    """As many samples as fill, by the factors of their gradients, the memory that `chunk` vectors take."""
    return chunk * max(1, sum(leaf.size for leaf in jax.tree.leaves(x)) // held(layers, x)) if layers else chunk


BUILT_IN: dict[str, Callable[..., jax.Array]] = {"loss": mean_loss, "grad_norm2": grad_norm2, "trace_cov": trace_cov}


def _sum_loss(sample_loss: SampleLoss, x: PyTree, part: PyTree) -> jax.Array:
    return jnp.sum(jax.vmap(sample_loss, (None, 0))(x, part))


def squared_norm(tree: PyTree) -> jax.Array:
    """`|v|^2` of a pytree."""
    return jnp.sum(jnp.stack([jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)]))


@dataclass(frozen=True)
class Observer:
    """Named functions of the parameters as one hashable function `(data, x) -> {name: value}`; compiled code is shared by it."""

    names: tuple[str, ...]
    extra: tuple[tuple[str, Any], ...]
    """Functions by name, or what is left of a `Partial` without its arrays."""
    sample_loss: SampleLoss | None
    chunk: int

    def __call__(self, data: tuple[PyTree, dict[str, list[jax.Array]]], x: PyTree) -> dict[str, jax.Array]:
        """The value of every observable at `x`; `data` are those of the loss and the arrays of every `Partial`."""
        own, arrays = data
        found = {name: BUILT_IN[name](self.sample_loss, self.chunk, own, x) for name in self.names if name not in dict(self.extra)}
        for name, fn in self.extra:
            found[name] = (jax.tree.unflatten(fn, arrays[name]) if name in arrays else fn)(x)
        return found


def make_observer(
    names: tuple[str, ...], functions: Mapping[str, Callable[[Any], Any]], sample_loss: SampleLoss | None = None, chunk: int = 0, data: PyTree = ()
) -> tuple[Observer, PyTree]:
    """Functions of the parameters, and those of `names` that are built in, as an :class:`Observer` and its data."""
    arrays, extra = {}, []
    for name, fn in functions.items():
        bare: Any = fn
        if isinstance(fn, jax.tree_util.Partial):
            arrays[name], bare = jax.tree.flatten(fn)
        extra.append((name, bare))
    return Observer(names, tuple(extra), sample_loss, chunk), (data, arrays)


@partial(jax.jit, static_argnums=0)
@precisely
def _observe(observer: Observer, data: PyTree, x: PyTree) -> dict[str, jax.Array]:
    return observer(data, x)


@partial(jax.jit, static_argnums=(0, 1))
@precisely
def _mean_grad(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> PyTree:
    return mean_grad(sample_loss, chunk, data, x)


@partial(jax.jit, static_argnums=(0, 1))
@precisely
def _curvature(sample_loss: SampleLoss, chunk: int, data: PyTree, x: PyTree) -> jax.Array:
    """Rayleigh's quotient of the Hessian after 20 power iterations."""
    flat, rebuild = ravel_pytree(x)

    def times(v: jax.Array) -> jax.Array:
        product = jax.jvp(lambda y: mean_grad(sample_loss, chunk, data, y), (x,), (rebuild(v),))[1]
        flat_product: jax.Array = ravel_pytree(product)[0]
        return flat_product

    def normal(v: jax.Array) -> jax.Array:
        size = jnp.linalg.norm(v)
        return jnp.where(size > 0, v / size, v)

    v = jax.lax.fori_loop(0, 20, lambda _, v: normal(times(v)), normal(jax.random.normal(seed_key(0), flat.shape, flat.dtype)))
    quotient: jax.Array = v @ times(v)
    return quotient


def _samples(data: PyTree) -> int:
    leaves = jax.tree.leaves(data)
    lengths = sorted({leaf.shape[0] if leaf.ndim else 0 for leaf in leaves})
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(
            f"data must be arrays that share a leading axis of n >= 1 samples, but the leading axes have lengths {lengths or '(no arrays)'}"
        )
    return int(lengths[0])


def parameters(x0: PyTree) -> PyTree:
    """`x0` as floating-point arrays, or one sentence saying what is wrong with it."""
    arrays = jax.tree.map(jnp.asarray, x0)
    leaves = jax.tree.leaves(arrays)
    if not leaves or not all(leaf.size for leaf in leaves):
        raise ValueError(f"x0 has no parameters: it must hold at least one non-empty array, not {describe(arrays)}")
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise TypeError(f"x0 must hold floating-point arrays, not {describe(arrays)}; write 1.0 for 1")
    return arrays


def check_structure(x: PyTree, like: PyTree) -> PyTree:
    """`x` as arrays of the dtypes of `like`, or a sentence saying that its structure or shapes are others."""
    if jax.tree.map(jnp.shape, x) != jax.tree.map(jnp.shape, like):
        raise ValueError(f"the parameters have structure {describe(x)}: they must be like the start, {describe(like)}")
    return jax.tree.map(lambda leaf, other: jnp.asarray(leaf, None if hasattr(leaf, "dtype") else other.dtype), x, like)
