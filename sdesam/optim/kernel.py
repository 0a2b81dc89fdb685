"""The ONE step of every optimizer of the family, read off the variant's declaration.

`StepKernel` is the chain on a finite sum; `perturbed_gradient` is its heart, one micro-batch, and
serves the trainers of `sdesam.optim` with losses that are no finite sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._util.functions import compiled
from sdesam._util.precision import precisely, wide
from sdesam.autodiff.outer_products import (
    Factors,
    dense_layers,
    factors,
    loss_along,
    squared_norm_of_mean,
)
from sdesam.problems import FiniteSum, mean_grad
from sdesam.variants import (
    Elementwise,
    Gibbs,
    Gradient,
    NormEstimate,
    RandomDirection,
    Rejection,
    Scalar,
    Sum,
    Unit,
    Variant,
    Vector,
)

PyTree = Any
Losses = Callable[[PyTree], tuple[jax.Array, Any]]
"""`y -> (loss of each sample of a micro-batch, auxiliary values)`; their mean will do, shape (),
where samples have equal weights.
"""


class StepNumbers(NamedTuple):
    """Runtime values of a step."""

    data: PyTree
    lr: float
    rho: float
    eps: float = 0.0
    lam: float = 0.0
    own: Mapping[str, float] = {}

    @property
    def ascent(self) -> Ascent:
        """Those of the perturbation."""
        return Ascent(self.rho, self.eps, self.lam, self.own)


class Ascent(NamedTuple):
    """The numbers of a perturbation.

    Args:
        rho: the radius.
        eps: of the normaliser.
        lam: of the Gibbs weights.
        own: the rule's own numbers, by name.
    """

    rho: Any
    eps: Any = 0.0
    lam: Any = 0.0
    own: Mapping[str, Any] = {}


class Perturbed(NamedTuple):
    """What a micro-batch contributes to a step.

    Args:
        gradient: `grad f_I(x + rho u_I)`.
        loss: `f_I(x)`.
        aux: the auxiliary values at `x`: the perturbed pass changes no batch statistics.
    """

    gradient: PyTree
    loss: jax.Array
    aux: Any


def perturbed_gradient(rule: Variant, evaluation: Evaluation) -> Perturbed:
    """The direction of one micro-batch, or of the part of it that this device holds, with its loss
    and its auxiliary values.
    """
    G = evaluation.direction(rule.direction)
    loss, aux = evaluation.loss("micro" if rule.micro else "batch")
    return Perturbed(G, loss, aux)


# What is computed once. The direction of m-SAM is gradient(micro, at=unit(gradient(micro))). Its
# evaluation goes from the inside: gradient(micro) is computed at x, with the loss on the way; unit
# divides it; the outer gradient is computed at the point that this gives. A gradient that occurs
# again, as in (1-a) gradient(micro) + a gradient(micro, at=...), is found among those that are
# there, because expressions are compared by what they say.


@dataclass
class Evaluation:
    """The vectors of a rule at one point, for one micro-batch.

    Args:
        losses: per-sample losses of each scope that the rule speaks of, the data set apart.
        x: the parameters.
        ascent: the numbers of the perturbation.
        known: vectors that are computed already; to begin with the full gradient.
        norms: how gradient norms are estimated, for Gibbs weights.
        key: for the directions of that estimate.
        own_key: for random directions of the rule.
        full_gradient: `y -> grad f(y)` of the data set, where the rule takes it at moved points.
        together: the name of the device axis over which the samples are spread, in equal parts;
            None if one device holds them.
    """

    losses: Mapping[str, Losses]
    x: PyTree
    ascent: Ascent
    known: dict[Vector, PyTree]
    norms: NormEstimate | None = None
    key: jax.Array | None = None
    own_key: jax.Array | None = None
    full_gradient: Callable[[PyTree], PyTree] | None = None
    together: str | None = None
    seen: dict[str, tuple[jax.Array, Any]] = field(default_factory=dict)
    parts: dict[Vector, PyTree] = field(default_factory=dict)

    def direction(self, v: Vector) -> PyTree:
        """The part of `v` that this device's samples give: their mean over devices is `v`."""
        if isinstance(v, Sum):
            return self._combined([(c, self.direction(part)) for c, part in v.terms])
        if isinstance(v, Gradient) and v.scope != "data" and v not in self.known:
            return self._own_gradient(v)
        return self.vector(v)

    def vector(self, v: Vector) -> PyTree:
        """The vector `v`, the same on all devices."""
        if v not in self.known:
            self.known[v] = self._computed(v)
        return self.known[v]

    def loss(self, scope: str) -> tuple[jax.Array, Any]:
        """The mean loss at `x`, and the auxiliary values."""
        if scope not in self.seen:
            # nobody asks for them in a chain, and compilation leaves them out
            self.seen[scope] = self._mean(scope, self.x)
        return self.seen[scope]

    def _computed(self, v: Vector) -> PyTree:
        if isinstance(v, Gradient):
            if v.scope == "data":
                assert self.full_gradient is not None, "a full gradient at a moved point"
                return self.full_gradient(self._point(v.at))
            own = self._own_gradient(v)
            return own if self.together is None else jax.lax.pmean(own, self.together)
        if isinstance(v, Gibbs):
            return self._weighted(v)
        if isinstance(v, Sum):
            return self._combined([(c, self.vector(part)) for c, part in v.terms])
        if isinstance(v, Unit):
            factor = inverse_norm(self.vector(v.norm_of), self.ascent.eps)
            return jax.tree.map(
                lambda leaf: (leaf.astype(factor.dtype) * factor).astype(leaf.dtype),
                self.vector(v.vector),
            )
        if isinstance(v, RandomDirection):
            assert self.own_key is not None, "random directions need a key"
            return direction(v.law, self.x, self.own_key)
        if isinstance(v, Rejection):
            return _rejected(self.vector(v.vector), self.vector(v.axis))
        assert isinstance(v, Elementwise)
        moved_entries = self.vector(v.vector)
        return jax.tree.map(
            lambda leaf, own: (v.transform(leaf) * own).astype(own.dtype), self.x, moved_entries
        )

    def _own_gradient(self, v: Gradient) -> PyTree:
        if v not in self.parts:
            (loss, aux), gradient = jax.value_and_grad(partial(self._mean, v.scope), has_aux=True)(
                self._point(v.at)
            )
            if v.at is None:
                self.seen.setdefault(v.scope, (loss, aux))
            self.parts[v] = gradient
        return self.parts[v]

    def _mean(self, scope: str, y: PyTree) -> tuple[jax.Array, Any]:
        values, aux = self.losses[scope](y)
        return jnp.mean(values), aux

    def _point(self, at: Vector | None) -> PyTree:
        return self.x if at is None else moved(self.x, self.ascent.rho, self.vector(at))

    def _weighted(self, v: Gibbs) -> PyTree:
        assert self.norms is not None
        gradient, values, aux = weighted_gradient(
            self.norms,
            self.losses[v.scope],
            self.x,
            self.ascent.lam,
            self.key,
            self.together,
            at=None if v.at is None else self._point(v.at),
        )
        self.seen.setdefault(v.scope, (jnp.mean(values), aux))
        return gradient

    def _combined(self, terms: list[tuple[Scalar, PyTree]]) -> PyTree:
        """A linear combination, summed in float32 at least."""
        factors = [c.value(self.ascent.own) for c, _ in terms]

        def combine(*leaves: jax.Array) -> jax.Array:
            total = sum(
                jnp.asarray(c, wide(leaf).dtype) * wide(leaf)
                for c, leaf in zip(factors, leaves, strict=True)
            )
            return jnp.asarray(total).astype(leaves[0].dtype)

        return jax.tree.map(combine, *(tree for _, tree in terms))


