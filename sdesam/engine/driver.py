"""The driver that SDEs and discrete optimizers share: many paths through time, statistics on a
grid.

Paths are advanced together in chunks, each chunk spread over the devices of this process, and the
chunks over the processes. Between the observation times a compiled loop of any length runs;
observables are averaged where they are computed. The random draw of (key, path, step) depends on
nothing else, so chunks, devices, processes and the choice of observation times do not change it.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from sdesam import store
from sdesam._functions import PROGRAMS
from sdesam._precision import of_products, precisely
from sdesam._process import begin_run, check_not_forked
from sdesam.engine import compiled, hardware
from sdesam.engine.compiled import Ensemble
from sdesam.engine.placement import (
    Placement,
    RunSpec,
    choose_placement,
    chunk_bytes,
    gigabytes,
)
from sdesam.engine.result import Divergence, Result
from sdesam.engine.snapshot import Snapshot, fingerprint

PyTree = Any

_PATIENCE = 0.5
"""Seconds that the steps of one call may take, and the looks of one: how long a snapshot, the
progress bar or an interrupt waits, but for one step or look, and the calls queued before."""
_AHEAD = 4
"""Calls queued before the oldest one is waited for."""
_ROW = 2**12
"""Numbers of a look up to which `advance` looks on its way: all rows of a call are half a megabyte
then.
"""
_FEW_TIMES = 1000
"""Observation times that a snapshot lists; of more it has the hash."""
_SETTINGS = (
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_enable_x64",
    "jax_allow_f16_reductions",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_optimization_level",
)
"""Settings of jax on which draws or the last bits of a result depend."""


def run(
    plan: RunSpec,
    key: jax.Array,
    *,
    progress: bool | None = None,
    label: str = "",
    snapshot: str | os.PathLike[str] | None = None,
    snapshot_every: float = 60.0,
    **options: Any,
) -> Result:
    """Advance paths to `plan.steps` and observe them on the way; `options` are those of
    :func:`choose_placement`.
    """
    check_not_forked()
    placement = choose_placement(plan, key, **options)
    placement.check_memory()
    if snapshot is not None and hardware.process_count() > 1:
        snapshot = f"{os.fspath(snapshot)}.{hardware.process_index()}"
    share = placement.host_bytes * (placement.last - placement.first) // placement.paths
    with Snapshot.open(snapshot, snapshot_every, lambda: _identity(placement), share) as found:
        work = _Work(placement, found)
        total = (placement.last - placement.first) * plan.steps
        # None leaves the bar to tqdm, which shows it on a terminal only
        hidden = None if progress is None else not progress
        begin_run()
        with tqdm(
            total=total,
            desc=label,
            delay=2,
            leave=False,
            unit="step",
            unit_scale=True,
            disable=hidden,
        ) as bar:
            work.run(bar.update)
    return work.result()


@dataclass(frozen=True)
class CostEstimate:
    """What a run will need.

    Args:
        paths: how many paths, in all processes together.
        steps: steps of each.
        chunks: how many chunks of paths this process advances one after another.
        host_bytes: memory of all that is kept of each path.
        device_bytes: working memory of one chunk, on all devices of this process, as the compiled
            step reports it.
        available_bytes: memory that is free now; None where the system does not say.
        compile_seconds: what compiling took.
        seconds: expected time without compiling, from a trial run; paths that diverge can double
            it.
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
        free = (
            f" of {gigabytes(self.available_bytes)} free"
            if self.available_bytes is not None
            else ""
        )
        return (
            f"{self.paths} paths of {self.steps} steps in {self.chunks} chunks; memory"
            f" {gigabytes(self.host_bytes)} for what is kept and {gigabytes(self.device_bytes)} to"
            f" work in{free}; about {self.seconds:.2g} s, and {self.compile_seconds:.2g} s to"
            " compile"
        )


