"""Identification: which trees, with which coefficients, a step consists of."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import sympy as sp

from sdesam.problems import FiniteSum, check_problem
from sdesam.sampling import check_own, check_perturbation
from sdesam.sde.by_numbers import Powers
from sdesam.symbolic import Tree, batch, check_order, micro, samples
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant
from sdesam.verify.exact.float64 import Rebuild, start
from sdesam.verify.identification._candidates import candidates
from sdesam.verify.identification._formulas import Size, basis, fitted, named
from sdesam.verify.identification._moments import Moments, moments, tree_values
from sdesam.verify.identification._result import Coefficient, Identification, Power
from sdesam.verify.identification._sizes import checked_sizes, chosen_sizes
from sdesam.verify.identification._span import Combination, combination, rational
from sdesam.verify.identification._step import DirectionStep, RuleStep, Step, own_problem

_EQUATIONS = 3
"""Equations for each candidate tree; more than one, or a residual would say nothing."""


def identify(
    rule: str | Variant | Callable[..., Any],
    order: tuple[int, int] = (2, 3),
    problem: FiniteSum | None = None,
    replace: bool = True,
    sizes: Any = None,
    *,
    eps: float = 0.0,
    lam: float | None = None,
    **own: float,
) -> Identification:
    """Find out which coloured trees an optimizer's step consists of, from its steps alone.

    At each of several sizes all batches are listed. The Taylor coefficients in `rho` of the exact
    mean step `Gbar` at random points are vectors, and so are the candidate trees, all those of
    `j + 1` nodes at `rho^j`; least squares gives the coefficients. No coefficient is derived. The
    covariance to `rho^1` is `c_b Cov_i h(i)`, and `h(i) = b (E[G | i in the batch] - Gbar)` (times
    `(n-1)/(n-b)` without replacement) is written in trees in the same way; what of the covariance
    is not of this form is measured. Exact fractions at several sizes give formulas in `n, b, m`.

    Args:
        rule: a variant or its name, or a jax function `direction(x, samples, rho)` as for
            :meth:`sdesam.SDE.from_step`, the direction of one micro-batch. A rule is run as its
            :class:`sdesam.Chain` runs it.
        order: `(alpha, beta)`, which says the powers of `rho` that are looked at.
        problem: where to look; left out, random problems in three dimensions that tell all trees
            apart. A direction needs the problem whose loss it differentiates.
        replace: whether mini-batches are drawn with replacement.
        sizes: pairs `(b, m)`, or triples `(n, b, m)` without a problem; left out, sizes on which no
            two formulas agree. A direction sees one micro-batch, so that `b` says nothing to it.
        eps: of the normaliser, for a normalised rule.
        lam: of the Gibbs weights, for rw-sam, whose norms are exact.
        own: the rule's own numbers, by name.

    Returns:
        An :class:`Identification`. A normalised rule lies outside the span of plain trees, and its
        residual says so.

    Raises:
        ValueError: sizes on which formulas agree or whose batches are too many to list, a rule that
            draws random directions, a direction that is not smooth, not deterministic, or of
            another shape than `x0`.
        TypeError: no rule, a direction without a problem, a number that the rule does not have.

    Source: `docs/theory.md`, section 10.

    >>> found = identify("usam", order=(1, 2))
    >>> print(found)
    usam, batches with replacement, order (1, 2): what its steps consist of, 4 sizes listed
    <BLANKLINE>
    power                   tree              at n=4, b=4, m=4   formula
    mean step, rho^0        gbar              1                  1
    mean step, rho^1        mean_i(H_i g_i)   1/4                1/b
                            Hbar gbar         3/4                (b - 1)/b
    influence h(i), rho^0   g_i               1                  1
    <BLANKLINE>
    trees that are not shown have the coefficient 0
    residual: ... of a power's own size; plain trees leave less than 1e-08
    >>> import sdesam
    >>> found.equation == sdesam.derive("usam", order=(1, 2))
    True
    """
    alpha, beta = check_order(order)
    if not isinstance(replace, bool):
        raise TypeError(
            f"replace={replace!r}: it must be True (with replacement) or False (without)"
        )
    step = _step(rule, (alpha, beta), problem, replace, (eps, lam, own))
    if problem is not None:
        _check_smooth(check_problem(problem), alpha, beta)
    kept = Powers.kept(alpha, beta)
    nodes = kept.drift + 1
    n = None if problem is None else problem.n
    listed = chosen_sizes(step, nodes, n) if sizes is None else checked_sizes(sizes, step, nodes, n)
    seen = _Seen(step, problem, kept)
    known = {size: seen.moments(size) for size in listed}
    populations = {size.n for size in listed}
    varying = step.symbols | ({samples} if len(populations) > 1 else set())
    parts = [("mean", j) for j in range(kept.drift + 1)]
    parts += [("influence", j) for j in range(kept.noise + 1)]
    powers = tuple(seen.power(part, j, known, frozenset(varying)) for part, j in parts)
    declared = step.variant if isinstance(step, RuleStep) and not step.own else None
    return Identification(
        name=step.name,
        order=(alpha, beta),
        replace=replace,
        problem="random-waves" if problem is None else str(problem.name),
        sizes=tuple(listed),
        powers=powers,
        left=max(found.left for found in known.values()),
        rule=declared,
        micro=micro in step.symbols,
    )


def _step(
    rule: Any,
    order: tuple[int, int],
    problem: FiniteSum | None,
    replace: bool,
    numbers: tuple[float, float | None, dict[str, float]],
) -> Step:
    eps, lam, own = numbers
    if isinstance(rule, (str, Variant)):
        variant = find_variant(rule)
        norms = NormEstimate("exact") if variant.weighted else None
        radius = 0.0 if variant.perturbed else None
        _, eps, checked, _ = check_perturbation(variant, radius, eps, lam, norms)
        given = tuple(sorted(check_own(variant, own).items()))
        return RuleStep(variant, replace, eps, checked if variant.weighted else None, given)
    if not callable(rule):
        raise TypeError(
            f"rule={rule!r}: it must be a variant, its name, or a function (x, samples, rho) -> the"
            " direction of one micro-batch"
        )
    if problem is None:
        raise TypeError(
            "a direction needs problem=..., the sdesam.FiniteSum whose loss it differentiates"
        )
    for name, value in {"eps": eps or None, "lam": lam, **own}.items():
        if value is not None:
            raise TypeError(f"{name}={value!r}: a direction holds its numbers itself; leave it out")
    return DirectionStep(rule, replace, order)


def _check_smooth(problem: FiniteSum, alpha: int, beta: int) -> None:
    """Refuse third derivatives of a loss with kinks, which are not what the theory means by
    them.
    """
    if (alpha == 2 or beta > 2) and problem.nonsmooth:
        raise ValueError(
            f"the loss of problem {problem.name!r} is not smooth enough for order"
            f" {(alpha, beta)}: it contains {', '.join(problem.nonsmooth)}; use tanh, gelu or"
            " softplus, or order (1, 2)"
        )


class _Seen:
    """A step on its problems, with trees at the same points; trees are evaluated once a problem."""

    def __init__(self, step: Step, problem: FiniteSum | None, kept: Powers):
        self.step, self.given, self.kept = step, problem, kept
        self._problems: dict[int, tuple[FiniteSum, np.ndarray]] = {}
        self._trees: dict[tuple[int, tuple[Tree, ...]], np.ndarray] = {}

    def at(self, n: int) -> tuple[FiniteSum, np.ndarray]:
        """The problem of `n` samples, and the points."""
        if n not in self._problems:
            problem = self.given or own_problem(n)
            wanted = _EQUATIONS * len(candidates(self.kept.drift + 1))
            count = 1 + -(-wanted // problem.dim)
            self._problems[n] = problem, _points(problem, count)
        return self._problems[n]

    def moments(self, size: Size) -> Moments:
        """Mean step and influence at one size."""
        problem, points = self.at(size.n)
        found, batches = self.step.expanded(problem, size, points, self.kept.drift)
        if not np.isfinite(found).all():
            raise ValueError(
                f"the step of {self.step.name} is not finite at some points near x0 of problem"
                f" {problem.name!r}: a step must be smooth in x and rho; eps > 0 keeps a norm from"
                " vanishing, and another x0 may"
            )
        return moments(found, batches, size.n, self.kept.noise)

    def power(
        self, part: str, j: int, known: dict[Size, Moments], varying: frozenset[sp.Symbol]
    ) -> Power:
        """One power of `rho` in trees."""
        marked = part == "influence"
        trees = candidates(j + 1, marked)
        found: dict[Size, Combination] = {}
        squares = []
        for size, one in known.items():
            vector = one.influence[j] if marked else one.mean[j]
            before = float(one.size[j]) * (np.sqrt(size.n) if marked else 1)
            found[size] = combination(vector, self._values(size.n, trees), before)
            squares.append(np.mean(vector**2))
        together = dict.fromkeys(group for one in found.values() for group in one.together)
        families = [
            basis(j + 1, marked, self.step.replace, symbols)
            for symbols in (varying - {batch}, varying)
            if symbols & self.step.symbols
        ]
        # m/b and the like are no expectations over positions, but a step may have them
        families.append(named(self.step.replace, self.step.symbols))
        coefficients = []
        for k, tree in enumerate(trees):
            values = {size: rational(one.coefficients[k]) for size, one in found.items()}
            coefficients.append(Coefficient(tree, values, _formula(values, families)))
        return Power(
            part,
            j,
            tuple(coefficients),
            max(one.residual for one in found.values()),
            float(np.sqrt(np.mean(squares))),
            tuple(tuple(trees[k] for k in group) for group in together),
        )

    def _values(self, n: int, trees: tuple[Tree, ...]) -> np.ndarray:
        if (n, trees) not in self._trees:
            found = tree_values(*self.at(n), trees)
            if not np.isfinite(found).all():
                raise ValueError(
                    f"problem {self.at(n)[0].name!r}: derivatives of the loss are not finite near"
                    " x0"
                )
            self._trees[n, trees] = found
        return self._trees[n, trees]


def _formula(
    values: dict[Size, Fraction | float], families: list[tuple[sp.Expr, ...]]
) -> sp.Expr | None:
    """The combination of one family of functions that has these values; None where there is none,
    or more than one.
    """
    exact = {size: value for size, value in values.items() if isinstance(value, Fraction)}
    if len(exact) < len(values):
        return None
    found = (fitted(exact, functions) for functions in families)
    return next((formula for formula in found if formula is not None), None)


def _points(problem: FiniteSum, count: int) -> np.ndarray:
    """Random points around the start at which losses are finite, shape `(count, d)`."""
    x = start(problem)
    away = np.random.default_rng(5).normal(size=(count, problem.dim))
    rebuild = Rebuild(problem.x0)
    for spread in (1.0, 0.3, 0.1, 0.03):
        points = x + spread * (1 + abs(x)) * away
        losses = [float(problem.loss(rebuild(jnp.asarray(p, jnp.float32)))) for p in points]
        if np.isfinite(losses).all():
            return np.asarray(points)
    raise ValueError(f"problem {problem.name!r}: the loss is not finite near x0")
