"""Is a drift a gradient, for every loss and every dimension? Linear algebra on trees.

A *free* tree has no root: contracted along its edges it is a scalar, and its gradient is the sum over all its nodes of the tree hung from
that node. Each rooted tree belongs to one free tree, so a combination of rooted trees is a gradient exactly where, within each free
tree, its coefficients are proportional to how often each rooting occurs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import sympy as sp

from sdesam.symbolic.trees import Tree, TreeSum, reroot


def free(tree: Tree) -> Tree:
    """The representative of the free tree that `tree` is a rooting of."""
    return min(reroot(tree))


def gradient(potential: TreeSum) -> TreeSum:
    """The gradient of a combination of free trees."""
    return TreeSum([(rooted, c) for tree, c in potential.items() for rooted in reroot(tree)])


@dataclass(frozen=True)
class Obstruction:
    """Why a combination of trees is no gradient: within one free tree the rootings stand in another ratio."""

    tree: Tree
    found: TreeSum
    needed: TreeSum

    def __str__(self) -> str:
        from sdesam.symbolic.printing import text

        return f"{text(self.found)} would have to be a multiple of {text(self.needed)}, the gradient of the only scalar with these trees"


def potential(field: TreeSum) -> TreeSum | Obstruction:
    """Free trees whose gradient is `field`, or what stands in the way."""
    rootings: dict[Tree, dict[Tree, sp.Expr]] = {}
    for tree, coefficient in field.items():
        rootings.setdefault(free(tree), {})[tree] = coefficient
    result = {}
    for scalar, found in rootings.items():
        needed = Counter(reroot(scalar))
        ratios = {tree: found.get(tree, sp.Integer(0)) / count for tree, count in needed.items()}
        coefficient = next(iter(ratios.values()))
        if any(sp.cancel(ratio - coefficient) != 0 for ratio in ratios.values()):
            return Obstruction(scalar, TreeSum(found), TreeSum(needed))
        result[scalar] = coefficient
    return TreeSum(result)
