"""CIFAR-10 from the files that people have of it: python or binary batches, or JPEG or PNG files by class; in a folder or a tar of it.

60,000 colour images of 32x32 pixels in ten classes, of which 10,000 are to test on (Krizhevsky, "Learning Multiple Layers of Features
from Tiny Images", 2009). Nothing is fetched, and nothing is written. The python batches are pickles, which may
run any program: they are read by an unpickler that knows arrays, strings, lists and dictionaries, and nothing else.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
GET = "get cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
KINDS = "python or binary batches, or JPEG or PNG files by class"

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_IMAGES = {"train": 50_000, "test": 10_000}
_BATCHES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
_PICTURES = (".jpg", ".jpeg", ".png")
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
        for part, images, labels in (("train", self.train_images, self.train_labels), ("test", self.test_images, self.test_labels)):
            if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
                raise ValueError(f"{part}_images is {images.dtype}{list(images.shape)}: it must be uint8 of shape (n, height, width, channels)")
            if images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(f"test_images have shape {list(images.shape[1:])}, train_images {list(self.train_images.shape[1:])}")
            if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(f"{part}_labels is {labels.dtype}{list(labels.shape)}: it must be a whole number for each of {len(images)} images")
            if labels.min() < 0 or labels.max() >= len(CLASSES):
                raise ValueError(f"{part}_labels run from {labels.min()} to {labels.max()}: they must be from 0 to {len(CLASSES) - 1}")

    def subset(self, train: int) -> Images:
        """The same with the first `train` images to train on."""
        if not 1 <= train <= len(self.train_images):
            raise ValueError(f"train={train}: there are {len(self.train_images)} images")
        return replace(self, train_images=self.train_images[:train], train_labels=self.train_labels[:train])

    def __repr__(self) -> str:
        return f"Images({len(self.train_images)} to train, {len(self.test_images)} to test)"


def load(path: str | os.PathLike[str]) -> Images:
    """CIFAR-10, in the order of the batches; pictures by number and then class, so that the first ones are of all classes.

    Args:
        path: a folder, or a tar of it (plain, gz, bz2 or xz), with `data_batch_1` to `data_batch_5` and `test_batch` (the python version),
            the same with `.bin` (the binary version), or `train/<class>/*.jpg` and `test/<class>/*.jpg` (also `.jpeg` and `.png`; these
            need pillow). They may lie in a folder inside.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: something is missing or cut short, or it is another data set: what was found, and where to get the right one.
        ModuleNotFoundError: pictures, and no pillow.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    >>> load("nowhere")
    Traceback (most recent call last):
    ...
    FileNotFoundError: no CIFAR-10 at 'nowhere': there is no such file or folder; get cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"no CIFAR-10 at {str(path)!r}: there is no such file or folder; {GET}")
    files = _Folder(place) if place.is_dir() else _Tar(place)
    return Images(**_read(files))


