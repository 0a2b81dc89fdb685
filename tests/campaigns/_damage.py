"""Files that are damaged, swapped, of another kind, or made by somebody hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MEGABYTES = 400
"""What a bomb expands to."""
OPENERS: dict[str, Callable[..., Any]] = {
    "": open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


def damage(place: Path, rng: np.random.Generator, other: bytes = b"") -> str:
    """Damage a file in one of many ways; in words, which."""
    content = place.read_bytes()
    size = max(len(content), 1)
    at = int(rng.integers(size))
    ways: dict[str, Callable[[], Any]] = {
        "cut": lambda: place.write_bytes(content[:at]),
        "cut by a few bytes": lambda: place.write_bytes(content[: -int(rng.integers(1, 64))]),
        "empty": lambda: place.write_bytes(b""),
        "flip": lambda: place.write_bytes(flipped(content, rng, 1)),
        "flip many": lambda: place.write_bytes(flipped(content, rng, 40)),
        "zeros": lambda: place.write_bytes(
            content[:at] + bytes(min(512, size - at)) + content[at + 512 :]
        ),
        "more": lambda: place.write_bytes(content + rng.bytes(100)),
        "before": lambda: place.write_bytes(rng.bytes(10) + content),
        "a piece is gone": lambda: place.write_bytes(content[:at] + content[at + 17 :]),
        "noise": lambda: place.write_bytes(rng.bytes(size)),
        "text": lambda: place.write_bytes(b'{"schema": "sdesam.result/0"}'),
        "other": lambda: place.write_bytes(other or content[::-1]),
        "folder": lambda: (place.unlink(), place.mkdir()),
        "pipe": lambda: (place.unlink(), os.mkfifo(place)),
        "link to itself": lambda: (place.unlink(), place.symlink_to(place)),
        "endless device": lambda: (place.unlink(), place.symlink_to("/dev/zero")),
        "gone": lambda: place.unlink(),
        "bomb": lambda: bomb(place),
        "pickle": (
            lambda: (
                np.savez(
                    place, np.array([Evil(place.parent / "executed")], object), allow_pickle=True
                )
                or named(place)
            )
        ),
    }
    way = str(rng.choice(list(ways)))
    ways[way]()
    return way


def named(place: Path) -> None:
    """What numpy wrote under `NAME.npz`, under `NAME`."""
    if (made := place.with_name(f"{place.name}.npz")).exists() and place.suffix != ".npz":
        made.replace(place)


def flipped(content: bytes, rng: np.random.Generator, count: int) -> bytes:
    changed = np.frombuffer(content, np.uint8).copy()
    for at in rng.integers(len(changed), size=count) if len(changed) else ():
        changed[at] ^= 1 << int(rng.integers(8))
    return changed.tobytes()


def bomb(place: Path) -> None:
    """An npz of zeros, a few hundred kilobytes."""
    with (
        zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("__meta__.npy", "w") as member,
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (MEGABYTES << 20,)}
        )
        member.write(header.getvalue())
        for _ in range(MEGABYTES):
            member.write(bytes(1 << 20))


class Evil:
    """What writes a file when it is unpickled."""

    def __init__(self, target: Path, call: Any = None):
        self.target, self.call = target, call

    def __reduce__(self) -> Any:
        if self.call is not None:
            return self.call
        return (
            (Path.touch, (self.target,))
            if os.getpid() % 2
            else (os.system, (f"touch {self.target}",))
        )


def pickles(target: Path, rows: np.ndarray, labels: list[int]) -> dict[str, bytes]:
    """A good batch, and hostile ones, each under what it does."""

    def batch(data: Any, marks: Any = labels) -> bytes:
        return pickle.dumps({b"data": data, b"labels": marks}, protocol=2)

    reconstruct, arguments, _ = np.zeros(0).__reduce__()
    doubling = b"\x80\x02]q\x00" + b"(h\x00h\x00eh\x00" * 3000 + b"."
    return {
        "good": batch(rows),
        "runs a program": batch(Evil(target, (os.system, (f"touch {target}",)))),
        "evaluates": batch(Evil(target, (eval, (f"open({str(target)!r}, 'w').close()",)))),
        "executes": batch(Evil(target, (exec, (f"open({str(target)!r}, 'w').close()",)))),
        "opens": batch(Evil(target, (open, (str(target), "w")))),
        "in the labels": batch(rows, Evil(target)),
        "array of objects": batch(np.array([None] * len(rows), object)),
        "array at a pointer": batch(
            Evil(target, (np.ndarray, ((4, 3072), np.dtype("u1"), b"short", 0, None)))
        ),
        "reconstructs a class": batch(Evil(target, (reconstruct, (dict, *arguments[1:])))),
        "huge array": batch(Evil(target, (reconstruct, (np.ndarray, (1 << 40,), b"b")))),
        "deep": b"\x80\x02}U\x04data" + b"]" * 100_000 + b"a" * 99_999 + b"s.",
        "endless": doubling,
        "huge number": b"\x80\x02\x8b\x00\x00\x00\x40" + bytes(100) + b".",
        "persistent": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "extension": b"\x80\x02\x82\x01.",
        "huge string": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"a.",
        "wrong labels": batch(rows, [10] * len(rows)),
        "labels of text": batch(rows, ["1"] * len(rows)),
        "floats": batch(rows.astype(np.float64)),
        "no dictionary": pickle.dumps([1, 2], protocol=2),
        "own class": batch(rows).replace(b"ndarray", b"nothing"),
    }


def pictures(rng: np.random.Generator) -> dict[str, bytes]:
    """A good picture, and files that are no picture of 32x32 pixels with 8 bits."""

    def saved(picture: Image.Image, kind: str = "PNG") -> bytes:
        target = io.BytesIO()
        picture.save(target, kind)
        return target.getvalue()

    good = saved(Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)))
    huge = good[:16] + (60000).to_bytes(4, "big") * 2 + good[24:]
    return {
        "good": good,
        "cut": good[: len(good) // 2],
        "flipped": flipped(good, rng, 5),
        "large": saved(Image.new("L", (9000, 9000))),
        "said to be huge": huge,
        "16 bits": saved(Image.fromarray(rng.integers(0, 60000, (32, 32)).astype(np.uint16))),
        "a gif": saved(Image.new("P", (32, 32)), "GIF"),
        "a bmp": saved(Image.new("RGB", (32, 32)), "BMP"),
        "small": saved(Image.new("RGB", (16, 32))),
        "empty": b"",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='32' height='32'/>",
        "long": good + bytes(1 << 20),
    }


def add_hostile(archive: tarfile.TarFile, way: str, outside: Path) -> None:
    """A member that no data set has."""
    member = tarfile.TarInfo("cifar/data_batch_1")
    content = b""
    match way:
        case "climbs":
            member.name, content = "../../climbed", b"climbed"
        case "absolute":
            member.name, content = str(outside / "absolute"), b"absolute"
        case "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        case "hard link":
            member.type, member.linkname = tarfile.LNKTYPE, "../../../etc/passwd"
        case "device":
            member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 5
        case "pipe":
            member.type = tarfile.FIFOTYPE
        case "said to be huge":
            member.size = 1 << 40
        case "negative":
            member.size = -512
        case "sparse":
            member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
            block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
            block[386:410] = b"%011o\0%011o\0" % (0, 512)
            block[483:495] = b"%011o\0" % (MEGABYTES << 20)
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
            archive.fileobj.write(bytes(block) + bytes(512))  # type: ignore[union-attr]
            return
        case "expands":
            member.size = MEGABYTES << 20
            archive.addfile(member, Zeros(member.size))  # type: ignore[arg-type]
            return
        case "many":
            for number in range(20_000):
                archive.addfile(tarfile.TarInfo(f"{number}"))
            return
        case "long name":
            member.name = "a/" * 50_000
    if content:
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    else:
        archive.fileobj.write(header(member))  # type: ignore[union-attr]


HOSTILE = [
    "climbs",
    "absolute",
    "link",
    "hard link",
    "device",
    "pipe",
    "said to be huge",
    "negative",
    "sparse",
    "expands",
    "many",
    "long name",
]


def header(member: tarfile.TarInfo) -> bytes:
    if member.size >= 0:
        return member.tobuf(tarfile.GNU_FORMAT)
    member.size = 0
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"-0000001000\0"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    return bytes(block)


class Zeros(io.RawIOBase):
    """A stream of zeros, which takes no memory."""

    def __init__(self, size: int):
        self.left = size

    def read(self, size: int = -1) -> bytes:
        given = min(self.left, size if size >= 0 else self.left, 1 << 20)
        self.left -= given
        return bytes(given)
