"""Draws and final states of old runs: whoever moves code about leaves these numbers as they are.

The same seed gives the same batches and normals from version to version. Final states are compared
to 1e-9, because processors round differently.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam

NUMBERS = {
    "sgd": {},
    "m-usam": {"rho": 0.1, "micro": 2},
    "m-sam": {"rho": 0.1, "micro": 2},
    "rw-sam": {"rho": 0.1, "lam": 1.0},
}
FINALS = {
    "sgd": (
        [[0.326976362733, -0.37916650148], [0.522078734891, -0.382265273611]],
        [[0.254807060702, -0.421274447238], [0.268126388652, -0.379174134045]],
    ),
    "m-usam": (
        [[0.308867769771, -0.363135050856], [0.531511806737, -0.351372385988]],
        [[0.237798740163, -0.396176799376], [0.2104561068, -0.363860784202]],
    ),
    "m-sam": (
        [[0.327791813022, -0.352207281197], [0.538802292144, -0.343332212019]],
        [[0.241712445624, -0.393830835468], [0.234846558452, -0.365866454729]],
    ),
    "n-sam": (
        [[0.326434207212, -0.333356567497], [0.521143938449, -0.347395339722]],
        [[0.279400215746, -0.36247873034], [0.263453962438, -0.348294704109]],
    ),
    "rw-sam": (
        [[0.31783509496, -0.36435775832], [0.558974498943, -0.335391849646]],
        [[0.245322919718, -0.393445098875], [0.217748879324, -0.364864208131]],
    ),
}
"""`variant -> (final states of the chain, of its SDE)`, after five steps of 0.1."""

NORMALS = [
    [0.6145699620246887, -1.3033589124679565, 1.9713252782821655],
    [0.5531760454177856, -0.3304741680622101, -0.46594515442848206],
    [-0.16455742716789246, 0.6905357241630554, 0.1778818517923355],
]


def key():
    return jax.random.key(7, impl="threefry2x32")


def problem():
    data = {"a": np.arange(12.0).reshape(6, 2) % 5 - 2, "b": np.arange(6.0) % 3}

    def loss(x, s):
        return jnp.sin(x @ s["a"] - s["b"]) + 0.1 * jnp.sum(x**4)

    return sdesam.FiniteSum(loss, data, np.array([0.3, -0.7]))


@pytest.mark.parametrize(
    ("replace", "indices"), [(True, [[5, 3], [2, 3]]), (False, [[4, 2], [3, 5]])]
)
def test_batches(replace, indices):
    with jax.enable_x64(True):
        chain = sdesam.Chain("m-usam", problem(), 0.1, 0.1, batch=4, micro=2, replace=replace)
        assert chain.kernel.draw(key()).tolist() == indices


def test_normals():
    sde = sdesam.SDE(lambda x: -x, lambda x, xi: xi, (3,), np.zeros(3, np.float32))
    out = sdesam.simulate(sde, key(), paths=3, horizon=1.0, dt=1.0)
    np.testing.assert_allclose(out.final, NORMALS, rtol=1e-5)


@pytest.mark.parametrize("variant", ["sgd", "m-usam", "n-sam", "m-sam", "rw-sam"])
def test_final_states(variant):
    with jax.enable_x64(True):
        numbers = {"lr": 0.1, "batch": 4, **NUMBERS.get(variant, {"rho": 0.1})}
        chain = sdesam.Chain(variant, problem(), **numbers)
        sde = sdesam.derive(variant).bind(problem(), **numbers)
        of_chain, of_sde = FINALS[variant]
        out = sdesam.train(chain, key(), 2, 5)
        np.testing.assert_allclose(out.final, of_chain, rtol=1e-9)
        out = sdesam.simulate(sde, key(), paths=2, horizon=0.5, dt=0.1, method="heun")
        np.testing.assert_allclose(out.final, of_sde, rtol=1e-9)