def weighted_gradient(
    norms: NormEstimate,
    losses: Losses,
    x: PyTree,
    lam: Any,
    key: jax.Array | None,
    together: str | None = None,
    at: PyTree | None = None,
) -> tuple[PyTree, jax.Array, Any]:
    """`sum_i p_i g_i` with Gibbs weights, the per-sample losses on the way, and the auxiliary
    values; `together` as in `Evaluation`. The gradients are those at `at`, where it is
    given, and the weights always those at `x`.
    """
    values, pull, aux = jax.vjp(losses, x, has_aux=True)
    p = gibbs(estimated_norms(norms, lambda y: losses(y)[0], x, values, key), lam, together)
    if at is not None:
        _, pull, _ = jax.vjp(losses, at, has_aux=True)
    (own,) = pull(p.astype(values.dtype))
    return own if together is None else jax.lax.psum(own, together), values, aux


def shared_vectors(v: Vector) -> Iterator[Vector]:
    """The largest parts of a rule that are the same for all micro-batches of a mini-batch."""
    if v.scopes and v.scopes <= {"batch", "data"}:
        yield v
        return
    for part in v.parts:
        yield from shared_vectors(part)


def _rejected(v: PyTree, axis: PyTree) -> PyTree:
    """The part of `v` that is orthogonal to `axis`."""
    inverse = inverse_norm(axis, 0.0)
    dots = jax.tree.map(lambda a, w: jnp.sum(wide(a) * (wide(w) * inverse)), v, axis)
    along = sum(jax.tree.leaves(dots)) * inverse
    return jax.tree.map(lambda a, w: (wide(a) - along * wide(w)).astype(a.dtype), v, axis)


