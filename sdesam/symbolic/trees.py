"""Coloured rooted trees, and linear combinations of them.

A node with `k` children is the `(k+1)`-th derivative of a per-sample loss, contracted with its
children and with one free index: a leaf is a gradient `g`, a node with one child `H` applied to it,
a node with two children `T[., .]`. Its *colour* says which sample: nodes of one colour share a
sample, and the tree's value averages each colour over the data set on its own. So `[1 [1]]` is
`mean_i H_i g_i` and `[1 [2]]` is `Hbar gbar`. The colour `MARK` is left open: it is the argument
`i` of a function `h(i)`.

Normalised gradients bring *factors*, scalars that multiply a tree: powers of a gradient's norm
`r = sqrt(|g|^2 + eps^2)` and, once these are differentiated, inner products such as `g . H v`. A
norm is no polynomial of a batch mean, so a colour whose norm occurs stands for a whole micro-batch
`I`: its nodes are derivatives of `f_I`, and it is averaged over micro-batches (MARK: over those
that contain `i`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import permutations
from typing import Any, NamedTuple

import sympy as sp

from sdesam.symbolic.roles import LOOP, MARK, ONE, WHOLE
from sdesam.variants import Scalar

eta, rho, batch, micro, samples = sp.symbols("eta rho b m n", positive=True)
"""Learning rate, perturbation radius, mini-batch, micro-batch and data-set size."""

eps = sp.Symbol("epsilon", positive=True)
"""Of a smoothed norm `sqrt(|g|^2 + eps^2)`."""


class Tree(NamedTuple):
    """A node of a coloured rooted tree and what hangs below it.

    Args:
        colour: of the node.
        children: the subtrees that it is contracted with.
        factors: scalars that multiply the tree; at its root.
        weighted: whether the node is the Gibbs-weighted gradient `sum_i p_i g_i` of a micro-batch,
            whose weights move with the parameters, or with `k` children the `k`-th derivative of
            that field.
    """

    colour: int
    children: tuple[Tree, ...] = ()
    factors: tuple[Factor, ...] = ()
    weighted: bool = False

    def nodes(self) -> Iterator[Tree]:
        """Every node, this one first, those of factors last."""
        yield self
        for child in self.children:
            yield from child.nodes()
        for factor in self.factors:
            yield from factor.tree.nodes()

    @property
    def micro_batches(self) -> frozenset[int]:
        """The colours that stand for micro-batches: those whose norm is a factor, and those of
        weighted nodes.
        """
        norms = {f.tree.colour for f in self.factors if f.norm and f.tree.colour != WHOLE}
        return frozenset(norms | {node.colour for node in self.nodes() if node.weighted})


class Factor(NamedTuple):
    """A power of a scalar.

    Args:
        norm: whether the scalar is the smoothed norm `sqrt(|g|^2 + eps^2)` of the leaf `tree`; else
            it is `tree` contracted along its edges.
        tree: a leaf (its colour may be WHOLE, for the gradient of the mean loss), or a tree hung
            from any of its nodes.
        power: of the scalar.
        log: whether the scalar is the logarithm of the norm, as in the potential of `H g / r^2`.
        mix: `(a, s)` where the norm is that of `a g + s gbar`, with `gbar` the mean gradient of the
            data set; empty where it is that of `g`.
    """

    norm: bool
    tree: Tree
    power: int
    log: bool = False
    mix: tuple[()] | tuple[Scalar, Scalar] = ()

    def derivative(self) -> tuple[int, tuple[Factor, ...]]:
        """What multiplies `g . (D g)[v]` in the derivative of a norm's power along `v`:
        `D r^p = p r^(p-2) g . D g`.
        """
        if self.log:
            return self.power, (
                self._replace(power=self.power - 1),
                self._replace(power=-2, log=False),
            )
        return self.power, (self._replace(power=self.power - 2),)


_NAMELESS = (WHOLE, ONE, LOOP)
"""Colours that name no sample."""


def relabel(tree: Tree, colours: Callable[[int], int]) -> Tree:
    """`tree` with every colour that names a sample replaced, children and factors in canonical
    order.
    """
    children = tuple(sorted(relabel(child, colours) for child in tree.children))
    powers: Counter[tuple[bool, Tree, bool, Any]] = Counter()
    for factor in tree.factors:
        scalar = relabel(factor.tree, colours)
        scalar = scalar if factor.norm else min(_ordered(rooted) for rooted in rootings(scalar))
        powers[factor.norm, scalar, factor.log, factor.mix] += factor.power
    factors = tuple(
        sorted(
            Factor(norm, scalar, power, log, mix)
            for (norm, scalar, log, mix), power in powers.items()
            if power
        )
    )
    return Tree(
        tree.colour if tree.colour in _NAMELESS else colours(tree.colour),
        children,
        factors,
        tree.weighted,
    )


def _ordered(tree: Tree) -> Tree:
    """A tree without factors, children in canonical order."""
    return tree._replace(children=tuple(sorted(_ordered(child) for child in tree.children)))


@cache
def canonical(tree: Tree) -> Tree:
    """The representative of `tree` up to the order of children and the names of unmarked
    colours.
    """
    old = sorted({node.colour for node in tree.nodes()} - {MARK, *_NAMELESS})
    candidates = []
    for new in permutations(range(1, len(old) + 1)):
        names = {MARK: MARK, **dict(zip(old, new, strict=True))}
        candidates.append(relabel(tree, names.__getitem__))
    return min(candidates)


def graft(tree: Tree, branch: Tree) -> Iterator[Tree]:
    """The branch attached to each node of `tree` in turn, factors apart.

    The two are separate expectations, so their colours are kept apart.
    """
    apart = _apart(tree, branch)
    for grown in _attached(tree, apart._replace(factors=())):
        yield canonical(grown._replace(factors=tree.factors + apart.factors))


def derivative(tree: Tree, branch: Tree) -> Iterator[tuple[sp.Expr, Tree]]:
    """The derivative of `tree` in the direction of `branch`, as pairs of a number and a tree: the
    branch on each node, and on each factor.
    """
    yield from ((sp.Integer(1), grown) for grown in graft(tree, branch))
    apart = _apart(tree, branch)
    bare = apart._replace(factors=())
    for k, factor in enumerate(tree.factors):
        others = (*tree.factors[:k], *tree.factors[k + 1 :], *apart.factors)
        if factor.norm:
            number, lower = factor.derivative()
            for c, inner in _gradient_dot(factor, bare):
                yield (
                    number * c,
                    canonical(tree._replace(factors=(*others, *lower, Factor(False, inner, 1)))),
                )
        else:
            lower = (factor._replace(power=factor.power - 1),)
            for grown in _attached(factor.tree, bare):
                yield (
                    sp.Integer(factor.power),
                    canonical(tree._replace(factors=(*others, *lower, Factor(False, grown, 1)))),
                )


def _apart(tree: Tree, branch: Tree) -> Tree:
    """`branch` with colours that `tree` does not have."""
    shift = max(node.colour for node in tree.nodes()) + 1
    return relabel(branch, lambda colour: colour + shift)


def _attached(tree: Tree, branch: Tree) -> Iterator[Tree]:
    """`branch` among the children of each node of `tree`, factors left as they are. A unit vector
    of a loop does not move.
    """
    if tree.colour == LOOP:
        return
    yield tree._replace(children=(*tree.children, branch))
    for k, child in enumerate(tree.children):
        for grown in _attached(child, branch):
            yield tree._replace(children=(*tree.children[:k], grown, *tree.children[k + 1 :]))


def symbolic(scalar: Scalar) -> sp.Expr:
    """A number of a rule as a sympy expression in its parameters."""
    return sum(
        (
            sp.Rational(c.numerator, c.denominator)
            * sp.prod([sp.Symbol(x, real=True) for x in names])
            for names, c in scalar.terms
        ),
        start=sp.Integer(0),
    )


def _gradient_dot(norm: Factor, branch: Tree) -> Iterator[tuple[sp.Expr, Tree]]:
    """`w . (D w)[v]` as scalars with coefficients, `w` the vector of a norm and `v` the branch.

    With `w = a g + s gbar` there are four of them: each of the two in `w` with each in `D w`.
    """
    leaf = norm.tree
    first = 1 + max(0, *(node.colour for node in (*branch.nodes(), leaf)))
    mean, moved = Tree(first), Tree(first + 1, (branch,))
    a, s = map(symbolic, norm.mix) if norm.mix else (sp.Integer(1), sp.Integer(0))
    if leaf.colour == WHOLE:
        yield (a + s) ** 2, mean._replace(children=(moved,))
        return
    own = leaf._replace(children=(branch,))
    yield a * a, leaf._replace(children=(own,))
    if s != 0:
        yield a * s, leaf._replace(children=(moved,))
        yield a * s, mean._replace(children=(own,))
        yield s * s, mean._replace(children=(moved,))


def reroot(tree: Tree) -> Iterator[Tree]:
    """`tree` hung from each of its nodes in turn: the gradient of the scalar that contracts it
    along its edges, factors left alone.
    """
    for rooted in rootings(tree):
        yield canonical(rooted)


def rootings(tree: Tree) -> Iterator[Tree]:
    """`reroot` without new names for the colours. A weighted node is no derivative of a scalar, and
    a unit vector of a loop none at all, so nothing is hung from these.
    """
    yield tree
    for k, child in enumerate(tree.children):
        if child.weighted or child.colour == LOOP:
            continue
        rest = tree._replace(children=(*tree.children[:k], *tree.children[k + 1 :]), factors=())
        lifted = child._replace(children=(*child.children, rest), factors=tree.factors)
        yield from _rootings_below(lifted)


def _rootings_below(tree: Tree) -> Iterator[Tree]:
    """The tree hung from its root and from each node below it, but not from its last child."""
    yield tree
    for k, child in enumerate(tree.children[:-1]):
        if child.weighted or child.colour == LOOP:
            continue
        rest = tree._replace(children=(*tree.children[:k], *tree.children[k + 1 :]), factors=())
        yield from _rootings_below(
            child._replace(children=(*child.children, rest), factors=tree.factors)
        )


def closed(tree: Tree) -> Tree:
    """The representative of a product of scalars: the first inner product, if there is one, as the
    tree, the rest as its factors.
    """
    main = () if tree.colour == ONE else (Factor(False, tree._replace(factors=()), 1),)
    product = canonical(Tree(ONE, (), (*tree.factors, *main)))
    dots = [factor for factor in product.factors if not factor.norm and factor.power > 0]
    if not dots:
        return product
    rest = (f if f is not dots[0] else f._replace(power=f.power - 1) for f in product.factors)
    return canonical(dots[0].tree._replace(factors=tuple(f for f in rest if f.power)))


def independent(tree: Tree) -> Tree:
    """`tree` with a colour of its own for each node, norms of the mean gradient: its value were all
    samples independent.

    For a micro-batch's colour it is the limit of large micro-batches. A weighted mean has another
    limit, so its tree is left as it is.
    """
    if any(node.weighted for node in tree.nodes()):
        return tree
    fresh = iter(range(1, 1 + sum(1 for _ in tree.nodes())))

    def limit(factor: Factor) -> Factor:
        if not factor.norm:
            return factor._replace(tree=visit(factor.tree))
        if not factor.mix:
            return factor._replace(tree=Tree(WHOLE))
        both = factor.mix[0] + factor.mix[1]
        mix = () if both == Scalar.of(1) else (both, Scalar.of(0))
        return factor._replace(tree=Tree(WHOLE), mix=mix)

    def visit(node: Tree) -> Tree:
        if node.colour == LOOP:
            return node
        factors = tuple(map(limit, node.factors))
        return Tree(next(fresh), tuple(visit(child) for child in node.children), factors)

    return canonical(visit(tree))


class TreeSum(Mapping[Tree, sp.Expr]):
    """A linear combination of coloured trees with sympy coefficients; a mapping from tree to
    coefficient, in a fixed order.

    >>> gbar = TreeSum({Tree(1): sp.Integer(1)})
    >>> gbar * rho + gbar * rho == gbar * (2 * rho)
    True
    >>> gbar * rho
    TreeSum((rho) [1])
    """

    def __init__(self, terms: Mapping[Tree, Any] | Iterable[tuple[Tree, Any]] = ()):
        total: dict[Tree, Any] = {}
        for tree, coefficient in terms.items() if isinstance(terms, Mapping) else terms:
            total[tree] = total.get(tree, 0) + coefficient
        # factor() is a normal form of rational functions, so that equal sums are equal as data
        normal = {tree: sp.factor(total[tree]) for tree in sorted(total)}
        self._terms = {
            tree: coefficient for tree, coefficient in normal.items() if coefficient != 0
        }

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
        return f"TreeSum({' + '.join(f'({c}) {_brackets(tree)}' for tree, c in self.items())})"


def _brackets(tree: Tree) -> str:
    """The notation of this page: `[1 [2]]` is `Hbar gbar`; the factors stand behind.

    >>> _brackets(Tree(1, (Tree(2),)))
    '[1 [2]]'
    """
    if tree.colour == LOOP:
        return "e"
    name = f"{'p' if tree.weighted else ''}{tree.colour}"
    scalars = (
        f" {'log ' if f.log else ''}{'r' if f.norm else ''}{_brackets(f.tree)}{_mixed(f)}^{f.power}"
        for f in tree.factors
    )
    return f"[{' '.join([name, *map(_brackets, tree.children)])}]{''.join(scalars)}"


def _mixed(factor: Factor) -> str:
    return f"({factor.mix[0]}; {factor.mix[1]})" if factor.mix else ""


def directional_derivative(field: TreeSum, direction: TreeSum) -> TreeSum:
    """`(D field) direction`, by grafting."""
    return TreeSum(
        [
            (t, k * a * c)
            for tree, a in field.items()
            for branch, c in direction.items()
            for k, t in derivative(tree, branch)
        ]
    )


def block_sizes(tree: Tree) -> Counter[int]:
    """How many nodes each colour has, those of factors included."""
    return Counter(node.colour for node in tree.nodes() if node.colour not in _NAMELESS)
