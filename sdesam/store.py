"""Results on disk: open formats, atomic writes, and where a result came from.

JSON for numbers and npz without pickle for arrays. A file is written beside its final name and renamed, so that a reader sees the old
one or the new one and never half of either.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np

_LONGEST_NAME = 240
"""Bytes of a file's name: most systems take 255, and the name of the temporary file beside it is longer."""
_PACKAGES = ("sdesam", "jax", "jaxlib", "numpy", "scipy", "sympy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Versions, device, revision and time: what a stored result must know beside its configuration and seed."""
    import jax

    devices = jax.devices()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": devices[0].device_kind,
        "devices": len(devices),
        "machine": platform.machine(),
    }


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """`folder`, once it is clear that files can be written there; nothing is created before there is something to write.

    Raises:
        OSError: it cannot be created or written.
    """
    path = Path(folder)
    missing = [place for place in (path, *path.absolute().parents) if not place.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"the output folder {str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        for place in missing:  # innermost first
            with suppress(OSError):
                place.rmdir()
    return path


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a name that no file can be written to, before there is anything to write.

    Raises:
        ValueError: the name is empty.
        OSError: it is too long, a folder, or in a folder that cannot be written.
    """
    target = Path(path)
    if not os.fspath(path):
        raise ValueError("the name of a file is empty: name one")
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder: name a file")
    if len(os.fsencode(target.name)) > _LONGEST_NAME:
        raise OSError(f"the name {target.name[:20]!r}... has more than {_LONGEST_NAME} bytes: choose a shorter one")
    check_folder(target.parent)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`value` as JSON, atomically; numpy numbers and arrays become numbers and lists, NaN and infinity become null."""
    content = json.dumps(plain(value), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(content.encode()))


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write` on a temporary file beside `path`, then rename it to `path`."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp is private; a result is an ordinary file
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, compress: bool = True) -> None:
    """Arrays and a JSON description in one npz file, atomically, without pickle."""
    text = np.array(json.dumps(plain(meta), allow_nan=False))
    save = np.savez_compressed if compress else np.savez
    write_atomically(path, lambda file: save(file, allow_pickle=False, __meta__=text, **arrays))


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`write_arrays` wrote.

    Raises:
        ValueError: the file is cut short or was written by something else.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(str(arrays.pop("__meta__")))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{str(path)!r} is no sdesam result, or it is cut short: {error}") from error


def plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _revision() -> str | None:
    """The commit of the checkout that this package runs from, with `+` where files differ from it; None outside one."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "sdesam", "experiments") else "")
    except (OSError, subprocess.SubprocessError):
        return None
