"""Expectations over random batches, exactly, by set partitions of a tree's nodes.

Each node that carries a micro-batch mean picks one of the `m` positions of the micro-batch; nodes
that pick the same position share a sample. Without replacement distinct positions hold distinct
samples, and means over distinct indices become products of plain means by inclusion-exclusion (the
Moebius function of the partition lattice).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import factorial, prod
from typing import Any, TypeVar

import sympy as sp

from sdesam.symbolic.roles import MARK
from sdesam.symbolic.trees import Skeleton, Tree, TreeSum, canonical, samples

Item = TypeVar("Item")


def set_partitions(items: Sequence[Item]) -> Iterator[list[list[Item]]]:
    """Every partition of `items` into non-empty blocks.

    >>> len(list(set_partitions("abcd")))
    15
    """
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for partition in set_partitions(rest):
        yield [[first], *partition]
        for k, block in enumerate(partition):
            yield [*partition[:k], [first, *block], *partition[k + 1 :]]


def falling(number: Any, count: int) -> Any:
    """The falling factorial `number (number-1) ... (number-count+1)`."""
    return prod((number - k for k in range(count)), start=sp.Integer(1))


def mean(skeleton: Skeleton, size: sp.Expr, replace: bool) -> TreeSum:
    """The expectation of a tree whose sampled nodes carry the mean of one micro-batch of `size`
    samples.
    """
    nodes = _sampled(skeleton)
    terms = []
    for positions in set_partitions(nodes):
        probability = falling(size, len(positions)) / size ** len(nodes)
        for _, blocks, weight in _plain_means(positions, anchor=None, replace=replace):
            terms.append((_coloured(skeleton, [], blocks), probability * weight))
    return TreeSum(terms)


# A worked example: the influence of sample i on Gbar_I^2, the square of a micro-batch mean of
# numbers g_j of mean gbar, with replacement. Each of the two nodes is at i's position or elsewhere:
#
#     nodes at i    value                  chance that the nodes are so placed
#     both          g_i^2                  1/m^2
#     one           g_i gbar, twice        (m-1)/m^2 each
#     none          no i in it             left out: a constant drops out of a covariance
#
# Times m, the scale: h(i) = g_i^2/m + 2 (m-1)/m g_i gbar. As m grows it becomes 2 g_i gbar, the
# derivative of gbar^2 along g_i, as the delta method says. At m = 1 it is g_i^2, all there is.


def projection(skeleton: Skeleton, size: sp.Expr, replace: bool) -> TreeSum:
    """The influence `h(i)` of a sample on a tree: the first Hoeffding projection, up to a constant
    in `i`.

    `h(i) = m (E[tree | i in I] - E tree)`, times `(n-1)/(n-m)` without replacement, so that the
    mean over the `b/m` micro-batches has the leading covariance `c_b Cov_i h(i)`. With replacement
    `i in I` means that `i` stands at one given position. Constants drop out of a covariance and are
    left out.

    Source: W. Hoeffding 1948 (iid); for finite populations M. Bloznelis & F. Goetze 2001, Ann.
    Statist. 29, 899-917.
    """
    nodes = _sampled(skeleton)
    scale = conditional_scale(size, replace)
    terms = []
    for chosen in range(2 ** len(nodes)):
        here = [node for k, node in enumerate(nodes) if chosen >> k & 1]
        elsewhere = [node for node in nodes if node not in here]
        for positions in set_partitions(elsewhere):
            probability = falling(size - 1, len(positions)) / size ** len(nodes)
            for marked, blocks, weight in _plain_means(positions, anchor=here, replace=replace):
                if marked:
                    terms.append(
                        (_coloured(skeleton, marked, blocks), scale * probability * weight)
                    )
    return TreeSum(terms)


def conditional_scale(size: sp.Expr, replace: bool) -> sp.Expr:
    """`h(i)` in units of `E[. | i in I] - E[.]`, for a micro-batch `I` of `size` samples."""
    return size if replace else size * (samples - 1) / (samples - size)


def _plain_means(
    positions: list[list[int]], anchor: list[int] | None, replace: bool
) -> Iterator[tuple[list[int], list[list[int]], Any]]:
    """A mean over samples at distinct positions as a sum of products of plain means:
    `(marked nodes, blocks, weight)`.

    `anchor` holds the nodes at one more position, whose sample is given (the marked one); None
    where no sample is given. Without replacement the mean over distinct indices is
    `sum_sigma mu(sigma) n^|free| / (population)_p` over coarsenings `sigma`.
    """
    if replace:
        yield anchor or [], positions, 1
        return
    groups = positions if anchor is None else [*positions, anchor]
    given = len(positions)  # the index of the anchor among the groups, if there is one
    population = samples if anchor is None else samples - 1
    for coarsening in set_partitions(range(len(groups))):
        moebius = prod((-1) ** (len(part) - 1) * factorial(len(part) - 1) for part in coarsening)
        joined = [
            [node for k in part for node in groups[k]] for part in coarsening if given not in part
        ]
        marked = [node for part in coarsening if given in part for k in part for node in groups[k]]
        yield marked, joined, moebius * samples ** len(joined) / falling(population, len(positions))


def _sampled(skeleton: Skeleton) -> list[int]:
    """The positions, in depth-first order, of the nodes that carry a micro-batch mean."""

    def flags(node: Skeleton) -> Iterator[bool]:
        yield node.sampled
        for child in node.children:
            yield from flags(child)

    return [k for k, sampled in enumerate(flags(skeleton)) if sampled]


def _coloured(skeleton: Skeleton, marked: list[int], blocks: list[list[int]]) -> Tree:
    """The tree whose nodes take their colour from their block; nodes in no block get a colour of
    their own.
    """
    colour = dict.fromkeys(marked, MARK) | {
        node: k + 1 for k, block in enumerate(blocks) for node in block
    }
    counter = iter(range(10**6))

    def visit(node: Skeleton) -> Tree:
        here = next(counter)
        return Tree(
            colour.get(here, len(blocks) + 1 + here), tuple(visit(child) for child in node.children)
        )

    return canonical(visit(skeleton))
