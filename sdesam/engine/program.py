"""What is compiled: steps of many paths, observations between them, and the moments of these, spread over the devices of one process.

One program makes steps, observes, sums up (in float64) and goes on, for several observation times in one call, so that neither Python nor the
queue of a device is waited for on the way. Where to stop and where to look are numbers, not code: nothing compiles anew over a sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache, partial, update_wrapper
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sdesam.engine import machine
from sdesam.engine.components import elementwise
from sdesam.engine.normals import packed_normals, unpack

PyTree = Any
Normals = Literal["counter", "jax"]

_BLOCK, _UNROLL = 32, 4
"""Steps of the inner loop on an accelerator, and how many of them are compiled as one: a loop of known length runs without asking the host
after each step whether to go on."""
_PROGRAMS = 64
"""Programs that are kept, the last ones used. Each takes some four hundred memory maps on a CPU; with 65,530 of them XLA crashes."""
_SMALL_NOISE = 8
"""Normals of a step up to which a small state is kept as one number."""


class Stepper(Hashable, Protocol):
    """One step of one path. Hashable, so that compiled code is shared by all runs that differ in `params` alone."""

    def __call__(self, params: Any, x: PyTree, key: jax.Array, xi: Any) -> PyTree:
        """The state after one step.

        `xi` are standard normals of the plan's `noise_shape`, or None; `key`, a key of this path and step alone, is for anything else that
        is random. A key that is not used costs nothing.
        """
        ...


class Observer(Hashable, Protocol):
    """Named functions of the state, as one; hashable."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the order in which to report them."""
        ...

    def __call__(self, data: Any, x: PyTree) -> dict[str, jax.Array]:
        """Their values."""
        ...


class Ensemble(NamedTuple):
    """What a chunk carries through time; arrays on the devices, leading axis paths."""

    x: PyTree
    first: jax.Array
    """The step after which a path was first seen to be not finite; -1 for never."""


@dataclass(frozen=True)
class Draw:
    """The normals of one step of many paths, as they are carried and as a stepper takes them."""

    shape: tuple[int, ...] | None
    dtype: str
    normals: Normals
    antithetic: bool
    carried: bool
    """Whether the normals of a step are made in the step before and carried. A CPU makes them once then, and not anew for all that uses them; an
    accelerator would only write and read them, where it could make them on the spot."""

    def carry(self, key: jax.Array, step: jax.Array, ids: jax.Array) -> Any:
        """What is carried into a step."""
        return self.make(key, step, ids) if self.carried else ()

    def make(self, key: jax.Array, step: jax.Array, ids: jax.Array) -> Any:
        """To be carried: one array, which is all that XLA computes once."""
        if self.shape is None:
            return ()
        of = ids // 2 if self.antithetic else ids
        precision = jnp.promote_types(self.dtype, jnp.float32)
        if self.normals == "counter":
            made = packed_normals(key, step, of, math.prod(self.shape), precision)
        else:
            shape = self.shape
            made = jax.vmap(lambda path: jax.random.normal(jax.random.split(_key(key, path, step), 3)[0], shape, self.dtype))(of)
        if self.antithetic:
            sign = (1 - 2 * (ids % 2).astype(jnp.int32)).astype(precision)
            made = made * jnp.expand_dims(sign, tuple(range(1, made.ndim)))
        return made

    def take(self, made: Any) -> Any:
        """For a stepper: one array of `shape` for each path."""
        if self.shape is None:
            return None
        return unpack(made, self.shape).astype(self.dtype) if self.normals == "counter" else made.astype(self.dtype)


def _key(key: jax.Array, path: jax.Array, step: jax.Array) -> jax.Array:
    """The key of one path and step."""
    return jax.random.fold_in(jax.random.fold_in(key, path), step)


@lru_cache(maxsize=1)
def _compiler_options() -> dict[str, Any] | None:
    """The widest vectors: the cipher runs 1.8 times as fast on a CPU with AVX-512, and others take what they have."""
    options = {"xla_cpu_prefer_vector_width": 512}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(np.float32(0))
    except Exception:  # an XLA that no longer has the option
        return None
    return options


@lru_cache(maxsize=_PROGRAMS)
def advance(stepper: Stepper, draw: Draw, look: Look, mesh: Mesh) -> Any:
    """:func:`_follow`, compiled: `(params, data, key, ids, good, ensemble, route)` -> what it gives."""
    follow = update_wrapper(partial(_follow, stepper, draw, look, mesh), _follow)  # with its name, for profiles and logs
    return jax.jit(follow, donate_argnums=5, compiler_options=_compiler_options())


