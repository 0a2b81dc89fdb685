"""What is compiled: steps of many paths, observations of them, and the moments of these, spread
over the devices of one process.

`advance` makes steps and `observe` looks, so that an SDE, its knock-outs and the optimizer share
the second, and runs that observe other things the first: compiling derived steps takes seconds.
Where a state is small compiling is quick, and waiting for Python takes longer than looking: there
`advance` looks on its way, at several observation times in one call. Where to stop and where to
look are numbers, not code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from sdesam._util.functions import PROGRAMS
from sdesam._util.keys import seed_key
from sdesam._util.precision import of_products, precisely
from sdesam.autodiff.elementwise import elementwise
from sdesam.ensemble import hardware
from sdesam.ensemble.draws import Draw, Keyed, path_key

PyTree = Any
Structure = Any
"""The structure of a pytree, as `jax.tree.structure` gives it: what a program is compiled for."""

_BLOCK, _UNROLL = 32, 4
"""Steps of the inner loop on an accelerator, and how many of a small state are compiled as one: a
loop of known length runs without asking the host after each step whether to go on, and XLA makes
one kernel of four small steps, normals included."""
SEGMENTS = 16
"""Segments of one call of `advance` at most: ten looks in one call cost 5 % of its time, where
states are small, and 20 % with one in each.
"""
_SMALL_NOISE = 8
"""Normals of a step up to which a small state is kept as one number."""


class Stepper(Protocol):
    """One step of one path. A pytree, whose leaves are its numbers and data: compiled code is
    shared by all steppers of one structure.
    """

    def __call__(self, x: PyTree, key: jax.Array, xi: Any) -> PyTree:
        """The state after one step.

        `xi` are standard normals of the run's `noise_shape`, or None; `key`, a key of this path
        and step alone, is for anything else that is random. A key that is not used costs nothing.
        """
        ...


class Observer(Protocol):
    """Named functions of the state, as one; a pytree, as a :class:`Stepper`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the order in which to report them."""
        ...

    def __call__(self, x: PyTree) -> dict[str, jax.Array]:
        """Their values."""
        ...


class Ensemble(NamedTuple):
    """What a chunk carries through time; arrays on the devices, leading axis paths."""

    x: PyTree
    noise: Any
    """The normals of the next step, where they are carried."""
    first: jax.Array
    """The step after which the state of a path was first seen to be not finite; -1 for never."""


@lru_cache(maxsize=1)
def _compiler_options() -> dict[str, Any] | None:
    """The widest vectors: the cipher runs 1.8 times as fast on a CPU with AVX-512, and others take
    what they have.
    """
    options = {"xla_cpu_prefer_vector_width": 512}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(np.float32(0))
    except Exception:  # an XLA that no longer has the option
        return None
    return options


@lru_cache(maxsize=PROGRAMS)
def start(draw: Draw, mesh: Mesh) -> Any:
    """`(key, ids, x0)` -> all paths at `x0`, and the normals of step 0; compiled."""

    def many(key: jax.Array, ids: jax.Array, x0: PyTree) -> Ensemble:
        x = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(ids), *leaf.shape)), x0)
        return Ensemble(x, draw.carry(key, jnp.int32(0), ids), jnp.full(len(ids), -1, jnp.int32))

    return _on_devices(many, mesh, (P(), P("paths"), P()))


# A worked example of a route. Steps 0 to 100 are to be made with looks at the steps 40 and 80, and
# after step 60 it is to be noted which states are not finite:
#
#     route = [[0, 4], [40, 1], [60, 0], [80, 1], [100, 0], [0, 0], ...]
#
# The first row says: from step 0, four segments. Then come the segments, the step to stop at and
# whether to look there; the rest of the rows is not read. The program gives the ensemble at step
# 100 and a table of 16 rows, of which the first two are the moments at the steps 40 and 80.
#
# The route is an array and not a part of the code, so that one program serves every horizon and
# every choice of observation times. The price is that loops have lengths which XLA does not know.
# On an accelerator the host would then be asked after each step whether to go on; `_steps` says
# how this is avoided.


@lru_cache(maxsize=PROGRAMS)
def advance(stepper: Structure, draw: Draw, look: Structure | None, mesh: Mesh) -> Any:
    """`(stepper, key, ids, ensemble, route, (look, good))` -> the ensemble at the end of the route,
    and on each device a row of moments for each look; compiled for steppers and looks of these
    structures, of which the leaves are handed in.

    `route` has the shape `(1 + SEGMENTS, 2)`: the step to start at and the number of segments; for
    each segment the step to stop at and whether to look there. Without `look` nothing is looked
    at, and `()` stands for the look and the good paths.
    """
    looks = look is not None

    def follow(
        numbers: list[Any],
        key: jax.Array,
        ids: jax.Array,
        ensemble: Ensemble,
        route: jax.Array,
        of: Any,
    ) -> Any:
        (begin, count), segments = route[0], route[1:]
        of_stepper: Stepper = jax.tree.unflatten(stepper, numbers)

        def row_of(x: PyTree, of: Any) -> jax.Array:
            # put together here: jax.jit never forgets a structure that it is handed
            row: jax.Array = jax.tree.unflatten(look, of[0])(x, of[1])[0]
            return row

        def seen(slot: jax.Array, ensemble: Ensemble, rows: jax.Array) -> Any:
            row = row_of(ensemble.x, of)
            with jax.enable_x64(True):
                rows = jax.lax.dynamic_update_index_in_dim(rows, row, slot, 0)
            return slot + 1, rows

        def segment(k: jax.Array, now: Any) -> Any:
            at, slot, ensemble, rows = now
            stop, looking = segments[k]
            x, noise = _steps(
                of_stepper, draw, mesh, key, ids, (ensemble.x, ensemble.noise), (at, stop)
            )
            ensemble = Ensemble(x, noise, _mark(ensemble.first, x, stop))
            if looks:
                slot, rows = jax.lax.cond(
                    looking == 1, seen, lambda slot, _, rows: (slot, rows), slot, ensemble, rows
                )
            return stop, slot, ensemble, rows

        row = jax.eval_shape(row_of, ensemble.x, of) if looks else jnp.zeros(0)
        # rows of moments are in float64 whatever the precision of the states
        with jax.enable_x64(True):
            rows = jnp.zeros((len(segments), *row.shape), row.dtype)
        _, _, ensemble, rows = jax.lax.fori_loop(
            0, count, segment, (begin, jnp.int32(0), ensemble, rows)
        )
        return ensemble, rows[None]

    specs = P(), P(), P("paths"), P("paths"), P(), (P(), P("paths")) if looks else ()
    return _on_devices(
        precisely(follow), mesh, specs, donate_argnums=3, compiler_options=_compiler_options()
    )


@lru_cache(maxsize=PROGRAMS)
def observe(look: Structure, mesh: Mesh) -> Any:
    """`(look, x, good)` -> on each device a row of moments, and the values; compiled for looks of
    this structure, of which the leaves are handed in.
    """

    def look_at(data: list[Any], x: PyTree, good: jax.Array) -> Any:
        row, values = jax.tree.unflatten(look, data)(x, good)
        return row[None, None], values

    specs = P(), P("paths"), P("paths")
    return _on_devices(precisely(look_at), mesh, specs)


def _on_devices(fn: Callable[..., Any], mesh: Mesh, specs: Any, **options: Any) -> Any:
    """`fn` of one device's share, compiled for all devices of a mesh; results have a leading axis
    that is spread over them.
    """
    if mesh.size > 1:
        fn = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P("paths"), check_vma=False)
    return jax.jit(fn, **options)


def shardings(mesh: Mesh) -> tuple[Sharding, Sharding]:
    """Where an array lies whose leading axis is paths, and where one lies that every device needs
    whole.

    One device needs no mesh: its arrays have the plainest type that jax has.
    """
    if mesh.size == 1:
        here = SingleDeviceSharding(mesh.devices.flat[0])
        return here, here
    return NamedSharding(mesh, P("paths")), NamedSharding(mesh, P())


def _steps(
    stepper: Stepper,
    draw: Draw,
    mesh: Mesh,
    key: jax.Array,
    ids: jax.Array,
    carry: tuple[PyTree, Any],
    span: tuple[Any, Any],
) -> tuple[PyTree, Any]:
    """The states of one device's paths after the steps of a span, its end excluded, and what is
    carried beside them.
    """
    (x, noise), (begin, stop) = carry, span
    one = small(
        stepper,
        draw,
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x),
    )

    def step_of_all(of: Keyed, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        x, noise = carry
        keys = jax.vmap(lambda path: path_key(key, path, of.step))(draw.drawn(ids))
        xi = draw.take(noise if draw.carried else draw.make(key, of, ids))
        x = jax.vmap(stepper)(x, keys, xi)
        return x, draw.carry(key, of.step + 1, ids)

    # On an accelerator 103 steps of a small state are 3 blocks of 32, then 1 of 4, then 3 single
    # steps. Inside a block the number of steps is known, so that the device need not ask the host.
    # On a CPU there is nobody to ask, and one loop of any length is fastest.
    def loop(body: Callable[[Keyed, Any], Any], carry: Any) -> Any:
        if hardware.on_cpu(mesh):
            return jax.lax.fori_loop(
                begin, stop, lambda step, now: body(draw.keyed(key, step), now), carry
            )
        at = begin
        for size in (_BLOCK, 1) if one is None else (_BLOCK, _UNROLL, 1):

            def several(k: jax.Array, now: Any, first: Any = at, size: int = size) -> Any:
                # the keys of all of them at once: the cipher of one number would be a kernel of its
                # own in each step
                steps = draw.keyed(key, first + k * size + jnp.arange(size))
                unroll = 1 if one is None else min(size, _UNROLL)
                return jax.lax.fori_loop(
                    0,
                    size,
                    lambda j, now: body(jax.tree.map(lambda leaf: leaf[j], steps), now),
                    now,
                    unroll=unroll,
                )

            count = (stop - at) // size
            carry, at = jax.lax.fori_loop(0, count, several, carry), at + count * size
        return carry

    if one is None:
        return loop(step_of_all, carry)  # type: ignore[no-any-return]
    return (
        one.unpack(
            loop(
                lambda of, packed: one.step(stepper, packed, draw.components(of, ids)), one.pack(x)
            )
        ),
        noise,
    )


@dataclass(frozen=True)
class _Small:
    """A state of one or two components as one number per path, real or complex: what comes out of a
    step is one array, so XLA makes one loop of the whole step, the cipher included, and nothing but
    the state is written or read.
    """

    elementwise: Callable[[Any, list[jax.Array], int], list[jax.Array]]
    like: PyTree
    """The state of one path."""

    def pack(self, x: PyTree) -> jax.Array:
        """The state of all paths."""
        parts = [
            leaf.reshape(len(leaf), -1)[:, k]
            for leaf in jax.tree.leaves(x)
            for k in range(math.prod(leaf.shape[1:]))
        ]
        return parts[0] if len(parts) == 1 else jax.lax.complex(*parts)

    def unpack(self, packed: jax.Array) -> PyTree:
        """The reverse."""
        leaves, structure = jax.tree.flatten(self.like)
        parts = iter(self.parts(packed))
        return jax.tree.unflatten(
            structure,
            [
                jnp.stack([next(parts) for _ in range(leaf.size)], axis=1).reshape(-1, *leaf.shape)
                for leaf in leaves
            ],
        )

    @staticmethod
    def parts(packed: jax.Array) -> list[jax.Array]:
        """The components."""
        return [packed.real, packed.imag] if jnp.iscomplexobj(packed) else [packed]

    def step(self, stepper: Stepper, packed: jax.Array, normals: list[jax.Array]) -> jax.Array:
        """One step of all paths."""
        numbers = jax.tree.leaves(stepper)
        parts = self.elementwise(numbers, [*self.parts(packed), *normals], len(packed))
        return parts[0] if len(parts) == 1 else jax.lax.complex(*parts)


def small(stepper: Stepper, draw: Draw, like: PyTree) -> _Small | None:
    """The step for a state that is small enough, and steps that are elementwise; counters only.
    Looked at once for a structure of the stepper and its shapes and those of `like`.
    """
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    leaves, structure = jax.tree.flatten((stepper, like))
    return _small(
        replace(draw, carried=False),
        structure,
        shapes_of(leaves),
        hardware.double_precision(),
        of_products(),
    )


def shapes_of(leaves: list[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What a function is traced for, hashable: shapes and dtypes, and which dtypes give way."""
    return tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))
        for leaf in leaves
    )


