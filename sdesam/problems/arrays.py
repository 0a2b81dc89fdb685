"""What users hand in as data, as parameters and as a point: arrays, and pytrees of arrays.

Nothing else is converted. To make an array of an object with `__getitem__`, numpy asks it for items
until it refuses, and a data set need not. One sentence names the leaf that is no array.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MappingView
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._util.functions import HOLE, bare
from sdesam._util.precision import wide

PyTree = Any


def samples(data: PyTree) -> tuple[PyTree, int]:
    """`data` as jax arrays, and their common length `n`; lists of numbers, nested or not, are
    arrays.

    Raises:
        TypeError: a leaf that is no array of numbers.
        ValueError: leaves of different length, a ragged list, whole numbers beyond 32 bits where
            jax has no more.
    """
    leaves, structure = _flatten(
        "data", _lists_as_arrays(data, "data"), is_leaf=lambda leaf: leaf is None or _streams(leaf)
    )
    names = [f"data{jax.tree_util.keystr(path)}" for path, _ in leaves]
    arrays = [_array(name, leaf, path) for name, (path, leaf) in zip(names, leaves, strict=True)]
    lengths = {
        name: leaf.shape[0] if leaf.ndim else 0
        for name, leaf in zip(names, arrays, strict=True)
        if leaf is not None
    }
    known = sorted(set(lengths.values()))
    if len(known) != 1 or known[0] < 1:
        # one name for each length
        told = {length: name for name, length in reversed(lengths.items())}
        listed = ", ".join(f"{name}: {length}" for length, name in list(told.items())[:5])
        raise ValueError(
            "data must be arrays that share a leading axis of n >= 1 samples, but the leading axes"
            f" have lengths {known or '(no arrays)'}{f' ({listed})' if listed else ''}"
        )
    return jax.tree.unflatten(structure, arrays), int(known[0])


def _flatten(name: str, tree: PyTree, **options: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Leaves with their paths, and the structure."""
    try:
        return jax.tree_util.tree_flatten_with_path(tree, **options)
    except ValueError as error:
        # what jax cannot sort; a node of the user's own may raise another error
        raise TypeError(
            f"{name} is no pytree that jax can take apart ({_sentence(error)}): the keys of a"
            " dictionary must be of one type"
        ) from error


def _sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _streams(leaf: Any) -> bool:
    """Whether it is an iterable of which jax warns that it takes it for a leaf."""
    return isinstance(leaf, (Iterator, MappingView))


def _array(name: str, leaf: Any, path: tuple[Any, ...]) -> Any:
    """A leaf of data as a jax array; None for an empty field of a pytree of a type of its own."""
    if (
        leaf is None
        and path
        and isinstance(path[-1], (jax.tree_util.GetAttrKey, jax.tree_util.FlattenedIndexKey))
    ):
        return None
    if isinstance(leaf, jax.core.Tracer):
        refuse_traced(name)
    if isinstance(leaf, (bool, int, float, complex, np.generic)):
        # that it has no leading axis is said with the lengths of the others
        leaf = np.asarray(leaf)
    elif hasattr(leaf, "__dlpack__") and not isinstance(leaf, (np.ndarray, jax.Array)):
        leaf = np.asarray(leaf)  # an array of another library
    if not isinstance(leaf, (np.ndarray, jax.Array)):
        raise TypeError(
            f"{name} is {_kind(leaf)}: data must be arrays of numbers, the leading axis the sample,"
            " or a pytree of such arrays"
        )
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost: give its data and its mask as two"
            " arrays"
        )
    kinds = (jnp.number, jnp.bool_, jax.dtypes.prng_key)
    if not any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds):
        raise TypeError(
            f"{name} has the dtype {leaf.dtype}: data must be arrays of numbers{_ragged(leaf)}"
        )
    if isinstance(leaf, np.ndarray):
        _check_width(name, leaf)
    return jnp.asarray(leaf)


def _check_width(name: str, leaf: np.ndarray) -> None:
    """Refuse whole numbers that jax would cut to 32 bits."""
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if leaf.dtype.kind not in "iu" or dtype == leaf.dtype or not leaf.size:
        return
    limits = np.iinfo(dtype)
    beyond = np.argwhere((leaf < limits.min) | (leaf > limits.max))
    if len(beyond):
        where = f" in row {beyond[0][0]}" if leaf.ndim else ""
        raise ValueError(
            f"{name} is {leaf[tuple(beyond[0])]}{where}, beyond {dtype}, and jax has 64 bits turned"
            " off: make the problem within `with jax.enable_x64(True):`"
        )


