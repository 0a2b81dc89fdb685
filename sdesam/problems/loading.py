"""Problems by name: the ready-made ones, and those of a user's own module or file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from sdesam._names import unknown
from sdesam.problems.digits import digits
from sdesam.problems.finite_sum import FiniteSum
from sdesam.problems.synthetic import linear_regression, quadratic, torus

READY: dict[str, Callable[..., FiniteSum]] = {
    "digits": digits,
    "linear-regression": linear_regression,
    "quadratic": quadratic,
    "torus1d": partial(torus, dim=1),
    "torus2d": partial(torus, dim=2),
}
"""The ready-made problems by name."""


def load(spec: str, /, **options: Any) -> FiniteSum:
    """The problem called `spec`, made with `options`.

    Args:
        spec: a ready-made name, or `module:function` or `path/to/file.py:function` for a function
            that returns a :class:`FiniteSum`.
        options: the arguments of that function.

    Raises:
        ValueError: no such problem, options that it does not take, a module or a function that
            fails.

    >>> load("quadratic", dim=3)
    FiniteSum('quadratic', n=8, parameters=3)
    """
    if is_users_own(spec):
        maker = _users_own(spec)
    elif spec in READY:
        maker = READY[spec]
    else:
        raise unknown("problem", spec, [*READY, "module:function", "path/to/file.py:function"])
    if isinstance(maker, FiniteSum) and not options:
        return maker
    _check_options(spec, maker, options)
    try:
        problem = maker(**options)
    except (Exception, SystemExit) as error:
        raise ValueError(f"problem {spec!r} cannot be made: {_told(error)}") from error
    if not isinstance(problem, FiniteSum):
        raise ValueError(
            f"problem {spec!r} gives {_a(type(problem).__name__)}: it must give a sdesam.FiniteSum"
        )
    return problem


def is_users_own(spec: str) -> bool:
    """Whether `spec` names a module or a file of the user, and no ready-made problem."""
    return ":" in spec or spec.endswith(".py")


def _users_own(spec: str) -> Any:
    """The function that `module:function` or `file.py:function` names."""
    place, _, name = spec.rpartition(":")
    if not (place and name):
        raise ValueError(
            f"problem {spec!r} names no function: write module:function or path/to/file.py:function"
        )
    is_file = place.endswith(".py")
    if not is_file:
        _check_one_of_a_name(spec, place)
    try:
        found: Any = _load_file(Path(place)) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and f"{place}.".startswith(f"{error.name}.")
        ):
            file = f"; name the file, {place}.py:{name}" if Path(f"{place}.py").is_file() else ""
            raise ValueError(
                f"problem {spec!r} cannot be loaded: there is no module {error.name!r}, here or"
                f" installed{file}"
            ) from None
        raise ValueError(f"problem {spec!r} cannot be loaded: {_told(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            own = [
                known
                for known, value in getattr(found, "__dict__", {}).items()
                if callable(value) and not known.startswith("_")
            ]
            raise ValueError(
                f"problem {spec!r} cannot be loaded: {unknown(f'function of {place}', part, own)}"
            )
        found = getattr(found, part)
    return found


def _load_file(file: Path) -> ModuleType:
    """The module in a file, under a name that no other module has."""
    if not file.is_file():
        raise ValueError(f"there is no file {str(file)!r}")
    name = f"_problem_of_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for the modules beside it
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _check_one_of_a_name(spec: str, module: str) -> None:
    """Refuse a module of the current folder that an installed one of the same name hides."""
    name = module.partition(".")[0]
    here = [
        place.resolve()
        for place in (Path(f"{name}.py"), Path(name, "__init__.py"))
        if place.is_file()
    ]
    try:
        found = importlib.util.find_spec(name) if here else None
    except (ImportError, ValueError):
        return  # importing it says more
    if found is not None and found.origin is not None and Path(found.origin).resolve() not in here:
        raise ValueError(
            f"problem {spec!r}: the module {name!r} in the current folder is hidden by"
            f" {found.origin}: rename it, or name the file,"
            f" ./{module.replace('.', '/')}.py:{spec.rpartition(':')[2]}"
        )


def _check_options(spec: str, maker: Any, options: dict[str, Any]) -> None:
    if not callable(maker):
        raise ValueError(
            f"problem {spec!r} names {_a(type(maker).__name__)}: it must name a function that gives"
            " a sdesam.FiniteSum"
        )
    try:
        parameters = inspect.signature(maker)
    except (TypeError, ValueError):
        return  # a function written in C says itself what it does not take
    try:
        parameters.bind(**options)
    except TypeError as error:
        raise ValueError(f"problem {spec!r} does not take {options}: {error}") from error


def _told(error: BaseException) -> str:
    """An error in words; its type says nothing where it is the one that checks raise."""
    if isinstance(error, SystemExit):
        return (
            f"it ends the program with sys.exit({'' if error.code is None else repr(error.code)})"
        )
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    return (
        words
        if words and type(error) in (ValueError, TypeError)
        else f"{type(error).__name__}: {words}".rstrip(": ")
    )


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
