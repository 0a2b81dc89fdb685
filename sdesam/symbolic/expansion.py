"""The direction of a rule as a power series in `rho`, in trees with tags.

`grad f_S(x + rho u)` with `u = u_0 + rho u_1 + ...` is a sum over the number `k` of factors `u`,

    sum_k (rho^k / k!) D^(k+1) f_S [u, ..., u],

and each `u` is expanded in turn. An example, two ascent steps `u = g + grad f(x + rho g)` of one
batch: `u_0 = 2 g` and `u_1 = H g`, so that the direction is

    g + rho H u_0 + rho^2 (H u_1 + T[u_0, u_0] / 2) = g + 2 rho H g + rho^2 (H H g + 2 T[g, g]).

A norm `r = |w|` is expanded about its value at `rho = 0`: with `|w|^2 = r^2 + rho S_1 + ...`, `1/r`
becomes `(1/r)(1 - rho S_1 / (2 r^2) + ...)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import factorial

import sympy as sp

from sdesam.symbolic.expectation import BATCH, DATA, FRESH, MICRO, OutsideError
from sdesam.symbolic.roles import LOOP, ONE, WHOLE
from sdesam.symbolic.trees import Factor, Tree, TreeSum, relabel, symbolic
from sdesam.variants import (
    Elementwise,
    Gibbs,
    Gradient,
    RandomDirection,
    Rejection,
    Scalar,
    Sum,
    Unit,
    Variant,
    Vector,
)

Series = list[TreeSum]
"""The coefficients of `rho^0, rho^1, ...`."""


def expand(rule: Variant, powers: int) -> Series:
    """The direction of one micro-batch by powers `rho^0 .. rho^(powers-1)`, in trees with tags.

    Raises:
        OutsideError: a part of the rule has no trees.
    """
    series = _Expansion(rule, powers).vector(rule.direction, powers)
    return [_without_random(part) for part in series]


class _Expansion:
    def __init__(self, rule: Variant, powers: int):
        self.rule = rule
        self.powers = powers

    def tag(self, scope: str) -> int:
        """The tag of a scope. Where nothing speaks of micro-batches, the mini-batch is the only
        one.
        """
        name, _, number = scope.partition(" ")
        if name == "fresh":
            return FRESH + int(number or 1) - 1
        return {"micro": MICRO, "batch": BATCH if self.rule.micro else MICRO, "data": DATA}[name]

    def vector(self, v: Vector, powers: int) -> Series:
        """A vector by powers of `rho`."""
        if isinstance(v, Gradient):
            return self._gradient(v, powers)
        if isinstance(v, Sum):
            parts = [(symbolic(c), self.vector(part, powers)) for c, part in v.terms]
            return [
                sum((series[j] * c for c, series in parts), start=TreeSum()) for j in range(powers)
            ]
        if isinstance(v, Unit):
            return self._unit(v, powers)
        if isinstance(v, Gibbs):
            if v.at is not None:
                raise OutsideError(f"{v}, a weighted gradient at a moved point")
            return _constant(Tree(self.tag(v.scope), weighted=True), powers)
        if isinstance(v, RandomDirection):
            return _constant(Tree(LOOP), powers)
        assert isinstance(v, (Elementwise, Rejection))
        what = "works on entries" if isinstance(v, Elementwise) else "turns with the gradients"
        raise OutsideError(f"{v}, which {what}")

    def _gradient(self, v: Gradient, powers: int) -> Series:
        root = Tree(self.tag(v.scope))
        series = _constant(root, powers)
        u = self.vector(v.at, powers - 1) if v.at is not None and powers > 1 else []
        for j in range(1, powers if u else 1):
            terms: list[tuple[Tree, sp.Expr]] = []
            for count in range(1, j + 1):
                for parts in _compositions(j - count, count):
                    chosen = product(*(u[k].items() for k in parts))
                    terms += [
                        (_grown(root, [tree for tree, _ in some]), _weight(some, count))
                        for some in chosen
                    ]
            series[j] = TreeSum(terms)
        return series

    def _unit(self, v: Unit, powers: int) -> Series:
        over = self.vector(v.vector, powers)
        under = over if v.norm_of == v.vector else self.vector(v.norm_of, powers)
        inverse = self._inverse_norm(v.norm_of, under, powers)
        return [
            sum((_times(inverse[k], over[j - k]) for k in range(j + 1)), start=TreeSum())
            for j in range(powers)
        ]

    def _inverse_norm(self, w: Vector, series: Series, powers: int) -> Series:
        """`1 / sqrt(|w|^2 + eps^2)` as scalars by powers of `rho`."""
        r = self._norm(w)
        inverse = _constant(Tree(ONE, factors=(r._replace(power=-1),)), powers)
        if not any(series[1:]):
            return inverse
        square = _constant(Tree(ONE, factors=(r._replace(power=-2),)), 1)[0]
        # X = (|w|^2 - |w_0|^2) / r^2 begins with rho; 1/sqrt(1 + X) = sum_k binomial(-1/2, k) X^k
        X = [TreeSum()] + [
            _times(
                square, sum((_dot(series[i], series[k - i]) for i in range(k + 1)), start=TreeSum())
            )
            for k in range(1, powers)
        ]
        total = _constant(Tree(ONE), powers)
        power = _constant(Tree(ONE), powers)
        for k in range(1, powers):
            power = [
                sum((_times(power[i], X[j - i]) for i in range(j + 1)), start=TreeSum())
                for j in range(powers)
            ]
            c = sp.binomial(sp.Rational(-1, 2), k)
            total = [total[j] + power[j] * c for j in range(powers)]
        return [_times(inverse[0], part) for part in total]

    def _norm(self, w: Vector) -> Factor:
        """The norm of `w` at `rho = 0`, where that is `a g + s gbar` of one batch."""
        leaves = self._leading(w)
        a = {leaf: c for leaf, c in leaves.items() if leaf.colour != DATA and c.terms}
        s = next((c for leaf, c in leaves.items() if leaf.colour == DATA), Scalar())
        one = Scalar.of(1)
        if len(a) > 1 or not (a or s.terms):
            raise OutsideError(f"the norm of {w}, which mixes batches")
        if not a:
            return Factor(True, Tree(WHOLE), 1, mix=() if s == one else (s, Scalar()))
        ((leaf, own),) = a.items()
        if leaf.colour == BATCH:
            raise OutsideError(f"the norm of {w}, of a mini-batch in micro-batches")
        plain = own == one and not s.terms
        if leaf.weighted and not plain:
            raise OutsideError(f"the norm of {w}, which mixes weighted gradients with others")
        return Factor(True, leaf, 1, mix=() if plain else (own, s))

    def _leading(self, w: Vector) -> dict[Tree, Scalar]:
        """`w` at `rho = 0` as a combination of leaves."""
        if isinstance(w, (Gradient, Gibbs)):
            return {Tree(self.tag(w.scope), weighted=isinstance(w, Gibbs)): Scalar.of(1)}
        if isinstance(w, Sum):
            total: dict[Tree, Scalar] = {}
            for c, part in w.terms:
                for leaf, other in self._leading(part).items():
                    total[leaf] = total.get(leaf, Scalar()) + c * other
            return total
        raise OutsideError(f"the norm of {w}")


def _constant(tree: Tree, powers: int) -> Series:
    return [TreeSum({tree: sp.Integer(1)}), *(TreeSum() for _ in range(powers - 1))][:powers]


def _compositions(total: int, count: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `total` as an ordered sum of `count` numbers of at least 0.

    >>> list(_compositions(1, 2))
    [(0, 1), (1, 0)]
    """
    if count == 1:
        yield (total,)
        return
    for first in range(total + 1):
        yield from ((first, *rest) for rest in _compositions(total - first, count - 1))


