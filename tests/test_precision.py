"""Products of float32 matrices are in float32 wherever the package compiles them, on GPUs too, unless jax is told otherwise."""

import jax
import jax.numpy as jnp
import pytest

import sdesam

PROBLEM = sdesam.problems.digits(train=32, width=4)
SDE = sdesam.derive("m-usam").bind(PROBLEM, lr=0.1, rho=0.1, batch=4, micro=2)
CHAIN = sdesam.Chain("m-sam", PROBLEM, lr=0.1, rho=0.1, batch=4, micro=2)
KEY = jax.random.key(0)
FUNCTIONS = {
    "loss": PROBLEM.loss,
    "gradient": PROBLEM.grad,
    "tr V": PROBLEM.trace_cov,
    "drift": SDE.drift,
    "drift of a step": lambda x: SDE.step_drift(x, KEY),
    "noise": lambda x: SDE.noise(x, KEY),
    "step": lambda x: CHAIN.step(x, KEY),
    "direction": lambda x: CHAIN.direction(x, jnp.arange(4).reshape(2, 2)),
}


def products(jaxpr):
    """The precision of every product of matrices, those of inner functions included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.params["precision"]
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_are_in_float32(name):
    high, low = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT
    found = list(products(jax.make_jaxpr(FUNCTIONS[name])(PROBLEM.x0).jaxpr))
    assert found
    assert set(found) == {(high, high)}
    with jax.default_matmul_precision("bfloat16"):
        assert set(products(jax.make_jaxpr(FUNCTIONS[name])(PROBLEM.x0).jaxpr)) == {(low, low)}
