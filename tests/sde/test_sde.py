"""Noise, probes and time stepping of SDEs, each against something independent of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.sde import compile as compile_module

DRAWS = 20_000
# 5 standard errors: 6e-7 per number, two-sided; with the at most 100 numbers of a test below 6e-5
SIGMAS = 5.0


@pytest.fixture
def small():
    return sdesam.problems.torus(dim=2, samples=5, seed=3)


@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize(("variant", "micro"), [("m-usam", 2), ("n-usam", None), ("sgd", None)])
def test_noise_has_its_covariance(small, variant, micro, with_replacement):
    equation = sdesam.derive(variant, replace=with_replacement)
    sde = equation.bind(small, lr=0.2, rho=None if variant == "sgd" else 0.4, batch=4, micro=micro)
    drawn = np.asarray(
        jax.vmap(lambda key: sde.noise(sde.x0, key))(jax.random.split(jax.random.key(0), DRAWS)),
        float,
    )
    true = np.asarray(sde.covariance(sde.x0), float)
    error = np.sqrt((np.outer(np.diag(true), np.diag(true)) + true**2) / DRAWS)
    assert np.all(abs(drawn.T @ drawn / DRAWS - true) < SIGMAS * error)
    assert not np.all(abs(1.1 * drawn.T @ drawn / DRAWS - true) < SIGMAS * error)


def test_no_noise_where_every_batch_is_the_whole_set(small):
    sde = sdesam.derive("m-usam", replace=False).bind(small, lr=0.2, rho=0.4, batch=5)
    assert not np.any(sde.covariance(sde.x0))
    assert (
        sdesam.derive("m-usam").bind(small, lr=0.2, rho=0.4, batch=5).covariance(sde.x0)[0, 0] > 0
    )


@pytest.mark.parametrize("order", [(2, 3), (2, 4)])
def test_step_drift_is_unbiased(small, order):
    """The probes (Rademacher at rho^2, the golden two-point law at rho^3) against the exact double
    sum.
    """
    sde = sdesam.derive("m-usam", order=order).bind(small, lr=0.2, rho=1.0, batch=4, micro=2)
    drawn = np.asarray(
        jax.vmap(lambda key: sde.step_drift(sde.x0, key))(
            jax.random.split(jax.random.key(1), DRAWS)
        ),
        float,
    )
    error = drawn.std(axis=0) / np.sqrt(DRAWS)
    exact = np.asarray(sde.drift(sde.x0), float)
    assert np.all(error > 0)
    assert np.all(abs(drawn.mean(axis=0) - exact) < SIGMAS * error)
    # the control: without the part that is probed the difference shows
    less = sdesam.derive("m-usam", order=order).without(
        "rho^2 variance" if order == (2, 3) else "rho^3 variance"
    )
    wrong = np.asarray(less.bind(small, lr=0.2, rho=1.0, batch=4, micro=2).drift(sde.x0), float)
    assert not np.all(abs(drawn.mean(axis=0) - wrong) < SIGMAS * error)


@pytest.mark.parametrize(("size", "moments"), [(2, {1: 0, 2: 1}), (3, {1: 0, 2: 1, 3: 1})])
def test_the_laws_of_probes(size, moments):
    """The moments that make a probe unbiased: with a million weights a chance that is 0.005 off
    shows at ten standard errors.
    """
    e = np.asarray(compile_module._probe(jax.random.key(6), size, jnp.ones(10**6)), float)
    for k, moment in moments.items():
        assert abs(np.mean(e**k) - moment) < SIGMAS * np.std(e**k) / 1000 + 1e-6
    few = np.asarray(compile_module._probe(jax.random.key(6), size, jnp.full(10**6, 1 / 8)), float)
    np.testing.assert_allclose(few, e * (1 / 8) ** (1 / size), rtol=1e-6)


def ridge(x, s):
    return jnp.tanh(s["a"] @ x) ** 2 + s["c"] * (s["a"] @ x)


@pytest.mark.parametrize(
    ("variant", "order", "micro", "expectation"),
    [
        ("sgd", (2, 3), None, "exact"),
        ("m-usam", (1, 2), 2, "exact"),
        ("m-usam", (2, 3), 1, "sampled"),
        ("m-sam", (1, 2), 2, "exact"),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
def test_an_euler_step_is_drift_and_noise(variant, order, micro, expectation, dense):
    """Both come out of one evaluation; apart they are held against enumeration. Neither may be
    doubled, nor dt be its root.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        data = {"a": rng.normal(size=(5, 2)), "c": rng.normal(size=5)}
        problem = (
            sdesam.FiniteSum(ridge, data, np.array([0.3, -0.4]))
            if dense
            else sdesam.problems.torus(dim=2, samples=5, seed=3)
        )
        options = {
            "rho": None if variant == "sgd" else 0.4,
            "batch": 4,
            "micro": micro,
            "expectation": expectation,
        }
        sde = sdesam.derive(variant, order=order).bind(problem, lr=0.2, **options)
        x, dt, xi, key = sde.x0, 0.07, jnp.asarray(rng.normal(size=5)), jax.random.key(2)
        found = sde.kernel.step_both(x, dt, xi, (jax.random.key(9), key))
        drift, noise = sde.step_drift(x, key), sde.apply_noise(x, xi)
        np.testing.assert_allclose(found, dt * drift + noise, rtol=1e-10)
        assert min(np.linalg.norm(dt * drift), np.linalg.norm(noise)) > 1e-3, (
            "neither is too small to be missed"
        )


