"""The driver that SDEs and discrete optimizers share: many paths, one compiled loop over time, statistics on a grid.

Paths are advanced together in chunks, each chunk spread over the devices of this process, and the chunks over the processes. Between the
observation times a compiled loop of any length runs; observables are averaged where they are computed. The random draw of (key, path,
step) depends on nothing else, so chunks, devices, processes and the choice of observation times do not change it.

One program makes steps, observes, sums up (in float64) and goes on, for several observation times in one call, so that neither Python nor the
queue of a device is waited for on the way. Where to stop and where to look are numbers, not code: nothing compiles anew over a sweep.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from time import perf_counter
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from sdesam import store
from sdesam.engine import machine
from sdesam.engine.components import elementwise
from sdesam.engine.normals import packed_normals, unpack
from sdesam.engine.result import Divergence, Result
from sdesam.engine.snapshot import Snapshot, fingerprint
from sdesam.sampling import whole

PyTree = Any
Keep = Literal["means", "statistics", "values", "trajectories"]
Normals = Literal["counter", "jax"]

_CHUNK_BYTES = {"cpu": 2**23}
"""Working memory of the paths that one device advances together. On a CPU larger chunks leave the cache and were slower."""
_ACCELERATOR_BYTES = 2**28
_BLOCK, _UNROLL = 32, 4
"""Steps of the inner loop on an accelerator, and how many of them are compiled as one: a loop of known length runs without asking the host
after each step whether to go on."""
_CHUNK_PATHS = {"cpu": 2**15}
"""Paths that one device advances together at most: with more of them a step was no faster per path, and needed more memory."""
_SMALL_NOISE = 8
"""Normals of a step up to which a small state is kept as one number."""
_PATIENCE = 0.5
"""Seconds that one call of `_advance` may take: how long a snapshot, the progress bar or an interrupt waits at most, but for one step."""
_AHEAD = 4
"""Calls queued before the oldest one is waited for."""
_LOOKS, _LOOK_BYTES = 16, 2**20
"""Observations of one call of `_advance` at most, and memory of their moments on each device."""


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
        noise_shape: shape of the standard normals of one step; None for a stepper that draws from its key alone.
        normals: where these come from, by counter or from `jax.random`.
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
    noise_shape: tuple[int, ...] | None = None
    normals: Normals = "counter"


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
    snapshot: str | os.PathLike[str] | None = None,
    snapshot_every: float = 60.0,
) -> Result:
    """Advance `paths` paths to `plan.steps` and observe them at the steps in `grid`."""
    layout = lay_out(plan, key, paths=paths, grid=grid, keep=keep, antithetic=antithetic, chunk=chunk, devices=devices)
    layout.check_memory()
    if snapshot is not None and machine.process_count() > 1:
        snapshot = f"{os.fspath(snapshot)}.{machine.process_index()}"
    work = _Work(layout, Snapshot.open(snapshot, snapshot_every, lambda: _identity(layout)))
    total = (layout.last - layout.first) * plan.steps
    # None leaves the bar to tqdm, which shows it on a terminal only
    bar = tqdm(total=total, desc=label, delay=2, leave=False, unit="step", unit_scale=True, disable=None if progress is None else not progress)
    with bar:
        work.run(bar.update)
    return work.result()


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Args:
        paths: how many paths, in all processes together.
        steps: steps of each.
        chunks: how many chunks of paths this process advances one after another.
        host_bytes: memory of all that is kept of each path.
        device_bytes: working memory of one chunk, on all devices of this process, as the compiled step reports it.
        available_bytes: memory that is free now; None where the system does not say.
        compile_seconds: what compiling took.
        seconds: expected time without compiling, from a trial run; paths that diverge can double it.
    """

    paths: int
    steps: int
    chunks: int
    host_bytes: int
    device_bytes: int
    available_bytes: int | None
    compile_seconds: float
    seconds: float

    def __str__(self) -> str:
        free = f" of {_gigabytes(self.available_bytes)} free" if self.available_bytes is not None else ""
        return (
            f"{self.paths} paths of {self.steps} steps in {self.chunks} chunks; memory {_gigabytes(self.host_bytes)} for what is kept and "
            f"{_gigabytes(self.device_bytes)} to work in{free}; about {self.seconds:.2g} s, and {self.compile_seconds:.2g} s to compile"
        )