@lru_cache(maxsize=PROGRAMS)
def _small(
    draw: Draw, structure: Any, shapes: tuple[Any, ...], double: bool, products: str
) -> _Small | None:
    """`double` and `products` are settings of jax that what is traced here depends on."""
    stepper, like = jax.tree.unflatten(structure, shapes)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(like)}
    if (
        draw.shape is None
        # what jax.random draws from a key is no arithmetic on components
        or draw.normals != "counter"
        or sum(leaf.size for leaf in jax.tree.leaves(like)) > 2
        or len(dtypes) > 1
    ):
        return None
    if (
        not dtypes <= {jnp.dtype("float32"), jnp.dtype("float64")}
        or math.prod(draw.shape) > _SMALL_NOISE
    ):
        return None
    key, xi = jax.eval_shape(lambda: seed_key(0)), jax.ShapeDtypeStruct(draw.shape, draw.dtype)
    numbers, of_stepper = jax.tree.flatten(stepper)

    def step(numbers: list[Any], of: Any) -> PyTree:
        return jax.tree.unflatten(of_stepper, numbers)(*of)

    made = elementwise(precisely(step), numbers, (like, key, xi))
    return None if made is None else _Small(made, like)


# A worked example of a row. Four paths, an observable of two components, path 3 diverged:
#
#     values   (1, 10)  (3, inf)  (2, 20)  (9, 9)        good   yes  yes  yes  no
#
#     part       first component            second component
#     mean       (1 + 3 + 2) / 3 = 2        (10 + 20) / 2 = 15
#     squares    1 + 1 + 0 = 2              25 + 25 = 50
#     count      3                          2
#     lost       0                          1
#
# The row is [2, 15, 2, 50, 3, 2, 0, 1]. Path 3 is in none of its numbers. The value that is not
# finite is left out of its own component alone, and counted as lost. The chunk is not summed in one
# go over the paths of all devices: each device makes a row of its own, and the host merges them.


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["observer"],
    meta_fields=["together", "antithetic"],
)
@dataclass(frozen=True, eq=False)
class Look:
    """Observables of one device's paths, and their moments.

    Args:
        observer: what to observe.
        together: paths observed at a time.
        antithetic: whether moments are of pairs.
    """

    observer: Observer
    together: int
    antithetic: bool

    def __call__(self, x: PyTree, good: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Moments of all values in one row, and the values; `good` says of which paths the moments
        are.

        The row has four parts, each with a number for every component of every observable: the mean
        over the finite values of good paths, the sum of squared deviations from it, how many values
        are in both (pairs count once), and how many values of good paths are not finite.
        """
        values: dict[str, jax.Array] = jax.lax.map(self.observer, x, batch_size=self.together)
        units = good.reshape(-1, 2).all(axis=1) if self.antithetic else good
        with jax.enable_x64(True):
            tables = [
                value.reshape(len(good), math.prod(value.shape[1:])).T.astype(jnp.float64)
                for value in values.values()
            ]
            table = jnp.concatenate(tables)  # one table, so one loop for all observables
            # without pairs the same sum as below: XLA makes it once
            lost = jnp.sum(good) - _count(good & jnp.isfinite(table))
            if self.antithetic:
                table = table.reshape(len(table), len(units), 2).mean(axis=2)
            used = units & jnp.isfinite(table)
            count = _count(used)
            mean = _sum(jnp.where(used, table, 0)) / count
            row = jnp.concatenate(
                [mean, _sum(jnp.where(used, (table - mean[:, None]) ** 2, 0)), count, lost]
            )
        return row, values


def _count(table: jax.Array) -> jax.Array:
    """How many of each row are true."""
    return _sum(table.astype(jnp.float64))


def _sum(table: jax.Array) -> jax.Array:
    """The sum over the last of two axes, by sixteen running sums: one alone waits for each of its
    additions.
    """
    rows, length = table.shape
    padded = jnp.pad(table, [(0, 0), (0, -length % 16)])
    total: jax.Array = padded.reshape(rows, (length + 15) // 16, 16).sum(axis=1).sum(axis=1)
    return total


def _mark(first: jax.Array, x: PyTree, step: jax.Array) -> jax.Array:
    """`first`, with `step` where a state (leading axis paths) is not finite and was before."""
    finite = [jnp.isfinite(leaf).reshape(len(first), -1).all(axis=1) for leaf in jax.tree.leaves(x)]
    return jnp.where((first < 0) & ~jnp.stack(finite).all(axis=0), step, first)
