"""What the machine offers: free memory, kinds of devices, and the other processes of a
`jax.distributed` run.
"""

from __future__ import annotations

import io
import os
import platform
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdesam._util import store


def available_memory(root: str | os.PathLike[str] = "/") -> int | None:
    """Bytes that can still be had without swapping, within the limits of all control groups of this
    process; None where the system does not say.

    Files that are cached count as free: the kernel drops them where memory is needed.

    Args:
        root: where the file system begins.
    """
    try:
        lines = Path(root, "proc/meminfo").read_text().splitlines()
        free = next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")
        )
    except (OSError, StopIteration, ValueError):
        return None
    return max(0, min([free, *_left_in_groups(Path(root))]))


def _left_in_groups(root: Path) -> list[int]:
    """What is left of the limit of each control group of this process, from its own one up to the
    root of the hierarchy.
    """
    paths = {"": "/", "memory": "/"}  # of version 2, and of version 1
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)  # 0::/system.slice/job_1, or 4:memory:/docker/5f3
            paths |= {kind: path for kind in kinds.split(",") if kind in paths}
    found = []
    for kind, top, mount in _hierarchies(root):
        own = PurePosixPath(paths[kind])
        inner = own.relative_to(top) if own.is_relative_to(top) else PurePosixPath()
        groups = [
            root / mount.lstrip("/") / group
            for group in (inner, *inner.parents)
            if ".." not in group.parts
        ]
        found += [
            left for group in groups if (left := _left_in(group, kind == "memory")) is not None
        ]
    return found


def _hierarchies(root: Path) -> list[tuple[str, str, str]]:
    """What is known of each mounted hierarchy of control groups that limits memory: its kind, the
    group at its top, and where it is mounted.
    """
    usual = [
        ("", "/", "/sys/fs/cgroup"),
        ("", "/", "/sys/fs/cgroup/unified"),
        ("memory", "/", "/sys/fs/cgroup/memory"),
    ]
    try:
        # 35 31 0:32 /docker/5f3 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
        lines = [
            line.split(" - ") for line in (root / "proc/self/mountinfo").read_text().splitlines()
        ]
        mounts = [
            (of.split()[3:5], kind.split()) for of, kind in lines if kind.startswith("cgroup")
        ]
    except (OSError, ValueError):
        return usual
    found = [("", top, place) for (top, place), kind in mounts if kind[0] == "cgroup2"]
    found += [
        ("memory", top, place)
        for (top, place), kind in mounts
        if kind[0] == "cgroup" and "memory" in kind[-1].split(",")
    ]
    return found or usual


def _left_in(group: Path, first_version: bool) -> int | None:
    """The bytes that are left in one control group; None where it has no limit."""
    limit, usage = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if first_version
        else ("memory.max", "memory.current")
    )
    cached = (
        ("total_active_file", "total_inactive_file")
        if first_version
        else ("active_file", "inactive_file", "slab_reclaimable")
    )
    try:
        # "max" is no number
        left = int((group / limit).read_text()) - int((group / usage).read_text())
    except (OSError, ValueError):
        return None
    with suppress(OSError, ValueError):
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        left += sum(int(stat.get(name, 0)) for name in cached)
    return left


def instruction_set() -> str:
    """The vector instructions of this machine's CPU, on which the last bits of a result depend."""
    names = re.compile(r"sse|ssse|avx|fma|f16c|amx|asimd|sve|neon|fp16|bf16")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(
            line.split(":", 1)[1].split()
            for line in lines
            if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration, IndexError):
        return f"{platform.machine()} {platform.processor()}"
    return " ".join([platform.machine(), *sorted(flag for flag in flags if names.search(flag))])


def compiler_flags() -> str:
    """What XLA was told by its environment variable, but for the number of devices."""
    return " ".join(
        flag
        for flag in os.environ.get("XLA_FLAGS", "").split()
        if "host_platform_device_count" not in flag
    )


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices of a mesh are CPUs."""
    return bool(mesh.devices.flat[0].platform == "cpu")


def double_precision() -> bool:
    """Whether jax has 64 bits turned on here, perhaps for a `with` block alone; it is asked, never
    set.
    """
    return bool(jnp.result_type(float) == np.float64)


def process_count() -> int:
    """How many processes share the run; 1 without `jax.distributed`."""
    return int(jax.process_count())


def process_index() -> int:
    """Which of them this one is."""
    return int(jax.process_index())


def gather(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every process, in the order of their numbers; every process must call this.

    They travel as bytes, so that float64 arrives as it was sent whether or not jax has 64 bits
    turned on.
    """
    if process_count() == 1:
        return [arrays]
    from jax.experimental import multihost_utils

    buffer = io.BytesIO()
    store.pack(buffer, arrays, {})
    own = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array([len(own)], np.int32)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(own)] = own
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [
        store.Archive(io.BytesIO(row[:size].tobytes()), "what a process sent").read()
        for row, size in zip(everyone, sizes, strict=True)
    ]
