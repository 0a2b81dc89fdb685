"""Hessian trace and largest eigenvalue against the dense Hessian of a small network."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from sdesam import curvature, problems


@pytest.fixture(scope="module")
def small():
    problem = problems.digits(train=20, width=2, seed=1)
    flat, back = ravel_pytree(problem.x0)
    H = np.asarray(jax.jit(jax.hessian(lambda y: jax.numpy.mean(jax.vmap(problem.sample_loss, (None, 0))(back(y), problem.data))))(flat), np.float64)
    return problem, H


def test_trace(small):
    problem, H = small
    found = curvature.hessian_trace(problem, problem.x0, jax.random.key(0), probes=200)
    # false alarm 6e-5; the control is off by a factor of two
    assert abs(found.value - np.trace(H)) < 4 * found.error
    assert found.error == pytest.approx(np.sqrt(2 * (np.sum(H**2) - np.sum(np.diag(H) ** 2)) / 200), rel=0.2)
    assert abs(found.value - np.trace(H) / 2) > 4 * found.error
    with pytest.raises(ValueError, match="probes=1"):
        curvature.hessian_trace(problem, problem.x0, jax.random.key(0), probes=1)


def test_largest_eigenvalue(small):
    problem, H = small
    values = np.linalg.eigvalsh(H)
    found = curvature.largest_eigenvalue(problem, problem.x0, jax.random.key(0), iterations=30)
    assert found.value == pytest.approx(values[-1], rel=1e-4)
    assert abs(found.value - values[-2]) > 10 * abs(found.value - values[-1]), "the second is another number"
    rough = curvature.largest_eigenvalue(problem, problem.x0, jax.random.key(0), iterations=3)
    assert rough.value <= values[-1] + 1e-5
    assert np.min(abs(values - rough.value)) <= rough.error + 1e-5, "some eigenvalue is as near as the residual"


def test_an_invariant_subspace_ends_the_iteration():
    # one sample of linear regression: the Hessian has rank 1
    problem = problems.linear_regression(dim=6, samples=1)
    a = np.asarray(problem.data["input"][0], np.float64)
    found = curvature.largest_eigenvalue(problem, problem.x0, jax.random.key(0), iterations=6)
    assert found.value == pytest.approx(a @ a, rel=1e-5)