def inverse_norm(v: PyTree, eps: Any) -> jax.Array:
    """`1 / sqrt(|v|^2 + eps^2)`; 0 where that is infinite, so that a vanishing gradient with
    `eps = 0` perturbs nothing; NaN where `v` is.

    Squares are summed in float32 at least, after division by the largest entry: neither they nor a
    small `eps` underflow.
    """
    return _inverse_norm(
        v, eps, lambda leaves: reduce(jnp.add, [jnp.sum(leaf**2) for leaf in leaves])
    )


def _inverse_norm(
    v: PyTree, eps: Any, squared: Callable[[list[jax.Array]], jax.Array]
) -> jax.Array:
    """`1 / sqrt(q(v) + eps^2)` with a function `q` that is homogeneous of degree 2 in the leaves of
    `v`.
    """
    leaves = jax.tree.leaves(wide(v))
    dtype = _widest(leaves)
    leaves = [leaf.astype(dtype) for leaf in leaves]
    eps = jnp.asarray(eps, dtype)
    # the scale only moves digits about: it is no part of the derivative
    largest = jax.lax.stop_gradient(
        jnp.maximum(jnp.max(jnp.stack([jnp.max(abs(leaf), initial=0) for leaf in leaves])), eps)
    )
    scale = jnp.where(largest > 0, largest, 1)
    square = squared([leaf / scale for leaf in leaves]) + (eps / scale) ** 2
    # not `square > 0`: where the gradient is NaN the step must be, and not that of SGD
    vanishes = square == 0
    inverse: jax.Array = jnp.where(
        vanishes, 0, 1 / (scale * jnp.sqrt(jnp.where(vanishes, 1, square)))
    )
    return inverse


def gibbs(nu: jax.Array, lam: Any, together: str | None = None) -> jax.Array:
    """The weights `p_i` proportional to `exp(lam nu_i)`: they solve
    `max_p sum_i p_i nu_i + entropy(p)/lam`.

    With `together`, the name of a device axis, they sum to 1 over the samples of all its devices.
    """
    # the largest estimate cancels: it is no part of the derivative, and pmax has none
    largest = jax.lax.stop_gradient(jnp.max(nu))
    lam = jnp.asarray(lam, nu.dtype)
    if together is None:
        return jax.nn.softmax(lam * (nu - largest))
    weights = jnp.exp(lam * (nu - jax.lax.pmax(largest, together)))
    p: jax.Array = weights / jax.lax.psum(jnp.sum(weights), together)
    return p


