"""What a step hands on: the state that the next one needs, and what a person may want to see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

PyTree = Any


class State(NamedTuple):
    """The state of an :class:`Optimizer`; a pytree of the arrays of `count` and `inner`.

    A named tuple, which every way of storing a state knows (`flax.serialization`, orbax, pickle).

    Args:
        count: steps taken.
        inner: the state of the optax optimizer.
        variant: the variant's name; no array, and so a part of the structure.
    """

    count: jax.Array  # type: ignore[assignment]  # the tuple's own `count` counts
    inner: PyTree
    variant: str


def _children(state: State) -> tuple[Any, str]:
    # the name is no leaf: it is part of the structure, so that a state of one variant cannot be
    # scanned or mapped together with that of another
    return [
        (jax.tree_util.GetAttrKey(name), getattr(state, name)) for name in ("count", "inner")
    ], state.variant


def _state(variant: str, children: Iterable[Any]) -> State:
    count, inner = children
    return State(count, inner, variant)


jax.tree_util.register_pytree_with_keys(State, _children, _state)


class Info(NamedTuple):
    """What a step tells, all from the unperturbed parameters.

    Args:
        loss: the mean loss of the mini-batch, over all devices.
        aux: the auxiliary values of the loss; None without.
    """

    loss: jax.Array
    aux: Any
