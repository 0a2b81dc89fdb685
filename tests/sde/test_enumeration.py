"""Bound equations against brute force over all batches, to 1e-10 in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import sdesam
from tests.brute_force import Cubics, moments

VARIANTS = ["sgd", "usam", "m-usam", "n-usam"]
LR = 0.3


def cubic_loss(x, sample):
    return sample["a"] @ x + x @ sample["A"] @ x / 2 + jnp.einsum("jkl,j,k,l", sample["C"], x, x, x) / 6


def finite_sum(cubics, x):
    return sdesam.FiniteSum(cubic_loss, {"a": cubics.a, "A": cubics.A, "C": cubics.C}, x)


def powers_of_rho(value, radii):
    """The coefficients in rho of a polynomial of degree 2, from its values at three radii."""
    return np.linalg.solve(np.vander(radii, increasing=True), np.array([np.ravel(v) for v in value]))


@st.composite
def settings_of_a_step(draw):
    n = draw(st.integers(1, 5))
    replace = draw(st.booleans())
    b = draw(st.integers(1, 4 if replace else min(4, n)))
    m = draw(st.sampled_from([k for k in range(1, b + 1) if b % k == 0]))
    return n, draw(st.sampled_from([2, 3])), b, m, replace, draw(st.sampled_from(VARIANTS)), draw(st.integers(0, 10**6))


def assert_equals_enumeration(n, d, b, m, replace, variant, seed, change=lambda equation: equation):
    m = m if variant == "m-usam" else b
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        x = 0.5 * rng.normal(size=d)
        cubics = Cubics.random(n, d, seed)
        problem = finite_sum(cubics, x)
        equation = change(sdesam.derive(variant, order=(2, 3), replace=replace))
        radii = np.array([0.0, 0.5, 1.0])

        def bound(rho, what):
            numbers = {"rho": None if variant == "sgd" else rho, "micro": m if variant == "m-usam" else None}
            return what.bind(problem, lr=LR, batch=b, expectation="exact", **numbers)

        full = [bound(rho, equation) for rho in radii]
        rest = [bound(rho, equation.without("eta")) for rho in radii]
        drift = powers_of_rho([sde.drift(x) for sde in rest], radii)
        corrected = powers_of_rho([sde.drift(x) for sde in full], radii)
        covariance = powers_of_rho([sde.covariance(x) for sde in full], radii)

    true = moments(cubics, x, sdesam.VARIANTS[variant].perturbation, b, m, replace)
    close = {"rtol": 1e-10, "atol": 1e-10}
    for j in range(3):
        np.testing.assert_allclose(-drift[j], true.mean[j], err_msg=f"mean step, rho^{j}", **close)
    for j in range(2):
        np.testing.assert_allclose(corrected[j] - drift[j], -LR / 2 * true.correction[j], err_msg=f"correction, rho^{j}", **close)
        np.testing.assert_allclose(covariance[j], LR * true.covariance[j].ravel(), err_msg=f"covariance, rho^{j}", **close)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(settings_of_a_step())
def test_drift_and_covariance(case):
    assert_equals_enumeration(*case)