def estimate_cost(plan: RunSpec, key: jax.Array, **options: Any) -> CostEstimate:
    """What a run needs, from its first steps; `options` are those of :func:`choose_placement`."""
    check_not_forked()
    placement = choose_placement(plan, key, **options)
    placement.check_memory()
    work = _Work(placement, Snapshot(None, 0.0, {}, None))
    state, ensemble = work.begin(_Pass(0, np.ones(placement.size, bool), np.empty((0, 2), int)))
    before = perf_counter()
    place = work.place(state)
    arguments = work.arguments(place, ensemble, 0, [])
    program = compiled.advance(*work.steps).lower(*arguments).compile()
    jax.block_until_ready(work.look(place, ensemble))
    compile_seconds = perf_counter() - before

    def timed(steps: int) -> float:
        nonlocal ensemble
        before = perf_counter()
        ensemble, _ = jax.block_until_ready(
            program(*work.arguments(place, ensemble, 0, [_Segment(steps, False)]))
        )
        return perf_counter() - before

    timed(1)
    steps, passed = 1, timed(1)
    while passed < _PATIENCE / 2 and steps < plan.steps:
        steps = min(2 * steps, plan.steps)
        passed = timed(steps)
    before = perf_counter()
    jax.block_until_ready(work.look(place, ensemble))
    look = perf_counter() - before
    used = program.memory_analysis()
    chunks = math.ceil((placement.last - placement.first) / placement.size)
    return CostEstimate(
        paths=placement.paths,
        steps=plan.steps,
        chunks=chunks,
        host_bytes=placement.host_bytes,
        # as seen from one device
        device_bytes=(
            placement.mesh.size * (used.temp_size_in_bytes + used.argument_size_in_bytes)
            if used
            else placement.device_bytes
        ),
        available_bytes=hardware.available_memory(),
        compile_seconds=compile_seconds,
        seconds=chunks * (plan.steps * passed / steps + len(placement.grid) * look),
    )


class _Segment(NamedTuple):
    """Steps without an observation between them."""

    stop: int
    """The step to stop at."""
    look: bool
    """Whether it is an observation time."""


@dataclass
class _Pass:
    """A chunk on its way. If a path of it diverges it goes twice: first to learn which do, then
    without them in the moments.
    """

    start: int
    """The first of its rows."""
    good: np.ndarray
    """Which of its paths the moments are of."""
    windows: np.ndarray
    """`(after, until)`, shape `(k, 2)`: in these steps paths are known to diverge, and after each
    it is looked which.
    """
    at: int = 0
    """Steps made."""
    seen: int = 0
    """Observations made."""
    checks: list[int] = field(default_factory=lambda: [0])
    """The steps after which it was looked whether all is finite."""


@dataclass
class _Pace:
    """What is known of the time that calls of a program take, kept for its next run."""

    called: bool = False
    """Whether it has been called, and so compiled."""
    speed: float = 0.0
    """Steps of a chunk in a second."""
    wait: float = math.inf
    """Seconds for one look and the steps before it."""


@lru_cache(maxsize=PROGRAMS)
def _pace(steps: Hashable, size: int, shapes: Hashable) -> _Pace:
    return _Pace()


# A worked example: 4 paths of 6 steps in chunks of 4, observed at the steps 0, 3 and 6 on a machine
# where every call ends at an observation. Path 2 is infinite after step 5.
#
#     call                  state after it                  what is known
#     begin                 at=0  seen=0  checks=[0]
#     (stop=0, look)        at=0  seen=1  checks=[0, 0]     moments at step 0 are of 4 paths
#     (stop=3, look)        at=3  seen=2  checks=[0, 0, 3]  moments at step 3 are of 4 paths
#     (stop=6, look)        at=6  seen=3  checks=[..., 6]   path 2 is not finite at step 6
#
# The moments of a path that diverges must not be in any row: with it the mean would be infinite,
# and a growing path bends the mean before it is infinite. That it diverges is known only now, when
# its numbers are in sums already, from which nothing can be taken out. So the chunk is run once
# more without it:
#
#     begin                 good=[1, 1, 0, 1]  windows=[(3, 6)]
#     (stop=0, look)        moments at step 0 are of 3 paths
#     (stop=3, look)        moments at step 3 are of 3 paths
#     (stop=4) (stop=5)     inside the window step by step: first[2] = 5, the step that is reported
#     (stop=6, look)        moments at step 6 are of 3 paths; the chunk is finished
#
# The window (3, 6) says between which checks the path was lost. The second run has the same draws,
# because these are made from the path's number and the step. A run without divergence goes once,
# and never asks step by step: looking costs more than stepping.