class _Folder:
    """The files below a folder."""

    def __init__(self, place: Path):
        self.place = place
        self.names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())

    def contents(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            yield name, (self.place / name).read_bytes()


class _Tar:
    """The files of a tar; read from one end to the other, since what is compressed cannot be read otherwise in reasonable time."""

    def __init__(self, place: Path):
        self.place = place
        try:
            with tarfile.open(place) as archive:
                self.names = sorted(member.name.removeprefix("./") for member in archive if member.isfile())
        except Exception as error:  # lzma and zlib have error types of their own
            raise self._cut_short(error) from error

    def contents(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        wanted = set(names)
        try:
            with tarfile.open(self.place) as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if name in wanted and member.isfile():
                        file = archive.extractfile(member)
                        assert file is not None
                        yield name, file.read()
        except Exception as error:
            raise self._cut_short(error) from error

    def _cut_short(self, error: Exception) -> ValueError:
        words = str(error).partition("\n")[0].rstrip(":")  # tarfile goes on with a line for each kind of compression
        return ValueError(f"{str(self.place)!r} is no tar file, or it is cut short ({words}); {GET}")


Files = _Folder | _Tar


def _read(files: Files) -> dict[str, np.ndarray]:
    """The four arrays, whatever the files are."""
    by_name: dict[str, str] = {}
    for name in files.names:
        by_name.setdefault(PurePosixPath(name).name, name)
    needed = [name for names in _BATCHES.values() for name in names]
    for suffix, parse in (("", _python_batch), (".bin", _binary_batch)):
        if any(name + suffix in by_name for name in needed):
            missing = [name + suffix for name in needed if name + suffix not in by_name]
            if missing:
                raise _wrong(files, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
            return _read_batches(files, {name: by_name[name + suffix] for name in needed}, parse)
    pictures = [name for name in files.names if PurePosixPath(name).suffix.lower() in _PICTURES]
    if pictures:
        return _read_pictures(files, pictures)
    if {"fine_label_names.txt", "coarse_label_names.txt", "meta"} & set(by_name) and _OF_CIFAR_100 & set(by_name):
        raise _wrong(files, "this is CIFAR-100, another data set")
    shown = ", ".join(files.names[:5]) or "nothing"
    raise _wrong(files, f"there are {len(files.names)} files, but neither data_batch_1 nor train/<class>/*.jpg; the first are: {shown}")


def _read_batches(files: Files, places: Mapping[str, str], parse: Callable[[bytes], tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    parsed = {}
    for place, content in files.contents(list(places.values())):
        try:
            parsed[place] = parse(content)
        except Exception as error:
            raise _wrong(files, f"{place} cannot be read as a batch ({error}); it may be cut short") from error
    arrays = {}
    for part, names in _BATCHES.items():
        pixels = np.concatenate([parsed[places[name]][0] for name in names])
        labels = np.concatenate([parsed[places[name]][1] for name in names]).astype(np.int32)
        if len(pixels) != _IMAGES[part] or len(labels) != len(pixels):
            raise _wrong(files, f"{', '.join(names)} hold {len(pixels)} images and {len(labels)} labels: there should be {_IMAGES[part]}")
        if labels.min() < 0 or labels.max() >= len(CLASSES):
            raise _wrong(files, f"labels run from {labels.min()} to {labels.max()}, not from 0 to 9")
        arrays[f"{part}_images"] = np.ascontiguousarray(pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))
        arrays[f"{part}_labels"] = labels
    return arrays


def _binary_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one byte of label and 3,072 of pixels, channel by channel."""
    if len(content) % (_PIXELS + 1) or not content:
        raise ValueError(f"{len(content)} bytes are no whole number of rows of {_PIXELS + 1}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS + 1)
    return rows[:, 1:], rows[:, 0]


def _python_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dictionary with `data` (n, 3072) and `labels`."""
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise ValueError(f"it holds a {type(batch).__name__}, not a dictionary")
    named = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if "labels" not in named and "fine_labels" in named:
        raise ValueError("fine_labels in place of labels: this is CIFAR-100")
    pixels, labels = named.get("data"), named.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise ValueError(f"data is no uint8 array of shape (n, {_PIXELS})")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise ValueError("labels is no list of whole numbers")
    return pixels, np.array(labels)


class _Unpickler(pickle.Unpickler):
    """Arrays of numbers and python's own containers: a pickle that names anything else is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            # pickles give it the subtype, shape and dtype of an empty array to be filled in: the function itself, under the name of any version
            return np.zeros(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs: not opened")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 pickles bytes for old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _read_pictures(files: Files, names: list[str]) -> dict[str, np.ndarray]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("CIFAR-10 from pictures needs pillow: pip install 'sdesam[images]', or take its binary version") from error

    chosen: dict[str, tuple[str, int]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in _IMAGES:
            if parts[-2] not in CLASSES:
                raise _wrong(files, f"{parts[-3]}/{parts[-2]} is no class of CIFAR-10 ({', '.join(CLASSES)})")
            chosen[name] = (parts[-3], CLASSES.index(parts[-2]))
    counts = {part: np.bincount([label for where, label in chosen.values() if where == part], minlength=len(CLASSES)) for part in _IMAGES}
    for part, images in _IMAGES.items():
        for name, count in zip(CLASSES, counts[part], strict=True):
            if count != images // len(CLASSES):
                raise _wrong(files, f"{part}/{name} holds {count} pictures: there should be {images // len(CLASSES)}")

    def decode(item: tuple[str, bytes]) -> tuple[str, np.ndarray]:
        name, content = item
        try:
            with Image.open(io.BytesIO(content)) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except Exception as error:
            raise _wrong(files, f"{name} is no picture, or it is cut short") from error
        if pixels.shape != (_SIDE, _SIDE, 3):
            raise _wrong(files, f"{name} has {pixels.shape[1]}x{pixels.shape[0]} pixels: CIFAR-10 has {_SIDE}x{_SIDE}")
        return name, pixels

    with ThreadPoolExecutor() as pool:  # decoding lets go of the interpreter's lock
        decoded = dict(pool.map(decode, files.contents(list(chosen))))
    arrays = {}
    for part in _IMAGES:
        own = sorted((name for name in chosen if chosen[name][0] == part), key=lambda name: (PurePosixPath(name).stem, name))
        arrays[f"{part}_images"] = np.stack([decoded[name] for name in own])
        arrays[f"{part}_labels"] = np.array([chosen[name][1] for name in own], np.int32)
    return arrays


def _wrong(files: Files, what: str) -> ValueError:
    return ValueError(f"{str(files.place)!r} is not the whole of CIFAR-10: {what}; {GET}")
