"""Is a drift a gradient, for every loss and every dimension? Linear algebra on trees.

A *free* tree has no root: contracted along its edges it is a scalar, and its gradient is the sum over all its nodes of the tree hung from
that node. Each rooted tree belongs to one free tree, so a combination of rooted trees is a gradient exactly where, within each free
tree, its coefficients are proportional to how often each rooting occurs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import sympy as sp

from sdesam.symbolic.trees import ONE, WHOLE, Factor, Tree, TreeSum, canonical, reroot


def free(tree: Tree) -> Tree:
    """The representative of the scalar that `tree` is a part of the gradient of, up to a number.

    It is the tree contracted along its edges, times its factors; where the tree is `H g` and a factor the norm `r` of that `g`, it is `r^2` times
    them, because the gradient of `r^p` is `p r^(p-2) H g`.
    """
    norm = _own_norm(tree)
    if norm is not None:
        raised = tuple(f._replace(power=f.power + 2) if f is norm else f for f in tree.factors)
        return closed(Tree(ONE, (), raised))
    return closed(tree)


def gradient(potential: TreeSum) -> TreeSum:
    """The gradient of a combination of free trees."""
    return TreeSum([(t, k * c) for tree, c in potential.items() for k, t in _gradient(tree)])


def _gradient(scalar: Tree) -> Iterator[tuple[int, Tree]]:
    """The gradient of one free tree, as pairs of a number and a rooted tree."""
    bare = scalar._replace(factors=())
    if scalar.colour != ONE:
        yield from ((1, rooted) for rooted in reroot(scalar))
    for k, factor in enumerate(scalar.factors):
        others = (*scalar.factors[:k], *scalar.factors[k + 1 :], factor._replace(power=factor.power - (2 if factor.norm else 1)))
        if scalar.colour != ONE:
            others = (*others, Factor(False, bare, 1))
        if not factor.norm:
            yield from ((factor.power, rooted) for rooted in reroot(factor.tree._replace(factors=others)))
            continue
        c = factor.tree.colour
        first = 1 + max(0, *(node.colour for f in others for node in f.tree.nodes()))
        edge = Tree(first, (Tree(first + 1),)) if c == WHOLE else Tree(c, (Tree(c),))
        yield factor.power, canonical(edge._replace(factors=others))


def _own_norm(tree: Tree) -> Factor | None:
    """Where `tree` is `H g`: the factor that is a norm of that `g`."""
    if len(tree.children) != 1 or tree.children[0].children:
        return None
    root, leaf = tree.colour, tree.children[0].colour
    sizes = Counter(node.colour for node in tree.nodes())
    for factor in tree.factors:
        if factor.norm and (factor.tree.colour == root == leaf or (factor.tree.colour == WHOLE and root != leaf and sizes[root] == sizes[leaf] == 1)):
            return factor
    return None


def closed(tree: Tree) -> Tree:
    """The representative of a product of scalars: the first inner product, if there is one, as the tree, the rest as its factors."""
    main = () if tree.colour == ONE else (Factor(False, tree._replace(factors=()), 1),)
    product = canonical(Tree(ONE, (), (*tree.factors, *main)))
    dots = [factor for factor in product.factors if not factor.norm and factor.power > 0]
    if not dots:
        return product
    rest = (f if f is not dots[0] else f._replace(power=f.power - 1) for f in product.factors)
    return canonical(dots[0].tree._replace(factors=tuple(f for f in rest if f.power)))


@dataclass(frozen=True)
class Obstruction:
    """Why a combination of trees is no gradient: within one free tree the rootings stand in another ratio."""

    tree: Tree
    found: TreeSum
    needed: TreeSum | None

    def __str__(self) -> str:
        from sdesam.symbolic.printing import text

        if self.needed is None:
            return f"{text(self.found)} follows the weighted gradient g^_I, whose weights move with the parameters: in general it is no gradient"
        return f"{text(self.found)} would have to be a multiple of {text(self.needed)}, the gradient of the only scalar with these trees"


def potential(field: TreeSum) -> TreeSum | Obstruction:
    """Free trees whose gradient is `field`, or what stands in the way.

    Rooted trees are linearly independent as functions of the losses, and each belongs to one free tree.
    """
    rootings: dict[Tree, dict[Tree, sp.Expr]] = {}
    for tree, coefficient in field.items():
        if any(node.weighted for node in tree.nodes()):
            return Obstruction(tree, TreeSum({tree: coefficient}), None)
        rootings.setdefault(free(tree), {})[tree] = coefficient
    result = {}
    for scalar, found in rootings.items():
        needed = gradient(TreeSum({scalar: sp.Integer(1)}))
        ratios = {tree: found.get(tree, sp.Integer(0)) / count for tree, count in needed.items()}
        coefficient = next(iter(ratios.values()))
        if set(found) - set(needed) or any(sp.cancel(ratio - coefficient) != 0 for ratio in ratios.values()):
            return Obstruction(scalar, TreeSum(found), needed)
        result[scalar] = coefficient
    return TreeSum(result)
