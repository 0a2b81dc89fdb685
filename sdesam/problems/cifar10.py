"""CIFAR-10 from the files that people have of it: python or binary batches, or JPEG or PNG files by
class; in a folder or a tar of it.

60,000 colour images of 32x32 pixels in ten classes, of which 10,000 are to test on (Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009). Nothing is fetched, and nothing is
written. Files may come from anywhere: sizes are known before anything is read, and the python
batches, pickles which may run any program, are read by `_pickled`, which runs none of it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np

from sdesam.problems._pickled import PIXELS as _PIXELS
from sdesam.problems._pickled import python_batch

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
GET = "get cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
KINDS = "python or binary batches, or JPEG or PNG files by class"

_SIDE = 32
_IMAGES = {"train": 50_000, "test": 10_000}
_BATCHES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
_PICTURES = (".jpg", ".jpeg", ".png")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1")
"""Of pictures with 8 bits a channel or fewer: colour, grey, palette, black and white."""
_PNG_DEPTH = slice(24, 25)
"""Where a PNG file says how many bits a channel has."""
_MOST_OF_PICTURE = 2**17
"""Bytes of one picture file; its pixels have 3,072."""
_TOGETHER = 256
"""Pictures decoded together."""
_COMPRESSED: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ", lzma.open),
    (b"\x5d\x00\x00", lzma.open),
)
"""How compressed files begin, and what opens them."""
_HEADER = 2**20
"""Bytes of a tar that are read in one piece beside the contents of files: headers, which have 512,
and long names.
"""
_OF_CIFAR_100 = {"train", "test", "train.bin", "test.bin"}


@dataclass(frozen=True)
class Images:
    """Images to train and to test on.

    Args:
        train_images: shape (n, height, width, channels), uint8.
        train_labels: shape (n,), int32, a class's place in `CLASSES`.
        test_images: as `train_images`.
        test_labels: as `train_labels`.

    Raises:
        ValueError: arrays of another kind, shape or length, a label that is no class.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def __post_init__(self) -> None:
        for part, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
                raise ValueError(
                    f"{part}_images is {images.dtype}{list(images.shape)}: it must be uint8 of"
                    " shape (n, height, width, channels)"
                )
            if images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(
                    f"test_images have shape {list(images.shape[1:])}, train_images"
                    f" {list(self.train_images.shape[1:])}"
                )
            if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(
                    f"{part}_labels is {labels.dtype}{list(labels.shape)}: it must be a whole"
                    f" number for each of {len(images)} images"
                )
            if labels.min() < 0 or labels.max() >= len(CLASSES):
                raise ValueError(
                    f"{part}_labels run from {labels.min()} to {labels.max()}: they must be from 0"
                    f" to {len(CLASSES) - 1}"
                )

    def subset(self, train: int) -> Images:
        """The data set with the first `train` images to train on."""
        if not 1 <= train <= len(self.train_images):
            raise ValueError(f"train={train}: there are {len(self.train_images)} images")
        return replace(
            self, train_images=self.train_images[:train], train_labels=self.train_labels[:train]
        )

    def __repr__(self) -> str:
        return f"Images({len(self.train_images)} to train, {len(self.test_images)} to test)"


