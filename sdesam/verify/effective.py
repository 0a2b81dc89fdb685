"""The effective micro-batch of RW-SAM: the m for which m-SAM regularises as much, to first order in
rho, at the same point.

The `rho^1` part of a step's mean is `A = E[H_gamma u_gamma]`. For m-SAM it is a gradient,
`A_m = grad E|g_I|`, and depends on `m` through the noise in `g_I`; for RW-SAM it is none, so that
the two are compared along one direction. The module measures both on common batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._util.checks import check_int
from sdesam._util.functions import compiled
from sdesam._util.precision import like, wide
from sdesam.ensemble import check_key
from sdesam.optim.kernel import check_delta_on, estimated_norms, gibbs, inverse_norm
from sdesam.problems import FiniteSum, check_problem
from sdesam.problems.means import SampleLoss, fold_samples, mean_grad, mean_grad_wide
from sdesam.sampling import Hyperparameters
from sdesam.variants import NormEstimate, variant

PyTree = Any

_BATCHES_PER_BLOCK = 4
"""A block of samples is cut into this many mini-batches, and into micro-batches of every size up to
itself, so that all are measured on one draw.
"""
_RESAMPLES = 500
_CLEAR = 4.0
"""Standard errors by which a larger `m` must regularise more before the family counts as not
monotone: 3e-5 per pair of sizes.
"""


class Equivalent(NamedTuple):
    """RW-SAM in terms of m-SAM.

    Args:
        response: rate at which the `rho^1` drift lowers the sharpness, per unit of `rho`.
        share: `(response - r_b)/(r_1 - r_b)` with the responses `r_m` of m-SAM: 0 for SAM, 1 for
            `m = 1`, negative for less than SAM.
        stderr: of the share.
        micro: the effective micro-batch; `inf` if even n-SAM regularises more, 0 if even `m = 1`
            regularises less, NaN if the responses of m-SAM do not fall with `m`, or those of
            `m = 1` and `m = b` cannot be told apart, so that there is no such number.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    response: float
    share: float
    stderr: float
    micro: float
    low: float
    high: float


@dataclass(frozen=True)
class EffectiveMicroBatch:
    """What :func:`effective_micro_batch` found.

    Args:
        step: RW-SAM as the chain does it: weights in the perturbation alone.
        weighted: were the descent gradient weighted in the same way,
            `sum_i p_i grad f_i(x + rho u)`; its `rho^0` drift is another one, too.
        samples: the mean effective number of samples `1 / sum_i p_i^2` of a batch.
        sizes: micro-batch sizes of the m-SAM family; the last is the whole data set, `inf` with
            replacement.
        family: their responses.
        family_stderr: their standard errors; 0 for the last, which is exact.
    """

    step: Equivalent
    weighted: Equivalent
    samples: float
    sizes: tuple[float, ...]
    family: np.ndarray
    family_stderr: np.ndarray

    def __str__(self) -> str:
        def told(one: Equivalent) -> str:
            return (
                f"m_eff {_text(one.micro)} ({_text(one.low)} to {_text(one.high)}), share"
                f" {one.share:+.3f} +- {one.stderr:.3f}"
            )

        return (
            f"{told(self.step)}; with the descent gradient weighted too: {told(self.weighted)};"
            f" {self.samples:.1f} samples carry the weight"
        )


