"""The coupling keeps both laws, and lessens the variance; its differences agree with independent
runs and exact moments.
"""

from itertools import product
from math import factorial, prod, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import sdesam
from sdesam.sde import stepping
from sdesam.verify.coupling import (
    _indices,
    _PairStep,
    _statistics,
    counts_and_weights,
    coupled,
)
from sdesam.verify.exact.float64 import drift
from sdesam.verify.exact.quadratic import Quadratic

DRAWS = 20_000
# entries of sample covariances, two-sided: 6e-7 each, below 2e-5 for the at most 36 entries of a
# test
SIGMAS = 5.0
# means: 7e-6 each, two-sided, normal; below 2e-4 for all that this file compares
MEANS = 4.5
# chi-square tests: false alarm each
CHANCE = 1e-5

RUNS, STEPS = 2000, 20
TORUS = sdesam.problems.torus(dim=2, samples=4)


def pair(problem, micro=2, variant="m-usam", lr=0.1, rho=0.1, batch=4, order=(2, 3), without=None):
    equation = sdesam.derive(variant, order)
    numbers = {
        "lr": lr,
        "rho": None if variant == "sgd" else rho,
        "batch": batch,
        "micro": None if variant == "sgd" else micro,
    }
    bound = (equation.without(without) if without else equation).bind(problem, **numbers)
    return bound, sdesam.Chain(variant, problem, **numbers)


def draws(sde, chain, count=DRAWS):
    step = _PairStep(chain.kernel, sde.kernel, chain.lr)
    drawn = jax.jit(jax.vmap(lambda key: step.draw(key, jnp.float32)))(
        jax.random.split(jax.random.key(3), count)
    )
    return [np.asarray(a) for a in drawn]


def outcomes(n, m):
    """All count vectors and their multinomial probabilities."""
    vectors = np.array([v for v in product(range(m + 1), repeat=n) if sum(v) == m])
    return vectors, np.array(
        [factorial(m) / prod(map(factorial, v)) / n**m for v in vectors.tolist()]
    )


def chi_square(counts, vectors, chance):
    codes = (vectors.max() + 1) ** np.arange(vectors.shape[1])
    seen = np.array([np.sum(counts @ codes == vector @ codes) for vector in vectors])
    assert seen.sum() == len(counts)
    return stats.chisquare(seen, len(counts) * chance).pvalue