def load(path: str | os.PathLike[str]) -> Images:
    """CIFAR-10, in the order of the batches; pictures by number and then class, so that the first
    ones are of all classes.

    Args:
        path: a folder, or a tar of it (plain, gz, bz2 or xz), with `data_batch_1` to `data_batch_5`
            and `test_batch` (the python version), the same with `.bin` (the binary version), or
            `train/<class>/*.jpg` and `test/<class>/*.jpg` (also `.jpeg` and `.png`; these need
            pillow). They may lie in a folder inside.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: something is missing or cut short, or it is another data set: what was found,
            and where to get the right one.
        ModuleNotFoundError: pictures, and no pillow.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    >>> load("nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: no CIFAR-10 at 'nowhere': there is no such file or folder; get ...
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(
            f"no CIFAR-10 at {str(path)!r}: there is no such file or folder; {GET}"
        )
    if not place.is_dir() and not place.is_file():
        raise ValueError(f"no CIFAR-10 at {str(path)!r}: it is neither a file nor a folder; {GET}")
    files = _Folder(place) if place.is_dir() else _Tar(place)
    return Images(**_read(files))


class _Wrong(ValueError):
    """What is there is not the data set."""


def _most_files() -> int:
    """Files beside which the data set may lie."""
    return 4 * sum(_IMAGES.values()) + 1000


class _Folder:
    """The files below a folder."""

    def __init__(self, place: Path):
        self.place = place
        found = list(
            islice((path for path in place.rglob("*") if path.is_file()), _most_files() + 1)
        )
        if len(found) > _most_files():
            raise _wrong(self, f"it holds more than {_most_files()} files")
        self.names = sorted(path.relative_to(place).as_posix() for path in found)

    def contents(self, names: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """Each file of `names`, which has at most so many bytes."""
        for name, most in names.items():
            with open(self.place / name, "rb") as file:
                _check_size(self, name, os.fstat(file.fileno()).st_size, most)
                yield name, file.read(most)


class _Tar:
    """The files of a tar; read from one end to the other, since what is compressed cannot be read
    otherwise in reasonable time.
    """

    def __init__(self, place: Path):
        self.place = place
        self.names = sorted(name for name, _ in self._files({}))

    def contents(self, names: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """Each file of `names`, which has at most so many bytes."""
        return ((name, content) for name, content in self._files(names) if name in names)

    def _files(self, wanted: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """Its files, with the contents of those that are wanted; what is too long is not even
        skipped over.
        """
        # pixels and labels of all images are 184 MB; four times that leaves room for names and
        # padding of 60,000 small files, and a small file that expands without end is stopped
        most = 4 * sum(_IMAGES.values()) * (_PIXELS + 1) + 2**24
        count = 0
        try:
            with (
                self._opened(most) as stream,
                tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:") as archive,
            ):
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep millions of them
                    name, count = member.name.removeprefix("./"), count + 1
                    if not (member.isfile() or member.isdir()):
                        raise _wrong(
                            self, f"{name!r} is no file and no folder, but a link or a device"
                        )
                    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                        raise _wrong(self, f"{name!r} lies outside of it")
                    end = member.offset_data + member.size
                    if count > _most_files() or end > most:
                        raise _wrong(
                            self,
                            f"up to {name!r} it has {count} files and {end} bytes, and at most"
                            f" {most} bytes are expected",
                        )
                    if member.isfile():
                        yield (
                            name,
                            (
                                self._content(archive, member, stream, wanted[name])
                                if name in wanted
                                else b""
                            ),
                        )
                while stream.read(_HEADER):  # to the end, where what is compressed has its checksum
                    pass
        except _Wrong:
            raise
        except Exception as error:  # lzma and zlib have error types of their own
            words = str(error).partition("\n")[0]
            raise _Wrong(
                f"{str(self.place)!r} is no tar file, or it is cut short ({words}); {GET}"
            ) from error

    def _content(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, stream: _Bounded, most: int
    ) -> bytes:
        _check_size(self, member.name, member.size, most)
        file = archive.extractfile(member)
        assert file is not None
        stream.piece = max(member.size, _HEADER)
        content = file.read()
        stream.piece = _HEADER
        return content

    def _opened(self, most: int) -> _Bounded:
        with open(self.place, "rb") as file:
            begin = file.read(6)
        plain: Callable[[Path], Any] = partial(open, mode="rb")
        opener = next((opener for mark, opener in _COMPRESSED if begin.startswith(mark)), plain)
        return _Bounded(opener(self.place), most)


class _Bounded:
    """What is in a tar, compressed or not: neither in one piece nor in all is more read than its
    limits.
    """

    def __init__(self, file: IO[bytes], most: int):
        self.file, self.most, self.piece = file, most, _HEADER

    def read(self, size: int) -> bytes:
        # tarfile trusts the sizes in its headers and would read a whole long name into memory
        self._check(size, self.piece)
        self._check(self.tell(), self.most)
        return self.file.read(size)

    def seek(self, place: int) -> int:
        self._check(place, self.most)
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()

    def _check(self, asked: int, most: int) -> None:
        if not 0 <= asked <= most:
            raise ValueError(f"it has {asked} bytes where at most {most} are expected")

    def __enter__(self) -> _Bounded:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def _check_size(files: Files, name: str, size: int, most: int) -> None:
    if size > most:
        raise _wrong(files, f"{name} has {size} bytes, and at most {most} are expected")


Files = _Folder | _Tar


def _read(files: Files) -> dict[str, np.ndarray]:
    """The four arrays, whatever the files are."""
    by_name: dict[str, str] = {}
    for name in files.names:
        by_name.setdefault(PurePosixPath(name).name, name)
    needed = [name for names in _BATCHES.values() for name in names]
    # bytes of a batch with 1024 for each file name, and bytes that are pickled as text, which takes
    # up to two for one
    for suffix, parse, most in (
        ("", python_batch, lambda images: 2**16 + images * (2 * _PIXELS + 1024)),
        (".bin", _binary_batch, _binary_size),
    ):
        if any(name + suffix in by_name for name in needed):
            missing = [name + suffix for name in needed if name + suffix not in by_name]
            if missing:
                raise _wrong(
                    files, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
                )
            return _read_batches(
                files, {name: by_name[name + suffix] for name in needed}, parse, most
            )
    pictures = [name for name in files.names if PurePosixPath(name).suffix.lower() in _PICTURES]
    if pictures:
        return _read_pictures(files, pictures)
    if {"fine_label_names.txt", "coarse_label_names.txt", "meta"} & set(
        by_name
    ) and _OF_CIFAR_100 & set(by_name):
        raise _wrong(files, "this is CIFAR-100, another data set")
    shown = ", ".join(files.names[:5]) or "nothing"
    raise _wrong(
        files,
        f"there are {len(files.names)} files, but neither data_batch_1 nor train/<class>/*.jpg; the"
        f" first are: {shown}",
    )


def _read_batches(
    files: Files,
    places: Mapping[str, str],
    parse: Callable[[bytes], tuple[np.ndarray, np.ndarray]],
    most: Callable[[int], int],
) -> dict[str, np.ndarray]:
    parsed = {}
    sizes = {
        places[name]: most(_IMAGES[part] // len(names))
        for part, names in _BATCHES.items()
        for name in names
    }
    for place, content in files.contents(sizes):
        try:
            parsed[place] = parse(content)
        except Exception as error:
            raise _wrong(
                files, f"{place} cannot be read as a batch ({error}); it may be cut short"
            ) from error
    arrays = {}
    for part, names in _BATCHES.items():
        pixels = np.concatenate([parsed[places[name]][0] for name in names])
        labels = np.concatenate([parsed[places[name]][1] for name in names]).astype(np.int32)
        if len(pixels) != _IMAGES[part] or len(labels) != len(pixels):
            raise _wrong(
                files,
                f"{', '.join(names)} hold {len(pixels)} images and {len(labels)} labels: there"
                f" should be {_IMAGES[part]}",
            )
        if labels.min() < 0 or labels.max() >= len(CLASSES):
            raise _wrong(
                files, f"labels run from {labels.min()} to {labels.max()}, not from 0 to 9"
            )
        arrays[f"{part}_images"] = np.ascontiguousarray(
            # a row holds all of red, then green, then blue; networks take the channel last
            pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
        )
        arrays[f"{part}_labels"] = labels
    return arrays


def _binary_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one byte of label and 3,072 of pixels, channel by channel."""
    if len(content) % (_PIXELS + 1) or not content:
        raise ValueError(f"{len(content)} bytes are no whole number of rows of {_PIXELS + 1}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS + 1)
    return rows[:, 1:], rows[:, 0]


def _binary_size(images: int) -> int:
    return images * (_PIXELS + 1)


def _read_pictures(files: Files, names: list[str]) -> dict[str, np.ndarray]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "CIFAR-10 from pictures needs pillow: pip install 'sdesam[images]', or take its binary"
            " version"
        ) from error

    chosen: dict[str, tuple[str, int]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in _IMAGES:
            if parts[-2] not in CLASSES:
                raise _wrong(
                    files, f"{parts[-3]}/{parts[-2]} is no class of CIFAR-10 ({', '.join(CLASSES)})"
                )
            chosen[name] = (parts[-3], CLASSES.index(parts[-2]))
    counts = {
        part: np.bincount(
            [label for where, label in chosen.values() if where == part], minlength=len(CLASSES)
        )
        for part in _IMAGES
    }
    for part, images in _IMAGES.items():
        for name, count in zip(CLASSES, counts[part], strict=True):
            if count != images // len(CLASSES):
                raise _wrong(
                    files,
                    f"{part}/{name} holds {count} pictures: there should be"
                    f" {images // len(CLASSES)}",
                )

    def decode(item: tuple[str, bytes]) -> tuple[str, np.ndarray]:
        name, content = item
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
                size, mode, form = picture.size, picture.mode, picture.format
                picture.verify()
        except Image.DecompressionBombError as error:
            raise _wrong(
                files, f"{name} has far more pixels than CIFAR-10's {_SIDE}x{_SIDE}"
            ) from error
        except Exception as error:
            raise _wrong(files, f"{name} is no JPEG or PNG picture, or it is cut short") from error
        if size != (_SIDE, _SIDE):
            raise _wrong(
                files, f"{name} has {size[0]}x{size[1]} pixels: CIFAR-10 has {_SIDE}x{_SIDE}"
            )
        if mode not in _MODES or (form == "PNG" and content[_PNG_DEPTH] == b"\x10"):
            raise _wrong(
                files, f"{name} has no 8 bits of red, green and blue, but pixels of the kind {mode}"
            )
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
                opaque = mode not in ("RGBA", "LA") or picture.getchannel("A").getextrema() == (
                    255,
                    255,
                )
                pixels = np.asarray(picture.convert("RGB"))
        except Exception as error:
            raise _wrong(files, f"{name} is no JPEG or PNG picture, or it is cut short") from error
        if not opaque:
            raise _wrong(
                files, f"{name} is transparent, so that its pixels have no colour of their own"
            )
        return name, pixels

    contents = files.contents(dict.fromkeys(chosen, _MOST_OF_PICTURE))
    decoded: dict[str, np.ndarray] = {}
    # decoding lets go of the interpreter's lock
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor() as pool,
    ):
        # what is too large is refused anyway
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        while some := list(islice(contents, _TOGETHER)):
            decoded.update(pool.map(decode, some))
    arrays = {}
    for part in _IMAGES:
        own = sorted(
            (name for name in chosen if chosen[name][0] == part),
            key=lambda name: (PurePosixPath(name).stem, name),
        )
        arrays[f"{part}_images"] = np.stack([decoded[name] for name in own])
        arrays[f"{part}_labels"] = np.array([chosen[name][1] for name in own], np.int32)
    return arrays


def _wrong(files: Files, what: str) -> _Wrong:
    return _Wrong(f"{str(files.place)!r} is not the whole of CIFAR-10: {what}; {GET}")
