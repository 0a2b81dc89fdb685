"""The random numbers of a step: normals of all paths, by counter or by `jax.random`, and a key of
each path for whatever else is random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sdesam.ensemble.normals import normal_pair, packed_normals, pairs_of, step_keys, unpack

Normals = Literal["counter", "jax"]


class Keyed(NamedTuple):
    """A step, or several, with the keys of their normals."""

    step: jax.Array
    key: Any
    """Nothing where normals are not made by counter."""


@dataclass(frozen=True)
class Draw:
    """The normals of one step of many paths, as they are carried and as a stepper takes them."""

    shape: tuple[int, ...] | None
    dtype: str
    normals: Normals
    antithetic: bool
    carried: bool
    """Whether the normals of a step are made in the step before and carried. A CPU makes them once
    then, and not anew for all that uses them; an accelerator would only write and read them, where
    it could make them on the spot."""

    def keyed(self, key: jax.Array, steps: Any) -> Keyed:
        """Steps with what is needed to make their normals."""
        return Keyed(
            jnp.asarray(steps),
            step_keys(key, steps) if self.normals == "counter" and self.shape is not None else (),
        )

    # The loop over steps, where normals are carried (CPU, a state that is not small):
    #
    #     start      x_0, xi_0
    #     step 0     x_1 = step(x_0, xi_0);  xi_1 = normals of step 1
    #     step 1     x_2 = step(x_1, xi_1);  xi_2 = normals of step 2
    #
    # The last normals are not used by this call. They are not lost: the next call starts with them.

    def carry(self, key: jax.Array, step: Any, ids: jax.Array) -> Any:
        """What is carried into a step."""
        return self.make(key, self.keyed(key, step), ids) if self.carried else ()

    def make(self, key: jax.Array, of: Keyed, ids: jax.Array) -> Any:
        """The normals of one step as one array, which is all that XLA computes once."""
        if self.shape is None:
            return ()
        if self.normals == "counter":
            made = packed_normals(of.key, self.drawn(ids), math.prod(self.shape), self._precision)
        else:
            shape = self.shape
            made = jax.vmap(
                lambda path: jax.random.normal(
                    jax.random.split(path_key(key, path, of.step), 3)[0], shape, self.dtype
                )
            )(self.drawn(ids))
        return self._mirrored(made, ids)

    def components(self, of: Keyed, ids: jax.Array) -> list[jax.Array]:
        """Normals by counter for a small state: each component for itself, an array over paths."""
        count = math.prod(self.shape)  # type: ignore[arg-type]
        pairs = [
            self._mirrored(normal_pair(of.key, jnp.uint32(pair), self.drawn(ids), self.dtype), ids)
            for pair in range(pairs_of(count))
        ]
        return [part for pair in pairs for part in (pair.real, pair.imag)][:count]

    @property
    def _precision(self) -> Any:
        return jnp.promote_types(self.dtype, jnp.float32)

    def drawn(self, ids: jax.Array) -> jax.Array:
        """The paths whose numbers are drawn: the second of a mirrored pair takes the first's."""
        return ids // 2 if self.antithetic else ids

    def _mirrored(self, made: jax.Array, ids: jax.Array) -> jax.Array:
        if not self.antithetic:
            return made
        sign = (1 - 2 * (ids % 2).astype(jnp.int32)).astype(self._precision)
        return made * jnp.expand_dims(sign, tuple(range(1, made.ndim)))

    def take(self, made: Any) -> Any:
        """The normals as a stepper takes them: one array of `shape` for each path."""
        if self.shape is None:
            return None
        return (
            unpack(made, self.shape).astype(self.dtype)
            if self.normals == "counter"
            else made.astype(self.dtype)
        )


def path_key(key: jax.Array, path: jax.Array, step: jax.Array) -> jax.Array:
    """The key of one path and step."""
    return jax.random.fold_in(jax.random.fold_in(key, path), step)
