"""Contenders and their timing: in turn, medians and spreads, the first call apart."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Statistics = dict[str, np.ndarray] | None
"""Per observable its mean over paths and the variance over paths, shape `(times, 2)`; None for a
floor, which solves nothing.
"""

Run = Callable[[int], Statistics]
"""`seed -> statistics`, timed from call to return."""


@dataclass(frozen=True)
class Contender:
    """One way to do a workload.

    Args:
        name: for tables.
        kind: "ours", "peer" or "floor" (part of the work alone, which nobody can beat).
        prepare: `(paths, steps) -> run`; not timed.
        share: the part of the workload's steps that is run, because a slow peer needs no more to be
            timed; its cost per step is compared.
        needs: modules that must be installed.
        cpu_only: it does not use a GPU, and so takes part on CPU alone.
        about: one line: what it is.
        most_paths: no more are run, for the same reason as `share`.
    """

    name: str
    kind: Literal["ours", "peer", "floor"]
    prepare: Callable[[int, int], Run]
    about: str
    share: float = 1.0
    needs: tuple[str, ...] = ()
    cpu_only: bool = False
    most_paths: int = 10**9

    def missing(self, on_gpu: bool) -> str | None:
        """Why it cannot take part, or None."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} not installed"
        return "not for a GPU" if on_gpu and self.cpu_only else None


@dataclass(frozen=True)
class Timing:
    """What was measured of one contender."""

    seconds: tuple[float, ...]
    first: float
    paths: int
    steps: int
    statistics: Statistics

    @property
    def median(self) -> float:
        """Seconds of a run."""
        return float(np.median(self.seconds))

    @property
    def nanoseconds(self) -> float:
        """Nanoseconds per path and step."""
        return 1e9 * self.median / (self.paths * self.steps)

    def to_json(self) -> dict[str, Any]:
        """All of it; `spread` is (largest - smallest) / median, `statistics` are those of the first
        run.
        """
        return {
            "ns_per_path_step": self.nanoseconds,
            "seconds": list(self.seconds),
            "median": self.median,
            "spread": (max(self.seconds) - min(self.seconds)) / self.median,
            "compile_seconds": max(0.0, self.first - self.median),
            "paths": self.paths,
            "steps": self.steps,
            "statistics": self.statistics,
        }


def in_turn(
    contenders: Sequence[Contender],
    paths: int,
    steps: int,
    unit: int,
    repeats: int,
    show: Callable[[str], Any] = lambda _: None,
) -> dict[str, Timing]:
    """Every contender `repeats` times, in turn, after one call that compiles.

    Args:
        contenders: those that take part.
        paths: how many.
        steps: of the whole workload.
        unit: steps are a multiple of it.
        repeats: timed runs of each.
        show: is told what is done.
    """
    ready: list[tuple[Contender, Run, int, int, float, Statistics]] = []
    for contender in contenders:
        many = max(unit, round(steps * contender.share / unit) * unit)
        show(f"compiling {contender.name}")
        here = min(paths, contender.most_paths)
        run = contender.prepare(here, many)
        ready.append((contender, run, here, many, *_clock(run, 0)))
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for repeat in range(repeats):
        show(f"round {repeat + 1} of {repeats}")
        gc.collect()
        for contender, run, *_ in ready:
            seconds[contender.name].append(_clock(run, repeat + 1)[0])
    return {
        contender.name: Timing(tuple(seconds[contender.name]), first, here, many, seen)
        for contender, _, here, many, first, seen in ready
    }


def taking_part(
    contenders: Iterable[Contender], on_gpu: bool
) -> tuple[list[Contender], dict[str, str]]:
    """Those that can run here, and why the others cannot."""
    reasons = [(contender, contender.missing(on_gpu)) for contender in contenders]
    return [c for c, why in reasons if why is None], {
        c.name: why for c, why in reasons if why is not None
    }


def on_all_devices(
    fn: Callable[[Any, Any], Any],
    paths: int,
    options: dict[str, Any] | None = None,
    columns: bool = False,
) -> Callable[[Any, Any], Any]:
    """`fn(seed, per path)` compiled, its paths on all devices: a peer may use every core too.

    Args:
        fn: its second argument and its result have the paths as leading axis.
        paths: how many; on one device where they cannot be shared out evenly.
        options: of the compiler.
        columns: the paths are the last of two axes of the result.
    """
    import jax
    from jax.sharding import Mesh
    from jax.sharding import PartitionSpec as P

    devices = jax.devices()
    mesh = Mesh(np.array(devices if paths % len(devices) == 0 else devices[:1]), ("paths",))
    out = P(None, "paths") if columns else P("paths")
    return jax.jit(
        jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("paths")), out_specs=out, check_vma=False),
        compiler_options=options,
    )


def wide_vectors() -> dict[str, Any] | None:
    """The compiler option for vectors of 512 bits, which a floor needs where the processor has
    them; None where it is unknown (a GPU).
    """
    import jax

    options = {"xla_cpu_prefer_vector_width": 512}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(np.float32(0))
    except Exception:
        return None
    return options


def _clock(run: Run, seed: int) -> tuple[float, Statistics]:
    start = time.perf_counter()
    seen = run(seed)
    return time.perf_counter() - start, seen
