"""What was identified: trees with coefficients and formulas, what is left, and the equation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import sympy as sp

from sdesam.problems import FiniteSum
from sdesam.sde import SDE
from sdesam.symbolic import ModifiedEquation, Part, Term, Tree, TreeSum, printing
from sdesam.symbolic.trees import directional_derivative
from sdesam.variants import Variant, gradient
from sdesam.verify.identification._formulas import Size, in_words

IN_SPAN = 1e-8
"""A residual below this is rounding, which leaves about 1e-14; the smallest of a normalised rule is
above 1e-3.
"""

_NAMES = {"mean": "mean step", "influence": "influence h(i)"}


@dataclass(frozen=True)
class Coefficient:
    """The coefficient of one tree.

    Args:
        tree: the tree.
        values: at each size, a fraction where it is rational to 1e-10; NaN where the problem does
            not tell the tree from others.
        formula: in the sizes; None where none was found.
    """

    tree: Tree
    values: Mapping[Size, Fraction | float]
    formula: sp.Expr | None

    @property
    def vanishes(self) -> bool:
        """Whether it is zero at all sizes."""
        return not any(self.values.values())

    @property
    def unique(self) -> bool:
        """Whether the problem tells the tree from all others."""
        return all(value == value for value in self.values.values())

    @property
    def told(self) -> str:
        """The formula, or the values that no formula was found for."""
        if self.formula is not None:
            return in_words(self.formula)
        each = (f"{_number(value)} at {size}" for size, value in self.values.items())
        return f"no formula: {', '.join(each)}"


@dataclass(frozen=True)
class Power:
    """One power of `rho`, in the mean step or in the influence of a sample.

    Args:
        part: `"mean"` or `"influence"`.
        power: of `rho`.
        coefficients: of all candidate trees.
        residual: the largest part of it, over the sizes, that no combination of trees explains,
            relative to its own size.
        scale: its size, the root mean square of its entries over sizes, points and samples.
        indistinguishable: trees that the problem cannot tell apart, in groups.
    """

    part: str
    power: int
    coefficients: tuple[Coefficient, ...]
    residual: float
    scale: float
    indistinguishable: tuple[tuple[Tree, ...], ...]

    @property
    def in_span(self) -> bool:
        """Whether the trees explain this power."""
        return self.residual < IN_SPAN

    @property
    def trees(self) -> TreeSum:
        """The combination of trees, where every coefficient has a formula."""
        return TreeSum(
            {
                c.tree: c.formula
                for c in self.coefficients
                if c.formula is not None and c.formula != 0
            }
        )


@dataclass(frozen=True)
class Identification:
    """The equation of a step, as read off it: see :func:`sdesam.identify`.

    Args:
        name: of the rule or direction.
        order: `(alpha, beta)`.
        replace: whether mini-batches are drawn with replacement.
        problem: the name of the problem on which trees were told apart.
        sizes: at which all batches were listed.
        powers: the powers of `rho`, those of the mean step first.
        left: the largest part of the covariance, to the powers kept, that is not `c_b Cov_i h(i)`.
        rule: the variant; None for a direction, and for a rule with numbers of its own.
        micro: whether the step knows of micro-batches.
    """

    name: str
    order: tuple[int, int]
    replace: bool
    problem: str
    sizes: tuple[Size, ...]
    powers: tuple[Power, ...] = field(repr=False)
    left: float
    rule: Variant | None = field(default=None, repr=False)
    micro: bool = True

    @property
    def residual(self) -> float:
        """The largest residual of any power: 1e-8 at most where the step is made of plain trees."""
        return max(power.residual for power in self.powers)

    @property
    def indistinguishable(self) -> tuple[tuple[Tree, ...], ...]:
        """The trees that the problem cannot tell apart, in groups; those that vanish on it make a
        group of one.
        """
        return tuple(dict.fromkeys(g for power in self.powers for g in power.indistinguishable))

    @property
    def complete(self) -> bool:
        """Whether there is an equation, with a formula for every coefficient."""
        return self._obstacle() is None

    @property
    def equation(self) -> ModifiedEquation:
        """The SDE of the step: drift and noise as identified, and the correction that follows from
        them, `-(eta/2) (D Gbar) Gbar` (`docs/theory.md`, section 2).

        Raises:
            ValueError: the step is no combination of plain trees, the problem does not tell all
                trees apart, or a coefficient has no formula in the sizes.
        """
        obstacle = self._obstacle()
        if obstacle is not None:
            raise ValueError(f"{self.name} has no equation here: {obstacle}")
        mean = {p.power: p.trees for p in self.powers if p.part == "mean"}
        influence = {p.power: p.trees for p in self.powers if p.part == "influence"}
        drift = [Part(Term("drift", j), -trees) for j, trees in mean.items()]
        if self.order[0] == 2:
            # the correction keeps the powers that the noise keeps
            for j in influence:
                pairs = (directional_derivative(mean[k], mean[j - k]) for k in range(j + 1))
                correction = sum(pairs, start=TreeSum()) * sp.Rational(-1, 2)
                drift.append(Part(Term("correction", j), correction))
        noise = [Part(Term("noise", j), trees) for j, trees in influence.items()]
        populations = {size.n for size in self.sizes}
        return IdentifiedEquation(
            variant=self.rule or _stand_in(self.name, self.micro),
            order=self.order,
            replace=self.replace,
            drift_parts=tuple(part for part in drift if part.trees),
            noise_parts=tuple(part for part in noise if part.trees),
            population=None if self.replace or len(populations) > 1 else populations.pop(),
        )

    def _obstacle(self) -> str | None:
        """Why there is no equation."""
        for power in self.powers:
            if not power.in_span:
                return _outside(power)
        for power in self.powers:
            if power.indistinguishable:
                return f"{self._alike(power)}; choose another problem"
        if self.left > IN_SPAN:
            return (
                "the covariance is not that of the influence of single samples: a part of"
                f" {self.left:.2g} of it is left"
            )
        for power in self.powers:
            for c in power.coefficients:
                if c.formula is None:
                    return (
                        f"the coefficient of {printing.text(TreeSum({c.tree: 1}))} in"
                        f" {_place(power)} has no formula in the sizes; more sizes would help"
                    )
        return None

    def _alike(self, power: Power) -> str:
        """Which trees the problem does not tell apart at a power."""
        groups = []
        for group in power.indistinguishable:
            names = [printing.text(TreeSum({tree: 1})) for tree in group]
            groups.append(f"{names[0]} vanishes" if len(names) == 1 else ", ".join(names))
        return (
            f"on problem {self.problem!r} these trees of {_place(power)} cannot be told apart:"
            f" {'; '.join(groups)}"
        )

    def __str__(self) -> str:
        drawn = "with" if self.replace else "without"
        # an example in which m is neither 1 nor b, where there is one
        last = max(self.sizes, key=lambda size: (1 < size.m < size.b, size))
        rows = [("power", "tree", f"at {last}", "formula")]
        for power in self.powers:
            for k, c in enumerate(_shown(power)):
                tree = printing.text(TreeSum({c.tree: 1}))
                label = _place(power) if not k else ""
                rows.append((label, tree, _number(c.values[last]), c.told))
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        table = [
            "   ".join([f"{w:<{k}}" for w, k in zip(row, widths, strict=False)] + [row[-1]])
            for row in rows
        ]
        return "\n".join(
            [
                f"{self.name}, batches {drawn} replacement, order {self.order}: what its steps"
                f" consist of, {len(self.sizes)} sizes listed",
                "",
                *table,
                "",
                "trees that are not shown have the coefficient 0",
                *self._remarks(),
            ]
        )

    def _remarks(self) -> list[str]:
        lines = [
            f"residual: {self.residual:.1e} of a power's own size; plain trees leave less than"
            f" {IN_SPAN:.0e}"
        ]
        lines += [_outside(power) for power in self.powers if not power.in_span]
        lines += [self._alike(power) for power in self.powers if power.indistinguishable]
        populations = {size.n for size in self.sizes}
        if not self.replace and len(populations) == 1:
            lines.append(f"formulas hold for n = {populations.pop()}, the one number of samples")
        return lines

    def latex(self) -> str:
        """The table as a LaTeX `array`, one row a tree."""
        rows = [r"\text{power} & \text{tree} & \text{coefficient}"]
        for power in self.powers:
            for c in _shown(power):
                body = (
                    in_words(c.formula, latex=True)
                    if c.formula is not None
                    else rf"\text{{{c.told}}}"
                )
                tree = printing.latex(TreeSum({c.tree: 1}))
                label = rf"\text{{{_NAMES[power.part]}, }} \rho^{{{power.power}}}"
                rows.append(f"{label} & {tree} & {body}")
        body = " \\\\\n".join(rows)
        return f"\\begin{{array}}{{lll}}\n{body}\n\\end{{array}}"

    def to_json(self) -> dict[str, Any]:
        """Plain data: powers with their trees, coefficients at each size, formulas, residuals."""

        def tree_text(tree: Tree) -> str:
            return printing.text(TreeSum({tree: 1}))

        return {
            "name": self.name,
            "order": list(self.order),
            "replace": self.replace,
            "problem": self.problem,
            "sizes": [list(size) for size in self.sizes],
            "residual": self.residual,
            "covariance left": self.left,
            "complete": self.complete,
            "powers": [
                {
                    "part": power.part,
                    "rho": power.power,
                    "residual": power.residual,
                    "scale": power.scale,
                    "indistinguishable": [
                        [tree_text(tree) for tree in group] for group in power.indistinguishable
                    ],
                    "trees": [
                        {
                            "tree": tree_text(c.tree),
                            "formula": None if c.formula is None else str(c.formula),
                            "values": [_number(value) for value in c.values.values()],
                        }
                        for c in _shown(power)
                    ],
                }
                for power in self.powers
            ],
        }


def _shown(power: Power) -> list[Coefficient]:
    """The coefficients that are known and not zero; of a power that trees do not explain none is
    meant.
    """
    known = [c for c in power.coefficients if not c.vanishes and c.unique]
    return known if power.in_span else []


def _place(power: Power) -> str:
    return f"{_NAMES[power.part]}, rho^{power.power}"


def _outside(power: Power) -> str:
    return (
        f"{_place(power)}: outside the span of plain trees, which leave {power.residual:.3g} of it"
        f" (its size is {power.scale:.3g})"
    )


def _number(value: Fraction | float) -> str:
    return str(value) if isinstance(value, Fraction) else f"{value:.6g}"


@dataclass(frozen=True, eq=False, repr=False)
class IdentifiedEquation(ModifiedEquation):
    """An equation that was read off steps.

    Args:
        population: the number of samples that its coefficients hold for; None where they hold for
            any.
    """

    population: int | None = None

    def bind(self, problem: FiniteSum, *arguments: Any, **options: Any) -> SDE:
        """The equation as jax functions on a problem, with numbers: see
        :func:`sdesam.sde.bind`.
        """
        if self.population not in (None, problem.n):
            raise ValueError(
                f"this equation was read off steps without replacement on n={self.population}"
                f" samples alone, and holds for no other number: the problem has n={problem.n}"
            )
        return super().bind(problem, *arguments, **options)

    def __repr__(self) -> str:
        return (
            f"identify({self.variant.title!r}, order={self.order}, replace={self.replace}).equation"
        )


class _Unnamed(Variant):
    """The place of a variant in an equation that was read off steps: it says what is bound, and is
    no rule to run.
    """

    @property
    def rule(self) -> dict[str, str]:
        """What is known of the rule, for records."""
        return {"identified": self.title}


def _stand_in(name: str, micro_batches: bool) -> Variant:
    # binding asks whether there is a radius, and whether there are micro-batches
    own = gradient("micro" if micro_batches else "batch")
    scope = "micro" if micro_batches else "batch"
    return _Unnamed(f"identified: {name}", gradient(scope, at=own), title=name)
