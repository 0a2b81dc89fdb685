"""RW-SAM's norm estimate and weights: moments against closed forms and listings, the step against
the formula written out in numpy.
"""

from itertools import combinations_with_replacement, product
from math import factorial, gamma

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sdesam
from sdesam.optim.kernel import check_delta, direction, estimated_norms, gibbs, inverse_norm
from sdesam.variants import NormEstimate
from tests.brute_force import Polynomials
from tests.sde.test_enumeration import polynomial_loss

G = np.random.default_rng(8).normal(size=(3, 5))
"""Gradients of three samples; their losses are linear, so that the difference quotient is exact."""
DRAWS = 20_000


def linear(x):
    return jnp.asarray(G) @ x


def estimates(norms, draws=DRAWS):
    """Independent estimates of the three norms, shape `(draws, 3)`."""
    with jax.enable_x64(True):
        x = jnp.ones(5)
        keys = jax.random.split(jax.random.key(3), draws)
        return np.asarray(
            jax.jit(jax.vmap(lambda key: estimated_norms(norms, linear, x, linear(x), key)))(keys)
        )


def closed_form(law, directions, square, g):
    """Mean and variance of `mean_k (g.z_k)^2`, or of its root, not from the package."""
    size = g @ g
    if square:
        kurtosis = {"rademacher": 1, "gaussian": 3}[law]
        return size, (2 * size**2 + (kurtosis - 3) * np.sum(g**4)) / directions
    if law == "gaussian":  # a chi distribution
        mean = np.sqrt(2 / directions * size) * gamma((directions + 1) / 2) / gamma(directions / 2)
        return mean, size - mean**2
    # g.z takes 2^5 values, in pairs +-: list the multisets of squares
    values = np.array([(g @ z) ** 2 for z in product((-1, 1), repeat=4 + 1) if z[0] == 1])
    mean = 0.0
    for picked in combinations_with_replacement(range(len(values)), directions):
        orders = factorial(directions) / np.prod([factorial(picked.count(k)) for k in set(picked)])
        mean += orders / len(values) ** directions * np.sqrt(np.mean(values[list(picked)]))
    return mean, size - mean**2


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_bias_and_variance_are_the_closed_forms(law, directions, square):
    """Within 4 standard errors: 6e-5 each, 48 comparisons."""
    found = estimates(NormEstimate(law, directions, square))
    for i, g in enumerate(G):
        mean, variance = closed_form(law, directions, square, g)
        away = found[:, i] - found[:, i].mean()
        spread = np.sqrt(np.mean(away**4) - np.mean(away**2) ** 2)
        assert abs(found[:, i].mean() - mean) < 4 * np.sqrt(variance / DRAWS)
        assert abs(np.mean(away**2) - variance) < 4 * spread / np.sqrt(DRAWS)
        if not square:  # controls: that it is unbiased, and the bias of the other law
            assert mean < 0.98 * np.linalg.norm(g)
            assert abs(found[:, i].mean() - np.linalg.norm(g)) > 8 * np.sqrt(variance / DRAWS)
        else:
            other = closed_form(
                {"rademacher": "gaussian", "gaussian": "rademacher"}[law], directions, square, g
            )[1]
            assert abs(np.mean(away**2) - other) > 8 * spread / np.sqrt(DRAWS)


def test_estimates_of_one_step_share_their_directions():
    """One z for all samples of the batch: their estimates are functions of it."""
    with jax.enable_x64(True):
        x, key = jnp.ones(5), jax.random.key(0)
        values = np.asarray(estimated_norms(NormEstimate(), linear, x, linear(x), key))
    signs = [np.array(z) for z in product((-1, 1), repeat=5)]
    assert min(abs(abs(G @ z) - values).max() for z in signs) < 1e-9


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_entries_of_a_direction_are_independent(law):
    """Of all leaves together: mean 0 and covariance I. 1081 products within 5.5 standard errors:
    5e-5.
    """
    x, draws = (
        {
            "a": np.zeros((5, 7), np.float32),
            "b": np.zeros(5, np.float32),
            "c": np.zeros((), np.float32),
            "d": np.zeros(5, np.float32),
        },
        4000,
    )
    keys = jax.random.split(jax.random.key(9), draws)
    z = jax.jit(jax.vmap(lambda key: direction(NormEstimate(law), x, key)))(keys)
    z = np.concatenate(
        [np.asarray(leaf, float).reshape(draws, -1) for leaf in jax.tree.leaves(z)], axis=1
    )
    assert z.shape[1] == 46
    assert abs(z.mean(axis=0)).max() * np.sqrt(draws) < 5
    products = z.T @ z / draws - np.eye(46)
    spread = np.sqrt(1 + np.eye(46)) if law == "gaussian" else 1.0
    assert abs(products / spread).max() * np.sqrt(draws) < 5.5