@pytest.mark.parametrize(("n", "m", "batch"), [(3, 2, 4), (4, 4, 4), (5, 1, 2), (1, 3, 3)])
def test_indices_are_multinomial(n, m, batch):
    problem = sdesam.problems.torus(dim=1, samples=n)
    indices, _ = draws(*pair(problem, micro=m, batch=batch))
    assert indices.shape == (DRAWS, batch // m, m)
    assert indices.min() >= 0
    assert indices.max() < n
    counts = (indices[..., None] == np.arange(n)).sum(axis=2)
    vectors, chance = outcomes(n, m)
    if n > 1:
        assert chi_square(counts.reshape(-1, n), vectors, chance) > CHANCE
        # each mini-batch too: its micro-batches are independent
        assert chi_square(counts.sum(axis=1), *outcomes(n, batch)) > CHANCE
        skewed = chance * (1 + 0.1 * vectors[:, 0])
        assert chi_square(counts.reshape(-1, n), vectors, skewed / skewed.sum()) < CHANCE, (
            "the test can tell"
        )


def test_counts_of_large_micro_batches_are_binomial():
    """(1/2)^256 is no float32 number: probabilities must not underflow."""
    n, m, groups = 2, 256, 4_000
    counts, _ = counts_and_weights(jax.random.normal(jax.random.key(0), (groups, n)), m)
    counts = np.asarray(counts)
    assert np.all(counts.sum(axis=1) == m)
    edges = np.array([-1, 112, 120, 124, 128, 132, 136, 144, m])
    seen = np.histogram(counts[:, 0], edges + 0.5)[0]
    assert stats.chisquare(seen, groups * np.diff(stats.binom.cdf(edges, m, 1 / n))).pvalue > CHANCE


def test_indices_list_each_sample_as_often_as_counted():
    assert _indices(jnp.array([[0, 2, 0, 1], [3, 0, 0, 0]]), 3).tolist() == [[1, 1, 3], [0, 0, 0]]


@pytest.mark.parametrize(("micro", "batch"), [(4, 4), (2, 6), (1, 3)])
def test_xi_has_the_centred_covariance(micro, batch):
    n = 4
    _, xi = draws(*pair(sdesam.problems.torus(dim=1, samples=n), micro=micro, batch=batch))
    assert np.abs(xi.sum(axis=1)).max() < 1e-5
    true = np.eye(n) - 1 / n
    error = np.sqrt((np.outer(np.diag(true), np.diag(true)) + true**2) / DRAWS)
    found = xi.T.astype(float) @ xi / DRAWS
    assert np.all(abs(found - true) < SIGMAS * error)
    assert not np.all(abs(1.1 * found - true) < SIGMAS * error), "the test can tell"
    # Gaussian, not the counts in disguise
    assert stats.kstest(xi[:, 0] / sqrt(1 - 1 / n), "norm").pvalue > CHANCE


def test_counts_and_weights_go_together():
    n, m = 4, 4
    counts, weights = (
        np.asarray(a, float)
        for a in counts_and_weights(jax.random.normal(jax.random.key(1), (DRAWS, n)), m)
    )
    true = m / n * (np.eye(n) - 1 / n)
    error = np.sqrt((np.outer(np.diag(true), np.diag(true)) + true**2) / DRAWS)
    assert np.all(abs(weights.T @ weights / DRAWS - true) < SIGMAS * error)
    for k in range(n):
        assert np.corrcoef(counts[:, k], weights[:, k])[0, 1] > 0.5


class Deterministic:
    """`B(x) = -x^3`, `A(x) xi` of the first two normals, whatever the key; it notes the keys."""

    def __init__(self):
        self.keys = []

    def note(self, key):
        self.keys.append(tuple(jax.random.key_data(key).tolist()))

    def step_drift(self, x, key):
        self.note(key)
        return -(x**3)

    def step_noise(self, x, xi, key):
        self.note(key)
        return jnp.stack([xi[0] * x[0], xi[1] + x[0] * xi[0]])


def test_the_sde_of_a_pair_makes_a_step_of_heun():
    """The scheme of `simulate` with the pair's own normal vector: predictor, corrector and sizes;
    no two evaluations share a key.
    """
    _, chain = pair(TORUS)
    kernel, key, lr = Deterministic(), jax.random.key(8), 0.3
    step, x = _PairStep(chain.kernel, kernel, lr), jnp.array([0.7, -1.2])
    _, moved = step((TORUS.x0, x), key, None)
    _, xi = step.draw(jax.random.split(key, 3)[0], jnp.float32)
    wanted = stepping.Heun(Deterministic(), lr)(x, key, xi)
    np.testing.assert_allclose(moved, wanted, rtol=1e-6)
    assert abs(moved - x).max() > 0.1
    assert len(kernel.keys) == len(set(kernel.keys)) == 3


def test_statistics_of_pairs_by_hand():
    """Values of chain and SDE in five runs at one time, one of which is not finite: four
    differences, two of each sign.
    """
    values = np.array([[1.0, 3.0], [2.0, 3.0], [4.0, 4.0], [5.0, 6.0], [np.nan, 7.0]])[:, None]
    mean, stderr, reduction, lost = _statistics(values)
    difference = np.array([2.0, 1.0, 0.0, 1.0])
    assert mean.tolist() == [1.0]
    assert lost.tolist() == [1]
    # sums of squares 2, 10 and 6, over 3
    assert difference.var(ddof=1) == pytest.approx(2 / 3)
    np.testing.assert_allclose(stderr, np.sqrt(2 / 3 / 4))
    np.testing.assert_allclose(reduction, (10 / 3 + 6 / 3) / (2 / 3))


def test_differences_agree_with_independent_runs():
    names = ["loss", "grad_norm2"]
    sde, chain = pair(TORUS, lr=0.3, rho=0.3, order=(1, 2))
    together = coupled(sde, chain, jax.random.key(0), RUNS, STEPS, names)
    ours = sdesam.simulate(sde, jax.random.key(1), RUNS, STEPS * 0.3, 0.3, "heun", observe=names)
    theirs = sdesam.train(chain, jax.random.key(2), RUNS, STEPS, observe=names)
    np.testing.assert_allclose(together.time, theirs.time)
    for name in names:
        apart = (ours.mean[name] - theirs.mean[name])[1:]
        error = np.sqrt(
            ours.stderr[name] ** 2 + theirs.stderr[name] ** 2 + together.stderr[name] ** 2
        )[1:]
        assert np.all(abs(together.difference[name][1:] - apart) < MEANS * error)
        # what is gained over those runs is what is said to be gained, up to the noise of variances
        # of 2000 runs, sqrt(2/2000) each
        gain = (ours.stderr[name] ** 2 + theirs.stderr[name] ** 2)[1:] / together.stderr[name][
            1:
        ] ** 2
        np.testing.assert_allclose(together.reduction[name][1:], gain, rtol=0.3)


@pytest.mark.parametrize("variant", ["m-usam", "sgd"])
def test_variance_is_reduced(variant):
    """The measured reductions are 4.3 to 4.8 at `m = 2` and 8.2 to 9.1 for SGD; with the wrong sign
    of `xi` they are 0.53.
    """
    out = coupled(
        *pair(TORUS, variant=variant, order=(1, 2)), jax.random.key(0), RUNS, STEPS, ["trace_cov"]
    )
    assert not out.diverged
    assert np.isnan(out.reduction["trace_cov"][0])
    assert out.difference["trace_cov"][0] == out.stderr["trace_cov"][0] == 0
    assert np.all(out.reduction["trace_cov"][1:] > (3 if variant == "m-usam" else 6))


def heun_mean(sde, problem, steps, lr):
    """Mean of the Heun scheme after `steps` steps, for an affine drift, float64."""
    points = np.vstack([np.zeros(problem.dim), np.eye(problem.dim)])
    values = drift(sde, points)
    J, c = (values[1:] - values[0]).T, values[0]
    x = np.asarray(problem.x0, float)
    for _ in range(steps):
        b = J @ x + c
        x = x + lr / 2 * (b + J @ (x + lr * b) + c)
    return x


def test_differences_agree_with_exact_moments():
    base = sdesam.problems.quadratic(dim=2, samples=6)
    names = {"x0": lambda x: x[0], "x1": lambda x: x[1], "square": lambda x: x[0] ** 2}
    problem = sdesam.FiniteSum(base.sample_loss, base.data, base.x0, observables=names)
    lr, steps, runs = 0.1, 10, 4000
    sde, chain = pair(problem, lr=lr, rho=0.2)
    exact = Quadratic(problem, steps * lr)
    chain_moments, sde_moments = exact.chain(chain), exact.sde(sde)
    # how far Heun itself is from the SDE: at most 0.01 here, of order lr^2
    heun = heun_mean(sde, problem, steps, lr)
    assert np.all(abs(heun - sde_moments[:2]) < lr**2)

    def gaps(sde):
        out = coupled(sde, chain, jax.random.key(5), runs, steps, list(names))
        mean = np.array([out.difference[name][-1] for name in names])
        return mean, np.array([out.stderr[name][-1] for name in names])

    mean, error = gaps(sde)
    assert np.all(abs(mean[:2] - (heun - chain_moments[:2])) < MEANS * error[:2])
    true = (sde_moments - chain_moments)[:3]  # of x0, x1 and x0^2
    assert np.all(abs(mean - true) < MEANS * error + 2 * lr**2)
    mean, error = gaps(pair(problem, lr=lr, rho=0.2, without="rho^1")[0])
    assert np.any(abs(mean - true) > MEANS * error + 2 * lr**2), "the test can tell"


def test_the_same_key_gives_the_same_runs():
    sde, chain = pair(TORUS, variant="sgd", order=(1, 2))
    one = coupled(sde, chain, jax.random.key(0), RUNS, STEPS, "trace_cov")
    other = coupled(sde, chain, jax.random.key(0), RUNS, STEPS, ["trace_cov"], chunk=700)
    np.testing.assert_allclose(
        one.difference["trace_cov"], other.difference["trace_cov"], rtol=1e-4, atol=1e-7
    )
    assert np.all(
        one.difference["trace_cov"][1:]
        != coupled(sde, chain, jax.random.key(1), RUNS, STEPS, "trace_cov").difference["trace_cov"][
            1:
        ]
    )
    assert one.config["method"] == "heun"
    assert one.config["paths"] == RUNS
    assert one.provenance["versions"]


def test_diverged_runs_are_left_out():
    def runaway(x, a):
        return -(x**4) * a

    problem = sdesam.FiniteSum(runaway, jnp.array([0.0, 1.0]), jnp.array(0.5))
    out = coupled(
        *pair(problem, variant="sgd", lr=0.4, batch=1), jax.random.key(0), 100, 10, ["loss"]
    )
    assert 0 < out.diverged.count < 99
    assert np.all(np.isfinite(out.difference["loss"]))
    out = coupled(
        *pair(problem, variant="sgd", lr=3.0, batch=1), jax.random.key(0), 100, 60, ["loss"]
    )
    assert out.diverged.count == 100
    assert np.all(np.isnan(out.difference["loss"]))
    assert np.all(np.isnan(out.stderr["loss"]))


def test_bad_input_is_refused():
    problem = sdesam.problems.torus(dim=1, samples=4)
    sde, chain = pair(problem)
    key = jax.random.key(0)
    setting = {"lr": 0.1, "rho": 0.1, "batch": 4, "micro": 2}
    without = sdesam.derive("m-usam", replace=False).bind(problem, **setting)
    with pytest.raises(ValueError, match="only with replacement"):
        coupled(without, sdesam.Chain("m-usam", problem, replace=False, **setting), key, 4, 4)
    with pytest.raises(ValueError, match=r"differ in lr \(0.1 and 0.2\), micro \(2 and 4\)"):
        coupled(sde, pair(problem, lr=0.2, micro=4)[1], key, 4, 4)
    with pytest.raises(ValueError, match=r"differ in replace \(True and False\)"):
        coupled(sde, sdesam.Chain("m-usam", problem, replace=False, **setting), key, 4, 4)
    with pytest.raises(ValueError, match="not the chain's"):
        coupled(sde, pair(sdesam.problems.torus(dim=1, samples=4))[1], key, 4, 4)
    with pytest.raises(ValueError, match="problem is none"):
        coupled(sdesam.SDE(lambda x: -x, lambda x, xi: xi, (1,), problem.x0), chain, key, 4, 4)
    with pytest.raises(ValueError, match="runs=1: it must be at least 2"):
        coupled(sde, chain, key, 1, 4)
    with pytest.raises(ValueError, match="steps=0"):
        coupled(sde, chain, key, 4, 0)
    with pytest.raises(TypeError, match="random key"):
        coupled(sde, chain, 0, 4, 4)
    with pytest.raises(ValueError, match="observable"):
        coupled(sde, chain, key, 4, 4, ["los"])


def test_values_that_are_not_finite_leave_their_own_means_alone():
    values = np.random.default_rng(0).normal(size=(9, 2, 2, 3))
    values[4, 1, 0, 2] = np.nan  # of the optimizer
    values[6, 1, 1, 2] = np.inf  # of the SDE
    mean, stderr, reduction, lost = _statistics(values)
    assert lost.tolist() == [[0, 0, 0], [0, 0, 2]]
    for time in (0, 1):
        for k in range(3):
            chain, sde = values[:, time, :, k][np.isfinite(values[:, time, :, k]).all(axis=1)].T
            np.testing.assert_allclose(mean[time, k], np.mean(sde - chain))
            np.testing.assert_allclose(
                stderr[time, k], np.std(sde - chain, ddof=1) / np.sqrt(len(sde))
            )
            np.testing.assert_allclose(
                reduction[time, k], (np.var(sde) + np.var(chain)) / np.var(sde - chain)
            )
    values[1:, 1, 0, 0] = np.nan
    mean, stderr, _, _ = _statistics(values)
    assert np.isfinite(mean[1, 0]), "of the one pair that is left"
    assert np.isnan(stderr[1, 0])
    values[0, 1, 0, 0] = np.nan
    assert np.isnan(_statistics(values)[0][1, 0])
