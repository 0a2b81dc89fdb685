"""SDEs made of a direction by differentiating it: beside the trees where a rule has them, beside
brute force in numpy where it has none; what is drawn is unbiased; weak order; bad input.
"""

from dataclasses import replace
from functools import lru_cache, partial

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.verify.exact import Torus
from sdesam.verify.exact.weak import fit_slope
from tests.brute_force import Polynomials, batches
from tests.sde.test_enumeration import polynomial_loss, powers_of_rho, some_slow

LR, RHO, EPS = 0.3, 0.4, 0.4
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


# Directions, of the gradient of a micro-batch's mean loss, of any structure.


def gradient(loss):
    return jax.grad(lambda x, samples: jnp.mean(jax.vmap(loss, (None, 0))(x, samples)))


def along(x, rho, u):
    return jax.tree.map(lambda a, b: a + rho * b, x, u)


def over_norm(u, v, eps=EPS):
    r = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(v)) + eps**2)
    return jax.tree.map(lambda leaf: leaf / r, u)


def sgd(g, whole, x, s, rho):
    return g(x, s)


def usam(g, whole, x, s, rho):
    return g(along(x, rho, g(x, s)), s)


def n_usam(g, whole, x, s, rho):
    return g(along(x, rho, whole(x)), s)


def sam(g, whole, x, s, rho):
    return g(along(x, rho, over_norm(g(x, s), g(x, s))), s)


def n_sam(g, whole, x, s, rho):
    return g(along(x, rho, over_norm(whole(x), whole(x))), s)


def dnsam(g, whole, x, s, rho):
    return g(along(x, rho, over_norm(g(x, s), whole(x))), s)


KNOWN = {
    "usam": usam,
    "m-usam": usam,
    "n-usam": n_usam,
    "sam": sam,
    "m-sam": sam,
    "n-sam": n_sam,
    "dnsam": dnsam,
}


def penalty(g, whole, x, s, rho):
    """The gradient-norm penalty (arXiv 2202.03599), with a = 0.7."""
    ahead = sam(g, whole, x, s, rho)
    return jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, g(x, s), ahead)


def two_step(g, whole, x, s, rho):
    u = along(g(x, s), 1, usam(g, whole, x, s, rho))
    return g(along(x, rho, u), s)


def friendly(g, whole, x, s, rho):
    """F-USAM with sigma = 0.6."""
    return g(along(x, rho, along(g(x, s), -0.6, whole(x))), s)


def normalised_descent(g, whole, x, s, rho):
    """At rho = 0 no mean over samples."""
    v = usam(g, whole, x, s, rho)
    return over_norm(v, v)


@lru_cache
def direction(rule, problem, loss=polynomial_loss):
    """One function for one rule, so that it is compiled once."""
    return partial(rule, gradient(loss), problem.grad)


@lru_cache
def polynomials(n=5, d=2, seed=3):
    losses = Polynomials.random(n, d, seed, quartic=True)
    x = 0.5 * np.random.default_rng(seed).normal(size=d)
    return losses, sdesam.FiniteSum(polynomial_loss, vars(losses), x)


def made(rule, problem, loss=polynomial_loss, **change):
    """The SDE of a rule."""
    given = {"lr": LR, "rho": RHO, "batch": 4, "micro": 2, "expectation": "exact", **change}
    return sdesam.SDE.from_step(direction(rule, problem, loss), problem, **given)


# 1. Beside the trees.


def in_leaves(x, sample):
    """The same losses, their parameters in a dictionary."""
    return polynomial_loss(jnp.concatenate([x["a"].ravel(), x["b"][None]]), sample)


def assert_equals_trees(name, d, order, with_replacement, leaves=False, change=lambda sde: sde):
    losses, problem = polynomials(5, d, seed=d)
    loss = in_leaves if leaves else polynomial_loss
    x = problem.x0
    if leaves:
        x = {"a": np.asarray(x)[None, :-1], "b": np.asarray(x)[-1]}
        problem = sdesam.FiniteSum(loss, vars(losses), x)
    sizes = {"batch": 4, "micro": 2 if name.startswith("m-") else None}
    given = {"lr": LR, "rho": RHO, **sizes, "expectation": "exact"}
    eps = {} if "usam" in name else {"eps": EPS}
    wanted = sdesam.derive(name, order, with_replacement).bind(problem, **given, **eps)
    rule = direction(KNOWN[name], problem, loss)
    found = change(
        sdesam.SDE.from_step(rule, problem, **given, order=order, replace=with_replacement)
    )
    for point in (x, jax.tree.map(lambda leaf: leaf + 0.3, x)):
        drifts = (jax.tree.leaves(sde.drift(point)) for sde in (found, wanted))
        for ours, theirs in zip(*drifts, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9, err_msg="drift")
        np.testing.assert_allclose(
            found.covariance(point), wanted.covariance(point), rtol=1e-9, atol=1e-9
        )
    assert found.noise_shape == wanted.noise_shape


