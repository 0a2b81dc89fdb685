"""Gradients of samples without their matrices: norms of them, and losses a step along them.

Where a weight matrix (or a vector) enters the loss of a sample once, as `a_i @ W`, the gradient of
that sample is the outer product `a_i delta_i^T` of the layer's input and the derivative by its
output: one reverse pass that stops at the outputs gives all of them. Its norm is `|a_i| |delta_i|`,
and a layer whose weights have moved along it gives
`a @ (W + t a_i delta_i^T) = a @ W + t (a . a_i) delta_i`. Which weights enter so is read off the
jaxpr of the loss; the gradients of all other parameters are formed.

Source: Goodfellow 2015, "Efficient per-example gradient computations", arXiv 1510.01799.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdesam.autodiff.interpreter import Interpreter, evaluate

PyTree = Any


class Factors(NamedTuple):
    """The factors of a sample's gradient, or of many with a leading axis: `a_i` and `delta_i` of
    every dense layer, flat, and the gradients of the other parameters.
    """

    inputs: list[jax.Array]
    deltas: list[jax.Array]
    others: list[jax.Array]


class _Weight(NamedTuple):
    """The value of parameter leaf number `leaf`, perhaps transposed, on its way to where it is
    used.
    """

    leaf: int
    value: jax.Array


def dense_layers(
    sample_loss: Callable[[Any, Any], Any], x: PyTree, sample: PyTree
) -> dict[int, Any]:
    """The numbers of the leaves of `x` that enter as `a @ W` and not otherwise, each with the shape
    of its layer's output.

    Leaves are numbered in jax's order, which is that of sorted keys for a dictionary. The answer is
    in that order too, and :func:`factors` gives its lists in the order of the answer.
    """
    # a weight used twice has a sum of two outer products for a gradient: it has no factors, and any
    # use that is no product with a vector counts as two
    uses: Counter[int] = Counter()
    outputs: dict[int, Any] = {}

    def dense(weight: _Weight, a: jax.Array, out: jax.Array) -> jax.Array:
        uses[weight.leaf] += 1
        outputs[weight.leaf] = jax.ShapeDtypeStruct(out.shape, out.dtype)
        return out

    def trace(x: PyTree, sample: PyTree) -> None:
        matrices = [k for k, leaf in enumerate(jax.tree.leaves(x)) if leaf.ndim in (1, 2)]
        _evaluate(
            sample_loss, x, sample, matrices, dense, lambda weight: uses.update([weight.leaf] * 2)
        )

    jax.eval_shape(trace, x, sample)
    return {leaf: outputs[leaf] for leaf in sorted(outputs) if uses[leaf] == 1}


# A worked example: one layer, f(W) = l(a @ W) with a = (1, 2) and two outputs, and the derivative
# of l by the outputs is delta = (3, -1). The gradient by W is a matrix,
#
#     a delta^T = [[3, -1], [6, -2]]        its squared norm: 9 + 1 + 36 + 4 = 50
#
# and the factors have the norm without the matrix: |a|^2 |delta|^2 = 5 * 10 = 50. With p inputs and
# q outputs this takes p + q numbers a sample in place of p q.
#
# A step t along it moves the outputs of a sample with input a' to a' @ W + t (a' . a) delta, so the
# loss at the moved weights needs one inner product and no second matrix. That is all that SAM's
# ascent asks of a layer.
#
# A mean of m gradients is no outer product. Its norm is that of the sum of m matrices, formed as
# the product a^T delta of two stacks. The inner products of pairs, (a_i . a_j) (delta_i . delta_j),
# would do without it too, but add up large numbers of both signs where the mean is small.


def squared_norm_of_mean(group: Factors) -> jax.Array:
    """`|G|^2` of the mean of gradients (leading axis: samples)."""
    m = len(jax.tree.leaves(group)[0])

    def of_layer(a: jax.Array, delta: jax.Array) -> jax.Array:
        # not by the inner products of many samples: their sum would lose the digits of a mean that
        # is small beside its terms
        return jnp.sum(a**2) * jnp.sum(delta**2) if m == 1 else jnp.sum((a.T @ delta) ** 2)

    layers = [of_layer(a, delta) for a, delta in zip(group.inputs, group.deltas, strict=True)]
    others = [jnp.sum(jnp.sum(g, axis=0) ** 2) for g in group.others]
    square: jax.Array = jnp.sum(jnp.stack([*layers, *others])) / m**2
    return square


def held(layers: dict[int, Any], x: PyTree) -> int:
    """Numbers that hold the factors of one sample."""
    return sum(
        sum(leaf.shape) if k in layers else leaf.size for k, leaf in enumerate(jax.tree.leaves(x))
    )


def factors(
    sample_loss: Callable[[Any, Any], Any], layers: dict[int, Any], x: PyTree, sample: PyTree
) -> Factors:
    """The factors of the gradient of a sample, by one reverse pass that stops at the outputs of the
    layers.
    """
    leaves, structure = jax.tree.flatten(x)

    def loss(
        outputs: list[jax.Array], others: list[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array]]:
        inputs: dict[int, jax.Array] = {}
        shift = dict(zip(layers, outputs, strict=True))

        def dense(weight: _Weight, a: jax.Array, out: jax.Array) -> jax.Array:
            inputs[weight.leaf] = a
            return out + shift[weight.leaf]

        rest = iter(others)
        y = jax.tree.unflatten(
            structure, [leaf if k in layers else next(rest) for k, leaf in enumerate(leaves)]
        )
        value = _evaluate(sample_loss, y, sample, list(layers), dense, None)
        return value, [inputs[k] for k in layers]

    zeros = [jnp.zeros(like.shape, like.dtype) for like in layers.values()]
    others = [leaf for k, leaf in enumerate(leaves) if k not in layers]
    (deltas, rest), inputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(zeros, others)
    return Factors(inputs, [delta.ravel() for delta in deltas], rest)


def loss_along(
    sample_loss: Callable[[Any, Any], Any],
    layers: dict[int, Any],
    y: PyTree,
    t: Any,
    sample: PyTree,
    group: Factors,
) -> jax.Array:
    """`f_i(y + t G)`, where `G` is the mean of the gradients whose factors are `group` (leading
    axis: samples).
    """
    inputs = dict(zip(layers, group.inputs, strict=True))
    deltas = dict(zip(layers, group.deltas, strict=True))
    m = len(group.inputs[0])

    def dense(weight: _Weight, a: jax.Array, out: jax.Array) -> jax.Array:
        moved: jax.Array = out + (
            t * (((inputs[weight.leaf] @ a) / m) @ deltas[weight.leaf]).reshape(out.shape)
        ).astype(out.dtype)
        return moved

    rest = iter(group.others)
    leaves, structure = jax.tree.flatten(y)
    moved = [
        leaf if k in layers else leaf + (t * jnp.mean(next(rest), axis=0)).astype(leaf.dtype)
        for k, leaf in enumerate(leaves)
    ]
    value: jax.Array = _evaluate(
        sample_loss, jax.tree.unflatten(structure, moved), sample, list(layers), dense, None
    )
    return value


def deviations(part: Factors, centre: Factors) -> tuple[jax.Array, list[jax.Array]]:
    """`sum_i |g_i - c|^2` and `sum_i (g_i - c)`, where `c` is the gradient with the factors
    `centre`.

    With `a = a_0 + u` and `delta = delta_0 + v`, `g - c = u delta^T + a_0 v^T`: nothing large
    cancels where samples are alike, as it would in `sum |g_i|^2 - n |gbar|^2`.
    """
    # a = (1, 2), delta = (3, -1), a_0 = (1, 1), delta_0 = (2, 0): u = (0, 1), v = (1, -1),
    # and g - c = [[1, -1], [4, -2]] has the squared norm 22. In factors the norm is |u|^2 |delta|^2
    # + 2 (u . a_0) (delta . v) + |a_0|^2 |v|^2 = 10 + 8 + 4.
    squares, sums = jnp.zeros(()), []
    for a, a0, delta, delta0 in zip(
        part.inputs, centre.inputs, part.deltas, centre.deltas, strict=True
    ):
        u, v = a - a0, delta - delta0
        cross = 2 * (u @ a0) * jnp.sum(delta * v, axis=1)
        each = (
            jnp.sum(u * u, axis=1) * jnp.sum(delta * delta, axis=1)
            + cross
            + (a0 @ a0) * jnp.sum(v * v, axis=1)
        )
        squares += jnp.sum(each)
        sums.append(u.T @ delta + jnp.outer(a0, jnp.sum(v, axis=0)))
    for g, g0 in zip(part.others, centre.others, strict=True):
        squares += jnp.sum((g - g0) ** 2)
        sums.append(jnp.sum(g - g0, axis=0))
    return squares, sums


def _multiplies(weight: _Weight, a: jax.Array, out: jax.Array) -> bool:
    """Whether this is the product of a vector with a matrix of weights, or with a vector of
    them.
    """
    return a.ndim == 1 and out.ndim == weight.value.ndim - 1


def _evaluate(
    sample_loss: Callable[[Any, Any], Any],
    x: PyTree,
    sample: PyTree,
    watched: list[int],
    dense: Callable[[_Weight, jax.Array, jax.Array], jax.Array],
    otherwise: Callable[[_Weight], Any] | None,
) -> Any:
    """The loss; `dense` may change the output of a layer whose matrix is watched, `otherwise` hears
    of every other use of one.
    """

    def arrays(eqn: Any, values: list[Any]) -> list[jax.Array]:
        return evaluate(eqn, [v.value if isinstance(v, _Weight) else v for v in values])

    def enter(eqn: Any, values: list[Any]) -> list[Any]:
        body = eqn.params["jaxpr"]
        return interpreter.run(body.jaxpr, body.consts, values)

    def transpose(eqn: Any, values: list[Any]) -> list[Any]:
        return [_Weight(values[0].leaf, arrays(eqn, values)[0])]

    def product(eqn: Any, values: list[Any]) -> list[Any]:
        (out,) = arrays(eqn, values)
        weights = [v for v in values if isinstance(v, _Weight)]
        others = [v for v in values if not isinstance(v, _Weight)]
        if len(weights) == 1 and _multiplies(weights[0], others[0], out):
            return [dense(weights[0], others[0], out)]
        return used([out], values)

    def used(out: list[Any], values: list[Any]) -> list[Any]:
        if otherwise is not None:
            for value in values:
                if isinstance(value, _Weight):
                    otherwise(value)
        return out

    interpreter = Interpreter(
        follows=lambda value: isinstance(value, _Weight),
        # the bodies of custom derivatives are not entered: evaluated one by one, their operations
        # would have jax's derivatives in place of their own
        handlers={"jit": enter, "pjit": enter, "transpose": transpose, "dot_general": product},
        otherwise=lambda eqn, values: used(arrays(eqn, values), values),
    )
    closed = jax.make_jaxpr(sample_loss)(x, sample)
    leaves = [
        _Weight(k, leaf) if k in watched else leaf for k, leaf in enumerate(jax.tree.leaves(x))
    ]
    arguments = [*leaves, *jax.tree.leaves(sample)]
    return interpreter.run(closed.jaxpr, closed.consts, arguments)[0]