def test_exact_expectation_steps_with_the_drift(small):
    sde = sdesam.derive("m-usam").bind(
        small, lr=0.2, rho=0.4, batch=4, micro=2, expectation="exact"
    )
    np.testing.assert_allclose(
        sde.step_drift(sde.x0, jax.random.key(0)), sde.drift(sde.x0), rtol=1e-5
    )


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
def test_chunks_of_samples_change_nothing(chunk):
    """Sums over samples in chunks, with and without a remainder, equal the sum in one go."""
    with jax.enable_x64(True):
        torus = sdesam.problems.torus(dim=2, samples=7, seed=1)
        parts = sdesam.FiniteSum(torus.sample_loss, torus.data, torus.x0, chunk=chunk)
        xi = np.random.default_rng(0).normal(size=7)
        for a, b in zip(
            *([p.loss(p.x0), p.grad(p.x0), p.trace_cov(p.x0)] for p in (torus, parts)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-12)
        one, many = (
            sdesam.derive("m-usam").bind(p, lr=0.2, rho=0.4, batch=4, micro=2)
            for p in (torus, parts)
        )
        np.testing.assert_allclose(many.drift(torus.x0), one.drift(torus.x0), rtol=1e-12)
        np.testing.assert_allclose(
            many.apply_noise(torus.x0, xi), one.apply_noise(torus.x0, xi), rtol=1e-12
        )


def test_parameters_may_be_any_pytree():
    """The same quadratic with its parameters in one array and in a nested structure."""
    flat = sdesam.problems.quadratic(dim=3, samples=6, seed=2)

    def nested_loss(p, sample):
        return flat.sample_loss(jnp.concatenate([p["a"][0], p["b"]["c"]]), sample)

    def nest(v):
        return {"a": (v[:1],), "b": {"c": v[1:]}}

    nested = sdesam.FiniteSum(nested_loss, flat.data, nest(flat.x0))
    one, other = (
        sdesam.derive("m-usam").bind(p, lr=0.1, rho=0.3, batch=4, micro=2) for p in (flat, nested)
    )
    np.testing.assert_allclose(
        np.concatenate(jax.tree.leaves(other.drift(nested.x0))), one.drift(flat.x0), rtol=2e-5
    )
    xi = jnp.arange(6.0)
    noise = other.apply_noise(nested.x0, xi)
    assert jax.tree.structure(noise) == jax.tree.structure(nested.x0)
    np.testing.assert_allclose(
        np.concatenate(jax.tree.leaves(noise)), one.apply_noise(flat.x0, xi), rtol=2e-4, atol=1e-6
    )


def test_parameters_of_two_precisions():
    """Half and single precision side by side: each leaf keeps its own, and the values are those of
    single precision to half's rounding.
    """

    def loss(p, s):
        return jnp.sum(jnp.cos(p["a"].astype(jnp.float32) - s)) + jnp.sum(jnp.sin(p["b"] * s))

    data = jnp.array([0.1, 0.7, 1.3])
    mixed = sdesam.FiniteSum(
        loss, data, {"a": jnp.array([0.5, 0.25], jnp.float16), "b": jnp.array([0.3], jnp.float32)}
    )
    single = sdesam.FiniteSum(
        loss, data, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mixed.x0)
    )
    one, other = (
        sdesam.derive("m-usam").bind(p, lr=0.1, rho=0.3, batch=2, micro=1, expectation="exact")
        for p in (mixed, single)
    )
    drift = one.drift(mixed.x0)
    assert (drift["a"].dtype, drift["b"].dtype) == (jnp.float16, jnp.float32)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3),
        drift,
        other.drift(single.x0),
    )
    assert (
        sdesam.simulate(
            one, jax.random.key(0), 4, 0.5, 0.1, "heun", observe=["loss"]
        ).diverged.count
        == 0
    )


