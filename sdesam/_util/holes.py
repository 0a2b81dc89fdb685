"""Pytrees of which some leaves are handed in later: a hole stands in the place of each.

Leaves come in jax's order: those of a list by position, those of a dictionary by its sorted keys,
whatever the order in which it was made. :func:`take` and :func:`put` rely on both using it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PyTree = Any


class _Hole:
    """The place of an array that is handed in later."""


HOLE = _Hole()


def take(tree: PyTree, wanted: Callable[[Any], bool]) -> tuple[PyTree, list[Any]]:
    """A pytree with holes in the places of the wanted leaves, and these.

    >>> take([1.0, "a", 2.0], lambda leaf: isinstance(leaf, float))[1]
    [1.0, 2.0]
    """
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [HOLE if wanted(leaf) else leaf for leaf in leaves]), [
        leaf for leaf in leaves if wanted(leaf)
    ]


def put(tree: PyTree, leaves: list[Any]) -> PyTree:
    """A pytree with its holes filled, in their order."""
    each = iter(leaves)
    return jax.tree.map(lambda leaf: next(each) if leaf is HOLE else leaf, tree)


def bare(tree: PyTree, rest: PyTree) -> PyTree:
    """A pytree without what it has beside arrays, where that is of the structure of `rest`."""
    if rest is None or not same_structure(tree, rest):
        return tree
    return jax.tree.map(lambda leaf, own: leaf if own is HOLE else None, tree, rest)


def same_structure(tree: PyTree, other: PyTree) -> bool:
    """Whether two pytrees differ in their leaves at most."""
    return bool(jax.tree.structure(tree) == jax.tree.structure(other))  # type: ignore[operator]


def is_array(value: Any) -> bool:
    """Whether it is an array that jax can compute with."""
    return isinstance(value, jax.Array) or (
        isinstance(value, np.ndarray) and not value.dtype.hasobject
    )


def is_node(value: Any) -> bool:
    """Whether it is a pytree, and no leaf."""
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
