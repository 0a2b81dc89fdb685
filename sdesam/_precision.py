"""How the package traces what it compiles: products of float32 matrices in full, and apart from any mesh of devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import jax

from sdesam._mesh import off_mesh

T = TypeVar("T")


def of_products() -> str:
    """What jax is set to, or else all of float32.

    The default of jax on recent GPUs is TF32, of 10 bits; what is to be seen between an optimizer and its SDE may be as small.
    """
    return str(jax.config.jax_default_matmul_precision or "float32")  # type: ignore[attr-defined]  # `config.read` refuses this name


def precisely(fn: Callable[..., T]) -> Callable[..., T]:
    """`fn`, traced with products in :func:`of_products` and off any mesh. Within `jax.jit`, which traces anew when the setting changes."""
    traced = off_mesh(fn)

    @wraps(fn)
    def precise(*arguments: object) -> T:
        with jax.default_matmul_precision(of_products()):
            return traced(*arguments)

    return precise