@pytest.mark.parametrize(
    ("name", "d", "order", "with_replacement"),
    some_slow(
        {
            (name, d, order, replaced): (name, d, order, replaced)
            in {
                ("usam", 1, (2, 3), False),
                ("m-usam", 3, (1, 2), False),
                ("m-sam", 2, (2, 3), False),
            }
            for name in KNOWN
            for d in (1, 2, 3)
            for order in ((1, 2), (2, 3))
            for replaced in (True, False)
        }
    ),
)
def test_beside_the_trees(name, d, order, with_replacement):
    assert_equals_trees(name, d, order, with_replacement)


@pytest.mark.parametrize(
    ("name", "with_replacement"),
    some_slow(
        {("m-usam", False): True, ("m-sam", True): False, ("dnsam", False): False},
    ),
)
def test_parameters_in_several_leaves(name, with_replacement):
    assert_equals_trees(name, 3, (2, 3), with_replacement, leaves=True)


@pytest.mark.slow
@pytest.mark.parametrize("order", [(1, 1), (1, 3), (1, 4), (2, 1), (2, 2), (2, 4)])
def test_every_order_beside_the_trees(order):
    assert_equals_trees("m-usam", 2, order, False)


# 2. Beside brute force: Taylor coefficients and derivatives by Cauchy's integral, in numpy.

POINTS, RADIUS = 16, 0.02
"""On a circle of this radius the trapezoidal rule with so many points is exact to (r/R)^16, R the
distance to the nearest singularity, about eps = 0.4; rounding is 1e-16 / r^2 = 3e-13.
"""
CIRCLE = RADIUS * np.exp(2j * np.pi * np.arange(POINTS) / POINTS)


def cauchy(fn, j):
    """The `j`-th Taylor coefficient at 0 of an analytic function."""
    return np.mean([fn(z) / z**j for z in CIRCLE], axis=0)


def np_unit(v):
    return v / np.sqrt(v @ v + EPS**2)


NUMPY = {
    "penalty": lambda g, whole, x, rho: 0.3 * g(x) + 0.7 * g(x + rho * np_unit(g(x))),
    "two-step": lambda g, whole, x, rho: g(x + rho * (g(x) + g(x + rho * g(x)))),
    "friendly": lambda g, whole, x, rho: g(x + rho * (g(x) - 0.6 * whole(x))),
    "normalised descent": lambda g, whole, x, rho: np_unit(g(x + rho * g(x))),
}
JAX = {
    "penalty": penalty,
    "two-step": two_step,
    "friendly": friendly,
    "normalised descent": normalised_descent,
}


@lru_cache
def brute_force(rule, n, seed, b, m, with_replacement):
    """`Gbar_j`, the parts of `(D Gbar) Gbar` by powers of rho and of `Cov G`, all mini-batches
    listed.
    """
    losses, problem = polynomials(n, 2, seed)
    x = np.asarray(problem.x0)
    listed = batches(losses.n, b, with_replacement)
    split = [[tuple(sorted(one[k : k + m])) for k in range(0, b, m)] for one in listed]
    groups = sorted({group for one in split for group in one})
    place = {group: k for k, group in enumerate(groups)}
    places = np.array([[place[group] for group in one] for one in split])

    def whole(y):
        return losses.g(y).mean(axis=0)

    def each(j, y):
        """`F_(I,j)` of every micro-batch."""
        return np.array(
            [
                cauchy(
                    lambda rho, group=group: NUMPY[rule](
                        lambda z: losses.g(z)[list(group)].mean(axis=0), whole, y, rho
                    ),
                    j,
                )
                for group in groups
            ]
        )

    def steps(j, y):
        """`G_j` of every mini-batch."""
        return each(j, y)[places].mean(axis=1)

    G = [steps(j, x).real for j in range(3)]
    mean = [part.mean(axis=0) for part in G]

    def bent(k, v):
        """`(D Gbar_k) v`."""
        return cauchy(lambda t: steps(k, x + t * v).mean(axis=0), 1).real

    Z0, Z1 = G[0] - mean[0], G[1] - mean[1]
    cross = Z0.T @ Z1 / len(listed)
    correction = [bent(0, mean[0]), bent(0, mean[1]) + bent(1, mean[0])]
    return mean, correction, [Z0.T @ Z0 / len(listed), cross + cross.T]