def _grown(root: Tree, children: list[Tree]) -> Tree:
    """The children under a root, their factors on it."""
    if any(child.weighted and child.colour != root.colour for child in children):
        raise OutsideError("a weighted gradient that moves another batch")
    factors = tuple(factor for child in children for factor in child.factors)
    bare = tuple(child._replace(factors=()) for child in children)
    return relabel(root._replace(children=bare, factors=factors), int)


def _weight(chosen: tuple[tuple[Tree, sp.Expr], ...], count: int) -> sp.Expr:
    return sp.prod([c for _, c in chosen]) / factorial(count)


def _times(scalars: TreeSum, vectors: TreeSum) -> TreeSum:
    """A scalar times a vector, or two scalars: factors are put together."""
    return TreeSum(
        [
            (relabel(v._replace(factors=(*v.factors, *s.factors)), int), a * c)
            for s, a in scalars.items()
            for v, c in vectors.items()
        ]
    )


def _dot(first: TreeSum, second: TreeSum) -> TreeSum:
    """The inner product of two vectors as scalars."""
    terms = []
    for u, a in first.items():
        for v, c in second.items():
            if u.weighted or v.weighted or u.colour == v.colour == LOOP:
                raise OutsideError("an inner product of weighted gradients or random directions")
            # a loop's unit vector is no derivative that another vector could be put into
            root, other = (v, u) if u.colour == LOOP else (u, v)
            bare = other._replace(factors=())
            scalar = root._replace(children=(*root.children, bare), factors=())
            factors = (*u.factors, *v.factors, Factor(False, scalar, 1))
            terms.append((relabel(Tree(ONE, factors=factors), int), a * c))
    return TreeSum(terms)


def _without_random(part: TreeSum) -> TreeSum:
    """The expectation over random directions: an odd number of them averages to zero, and two are a
    loop.
    """
    kept = []
    for tree, c in part.items():
        count = sum(node.colour == LOOP for node in tree.nodes())
        if count > 2 or (count and tree.micro_batches):
            raise OutsideError("random directions beside a norm, or four of them")
        if count % 2 == 0:
            kept.append((tree, c))
    return TreeSum(kept)
