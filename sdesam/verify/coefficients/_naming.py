"""The terms in which a stated SDE is wrong: tree by tree, stated and right coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import sympy as sp

from sdesam.symbolic import Term, Tree, TreeSum, batch, eta, micro, printing, rho
from sdesam.symbolic.trees import independent
from sdesam.verify.coefficients._compared import SAME, Expansion, Setting
from sdesam.verify.coefficients._reading import Power
from sdesam.verify.identification import (
    Size,
    candidates,
    combination,
    named,
    population,
    told,
    tree_values,
)

_MOST_NODES = 3
"""Larger trees are more than the equations that a few points make."""
_MOST_NAMED = 4
_OUTSIDE = 1e-4
"""A part of the difference; a stated coefficient that is a combination of trees is read so well
that 1e-5 of a difference of one per cent is left at most.
"""
_SAME = 1e-5
"""Coefficients that differ by less are the same; the smallest wrong theory is off by 1e-2."""
_SMALL = 1e-4
"""So are those that differ by less than this part of the largest difference of a power."""


# A worked example: the modified loss f + (rho/2) |gbar|^2 + (rho/(2 b)) tr V for m-USAM. Its drift
# has at rho^1 -(Hbar gbar + (1/b) mean_i(H~_i g~_i)), where the optimizer has 1/m for 1/b. The
# difference of stated and right vectors, written in the two trees of two nodes, has at
#
#     (b, m)    Hbar gbar    mean_i(H~_i g~_i)    stated    right
#     4, 2      0            -1/4                 1/4       1/2
#     3, 1      0            -2/3                 1/3       1
#     4, 1      0            -3/4                 1/4       1
#
# So one term is wrong, and the columns are 1/b and 1/m. In trees of plain means, as they are
# candidates, two coefficients would be wrong, that of H_i g_i and that of Hbar gbar; in centred
# moments the mean part and the variance part are apart.


def name_terms(
    expansions: Sequence[Expansion], power: Power, factor: float | None = None
) -> tuple[str, ...]:
    """What is wrong at one power, a sentence for each term.

    Args:
        expansions: of one part, in settings of one problem, at sizes that tell formulas apart.
        power: of `(eta, rho)`.
        factor: if the stated coefficient is the right one times a number, that number.

    Returns:
        A sentence for each wrong term, or one that says that the difference is no combination of
        trees, where it is no multiple of the right coefficient either; nothing where the points are
        too few, or the problem does not tell trees apart.
    """
    if power[0] < 0 or sum(power) + 1 > _MOST_NODES:
        return ()
    written = [_written(expansion, power) for expansion in expansions]
    if any(one.together for one in written):
        return ()
    left = max(one.left for one in written)
    if left > _OUTSIDE:
        outside = (
            f"stated less right is no combination of plain trees, which leave {left:.2g} of it"
        )
        return (outside,) if factor is None else ()
    sizes = [one.size for one in written]
    formulas = _formulas(expansions, power)
    sentences = []
    least = max(_SAME, _SMALL * max(float(np.abs(one.gap).max()) for one in written))
    for k, (name, tree) in enumerate(written[0].labels):
        gaps = [float(one.gap[k]) for one in written]
        if max(map(abs, gaps)) < least:
            continue
        if any(one.right is None for one in written):
            found = _in_words(dict(zip(sizes, gaps, strict=True)), formulas)
            sentences.append(f"{name}: stated less right is {found} (of {tree})")
            continue
        right = [float(one.right[k]) for one in written]  # type: ignore[index]
        stated = [r + gap for r, gap in zip(right, gaps, strict=True)]
        both = [_in_words(dict(zip(sizes, v, strict=True)), formulas) for v in (stated, right)]
        sentences.append(f"{name}: stated {both[0]}, right {both[1]} (of {tree})")
    if len(sentences) > _MOST_NAMED:
        rest = len(sentences) - _MOST_NAMED
        return (*sentences[:_MOST_NAMED], f"and {rest} more")
    return tuple(sentences)


class _Basis(NamedTuple):
    """The terms that a power can consist of, at the points of a setting.

    Args:
        labels: the name of each term, and what its coefficient multiplies.
        values: its value, first axis the terms.
    """

    labels: tuple[tuple[str, str], ...]
    values: np.ndarray


class _Written(NamedTuple):
    """A stated power less the right one, and the right one, in terms.

    Args:
        size: where.
        labels: of the terms.
        gap: the coefficients of stated less right.
        right: those of the right one; None where it is no combination of the terms.
        left: the part of the difference that the terms do not explain.
        together: whether the terms are not told apart.
    """

    size: Size
    labels: tuple[tuple[str, str], ...]
    gap: np.ndarray
    right: np.ndarray | None
    left: float
    together: bool


def _written(expansion: Expansion, power: Power) -> _Written:
    setting = expansion.setting
    basis = (_of_drift if expansion.part == "drift" else _of_covariance)(setting, power)
    right = combination(expansion.right[power], basis.values)
    gap = combination(expansion.found[power].value - expansion.right[power], basis.values)
    size = Size(setting.problem.n, setting.sampling.batch, setting.sampling.m)
    known = right.coefficients if right.residual < SAME else None
    together = bool(gap.together) or basis.values[0].size <= len(basis.values)
    return _Written(size, basis.labels, gap.coefficients, known, gap.residual, together)


def _of_drift(setting: Setting, power: Power) -> _Basis:
    """All trees of a power of the drift, in centred moments, with the sign of the drift."""
    trees, labels, inverse = _centred(*power)
    plain = tree_values(setting.problem, setting.points, trees)
    return _Basis(labels, -np.einsum("ck,k...->c...", inverse, plain))


@cache
def _centred(i: int, j: int) -> tuple[tuple[Tree, ...], tuple[tuple[str, str], ...], np.ndarray]:
    """The trees of a power, their labels in centred moments, and the values of centred moments in
    those of trees.
    """
    trees = tuple(sorted(candidates(i + j + 1), key=_has_variance))  # means first
    # a coefficient of [1 [1]] in plain means is one of the variance part, and as much of the mean
    # part: so the value of the mean part in centred moments is that of [1 [2]], and that of the
    # variance part [1 [1]] less [1 [2]]
    change = np.zeros((len(trees), len(trees)))
    for k, tree in enumerate(trees):
        for part, c in printing.centred(TreeSum({tree: sp.Integer(1)})).items():
            change[k, trees.index(part)] = float(c)
    return trees, tuple(_label(tree, i, j) for tree in trees), np.linalg.inv(change)


def _has_variance(tree: Tree) -> bool:
    """Whether samples that are not independent make the tree."""
    return independent(tree) != tree


def _label(tree: Tree, i: int, j: int) -> tuple[str, str]:
    term = Term("correction" if i else "drift", j)
    name = f"{term} variance" if _has_variance(tree) else str(term)
    total = TreeSum({tree: -(eta**i) * rho**j})
    return name, printing.text(total, deviations=True)


def _of_covariance(setting: Setting, power: Power) -> _Basis:
    """What a power of the covariance can consist of, divided by `eta`: covariances over the samples
    of trees with a marked sample, and products of means, which have no place in it.
    """
    j = power[1]
    marked, means = candidates(j + 1, marked=True), candidates(j + 1)
    own, first = (
        tree_values(setting.problem, setting.points, trees)
        for trees in (marked, candidates(1, marked=True))
    )
    mean, gbar = (
        tree_values(setting.problem, setting.points, trees) for trees in (means, candidates(1))
    )
    values = [np.einsum("npj,npk->pjk", first[0], h) / setting.problem.n for h in own]
    values += [np.einsum("pj,pk->pjk", gbar[0], v) for v in mean]
    if j:
        values = [v + np.swapaxes(v, 1, 2) for v in values]
    total = eta * rho**j
    name = str(Term("noise", j))
    told = [f"Cov_i(g_i, {_text(tree)})" if j else "Cov_i(g_i)" for tree in marked]
    told += [f"gbar ({_text(tree)})^T" for tree in means]
    head = printing.coefficient(total)
    tail = " + transpose" if j else ""
    labels = tuple((name, f"{head} {text}{tail}") for text in told)
    return _Basis(labels, np.array(values))


def _text(tree: Tree) -> str:
    return printing.text(TreeSum({tree: sp.Integer(1)}))


def _formulas(expansions: Sequence[Expansion], power: Power) -> tuple[sp.Expr, ...]:
    """What a coefficient of this power may be, up to a number."""
    samplings = [expansion.setting.sampling for expansion in expansions]
    several = any(sampling.m != sampling.batch for sampling in samplings)
    replace = samplings[0].replace
    found = named(replace, frozenset([batch, micro] if several else [batch]))
    if expansions[0].part == "drift" or not power[1]:
        return found
    factor = 1 / batch if replace else population(batch)
    return (*found, *(sp.factor(factor * formula) for formula in found))


def _in_words(values: dict[Size, float], formulas: Sequence[sp.Expr]) -> str:
    """A coefficient as a formula, or its values."""
    found = told(values, formulas)
    if found is not None:
        return found
    return ", ".join(f"{value:.4g} at b={size.b}, m={size.m}" for size, value in values.items())