def test_a_sweep_compiles_once(small):
    """Changing lr, rho, b and m changes runtime values only."""
    traces = 0

    def loss(x, sample):
        nonlocal traces
        traces += 1
        return small.sample_loss(x, sample)

    problem, equation = sdesam.FiniteSum(loss, small.data, small.x0), sdesam.derive("m-usam")
    new = []
    for lr, rho, b, m in [
        (0.1, 0.1, 4, 2),
        (0.2, 0.1, 4, 2),
        (0.1, 0.3, 4, 2),
        (0.1, 0.1, 8, 2),
        (0.1, 0.1, 4, 1),
    ]:
        sde = equation.bind(problem, lr=lr, rho=rho, batch=b, micro=m)
        before = traces
        sde.drift(small.x0)
        new.append(traces - before)
    assert new[0] > 0
    assert new[1:] == [0, 0, 0, 0]


def test_an_sde_is_a_pytree(small):
    """Its numbers are leaves: a function of an SDE compiles once for all of them, and is mapped
    over a stack of SDEs.
    """
    equation, xi, traces = sdesam.derive("m-usam"), jnp.arange(float(small.n)), []
    sdes = [
        equation.bind(small, lr=lr, rho=rho, batch=4, micro=2)
        for lr, rho in [(0.1, 0.1), (0.2, 0.1), (0.1, 0.4)]
    ]

    @jax.jit
    def step(sde, x):
        traces.append(sde)
        return sde.drift(x), sde.apply_noise(x, xi)

    found = [step(sde, small.x0) for sde in sdes]
    assert len(traces) == 1
    for sde, (drift, noise) in zip(sdes, found, strict=True):
        np.testing.assert_allclose(drift, sde.drift(small.x0), rtol=1e-5)
        np.testing.assert_allclose(noise, sde.apply_noise(small.x0, xi), rtol=1e-5)
    assert abs(found[0][0] - found[2][0]).max() > 1e-3
    stack = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *sdes)
    many = jax.vmap(lambda sde: sde.drift(small.x0))(stack)
    np.testing.assert_allclose(many, [drift for drift, _ in found], rtol=1e-5)


def test_an_sde_put_together_from_its_leaves(small):
    """The same paths; of what it was bound with nothing is recorded, as numbers may have
    changed.
    """
    bound = sdesam.derive("m-usam").bind(small, lr=0.1, rho=0.1, batch=4, micro=2)
    written = sdesam.SDE(
        jax.tree_util.Partial(lambda w, x: -w * x, jnp.ones(2)), lambda x, xi: xi, (2,), np.ones(2)
    )
    for sde in (bound, written):
        again = jax.tree.unflatten(jax.tree.structure(sde), jax.tree.leaves(sde))
        assert isinstance(again, sdesam.SDE)
        assert (again.problem, again.config) == (None, {"sde": "a pytree"})
        one, other = (
            sdesam.simulate(s, jax.random.key(0), 3, 0.5, 0.1, "heun") for s in (sde, again)
        )
        np.testing.assert_array_equal(one.final, other.final)
    faster = jax.tree.map(lambda leaf: 2.0 * leaf, written)
    np.testing.assert_array_equal(faster.drift(jnp.ones(2)), [-2, -2])


def scalar_sde(drift, noise):
    return sdesam.SDE(drift, noise, noise_shape=(), x0=1.0)


def moments_of(sde, method, dt, paths=20_000):
    out = sdesam.simulate(
        sde,
        jax.random.key(5),
        paths,
        1.0,
        dt,
        method,
        times=[1.0],
        observe={"x": lambda x: x, "x2": lambda x: x * x},
        chunk=paths,
    )
    return {name: (out.mean[name][-1], out.stderr[name][-1]) for name in ("x", "x2")}


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_one_step_formula_of_each_scheme(method):
    """dX = -X dt + 0.5 X dW: the moments of k steps of the scheme, written out, against many
    paths.
    """
    dt, steps, s = 0.25, 4, 0.5
    measured = moments_of(scalar_sde(lambda x: -x, lambda x, xi: s * x * xi), method, dt)
    if method == "euler":
        mean, noise = 1 - dt, s * np.sqrt(dt)
    else:  # the predictor carries the noise, so that it enters the averaged drift
        mean, noise = 1 - dt + dt**2 / 2, s * np.sqrt(dt) * (1 - dt / 2)
    expected = {"x": mean**steps, "x2": (mean**2 + noise**2) ** steps}
    for name, (value, error) in measured.items():
        assert abs(value - expected[name]) < 4.5 * error  # 7e-6 per number
    # the controls: exact moments of the SDE, and Heun without noise in its predictor, are told
    # apart at this dt
    assert abs(measured["x2"][0] - np.exp(-2 + s**2)) > 4.5 * measured["x2"][1]
    if method == "heun":
        assert abs(measured["x2"][0] - (mean**2 + s**2 * dt) ** steps) > 4.5 * measured["x2"][1]


