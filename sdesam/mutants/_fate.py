"""What a mutant is, and the checks that are run on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from sdesam.mutants._theories import Change
from sdesam.optim import Chain
from sdesam.optim.kernel import StepKernel
from sdesam.problems import FiniteSum, torus
from sdesam.sampling import Sampling
from sdesam.sde import SDE
from sdesam.symbolic import derive
from sdesam.variants import NormEstimate
from sdesam.variants import variant as find_variant
from sdesam.verify.coefficients import Field, Finding, Setting, compare_coefficients, interpolated
from sdesam.verify.exact.float64 import covariance, drift
from sdesam.verify.hypothesis import Hypothesis, Stated


@dataclass(frozen=True)
class Mutant:
    """One wrong theory or optimizer (or, as a check on the check, a right one).

    Args:
        name: what is wrong.
        variant: the variant that it claims to be.
        with_replacement: the sampling that it claims.
        equation: what becomes of the derived equation.
        sde: what becomes of `(drift, covariance)` at the points, given `(lr, rho, setting)`.
        numbers: what becomes of `(lr, rho, batch, micro)` before they are bound.
        kernel: the class of the step kernel.
        theory: in place of the derived equation, an SDE as stated by a claim, given the sampling;
            for normalised variants.
        right: whether it is a right theory, which must live.
    """

    name: str
    variant: str = "m-usam"
    with_replacement: bool = True
    equation: Change = lambda equation: equation
    sde: (
        Callable[[np.ndarray, np.ndarray, float, Setting], tuple[np.ndarray, np.ndarray]] | None
    ) = None
    numbers: Callable[[float, float, int, int], tuple[float, float, int, int]] = (
        lambda lr, rho, b, m: (lr, rho, b, m)
    )
    kernel: type[StepKernel] = StepKernel
    theory: Callable[[bool], Hypothesis] | None = None
    right: bool = False

    @property
    def side(self) -> str:
        """Whether the theory or the optimizer is wrong."""
        return "none" if self.right else "chain" if self.kernel is not StepKernel else "SDE"


@dataclass(frozen=True)
class Fate:
    """What the checks said of a mutant: the findings that are not `confirmed`."""

    mutant: Mutant
    killed_by: tuple[Finding, ...]

    @property
    def killed(self) -> bool:
        """Whether a check refuted it."""
        return any(finding.status == "refuted" for finding in self.killed_by)

    @property
    def as_wanted(self) -> bool:
        """Wrong and killed, or right and untouched."""
        return not self.killed_by if self.mutant.right else self.killed

    def __str__(self) -> str:
        checks = ", ".join(f"{f.part} eta^{f.power[0]} rho^{f.power[1]}" for f in self.killed_by)
        return (
            f"{self.mutant.side:<5} {self.mutant.name:<58}"
            f" {'lives' if not self.killed else 'killed by ' + checks}"
        )


# How a mutant is planted and killed: "1/b for 1/m". The right equation of m-USAM is derived, and in
# it the symbol m is replaced by b. The wrong equation keeps the right one's name and numbers, so
# that nothing but the check can tell. At b = 3, m = 1 the check then reads
#
#     drift rho^1          off by 0.80 of the right coefficient
#     drift rho^2          off by 0.52
#     drift eta rho^1      off by 0.77
#     covariance rho^1     off by 0.41
#
# and each of these findings kills it. "rho^1 10 % too large" is the same with the trees of one part
# multiplied by 1.1: off by 0.1, and the finding says "1.1 times the right one".
#
# A wrong optimizer is planted on the other side: the equation stays right, and the step kernel has
# a radius that is ten per cent too large. Then the stated coefficient of rho is 0.91 times the
# optimizer's, that of rho^2 0.83 times.
def fate(mutant: Mutant, seed: int = 0) -> Fate:
    """Run the checks on one mutant, on a seeded torus problem of its own with two pairs of sizes
    that tell 1/m, 1/b, 2/b and 1/n apart.
    """
    problem, points, settings = _settings(mutant.variant, mutant.with_replacement, seed)
    micro = mutant.variant.startswith("m-")
    if mutant.theory is not None:
        return Fate(mutant, _against(mutant, seed))
    # the wrong equation keeps the name of the right one, and so takes the same numbers
    wrong = replace(
        mutant.equation(derive(mutant.variant, (2, 3), mutant.with_replacement)),
        variant=find_variant(mutant.variant),
    )
    unperturbed = not wrong.variant.perturbed

    @cache
    def fields(which: int, lr: float, rho: float) -> tuple[np.ndarray, np.ndarray]:
        setting = settings[which]
        lr, rho_used, b, m = mutant.numbers(lr, rho, setting.sampling.batch, setting.sampling.m)
        sde: SDE = wrong.bind(
            problem,
            lr,
            None if unperturbed else rho_used,
            b,
            m if micro else None,
            expectation="exact",
        )
        stated = drift(sde, points), covariance(sde, points)
        return stated if mutant.sde is None else mutant.sde(*stated, lr, setting)

    def stated_part(which: int, index: int) -> Field:
        return interpolated(lambda lr, rho: fields(which, lr, rho)[index])

    findings = compare_coefficients(
        settings,
        [stated_part(k, 0) for k in range(len(settings))],
        [stated_part(k, 1) for k in range(len(settings))],
        [partial(_made, mutant, setting) for setting in settings],
        (2, 3),
    )
    return Fate(mutant, tuple(finding for finding in findings if finding.status != "confirmed"))


def _settings(
    variant: str, with_replacement: bool, seed: int
) -> tuple[FiniteSum, np.ndarray, list[Setting]]:
    problem = torus(dim=2, samples=5, seed=300 + seed)
    points = np.random.default_rng(seed).uniform(0, 2 * np.pi, size=(3, 2))
    sizes: list[tuple[int, int | None]] = (
        [(4, 2), (3, 1)] if variant.startswith("m-") else [(3, None)]
    )
    return (
        problem,
        points,
        [Setting(problem, Sampling(b, m, with_replacement), points) for b, m in sizes],
    )


def _made(mutant: Mutant, setting: Setting, lr: float, rho: float) -> Chain:
    """The mutant's optimizer."""
    rule, s = find_variant(mutant.variant), setting.sampling
    numbers: dict[str, Any] = {
        "rho": rho if rule.perturbed else None,
        "batch": s.batch,
        "micro": s.m,
        "replace": s.replace,
    }
    if rule.normalised:
        numbers["eps"] = EPS
    if rule.weighted:
        numbers |= {"lam": LAM, "norms": NormEstimate("exact")}
    made = Chain(rule, setting.problem, lr, **numbers)
    made.kernel = mutant.kernel(**vars(made.kernel))
    return made


