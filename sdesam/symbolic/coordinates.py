"""Trees in coordinates: a combination of trees as explicit sympy expressions, for small losses
given by formula.

This is the cross-check of the tree algebra, not a way to compute: it differentiates the losses in
every coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product

import sympy as sp

from sdesam.symbolic.roles import LOOP, MARK, WHOLE
from sdesam.symbolic.trees import Factor, Tree, TreeSum, eps, symbolic


def coordinates(
    field: TreeSum,
    losses: Sequence[sp.Expr],
    variables: Sequence[sp.Symbol],
    sample: int | None = None,
) -> list[sp.Expr]:
    """The components of `field` for per-sample `losses` of `variables`.

    Args:
        field: a combination of rooted trees.
        losses: `f_1 .. f_n`, expressions in `variables` (undefined functions are welcome); where a
            colour stands for a micro-batch, the mean losses of all micro-batches, equally likely.
        variables: the `d` coordinates of the parameters.
        sample: the index of the marked sample, where `field` has one.

    Raises:
        ValueError: a weighted node, whose weights are no expression in the losses, or a loop.

    >>> x = sp.Symbol("x")
    >>> coordinates(TreeSum({Tree(1): -1}), [x**2, 3 * x**2], [x])
    [-4*x]
    """
    total: list[sp.Expr] = [sp.Integer(0)] * len(variables)
    for tree, coefficient in field.items():
        if any(node.weighted for node in tree.nodes()):
            raise ValueError(
                "a tree with Gibbs weights has no coordinates: they depend on how norms are"
                " estimated"
            )
        if any(node.colour == LOOP for node in tree.nodes()):
            raise ValueError("a tree with a loop has no coordinates here")
        colours = sorted({node.colour for node in tree.nodes()} - {MARK, WHOLE})
        for indices in product(range(len(losses)), repeat=len(colours)):
            chosen = dict(zip(colours, indices, strict=True))
            if sample is not None:
                chosen[MARK] = sample
            loss = {colour: losses[k] for colour, k in chosen.items()} | {
                WHOLE: sum(losses) / sp.Integer(len(losses))
            }
            number = reduce(
                sp.Mul, (_factor(factor, loss, variables) for factor in tree.factors), coefficient
            )
            for k, component in enumerate(_vector(tree, loss, variables)):
                total[k] += number * component / sp.Integer(len(losses)) ** len(colours)
    return total


def _vector(tree: Tree, loss: dict[int, sp.Expr], variables: Sequence[sp.Symbol]) -> list[sp.Expr]:
    children = [_vector(child, loss, variables) for child in tree.children]
    components = []
    for free in variables:
        total = sp.Integer(0)
        for axes in product(range(len(variables)), repeat=len(children)):
            derivative = sp.diff(loss[tree.colour], free, *(variables[a] for a in axes))
            total += derivative * sp.prod(
                [child[a] for child, a in zip(children, axes, strict=True)]
            )
        components.append(total)
    return components


def _factor(factor: Factor, loss: dict[int, sp.Expr], variables: Sequence[sp.Symbol]) -> sp.Expr:
    if factor.norm:
        a, s = map(symbolic, factor.mix) if factor.mix else (1, 0)
        followed = a * loss[factor.tree.colour] + (s * loss[WHOLE] if factor.mix else 0)
        norm = sp.sqrt(sum(sp.diff(followed, v) ** 2 for v in variables) + eps**2)
        return (sp.log(norm) if factor.log else norm) ** factor.power
    branches = [_vector(child, loss, variables) for child in factor.tree.children]
    total = sp.Integer(0)
    for axes in product(range(len(variables)), repeat=len(branches)):
        derivative = sp.diff(loss[factor.tree.colour], *(variables[a] for a in axes))
        total += derivative * sp.prod([branch[a] for branch, a in zip(branches, axes, strict=True)])
    return total**factor.power
