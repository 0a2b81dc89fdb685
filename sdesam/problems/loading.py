"""Problems by name: the ready-made ones, and those of a user's own module or file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdesam._util.loading import is_users_own, told, users_own, with_article
from sdesam._util.names import unknown
from sdesam.problems.finite_sum import FiniteSum

READY: dict[str, Callable[..., FiniteSum]] = {
    name: maker
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    for name, maker in getattr(
        importlib.import_module(f"sdesam.problems.{module.name}"), "PROBLEMS", {}
    ).items()
}
"""The ready-made problems by name: those of every file in this folder that has `PROBLEMS`."""


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
        maker = users_own("problem", spec)
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
        raise ValueError(f"problem {spec!r} cannot be made: {told(error)}") from error
    if not isinstance(problem, FiniteSum):
        raise ValueError(
            f"problem {spec!r} gives {with_article(type(problem).__name__)}: it must give a"
            " sdesam.FiniteSum"
        )
    return problem


def _check_options(spec: str, maker: Any, options: dict[str, Any]) -> None:
    if not callable(maker):
        raise ValueError(
            f"problem {spec!r} names {with_article(type(maker).__name__)}: it must name a function"
            " that gives a sdesam.FiniteSum"
        )
    try:
        parameters = inspect.signature(maker)
    except (TypeError, ValueError):
        return  # a function written in C says itself what it does not take
    try:
        parameters.bind(**options)
    except TypeError as error:
        raise ValueError(f"problem {spec!r} does not take {options}: {error}") from error
