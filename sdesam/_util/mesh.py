"""Functions of arrays that lie on a mesh of devices, traced as if there were none.

Inside `jax.shard_map`, and in `jax.jit` of arrays with a `NamedSharding`, the type of every array
names the mesh. jax's batching rule of convolutions does not take such types: the gradient of a
convolution cannot be batched twice, over samples and over paths, and the error that jax raises has
no words. Without a mesh the same function is traced without complaint, and what comes out,
elementary operations on arrays, may then be computed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AbstractMesh, use_abstract_mesh

T = TypeVar("T")


def off_mesh(fn: Callable[..., T]) -> Callable[..., T]:
    """`fn`, traced apart from the mesh of its arguments; `fn` itself where no argument is on a
    mesh.

    `fn` must not communicate between devices (`jax.lax.psum` and its like need the mesh).
    """

    @wraps(fn)
    def traced(*arguments: Any) -> T:
        leaves, structure = jax.tree.flatten(arguments)
        on_mesh = [
            k
            for k, leaf in enumerate(leaves)
            if isinstance(leaf, jax.Array) and not jax.typeof(leaf).sharding.mesh.empty
        ]
        if not on_mesh:
            return fn(*arguments)
        arrays = [k for k, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def of_arrays(*values: jax.Array) -> T:
            filled = list(leaves)
            for k, value in zip(arrays, values, strict=True):
                filled[k] = value
            return fn(*jax.tree.unflatten(structure, filled))

        # a weak type is kept: a weak 2.0 times x in bfloat16 would else be computed in float32
        shapes = [
            jax.ShapeDtypeStruct(
                leaves[k].shape, leaves[k].dtype, weak_type=getattr(leaves[k], "weak_type", False)
            )
            for k in arrays
        ]
        # traced for shapes without a mesh, then run on the arrays where they lie
        with use_abstract_mesh(AbstractMesh((), ())):
            closed, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*shapes)
        found: T = jax.tree.unflatten(
            jax.tree.structure(shape), jaxpr_as_fun(closed)(*[leaves[k] for k in arrays])
        )
        return found

    return traced