def _ragged(leaf: Any) -> str:
    """Which row of an array of objects differs from the first, where its rows are arrays or
    lists.
    """
    if (
        leaf.dtype.kind != "O"
        or not leaf.ndim
        or not all(isinstance(row, (list, tuple, np.ndarray)) for row in leaf)
    ):
        return ""
    rows = [np.shape(row) if isinstance(row, np.ndarray) else (len(row),) for row in leaf]
    other = next((k for k, shape in enumerate(rows) if shape != rows[0]), None)
    return (
        "" if other is None else f", and row {other} has the shape {rows[other]}, row 0 {rows[0]}"
    )


def _kind(value: Any) -> str:
    """What a value is, and how to make an array of it where that is known."""
    kind = type(value)
    if value is None:
        return "None"
    if isinstance(value, str):
        return f"the string {value[:30]!r}"
    if hasattr(kind, "to_numpy"):
        return f"a {kind.__name__} (its to_numpy() is an array)"
    if hasattr(kind, "__getitem__") and hasattr(kind, "__len__"):
        return f"a {kind.__name__} (numpy.stack makes one array of samples that are arrays)"
    return f"a {kind.__name__}"


def _lists_as_arrays(data: PyTree, name: str) -> PyTree:
    """Lists of numbers as arrays; a list of anything else is a pytree."""
    if type(data) is dict:
        return {key: _lists_as_arrays(value, f"{name}[{key!r}]") for key, value in data.items()}
    if type(data) is tuple:
        return tuple(_lists_as_arrays(value, f"{name}[{k}]") for k, value in enumerate(data))
    if type(data) is not list or not data:
        return data
    if _numbers(data):
        try:
            return np.array(data)
        except ValueError:
            shapes = [
                np.shape(row)
                for row in data
                if not isinstance(row, list) or not any(isinstance(item, list) for item in row)
            ]
            other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
            told = (
                ""
                if other is None
                else f": row {other} has the shape {shapes[other]}, row 0 {shapes[0]}"
            )
            raise ValueError(
                f"{name} is a ragged list{told}; the samples of an array have equal shapes"
            ) from None
    if all(isinstance(item, tuple) for item in data):
        raise TypeError(
            f"{name} is a list of tuples: give one array for each of their fields, such as"
            " tuple(numpy.stack(field) for field in zip(*samples))"
        )
    return [_lists_as_arrays(value, f"{name}[{k}]") for k, value in enumerate(data)]


def _numbers(value: Any) -> bool:
    """Whether it is a number, or a list of such, nested or not."""
    if isinstance(value, list):
        return bool(value) and all(_numbers(item) for item in value)
    if isinstance(value, (np.ndarray, jax.Array)):
        return (
            not value.ndim
            and not isinstance(value, jax.core.Tracer)
            and bool(jnp.issubdtype(value.dtype, jnp.number))
        )
    return isinstance(value, (bool, int, float, complex, np.number, np.bool_))