def effective_micro_batch(
    problem: FiniteSum,
    x: PyTree,
    *,
    batch: int,
    lam: float,
    key: jax.Array,
    norms: NormEstimate | None = None,
    eps: float = 0.0,
    replace: bool = True,
    batches: int = 1024,
    along: PyTree | None = None,
) -> EffectiveMicroBatch:
    """The m for which m-SAM has the first-order regularisation that RW-SAM has, at one point.

    m-SAM adds `rho E|g_I|` to the loss. What of it depends on `m` is the sharpness due to noise,
    `S = E|g_i| - |grad f|`, the difference of `m = 1` and n-SAM. So the regularisation of an
    optimizer is measured as the rate `A . grad S` at which its `rho^1` drift `-rho A` lowers `S`,
    and `m_eff` is where `A_m . grad S = A_rw . grad S`. Because `grad S = A_1 - A_inf`, this is
    also the least-squares projection of `A_rw` on the line through the two ends of the family. (The
    rate at which tr V falls, `along=jax.grad(problem.trace_cov)(x)`, agrees early in training;
    late, it is not monotone in `m` even for m-SAM itself, and then defines nothing.) The family is
    interpolated in `sqrt(c_m)`, `c_m = 1/m` with replacement, in which it is nearly linear where
    noise is large; `E|g_I|` makes sense also for `m > b`, up to n-SAM.

    What to expect. The gradient of the mini-batch itself is the steepest perturbation of the
    mini-batch's loss: `u . g_gamma <= |g_gamma|`. So weights in the perturbation alone can only
    ascend that loss less than SAM does, which bounds the ascent and not the response that is
    measured here. In `E[H_gamma u_gamma]` a sample's
    Hessian meets its own gradient with weight `p_i/b`, in all `1/b` as in SAM, but the vector that
    is normalised is longer, because it averages only `N = 1/sum_i p_i^2` samples: where noise
    dominates and the weights do not depend on the gradients, `m_eff = b^2/N`, MORE than `b`. Were
    the descent gradient weighted too, the weight would be `p_i^2` and `m_eff = N`. The effect is
    large where `lam` times the spread of the estimates in a batch is above 1, so that `N` is well
    below `b`; a single random direction spreads estimates even where all norms are equal.

    Args:
        problem: the finite sum.
        x: the parameters, structure of `problem.x0`; on a trajectory, call it at several points.
        batch: `b`, at least 2.
        lam: inverse temperature of the Gibbs weights.
        key: a jax random key for batches and directions.
        norms: the norm estimate; left out, one Rademacher direction.
        eps: of the normaliser.
        replace: whether batches are drawn with replacement.
        batches: how many mini-batches of RW-SAM to average, rounded up to fours.
        along: another direction in parameter space in place of `grad S`, structure of `x`.

    Returns:
        An :class:`EffectiveMicroBatch`, with bootstrap standard errors over blocks of batches.

    Raises:
        ValueError: `lam < 0`, a batch that cannot be drawn or has one sample, too few batches,
            parameters of another structure, a direction that is zero.
        TypeError: `key` is no jax random key.

    Source: this project; RW-SAM is Luo et al., arXiv 2509.18001, section 4.

    >>> import sdesam
    >>> problem = sdesam.problems.digits(train=64, width=4)
    >>> found = effective_micro_batch(
    ...     problem,
    ...     problem.x0,
    ...     batch=8,
    ...     lam=8.0,
    ...     norms=sdesam.NormEstimate("exact"),
    ...     key=jax.random.key(0),
    ...     batches=256,
    ... )
    >>> found.step.share < 0 < found.weighted.share
    True
    """
    given = Hyperparameters(1.0, 0.0, batch, None, replace, eps, lam, norms)
    number = given.checked(variant("rw-sam"), check_problem(problem).n)
    if number.sampling.batch < 2:
        raise ValueError(
            "batch=1: a single sample has all the weight, so RW-SAM is SAM; choose batch >= 2"
        )
    assert number.norms is not None
    check_delta_on(number.norms, problem)
    x, b, n = problem.check_params(x), number.sampling.batch, problem.n
    length = b * _BATCHES_PER_BLOCK if replace else b * min(_BATCHES_PER_BLOCK, n // b)
    blocks = -(-check_int("batches", batches) * b // length)
    if blocks < 16:
        least = 16 * length // b
        raise ValueError(
            f"batches={batches}: choose at least {least}, so that there are 16 blocks of"
            f" {length // b} to estimate errors from"
        )
    layout = _Layout(
        problem.sample_loss,
        problem.chunk,
        n,
        b,
        length,
        replace,
        number.norms,
        _sizes(b, length, n, replace),
    )
    direction = None if along is None else problem.check_params(along)
    if direction is not None and not float(_dot(direction, direction)) > 0:
        raise ValueError("along is zero or not finite: it must be a direction in parameter space")
    values, full_gradient = _measure(
        layout, blocks, problem.data, x, direction, check_key(key), number.eps, number.lam
    )
    return _summary(layout, np.asarray(values, float), float(full_gradient))


@dataclass(frozen=True)
class _Layout:
    """Static facts of a measurement, hashable, so that compiled code is shared over points and
    lambda.
    """

    sample_loss: SampleLoss
    chunk: int
    n: int
    batch: int
    length: int
    replace: bool
    norms: NormEstimate
    sizes: tuple[int, ...]


def _sizes(b: int, length: int, n: int, replace: bool) -> tuple[int, ...]:
    """Powers of two up to a block, the batch and the block itself; without replacement the whole
    data set is kept for the exact end.
    """
    most = length if replace else min(length, n - 1)
    doubled = {2**k for k in range(most.bit_length()) if 2**k <= most}
    return tuple(sorted({*doubled, most, *([b] if b <= most else [])}))


# One draw measures all sizes. With b = 2 a block has 8 samples, and is cut in several ways at once:
#
#     m-SAM, m = 1, 2, 4, 8      8, 4, 2, 1 groups with equal weights 1/m
#     SAM                        4 groups of b = 2, the mini-batches
#     RW-SAM                     the same 4 groups, with Gibbs weights inside each
#
# A response is w . (sum_j q_j H_j) u with u the normalised sum_i p_i g_i. Both sums are over
# samples of the block, so that all responses follow from two tables of inner products, g_i . g_j
# and g_i . H_j w, however many ways of cutting there are. And because the same samples are behind
# all of them, their differences have little noise.
@compiled(static=2)
def _measure(
    layout: _Layout,
    blocks: int,
    data: PyTree,
    x: PyTree,
    along: PyTree | None,
    key: jax.Array,
    eps: Any,
    lam: Any,
) -> tuple[jax.Array, jax.Array]:
    """Per block: the responses of m-SAM at every size, of SAM on the batches, of RW-SAM in both
    readings, and the effective number of samples.
    """
    loss, b, length = layout.sample_loss, layout.batch, layout.length
    count = length // b

    def slope(sample: PyTree, v: PyTree) -> PyTree:
        """`H_i v`."""
        return jax.jvp(lambda y: jax.grad(loss)(y, sample), (x,), (v,))[1]

    def own(sample: PyTree) -> PyTree:
        g = jax.grad(loss)(x, sample)
        return slope(sample, _scaled(g, inverse_norm(g, eps)))

    gbar = mean_grad(loss, layout.chunk, data, x)
    full_gradient = jax.jvp(
        lambda y: mean_grad_wide(loss, layout.chunk, data, y),
        (x,),
        (_scaled(gbar, inverse_norm(gbar, eps)),),
    )[1]
    if along is None:
        total = fold_samples(
            lambda part: jax.tree.map(lambda leaf: leaf.sum(axis=0), wide(jax.vmap(own)(part))),
            data,
            layout.chunk,
        )
        along = like(jax.tree.map(lambda one, all_: one / layout.n - all_, total, full_gradient), x)

    def block(key: jax.Array) -> jax.Array:
        drawn, chance = jax.random.split(key)
        if layout.replace:
            indices = jax.random.randint(drawn, (length,), 0, layout.n)
        else:
            indices = jax.random.choice(drawn, layout.n, (length,), replace=False)
        samples = jax.tree.map(lambda leaf: leaf[indices], data)
        g, bent = wide(jax.vmap(lambda s: (jax.grad(loss)(x, s), slope(s, along)))(samples))
        gram, cross = _products(g, g), _products(g, bent)  # g_i . g_j and g_i . H_j w

        def response(p: jax.Array, q: jax.Array) -> jax.Array:
            """`w . (sum_j q_j H_j) u`, `u` the normalised `sum_i p_i g_i`, for rows of weights."""
            square = jnp.maximum(jnp.einsum("gi,ij,gj->g", p, gram, p), 0) + eps**2
            along_u = jnp.einsum("gi,ij,gj->g", p, cross, q)
            return jnp.where(square > 0, along_u / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

        def batch_weights(samples: PyTree, key: jax.Array) -> jax.Array:
            def losses(y: PyTree) -> jax.Array:
                values: jax.Array = jax.vmap(loss, (None, 0))(y, samples)
                return values

            p: jax.Array = gibbs(estimated_norms(layout.norms, losses, x, losses(x), key), lam)
            return p

        grouped = jax.tree.map(lambda leaf: leaf.reshape(count, b, *leaf.shape[1:]), samples)
        weights = jax.vmap(batch_weights)(grouped, jax.random.split(chance, count))
        # each batch's weights in the columns of its own samples, 0 elsewhere: for norms 1 and 3 and
        # lam = 1 they are 0.12 and 0.88, which is N = 1 / (0.12^2 + 0.88^2) = 1.27 samples
        p = (jnp.eye(count, dtype=weights.dtype)[:, :, None] * weights[:, None, :]).reshape(
            count, length
        )
        even = _groups(length, b, gram.dtype)
        family = [
            jnp.mean(response(rows, rows))
            for rows in (_groups(length, m, gram.dtype) for m in (*layout.sizes, b))
        ]
        reweighted = [jnp.mean(response(p, even)), jnp.mean(response(p, p))]
        return jnp.stack([*family, *reweighted, jnp.mean(1 / jnp.sum(weights**2, axis=1))])

    return jax.lax.map(block, jax.random.split(key, blocks)), _dot(along, full_gradient)


def _groups(length: int, m: int, dtype: Any) -> jax.Array:
    """Equal weights of the groups of `m` that a block is cut into, one row each; a remainder is
    left out.
    """
    count = length // m
    member = jnp.arange(length) // m == jnp.arange(count)[:, None]
    return jnp.asarray(member, dtype) / m


def _scaled(v: PyTree, factor: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), v)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    return jnp.sum(
        jnp.stack(
            [
                jnp.sum(u * v)
                for u, v in zip(jax.tree.leaves(wide(a)), jax.tree.leaves(wide(b)), strict=True)
            ]
        )
    )


def _products(a: PyTree, b: PyTree) -> jax.Array:
    """All inner products of the rows of two stacks of vectors."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.sum(
        jnp.stack([u.reshape(len(u), -1) @ v.reshape(len(v), -1).T for u, v in pairs]), axis=0
    )


def _summary(layout: _Layout, values: np.ndarray, full_gradient: float) -> EffectiveMicroBatch:
    k = len(layout.sizes)
    # bootstrap over blocks: a share is a quotient of means that are correlated, for which
    # resampling gives an error without a formula
    rng = np.random.default_rng(0)
    picked = rng.multinomial(
        len(values), np.full(len(values), 1 / len(values)), size=_RESAMPLES
    ) / len(values)
    mean, drawn = values.mean(axis=0), picked @ values
    spread = drawn.std(axis=0)
    sizes = np.array([*layout.sizes, np.inf if layout.replace else layout.n], float)
    family = np.append(mean[:k], full_gradient)
    falls = -np.diff(family)
    error = np.append(
        drawn[:, : k - 1] - drawn[:, 1:k], drawn[:, k - 1 : k] - full_gradient, axis=1
    ).std(axis=0)
    monotone = bool(np.all(falls >= -np.maximum(_CLEAR * error, 1e-6 * abs(family).max())))
    clear = abs(mean[0] - mean[k]) > max(
        _CLEAR * (drawn[:, 0] - drawn[:, k]).std(), 1e-6 * abs(mean[0])
    )
    # sqrt(c_m): 0 for the whole data set, 1 for one sample
    c = 1 / sizes if layout.replace else (layout.n - sizes) / (sizes * (layout.n - 1))
    scale = np.sqrt(c)

    # From a response to a size: if m = 2 responds by 0.75 and m = 4 by 0.50, then 0.60 lies 40 % of
    # the way from sqrt(1/4) = 0.50 to sqrt(1/2) = 0.71, at 0.583, which is m = 1 / 0.583^2 = 2.94.
    def size(response: float, curve: np.ndarray) -> float:
        if not (monotone and clear):
            return np.nan
        rising = np.maximum.accumulate(curve[::-1])
        if response > rising[-1]:
            return 0.0
        if response < rising[0]:
            return np.inf
        c = float(np.interp(response, rising, scale[::-1])) ** 2
        if layout.replace:
            return 1 / c if c else np.inf
        return layout.n / (1 + c * (layout.n - 1))

    def equivalent(column: int) -> Equivalent:
        # NaN where no micro-batch size differs from another
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (mean[column] - mean[k]) / (mean[0] - mean[k])
            shares = (drawn[:, column] - drawn[:, k]) / (drawn[:, 0] - drawn[:, k])
        found = np.array([size(row[column], np.append(row[:k], full_gradient)) for row in drawn])
        low, high = np.quantile(found, [0.025, 0.975], method="nearest")
        return Equivalent(
            float(mean[column]),
            float(share),
            float(shares.std()),
            size(mean[column], family),
            float(low),
            float(high),
        )

    return EffectiveMicroBatch(
        step=equivalent(k + 1),
        weighted=equivalent(k + 2),
        samples=float(mean[k + 3]),
        sizes=tuple(sizes.tolist()),
        family=family,
        family_stderr=np.append(spread[:k], 0.0),
    )


def _text(micro: float) -> str:
    if np.isnan(micro):
        return "undefined"
    return "> every m" if np.isinf(micro) else "< 1" if micro == 0 else f"{micro:.3g}"
