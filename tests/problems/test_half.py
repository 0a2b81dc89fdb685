"""Sums over samples in float32 at least, whatever losses and parameters are in; each beside numpy
or a closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.verify.curvature import hessian_trace, largest_eigenvalue

HALVES = {"bfloat16": (jnp.bfloat16, 2e-2), "float16": (jnp.float16, 4e-3)}


@pytest.fixture(params=HALVES)
def half(request):
    return HALVES[request.param]


@pytest.mark.parametrize("chunk", [1, 300, 2000])
def test_a_mean_of_ones(half, chunk):
    """In bfloat16 a sum of ones stops at 256."""
    dtype, _ = half
    ones = sdesam.FiniteSum(lambda x, a: a + 0 * x, jnp.ones(2000, dtype), dtype(0.0), chunk=chunk)
    assert ones.loss(ones.x0) == 1
    assert ones.loss(ones.x0).dtype == dtype


@pytest.mark.parametrize("chunk", [1, 900])
def test_sums_that_have_no_place_in_float16(chunk):
    """Losses, gradients and Hessians of 200: float16 ends at 65,504, a third of their sums."""
    large = sdesam.FiniteSum(
        lambda x, a: a * x * x, jnp.full(900, 200.0, jnp.float16), jnp.float16(0.5), chunk=chunk
    )
    assert (large.loss(large.x0), large.grad(large.x0), large.trace_cov(large.x0)) == (50, 200, 0)
    assert large.grad_norm2(large.x0) == 40_000
    assert large.curvature == pytest.approx(400)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("where", ["parameters", "inside the loss"])
def test_gradient_and_variance(half, chunk, where):
    """`f_i = |x - a_i|^2`: gradient 2 (x - mean a), tr V = 4 var a; also where half precision is
    used within a loss of float32.
    """
    dtype, tolerance = half
    a = np.linspace(0, 1, 1000).reshape(500, 2)

    def loss(x, a):
        return jnp.sum((x.astype(dtype) - a.astype(dtype)) ** 2)

    x0 = jnp.full(2, 2, dtype if where == "parameters" else jnp.float32)
    problem = sdesam.FiniteSum(loss, a, x0, chunk=chunk)
    gradient = problem.grad(x0)
    assert gradient.dtype == x0.dtype
    np.testing.assert_allclose(gradient.astype(float), 2 * (2 - a.mean(axis=0)), rtol=tolerance)
    np.testing.assert_allclose(
        float(problem.loss(x0)), np.mean(np.sum((2 - a) ** 2, axis=1)), rtol=tolerance
    )
    np.testing.assert_allclose(
        float(problem.trace_cov(x0)), 4 * a.var(axis=0).sum(), rtol=4 * tolerance
    )


def test_variance_of_dense_layers(half):
    """`f_i = w . a_i`: the gradient is a_i, and its deviations are summed by factors."""
    dtype, tolerance = half
    a = np.random.default_rng(0).normal(size=(3000, 3)) + 5
    problem = sdesam.FiniteSum(lambda w, a: w @ a.astype(w.dtype), a, jnp.ones(3, dtype))
    np.testing.assert_allclose(
        float(problem.trace_cov(problem.x0)), a.var(axis=0).sum(), rtol=4 * tolerance
    )


def test_hessian_measures(half):
    """`f_i = c_i x_1^2 + x_2^2`, c from 0 to 2: the Hessian is diag(2, 2)."""
    dtype, tolerance = half
    c = np.linspace(0, 2, 1500)
    problem = sdesam.FiniteSum(
        lambda x, c: c.astype(x.dtype) * x[0] ** 2 + x[1] ** 2, c, jnp.ones(2, dtype), chunk=1
    )
    assert problem.curvature == pytest.approx(2, rel=tolerance)
    assert hessian_trace(problem, problem.x0, jax.random.key(0), probes=8).value == pytest.approx(
        4, rel=tolerance
    )
    assert largest_eigenvalue(problem, problem.x0, jax.random.key(0)).value == pytest.approx(
        2, rel=tolerance
    )


def test_drift_and_noise_of_a_derived_sde(half):
    """In half precision as in float64, though a weight of 1/n has few digits there and its products
    none: n = 3000.
    """
    dtype, tolerance = half
    rng = np.random.default_rng(0)
    data, x0, xi = rng.normal(size=(3000, 2)), np.array([0.5, -0.25]), rng.normal(size=3000)

    def loss(x, a):
        return jnp.sum(jnp.cos(x - a.astype(x.dtype))) + 0.5 * jnp.sum(x * x)

    def vectors(x0):
        problem = sdesam.FiniteSum(loss, data, x0)
        sde = sdesam.derive("m-usam").bind(problem, lr=0.1, rho=0.1, batch=8, micro=2)
        drawn = sde.step_drift(x0, jax.random.key(0))
        return [
            np.asarray(v, float) for v in (drawn, sde.apply_noise(x0, jnp.asarray(xi, x0.dtype)))
        ]

    found = vectors(jnp.asarray(x0, dtype))
    with jax.enable_x64(True):
        true = vectors(jnp.asarray(x0))
    # a drift without its probe, which is of another draw in float64, moves by less than the
    # rounding
    for value, wanted in zip(found, true, strict=True):
        np.testing.assert_allclose(
            value, wanted, rtol=2 * tolerance, atol=2 * tolerance * abs(wanted).max()
        )


def test_the_exact_expectation_over_pairs_of_samples(half):
    dtype, tolerance = half
    data = np.random.default_rng(0).normal(size=300)

    def drift(x0):
        problem = sdesam.FiniteSum(lambda x, a: jnp.cos(x - a.astype(x.dtype)) + x * x, data, x0)
        return (
            sdesam.derive("m-usam")
            .bind(problem, lr=0.1, rho=0.5, batch=4, micro=1, expectation="exact")
            .drift(x0)
        )

    with jax.enable_x64(True):
        true = drift(jnp.asarray(0.5))
    assert float(drift(dtype(0.5))) == pytest.approx(float(true), rel=2 * tolerance)


def test_the_gradient_of_the_data_set_in_a_step(half):
    """n-SAM divides by it: all samples but one in 2000 have the gradient 1, so that a sum in
    bfloat16 would stand still.
    """
    dtype, tolerance = half
    problem = sdesam.FiniteSum(
        lambda x, a: a * jnp.sum(jnp.array([3, 4], x.dtype) * x),
        jnp.ones(2000, dtype),
        jnp.zeros(2, dtype),
        chunk=1,
    )
    np.testing.assert_allclose(problem.grad(problem.x0).astype(float), [3, 4], rtol=tolerance)
    step = sdesam.Chain("n-sam", problem, lr=0.1, rho=0.1, batch=4).step(
        problem.x0, jax.random.key(0)
    )
    np.testing.assert_allclose(step.astype(float), [-0.3, -0.4], rtol=2 * tolerance)


def test_a_fold_of_halves(half):
    dtype, _ = half
    total = sdesam.problems.fold_samples(lambda part: jnp.sum(part), jnp.ones(3000, dtype), 1)
    assert total == 3000


def test_full_precision_is_as_it_was():
    """No gradients of samples are formed, and nothing is converted, where nothing is in half
    precision.
    """
    problem = sdesam.problems.digits(train=32, width=4)
    text = str(jax.make_jaxpr(problem.grad)(problem.x0))
    assert "32,64,4" not in text
    assert "bf16" not in text
    control = sdesam.FiniteSum(
        problem.sample_loss,
        problem.data,
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.x0),
    )
    assert "32,64,4" in str(jax.make_jaxpr(control.grad)(control.x0))
