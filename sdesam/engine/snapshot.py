"""Snapshots of long runs: written atomically, read again only by the very run that wrote them.

A snapshot says what it is of: configuration, numbers and functions of the step, layout, versions. Where any of these differ it is
refused with a sentence, because a run that silently starts anew, or goes on with other numbers, is worse than one that stops.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import numpy as np

from sdesam import store

SCHEMA = "sdesam.snapshot/4"


class Snapshot:
    """Where and how often to write, and what was found there.

    Args:
        path: the file; None writes nothing.
        every: seconds between two snapshots.
        identity: what the run is.
        found: arrays and position of the snapshot that was there, or None.
    """

    def __init__(self, path: Path | None, every: float, identity: dict[str, Any], found: tuple[dict[str, np.ndarray], dict[str, Any]] | None):
        self.path, self.every, self.identity, self.found = path, every, identity, found
        self._last = monotonic()

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, every: float, identity: Callable[[], dict[str, Any]]) -> Snapshot:
        """The snapshot at `path`, if there is one.

        Raises:
            ValueError: it is of another run, of another version, or cut short.
            OSError: the folder cannot be written.
        """
        if path is None:
            return cls(None, every, {}, None)
        file, known = Path(path), store.plain(identity())
        store.check_folder(file.parent)
        for left in file.parent.glob(f".{file.name}.*"):
            left.unlink(missing_ok=True)  # what a killed process was writing
        if not file.exists():
            return cls(file, every, known, None)
        try:
            arrays, meta = store.read_arrays(file)
        except ValueError as error:
            raise ValueError(
                f"the snapshot {str(path)!r} cannot be read, so the run does not start: delete it, or name another file ({error})"
            ) from None
        if meta.get("schema") != SCHEMA:
            raise ValueError(f"{str(path)!r} has schema {meta.get('schema')!r}, not {SCHEMA!r}: it is no snapshot of this version; name another file")
        theirs = meta["identity"]
        differing = [name for name in {**known, **theirs} if known.get(name) != theirs.get(name)]
        if differing:
            told = ", ".join(f"{name} ({_short(theirs.get(name))} there, {_short(known.get(name))} here)" for name in differing)
            raise ValueError(
                f"the snapshot {str(path)!r} is of another run, which differs in {told}: finish that run, delete it, or name another file"
            )
        return cls(file, every, known, (arrays, meta["position"]))

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self.path is not None and monotonic() - self._last >= self.every

    def write(self, arrays: dict[str, np.ndarray], position: dict[str, Any]) -> None:
        """Replace the snapshot; if that fails, the old one is still there.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None:
            return
        meta = {"schema": SCHEMA, "identity": self.identity, "position": position}
        try:
            store.write_arrays(self.path, arrays, meta, compress=False)
        except OSError as error:
            kept = "; the one before it is intact" if self.path.exists() else ""
            raise OSError(f"the snapshot {str(self.path)!r} cannot be written: {error.strerror or error}{kept}") from error
        self._last = monotonic()


def fingerprint(functions: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> str:
    """A hash of what functions compute with their arguments: the operations, and every number in them."""
    digest = hashlib.sha256()
    for fn, arguments in functions:
        closed = jax.make_jaxpr(fn)(*arguments)
        digest.update(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
        for leaf in (*closed.consts, *jax.tree.leaves(arguments)):
            if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