@partial(jax.jit, static_argnums=(0, 1))
def start(mesh: Mesh, paths: int, x0: PyTree) -> Ensemble:
    """All paths at `x0`."""
    made = Ensemble(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (paths, *leaf.shape)), x0), jnp.full(paths, -1, jnp.int32))
    split: Ensemble = jax.lax.with_sharding_constraint(made, NamedSharding(mesh, P("paths")))
    return split


def _follow(
    stepper: Stepper,
    draw: Draw,
    look: Look,
    mesh: Mesh,
    params: Any,
    data: Any,
    key: jax.Array,
    ids: jax.Array,
    good: jax.Array,
    ensemble: Ensemble,
    route: jax.Array,
) -> tuple[Ensemble, tuple[jax.Array, dict[str, jax.Array]]]:
    """The ensemble after all legs of `route`, the moments of each observation on each device, and what the last one saw if that is kept."""

    def many(params: Any, data: Any, key: jax.Array, ids: jax.Array, good: jax.Array, ensemble: Ensemble, route: jax.Array) -> Any:
        (start, count), legs = route[0], route[1:]

        def seen(slot: jax.Array, at: jax.Array, ensemble: Ensemble, found: Any) -> Any:
            row, values, first = look(data, ensemble, good, at)
            with jax.enable_x64(True):
                rows = jax.lax.dynamic_update_index_in_dim(found[0], row, slot, 0)
            return slot + 1, ensemble._replace(first=first), (rows, values if look.keep else {})

        def leg(k: jax.Array, now: Any) -> Any:
            at, slot, ensemble, found = now
            stop, looking = legs[k]
            x = _steps(stepper, draw, mesh, params, key, ids, ensemble.x, at, stop)
            ensemble = Ensemble(x, _mark(ensemble.first, x, stop))
            slot, ensemble, found = jax.lax.cond(looking == 1, seen, lambda slot, at, *rest: (slot, *rest), slot, stop, ensemble, found)
            return stop, slot, ensemble, found

        row, values, _ = jax.eval_shape(look, data, ensemble, good, start)
        nothing = {name: jnp.zeros(value.shape, value.dtype) for name, value in values.items()} if look.keep else {}
        with jax.enable_x64(True):
            rows = jnp.zeros((len(legs), *row.shape), row.dtype)
        _, _, ensemble, (rows, values) = jax.lax.fori_loop(0, count, leg, (start, jnp.int32(0), ensemble, (rows, nothing)))
        return ensemble, (rows[None], values)

    specs = P(), P(), P(), P("paths"), P("paths"), P("paths"), P()
    mapped = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=P("paths"), check_vma=False)
    found: tuple[Ensemble, tuple[jax.Array, dict[str, jax.Array]]] = mapped(params, data, key, ids, good, ensemble, route)
    return found


