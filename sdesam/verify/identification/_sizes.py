"""At which sizes a step is listed: sizes on which no two formulas agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy as sp

from sdesam.sampling import Sampling
from sdesam.symbolic import batch, micro, samples
from sdesam.verify.exact.enumerate import MOST_BATCHES
from sdesam.verify.identification._formulas import Size, agreeing, basis, in_words, named, rank
from sdesam.verify.identification._step import Step, few

_POPULATIONS = 4
"""Numbers of samples, without replacement: a formula for trees of `k` nodes has powers of `n` up to
`k - 1`.
"""
_SPARE = 2
"""Sizes beyond those that determine a formula: each is a test of it."""

Functions = list[tuple[sp.Expr, ...]]


# A worked example, m-USAM to rho^2 with replacement. A coefficient is a combination of 1, 1/m, 1/b,
# 1/m^2, 1/(m b), 1/b^2. On the sizes m = 1 and m = b alone two combinations agree everywhere,
# because (1 - 1/m)(1/m - 1/b) is 0 on all of them. The cheapest sizes that tell the six apart, on
# four samples, are
#
#     (b, m) = (1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 2)
#
# and two more are a test. Sizes are taken in the order of what their listing costs, those that
# raise the rank of the table of functions alone.


def chosen_sizes(step: Step, nodes: int, n: int | None) -> list[Size]:
    """Sizes that determine the formulas of trees of up to `nodes` nodes, and two for a test.

    Args:
        step: what is listed.
        nodes: of the largest tree.
        n: the number of samples, where it is given.

    Raises:
        ValueError: the samples are too many to list at two sizes on which formulas differ.
    """
    varying = {samples} if n is None and not step.replace else set()
    wanted = [basis(nodes, False, step.replace, step.symbols | varying)]
    if varying and batch in step.symbols and micro in step.symbols:
        # 1/b and 1/m beside n to the second power are many functions, and so many sizes: all of
        # them only for a rule that speaks of both batches
        most = nodes if step.of_both else min(nodes, 2)
        wanted = [
            basis(nodes, False, False, frozenset([micro, samples])),
            basis(most, False, False, frozenset([batch, micro, samples])),
        ]
    pool = list(_pool(step, nodes, n))
    found: list[Size] = []
    for functions in wanted:
        for size in pool:
            if size not in found and rank(functions, [*found, size]) > rank(functions, found):
                found.append(size)
    # m between 1 and b first: there most formulas differ
    spare = sorted(pool, key=lambda size: not 1 < size.m < size.b)
    spare = [size for size in spare if size not in found]
    found += spare[:_SPARE]
    for size in spare[_SPARE:]:
        if agreeing(named(step.replace, step.symbols), found):
            found.append(size)
    if len(found) < 2 or agreeing(named(step.replace, step.symbols), found):
        raise ValueError(_too_large(step, nodes, n or 0))
    return sorted(found)


def _pool(step: Step, nodes: int, n: int | None) -> Iterator[Size]:
    """Sizes that can be listed, the cheapest first."""
    populations = [n]
    if n is None:
        populations = (
            [max(nodes, 4)] if step.replace else [nodes + k + 1 for k in range(_POPULATIONS)]
        )
    found = []
    for population in populations:
        assert population is not None
        # without replacement the whole data set has no noise
        most = 3 * nodes if step.replace else min(population - 1, 3 * nodes)
        for b in range(1, most + 1):
            for m in range(1, b + 1):
                whole = m == b or {batch, micro} <= step.symbols
                size = Size(population, b, m)
                if b % m == 0 and whole and few(step, size):
                    found.append(size)
    yield from sorted(found, key=lambda size: (step.count(size), size))


def _too_large(step: Step, nodes: int, n: int) -> str:
    """Why no sizes will do, and how many samples would."""
    for fewer in range(min(n, MOST_BATCHES) - 1, 0, -1):
        pool = list(_pool(step, nodes, fewer))
        if len(pool) > 1 and not agreeing(named(step.replace, step.symbols), pool):
            return (
                f"n={n} samples have too many mini-batches to list (more than {MOST_BATCHES}) at"
                f" sizes that tell formulas apart: at most n={fewer} samples would do"
            )
    return f"n={n} samples are too few for two sizes that tell formulas apart: choose more"


def checked_sizes(sizes: Any, step: Step, nodes: int, n: int | None) -> list[Size]:
    """The sizes that a user asks for, or one sentence.

    Args:
        sizes: pairs `(b, m)`, or triples `(n, b, m)`.
        step: what is listed.
        nodes: of the largest tree.
        n: the number of samples, where a problem is given.
    """
    try:
        given = [tuple(size) for size in sizes]
    except TypeError:
        given = []
    if not given or any(len(size) not in (2, 3) for size in given):
        raise ValueError(
            f"sizes={sizes!r}: it must be a list of pairs (b, m), or of triples (n, b, m), such as"
            " [(3, 1), (4, 2)]"
        )
    found = []
    for size in given:
        population = n or (nodes + 2 if len(size) == 2 else size[0])
        sampling = Sampling(size[-2], size[-1], step.replace)
        if n is not None and len(size) == 3 and size[0] != n:
            raise ValueError(
                f"sizes has n={size[0]}, and the problem has n={n} samples: give pairs (b, m)"
            )
        one = Size(population, sampling.batch, sampling.m)
        if micro not in step.symbols and one.b != one.m:
            raise ValueError(
                f"sizes has b={one.b}, m={one.m}, but the rule has no micro-batches: give m = b"
            )
        sampling.check_population(population)
        if not step.replace and sampling.batch == population:
            raise ValueError(
                f"sizes has b={sampling.batch} of n={population} samples: without replacement such"
                " a mini-batch is the data set, and has no noise to identify; choose b < n"
            )
        if not few(step, one):
            raise ValueError(_too_many(step, one))
        found.append(one if batch in step.symbols else one._replace(b=one.m))
    found = sorted(set(found))
    same = agreeing(_apart(step), found)
    if same is not None or len(found) < 2:
        told = ", ".join(f"({size})" for size in found)
        both = " and ".join(map(in_words, same)) if same is not None else "any two formulas"
        raise ValueError(
            f"the sizes {told} do not tell {both} apart: give one size more, with another ratio b/m"
        )
    return found


def _apart(step: Step) -> tuple[sp.Expr, ...]:
    return named(step.replace, step.symbols)


def _too_many(step: Step, size: Size) -> str:
    """What is too many, and the largest sizes that would do."""

    def largest(sizes: Sequence[Size]) -> Size | None:
        return next((one for one in sizes if few(step, one)), None)

    least = 0 if step.replace else size.b
    samples = largest([size._replace(n=n) for n in range(min(size.n, MOST_BATCHES), least, -1)])
    batches = largest([size._replace(b=b, m=b) for b in range(min(size.b, MOST_BATCHES), 0, -1)])
    told = [f"n={samples.n} samples"] if samples else []
    told += [f"b={batches.b}"] if batches else []
    remedy = f": at most {' or '.join(told)} would do" if told else ""
    return f"{size} has more than the {MOST_BATCHES} mini-batches that are listed{remedy}"
