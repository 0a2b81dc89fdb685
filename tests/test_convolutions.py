"""Networks of convolutions, pooling, attention and loops: every way through the package, held
against loops over samples one by one.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import sdesam

N = 4


def convolution(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=groups)


def first(p, x):
    return jnp.tanh(convolution(x, p["first"]))


def mean_pool(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4


def max_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


@jax.custom_vjp
def squash(x):
    return jnp.tanh(x)


squash.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


def attention(x):
    """Each position looks at all."""
    rows = x.reshape(2, -1).T
    return (jax.nn.softmax(rows @ rows.T) @ rows).T


def repeated(x):
    return jax.lax.scan(
        lambda carry, scale: (carry + scale * jnp.sin(carry), None),
        x,
        jnp.array([0.5, 0.2], x.dtype),
    )[0]


NETWORKS = {
    "plain": lambda p, x: mean_pool(first(p, x)),
    "grouped": lambda p, x: mean_pool(convolution(first(p, x), p["second"], groups=2)),
    "image that all samples share": lambda p, x: mean_pool(
        first(p, x) * convolution(jnp.ones_like(x), p["first"])
    ),
    "transposed": lambda p, x: mean_pool(
        jax.lax.conv_transpose(
            first(p, x), p["second"], (1, 1), "SAME", dimension_numbers=("NCHW", "IOHW", "NCHW")
        )
    ),
    "maximum": lambda p, x: max_pool(first(p, x)),
    "attention": lambda p, x: attention(mean_pool(first(p, x))),
    "scan": lambda p, x: repeated(mean_pool(first(p, x))),
    "custom_vjp": lambda p, x: squash(mean_pool(first(p, x))),
    "remat": lambda p, x: jax.checkpoint(first)(p, mean_pool(x)),
    "jit": lambda p, x: mean_pool(jax.jit(first)(p, x)),
}


def loss(network, p, s):
    features = jnp.ravel(network(p, s["image"].reshape(1, 1, 4, 4)))
    return jnp.sum((p["out"][:, : features.size] @ features - s["target"]) ** 2)


def problem_of(name):
    rng = np.random.default_rng(3)
    data = {
        "image": jnp.array(rng.normal(size=(N, 16))),
        "target": jnp.array(rng.normal(size=(N, 1))),
    }
    shapes = {"first": (2, 1, 3, 3), "second": (2, 1, 3, 3), "out": (1, 8)}
    x0 = {key: jnp.array(0.4 * rng.normal(size=shape)) for key, shape in shapes.items()}
    return sdesam.FiniteSum(partial(loss, NETWORKS[name]), data, x0, name=name)


def sample_gradients(problem, x):
    """Of each sample for itself, shape `(n, dim)`: nothing is batched."""
    gradient = jax.jit(jax.grad(problem.sample_loss))
    return np.array(
        [ravel_pytree(gradient(x, problem.sample(i)))[0] for i in range(problem.n)], float
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "grouped" else pytest.mark.slow) for name in NETWORKS],
)
def test_two_devices_do_what_one_does_and_both_do_what_they_should(name):
    problem = problem_of(name)
    chain = sdesam.Chain("m-usam", problem, lr=0.05, rho=0.1, batch=4, micro=2)
    runs = [
        sdesam.train(
            chain,
            jax.random.key(0),
            runs=4,
            steps=2,
            observe=["loss", "trace_cov", "grad_norm2"],
            devices=jax.devices()[:count],
        )
        for count in (1, 2)
    ]
    for leaf, other in zip(*(jax.tree.leaves(run.final) for run in runs), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2e-5, atol=1e-6)
    g = sample_gradients(problem, problem.x0)
    right = {
        "loss": np.mean([problem.sample_loss(problem.x0, problem.sample(i)) for i in range(N)]),
        "trace_cov": g.var(axis=0).sum(),
        "grad_norm2": (g.mean(axis=0) ** 2).sum(),
    }
    for run in runs:
        for observable, value in right.items():
            np.testing.assert_allclose(run.mean[observable][0], value, rtol=1e-4)


def test_data_on_a_mesh_of_the_users_own():
    problem = problem_of("grouped")
    on_mesh = NamedSharding(
        jax.make_mesh((2,), ("theirs",), axis_types=(jax.sharding.AxisType.Auto,)), P("theirs")
    )
    spread = sdesam.FiniteSum(
        problem.sample_loss, jax.device_put(problem.data, on_mesh), problem.x0
    )
    for name in ("loss", "trace_cov", "grad_norm2"):
        np.testing.assert_allclose(
            getattr(spread, name)(spread.x0), getattr(problem, name)(problem.x0), rtol=1e-5
        )
    sde = sdesam.derive("usam", order=(1, 2)).bind(spread, lr=0.1, rho=0.1, batch=2)
    plain = sdesam.derive("usam", order=(1, 2)).bind(problem, lr=0.1, rho=0.1, batch=2)
    found, right = (ravel_pytree(one.drift(problem.x0))[0] for one in (sde, plain))
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
    out = sdesam.simulate(sde, jax.random.key(0), 4, 0.2, 0.1, observe=["trace_cov"])
    assert np.isfinite(out.mean["trace_cov"]).all()


class Enumerated:
    """The expansion of one micro-batch's step in rho, averaged over all ordered micro-batches with
    replacement, one after another.
    """

    def __init__(self, problem, m, unit):
        self.problem, self.m, self.unit = problem, m, unit
        self.flat, self.rebuild = ravel_pytree(problem.x0)
        self.powers = jax.jit(self._powers)

    def _powers(self, x, members):
        """`g_I, H_I u_I, T_I[u_I, u_I] / 2`."""

        def mean(y):
            losses = [
                self.problem.sample_loss(
                    self.rebuild(y), jax.tree.map(lambda leaf, i=i: leaf[i], self.problem.data)
                )
                for i in members
            ]
            return sum(losses) / self.m

        gradient = jax.grad(mean)
        g = gradient(x)
        u = g / jnp.linalg.norm(g) if self.unit else g
        along = lambda fn: lambda y: jax.jvp(fn, (y,), (jax.lax.stop_gradient(u),))[1]  # noqa: E731
        return jnp.stack([g, along(gradient)(x), along(along(gradient))(x) / 2])

    def listed(self, x):
        return np.array(
            [
                self.powers(x, jnp.array(members))
                for members in product(range(self.problem.n), repeat=self.m)
            ]
        )


def powers_of_rho(values, radii):
    return np.linalg.solve(
        np.vander(radii, increasing=True), np.array([np.ravel(value) for value in values])
    )


@pytest.mark.parametrize(
    ("variant", "name", "order"),
    [
        ("m-usam", "grouped", (1, 2)),
        pytest.param("m-usam", "grouped", (2, 3), marks=pytest.mark.slow),
        pytest.param("m-sam", "grouped", (2, 3), marks=pytest.mark.slow),
        *[
            pytest.param("m-usam", name, (2, 3), marks=pytest.mark.slow)
            for name in ("attention", "scan", "remat", "transposed")
        ],
    ],
)
def test_the_sde_equals_enumeration(variant, name, order):
    """Drift by powers of rho, correction, and covariance to rho^1, to 1e-10 in float64."""
    lr, batch, m = 0.3, 4, 2
    with jax.enable_x64(True):
        problem = problem_of(name)
        everything = Enumerated(problem, m, unit=variant == "m-sam")
        listed = everything.listed(everything.flat)
        radii = np.array([0.0, 0.5, 1.0])
        equation = sdesam.derive(variant, order=order)
        numbers = {"batch": batch, "micro": m, "expectation": "exact"}
        drift, covariance = {}, None
        for rate in (lr, 2 * lr):
            sdes = [equation.bind(problem, lr=rate, rho=rho, **numbers) for rho in radii]
            drift[rate] = powers_of_rho(
                [ravel_pytree(sde.drift(problem.x0))[0] for sde in sdes], radii
            )
            covariance = (
                powers_of_rho([sde.covariance(problem.x0) for sde in sdes], radii)
                if order == (2, 3)
                else covariance
            )
        mean, correction = 2 * drift[lr] - drift[2 * lr], drift[2 * lr] - drift[lr]
        kept = 3 if order == (2, 3) else 2
        close = {"rtol": 1e-10, "atol": 1e-10 * np.abs(listed).max()}
        np.testing.assert_allclose(-mean[:kept], listed.mean(axis=0)[:kept], **close)
        if order == (1, 2):
            # the control: 1/b in the place of 1/m
            wrong = Enumerated(problem, batch, unit=False).listed(everything.flat).mean(axis=0)
            assert not np.allclose(-mean[:kept], wrong[:kept], rtol=1e-3)
            return
        centred = listed - listed.mean(axis=0)
        cross = centred[:, 0].T @ centred[:, 1]
        right = [centred[:, 0].T @ centred[:, 0], cross + cross.T]
        for j in (0, 1):
            expected = 2 * lr * right[j].ravel() / len(listed) / (batch // m)
            np.testing.assert_allclose(
                covariance[j], expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max()
            )
        # the correction by central differences of the enumerated mean along itself
        step = 1e-5
        G = listed.mean(axis=0)
        moved = {
            (k, sign): everything.listed(everything.flat + sign * step * G[k]).mean(axis=0)
            for k in (0, 1)
            for sign in (1, -1)
        }
        along = {k: (moved[k, 1] - moved[k, -1]) / (2 * step) for k in (0, 1)}
        for j, expected in enumerate((along[0][0], along[1][0] + along[0][1])):
            np.testing.assert_allclose(
                correction[j], -lr / 2 * expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max()
            )


@pytest.mark.slow
def test_the_sde_stands_beside_the_chain():
    """Both sides of a comparison on two devices; with so few runs the verdict is open, the numbers
    are not.
    """
    numbers = {
        "lr": 0.02,
        "rho": 0.02,
        "batch": 4,
        "micro": [2],
        "runs": 32,
        "steps": 10,
        "order": (1, 2),
    }
    found = sdesam.compare(
        "m-usam", problem_of("grouped"), **numbers, observe=["loss", "trace_cov"]
    )
    row = found.rows[0]
    for observable in ("loss", "trace_cov"):
        for side in (row.sde, row.without):
            assert np.isfinite(side.mean[observable]).all()
        error = np.hypot(row.chain.stderr[observable][-1], row.sde.stderr[observable][-1])
        assert abs(row.chain.mean[observable][-1] - row.sde.mean[observable][-1]) < 5 * error, (
            "false alarms: 1 in 10^6"
        )