def _steps(
    stepper: Stepper, draw: Draw, mesh: Mesh, params: Any, key: jax.Array, ids: jax.Array, x: PyTree, start: jax.Array, stop: jax.Array
) -> PyTree:
    """The states of one device's paths after steps `start .. stop - 1`."""
    of = ids // 2 if draw.antithetic else ids

    def step_of_all(step: jax.Array, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        x, noise = carry
        keys = jax.vmap(lambda path: _key(key, path, step))(of)
        xi = draw.take(noise if draw.carried else draw.make(key, step, ids))
        x = jax.vmap(partial(stepper, params))(x, keys, xi)
        return x, draw.carry(key, step + 1, ids)

    def loop(body: Callable[[Any, Any], Any], carry: Any) -> Any:
        at = start
        if not machine.on_cpu(mesh):
            blocks = (stop - start) // _BLOCK

            def block(k: jax.Array, carry: Any) -> Any:
                begin = start + k * _BLOCK
                return jax.lax.fori_loop(0, _BLOCK, lambda j, now: body(begin + j, now), carry, unroll=_UNROLL)

            carry, at = jax.lax.fori_loop(0, blocks, block, carry), start + blocks * _BLOCK
        return jax.lax.fori_loop(at, stop, body, carry)

    small = _small(stepper, draw, params, x)
    if small is None:
        return loop(step_of_all, (x, draw.carry(key, start, ids)))[0]
    return small.unpack(loop(lambda step, packed: small.step(params, packed, draw.make(key, step, ids)), small.pack(x)))


@dataclass(frozen=True)
class _Small:
    """A state of one or two components as one number per path, real or complex: what comes out of a step is one array, so XLA makes one loop of the
    whole step, the cipher included, and nothing but the state is written or read.
    """

    elementwise: Callable[[Any, list[jax.Array], int], list[jax.Array]]
    like: PyTree
    """The state of one path."""
    noise: int
    dtype: str

    def pack(self, x: PyTree) -> jax.Array:
        """The state of all paths."""
        parts = [leaf.reshape(len(leaf), -1)[:, k] for leaf in jax.tree.leaves(x) for k in range(math.prod(leaf.shape[1:]))]
        return parts[0] if len(parts) == 1 else jax.lax.complex(*parts)

    def unpack(self, packed: jax.Array) -> PyTree:
        """The reverse."""
        leaves, structure = jax.tree.flatten(self.like)
        parts = iter(self.parts(packed))
        return jax.tree.unflatten(structure, [jnp.stack([next(parts) for _ in range(leaf.size)], axis=1).reshape(-1, *leaf.shape) for leaf in leaves])

    @staticmethod
    def parts(packed: jax.Array) -> list[jax.Array]:
        """The components."""
        return [packed.real, packed.imag] if jnp.iscomplexobj(packed) else [packed]

    def step(self, params: Any, packed: jax.Array, normals: jax.Array) -> jax.Array:
        """One step of all paths."""
        xi = [part.astype(self.dtype) for pair in range(normals.shape[1]) for part in (normals[:, pair].real, normals[:, pair].imag)]
        parts = self.elementwise(params, [*self.parts(packed), *xi[: self.noise]], len(packed))
        return parts[0] if len(parts) == 1 else jax.lax.complex(*parts)


def _small(stepper: Stepper, draw: Draw, params: Any, x: PyTree) -> _Small | None:
    """For a state that is small enough, and steps that are elementwise; counters only."""
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(like)}
    if draw.shape is None or draw.normals != "counter" or sum(leaf.size for leaf in jax.tree.leaves(like)) > 2 or len(dtypes) > 1:
        return None
    if not dtypes <= {jnp.dtype("float32"), jnp.dtype("float64")} or math.prod(draw.shape) > _SMALL_NOISE:
        return None
    key, xi = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct(draw.shape, draw.dtype)
    made = elementwise(lambda params, of: stepper(params, *of), params, (like, key, xi))
    return None if made is None else _Small(made, like, math.prod(draw.shape), draw.dtype)


@dataclass(frozen=True)
class Look:
    """Observables of one device's paths, and their moments.

    Args:
        observer: what to observe.
        together: paths observed at a time.
        antithetic: whether moments are of pairs.
        keep: whether the values of each path are kept.
    """

    observer: Observer
    together: int
    antithetic: bool
    keep: bool

    def __call__(self, data: Any, ensemble: Ensemble, good: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Mean and sum of squared deviations over the good paths, of all values in one row; the values; `first` with the paths whose values are not
        finite.
        """
        values: dict[str, jax.Array] = jax.lax.map(partial(self.observer, data), ensemble.x, batch_size=self.together) if self.observer.names else {}
        units = good.reshape(-1, 2).all(axis=1) if self.antithetic else good
        first = _mark(ensemble.first, values, step) if values else ensemble.first
        with jax.enable_x64(True):
            tables = [value.reshape(len(good), math.prod(value.shape[1:])).T.astype(jnp.float64) for value in values.values()]
            table = jnp.concatenate([jnp.zeros((0, len(good))), *tables])  # one table, so one loop for all observables
            if self.antithetic:
                table = table.reshape(len(table), len(units), 2).mean(axis=2)
            mean = _sum(jnp.where(units, table, 0)) / jnp.sum(units)
            row = jnp.concatenate([mean, _sum(jnp.where(units, (table - mean[:, None]) ** 2, 0))])
        return row, values, first


def _sum(table: jax.Array) -> jax.Array:
    """The sum over the last of two axes, by sixteen running sums: one alone waits for each of its additions."""
    rows, length = table.shape
    padded = jnp.pad(table, [(0, 0), (0, -length % 16)])
    total: jax.Array = padded.reshape(rows, (length + 15) // 16, 16).sum(axis=1).sum(axis=1)
    return total


def _mark(first: jax.Array, values: PyTree, step: jax.Array) -> jax.Array:
    """`first`, with `step` where one of `values` (leading axis paths) is not finite and none was before."""
    finite = [jnp.isfinite(leaf).reshape(len(first), -1).all(axis=1) for leaf in jax.tree.leaves(values)]
    return jnp.where((first < 0) & ~jnp.stack(finite).all(axis=0), step, first)
