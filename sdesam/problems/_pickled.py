"""One batch of CIFAR-10's python version, read without running what a pickle may ask for.

A pickle is a program, and this one may come from anywhere. Its instructions are counted and looked
at first; then it is read by an unpickler that knows bytes, lists and dictionaries and answers every
other name with a stand-in that can do nothing.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

PIXELS = 3 * 32 * 32
"""Bytes of one image, channel by channel."""


_MOST_OPCODES = 200_000
"""Instructions of one pickled batch; the 10,000 labels and file names of a real one take 40,000."""
_OPCODES = frozenset(
    (  # noqa: SIM905
        "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG "
        "LONG1 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE "
        "BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE "
        "TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT "
        "LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD "
    ).split()
)
"""What pickles of numbers, bytes, lists, dictionaries and arrays are made of."""


def python_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dictionary with `data` (n, 3072) and `labels`."""
    _check_opcodes(content)
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise ValueError(f"it holds a {type(batch).__name__}, not a dictionary")
    named = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if "labels" not in named and "fine_labels" in named:
        raise ValueError("fine_labels in place of labels: this is CIFAR-100")
    data, labels = named.get("data"), named.get("labels")
    if not isinstance(data, _Array) or len(data.shape) != 2 or data.shape[1] != PIXELS:
        raise ValueError(f"data is no uint8 array of shape (n, {PIXELS})")
    if not isinstance(labels, list) or not all(
        isinstance(label, int) and 0 <= label < 256 for label in labels
    ):
        raise ValueError("labels is no list of whole numbers from 0 to 9")
    # a plain view of the bytes: nothing of the pickle's own is asked how to make an array
    pixels = np.frombuffer(data.content, np.uint8).reshape(
        data.shape, order="F" if data.fortran else "C"
    )
    return pixels, np.array(labels, np.uint8)


def _check_opcodes(content: bytes) -> None:
    """See that a pickle has no instruction, and not so many of them, that no batch has: a few bytes
    may ask for gigabytes.
    """
    # PUT stores an object under a number: the unpickler makes room up to that number, so that a few
    # bytes could ask for gigabytes. A writer numbers its objects in turn, and none can have a
    # number above the count of instructions before it.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES or ("PUT" in opcode.name and int(argument or 0) > count):
            raise pickle.UnpicklingError(
                f"it has the instruction {opcode.name} {argument!r:.20}, which no CIFAR-10 batch"
                " needs: not opened"
            )
        if count > _MOST_OPCODES:
            raise pickle.UnpicklingError(
                f"it has more than {_MOST_OPCODES} instructions: not opened"
            )


class _Unpickler(pickle.Unpickler):
    """Arrays of bytes and python's own containers: a pickle that names anything else is refused
    before it is called.

    What a batch may name is answered by stand-ins of our own. Nothing of numpy is handed out:
    `numpy.ndarray` can be called, and would take any place in memory for its contents.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _RECONSTRUCT
        # `_codecs.encode` is how Python 3 writes bytes in the old protocol that Python 2 can read
        found = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): _DTYPE,
            ("_codecs", "encode"): _LATIN1,
        }.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR-10 batch needs: not opened"
            )
        return found


class _StandIn:
    """A stand-in for a name in a pickle; without attributes, so that no pickle can set any."""

    __slots__ = ()


class _Reconstruct(_StandIn):
    """How numpy begins an array: empty, to be filled in."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, dtype: Any) -> _Array:
        if kind is not _NDARRAY or shape != (0,) or dtype not in ("b", b"b"):
            raise pickle.UnpicklingError("an array that does not begin empty: not opened")
        return _Array()


class _Uint8(_StandIn):
    """The one dtype there is."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Byte order and such, which a byte does not have."""


class _Dtype(_StandIn):
    """How numpy makes a dtype: from its name."""

    __slots__ = ()

    def __call__(self, name: Any, *rest: Any) -> _Uint8:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(
                f"it asks for the dtype {name!r:.20}, where pixels are bytes (u1): not opened"
            )
        return _Uint8()


class _Latin1(_StandIn):
    """How Python 3 pickles bytes for old protocols."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("bytes that are not pickled as latin1: not opened")
        return text.encode("latin1")


_NDARRAY, _RECONSTRUCT, _DTYPE, _LATIN1 = _StandIn(), _Reconstruct(), _Dtype(), _Latin1()


class _Array:
    """The shape and the bytes of a pickled array."""

    __slots__ = ("content", "fortran", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.content, self.fortran = b"", False

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        whole = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if (
            not whole
            or not isinstance(dtype, _Uint8)
            or type(content) is not bytes
            or len(content) != math.prod(shape)
        ):
            raise pickle.UnpicklingError(
                "an array that has not as many bytes as its shape says: not opened"
            )
        self.shape, self.content, self.fortran = shape, content, bool(fortran)