def where_not_finite(tree: PyTree, name: str, rows: bool = False) -> str | None:
    """The first entry of a pytree of arrays that is not finite: `data['x'] is nan in row 3`."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        values = np.asarray(wide(leaf))
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            where = f" in row {bad[0][0]}" if rows else ""
            return f"{name}{jax.tree_util.keystr(path)} is {values[tuple(bad[0])]}{where}"
    return None


def parameters(x0: PyTree) -> tuple[PyTree, PyTree]:
    """`x0` as floating-point arrays, and the rest of it, with holes for these; None where there is
    none.

    The rest are functions, and in a module of equinox all but floating-point arrays.
    """
    leaves, structure = _flatten("x0", x0, is_leaf=_streams)
    _refuse_flax(x0)
    kept = [
        callable(leaf) or (own and not _floating(leaf))
        for (_, leaf), own in zip(leaves, _in_modules(x0), strict=True)
    ]
    own = {
        jax.tree_util.keystr(path): leaf
        for (path, leaf), rest in zip(leaves, kept, strict=True)
        if not rest
    }
    for path, leaf in own.items():
        if not numeric(leaf):
            what = describe(leaf) if isinstance(leaf, np.ndarray) else _kind(leaf)
            raise TypeError(
                f"x0{path} is {what}: x0 must hold floating-point arrays, or be a pytree of them"
            )
    if not any(np.size(leaf) for leaf in own.values()):
        raise ValueError(
            f"x0 has no parameters: it must hold at least one non-empty array, not {describe(x0)}"
        )
    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in own.values()):
        raise TypeError(f"x0 must hold floating-point arrays, not {describe(x0)}; write 1.0 for 1")
    arrays = [
        None if rest else jnp.asarray(leaf) for (_, leaf), rest in zip(leaves, kept, strict=True)
    ]
    holes = [leaf if rest else HOLE for (_, leaf), rest in zip(leaves, kept, strict=True)]
    return jax.tree.unflatten(structure, arrays), (
        jax.tree.unflatten(structure, holes) if any(kept) else None
    )


def _in_modules(x0: PyTree) -> list[bool]:
    """Whether each leaf lies in a module of equinox, where a number is a setting and only an array
    is trained.
    """
    equinox = sys.modules.get("equinox")
    module = (equinox.Module,) if equinox is not None else ()
    nodes = jax.tree.leaves(x0, is_leaf=lambda node: isinstance(node, module) or _streams(node))
    return [
        isinstance(node, module)
        for node in nodes
        for _ in (jax.tree.leaves(node) if isinstance(node, module) else [node])
    ]


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, (np.ndarray, jax.Array)) and bool(
        jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def numeric(leaf: Any) -> bool:
    """Whether it is a number or an array of numbers."""
    return _plain(leaf) and any(
        jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), kind) for kind in (jnp.number, jnp.bool_)
    )


def _plain(leaf: Any) -> bool:
    """Whether it is a number or an array."""
    return isinstance(leaf, (bool, int, float, complex, np.generic, np.ndarray, jax.Array))


def _refuse_flax(x0: PyTree) -> None:
    """Modules of flax have ways of their own to keep parameters apart."""
    nnx, linen = (
        getattr(sys.modules.get(f"flax.{name}"), "Module", ()) for name in ("nnx", "linen")
    )
    for leaf in jax.tree.leaves(x0, is_leaf=lambda node: isinstance(node, nnx) or _streams(node)):
        if isinstance(leaf, nnx):
            raise TypeError(
                "x0 is a flax.nnx module: its parameters are `graph, x0, rest = nnx.split(module,"
                " nnx.Param, ...)`, and in the loss `nnx.merge(graph, x, rest)` is the module that"
                " has the parameters x"
            )
        if isinstance(leaf, linen):
            raise TypeError(
                "x0 is a flax.linen module, which holds no parameters: `x0 = module.init(key,"
                " input)` does, and in the loss `module.apply(x, input)` uses them"
            )


def check_structure(x: PyTree, like: PyTree, rest: PyTree = None) -> PyTree:
    """`x` as arrays of the dtypes of `like`, or a sentence saying that its structure or shapes are
    others.

    Args:
        x: a point.
        like: the start.
        rest: what the start had beside arrays, which `x` may have too; see :func:`parameters`.
    """
    x = bare(x, rest)
    if shapes(x) != shapes(like):
        raise ValueError(
            f"the parameters have structure {describe(x)}: they must be like the start,"
            f" {describe(like)}"
        )
    return jax.tree.map(
        lambda leaf, other: jnp.asarray(leaf, None if hasattr(leaf, "dtype") else other.dtype),
        x,
        like,
    )


def shapes(tree: PyTree) -> PyTree:
    """The shape of each leaf, or its type where it is neither a number nor an array."""
    return jax.tree.map(lambda leaf: np.shape(leaf) if _plain(leaf) else type(leaf), tree)


def describe(tree: PyTree) -> str:
    """The shapes of a pytree, for messages."""

    def told(leaf: Any) -> str:
        if numeric(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
            return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        return (
            f"an array of {leaf.dtype}"
            if isinstance(leaf, (np.ndarray, np.generic))
            else type(leaf).__name__
        )

    return " ".join(str(jax.tree.map(told, tree)).split())  # modules of equinox are told in lines


def refuse_traced(what: str) -> NoReturn:
    """Say that something would have to be known."""
    raise TypeError(
        f"{what} is traced by jax, inside jax.jit, jax.grad or jax.vmap: make a problem outside of"
        " them, of known numbers; its methods can be called inside"
    )
