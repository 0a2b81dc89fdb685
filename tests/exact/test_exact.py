"""Exact expectations against closed forms and plain listings that share nothing with them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import sdesam
from sdesam.sampling import Sampling
from sdesam.verify.exact import Quadratic, Torus, one_step
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.torus import _TEST_WAVES
from tests.brute_force import Polynomials, moments
from tests.sde.test_enumeration import polynomial_loss


@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize(
    ("variant", "b", "m"),
    [("sgd", 2, None), ("m-usam", 4, 2), ("m-usam", 2, 1), ("n-usam", 3, None)],
)
def test_one_step(variant, b, m, with_replacement):
    """Mean and covariance of a step on quartic losses: the leading powers of rho by brute force."""
    losses = Polynomials.random(4, 2, seed=3, quartic=True)
    x = np.array([0.2, -0.4])
    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(polynomial_loss, vars(losses), x)
    true = moments(losses, x, variant, b, m or b, with_replacement)
    for rho in (0.0, 1e-3) if variant != "sgd" else (0.0,):
        chain = sdesam.Chain(
            variant, problem, 0.1, None if variant == "sgd" else rho, b, m, with_replacement
        )
        found = one_step(chain, x)
        mean = sum(rho**j * part for j, part in enumerate(true.mean))
        np.testing.assert_allclose(found.mean, mean, rtol=1e-12, atol=1e-13)
        covariance = true.covariance[0] + rho * true.covariance[1]
        np.testing.assert_allclose(found.covariance, covariance, atol=1e-12 if rho == 0 else 1e-4)


def test_batches_are_listed_once_with_their_chance():
    batches, chance = list_batches(Sampling(4, 2, True), 3)
    assert chance.sum() == pytest.approx(1)
    for sample in range(3):
        mean = (batches == sample).mean(axis=(1, 2)) @ chance
        assert mean == pytest.approx(1 / 3)
    assert len(list_batches(Sampling(2, 1, False), 4)[0]) == 6
    with pytest.raises(ValueError, match="65536 ordered mini-batches, more than the 5000"):
        list_batches(Sampling(16, 16, True), 2)


@pytest.mark.parametrize("dim", [1, 2])
def test_flow_with_constant_coefficients(dim):
    """E cos(k . X) = exp(-t k^T C k / 2) cos(k . (x + B t)), by hand."""
    torus = Torus(2 * np.pi, dim, 16, horizon=0.7)
    B, C = np.array([0.3, -0.5])[:dim], np.array([[0.4, 0.1], [0.1, 0.2]])[:dim, :dim]
    points = torus.points
    found = torus.flow(np.tile(B, (len(points), 1)), np.tile(C, (len(points), 1, 1)))
    for column, k in enumerate(np.array(_TEST_WAVES[dim])):
        expected = np.exp(-0.35 * k @ C @ k) * np.cos((points + 0.7 * B) @ k)
        np.testing.assert_allclose(found[:, column], expected, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2])
def test_chain_on_a_torus(dim):
    """Two steps, every pair of mini-batches listed by hand, from some grid points."""
    problem = sdesam.problems.torus(dim=dim, samples=3, seed=2)
    chain = sdesam.Chain("m-usam", problem, lr=0.25, rho=0.3, batch=2, micro=1)
    torus = Torus(2 * np.pi, dim, 32, horizon=0.5)
    found = torus.chain(chain)
    waves = np.array(_TEST_WAVES[dim])
    data = {name: np.asarray(value, float) for name, value in problem.data.items()}

    def g(i, x):
        phase = data["frequency"][i] @ x
        return (data["sin"][i] * np.cos(phase) - data["cos"][i] * np.sin(phase)) @ data[
            "frequency"
        ][i]

    def step(x, batch):
        return x - 0.25 * np.mean([g(i, x + 0.3 * g(i, x)) for i in batch], axis=0)

    pairs = list(itertools.product(range(3), repeat=2))
    for start in (0, 5, 17):
        x = torus.points[start]
        values = [
            np.cos(waves @ step(step(x, first), second)) for first in pairs for second in pairs
        ]
        np.testing.assert_allclose(found[start, : len(waves)], np.mean(values, axis=0), atol=1e-9)


@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize(
    ("variant", "b", "m"),
    [
        ("sgd", 2, None),
        ("usam", 3, None),
        ("m-usam", 2, 1),
        ("m-usam", 4, 2),
        ("n-usam", 2, None),
        ("f-usam", 4, 2),
        ("two-step-usam", 4, 2),
    ],
)
def test_moments_on_a_quadratic(variant, b, m, with_replacement):
    """Two steps of the chain with every sequence of mini-batches listed in numpy."""
    problem = sdesam.problems.quadratic(dim=2, samples=4, seed=1)
    rho, lr = (None if variant == "sgd" else 0.3), 0.2
    own = {"sigma": 0.7} if variant == "f-usam" else {}
    chain = sdesam.Chain(variant, problem, lr, rho, b, m, with_replacement, **own)
    found = Quadratic(problem, 2 * lr).chain(chain)
    A, a = (np.asarray(problem.data[name], float) for name in ("hessian", "centre"))

    def grad(indices, x):
        return np.mean([A[i] @ (x - a[i]) for i in indices], axis=0)

    def step(x, batch):
        size = m or b
        parts = [batch[k : k + size] for k in range(0, b, size)]
        u = {
            "sgd": lambda part: 0 * x,
            "n-usam": lambda part: grad(range(4), x),
            "f-usam": lambda part: grad(part, x) - 0.7 * grad(range(4), x),
            "two-step-usam": lambda part: (
                grad(part, x) + grad(part, x + (rho or 0) * grad(part, x))
            ),
        }.get(variant, lambda part: grad(part, x))
        return x - lr * np.mean([grad(part, x + (rho or 0) * u(part)) for part in parts], axis=0)

    listed = list(
        itertools.product(range(4), repeat=b)
        if with_replacement
        else itertools.permutations(range(4), b)
    )
    once = [step(np.ones(2), batch) for batch in listed]
    # the second step is affine in x, so its mean and second moment follow batch by batch
    twice = np.array([step(x, batch) for x in once for batch in listed])
    expected = np.concatenate([twice.mean(0), (twice.T @ twice / len(twice)).ravel()])
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_moments_of_an_sde():
    """dX = -K (X - c) dt + (S_0 + S_1 x) dW in one dimension, its moment equations written out and
    solved by expm.
    """
    problem = sdesam.problems.linear_regression(dim=1, samples=6, seed=2)
    sde = sdesam.derive("sgd", order=(1, 1)).bind(problem, lr=0.1, batch=2)
    found = Quadratic(problem, 1.5).sde(sde)
    a, y = (np.asarray(problem.data[name], float) for name in ("input", "target"))
    h, v = a[:, 0] ** 2, a[:, 0] * y
    # variance of h_i x - v_i over samples: q2 x^2 + q1 x + q0
    q2, q1, q0 = h.var(), -2 * ((h - h.mean()) * (v - v.mean())).mean(), v.var()
    eta_b = 0.1 / 2
    L = np.array(
        [
            [0, 0, 0],
            [v.mean(), -h.mean(), 0],
            [eta_b * q0, 2 * v.mean() + eta_b * q1, -2 * h.mean() + eta_b * q2],
        ]
    )
    x0 = float(problem.x0[0])
    expected = expm(1.5 * L) @ np.array([1, x0, x0**2])
    np.testing.assert_allclose(found, expected[1:], rtol=1e-9)


def test_a_quadratic_solver_refuses_other_losses():
    with pytest.raises(ValueError, match="is not quadratic"):
        Quadratic(sdesam.problems.torus(dim=2), 1.0)
    bent_far_away = sdesam.FiniteSum(
        lambda x, s: (x[0] - s) ** 2 / 2 + 5 * jnp.tanh(x[0] - 20), np.ones(3), np.array([20.0])
    )
    with pytest.raises(ValueError, match="is not quadratic"):
        Quadratic(bent_far_away, 1.0)
    with pytest.raises(ValueError, match=r"horizon=1 is no multiple of lr=0\.3"):
        Torus(2 * np.pi, 1, 16, 1.0).chain(
            sdesam.Chain("sgd", sdesam.problems.torus(dim=1, samples=3), lr=0.3, batch=1)
        )
    with pytest.raises(ValueError, match="an even number of points"):
        Torus(2 * np.pi, 1, 33, 1.0)
    with pytest.raises(ValueError, match="at most 20 parameters"):
        Quadratic(sdesam.problems.quadratic(dim=21), 1.0)
