"""In what products of float32 matrices are computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import jax

T = TypeVar("T")


def of_products() -> str:
    """What jax is set to, or else all of float32.

    The default of jax on recent GPUs is TF32, of 10 bits; what is to be seen between an optimizer and its SDE may be as small.
    """
    return str(jax.config.jax_default_matmul_precision or "float32")  # type: ignore[attr-defined]  # `config.read` refuses this name


def precisely(fn: Callable[..., T]) -> Callable[..., T]:
    """`fn`, traced with products in :func:`of_products`. Within `jax.jit`, which traces anew when the setting changes."""

    @wraps(fn)
    def precise(*arguments: object) -> T:
        with jax.default_matmul_precision(of_products()):
            return fn(*arguments)

    return precise
