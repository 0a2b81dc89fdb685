"""Is a loss three times differentiable? Read off its jaxpr, because a kink is seldom met by chance.

The second-order SDE of SAM contains third derivatives of the loss; through a kink (ReLU) they are
zero almost everywhere and infinite on the kinks, and the theory does not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

_KINKED = frozenset(
    {
        "abs",
        "argmax",
        "argmin",
        "ceil",
        "clamp",
        "cummax",
        "cummin",
        "floor",
        "max",
        "min",
        "reduce_max",
        "reduce_min",
    }
    | {"reduce_window_max", "rem", "round", "sign", "sort", "top_k"}
)
_COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne", "is_finite"})
_KEEP_SIGN = frozenset(
    {
        "add",
        "broadcast_in_dim",
        "div",
        "mul",
        "reduce_prod",
        "reduce_sum",
        "reshape",
        "squeeze",
        "transpose",
    }
)
_SMOOTH_CUSTOM = ("logaddexp", "softplus")
"""Functions with a derivative rule of their own that are smooth, though their formula has a maximum
for safety.
"""


def nonsmooth_operations(
    sample_loss: Callable[[Any, Any], Any], x: Any, sample: Any
) -> tuple[str, ...]:
    """The operations through which `sample_loss` depends on `x` without being smooth, by their
    names in jax.

    What passes through `stop_gradient` counts as constant, as in a log-sum-exp that subtracts its
    maximum. Not detected are functions that are smooth but for single points, such as a norm or a
    fractional power at zero.

    >>> nonsmooth_operations(lambda x, a: jax.nn.relu(x - a), 1.0, 0.0)
    ('max',)
    >>> nonsmooth_operations(lambda x, a: jax.nn.softplus(x - a), 1.0, 0.0)
    ()
    """
    closed = jax.make_jaxpr(sample_loss)(x, sample)
    parameters = len(jax.tree.leaves(x))
    inputs = [_Known(moves=True)] * parameters + [_CONSTANT] * (
        len(closed.jaxpr.invars) - parameters
    )
    return tuple(sorted(_merge(_walk(closed.jaxpr, inputs)).kinks))


class _Known(NamedTuple):
    """What is known of an intermediate value."""

    moves: bool
    """It depends on the parameters."""
    kinks: frozenset[str] = frozenset()
    """The operations with a kink that it has passed."""
    positive: bool = False
    """It is above zero whatever the parameters are, so its absolute value has no kink."""


_CONSTANT = _Known(moves=False)


def _walk(jaxpr: Any, inputs: list[_Known]) -> list[_Known]:
    known: dict[Any, _Known] = dict(zip(jaxpr.invars, inputs, strict=True))

    def look(atom: Any) -> _Known:
        return _CONSTANT if isinstance(atom, Literal) else known.get(atom, _CONSTANT)

    for eqn in jaxpr.eqns:
        arguments = [look(atom) for atom in eqn.invars]
        for variable, value in zip(eqn.outvars, _apply(eqn, arguments), strict=True):
            known[variable] = value
    return [look(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, arguments: list[_Known]) -> list[_Known]:
    name = eqn.primitive.name
    outputs = len(eqn.outvars)
    merged = _merge(arguments)
    if name == "stop_gradient" or not merged.moves:
        return [_CONSTANT] * outputs
    if name == "custom_jvp_call" and eqn.params[
        "call_jaxpr"
    ].jaxpr.debug_info.func_src_info.startswith(_SMOOTH_CUSTOM):
        return [merged] * outputs
    if name == "abs" and merged.positive:
        return [merged]
    # comparisons and whole numbers move in jumps
    rounds = name == "convert_element_type" and jax.numpy.issubdtype(
        eqn.params["new_dtype"], jax.numpy.integer
    )
    if name in _KINKED or name in _COMPARISONS or rounds:
        return [merged._replace(kinks=merged.kinks | {name}, positive=False)] * outputs
    if name == "select_n" and arguments[0].moves:
        return [merged._replace(kinks=merged.kinks | {"where"})]
    inner = bodies(eqn.params)
    if len(inner) == 1 and name in (
        "jit",
        "pjit",
        "custom_jvp_call",
        "custom_vjp_call",
        "remat2",
        "checkpoint",
    ):
        return _walk(inner[0], arguments)
    # loops and branches: whatever goes in may meet whatever is inside
    for body in inner:
        merged = _merge([merged, *_walk(body, [merged] * len(body.invars))])
    positive = name in ("exp", "logistic") or (merged.positive and name in _KEEP_SIGN)
    return [merged._replace(positive=positive)] * outputs


def _merge(many: list[_Known]) -> _Known:
    moving = [known for known in many if known.moves]
    return _Known(
        moves=bool(moving),
        kinks=frozenset().union(*(known.kinks for known in moving)),
        positive=bool(moving)
        and len(moving) == len(many)
        and all(known.positive for known in moving),
    )


def bodies(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an operation: bodies of loops, branches, functions
    called.
    """
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found
