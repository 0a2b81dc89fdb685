"""Free memory: the smallest limit of the control groups that a process is in, with cached files
counted as free.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.ensemble import hardware

GB = 10**9
NO_LIMIT = 9223372036854771712


def root(place, available, cgroup, groups, mounts=None):
    """A file system with `/proc` and control groups: `groups` maps folders to the contents of their
    files.
    """
    (place / "proc" / "self").mkdir(parents=True)
    (place / "proc" / "meminfo").write_text(
        f"MemTotal:       999999999 kB\nMemFree:        1 kB\nMemAvailable:   {available // 1024}"
        " kB\n"
    )
    if cgroup is not None:
        (place / "proc" / "self" / "cgroup").write_text("".join(f"{line}\n" for line in cgroup))
    if mounts is not None:
        (place / "proc" / "self" / "mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    for folder, files in groups.items():
        (place / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (place / folder / name).write_text(f"{content}\n")
    return place


def two(limit, used, **cached):
    """A group of version 2."""
    return {
        "memory.max": limit,
        "memory.current": used,
        "memory.stat": "\n".join(f"{name} {size}" for name, size in {"anon": 7, **cached}.items()),
    }


def one(limit, used, **cached):
    """A group of version 1."""
    stat = "\n".join(
        f"{name} {size}"
        for name, size in {
            "inactive_file": 1,
            **{f"total_{name}": size for name, size in cached.items()},
        }.items()
    )
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}


SLURM = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_1"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("cgroup", "groups", "mounts", "left"),
    [
        (["0::/"], {}, None, 100 * GB),
        (None, {}, None, 100 * GB),
        (["0::/user.slice"], {"sys/fs/cgroup/user.slice": two("max", 5 * GB)}, None, 100 * GB),
        # a job, its step, its task: the smallest of all
        (
            ["0::/system.slice/slurmstepd.scope/job_1/step_0/task_0"],
            {SLURM: two(8 * GB, 2 * GB), f"{SLURM}/step_0": two("max", 1 * GB)},
            None,
            6 * GB,
        ),
        (
            ["0::/system.slice/slurmstepd.scope/job_1/step_0"],
            {SLURM: two(8 * GB, 2 * GB), f"{SLURM}/step_0": two(3 * GB, 2 * GB)},
            None,
            1 * GB,
        ),
        (
            ["0::/system.slice/slurmstepd.scope/job_1"],
            {"sys/fs/cgroup/system.slice": two(20 * GB, 19 * GB), SLURM: two(8 * GB, 1)},
            None,
            1 * GB,
        ),
        # another job's limit is none of ours
        (["0::/system.slice/slurmstepd.scope/job_2"], {SLURM: two(8 * GB, 8 * GB)}, None, 100 * GB),
        # cached files and what the kernel gives back; files in memory (shmem) are not given back
        (
            ["0::/a"],
            {
                "sys/fs/cgroup/a": two(
                    8 * GB,
                    8 * GB,
                    inactive_file=3 * GB,
                    active_file=GB,
                    slab_reclaimable=GB,
                    file=6 * GB,
                    shmem=2 * GB,
                )
            },
            None,
            5 * GB,
        ),
        (["0::/a"], {"sys/fs/cgroup/a": two(8 * GB, 9 * GB)}, None, 0),
        # within a container: the group of the host is at the top
        (["0::/"], {"sys/fs/cgroup": two(4 * GB, GB)}, None, 3 * GB),
        (["0::/docker/5f3"], {"sys/fs/cgroup": two(4 * GB, GB)}, None, 3 * GB),
        (["0::/../../job_1"], {"sys/fs/cgroup": two(4 * GB, GB)}, None, 3 * GB),
        # version 1: docker, with its own path or at the top, and a hierarchy of more
        (
            ["4:memory:/docker/5f3", "1:cpu:/docker/5f3", "0::/"],
            {f"{V1}/docker/5f3": one(4 * GB, 3 * GB, inactive_file=GB)},
            None,
            2 * GB,
        ),
        (
            ["4:memory:/docker/5f3"],
            {V1: one(4 * GB, 3 * GB, inactive_file=GB, active_file=GB // 2)},
            None,
            2.5 * GB,
        ),
        (
            ["4:cpu,memory:/a/b"],
            {V1: one(NO_LIMIT, GB), f"{V1}/a": one(5 * GB, GB), f"{V1}/a/b": one(NO_LIMIT, GB)},
            None,
            4 * GB,
        ),
        (
            ["4:cpu:/a", "5:memory:/b"],
            {f"{V1}/a": one(GB, GB), f"{V1}/b": one(3 * GB, GB)},
            None,
            2 * GB,
        ),
        # both versions side by side
        (
            ["4:memory:/a", "0::/b"],
            {f"{V1}/a": one(9 * GB, GB), "sys/fs/cgroup/unified/b": two(7 * GB, GB)},
            None,
            6 * GB,
        ),
        # mounted elsewhere, and with the container's own group at the top of the mount
        (
            ["4:memory:/docker/5f3/inner"],
            {"mnt/memory/inner": one(2 * GB, GB), "mnt/memory": one(9 * GB, GB)},
            [
                "35 31 0:32 /docker/5f3 /mnt/memory rw,relatime - cgroup cgroup rw,memory",
                "36 31 0:33 / /mnt/cpu rw - cgroup cgroup rw,cpu",
            ],
            GB,
        ),
        (
            ["0::/a"],
            {"mnt/two/a": two(2 * GB, GB)},
            ["41 31 0:38 / /mnt/two rw shared:9 - cgroup2 cgroup2 rw"],
            GB,
        ),
        # what cannot be read says nothing
        (["0::/a"], {"sys/fs/cgroup/a": two("", "x")}, None, 100 * GB),
        (["0::/a"], {"sys/fs/cgroup/a": {**two(4 * GB, GB), "memory.stat": "junk"}}, None, 3 * GB),
        (["junk"], {}, ["junk", ""], 100 * GB),
    ],
)
def test_free_memory(cgroup, groups, mounts, left, tmp_path):
    assert hardware.available_memory(
        root(tmp_path, 100 * GB, cgroup, groups, mounts)
    ) == pytest.approx(left, abs=2000)


def test_free_memory_of_the_machine(tmp_path):
    assert hardware.available_memory(tmp_path) is None
    assert hardware.available_memory(
        root(tmp_path, GB, ["0::/a"], {"sys/fs/cgroup/a": two(4 * GB, 0)})
    ) == pytest.approx(GB, abs=2000)
    here = hardware.available_memory()
    assert here is None or here > 2**20


def test_two_different_remedies(monkeypatch):
    """Whatever there is too much of."""
    monkeypatch.setattr(hardware, "available_memory", lambda root="/": 10**6)

    def advice(x0=1.0, dim=1, **options):
        sde = sdesam.SDE(lambda x: -x, lambda x, xi: xi, (dim,), np.full(dim, x0))
        numbers = {
            "horizon": 1.0,
            "dt": 0.1,
            "observe": {"x": lambda x: jnp.sum(x)},
            "paths": 10**6,
            **options,
        }
        with pytest.raises(ValueError, match="are free: choose ") as found:
            sdesam.simulate(sde, jax.random.key(0), **numbers)
        first, second = str(found.value).partition(": choose ")[2].rsplit(", or ", 1)
        assert first != second
        return first, second

    assert advice() == ("keep='means', which keeps no states", "fewer paths")
    assert advice(keep="means") == ("fewer paths", "several runs with keys of their own")
    assert advice(keep="values") == ("keep='statistics'", "fewer paths")
    assert advice(keep="trajectories", dim=3) == ("keep='values' or 'statistics'", "fewer paths")
    devices = jax.devices()
    assert advice(paths=2, dim=10**6) == ("fewer devices", "a smaller network, batch or data set")
    assert advice(paths=2, dim=10**6, devices=devices[:1], chunk=1) == (
        "a smaller network, batch or data set",
        "a machine with more memory",
    )
    assert advice(paths=4000, dim=10, chunk=4000, keep="means") == (
        "a smaller chunk",
        "fewer devices",
    )
