"""What is asked of the functions of an SDE written by hand before anything runs: finite values, and
noise that is linear in `xi`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from sdesam.problems.arrays import where_not_finite

PyTree = Any
Noise = Callable[[PyTree, Any], PyTree]


def check_written(
    drift: Callable[[PyTree], PyTree], noise: Noise, x0: PyTree, xi: tuple[int, ...]
) -> None:
    """Refuse a drift or a noise that is not finite at `x0`, and a noise that is not linear in `xi`,
    an array of this shape.

    Numbers that jax traces are not known, and not checked.
    """
    dtype = jnp.result_type(*jax.tree.leaves(x0))
    a, b = (np.random.default_rng(seed).normal(size=xi).astype(dtype) for seed in range(2))
    # the noise is traced twice: numbers that numpy draws while a function is traced are others then
    one, other = _traced(noise, x0, a), _traced(noise, x0, a)
    for what, value in (("drift(x0)", _traced(drift, x0)(x0)), ("apply_noise(x0, xi)", one(x0, a))):
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            return
        bad = where_not_finite(value, what)
        if bad is not None:
            raise ValueError(
                f"{bad}: drift and noise must be finite at the start; move x0, or change the"
                " function"
            )
    # at x0 and beside it, because a coefficient may vanish at x0
    for away in (0, 1 / 8):
        x = jax.tree.map(
            lambda leaf, away=away: (np.asarray(leaf) + away * (1 + abs(np.asarray(leaf)))).astype(
                leaf.dtype
            ),
            x0,
        )
        wrong = _not_linear(_at(one, x), _at(other, x), a, b)
        if wrong is not None:
            raise ValueError(
                "apply_noise must be linear in xi, the product A(x) xi such as `G(x) * xi` or `A @"
                f" xi`, but it {wrong}"
            )


# What the check sees, for one xi = a and another b, s = 32 and t = 24:
#
#     apply_noise           at 0     s a - t b against s times a less t times b     verdict
#     G(x) * xi             0        the same                                       linear
#     G(x)                  G(x)     -                                              without xi
#     G(x) * xi + 0.1       0.1      -                                              not 0 for xi = 0
#     G(x) * sin(xi)        0        |sin| is at most 1                             off by much
#     G(x) * abs(xi)        0        |s a - t b| is not s |a| - t |b|               off
#
# Factors far from 1 make a small bend visible: xi + 0.001 xi^3 is off by 0.1 % at xi = 1, and by
# about its own size at xi = 32. Two signs are needed, because |xi| is linear where all signs agree.

Values = Callable[[np.ndarray], list[np.ndarray]]
"""`xi -> A(x) xi` at one `x`: its leaves, in float64."""


def _at(noise: Noise, x: PyTree) -> Values:
    return lambda xi: [
        np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(noise(x, xi))
    ]


def _not_linear(one: Values, other: Values, a: np.ndarray, b: np.ndarray) -> str | None:
    """What shows that a function, traced twice, is not linear; None where nothing does."""
    known = jnp.finfo(a.dtype)  # type: ignore[no-untyped-call]
    half = known.bits < 32
    # small deviations from a line show far out, and half precision does not reach far
    (s, t), allowed, allowed_at_0 = ((4, 3), 0.1, 1e-2) if half else ((32, 24), 1e-2, 1e-5)
    floor = 64 * float(known.smallest_subnormal if half else known.tiny)
    for of_a, of_b, mixed, nothing in zip(
        one(a), one(b), other((s * a - t * b).astype(a.dtype)), other(0 * a), strict=True
    ):
        size = np.max(abs(of_a), initial=0) + np.max(abs(of_b), initial=0)
        if not np.isfinite(size):  # beside x0 the noise may be undefined
            continue
        if not np.max(abs(nothing), initial=0) <= allowed_at_0 * size + floor:
            if np.array_equal(of_a, nothing) and np.array_equal(of_b, nothing):
                return "does not depend on xi, as the coefficient G(x) of torchsde or diffrax"
            return (
                "is not 0 for xi = 0: a part without xi belongs to the drift, and random numbers of"
                " its own to xi"
            )
        gap = np.max(abs(mixed - (s * of_a - t * of_b)), initial=0)
        if not gap <= allowed * (s + t) * size + floor and not (
            half and not np.isfinite(mixed).all()
        ):
            return (
                f"gives for {s} a - {t} b not {s} times that for a less {t} times that for b: it is"
                f" off by {gap:.3g}, of {size:.3g}"
            )
    return None


def _traced(fn: Callable[..., PyTree], *arguments: PyTree) -> Callable[..., PyTree]:
    """`fn` as traced at these arguments, to be evaluated operation by operation, which compiles
    next to nothing.
    """
    closed, shape = jax.make_jaxpr(lambda *arguments: fn(*arguments), return_shape=True)(*arguments)
    run = jaxpr_as_fun(closed)
    return lambda *arguments: jax.tree.unflatten(
        jax.tree.structure(shape), run(*jax.tree.leaves(arguments))
    )
