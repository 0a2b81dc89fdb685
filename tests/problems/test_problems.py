"""Finite sums and ready-made problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import sdesam
from sdesam.problems.smoothness import nonsmooth_operations


def test_functions_of_a_finite_sum():
    """Linear regression in numpy."""
    with jax.enable_x64(True):
        problem = sdesam.problems.linear_regression(dim=3, samples=10, seed=1)
        x = np.array([0.5, -1.0, 2.0])
        a, y = (np.asarray(problem.data[name]) for name in ("input", "target"))
        r = a @ x - y
        g = r[:, None] * a
        np.testing.assert_allclose(problem.loss(x), (r**2).mean() / 2)
        np.testing.assert_allclose(problem.grad(x), g.mean(0))
        np.testing.assert_allclose(problem.grad_norm2(x), (g.mean(0) ** 2).sum())
        np.testing.assert_allclose(problem.trace_cov(x), g.var(axis=0).sum())


def test_digits_are_the_real_ones():
    source = load_digits()
    problem = sdesam.problems.digits(train=100, width=8)
    np.testing.assert_allclose(problem.data["image"], source.data[:100] / 16 - 0.3, rtol=1e-6)
    np.testing.assert_array_equal(problem.data["label"], source.target[:100])
    assert problem.dim == 64 * 8 + 8 + 8 * 10 + 10
    # the network and its accuracy in numpy
    p = {name: np.asarray(value, float) for name, value in problem.x0.items()}
    scores = np.tanh((source.data[100:] / 16 - 0.3) @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]
    assert problem.observables["test_accuracy"](problem.x0) == pytest.approx((scores.argmax(1) == source.target[100:]).mean())
    assert "test_accuracy" not in sdesam.problems.digits(train=1797).observables


def test_a_torus_problem_is_periodic():
    with jax.enable_x64(True):
        problem = sdesam.problems.torus(dim=2, samples=3, seed=5)
        x = np.array([0.3, 1.1])
        np.testing.assert_allclose(problem.grad(x), problem.grad(x + np.array([2, -4]) * np.pi), atol=1e-12)
        assert problem.x0.shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda x, s: x * s, {"a": np.ones(3), "b": np.ones(2)}, 1.0), ValueError, r"leading axes have lengths \[2, 3\]"),
        ((lambda x, s: x * s, np.float32(1), 1.0), ValueError, r"leading axes have lengths \[0\]"),
        ((lambda x, s: x * s, {}, 1.0), ValueError, "no arrays"),
        ((lambda x, s: x * s, np.ones(3), 1), TypeError, r"x0 must hold floating-point arrays.*write 1.0 for 1"),
        ((lambda x, s: x * s, np.ones(3), {}), ValueError, "x0 has no parameters"),
        ((lambda x, s: x * s, np.ones(3), np.ones(0)), ValueError, "x0 has no parameters"),
        ((lambda x, s: x * s, np.ones(3), np.ones(2)), ValueError, r"must return one floating-point scalar.*float32\[2\]"),
        ((lambda x, s: (x, s), np.ones(3), 1.0), ValueError, r"must return one floating-point scalar"),
        ((lambda x, s: jnp.log(x) * s, np.ones(3), -1.0), ValueError, "the loss at the start x0 is nan"),
        ((lambda x, s: x @ s, np.ones(3), 1.0), ValueError, r"sample_loss\(x0, sample 0\) fails with"),
    ],
)
def test_bad_problems(arguments, error, message):
    with pytest.raises(error, match=message):
        sdesam.FiniteSum(*arguments)


def test_more_bad_problems():
    with pytest.raises(ValueError, match=r"does not have the period 6\.28.* in coordinate 0"):
        sdesam.FiniteSum(lambda x, s: s * jnp.sum(x**2), np.ones(2), np.ones(2), period=6.28)
    with pytest.raises(ValueError, match="'loss' is built in"):
        sdesam.FiniteSum(lambda x, s: x * s, np.ones(2), 1.0, observables={"loss": lambda x: x})
    with pytest.raises(ValueError, match="torus problems have 1 or 2 dimensions"):
        sdesam.problems.torus(dim=3)
    with pytest.raises(ValueError, match="there are 1797 images"):
        sdesam.problems.digits(train=1798)


def test_load():
    assert sdesam.problems.load("torus1d", samples=3).n == 3
    assert sdesam.problems.load("sdesam.problems:quadratic", dim=3).dim == 3
    for spec, message in [
        ("digit", "unknown problem 'digit'.*linear-regression.*did you mean 'digits'"),
        ("no_such_module:f", "cannot be loaded"),
        ("sdesam.problems:f", "cannot be loaded"),
        ("math:sqrt", "does not take"),
        ("os:getcwd", "gives a str: it must give a sdesam.FiniteSum"),
    ]:
        with pytest.raises(ValueError, match=message):
            sdesam.problems.load(spec)
    with pytest.raises(ValueError, match=r"does not take {'widht': 3}"):
        sdesam.problems.load("digits", widht=3)


SMOOTH = {
    "tanh": lambda x: jnp.tanh(x).sum(),
    "gelu": lambda x: jax.nn.gelu(x).sum(),
    "silu": lambda x: jax.nn.silu(x).sum(),
    "softplus": lambda x: jax.nn.softplus(x).sum(),
    "logsumexp": jax.nn.logsumexp,
    "log_softmax": lambda x: jax.nn.log_softmax(x)[0],
    "kink in a constant": lambda x: x.sum() * jnp.max(jnp.arange(3.0)),
    "stopped kink": lambda x: x.sum() * jax.lax.stop_gradient(jnp.max(x)),
    "scan": lambda x: jax.lax.scan(lambda c, v: (jnp.tanh(c + v), None), 0.0, x)[0],
}
KINKED = {
    "relu": lambda x: jax.nn.relu(x).sum(),
    "leaky_relu": lambda x: jax.nn.leaky_relu(x).sum(),
    "elu": lambda x: jax.nn.elu(x).sum(),
    "abs": lambda x: jnp.abs(x).sum(),
    "max": jnp.max,
    "clip": lambda x: jnp.clip(x, 0, 1).sum(),
    "rounding": lambda x: (x * x.astype(int)).sum(),
    "where": lambda x: jnp.where(x > 0, x**2, x**3).sum(),
    "scan": lambda x: jax.lax.scan(lambda c, v: (jax.nn.relu(c + v), None), 0.0, x)[0],
    "inside jit": lambda x: jax.jit(jax.nn.relu)(x).sum(),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_losses_pass(name):
    assert nonsmooth_operations(lambda x, s: SMOOTH[name](x) * s, jnp.ones(3), 1.0) == ()


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_found(name):
    assert nonsmooth_operations(lambda x, s: KINKED[name](x) * s, jnp.ones(3), 1.0)
