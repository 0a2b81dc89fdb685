"""Expectations over random batches, exactly, by set partitions of a tree's nodes.

Before its expectation is taken, a tree has *tags* in place of colours (:data:`TAGS`): they say over
which samples a node averages. Each node of a batch picks one of its positions; nodes that pick the
same position share a sample. Without replacement distinct positions hold distinct samples, and
means over distinct indices become products of plain means by inclusion-exclusion (the Moebius
function of the partition lattice).

Nodes of the micro-batch `I` and nodes of the whole mini-batch, which contains it, share positions.
With `p` blocks that hold a node of `I`, and `q` blocks that hold nodes of the mini-batch alone, a
partition has the probability

    (m)_p (b-p)_q / (m^#I b^#gamma)          (falling factorials)

Example: one node of each. They meet with probability `m / (m b) = 1/b`. Batches that are drawn
apart have partitions of their own, and nodes of the data set are plain means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import factorial, prod
from typing import Any, NamedTuple, TypeVar

import sympy as sp

from sdesam.symbolic.roles import LOOP, MARK, ONE, WHOLE
from sdesam.symbolic.trees import Tree, TreeSum, canonical, samples

MICRO, BATCH, DATA, FRESH = 1, 2, 3, 4
"""The tags of nodes: of a micro-batch, its mini-batch, the data set, and batches drawn apart, which
have the tags `FRESH`, `FRESH + 1`, ...
"""

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


class Sizes(NamedTuple):
    """The sizes of a mini-batch and of its micro-batches, symbols or numbers."""

    batch: Any
    micro: Any


class OutsideError(ValueError):
    """A rule, or a part of one, for which there are no trees."""


def mean(tagged: Tree, sizes: Sizes, replace: bool) -> TreeSum:
    """The expectation of a tree with tags.

    A batch whose norm is a factor stays whole: its nodes get one colour.
    """
    return TreeSum(
        [
            (_coloured(tagged, [], blocks), weight)
            for weight, blocks in _expectations(tagged, _tags(tagged), sizes, replace)
        ]
    )


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


def projection(tagged: Tree, sizes: Sizes, replace: bool) -> TreeSum:
    """The influence `h(i)` of a sample on a tree: the first Hoeffding projection, up to a constant
    in `i`.

    `h(i) = m (E[tree | i in I] - E tree)`, times `(n-1)/(n-m)` without replacement, so that the
    mean over the `b/m` micro-batches has the leading covariance `c_b Cov_i h(i)`. With replacement
    `i in I` means that `i` stands at one given position. Constants drop out of a covariance and are
    left out. Where nodes of the mini-batch occur too, `i` may also stand outside of `I`.

    Source: W. Hoeffding 1948 (iid); for finite populations M. Bloznelis & F. Goetze 2001, Ann.
    Statist. 29, 899-917.
    """
    tags = _tags(tagged)
    b, m = sizes
    if _whole(tagged, MICRO):
        here = [k for k, tag in enumerate(tags) if tag == MICRO]
        others = _expectations(
            tagged, [DATA if tag == MICRO else tag for tag in tags], sizes, replace
        )
        scale = conditional_scale(m, replace)
        return TreeSum([(_coloured(tagged, here, blocks), scale * c) for c, blocks in others])
    if BATCH not in tags:
        given = _given(tagged, tags, sizes, replace, inside=True)
        return TreeSum({tree: c * conditional_scale(m, replace) for tree, c in given.items()})
    # of the b positions m are inside of I; the mean over all b of what is known at each
    scale = 1 if replace else (samples - 1) / (samples - b)
    return TreeSum(
        [
            (tree, c * count * scale)
            for count, inside in ((m, True), (b - m, False))
            for tree, c in _given(tagged, tags, sizes, replace, inside).items()
        ]
    )


def _given(tagged: Tree, tags: list[int], sizes: Sizes, replace: bool, inside: bool) -> TreeSum:
    """`E[tree | i]`, terms without `i` left out, for `i` at a position inside of `I`, or at one of
    the mini-batch outside of it.
    """
    b, m = sizes
    reach = (MICRO, BATCH) if inside else (BATCH,)
    movable = [k for k, tag in enumerate(tags) if tag in reach]
    drawn = [k for k, tag in enumerate(tags) if tag in (MICRO, BATCH)]
    count_micro = sum(tag == MICRO for tag in tags)
    scale = sp.Integer(1) / (m**count_micro * b ** (len(drawn) - count_micro))
    apart = [DATA if tag in (MICRO, BATCH) else tag for tag in tags]
    terms = []
    for chosen in range(2 ** len(movable)):
        here = [node for k, node in enumerate(movable) if chosen >> k & 1]
        elsewhere = [node for node in drawn if node not in here]
        for positions in set_partitions(elsewhere):
            p = sum(any(tags[node] == MICRO for node in block) for block in positions)
            q = len(positions) - p
            free = falling(m - 1, p) if inside else falling(m, p)
            probability = scale * free * falling(b - 1 - p, q)
            for marked, blocks, weight in _plain_means(positions, anchor=here, replace=replace):
                if marked:
                    terms += [
                        (_coloured(tagged, marked, blocks + more), probability * weight * c)
                        for c, more in _expectations(tagged, apart, sizes, replace)
                    ]
    return TreeSum(terms)


def _expectations(
    tagged: Tree, tags: list[int], sizes: Sizes, replace: bool
) -> list[tuple[Any, list[list[int]]]]:
    """`(weight, blocks)` for every way in which the nodes of all batches can share samples."""
    groups = [_mini_batch(tagged, tags, sizes, replace)]
    for tag in sorted({tag for tag in tags if tag >= FRESH}):
        nodes = [k for k, other in enumerate(tags) if other == tag]
        if _whole(tagged, tag):
            groups.append([(sp.Integer(1), [nodes])])
        else:
            groups.append(_one_batch(nodes, sizes.micro, replace))
    return [
        (sp.prod([weight for weight, _ in chosen]), [b for _, blocks in chosen for b in blocks])
        for chosen in product(*groups)
    ]


def _mini_batch(
    tagged: Tree, tags: list[int], sizes: Sizes, replace: bool
) -> list[tuple[Any, list[list[int]]]]:
    """The nodes of a micro-batch and of its mini-batch."""
    nodes = [k for k, tag in enumerate(tags) if tag in (MICRO, BATCH)]
    inner = [k for k in nodes if tags[k] == MICRO]
    if _whole(tagged, MICRO) and inner:
        if len(inner) < len(nodes):
            raise OutsideError("a norm of the micro-batch beside gradients of the mini-batch")
        return [(sp.Integer(1), [inner])]
    found = []
    for positions in set_partitions(nodes):
        p = sum(any(node in inner for node in block) for block in positions)
        probability = (
            falling(sizes.micro, p)
            * falling(sizes.batch - p, len(positions) - p)
            / (sizes.micro ** len(inner) * sizes.batch ** (len(nodes) - len(inner)))
        )
        for _, blocks, weight in _plain_means(positions, anchor=None, replace=replace):
            found.append((probability * weight, blocks))
    return found


def _one_batch(nodes: list[int], size: Any, replace: bool) -> list[tuple[Any, list[list[int]]]]:
    """The nodes of one batch that is drawn apart."""
    return [
        (falling(size, len(positions)) / size ** len(nodes) * weight, blocks)
        for positions in set_partitions(nodes)
        for _, blocks, weight in _plain_means(positions, anchor=None, replace=replace)
    ]


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


def _tags(tagged: Tree) -> list[int]:
    """The tags of the nodes, in the order of :meth:`Tree.nodes`."""
    return [node.colour for node in tagged.nodes()]


def _whole(tagged: Tree, tag: int) -> bool:
    """Whether a batch is one colour, because its norm or its weights are no polynomial of means."""
    return tag in tagged.micro_batches


def _coloured(tagged: Tree, marked: list[int], blocks: list[list[int]]) -> Tree:
    """The tree whose nodes take their colour from their block; nodes in no block get a colour of
    their own.
    """
    colour = dict.fromkeys(marked, MARK) | {
        node: k + 1 for k, block in enumerate(blocks) for node in block
    }
    counter = iter(range(10**6))

    def visit(node: Tree) -> Tree:
        here = next(counter)
        own = colour.get(here, len(blocks) + 1 + here)
        children = tuple([visit(child) for child in node.children])
        factors = tuple([f._replace(tree=visit(f.tree)) for f in node.factors])
        named = node.colour if node.colour in (WHOLE, ONE, LOOP) else own
        return node._replace(colour=named, children=children, factors=factors)

    return canonical(visit(tagged))
