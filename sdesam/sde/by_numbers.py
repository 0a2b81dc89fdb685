"""The SDE of any optimizer's direction, by differentiating it: no tree, and no coefficient.

A step is `x+ = x - eta G`, `G` the mean over micro-batches `I` of a direction `F_I(x; rho)`, a jax
function. Its Taylor coefficients in `rho`, `F_I = sum_j rho^j F_(I,j)`, are nested derivatives at
`rho = 0`. Their means over micro-batches, listed or drawn, make drift, correction and noise of the
SDE (`docs/theory.md`, sections 2 and 9). It costs more than trees where a rule has trees, and is a
second, independent way to the same equation there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import factorial, sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from sdesam._util.checks import check_int, check_nonnegative, check_positive
from sdesam._util.functions import Function, bare, compiled, failure
from sdesam._util.precision import like, of_sums, precisely, wide
from sdesam.problems import FiniteSum, check_problem, fold_samples
from sdesam.problems.arrays import describe, numeric, shapes
from sdesam.sampling import (
    FEW_MICRO_BATCHES,
    MOST_MICRO_BATCHES,
    Hyperparameters,
    Sampling,
    count_micro_batches,
    list_micro_batches,
    told_count,
)
from sdesam.sde._kernels import FreshBatches, step_apart
from sdesam.sde.compile import MicroBatches
from sdesam.symbolic import check_order, is_kept

PyTree = Any


class Powers(NamedTuple):
    """The highest power of `rho` that is kept in each part of an SDE.

    Args:
        drift: of `-Gbar`.
        correction: of `-(eta/2) (D Gbar) Gbar`; -1 where the whole correction is dropped.
        noise: of `G` in the noise.
    """

    drift: int
    correction: int
    noise: int

    @classmethod
    def kept(cls, alpha: int, beta: int) -> Powers:
        """The powers that an order keeps: `eta^i rho^j` with `i/alpha + j/beta < 1`.

        The leading noise is kept at `alpha = 1` by custom, though no weak error of that order sees
        it.

        >>> Powers.kept(2, 3), Powers.kept(1, 2)
        (Powers(drift=2, correction=1, noise=1), Powers(drift=1, correction=-1, noise=0))
        """
        beside = [j for j in range(beta) if is_kept((alpha, beta), 1, j)]
        return cls(beta - 1, max(beside, default=-1), max(beside, default=0))


# A worked example. Two samples with losses f_i(x) = h_i (x - a_i)^2 / 2 of one parameter,
# h = (1, 2) and a = (0, 1), at x = 3, where the gradients are g = (3, 4). USAM with b = m = 2 and
# replacement has F_I = g_I + rho H_I g_I, because these losses have no third derivative.
#
# 1. There are three micro-batches: (0, 0), (0, 1), (1, 1), of probabilities 1/4, 1/2, 1/4. Their
#    means are g_I = (3, 3.5, 4) and H_I = (1, 1.5, 2), so F_(I,0) = (3, 3.5, 4) and
#    F_(I,1) = (3, 5.25, 8).
# 2. The drift to rho^1 is -(Gbar_0 + rho Gbar_1) = -(3.5 + 5.375 rho).
# 3. The noise. With weights w = (1, -1) of the two samples, sum_i w_i h(i) is what a step changes
#    by when the first sample is drawn more often and the second less. As a mean over micro-batches
#    it is m E[W_I F_I], W_I = n times the mean weight in I = (2, 0, -2):
#
#        rho^0:   2 (1/4 * 2 * 3 - 1/4 * 2 * 4) = -1               = g_0 - g_1
#        rho^1:   2 (1/4 * 2 * 3 - 1/4 * 2 * 8) = -5
#
#    The bracket of USAM, (1 - 1/m)(H_i gbar + Hbar g_i) + (1/m) H_i g_i, is
#    (3.5 + 4.5)/2 + 3/2 = 5.5 for the first sample and (7 + 6)/2 + 8/2 = 10.5 for the second, whose
#    difference is -5, too.


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "arrays", "lr", "rho", "noise_scale", "influence", "micro_batches"],
    meta_fields=["direction", "powers", "chunk", "sample_chunk", "of_samples", "draw"],
)
@dataclass(frozen=True, eq=False)
class DirectionKernel:
    """The SDE of a direction `F_I(x; rho)`, by means over micro-batches.

    The drift is, with the powers that are kept,

        B = -sum_j rho^j Gbar_j - (eta/2) sum_j rho^j sum_k (D Gbar_k) Gbar_(j-k)

    The noise has one of two forms.

    * Where `F_(I,0)` is the mean over `I` of the directions of single samples, as it is for each
      rule that is SGD at `rho = 0`, `Cov(G)` to `rho^1` is that of the first Hoeffding projection:
      the noise is `sum_i w_i h(i) = m E[W_I F_I]`, `W_I = (n/m) sum_(k in I) w_k`, times
      `(n-1)/(n-m)` without replacement; `w_i` are the weights of the samples, of mean 0.
    * Elsewhere the projection is not all of `Cov(G)`, and the noise is
      `sqrt(m/b) sum_I sqrt(p_I) xi_I (F_I - Gbar)`, one normal number for each micro-batch: for
      independent micro-batches, or for a single one.

    Args:
        data: that of the finite sum, leading axis `n`.
        arrays: that the direction holds, where it is a pytree.
        lr: `eta`.
        rho: the radius.
        noise_scale: of `xi` in the noise.
        influence: `m`, times `(n-1)/(n-m)` without replacement.
        micro_batches: all of them; None where they are drawn.
        direction: `(x, samples, rho) -> F_I(x)`, with holes for its arrays.
        powers: the powers of `rho` that are kept.
        chunk: micro-batches worked on at a time.
        sample_chunk: samples worked on at a time.
        of_samples: whether `F_(I,0)` is the mean over `I` of the directions of single samples.
        draw: how micro-batches are drawn; None where they are listed.
    """

    data: PyTree
    arrays: list[Any]
    lr: Any
    rho: Any
    noise_scale: Any
    influence: Any
    micro_batches: MicroBatches | None
    direction: Function
    powers: Powers
    chunk: int
    sample_chunk: int
    of_samples: bool
    draw: FreshBatches | None

    @property
    def rest(self) -> PyTree:
        """What the start has beside arrays; None where it has nothing."""
        return self.direction.rest

    def working_bytes(self, x0: PyTree) -> int:
        """A vector for each micro-batch that is worked on at a time."""
        each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(x0))
        return int(each * max(self.chunk, self.sample_chunk))

    def now(self) -> DirectionKernel:
        """The kernel with what its direction reads at present."""
        return replace(self, direction=self.direction.now())

    def drift(self, x: PyTree) -> PyTree:
        """The drift `B(x)`."""
        listed = self._listed(self.powers.drift)
        return self._drift(x, listed, listed)

    def step_drift(self, x: PyTree, key: jax.Array) -> PyTree:
        """An unbiased draw of `B(x)`; `B(x)` itself where all micro-batches are listed."""
        if self.draw is None:
            return self.drift(x)
        first, second = jax.random.split(key)
        fresh = self.draw.for_drift(first)
        # (D Gbar_k) Gbar_l is unbiased where its factors are drawn apart, or where one is exact:
        # with an exact Gbar_0 each product that is kept has such a factor
        other = fresh if self.of_samples else self.draw.for_drift(second)
        return self._drift(x, fresh, other)

    def apply_noise(self, x: PyTree, xi: jax.Array) -> PyTree:
        """`A(x) xi`."""
        return self._noise(x, xi, self._listed(self.powers.noise))

    def step_noise(self, x: PyTree, xi: jax.Array, key: jax.Array) -> PyTree:
        """A draw of noise of the covariance `A A^T`, up to what drawn micro-batches add; for a
        noise of samples it is unbiased given `xi`.
        """
        return self._noise(x, xi, self.micro_batches if self.draw is None else self.draw(key))

    def step_both(
        self,
        x: PyTree,
        dt: Any,
        xi: jax.Array,
        keys: tuple[jax.Array, jax.Array],
    ) -> PyTree:
        """`dt` times a draw of `B(x)`, plus one of `A(x) xi`."""
        return step_apart(self, x, dt, xi, keys)

    def coefficients(self, x: PyTree, samples: PyTree, highest: int) -> list[PyTree]:
        """`F_(I,0) .. F_(I,highest)` of one micro-batch, by its samples."""
        return taylor(partial(self.value, x, samples), highest)

    def value(self, x: PyTree, samples: PyTree, rho: Any) -> PyTree:
        """`F_I(x; rho)` of one micro-batch, a vector like `x`, or a sentence saying why it is
        none.
        """
        size = len(jax.tree.leaves(samples)[0])
        what = f"direction(x0, {size} sample{'s' * (size > 1)}, rho)"
        try:
            value = bare(self.direction.filled(self.arrays)(x, samples, rho), self.direction.rest)
        except Exception as error:
            raise failure(what, error) from error
        if shapes(value) != shapes(x):
            raise ValueError(
                f"{what} must have the structure and the shapes of x0, {describe(x)}, but it"
                f" returns {describe(value)}"
            )
        kinds = (jnp.floating, jnp.integer)
        if not all(
            numeric(leaf) and any(jnp.issubdtype(jnp.result_type(leaf), kind) for kind in kinds)
            for leaf in jax.tree.leaves(value)
        ):
            raise TypeError(f"{what} must hold real numbers, but it returns {describe(value)}")
        return like(jax.tree.map(jnp.asarray, value), x)

    def _drift(
        self,
        x: PyTree,
        batches: MicroBatches | None,
        others: MicroBatches | None,
    ) -> PyTree:
        """`B`, with the vector `Gbar_l` in `(D Gbar_k) Gbar_l` a mean over `others`."""
        mean = self._mean(x, batches, self.powers.drift)
        total = _polynomial(mean, self.rho)
        vectors = mean
        if self.powers.correction >= 0 and others is not batches:
            vectors = self._mean(x, others, self.powers.correction)
        for k in range(self.powers.correction + 1):
            along = like(_polynomial(vectors[: self.powers.correction + 1 - k], self.rho), x)
            _, slope = jax.jvp(lambda y, k=k: self._mean(y, batches, k)[k], (x,), (along,))
            total = jax.tree.map(lambda a, b, k=k: a + self.lr / 2 * self.rho**k * b, total, slope)
        return like(jax.tree.map(jnp.negative, total), x)

    def _mean(self, x: PyTree, batches: MicroBatches | None, highest: int) -> list[PyTree]:
        """`Gbar_0 .. Gbar_highest`."""
        dtype = of_sums(jnp.result_type(*jax.tree.leaves(x)))
        n = len(jax.tree.leaves(self.data)[0])
        weighted = None
        if batches is not None:
            weighted = batches.indices, jnp.asarray(batches.probabilities, dtype)
        return self._sums(x, jnp.full(n, 1 / n, dtype), weighted, highest)

    def _noise(self, x: PyTree, xi: jax.Array, batches: MicroBatches | None) -> PyTree:
        xi, weighted = wide(xi) * self.noise_scale, None
        w = xi - jnp.mean(xi)
        if batches is not None:
            p = jnp.asarray(batches.probabilities, xi.dtype)
            q = p.size
            if self.of_samples:
                # sum_i w_i h(i) is a covariance of W_I and F_I, and is estimated as one
                W = xi.size * jnp.mean(w[batches.indices], axis=1)
                W = (W - jnp.mean(W)) * (q / (q - 1)) if batches.drawn else W
                weighted = batches.indices, self.influence * p * W
            else:
                each = xi * jnp.sqrt(p)
                # deviations from the mean of q draws have (q - 1)/q of the variance
                each = each * sqrt(q / (q - 1)) if batches.drawn else each
                # sum_I each_I (F_I - Gbar)
                weighted = batches.indices, each - p * jnp.sum(each)
        parts = self._sums(x, w, weighted, self.powers.noise)
        return like(_polynomial(parts, self.rho), x)

    def _sums(
        self,
        x: PyTree,
        of_samples: jax.Array,
        weighted: tuple[Any, jax.Array] | None,
        highest: int,
    ) -> list[PyTree]:
        """`sum_I v_I F_(I,j)` for each `j`, `weighted` the indices of micro-batches and `v`.

        Where micro-batches are drawn, and `F_(I,0)` need not be, the sum for `j = 0` is
        `sum_i of_samples_i F_(i,0)`.
        """
        if self.draw is None or not self.of_samples:
            return self._over_micro_batches(x, weighted, highest)
        first = self._over_samples(x, of_samples)
        if not highest:
            return [first]
        return [first, *self._over_micro_batches(x, weighted, highest)[1:]]

    def _over_micro_batches(
        self,
        x: PyTree,
        weighted: tuple[Any, jax.Array] | None,
        highest: int,
    ) -> list[PyTree]:
        assert weighted is not None

        def part(some: tuple[jax.Array, jax.Array]) -> list[PyTree]:
            indices, weights = some
            each = jax.vmap(lambda one: self.coefficients(x, _taken(self.data, one), highest))(
                indices
            )
            return [_weighted(weights, value) for value in each]

        sums: list[PyTree] = fold_samples(part, jax.tree.map(jnp.asarray, weighted), self.chunk)
        return sums

    def _over_samples(self, x: PyTree, weights: jax.Array) -> PyTree:
        def part(some: tuple[PyTree, jax.Array]) -> PyTree:
            samples, weights = some
            each = jax.vmap(lambda one: self.value(x, _alone(one), 0.0))(samples)
            return _weighted(weights, each)

        return fold_samples(part, (self.data, weights), self.sample_chunk)

    def _listed(self, highest: int) -> MicroBatches | None:
        if self.draw is not None and (highest or not self.of_samples):
            raise ValueError(
                f"this SDE draws {self.draw.count} fresh micro-batches a step, so its exact"
                " expectation is not known: use step_drift or step_noise with a key, or"
                " expectation='exact' where the micro-batches can be listed"
            )
        return self.micro_batches


def taylor(fn: Callable[[Any], PyTree], highest: int) -> list[PyTree]:
    """The Taylor coefficients of `fn` at 0, by nested forward derivatives.

    `jax.experimental.jet` lacks rules that losses need, such as those of softplus, logaddexp, relu
    and loops. Where it has them it is no faster: to `rho^2` of USAM on digits (m = 16, on a CPU) it
    took 0.121 ms against 0.111, and half as many operations again.

    >>> [float(c) for c in taylor(lambda r: 3 + 2 * r + 5 * r**2, 2)]
    [3.0, 2.0, 5.0]
    """

    def derivatives(count: int) -> Callable[[Any], list[PyTree]]:
        if not count:
            return lambda r: [fn(r)]
        lower = derivatives(count - 1)

        def one_more(r: Any) -> list[PyTree]:
            values, slopes = jax.jvp(lower, (r,), (1.0,))
            return [*values, slopes[-1]]

        return one_more

    # a plain number: a strong type would make numbers in half precision wide
    return [
        jax.tree.map(lambda leaf, j=j: leaf / factorial(j), value)
        for j, value in enumerate(derivatives(highest)(0.0))
    ]


def _polynomial(coefficients: list[PyTree], rho: Any) -> PyTree:
    total = coefficients[-1]
    for lower in coefficients[-2::-1]:
        total = jax.tree.map(lambda a, b: a + rho * b, lower, total)
    return total


def _weighted(weights: jax.Array, values: PyTree) -> PyTree:
    """`sum_k weights_k values_k` over the leading axis."""
    return jax.tree.map(lambda v: jnp.tensordot(weights.astype(v.dtype), v, 1), wide(values))


def _taken(data: PyTree, indices: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[indices], data)


def _alone(sample: PyTree) -> PyTree:
    """The micro-batch of one sample."""
    return jax.tree.map(lambda leaf: leaf[None], sample)


def from_direction(
    direction: Callable[..., PyTree],
    problem: FiniteSum,
    step: Hyperparameters,
    order: tuple[int, int],
    expectation: str,
    micro_batches: int | None,
) -> tuple[DirectionKernel, tuple[int, ...], dict[str, Any]]:
    """Kernel, shape of the noise and configuration of a direction's SDE; see
    :meth:`sdesam.SDE.from_step`.

    Args:
        direction: the function.
        problem: the finite sum.
        step: learning rate, radius and sizes.
        order: `(alpha, beta)`.
        expectation: `"sampled"` or `"exact"`.
        micro_batches: how many are drawn.
    """
    check_problem(problem)
    if not callable(direction):
        raise TypeError(
            f"direction={direction!r}: it must be a function (x, samples, rho) -> the direction of"
            " one micro-batch"
        )
    alpha, beta = check_order(order)
    lr, rho, sampling = _checked_step(step, problem.n)
    if expectation not in ("exact", "sampled"):
        raise ValueError(f"expectation={expectation!r}: choose 'exact' or 'sampled'")
    listed, draw = _micro_batches(sampling, problem.n, expectation, micro_batches)
    _check_loss(problem, alpha, beta)
    function, arrays = Function.apart(direction, problem.rest)
    n, m, b = problem.n, sampling.m, sampling.batch
    kernel = DirectionKernel(
        data=problem.data,
        arrays=arrays,
        lr=lr,
        rho=rho,
        noise_scale=sqrt(lr * float(sampling.covariance_factor(n)) / n),
        influence=_influence(sampling, n),
        micro_batches=listed,
        direction=function,
        powers=Powers.kept(alpha, beta),
        chunk=max(1, problem.chunk // m),
        sample_chunk=problem.chunk,
        of_samples=True,
        draw=draw,
    )
    _check_traces(kernel, problem, m)
    if not _of_samples(kernel, problem):
        if not sampling.replace and m < b:
            raise ValueError(
                "direction at rho = 0 is no mean over the samples of a micro-batch, and without"
                f" replacement the {b // m} micro-batches of a step depend on each other: this"
                " noise is not known; use replace=True, or one micro-batch, micro=batch"
            )
        kernel = replace(kernel, of_samples=False, noise_scale=sqrt(lr * m / b))
    config = {
        "sde": "by numbers",
        "direction": function.__name__,
        "order": [alpha, beta],
        "problem": problem.name,
        "samples": n,
        "fingerprint": problem.fingerprint,
        "lr": lr,
        "rho": rho,
        "batch": b,
        "micro": m,
        "replace": sampling.replace,
        "expectation": expectation,
        "micro_batches": "all" if draw is None else draw.count,
        "noise": "of samples" if kernel.of_samples else "of micro-batches",
    }
    q = draw.count if listed is None else len(listed.indices)  # type: ignore[union-attr]
    return kernel, (n,) if kernel.of_samples else (q,), config


def _checked_step(step: Hyperparameters, n: int) -> tuple[float, float, Sampling]:
    """The learning rate, the radius and the sizes, or one sentence saying which does not fit."""
    if step.rho is None:
        raise ValueError(
            "from_step needs rho, the number that the direction is expanded in; give rho=0 for a"
            " direction without it"
        )
    if not isinstance(step.replace, bool):
        raise TypeError(
            f"replace={step.replace!r}: it must be True (with replacement) or False (without)"
        )
    sampling = Sampling(step.batch, step.micro, step.replace)
    sampling.check_population(n)
    return check_positive("lr", step.lr), check_nonnegative("rho", step.rho), sampling


def _influence(sampling: Sampling, n: int) -> float:
    """`m`, times `(n-1)/(n-m)` without replacement; 0 where each micro-batch is the data set."""
    m = sampling.m
    if sampling.replace:
        return float(m)
    return m * (n - 1) / (n - m) if m < n else 0.0


def _micro_batches(
    sampling: Sampling, n: int, expectation: str, count: int | None
) -> tuple[MicroBatches | None, FreshBatches | None]:
    """All micro-batches, or a way to draw some."""
    m, total = sampling.m, count_micro_batches(sampling.m, n, sampling.replace)
    if expectation == "exact":
        if count is not None:
            raise ValueError(
                f"micro_batches={count}: an exact expectation lists all micro-batches; leave"
                " micro_batches out"
            )
        if total > MOST_MICRO_BATCHES:
            raise ValueError(
                f"n={n}, m={m} has {told_count(total)} micro-batches, more than the"
                f" {MOST_MICRO_BATCHES} that are listed: use"
                f" expectation='sampled'{_largest(sampling, n)}"
            )
    if expectation == "exact" or (count is None and total <= max(n, FEW_MICRO_BATCHES)):
        return MicroBatches(*list_micro_batches(m, n, sampling.replace)), None
    number = max(FEW_MICRO_BATCHES, n // 2) if count is None else count
    number = check_int("micro_batches", number, least=2)
    return None, FreshBatches(number, m, n, sampling.replace, False)


def _largest(sampling: Sampling, n: int) -> str:
    """What else would do: the most samples that can be listed with this size of micro-batches, and
    the largest micro-batches with these samples.
    """

    def few(m: int, n: int) -> bool:
        return count_micro_batches(m, n, sampling.replace) <= MOST_MICRO_BATCHES

    m, least = sampling.m, 1 if sampling.replace else sampling.batch
    # the number of micro-batches grows with n, from 1
    samples = bisect_left(range(n), True, key=lambda n: not few(m, n)) - 1
    # larger sizes k are out: with replacement more than k are listed, without it k is at most n
    divisors = (k for k in range(1, min(m, max(n, MOST_MICRO_BATCHES))) if sampling.batch % k == 0)
    sizes = [k for k in divisors if few(k, n)]
    told = [f"n={samples} samples"] if samples >= least else []
    told += [f"micro={max(sizes)}"] if sizes else []
    return f", or at most {' or '.join(told)}" if told else ""


def _check_loss(problem: FiniteSum, alpha: int, beta: int) -> None:
    """Third derivatives of a loss with kinks are not what the theory means by them."""
    if (alpha == 2 or beta > 2) and problem.nonsmooth:
        raise ValueError(
            f"the loss of problem {problem.name!r} is not smooth enough for order"
            f" {(alpha, beta)}, whose theory asks for three derivatives: it contains"
            f" {', '.join(problem.nonsmooth)} (ReLU has such a kink); use tanh, gelu or softplus,"
            " or order (1, 2)"
        )


def _check_traces(kernel: DirectionKernel, problem: FiniteSum, m: int) -> None:
    """Refuse a direction that is no vector like `x`, that takes `m` samples alone, or that is
    another function each time it is traced.
    """
    several = _taken(kernel.data, np.arange(m) % problem.n)
    radius = kernel.rho or 0.1

    def traced(samples: PyTree) -> list[np.ndarray]:
        fn = precisely(lambda x, samples, rho: kernel.value(x, samples, rho))
        closed = jax.make_jaxpr(fn)(problem.x0, samples, radius)
        run = jaxpr_as_fun(closed)
        return [np.asarray(v) for v in run(*jax.tree.leaves((problem.x0, samples, radius)))]

    first, second = traced(several), traced(several)
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True)):
        raise ValueError(
            "direction gives other values when it is called again with the same arguments: it must"
            " be a function of x, samples and rho alone; random numbers of its own have no place"
            " in it"
        )
    try:
        traced(_taken(kernel.data, np.arange(1)))
    except (ValueError, TypeError) as error:
        raise type(error)(
            f"{error}; with {m} samples it does not fail: it must take any number of samples, as"
            " jnp.mean over their leading axis does"
        ) from error


def _of_samples(kernel: DirectionKernel, problem: FiniteSum) -> bool:
    """Whether `F_(I,0)` is the mean over `I` of the directions of single samples; a direction that
    is not smooth at the start is refused.
    """
    if kernel.draw is None:
        assert kernel.micro_batches is not None
        indices = np.asarray(kernel.micro_batches.indices)
    else:
        indices = np.asarray(kernel.draw(jax.random.key(0)).indices[:FEW_MICRO_BATCHES])
    away = jax.tree.map(lambda leaf: leaf + (1 + abs(leaf)) / 8, problem.x0)
    at_start, beside = (
        _Seen(*map(np.asarray, _seen(kernel, x, jnp.asarray(indices)))) for x in (problem.x0, away)
    )
    dtype = max((leaf.dtype for leaf in jax.tree.leaves(problem.x0)), key=lambda d: d.itemsize)
    rounding = float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    _check_smooth(at_start, indices)
    if kernel.powers.drift:
        _check_taylor(at_start, indices, rounding)
    close = rounding**0.5
    together = np.concatenate([at_start.together, beside.together])
    apart = np.concatenate([at_start.apart, beside.apart])
    known = np.isfinite(together).all(axis=1) & np.isfinite(apart).all(axis=1)
    F, M = together[known].astype(np.float64), apart[known].astype(np.float64)
    size = np.abs(M).max(initial=0) + np.abs(F).max(initial=0)
    if known.sum() and np.abs(F - M).max() <= close * size:
        return True
    ratio = float(np.sum(F * M) / np.sum(M * M)) if np.any(M) else 1.0
    if np.abs(F - ratio * M).max(initial=0) <= close * size and abs(ratio - 1) > close:
        raise ValueError(
            f"direction at rho = 0 is {ratio:.4g} times the mean of its values for the"
            f" {indices.shape[1]} samples of a micro-batch alone: divide by the number of the"
            " samples that it is given, as jnp.mean over their leading axis does"
        )
    return False


def _check_smooth(seen: _Seen, indices: np.ndarray) -> None:
    """Refuse coefficients, or derivatives of them in `x`, that are not finite at the start."""
    for finite, of in ((seen.finite, ""), (seen.slopes_finite, "the derivative in x of ")):
        bad = np.argwhere(~finite)
        if len(bad):
            batch, j = bad[0]
            raise ValueError(
                f"{of}the rho^{j} coefficient of direction at x0 is not finite for the micro-batch"
                f" {_name(indices, batch)}: a direction must be smooth in rho and x; a norm, a root"
                " or |x| has no derivative at 0: move x0, or use sqrt(|v|^2 + eps^2) with eps > 0"
                " for a norm"
            )


def _check_taylor(seen: _Seen, indices: np.ndarray, rounding: float) -> None:
    """Refuse a kink in `rho` at 0, such as `max(rho, 0)`: jax gives it derivatives that are finite,
    and not those at `rho > 0`.

    What is left of `F_I(rho)` beside its Taylor polynomial falls with `rho`, by `4^2` at least for
    each factor 4; beside a kink by 4.
    """
    left = seen.left
    least = 1000 * rounding * (np.abs(seen.together).max(initial=0) + left.max(initial=0))
    resolved = left[:, 1:] > least
    ratio = left[:, :-1] / np.where(resolved, left[:, 1:], 1)
    as_kink = ~resolved | (abs(ratio / 4 - 1) < 0.1)
    bad = np.flatnonzero(as_kink.all(axis=1) & (resolved.sum(axis=1) >= 3))
    if len(bad):
        raise ValueError(
            f"direction at x0 has a kink in rho at 0 for the micro-batch {_name(indices, bad[0])}:"
            " it must be smooth there, without max(rho, 0) and without cases such as rho > 0"
        )


def _name(indices: np.ndarray, batch: int) -> str:
    """A micro-batch for a sentence."""
    return str(indices[batch].tolist()) if indices.shape[1] <= 8 else f"number {batch}"


_RADII = tuple(4.0**-k for k in range(6))
"""Fractions of `rho` at which a direction is set beside its Taylor polynomial."""


class _Seen(NamedTuple):
    """What there is to see of a direction at one point, for each of `q` micro-batches.

    Args:
        finite: whether `F_(I,j)` is, shape `(q, j)`.
        slopes_finite: whether the part of its derivative in `x` that is used is.
        together: random components of `F_(I,0)`, shape `(q, 4)`: a few tell two vectors apart.
        apart: those of the mean of `F_(i,0)` over the samples of `I`.
        left: of `F_I` beside its Taylor polynomial at `_RADII`: the norm of the components, shape
            `(q, 6)`.
    """

    finite: Any
    slopes_finite: Any
    together: Any
    apart: Any
    left: Any


def _see(kernel: DirectionKernel, x: PyTree, indices: jax.Array) -> _Seen:
    """What there is to see of a direction at `x`."""
    highest, corrected = kernel.powers.drift, kernel.powers.correction + 1
    rng = np.random.default_rng(0)
    probes = [
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), x)
        for _ in range(4)
    ]

    def components(vector: PyTree) -> jax.Array:
        leaves = jax.tree.leaves(wide(vector))
        return jnp.stack(
            [
                jnp.stack([jnp.sum(a * b) for a, b in zip(leaves, each, strict=True)]).sum()
                for each in map(jax.tree.leaves, probes)
            ]
        )

    def finite(vectors: list[PyTree]) -> jax.Array:
        each = [
            jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(v)]).all()
            for v in vectors
        ]
        return jnp.stack(each) if each else jnp.ones(1, bool)

    radii = jnp.where(kernel.rho == 0, 0.1, kernel.rho) * jnp.asarray(_RADII)

    def one(indices: jax.Array) -> _Seen:
        samples = _taken(kernel.data, indices)

        def values(y: PyTree) -> list[PyTree]:
            return kernel.coefficients(y, samples, highest)

        along = jax.tree.map(lambda v, leaf: jnp.asarray(v, leaf.dtype), probes[0], x)
        found, slopes = jax.jvp(values, (x,), (along,))
        singles = jax.vmap(lambda sample: components(kernel.value(x, _alone(sample), 0.0)))(samples)

        def left(rho: jax.Array) -> jax.Array:
            value = kernel.value(x, samples, rho)
            rest = components(value) - components(_polynomial(found, rho))
            return jnp.sqrt(jnp.sum(rest**2))

        return _Seen(
            finite(found),
            finite(slopes[:corrected]),
            components(found[0]),
            jnp.mean(singles, axis=0),
            jax.vmap(left)(radii),
        )

    seen: _Seen = jax.lax.map(one, indices, batch_size=kernel.chunk)
    return seen


_seen = compiled()(_see)
