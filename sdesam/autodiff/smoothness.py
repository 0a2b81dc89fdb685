"""Is a loss three times differentiable? Read off its jaxpr, because a kink is seldom met by chance.

The second-order SDE of SAM contains third derivatives of the loss; through a kink (ReLU) they are
zero almost everywhere and infinite on the kinks, and the theory does not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sdesam.autodiff.interpreter import Interpreter, bodies

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
_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
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
    return tuple(sorted(_merge(_read(closed.jaxpr, inputs)).kinks))


class _Known(NamedTuple):
    """What is known of an intermediate value."""

    moves: bool
    """It depends on the parameters."""
    kinks: frozenset[str] = frozenset()
    """The operations with a kink that it has passed."""
    positive: bool = False
    """It is above zero whatever the parameters are, so its absolute value has no kink."""


_CONSTANT = _Known(moves=False)

# A worked example, the loss f(x, a) = |exp(x) + 1| + max(x - a, 0). In what is known of each value,
# `kinks` is written in braces.
#
#     exp x              moves {}          positive: so is every exponential
#     exp x + 1          moves {}          the 1 is a constant, whose sign is not looked at: no
#                                          longer known to be positive
#     |exp x + 1|        moves {abs}       a false alarm
#     max(x - a, 0)      moves {max}       a kink where x = a
#     their sum          moves {abs, max}
#
# Without the 1 the absolute value is of a positive number and no kink. jax writes log-sum-exp with
# the absolute value of a sum of exponentials, and cross-entropy is no loss with kinks.


def _read(jaxpr: Any, inputs: list[_Known]) -> list[_Known]:
    """What is known of the outputs, from what is known of the inputs."""
    return _READER.run(jaxpr, [_CONSTANT] * len(jaxpr.constvars), inputs)


def _still(eqn: Any, arguments: list[_Known]) -> list[_Known]:
    return [_CONSTANT] * len(eqn.outvars)


def _kinked(eqn: Any, arguments: list[_Known]) -> list[_Known]:
    merged = _merge(arguments)
    kinks = merged.kinks | {eqn.primitive.name}
    return [merged._replace(kinks=kinks, positive=False)] * len(eqn.outvars)


def _absolute(eqn: Any, arguments: list[_Known]) -> list[_Known]:
    return arguments if arguments[0].positive else _kinked(eqn, arguments)


def _converted(eqn: Any, arguments: list[_Known]) -> list[_Known]:
    """Conversion to another type; whole numbers move in jumps."""
    rounds = jax.numpy.issubdtype(eqn.params["new_dtype"], jax.numpy.integer)
    return _kinked(eqn, arguments) if rounds else _smooth(eqn, arguments)


def _selected(eqn: Any, arguments: list[_Known]) -> list[_Known]:
    """A choice between values; the choice itself is a kink where it depends on the parameters."""
    if not arguments[0].moves:
        return _smooth(eqn, arguments)
    merged = _merge(arguments)
    return [merged._replace(kinks=merged.kinks | {"where"})]


def _called(eqn: Any, arguments: list[_Known]) -> list[_Known]:
    """A function that is called once: its body is read with the arguments as they are."""
    if eqn.primitive.name == "custom_jvp_call" and eqn.params[
        "call_jaxpr"
    ].jaxpr.debug_info.func_src_info.startswith(_SMOOTH_CUSTOM):
        return [_merge(arguments)] * len(eqn.outvars)
    inner = bodies(eqn.params)
    return _read(inner[0], arguments) if len(inner) == 1 else _smooth(eqn, arguments)


def _smooth(eqn: Any, arguments: list[_Known]) -> list[_Known]:
    """All other operations: the kinks of the arguments, and those of what is inside."""
    name, merged = eqn.primitive.name, _merge(arguments)
    # loops and branches: whatever goes in may meet whatever is inside
    for body in bodies(eqn.params):
        merged = _merge([merged, *_read(body, [merged] * len(body.invars))])
    positive = name in ("exp", "logistic") or (merged.positive and name in _KEEP_SIGN)
    return [merged._replace(positive=positive)] * len(eqn.outvars)


def _merge(many: list[_Known]) -> _Known:
    moving = [known for known in many if known.moves]
    return _Known(
        moves=bool(moving),
        kinks=frozenset().union(*(known.kinks for known in moving)),
        positive=bool(moving)
        and len(moving) == len(many)
        and all(known.positive for known in moving),
    )


_READER = Interpreter(
    follows=lambda known: known.moves,
    handlers={
        **dict.fromkeys(_KINKED | _COMPARISONS, _kinked),
        **dict.fromkeys(_CALLS, _called),
        "abs": _absolute,
        "convert_element_type": _converted,
        "select_n": _selected,
        "stop_gradient": _still,
    },
    otherwise=_smooth,
    unfollowed=_still,
    literal=lambda number: _CONSTANT,
)