class _Work:
    """A run on its way: what has been found so far, and what comes next."""

    def __init__(self, placement: Placement, snapshot: Snapshot):
        plan = placement.plan
        self.placement, self.snapshot = placement, snapshot
        self.rows = placement.last - placement.first
        self.split, everywhere = compiled.shardings(placement.mesh)
        # numbers and data go to the devices once, not with every call
        stepper, observer, self.key = jax.device_put(
            (plan.stepper, plan.observer, placement.key), everywhere
        )
        draw = compiled.Draw(
            plan.noise_shape,
            np.dtype(_dtype(plan.x0)).name,
            plan.normals,
            placement.antithetic,
            carried=False,
        )
        small = compiled.small(stepper, draw, plan.x0) is not None
        self.draw = replace(draw, carried=hardware.on_cpu(placement.mesh) and not small)
        self.tables = {
            name: np.empty((self.rows, *shape[1:]), dtype)
            for name, (shape, dtype) in placement.tables.items()
        }
        shapes = {
            name: (len(placement.grid), *shape.shape)
            for name, shape in placement.observables.items()
        }
        self.moments = {name: _Moments.none(shape) for name, shape in shapes.items()}
        # of the chunk on its way, at each time and from each device: a row of moments of all
        # observables
        self.part = np.zeros(
            (
                len(placement.grid),
                placement.mesh.size,
                4 * sum(math.prod(shape[1:]) for shape in shapes.values()),
            )
        )
        self.done = 0
        self.x0 = jax.tree.map(np.asarray, plan.x0)  # not where the user put it
        look = compiled.Look(
            observer,
            max(1, chunk_bytes(placement.mesh) // plan.observe_bytes),
            placement.antithetic,
        )
        # leaves and structures apart: programs are kept by these, and called with those
        self.numbers, structure = jax.tree.flatten(stepper)
        self.data, self.looking = jax.tree.flatten(look)
        self.on_the_way = small and not placement.keeps_values and 0 < self.part.shape[2] <= _ROW
        """Whether `advance` looks itself."""
        self.steps = (
            structure,
            self.draw,
            self.looking if self.on_the_way else None,
            placement.mesh,
        )
        """What `advance` is compiled for."""
        self.pace = _pace(self.steps, placement.size, tuple(leaf.shape for leaf in self.numbers))

    def run(self, tick: Callable[[int], object]) -> None:
        """All chunks from beginning to end, or from the snapshot on."""
        state = self._restore()
        tick(self.done * self.placement.plan.steps)
        if state is not None and not len(state[0].windows):
            tick(state[0].at * int(state[0].good.sum()))
        while self.done < self.rows:
            count = min(self.placement.size, self.rows - self.done)
            if state is None:
                state = self.begin(
                    _Pass(self.done, np.arange(self.placement.size) < count, np.empty((0, 2), int))
                )
            state = self._through(*state, tick)
            if state is None:
                self.done += count
        self._save(None)

    def begin(self, state: _Pass) -> tuple[_Pass, Ensemble]:
        """A chunk at its start."""
        return state, compiled.start(self.draw, self.placement.mesh)(
            self.key, self.place(state)[0], self.x0
        )

    def place(self, state: _Pass) -> tuple[jax.Array, jax.Array]:
        """The numbers of a chunk's paths, and which are good."""
        ids = (self.placement.first + state.start + np.arange(self.placement.size)).astype(
            np.uint32
        )
        placed: tuple[jax.Array, jax.Array] = jax.device_put((ids, state.good), self.split)
        return placed

    def arguments(
        self,
        place: tuple[jax.Array, jax.Array],
        ensemble: Ensemble,
        start: int,
        segments: Sequence[_Segment],
    ) -> tuple[Any, ...]:
        """The arguments of `compiled.advance`."""
        ids, good = place
        route = np.zeros((1 + compiled.SEGMENTS, 2), np.int32)
        route[: 1 + len(segments)] = [(start, len(segments)), *segments]
        return (
            self.numbers,
            self.key,
            ids,
            ensemble,
            route,
            (self.data, good) if self.on_the_way else (),
        )

    def look(
        self, place: tuple[jax.Array, jax.Array], ensemble: Ensemble
    ) -> tuple[Any, dict[str, Any]]:
        """Rows of moments, and values."""
        if not self.placement.plan.observer.names:
            return np.zeros((self.placement.mesh.size, 1, 0)), {}
        looked = compiled.observe(self.looking, self.placement.mesh)(
            self.data, ensemble.x, place[1]
        )
        found: tuple[Any, dict[str, Any]] = looked
        return found

    def _through(
        self, state: _Pass, ensemble: Ensemble, tick: Callable[[int], object]
    ) -> tuple[_Pass, Ensemble] | None:
        """One chunk to its end; what it has to do next, or None."""
        placement, place = self.placement, self.place(state)
        queue: deque[tuple[slice, Any]] = deque()

        def collect(most: int) -> None:
            while len(queue) > most:
                self._collect(state, *queue.popleft())

        while segments := self._segments(state):
            if self.snapshot.due():
                collect(0)
                self._save((state, ensemble))
            ensemble, found = self._advance(state, place, ensemble, segments)
            if not len(state.windows):
                tick((segments[-1].stop - state.at) * int(state.good.sum()))
            looks = sum(segment.look for segment in segments)
            if looks:
                if placement.keep == "trajectories":
                    for k, leaf in enumerate(jax.tree.leaves(ensemble.x)):
                        self._keep(state, f"trajectory.{k}", leaf, state.seen)
                queue.append((slice(state.seen, state.seen + looks), found))
                collect(_AHEAD)
            state.at, state.seen = segments[-1].stop, state.seen + looks
            state.checks += [segment.stop for segment in segments]
        collect(0)
        first = np.array(ensemble.first)
        bad = first >= 0
        if placement.antithetic:
            bad = np.repeat(bad.reshape(-1, 2).any(axis=1), 2)
        if (bad & state.good).any():
            until = np.unique(first[state.good & (first > 0)])
            after = np.array(state.checks)[np.searchsorted(state.checks, until) - 1]
            return self.begin(
                _Pass(state.start, state.good & ~bad, np.stack([after, until], axis=1))
            )
        self._finish(state, ensemble, first)
        return None

    def _segments(self, state: _Pass) -> list[_Segment]:
        """What to do in one call: go from observation to observation, not beyond our patience, and
        step by step where a path diverges.
        """
        grid, at, seen = self.placement.grid, state.at, state.seen
        # until it is known how long steps and looks take: one
        limit = min(self.placement.plan.steps, at + max(1, int(self.pace.speed * _PATIENCE)))
        most = (
            max(1, int(min(compiled.SEGMENTS, _PATIENCE / self.pace.wait)))
            if self.on_the_way
            else 1
        )
        segments: list[_Segment] = []
        while len(segments) < compiled.SEGMENTS and seen < state.seen + most:
            stop = next(
                (
                    min(limit, at + 1 if after <= at else int(after))
                    for after, until in state.windows
                    if at < until
                ),
                limit,
            )
            look = seen < len(grid) and int(grid[seen]) <= stop
            stop = int(grid[seen]) if look else stop
            if stop == at and not look:
                break
            segments.append(_Segment(stop, look))
            at, seen = stop, seen + look
        return segments

    def _advance(
        self,
        state: _Pass,
        place: tuple[jax.Array, jax.Array],
        ensemble: Ensemble,
        segments: list[_Segment],
    ) -> tuple[Ensemble, Any]:
        steps, looks = segments[-1].stop - state.at, sum(segment.look for segment in segments)
        pace = self.pace
        rows, values, called = None, dict[str, Any](), steps > 0 or self.on_the_way
        # where patience cuts the call short: it is long enough for the wait not to matter, or
        # little is known of the speed
        short = steps >= max(1, int(pace.speed * _PATIENCE)) or (
            self.on_the_way and looks > 0 and (looks + 1) * pace.wait > _PATIENCE
        )
        timed, pace.called = called and pace.called and short, called or pace.called
        if timed:
            jax.block_until_ready(ensemble)
        before = perf_counter()
        if called:
            ensemble, rows = compiled.advance(*self.steps)(
                *self.arguments(place, ensemble, state.at, segments)
            )
        if timed:
            jax.block_until_ready(ensemble)
            passed = perf_counter() - before
            pace.speed = max(steps, 1) / passed
            pace.wait = passed / looks if looks else pace.wait
        if segments[-1].look and not self.on_the_way:
            rows, values = self.look(place, ensemble)
        if isinstance(rows, jax.Array):
            rows.copy_to_host_async()
        return ensemble, (rows, values if self.placement.keeps_values else {})

    def _collect(self, state: _Pass, times: slice, found: tuple[Any, dict[str, Any]]) -> None:
        rows, values = found
        self.part[times] = np.asarray(rows).swapaxes(0, 1)[: times.stop - times.start]
        for name, table in values.items():
            self._keep(state, f"values.{name}", table, times.start)

    def _keep(self, state: _Pass, name: str, rows: Any, time: int | None = None) -> None:
        count = min(self.placement.size, self.rows - state.start)
        where = slice(state.start, state.start + count)
        self.tables[name][where if time is None else (where, time)] = np.asarray(rows)[:count]

    def _finish(self, state: _Pass, ensemble: Ensemble, first: np.ndarray) -> None:
        self._keep(state, "first", first)
        if self.placement.keep != "means":
            for k, leaf in enumerate(jax.tree.leaves(ensemble.x)):
                self._keep(state, f"final.{k}", leaf)
        in_a_row = [self.moments[name] for name in sorted(self.moments)]  # the order of jax
        ends = np.cumsum([math.prod(moments.mean.shape[1:]) for moments in in_a_row])
        # (devices, times, components) of each observable, for each part of a row
        parts = [
            np.split(part.swapaxes(0, 1), ends, axis=2)[:-1]
            for part in np.split(self.part, 4, axis=2)
        ]
        for moments, *found in zip(in_a_row, *parts, strict=True):
            for of_device in zip(*found, strict=True):
                mean, squares, count, lost = (
                    part.reshape(moments.mean.shape) for part in of_device
                )
                moments.add(_Moments(count.astype(int), mean, squares, lost.astype(int)))

    def _save(self, now: tuple[_Pass, Ensemble] | None) -> None:
        if self.snapshot.path is None:
            return
        position: dict[str, Any] = {"done": self.done}
        upto = self.done + (self.placement.size if now else 0)
        arrays = {f"table.{name}": table[:upto] for name, table in self.tables.items()}
        for name, moments in self.moments.items():
            arrays |= {f"{part}.{name}": array for part, array in vars(moments).items()}
        if now:
            state, ensemble = now
            position |= {"start": state.start, "at": state.at, "seen": state.seen}
            arrays |= {
                "good": state.good,
                "windows": state.windows,
                "checks": np.array(state.checks),
            }
            arrays |= {
                f"ensemble.{k}": np.asarray(leaf)
                for k, leaf in enumerate(jax.tree.leaves(ensemble))
            }
            arrays["part"] = self.part
        self.snapshot.write(arrays, position)

    def _restore(self) -> tuple[_Pass, Ensemble] | None:
        if self.snapshot.found is None:
            return None
        arrays, position = self.snapshot.found
        self.snapshot.found = None
        self.done = position["done"]
        for name, table in self.tables.items():
            kept = arrays[f"table.{name}"]
            table[: len(kept)] = kept
        for name in self.moments:
            self.moments[name] = _Moments(
                **{part.name: arrays[f"{part.name}.{name}"] for part in fields(_Moments)}
            )
        if "at" not in position:
            return None
        self.part = arrays["part"]
        state = _Pass(
            position["start"],
            arrays["good"],
            arrays["windows"],
            position["at"],
            position["seen"],
            arrays["checks"].tolist(),
        )
        _, fresh = self.begin(state)
        leaves = [
            jax.device_put(arrays[f"ensemble.{k}"], self.split)
            for k in range(len(jax.tree.leaves(fresh)))
        ]
        return state, jax.tree.unflatten(jax.tree.structure(fresh), leaves)

    def result(self) -> Result:
        """What was found, by all processes together."""
        placement, plan, names = self.placement, self.placement.plan, list(self.moments)
        own = {f"table.{name}": table for name, table in self.tables.items()}
        for k, moments in enumerate(self.moments.values()):
            own |= {f"{k}.{part}": array for part, array in vars(moments).items()}
        everyone = hardware.gather(own)
        if len(everyone) > 1:
            self.tables = {
                name: np.concatenate([one[f"table.{name}"] for one in everyone])
                for name in self.tables
            }
            for k, name in enumerate(names):
                parts = [
                    _Moments(**{part.name: one[f"{k}.{part.name}"] for part in fields(_Moments)})
                    for one in everyone
                ]
                self.moments[name] = parts[0]
                for part in parts[1:]:
                    parts[0].add(part)

        def states(kind: str) -> PyTree:
            leaves, structure = jax.tree.flatten(plan.x0)
            return jax.tree.unflatten(
                structure, [self.tables[f"{kind}.{k}"] for k in range(len(leaves))]
            )

        first = self.tables["first"]
        config = {
            **plan.config,
            "paths": placement.paths,
            "antithetic": placement.antithetic,
            "key": np.asarray(jax.random.key_data(placement.key)).tolist(),
        }
        return Result(
            time=placement.grid * plan.step_time,
            mean={name: moments.mean for name, moments in self.moments.items()},
            stderr={name: moments.stderr for name, moments in self.moments.items()},
            final=states("final") if placement.keep != "means" else None,
            diverged=Divergence(
                np.flatnonzero(first >= 0), first[first >= 0] * plan.step_time, placement.paths
            ),
            nonfinite={name: moments.lost for name, moments in self.moments.items()},
            config=config,
            provenance=store.provenance(),
            values=(
                {name: self.tables[f"values.{name}"] for name in names}
                if placement.keeps_values
                else None
            ),
            trajectory=states("trajectory") if placement.keep == "trajectories" else None,
        )


def _identity(placement: Placement) -> dict[str, Any]:
    """All that a run depends on to the last bit: a snapshot is read by the same run only."""
    plan = placement.plan
    keys = placement.key
    xi = None if plan.noise_shape is None else jnp.zeros(plan.noise_shape, _dtype(plan.x0))
    versions = store.provenance()["versions"]
    times = np.asarray(placement.grid)
    return {
        **plan.config,
        "precision of products": of_products(),
        "functions and numbers": precisely(fingerprint)(
            [
                (_call, (plan.stepper, plan.x0, keys, xi)),
                (_call, (plan.observer, plan.x0)),
            ]
        ),
        "key": np.asarray(jax.random.key_data(keys)),
        "paths": placement.paths,
        "antithetic": placement.antithetic,
        "keep": placement.keep,
        "observation steps": (
            times
            if len(times) <= _FEW_TIMES
            else hashlib.sha256(times.astype(np.int64).tobytes()).hexdigest()
        ),
        "observables": plan.observer.names,
        "chunk": placement.size,
        "devices": placement.mesh.size,
        "device": placement.mesh.devices.flat[0].device_kind,
        "processes": [hardware.process_index(), hardware.process_count()],
        "instructions of the CPU": hardware.instruction_set()
        if hardware.on_cpu(placement.mesh)
        else "",
        "flags of XLA": hardware.compiler_flags(),
        "settings of jax": {name: str(getattr(jax.config, name, None)) for name in _SETTINGS},
        "versions": {name: versions[name] for name in ("sdesam", "jax", "jaxlib")},
    }


def _call(fn: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a function that is a pytree: its numbers are then arguments, too."""
    return fn(*arguments)


@dataclass
class _Moments:
    """Moments over paths of one observable, merged in float64 (Chan, Golub & LeVeque 1983); arrays
    of shape `(times, ...)`.
    """

    count: np.ndarray
    """How many values are in the mean: those that are finite."""
    mean: np.ndarray
    squares: np.ndarray
    """The sum of squared deviations from the mean."""
    lost: np.ndarray
    """How many values are not finite."""

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> _Moments:
        """Those of no path."""
        return cls(
            np.zeros(shape, int), np.full(shape, np.nan), np.zeros(shape), np.zeros(shape, int)
        )

    def add(self, other: _Moments) -> None:
        """Merge those of other paths."""
        total = self.count + other.count
        here, there = self.count > 0, other.count > 0
        both = here & there
        gap = np.where(both, other.mean, 0) - np.where(both, self.mean, 0)
        divisor = np.maximum(total, 1)
        self.squares = self.squares + other.squares + gap**2 * (self.count * other.count / divisor)
        self.mean = np.where(here, self.mean + gap * (other.count / divisor), other.mean)
        self.count, self.lost = total, self.lost + other.lost

    @property
    def stderr(self) -> np.ndarray:
        """The standard error of the mean; NaN for fewer than two values."""
        known = self.count > 1
        count = np.where(known, self.count, 2)
        return np.where(known, np.sqrt(self.squares / (count - 1) / count), np.nan)


def _dtype(x: PyTree) -> Any:
    return jnp.result_type(*jax.tree.leaves(x))
