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
from jax.extend.core import Literal

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
# What is left is arithmetic, entry by entry, which XLA makes one loop of. Any operation that is not
# in the tables below, a sort or a product of matrices, has no such form: then None is the answer,
# and the state is stepped as one array.

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
        found = _Evaluation(paths).run(closed.jaxpr, closed.consts, arguments)
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
    """A jaxpr on its way."""

    def __init__(self, paths: int):
        self.paths = paths
        self.operations = 0

    def run(self, jaxpr: Any, constants: Any, arguments: list[Any]) -> list[Any]:
        known: dict[Any, Any] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True)
        )

        def look(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        for eqn in jaxpr.eqns:
            for variable, value in zip(
                eqn.outvars, self.apply(eqn, [look(atom) for atom in eqn.invars]), strict=True
            ):
                if isinstance(value, _Split) and any(
                    part.dtype != variable.aval.dtype for part in value.parts.ravel()
                ):
                    raise _NotElementwise  # a sum or product in another precision than its operands
                known[variable] = value
        return [look(atom) for atom in jaxpr.outvars]

    def apply(self, eqn: Any, values: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if any(value is _OPAQUE for value in values):
            return [_OPAQUE] * len(eqn.outvars)
        if name in _CALLS and _CALLS[name] in eqn.params:
            inner = eqn.params[_CALLS[name]]
            return self.run(inner.jaxpr, inner.consts, values)
        if not any(isinstance(value, _Split) for value in values):
            found = eqn.primitive.bind(*values, **eqn.params)
            return list(found) if eqn.primitive.multiple_results else [found]
        parts = [_parts(value) for value in values]
        if not all(part.size for part in parts):
            raise _NotElementwise
        if name in _MOVES:
            return [_Split(moved) for moved in _move(eqn, parts)]
        if name in _FOLDS:
            return [_Split(self.fold(name, parts[0], eqn.params["axes"]))]
        if name == "dot_general":
            return [_Split(self.contract(*parts, *eqn.params["dimension_numbers"]))]
        if name in _ELEMENTWISE:
            shape = eqn.outvars[0].aval.shape
            parts = [np.broadcast_to(part, shape) for part in parts]
            return [
                _Split(_fill(shape, lambda index: self.bind(eqn, [part[index] for part in parts])))
            ]
        raise _NotElementwise

    def bind(self, eqn: Any, operands: list[Any]) -> Any:
        self.operations += 1
        if self.operations > _MOST:
            raise _NotElementwise
        return eqn.primitive.bind(
            *[jnp.broadcast_to(operand, (self.paths,)) for operand in operands], **eqn.params
        )

    def fold(self, name: str, parts: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        kept = [axis for axis in range(parts.ndim) if axis not in axes]
        shape = tuple(parts.shape[axis] for axis in kept)
        rows = parts.transpose(*kept, *axes).reshape(*shape, -1)
        self.operations += parts.size
        return _fill(shape, lambda index: reduce(_FOLDS[name], rows[index]))

    def contract(self, a: np.ndarray, b: np.ndarray, over: Any, batch: Any) -> np.ndarray:
        """`dot_general`: axes of the result are the batch's, then those left of `a`, then those
        left of `b`.
        """
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
        return made.reshape((*common, *shapes[0], *shapes[1]))


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