def assert_equals_brute_force(rule, b, m, with_replacement, n=4, change=lambda sde: sde):
    _, problem = polynomials(n, 2, seed=5)
    x = problem.x0
    radii = np.linspace(0, 1, 3)
    drift = []
    for lr in (LR, 2 * LR):  # a drift is affine in eta
        sdes = [
            change(
                made(JAX[rule], problem, lr=lr, rho=r, batch=b, micro=m, replace=with_replacement)
            )
            for r in radii
        ]
        drift.append(powers_of_rho([sde.drift(x) for sde in sdes], radii))
    correction = drift[1] - drift[0]
    covariance = powers_of_rho([sde.covariance(x) for sde in sdes], radii)
    mean, bent, cov = brute_force(rule, n, 5, b, m, with_replacement)
    for j in range(3):
        np.testing.assert_allclose(
            correction[j] - drift[0][j], mean[j], err_msg=f"mean step, rho^{j}", **CLOSE
        )
    np.testing.assert_allclose(
        correction[:2], -LR / 2 * np.array(bent), err_msg="correction", **CLOSE
    )
    np.testing.assert_allclose(correction[2], 0, err_msg="correction, rho^2", **CLOSE)
    for j in range(2):
        wanted = 2 * LR * cov[j].ravel()
        np.testing.assert_allclose(covariance[j], wanted, err_msg=f"covariance, rho^{j}", **CLOSE)


@pytest.mark.parametrize(
    ("rule", "b", "m", "with_replacement"),
    some_slow(
        {
            ("penalty", 4, 2, False): True,
            ("penalty", 4, 2, True): False,
            ("penalty", 2, 1, True): False,
            ("two-step", 4, 2, True): False,
            ("two-step", 2, 2, False): False,
            ("two-step", 4, 4, False): False,
            ("friendly", 2, 1, False): True,
            ("friendly", 3, 3, True): False,
            ("normalised descent", 4, 2, True): False,
            ("normalised descent", 2, 2, False): True,
        }
    ),
)
def test_rules_without_trees(rule, b, m, with_replacement):
    assert_equals_brute_force(rule, b, m, with_replacement)


def other(kernel):
    """A change of an SDE's kernel."""

    def change(sde):
        sde._kernel = kernel(sde.kernel)
        return sde

    return change


def powers(**fewer):
    return other(lambda k: replace(k, powers=k.powers._replace(**fewer)))


def numbers(**factors):
    return other(
        lambda k: replace(k, **{name: getattr(k, name) * f for name, f in factors.items()})
    )


