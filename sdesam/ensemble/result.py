"""What a simulation or a training run gives back: one type for both sides, so that they can be
compared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sdesam._util import store
from sdesam.ensemble import hardware

SCHEMA = "sdesam.result/2"


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
        return (
            f"{self.count} of {self.total} paths diverged {when}; they are left out of every mean"
        )


@dataclass(frozen=True)
class Result:
    """Statistics over paths on a time grid.

    Args:
        time: SDE time (`t = k eta`), shape `(times,)`.
        mean: per observable, the mean over the paths whose state stayed finite to the end, shape
            `(times, ...)`; NaN where no value is finite.
        stderr: its standard error; NaN where fewer than two independent paths are left.
        final: the last state of every path, diverged ones included; structure of `x0`, leading axis
            `paths`; None with `keep="means"`.
        diverged: which paths diverged, and when.
        config: all that the run depends on, the key included.
        provenance: versions, device, revision, time.
        values: per observable, the value of every path, shape `(paths, times, ...)`; only with
            `keep="values"` or `"trajectories"`.
        trajectory: the state of every path at every time, leading axes `(paths, times)`; only with
            `keep="trajectories"`.
        nonfinite: per observable, how many of its values are infinite or NaN although the state of
            the path is finite, shape as `mean`. These values are left out of the mean of that
            observable and of no other.
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

    def warnings(self, *names: str) -> list[str]:
        """One sentence for each observable (of `names`; left out, of all) that has values that are
        not finite.

        >>> counts = {"log": np.array([0, 3, 5])}
        >>> out = Result(
        ...     np.arange(3.0),
        ...     {},
        ...     {},
        ...     None,
        ...     Divergence(np.array([]), np.array([]), 8),
        ...     {},
        ...     nonfinite=counts,
        ... )
        >>> out.warnings()
        ['log: up to 5 of 8 values are not finite between times 1 and 2; they are left out of ...']
        """
        counted = {
            name: lost
            for name, lost in self.nonfinite.items()
            if lost.any() and name in (names or self.nonfinite)
        }
        return [
            self._warning(name, lost.reshape(len(self.time), -1).max(axis=1))
            for name, lost in counted.items()
        ]

    def _warning(self, name: str, lost: np.ndarray) -> str:
        """The sentence for one observable; `lost` counts values at each time."""
        times = self.time[lost > 0]
        count, when = f"{lost.max()}", f"at time {times[0]:.4g}"
        if len(times) > 1:
            count, when = f"up to {count}", f"between times {times[0]:.4g} and {times[-1]:.4g}"
        paths = self.diverged.total - self.diverged.count
        return (
            f"{name}: {count} of {paths} values are not finite {when}; they are left out of the"
            f" mean of {name} alone"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one npz file, atomically and without pickle.

        Raises:
            OSError: the file cannot be written; an old one is as it was.
        """
        arrays = {
            "time": self.time,
            "diverged.paths": self.diverged.paths,
            "diverged.time": self.diverged.time,
        }
        for kind in ("mean", "stderr", "values", "nonfinite"):
            for name, array in (getattr(self, kind) or {}).items():
                arrays[f"{kind}.{name}"] = array
        for kind in ("final", "trajectory"):
            for k, leaf in enumerate(jax.tree.leaves(getattr(self, kind))):
                arrays[f"{kind}.{k}"] = np.asarray(leaf)
        meta = {
            "schema": SCHEMA,
            "config": self.config,
            "provenance": self.provenance,
            "paths": self.diverged.total,
            "leaves": [
                [_name(part) for part in where]
                for where, _ in jax.tree.leaves_with_path(self.final)
            ],
        }
        store.write_arrays(path, arrays, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """What :meth:`save` wrote. States come back as nested dictionaries of arrays (other
        containers as lists of leaves).

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged or cut short, of another kind or version, or has no room
                in memory.
        """
        with store.open_arrays(path) as archive:
            meta = archive.meta
            if meta.get("schema") != SCHEMA:
                raise ValueError(
                    f"{str(path)!r} has schema {meta.get('schema')!r}: this version reads"
                    f" {SCHEMA!r}"
                )
            wrong = _wrong(meta, {name: shape for name, (_, shape) in archive.arrays.items()})
            if wrong:
                raise ValueError(f"{str(path)!r} is no result of sdesam: {wrong}")
            free = hardware.available_memory()
            if free is not None and archive.nbytes > free:
                raise ValueError(
                    f"{str(path)!r} needs {archive.nbytes / 1e9:.3g} GB of memory, but"
                    f" {free / 1e9:.3g} GB are free"
                )
            arrays = archive.read()

        def group(kind: str) -> dict[str, np.ndarray]:
            return {
                name[len(kind) + 1 :]: a
                for name, a in arrays.items()
                if name.startswith(f"{kind}.")
            }

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


def _wrong(meta: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> str | None:
    """What does not fit together in the description of a result, which is known before its arrays
    are read.
    """
    kinds = {"config": dict, "provenance": dict, "paths": int, "leaves": list}
    bad = [name for name, kind in kinds.items() if not isinstance(meta.get(name), kind)]
    if bad:
        return f"its {bad[0]} is missing or of another type"
    if not all(isinstance(where, list) for where in meta["leaves"]):
        return "its leaves are no paths"
    paths, leaves = meta["paths"], len(meta["leaves"])
    times, gone = shapes.get("time", ()), shapes.get("diverged.paths", ())
    if len(times) != 1 or len(gone) != 1 or gone[0] > paths or shapes.get("diverged.time") != gone:
        return "its times, or the paths that diverged, have no such shape"
    states = {
        kind: [name for name in shapes if name.startswith(f"{kind}.")]
        for kind in ("final", "trajectory")
    }
    for kind, names in states.items():
        if names and sorted(names) != sorted(f"{kind}.{k}" for k in range(leaves)):
            return f"it has {len(names)} arrays of the {kind} states, and {leaves} paths to them"
    for name, shape in shapes.items():
        kind, _, rest = name.partition(".")
        known = {
            "time": times,
            "diverged": gone,
            "mean": times + shape[1:],
            "stderr": shapes.get(f"mean.{rest}"),
            "nonfinite": shapes.get(f"mean.{rest}"),
            "values": (paths, *shapes.get(f"mean.{rest}", ())),
            "final": (paths, *shape[1:]),
            "trajectory": (paths, *times, *shapes.get(f"final.{rest}", ())[1:]),
        }.get(kind)
        if shape != known:
            return f"array {name!r} has shape {list(shape)}"
    return None


def _name(part: Any) -> str | None:
    """The key of a dictionary, where it is a word; other containers come back as lists."""
    key = getattr(part, "key", None)
    return key if isinstance(key, str) else None


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
