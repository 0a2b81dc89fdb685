"""Optimizer and SDE run on common randomness, so that their difference has far less noise than
either.

With replacement a mini-batch is a multinomial vector of counts; the counts and the Gaussian vector
of the same covariance are built from the same normal numbers, one sample after another, and each
keeps its own law. The optimizer steps with the counts, the SDE's small-noise Heun scheme with the
Gaussian vector, and the mean of the difference comes with its standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from scipy.special import gammaln

from sdesam._util import store
from sdesam._util.checks import check_int
from sdesam.ensemble import Divergence, RunSpec, run, time_grid
from sdesam.optim import Chain
from sdesam.optim.chain import check_chain
from sdesam.optim.kernel import StepKernel
from sdesam.problems.observing import Observer
from sdesam.sde._kernels import Kernel
from sdesam.sde.equation import SDE
from sdesam.sde.stepping import check_sde

PyTree = Any

_COMMON = ("variant", "lr", "rho", "batch", "micro", "replace", "eps", "lam", "norms", "rule")
"""What the SDE and the chain must agree in."""


@dataclass(frozen=True)
class Coupled:
    """Mean differences of coupled runs on a time grid.

    Args:
        time: SDE time (`t = k eta`), shape `(times,)`.
        difference: per observable, the mean of `phi(SDE) - phi(chain)` over the runs where both
            stayed finite, shape `(times, ...)`.
        stderr: its standard error; NaN where fewer than two runs are left.
        reduction: `(var phi(SDE) + var phi(chain)) / var(phi(SDE) - phi(chain))` over these runs:
            how many times as many independent runs would be needed for the same standard error; NaN
            where the difference has no variance, such as at time 0.
        diverged: the runs in which the state of either diverged, and when.
        nonfinite: per observable, how many of the other runs are left out because one of their two
            values is not finite, shape as `difference`.
        config: all that the result depends on, the key included.
        provenance: versions, device, revision, time.
    """

    time: np.ndarray
    difference: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]
    reduction: dict[str, np.ndarray]
    diverged: Divergence
    nonfinite: dict[str, np.ndarray]
    config: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=store.provenance)


def coupled(
    sde: SDE,
    chain: Chain,
    key: jax.Array,
    runs: int,
    steps: int,
    observe: Sequence[str] = (),
    *,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
) -> Coupled:
    """Estimate `E phi(SDE) - E phi(chain)` from pairs of runs that share their randomness.

    A mini-batch has counts `N ~ Multinomial(b; 1/n, ..., 1/n)`. With `Z_1, ..., Z_n ~ N(0, 1)`
    independent,

        N_k | N_1 .. N_(k-1) ~ Bin(b - N_1 - .. - N_(k-1), 1/(n-k+1)),        at the quantile
        Phi(Z_k), W_k = -(W_1 + .. + W_(k-1))/(n-k+1) + sqrt(b/n (n-k)/(n-k+1)) Z_k,

    so the counts are exactly multinomial, `W` is exactly Gaussian with their covariance
    `b/n (I - 1 1^T/n)`, and both grow with `Z`. The chain steps with a mini-batch of these counts,
    shuffled into micro-batches. The SDE steps with the small-noise Heun scheme at `dt = eta`, whose
    normal vector `xi = -sqrt(n/b) W` has the covariance `I - 1 1^T/n` that is left of `N(0, I)`
    once its mean is taken off; the sign is that of a descent step, `-eta/b sum_k N_k h(k)` against
    `sqrt(eta) A xi`. Heun's own weak error at `dt = eta` is `O(eta^2)`.

    Args:
        sde: from :meth:`sdesam.symbolic.ModifiedEquation.bind`, of noise shape `(n,)`.
        chain: the optimizer, on the same problem and with the same numbers; mini-batches with
            replacement.
        key: a jax random key; the same key gives the same runs for any `chunk` and `devices`.
        runs: how many pairs, at least 2.
        steps: optimizer steps per run; the SDE runs to time `steps * lr`.
        observe: names of the problem's observables.
        chunk: pairs advanced together; by default as many as fit the cache.
        devices: jax devices to spread pairs over; by default all.
        progress: show a bar; by default on a terminal, after two seconds.

    Returns:
        A :class:`Coupled`, on about ten even times, each array of shape `(times, ...)`.

    Raises:
        ValueError: the SDE and the chain are not of one problem or differ in a number, sampling is
            without replacement, numbers that do not fit, an unknown observable.
        TypeError: `key` is no jax random key.

    >>> import sdesam
    >>> problem = sdesam.problems.quadratic()
    >>> sde, chain = sdesam.derive("sgd").bind(problem, lr=0.1, batch=4), Chain(
    ...     "sgd", problem, lr=0.1, batch=4
    ... )
    >>> out = coupled(sde, chain, jax.random.key(0), runs=100, steps=10, observe=["loss"])
    >>> bool(abs(out.difference["loss"][-1]) < 0.1), bool(out.reduction["loss"][-1] > 2)
    (True, True)
    """
    _check_pair(sde, chain)
    problem, sampling = chain.problem, chain.sampling
    count = check_int("steps", steps)
    groups = sampling.batch // sampling.m
    observer = problem.observer([observe] if isinstance(observe, str) else observe)
    plan = RunSpec(
        stepper=_PairStep(chain.kernel, sde.kernel, chain.lr),
        x0=(problem.x0, sde.x0),
        observer=_PairObserver(observer),
        steps=count,
        step_time=chain.lr,
        # both sides' own, and normal numbers, counts and weights of every sample
        step_bytes=problem.vector_bytes * (4 + 4 * groups + 8 * problem.chunk)
        + 16 * groups * problem.n
        + 8 * sampling.batch,
        observe_bytes=problem.vector_bytes * 4 * problem.chunk,
        config={**sde.config, "method": "heun", "dt": chain.lr, "steps": count},
    )
    result = run(
        plan,
        key,
        paths=check_int("runs", runs, least=2),
        grid=time_grid(None, count, chain.lr, "lr"),
        keep="values",
        chunk=chunk,
        devices=devices,
        progress=progress,
        label="coupled",
    )
    good = np.setdiff1d(np.arange(result.diverged.total), result.diverged.paths)
    assert result.values is not None
    found = {
        name: _statistics(values[good].astype(np.float64)) for name, values in result.values.items()
    }
    return Coupled(
        time=result.time,
        difference={name: statistics[0] for name, statistics in found.items()},
        stderr={name: statistics[1] for name, statistics in found.items()},
        reduction={name: statistics[2] for name, statistics in found.items()},
        nonfinite={name: statistics[3] for name, statistics in found.items()},
        diverged=result.diverged,
        config=result.config,
        provenance=result.provenance,
    )


@partial(jax.tree_util.register_dataclass, data_fields=["chain", "sde", "lr"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class _PairStep:
    """One step of the chain and one Heun step of the SDE with the same randomness; the state is
    `(x_chain, x_sde)`.
    """

    chain: StepKernel
    sde: Kernel
    lr: Any

    def __call__(self, x: tuple[PyTree, PyTree], key: jax.Array, xi: Any) -> tuple[PyTree, PyTree]:
        """One step; counts and normals of both sides come from `key`."""
        key_noise, key_drift, key_ahead = jax.random.split(key, 3)
        dtype = jnp.result_type(*jax.tree.leaves(x))
        indices, weights = self.draw(key_noise, jnp.promote_types(dtype, jnp.float32))
        noise = self.sde.step_noise(
            x[1],
            (weights * jnp.sqrt(self.lr)).astype(dtype),
            jax.random.fold_in(key_noise, 1),
        )
        drift = self.sde.step_drift(x[1], key_drift)
        ahead = jax.tree.map(lambda x, b, s: x + self.lr * b + s, x[1], drift, noise)
        # a probe of its own, as in Heun: with the same one, the predictor and the drift there would
        # be correlated
        drift_ahead = self.sde.step_drift(ahead, key_ahead)
        moved = jax.tree.map(
            lambda x, b, c, s: x + 0.5 * self.lr * (b + c) + s, x[1], drift, drift_ahead, noise
        )
        return (
            self.chain.step(x[0], indices, self.chain.direction_key(key_noise)),
            moved,
        )

    def draw(self, key: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """The chain's sample indices, shape `(b/m, m)`, and the SDE's normal vector, shape `(n,)`,
        whose entries sum to 0.
        """
        n, batch, micro = self.chain.n, self.chain.batch, self.chain.micro
        key_counts, key_order = jax.random.split(key)
        counts, weights = counts_and_weights(jax.random.normal(key_counts, (1, n), dtype), batch)
        # which micro-batch a drawn sample falls into is independent of the counts
        indices = jax.random.permutation(key_order, _indices(counts, batch)[0])
        return indices.reshape(batch // micro, micro), -sqrt(n / batch) * weights[0]


@partial(jax.tree_util.register_dataclass, data_fields=["single"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class _PairObserver:
    """Observables of both sides: `[phi(x_chain), phi(x_sde)]` for each."""

    single: Observer

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return self.single.names

    def __call__(self, x: tuple[PyTree, PyTree]) -> dict[str, jax.Array]:
        """Their values, leading axis 2."""
        both: dict[str, jax.Array] = jax.tree.map(
            lambda *sides: jnp.stack(sides), *(self.single(side) for side in x)
        )
        return both


# What a coupled pair is: n = 3 samples, a mini-batch of b = 2, and the normal numbers z. The counts
# say how often each sample is drawn. Sample after sample, the number of draws is the quantile
# Phi(z_k) of its binomial law, given what is left to draw. The Gaussian weights have the same mean
# (0, after 2/3 is taken off) and the same covariance, and are built from the same z:
#
#     z = (-1, 0, 2)         counts (0, 1, 1)    less 2/3: (-0.67,  0.33,  0.33)
#                                                weights   (-0.67,  0.33,  0.33)
#     z = (1.5, -0.2, 0.3)   counts (2, 0, 0)    less 2/3: ( 1.33, -0.67, -0.67)
#                                                weights   ( 1.00, -0.62, -0.38)
#
# In the second line: Phi(1.5) = 0.93 is above P(N_1 <= 1) = 0.89, so that N_1 = 2, and nothing is
# left for the others. Counts are whole numbers and weights are not, so that the two never agree for
# long; but both grow with z, and the difference of two runs has far less variance than either.
def counts_and_weights(z: jax.Array, m: int) -> tuple[jax.Array, jax.Array]:
    """Multinomial counts of micro-batches and Gaussian vectors of the same covariance, from the
    same normal numbers.

    Args:
        z: independent standard normal numbers, shape `(groups, n)`, float32 or float64.
        m: the size of a micro-batch.

    Returns:
        Counts, integers of shape `(groups, n)` that sum to `m` along the last axis, and weights of
        the same shape that sum to 0 but for rounding. In float32 a probability is resolved to about
        1e-7, as far as the tails of `z` reach.

    >>> counts, weights = counts_and_weights(jax.random.normal(jax.random.key(0), (3, 5)), m=4)
    >>> counts.sum(axis=1)
    Array([4, 4, 4], dtype=int32)
    """
    groups, n = z.shape
    dtype = z.dtype
    choose = jnp.asarray(_log_choose(m), dtype)
    c = jnp.arange(m + 1)

    def sample(
        carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], Any]:
        left, total = carry
        open_cells, z = now  # n - k + 1
        p = 1 / jnp.maximum(open_cells, 2).astype(dtype)  # the last cell takes what is left, below
        log_pmf = choose[left] + c * jnp.log(p) + (left[:, None] - c) * jnp.log1p(-p)
        # P(N > 0), ..., P(N > m - 1), each from its smallest summand up: the upper tail is the rare
        # one, and keeps its digits
        tail = jnp.cumsum(jnp.exp(log_pmf[:, :0:-1]), axis=1)
        # N > c if Phi(z) > P(N <= c)
        drawn = jnp.sum(ndtr(-z)[:, None] < tail, axis=1, dtype=left.dtype)
        drawn = jnp.where(open_cells == 1, left, drawn)
        variance = (m / n) * (open_cells - 1).astype(dtype) / open_cells.astype(dtype)
        weight = -total / open_cells.astype(dtype) + jnp.sqrt(variance) * z
        return (left - drawn, total + weight), (drawn, weight)

    start = jnp.full(groups, m, jnp.int32), jnp.zeros(groups, dtype)
    _, (counts, weights) = jax.lax.scan(sample, start, (jnp.arange(n, 0, -1), z.T))
    return counts.T, weights.T


def _log_choose(m: int) -> np.ndarray:
    """`log C(r, c)` for `0 <= r, c <= m`, -inf where `c > r`."""
    r, c = np.ogrid[: m + 1, : m + 1]
    values = gammaln(r + 1.0) - gammaln(c + 1.0) - gammaln(np.maximum(r - c, 0) + 1.0)
    return np.where(c <= r, values, -np.inf)


def _indices(counts: jax.Array, m: int) -> jax.Array:
    """Sample `k`, `counts[., k]` times: shape `(groups, m)` from `(groups, n)`."""
    indices: jax.Array = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(m), side="right"))(
        jnp.cumsum(counts, axis=1)
    )
    return indices


def _statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean difference, its standard error, the variance reduction, and how many pairs are left out
    because one of their two values is not finite.

    Args:
        values: shape `(runs, times, 2, ...)`.
    """
    lost = ~np.isfinite(values).all(axis=2)
    if not len(values):
        unknown = np.full(lost.shape[1:], np.nan)
        return unknown, unknown, unknown, lost.sum(axis=0)
    known = np.ma.array(values, mask=np.broadcast_to(lost[:, :, None], values.shape))
    difference = known[:, :, 1] - known[:, :, 0]
    # the least is taken off, so that equal values have the variance 0 and not its rounding
    own = (known - known.min(axis=0)).var(axis=0, ddof=1).sum(axis=1)
    joint = (difference - difference.min(axis=0)).var(axis=0, ddof=1)
    found = (
        difference.mean(axis=0),
        np.ma.sqrt(joint / difference.count(axis=0)),
        np.ma.divide(own, joint),
    )
    mean, stderr, reduction = (np.ma.filled(part, np.nan) for part in found)
    return mean, stderr, reduction, lost.sum(axis=0)


def _check_pair(sde: SDE, chain: Chain) -> None:
    """Refuse an SDE and a chain that are not of one problem and one set of numbers, or have no
    coupling.
    """
    check_sde("coupled", sde)
    check_chain(chain, "coupled")
    if sde.problem is not chain.problem:
        ours = repr(sde.problem) if sde.problem is not None else "none"
        raise ValueError(
            f"the SDE's problem is {ours}, not the chain's {chain.problem!r}: bind the SDE to"
            " chain.problem itself"
        )
    differing = [name for name in _COMMON if sde.config.get(name) != chain.config.get(name)]
    if differing:
        told = ", ".join(
            f"{name} ({sde.config.get(name)} and {chain.config.get(name)})" for name in differing
        )
        raise ValueError(
            f"the SDE and the chain differ in {told}: they must be of the same variant, sizes and"
            " numbers"
        )
    if not chain.sampling.replace:
        raise ValueError(
            "runs can be coupled only with replacement, where a micro-batch has multinomial counts:"
            " use replace=True"
        )
