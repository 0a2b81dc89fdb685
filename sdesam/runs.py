"""The store of runs: one folder per run, named by the hash of its configuration.

    STORE/store.json                    what this folder is, and its schema
    STORE/<hash>/run.json               configuration, seconds, provenance, numbers
    STORE/<hash>/arrays.npz             arrays without pickle

A run appears under its name only when it is complete: its folder is written beside and renamed. So a sweep that is killed has lost the runs in
progress and nothing else, and finds out by itself which are still to do. Experiments share the store: equal configurations are one run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from sdesam import store

SCHEMA = "sdesam.runs/1"
_MARK = "store.json"
_UNFINISHED = ".unfinished-"
_LEAST_FREE = 64 * 2**20
"""Bytes that must be free on the disk before a sweep begins: many times what the quick sweeps write."""


@dataclass(frozen=True)
class Numbers:
    """What one run found.

    Args:
        values: numbers, text, lists of them.
        arrays: what is long: curves, parameters.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A stored run.

    Args:
        config: all that it depends on, seed included.
        numbers: what it found.
        seconds: how long it took, compilation included.
        provenance: versions, device, revision, time.
    """

    config: Mapping[str, Any]
    numbers: Numbers
    seconds: float
    provenance: Mapping[str, Any]


def key(config: Mapping[str, Any]) -> str:
    """The name of a run: a hash of its configuration, in which the order of entries does not matter.

    >>> key({"seed": 0, "lr": 0.1}) == key({"lr": 0.1, "seed": 0})
    True
    >>> key({"seed": 0, "lr": 0.1}) == key({"seed": 1, "lr": 0.1})
    False
    """
    return hashlib.sha256(_canonical(config).encode()).hexdigest()[:20]


class RunStore:
    """A folder of runs.

    Args:
        folder: it is made on the first write; one that holds something else is refused.

    Raises:
        ValueError: the folder is no store of runs, or one of another schema version.
        OSError: it cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     runs = RunStore(folder)
    ...     runs.save({"seed": 0}, Numbers({"accuracy": 0.9}), seconds=1.0)
    ...     {"seed": 0} in runs, {"seed": 1} in runs, runs.load({"seed": 0}).numbers.values
    (True, False, {'accuracy': 0.9})
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"the store {str(folder)!r} is a file: name a folder")
        mark = self.folder / _MARK
        if mark.exists():
            try:
                found = json.loads(mark.read_text())["schema"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"the store {str(folder)!r} has an unreadable {_MARK}: name another folder, or delete this one") from error
            if found != SCHEMA:
                raise ValueError(f"the store {str(folder)!r} has schema {found!r}, and this version reads {SCHEMA!r}: name another folder")
        elif self.folder.exists() and any(not place.name.startswith(".") for place in self.folder.iterdir()):  # a mark being written has a dot
            raise ValueError(f"the folder {str(folder)!r} holds other things than runs (it has no {_MARK}): name an empty or a new one")

    def __contains__(self, config: Mapping[str, Any]) -> bool:
        return (self._place(config) / "run.json").exists()

    def load(self, config: Mapping[str, Any]) -> Run:
        """The run with this configuration.

        Raises:
            KeyError: it is not there.
            ValueError: what is there is damaged or has another configuration.
        """
        place = self._place(config)
        try:
            meta = json.loads((place / "run.json").read_text())
        except FileNotFoundError:
            raise KeyError(f"no run with configuration {_canonical(config)}") from None
        except ValueError as error:
            raise ValueError(f"the run {str(place)!r} is damaged ({error}): delete it, and it is run again") from error
        if meta.get("schema") != SCHEMA:
            raise ValueError(f"the run {str(place)!r} has schema {meta.get('schema')!r}, and this version reads {SCHEMA!r}: delete it")
        if _canonical(meta["config"]) != _canonical(config):
            raise ValueError(f"the run {str(place)!r} has another configuration than its name says: delete it, and it is run again")
        arrays, _ = store.read_arrays(place / "arrays.npz")
        return Run(meta["config"], Numbers(meta["values"], arrays), meta["seconds"], meta["provenance"])

    def save(self, config: Mapping[str, Any], numbers: Numbers, seconds: float, provenance: Mapping[str, Any] | None = None) -> None:
        """Write a run; it appears at once and whole. A run that is there already is left as it is.

        Args:
            config: its configuration, of JSON's types.
            numbers: what it found.
            seconds: how long it took.
            provenance: where it ran; left out, here.

        Raises:
            OSError: it cannot be written, for instance because the disk is full; nothing is left behind.
        """
        target = self._place(config)
        if config in self:
            return
        self._begin()
        temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
        try:
            store.write_arrays(temporary / "arrays.npz", dict(numbers.arrays), {"config": config})
            meta = {
                "schema": SCHEMA,
                "config": config,
                "seconds": round(seconds, 3),
                "provenance": store.provenance() if provenance is None else provenance,
                "values": numbers.values,
            }
            store.write_json(temporary / "run.json", meta)
            os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp is private; a result is an ordinary folder
            os.replace(temporary, target)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and config in self:
                return  # another process wrote the same run meanwhile
            raise

    def check_room(self) -> None:
        """See before any work that runs can be written; nothing is created.

        Raises:
            OSError: the folder cannot be written, or its disk has no room.
        """
        store.check_folder(self.folder)
        place = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        free = shutil.disk_usage(place).free
        if free < _LEAST_FREE:
            raise OSError(f"no room for the store {str(self.folder)!r}: {free >> 20} MB are free on its disk, {_LEAST_FREE >> 20} MB are needed")

    @contextmanager
    def sweep(self) -> Iterator[None]:
        """Held while runs are made: a second sweep into the same store is refused, and what a killed one left half-written is cleared.

        Raises:
            OSError: the store cannot be written, or the disk has no room.
            ValueError: another sweep is at work in it.
        """
        self.check_room()
        self._begin()
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"another sweep is at work in the store {str(self.folder)!r}: wait for it, or name another with --store") from None
        try:
            for left in self.folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.release()

    def __iter__(self) -> Iterator[str]:
        """The names of the runs that are there."""
        if self.folder.exists():
            yield from sorted(place.name for place in self.folder.iterdir() if (place / "run.json").exists() and not place.name.startswith("."))

    def _place(self, config: Mapping[str, Any]) -> Path:
        return self.folder / key(config)

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / _MARK).exists():
            store.write_json(self.folder / _MARK, {"schema": SCHEMA})


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(store.plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