def test_directions_of_a_step_have_a_key_of_their_own():
    chain = sdesam.Chain(
        "rw-sam", sdesam.problems.torus(samples=5), lr=0.1, rho=0.1, batch=4, lam=1.0
    )
    key = jax.random.key(7)
    assert (
        jax.random.key_data(chain.kernel.direction_key(key)) != jax.random.key_data(key)
    ).any(), "batches are drawn with that one"
    assert (
        sdesam.Chain("sam", chain.problem, lr=0.1, rho=0.1, batch=4).kernel.direction_key(key)
        is None
    )


@pytest.mark.parametrize("square", [False, True])
def test_exact_norms(square):
    with jax.enable_x64(True):
        x = jnp.ones(5)
        found = estimated_norms(NormEstimate("exact", square=square), linear, x, linear(x), None)
        np.testing.assert_allclose(
            found, np.linalg.norm(G, axis=1) ** (2 if square else 1), rtol=1e-14
        )


def test_the_error_of_the_difference_quotient_is_of_order_delta():
    losses, x = Polynomials.random(4, 2, seed=4), np.array([0.3, -0.2])

    def each(y):
        return jax.vmap(polynomial_loss, (None, 0))(y, vars(losses))

    with jax.enable_x64(True):
        key = jax.random.key(0)
        deltas = (1e-2, 1e-3, 1e-4, 1e-6)
        found = [
            np.asarray(
                estimated_norms(
                    NormEstimate(delta=delta), each, jnp.asarray(x), each(jnp.asarray(x)), key
                )
            )
            for delta in deltas
        ]
    errors = [abs(one - found[-1]).max() for one in found[:-1]]
    assert 9 < errors[0] / errors[1] < 11
    assert 9 < errors[1] / errors[2] < 11


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gibbs_weights(scale):
    with jax.enable_x64(True):
        nu, lam = scale * np.array([0.3, 1.7, 1.1, 0.3]), 2.5
        p = np.asarray(gibbs(jnp.asarray(nu), lam))
        expected = np.exp(lam * (nu - nu.max()))
        np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(gibbs(jnp.asarray(nu), 0.0), 0.25)


@pytest.mark.parametrize("lam", [1e10, 1e38, 1e300])
def test_a_huge_lambda_follows_the_largest(lam):
    """float32 overflows at 3.4e38, and 1e38 times an estimate of 20 does: the limit is all weight
    on the largest, shared among equals.
    """
    nu = np.array([1.0, 20.0, 3.0], np.float32)
    within = min(lam, float(np.finfo(np.float32).max))  # what the optimizers make of it
    np.testing.assert_array_equal(gibbs(jnp.asarray(nu), within), [0, 1, 0])
    np.testing.assert_array_equal(gibbs(jnp.asarray(nu[[0, 1, 1, 2]]), within), [0, 0.5, 0.5, 0])
    problem = sdesam.FiniteSum(
        polynomial_loss, vars(Polynomials.random(5, 2, seed=4)), np.array([0.3, -0.2])
    )
    numbers = {"lr": 0.1, "rho": 0.7, "batch": 2, "norms": NormEstimate("exact")}
    found, limit = (sdesam.Chain("rw-sam", problem, lam=value, **numbers) for value in (lam, 1e4))
    indices = np.array([[0, 3]])
    np.testing.assert_allclose(
        found.direction(problem.x0, indices), limit.direction(problem.x0, indices), rtol=1e-5
    )
    sdes = [
        sdesam.derive("rw-sam", (1, 2)).bind(problem, expectation="exact", lam=value, **numbers)
        for value in (lam, 1e4)
    ]
    np.testing.assert_allclose(*(sde.drift(problem.x0) for sde in sdes), rtol=1e-5)


