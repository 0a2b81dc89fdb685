"""What a program owes its shell: an exit status, one sentence where something fails, and a standard
output that is its own.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import os
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import click

from sdesam._util.process import Failure, runs_begun

BAD_USAGE, COULD_NOT_FINISH, INTERRUPTED, CLOSED_PIPE = 2, 3, 130, 141
"""The last two are those that a shell reports of programs ended by SIGINT and by SIGPIPE."""

_PACKAGE = Path(__file__).resolve().parent.parent
_OURS = tuple(
    f"{place}{os.sep}"
    for place in (_PACKAGE, _PACKAGE.parent / "experiments", _PACKAGE.parent / "benchmarks")
)
_LIBRARIES = tuple(
    {
        str(Path(sysconfig.get_path(name)).resolve())
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)
_LONGEST = 600
"""Characters of a sentence; messages of compilers run to pages."""
_closed = False
_own: TextIO | None = None


class CouldNotFinish(Exception):
    """What kept a command from its end, in one sentence."""


class Program(click.Group):
    """A group of commands that return their exit status (None is 0). Whatever fails ends with a
    status and one sentence, never with a traceback.
    """

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **options: Any
    ) -> Any:
        """Run a command and exit."""
        if not options.pop("standalone_mode", True):
            return super().main(args, prog_name, standalone_mode=False, **options)
        if "_SDESAM_COMPLETE" in os.environ:
            return super().main(args, prog_name, **options)
        sys.exit(
            self._status(
                list(sys.argv[1:] if args is None else args), prog_name or "sdesam", options
            )
        )

    def _status(self, args: list[str], name: str, options: Mapping[str, Any]) -> int:
        global _closed
        _closed = False
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                # a name in bytes of another encoding is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        with warnings.catch_warnings(), _no_lost_interrupts():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            # jax rounds a number such as lr=1e300 to float32, where it is infinite; the run then
            # says that its paths diverged, and numpy's words about a cast add nothing
            warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
            try:
                with self.make_context(name, args, **options) as context:
                    status = self.invoke(context) or 0
            except click.exceptions.Exit as done:  # of --help and --version
                status = done.exit_code
            except BaseException as error:
                status = _status_of(error)
                if status != CLOSED_PIPE:
                    with suppress(OSError):  # nobody reads the error output
                        _tell(error, status)
        return CLOSED_PIPE if _closed else int(status)


def say(text: str) -> None:
    """Print to the standard output; after its reader has gone, nothing more, and the status says so
    in the end.
    """
    if _closed:
        return
    stream = sys.stdout if _own is None else _own
    try:
        click.echo(text, file=stream)
    except OSError as error:
        _leave(stream)
        if error.errno != errno.EPIPE:
            raise CouldNotFinish(
                f"the standard output cannot be written: {error.strerror or error}"
            ) from error
        _note_closed()


def unread() -> bool:
    """Whether the reader of the standard output has gone."""
    return _closed


def _note_closed() -> None:
    global _closed
    _closed = True


def _leave(stream: TextIO) -> None:
    """Let what is still in the buffer go nowhere: Python would try once more at its end, and
    complain.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def own_output() -> Iterator[None]:
    """Keep the standard output for what is said: all else that is printed within, by Python or by
    C, goes to the error output.
    """
    global _own
    if _own is not None:
        yield
        return
    real = sys.stdout
    descriptor = _descriptor(real)
    _own = (
        real
        if descriptor is None
        else os.fdopen(os.dup(descriptor), "w", encoding=real.encoding, errors="backslashreplace")
    )
    try:
        if descriptor is not None:
            _flush()
            os.dup2(2, descriptor)
        with redirect_stdout(sys.stderr):
            yield
            if "jax" in sys.modules:
                sys.modules["jax"].effects_barrier()  # what compiled code prints comes late
    finally:
        if descriptor is not None:
            _flush()
            os.dup2(_own.fileno(), descriptor)
            _own.close()
        _own = None


def _descriptor(stream: TextIO) -> int | None:
    """1 if that is where a stream goes, so that code in C that prints goes there too, and there is
    an error output.
    """
    try:
        os.fstat(2)
        return 1 if stream.fileno() == 1 else None
    except (OSError, ValueError, AttributeError):
        return None


def _flush() -> None:
    """Empty the buffers of Python and of C towards the standard output."""
    with suppress(Exception):
        sys.__stdout__.flush()  # type: ignore[union-attr]
    with suppress(Exception):
        ctypes.CDLL(None).fflush(None)


@contextmanager
def checking(*kinds: type[Exception]) -> Iterator[None]:
    """Within it, what the package refuses is a bad argument; what a user's code raises, or a run
    that has begun, is not.

    Args:
        kinds: the errors that the package refuses with; left out, all that checks raise.
    """
    refused = kinds or (ValueError, TypeError, OSError, OverflowError, MemoryError)
    before = runs_begun()
    try:
        yield
    except refused as error:
        if runs_begun() > before or _raised_by_user(error) or isinstance(error, Failure):
            raise
        raise click.UsageError(_sentence(error)) from error


