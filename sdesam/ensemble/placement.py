"""A run before its start: what to do, which paths go together on which devices, and whether that
fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdesam._util.checks import check_int
from sdesam._util.functions import PROGRAMS
from sdesam.ensemble import hardware
from sdesam.ensemble.compiled import Observer, Stepper, Structure, shapes_of
from sdesam.ensemble.draws import Normals
from sdesam.sampling import told_count

PyTree = Any
Keep = Literal["means", "statistics", "values", "trajectories"]

_CHUNK_BYTES = {"cpu": 2**23}
"""Working memory of the paths that one device advances together. On a CPU larger chunks leave the
cache and were slower.
"""
_ACCELERATOR_BYTES = 2**28
_CHUNK_PATHS = {"cpu": 2**15}
"""Paths that one device advances together at most: with more of them a step was no faster per path,
and needed more memory.
"""
_PAIRED = 16
"""From as many paths of one device on their number is even: XLA makes no vectors of a loop of odd
length on a CPU, and W1 took 12 times as long.
"""


@dataclass(frozen=True)
class RunSpec:
    """What to run: everything about a run but its key and how it is laid out.

    Args:
        stepper: one step, a pytree of its numbers and data.
        x0: the common start.
        observer: `x -> {name: value}`, a pytree of its data.
        steps: the number of steps.
        step_time: the SDE time of one step.
        step_bytes: working memory of one path in one step, an estimate.
        observe_bytes: the same while it is observed.
        config: what to record.
        noise_shape: shape of the standard normals of one step; None for a stepper that draws from
            its key alone.
        normals: where these come from, by counter or from `jax.random`.
    """

    stepper: Stepper
    x0: PyTree
    observer: Observer
    steps: int
    step_time: float
    step_bytes: int
    observe_bytes: int
    config: dict[str, Any] = field(default_factory=dict)
    noise_shape: tuple[int, ...] | None = None
    normals: Normals = "counter"


@dataclass(frozen=True)
class Placement:
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

    plan: RunSpec
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
        """Shape and dtype of every array with one row per path, of all processes together: what the
        host must hold in the end.
        """
        plan, times = self.plan, len(self.grid)
        rows: dict[str, tuple[tuple[int, ...], Any]] = {
            "first": ((self.paths,), np.dtype(np.int32))
        }
        leaves = jax.tree.leaves(plan.x0)
        if self.keep != "means":
            rows |= {
                f"final.{k}": ((self.paths, *leaf.shape), leaf.dtype)
                for k, leaf in enumerate(leaves)
            }
        if self.keeps_values:
            rows |= {
                f"values.{name}": ((self.paths, times, *seen.shape), seen.dtype)
                for name, seen in self.observables.items()
            }
        if self.keep == "trajectories":
            rows |= {
                f"trajectory.{k}": ((self.paths, times, *leaf.shape), leaf.dtype)
                for k, leaf in enumerate(leaves)
            }
        return rows

    @cached_property
    def observables(self) -> dict[str, Any]:
        """Shape and dtype of every observable of one path."""
        observer = self.plan.observer
        leaves, structure = jax.tree.flatten((observer, self.plan.x0))
        found = _observed(structure, shapes_of(leaves), hardware.double_precision())
        return {name: found[name] for name in observer.names}  # jax sorts the keys

    @property
    def keeps_values(self) -> bool:
        """Whether observables of each path are kept."""
        return self.keep in ("values", "trajectories")

    @property
    def host_bytes(self) -> int:
        """Memory of the arrays with one row per path."""
        return sum(
            math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.tables.values()
        )

    @property
    def device_bytes(self) -> int:
        """Working memory of the chunk that is advanced together, an estimate, on all devices of
        this process.
        """
        return self.size * max(self.plan.step_bytes, 1)

    def check_memory(self) -> None:
        """Refuse a run that cannot fit into memory."""
        need, available = (
            self.host_bytes
            + (self.device_bytes if self.mesh.devices.flat[0].platform == "cpu" else 0),
            hardware.available_memory(),
        )
        if available is None or need <= available:
            return
        sizes = {
            name: math.prod(shape) * np.dtype(dtype).itemsize
            for name, (shape, dtype) in self.tables.items()
        }
        # what can be left out, where it is as large
        worst = max(sizes, key=lambda name: (sizes[name], name != "first"))
        what = {
            "first": "bookkeeping",
            "final": "final states",
            "values": "values",
            "trajectory": "trajectories",
        }[worst.split(".")[0]]
        remedies = {
            "bookkeeping": "fewer paths, or several runs with keys of their own",
            "final states": "keep='means', which keeps no states, or fewer paths",
            "values": "keep='statistics', or fewer paths",
            "trajectories": "keep='values' or 'statistics', or fewer paths",
        }
        if self.host_bytes < self.device_bytes:
            least = self.mesh.size * (2 if self.antithetic else 1)
            able = ["a smaller chunk"] if self.size > least else []
            able += ["fewer devices"] if self.mesh.size > 1 else []
            able += ["a smaller network, batch or data set", "a machine with more memory"]
            raise ValueError(
                f"{self.size} paths together need about {gigabytes(self.device_bytes)} of working"
                f" memory, but {gigabytes(available)} are free: choose {able[0]}, or {able[1]}"
            )
        raise ValueError(
            f"{self.paths} paths need {gigabytes(need)}, most of it for their {what}, but"
            f" {gigabytes(available)} are free: choose {remedies[what]}"
        )


@lru_cache(maxsize=PROGRAMS)
def _observed(structure: Structure, shapes: tuple[Any, ...], double: bool) -> dict[str, Any]:
    """Shape and dtype of every observable; tracing observers anew for each run would take longer
    than a short run. `double` is a setting of jax that the dtypes depend on.
    """

    def values(*leaves: Any) -> dict[str, jax.Array]:
        observer, x = jax.tree.unflatten(structure, leaves)
        found: dict[str, jax.Array] = observer(x)
        return found

    return jax.eval_shape(values, *shapes)  # type: ignore[no-any-return]


def choose_placement(
    plan: RunSpec,
    key: jax.Array,
    *,
    paths: int,
    grid: np.ndarray,
    keep: Keep = "statistics",
    antithetic: bool = False,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Placement:
    """How a run would be laid out, or one sentence saying what does not fit."""
    key = check_key(key)
    if keep not in get_args(Keep):
        raise ValueError(f"keep={keep!r}: choose 'statistics', 'means', 'values' or 'trajectories'")
    if plan.normals not in get_args(Normals):
        raise ValueError(f"normals={plan.normals!r}: choose 'counter' or 'jax'")
    if antithetic and paths % 2:
        raise ValueError(f"{paths} paths cannot be paired: antithetic runs need an even number")
    if paths > 2**32:
        raise ValueError(
            f"{paths} paths: at most 2**32 have draws of their own; use a second key for more"
        )
    if not hardware.double_precision() and any(
        leaf.dtype == np.float64 for leaf in jax.tree.leaves(plan.x0)
    ):
        raise ValueError(
            "the state is in float64, but jax has 64 bits turned off and would compute in float32:"
            " run it within `with jax.enable_x64(True):`, where it was made, or set"
            " JAX_ENABLE_X64=1 before jax starts"
        )
    count, index = hardware.process_count(), hardware.process_index()
    available = list(devices if devices is not None else jax.devices())
    if not available:
        raise ValueError("devices is empty: name at least one, or leave it out")
    units = paths // 2 if antithetic else paths
    if devices is not None and len(available) > paths:
        raise ValueError(
            f"{len(available)} devices for {paths} paths: some would have none; name at most"
            f" {paths} devices"
        )
    if count > units:
        raise ValueError(
            f"{count} processes for {paths} paths: some would have none; start at most {units}"
            " processes"
        )
    own = [device for device in available if device.process_index == index]
    if not own:
        raise ValueError(
            f"devices names none of process {index}: every process needs one of its own"
        )
    # shares of even size, without parting a pair: 10 paths in 5 pairs for 3 processes are the paths
    # 0-1, 2-5 and 6-9
    first, last = (units * k // count * (2 if antithetic else 1) for k in (index, index + 1))
    # a device without a path would have nothing to do, and nothing to be averaged
    mesh = Mesh(np.array(own[: last - first]), ("paths",))
    size = _chunk_size(last - first, chunk, mesh, plan.step_bytes, antithetic)
    placement = Placement(plan, key, paths, grid, keep, antithetic, mesh, size, first, last)
    for name, seen in placement.observables.items():
        if jnp.issubdtype(seen.dtype, jnp.complexfloating):
            raise TypeError(
                f"observable {name!r} is complex: observe its real and its imaginary part, or its"
                " size"
            )
    return placement


def check_key(key: Any) -> jax.Array:
    """`key` as a typed jax key, or a sentence that says how to make one."""
    if (
        isinstance(key, jax.Array)
        and key.shape == ()
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        if str(jax.random.key_impl(key)) != "threefry2x32":
            raise ValueError(
                f"key has the implementation {jax.random.key_impl(key)}, whose draws depend on how"
                " paths are laid out: use a threefry key, jax.random.key(seed,"
                " impl='threefry2x32')"
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
    if not ratio < 2**31:
        raise ValueError(
            f"{what}={time:g} is {ratio:.3g} steps of {unit}={step_time:g}: at most 2**31 - 1 are"
            " counted"
        )
    steps = round(ratio)
    if abs(ratio - steps) > 1e-6 * max(1.0, abs(ratio)):
        raise ValueError(
            f"{what}={time:g} is no multiple of {unit}={step_time:g}: the nearest multiples are "
            f"{int(ratio) * step_time:g} and {(int(ratio) + 1) * step_time:g}"
        )
    return steps


def time_grid(
    times: Sequence[float] | np.ndarray | None, steps: int, step_time: float, unit: str
) -> np.ndarray:
    """The steps at which to observe: those of `times`, or about ten even ones with both ends."""
    if steps >= 2**31:
        raise ValueError(f"steps={told_count(steps)}: at most 2**31 - 1 are counted")
    if times is None:
        return np.unique(np.linspace(0, steps, 11).round().astype(int))
    instants = np.atleast_1d(np.asarray(times, dtype=float))
    if not np.isfinite(instants).all():
        raise ValueError(f"times={list(instants)}: they must be finite")
    grid = np.array(
        [steps_of(float(t), step_time, "an observation time", unit) for t in instants], dtype=int
    )
    if grid.size == 0 or (np.diff(grid) <= 0).any() or grid[0] < 0 or grid[-1] > steps:
        raise ValueError(
            f"times={list(instants)}: they must increase strictly from at least 0 to at most"
            f" {steps * step_time:g}"
        )
    return grid


def chunk_bytes(mesh: Mesh) -> int:
    """Working memory of the paths that one device of a mesh advances together."""
    return _CHUNK_BYTES.get(mesh.devices.flat[0].platform, _ACCELERATOR_BYTES)


# A worked example: 100,000 paths on two CPU devices, and 64 bytes of working memory for each path.
#
#     together   32,768 on a device: 8 MB would hold 131,072 of them, but more are no faster
#     most       65,536 in a chunk, on both devices
#     chunks     2, as 100,000 are more than 65,536
#     each       25,000 on a device, the half of 50,000
#     size       50,000
#
# All chunks have arrays of one shape, so that one program is compiled. A last chunk that is not
# full has paths that do not count (`Pass.good`), and takes the time of a full one. With 65,536 in
# each, 31,072 of the second chunk would not count; with 50,000 in each, none.


def _chunk_size(
    paths: int, chunk: int | None, mesh: Mesh, step_bytes: int, antithetic: bool
) -> int:
    """Paths per chunk: a multiple of the devices, of even size over as few chunks as the memory
    allows.
    """
    together = min(
        max(1, chunk_bytes(mesh) // step_bytes),
        _CHUNK_PATHS.get(mesh.devices.flat[0].platform, paths),
    )
    most = check_int("chunk", chunk) if chunk is not None else together * mesh.size
    chunks = math.ceil(paths / most)
    each = -(-paths // (chunks * mesh.size))
    unit = 2 if antithetic or each >= _PAIRED else 1
    return math.ceil(each / unit) * unit * mesh.size


def gigabytes(size: int) -> str:
    """A size to be read by people."""
    return f"{size / 1e9:.3g} GB"
