"""The walk over a jaxpr: which handler an equation goes to, and which bodies are entered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdesam.autodiff.interpreter import Interpreter, equations, evaluate


def custom(x):
    return jax.nn.softplus(x) + jax.checkpoint(jnp.sin)(x)


def branches(x):
    return jax.lax.cond(x > 0, lambda x: jnp.sin(x), lambda x: jnp.cos(x), x)


def loop(x):
    return jax.lax.fori_loop(0, 3, lambda k, y: jnp.sin(y) * k, x)


@pytest.mark.parametrize("fn", [custom, branches, loop, jax.jit(jnp.tanh), lambda x: 2.0])
def test_arrays_go_through_as_they_are(fn):
    """With arrays for values and no handlers, the walk computes the function."""
    plain = Interpreter(lambda value: False, {}, evaluate)
    program = jax.make_jaxpr(fn)(0.7)
    (value,) = plain.run(program.jaxpr, program.consts, [jnp.float32(0.7)])
    np.testing.assert_array_equal(value, fn(jnp.float32(0.7)))


def test_a_handler_is_asked_where_a_followed_value_goes_in():
    seen = []

    def noted(eqn, values):
        seen.append(values)
        return [True]

    program = jax.make_jaxpr(lambda x, a: jnp.sin(x) * jnp.sin(a) * 2.0)(0.7, 0.7)
    depends = Interpreter(
        bool,
        {"sin": noted},
        lambda eqn, values: [True],
        lambda eqn, values: [False],
        lambda number: False,
    )
    assert depends.run(program.jaxpr, program.consts, [True, False]) == [True]
    assert seen == [[True]]


@pytest.mark.parametrize(
    ("fn", "names"), [(branches, {"sin", "cos"}), (loop, {"sin"}), (custom, {"sin"})]
)
def test_equations_of_bodies_are_seen(fn, names):
    found = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(fn)(0.7).jaxpr)}
    assert names <= found
