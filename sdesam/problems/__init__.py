"""Finite sums to optimise: :class:`FiniteSum`, and ready-made ones."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from sdesam._names import unknown
from sdesam.problems.digits import bad_minimum, digits
from sdesam.problems.finite_sum import FiniteSum, fold_samples, mean_grad
from sdesam.problems.synthetic import linear_regression, quadratic, torus

__all__ = ["READY", "FiniteSum", "bad_minimum", "digits", "fold_samples", "linear_regression", "load", "mean_grad", "quadratic", "torus"]

READY: dict[str, Callable[..., FiniteSum]] = {
    "digits": digits,
    "linear-regression": linear_regression,
    "quadratic": quadratic,
    "torus1d": partial(torus, dim=1),
    "torus2d": partial(torus, dim=2),
}
"""The ready-made problems by name."""


def load(spec: str, **options: Any) -> FiniteSum:
    """The problem called `spec`: a ready-made name, or `module:function` for a function that returns a :class:`FiniteSum`.

    Raises:
        ValueError: no such problem, or options that it does not take.

    >>> load("quadratic", dim=3)
    FiniteSum('quadratic', n=8, parameters=3)
    """
    if ":" in spec:
        module_name, _, function_name = spec.partition(":")
        try:
            maker = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"problem {spec!r} cannot be loaded: {error}") from error
    elif spec in READY:
        maker = READY[spec]
    else:
        raise unknown("problem", spec, [*READY, "module:function"])
    try:
        inspect.signature(maker).bind(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"problem {spec!r} does not take {options}: {error}") from error
    problem = maker(**options)
    if not isinstance(problem, FiniteSum):
        raise ValueError(f"problem {spec!r} gives a {type(problem).__name__}: it must give a sdesam.FiniteSum")
    return problem
