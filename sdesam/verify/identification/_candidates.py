"""The trees that a step may consist of: all coloured rooted trees of a number of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement, product

from sdesam.symbolic import MARK, Tree
from sdesam.symbolic.expectation import set_partitions
from sdesam.symbolic.trees import canonical

# A worked example, three nodes. There are two shapes, the path o - o - o hung from an end and the
# same hung from its middle. Three nodes have five colourings: 111, 112, 121, 122, 123. On the path
# all five differ. Below a middle the two children are alike, so that 112 and 121 are one tree:
#
#     path     [1 [1 [1]]]  [1 [1 [2]]]  [1 [2 [1]]]  [1 [2 [2]]]  [1 [2 [3]]]
#     middle   [1 [1] [1]]  [1 [1] [2]]  [1 [2] [2]]  [1 [2] [3]]
#
# These nine are the candidates for rho^2 of a mean step: two edges for two powers of rho.


@cache
def candidates(nodes: int, marked: bool = False) -> tuple[Tree, ...]:
    """All coloured rooted trees of a number of nodes, each once.

    Args:
        nodes: how many.
        marked: whether the trees are those of a function `h(i)`, with at least one node of the
            marked sample.

    >>> [len(candidates(nodes)) for nodes in range(1, 5)]
    [1, 2, 9, 48]
    >>> len(candidates(2, marked=True))  # H_i g_i, H_i gbar, Hbar g_i
    3
    """
    found = set()
    for shape in _shapes(nodes):
        for blocks in set_partitions(range(nodes)):
            names = range(len(blocks)) if marked else (None,)
            for here in names:
                colours = {
                    node: MARK if k == here else k + 1
                    for k, block in enumerate(blocks)
                    for node in block
                }
                found.add(canonical(_coloured(shape, colours)))
    return tuple(sorted(found))


@cache
def _shapes(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees of a number of nodes, without colours."""
    found = {
        Tree(1, tuple(sorted(children)))
        for sizes in _sums(nodes - 1)
        for children in product(*map(_shapes, sizes))
    }
    return tuple(sorted(found))


def _sums(total: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a number as a sum of positive ones, in ascending order."""
    for count in range(total + 1):
        for parts in combinations_with_replacement(range(1, total + 1), count):
            if sum(parts) == total:
                yield parts


def _coloured(shape: Tree, colours: dict[int, int]) -> Tree:
    """A tree with the colour of each node, in the order of :meth:`Tree.nodes`."""
    counter = iter(range(len(colours)))

    def visit(node: Tree) -> Tree:
        here = colours[next(counter)]
        return Tree(here, tuple([visit(child) for child in node.children]))

    return visit(shape)