@pytest.mark.parametrize("lam", [np.inf, np.nan])
def test_a_lambda_that_is_no_number_is_refused(lam):
    problem = sdesam.problems.torus(dim=2, samples=3)
    equation, theorem = (
        sdesam.derive("rw-sam"),
        sdesam.Hypothesis(drift=lambda p, x, lr, rho, batch, micro: -p.grad(x)),
    )
    numbers = {"batch": 2, "lam": lam, "norms": NormEstimate("exact")}
    for make in (
        lambda: sdesam.Chain("rw-sam", problem, lr=0.1, rho=0.1, **numbers),
        lambda: equation.bind(problem, lr=0.1, rho=0.1, **numbers),
        lambda: sdesam.optim.rw_sam(linear, optax.sgd(0.1), 0.1, lam),
        lambda: sdesam.effective_micro_batch(problem, problem.x0, key=jax.random.key(0), **numbers),
        lambda: sdesam.signature(equation, problem, eps=0.2, **numbers),
        lambda: sdesam.check(theorem, "rw-sam", problem, lam=lam),
        lambda: sdesam.compare("rw-sam", problem, lr=0.1, rho=0.1, steps=2, **numbers),
    ):
        with pytest.raises(
            ValueError, match=r"lam=(inf|nan): it must be a finite number of at least 0"
        ):
            make()


def test_a_gradient_that_is_no_number_is_not_taken_for_one_that_vanishes():
    """Where the gradient of the data set is NaN, DNSAM divides by it: the step must be NaN, so that
    divergence is seen, and not that of SGD.
    """
    for bad in (np.nan, np.inf):
        assert np.isnan(inverse_norm({"a": jnp.array([1.0, bad]), "b": jnp.zeros(3)}, 0.1))
    np.testing.assert_array_equal(inverse_norm(jnp.zeros(2), 0.0), 0)
    # the loss of sample 1 is a float32 number, and its gradient is too large for one
    problem = sdesam.FiniteSum(
        lambda x, a: jnp.sum(a * x**2),
        np.array([1.0, 2e38, 2.0], np.float32),
        np.ones(1, np.float32),
    )
    chain = sdesam.Chain("dnsam", problem, lr=0.1, rho=0.1, batch=2)
    assert np.isnan(chain.direction(problem.x0, np.array([[0, 2]]))).all(), (
        "sample 1 is in no batch, but in the data set"
    )
    sgd = sdesam.Chain("sgd", problem, lr=0.1, batch=2)
    assert np.isfinite(sgd.direction(problem.x0, np.array([[0, 2]]))).all(), "control"
    with pytest.raises(
        ValueError,
        match=(
            r"the loss at the start x0 is finite, but its gradient is inf \(that of sample 1 is"
            r" not\)"
        ),
    ):
        sdesam.train(chain, jax.random.key(0), runs=2, steps=2)
    ahead = estimated_norms(
        NormEstimate(),
        lambda x: jnp.array([1.0, np.nan]),
        jnp.ones(2),
        jnp.ones(2),
        jax.random.key(0),
    )
    np.testing.assert_array_equal(ahead, [0, np.nan])


@pytest.mark.parametrize("square", [False, True])
def test_the_step_is_the_formula(square):
    """`grad f_gamma(x + rho v / sqrt(|v|^2 + eps^2))`, `v = sum_i p_i g_i`: the descent gradient
    has equal weights.
    """
    losses, x = Polynomials.random(5, 2, seed=4), np.array([0.3, -0.2])
    batch, rho, eps, lam = [0, 1, 1, 4], 0.7, 0.2, 0.8
    g = losses.g(x)[batch]
    nu = np.linalg.norm(g, axis=1) ** (2 if square else 1)
    p = np.exp(lam * nu) / np.exp(lam * nu).sum()

    def moved(p):
        v = p @ g
        return losses.g(x + rho * v / np.sqrt(v @ v + eps**2))[batch]

    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(polynomial_loss, vars(losses), x)
        numbers = {"lr": 0.1, "rho": rho, "batch": 4, "eps": eps}
        chain = sdesam.Chain(
            "rw-sam", problem, lam=lam, norms=NormEstimate("exact", square=square), **numbers
        )
        found = np.asarray(chain.direction(x, np.array([batch])))
        np.testing.assert_allclose(found, moved(p).mean(0), rtol=1e-12)
        assert abs(found - p @ moved(p)).max() > 1e-2, "control: weights in the descent gradient"
        assert abs(found - moved(np.full(4, 0.25)).mean(0)).max() > 1e-2, "control: no weights"
        plain = sdesam.Chain("rw-sam", problem, lam=0.0, **numbers).direction(
            x, np.array([batch]), jax.random.key(0)
        )
        np.testing.assert_allclose(
            plain,
            sdesam.Chain("sam", problem, **numbers).direction(x, np.array([batch])),
            rtol=1e-12,
        )


