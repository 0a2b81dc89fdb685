"""What a user's own module or file holds, by `module:name` or `path/to/file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from sdesam._util.names import unknown


def is_users_own(spec: str) -> bool:
    """Whether `spec` names something in a module or a file of the user."""
    return ":" in spec or spec.endswith(".py")


def users_own(what: str, spec: str) -> Any:
    """The object that `module:name` or `path/to/file.py:name` names.

    Args:
        what: `"problem"`, `"variant"` or `"direction"`, for the sentences.
        spec: the module or file, and the name in it.

    Raises:
        ValueError: no such module, file or name, or code in it that fails.
    """
    place, _, name = spec.rpartition(":")
    if not (place and name):
        raise ValueError(
            f"{what} {spec!r} names nothing in a module: write module:name or path/to/file.py:name"
        )
    is_file = place.endswith(".py")
    if not is_file:
        _check_one_of_a_name(what, spec, place)
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
                f"{what} {spec!r} cannot be loaded: there is no module {error.name!r}, here or"
                f" installed{file}"
            ) from None
        raise ValueError(f"{what} {spec!r} cannot be loaded: {told(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            own = [
                known
                for known, value in getattr(found, "__dict__", {}).items()
                if not known.startswith("_") and not isinstance(value, ModuleType)
            ]
            raise ValueError(
                f"{what} {spec!r} cannot be loaded: {unknown(f'name in {place}', part, own)}"
            )
        found = getattr(found, part)
    return found


def _load_file(file: Path) -> ModuleType:
    """The module in a file, under a name that no other module has."""
    if not file.is_file():
        raise ValueError(f"there is no file {str(file)!r}")
    name = f"_users_{file.stem}"
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


def _check_one_of_a_name(what: str, spec: str, module: str) -> None:
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
            f"{what} {spec!r}: the module {name!r} in the current folder is hidden by"
            f" {found.origin}: rename it, or name the file,"
            f" ./{module.replace('.', '/')}.py:{spec.rpartition(':')[2]}"
        )


def told(error: BaseException) -> str:
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


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
