"""Checks of single numbers: the number as it is used, or a sentence that says what would be right.

No theory, and no jax.
"""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

_KNOWN = (
    "it must be a number that is known when it is given, not one that jax.jit, vmap or grad traces:"
    " make this outside of them"
)


def _traced(value: object) -> bool:
    """Whether a number is known to jax only while it runs; this room does without jax."""
    return any(kind.__name__ == "Tracer" for kind in type(value).__mro__)


def check_int(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int, or one clear sentence.

    >>> check_int("runs", 0)
    Traceback (most recent call last):
    ...
    ValueError: runs=0: it must be at least 1
    """
    if _traced(value):
        raise TypeError(f"{name}={value!r}: {_KNOWN}")
    # True is a whole number to Python, and runs=True would be one run; an array of one number has
    # __index__ too, and what is meant by it is not known
    if isinstance(value, bool) or not hasattr(value, "__index__") or np.ndim(value):
        raise TypeError(f"{name}={value!r}: it must be a whole number of at least {least}")
    number = int(value.__index__())
    if number < least:
        raise ValueError(f"{name}={number}: it must be at least {least}")
    return number


def check_positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0, or one clear sentence.

    >>> check_positive("lr", -0.1)
    Traceback (most recent call last):
    ...
    ValueError: lr=-0.1: it must be a finite number above 0
    """
    wanted = f"{name}={value!r}: it must be a finite number above 0"
    number = _finite(name, value, wanted)
    if not number > 0:
        raise ValueError(wanted)
    return number


def check_nonnegative(name: str, value: Any) -> float:
    """`value` as a finite float of at least 0, or one clear sentence.

    >>> check_nonnegative("rho", float("nan"))
    Traceback (most recent call last):
    ...
    ValueError: rho=nan: it must be a finite number of at least 0
    """
    wanted = f"{name}={value!r}: it must be a finite number of at least 0"
    number = _finite(name, value, wanted)
    if not number >= 0:
        raise ValueError(wanted)
    return number


def check_finite(name: str, value: Any) -> float:
    """`value` as a finite float of any sign, or one clear sentence.

    >>> check_finite("sigma", float("inf"))
    Traceback (most recent call last):
    ...
    ValueError: sigma=inf: it must be a finite number
    """
    wanted = f"{name}={value!r}: it must be a finite number"
    number = _finite(name, value, wanted)
    if not -inf < number < inf:
        raise ValueError(wanted)
    return number


def _finite(name: str, value: Any, wanted: str) -> float:
    if _traced(value):
        raise TypeError(f"{name}={value!r}: {_KNOWN}")
    if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value):
        raise TypeError(wanted)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(wanted) from None
    # NaN is left to the comparison in the caller, which it fails
    if number == inf:
        raise ValueError(wanted)
    return number