def forecast(plan: Plan, key: jax.Array, **options: Any) -> Forecast:
    """What a run needs, from its first steps; `options` are those of :func:`lay_out`."""
    layout = lay_out(plan, key, **options)
    layout.check_memory()
    work = _Work(layout, Snapshot(None, 0.0, {}, None))
    state, ensemble = work.begin(_Pass(0, np.ones(layout.size, bool), np.empty((0, 2), int)))
    before = perf_counter()
    compiled = _advance().lower(*work.program, *work.arguments(state), ensemble, work.route(0, [])).compile()
    compile_seconds = perf_counter() - before

    def timed(leg: _Leg) -> float:
        nonlocal ensemble
        before = perf_counter()
        ensemble, _ = jax.block_until_ready(compiled(*work.arguments(state), ensemble, work.route(0, [leg])))
        return perf_counter() - before

    timed(_Leg(1, True))
    steps, passed = 1, timed(_Leg(1, False))
    while passed < _PATIENCE / 2 and steps < plan.steps:
        steps = min(2 * steps, plan.steps)
        passed = timed(_Leg(steps, False))
    look = timed(_Leg(0, True))
    used = compiled.memory_analysis()
    chunks = math.ceil((layout.last - layout.first) / layout.size)
    return Forecast(
        paths=layout.paths,
        steps=plan.steps,
        chunks=chunks,
        host_bytes=layout.host_bytes,
        # as seen from one device
        device_bytes=layout.mesh.size * (used.temp_size_in_bytes + used.argument_size_in_bytes) if used else layout.device_bytes,
        available_bytes=machine.available_memory(),
        compile_seconds=compile_seconds,
        seconds=chunks * (plan.steps * passed / steps + len(layout.grid) * look),
    )


