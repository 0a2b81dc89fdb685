"""The driver: the same draws however a run is laid out, streamed statistics, divergence, results on
disk.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.ensemble.moments import Moments


@pytest.fixture(scope="module")
def sde():
    problem = sdesam.problems.torus(dim=2, samples=4)
    return sdesam.derive("m-usam").bind(problem, lr=0.1, rho=0.1, batch=4, micro=2)


@pytest.fixture(scope="module")
def chain():
    return sdesam.Chain(
        "m-usam", sdesam.problems.torus(dim=2, samples=4), lr=0.1, rho=0.1, batch=4, micro=2
    )


def simulate(sde, paths=10, **options):
    return sdesam.simulate(
        sde, jax.random.key(7), paths, 1.0, 0.1, "heun", observe=["loss", "trace_cov"], **options
    )


def train(chain, runs=10, **options):
    return sdesam.train(
        chain, jax.random.key(7), runs, 10, observe=["loss", "trace_cov"], **options
    )


def assert_same(a, b):
    # float32 rounding of another order of summation, over ten steps
    np.testing.assert_allclose(a.final, b.final, rtol=2e-5, atol=2e-6)
    for name in a.mean:
        np.testing.assert_allclose(a.mean[name], b.mean[name], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(a.stderr[name], b.stderr[name], rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("run_on", [("sde", simulate), ("chain", train)], ids=["sde", "chain"])
@pytest.mark.parametrize("chunk", [1, 3, 4, 1000])
@pytest.mark.parametrize("devices", [1, 2])
def test_layout_changes_nothing(run_on, chunk, devices, request):
    fixture, run = run_on
    system = request.getfixturevalue(fixture)
    assert len(jax.devices()) >= 2, "the suite runs on two fake devices"
    assert_same(run(system, chunk=chunk, devices=jax.devices()[:devices]), run(system))


def test_same_key_same_result_other_key_other_result(sde):
    a, b = simulate(sde), simulate(sde)
    np.testing.assert_array_equal(a.final, b.final)
    other = sdesam.simulate(sde, jax.random.key(8), 10, 1.0, 0.1, "heun")
    assert np.all(np.any(other.final != a.final, axis=1))
    assert len(np.unique(a.final[:, 0])) == 10, "every path has noise of its own"


def test_fewer_paths_are_the_first_paths(sde):
    np.testing.assert_allclose(
        simulate(sde, paths=4).final, simulate(sde).final[:4], rtol=2e-5, atol=2e-6
    )


def test_observation_times_change_nothing(sde):
    dense = simulate(sde, times=np.arange(11) * 0.1)
    sparse = simulate(sde, times=[0.3, 1.0])
    np.testing.assert_array_equal(dense.final, sparse.final)
    np.testing.assert_allclose(dense.mean["loss"][[3, 10]], sparse.mean["loss"], rtol=1e-6)
    np.testing.assert_allclose(sparse.time, [0.3, 1.0])
    assert simulate(sde, times=[0.5]).final.shape == (
        10,
        2,
    ), "a run goes on to its horizon after the last observation"


def test_old_style_keys_are_welcome(sde):
    new = sdesam.simulate(sde, jax.random.key(3), 4, 0.5, 0.1)
    old = sdesam.simulate(sde, jax.random.PRNGKey(3), 4, 0.5, 0.1)
    np.testing.assert_array_equal(new.final, old.final)


def test_statistics_are_those_of_the_paths(sde):
    out = simulate(sde, paths=9, keep="trajectories", chunk=4)
    values = out.values["loss"].astype(float)
    assert values.shape == (9, 11)
    assert out.trajectory.shape == (9, 11, 2)
    np.testing.assert_allclose(out.mean["loss"], values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        out.stderr["loss"], values.std(axis=0, ddof=1) / 3, rtol=1e-9, atol=1e-15
    )
    np.testing.assert_array_equal(out.trajectory[:, -1], out.final)
    assert list(out.mean) == ["loss", "trace_cov"]
    assert simulate(sde).values is None
    assert np.isnan(simulate(sde, paths=1).stderr["loss"]).all()


def test_antithetic_pairs():
    """For additive noise and a linear drift the mean of a pair has no noise at all, and its
    standard error says so.
    """
    ou = sdesam.SDE(lambda x: -x, lambda x, xi: xi, noise_shape=(), x0=1.0)
    out = sdesam.simulate(
        ou,
        jax.random.key(0),
        8,
        1.0,
        0.1,
        observe={"x": lambda x: x},
        antithetic=True,
        chunk=3,
        keep="values",
    )
    np.testing.assert_allclose(
        out.values["x"].reshape(4, 2, -1).mean(axis=1)[:, -1], 0.9**10, rtol=1e-5
    )
    assert out.stderr["x"][-1] < 1e-6
    assert np.ptp(out.values["x"][:, -1]) > 0.1


def test_merged_moments_equal_those_of_the_whole():
    values = 1e6 + np.random.default_rng(0).normal(size=(101, 2))
    values[:45, 1] = np.nan  # the second component has values in the last two parts alone
    moments = Moments.none((2,))
    for part in np.split(values, [1, 1, 40, 99]):
        finite = np.isfinite(part)
        count = finite.sum(axis=0)
        mean = np.array([np.mean(part[finite[:, k], k]) if count[k] else np.nan for k in (0, 1)])
        squares = np.where(finite, (part - mean) ** 2, 0).sum(axis=0)
        moments.add(Moments(count, mean, squares, len(part) - count))
    for k, known in enumerate((values[:, 0], values[45:, 1])):
        np.testing.assert_allclose(moments.mean[k], known.mean(), rtol=1e-14)
        np.testing.assert_allclose(
            moments.stderr[k], known.std(ddof=1) / np.sqrt(len(known)), rtol=1e-9
        )
    np.testing.assert_array_equal(moments.lost, [0, 45])


def test_divergence_is_counted_reported_and_left_out():
    """Paths blow up where their own noise takes them across 1.5; the others are averaged alone."""

    def drift(x):
        return jnp.where(x > 1.5, x**9, -x)

    sde = sdesam.SDE(drift, lambda x, xi: xi, noise_shape=(), x0=1.0)
    out = sdesam.simulate(
        sde, jax.random.key(2), 40, 3.0, 0.1, observe={"x": lambda x: x}, keep="values", chunk=7
    )
    bad = ~np.isfinite(out.final)
    assert 0 < bad.sum() < 40
    np.testing.assert_array_equal(out.diverged.paths, np.flatnonzero(bad))
    assert np.all((out.diverged.time > 0) & (out.diverged.time <= 3.0))
    assert str(out.diverged).startswith(f"{bad.sum()} of 40 paths diverged between times ")
    np.testing.assert_allclose(out.mean["x"], out.values["x"][~bad].mean(axis=0), rtol=1e-6)
    assert np.isfinite(out.mean["x"]).all()


# small states are observed on the way, others in calls of their own
@pytest.mark.parametrize("size", [1, 3])
def test_a_pair_of_which_one_half_diverged_is_in_no_mean(size):
    """Neither at the end nor before: the pairs are the units, and half of one is none."""
    sde = sdesam.SDE(
        lambda x: jnp.where(x > 1.5, x**9, -x),
        lambda x, xi: xi,
        noise_shape=(size,),
        x0=jnp.eye(size)[0],
    )
    out = sdesam.simulate(
        sde,
        jax.random.key(2),
        40,
        3.0,
        0.1,
        observe={"x": lambda x: x[0]},
        keep="values",
        antithetic=True,
        chunk=14,
    )
    bad = ~np.isfinite(out.final).all(axis=1)
    np.testing.assert_array_equal(out.diverged.paths, np.flatnonzero(bad))
    halves = bad.reshape(-1, 2)
    assert (halves.any(axis=1) & ~halves.all(axis=1)).any(), "of some pairs one half diverged"
    pairs = out.values["x"].astype(float).reshape(20, 2, -1)[~halves.any(axis=1)].mean(axis=1)
    assert 3 < len(pairs) < 20
    np.testing.assert_allclose(out.mean["x"], pairs.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        out.stderr["x"], pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs)), rtol=1e-4, atol=1e-7
    )
    assert not out.nonfinite["x"].any()


def test_all_paths_diverge():
    sde = sdesam.SDE(lambda x: x**9, lambda x, xi: xi, noise_shape=(), x0=3.0)
    out = sdesam.simulate(sde, jax.random.key(2), 4, 1.0, 0.1, observe={"x": lambda x: x})
    assert out.diverged.count == 4
    assert np.isnan(out.mean["x"]).all()
    assert np.isnan(out.stderr["x"]).all()


# small states are observed on the way, others in calls of their own
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("options", [{}, {"antithetic": True}, {"chunk": 7}, {"keep": "values"}])
def test_an_observable_that_is_not_finite_counts_for_itself_alone(size, options, tmp_path):
    """Brownian motion from 0.5: its logarithm is undefined for some paths, which spoils no other
    mean and is no divergence.
    """

    def first(x):
        return x[0]

    observe = {
        "x": first,
        "log": lambda x: jnp.log(x[0]),
        "both": lambda x: jnp.stack([x[0], jnp.sqrt(x[0]), 1 / (x[0] > 0)]),
    }
    sde = sdesam.SDE(
        lambda x: 0 * x, lambda x, xi: xi, noise_shape=(size,), x0=0.5 * jnp.ones(size)
    )
    alone = sdesam.simulate(sde, jax.random.key(1), 100, 1.0, 0.25, observe={"x": first}, **options)
    out = sdesam.simulate(sde, jax.random.key(1), 100, 1.0, 0.25, observe=observe, **options)
    x = out.final[:, 0].astype(float)
    assert not out.diverged
    np.testing.assert_array_equal(out.mean["x"], alone.mean["x"])
    np.testing.assert_array_equal(out.stderr["x"], alone.stderr["x"])
    lost = int((x <= 0).sum())
    assert 10 < lost < 90
    assert out.nonfinite["x"].tolist() == [0] * 5
    assert out.nonfinite["log"][0] == 0
    assert out.nonfinite["log"][-1] == lost
    np.testing.assert_array_equal(out.nonfinite["both"][-1], [0, lost, lost])
    with np.errstate(invalid="ignore"):
        values = np.log(x)
    if options.get("antithetic"):
        # a pair with one value that is not finite has no mean
        values = values.reshape(-1, 2).mean(axis=1)
    known = values[np.isfinite(values)]
    np.testing.assert_allclose(out.mean["log"][-1], known.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        out.stderr["log"][-1], known.std(ddof=1) / np.sqrt(len(known)), rtol=1e-5
    )
    assert [sentence.split(":")[0] for sentence in out.warnings()] == ["log", "both"]
    assert (
        f"up to {out.nonfinite['log'].max()} of 100 values are not finite between times 0.25 and 1"
        in out.warnings()[0]
    )
    assert alone.warnings() == []
    out.save(tmp_path / "out.npz")
    np.testing.assert_array_equal(
        sdesam.Result.load(tmp_path / "out.npz").nonfinite["log"], out.nonfinite["log"]
    )


def test_an_observable_without_one_finite_value_has_no_mean():
    sde = sdesam.SDE(lambda x: -x, lambda x, xi: 0 * xi, noise_shape=(), x0=-1.0)
    observe = {"x": lambda x: x, "log": lambda x: jnp.where(x > -0.99, jnp.log(x), 0)}
    out = sdesam.simulate(sde, jax.random.key(0), 4, 1.0, 0.5, observe=observe)
    np.testing.assert_array_equal(np.isnan(out.mean["log"]), [False, True, True])
    np.testing.assert_allclose(out.mean["x"], [-1, -0.5, -0.25])
    assert out.nonfinite["log"].tolist() == [0, 4, 4]


def test_paths_that_diverge_are_not_counted_as_values_that_are_not_finite():
    sde = sdesam.SDE(
        lambda x: jnp.where(x > 1.5, x**9, -x), lambda x, xi: xi, noise_shape=(), x0=1.0
    )
    out = sdesam.simulate(
        sde,
        jax.random.key(2),
        40,
        3.0,
        0.1,
        observe={"x": lambda x: x, "log": jnp.log},
        keep="values",
    )
    assert 0 < out.diverged.count < 40
    assert out.nonfinite["x"].sum() == 0
    kept = np.delete(out.values["log"], out.diverged.paths, axis=0)
    np.testing.assert_array_equal(out.nonfinite["log"], (~np.isfinite(kept)).sum(axis=0))
    assert (
        f"log: up to {out.nonfinite['log'].max()} of {40 - out.diverged.count} values are not"
        " finite" in out.warnings()[0]
    )


def test_save_and_load(sde, tmp_path):
    out = simulate(sde, keep="trajectories")
    out.save(tmp_path / "new" / "run.npz")
    back = sdesam.Result.load(tmp_path / "new" / "run.npz")
    np.testing.assert_array_equal(back.final, out.final)
    np.testing.assert_array_equal(back.trajectory, out.trajectory)
    np.testing.assert_array_equal(back.mean["loss"], out.mean["loss"])
    assert back.config == out.config
    assert back.config["key"] == [0, 7]
    assert {"revision", "versions", "device", "created"} <= set(back.provenance)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["run.npz"], (
        "no temporary file is left"
    )

    raw = (tmp_path / "new" / "run.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="is no sdesam result, or it is cut short"):
        sdesam.Result.load(tmp_path / "short.npz")


def test_nested_states_come_back(tmp_path):
    sde = sdesam.SDE(
        lambda x: x,
        lambda x, xi: {"a": {"b": xi[0]}, "c": xi},
        (3,),
        {"a": {"b": 1.0}, "c": np.ones(3)},
    )
    sdesam.simulate(sde, jax.random.key(0), 2, 0.2, 0.1).save(tmp_path / "run.npz")
    final = sdesam.Result.load(tmp_path / "run.npz").final
    assert final["a"]["b"].shape == (2,)
    assert final["c"].shape == (2, 3)


def test_loops_over_paths_are_of_even_length():
    """Odd ones make no vectors. What is added on a device, one path at most, is in no number."""
    mesh = [jax.sharding.Mesh(np.array(jax.devices()[:k]), ("paths",)) for k in (1, 2)]
    for paths in (*range(1, 80), 1001, 99_999, 100_000):
        for devices, chunk in ((1, None), (2, None), (1, 40), (2, 41), (2, 33_400)):
            size = sdesam.ensemble.placement._chunk_size(
                paths, chunk, mesh[devices - 1], 100, antithetic=False
            )
            each = size // devices
            assert size == each * devices
            assert each < 16 or each % 2 == 0
            chunks = -(-paths // (chunk or 2**15 * devices))
            assert 0 <= each - -(-paths // (chunks * devices)) <= (each >= 16)
    sde = sdesam.SDE(lambda x: -x, lambda x, xi: xi, (), 1.0)
    numbers = {"paths": 35, "horizon": 1.0, "dt": 0.1, "observe": {"x": lambda x: x}}
    whole, parts = (
        sdesam.simulate(sde, jax.random.key(0), **numbers, **options)
        for options in ({}, {"chunk": 5})
    )
    np.testing.assert_allclose(whole.final, parts.final, rtol=1e-6)
    np.testing.assert_allclose(whole.mean["x"], parts.mean["x"], rtol=1e-6)
    np.testing.assert_allclose(whole.stderr["x"][1:], parts.stderr["x"][1:], rtol=1e-6)


def _of_a_finite_sum():
    return sdesam.derive("m-usam").bind(
        sdesam.problems.quadratic(), lr=0.1, rho=0.1, batch=4, micro=2
    ), ["loss"]


def _of_two_numbers():
    sde = sdesam.SDE(
        lambda x: -(x**3), lambda x, xi: jnp.stack([xi[0] + x[1] * xi[2], xi[1]]), (3,), jnp.ones(2)
    )
    return sde, {"loss": lambda x: jnp.sum(x**2)}


@pytest.mark.parametrize("case", [_of_a_finite_sum, _of_two_numbers])
def test_the_loop_of_an_accelerator(case, monkeypatch):
    """Blocks of known length, normals made on the spot: the same draws, whatever is left over of a
    block.
    """
    sde, observe = case()
    # 7, 32 and 39 steps, but for the first calls
    numbers = {
        "paths": 6,
        "horizon": 7.8,
        "dt": 0.1,
        "times": [0.7, 3.9, 7.8],
        "observe": observe,
        "antithetic": True,
    }
    here = sdesam.simulate(sde, jax.random.key(0), **numbers)
    try:
        monkeypatch.setattr(sdesam.ensemble.hardware, "on_cpu", lambda mesh: False)
        sdesam.ensemble.compiled.advance.cache_clear()
        there = sdesam.simulate(sde, jax.random.key(0), **numbers)
    finally:
        sdesam.ensemble.compiled.advance.cache_clear()
    np.testing.assert_allclose(there.final, here.final, rtol=2e-5, atol=1e-6)  # 78 steps in float32
    np.testing.assert_allclose(there.mean["loss"], here.mean["loss"], rtol=2e-5)


@pytest.mark.parametrize("dim", [2, 3])
def test_products_of_matrices_are_in_full_precision(dim, monkeypatch):
    """Those of drift and observables, in what is compiled: unless jax is told otherwise, and then
    anew. Nothing said, a GPU takes TF32.
    """
    compiled = []

    def spied(make):
        def program_of(*of):
            fn = make(*of)

            def call(*arguments):
                compiled.append(fn.lower(*arguments).as_text())
                return fn(*arguments)

            return call

        return program_of

    for name in ("advance", "observe"):
        monkeypatch.setattr(
            sdesam.ensemble.compiled, name, spied(getattr(sdesam.ensemble.compiled, name))
        )
    table = jnp.asarray(np.random.default_rng(0).normal(size=(20, dim)), jnp.float32)
    sde = sdesam.SDE(lambda x: -(table.T @ table / 20) @ x, lambda x, xi: xi, (dim,), np.ones(dim))

    def precisions():
        compiled.clear()
        sdesam.simulate(
            sde,
            jax.random.key(0),
            2,
            0.2,
            0.1,
            observe={"loss": lambda x: jnp.trace(table.T @ table) * x[0]},
        )
        products = [
            line
            for text in compiled
            for line in text.splitlines()
            if "stablehlo.dot_general" in line
        ]
        assert products
        return {
            word
            for line in products
            for word in re.findall(r"precision = \[(\w+), (\w+)\]", line) or ["none"]
        }

    high, low = {("HIGHEST", "HIGHEST")}, {("DEFAULT", "DEFAULT")}
    assert precisions() == high
    with jax.default_matmul_precision("bfloat16"):
        assert precisions() == low
    assert precisions() == high


def test_states_and_observables_that_do_not_do():
    """Complex numbers, and float64 outside its context; a start on one device does."""
    decay, shift = lambda x: -x, lambda x, xi: xi
    with pytest.raises(
        TypeError,
        match="observable 'turn' is complex: observe its real and its imaginary part, or its size",
    ):
        sdesam.simulate(
            sdesam.SDE(decay, shift, (2,), np.ones(2)),
            jax.random.key(0),
            4,
            0.2,
            0.1,
            observe={"turn": lambda x: x * 1j},
        )
    for value, told in (
        ("text", "str"),
        (np.array("text"), "an array of <U4"),
        (None, "None"),
        ((1.0, 2.0), r"\('float32\[\]', "),
    ):
        with pytest.raises(
            TypeError,
            match=f"observable 'odd' must return one array, or a number, but it returns {told}",
        ):
            sdesam.simulate(
                sdesam.SDE(decay, shift, (2,), np.ones(2)),
                jax.random.key(0),
                4,
                0.2,
                0.1,
                observe={"odd": lambda x, value=value: value},
            )
    with jax.enable_x64(True):
        double = sdesam.SDE(decay, shift, (2,), np.ones(2))
        assert sdesam.simulate(double, jax.random.key(0), 4, 0.2, 0.1).final.dtype == np.float64
    with pytest.raises(ValueError, match="the state is in float64, but jax has 64 bits turned off"):
        sdesam.simulate(double, jax.random.key(0), 4, 0.2, 0.1)
    placed = sdesam.SDE(
        decay, shift, (2,), jax.device_put(np.ones(2, np.float32), jax.devices()[1])
    )
    assert sdesam.simulate(placed, jax.random.key(0), 4, 0.2, 0.1).final.shape == (4, 2)
