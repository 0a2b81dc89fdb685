"""What a simulation or a training run gives back: one type for both sides, so that they can be compared."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sdesam import store

SCHEMA = "sdesam.result/1"


@dataclass(frozen=True)
class Divergence:
    """Which paths have a state that left the finite numbers, and when; they are in no mean.

    Args:
        paths: their indices, shape `(count,)`.
        time: the SDE time at which each was first seen not finite, shape `(count,)`.
        total: how many paths there were.
    """

    paths: np.ndarray
    time: np.ndarray
    total: int

    @property
    def count(self) -> int:
        """How many paths diverged."""
        return len(self.paths)

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        if not self:
            return f"none of {self.total} paths diverged"
        when = f"at time {self.time.min():.4g}"
        if self.time.max() > self.time.min():
            when = f"between times {self.time.min():.4g} and {self.time.max():.4g}"
        return f"{self.count} of {self.total} paths diverged {when}; they are left out of every mean"


@dataclass(frozen=True)
class Result:
    """Statistics over paths on a time grid.

    Args:
        time: SDE time (`t = k eta`), shape `(times,)`.
        mean: per observable, the mean over the paths whose state stayed finite to the end, shape `(times, ...)`; NaN where no value is finite.
        stderr: its standard error; NaN where fewer than two independent paths are left.
        final: the last state of every path, diverged ones included; structure of `x0`, leading axis `paths`; None with `keep="means"`.
        diverged: which paths diverged, and when.
        config: all that the run depends on, the key included.
        provenance: versions, device, revision, time.
        values: per observable, the value of every path, shape `(paths, times, ...)`; only with `keep="values"` or `"trajectories"`.
        trajectory: the state of every path at every time, leading axes `(paths, times)`; only with `keep="trajectories"`.
        nonfinite: per observable, how many of its values are infinite or NaN although the state of the path is finite, shape as `mean`. These
            values are left out of the mean of that observable and of no other.
    """

    time: np.ndarray
    mean: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]
    final: Any
    diverged: Divergence
    config: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    values: dict[str, np.ndarray] | None = None
    trajectory: Any = None
    nonfinite: dict[str, np.ndarray] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """One sentence for each observable that has values that are not finite.

        >>> counts = {"log": np.array([0, 3, 5])}
        >>> out = Result(np.arange(3.0), {}, {}, None, Divergence(np.array([]), np.array([]), 8), {}, nonfinite=counts)
        >>> out.warnings()
        ['log: up to 5 of 8 values are not finite between times 1 and 2; they are left out of the mean of log alone']
        """
        return [self._warning(name, lost.reshape(len(self.time), -1).max(axis=1)) for name, lost in self.nonfinite.items() if lost.any()]

    def _warning(self, name: str, lost: np.ndarray) -> str:
        """The sentence for one observable; `lost` counts values at each time."""
        times = self.time[lost > 0]
        count, when = f"{lost.max()}", f"at time {times[0]:.4g}"
        if len(times) > 1:
            count, when = f"up to {count}", f"between times {times[0]:.4g} and {times[-1]:.4g}"
        paths = self.diverged.total - self.diverged.count
        return f"{name}: {count} of {paths} values are not finite {when}; they are left out of the mean of {name} alone"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one npz file, atomically and without pickle."""
        arrays = {"time": self.time, "diverged.paths": self.diverged.paths, "diverged.time": self.diverged.time}
        for kind in ("mean", "stderr", "values", "nonfinite"):
            for name, array in (getattr(self, kind) or {}).items():
                arrays[f"{kind}.{name}"] = array
        for kind in ("final", "trajectory"):
            for k, (_, leaf) in enumerate(jax.tree.leaves_with_path(getattr(self, kind))):
                arrays[f"{kind}.{k}"] = np.asarray(leaf)
        keys = [[getattr(part, "key", None) for part in where] for where, _ in jax.tree.leaves_with_path(self.final)]
        meta = {
            "schema": SCHEMA,
            "config": self.config,
            "provenance": self.provenance,
            "paths": self.diverged.total,
            "leaves": keys,
        }
        store.write_arrays(path, arrays, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """What :meth:`save` wrote. States come back as nested dictionaries of arrays (other containers as lists of leaves).

        Raises:
            ValueError: the file is cut short, or of another kind or version.
        """
        arrays, meta = store.read_arrays(path)
        if meta.get("schema") != SCHEMA:
            raise ValueError(f"{str(path)!r} has schema {meta.get('schema')!r}: this version reads {SCHEMA!r}")

        def group(kind: str) -> dict[str, np.ndarray]:
            return {name[len(kind) + 1 :]: a for name, a in arrays.items() if name.startswith(f"{kind}.")}

        return cls(
            time=arrays["time"],
            mean=group("mean"),
            stderr=group("stderr"),
            final=_nest(meta["leaves"], group("final")),
            diverged=Divergence(arrays["diverged.paths"], arrays["diverged.time"], meta["paths"]),
            config=meta["config"],
            provenance=meta["provenance"],
            values=group("values") or None,
            trajectory=_nest(meta["leaves"], group("trajectory")),
            nonfinite=group("nonfinite"),
        )


def _nest(keys: list[list[Any]], leaves: dict[str, np.ndarray]) -> Any:
    ordered = [leaves[str(k)] for k in range(len(leaves))]
    if not leaves:
        return None
    if keys == [[]]:
        return ordered[0]
    if not all(isinstance(part, str) for where in keys for part in where):
        return ordered
    root: dict[str, Any] = {}
    for where, leaf in zip(keys, ordered, strict=True):
        node = root
        for part in where[:-1]:
            node = node.setdefault(part, {})
        node[where[-1]] = leaf
    return root
