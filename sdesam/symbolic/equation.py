"""From a variant to its modified equation: expand one step in `rho`, take expectations, truncate,
correct.

`G = sum_j rho^j G_j` is the step's direction, `Gbar = E G`. The SDE `dX = B dt + sqrt(eta) S dW`
with

    B     = -Gbar - (eta/2) (D Gbar) Gbar          (the correction is needed for alpha = 2)
    S S^T = Cov(G)

matches the chain weakly with global error `O(eta^alpha + rho^beta)`; terms of size `eta^i rho^j`
with `i/alpha + j/beta >= 1` are below that and are dropped (`docs/theory.md`, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import sympy as sp

from sdesam._util.names import unknown
from sdesam.symbolic import printing
from sdesam.symbolic.expansion import expand
from sdesam.symbolic.expectation import MICRO, OutsideError, Sizes, mean, projection
from sdesam.symbolic.potential import Obstruction
from sdesam.symbolic.potential import potential as find_potential
from sdesam.symbolic.roles import LOOP, WHOLE
from sdesam.symbolic.terms import Term
from sdesam.symbolic.trees import (
    Factor,
    Tree,
    TreeSum,
    batch,
    directional_derivative,
    eta,
    micro,
    rho,
    samples,
)
from sdesam.variants import NormEstimate, Unit, Variant
from sdesam.variants import variant as find_variant

if TYPE_CHECKING:
    from sdesam.problems import FiniteSum
    from sdesam.sde import SDE

binder: Callable[..., SDE]
"""What :meth:`ModifiedEquation.bind` calls. The algebra imports no jax, so `sdesam/__init__.py`
says what it is.
"""

_GRADIENT = Term("drift", 0)
"""The drift of gradient flow, which every equation has."""


@dataclass(frozen=True)
class Part:
    """One named part of an equation: powers of `eta` and `rho` times a combination of trees with
    coefficients in `b, m, n`.
    """

    term: Term
    trees: TreeSum

    @property
    def name(self) -> str:
        """The name of its term."""
        return str(self.term)

    @property
    def total(self) -> TreeSum:
        """The part with its powers of `eta` and `rho`, as it stands in the equation."""
        total: TreeSum = self.trees * (eta**self.term.eta * rho**self.term.rho)
        return total


@dataclass(frozen=True, eq=False, repr=False)
class ModifiedEquation:
    """The SDE of a SAM variant, symbolic in `eta, rho, b, m, n`; made by :func:`derive`.

    ``dX = B(X) dt + sqrt(eta) S(X) dW`` with ``B`` = :attr:`drift` and ``S S^T = c_b Cov_i h(i)``,
    ``h`` = :attr:`noise`, ``c_b = 1/b`` with replacement and ``(n-b)/(b(n-1))`` without. Time is
    ``t = k eta``.

    Two equations are equal where drift, noise and sampling are, whatever variant they came from.
    """

    variant: Variant
    order: tuple[int, int]
    replace: bool
    drift_parts: tuple[Part, ...]
    noise_parts: tuple[Part, ...]
    removed: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every named part, drift first."""
        return self.drift_parts + self.noise_parts

    @property
    def drift(self) -> TreeSum:
        """`B`: coloured trees with sympy coefficients, minus sign included, per unit of SDE
        time.
        """
        return sum((part.total for part in self.drift_parts), start=TreeSum())

    @property
    def noise(self) -> TreeSum:
        """The influence `h(i)` of one sample on the step: `Cov(G) = c_b Cov_i h(i)`; the marked
        colour is `i`.
        """
        return sum((part.total for part in self.noise_parts), start=TreeSum())

    @property
    def terms(self) -> tuple[str, ...]:
        """The names that :meth:`without` takes.

        `"rho^j"` is a drift term, `"rho^j variance"` that term minus its limit of independent
        samples, `"eta"` the whole correction and `"eta rho^1"` its `rho^1` part, `"noise"` all
        noise and `"noise rho^1"` its `rho^1` part.
        """
        found: list[Term] = []
        for part in self.parts:
            if part.term == _GRADIENT:
                continue
            found.append(part.term)
            if part.term.kind == "drift" and _variance(part.trees):
                found.append(part.term._replace(variance=True))
        return tuple(map(str, found))

    def without(self, term: str) -> ModifiedEquation:
        """The equation with one named term left out: the negative control of a verification.

        Raises:
            ValueError: no such term; the message lists the valid names.

        >>> derive("m-usam").without("rho^1 variance").terms
        ('rho^1', 'rho^2', 'rho^2 variance', 'eta', 'eta rho^1', 'noise', 'noise rho^1')
        """
        left_out = Term.parse(term) if isinstance(term, str) else None
        if left_out is None or term not in self.terms:
            raise unknown("term", term, self.terms)

        def rest(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            kept = (part for part in parts if not left_out.covers(part.term))
            if not left_out.variance:
                return tuple(kept)
            return tuple(
                replace(part, trees=part.trees - _variance(part.trees))
                if part.term == left_out.whole
                else part
                for part in kept
            )

        return replace(
            self,
            drift_parts=rest(self.drift_parts),
            noise_parts=rest(self.noise_parts),
            removed=(*self.removed, term),
        )

    @property
    def whole_micro_batches(self) -> bool:
        """Whether colours with a norm stand for micro-batches `I`, over which expectations are
        enumerated or sampled.
        """
        rule = self.variant
        norms = (v.norm_of for v in rule.direction.walk() if isinstance(v, Unit))
        return rule.weighted or any(norm.scopes - {"data"} for norm in norms)

    @property
    def noise_factor(self) -> sp.Expr:
        """`c_b` of `Cov(G) = c_b Cov_i h(i)`: how a mini-batch mean's covariance follows from that
        of one sample.
        """
        product = mean(Tree(MICRO, (Tree(MICRO),)), Sizes(batch, batch), self.replace)
        return product[Tree(1, (Tree(1),))]

    def subs(self, old: sp.Symbol, new: Any) -> ModifiedEquation:
        """The equation with one of the sizes `b, m, n` (:data:`sdesam.symbolic.micro`, ...)
        replaced, say `m` by `b` or by 1.
        """
        if old not in (batch, micro, samples):
            raise ValueError(f"{old} cannot be replaced: only the sizes b, m and n can")
        if self.whole_micro_batches and old == _size(self.variant):
            raise ValueError(
                f"{old} cannot be replaced: in {self.variant.name} it is also the size of the"
                " micro-batches I; bind with another size"
            )

        def swap(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            swapped = (replace(part, trees=part.trees.subs({old: new})) for part in parts)
            return tuple(part for part in swapped if part.trees)

        return replace(self, drift_parts=swap(self.drift_parts), noise_parts=swap(self.noise_parts))

    def potential(self) -> TreeSum | None:
        """The modified loss `U` with `drift = -grad U` for every loss and dimension, as free trees;
        None where there is none.

        :attr:`obstruction` says why there is none. Leave the offending term out to see the modified
        loss of the rest.

        >>> print(derive("m-usam", order=(1, 2)).describe_potential())
        f + (rho/2) |gbar|^2 + (rho/(2*m)) mean_i(|g~_i|^2)
        """
        found = find_potential(-self.drift)
        return None if isinstance(found, Obstruction) else found

    @property
    def obstruction(self) -> str | None:
        """Why the drift is no gradient, or is not known to be one; None where it is one."""
        reasons = []
        for part in self.drift_parts:
            found = find_potential(-part.total)
            if isinstance(found, Obstruction):
                verdict = "" if found.undecided else " is no gradient"
                reasons.append(f"the {part.name} part of the drift{verdict}: {found}")
        return "; ".join(reasons) or None

    def describe_potential(self) -> str:
        """The modified loss, or why there is none, as one line of text."""
        found = self.potential()
        if found is None:
            return f"none: {self.obstruction}"
        return printing.text(printing.centred(found, scalar=True), deviations=True, scalar=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModifiedEquation):
            return NotImplemented
        return (self.replace, self.drift, self.noise) == (other.replace, other.drift, other.noise)

    def __hash__(self) -> int:
        return hash((self.replace, self.drift, self.noise))

    def __repr__(self) -> str:
        left_out = "".join(f".without({term!r})" for term in self.removed)
        return (
            f"derive({self.variant.name!r}, order={self.order}, replace={self.replace}){left_out}"
        )

    def text(self) -> str:
        """The equation for a person to read, in plain text."""
        sampling = "with replacement" if self.replace else "without replacement"
        factor = printing.coefficient(self.noise_factor)
        alpha, beta = self.order
        lines = [
            (
                f"{self.variant.title}, batches {sampling}, order (alpha, beta) = {self.order}:"
                f" weak error O(eta^{alpha} + rho^{beta})"
            ),
            *(f"left out: {term}" for term in self.removed),
            "",
            "dX = B(X) dt + sqrt(eta) S(X) dW,   time t = k eta",
            "",
            "B =",
        ]
        width = max((len(part.name) for part in self.parts), default=0)

        def row(part: Part, body: str) -> str:
            return printing.wrap(f"    {part.name:<{width}}   ", body)

        lines += [
            row(part, printing.text(printing.centred(part.total), deviations=True))
            for part in self.drift_parts
        ]
        lines += [
            "",
            f"S S^T = c_b Cov_i h(i),   c_b = {factor},   h(i) =" if self.noise_parts else "S = 0",
        ]
        lines += [row(part, printing.text(part.total)) for part in self.noise_parts]
        if self.order[0] == 1 and self.noise_parts:
            lines.append("    (customary: at alpha = 1 no weak error can see the noise)")
        lines += ["", printing.wrap("modified loss U, B = -grad U:   ", self.describe_potential())]
        if self.potential() is None:
            gradients = [
                part
                for part in self.drift_parts
                if not isinstance(find_potential(-part.total), Obstruction)
            ]
            rest = replace(self, drift_parts=tuple(gradients))
            lines.append(
                printing.wrap("    the other parts have U =   ", rest.describe_potential())
            )
        lines += [
            "",
            (
                "g, H, T: first, second, third derivative of a per-sample loss; bar: mean over the"
                " data set; tilde: deviation from it;"
            ),
            (
                "mean_i: over the data set. mean_i(|g~_i|^2) is tr V, the trace of the covariance"
                " of stochastic gradient noise."
            ),
            *self._norms(),
        ]
        return "\n".join(lines)

    def _norms(self) -> list[str]:
        """What the symbols of micro-batches, norms, weights and loops mean."""
        trees = [tree for part in self.parts for tree in part.trees]
        norms = {
            (f.tree.colour == WHOLE, f.tree.weighted)
            for tree in trees
            for f in tree.factors
            if f.norm and not f.mix
        }
        lines = []
        if self.whole_micro_batches:
            lines.append(
                f"I: a micro-batch of {_size(self.variant)} samples, mean_I: over all of them; g_I,"
                " H_I, T_I: derivatives of f_I;"
            )
        for of_data_set, weighted in sorted(norms):
            r, g = (
                ("r", "gbar") if of_data_set else ("r^_I", "g^_I") if weighted else ("r_I", "g_I")
            )
            lines.append(
                f"{r} = sqrt(|{g}|^2 + eps^2); where it vanishes (eps = 0) the perturbation is 0."
            )
        if any(f.mix for tree in trees for f in tree.factors):
            lines.append("|v|: sqrt(|v|^2 + eps^2) where it divides.")
        if self.variant.weighted:
            lines.append(
                "g^_I = sum_i p_i g_i with Gibbs weights p_i proportional to exp(lam nu_i), nu_i an"
                " estimate of |g_i|; D: its derivative."
            )
        if any(node.colour == LOOP for tree in trees for node in tree.nodes()):
            lines.append("e: each vector of an orthonormal basis in turn, summed over all of them.")
        return lines

    def latex(self) -> str:
        """The equation as a LaTeX `align*` environment."""
        factor = printing.coefficient(self.noise_factor, latex=True)
        rows = [
            printing.latex(printing.centred(part.total), deviations=True)
            + rf" && \text{{{_math(part.name)}}}"
            for part in self.drift_parts
        ]
        drift = "B &= " + " \\\\\n  &\\quad ".join(
            _signed(row, first=not k) for k, row in enumerate(rows)
        )
        lines = [r"\mathrm{d}X &= B(X)\,\mathrm{d}t + \sqrt{\eta}\,S(X)\,\mathrm{d}W", drift]
        if self.noise_parts:
            lines.append(rf"S S^{{\mathsf T}} &= {factor}\,\operatorname{{Cov}}_i\, h(i)")
            lines.append("h(i) &= " + printing.latex(self.noise))
        return "\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}"

    def to_json(self) -> dict[str, Any]:
        """The equation as plain data: trees as nested lists `[colour, child, ...]`, coefficients as
        text.

        The marked colour is 0, that of the whole data set -1, that of the two ends of a loop -3; a
        weighted node has the colour `"1w"`. A tree's `factors` are norms `sqrt(|g|^2 + eps^2)` or
        inner products, with their powers; the `mix` `[a, s]` of a norm says that it is that of
        `a g + s gbar`.
        """

        def parts(many: tuple[Part, ...]) -> list[dict[str, Any]]:
            return [
                {
                    "term": part.name,
                    "text": printing.text(part.total),
                    "trees": [
                        {"tree": _nested(tree), "coefficient": str(c), **_factors(tree)}
                        for tree, c in part.total.items()
                    ],
                }
                for part in many
            ]

        return {
            "variant": self.variant.name,
            "order": list(self.order),
            "replace": self.replace,
            "removed": list(self.removed),
            "terms": list(self.terms),
            "drift": parts(self.drift_parts),
            "noise": parts(self.noise_parts),
            "noise_factor": str(self.noise_factor),
            "potential": None if self.potential() is None else self.describe_potential(),
            "obstruction": self.obstruction,
        }

    def bind(
        self,
        problem: FiniteSum,
        lr: float,
        rho: float | None = None,
        batch: int = 1,
        micro: int | None = None,
        expectation: str = "sampled",
        *,
        eps: float = 0.0,
        lam: float | None = None,
        norms: NormEstimate | None = None,
        micro_batches: int | None = None,
        **own: float,
    ) -> SDE:
        """The equation as jax functions on a problem, with numbers: see :func:`sdesam.sde.bind`."""
        options = {"eps": eps, "lam": lam, "norms": norms, "micro_batches": micro_batches, **own}
        return binder(self, problem, lr, rho, batch, micro, expectation, **options)  # noqa: F821


def derive(
    variant: str | Variant, order: tuple[int, int] = (2, 3), replace: bool = True
) -> ModifiedEquation:
    """The SDE of a SAM variant at order `(alpha, beta)`: weak error `O(eta^alpha + rho^beta)`.

    Args:
        variant: a name in :data:`sdesam.variants.VARIANTS`.
        order: `alpha` in {1, 2}, `beta` in 1..4. At `alpha = 1` the leading noise is kept by
            custom: no weak error of that order sees it.
        replace: whether mini-batches are drawn with replacement.

    Raises:
        ValueError: an unknown variant, an order that is not available, or a rule that has no trees,
            with the reason.

    Source: Li, Tai & E 2019 (SGD); Luo et al., arXiv 2509.18001, theorems 3.3 to 3.5;
    `docs/theory.md`, sections 2 to 4.

    >>> print(derive("m-usam").terms)
    ('rho^1', 'rho^1 variance', 'rho^2', 'rho^2 variance', 'eta', 'eta rho^1', 'noise',
     'noise rho^1')
    """
    declared = find_variant(variant)
    alpha, beta = check_order(order)
    if not isinstance(replace, bool):
        raise TypeError(
            f"replace={replace!r}: it must be True (with replacement) or False (without)"
        )
    return _derive(declared, alpha, beta, replace)


def check_order(order: tuple[int, int]) -> tuple[int, int]:
    """`(alpha, beta)`, or why there is no SDE of that order."""
    try:
        alpha, beta = order
    except (TypeError, ValueError):
        raise ValueError(
            f"order={order!r}: it must be a pair (alpha, beta), for example (2, 3)"
        ) from None
    if any(isinstance(part, bool) or not isinstance(part, int) for part in (alpha, beta)):
        raise ValueError(
            f"order={order!r}: alpha and beta must be whole numbers, for example (2, 3)"
        )
    if alpha > 2:
        raise ValueError(
            f"order={order!r}: no SDE driven by Brownian motion has alpha > 2, because the"
            " logarithm of the one-step operator contains -eta^3 kappa_3(G) D^3/6 (-eta^2 per unit"
            " of SDE time), a third derivative that only a vanishing third cumulant of the step"
            " would remove; choose alpha 1 or 2"
        )
    if alpha < 1:
        raise ValueError(f"order={order!r}: alpha must be 1 or 2")
    if not 1 <= beta <= 4:
        raise ValueError(
            f"order={order!r}: beta must be 1, 2, 3 or 4; beyond 4 the rho^2 part of the noise"
            " covariance would be needed, which the first Hoeffding projection does not give"
        )
    return alpha, beta


def is_kept(order: tuple[int, int], i: int, j: int) -> bool:
    """Whether an equation of the order `(alpha, beta)` keeps `eta^i rho^j` of its drift.

    On the path `rho = eta^(alpha/beta)` the power has the size `eta^(i + j alpha/beta)`, and the
    allowed error per unit of time is `eta^alpha`, so that it is kept where
    `i/alpha + j/beta < 1`.

    >>> [(i, j) for i in range(3) for j in range(4) if is_kept((2, 3), i, j)]
    [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    """
    alpha, beta = order
    return Fraction(i, alpha) + Fraction(j, beta) < 1


@cache
def _derive(variant: Variant, alpha: int, beta: int, with_replacement: bool) -> ModifiedEquation:
    kept = partial(is_kept, (alpha, beta))
    orders = [j for j in range(beta) if variant.perturbed or j == 0]
    sizes = Sizes(batch, micro if variant.micro else batch)
    try:
        step = expand(variant, len(orders))
        mean_step = {j: _each(mean, step[j], sizes, with_replacement) for j in orders}
        influence = {
            j: _each(projection, step[j], sizes, with_replacement)
            for j in orders
            if kept(1, j) or j == 0
        }
    except OutsideError as part:
        raise ValueError(
            f"{variant.name} has no equation in trees, because of {part}: run it by"
            " sdesam.Chain, and make its SDE by numbers, sdesam.SDE.from_step(direction, problem,"
            " ...)"
        ) from None
    drift = [Part(Term("drift", j), -mean_step[j]) for j in orders if kept(0, j)]
    for j in orders:
        if kept(1, j):
            grafted = (directional_derivative(mean_step[k], mean_step[j - k]) for k in range(j + 1))
            trees = sum(grafted, start=TreeSum()) * sp.Rational(-1, 2)
            drift.append(Part(Term("correction", j), trees))
    # at alpha = 1 no noise is above the weak error; its leading part is kept by custom
    noise = [Part(Term("noise", j), trees) for j, trees in influence.items()]
    return ModifiedEquation(
        variant=variant,
        order=(alpha, beta),
        replace=with_replacement,
        drift_parts=tuple(part for part in drift if part.trees),
        noise_parts=tuple(part for part in noise if part.trees),
    )


def _each(
    expectation: Callable[[Tree, Sizes, bool], TreeSum], step: TreeSum, sizes: Sizes, replace: bool
) -> TreeSum:
    """An expectation, or a projection, of every tree of a step."""
    return TreeSum(
        [
            (tree, k * c)
            for tagged, c in step.items()
            for tree, k in expectation(tagged, sizes, replace).items()
        ]
    )


def _size(variant: Variant) -> sp.Symbol:
    return micro if variant.micro else batch


def _variance(trees: TreeSum) -> TreeSum:
    return trees - trees.independent()


def evaluate(
    coefficient: sp.Expr, b: int, m: int, n: int, own: Mapping[str, float] | None = None
) -> Fraction:
    """A coefficient at concrete sizes, exactly.

    Args:
        coefficient: in the sizes and in a rule's own numbers.
        b: the size of a mini-batch.
        m: the size of a micro-batch.
        n: how many samples there are.
        own: the rule's own numbers, by name.

    Sizes of batches go in first and common factors are cancelled before `n` does: the falling
    factorials of a micro-batch vanish where those of the population do, so that `n = 1` and `n = 2`
    without replacement are defined.
    """
    return _evaluated(coefficient, b, m, n, tuple(sorted((own or {}).items())))


@cache
def _evaluated(
    coefficient: sp.Expr, b: int, m: int, n: int, own: tuple[tuple[str, float], ...]
) -> Fraction:
    numbers = {sp.Symbol(name, real=True): sp.Rational(Fraction(value)) for name, value in own}
    coefficient = coefficient.subs(numbers)
    value = sp.cancel(coefficient.subs({batch: b, micro: m})).subs({samples: n})
    if not value.is_Rational:
        raise ValueError(
            f"the coefficient {coefficient} has no rational value at b={b}, m={m}, n={n}"
        )
    return Fraction(int(value.p), int(value.q))


def _nested(tree: Tree) -> list[Any]:
    return [
        f"{tree.colour}w" if tree.weighted else tree.colour,
        *(_nested(child) for child in tree.children),
    ]


def _factors(tree: Tree) -> dict[str, Any]:
    def kind(factor: Factor) -> str:
        return "logarithm of a norm" if factor.log else "norm" if factor.norm else "inner product"

    listed = [
        {
            "kind": kind(f),
            "tree": _nested(f.tree),
            "power": f.power,
            **({"mix": [str(c) for c in f.mix]} if f.mix else {}),
        }
        for f in tree.factors
    ]
    return {"factors": listed} if listed else {}


def _math(name: str) -> str:
    words = {"eta": r"$\eta$"}
    return " ".join(
        words.get(word, f"${word.replace('rho', chr(92) + 'rho')}$") for word in name.split()
    )


def _signed(row: str, first: bool) -> str:
    return row if first or row.startswith("-") else "+ " + row
