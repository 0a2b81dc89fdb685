"""What a process must know of itself: whether it was forked after jax had started, whether a run
has begun, where it finds modules.
"""

from __future__ import annotations

import os
import sys

_first_user: int | None = None
_runs = 0


class Failure(ValueError):
    """A function that a user handed in fails; this is no fault of the arguments beside it."""


def check_not_forked() -> None:
    """Refuse to go on in a process that was forked from one which had used jax: jax's threads are
    not forked with it, and it would hang.

    Every problem and every run calls this before it calls jax. The first call takes down the
    process, and later calls must be made by the same one.

    Raises:
        RuntimeError: this process was forked from the one of the first call.
    """
    global _first_user
    if _first_user is None:
        _first_user = os.getpid()
    elif _first_user != os.getpid():
        raise RuntimeError(
            "this process was forked from one that had already used jax, whose threads a fork"
            " leaves behind: it would wait for them for ever; start workers with the spawn method,"
            " multiprocessing.get_context('spawn')"
        )


def begin_run() -> None:
    """Note that the arguments of a run are checked and its paths are about to be advanced."""
    global _runs
    _runs += 1


def runs_begun() -> int:
    """How many runs this process has begun: what goes wrong after one has begun is no fault of the
    arguments.
    """
    return _runs


def leave_current_folder() -> None:
    """Take the current folder, which `python -m` puts first, off the path: a file of the user's
    called `optax.py` is not the one that is meant.
    """
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]
