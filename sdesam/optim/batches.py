"""The batches of a step by the scopes of a rule: the mini-batch, and those drawn apart.

All are cut into micro-batches alike: number `j` of a batch drawn apart belongs to number `j` of the
mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sdesam._util.precision import like, wide
from sdesam.optim.checks import samples
from sdesam.optim.kernel import Losses
from sdesam.variants import Variant

PyTree = Any
Groups = Literal["vmap", "accumulate"]


@dataclass(frozen=True)
class Batches:
    """The batches of one step in micro-batches, with the losses that they give.

    Args:
        loss: `loss(y, batch=..., key=...)`, with what the kernel wants of losses.
        parts: the batches by scope, the mini-batch first: with a leading axis, the micro-batch, or
            as they came where `count` is 1.
        count: how many micro-batches this device has.
        first: the number of its first, counted over all devices.
        key: of the loss; None without.
        groups: how micro-batches are run.
    """

    loss: Callable[..., tuple[jax.Array, Any]]
    parts: dict[str, PyTree]
    count: int
    first: Any
    key: Any
    groups: Groups

    @property
    def numbers(self) -> jax.Array:
        """The numbers of this device's micro-batches."""
        return jnp.asarray(self.first + jnp.arange(self.count))

    def losses(self, parts: dict[str, PyTree], number: Any) -> dict[str, Losses]:
        """The losses of each scope for one micro-batch, given its parts and its number."""
        # A micro-batch has one key in all its passes, so that the same units are dropped in ascent
        # and descent. Samples drawn apart share no noise with it, and so no key.
        key = numbered(self.key, number)
        keys = {s: numbered(key, number_apart(s)) if number_apart(s) else key for s in parts}
        return {scope: partial(self._of, part, keys[scope]) for scope, part in parts.items()}

    def mini_batch(self, y: PyTree) -> tuple[jax.Array, None]:
        """The losses at `y` of all micro-batches of this device, each with its own key; for a rule
        that speaks of micro-batches.
        """
        # A gradient by `y` is a sum over micro-batches, and 5000 ones in bfloat16 add up to 256.
        # Each micro-batch casts float32 parameters itself, so that its gradient by these is float32
        # before it is added.
        wider, own = wide(y), self.parts["micro"]

        def micro_batch(y_wide: PyTree, part: PyTree, number: Any) -> jax.Array:
            return self._of(part, numbered(self.key, number), like(y_wide, y))[0]

        if self.count == 1:
            return micro_batch(wider, own, self.first), None
        if self.groups == "vmap":
            narrow = jax.tree.map(lambda a, b: 0 if a.dtype != b.dtype else None, wider, y)
            copies = jax.tree.map(
                lambda a, b: (
                    a if a.dtype == b.dtype else jnp.broadcast_to(a, (self.count, *a.shape))
                ),
                wider,
                y,
            )
            return jax.vmap(micro_batch, (narrow, 0, 0))(copies, own, self.numbers).ravel(), None
        # a backward pass keeps what the forward pass has computed, for all micro-batches at once;
        # what is computed anew in it has the memory of one
        in_turn = jax.checkpoint(partial(micro_batch, wider))
        return jax.lax.map(lambda one: in_turn(*one), (own, self.numbers)).ravel(), None

    def _of(self, part: PyTree, key: Any, y: PyTree) -> tuple[jax.Array, Any]:
        return self.loss(y, batch=part, key=key)


def numbered(key: Any, number: Any) -> Any:
    """The key with a number folded in; None where there is no key."""
    return None if key is None else jax.random.fold_in(key, number)


def by_scope(variant: Variant, batch: PyTree, fresh: PyTree) -> dict[str, PyTree]:
    """The batches of a step by scope, the mini-batch first; or one sentence, if one drawn apart is
    missing, or is given to a rule without.
    """
    own = "micro" if variant.micro else "batch"
    scopes = sorted((s for s in variant.direction.scopes if number_apart(s)), key=number_apart)
    if not scopes:
        if fresh is not None:
            raise ValueError(
                f"fresh: {variant.name} has no batch that is drawn apart; leave it out"
            )
        return {own: batch}
    many = len(scopes) > 1
    if fresh is None or (many and not (isinstance(fresh, tuple) and len(fresh) == len(scopes))):
        what = f"a tuple of {len(scopes)} mini-batches" if many else "another mini-batch"
        raise ValueError(
            f"{variant.name} takes gradients of samples drawn apart: give fresh=..., {what} as"
            " large as batch"
        )
    return {own: batch, **dict(zip(scopes, fresh if many else (fresh,), strict=True))}


def number_apart(scope: str) -> int:
    """The number of a batch that is drawn apart; 0 for all other scopes.

    >>> [number_apart(scope) for scope in ("micro", "fresh", "fresh 2")]
    [0, 1, 2]
    """
    return int(scope.removeprefix("fresh") or 1) if scope.startswith("fresh") else 0


def in_micro_batches(
    parts: dict[str, PyTree], micro: int | None, axis_name: str | None
) -> tuple[dict[str, PyTree], int]:
    """The batches with their leading axes split, and the number of micro-batches."""
    if micro is None:
        return parts, 1
    sizes = {scope: samples(part) for scope, part in parts.items()}
    b, *apart = sizes.values()
    if b % micro:
        where = (
            "in the batch"
            if axis_name is None
            else f"that a device holds of the batch (axis {axis_name!r})"
        )
        divisors = ", ".join(str(k) for k in range(1, b + 1) if b % k == 0)
        raise ValueError(
            f"micro={micro} does not divide the {b} samples {where}: choose one of {divisors}"
        )
    for size in apart:
        if size != b:
            raise ValueError(
                f"fresh holds {size} samples and the batch {b}: each micro-batch has as many"
                f" samples apart as it has itself; give {b}"
            )
    if b == micro:
        # run as they came: reshaped to one group they would ask for arrays with a common leading
        # axis
        return parts, 1
    k = b // micro
    return jax.tree.map(lambda leaf: leaf.reshape(k, micro, *leaf.shape[1:]), parts), k
