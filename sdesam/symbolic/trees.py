"""Coloured rooted trees, and linear combinations of them.

A node with `k` children is the `(k+1)`-th derivative of a per-sample loss, contracted with its children and with one free index: a
leaf is a gradient `g`, a node with one child `H` applied to it, a node with two children `T[., .]`. Its *colour* says which sample:
nodes of one colour share a sample, and the tree's value averages each colour over the data set on its own. So `[1 [1]]` is
`mean_i H_i g_i` and `[1 [2]]` is `Hbar gbar`. The colour `MARK` is left open: it is the argument `i` of a function `h(i)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import permutations
from typing import Any, NamedTuple

import sympy as sp

MARK = 0
"""The colour of the marked sample."""

eta, rho, batch, micro, samples = sp.symbols("eta rho b m n", positive=True)
"""Learning rate, perturbation radius, mini-batch, micro-batch and data-set size."""


class Tree(NamedTuple):
    """A node of a coloured rooted tree and what hangs below it."""

    colour: int
    children: tuple[Tree, ...] = ()

    def nodes(self) -> Iterator[Tree]:
        """Every node, this one first."""
        yield self
        for child in self.children:
            yield from child.nodes()


class Skeleton(NamedTuple):
    """A tree before its expectation is taken: `sampled` nodes carry a micro-batch mean, the others a mean over the data set."""

    sampled: bool
    children: tuple[Skeleton, ...] = ()


def relabel(tree: Tree, colours: Callable[[int], int]) -> Tree:
    """`tree` with every colour replaced, children in canonical order."""
    children = tuple(sorted(relabel(child, colours) for child in tree.children))
    return Tree(colours(tree.colour), children)


@cache
def canonical(tree: Tree) -> Tree:
    """The representative of `tree` up to the order of children and the names of unmarked colours."""
    old = sorted({node.colour for node in tree.nodes()} - {MARK})
    candidates = []
    for new in permutations(range(1, len(old) + 1)):
        names = {MARK: MARK, **dict(zip(old, new, strict=True))}
        candidates.append(relabel(tree, names.__getitem__))
    return min(candidates)


def graft(tree: Tree, branch: Tree) -> Iterator[Tree]:
    """The derivative of `tree` in the direction of `branch`: the branch attached to each node in turn.

    The two are separate expectations, so their colours are kept apart.
    """
    shift = max(node.colour for node in tree.nodes()) + 1
    apart = relabel(branch, lambda colour: colour + shift)

    def attach(node: Tree) -> Iterator[Tree]:
        yield Tree(node.colour, (*node.children, apart))
        for k, child in enumerate(node.children):
            for grown in attach(child):
                yield Tree(node.colour, (*node.children[:k], grown, *node.children[k + 1 :]))

    for grown in attach(tree):
        yield canonical(grown)


def reroot(tree: Tree) -> Iterator[Tree]:
    """`tree` hung from each of its nodes in turn: the gradient of the scalar that contracts it along its edges."""
    yield canonical(tree)
    for k, child in enumerate(tree.children):
        rest = Tree(tree.colour, (*tree.children[:k], *tree.children[k + 1 :]))
        lifted = Tree(child.colour, (*child.children, rest))
        yield from _reroot_below(lifted, skip=rest)


def _reroot_below(tree: Tree, skip: Tree) -> Iterator[Tree]:
    """Like `reroot`, but not back into the branch `skip`, which is the last child."""
    yield canonical(tree)
    for k, child in enumerate(tree.children[:-1]):
        rest = Tree(tree.colour, (*tree.children[:k], *tree.children[k + 1 :]))
        yield from _reroot_below(Tree(child.colour, (*child.children, rest)), skip=rest)


def independent(tree: Tree) -> Tree:
    """`tree` with a colour of its own for each node: its value were all samples independent."""
    fresh = iter(range(1, 1 + sum(1 for _ in tree.nodes())))

    def visit(node: Tree) -> Tree:
        return Tree(next(fresh), tuple(visit(child) for child in node.children))

    return canonical(visit(tree))


class TreeSum(Mapping[Tree, sp.Expr]):
    """A linear combination of coloured trees with sympy coefficients; a mapping from tree to coefficient, in a fixed order.

    >>> gbar = TreeSum({Tree(1): sp.Integer(1)})
    >>> gbar * rho + gbar * rho == gbar * (2 * rho)
    True
    """

    def __init__(self, terms: Mapping[Tree, Any] | Iterable[tuple[Tree, Any]] = ()):
        total: dict[Tree, Any] = {}
        for tree, coefficient in terms.items() if isinstance(terms, Mapping) else terms:
            total[tree] = total.get(tree, 0) + coefficient
        # factor() is a normal form of rational functions, so that equal sums are equal as data
        normal = {tree: sp.factor(total[tree]) for tree in sorted(total)}
        self._terms = {tree: coefficient for tree, coefficient in normal.items() if coefficient != 0}

    def __getitem__(self, tree: Tree) -> sp.Expr:
        return self._terms[tree]

    def __iter__(self) -> Iterator[Tree]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def __hash__(self) -> int:
        return hash(frozenset(self._terms.items()))

    def __add__(self, other: TreeSum) -> TreeSum:
        return TreeSum([*self.items(), *other.items()])

    def __sub__(self, other: TreeSum) -> TreeSum:
        return self + other * -1

    def __mul__(self, factor: Any) -> TreeSum:
        return TreeSum({tree: coefficient * factor for tree, coefficient in self.items()})

    __rmul__ = __mul__

    def __neg__(self) -> TreeSum:
        return self * -1

    def subs(self, replacements: Mapping[sp.Symbol, Any]) -> TreeSum:
        """The sum with symbols of its coefficients replaced."""
        return TreeSum({tree: sp.cancel(c).subs(replacements) for tree, c in self.items()})

    def independent(self) -> TreeSum:
        """The limit of independent samples: every tree with a colour of its own for each node."""
        return TreeSum([(independent(tree), c) for tree, c in self.items()])

    def __repr__(self) -> str:
        from sdesam.symbolic.printing import text

        return f"TreeSum({text(self)})"


def directional_derivative(field: TreeSum, direction: TreeSum) -> TreeSum:
    """`(D field) direction`, by grafting."""
    return TreeSum([(grown, a * c) for tree, a in field.items() for branch, c in direction.items() for grown in graft(tree, branch)])


def block_sizes(tree: Tree) -> Counter[int]:
    """How many nodes each colour has."""
    return Counter(node.colour for node in tree.nodes())
