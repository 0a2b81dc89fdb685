"""The ONE step of every optimizer of the family, read off the variant's declaration.

`StepKernel` is the chain on a finite sum; `perturbed_gradient` is its heart, one micro-batch, and
serves the trainers of `sdesam.optim` with losses that are no finite sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._functions import compiled
from sdesam._precision import precisely, wide
from sdesam.problems import FiniteSum, mean_grad
from sdesam.problems.outer_products import (
    Factors,
    dense_layers,
    factors,
    loss_along,
    squared_norm_of_mean,
)
from sdesam.variants import NormEstimate, Variant

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

    @property
    def ascent(self) -> Ascent:
        """Those of the perturbation."""
        return Ascent(self.rho, self.eps, self.lam)


class Ascent(NamedTuple):
    """The numbers of a perturbation.

    Args:
        rho: the radius.
        eps: of the normaliser.
        lam: of the Gibbs weights.
    """

    rho: Any
    eps: Any = 0.0
    lam: Any = 0.0


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


def perturbed_gradient(
    rule: Variant,
    norms: NormEstimate | None,
    losses: Losses,
    x: PyTree,
    full_gradient: PyTree,
    ascent: Ascent,
    key: jax.Array | None = None,
    together: str | None = None,
) -> Perturbed:
    """`grad f_I(x + rho u_I)` of one micro-batch, or of the part of it that this device holds.

    Args:
        rule: the variant.
        norms: how gradient norms are estimated, for Gibbs weights.
        losses: per-sample losses of the micro-batch.
        x: the parameters.
        full_gradient: `grad f(x)` if `rule.needs_full_gradient`, else None.
        ascent: the numbers of the perturbation.
        key: for the random directions of an estimate; the same for all parts of a micro-batch.
        together: the name of the device axis over which a micro-batch is spread, in equal parts;
            None if one device holds it.
    """

    def mean(y: PyTree) -> tuple[jax.Array, Any]:
        values, aux = losses(y)
        return jnp.mean(values), aux

    gradient = jax.value_and_grad(mean, has_aux=True)
    if rule.perturbation == "none":
        (loss, aux), G = gradient(x)
        return Perturbed(G, loss, aux)
    if rule.perturbation == "data set":
        loss, aux = mean(x)  # nobody asks for them in a chain, and compilation leaves them out
        _, G = gradient(
            moved(x, ascent.rho, normalised(rule, full_gradient, full_gradient, ascent.eps))
        )
        return Perturbed(G, loss, aux)
    if rule.weights == "equal":
        (loss, aux), own = gradient(x)
        own = own if together is None else jax.lax.pmean(own, together)
    else:
        assert norms is not None
        own, values, aux = weighted_gradient(norms, losses, x, ascent.lam, key, together)
        loss = jnp.mean(values)
    _, G = gradient(moved(x, ascent.rho, normalised(rule, own, full_gradient, ascent.eps)))
    return Perturbed(G, loss, aux)


def weighted_gradient(
    norms: NormEstimate,
    losses: Losses,
    x: PyTree,
    lam: Any,
    key: jax.Array | None,
    together: str | None = None,
) -> tuple[PyTree, jax.Array, Any]:
    """`sum_i p_i g_i` with Gibbs weights, the per-sample losses on the way, and the auxiliary
    values; `together` as in `perturbed_gradient`.
    """
    values, pull, aux = jax.vjp(losses, x, has_aux=True)
    p = gibbs(estimated_norms(norms, lambda y: losses(y)[0], x, values, key), lam, together)
    (own,) = pull(p.astype(values.dtype))
    return own if together is None else jax.lax.psum(own, together), values, aux


def normalised(rule: Variant, own: PyTree, full_gradient: PyTree, eps: Any) -> PyTree:
    """`u_I` from the gradient that it follows; 0 where the normaliser vanishes."""
    if rule.normaliser == "none":
        return own
    factor = inverse_norm(own if rule.normaliser == "own" else full_gradient, eps)
    return jax.tree.map(lambda leaf: (leaf.astype(factor.dtype) * factor).astype(leaf.dtype), own)


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
            ahead = losses(moved(x, norms.delta, direction(norms, x, key)))
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


def direction(norms: NormEstimate, x: PyTree, key: jax.Array) -> PyTree:
    """One random direction `z` with the structure of `x`, independent entries of mean 0 and
    variance 1.
    """
    leaves, structure = jax.tree.flatten(x)
    if norms.law == "gaussian":
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
    """`x+ = x - lr * mean_I grad f_I(x + rho u_I)` on a finite sum. A pytree, whose leaves are its
    numbers and its data: chains that differ in these alone share compiled code.
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
        if self.replace:
            indices = jax.random.randint(key, (self.batch,), 0, self.n)
        else:
            indices = jax.random.choice(key, self.n, (self.batch,), replace=False)
        return indices.reshape(self.batch // self.micro, self.micro)

    def direction_key(self, key: jax.Array) -> jax.Array | None:
        """The key of a step's random directions, apart from that of its batch; None where the step
        has none.
        """
        return jax.random.fold_in(key, 1) if self.norms is not None and self.norms.random else None

    def step(self, x: PyTree, indices: jax.Array, key: jax.Array | None = None) -> PyTree:
        """One step with given micro-batches."""
        return moved(x, -self.numbers.lr, self.direction(x, indices, key))

    def direction(self, x: PyTree, indices: jax.Array, key: jax.Array | None = None) -> PyTree:
        """`G(x)`, the mean over the micro-batches of `grad f_I(x + rho u_I)`; `key` is for random
        directions.
        """
        full_gradient = (
            mean_grad(self.sample_loss, self.chunk, self.numbers.data, x)
            if self.rule.needs_full_gradient
            else None
        )
        layers = dense_layers(
            self.sample_loss, x, jax.tree.map(lambda leaf: leaf[0], self.numbers.data)
        )
        if self._inner_products_pay(layers, x):
            return self._direction_by_factors(x, indices, layers, full_gradient)

        def micro_batch(indices: jax.Array) -> PyTree:
            samples = jax.tree.map(lambda leaf: leaf[indices], self.numbers.data)

            def losses(y: PyTree) -> tuple[jax.Array, None]:
                return _losses(self.sample_loss, y, samples), None

            return perturbed_gradient(
                self.rule, self.norms, losses, x, full_gradient, self.numbers.ascent, key
            ).gradient

        return jax.tree.map(lambda leaf: leaf.mean(axis=0), jax.vmap(micro_batch)(indices))

    def copies(self, x: PyTree) -> int:
        """How many copies of the parameters a step holds: one for each micro-batch, or of those in
        half precision one for each sample.
        """
        return self.batch if any(map(_narrow, jax.tree.leaves(x))) else self.batch // self.micro

    def _inner_products_pay(self, layers: dict[int, Any], x: PyTree) -> bool:
        """Whether a product with the inner products of a micro-batch of gradients is less work than
        one with the matrix that they add up to.
        """
        if (
            self.rule.perturbation != "micro-batch"
            or self.rule.weights != "equal"
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
        dear = 4 if self.rule.normaliser == "own" and self.micro > 1 else 1
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
        batch = jax.tree.map(lambda leaf: leaf[indices], self.numbers.data)
        groups = jax.vmap(jax.vmap(partial(factors, self.sample_loss, layers, x)))(batch)

        def inverse(group: Factors) -> jax.Array:
            if self.rule.normaliser == "none":
                return jnp.ones((), _widest(jax.tree.leaves(x)))
            if self.rule.normaliser == "data set":
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
