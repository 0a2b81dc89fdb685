"""A run: many paths through time, for SDEs and for discrete optimizers, and what it will cost.

Paths are advanced together in chunks, each chunk spread over the devices of this process, and the
chunks over the processes. Between the observation times a compiled loop of any length runs;
observables are averaged where they are computed. The random draw of (key, path, step) depends on
nothing else, so chunks, devices, processes and the choice of observation times do not change it.

The order of calls is that of :mod:`sdesam.ensemble.work`, the layout that of
:mod:`sdesam.ensemble.placement`, and what is compiled is in :mod:`sdesam.ensemble.compiled`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from sdesam._util.process import begin_run, check_not_forked
from sdesam.ensemble import compiled, hardware
from sdesam.ensemble.placement import RunSpec, choose_placement, gigabytes
from sdesam.ensemble.result import Result
from sdesam.ensemble.snapshot import Snapshot, identity
from sdesam.ensemble.work import PATIENCE, Pass, Segment, Work


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
    with Snapshot.open(snapshot, snapshot_every, lambda: identity(placement), share) as found:
        work = Work(placement, found)
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
    work = Work(placement, Snapshot(None, 0.0, {}, None))
    state, ensemble = work.begin(Pass(0, np.ones(placement.size, bool), np.empty((0, 2), int)))
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
            program(*work.arguments(place, ensemble, 0, [Segment(steps, False)]))
        )
        return perf_counter() - before

    timed(1)
    steps, passed = 1, timed(1)
    while passed < PATIENCE / 2 and steps < plan.steps:
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
