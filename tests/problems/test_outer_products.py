"""`tr V` of dense layers without per-sample gradients, against the generic path and against numpy
in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.autodiff.outer_products import dense_layers, factors, loss_along, squared_norm_of_mean
from sdesam.problems.means import trace_cov, trace_cov_generic

RNG = np.random.default_rng(0)
DATA = {"a": RNG.normal(size=(7, 3)), "y": RNG.normal(size=(7, 2))}
X0 = {
    "U": RNG.normal(size=(3, 4)),
    "b": RNG.normal(size=4),
    "W": RNG.normal(size=(2, 4)),
    "s": np.array(0.7),
}


def loss(p, sample):
    """A matrix on the right inside jit, a transposed one on the left, a bias, a scale."""
    hidden = jax.jit(lambda p: jnp.tanh(sample["a"] @ p["U"] + p["b"]))(p)
    scores = p["s"] * (p["W"] @ hidden)
    return jax.nn.logsumexp(scores) + 0.5 * jnp.sum((scores - sample["y"]) ** 2)


def recurrent(p, sample):
    return loss(p, {**sample, "a": jnp.tanh(sample["a"] @ p["U"])[:3]})


def decayed(p, sample):
    return loss(p, sample) + 0.5 * jnp.sum(p["U"] ** 2)


def sequence(p, sample):
    return jnp.sum(jnp.tanh(jnp.stack([sample["a"], 2 * sample["a"]]) @ p["U"]))


def vector(p, sample):
    return jnp.tanh(sample["a"] @ p["U"] @ p["b"]) ** 2 * p["s"]


def scanned(p, sample):
    return jax.lax.fori_loop(0, 2, lambda k, h: jnp.tanh(p["W"] @ p["b"]) * h, sample["y"]).sum()


# leaves in jax's order: U, W, b, s
@pytest.mark.parametrize(
    ("fn", "leaves"),
    [
        (loss, [0, 1]),
        (recurrent, [1]),
        (decayed, [1]),
        (vector, [0, 2]),
        (sequence, []),
        (scanned, []),
    ],
)
def test_dense_layers_are_found_and_agree_with_the_generic_path(fn, leaves):
    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(fn, DATA, X0)
        assert list(dense_layers(fn, problem.x0, problem.sample(0))) == leaves
        generic = trace_cov_generic(fn, problem.chunk, problem.data, problem.x0)
        for chunk in (2, 7):
            np.testing.assert_allclose(
                trace_cov(fn, chunk, problem.data, problem.x0), generic, rtol=1e-12
            )


def test_two_layers_in_numpy():
    problem = sdesam.problems.digits(train=20, width=5)
    p = {name: np.asarray(value, float) for name, value in problem.x0.items()}
    image, label = np.asarray(problem.data["image"], float), np.asarray(problem.data["label"])
    hidden = np.tanh(image @ p["W1"] + p["b1"])
    scores = hidden @ p["W2"] + p["b2"]
    top = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) - np.eye(10)[label]
    low = (top @ p["W2"].T) * (1 - hidden**2)
    gradients = [image[:, :, None] * low[:, None], low, hidden[:, :, None] * top[:, None], top]
    truth = sum(((g - g.mean(0)) ** 2).sum() / 20 for g in gradients)
    assert float(problem.trace_cov(problem.x0)) == pytest.approx(truth, rel=1e-5)


@pytest.mark.slow
def test_samples_that_are_nearly_alike_keep_their_digits():
    """Deviations of 1e-3: tr V is 1e-6 of |gbar|^2, where the difference of two means has no digit
    left in float32.
    """
    near = {"a": 1 + 1e-3 * DATA["a"], "y": 1 + 1e-3 * DATA["y"]}
    with jax.enable_x64(True):
        exact = sdesam.FiniteSum(loss, near, X0)
        truth = float(trace_cov_generic(loss, 7, exact.data, exact.x0))
        norm2 = float(exact.grad_norm2(exact.x0))
    assert truth < 1e-5 * norm2
    single = sdesam.FiniteSum(loss, jax.tree.map(np.float32, near), jax.tree.map(np.float32, X0))
    # data rounded to 1e-7 of deviations 1e-3: relative 1e-4 each
    for chunk in (1, 7):
        assert float(trace_cov(loss, chunk, single.data, single.x0)) == pytest.approx(
            truth, rel=2e-3
        )
    gradients = jax.vmap(jax.grad(loss), (None, 0))(single.x0, single.data)
    means = sum(
        float(jnp.sum(g**2) / 7 - jnp.sum(g.mean(0) ** 2)) for g in jax.tree.leaves(gradients)
    )
    assert abs(means / truth - 1) > 0.02, "the control: the difference of two means"


@pytest.mark.slow
def test_derivatives_pass_through():
    """grad tr V, as in a modified loss, by both paths."""
    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(loss, DATA, X0)
        both = [
            jax.grad(lambda x, fn=fn: fn(loss, 7, problem.data, x))(problem.x0)
            for fn in (trace_cov, trace_cov_generic)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *both)


@pytest.mark.parametrize("fn", [loss, recurrent, decayed, vector])
def test_the_loss_along_the_gradient_of_a_group(fn):
    """Three samples, steps that are not small: the same function of parameters and step, so the
    same derivatives of every order.
    """
    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(fn, DATA, X0)
        x = problem.x0
        layers = dense_layers(fn, x, problem.sample(0))
        members = jax.tree.map(lambda leaf: leaf[jnp.array([2, 4, 2])], problem.data)
        group = jax.vmap(lambda sample: factors(fn, layers, x, sample))(members)
        each = jax.vmap(jax.grad(fn), (None, 0))(x, members)
        G = jax.tree.map(lambda leaf: leaf.mean(axis=0), each)
        y = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(leaf), x)
        for t in (0.0, 0.7, -2.0):
            for i in (0, 4):
                truth = fn(jax.tree.map(lambda leaf, g, t=t: leaf + t * g, y, G), problem.sample(i))
                np.testing.assert_allclose(
                    loss_along(fn, layers, y, t, problem.sample(i), group), truth, rtol=1e-12
                )
        np.testing.assert_allclose(
            squared_norm_of_mean(group), sum(jnp.sum(g**2) for g in jax.tree.leaves(G)), rtol=1e-12
        )
        # the control: another member, another function
        other = jax.vmap(lambda sample: factors(fn, layers, x, sample))(
            jax.tree.map(lambda leaf: leaf[jnp.array([2, 4, 3])], problem.data)
        )
        assert (
            abs(
                float(
                    loss_along(fn, layers, y, 0.7, problem.sample(0), other)
                    - loss_along(fn, layers, y, 0.7, problem.sample(0), group)
                )
            )
            > 1e-4
        )