def estimated_norms(
    norms: NormEstimate,
    losses: Callable[[PyTree], jax.Array],
    x: PyTree,
    values: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """`nu_i`, an estimate of the norm of each sample's gradient (or of its square), shape as
    `values`.

    Args:
        norms: how.
        losses: per-sample losses.
        x: the parameters.
        values: `losses(x)`.
        key: for the random directions.
    """
    if norms.law == "exact":
        numbers = jnp.arange(values.shape[0])

        def gradient(i: jax.Array) -> PyTree:
            return jax.vjp(losses, x)[1](jnp.where(numbers == i, jnp.ones_like(values), 0))[0]

        try:
            each = jax.vmap(gradient)(numbers)
        # a grouped convolution on a mesh of devices: jax has no rule to batch its gradient
        except NotImplementedError:
            each = jax.lax.map(gradient, numbers)
        square = sum(
            jnp.sum(leaf**2, axis=range(1, leaf.ndim)) for leaf in jax.tree.leaves(wide(each))
        )
    else:
        assert key is not None, "random directions need a key"

        def along(key: jax.Array) -> jax.Array:
            ahead = losses(moved(x, norms.delta, direction(norms.law, x, key)))
            difference: jax.Array = (wide(ahead) - wide(values)) / norms.delta
            return difference**2

        one = norms.directions == 1  # no need to hash the key once more
        square = (
            along(key)
            if one
            else jnp.mean(jax.lax.map(along, jax.random.split(key, norms.directions)), axis=0)
        )
    square = jnp.asarray(square)
    if norms.square:
        return square
    # the norm of a vanishing gradient has the derivative 0 here, and not NaN; that of a NaN stays
    # NaN
    vanishes = square == 0
    return jnp.where(vanishes, 0, jnp.sqrt(jnp.where(vanishes, 1, square)))


def check_delta(norms: NormEstimate | None, x: PyTree) -> None:
    """Refuse a difference quotient whose step is below the rounding of parameters, or of losses, of
    size 1.
    """
    if norms is None or not norms.random:
        return
    dtype = max((leaf.dtype for leaf in jax.tree.leaves(x)), key=_rounding)
    if norms.delta < _rounding(dtype):
        raise ValueError(
            f"delta={norms.delta:g} is below the rounding level {_rounding(dtype):.1g} of {dtype}:"
            " choose a larger delta, or float32 with delta=1e-3"
        )


def check_delta_at(norms: NormEstimate | None, x: PyTree) -> None:
    """Refuse also a step below the rounding of parameters as large as these, where they are
    known.
    """
    check_delta(norms, x)
    if norms is None or not norms.random:
        return
    for leaf in jax.tree.leaves(x):
        known = leaf.size and not isinstance(leaf, jax.core.Tracer)
        # also where known parameters are looked at inside compiled code
        with jax.ensure_compile_time_eval():
            largest = float(jnp.max(abs(leaf))) if known else 0.0
        if norms.delta < _rounding(leaf.dtype) * largest:
            raise ValueError(
                f"delta={norms.delta:g} is below the rounding {_rounding(leaf.dtype) * largest:.1g}"
                f" of parameters as large as {largest:.3g} in {leaf.dtype}: choose a larger delta,"
                " or norms=NormEstimate(law='exact')"
            )


_LOOKED_AT = 64
"""So many samples tell `check_delta_on` the sizes of losses and gradients, or as many as are worked
on at a time.
"""


def check_delta_on(norms: NormEstimate | None, problem: FiniteSum) -> None:
    """Refuse also a step whose differences `delta |g_i|` are below the rounding of the losses, at
    the start of a problem.
    """
    check_delta_at(norms, problem.x0)
    if norms is None or not norms.random:
        return
    some = jax.tree.map(lambda leaf: leaf[: min(_LOOKED_AT, problem.chunk)], problem.data)
    with jax.ensure_compile_time_eval():
        loss, norm = (float(value) for value in _sizes(problem.sample_loss, problem.x0, some))
    dtype = jax.eval_shape(precisely(problem.sample_loss), problem.x0, problem.sample(0)).dtype
    if norms.delta * norm < _rounding(dtype) * loss and norm:
        least = 1000 * _rounding(dtype) * loss / norm
        raise ValueError(
            f"delta={norms.delta:g}: at the start it changes a loss by about"
            f" {norms.delta * norm:.1g}, which is below the rounding {_rounding(dtype) * loss:.1g}"
            f" of losses of {loss:.3g} in {dtype}: choose delta of about {least:.1g}, or"
            " NormEstimate(law='exact')"
        )


@compiled(static=1)
def _sizes(
    sample_loss: Callable[[Any, Any], jax.Array], x: PyTree, samples: PyTree
) -> tuple[jax.Array, jax.Array]:
    """Root mean squares of the losses and of the norms of their gradients."""
    losses, gradients = jax.vmap(jax.value_and_grad(sample_loss), (None, 0))(x, samples)
    square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients))
    return jnp.sqrt(jnp.mean(losses**2)), jnp.sqrt(square / losses.size)


