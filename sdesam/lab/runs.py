"""The store of runs: one folder per run, named by the hash of its configuration.

    STORE/store.json                    what this folder is, and its schema
    STORE/<hash>/run.json               configuration, seconds, provenance, numbers; checksums of
    itself and of the arrays STORE/<hash>/arrays.npz             arrays without pickle
    STORE/.unfinished/                  what is being written

A run appears under its name only when it is complete: its folder is written in `.unfinished` and
renamed. So a sweep that is killed has lost the runs in progress and nothing else, and finds out by
itself which are still to do. Experiments share the store: equal configurations are one run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdesam._util import store
from sdesam._util.files import opened

SCHEMA = "sdesam.runs/2"
_MARK = "store.json"
_UNFINISHED = ".unfinished"
_LEAST_FREE = 64 * 10**6
"""Bytes that must be free on the disk before a sweep begins: many times what the quick sweeps
write.
"""


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
    """The name of a run: a hash of its configuration, in which the order of entries does not
    matter.

    >>> key({"seed": 0, "lr": 0.1}) == key({"lr": 0.1, "seed": 0})
    True
    >>> key({"seed": 0, "lr": 0.1}) == key({"seed": 1, "lr": 0.1})
    False
    """
    return hashlib.sha256(_canonical(config).encode()).hexdigest()[:20]


# What becomes of one run on the disk, and what a kill at each point leaves:
#
#     1  STORE/.unfinished/tmpab12/            a folder of its own: two processes may write the same
#                                              run. Killed here: cleared by the next sweep
#     2  .../tmpab12/.run.sdesam-lock          locked while the run is written: what is locked is
#                                              never cleared
#     3  .../tmpab12/run/arrays.npz            then run.json, which has the checksum of the arrays
#     4  STORE/ff0a64b8b4763380bc3f/           a rename, which the file system does at once: the run
#                                              is there whole, or not at all
#
# The name is a hash of the configuration: {"seed": 0, "lr": 0.1} is ff0a64b8b4763380bc3f in
# whatever order its entries are written. So to ask whether a run is done is to ask whether a folder
# exists, and no list of finished runs can be out of step with them.
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
        try:
            mark = store.read_json(self.folder / _MARK)
        except FileNotFoundError:
            # a mark being written has a dot
            if self.folder.exists() and any(
                not place.name.startswith(".") for place in self.folder.iterdir()
            ):
                raise ValueError(
                    f"the folder {str(folder)!r} holds other things than runs (it has no {_MARK}):"
                    " name an empty or a new one"
                ) from None
            return
        except ValueError as error:
            raise ValueError(
                f"the store {str(folder)!r} has an unreadable {_MARK}: name another folder, or"
                " delete this one"
            ) from error
        found = mark.get("schema") if isinstance(mark, dict) else None
        if found != SCHEMA:
            raise ValueError(
                f"the store {str(folder)!r} has schema {found!r}, and this version reads"
                f" {SCHEMA!r}: name another folder"
            )

    def __contains__(self, config: Mapping[str, Any]) -> bool:
        return os.path.lexists(self._place(config))

    def load(self, config: Mapping[str, Any]) -> Run:
        """The run with this configuration.

        Raises:
            KeyError: it is not there.
            ValueError: what is there is damaged, or is another run.
        """
        meta = self.check(config)
        arrays, _ = store.read_arrays(self._place(config) / "arrays.npz")
        return Run(
            meta["config"], Numbers(meta["values"], arrays), meta["seconds"], meta["provenance"]
        )

    def check(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The contents of `run.json`, once it is clear that the whole run is as it was written;
        raises as :meth:`load`.
        """
        place = self._place(config)
        if config not in self:
            raise KeyError(f"no run with configuration {_canonical(config)}")
        try:
            meta = store.read_json(place / "run.json")
            if not isinstance(meta, dict):
                raise ValueError("its run.json holds no dictionary")
            if meta.get("schema") == SCHEMA and meta.get("checksum") != _checksum(meta):
                raise ValueError("its run.json is not as it was written")
            # both files may be whole, and belong to two runs that somebody copied over each other
            if meta.get("schema") == SCHEMA and meta["arrays"] != _digest(place / "arrays.npz"):
                raise ValueError("its arrays.npz is of another run, or not as it was written")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"the run {str(place)!r} is damaged ({_in_words(error)}): delete it, and it is run"
                " again"
            ) from error
        if meta.get("schema") != SCHEMA:
            raise ValueError(
                f"the run {str(place)!r} has schema {meta.get('schema')!r}, and this version reads"
                f" {SCHEMA!r}: delete it"
            )
        if _canonical(meta["config"]) != _canonical(config):
            raise ValueError(
                f"the run {str(place)!r} has another configuration than its name says: delete it,"
                " and it is run again"
            )
        return meta

    def save(
        self,
        config: Mapping[str, Any],
        numbers: Numbers,
        seconds: float,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a run; it appears at once and whole. A run that is there already is left as it is.

        Args:
            config: its configuration, of JSON's types.
            numbers: what it found.
            seconds: how long it took.
            provenance: where it ran; left out, here.

        Raises:
            OSError: it cannot be written, for instance because the disk is full; nothing is left
                behind.
        """
        if config in self:
            return
        self._begin()
        own = self._folder_of_its_own()
        try:
            # so no sweep clears it away
            with store.lock(own / "run", "another process has a folder that was made here"):
                run = own / "run"
                run.mkdir()
                store.write_arrays(run / "arrays.npz", dict(numbers.arrays), {"config": config})
                meta = {
                    "schema": SCHEMA,
                    "config": config,
                    "seconds": round(seconds, 3),
                    "provenance": store.provenance() if provenance is None else provenance,
                    "values": numbers.values,
                    "arrays": _digest(run / "arrays.npz"),
                }
                store.write_json(run / "run.json", {**meta, "checksum": _checksum(meta)})
                os.replace(run, self._place(config))
        except OSError:
            if config not in self:  # else another process wrote the same run meanwhile
                raise
        finally:
            shutil.rmtree(own, ignore_errors=True)
            with suppress(OSError):
                own.parent.rmdir()

    def check_room(self) -> None:
        """See before any work that runs can be written; nothing is created.

        Raises:
            OSError: the folder cannot be written, or its disk has no room.
        """
        store.check_folder(self.folder)
        try:
            store.check_room(
                next(
                    place
                    for place in (self.folder, *self.folder.absolute().parents)
                    if place.exists()
                ),
                _LEAST_FREE,
            )
        except OSError as error:
            raise OSError(
                f"no room for the store {str(self.folder)!r}: {error.strerror}"
            ) from error

    @contextmanager
    def sweep(self) -> Iterator[None]:
        """Held while runs are made: a second sweep into the same store is refused, and what a
        killed one left half-written is cleared.

        Raises:
            OSError: the store cannot be written, or the disk has no room.
            ValueError: another sweep is at work in it.
        """
        self.check_room()
        self._begin()
        busy = (
            f"another sweep is at work in the store {str(self.folder)!r}: wait for it, or name"
            " another with --store"
        )
        with store.lock(self.folder / _MARK, busy):
            self._clear()
            yield

    def __iter__(self) -> Iterator[str]:
        """The names of the runs that are there."""
        if self.folder.exists():
            yield from sorted(
                place.name
                for place in self.folder.iterdir()
                if (place / "run.json").exists() and not place.name.startswith(".")
            )

    def _folder_of_its_own(self) -> Path:
        """A new folder to write a run in."""
        unfinished = self.folder / _UNFINISHED
        while True:
            unfinished.mkdir(exist_ok=True)
            # another process removed it, when the last folder in it was gone
            with suppress(FileNotFoundError):
                return Path(tempfile.mkdtemp(dir=unfinished))

    def _clear(self) -> None:
        """Remove what killed processes left half-written; who is still writing holds a lock."""
        unfinished = self.folder / _UNFINISHED
        with suppress(OSError):
            for left in unfinished.iterdir():
                with suppress(ValueError), store.lock(left / "run", "it is being written") as dead:
                    if dead:
                        shutil.rmtree(left, ignore_errors=True)
            unfinished.rmdir()

    def _place(self, config: Mapping[str, Any]) -> Path:
        return self.folder / key(config)

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / _MARK).exists():
            store.write_json(self.folder / _MARK, {"schema": SCHEMA})


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(store.plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checksum(meta: Mapping[str, Any]) -> str:
    """The checksum of all that a `run.json` says."""
    return hashlib.sha256(
        _canonical({name: value for name, value in meta.items() if name != "checksum"}).encode()
    ).hexdigest()


def _digest(place: Path) -> str:
    """The checksum of a file."""
    with opened(place) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _in_words(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    missing = isinstance(error, FileNotFoundError)
    what = "is missing" if missing else f"cannot be read: {error.strerror}"
    return f"its {Path(error.filename).name} {what}"
