"""Files written whole or not at all, under names that are ours alone.

A file is written beside its final name and renamed, so that a reader sees the old one or the new
one and never half of either. The name beside it is one exact name, `.NAME.sdesam-partial`, locked
as long as its writer lives: what a killed process left under it goes when NAME is written or
checked again. No other file is touched, and none is found by a pattern.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# What is on the disk while `results.json` is written anew, and what a reader finds after a crash:
#
#     step                                     under results.json    beside it
#     .results.json.sdesam-partial is made     the old file          an empty file, locked
#     it is written                            the old file          a part of the new one
#     it is synced                             the old file          all of the new one
#     it is renamed to results.json            the new file          nothing
#
# A rename within a folder is one operation of the file system: no line of the table has half a
# file under the final name. The sync comes before it, because some file systems store the rename
# first and the bytes later, and a power cut between the two leaves an empty file under the name.
#
# The name beside it is always the same one and is locked as long as its writer lives. So a killed
# writer leaves one file at most, which the next writer can tell from that of a live one: it is not
# locked. Names drawn at random would gather, and no one could say whose they are.


_LONGEST_NAME = 100
"""Bytes of a NAME from which a hidden name is made; file systems take 255, a few only 143. A longer
one is hashed.
"""
_MOST_LINKS = 40
"""Links to links that are followed, as many as Linux follows."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
"""What says that bytes are lost. Other errors of a sync or a rename say that a place knows no such
thing.
"""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """`folder`, once it is clear that files can be written there; nothing is created before there
    is something to write.

    Raises:
        OSError: it cannot be created or written.
        ValueError: no folder can have this name.
    """
    _check_name(folder, "folder")
    path = Path(folder)
    try:
        with _folders(path), tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f"the output folder {str(path)!r} cannot be written: {_reason(error)}"
        ) from error
    return path


def check_target(path: str | os.PathLike[str], size: int = 4096) -> None:
    """See before any work that a file can be written at `path`; nothing is created, and what a
    killed write of it left is removed.

    Args:
        path: the file; links are followed, devices and pipes are written into.
        size: bytes that it will have at least.

    Raises:
        ValueError: no file can have this name, or it is a folder's.
        OSError: it cannot be written there, or there is no room.
    """
    _check_name(path, "file")
    try:
        place, direct = _resolve(path)
        if direct:
            if not os.access(place, os.W_OK) or stat.S_ISSOCK(os.lstat(place).st_mode):
                raise PermissionError(errno.EACCES, "it takes no data")
            return
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with _folders(place.parent):
            check_room(place.parent, size)
            partial, descriptor = _open_partial(place)
            with os.fdopen(descriptor, "wb") as file:
                try:
                    _write(file, lambda stream: stream.write(bytes(min(size, 4096))))
                finally:
                    partial.unlink()
    except OSError as error:
        raise OSError(f"{os.fspath(path)!r} cannot be written: {_reason(error)}") from error


def check_room(folder: Path, size: int) -> None:
    """See that a disk has room, where it says how much it has.

    Raises:
        OSError: it has less than `size` bytes.
    """
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return
    if disk.total and disk.free < size:  # a bucket may say that it has nothing at all
        raise OSError(
            errno.ENOSPC,
            f"{_megabytes(disk.free)} are free on its disk, {_megabytes(size)} are needed",
        )


def write_atomically(path: str | os.PathLike[str], write: Callable[[Any], Any]) -> None:
    """Call `write` on a new file beside `path`, then rename it to `path`. A link is followed; a
    device or pipe is written into.

    Permissions are those of any new file. Where a file system cannot rename, `write` is called
    again, on the file itself.

    Args:
        path: the file; its folder is made.
        write: writes to what it is given, from the first byte to the last.

    Raises:
        OSError: the file cannot be written; an old one is as it was.
    """
    _check_name(path, "file")
    intact = True
    try:
        place, direct = _resolve(path)
        if not direct:
            place.parent.mkdir(parents=True, exist_ok=True)
            if _replace(place, write):
                return
        intact = False
        with os.fdopen(_open_directly(place, direct), "wb") as file:
            _write(file, write)
    except BrokenPipeError:
        raise
    except OSError as error:
        kept = "; the one before it is intact" if intact and os.path.isfile(path) else ""
        raise OSError(f"{os.fspath(path)!r} cannot be written: {_reason(error)}{kept}") from error


@contextmanager
def lock(path: str | os.PathLike[str], busy: str) -> Iterator[bool]:
    """Hold a file as one's own, so that no other process works on it; it is let go when this
    process ends, however it ends.

    Gives whether it is held: some file systems have no locks.

    Args:
        path: the file; it need not exist.
        busy: what to say where another process holds it.

    Raises:
        ValueError: another process holds it.
    """
    target, _ = _resolve(path)
    with _folders(target.parent):
        place = _beside(target, "lock")
        try:
            descriptor = _claim(place)
        except BlockingIOError:
            raise ValueError(busy) from None
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            with suppress(OSError):
                place.unlink()  # still locked, so that it is ours
            os.close(descriptor)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """An ordinary file to be read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no ordinary file.
    """
    # a pipe would be waited for, a device may never end
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{os.fspath(path)!r} is no ordinary file")
    with open(path, "rb") as file:
        yield file


