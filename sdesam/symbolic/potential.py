"""Is a drift a gradient, for every loss and every dimension? Linear algebra on trees.

A *free* tree has no root: contracted along its edges it is a scalar, and its gradient is the sum
over all its nodes of the tree hung from that node. Each rooted tree belongs to one free tree, so a
combination of rooted trees is a gradient exactly where, within each free tree, its coefficients are
proportional to how often each rooting occurs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import sympy as sp

from sdesam.symbolic.printing import text
from sdesam.symbolic.roles import ONE, WHOLE
from sdesam.symbolic.trees import Factor, Tree, TreeSum, canonical, closed, eps, reroot


def free(tree: Tree) -> Tree:
    """The representative of the scalar that `tree` is a part of the gradient of, up to a number.

    It is the tree contracted along its edges, times its factors; where the tree is `H g` and a
    factor the norm `r` of that `g`, it is `r^2` times them, because the gradient of `r^p` is
    `p r^(p-2) H g`, and for `H g / r^2` it is `log r`.
    """
    norm = _own_norm(tree)
    if norm is not None:
        scalar = (
            norm._replace(power=1, log=True)
            if norm.power == -2
            else norm._replace(power=norm.power + 2)
        )
        return closed(Tree(ONE, (), tuple(scalar if f is norm else f for f in tree.factors)))
    return closed(tree)


# A worked example. Is Hbar Hbar gbar + 2 Tbar[gbar, gbar] a gradient? As trees: [1 [2 [3]]] and
# [1 [2] [3]]. Both are hung from the same free tree, a path of three nodes, gbar . Hbar gbar:
#
#     from an end        o - o - o     [1 [2 [3]]]     twice, for there are two ends
#     from the middle    o - o - o     [1 [2] [3]]     once
#
# So grad(gbar . Hbar gbar) = 2 Hbar Hbar gbar + Tbar[gbar, gbar]: each node in turn is the one that
# the gradient differentiates, and becomes the root. The field has the coefficients 1 and 2 where a
# gradient has 2 and 1, so it is none. With 2 and 1, or 6 and 3, it would be.
#
# Rooted trees are linearly independent as functions of the losses, so no other free tree can help.


def gradient(potential: TreeSum) -> TreeSum:
    """The gradient of a combination of free trees."""
    return TreeSum([(t, k * c) for tree, c in potential.items() for k, t in _gradient(tree)])


def _gradient(scalar: Tree) -> Iterator[tuple[int, Tree]]:
    """The gradient of one free tree, as pairs of a number and a rooted tree."""
    bare = scalar._replace(factors=())
    if scalar.colour != ONE:
        yield from ((1, rooted) for rooted in reroot(scalar))
    for k, factor in enumerate(scalar.factors):
        number, lower = (
            factor.derivative()
            if factor.norm
            else (factor.power, (factor._replace(power=factor.power - 1),))
        )
        others = (*scalar.factors[:k], *scalar.factors[k + 1 :], *lower)
        if scalar.colour != ONE:
            others = (*others, Factor(False, bare, 1))
        if not factor.norm:
            yield from ((number, rooted) for rooted in reroot(factor.tree._replace(factors=others)))
            continue
        c = factor.tree.colour
        first = 1 + max(0, *(node.colour for f in others for node in f.tree.nodes()))
        edge = Tree(first, (Tree(first + 1),)) if c == WHOLE else Tree(c, (Tree(c),))
        yield number, canonical(edge._replace(factors=others))


def _own_norm(tree: Tree) -> Factor | None:
    """Where `tree` is `H g`: the factor that is a norm of that `g`."""
    if len(tree.children) != 1 or tree.children[0].children:
        return None
    root, leaf = tree.colour, tree.children[0].colour
    sizes = Counter(node.colour for node in tree.nodes())
    for factor in tree.factors:
        if not factor.norm or factor.log:
            continue
        whole = factor.tree.colour == WHOLE and root != leaf and sizes[root] == sizes[leaf] == 1
        if whole or factor.tree.colour == root == leaf:
            return factor
    return None


@dataclass(frozen=True)
class Obstruction:
    """Why a combination of trees is no gradient: within one free tree the rootings stand in another
    ratio.
    """

    tree: Tree
    found: TreeSum
    needed: TreeSum | None

    @property
    def undecided(self) -> bool:
        """Whether it is not known if there is a gradient."""
        return any(factor.mix for factor in self.tree.factors)

    def __str__(self) -> str:
        if self.undecided:
            return (
                f"{text(self.found)} has the norm of a combination of gradients, for which the"
                " question is not decided here"
            )
        if self.needed is None:
            return (
                f"{text(self.found)} follows the weighted gradient g^_I, whose weights move with"
                " the parameters: in general it is no gradient"
            )
        return (
            f"{text(self.found)} would have to be a multiple of {text(self.needed)}, the gradient"
            " of the only scalar with these trees"
        )


def potential(field: TreeSum) -> TreeSum | Obstruction:
    """Free trees whose gradient is `field`, or what stands in the way.

    Rooted trees are linearly independent as functions of the losses, and each belongs to one free
    tree, once `|g|^2` beside its own norm is written as `r^2 - eps^2`.
    """
    rootings: dict[Tree, dict[Tree, sp.Expr]] = {}
    written = TreeSum([(t, k * c) for rooted, c in field.items() for k, t in _by_norms(rooted)])
    for tree, coefficient in written.items():
        mixed = any(factor.mix for factor in tree.factors)
        if mixed or any(node.weighted for node in tree.nodes()):
            return Obstruction(tree, TreeSum({tree: coefficient}), None)
        rootings.setdefault(free(tree), {})[tree] = coefficient
    result = {}
    for scalar, found in rootings.items():
        needed = gradient(TreeSum({scalar: sp.Integer(1)}))
        ratios = {tree: found.get(tree, sp.Integer(0)) / count for tree, count in needed.items()}
        coefficient = next(iter(ratios.values()))
        if set(found) - set(needed) or any(
            sp.cancel(ratio - coefficient) != 0 for ratio in ratios.values()
        ):
            return Obstruction(scalar, TreeSum(found), needed)
        result[scalar] = coefficient
    return TreeSum(result)


def _by_norms(tree: Tree) -> Iterator[tuple[sp.Expr, Tree]]:
    """`tree` with `|g|^2` beside a norm of that `g` written as `r^2 - eps^2`, as pairs of a
    coefficient and a tree.
    """
    for square in tree.factors:
        norm = next(
            (
                f
                for f in tree.factors
                if f.norm
                and not (f.tree.weighted or f.mix)
                and _is_square(square, f.tree.colour, tree)
            ),
            None,
        )
        if norm is not None:
            others = tuple(f for f in tree.factors if f is not square)
            for k in range(square.power + 1):
                raised = Factor(True, norm.tree, 2 * k)
                number = sp.binomial(square.power, k) * (-(eps**2)) ** (square.power - k)
                yield from (
                    (number * c, t)
                    for c, t in _by_norms(canonical(tree._replace(factors=(*others, raised))))
                )
            return
    yield sp.Integer(1), tree


def _is_square(factor: Factor, colour: int, tree: Tree) -> bool:
    """Whether a factor is a power of `|g|^2`, `g` the gradient of a colour, or of the whole data
    set: then of two means, a colour each.
    """
    if factor.norm or len(factor.tree.children) != 1 or factor.tree.children[0].children:
        return False
    ends = factor.tree.colour, factor.tree.children[0].colour
    if colour != WHOLE:
        return ends == (colour, colour)
    sizes = Counter(node.colour for node in tree.nodes())
    return ends[0] != ends[1] and sizes[ends[0]] == sizes[ends[1]] == 1
