"""How mini-batches and micro-batches are drawn, and the finite-population factors that follow.

A mini-batch of size `b` is drawn afresh each step, with replacement (iid indices) or without (a
uniform subset), and split into `b/m` micro-batches of size `m`. Every coefficient of the theory
depends on which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations, combinations_with_replacement
from math import comb, isqrt, log10
from typing import Any, NamedTuple

import numpy as np

from sdesam._util.checks import check_finite, check_int, check_nonnegative, check_positive
from sdesam.variants import VARIANTS, NormEstimate, Variant

_MOST_DRAWN = 2**31 - 1
_MOST_INDICES = 10**8
"""Listings of more numbers than this do not fit the memory of an ordinary machine."""


@dataclass(frozen=True)
class Sampling:
    """A mini-batch of `batch` samples in micro-batches of `micro` (default: one micro-batch, the
    mini-batch itself).

    Raises:
        TypeError: a size is no whole number.
        ValueError: a size is below 1, or `micro` does not divide `batch`.

    >>> Sampling(batch=16, micro=4).covariance_factor(n=256)
    Fraction(1, 16)
    >>> Sampling(batch=16, micro=4, replace=False).covariance_factor(n=256)
    Fraction(1, 17)
    """

    batch: int
    micro: int | None = None
    replace: bool = True

    def __post_init__(self) -> None:
        if check_int("batch", self.batch) > _MOST_DRAWN:
            raise ValueError(
                f"batch={told_count(self.batch)}: at most {_MOST_DRAWN} samples are drawn in a step"
            )
        if self.micro is None:
            object.__setattr__(self, "micro", self.batch)
        check_int("micro", self.micro)
        if self.batch % self.m:
            raise ValueError(
                f"micro={self.micro} does not divide batch={self.batch}: choose one of"
                f" {_divisors(self.batch)}"
            )

    @property
    def m(self) -> int:
        """The size of a micro-batch."""
        assert self.micro is not None
        return self.micro

    def check_population(self, n: int) -> None:
        """Refuse a mini-batch that cannot be drawn from `n` samples."""
        if not self.replace and self.batch > n:
            raise ValueError(
                f"batch={self.batch} exceeds the {n} samples: without replacement choose batch <="
                f" {n}, or use replace=True"
            )

    def covariance_factor(self, n: int) -> Fraction:
        """`c_b`: the covariance of a mini-batch mean in units of that of one sample.

        `1/b` with replacement, `(n-b)/(b(n-1))` without (0 for `n = 1`).
        """
        self.check_population(n)
        if self.replace:
            return Fraction(1, self.batch)
        return Fraction(n - self.batch, self.batch * (n - 1)) if n > 1 else Fraction(0)


def _divisors(number: int) -> str:
    """The divisors of a number, of many those at both ends."""
    low = [k for k in range(1, isqrt(number) + 1) if number % k == 0]
    found = [str(k) for k in sorted({*low, *(number // k for k in low)})]
    return ", ".join(found if len(found) <= 16 else [*found[:8], "...", *found[-4:]])


MOST_MICRO_BATCHES = 5000
"""More micro-batches than this are not listed for an SDE."""

FEW_MICRO_BATCHES = 64
"""So few micro-batches are listed even where they are more than the samples."""


def count_micro_batches(m: int, n: int, replace: bool) -> int:
    """How many micro-batches of `m` of `n` samples there are, up to the order of samples."""
    return comb(n + m - 1, m) if replace else comb(n, m)


def list_micro_batches(m: int, n: int, replace: bool) -> tuple[np.ndarray, np.ndarray]:
    """Every micro-batch up to the order of its samples, with its probability: indices of shape
    `(q, m)`, probabilities of shape `(q,)`.

    Raises:
        ValueError: there is none, or too many to hold in memory.

    >>> list_micro_batches(2, 2, replace=True)
    (array([[0, 0],
           [0, 1],
           [1, 1]]), array([0.25, 0.5 , 0.25]))
    """
    total = count_micro_batches(m, n, replace)
    if not total:
        raise ValueError(
            f"micro={m} exceeds the {n} samples: without replacement choose micro <= {n}, or use"
            " replace=True"
        )
    if total * m > _MOST_INDICES:
        raise ValueError(
            f"n={n}, m={m} has {told_count(total)} micro-batches, too many to list: choose fewer"
            " samples or a smaller micro-batch"
        )
    picked: Iterator[tuple[int, ...]] = (
        combinations_with_replacement(range(n), m) if replace else combinations(range(n), m)
    )
    listed = list(picked)
    if not replace:
        return np.array(listed), np.full(total, 1 / total)
    # whole numbers until the last division, which is rounded rightly however large they are
    return np.array(listed), np.array([_orders(one) / n**m for one in listed])


def _orders(indices: tuple[int, ...]) -> int:
    """The number of orders in which the samples of a micro-batch can have come."""
    left, orders = len(indices), 1
    for count in Counter(indices).values():
        orders *= comb(left, count)
        left -= count
    return orders


def told_count(number: int) -> str:
    """A whole number for a sentence: the number itself, or a power of ten where it has more digits
    than a reader wants.

    >>> told_count(135751), told_count(2**1100)
    ('135751', 'about 1e331')
    """
    return str(number) if number < 10**9 else f"about 1e{round(log10(number))}"


class Step(NamedTuple):
    """The numbers of a step, checked."""

    lr: float
    rho: float
    eps: float
    lam: float
    norms: NormEstimate | None
    sampling: Sampling
    own: dict[str, float]

    def options(self, variant: Variant) -> dict[str, Any]:
        """What to record of the numbers that only some variants have."""
        found: dict[str, Any] = {"eps": self.eps} if variant.normalised else {}
        if self.norms is not None:
            found |= {"lam": self.lam, "norms": vars(self.norms)}
        found |= self.own
        # a name that is not registered for this rule does not say what the rule is
        return found if VARIANTS.get(variant.name) == variant else {**found, "rule": variant.rule}


@dataclass(frozen=True)
class Hyperparameters:
    """The numbers of an optimizer's step as a user gives them; :meth:`checked` fits them to a rule.

    Args:
        lr: learning rate `eta`.
        rho: perturbation radius; None for a rule without a perturbation.
        batch: mini-batch size `b`.
        micro: micro-batch size `m`; None for the mini-batch.
        replace: whether mini-batches are drawn with replacement.
        eps: of the normaliser `sqrt(|g|^2 + eps^2)`.
        lam: inverse temperature of Gibbs weights; None for a rule without them.
        norms: how gradient norms are estimated for these weights.
        own: the rule's own numbers, by name.
    """

    lr: float
    rho: float | None = None
    batch: int = 1
    micro: int | None = None
    replace: bool = True
    eps: float = 0.0
    lam: float | None = None
    norms: NormEstimate | None = None
    own: Mapping[str, float] = field(default_factory=dict)

    def checked(self, variant: Variant, n: int) -> Step:
        """The numbers of a variant's step on `n` samples, or one sentence: which does not fit?

        Raises:
            ValueError: a number that the variant does not have or lacks, or sizes that do not fit
                each other or `n`.
            TypeError: a number that is none, or that jax traces.

        >>> from sdesam.variants import variant
        >>> Hyperparameters(lr=0.1, rho=0.1, batch=4, micro=2).checked(variant("usam"), n=8)
        Traceback (most recent call last):
        ...
        ValueError: micro=2: usam has no micro-batches; leave micro out, or use m-usam
        """
        lr = check_positive("lr", self.lr)
        rho, eps, lam, norms = check_perturbation(variant, self.rho, self.eps, self.lam, self.norms)
        sampling = Sampling(self.batch, self.micro, self.replace)
        if not variant.micro and sampling.m != sampling.batch:
            other = f"m-{variant.name}" if f"m-{variant.name}" in VARIANTS else None
            advice = f", or use {other}" if other else ""
            raise ValueError(
                f"micro={self.micro}: {variant.name} has no micro-batches; leave micro out{advice}"
            )
        sampling.check_population(n)
        return Step(lr, rho, eps, lam, norms, sampling, check_own(variant, self.own))


def check_own(variant: Variant, given: Mapping[str, Any]) -> dict[str, float]:
    """The rule's own numbers, all of them and no others, or one sentence saying which is wrong.

    >>> from sdesam.variants import gradient, parameter
    >>> rule = Variant("mine", gradient("micro", at=parameter("c") * gradient("micro")))
    >>> check_own(rule, {})
    Traceback (most recent call last):
    ...
    TypeError: mine needs c, a number of its own: give c=...
    """
    wanted = sorted(variant.parameters)
    for name in given:
        if name not in wanted:
            has = f"its own numbers are {', '.join(wanted)}" if wanted else "it has none of its own"
            raise TypeError(f"{name}={given[name]!r}: {variant.name} has no number {name}; {has}")
    for name in wanted:
        if name not in given:
            raise TypeError(f"{variant.name} needs {name}, a number of its own: give {name}=...")
    return {name: check_finite(name, given[name]) for name in wanted}


def check_perturbation(
    variant: Variant, rho: float | None, eps: float, lam: float | None, norms: NormEstimate | None
) -> tuple[float, float, float, NormEstimate | None]:
    """`(rho, eps, lam, norms)` of a variant, or one sentence saying which does not fit.

    >>> from sdesam.variants import variant
    >>> check_perturbation(variant("rw-sam"), 0.1, 0.0, -1.0, None)
    Traceback (most recent call last):
    ...
    ValueError: lam=-1.0: it must be a finite number of at least 0
    """
    if not variant.perturbed:
        if rho is not None and check_nonnegative("rho", rho):
            raise ValueError(f"rho={rho!r}: {variant.name} has no perturbation; leave rho out")
        rho = 0.0
    elif rho is None:
        raise ValueError(f"{variant.name} needs rho, the perturbation radius")
    eps = check_nonnegative("eps", eps)
    if eps and not variant.normalised:
        raise ValueError(
            f"eps={eps!r}: {variant.name} does not normalise its perturbation; leave eps out"
        )
    if not variant.weighted:
        for name, value in (("lam", lam), ("norms", norms)):
            if value is not None:
                raise ValueError(
                    f"{name}={value!r}: {variant.name} has no Gibbs weights; leave {name} out, or"
                    " use rw-sam"
                )
        return check_nonnegative("rho", rho), eps, 0.0, None
    if lam is None:
        raise ValueError(
            f"{variant.name} needs lam, the inverse temperature of its weights (0 gives SAM)"
        )
    if norms is not None and not isinstance(norms, NormEstimate):
        raise TypeError(f"norms={norms!r}: it must be a sdesam.NormEstimate")
    # beyond float32 it would be infinite, and 0 * inf at the largest norm NaN; the limit is reached
    # long before
    lam = min(check_nonnegative("lam", lam), float(np.finfo(np.float32).max))
    return check_nonnegative("rho", rho), eps, lam, norms or NormEstimate()