@lru_cache(maxsize=8)
def _stated(
    theory: Callable[[bool], Hypothesis], variant: str, with_replacement: bool, seed: int
) -> list[Stated]:
    """A stated SDE, compiled once for all mutants of its variant."""
    # one pair of sizes: no mutant of a normaliser looks right where m < b
    return [
        Stated(theory(with_replacement), setting)
        for setting in _settings(variant, with_replacement, seed)[2][:1]
    ]


def _against(mutant: Mutant, seed: int) -> tuple[Finding, ...]:
    """The findings against a stated SDE: its drift at order (1,2), its covariance at (2,3)."""
    assert mutant.theory is not None
    stated = _stated(mutant.theory, mutant.variant, mutant.with_replacement, seed)
    settings = [s.setting for s in stated]
    nothing, chains = (
        [None] * len(settings),
        [partial(_made, mutant, setting) for setting in settings],
    )
    findings = (
        compare_coefficients(settings, [s.fields()[0] for s in stated], nothing, chains, (1, 2))
        if stated[0].has_drift
        else []
    )
    if stated[0].has_covariance:
        findings += compare_coefficients(
            settings, nothing, [s.fields()[1] for s in stated], chains, (2, 3)
        )
    return tuple(finding for finding in findings if finding.status != "confirmed")


EPS, LAM = 0.1, 20.0
"""About the size of a gradient on the torus problem, and its inverse: eps and the weights are far
from negligible.
"""
