"""Peak memory and time of a process that streams many paths of W1, beside one that imported jax and
ran one small jit: children, so fresh ones.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import sdesam

_CHILD = """
import importlib, sys
from sdesam._util.bundled import bundled, import_folder
name = import_folder(bundled('benchmarks')).__name__
importlib.import_module(name + '.memory').main(sys.argv[1], *map(int, sys.argv[2:]))
"""


def measure(what: str, paths: int = 0, few: int = 0, steps: int = 0) -> dict[str, float]:
    """What a child uses that does `what`: "idle", or "w1", a run of `few` steps and then one of
    `steps`.

    Returns:
        `peak`, resident memory in bytes after the first; with "w1" also `long`, after the second,
        and `seconds`, the time of this.
    """
    # the folder that the package `sdesam` of this process lies in comes first in the child, too
    found_in = str(Path(sdesam.__file__).resolve().parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([found_in, os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", _CHILD, what, str(paths), str(few), str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"the child that measures memory failed: {done.stderr.strip().splitlines()[-1]}"
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(what: str, paths: int, few: int, steps: int) -> None:
    """What a child does."""
    if what == "w1":
        from . import w1

        w1.streamed(paths, few)
        found: dict[str, float] = {"peak": high_water()}
        start = time.perf_counter()
        w1.streamed(paths, steps)
        found |= {"long": high_water(), "seconds": time.perf_counter() - start}
    else:
        import jax

        jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.ones(8)))
        found = {"peak": high_water()}
    print(json.dumps(found))


def high_water() -> int:
    """Peak resident bytes of this process. Not `ru_maxrss` where it can be helped: on Linux a child
    begins with its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(
            int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
