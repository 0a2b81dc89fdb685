"""Products of float32 matrices are in float32 wherever the package compiles them, on GPUs too,
unless jax is told otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.verify.curvature import hessian_trace, largest_eigenvalue

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
    "covariance": SDE.covariance,
    "step": lambda x: CHAIN.step(x, KEY),
    "direction": lambda x: CHAIN.direction(x, jnp.arange(4).reshape(2, 2)),
}


def products(jaxpr):
    """The precision of every product of matrices, those of inner functions included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.params["precision"]
        for value in jax.tree.leaves(
            list(eqn.params.values()),
            is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"),
        ):
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


@pytest.mark.parametrize(
    "name", ["curvature", "Hessian trace", "eigenvalue", "effective micro-batch"]
)
def test_estimates_are_in_float32(name):
    """Their numbers leave jax, so what is asked is the setting while the loss is traced."""
    seen = []

    def loss(x, sample):
        seen.append(jax.config.jax_default_matmul_precision)
        return 0.5 * (sample["a"] @ x - sample["c"]) ** 2

    data = {
        "a": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32),
        "c": np.ones(16, np.float32),
    }
    estimate = {
        "curvature": lambda problem: problem.curvature,
        "Hessian trace": lambda problem: hessian_trace(problem, problem.x0, KEY, probes=2),
        "eigenvalue": lambda problem: largest_eigenvalue(problem, problem.x0, KEY, iterations=2),
        "effective micro-batch": lambda problem: sdesam.effective_micro_batch(
            problem, problem.x0, batch=4, lam=1.0, key=KEY, batches=64
        ),
    }[name]

    def settings():
        problem = sdesam.FiniteSum(loss, data, np.ones(3, np.float32))
        seen.clear()  # making it looks at shapes
        estimate(problem)
        return set(seen)

    assert settings() == {"float32"}
    with jax.default_matmul_precision("bfloat16"):
        assert settings() == {"bfloat16"}
