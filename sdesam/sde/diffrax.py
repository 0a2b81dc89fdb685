"""An SDE as diffrax terms, so that diffrax's solvers, step-size control and adjoints run on it.

Our SDEs are meant in the Ito sense. A diffrax solver converges to the Ito or to the Stratonovich
solution, as its class says; where the noise depends on the state the two differ, so terms are made
for one solver and refused to one of the other kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

if TYPE_CHECKING:
    from sdesam.sde.equation import SDE

PyTree = Any


def to_diffrax(sde: SDE, solver: Any, control: Any) -> Any:
    """What :meth:`sdesam.SDE.to_diffrax` does."""
    try:
        import diffrax
        import lineax
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_diffrax needs diffrax, which is not installed: pip install diffrax"
        ) from error
    if not isinstance(solver, diffrax.AbstractItoSolver):
        if not isinstance(solver, diffrax.AbstractStratonovichSolver):
            raise TypeError(
                f"solver={solver!r}: it must be a diffrax solver for SDEs, such as diffrax.Euler()"
            )
        if not is_additive(sde):
            raise ValueError(
                f"{type(solver).__name__} converges to the Stratonovich solution, this SDE is an"
                " Ito one and its noise depends on the state: use diffrax.Euler() or"
                " diffrax.ItoMilstein(), or write an SDE whose drift is B - (1/2) sum_j (D A_j)"
                " A_j, A_j = apply_noise(x, e_j)"
            )
    if not isinstance(control, diffrax.AbstractPath):
        raise TypeError(
            f"control={control!r}: it must be a diffrax path, such as"
            f" diffrax.UnsafeBrownianPath({sde.noise_shape}, key)"
        )
    increment = jax.eval_shape(lambda: control.evaluate(control.t0, control.t1))
    if getattr(increment, "shape", None) != sde.noise_shape:
        raise ValueError(
            f"the control has increments {increment}: the noise of this SDE needs the shape"
            f" noise_shape={sde.noise_shape}"
        )

    def noise(x: PyTree, xi: jax.Array) -> PyTree:
        moved = sde.apply_noise(x, xi.astype(jnp.result_type(*jax.tree.leaves(x))))
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), moved, x)

    def operator(t: Any, x: PyTree, args: Any) -> Any:
        return lineax.FunctionLinearOperator(lambda xi: noise(x, xi), increment)

    def matrix(t: Any, x: PyTree, args: Any) -> jax.Array:
        units = jnp.eye(increment.size, dtype=increment.dtype).reshape(
            increment.size, *increment.shape
        )
        columns = jax.vmap(lambda xi: noise(x, xi), out_axes=-1)(units)
        whole: jax.Array = columns.reshape(*x.shape, *increment.shape)
        return whole

    # Milstein's method differentiates the diffusion as an array: what it would make of an operator
    # is wrong, and silent
    dense = isinstance(solver, diffrax.ItoMilstein)
    if dense and not isinstance(sde.x0, jax.Array):
        raise ValueError(
            "ItoMilstein needs the diffusion matrix, which is for parameters in one array: ravel"
            " them, or use diffrax.Euler()"
        )
    drift = diffrax.ODETerm(lambda t, x, args: sde.drift(x))
    return diffrax.MultiTerm(drift, diffrax.ControlTerm(matrix if dense else operator, control))


# How it is read off, for `apply_noise(x, xi) = 0.1 * xi + 0 * sum(x)` and x, xi the inputs:
#
#     c = mul 0.1 xi      needed by e: xi is needed
#     d = reduce_sum x    x is needed
#     f = mul 0 d         needed by e: d is needed
#     e = add c f         the output
#
# From the output backwards each operation whose result is needed needs its operands. x is needed
# here, so that this noise counts as dependent on the state, although it is not: the walk asks which
# numbers are read, not what comes out. An answer "additive" is always right.


def is_additive(sde: SDE) -> bool:
    """Whether `apply_noise(x, xi)` does not depend on `x`, read off its jaxpr; then Ito and
    Stratonovich are the same.
    """
    xi = jax.ShapeDtypeStruct(sde.noise_shape, jnp.result_type(*jax.tree.leaves(sde.x0)))
    jaxpr = jax.make_jaxpr(sde.kernel.apply_noise)(sde.x0, xi).jaxpr
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return needed.isdisjoint(jaxpr.invars[: len(jax.tree.leaves(sde.x0))])