class _Stream(io.RawIOBase):
    """A file that is written from its first byte to its last, as pipes and some file systems want
    it.
    """

    # io.RawIOBase is written in C and has nothing to set up: its __init__ need not be called
    def __init__(self, file: IO[bytes]):
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return self._file.write(data)


def _write(file: IO[bytes], write: Callable[[Any], Any]) -> None:
    write(_Stream(file))
    file.flush()
    # some network file systems know no sync and say so; that is no loss of data
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise


def _replace(place: Path, write: Callable[[Any], Any]) -> bool:
    """Write beside `place`, and rename; False where a file cannot be renamed."""
    partial, descriptor = _open_partial(place)
    with os.fdopen(descriptor, "wb") as file:  # closed last: as long as it is open, it is locked
        complete = False
        try:
            _write(file, write)
            complete = True
            os.replace(partial, place)
        except BaseException as error:
            with suppress(OSError):
                partial.unlink()
            if complete and isinstance(error, OSError) and error.errno not in _DISK_ERRORS:
                return False
            raise
        return True


def _open_partial(place: Path) -> tuple[Path, int]:
    """A new file beside `place`, to become it, and its open descriptor."""
    partial = _beside(place, "partial")
    # another process writes the same file just now: the last one wins
    with suppress(BlockingIOError):
        descriptor = _claim(partial)
        if descriptor is not None:
            return partial, descriptor
    # the usual name is taken, or cannot be locked: a name that nobody else can have, which is
    # removed like the other but is left behind by a kill
    partial = place.with_name(f".{uuid.uuid4().hex}.sdesam-partial")
    return partial, os.open(partial, _NEW, 0o666)


def _claim(place: Path) -> int | None:
    """The descriptor of a new file under a name of ours, locked; None where it cannot be had: a
    folder of this name, no locks.

    A file of this name that nobody has locked is what a killed process left; it is replaced.

    Raises:
        BlockingIOError: a process that lives has it.
    """
    from filelock import lock_descriptor

    # Two processes A and B that want the same name. A makes the file; before A has locked it, B
    # finds it unlocked and takes it for what a killed process left. B locks it and removes it, and
    # A then fails to lock, or locks a file that has no name any more. Hence the look at the name
    # after the lock: who holds the lock of a file that is not the one of this name begins anew.
    while True:
        made = True
        try:
            descriptor = os.open(place, _NEW, 0o666)
        except FileExistsError:
            made = False
            try:
                descriptor = os.open(
                    place, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
                )
            except FileNotFoundError:
                continue  # gone meanwhile
            except OSError:
                return None
        kept = False
        try:
            try:
                locked = lock_descriptor(descriptor, blocking=False)
            # a file system without locks: what is made with O_EXCL is nobody else's
            except OSError:
                kept = made
                return descriptor if made else None
            if not locked and not made:
                raise BlockingIOError(errno.EWOULDBLOCK, "a process that lives has it", str(place))
            # else another process replaced it between these lines
            if locked and _is(place, descriptor):
                if made:
                    kept = True
                    return descriptor
                try:
                    place.unlink()
                except OSError:
                    return None
        finally:
            if not kept:
                os.close(descriptor)


def _is(place: Path, descriptor: int) -> bool:
    """Whether a descriptor is of the ordinary file that has this name."""
    try:
        there = os.lstat(place)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(there.st_mode) and os.path.samestat(there, os.fstat(descriptor))


def _beside(target: Path, kind: str) -> Path:
    """A hidden name of ours beside `target`, always the same one: `.NAME.sdesam-KIND`, or a hash in
    place of a long NAME.
    """
    name = (
        target.name
        if len(os.fsencode(target.name)) <= _LONGEST_NAME
        else hashlib.sha256(os.fsencode(target.name)).hexdigest()
    )
    return target.with_name(f".{name}.sdesam-{kind}")


def _resolve(path: str | os.PathLike[str]) -> tuple[Path, bool]:
    """The file that is meant, links followed; and whether it is written into as it is, as devices
    and pipes are.
    """
    place = Path(path)
    for _ in range(_MOST_LINKS):
        if os.path.realpath(place.parent).startswith("/proc/"):  # /dev/stdout, /dev/fd/3
            return place, True
        if not place.is_symlink():
            break
        place = place.parent / os.readlink(place)
    try:
        mode = os.stat(place).st_mode
    except FileNotFoundError:
        return place, False
    return place, not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _open_directly(place: Path, device: bool) -> int:
    # /dev/fd/3 is a file that the shell has opened, perhaps to append to it
    if place.name.isdigit() and os.path.realpath(place.parent) == os.path.realpath("/proc/self/fd"):
        return os.dup(int(place.name))  # opened anew, it would begin at the start of the file
    return os.open(place, os.O_WRONLY | (0 if device else os.O_CREAT | os.O_TRUNC), 0o666)


@contextmanager
def _folders(folder: Path) -> Iterator[None]:
    """A folder while it is needed: what was made of it and is still empty goes."""
    missing = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in missing:  # innermost first
            with suppress(OSError):
                place.rmdir()


def _check_name(path: str | os.PathLike[str], what: str) -> None:
    name = os.fspath(path)
    if not name:
        raise ValueError(f"the {what} has an empty name")
    try:
        whole = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        whole = False
    if not whole:
        raise ValueError(f"{name!r} has a character that no name of a {what} can have")
    if what == "file" and name.endswith(os.sep):
        raise ValueError(f"{name!r} is the name of a folder: name a file in it")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
