"""Hessian trace and largest eigenvalue against the dense Hessian of a small network."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import sdesam
from sdesam import problems
from sdesam.verify import curvature


@pytest.fixture(scope="module")
def small():
    problem = problems.digits(train=20, width=2, seed=1)
    flat, back = ravel_pytree(problem.x0)
    H = np.asarray(
        jax.jit(
            jax.hessian(
                lambda y: jax.numpy.mean(
                    jax.vmap(problem.sample_loss, (None, 0))(back(y), problem.data)
                )
            )
        )(flat),
        np.float64,
    )
    return problem, H


def test_trace(small):
    problem, H = small
    found = curvature.hessian_trace(problem, problem.x0, jax.random.key(0), probes=200)
    # false alarm 6e-5; the control is off by a factor of two
    assert abs(found.value - np.trace(H)) < 4 * found.error
    assert found.error == pytest.approx(
        np.sqrt(2 * (np.sum(H**2) - np.sum(np.diag(H) ** 2)) / 200), rel=0.2
    )
    assert abs(found.value - np.trace(H) / 2) > 4 * found.error
    with pytest.raises(ValueError, match="probes=1"):
        curvature.hessian_trace(problem, problem.x0, jax.random.key(0), probes=1)


def test_largest_eigenvalue(small):
    problem, H = small
    values = np.linalg.eigvalsh(H)
    found = curvature.largest_eigenvalue(problem, problem.x0, jax.random.key(0), iterations=30)
    assert found.value == pytest.approx(values[-1], rel=1e-4)
    assert abs(found.value - values[-2]) > 10 * abs(found.value - values[-1]), (
        "the second is another number"
    )
    rough = curvature.largest_eigenvalue(problem, problem.x0, jax.random.key(0), iterations=3)
    assert rough.value <= values[-1] + 1e-5
    assert np.min(abs(values - rough.value)) <= rough.error + 1e-5, (
        "some eigenvalue is as near as the residual"
    )


def two_by_two(x, H):
    return x @ H @ x / 2


def test_the_error_of_a_trace_is_that_of_few_probes():
    """On `[[a, c], [c, b]]` a probe gives `a + b + 2c` or `a + b - 2c`: the mean says how many gave
    which, and so the error, by hand.
    """
    c = 0.7
    problem = sdesam.FiniteSum(two_by_two, np.array([[[1.0, c], [c, 2.0]]]), np.ones(2))
    probes = 5
    found = curvature.hessian_trace(problem, problem.x0, jax.random.key(3), probes=probes)
    share = (found.value - 3 + 2 * c) / (4 * c)
    assert 0.1 < share < 0.9, "both occur"
    assert found.error == pytest.approx(
        4 * c * np.sqrt(share * (1 - share) / (probes - 1)), rel=1e-5
    )


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_the_residual_of_few_iterations(iterations):
    """Rayleigh and Ritz by hand, on the span of the start and its images under H."""
    problem = problems.quadratic(dim=5, samples=3)
    H = np.asarray(problem.data["hessian"], float).mean(axis=0)
    columns = [np.asarray(jax.random.normal(jax.random.key(2), (5,)), float)]
    for _ in range(iterations - 1):
        columns.append(H @ columns[-1])
    Q, _ = np.linalg.qr(np.stack(columns, axis=1))
    values, vectors = np.linalg.eigh(Q.T @ H @ Q)
    ritz = Q @ vectors[:, -1]
    found = curvature.largest_eigenvalue(
        problem, problem.x0, jax.random.key(2), iterations=iterations
    )
    assert found.value == pytest.approx(values[-1], rel=1e-5)
    assert found.error == pytest.approx(
        np.linalg.norm(H @ ritz - values[-1] * ritz), rel=1e-3, abs=1e-5
    )
    assert found.error > 1e-3


def test_an_invariant_subspace_ends_the_iteration():
    # one sample of linear regression: the Hessian has rank 1
    problem = problems.linear_regression(dim=6, samples=1)
    a = np.asarray(problem.data["input"][0], np.float64)
    found = curvature.largest_eigenvalue(problem, problem.x0, jax.random.key(0), iterations=6)
    assert found.value == pytest.approx(a @ a, rel=1e-5)
