"""Trees as text and LaTeX that a person can read.

Drifts print in *centred* moments: a colour with several nodes is split into means and deviations
from the mean (`g~_i = g_i - gbar`), so that a covariance shows as one. Then `mean_i |g~_i|^2` is
the trace of the covariance of stochastic gradient noise, `tr V`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain, combinations

import sympy as sp

from sdesam.symbolic.roles import LOOP, MARK, ONE, WHOLE
from sdesam.symbolic.trees import (
    Factor,
    Tree,
    TreeSum,
    batch,
    block_sizes,
    canonical,
    closed,
    micro,
    reroot,
    samples,
    symbolic,
)

_LETTERS = "ijkl"
_MICRO_BATCHES = "IJKL"
_TYPICAL = {batch: 16, micro: 4, samples: 1000}


def centred(total: TreeSum, *, scalar: bool = False) -> TreeSum:
    """`total` in centred moments: in the result a colour with several nodes stands for deviations
    from the mean.
    """
    representative = closed if scalar else canonical
    return TreeSum(
        [(representative(split), c) for tree, c in total.items() for split in _split(tree)]
    )


def _split(tree: Tree) -> Iterator[Tree]:
    """Every way to take the nodes of repeated colours as mean or as deviation; a lone deviation
    averages to zero.
    """
    numbered: list[int] = []
    for node in tree.nodes():
        numbered.append(node.colour)
    whole = tree.micro_batches  # a norm is no polynomial: such a colour has no moments
    repeated = [
        colour
        for colour, size in block_sizes(tree).items()
        if size > 1 and colour != MARK and colour not in whole
    ]

    def choices(remaining: list[int]) -> Iterator[dict[int, int]]:
        if not remaining:
            yield {}
            return
        places = [k for k, colour in enumerate(numbered) if colour == remaining[0]]
        kept_sets = chain([()], *(combinations(places, size) for size in range(2, len(places) + 1)))
        for kept in kept_sets:
            for rest in choices(remaining[1:]):
                yield {**rest, **dict.fromkeys(kept, remaining[0])}

    for deviations in choices(repeated):
        counter = iter(range(len(numbered)))

        def visit(
            node: Tree, kept: dict[int, int] = deviations, counter: Iterator[int] = counter
        ) -> Tree:
            here = next(counter)
            lone = node.colour not in repeated
            colour = node.colour if lone or here in kept else 1000 + here
            return node._replace(
                colour=colour,
                children=tuple(visit(child, kept, counter) for child in node.children),
            )

        yield visit(tree)


def text(total: TreeSum, *, deviations: bool = False, scalar: bool = False) -> str:
    """A combination of trees as one line of text; `deviations` where it is in centred moments,
    `scalar` for free trees.
    """
    return _sum(total, _Style(deviations, scalar, latex=False))


def latex(total: TreeSum, *, deviations: bool = False, scalar: bool = False) -> str:
    """A combination of trees as LaTeX."""
    return _sum(total, _Style(deviations, scalar, latex=True))


def wrap(head: str, body: str, width: int = 110) -> str:
    """`head` and `body`, broken between terms (never inside brackets) where the line grows long."""
    pieces, depth = [""], 0
    for word in body.split(" "):
        if depth == 0 and word in "+-":
            pieces.append("")
        pieces[-1] += word + " "
        depth += sum(word.count(c) for c in "([") - sum(word.count(c) for c in ")]")
    lines = [head]
    for piece in pieces:
        if len(lines[-1]) + len(piece) > width and lines[-1].strip():
            lines.append(" " * len(head))
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def coefficient(value: sp.Expr, latex: bool = False) -> str:
    """A coefficient as text or LaTeX, `n - m` rather than `-m + n`."""
    negative, size = _oriented(value)
    printed = str(sp.latex(size)) if latex else str(size).replace("**", "^")
    # sympy sorts by name
    return ("-" if negative else "") + re.sub(r"- ?((?:\d+[* ])?[bm]) \+ n", r"n - \1", printed)


class _Style:
    def __init__(self, deviations: bool, scalar: bool, latex: bool):
        self.deviations, self.scalar, self.latex = deviations, scalar, latex

    def coefficient(self, value: sp.Expr) -> str:
        return coefficient(value, self.latex)


def _sum(total: TreeSum, style: _Style) -> str:
    if not total:
        return "0"
    pieces = []
    for tree, coefficient in sorted(total.items(), key=lambda item: _reading_order(item[0])):
        negative, size = _oriented(coefficient)
        product = _with_factor(size, _tree(tree, style), style)
        pieces.append(("- " if negative else "+ ") + product)
    line = " ".join(pieces)
    return line[2:] if line.startswith("+ ") else line.replace("- ", "-", 1)


def _reading_order(tree: Tree) -> tuple[int, int, int, Tree]:
    """Small trees first, and among these products of means before moments; norms count as edges of
    their own.
    """
    bare = tree._replace(factors=())
    sizes = block_sizes(bare)
    nodes = sum(sizes.values()) + (
        2 if tree.colour == ONE else sum(not f.norm for f in tree.factors)
    )
    return nodes, -len(sizes), len(tree.factors), tree


def _oriented(coefficient: sp.Expr) -> tuple[bool, sp.Expr]:
    """The sign and the size of a coefficient, every factor written so that it is positive where 1 <
    m < n (`n - m`, not `m - n`).
    """
    negative, size = False, sp.Integer(1)
    for factor in sp.Mul.make_args(coefficient):
        base, power = factor.as_base_exp()
        if base.subs(_TYPICAL).is_negative and power.is_odd:
            negative, factor = not negative, (-base) ** power
        size *= factor
    return negative, size


def _with_factor(size: sp.Expr, body: str, style: _Style) -> str:
    if size == 1:
        return body
    factor = style.coefficient(size)
    if not style.latex and (size.is_Add or "/" in factor or " " in factor):
        factor = f"({factor})"
    return f"{factor} {body}"


def _tree(tree: Tree, style: _Style) -> str:
    if style.scalar:
        tree = _from_centre(tree)
    sizes = block_sizes(tree)
    whole = [colour for colour in sorted(tree.micro_batches) if colour != MARK]
    colours = dict.fromkeys(n.colour for n in tree.nodes())
    repeated = [colour for colour in colours if sizes[colour] > 1 and colour not in (MARK, *whole)]
    marked = MARK in sizes
    letters = dict(zip(repeated, _LETTERS[1:] if marked else _LETTERS, strict=False)) | dict(
        zip(whole, _MICRO_BATCHES, strict=False)
    )
    if marked:
        letters[MARK] = _MICRO_BATCHES[0] if MARK in tree.micro_batches else "i"
    deviating = set(repeated) if style.deviations else set()
    name = _namer(letters, deviating, style.latex)
    bare = tree._replace(factors=())
    body = (
        ""
        if tree.colour == ONE
        else (_scalar if style.scalar else _vector)(bare, name, style.latex)
    )
    body = _with_factors(body, tree.factors, name, letters, style.latex)
    if MARK in tree.micro_batches:
        return (
            rf"\mathbb{{E}}[{body} \mid i \in {letters[MARK]}]"
            if style.latex
            else f"E[{body} | i in {letters[MARK]}]"
        )
    if repeated or whole:
        averaged = "".join(letters[c] for c in (*repeated, *whole))
        return (
            rf"\langle {body} \rangle_{{{averaged}}}" if style.latex else f"mean_{averaged}({body})"
        )
    return body


def _with_factors(
    body: str, factors: tuple[Factor, ...], name: Namer, letters: dict[int, str], latex: bool
) -> str:
    """`body` times inner products and norms, over norms."""
    over: list[str] = []
    under: list[str] = []
    for factor in factors:
        if factor.norm:
            hat = factor.tree.weighted
            symbol = (r"\hat r" if latex else "r^") if hat else "r"
            text = (
                _mixed(factor, name, latex)
                if factor.mix
                else (
                    symbol
                    if factor.tree.colour == WHOLE
                    else f"{symbol}_{letters[factor.tree.colour]}"
                )
            )
            if factor.log:
                text = rf"\log {text}" if latex else f"log({text})"
        else:
            text = f"({_scalar(factor.tree, name, latex)})"
        size = abs(factor.power)
        powered = text if size == 1 else f"{text}^{size}"
        (over if factor.power > 0 else under).append(powered)
    return " ".join([part for part in (body, *over) if part] or ["1"]) + "".join(
        f" / {text}" for text in under
    )


def _mixed(norm: Factor, name: Namer, latex: bool) -> str:
    """The norm of `a g + s gbar`."""
    assert norm.mix
    a, s = norm.mix
    mean = r"\bar g" if latex else "gbar"
    own = mean if norm.tree.colour == WHOLE else name(norm.tree, 1)
    body = " ".join(
        f"{'-' if negative else '+'} {_with_factor(size, vector, _Style(False, False, latex))}"
        for scalar, vector in ((a, own), (s, mean))
        if scalar.terms
        for negative, size in [_oriented(symbolic(scalar))]
    )
    body = body[2:] if body.startswith("+ ") else body
    return rf"\|{body}\|" if latex else f"|{body}|"


Namer = Callable[[Tree, int], str]


def _namer(letters: dict[int, str], deviating: set[int], latex: bool) -> Namer:
    """The symbol of a node: its derivative's letter with a bar (mean), a tilde (deviation) or an
    index (a sample).
    """

    def name(node: Tree, order: int) -> str:
        if node.colour == LOOP:
            return "e"
        if node.weighted:
            index = letters[node.colour]
            derivative = "" if order == 1 else "D" if order == 2 else f"D^{order - 1}"
            return rf"{derivative}\hat g_{index}" if latex else f"{derivative}g^_{index}"
        plain = {0: "f", 1: "g", 2: "H", 3: "T"}.get(order)
        letter = plain or (rf"D^{{{order}}}f" if latex else f"D{order}")
        if node.colour not in letters:
            if order == 0:
                return letter
            return (
                (rf"\bar {letter}" if plain else rf"\overline{{{letter}}}")
                if latex
                else f"{letter}bar"
            )
        index = letters[node.colour]
        if node.colour in deviating:
            return rf"\tilde {letter}_{index}" if latex else f"{letter}~_{index}"
        return f"{letter}_{index}"

    return name


def _vector(tree: Tree, name: Namer, latex: bool) -> str:
    symbol = name(tree, len(tree.children) + 1)
    inner = [_vector(child, name, latex) for child in tree.children]
    if not inner:
        return symbol
    if len(inner) == 1:
        return f"{symbol} {inner[0]}"
    return f"{symbol}[{', '.join(inner)}]"


def _scalar(tree: Tree, name: Namer, latex: bool) -> str:
    inner = [_vector(child, name, latex) for child in tree.children]
    dot = r" \cdot " if latex else " . "
    if len(inner) == 0:
        return name(tree, 0)
    if len(inner) == 1 or tree.weighted:
        own = name(tree._replace(children=()), 1)
        if own == inner[0]:
            return rf"|{own}|^2"
        return f"{own}{dot}{inner[0]}"
    symbol = name(tree, len(inner))
    if len(inner) == 2:
        return f"{inner[0]}{dot}{symbol} {inner[1]}"
    return f"{symbol}[{', '.join(inner)}]"


def _from_centre(tree: Tree) -> Tree:
    """A free tree hung from a node in its middle, where it reads best."""

    def depth(node: Tree) -> int:
        return 1 + max((depth(child) for child in node.children), default=0)

    if tree.colour == ONE:
        return tree
    return min(reroot(tree), key=lambda rooted: (depth(rooted), -len(rooted.children), rooted))
