"""The command line: `sdesam derive`, `identify`, `simulate`, `train`, `compare`, `verify`,
`reproduce`, `figures`, `bench`.

A command checks its arguments and the names of its files, does its work, writes its files, and
prints last. It returns its exit status.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sdesam.cli import algebra, benchmarks, experiments, identification, runs, verification
from sdesam.cli._group import cli

__all__ = [
    "algebra",
    "benchmarks",
    "cli",
    "experiments",
    "identification",
    "main",
    "runs",
    "use_all_cores",
    "verification",
]

_MOST_DEVICES = 16
"""Each device holds a copy of the data and of its working memory."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    use_all_cores()
    if "jax" not in sys.modules and os.environ.get("SDESAM_TRACEBACK", "0") not in ("", "0"):
        os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")
    cli.main(args=arguments, prog_name="sdesam")


def use_all_cores() -> None:
    """One jax device per core, on which paths are spread; XLA alone leaves cores idle on small
    problems.

    This is a choice for the process, so the program makes it and the library does not. A user's own
    setting wins.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags and "jax" not in sys.modules:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        os.environ["XLA_FLAGS"] = (
            f"{flags} --xla_force_host_platform_device_count={min(cores, _MOST_DEVICES)}".strip()
        )
