"""Formulas in the sizes `n, b, m` from exact values at several of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import numpy as np
import sympy as sp

from sdesam.symbolic import batch, evaluate, micro, printing, samples
from sdesam.symbolic.expectation import falling


def in_words(formula: sp.Expr, latex: bool = False) -> str:
    """A formula as text, or as LaTeX.

    >>> in_words(micro**-2), in_words((samples - micro) / samples)
    ('1/m^2', '(n - m)/n')
    """
    text = printing.coefficient(sp.factor(formula), latex)
    return text if latex else re.sub(r"^(\w)\^\(-(\d)\)$", r"1/\1^\2", text)


class Size(NamedTuple):
    """The sizes of one listing: the data set, the mini-batch, the micro-batch."""

    n: int
    b: int
    m: int

    def __str__(self) -> str:
        return f"n={self.n}, b={self.b}, m={self.m}"


Values = Mapping[Size, Fraction]
_MOST_TERMS = 3
"""Combinations of more functions are not looked for where the sizes do not determine all of
them.
"""
_CLOSE = 1e-6
"""Coefficients of a stated SDE are read to about 1e-9; formulas differ by a tenth at least."""


def at(formula: sp.Expr, size: Size) -> Fraction:
    """A formula at concrete sizes, exactly."""
    return evaluate(formula, size.b, size.m, size.n)


def population(size: sp.Symbol) -> sp.Expr:
    """The factor `c_k` of a batch of `k` samples that is drawn without replacement."""
    return (samples - size) / (size * (samples - 1))


def named(replace: bool, sizes: frozenset[sp.Symbol]) -> tuple[sp.Expr, ...]:
    """The formulas that papers have for coefficients, in the sizes that a rule has.

    >>> named(True, frozenset([micro]))
    (1, 1/m, 1 - 1/m, m**(-2))
    """
    found: list[sp.Expr] = [sp.Integer(1)]
    for size in sorted(sizes, key=str):
        found += [1 / size, 1 - 1 / size]
        found += [] if replace else [population(size), 1 - population(size)]
    if sizes == {batch, micro}:
        found += [2 / batch, micro / batch, 1 / micro - 1 / batch, 1 / (batch - micro)]
    return (*found, *(size**-2 for size in sorted(sizes, key=str)))


def agreeing(formulas: Sequence[sp.Expr], sizes: Sequence[Size]) -> tuple[sp.Expr, sp.Expr] | None:
    """The first two formulas that have the same values at all sizes; None where all differ.

    >>> agreeing([1 / micro, 1 / batch, 2 / batch], [Size(5, 4, 2), Size(5, 2, 1)])
    (1/m, 2/b)
    """
    values = {f: tuple(_value(f, size) for size in sizes) for f in formulas}
    return next(
        ((f, g) for f, g in combinations(formulas, 2) if values[f] == values[g]),
        None,
    )


def _value(formula: sp.Expr, size: Size) -> Fraction | None:
    """A formula at concrete sizes; None where it divides by zero."""
    try:
        return at(formula, size)
    except ValueError:
        return None


# The functions that a coefficient can be a combination of. A tree of k nodes is an expectation over
# k positions of a batch of m: with replacement a polynomial in 1/m of degree below k, or in 1/m and
# 1/b where nodes of the mini-batch occur too. Without replacement each chance that nodes meet is
# divided by a falling factorial of the population: n-1 to n-k+1, or n-2 to n-k where one sample is
# given.
#
# For k = 2 without replacement these are 1/(n-1) and n/(n-1), each times 1 and 1/m. The factor
# (n-m)/(m (n-1)) is n/(n-1) * 1/m - 1/(n-1): two of the four.


def basis(
    nodes: int, marked: bool, replace: bool, sizes: frozenset[sp.Symbol]
) -> tuple[sp.Expr, ...]:
    """The functions of the sizes that coefficients of trees are combinations of.

    Args:
        nodes: of the trees.
        marked: whether one sample is given.
        replace: whether batches are drawn with replacement.
        sizes: the symbols that vary: of `n`, `b` and `m`.

    >>> basis(2, False, True, frozenset([micro])), len(basis(3, False, True, {batch, micro}))
    ((1, 1/m), 6)
    """
    varying = [size for size in (micro, batch) if size in sizes]
    powers = sp.itermonomials([1 / size for size in varying], nodes - 1) if varying else {1}
    batches = sorted((sp.sympify(power) for power in powers), key=sp.default_sort_key)
    if replace or samples not in sizes:
        return tuple(batches)
    first = samples - 2 if marked else samples - 1
    under = falling(first, nodes - 1)
    return tuple(power * samples**k / under for power in batches for k in range(nodes))


def rank(functions: Sequence[sp.Expr], sizes: Sequence[Size]) -> int:
    """How many of the functions are independent on these sizes."""
    rows = [[at(f, size) for f in functions] for size in sizes]
    return _eliminated(rows)[1]


def fitted(values: Values, functions: Sequence[sp.Expr]) -> sp.Expr | None:
    """The combination of functions that has the given values, or None where there is none, or more
    than one.

    Where the sizes are more than the functions, and tell them apart, the combination of all of them
    is unique. Else the fewest that do are taken, always fewer than there are sizes, so that one
    size at least is a test and not a fit.

    >>> sizes = [Size(5, b, m) for b, m in ((4, 2), (3, 1), (6, 3))]
    >>> fitted({size: Fraction(size.m - 1, size.m) for size in sizes}, [sp.Integer(1), 1 / micro])
    (m - 1)/m
    """
    sizes = list(values)
    functions = [f for f in functions if all(_value(f, size) is not None for size in sizes)]
    table = {f: [at(f, size) for size in sizes] for f in functions}
    goal = list(values.values())
    if not any(goal):
        return sp.Integer(0)
    if len(sizes) > len(functions) and rank(functions, sizes) == len(functions):
        found = _solved([table[f] for f in functions], goal)
        return None if found is None else _sum(found, functions)
    for count in range(1, min(len(sizes), _MOST_TERMS + 1)):
        answers = {
            _sum(found, chosen)
            for chosen in combinations(functions, count)
            if (found := _solved([table[f] for f in chosen], goal)) is not None
        }
        if answers:
            return answers.pop() if len(answers) == 1 else None
    return None


def _sum(numbers: Sequence[Fraction], functions: Sequence[sp.Expr]) -> sp.Expr:
    total = sum(
        (
            sp.Rational(c.numerator, c.denominator) * f
            for c, f in zip(numbers, functions, strict=True)
        ),
        start=sp.Integer(0),
    )
    return sp.factor(total)


def _solved(
    columns: Sequence[Sequence[Fraction]], goal: Sequence[Fraction]
) -> list[Fraction] | None:
    """The numbers that combine columns to a goal, exactly; None where there are none, or many."""
    rows = [[*row, g] for *row, g in zip(*columns, goal, strict=True)]
    reduced, found = _eliminated(rows)
    pivots = [next(k for k, entry in enumerate(row) if entry) for row in reduced[:found]]
    if pivots != list(range(len(columns))):
        return None  # dependent columns, or a goal that is none of their combinations
    return [row[-1] for row in reduced[:found]]


def _eliminated(rows: Sequence[Sequence[Fraction]]) -> tuple[list[list[Fraction]], int]:
    """The reduced echelon form, and the rank."""
    left = [list(map(Fraction, row)) for row in rows]
    rank = 0
    for column in range(len(left[0]) if left else 0):
        pivot = next((k for k in range(rank, len(left)) if left[k][column]), None)
        if pivot is None:
            continue
        left[rank], left[pivot] = left[pivot], left[rank]
        head = left[rank][column]
        left[rank] = [entry / head for entry in left[rank]]
        for k, row in enumerate(left):
            if k != rank and row[column]:
                factor = row[column]
                left[k] = [a - factor * b for a, b in zip(row, left[rank], strict=True)]
        rank += 1
    return left, rank


# One formula times a number, for a coefficient that somebody states. At (b, m) = (4, 2), (3, 1),
# (4, 1) the values 1/2, 2/3, 1/2 are 2/b: no other formula of `named` times a number has them.


def told(values: Mapping[Size, float], formulas: Sequence[sp.Expr]) -> str | None:
    """Values at several sizes as a number times one formula, in words; None where no formula has
    them, or more than one.

    >>> sizes = [Size(5, b, m) for b, m in ((4, 2), (3, 1), (4, 1))]
    >>> formulas = named(True, frozenset([batch, micro]))
    >>> told({size: 2 / size.b for size in sizes}, formulas)
    '2/b'
    >>> told({size: 1.01 / size.m for size in sizes}, formulas)
    '1.01/m'
    """
    largest = max(map(abs, values.values()))
    if largest < _CLOSE:
        return "0"
    found: dict[str, None] = {}
    for formula in formulas:
        units = [_value(formula, size) for size in values]
        if None in units or not any(units):
            continue
        v, u = np.array(list(values.values())), np.array(units, np.float64)
        number = float(v @ u / (u @ u))
        if np.abs(v - number * u).max() < _CLOSE * largest:
            found[_times(number, formula)] = None
    return next(iter(found)) if len(found) == 1 else None


def _times(number: float, formula: sp.Expr) -> str:
    """A number times a formula, as text; simple fractions as such, other numbers as decimals."""
    fraction = Fraction(number).limit_denominator(12)
    if abs(float(fraction) - number) < _CLOSE * abs(number):
        return in_words(sp.Rational(fraction.numerator, fraction.denominator) * formula)
    text = in_words(formula)
    decimal = f"{number:.4g}"
    if text.startswith("1/"):
        return decimal + text[1:]
    return decimal if text == "1" else f"{decimal}*{text}"
