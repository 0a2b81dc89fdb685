"""What the machine offers: free memory, kinds of devices, and the other processes of a `jax.distributed` run."""

from __future__ import annotations

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh


def available_memory() -> int | None:
    """Bytes that can still be had without swapping, within the limit of a container; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no limit, or no control groups
    return max(free, 0)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices of a mesh are CPUs."""
    return bool(mesh.devices.flat[0].platform == "cpu")


def double_precision() -> bool:
    """Whether jax has 64 bits turned on here, perhaps for a `with` block alone; it is asked, never set."""
    return bool(jnp.result_type(float) == np.float64)


def process_count() -> int:
    """How many processes share the run; 1 without `jax.distributed`."""
    return int(jax.process_count())


def process_index() -> int:
    """Which of them this one is."""
    return int(jax.process_index())


def gather(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every process, in the order of their numbers; every process must call this.

    They travel as bytes, so that float64 arrives as it was sent whether or not jax has 64 bits turned on.
    """
    if process_count() == 1:
        return [arrays]
    from jax.experimental import multihost_utils

    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    own = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([len(own)], np.int32)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(own)] = own
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    found = []
    for row, size in zip(everyone, sizes, strict=True):
        with np.load(io.BytesIO(row[:size].tobytes()), allow_pickle=False) as archive:
            found.append({name: archive[name] for name in archive.files})
    return found