WRONG = {
    "no correction": powers(correction=-1),
    "no rho^1 in the correction": powers(correction=0),
    "no rho^2 in the drift": powers(drift=1),
    "no rho^1 in the noise": powers(noise=0),
    "1/m for 1/b": numbers(noise_scale=2**0.5),
    "the influence of the other sampling": numbers(influence=3 / 4),
    "twice the radius": numbers(rho=2),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_negative_controls(name):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_equals_brute_force("two-step", 4, 2, False, n=5, change=WRONG[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WRONG))
def test_negative_controls_beside_the_trees(name):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_equals_trees("m-sam", 2, (2, 3), False, change=WRONG[name])


def test_the_noise_of_a_rule_that_is_no_mean_is_not_the_projection():
    """The control of the second form of noise: the influence of single samples misses a part of the
    covariance.
    """
    n, b = 4, 4

    def projected(sde):
        sde.noise_shape = (n,)
        change = other(lambda k: replace(k, of_samples=True, noise_scale=(k.lr / b / n) ** 0.5))
        return change(sde)

    with pytest.raises(AssertionError, match=r"covariance, rho\^0"):
        assert_equals_brute_force("normalised descent", 4, 2, True, change=projected)


# 3. Drawn micro-batches.

DRAWS = 4000
LIMIT = 5
"""Of |z|: 6e-7 false alarms for each component."""


def z_scores(values, wanted):
    return abs((values.mean(axis=0) - wanted) / (values.std(axis=0) / np.sqrt(len(values)))).max()


def drawn(sde, xi):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    x = sde.x0
    drifts = np.asarray(jax.vmap(lambda key: sde.step_drift(x, key))(keys))
    return drifts, np.asarray(jax.vmap(lambda key: sde.step_noise(x, xi, key))(keys))


@pytest.mark.parametrize("with_replacement", some_slow({(True,): False, (False,): True}))
def test_draws_are_unbiased(with_replacement):
    """Drift and noise of a step against the listed expectations; their rho^0 parts are exact."""
    _, problem = polynomials()
    change = {"lr": 1.0, "replace": with_replacement}
    exact = made(penalty, problem, **change)
    sampled = made(penalty, problem, **change, expectation="sampled", micro_batches=6)
    xi = jax.random.normal(jax.random.key(1), (5,))
    drifts, noises = drawn(sampled, xi)
    assert z_scores(drifts, exact.drift(problem.x0)) < LIMIT
    assert z_scores(noises, exact.apply_noise(problem.x0, xi)) < LIMIT
    # controls: micro-batches of another size, and the other sampling
    wrong = made(penalty, problem, **change, micro=1)
    assert z_scores(drifts, wrong.drift(problem.x0)) > 2 * LIMIT
    wrong = made(penalty, problem, **{**change, "replace": not with_replacement})
    assert z_scores(noises, wrong.apply_noise(problem.x0, xi)) > 2 * LIMIT
    at_0 = made(penalty, problem, **change, rho=0, expectation="sampled", micro_batches=6)
    exact_at_0 = made(penalty, problem, **change, rho=0)
    key = jax.random.key(2)
    drift, noise = at_0.step_drift(problem.x0, key), at_0.step_noise(problem.x0, xi, key)
    np.testing.assert_allclose(drift, exact_at_0.drift(problem.x0), **CLOSE)
    np.testing.assert_allclose(noise, exact_at_0.apply_noise(problem.x0, xi), **CLOSE)


def test_draws_of_a_rule_that_is_no_mean():
    """Both factors of the correction are drawn, and so drawn apart; the noise has the covariance of
    the step over normals and draws.
    """
    _, problem = polynomials()
    change = {"lr": 3.0, "rho": 0.2}
    exact = made(normalised_descent, problem, **change)
    sampled = made(normalised_descent, problem, **change, expectation="sampled", micro_batches=4)
    assert sampled.noise_shape == (4,)
    drifts, _ = drawn(sampled, jnp.ones(4))
    assert z_scores(drifts, exact.drift(problem.x0)) < LIMIT
    keys = jax.random.split(jax.random.key(5), DRAWS)
    noises = np.asarray(jax.vmap(lambda key: sampled.noise(problem.x0, key))(keys))
    squares = np.einsum("qj,qk->qjk", noises, noises)
    assert z_scores(squares, exact.covariance(problem.x0)) < LIMIT
    # the controls: one draw for both factors, and q for q - 1
    kernel = sampled.kernel
    many = jax.random.split(jax.random.key(6), 5 * DRAWS)
    one = jax.jit(
        jax.vmap(lambda key: kernel._drift(problem.x0, *[kernel.draw.for_drift(key)] * 2))
    )(many)
    assert z_scores(np.asarray(one), exact.drift(problem.x0)) > 2 * LIMIT
    assert z_scores(squares * 3 / 4, exact.covariance(problem.x0)) > 2 * LIMIT


def test_a_drawn_noise_is_a_sample_covariance():
    """The rho^1 part of a drawn noise, from the micro-batches that were drawn, in numpy."""
    n, b, m, q = 5, 4, 2, 6
    factor, scale = (n - b) / (b * (n - 1)), m * (n - 1) / (n - m)  # without replacement
    losses, problem = polynomials(n)
    sde = made(usam, problem, replace=False, expectation="sampled", micro_batches=q)
    xi, key, x = np.random.default_rng(3).normal(size=n), jax.random.key(2), np.asarray(problem.x0)
    indices = np.asarray(sde.kernel.draw(key).indices)
    g, H = losses.g(x), losses.H(x)
    w = (xi - xi.mean()) * np.sqrt(LR * factor / n)
    F = np.einsum("qjk,qk->qj", H[indices].mean(axis=1), g[indices].mean(axis=1))
    W = n * w[indices].mean(axis=1)
    wanted = w @ g + RHO * scale * (W - W.mean()) @ F / (q - 1)
    np.testing.assert_allclose(sde.step_noise(x, xi, key), wanted, **CLOSE)


def test_what_is_listed_and_what_is_drawn():
    data = np.random.default_rng(0).normal(size=(300, 2))

    def loss(x, a):
        return jnp.sum(jnp.cos(a * x))

    def count(n, **change):
        problem = sdesam.FiniteSum(loss, data[:n], np.ones(2))
        sde = made(usam, problem, loss, order=(1, 2), **{"expectation": "sampled", **change})
        return sde.config["micro_batches"]

    assert count(10, batch=2) == "all", "55 of them, no more than 64"
    assert count(11, batch=2) == 64, "66 of them"
    assert count(300, batch=2) == 150
    assert count(300, batch=2, micro=1) == "all", "as many as samples"
    assert count(10, batch=2, micro_batches=7) == 7
    assert count(12, batch=2, expectation="exact") == "all"


# 5. Weak order, without sampling.


def test_weak_order_of_a_rule_without_trees():
    """The gradient-norm penalty on a torus has order 2 along rho = eta^(2/3)/2; without the
    correction, order 1.
    """
    problem = sdesam.problems.torus(dim=1, samples=3)
    torus = Torus(period=2 * np.pi, dim=1, size=94, horizon=1.0)
    rates = np.array([1 / 32, 1 / 64, 1 / 128])
    listed = np.array(batches(3, 2, True))
    rule = direction(penalty, problem, problem.sample_loss)

    @jax.jit
    def moves(points, rho):
        def of(batch, x):
            def alone(i):
                return rule(x, jax.tree.map(lambda leaf: leaf[i][None], problem.data), rho)

            return (alone(batch[0]) + alone(batch[1])) / 2

        return jax.vmap(lambda batch: jax.vmap(lambda x: of(batch, x))(points))(listed)

    def chain(lr, rho):
        operator = np.mean(
            [
                torus.interpolation(torus.points - lr * np.asarray(G))
                for G in moves(torus.points, rho)
            ],
            axis=0,
        )
        return np.linalg.matrix_power(operator, round(1 / lr)) @ torus.tests

    def errors(change=lambda sde: sde):
        found = []
        for lr in rates:
            rho = lr ** (2 / 3) / 2
            sde = made(penalty, problem, problem.sample_loss, lr=lr, rho=rho, batch=2, micro=1)
            found.append(abs(torus.sde(change(sde)) - chain(lr, rho)).max())
        return np.array(found)

    full, without = errors(), errors(powers(correction=-1))
    none = np.zeros(3)
    assert fit_slope(rates, full, none)[0] == pytest.approx(2, abs=0.15), full
    assert fit_slope(rates, without, none)[0] == pytest.approx(1, abs=0.15), without


# 6. What is compiled, and where such an SDE may go.


def test_other_rates_and_radii_compile_nothing():
    _, problem = polynomials()
    traces = 0
    inner = direction(usam, problem)

    def counted(x, samples, rho):
        nonlocal traces
        traces += 1
        return inner(x, samples, rho)

    def values(lr, rho):
        sde = sdesam.SDE.from_step(counted, problem, lr, rho, batch=4, micro=2)
        before = traces
        found = sde.drift(problem.x0), sde.apply_noise(problem.x0, jnp.ones(5).at[0].set(0))
        return traces - before, [np.asarray(value) for value in found]

    first, start = values(0.1, 0.1)
    assert first > 0, "the count sees a compilation where there is one"
    for lr, rho in ((0.2, 0.1), (0.1, 0.3), (0.1, 0)):
        count, now = values(lr, rho)
        assert count == 0
        assert all((a != b).any() for a, b in zip(now, start, strict=True))


def test_a_run():
    """It is an SDE as others are: it runs, and says what it was made of."""
    _, problem = polynomials()
    sde = made(penalty, problem, lr=0.02, order=(1, 2), expectation="sampled")
    out = sdesam.simulate(
        sde, jax.random.key(0), paths=8, horizon=0.04, dt=0.02, method="heun", observe=["loss"]
    )
    assert np.isfinite(out.mean["loss"]).all()
    told = {"sde": "by numbers", "order": [1, 2], "batch": 4, "micro": 2, "lr": 0.02, "rho": RHO}
    told |= {"replace": True, "expectation": "sampled", "micro_batches": "all", "samples": 5}
    assert told.items() <= out.config.items()
    assert out.config["direction"] == "partial"
    assert "by numbers" in repr(sde)


def test_float32_and_a_module():
    """In float32, with a module of equinox as parameters: the direction gets the module."""
    with jax.enable_x64(False):
        net = equinox.nn.MLP(2, 1, 3, 1, activation=jax.nn.softplus, key=jax.random.key(0))
        data = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)

        def loss(net, a):
            return jnp.sum(net(a) ** 2)

        problem = sdesam.FiniteSum(loss, data, net)

        def step(net, samples, rho):
            def g(net):
                return equinox.filter_grad(
                    lambda net: jnp.mean(jax.vmap(loss, (None, 0))(net, samples))
                )(net)

            u = g(net)
            return g(jax.tree.map(lambda a, b: a if b is None else a + rho * b, net, u))

        sde = sdesam.SDE.from_step(step, problem, lr=0.1, rho=0.1, batch=4, micro=2)
        wanted = sdesam.derive("m-usam").bind(problem, lr=0.1, rho=0.1, batch=4, micro=2)
        ours, theirs = (jax.tree.leaves(each.drift(problem.x0)) for each in (sde, wanted))
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# 7. Bad input.

