"""A function of one small state as arithmetic on components, each an array over paths, for XLA to
make one loop of.

A state of two components that is stacked, sliced and stacked again costs more than all arithmetic
on it, because XLA's CPU compiler ends a loop at every `stack`. Here a jaxpr is evaluated with every
small array held as its components: operations that only move numbers disappear, and what stays is
elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.autodiff.interpreter import Handler, Interpreter, evaluate

PyTree = Any

# A worked example, a state of two components and a step that couples them:
#
#     def step(x): return x - 0.1 * jnp.array([x[1], -x[0]])
#
# Its jaxpr slices x twice, negates, stacks the two, multiplies and subtracts. For a million paths
# XLA writes the stack to memory and reads it again, because a loop of its CPU compiler has one
# output. Held as components, x is the pair (p, q) of arrays over paths, and
#
#     x[1], x[0]        q, p           nothing is computed: a name for what is there
#     -x[0]             -p             one operation
#     array([.., ..])   (q, -p)        nothing is computed
#     x - 0.1 * ..      (p - 0.1 q, q + 0.1 p)
#
# What is left is arithmetic, entry by entry, which XLA makes one loop of. An operation that is not
# in the tables below, such as a sort, has no such form: then None is the answer, and the state is
# stepped as one array.

_ELEMENTWISE = frozenset(
    {
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cbrt",
        "ceil",
        "clamp",
        "convert_element_type",
    }
    | {
        "copy",
        "cos",
        "cosh",
        "div",
        "eq",
        "erf",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "integer_pow",
        "is_finite",
        "le",
        "log",
    }
    | {
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "not",
        "or",
        "pow",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "sign",
        "sin",
        "sinh",
    }
    | {"sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor"}
)
_MOVES = frozenset(
    {
        "broadcast_in_dim",
        "concatenate",
        "expand_dims",
        "pad",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "stack",
        "transpose",
    }
)
_FOLDS = {
    "reduce_sum": jnp.add,
    "reduce_prod": jnp.multiply,
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
}
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_LARGEST = 64
"""Components of the largest intermediate array that is taken apart."""
_MOST = 2000
"""Operations on components: with more of them compiling takes seconds."""


class _NotElementwise(Exception):
    """The function does something that cannot be done component by component."""


class _Split:
    """An array that differs from path to path, as its components: an array of objects of its shape,
    each of shape `(paths,)`.
    """

    def __init__(self, parts: np.ndarray):
        self.parts = parts


_OPAQUE = object()
"""A random key, or what was made of one: not to be used."""


def elementwise(
    fn: Callable[[Any, Any], PyTree], constant: PyTree, varying: PyTree
) -> Callable[[Any, list[jax.Array], int], list[jax.Array]] | None:
    """`fn(constant, varying)` for many paths, by components; None where it is not elementwise in
    them.

    Args:
        fn: a function of one path.
        constant: what all paths share.
        varying: what differs between paths, of one path; random keys may be there if they are not
            used.

    Returns:
        `(constant, components, paths) -> components`: those of all leaves but keys, one after
        another, each of shape `(paths,)`.

    >>> swap = elementwise(lambda a, x: x[::-1] * a, 2.0, jnp.ones(2))
    >>> [part.tolist() for part in swap(2.0, [jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])], 2)]
    [[6.0, 8.0], [2.0, 4.0]]
    >>> elementwise(lambda a, x: jnp.sort(x) * a, 2.0, jnp.ones(2)) is None
    True
    """
    closed = jax.make_jaxpr(fn)(constant, varying)
    leaves = jax.tree.leaves(varying)

    def many(constant: Any, components: list[jax.Array], paths: int) -> list[jax.Array]:
        rest, arguments = iter(components), list(jax.tree.leaves(constant))
        for leaf in leaves:
            arguments.append(
                _OPAQUE if _is_key(leaf) else _Split(_fill(jnp.shape(leaf), lambda _: next(rest)))
            )
        found = _Evaluation(paths).interpreter.run(closed.jaxpr, closed.consts, arguments)
        return [
            jnp.broadcast_to(part, (paths,)) for value in found for part in _parts(value).ravel()
        ]

    one = [
        jnp.zeros(1, leaf.dtype)
        for leaf in leaves
        if not _is_key(leaf)
        for _ in range(math.prod(jnp.shape(leaf)))
    ]
    try:
        jax.eval_shape(lambda constant, components: many(constant, components, 1), constant, one)
    except _NotElementwise:
        return None
    return many


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


class _Evaluation:
    """A jaxpr on its way, for so many paths; it counts the operations on components."""

    def __init__(self, paths: int):
        self.paths = paths
        self.operations = 0
        rules = {
            **dict.fromkeys(_ELEMENTWISE, self.each),
            **dict.fromkeys(_MOVES, _move),
            **dict.fromkeys(_FOLDS, self.fold),
            "dot_general": self.contract,
        }
        self.interpreter = Interpreter(
            follows=lambda value: value is _OPAQUE or isinstance(value, _Split),
            handlers={name: _on_parts(rule) for name, rule in rules.items()}
            | dict.fromkeys(_CALLS, self.call),
            otherwise=_refuse,
            unfollowed=self.shared,
        )

    def call(self, eqn: Any, values: list[Any]) -> list[Any]:
        """A function that is called: its body, unless a key goes in."""
        if any(value is _OPAQUE for value in values):
            return [_OPAQUE] * len(eqn.outvars)
        inner = eqn.params[_CALLS[eqn.primitive.name]]
        return self.interpreter.run(inner.jaxpr, inner.consts, values)

    def shared(self, eqn: Any, values: list[Any]) -> list[Any]:
        """An operation on what all paths share."""
        return self.call(eqn, values) if eqn.primitive.name in _CALLS else evaluate(eqn, values)

    def each(self, eqn: Any, parts: list[np.ndarray]) -> list[np.ndarray]:
        """An operation done entry by entry."""
        shape = eqn.outvars[0].aval.shape
        parts = [np.broadcast_to(part, shape) for part in parts]
        return [_fill(shape, lambda index: self.bind(eqn, [part[index] for part in parts]))]

    def bind(self, eqn: Any, operands: list[Any]) -> Any:
        self.operations += 1
        if self.operations > _MOST:
            raise _NotElementwise
        return eqn.primitive.bind(
            *[jnp.broadcast_to(operand, (self.paths,)) for operand in operands], **eqn.params
        )

    def fold(self, eqn: Any, operands: list[np.ndarray]) -> list[np.ndarray]:
        """A sum, a product or an extreme over some axes."""
        parts, axes = operands[0], eqn.params["axes"]
        combine = _FOLDS[eqn.primitive.name]
        kept = [axis for axis in range(parts.ndim) if axis not in axes]
        shape = tuple(parts.shape[axis] for axis in kept)
        rows = parts.transpose(*kept, *axes).reshape(*shape, -1)
        self.operations += parts.size
        return [_fill(shape, lambda index: reduce(combine, rows[index]))]

    def contract(self, eqn: Any, operands: list[np.ndarray]) -> list[np.ndarray]:
        """`dot_general`: axes of the result are the batch's, then those left of `a`, then those
        left of `b`.
        """
        a, b = operands
        over, batch = eqn.params["dimension_numbers"]
        free = [
            [axis for axis in range(part.ndim) if axis not in (*over[k], *batch[k])]
            for k, part in enumerate((a, b))
        ]
        shapes = [tuple(part.shape[axis] for axis in free[k]) for k, part in enumerate((a, b))]
        common = tuple(a.shape[axis] for axis in batch[0])
        rows = [
            part.transpose(*batch[k], *free[k], *over[k]).reshape(
                *common, math.prod(shapes[k]), math.prod(part.shape[axis] for axis in over[k])
            )
            for k, part in enumerate((a, b))
        ]
        made = _fill(
            (*common, rows[0].shape[-2], rows[1].shape[-2]),
            lambda index: reduce(
                jnp.add,
                map(jnp.multiply, rows[0][index[:-2]][index[-2]], rows[1][index[:-2]][index[-1]]),
            ),
        )
        self.operations += 2 * a.size * b.size
        return [made.reshape((*common, *shapes[0], *shapes[1]))]


def _on_parts(rule: Callable[[Any, list[np.ndarray]], list[np.ndarray]]) -> Handler:
    """A handler from a rule for components: what a key enters is opaque, results are checked."""

    def handler(eqn: Any, values: list[Any]) -> list[Any]:
        if any(value is _OPAQUE for value in values):
            return [_OPAQUE] * len(eqn.outvars)
        parts = [_parts(value) for value in values]
        if not all(part.size for part in parts):
            raise _NotElementwise
        results = rule(eqn, parts)
        for variable, result in zip(eqn.outvars, results, strict=True):
            if any(part.dtype != variable.aval.dtype for part in result.ravel()):
                raise _NotElementwise  # a sum or product in another precision than its operands
        return [_Split(result) for result in results]

    return handler


def _refuse(eqn: Any, values: list[Any]) -> list[Any]:
    if any(value is _OPAQUE for value in values):
        return [_OPAQUE] * len(eqn.outvars)
    raise _NotElementwise


def _parts(value: Any) -> np.ndarray:
    """The components of a value, numbers of one path or of all."""
    if value is _OPAQUE:
        raise _NotElementwise
    if isinstance(value, _Split):
        return value.parts
    if math.prod(jnp.shape(value)) > _LARGEST:
        raise _NotElementwise
    return _fill(jnp.shape(value), lambda index: jnp.asarray(value)[index])


def _move(eqn: Any, parts: list[np.ndarray]) -> list[np.ndarray]:
    """What an operation does that only moves numbers: it is done to their positions."""
    if sum(part.size for part in parts) > _LARGEST or any(
        math.prod(variable.aval.shape) > _LARGEST for variable in eqn.outvars
    ):
        raise _NotElementwise
    starts = np.cumsum([0, *(part.size for part in parts)])
    with jax.ensure_compile_time_eval():
        positions = [
            jnp.arange(a, a + part.size).reshape(part.shape)
            for a, part in zip(starts, parts, strict=False)
        ]
        moved = eqn.primitive.bind(*positions, **eqn.params)
        tables = [
            np.asarray(table) for table in (moved if eqn.primitive.multiple_results else [moved])
        ]
    flat = [part for table in parts for part in table.ravel()]
    return [_fill(table.shape, lambda index, table=table: flat[table[index]]) for table in tables]  # type: ignore[misc]


def _fill(shape: tuple[int, ...], part: Callable[[Any], Any]) -> np.ndarray:
    """An array of objects, one by one: numpy would look into them."""
    made = np.empty(shape, object)
    for index in np.ndindex(shape):
        made[index] = part(index)
    return made