def test_weak_order_of_the_schemes_for_small_noise():
    """Second moment of dX = -X dt + sqrt(eta) X dW by exact recursion of each scheme: Euler O(dt),
    Heun O(dt^2 + eta dt).
    """

    def error(method, eta, dt):
        mean, noise = (1 - dt, 1.0) if method == "euler" else (1 - dt + dt**2 / 2, 1 - dt / 2)
        return (mean**2 + eta * dt * noise**2) ** round(1 / dt) - np.exp(-2 + eta)

    def slope(method):
        return np.log2(abs(error(method, 1 / 64, 1 / 64) / error(method, 1 / 128, 1 / 128)))

    assert slope("euler") == pytest.approx(1, abs=0.1)
    assert slope("heun") == pytest.approx(2, abs=0.1)


def test_covariance_of_a_written_sde_is_dense():
    sde = sdesam.SDE(
        lambda x: -x, lambda x, xi: jnp.array([[1.0, 2.0], [0.0, 3.0]]) @ xi, (2,), np.zeros(2)
    )
    np.testing.assert_allclose(sde.covariance(sde.x0), [[5, 6], [6, 9]])


BIND = {"lr": 0.1, "rho": 0.1, "batch": 4, "micro": 2}


@pytest.mark.parametrize(
    ("variant", "numbers", "error", "message"),
    [
        (
            "m-usam",
            {"micro": 3},
            ValueError,
            "micro=3 does not divide batch=4: choose one of 1, 2, 4",
        ),
        ("m-usam", {"batch": 0}, ValueError, "batch=0: it must be at least 1"),
        ("m-usam", {"micro": 0}, ValueError, "micro=0: it must be at least 1"),
        ("m-usam", {"batch": 2.5}, TypeError, "batch=2.5: it must be a whole number"),
        ("m-usam", {"rho": -0.1}, ValueError, "rho=-0.1: it must be a finite number of at least 0"),
        ("m-usam", {"rho": None}, ValueError, "m-usam needs rho"),
        ("m-usam", {"lr": 0}, ValueError, "lr=0: it must be a finite number above 0"),
        ("m-usam", {"lr": float("nan")}, ValueError, "lr=nan"),
        ("m-usam", {"expectation": "exactly"}, ValueError, "choose 'exact' or 'sampled'"),
        (
            "usam",
            {},
            ValueError,
            "micro=2: usam has no micro-batches; leave micro out, or use m-usam",
        ),
        ("n-usam", {}, ValueError, "n-usam has no micro-batches"),
        ("sgd", {"micro": None}, ValueError, "sgd has no perturbation; leave rho out"),
    ],
)
def test_bad_numbers(small, variant, numbers, error, message):
    with pytest.raises(error, match=message):
        sdesam.derive(variant).bind(small, **{**BIND, **numbers})


def test_batch_larger_than_the_data_set(small):
    sdesam.derive("usam").bind(small, lr=0.1, rho=0.1, batch=6)
    with pytest.raises(
        ValueError, match="batch=6 exceeds the 5 samples: without replacement choose batch <= 5"
    ):
        sdesam.derive("usam", replace=False).bind(small, lr=0.1, rho=0.1, batch=6)


def test_losses_with_kinks_are_refused_at_second_order():
    kinked = sdesam.FiniteSum(lambda x, a: jax.nn.relu(x - a), jnp.arange(3.0), 0.5)
    sdesam.derive("m-usam", order=(1, 2)).bind(kinked, lr=0.1, rho=0.1, batch=2)
    # third derivatives at rho^2
    with pytest.raises(ValueError, match=r"not smooth enough for order \(1, 3\)"):
        sdesam.derive("m-usam", order=(1, 3)).bind(kinked, lr=0.1, rho=0.1, batch=2)
    with pytest.raises(
        ValueError,
        match=r"not smooth enough for order \(2, 3\).*contains max \(ReLU has such a kink\)",
    ):
        sdesam.derive("m-usam").bind(kinked, lr=0.1, rho=0.1, batch=2)