def _rounding(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def direction(law: str, x: PyTree, key: jax.Array) -> PyTree:
    """One random direction `z` with the structure of `x`, independent entries of mean 0 and
    variance 1.
    """
    leaves, structure = jax.tree.flatten(x)
    if law == "gaussian":
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            structure,
            [
                jax.random.normal(k, leaf.shape, leaf.dtype)
                for k, leaf in zip(keys, leaves, strict=True)
            ],
        )
    # 32 signs from each random word: a word for each sign would cost more than the extra forward
    # pass
    ends = list(accumulate(-(-leaf.size // 32) for leaf in leaves))
    words = jax.random.bits(key, (ends[-1],), jnp.uint32)
    place = jnp.arange(32, dtype=jnp.uint32)[None]

    def signs(leaf: jax.Array, end: int) -> jax.Array:
        bits = (words[end - -(-leaf.size // 32) : end, None] >> place) & 1
        return bits.ravel()[: leaf.size].reshape(leaf.shape).astype(leaf.dtype) * 2 - 1

    return jax.tree.unflatten(
        structure, [signs(leaf, end) for leaf, end in zip(leaves, ends, strict=True)]
    )


def moved(x: PyTree, radius: Any, u: PyTree) -> PyTree:
    """`x + radius u`, computed in float32 at least, in the precision of `x`."""

    def move(leaf: jax.Array, v: jax.Array) -> jax.Array:
        start: jax.Array = wide(leaf)
        return (start + jnp.asarray(radius, start.dtype) * v.astype(start.dtype)).astype(leaf.dtype)

    return jax.tree.map(move, x, u)


def _narrow(leaf: Any) -> bool:
    return bool(leaf.dtype.itemsize < 4)


def _widest(leaves: list[jax.Array]) -> Any:
    """The most precise of their dtypes; jax gives none for several where promotion is strict."""
    return max((leaf.dtype for leaf in leaves), key=lambda dtype: dtype.itemsize)


def random_key(key: Any) -> jax.Array:
    """`key` as a typed jax key, of whatever implementation, or a sentence that says how to make
    one.
    """
    if (
        isinstance(key, jax.Array)
        and key.shape == ()
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        return key
    if isinstance(key, (jax.Array, np.ndarray)) and key.dtype == np.uint32:
        # an array of words does not say whose they are: the default implementation's, if they are
        # as many as it has
        for name in (str(jax.config.jax_default_prng_impl), "threefry2x32", "rbg"):  # type: ignore[attr-defined]
            like = jax.eval_shape(
                lambda name=name: jax.random.key_data(jax.random.key(0, impl=name))
            )
            if key.shape == like.shape:
                typed: jax.Array = jax.random.wrap_key_data(jnp.asarray(key), impl=name)
                return typed
    what = (
        f"{key.dtype}{list(key.shape)}"
        if hasattr(key, "shape") and hasattr(key, "dtype")
        else repr(key)
    )
    raise TypeError(f"key must be one jax random key, such as jax.random.key(0), not {what}")


def _losses(sample_loss: Callable[[Any, Any], jax.Array], y: PyTree, samples: PyTree) -> jax.Array:
    """The loss of each sample. Of parameters in half precision each sample has a copy: the gradient
    by these is summed in float32.
    """
    count = jax.tree.leaves(samples)[0].shape[0]

    def copies(leaf: jax.Array) -> jax.Array:
        return (
            jnp.broadcast_to(wide(leaf), (count, *leaf.shape)).astype(leaf.dtype)
            if _narrow(leaf)
            else leaf
        )

    axes = jax.tree.map(lambda leaf: 0 if _narrow(leaf) else None, y)
    losses: jax.Array = jax.vmap(sample_loss, (axes, 0))(jax.tree.map(copies, y), samples)
    return losses


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["numbers"],
    meta_fields=[
        "sample_loss",
        "chunk",
        "n",
        "rule",
        "norms",
        "batch",
        "micro",
        "replace",
    ],
)
@dataclass(frozen=True, eq=False)
class StepKernel:
    """`x+ = x - lr * mean_I F_I(x)` on a finite sum, with the direction `F_I` of a rule. A pytree,
    whose leaves are its numbers and its data: chains that differ in these alone share compiled
    code.
    """

    numbers: StepNumbers
    sample_loss: Callable[[Any, Any], jax.Array]
    chunk: int
    n: int
    rule: Variant
    norms: NormEstimate | None
    batch: int
    micro: int
    replace: bool

    def __call__(self, x: PyTree, key: jax.Array, xi: Any) -> PyTree:
        """One step with a batch drawn from `key`; there are no normals."""
        return self.step(x, self.draw(key), self.direction_key(key))

    def draw(self, key: jax.Array) -> jax.Array:
        """The indices of a mini-batch in its micro-batches, shape `(b/m, m)`."""
        return self._drawn(key, self.batch).reshape(self.batch // self.micro, self.micro)

    def _drawn(self, key: jax.Array, size: int) -> jax.Array:
        """The indices of a batch."""
        if self.replace:
            return jax.random.randint(key, (size,), 0, self.n)
        return jax.random.choice(key, self.n, (size,), replace=False)

    def direction_key(self, key: jax.Array) -> jax.Array | None:
        """The key of a step's random directions, apart from that of its batch; None where the step
        has none.
        """
        random = self.rule.draws or (self.norms is not None and self.norms.random)
        return jax.random.fold_in(key, 1) if random else None

    def step(self, x: PyTree, indices: jax.Array, key: jax.Array | None = None) -> PyTree:
        """One step with given micro-batches."""
        return moved(x, -self.numbers.lr, self.direction(x, indices, key))

    def direction(self, x: PyTree, indices: jax.Array, key: jax.Array | None = None) -> PyTree:
        """`G(x)`, the mean over the micro-batches of `F_I(x)`; `key` is for random directions, and
        for batches that are drawn apart.
        """
        full = partial(mean_grad, self.sample_loss, self.chunk, self.numbers.data)
        full_gradient = full(x) if Gradient("data") in self.rule.direction.walk() else None
        layers = dense_layers(
            self.sample_loss, x, jax.tree.map(lambda leaf: leaf[0], self.numbers.data)
        )
        if self._inner_products_pay(layers, x):
            return self._direction_by_factors(x, indices, layers, full_gradient)
        known: dict[Vector, PyTree] = (
            {} if full_gradient is None else {Gradient("data"): full_gradient}
        )
        own = "micro" if self.rule.micro else "batch"
        mini_batch = {"batch": self._losses_of(indices.ravel())} if self.rule.micro else {}
        if self.rule.micro:
            of_all = Evaluation(mini_batch, x, self.numbers.ascent, known, self.norms, key)
            of_all.full_gradient = full
            for v in shared_vectors(self.rule.direction):
                of_all.vector(v)
            known = of_all.known

        def micro_batch(indices: jax.Array, own_key: jax.Array | None) -> PyTree:
            losses = {own: self._losses_of(indices), **mini_batch}
            for scope in sorted(self.rule.direction.scopes):
                if scope.startswith("fresh"):
                    assert own_key is not None
                    number = int(scope.removeprefix("fresh") or 1)
                    drawn = self._drawn(jax.random.fold_in(own_key, number), self.micro)
                    losses[scope] = self._losses_of(drawn)
            evaluation = Evaluation(losses, x, self.numbers.ascent, dict(known), self.norms, key)
            evaluation.own_key, evaluation.full_gradient = own_key, full
            return evaluation.direction(self.rule.direction)

        keys = None
        if self.rule.draws:
            assert key is not None, "what a rule draws needs a key"
            keys = jax.random.split(jax.random.fold_in(key, 1), indices.shape[0])
        each = jax.vmap(micro_batch, (0, None if keys is None else 0))(indices, keys)
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), each)

    def _losses_of(self, indices: jax.Array) -> Losses:
        samples = jax.tree.map(lambda leaf: leaf[indices], self.numbers.data)
        return lambda y: (_losses(self.sample_loss, y, samples), None)

    def copies(self, x: PyTree) -> int:
        """How many copies of the parameters a step holds: one for each micro-batch, or of those in
        half precision one for each sample.
        """
        return self.batch if any(map(_narrow, jax.tree.leaves(x))) else self.batch // self.micro

    def _inner_products_pay(self, layers: dict[int, Any], x: PyTree) -> bool:
        """Whether a product with the inner products of a micro-batch of gradients is less work than
        one with the matrix that they add up to.
        """
        rule = self.rule.one_ascent
        if (
            rule is None
            or rule.perturbation != "own"
            or rule.weighted
            or any(map(_narrow, jax.tree.leaves(x)))
        ):
            return False
        matrices = [
            leaf.shape
            for k, leaf in enumerate(jax.tree.leaves(x))
            if k in layers and leaf.ndim == 2
        ]
        # the norm of a mean of several needs that matrix all the same: then it paid at m = 4, and
        # not at 16, on the MLP of the benchmark
        dear = 4 if rule.normaliser == "own" and self.micro > 1 else 1
        return bool(
            dear * self.micro * sum(p + q for p, q in matrices) < sum(p * q for p, q in matrices)
        )

    def _direction_by_factors(
        self,
        x: PyTree,
        indices: jax.Array,
        layers: dict[int, Any],
        full_gradient: PyTree,
    ) -> PyTree:
        """`direction` without weights of its own for every micro-batch: these would make each
        product a small one.
        """
        rule = self.rule.one_ascent
        assert rule is not None
        batch = jax.tree.map(lambda leaf: leaf[indices], self.numbers.data)
        groups = jax.vmap(jax.vmap(partial(factors, self.sample_loss, layers, x)))(batch)

        def inverse(group: Factors) -> jax.Array:
            if rule.normaliser == "none":
                return jnp.ones((), _widest(jax.tree.leaves(x)))
            if rule.normaliser == "data set":
                return inverse_norm(full_gradient, self.numbers.eps)
            # the scale of gradients is in the rest: inputs of layers are neither as small nor as
            # large as their derivatives can be
            inputs = wide(group.inputs)
            rest = (group.deltas, group.others)
            rebuild = jax.tree.structure(rest)
            return _inverse_norm(
                rest,
                self.numbers.eps,
                lambda leaves: squared_norm_of_mean(
                    Factors(inputs, *jax.tree.unflatten(rebuild, leaves))
                ),
            )

        inverses = jax.vmap(inverse)(groups)
        radii = jnp.asarray(self.numbers.rho, inverses.dtype) * inverses

        def mean(y: PyTree) -> jax.Array:
            def micro_batch(samples: PyTree, group: Factors, radius: jax.Array) -> jax.Array:
                return jnp.mean(
                    jax.vmap(
                        lambda sample: loss_along(
                            self.sample_loss, layers, y, radius, sample, group
                        )
                    )(samples)
                )

            return jnp.mean(jax.vmap(micro_batch)(batch, groups, radii))

        return jax.grad(mean)(x)
