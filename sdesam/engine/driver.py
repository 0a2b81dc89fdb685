"""The driver that SDEs and discrete optimizers share: many paths, one compiled loop over time, statistics on a grid.

Paths are advanced together in chunks, each chunk spread over the devices. Between the observation times a compiled loop of any length
runs; nothing is stored but the observables. The random draw of (key, path, step) depends on nothing else, so chunks, devices and the
choice of observation times do not change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from sdesam import store
from sdesam.engine.result import Divergence, Result
from sdesam.sampling import whole

PyTree = Any
Keep = Literal["statistics", "values", "trajectories"]

_CHUNK_BYTES = 2**23
"""Working memory of the paths that one device advances together. Larger chunks leave the cache and were slower."""


class Stepper(Hashable, Protocol):
    """One step of one path. Hashable, so that compiled code is shared by all runs that differ in `params` alone."""

    def __call__(self, params: Any, x: PyTree, key: jax.Array, mirror: jax.Array) -> PyTree:
        """The state after one step; `mirror` (-1 or 1) multiplies Gaussian noise, for antithetic pairs."""
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


@dataclass(frozen=True)
class Plan:
    """What to run: everything about a run but its key and how it is laid out.

    Args:
        stepper: one step.
        params: its numbers and data (a pytree of arrays).
        x0: the common start.
        observer: `(data, x) -> {name: value}`, hashable.
        data: the observer's data.
        steps: the number of steps.
        step_time: the SDE time of one step.
        step_bytes: working memory of one path in one step, an estimate.
        observe_bytes: the same while it is observed.
        config: what to record.
    """

    stepper: Stepper
    params: Any
    x0: PyTree
    observer: Observer
    data: Any
    steps: int
    step_time: float
    step_bytes: int
    observe_bytes: int
    config: dict[str, Any] = field(default_factory=dict)


def run(
    plan: Plan,
    key: jax.Array,
    *,
    paths: int,
    grid: np.ndarray,
    keep: Keep = "statistics",
    antithetic: bool = False,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
    label: str = "",
) -> Result:
    """Advance `paths` paths to `plan.steps` and observe them at the steps in `grid`."""
    key = check_key(key)
    if keep not in ("statistics", "values", "trajectories"):
        raise ValueError(f"keep={keep!r}: choose 'statistics', 'values' or 'trajectories'")
    if antithetic and paths % 2:
        raise ValueError(f"{paths} paths cannot be paired: antithetic runs need an even number")
    available = list(devices if devices is not None else jax.devices())
    if not available:
        raise ValueError("devices is empty: name at least one, or leave it out")
    mesh = Mesh(np.array(available[:paths]), ("paths",))
    size = _chunk_size(paths, chunk, mesh.size, plan.step_bytes, antithetic)
    starts = range(0, paths, size)
    statistics: dict[str, _Moments] = {}
    gathered: list[_Chunk] = []
    final, diverged_path, diverged_step = [], [], []
    # None leaves the bar to tqdm, which shows it on a terminal only
    bar = tqdm(total=len(starts) * len(grid), desc=label, delay=2, leave=False, disable=None if progress is None else not progress)
    with bar:
        for start in starts:
            count = min(size, paths - start)
            piece = _run_chunk(plan, key, start, size, grid, keep, antithetic, mesh, bar.update)
            piece = jax.tree.map(lambda a, count=count: a[:count], piece)
            final.append(piece.final)
            bad = piece.diverged >= 0
            diverged_path.append(start + np.flatnonzero(bad))
            diverged_step.append(piece.diverged[bad])
            if antithetic:
                bad = np.repeat(bad.reshape(-1, 2).any(axis=1), 2)
            for name in plan.observer.names:
                good = piece.values[name][~bad].astype(np.float64)
                if antithetic:
                    good = good.reshape(-1, 2, *good.shape[1:]).mean(axis=1)
                statistics.setdefault(name, _Moments()).add(good)
            if keep != "statistics":
                gathered.append(piece)
    stack = partial(jax.tree.map, lambda *parts: np.concatenate(parts))
    return Result(
        time=grid * plan.step_time,
        mean={name: moments.mean for name, moments in statistics.items()},
        stderr={name: moments.stderr for name, moments in statistics.items()},
        final=stack(*final),
        diverged=Divergence(np.concatenate(diverged_path), np.concatenate(diverged_step) * plan.step_time, paths),
        config={**plan.config, "paths": paths, "antithetic": antithetic, "key": np.asarray(jax.random.key_data(key)).tolist()},
        provenance=store.provenance(),
        values=stack(*(piece.values for piece in gathered)) if gathered else None,
        trajectory=stack(*(piece.trajectory for piece in gathered)) if keep == "trajectories" else None,
    )


def check_key(key: Any) -> jax.Array:
    """`key` as a typed jax key, or a sentence that says how to make one."""
    if isinstance(key, jax.Array) and key.shape == () and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) != "threefry2x32":
            raise ValueError(
                f"key has the implementation {jax.random.key_impl(key)}, whose draws depend on how paths are laid out: "
                "use a threefry key, jax.random.key(seed, impl='threefry2x32')"
            )
        return key
    if isinstance(key, (jax.Array, np.ndarray)) and key.shape == (2,) and key.dtype == np.uint32:
        typed: jax.Array = jax.random.wrap_key_data(jnp.asarray(key), impl="threefry2x32")
        return typed
    what = f"an array of shape {list(key.shape)}" if hasattr(key, "shape") else repr(key)
    raise TypeError(f"key must be one jax random key, such as jax.random.key(0), not {what}")


def steps_of(time: float, step_time: float, what: str, unit: str) -> int:
    """How many steps of `step_time` make `time`, or a sentence saying that no whole number does."""
    ratio = time / step_time
    steps = round(ratio)
    if abs(ratio - steps) > 1e-6 * max(1.0, abs(ratio)):
        raise ValueError(
            f"{what}={time:g} is no multiple of {unit}={step_time:g}: the nearest multiples are "
            f"{int(ratio) * step_time:g} and {(int(ratio) + 1) * step_time:g}"
        )
    return steps


def time_grid(times: Sequence[float] | np.ndarray | None, steps: int, step_time: float, unit: str) -> np.ndarray:
    """The steps at which to observe: those of `times`, or about ten even ones with both ends."""
    if times is None:
        return np.unique(np.linspace(0, steps, 11).round().astype(int))
    instants = np.atleast_1d(np.asarray(times, dtype=float))
    if not np.isfinite(instants).all():
        raise ValueError(f"times={list(instants)}: they must be finite")
    grid = np.array([steps_of(float(t), step_time, "an observation time", unit) for t in instants], dtype=int)
    if grid.size == 0 or (np.diff(grid) <= 0).any() or grid[0] < 0 or grid[-1] > steps:
        raise ValueError(f"times={list(instants)}: they must increase strictly from at least 0 to at most {steps * step_time:g}")
    return grid


class _Chunk(NamedTuple):
    """What is known of some paths at the end; numpy arrays, leading axis paths."""

    final: PyTree
    diverged: np.ndarray
    values: dict[str, np.ndarray]
    trajectory: PyTree


def _run_chunk(
    plan: Plan,
    key: jax.Array,
    start: int,
    size: int,
    grid: np.ndarray,
    keep: Keep,
    antithetic: bool,
    mesh: Mesh,
    tick: Callable[[], object],
) -> _Chunk:
    """Paths `start .. start + size - 1` from beginning to end."""
    split = NamedSharding(mesh, P("paths"))
    ids = jax.device_put(np.arange(start, start + size, dtype=np.uint32), split)
    x = jax.tree.map(lambda leaf: jax.device_put(jnp.broadcast_to(leaf, (size, *leaf.shape)), split), plan.x0)
    diverged = jax.device_put(np.full(size, -1, dtype=np.int32), split)
    values: dict[str, list[np.ndarray]] = {}
    states = []
    at = 0
    for step in grid:
        x, diverged = _advance(plan.stepper, mesh, antithetic, plan.params, key, ids, x, diverged, at, int(step))
        at = int(step)
        seen = _observe(plan.observer, mesh, max(1, _CHUNK_BYTES // plan.observe_bytes), plan.data, x)
        for name in plan.observer.names:  # jit sorts the keys
            values.setdefault(name, []).append(np.asarray(seen[name]))
        if keep == "trajectories":
            states.append(jax.tree.map(np.asarray, x))
        tick()
    x, diverged = _advance(plan.stepper, mesh, antithetic, plan.params, key, ids, x, diverged, at, plan.steps)
    table = {name: np.stack(many, axis=1) for name, many in values.items()}
    return _Chunk(
        final=jax.tree.map(np.asarray, x),
        diverged=_first_divergence(np.array(diverged), table, grid),
        values=table,
        trajectory=jax.tree.map(lambda *many: np.stack(many, axis=1), *states) if states else None,
    )


def _first_divergence(state: np.ndarray, table: dict[str, np.ndarray], grid: np.ndarray) -> np.ndarray:
    """The step at which the state or an observable was first not finite; -1 for never."""
    first = np.where(state < 0, np.iinfo(np.int32).max, state)
    for values in table.values():
        wrong = ~np.isfinite(values).reshape(*values.shape[:2], -1).all(axis=2)
        first = np.where(wrong.any(axis=1), np.minimum(first, grid[wrong.argmax(axis=1)]), first)
    return np.where(first == np.iinfo(np.int32).max, -1, first)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    stepper: Stepper,
    mesh: Mesh,
    antithetic: bool,
    params: Any,
    key: jax.Array,
    ids: jax.Array,
    x: PyTree,
    diverged: jax.Array,
    start: jax.Array,
    stop: jax.Array,
) -> tuple[PyTree, jax.Array]:
    """Steps `start .. stop - 1` of the paths `ids`, and the step after which each first was not finite."""

    def one(params: Any, key: jax.Array, path: jax.Array, x: PyTree, diverged: jax.Array, start: Any, stop: Any) -> Any:
        path_key = jax.random.fold_in(key, path // 2 if antithetic else path)
        mirror = 1 - 2 * (path % 2).astype(jnp.int32) if antithetic else jnp.int32(1)

        def body(step: jax.Array, carry: tuple[PyTree, jax.Array]) -> tuple[PyTree, jax.Array]:
            x, diverged = carry
            x = stepper(params, x, jax.random.fold_in(path_key, step), mirror)
            finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(x)]))
            return x, jnp.where((diverged < 0) & ~finite, step + 1, diverged)

        return jax.lax.fori_loop(start, stop, body, (x, diverged))

    many = jax.vmap(one, in_axes=(None, None, 0, 0, 0, None, None))
    mapped = jax.shard_map(many, mesh=mesh, in_specs=(P(), P(), P("paths"), P("paths"), P("paths"), P(), P()), out_specs=P("paths"), check_vma=False)
    result: tuple[PyTree, jax.Array] = mapped(params, key, ids, x, diverged, jnp.int32(start), jnp.int32(stop))
    return result


@partial(jax.jit, static_argnums=(0, 1, 2))
def _observe(observer: Observer, mesh: Mesh, together: int, data: Any, x: PyTree) -> dict[str, jax.Array]:
    """The observables of every path, `together` paths at a time on each device."""

    def many(data: Any, x: PyTree) -> dict[str, jax.Array]:
        values: dict[str, jax.Array] = jax.lax.map(partial(observer, data), x, batch_size=together)
        return values

    mapped = jax.shard_map(many, mesh=mesh, in_specs=(P(), P("paths")), out_specs=P("paths"), check_vma=False)
    values: dict[str, jax.Array] = mapped(data, x)
    return values


def _chunk_size(paths: int, chunk: int | None, devices: int, step_bytes: int, antithetic: bool) -> int:
    """Paths per chunk: a multiple of the devices, of even size over as few chunks as the memory allows."""
    unit = devices * (2 if antithetic and devices % 2 else 1)
    most = whole("chunk", chunk) if chunk is not None else max(1, _CHUNK_BYTES // step_bytes) * devices
    chunks = math.ceil(paths / most)
    even = math.ceil(paths / chunks)
    return math.ceil(even / unit) * unit


@dataclass
class _Moments:
    """Mean and variance over paths, merged chunk by chunk in float64 (Chan, Golub & LeVeque 1983)."""

    count: int = 0
    mean: Any = np.nan
    squares: Any = 0.0

    def add(self, values: np.ndarray) -> None:
        """Merge `values`, leading axis paths."""
        count = len(values)
        if self.count == 0:
            self.mean = np.full(values.shape[1:], np.nan)
        if not count:
            return
        mean = values.mean(axis=0)
        squares = ((values - mean) ** 2).sum(axis=0)
        if self.count:
            gap = mean - self.mean
            squares = self.squares + squares + gap**2 * (self.count * count / (self.count + count))
            mean = self.mean + gap * (count / (self.count + count))
        self.count, self.mean, self.squares = self.count + count, mean, squares

    @property
    def stderr(self) -> np.ndarray:
        """The standard error of the mean."""
        if self.count < 2:
            return np.full(np.shape(self.mean), np.nan)
        return np.asarray(np.sqrt(self.squares / (self.count - 1) / self.count))
