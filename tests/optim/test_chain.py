"""The step kernel against plain numpy, batch by batch, and its batches against their
distribution.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import sdesam
from tests.brute_force import Polynomials, expansion
from tests.sde.test_enumeration import polynomial_loss

STEPS = [("sgd", 4), ("usam", 4), ("m-usam", 4), ("m-usam", 2), ("m-usam", 1), ("n-usam", 4)]
NORMALISED = [("sam", 4), ("m-sam", 2), ("m-sam", 1), ("n-sam", 4), ("dnsam", 4)]


@pytest.mark.parametrize(
    ("variant", "m", "eps"),
    [*((*step, 0.0) for step in STEPS + NORMALISED), *((*step, 0.3) for step in NORMALISED)],
)
def test_step_of_given_batches(variant, m, eps):
    """A quartic loss makes the step an exact cubic in rho: it equals G_0 + rho G_1 + rho^2 G_2 +
    rho^3 G_3.
    """
    with jax.enable_x64(True):
        x, rho = np.array([0.3, -0.2]), 0.7
        losses = Polynomials.random(5, 2, seed=4, quartic=True)
        problem = sdesam.FiniteSum(polynomial_loss, vars(losses), x)
        micro = m if variant.startswith("m-") else None
        chain = sdesam.Chain(
            variant,
            problem,
            lr=0.1,
            rho=None if variant == "sgd" else rho,
            batch=4,
            micro=micro,
            eps=eps,
        )
        for batch in [(0, 1, 2, 3), (4, 4, 0, 1), (3, 0, 3, 0)]:
            parts = expansion(losses, x, variant, batch, m, eps)
            expected = sum(rho**j * parts[j] for j in range(4))
            np.testing.assert_allclose(
                chain.direction(x, np.array(batch).reshape(-1, m)), expected, rtol=1e-12
            )
        key = jax.random.key(1)
        moved = chain.step(x, key)
        indices = chain.kernel.draw(key)
        np.testing.assert_allclose(moved, x - 0.1 * chain.direction(x, indices), rtol=1e-12)


def network(p, s):
    return jnp.sum((jnp.tanh(s["a"] @ p["U"] + p["b"]) @ p["W"] - s["y"]) ** 2)


@pytest.mark.parametrize(
    ("variant", "m"),
    [("m-usam", 1), ("m-usam", 2), ("m-sam", 1), ("m-sam", 2), ("sam", 4), ("dnsam", 4)],
)
def test_step_of_a_network(variant, m):
    """Against gradients at weights that are moved group by group; the layers are large enough that
    small groups do without these.
    """
    rng = np.random.default_rng(3)
    data = {"a": rng.normal(size=(6, 30)), "y": rng.normal(size=(6, 2))}
    x = {
        "U": rng.normal(size=(30, 28)) / 6,
        "b": rng.normal(size=28),
        "W": rng.normal(size=(28, 2)) / 2,
    }
    batch, rho, eps = np.array([0, 3, 3, 5]), 0.4, 0.1

    def mean(y, members):
        return jnp.mean(
            jnp.stack([network(y, {name: leaf[i] for name, leaf in data.items()}) for i in members])
        )

    def norm(v):
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(v)) + eps**2)

    def by_hand(m):
        total = []
        for members in batch.reshape(-1, m):
            own = jax.grad(mean)(x, members)
            over = (
                1
                if variant == "m-usam"
                else norm(jax.grad(mean)(x, range(6)) if variant == "dnsam" else own)
            )
            total.append(
                jax.grad(mean)(
                    jax.tree.map(lambda leaf, g, over=over: leaf + rho * g / over, x, own), members
                )
            )
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *total)

    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(network, data, x)
        options = {} if variant == "m-usam" else {"eps": eps}
        chain = sdesam.Chain(
            variant,
            problem,
            lr=0.1,
            rho=rho,
            batch=4,
            micro=m if variant.startswith("m-") else None,
            **options,
        )
        found = chain.direction(x, batch.reshape(-1, m))
        # sums of terms of size 10, rounded to 2e-16 of that
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), found, by_hand(m)
        )
        if m < 4:
            assert abs(found["U"] - by_hand(4)["U"]).max() > 1e-3, (
                "the control: another micro-batch"
            )


@pytest.mark.parametrize(
    ("variant", "m", "dtypes"),
    [
        ("m-usam", 1, ("bfloat16", "float32")),
        ("dnsam", 2, ("float32", "float32")),
        ("m-sam", 2, ("bfloat16", "bfloat16")),
    ],
)
def test_precisions_of_a_network(variant, m, dtypes):
    """Matrices and vectors of one precision or of two, with 64 bits turned on too: the step keeps
    each, and is right to its digits.
    """
    rng = np.random.default_rng(3)
    data = {
        "a": rng.normal(size=(6, 30)).astype(np.float32),
        "y": rng.normal(size=(6, 2)).astype(np.float32),
    }
    x = {
        "U": rng.normal(size=(30, 28)) / 6,
        "b": rng.normal(size=28),
        "W": rng.normal(size=(28, 2)) / 2,
    }

    def direction(x):
        batch = 2 if variant == "dnsam" else 4
        chain = sdesam.Chain(
            variant,
            sdesam.FiniteSum(network, data, x),
            lr=0.1,
            rho=0.1,
            batch=batch,
            micro=m if variant.startswith("m-") else None,
        )
        return chain.direction(chain.problem.x0, np.array([0, 3, 3, 5])[:batch].reshape(-1, m))

    with jax.enable_x64(True):
        truth = {name: np.asarray(leaf) for name, leaf in direction(x).items()}
        rounded = {name: jnp.asarray(leaf, dtypes[leaf.ndim == 1]) for name, leaf in x.items()}
        in_64_bits = direction(rounded)
    for found in (in_64_bits, direction(rounded)):
        for name, leaf in found.items():
            assert leaf.dtype == rounded[name].dtype
            scale = abs(truth[name]).max()
            np.testing.assert_allclose(
                np.asarray(leaf, float) / scale,
                truth[name] / scale,
                atol=0.06 if "bfloat16" in dtypes else 1e-5,
            )


def test_a_mean_gradient_that_is_small_beside_its_terms(monkeypatch):
    """Float32, |G| = 2e-5 |g_i|: the sum of the inner products of gradients has no digits left, but
    the perturbation keeps length and direction.
    """
    rng = np.random.default_rng(0)
    W, residuals = rng.normal(size=(256, 256)), rng.normal(size=(16, 256))
    inputs = np.full((16, 256), 1 / 16)  # of length 1, all alike: the Hessian along G is 1
    data = {
        "a": inputs,
        "y": inputs @ W - (residuals - residuals.mean(0) + 2e-5 * rng.normal(size=256)),
    }

    def moved():
        """`rho H u`, of length rho."""

        def loss(p, s):  # a new function is compiled anew
            return 0.5 * jnp.sum((s["a"] @ p["W"] - s["y"]) ** 2)

        chains = [
            sdesam.Chain(
                "sam", sdesam.FiniteSum(loss, data, {"W": W}), 0.1, rho, batch=16, replace=False
            )
            for rho in (0.1, 0.0)
        ]
        there, here = (
            np.asarray(chain.direction(chain.problem.x0, np.arange(16)[None])["W"], float)
            for chain in chains
        )
        return there - here

    def by_inner_products(group):
        (a,), (delta,) = group.inputs, group.deltas
        return jnp.maximum(jnp.sum((a @ a.T) * (delta @ delta.T)), 0) / 16**2

    with jax.enable_x64(True):
        truth = moved()
    assert np.linalg.norm(truth) == pytest.approx(0.1, rel=1e-6)
    # rounding of residuals: 6e-8 of a mean of 2e-5, times a few
    assert np.linalg.norm(moved() - truth) < 3e-3
    monkeypatch.setattr(sdesam.optim.kernel, "squared_norm_of_mean", by_inner_products)
    assert np.linalg.norm(moved() - truth) > 0.01, "the control"


def test_a_vanishing_gradient_of_a_network():
    """eps = 0 and a zero gradient: nothing is perturbed and nothing is NaN; a tiny gradient still
    is normalised.
    """
    data = {"a": np.ones((2, 9)), "y": np.zeros((2, 2))}
    x = {"U": np.ones((9, 7)), "b": np.zeros(7), "W": np.zeros((7, 2))}
    chain = sdesam.Chain(
        "m-sam", sdesam.FiniteSum(network, data, x), lr=0.1, rho=0.1, batch=2, micro=1
    )
    assert not np.concatenate(
        [
            np.ravel(leaf)
            for leaf in jax.tree.leaves(chain.direction(chain.problem.x0, np.array([[0], [1]])))
        ]
    ).any()
    tiny = jax.tree.map(lambda leaf: leaf * np.float32(1e-25), {"a": data["a"], "y": data["y"] + 1})
    x = {"U": np.ones((9, 7)), "b": np.zeros(7), "W": np.ones((7, 2))}
    chain = sdesam.Chain(
        "m-sam", sdesam.FiniteSum(network, tiny, x), lr=0.1, rho=0.1, batch=2, micro=1
    )
    found = chain.direction(chain.problem.x0, np.array([[0], [1]]))
    # the perturbation has length rho, and the loss its value only because of it
    assert np.isfinite(found["W"]).all()
    assert abs(found["b"]).max() > 1e-6


@pytest.mark.parametrize("with_replacement", [True, False])
def test_batches_have_their_distribution(with_replacement):
    problem = sdesam.problems.torus(samples=5)
    chain = sdesam.Chain(
        "m-usam", problem, lr=0.1, rho=0.1, batch=4, micro=2, replace=with_replacement
    )
    drawn = np.asarray(
        jax.vmap(chain.kernel.draw)(jax.random.split(jax.random.key(0), 20_000))
    ).reshape(-1, 4)
    distinct = np.array([len(set(row)) for row in drawn])
    # pairs of positions: uniform over all ordered pairs that the sampling allows; false alarms 1e-6
    # per pair of positions
    for a, b in [(0, 1), (0, 2), (1, 3)]:
        counts = np.zeros((5, 5))
        np.add.at(counts, (drawn[:, a], drawn[:, b]), 1)
        allowed = np.ones((5, 5), bool) if with_replacement else ~np.eye(5, dtype=bool)
        assert not counts[~allowed].any()
        assert stats.chisquare(counts[allowed]).pvalue > 1e-6
    assert (distinct == 4).all() == (not with_replacement)


def test_train_follows_the_chain():
    """The mean of many short runs against the exact mean of the chain on a quadratic (an affine map
    of the mean).
    """
    problem = sdesam.problems.quadratic(dim=2, samples=6, seed=1)
    chain = sdesam.Chain("n-usam", problem, lr=0.2, rho=0.3, batch=3)
    out = sdesam.train(chain, jax.random.key(0), runs=4000, steps=5, chunk=4000)
    A = np.asarray(problem.data["hessian"], float)
    Hbar, centre = (
        A.mean(0),
        np.mean(
            [a @ c for a, c in zip(A, np.asarray(problem.data["centre"], float), strict=True)],
            axis=0,
        ),
    )
    x = np.asarray(problem.x0, float)
    for _ in range(5):
        g = Hbar @ x - centre
        x = x - 0.2 * (g + 0.3 * Hbar @ g)
    error = out.final.std(axis=0) / np.sqrt(4000)
    assert np.all(abs(out.final.mean(axis=0) - x) < 5 * error)  # 6e-7 per coordinate
    np.testing.assert_allclose(out.time[-1], 1.0)


def test_bad_input():
    problem = sdesam.problems.quadratic()
    with pytest.raises(ValueError, match="unknown variant 'sam2'"):
        sdesam.Chain("sam2", problem, lr=0.1, batch=4)
    with pytest.raises(ValueError, match="micro=3 does not divide batch=4"):
        sdesam.Chain("m-usam", problem, lr=0.1, rho=0.1, batch=4, micro=3)
    chain = sdesam.Chain("m-usam", problem, lr=0.1, rho=0.1, batch=4, micro=2)
    with pytest.raises(ValueError, match="runs=0: it must be at least 1"):
        sdesam.train(chain, jax.random.key(0), runs=0, steps=5)
    with pytest.raises(ValueError, match="at most 2147483647 samples are drawn in a step"):
        sdesam.Chain("sgd", sdesam.problems.quadratic(), lr=0.1, batch=2**40)
    with pytest.raises(ValueError, match="steps=0: it must be at least 1"):
        sdesam.train(chain, jax.random.key(0), runs=1, steps=0)
    with pytest.raises(TypeError, match="key must be one jax random key"):
        sdesam.train(chain, 0, runs=1, steps=5)
    with pytest.raises(ValueError, match=r"\(b/m, m\) = \(2, 2\)"):
        chain.direction(problem.x0, np.zeros((1, 4), int))


def test_direction_inside_compiled_code():
    problem = sdesam.problems.quadratic()
    chain = sdesam.Chain("m-usam", problem, lr=0.1, rho=0.1, batch=4, micro=2)
    indices = np.array([[0, 1], [2, 3]])
    compiled = jax.jit(chain.direction)(problem.x0, indices)
    np.testing.assert_allclose(compiled, chain.direction(problem.x0, indices), rtol=1e-6)
    with pytest.raises(ValueError, match="indices must be sample numbers"):
        chain.direction(problem.x0, indices + problem.n)
    with pytest.raises(ValueError, match="indices have shape"):
        jax.jit(chain.direction)(problem.x0, indices[:1])


@pytest.mark.parametrize(
    ("variant", "numbers", "changes"),
    [
        ("m-usam", {"rho": 0.1}, [{"lr": 0.2}, {"rho": 0.3}, {"rho": 0.0}]),
        ("m-sam", {"rho": 0.1, "eps": 0.1}, [{"lr": 0.2}, {"rho": 0.3}, {"eps": 0.2}]),
    ],
)
def test_a_sweep_compiles_once(variant, numbers, changes):
    """Changing lr, rho and eps, or the data, changes runtime values: of a step, of a direction and
    of a run.
    """
    traces, torus = 0, sdesam.problems.torus(dim=2, samples=6)

    def loss(x, sample):
        nonlocal traces
        traces += 1
        return torus.sample_loss(x, sample)

    def new(data=torus.data, micro=2, **change):
        problem = sdesam.FiniteSum(loss, data, torus.x0)
        chain = sdesam.Chain(
            variant, problem, **{"lr": 0.1, **numbers, **change}, batch=4, micro=micro
        )
        problem.check_gradient()
        before = traces
        chain.step(torus.x0, jax.random.key(0))
        chain.direction(torus.x0, jnp.arange(4).reshape(4 // micro, micro))
        sdesam.train(chain, jax.random.key(0), 2, 3, progress=False)
        return traces - before

    assert new() > 0
    for change in changes:
        assert new(**change) == 0, change
    assert new(data=jax.tree.map(lambda leaf: leaf + 0.5, torus.data)) == 0
    assert new(micro=1) > 0, "the count sees a compilation where there is one"


def test_a_step_is_mapped_over_numbers():
    """Its kernel is a pytree: a stack of chains with other numbers is one pytree, too."""
    torus, key = sdesam.problems.torus(dim=2, samples=6), jax.random.key(3)
    chains = [
        sdesam.Chain("m-usam", torus, lr=lr, rho=rho, batch=4, micro=2)
        for lr, rho in [(0.1, 0.1), (0.2, 0.1), (0.1, 0.5)]
    ]
    kernels = [chain.kernel for chain in chains]
    stack = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *kernels
    )
    moved = jax.vmap(lambda kernel: kernel(torus.x0, key, None))(stack)
    for chain, found in zip(chains, moved, strict=True):
        np.testing.assert_allclose(found, chain.step(torus.x0, key), rtol=1e-5)
    assert len(np.unique(moved[:, 0])) == 3