RUN = {"paths": 4, "horizon": 1.0, "dt": 0.1}


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ({"paths": 0}, ValueError, "paths=0: it must be at least 1"),
        ({"dt": 0}, ValueError, "dt=0: it must be a finite number above 0"),
        (
            {"dt": 0.3},
            ValueError,
            "horizon=1 is no multiple of dt=0.3: the nearest multiples are 0.9 and 1.2",
        ),
        ({"method": "heum"}, ValueError, "unknown method 'heum'.*did you mean 'heun'"),
        (
            {"observe": ["los"]},
            ValueError,
            "unknown observable 'los'.*grad_norm2.*did you mean 'loss'",
        ),
        ({"times": [0.25]}, ValueError, "observation time=0.25 is no multiple of dt=0.1"),
        ({"times": [0.5, 0.2]}, ValueError, "must increase strictly"),
        ({"times": [0.5, 2.0]}, ValueError, "to at most 1"),
        ({"keep": "all"}, ValueError, "choose 'statistics'"),
        (
            {"key": 0},
            TypeError,
            r"key must be one jax random key, such as jax.random.key\(0\), not 0",
        ),
        (
            {"key": jax.random.split(jax.random.key(0), 3)},
            TypeError,
            r"not an array of shape \[3\]",
        ),
        ({"key": jax.random.key(0, impl="rbg")}, ValueError, "use a threefry key"),
        ({"devices": []}, ValueError, "devices is empty"),
        ({"times": [float("nan")]}, ValueError, "they must be finite"),
        ({"horizon": 1e-9}, ValueError, "is shorter than one step"),
        ({"paths": 3, "antithetic": True}, ValueError, "antithetic runs need an even number"),
        ({"chunk": 0}, ValueError, "chunk=0: it must be at least 1"),
    ],
)
def test_bad_runs(small, numbers, error, message):
    sde = sdesam.derive("m-usam").bind(small, **BIND)
    with pytest.raises(error, match=message):
        sdesam.simulate(sde, **{"key": jax.random.key(0), **RUN, **numbers})


def test_bad_points_and_functions(small):
    sde = sdesam.derive("m-usam").bind(small, **BIND)
    with pytest.raises(ValueError, match="the parameters have structure"):
        sde.drift(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"it must have noise_shape=\(5,\)"):
        sde.apply_noise(sde.x0, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"drift\(x0\) must have the shapes of x0"):
        sdesam.SDE(lambda x: x[0], lambda x, xi: xi, (2,), jnp.zeros(2))
    with pytest.raises(
        TypeError, match=r"drift\(x0\) must hold real numbers, but it returns an array of <U4"
    ):
        sdesam.SDE(lambda x: np.array("text"), lambda x, xi: xi, (), 1.0)
    with pytest.raises(
        ValueError,
        match=r"drift\(x0\) fails: it asks in Python for a value that jax only traces, as `if`",
    ):
        sdesam.SDE(lambda x: x if x > 0 else -x, lambda x, xi: xi, (), 1.0)
    with pytest.raises(
        ValueError,
        match=(
            r"apply_noise\(x0, xi\) fails with ZeroDivisionError: integer division or modulo by"
            r" zero"
        ),
    ):
        sdesam.SDE(lambda x: x, lambda x, xi: 1 // 0, (), 1.0)
    with pytest.raises(
        ValueError,
        match=r"observable 'half' fails with ZeroDivisionError: integer division or modulo by zero",
    ):
        sdesam.simulate(
            scalar_sde(lambda x: -x, lambda x, xi: xi),
            jax.random.key(0),
            observe={"half": lambda x: 1 // 0},
            **RUN,
        )
    with pytest.raises(ValueError, match="must be a tuple of sizes"):
        sdesam.SDE(lambda x: x, lambda x, xi: xi, 2, jnp.zeros(2))
    with pytest.raises(TypeError, match=r"write 1\.0 for 1"):
        sdesam.SDE(lambda x: x, lambda x, xi: xi, (), 1)
    with pytest.raises(TypeError, match="it must be a sdesam"):
        sdesam.derive("sgd").bind("digits", lr=0.1, batch=2)
    with pytest.raises(ValueError, match="give observe="):
        sdesam.simulate(
            scalar_sde(lambda x: -x, lambda x, xi: xi), jax.random.key(0), observe=["loss"], **RUN
        )
