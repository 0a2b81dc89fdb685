"""How the package computes, whatever jax is set to: precision of products and of sums, promotion of
types, arrays on a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from sdesam._util.mesh import off_mesh

T = TypeVar("T")


def of_products() -> str:
    """What jax is set to, or else all of float32.

    The default of jax on recent GPUs is TF32, of 10 bits; what is to be seen between an optimizer
    and its SDE may be as small.
    """
    return str(jax.config.jax_default_matmul_precision or "float32")  # type: ignore[attr-defined]  # `config.read` refuses this name


def of_sums(dtype: Any) -> Any:
    """The dtype in which numbers of `dtype` are summed: float32 at least.

    A sum in bfloat16 stops growing at 256 ones, and one in float16 is infinite beyond 65,504.
    """
    # 256 + 1 is 256 in bfloat16, whose numbers have 8 binary digits
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32  # type: ignore[no-untyped-call]
    return jnp.dtype("float32") if narrow else dtype


def wide(tree: Any) -> Any:
    """The arrays of a pytree in the dtypes in which they are summed."""
    return jax.tree.map(lambda leaf: leaf.astype(of_sums(leaf.dtype)), tree)


def like(tree: Any, other: Any) -> Any:
    """The arrays of a pytree in the dtypes of another one."""
    return jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), tree, other)


@contextmanager
def lenient() -> Iterator[None]:
    """Types and ranks are promoted as the package expects, also where a user has turned this off
    for code of their own.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def precisely(fn: Callable[..., T]) -> Callable[..., T]:
    """`fn`, traced with products in :func:`of_products`, lenient and off any mesh. Within
    `jax.jit`, which traces anew when the setting changes.
    """
    traced = off_mesh(fn)

    @wraps(fn)
    def precise(*arguments: object) -> T:
        with jax.default_matmul_precision(of_products()), lenient():
            return traced(*arguments)

    return precise
