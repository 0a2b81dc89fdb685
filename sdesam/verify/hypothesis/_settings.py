"""Where a hypothesis is checked: problems, sizes of batches, points, and the optimizer there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import jax.numpy as jnp
import numpy as np

from sdesam.optim import Chain
from sdesam.problems import FiniteSum, torus
from sdesam.sampling import Sampling, check_own, check_perturbation
from sdesam.variants import NormEstimate, Variant
from sdesam.verify.coefficients import (
    Setting,
)
from sdesam.verify.exact.enumerate import MOST_BATCHES, count_batches, list_batches
from sdesam.verify.exact.float64 import Rebuild, directions, start

_POINTS = 6
_CANDIDATES = 20
"""Of so many times the points, those are kept where no micro-batch gradient is small, if eps =
0.
"""
_MANY = 1000


class RuleNumbers:
    """A variant and the numbers that all settings share, checked."""

    def __init__(
        self,
        variant: Variant,
        replace: bool,
        eps: float,
        lam: float | None,
        own: Mapping[str, float],
    ):
        unperturbed = not variant.perturbed
        norms = NormEstimate("exact") if variant.weighted else None
        _, self.eps, checked, _ = check_perturbation(
            variant, None if unperturbed else 0.0, eps, lam, norms
        )
        self.lam = checked if variant.weighted else None
        self.variant, self.replace = variant, replace
        self.own = tuple(check_own(variant, own).items())
        self.singular = variant.normalised and not self.eps
        self.smooth = not self.singular and not variant.weighted
        self.rough = (
            "the weak error was not measured: at eps = 0 the step is not smooth where a micro-batch"
            " gradient vanishes; eps > 0 would show it"
            if self.singular
            else "the weak error was not measured: |g_i| is not smooth where a gradient vanishes"
        )

    def setting(self, problem: FiniteSum, b: int, m: int | None, points: np.ndarray) -> Setting:
        """A setting, with more points than wanted where some are to be left out."""
        sampling = Sampling(b, m, self.replace)
        if self.singular or self.lam is not None:
            points = away_from_zero(problem, sampling, points)
        return Setting(problem, sampling, points[:_POINTS], self.eps, self.lam, self.own)

    @property
    def candidates(self) -> int:
        """How many points to offer."""
        return _POINTS * (1 if self.smooth else _CANDIDATES)


def away_from_zero(problem: FiniteSum, sampling: Sampling, points: np.ndarray) -> np.ndarray:
    """The points in order of the least norm of a gradient of one sample, a micro-batch or the whole
    set there, largest first.
    """
    least = np.full(len(points), np.inf)
    for m in {1, sampling.m, problem.n}:
        listed = (
            np.arange(problem.n)[None, None]
            if m == problem.n
            else list_batches(Sampling(m, replace=sampling.replace), problem.n)[0]
        )
        chain = Chain("sgd", problem, lr=1.0, batch=m, replace=sampling.replace)
        least = np.minimum(
            least, np.linalg.norm(directions(chain, points, listed), axis=-1).min(axis=0)
        )
    return points[np.argsort(-least, kind="stable")]


@lru_cache(maxsize=1)
def own_problem() -> FiniteSum:
    return torus(dim=2, samples=5, seed=11)


# Why three pairs of sizes. A theory may have another factor in place of the right 1/m; on n = 5
# samples the candidates are
#
#     b, m    1/m     1/b     2/b     1/(b-m)   1/n
#     4, 2    0.50    0.25    0.50    0.50      0.20
#     3, 1    1.00    0.33    0.67    0.50      0.20
#     4, 1    1.00    0.25    0.50    0.33      0.20
#
# At (4, 2) alone, 2/b and 1/(b-m) would look right. No column but the first agrees with it in every
# row.
def own_settings(numbers: RuleNumbers) -> list[Setting]:
    """The check's own problem and sizes.

    `(b, m)` = (4, 2), (3, 1), (4, 1) on n = 5 tell 1/m from 1/b, 2/b, 1/(b-m), 1/n and 1 from each
    other.
    """
    points = np.random.default_rng(5).uniform(0, 2 * np.pi, size=(numbers.candidates, 2))
    return [numbers.setting(own_problem(), b, m, points) for b, m in _sizes(numbers.variant)[:3]]


def rate_setting(numbers: RuleNumbers) -> Setting:
    """The smallest sizes on the check's own problem: the chain's transition operator lists every
    mini-batch at every grid point.
    """
    own = own_settings(numbers)[0]
    b, m = _sizes(numbers.variant)[-1]
    return numbers.setting(own.problem, b, m, own.points)


def _sizes(variant: Variant) -> list[tuple[int, int | None]]:
    """Sizes to compare at; the last are the smallest, for the rate and for problems of many
    samples.
    """
    return [(4, 2), (3, 1), (4, 1), (2, 1)] if variant.micro else [(3, None), (2, None)]


def settings_on(problem: FiniteSum, numbers: RuleNumbers) -> list[Setting]:
    """The sizes on a user's problem whose mini-batches can be listed, at points near its start
    where its gradients are finite.
    """
    if problem.nonsmooth:
        raise ValueError(
            f"the loss of problem {problem.name!r} has kinks ({', '.join(problem.nonsmooth)}):"
            " coefficients are derivatives at rho = 0, which needs a smooth loss such as tanh,"
            " gelu or softplus give"
        )
    sizes = _sizes(numbers.variant) if numbers.replace or problem.n > 1 else [(1, None)]
    drawn = [Sampling(b, m, numbers.replace) for b, m in sizes if numbers.replace or b <= problem.n]
    listed = [sampling for sampling in drawn if count_batches(sampling, problem.n) <= MOST_BATCHES]
    # On five samples with replacement (4, 2) has 625 mini-batches to list, and (2, 1) has 25.
    # the largest listings take seconds and add nothing where two smaller ones are there
    listed = [
        sampling
        for k, sampling in enumerate(reversed(listed))
        if k < 2 or count_batches(sampling, problem.n) <= _MANY
    ]
    x, away = (
        start(problem),
        np.random.default_rng(5).normal(size=(numbers.candidates, problem.dim)),
    )
    settings = []
    for sampling in listed:
        for spread in (0.3, 0.1, 0.03, 0.01):
            setting = numbers.setting(
                problem, sampling.batch, sampling.micro, x + spread * (1 + abs(x)) * away
            )
            if _finite(problem, setting.points):
                settings.append(setting)
                break
        else:
            raise ValueError(
                f"problem {problem.name!r}: the loss or its gradients are not finite near x0, so"
                " nothing can be compared there"
            )
    return settings


def _finite(problem: FiniteSum, points: np.ndarray) -> bool:
    """Whether losses and gradients of all samples are finite at some points."""
    rebuild = Rebuild(problem.x0)
    losses = [float(problem.loss(rebuild(jnp.asarray(p, jnp.float32)))) for p in points]
    gradients = directions(
        Chain("sgd", problem, lr=1.0), points, np.arange(problem.n).reshape(-1, 1, 1)
    )
    return bool(np.isfinite(losses).all() and np.isfinite(gradients).all())


def chain_at(variant: Variant, setting: Setting, lr: float, rho: float) -> Chain:
    """The optimizer in a setting."""
    s = setting.sampling
    norms = NormEstimate("exact") if variant.weighted else None
    rho_or_none = rho if variant.perturbed else None
    return Chain(
        variant,
        setting.problem,
        lr,
        rho_or_none,
        s.batch,
        s.m,
        s.replace,
        eps=setting.eps,
        lam=setting.lam,
        norms=norms,
        **dict(setting.own),
    )
