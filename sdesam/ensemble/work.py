"""A run on its way: which call of a compiled program comes next, what is kept of it, where it is
when it stops.

A chunk of paths goes from observation to observation. A call is never longer than a user would wait
for a snapshot, a progress bar or an interrupt, and a path that diverges is taken out of all moments
by a second pass of its chunk.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._util import store
from sdesam._util.functions import PROGRAMS
from sdesam.ensemble import compiled, draws, hardware
from sdesam.ensemble.compiled import Ensemble
from sdesam.ensemble.moments import Moments
from sdesam.ensemble.placement import Placement, chunk_bytes
from sdesam.ensemble.result import Divergence, Result
from sdesam.ensemble.snapshot import Snapshot

PyTree = Any

PATIENCE = 0.5
"""Seconds that the steps of one call may take, and the looks of one: how long a snapshot, the
progress bar or an interrupt waits, but for one step or look, and the calls queued before."""
_AHEAD = 4
"""Calls queued before the oldest one is waited for."""
_ROW = 2**12
"""Numbers of a look up to which `advance` looks on its way: all rows of a call are half a megabyte
then.
"""


class Segment(NamedTuple):
    """Steps without an observation between them."""

    stop: int
    """The step to stop at."""
    look: bool
    """Whether it is an observation time."""


@dataclass
class Pass:
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
class Pace:
    """What is known of the time that calls of a program take, kept for its next run."""

    called: bool = False
    """Whether it has been called, and so compiled."""
    speed: float = 0.0
    """Steps of a chunk in a second."""
    wait: float = math.inf
    """Seconds for one look and the steps before it."""


@lru_cache(maxsize=PROGRAMS)
def pace_of(steps: Hashable, size: int, shapes: Hashable) -> Pace:
    """What is known of a program for chunks of this size, and for numbers of these shapes."""
    return Pace()


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


class Work:
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
        draw = draws.Draw(
            plan.noise_shape,
            np.dtype(jnp.result_type(*jax.tree.leaves(plan.x0))).name,
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
        self.moments = {name: Moments.none(shape) for name, shape in shapes.items()}
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
        self.pace = pace_of(self.steps, placement.size, tuple(leaf.shape for leaf in self.numbers))

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
                    Pass(self.done, np.arange(self.placement.size) < count, np.empty((0, 2), int))
                )
            state = self._through(*state, tick)
            if state is None:
                self.done += count
        self._save(None)

    def begin(self, state: Pass) -> tuple[Pass, Ensemble]:
        """A chunk at its start."""
        return state, compiled.start(self.draw, self.placement.mesh)(
            self.key, self.place(state)[0], self.x0
        )

    def place(self, state: Pass) -> tuple[jax.Array, jax.Array]:
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
        segments: Sequence[Segment],
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
        self, state: Pass, ensemble: Ensemble, tick: Callable[[int], object]
    ) -> tuple[Pass, Ensemble] | None:
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
            # the draws depend on path and step alone, so that the second pass repeats the first
            return self.begin(
                Pass(state.start, state.good & ~bad, np.stack([after, until], axis=1))
            )
        self._finish(state, ensemble, first)
        return None

    # A worked example: 1000 steps of a small state, which is looked at within the calls, at the
    # steps 400 and 1000. A second is enough for 1400 steps, and looks take next to no time. A call
    # may take half a second, so 700 steps:
    #
    #     first call     (stop=400, look)  (stop=700)       the limit ends it
    #     second call    (stop=1000, look)
    #
    # In the very first run nothing is known, and the first call has one step. It compiles, so that
    # its time says nothing. The second call has one step too and is timed. From there on calls are
    # as long as they may be.

    def _segments(self, state: Pass) -> list[Segment]:
        """What to do in one call: go from observation to observation, not beyond our patience, and
        step by step where a path diverges.
        """
        grid, at, seen = self.placement.grid, state.at, state.seen
        # until it is known how long steps and looks take: one
        limit = min(self.placement.plan.steps, at + max(1, int(self.pace.speed * PATIENCE)))
        most = (
            max(1, int(min(compiled.SEGMENTS, PATIENCE / self.pace.wait))) if self.on_the_way else 1
        )
        segments: list[Segment] = []
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
            segments.append(Segment(stop, look))
            at, seen = stop, seen + look
        return segments

    def _advance(
        self,
        state: Pass,
        place: tuple[jax.Array, jax.Array],
        ensemble: Ensemble,
        segments: list[Segment],
    ) -> tuple[Ensemble, Any]:
        steps, looks = segments[-1].stop - state.at, sum(segment.look for segment in segments)
        pace = self.pace
        rows, values, called = None, dict[str, Any](), steps > 0 or self.on_the_way
        # where patience cuts the call short: it is long enough for the wait not to matter, or
        # little is known of the speed
        short = steps >= max(1, int(pace.speed * PATIENCE)) or (
            self.on_the_way and looks > 0 and (looks + 1) * pace.wait > PATIENCE
        )
        timed, pace.called = called and pace.called and short, called or pace.called
        # calls are queued: without waiting for those before it the time would be theirs, too
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
        # rows are small and wanted soon; the copy goes on while the next call computes
        if isinstance(rows, jax.Array):
            rows.copy_to_host_async()
        return ensemble, (rows, values if self.placement.keeps_values else {})

    def _collect(self, state: Pass, times: slice, found: tuple[Any, dict[str, Any]]) -> None:
        rows, values = found
        # (devices, 16, numbers) from `advance`, (devices, 1, numbers) from a look of its own: rows
        # beyond the looks that were made are empty
        self.part[times] = np.asarray(rows).swapaxes(0, 1)[: times.stop - times.start]
        for name, table in values.items():
            self._keep(state, f"values.{name}", table, times.start)

    def _keep(self, state: Pass, name: str, rows: Any, time: int | None = None) -> None:
        count = min(self.placement.size, self.rows - state.start)
        where = slice(state.start, state.start + count)
        self.tables[name][where if time is None else (where, time)] = np.asarray(rows)[:count]

    def _finish(self, state: Pass, ensemble: Ensemble, first: np.ndarray) -> None:
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
                moments.add(Moments(count.astype(int), mean, squares, lost.astype(int)))

    def _save(self, now: tuple[Pass, Ensemble] | None) -> None:
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

    def _restore(self) -> tuple[Pass, Ensemble] | None:
        if self.snapshot.found is None:
            return None
        arrays, position = self.snapshot.found
        self.snapshot.found = None
        self.done = position["done"]
        for name, table in self.tables.items():
            kept = arrays[f"table.{name}"]
            table[: len(kept)] = kept
        for name in self.moments:
            self.moments[name] = Moments(
                **{part.name: arrays[f"{part.name}.{name}"] for part in fields(Moments)}
            )
        if "at" not in position:
            return None
        self.part = arrays["part"]
        state = Pass(
            position["start"],
            arrays["good"],
            arrays["windows"],
            position["at"],
            position["seen"],
            arrays["checks"].tolist(),
        )
        # only for the structure of an ensemble; its arrays are those of the snapshot
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
        # all processes get all parts, in one order, and so make the same result to the last bit
        everyone = hardware.gather(own)
        if len(everyone) > 1:
            self.tables = {
                name: np.concatenate([one[f"table.{name}"] for one in everyone])
                for name in self.tables
            }
            for k, name in enumerate(names):
                parts = [
                    Moments(**{part.name: one[f"{k}.{part.name}"] for part in fields(Moments)})
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