RANDOM = np.random.default_rng(0)


def sum_in_place_of_mean(x, samples, rho):
    return jax.grad(lambda x: jnp.sum(jax.vmap(polynomial_loss, (None, 0))(x, samples)))(x)


def for_two_samples(x, samples, rho):
    g = jax.vmap(jax.grad(polynomial_loss), (None, 0))(x, samples)
    return jnp.array([0.5, 0.5]) @ g


BAD = {
    "no function": (3, {}, TypeError, "direction=3: it must be a function"),
    "another structure": (
        lambda x, s, rho: (x, x),
        {},
        ValueError,
        "must have the structure and the shapes of x0",
    ),
    "another shape": (lambda x, s, rho: x[:1], {}, ValueError, "but it returns float64\\[1\\]"),
    "complex": (lambda x, s, rho: x * 1j, {}, TypeError, "must hold real numbers"),
    "an error": (
        lambda x, s, rho: x / s["nothing"],
        {},
        ValueError,
        r"direction\(x0, 2 samples, rho\) fails with KeyError",
    ),
    "asks for a value": (
        lambda x, s, rho: x if rho > 0 else -x,
        {},
        ValueError,
        "it asks in Python for a value",
    ),
    "a root of rho": (
        lambda x, s, rho: x * jnp.sqrt(rho),
        {},
        ValueError,
        r"rho\^1 coefficient of direction at x0 is not finite",
    ),
    "a case": (
        lambda x, s, rho: s["a"].mean(0) * jnp.where(rho > 0, 1 + rho, 1),
        {},
        ValueError,
        r"direction at x0 has a kink in rho at 0 for the micro-batch \[0, 0\]",
    ),
    "a maximum": (
        lambda x, s, rho: s["a"].mean(0) + jnp.maximum(rho, 0) * x,
        {"order": (1, 2)},
        ValueError,
        r"has a kink in rho at 0",
    ),
    "a norm of nothing": (
        lambda x, s, rho: x + rho * 0 * x / jnp.linalg.norm(0 * x),
        {},
        ValueError,
        r"rho\^0 coefficient of direction at x0 is not finite for the micro-batch \[0, 0\]",
    ),
    "a norm with a kink in x": (
        lambda x, s, rho: x + rho * jnp.linalg.norm(0 * x) * x,
        {},
        ValueError,
        r"the derivative in x of the rho\^0 coefficient",
    ),
    "random numbers": (
        lambda x, s, rho: x * RANDOM.normal(),
        {},
        ValueError,
        "gives other values when it is called again",
    ),
    "a sum": (
        sum_in_place_of_mean,
        {},
        ValueError,
        "direction at rho = 0 is 2 times the mean of its values for the 2 samples",
    ),
    "m samples alone": (
        for_two_samples,
        {},
        ValueError,
        "1 sample, rho.*with 2 samples it does not fail: it must take any number",
    ),
    "no rho": (None, {"rho": None}, ValueError, "from_step needs rho"),
    "rho below 0": (None, {"rho": -1}, ValueError, "rho=-1: it must be a finite number"),
    "lr": (None, {"lr": 0}, ValueError, "lr=0: it must be a finite number above 0"),
    "micro": (None, {"micro": 3}, ValueError, "micro=3 does not divide batch=4"),
    "replace": (None, {"replace": 1}, TypeError, "replace=1: it must be True"),
    "batch": (None, {"batch": 6, "replace": False}, ValueError, "batch=6 exceeds the 5 samples"),
    "order": (None, {"order": (3, 3)}, ValueError, "no SDE driven by Brownian motion"),
    "order beyond": (None, {"order": (2, 5)}, ValueError, "beta must be 1, 2, 3 or 4"),
    "expectation": (None, {"expectation": "all"}, ValueError, "choose 'exact' or 'sampled'"),
    "a count": (None, {"micro_batches": 3}, ValueError, "lists all micro-batches"),
    "one draw": (
        None,
        {"micro_batches": 1, "expectation": "sampled"},
        ValueError,
        "micro_batches=1: it must be at least 2",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input(name):
    rule, change, error, message = BAD[name]
    _, problem = polynomials()
    rule = direction(usam, problem) if rule is None else rule
    given = {"lr": LR, "rho": RHO, "batch": 4, "micro": 2, "expectation": "exact", **change}
    with pytest.raises(error, match=message):
        sdesam.SDE.from_step(rule, problem, **given)


@pytest.mark.parametrize(
    ("n", "batch", "micro", "with_replacement", "message"),
    [
        # comb(9 + 7, 8) = 12870 of 9 samples, comb(7 + 7, 8) = 3003 of 7; comb(9 + 3, 4) = 495
        (9, 8, 8, True, "12870 micro-batches, more than the 5000.*at most n=7 samples or micro=4"),
        # comb(15, 6) = 5005, comb(14, 6) = 3003, comb(15, 3) = 455
        (15, 6, 6, False, "5005 micro-batches.*at most n=14 samples or micro=3$"),
    ],
)
def test_too_many_micro_batches(n, batch, micro, with_replacement, message):
    _, problem = polynomials(n)
    sizes = {"batch": batch, "micro": micro, "replace": with_replacement}
    with pytest.raises(ValueError, match=message):
        made(usam, problem, **sizes)


def test_kinks_of_the_loss():
    def loss(x, a):
        return jnp.sum(jax.nn.relu(a * x))

    problem = sdesam.FiniteSum(loss, RANDOM.normal(size=(4, 2)), np.ones(2))
    for order in ((2, 2), (2, 3), (1, 3)):
        with pytest.raises(ValueError, match=r"not smooth enough.*it contains max"):
            made(usam, problem, loss, order=order)
    made(usam, problem, loss, order=(1, 2))


def test_a_vanishing_gradient_at_eps_0():
    """One micro-batch whose gradient vanishes at the start is named."""

    def loss(x, a):
        return a * jnp.sum(x**2) / 2 + (1 - a) * jnp.sum(jnp.sin(x))

    problem = sdesam.FiniteSum(loss, np.array([0.5, 0.2, 1.0]), np.zeros(2))

    def step(x, s, rho):
        g = gradient(loss)(x, s)
        return gradient(loss)(x + rho * g / jnp.linalg.norm(g), s)

    with pytest.raises(ValueError, match=r"not finite for the micro-batch \[2\].*eps > 0"):
        sdesam.SDE.from_step(step, problem, lr=0.1, rho=0.1)


def test_an_unknown_covariance_is_refused():
    _, problem = polynomials()
    with pytest.raises(ValueError, match="use replace=True, or one micro-batch, micro=batch"):
        made(normalised_descent, problem, replace=False)


def test_an_expectation_that_is_not_listed_is_refused():
    _, problem = polynomials()
    sde = made(penalty, problem, expectation="sampled", micro_batches=8)
    with pytest.raises(ValueError, match="draws 8 fresh micro-batches a step"):
        sde.drift(problem.x0)
    with pytest.raises(ValueError, match="use step_drift or step_noise with a key"):
        sde.covariance(problem.x0)
    leading = made(penalty, problem, order=(1, 2), expectation="sampled", micro_batches=8)
    # at order (1, 2) the noise is that of rho = 0, and exact
    np.testing.assert_allclose(
        leading.covariance(problem.x0),
        made(penalty, problem, order=(1, 2)).covariance(problem.x0),
        **CLOSE,
    )
