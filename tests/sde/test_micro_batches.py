"""Fresh micro-batches: what a step draws is unbiased; random directions by listing all signs; sizes
that cannot be.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import sdesam
from sdesam.sampling import list_micro_batches
from sdesam.sde._kernels import FreshBatches
from tests.brute_force import Polynomials
from tests.sde.test_enumeration import polynomial_loss

LOSSES = Polynomials.random(5, 2, seed=21)
PROBLEM = sdesam.FiniteSum(polynomial_loss, vars(LOSSES), np.array([0.3, -0.2]))
DRAWS = 4000


def bound(variant="m-sam", with_replacement=True, order=(2, 3), problem=PROBLEM, **change):
    numbers = {
        "lr": 0.1,
        "rho": 0.3,
        "batch": 4,
        "micro": 2 if variant == "m-sam" else None,
        "eps": 0.2,
        **change,
    }
    return sdesam.derive(variant, order, with_replacement).bind(problem, **numbers)


def z_scores(values, wanted):
    return (values.mean(axis=0) - wanted) / (values.std(axis=0) / np.sqrt(len(values)))


@pytest.mark.slow
@pytest.mark.parametrize("with_replacement", [True, False])
def test_draws_are_unbiased(with_replacement):
    """Drift and noise of a step against the listed expectation: |z| < 5, false alarms 6e-7 per
    component.
    """
    sampled, exact = (
        bound(with_replacement=with_replacement, **kind)
        for kind in ({"micro_batches": 6}, {"expectation": "exact"})
    )
    keys = jax.random.split(jax.random.key(0), DRAWS)
    drifts = np.asarray(jax.vmap(lambda key: sampled.step_drift(PROBLEM.x0, key))(keys))
    xi = jax.random.normal(jax.random.key(1), (5,))
    noises = np.asarray(jax.vmap(lambda key: sampled.step_noise(PROBLEM.x0, xi, key))(keys))
    assert abs(z_scores(drifts, exact.drift(PROBLEM.x0))).max() < 5
    assert abs(z_scores(noises, exact.apply_noise(PROBLEM.x0, xi))).max() < 5
    # controls: the other size of micro-batches, and the other sampling
    assert (
        abs(
            z_scores(
                drifts,
                bound(micro=1, with_replacement=with_replacement, expectation="exact").drift(
                    PROBLEM.x0
                ),
            )
        ).max()
        > 10
    )
    other = bound(with_replacement=not with_replacement, expectation="exact")
    assert abs(z_scores(noises, other.apply_noise(PROBLEM.x0, xi))).max() > 10


@pytest.mark.slow
def test_excess_covariance_falls_with_the_number():
    """The covariance that fresh micro-batches add to the noise falls like 1/(number - 1), which is
    why it is named.
    """

    def excess(count):
        sde = bound(micro_batches=count)
        keys = jax.random.split(jax.random.key(3), DRAWS)
        xi = jax.random.normal(jax.random.key(4), (5,))
        noises = jax.vmap(lambda key: sde.step_noise(PROBLEM.x0, xi, key))(keys)
        return float(jnp.sum(jnp.var(noises, axis=0)))

    # a relative standard error of about 3 % each: the ratio 7 is known to 5 %, and 20 % are four of
    # these
    assert excess(4) / excess(22) == pytest.approx(7, rel=0.2)


def test_a_drawn_noise_is_a_sample_covariance():
    """`sum_i w_i g_i`, and `rho scale` times the covariance, over the micro-batches drawn, of `W_I`
    (n times the mean weight) with `H_I u_I`.
    """
    n, b, m, lr, rho, eps, q = 5, 4, 2, 0.1, 0.3, 0.2, 6
    factor, scale = (n - b) / (b * (n - 1)), m * (n - 1) / (n - m)  # without replacement
    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(polynomial_loss, vars(LOSSES), np.array([0.3, -0.2]))
        numbers = {"lr": lr, "rho": rho, "batch": b, "micro": m, "eps": eps, "micro_batches": q}
        sde = sdesam.derive("m-sam", replace=False).bind(problem, **numbers)
        xi, key, x = (
            np.random.default_rng(3).normal(size=n),
            jax.random.key(2),
            np.asarray(problem.x0),
        )
        found = np.asarray(sde.step_noise(x, xi, key))
        drawn = np.asarray(sde.kernel.draw(key).indices)
    g, H = LOSSES.g(x), LOSSES.H(x)
    w = (xi - xi.mean()) * np.sqrt(lr * factor / n)
    v = g[drawn].mean(axis=1)
    F = np.einsum(
        "qjk,qk->qj",
        H[drawn].mean(axis=1),
        v / np.sqrt(np.sum(v**2, axis=1, keepdims=True) + eps**2),
    )
    W = n * w[drawn].mean(axis=1)
    np.testing.assert_allclose(
        found, w @ g + rho * scale * (W - W.mean()) @ F / (q - 1), rtol=1e-10
    )


def test_draws_are_apart():
    """Batches and directions have keys of their own; by default n/2 are drawn for the noise, an
    eighth of that for a drift.
    """
    draw = FreshBatches(64, 2, 50, True, True)
    batches = draw(jax.random.key(0))
    assert len(np.unique(jax.random.key_data(batches.keys), axis=0)) == 64, (
        "every micro-batch has a direction of its own"
    )
    assert len(np.unique(batches.indices, axis=0)) > 55
    np.testing.assert_allclose(batches.probabilities, 1 / 64)
    np.testing.assert_array_equal(batches.indices, draw(jax.random.key(0)).indices)
    assert (np.asarray(batches.indices) != draw(jax.random.key(1)).indices).any()
    data = np.ones((300, 2), np.float32)
    sde = sdesam.derive("sam").bind(
        sdesam.FiniteSum(lambda x, a: jnp.sum(jnp.cos(a * x)), data, np.ones(2)), 0.1, 0.1, 2
    )
    assert (sde.kernel.draw.count, sde.kernel.draw.for_drift.count) == (150, 18)
    assert sde.config["micro_batches"] == 150
    listed = sdesam.derive("sam").bind(
        sdesam.FiniteSum(lambda x, a: jnp.sum(jnp.cos(a * x)), data[:10], np.ones(2)), 0.1, 0.1, 2
    )
    assert listed.config["micro_batches"] == "all", "55 of them, no more than 64"


def test_subsets_are_uniform():
    drawn = np.asarray(FreshBatches(6000, 3, 5, False, False)(jax.random.key(0)).indices)
    assert all(len(set(row)) == 3 for row in drawn)
    counts = [
        np.sum([set(row) == set(subset) for row in drawn])
        for subset in itertools.combinations(range(5), 3)
    ]
    assert stats.chisquare(counts).pvalue > 1e-6  # the false-alarm rate


@pytest.mark.parametrize(("n", "m"), [(2, 70), (2, 1100), (3, 60)])
def test_chances_of_large_micro_batches(n, m):
    """Against scipy's multinomial: the number of orders exceeds 64 bits at m = 70, and a float at m
    = 1100.
    """
    indices, chance = list_micro_batches(m, n, replace=True)
    counts = (indices[:, :, None] == np.arange(n)).sum(axis=1)
    assert chance.dtype == float
    np.testing.assert_allclose(
        chance, stats.multinomial.pmf(counts, m, np.full(n, 1 / n)), rtol=1e-9, atol=1e-300
    )
    assert chance.sum() == pytest.approx(1, abs=1e-12)
    assert abs(chance - stats.multinomial.pmf(counts, m - 1, np.full(n, 1 / n))).max() > 1e-4, (
        "control: another size"
    )


def test_subsets_are_listed_with_one_chance():
    indices, chance = list_micro_batches(2, 4, replace=False)
    assert sorted(map(tuple, indices.tolist())) == list(itertools.combinations(range(4), 2))
    np.testing.assert_allclose(chance, 1 / 6)


@pytest.mark.slow
def test_an_exact_drift_of_large_micro_batches():
    """Two samples, 1100 of them to a mini-batch: SAM's drift from the binomial law of how often the
    first was drawn.
    """
    losses, x, m, rho = Polynomials.random(2, 2, seed=3), np.array([0.3, -0.2]), 1100, 0.3
    share = np.arange(m + 1) / m
    weights = np.stack([share, 1 - share], axis=1)
    v, H = weights @ losses.g(x), np.einsum("qi,ijk->qjk", weights, losses.H(x))
    bent = np.einsum("qjk,qk->qj", H, v / np.sqrt(np.sum(v**2, axis=1, keepdims=True) + 0.04))
    wanted = -losses.g(x).mean(0) - rho * stats.binom.pmf(np.arange(m + 1), m, 1 / 2) @ bent
    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(polynomial_loss, vars(losses), x)
        sde = sdesam.derive("sam", (1, 2)).bind(problem, 0.1, rho, m, expectation="exact", eps=0.2)
        np.testing.assert_allclose(sde.drift(x), wanted, rtol=1e-10)


@pytest.mark.parametrize(
    ("m", "n", "with_replacement", "message"),
    [
        (16, 256, True, "about 1e25 micro-batches, too many to list"),
        (5, 4, False, "micro=5 exceeds the 4 samples: without replacement choose micro <= 4"),
    ],
)
def test_a_listing_that_cannot_be_is_refused(m, n, with_replacement, message):
    with pytest.raises(ValueError, match=message):
        list_micro_batches(m, n, with_replacement)


def test_random_directions():
    """RW-SAM's drift over all signs of a Rademacher direction in two dimensions, each mini-batch of
    one weighted by hand.
    """
    b, lam, rho, delta = 2, 3.0, 0.3, 1e-2
    x = np.asarray(PROBLEM.x0, float)
    g, H = LOSSES.g(x), LOSSES.H(x)

    def f(i, y):
        cubic = np.einsum("jkl,j,k,l", LOSSES.C[i], y, y, y) / 6
        return LOSSES.a[i] @ y + y @ LOSSES.A[i] @ y / 2 + cubic

    first = []
    for batch in itertools.product(range(5), repeat=b):
        for signs in itertools.product([-1.0, 1.0], repeat=2):
            nu = np.array([abs(f(i, x + delta * np.array(signs)) - f(i, x)) / delta for i in batch])
            p = np.exp(lam * nu) / np.exp(lam * nu).sum()
            v = p @ g[list(batch)]
            first.append(H[list(batch)].mean(0) @ v / np.sqrt(v @ v + 0.04))
    wanted = -g.mean(0) - rho * np.mean(first, axis=0)
    norms = sdesam.NormEstimate(delta=delta)
    sde = sdesam.derive("rw-sam", (1, 2)).bind(
        PROBLEM, 0.1, rho, b, eps=0.2, lam=lam, norms=norms, micro_batches=64
    )
    drifts = np.asarray(
        jax.vmap(lambda key: sde.step_drift(PROBLEM.x0, key))(
            jax.random.split(jax.random.key(5), DRAWS)
        )
    )
    assert abs(z_scores(drifts, wanted)).max() < 5  # 6e-7 per component
    # the control: equal weights
    assert (
        abs(
            z_scores(
                drifts,
                sdesam.derive("sam", (1, 2)).bind(PROBLEM, 0.1, rho, b, eps=0.2).drift(PROBLEM.x0),
            )
        ).max()
        > 10
    )


def test_a_sweep_of_rw_sam_compiles_once():
    """eta, rho, eps and lambda are runtime values where micro-batches are listed, too."""
    traces = 0

    def loss(x, sample):
        nonlocal traces
        traces += 1
        return PROBLEM.sample_loss(x, sample)

    problem = sdesam.FiniteSum(loss, PROBLEM.data, PROBLEM.x0)
    exact = {"order": (1, 2), "norms": sdesam.NormEstimate("exact"), "expectation": "exact"}

    def drift(lam=1.0, **change):
        return np.asarray(
            bound("rw-sam", problem=problem, lam=lam, **exact, **change).drift(PROBLEM.x0)
        )

    start, sde = drift(), bound("rw-sam", problem=problem, lam=1.0, **exact)
    before = traces
    sde.drift(PROBLEM.x0)
    assert traces == before
    for change in ({"lr": 0.2}, {"rho": 0.5}, {"rho": 0}, {"eps": 0.5}, {"lam": 2}, {"lam": 0.0}):
        sde = bound("rw-sam", problem=problem, lam=change.pop("lam", 1.0), **exact, **change)
        before = traces
        # at order (1, 2) a drift has no eta in it
        assert (np.asarray(sde.drift(PROBLEM.x0)) == start).all() == ("lr" in change)
        assert traces == before, change
    sde = bound("rw-sam", problem=problem, lam=1.0, batch=2, **exact)
    before = traces
    sde.drift(PROBLEM.x0)
    assert traces > before, "the count sees a compilation where there is one"


@pytest.mark.slow
def test_rw_sam_without_weights_is_sam():
    norms = sdesam.NormEstimate("exact")
    sde, sam = (
        bound("rw-sam", lam=0.0, norms=norms, expectation="exact"),
        bound("sam", expectation="exact"),
    )
    np.testing.assert_allclose(sde.drift(PROBLEM.x0), sam.drift(PROBLEM.x0), rtol=1e-4)
    np.testing.assert_allclose(sde.covariance(PROBLEM.x0), sam.covariance(PROBLEM.x0), rtol=1e-4)


def test_a_vanishing_gradient_perturbs_nothing():
    """eps = 0 at a point where every gradient vanishes: the step is SGD's, and nothing is NaN."""
    problem = sdesam.FiniteSum(
        lambda x, a: 0.5 * a * jnp.sum(x**2), np.array([1.0, 2.0, 3.0]), np.zeros(2)
    )
    for variant in ("sam", "n-sam", "dnsam", "rw-sam"):
        weights = {"lam": 1.0, "norms": sdesam.NormEstimate("exact")} if variant == "rw-sam" else {}
        sde = sdesam.derive(variant).bind(problem, 0.1, 0.1, 2, **weights)
        np.testing.assert_array_equal(sde.drift(problem.x0), np.zeros(2))
        np.testing.assert_array_equal(sde.covariance(problem.x0), np.zeros((2, 2)))
        chain = sdesam.Chain(variant, problem, 0.1, 0.1, 2, **weights)
        np.testing.assert_array_equal(chain.step(problem.x0, jax.random.key(0)), np.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batches": 1}, "micro_batches=1: it must be at least 2"),
        (
            {"micro_batches": 4, "expectation": "exact"},
            "an exact expectation lists all micro-batches",
        ),
        (
            {"variant": "n-sam", "micro_batches": 4},
            (
                r"n-sam at order \(2, 3\) has no expectation over whole micro-batches, so that none"
                r" are drawn"
            ),
        ),
        (
            {"variant": "m-usam", "eps": 0.0, "micro_batches": 4},
            r"m-usam at order \(2, 3\) has no expectation over whole micro-batches",
        ),
        (
            {"order": (1, 1), "micro_batches": 4},
            r"m-sam at order \(1, 1\) has no expectation over whole micro-batches",
        ),
        (
            {"variant": "m-usam", "micro": 2},
            "m-usam does not normalise its perturbation; leave eps out",
        ),
        ({"eps": -0.1}, "eps=-0.1: it must be a finite number of at least 0"),
        ({"lam": 1.0}, "m-sam has no Gibbs weights; leave lam out, or use rw-sam"),
        ({"variant": "rw-sam"}, "rw-sam needs lam"),
        ({"variant": "rw-sam", "lam": -1.0}, "lam=-1.0: it must be a finite number of at least 0"),
        (
            {"variant": "rw-sam", "lam": 1.0, "expectation": "exact"},
            "the exact expectation over random directions is not known",
        ),
        (
            {"variant": "rw-sam", "lam": 1.0, "norms": sdesam.NormEstimate(delta=1e-9)},
            "delta=1e-09 is below the rounding level 1e-07 of float32",
        ),
        (
            {"variant": "sam", "batch": 40, "expectation": "exact"},
            "135751 micro-batches, more than the 5000 that are listed",
        ),
        (
            {"variant": "sam", "batch": 10**6, "expectation": "exact"},
            "about 1e23 micro-batches, more than the 5000 that are listed",
        ),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        bound(**change)


def test_an_expectation_that_is_not_listed_is_refused():
    sde = bound(micro_batches=8)
    with pytest.raises(
        ValueError,
        match="draws 8 fresh micro-batches a step, so its exact expectation is not known",
    ):
        sde.drift(PROBLEM.x0)
    with pytest.raises(ValueError, match="use step_drift or step_noise with a key"):
        sde.covariance(PROBLEM.x0)
    with pytest.raises(ValueError, match="draws random directions, which are not listed"):
        sdesam.one_step(sdesam.Chain("rw-sam", PROBLEM, 0.1, 0.1, 2, lam=1.0), np.zeros(2))
    quadratic = sdesam.problems.quadratic()
    with pytest.raises(ValueError, match="a step of sam is not affine"):
        sdesam.exact.Quadratic(quadratic, 1.0).chain(sdesam.Chain("sam", quadratic, 0.1, 0.1, 2))