def test_a_step_below_rounding_is_refused():
    with pytest.raises(ValueError, match="delta=1e-08 is below the rounding level"):
        check_delta(NormEstimate(delta=1e-8), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="give a key, or norms"):
        sdesam.Chain(
            "rw-sam", sdesam.problems.torus(), lr=0.1, rho=0.1, lam=1.0, batch=2
        ).direction(np.zeros(2, np.float32), np.array([[0, 1]]))


def test_a_step_that_the_losses_or_the_parameters_drown_is_refused():
    """All of these deltas are above the rounding level itself, which is all that was looked at
    once; what comes out of them is rounding.
    """

    def error(problem, delta):
        """Of the estimate along one direction, relative, against the same in float64."""
        found = {}
        for wide in (False, True):
            with jax.enable_x64(wide):
                x, data = (
                    jax.tree.map(lambda leaf: jnp.asarray(leaf, float), part)
                    for part in (problem.x0, problem.data)
                )

                def losses(y, data=data):
                    return jax.vmap(problem.sample_loss, (None, 0))(y, data)

                found[wide] = np.asarray(
                    estimated_norms(
                        NormEstimate(delta=delta), losses, x, losses(x), jax.random.key(0)
                    )
                )
        return np.linalg.norm(found[False] - found[True]) / np.linalg.norm(found[True])

    def raised(x, a):
        return 1e3 + jnp.sum(jnp.sin(a * x))

    data = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    far, high = (
        sdesam.FiniteSum(lambda x, a: a @ jnp.sin(x), data, np.full(40, 1e5, np.float32)),
        sdesam.FiniteSum(raised, data, np.zeros(40, np.float32)),
    )
    for problem, delta, message in [
        (
            high,
            3e-6,
            (
                "delta=3e-06: at the start it changes a loss by about .*, which is below the"
                " rounding 0.0001 of losses of 1e.03"
            ),
        ),
        (
            far,
            1e-3,
            "delta=0.001 is below the rounding 0.01 of parameters as large as 1e.05 in float32",
        ),
    ]:
        check_delta(NormEstimate(delta=delta), problem.x0)
        assert error(problem, delta) > 0.5
        norms, numbers = NormEstimate(delta=delta), {"batch": 2, "lam": 1.0}
        for make in (
            lambda p=problem, e=norms, n=numbers: sdesam.Chain(
                "rw-sam", p, lr=0.1, rho=0.1, norms=e, **n
            ),
            lambda p=problem, e=norms, n=numbers: sdesam.derive("rw-sam").bind(
                p, lr=0.1, rho=0.1, norms=e, **n
            ),
            lambda p=problem, e=norms, n=numbers: sdesam.effective_micro_batch(
                p, p.x0, key=jax.random.key(0), norms=e, **n
            ),
        ):
            with pytest.raises(ValueError, match=message):
                make()
    with pytest.raises(ValueError, match=r"below the rounding 0.01 of parameters"):
        sdesam.optim.rw_sam(linear, optax.sgd(0.1), 0.1, 1.0).init(far.x0)
    # controls: the default on the one, exact norms on the other
    assert error(high, 0.1) < 0.05
    sdesam.Chain("rw-sam", high, lr=0.1, rho=0.1, norms=NormEstimate(delta=0.1), **numbers)
    sdesam.Chain("rw-sam", far, lr=0.1, rho=0.1, norms=NormEstimate("exact"), **numbers)

    @jax.jit
    def compiled(x):
        return sdesam.Chain(
            "rw-sam", high, lr=0.1, rho=0.1, norms=NormEstimate(delta=3e-6), **numbers
        ).step(x, jax.random.key(0))

    with pytest.raises(ValueError, match="at the start it changes a loss by about"):
        compiled(high.x0)
    flat = sdesam.FiniteSum(lambda x, a: jnp.sum(a * x**2), data, np.zeros(40, np.float32))
    # at a start without gradient nothing can be said
    sdesam.Chain("rw-sam", flat, lr=0.1, rho=0.1, **numbers)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"directions": True}, ValueError), ({"delta": True}, ValueError), ({"square": 1}, TypeError)],
)
def test_truth_values_are_no_numbers(change, error):
    with pytest.raises(error, match=f"{next(iter(change))}=.*: it must be"):
        NormEstimate(**change)