def deliver(text: str | None, *writes: Callable[[], Iterable[Path]]) -> None:
    """Write files and then print `text`, so that no reader of the output can keep a file from being
    written, nor a file that of the output.

    Args:
        text: for the standard output; None where nothing must be said there, not even what was
            written.
        writes: each writes files and gives their names, which are printed too.

    Raises:
        Exception: the first that kept a file from being written, when all was tried.
    """
    written: list[Path] = []
    failures = []
    for write in writes:
        try:
            written += write()
        except Exception as error:
            failures.append(error)
    if text:
        say(text)
    if written and text is not None:
        say("wrote " + ", ".join(map(str, written)))
    if failures:
        raise failures[0]


def check_files(files: Iterable[tuple[str, str | os.PathLike[str] | None]]) -> None:
    """See before any work that files, each with its option, can be written, and that no two are
    one.

    Raises:
        ValueError: two are the same file.
        OSError: one cannot be written.
    """
    from sdesam._util.store import check_target

    seen: list[tuple[str, str]] = []
    for option, file in files:
        if file is None:
            continue
        check_target(file)
        real = os.path.realpath(file)
        if os.path.exists(real) and not os.path.isfile(real):
            continue  # a device takes what two of them write
        for other, place in seen:
            if place == real or (
                os.path.exists(place) and os.path.exists(real) and os.path.samefile(place, real)
            ):
                raise ValueError(
                    f"--{other} and --{option} name the same file {os.fspath(file)!r}: name two"
                )
        seen.append((option, real))


def _sentence(error: BaseException, *, named: bool = False) -> str:
    """An error in one sentence, with its type if it is `named`, and the line of the user's own code
    that it came from, where there is one.
    """
    words = _one_line(str(error))
    if isinstance(error, SystemExit):
        words = "the code that was run calls sys.exit"
    elif not words or (named and not isinstance(error, CouldNotFinish)):
        words = f"{type(error).__name__}: {words}".rstrip(": ")
    place = _users_line(error)
    return f"{words} ({place})" if place and place not in words else words


@contextmanager
def _no_lost_interrupts() -> Iterator[None]:
    """Interrupt once more where an interrupt came during a callback of the garbage collector (jax
    has one), which has nobody to raise it to.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # at once, it would be lost in this very hook
            again = threading.Timer(0.05, _thread.interrupt_main)
            again.daemon = True
            again.start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _status_of(error: BaseException) -> int:
    # click printed itself, such as for --help
    if isinstance(error, BrokenPipeError) and _users_line(error) is None:
        _leave(sys.stdout)
        return CLOSED_PIPE
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    return BAD_USAGE if isinstance(error, click.ClickException) else COULD_NOT_FINISH


def _tell(error: BaseException, status: int) -> None:
    """Say in one sentence what went wrong, and where if that is asked for."""
    whole = os.environ.get("SDESAM_TRACEBACK", "0") not in ("", "0")
    if whole:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.message = _shortened(error.message)  # type: ignore[misc]  # click repeats a value, however long
        error.show()
    elif status == INTERRUPTED:
        click.echo("interrupted; nothing half-written", err=True)
    else:
        hint = (
            ""
            if whole or isinstance(error, CouldNotFinish)
            else "  (SDESAM_TRACEBACK=1 shows where)"
        )
        click.echo(f"could not finish: {_sentence(error, named=True)}{hint}", err=True)


def _show_warning(message: Warning | str, *rest: Any) -> None:
    """A warning as one line."""
    click.echo(f"warning: {_one_line(str(message))}", err=True)


def _one_line(text: str) -> str:
    """The first paragraph of a message; of one that holds a whole traceback, its last line."""
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
    return _shortened(" ".join(text.strip().partition("\n\n")[0].split()))


def _shortened(text: str) -> str:
    """A message without its middle, if it is too long to be read."""
    half = (_LONGEST - 5) // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def _raised_by_user(error: BaseException) -> bool:
    """Whether the code that raised it, libraries apart, is none of this project."""
    frames = list(_frames(error))
    return bool(frames) and not frames[-1].ours


def _users_line(error: BaseException | None) -> str | None:
    """File and line of the deepest code of a user, of an error and of what it came from."""
    found = None
    while error is not None:
        if isinstance(error, SyntaxError) and error.filename is not None:
            found = f"{error.filename}, line {error.lineno}"
        for frame in _frames(error):
            if not frame.ours:
                found = f"{frame.file}, line {frame.line}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


class _Frame(NamedTuple):
    file: str
    line: int
    ours: bool


def _frames(error: BaseException) -> Iterator[_Frame]:
    """The frames that an error passed, outermost first, without those of libraries."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        place = str(Path(file).resolve())
        ours = place.startswith(_OURS)
        if ours or not (file.startswith("<") or place.startswith(_LIBRARIES)):
            yield _Frame(file, line, ours)