@dataclass(frozen=True)
class Layout:
    """A run and how it is laid out: which paths this process advances, and how many together.

    Args:
        plan: what to run.
        key: a typed key.
        paths: how many, in all processes together.
        grid: the steps at which to observe.
        keep: what to keep of each path.
        antithetic: whether paths come in mirrored pairs.
        mesh: the devices of this process.
        size: paths per chunk.
        first: the first path of this process.
        last: one more than its last.
    """

    plan: Plan
    key: jax.Array
    paths: int
    grid: np.ndarray
    keep: Keep
    antithetic: bool
    mesh: Mesh
    size: int
    first: int
    last: int

    @property
    def tables(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of every array with one row per path, of all processes together: what the host must hold in the end."""
        plan, times = self.plan, len(self.grid)
        rows: dict[str, tuple[tuple[int, ...], Any]] = {"first": ((self.paths,), np.dtype(np.int32))}
        leaves = jax.tree.leaves(plan.x0)
        if self.keep != "means":
            rows |= {f"final.{k}": ((self.paths, *leaf.shape), leaf.dtype) for k, leaf in enumerate(leaves)}
        if self.keeps_values:
            rows |= {f"values.{name}": ((self.paths, times, *seen.shape), seen.dtype) for name, seen in self.observables.items()}
        if self.keep == "trajectories":
            rows |= {f"trajectory.{k}": ((self.paths, times, *leaf.shape), leaf.dtype) for k, leaf in enumerate(leaves)}
        return rows

    @cached_property
    def observables(self) -> dict[str, Any]:
        """Shape and dtype of every observable of one path."""
        plan = self.plan
        shapes = jax.eval_shape(plan.observer, plan.data, plan.x0) if plan.observer.names else {}
        return {name: shapes[name] for name in plan.observer.names}  # jax sorts the keys

    @property
    def keeps_values(self) -> bool:
        """Whether observables of each path are kept."""
        return self.keep in ("values", "trajectories")

    @property
    def host_bytes(self) -> int:
        """Memory of the arrays with one row per path."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.tables.values())

    @property
    def device_bytes(self) -> int:
        """Working memory of the chunk that is advanced together, an estimate, on all devices of this process."""
        return self.size * max(self.plan.step_bytes, 1)

    def check_memory(self) -> None:
        """Refuse a run that cannot fit into memory."""
        need, available = self.host_bytes + (self.device_bytes if self.mesh.devices.flat[0].platform == "cpu" else 0), machine.available_memory()
        if available is None or need <= available:
            return
        worst = max(self.tables, key=lambda name: math.prod(self.tables[name][0]))
        what = {"first": "bookkeeping", "final": "final states", "values": "values", "trajectory": "trajectories"}[worst.split(".")[0]]
        advice = {
            "final states": "keep='means', which keeps no states",
            "values": "keep='statistics'",
            "trajectories": "keep='values' or 'statistics'",
        }
        if self.host_bytes < self.device_bytes:
            raise ValueError(
                f"{self.size} paths together need about {_gigabytes(self.device_bytes)} of working memory, but {_gigabytes(available)} are free: "
                "choose a smaller chunk"
            )
        raise ValueError(
            f"{self.paths} paths need {_gigabytes(need)}, most of it for their {what}, but {_gigabytes(available)} are free: "
            f"choose {advice.get(what, 'fewer paths')}, or fewer paths"
        )


def lay_out(
    plan: Plan,
    key: jax.Array,
    *,
    paths: int,
    grid: np.ndarray,
    keep: Keep = "statistics",
    antithetic: bool = False,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """How a run would be laid out, or one sentence saying what does not fit."""
    key = check_key(key)
    if keep not in get_args(Keep):
        raise ValueError(f"keep={keep!r}: choose 'statistics', 'means', 'values' or 'trajectories'")
    if plan.normals not in get_args(Normals):
        raise ValueError(f"normals={plan.normals!r}: choose 'counter' or 'jax'")
    if antithetic and paths % 2:
        raise ValueError(f"{paths} paths cannot be paired: antithetic runs need an even number")
    if paths > 2**32:
        raise ValueError(f"{paths} paths: at most 2**32 have draws of their own; use a second key for more")
    if plan.steps >= 2**31:
        raise ValueError(f"{plan.steps} steps: at most 2**31 - 1 are counted; choose a larger step")
    count, index = machine.process_count(), machine.process_index()
    available = list(devices if devices is not None else jax.devices())
    if not available:
        raise ValueError("devices is empty: name at least one, or leave it out")
    units = paths // 2 if antithetic else paths
    if devices is not None and len(available) > paths:
        raise ValueError(f"{len(available)} devices for {paths} paths: some would have none; name at most {paths} devices")
    if count > units:
        raise ValueError(f"{count} processes for {paths} paths: some would have none; start at most {units} processes")
    own = [device for device in available if device.process_index == index]
    if not own:
        raise ValueError(f"devices names none of process {index}: every process needs one of its own")
    first, last = (units * k // count * (2 if antithetic else 1) for k in (index, index + 1))
    mesh = Mesh(np.array(own[: last - first]), ("paths",))
    size = _chunk_size(last - first, chunk, mesh, plan.step_bytes, antithetic)
    return Layout(plan, key, paths, grid, keep, antithetic, mesh, size, first, last)


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


class _Ensemble(NamedTuple):
    """What a chunk carries through time; arrays on the devices, leading axis paths."""

    x: PyTree
    first: jax.Array
    """The step after which a path was first seen to be not finite; -1 for never."""


class _Leg(NamedTuple):
    """Steps without an observation between them."""

    stop: int
    """The step to stop at."""
    look: bool
    """Whether it is an observation time."""


@dataclass
class _Pass:
    """A chunk on its way. If a path of it diverges it goes twice: first to learn which do, then without them in the moments."""

    start: int
    """The first of its rows."""
    good: np.ndarray
    """Which of its paths the moments are of."""
    windows: np.ndarray
    """`(after, until)`, shape `(k, 2)`: in these steps paths are known to diverge, and after each it is looked which."""
    at: int = 0
    """Steps made."""
    seen: int = 0
    """Observations made."""
    checks: list[int] = field(default_factory=lambda: [0])
    """The steps after which it was looked whether all is finite."""


class _Work:
    """A run on its way: what has been found so far, and what comes next."""

    def __init__(self, layout: Layout, snapshot: Snapshot):
        plan = layout.plan
        self.layout, self.snapshot = layout, snapshot
        self.rows = layout.last - layout.first
        self.split = NamedSharding(layout.mesh, P("paths"))
        self.draw = _Draw(plan.noise_shape, np.dtype(_dtype(plan.x0)).name, plan.normals, layout.antithetic, _on_cpu(layout.mesh))
        self.tables = {name: np.empty((self.rows, *shape[1:]), dtype) for name, (shape, dtype) in layout.tables.items()}
        shapes = {name: (len(layout.grid), *shape.shape) for name, shape in layout.observables.items()}
        self.moments = {name: _Moments(0, np.full(shape, np.nan), np.zeros(shape)) for name, shape in shapes.items()}
        # of the chunk on its way, at each time and from each device: the means of all observables, then their sums of squares
        self.part = np.zeros((len(layout.grid), layout.mesh.size, 2 * sum(math.prod(shape[1:]) for shape in shapes.values())))
        self.done = 0
        # once, not with every call
        self.shared = jax.device_put((plan.params, plan.data, layout.key), NamedSharding(layout.mesh, P()))
        together = max(1, _chunk_bytes(layout.mesh) // plan.observe_bytes)
        self.program = (plan.stepper, self.draw, _Look(plan.observer, together, layout.antithetic, layout.keeps_values), layout.mesh)
        """What is compiled."""
        row = max(1, self.part.shape[2] * self.part.itemsize)
        self.looks = 1 if layout.keeps_values else max(1, min(_LOOKS, _LOOK_BYTES // row))
        """Observations of one call at most; one where something of each path is kept."""
        self.compiled, self.speed, self.wait = False, 0.0, math.inf
        """Whether steps have been made; how many of a chunk take a second; the seconds for one observation and the steps before it, at most."""

    def run(self, tick: Callable[[int], object]) -> None:
        """All chunks from beginning to end, or from the snapshot on."""
        state = self._restore()
        tick(self.done * self.layout.plan.steps)
        while self.done < self.rows:
            count = min(self.layout.size, self.rows - self.done)
            if state is None:
                state = self.begin(_Pass(self.done, np.arange(self.layout.size) < count, np.empty((0, 2), int)))
            state = self._through(*state, tick)
            if state is None:
                self.done += count
        self._save(None)

    def begin(self, state: _Pass) -> tuple[_Pass, _Ensemble]:
        """A chunk at its start."""
        return state, _start(self.layout.mesh, self.layout.size, self.layout.plan.x0)

    def arguments(self, state: _Pass) -> tuple[Any, ...]:
        """What a chunk keeps all its way: parameters, data and key, the numbers of its paths, and which are good."""
        ids = (self.layout.first + state.start + np.arange(self.layout.size)).astype(np.uint32)
        return (*self.shared, *jax.device_put((ids, state.good), self.split))

    def route(self, start: int, legs: Sequence[_Leg]) -> np.ndarray:
        """For `_advance`: the step to start at and how many legs follow; the legs."""
        made = np.zeros((1 + self.looks, 2), np.int32)
        made[: 1 + len(legs)] = [(start, len(legs)), *legs]
        return made

    def _through(self, state: _Pass, ensemble: _Ensemble, tick: Callable[[int], object]) -> tuple[_Pass, _Ensemble] | None:
        """One chunk to its end; what it has to do next, or None."""
        layout, arguments = self.layout, self.arguments(state)
        queue: deque[tuple[slice, Any]] = deque()

        def collect(most: int) -> None:
            while len(queue) > most:
                self._collect(state, *queue.popleft())

        while legs := self._legs(state):
            if self.snapshot.due():
                collect(0)
                self._save((state, ensemble))
            ensemble, found = self._advance(state, arguments, ensemble, legs)
            if not len(state.windows):
                tick((legs[-1].stop - state.at) * int(state.good.sum()))
            looks = sum(leg.look for leg in legs)
            if looks:
                if layout.keep == "trajectories":
                    for k, leaf in enumerate(jax.tree.leaves(ensemble.x)):
                        self._keep(state, f"trajectory.{k}", leaf, state.seen)
                queue.append((slice(state.seen, state.seen + looks), found))
                collect(_AHEAD)
            state.at, state.seen = legs[-1].stop, state.seen + looks
            state.checks += [leg.stop for leg in legs]
        collect(0)
        first = np.array(ensemble.first)
        bad = first >= 0
        if layout.antithetic:
            bad = np.repeat(bad.reshape(-1, 2).any(axis=1), 2)
        if (bad & state.good).any():
            until = np.unique(first[state.good & (first > 0)])
            after = np.array(state.checks)[np.searchsorted(state.checks, until) - 1]
            return self.begin(_Pass(state.start, state.good & ~bad, np.stack([after, until], axis=1)))
        self._finish(state, ensemble, first)
        return None

    def _legs(self, state: _Pass) -> list[_Leg]:
        """What to do in one call: go from observation to observation, not beyond our patience, and step by step where a path diverges."""
        grid, at, seen = self.layout.grid, state.at, state.seen
        # the first call compiles, the second is timed
        limit = min(self.layout.plan.steps, at + max(1, int(self.speed * _PATIENCE)))
        for after, until in state.windows:
            if after <= at < until:
                limit = at + 1
            elif at < after:
                limit = min(limit, int(after))
        most = max(1, int(min(self.looks, _PATIENCE / self.wait)))
        legs: list[_Leg] = []
        while len(legs) < most:
            look = seen < len(grid) and int(grid[seen]) <= limit
            stop = int(grid[seen]) if look else limit
            if stop == at and not look:
                break
            legs.append(_Leg(stop, look))
            at, seen = stop, seen + look
        return legs

    def _advance(self, state: _Pass, arguments: tuple[Any, ...], ensemble: _Ensemble, legs: list[_Leg]) -> tuple[_Ensemble, Any]:
        steps, looks = legs[-1].stop - state.at, sum(leg.look for leg in legs)
        # where patience cuts the call short: it is long enough for the wait not to matter, or little is known of the speed
        short = steps >= max(1, int(self.speed * _PATIENCE)) or (looks > 0 and self.wait == math.inf)
        timed, self.compiled = self.compiled and short, True
        if timed:
            jax.block_until_ready(ensemble)
        before = perf_counter()
        made, found = _advance()(*self.program, *arguments, ensemble, self.route(state.at, legs))
        if timed:
            jax.block_until_ready(made)
            passed = perf_counter() - before
            self.speed = max(steps, 1) / passed
            self.wait = passed / looks if looks else self.wait
        found[0].copy_to_host_async()
        return made, found

    def _collect(self, state: _Pass, times: slice, found: tuple[Any, dict[str, Any]]) -> None:
        rows, values = found
        self.part[times] = np.asarray(rows).swapaxes(0, 1)[: times.stop - times.start]
        for name, table in values.items():
            self._keep(state, f"values.{name}", table, times.start)

    def _keep(self, state: _Pass, name: str, rows: Any, time: int | None = None) -> None:
        count = min(self.layout.size, self.rows - state.start)
        where = slice(state.start, state.start + count)
        self.tables[name][where if time is None else (where, time)] = np.asarray(rows)[:count]

    def _finish(self, state: _Pass, ensemble: _Ensemble, first: np.ndarray) -> None:
        self._keep(state, "first", first)
        if self.layout.keep != "means":
            for k, leaf in enumerate(jax.tree.leaves(ensemble.x)):
                self._keep(state, f"final.{k}", leaf)
        counts = state.good.reshape(self.layout.mesh.size, -1).sum(axis=1) // (2 if self.layout.antithetic else 1)
        in_a_row = [self.moments[name] for name in sorted(self.moments)]  # the order of jax
        ends = np.cumsum([math.prod(moments.mean.shape[1:]) for moments in in_a_row])
        means, squares = (np.split(half.swapaxes(0, 1), ends, axis=2) for half in np.split(self.part, 2, axis=2))
        for moments, *found in zip(in_a_row, means[:-1], squares[:-1], strict=True):
            for count, mean, square in zip(counts, *found, strict=True):
                moments.add(_Moments(count, mean.reshape(moments.mean.shape), square.reshape(moments.mean.shape)))

    def _save(self, now: tuple[_Pass, _Ensemble] | None) -> None:
        if self.snapshot.path is None:
            return
        position: dict[str, Any] = {"done": self.done, "counts": {name: int(moments.count) for name, moments in self.moments.items()}}
        upto = self.done + (self.layout.size if now else 0)
        arrays = {f"table.{name}": table[:upto] for name, table in self.tables.items()}
        for name, moments in self.moments.items():
            arrays |= {f"mean.{name}": moments.mean, f"squares.{name}": moments.squares}
        if now:
            state, ensemble = now
            position |= {"start": state.start, "at": state.at, "seen": state.seen}
            arrays |= {"good": state.good, "windows": state.windows, "checks": np.array(state.checks)}
            arrays |= {f"ensemble.{k}": np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(ensemble))}
            arrays["part"] = self.part
        self.snapshot.write(arrays, position)

    def _restore(self) -> tuple[_Pass, _Ensemble] | None:
        if self.snapshot.found is None:
            return None
        arrays, position = self.snapshot.found
        self.snapshot.found = None
        self.done = position["done"]
        for name, table in self.tables.items():
            kept = arrays[f"table.{name}"]
            table[: len(kept)] = kept
        for name, count in position["counts"].items():
            self.moments[name] = _Moments(count, arrays[f"mean.{name}"], arrays[f"squares.{name}"])
        if "at" not in position:
            return None
        self.part = arrays["part"]
        state = _Pass(position["start"], arrays["good"], arrays["windows"], position["at"], position["seen"], arrays["checks"].tolist())
        _, fresh = self.begin(state)
        leaves = [jax.device_put(arrays[f"ensemble.{k}"], self.split) for k in range(len(jax.tree.leaves(fresh)))]
        return state, jax.tree.unflatten(jax.tree.structure(fresh), leaves)

    def result(self) -> Result:
        """What was found, by all processes together."""
        layout, plan, names = self.layout, self.layout.plan, list(self.moments)
        own = {f"table.{name}": table for name, table in self.tables.items()}
        for k, moments in enumerate(self.moments.values()):
            own |= {f"{k}.count": np.array(moments.count), f"{k}.mean": moments.mean, f"{k}.squares": moments.squares}
        everyone = machine.gather(own)
        if len(everyone) > 1:
            self.tables = {name: np.concatenate([one[f"table.{name}"] for one in everyone]) for name in self.tables}
            for k, name in enumerate(names):
                parts = [_Moments(int(one[f"{k}.count"]), one[f"{k}.mean"], one[f"{k}.squares"]) for one in everyone]
                self.moments[name] = parts[0]
                for part in parts[1:]:
                    parts[0].add(part)

        def states(kind: str) -> PyTree:
            leaves, structure = jax.tree.flatten(plan.x0)
            return jax.tree.unflatten(structure, [self.tables[f"{kind}.{k}"] for k in range(len(leaves))])

        first = self.tables["first"]
        config = {**plan.config, "paths": layout.paths, "antithetic": layout.antithetic, "key": np.asarray(jax.random.key_data(layout.key)).tolist()}
        return Result(
            time=layout.grid * plan.step_time,
            mean={name: moments.mean for name, moments in self.moments.items()},
            stderr={name: moments.stderr for name, moments in self.moments.items()},
            final=states("final") if layout.keep != "means" else None,
            diverged=Divergence(np.flatnonzero(first >= 0), first[first >= 0] * plan.step_time, layout.paths),
            config=config,
            provenance=store.provenance(),
            values={name: self.tables[f"values.{name}"] for name in names} if layout.keeps_values else None,
            trajectory=states("trajectory") if layout.keep == "trajectories" else None,
        )


@dataclass(frozen=True)
class _Draw:
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


def _dtype(x: PyTree) -> Any:
    return jnp.result_type(*jax.tree.leaves(x))


@lru_cache(maxsize=1)
def _compiler_options() -> dict[str, Any] | None:
    """The widest vectors: the cipher runs 1.8 times as fast on a CPU with AVX-512, and others take what they have."""
    options = {"xla_cpu_prefer_vector_width": 512}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(np.float32(0))
    except Exception:  # an XLA that no longer has the option
        return None
    return options


@lru_cache(maxsize=1)
def _advance() -> Any:
    """:func:`_follow`, compiled."""
    return jax.jit(_follow, static_argnums=(0, 1, 2, 3), donate_argnums=9, compiler_options=_compiler_options())


def _follow(
    stepper: Stepper,
    draw: _Draw,
    look: _Look,
    mesh: Mesh,
    params: Any,
    data: Any,
    key: jax.Array,
    ids: jax.Array,
    good: jax.Array,
    ensemble: _Ensemble,
    route: jax.Array,
) -> tuple[_Ensemble, tuple[jax.Array, dict[str, jax.Array]]]:
    """The ensemble after all legs of `route`, the moments of each observation on each device, and what the last one saw if that is kept."""

    def many(params: Any, data: Any, key: jax.Array, ids: jax.Array, good: jax.Array, ensemble: _Ensemble, route: jax.Array) -> Any:
        (start, count), legs = route[0], route[1:]

        def seen(slot: jax.Array, at: jax.Array, ensemble: _Ensemble, found: Any) -> Any:
            row, values, first = look(data, ensemble, good, at)
            with jax.enable_x64(True):
                rows = jax.lax.dynamic_update_index_in_dim(found[0], row, slot, 0)
            return slot + 1, ensemble._replace(first=first), (rows, values if look.keep else {})

        def leg(k: jax.Array, now: Any) -> Any:
            at, slot, ensemble, found = now
            stop, looking = legs[k]
            x = _steps(stepper, draw, mesh, params, key, ids, ensemble.x, at, stop)
            ensemble = _Ensemble(x, _mark(ensemble.first, x, stop))
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
    found: tuple[_Ensemble, tuple[jax.Array, dict[str, jax.Array]]] = mapped(params, data, key, ids, good, ensemble, route)
    return found


def _steps(
    stepper: Stepper, draw: _Draw, mesh: Mesh, params: Any, key: jax.Array, ids: jax.Array, x: PyTree, start: jax.Array, stop: jax.Array
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
        if not _on_cpu(mesh):
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


def _small(stepper: Stepper, draw: _Draw, params: Any, x: PyTree) -> _Small | None:
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


@partial(jax.jit, static_argnums=(0, 1))
def _start(mesh: Mesh, paths: int, x0: PyTree) -> _Ensemble:
    """All paths at `x0`."""
    made = _Ensemble(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (paths, *leaf.shape)), x0), jnp.full(paths, -1, jnp.int32))
    split: _Ensemble = jax.lax.with_sharding_constraint(made, NamedSharding(mesh, P("paths")))
    return split


@dataclass(frozen=True)
class _Look:
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

    def __call__(self, data: Any, ensemble: _Ensemble, good: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
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


def _identity(layout: Layout) -> dict[str, Any]:
    """All that a run depends on to the last bit: a snapshot is read by the same run only."""
    plan = layout.plan
    keys = layout.key
    xi = None if plan.noise_shape is None else jnp.zeros(plan.noise_shape, _dtype(plan.x0))
    versions = store.provenance()["versions"]
    return {
        **plan.config,
        "functions and numbers": fingerprint([(plan.stepper, (plan.params, plan.x0, keys, xi)), (plan.observer, (plan.data, plan.x0))]),
        "key": np.asarray(jax.random.key_data(keys)),
        "paths": layout.paths,
        "antithetic": layout.antithetic,
        "keep": layout.keep,
        "observation steps": layout.grid,
        "observables": plan.observer.names,
        "chunk": layout.size,
        "devices": layout.mesh.size,
        "device": layout.mesh.devices.flat[0].device_kind,
        "processes": [machine.process_index(), machine.process_count()],
        "versions": {name: versions[name] for name in ("sdesam", "jax", "jaxlib")},
    }


def _on_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


def _chunk_bytes(mesh: Mesh) -> int:
    return _CHUNK_BYTES.get(mesh.devices.flat[0].platform, _ACCELERATOR_BYTES)


def _chunk_size(paths: int, chunk: int | None, mesh: Mesh, step_bytes: int, antithetic: bool) -> int:
    """Paths per chunk: a multiple of the devices, of even size over as few chunks as the memory allows."""
    unit = mesh.size * (2 if antithetic else 1)
    together = min(max(1, _chunk_bytes(mesh) // step_bytes), _CHUNK_PATHS.get(mesh.devices.flat[0].platform, paths))
    most = whole("chunk", chunk) if chunk is not None else together * mesh.size
    chunks = math.ceil(paths / most)
    even = math.ceil(paths / chunks)
    return math.ceil(even / unit) * unit


@dataclass
class _Moments:
    """Mean and sum of squared deviations over paths, merged in float64 (Chan, Golub & LeVeque 1983)."""

    count: int
    mean: np.ndarray
    squares: np.ndarray

    def add(self, other: _Moments) -> None:
        """Merge those of other paths."""
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.squares = other.count, other.mean.copy(), other.squares.copy()
            return
        total = self.count + other.count
        gap = other.mean - self.mean
        self.squares = self.squares + other.squares + gap**2 * (self.count * other.count / total)
        self.mean = self.mean + gap * (other.count / total)
        self.count = total

    @property
    def stderr(self) -> np.ndarray:
        """The standard error of the mean."""
        if self.count < 2:
            return np.full(np.shape(self.mean), np.nan)
        return np.asarray(np.sqrt(self.squares / (self.count - 1) / self.count))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
