"""Results on disk: JSON for numbers, npz without pickle for arrays, and where a result came from.

They are written whole or not at all (:mod:`sdesam._util.files`). Nothing is compressed, and what a
file says of its sizes is compared with its own size before anything is read, so that a small file
never takes much memory.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from sdesam._util.files import (
    check_folder,
    check_room,
    check_target,
    lock,
    opened,
    write_atomically,
)

__all__ = [
    "Archive",
    "check_folder",
    "check_room",
    "check_target",
    "lock",
    "open_arrays",
    "pack",
    "plain",
    "provenance",
    "read_arrays",
    "read_json",
    "write_arrays",
    "write_atomically",
    "write_json",
]

_PACKAGES = ("sdesam", "jax", "jaxlib", "numpy", "scipy", "sympy", "scikit-learn")
_MOST_TEXT = 2**26
"""Bytes of JSON that are read at most, far more than a result's description has."""
_META = "__meta__"
_MORE_DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in vars(ml_dtypes).values()
    if isinstance(kind, type) and issubclass(kind, np.generic)
}
"""bfloat16 and its like, which the npy format does not know: they are stored as whole numbers of
the same bits.
"""


def provenance() -> dict[str, Any]:
    """Versions, device, revision and time: what a stored result must know beside its configuration
    and seed.
    """
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


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`value` as JSON, atomically; numpy numbers and arrays become numbers and lists, NaN and
    infinity become null.
    """
    content = json.dumps(plain(value), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(content.encode()))


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON value from a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON, too long to be one of ours, or no file.
    """
    with opened(path) as file:
        content = file.read(_MOST_TEXT + 1)
    if len(content) > _MOST_TEXT:
        raise ValueError(f"{os.fspath(path)!r} has more than {_MOST_TEXT} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is no JSON: {error}") from error


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Arrays and a JSON description in one npz file, atomically, without pickle."""
    write_atomically(path, lambda file: pack(file, arrays, meta))


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`write_arrays` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, cut short, or was written by something else.
    """
    with open_arrays(path) as archive:
        return archive.read(), archive.meta


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[Archive]:
    """What :func:`write_arrays` wrote, with its arrays still to be read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, cut short, or was written by something else.
    """
    with opened(path) as file:
        yield Archive(file, os.fspath(path))


def pack(file: Any, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays of any dtype of jax, and a JSON description, as npz to what has `write` and
    `flush`.

    Nothing is compressed, so that nothing expands when it is read.
    """
    stored, declared = {}, {}
    for name, array in ((name, np.asarray(array)) for name, array in arrays.items()):
        more = array.dtype.name in _MORE_DTYPES
        if array.dtype.kind in "OV" and not more:
            raise TypeError(
                f"array {name!r} has dtype {array.dtype}: numbers and text are stored, and no"
                " objects"
            )
        declared[name] = [array.dtype.name if more else array.dtype.str, array.shape]
        stored[name] = array.view(_bits(array.dtype)) if more else array
    text = json.dumps({"arrays": declared, "meta": plain(meta)}, allow_nan=False).encode()
    if _META in stored or len(text) > _MOST_TEXT:
        raise ValueError(
            f"an array has the name {_META!r}, or the description has {len(text)} bytes: at most"
            f" {_MOST_TEXT} are read again"
        )
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in {_META: np.frombuffer(text, np.uint8), **stored}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


# What is compared before any array is read, for a file of 1,000 bytes that says it has a member of
# 10^12 bytes: members are not compressed, so that no member is longer than the file; the sum of all
# members is not either, so that none is counted twice; and the header of an array says as many
# bytes as its member has. Only then is memory taken.
class Archive:
    """An npz of :func:`pack`. Its description, and the sizes of its arrays, are known and checked
    before any of them is read.

    Args:
        file: open for reading.
        name: what to call it in messages.

    Raises:
        ValueError: it is damaged, cut short, or was written by something else.
    """

    def __init__(self, file: IO[bytes], name: str):
        self.name = name
        with self._readable():
            self._zip = zipfile.ZipFile(file)
            members = {
                member.filename.removesuffix(".npy"): member for member in self._zip.infolist()
            }
            size = file.seek(0, os.SEEK_END)
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
                raise ValueError(
                    "its members are compressed, as another version of sdesam may have written them"
                )
            if (
                len(members) < len(self._zip.infolist())
                or sum(member.file_size for member in members.values()) > size
            ):
                raise ValueError("its members overlap")
            self._members = members
            if (
                _META not in members
                or self._header(_META)[0] != np.uint8
                or members[_META].file_size > _MOST_TEXT
            ):
                raise ValueError("it has no description, or one of another version of sdesam")
            known = json.loads(self._array(_META).tobytes())
            self.meta: dict[str, Any] = known["meta"]
            self.arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
                name: (
                    _MORE_DTYPES[kind] if kind in _MORE_DTYPES else np.dtype(str(kind)),
                    tuple(shape),
                )
                for name, (kind, shape) in known["arrays"].items()
            }
            if set(self.arrays) != set(members) - {_META} or not isinstance(self.meta, dict):
                raise ValueError("its members are not those of its description")
            for name, (dtype, shape) in self.arrays.items():
                if self._header(name) != (
                    _bits(dtype) if dtype.name in _MORE_DTYPES else dtype,
                    shape,
                ):
                    raise ValueError(f"array {name!r} is not as its description says")

    @property
    def nbytes(self) -> int:
        """Memory that its arrays take."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.arrays.values())

    def read(self) -> dict[str, np.ndarray]:
        """All arrays.

        Raises:
            ValueError: one is damaged.
        """
        with self._readable():
            return {name: self._array(name).view(dtype) for name, (dtype, _) in self.arrays.items()}

    def _header(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """The dtype and shape of a member, which has as many bytes as they say."""
        member = self._members[name]
        with self._zip.open(member) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"array {name!r} has another version of the npy format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if (
                dtype.hasobject
                or dtype.kind == "V"
                or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size
            ):
                raise ValueError(
                    f"array {name!r} is no array of numbers, or has another size than it says"
                )
            return dtype, shape

    def _array(self, name: str) -> np.ndarray:
        with self._zip.open(self._members[name]) as file:
            # at its end its checksum is compared
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"{self.name!r} is no sdesam result, or it is cut short or damaged: {error}"
            ) from error


def plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    # JSON has no NaN and no infinity; Python would write them, and others could not read the file
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Whole numbers of the size of another dtype."""
    return np.dtype(f"u{dtype.itemsize}")


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _revision() -> str | None:
    """The commit of the checkout that this package runs from, with `+` where files differ from it;
    None outside one.
    """
    here = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    # an installed package may lie inside somebody's repository, whose commit says nothing of ours
    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return None
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--", "sdesam", "experiments") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
