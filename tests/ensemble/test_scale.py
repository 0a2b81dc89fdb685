"""Long runs and large ones: the same numbers on any placement, after a kill and in many processes;
what cannot be done is refused.
"""

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam._util import store
from sdesam.ensemble import compiled, hardware, placement, snapshot, work
from sdesam.sde import stepping

ROOT = Path(sdesam.__file__).parents[1]
PROGRAMS = compiled.advance
OBSERVE = {"x": lambda x: x, "f": lambda x: (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 / 2}


def drift(x):
    return jnp.stack([x[0] - x[0] ** 3, -x[1]])


def noise(x, xi):
    return jnp.stack([0.3 * (1 + 0.1 * x[0] ** 2) * xi[0], 0.1 * x[0] * xi[0] + 0.2 * xi[1]])


def double_well():
    return sdesam.SDE(drift, noise, (2,), np.array([0.5, 0.2]))


def simulate(paths=20, horizon=0.5, dt=0.01, sde=double_well, **options):
    return sdesam.simulate(sde(), jax.random.key(3), paths, horizon, dt, observe=OBSERVE, **options)


@pytest.fixture(autouse=True)
def _nothing_is_known_of_times():
    work.pace_of.cache_clear()


def watch_calls(monkeypatch, note):
    """`note(route)` with every call of a compiled program."""
    advance_of = PROGRAMS

    def advance(*static):
        def noted(*arguments):
            note(arguments[4])
            return advance_of(*static)(*arguments)

        return noted

    monkeypatch.setattr(compiled, "advance", advance)


def assert_equal(a, b):
    np.testing.assert_array_equal(a.final, b.final)
    for name in a.mean:
        np.testing.assert_array_equal(a.mean[name], b.mean[name])
        np.testing.assert_array_equal(a.stderr[name], b.stderr[name])


@pytest.mark.parametrize(
    ("options", "chunks", "devices"),
    [
        ({}, (1, 7, 1000), (1, 2)),
        ({"antithetic": True}, (7,), (1, 2)),
        ({"normals": "jax"}, (7,), (1,)),
    ],
    ids=["counter", "antithetic", "jax"],
)
def test_layouts(options, chunks, devices):
    """Chunks of 1, 7 and 1000 paths on one device and two; float32 rounding in another order over
    50 steps.
    """
    whole = simulate(**options)
    for chunk in chunks:
        for number in devices:
            other = simulate(chunk=chunk, devices=jax.devices()[:number], **options)
            np.testing.assert_allclose(other.final, whole.final, rtol=1e-5, atol=1e-6)
            for name in OBSERVE:
                np.testing.assert_allclose(other.mean[name], whole.mean[name], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(
                    other.stderr[name], whole.stderr[name], rtol=1e-4, atol=1e-6
                )


def test_jax_normals_are_jax_normals():
    """One step from 0 with unit noise is the draw itself: that of `jax.random`, or of the counters;
    the two are not the same.
    """
    still = sdesam.SDE(lambda x: jnp.zeros(3), lambda x, xi: xi, (3,), np.zeros(3))
    key = jax.random.key(5)
    found = {
        normals: sdesam.simulate(still, key, 4, 1.0, 1.0, normals=normals).final
        for normals in ("counter", "jax")
    }
    one = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 2), 0), 3)[0]
    np.testing.assert_allclose(found["jax"][2], jax.random.normal(one, (3,)), rtol=1e-6)
    np.testing.assert_allclose(
        found["counter"], sdesam.ensemble.standard_normals(key, 0, jnp.arange(4), (3,)), rtol=1e-6
    )
    mirrored = sdesam.simulate(still, key, 4, 1.0, 1.0, antithetic=True).final
    np.testing.assert_allclose(mirrored[::2], found["counter"][:2], rtol=1e-6)
    np.testing.assert_array_equal(mirrored[1::2], -mirrored[::2])


def test_functions_of_many_paths():
    """Written for many paths at once, with the state in two arrays: the same paths; refused where
    the axis of paths is lost.
    """

    def many_drift(x):
        return {"a": x["a"] - x["a"] ** 3, "b": -x["b"]}

    def many_noise(x, xi):
        a = x["a"]
        return {"a": 0.3 * (1 + 0.1 * a**2) * xi[:, 0], "b": 0.1 * a * xi[:, 0] + 0.2 * xi[:, 1]}

    many = sdesam.SDE(many_drift, many_noise, (2,), {"a": 0.5, "b": 0.2}, batched=True)
    for method in ("euler", "richardson"):
        one = sdesam.simulate(double_well(), jax.random.key(3), 20, 0.5, 0.01, method)
        out = sdesam.simulate(
            many, jax.random.key(3), 20, 0.5, 0.01, method, observe={"a": lambda x: x["a"]}
        )
        np.testing.assert_allclose(
            np.stack([out.final["a"], out.final["b"]], axis=1), one.final, rtol=1e-5, atol=1e-6
        )
    assert out.mean["a"].shape == (11,)
    np.testing.assert_allclose(
        many.covariance(many.x0), double_well().covariance(np.array([0.5, 0.2])), rtol=1e-6
    )
    with pytest.raises(
        ValueError, match="must have the shapes of x0 behind a leading axis of 3 paths"
    ):
        sdesam.SDE(lambda x: x.sum(axis=0), lambda x, xi: xi, (2,), np.zeros(2), batched=True)


def _squares(x, a):
    return 0.5 * jnp.sum((x - a) ** 2) + jnp.sum((x - a) ** 4) / 8


def _distance(target, x):
    return jnp.sum((x - target) ** 2)


def looks(caplog):
    return sum(
        "XLA compilation of jit(look_at)" in record.getMessage() for record in caplog.records
    )


def test_nothing_compiles_anew_over_a_sweep(caplog):
    """Step, horizon, times, key, learning rate, radius and data are runtime values; another number
    of paths of the same chunk is too.
    """

    def bound(target):
        return {"far": jax.tree_util.Partial(_distance, target)}

    def captured(target):
        return {"far": lambda x: _distance(target, x)}

    def run(
        seed=0,
        lr=0.1,
        rho=0.1,
        dt=0.1,
        horizon=1.0,
        paths=8,
        shift=0.0,
        observables=bound,
        **options,
    ):
        problem = sdesam.FiniteSum(
            _squares,
            shift + np.arange(18.0).reshape(6, 3) / 18,
            np.ones(3),
            observables=observables(np.full(3, shift)),
        )
        sde = sdesam.derive("m-usam", order=(1, 2)).bind(problem, lr=lr, rho=rho, batch=4, micro=2)
        with jax.log_compiles():
            caplog.clear()
            out = sdesam.simulate(
                sde,
                jax.random.key(seed),
                paths,
                horizon,
                dt,
                "heun",
                observe=["loss", "far"],
                chunk=4,
                **options,
            )
        if out.time[0] == 0:
            np.testing.assert_allclose(out.mean["far"][0], 3 * (1 - shift) ** 2, rtol=1e-6)
        return sum(
            "XLA compilation of jit(follow)" in record.getMessage() for record in caplog.records
        )

    assert run() == 1
    for change in (
        {"seed": 1},
        {"lr": 0.05},
        {"rho": 0.3},
        {"dt": 0.05},
        {"horizon": 2.0},
        {"times": [0.5]},
        {"paths": 12},
        {"shift": 0.5},
    ):
        assert run(**change) == 0, change
    assert run(antithetic=True) == 1, "the count sees a compilation where there is one"
    assert run(observables=captured) == 0, "steps are compiled apart from observables"
    assert looks(caplog) == 1
    assert run(observables=captured, shift=0.5) == 0
    assert looks(caplog) == 1, "arrays that a function captured are part of it"
    assert run(shift=0.7) == 0
    assert looks(caplog) == 0


@pytest.mark.slow
def test_programs_are_forgotten(monkeypatch):
    """More of them than are kept, as in a long sweep over functions: their memory maps are given
    back.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of memory maps")
    kept = lru_cache(maxsize=2)(compiled.advance.__wrapped__)
    monkeypatch.setattr(compiled, "advance", kept)

    def another(k):
        sde = sdesam.SDE(lambda x: -k * x, lambda x, xi: xi, (1,), np.ones(1))
        sdesam.simulate(sde, jax.random.key(0), 2, 0.1, 0.1, progress=False)
        gc.collect()
        return maps.read_bytes().count(b"\n")

    for k in range(4):
        before = another(k)
    after = [another(k) for k in range(4, 10)]
    assert kept.cache_info().currsize == 2
    one = (_maps_of_programs_that_stay(another, monkeypatch) - after[-1]) / 6
    assert one > 20, (
        "the control: with nothing forgotten there are more of them after every program"
    )
    assert max(after) - before < one


def _maps_of_programs_that_stay(another, monkeypatch):
    monkeypatch.setattr(compiled, "advance", lru_cache(maxsize=None)(compiled.advance.__wrapped__))
    return [another(k) for k in range(10, 16)][-1]


def test_means_alone():
    full, lean = simulate(), simulate(keep="means")
    np.testing.assert_array_equal(full.mean["x"], lean.mean["x"])
    assert lean.final is None


def test_lean_results_come_back(tmp_path):
    simulate(keep="means").save(tmp_path / "lean.npz")
    assert sdesam.Result.load(tmp_path / "lean.npz").final is None


def test_float64():
    with pytest.raises(
        ValueError,
        match=(
            r"jax has 64 bits turned off.*`with jax.enable_x64\(True\):`, or set JAX_ENABLE_X64=1"
        ),
    ):
        simulate(dtype="float64")
    with pytest.raises(ValueError, match="choose 'float32' or 'float64'"):
        simulate(dtype="float16")
    single = simulate()
    with jax.enable_x64(True):
        double, down = simulate(dtype="float64", normals="jax"), simulate(dtype="float32")
    assert (single.final.dtype, double.final.dtype, down.final.dtype) == (
        np.float32,
        np.float64,
        np.float32,
    )
    np.testing.assert_allclose(down.final, single.final, rtol=1e-5, atol=1e-6)


def test_more_devices_than_paths():
    with pytest.raises(
        ValueError, match="2 devices for 1 paths: some would have none; name at most 1 devices"
    ):
        simulate(paths=1, devices=jax.devices()[:2])
    assert simulate(paths=1).final.shape == (
        1,
        2,
    ), "unnamed, as many devices are used as there are paths"


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(hardware, "available_memory", lambda: 10**9)
    with pytest.raises(
        ValueError,
        match=(
            r"1000000000 paths need 12 GB, most of it for their final states, but 1 GB are free:"
            r" choose keep='means'"
        ),
    ):
        simulate(paths=10**9)
    with pytest.raises(
        ValueError, match=r"most of it for their values, .*choose keep='statistics', or fewer paths"
    ):
        simulate(paths=10**7, keep="values")
    with pytest.raises(
        ValueError,
        match=r"20000000 paths together need about .* of working memory.*a smaller chunk",
    ):
        simulate(paths=2 * 10**7, chunk=10**8)
    with pytest.raises(ValueError, match=r"at most 2\*\*31 - 1"):
        simulate(horizon=2.0**31 * 0.01)
    with pytest.raises(ValueError, match=r"at most 2\*\*32"):
        simulate(paths=2**33, keep="means")


def test_forecast():
    expected = sdesam.estimate(double_well(), 1000, 1.0, 0.01, observe=OBSERVE, chunk=100)
    assert (expected.paths, expected.steps, expected.chunks) == (1000, 100, 10)
    assert expected.host_bytes == 1000 * (8 + 4)
    assert 0 < expected.seconds < 60
    assert expected.device_bytes > 100 * 20, "at least state, normals and the mark of each path"
    assert str(expected).startswith(
        "1000 paths of 100 steps in 10 chunks; memory 1.2e-05 GB for what is kept and "
    )


def test_unstable_steps_are_warned_of():
    """A quadratic of known curvature, on both sides of the bound; where it warns the paths do
    grow.
    """
    problem = sdesam.FiniteSum(
        lambda x, a: 0.5 * (4.0 * (x[0] - a) ** 2 + x[1] ** 2),
        jnp.array([-1.0, 1.0]),
        np.array([1.0, 1.0]),
    )
    assert problem.curvature == pytest.approx(4.0, rel=1e-4)
    sde = sdesam.derive("sgd", order=(1, 2)).bind(problem, lr=0.01, batch=2)
    for method in ("euler", "heun"):

        def run(dt, method=method):
            return sdesam.simulate(sde, jax.random.key(0), 2, 100 * dt, dt, method)

        assert np.all(abs(run(0.48).final) < 10)
        with pytest.warns(
            UserWarning,
            match=r"dt=0.52 is beyond 2 / l = 0.5, where l = 4 is the largest curvature",
        ):
            wild = run(0.52)
        # 1.08**100 = 2200 for Euler, 1.083**100 for Heun, noise of about 1
        assert np.all(abs(wild.final[:, 0]) > 20)
    saddle = sdesam.FiniteSum(
        lambda x, a: -2.0 * (x - a) ** 2, jnp.array([-1.0, 1.0]), np.array(0.3)
    )
    assert saddle.curvature == 0


class Killed(BaseException):
    pass


MIXING = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)


def turn(x):
    return -x + 0.3 * MIXING @ x


def shake(x, xi):
    return 0.3 * MIXING @ xi


def five():
    """Too many components for one loop, so its normals are carried from step to step."""
    return sdesam.SDE(turn, shake, (5,), np.ones(5))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep": "values", "antithetic": True},
        {"keep": "means"},
        {"sde": five},
        {"sde": five, "normals": "jax", "antithetic": True},
    ],
    ids=["small", "values", "means", "carried", "jax"],
)
def test_resume_is_exact(options, tmp_path, monkeypatch):
    """Stopped after every snapshot there can be, and resumed each time."""
    whole = simulate(chunk=6, **options)
    target = tmp_path / "run.snapshot"
    real, left = store.write_arrays, [0]

    def write_and_die(*arguments, **keywords):
        real(*arguments, **keywords)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(store, "write_arrays", write_and_die)
    stops = 0
    while True:
        left[0] = 2  # the second after it went on: in the middle of chunks too
        try:
            out = simulate(chunk=6, snapshot=target, snapshot_every=0, **options)
            break
        except Killed:
            stops += 1
    assert stops > 3
    for name in OBSERVE:
        np.testing.assert_array_equal(out.mean[name], whole.mean[name])
        np.testing.assert_array_equal(out.stderr[name], whole.stderr[name])
    if whole.final is not None:
        np.testing.assert_array_equal(out.final, whole.final)
    if whole.values is not None:
        np.testing.assert_array_equal(out.values["x"], whole.values["x"])
    left[0] = 0
    again = simulate(chunk=6, snapshot=target, **options)
    np.testing.assert_array_equal(again.mean["x"], whole.mean["x"])


@pytest.mark.parametrize("keep", ["statistics", "trajectories"])
def test_observations_of_one_call_or_of_many(keep, monkeypatch):
    """More of them than a call takes, the first at the start, one right after another; and calls
    cut short between them.
    """
    times = [0.0, 0.01, 0.02, *np.arange(0.1, 0.5, 0.02), 0.5]
    calls = []
    watch_calls(monkeypatch, lambda route: calls.append(route[1 : 1 + route[0, 1]].tolist()))

    def run(looks, patience):
        calls.clear()
        work.pace_of.cache_clear()
        monkeypatch.setattr(compiled, "SEGMENTS", looks)
        monkeypatch.setattr(work, "PATIENCE", patience)
        out = simulate(times=times, keep=keep)
        looked = [stop for segments in calls for stop, look in segments if look]
        at = np.round(np.array(times) / 0.01).astype(int).tolist()
        assert looked == (at if keep == "statistics" else at[1:]), (
            "without steps there is nothing to call where looks are apart"
        )
        return out, len(calls)

    (many, few), (alone, singly), (cut, short) = run(16, 60.0), run(1, 60.0), run(16, 1e-9)
    assert few < singly if keep == "statistics" else few == singly
    assert short >= 50, "one step a call"
    for other in (alone, cut):
        assert_equal(other, many)
        if keep == "trajectories":
            np.testing.assert_array_equal(other.trajectory, many.trajectory)
            np.testing.assert_array_equal(other.values["x"], many.trajectory)


def test_slow_observations_wait_for_no_others():
    """A call takes as many as fit into the patience, and one where nothing is known."""
    times = np.arange(1, 101) * 0.01
    request = stepping._Request("simulate", 1.0, 0.01, "euler", times, OBSERVE, "counter", None)
    plan = stepping._plan(double_well(), jax.random.key(0), request)
    of = work.Work(
        placement.choose_placement(plan[0], jax.random.key(0), paths=2, grid=plan[1]),
        snapshot.Snapshot(None, 0.0, {}, None),
    )
    begin = work.Pass(0, np.ones(2, bool), np.empty((0, 2), int))
    of.pace = work.Pace(called=True, speed=1e6)
    for wait, most in ((np.inf, 1), (10.0, 1), (0.2, 2), (1e-3, compiled.SEGMENTS)):
        of.pace.wait = wait
        assert [segment.stop for segment in of._segments(begin)] == list(range(1, most + 1))


def test_a_resumed_run_takes_long_calls_again(tmp_path, monkeypatch):
    """Its first call compiles and says nothing about the speed; nor may a slow one decide it for
    good.
    """
    calls = []

    def simulate(stall, **options):
        def note(route):
            start, count = route[0]
            calls.append(int(route[count, 0] - start))
            if len(calls) == stall:
                time.sleep(0.3)

        calls.clear()
        work.pace_of.cache_clear()
        watch_calls(monkeypatch, note)
        return sdesam.simulate(
            double_well(),
            jax.random.key(3),
            4,
            50.0,
            0.01,
            times=[50.0],
            observe=OBSERVE,
            **options,
        )

    whole = simulate(None)
    real, writes = store.write_arrays, []

    def write_and_die(*arguments, **keywords):
        real(*arguments, **keywords)
        writes.append(1)
        if len(writes) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_arrays", write_and_die)
        with pytest.raises(Killed):
            simulate(None, snapshot=tmp_path / "s", snapshot_every=0)
    behind = sum(calls)
    assert 0 < behind < 5000
    resumed = simulate(1, snapshot=tmp_path / "s")
    assert sum(calls) == 5000 - behind
    assert len(calls) < 20, calls
    np.testing.assert_array_equal(resumed.final, whole.final)
    simulate(2)
    assert sum(calls) == 5000
    assert len(calls) < 30, calls


def test_a_slow_look_does_not_cut_all_others_off(monkeypatch):
    """One stall while looks are timed, and the next calls are long again."""
    calls = []

    def note(route):
        calls.append(int(route[1 : 1 + route[0, 1], 1].sum()))
        if len(calls) == 3:
            time.sleep(0.6)

    watch_calls(monkeypatch, note)
    sdesam.simulate(
        double_well(),
        jax.random.key(3),
        4,
        20.0,
        0.01,
        times=np.arange(1, 201) * 0.1,
        observe=OBSERVE,
    )
    assert sum(calls) == 200
    assert calls[2] == 1, "the one that is timed"
    assert len(calls) < 40, calls
    first = len(calls)
    sdesam.simulate(
        double_well(),
        jax.random.key(4),
        4,
        20.0,
        0.01,
        times=np.arange(1, 201) * 0.1,
        observe=OBSERVE,
    )
    assert len(calls) - first < first, "another run knows how long they take"


def test_resume_of_runs_that_diverge(tmp_path, monkeypatch):
    """A chunk that is on its second way, without the paths that diverge, resumes there."""
    sde = sdesam.SDE(lambda x: jnp.where(x > 1.5, x**9, -x), lambda x, xi: xi, (), 1.0)

    def run(**options):
        return sdesam.simulate(
            sde, jax.random.key(2), 40, 3.0, 0.1, observe={"x": lambda x: x}, chunk=20, **options
        )

    whole, real, left = run(), store.write_arrays, [0]
    assert 0 < whole.diverged.count < 40

    def write_and_die(*arguments, **keywords):
        real(*arguments, **keywords)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(store, "write_arrays", write_and_die)
    while True:
        left[0] = 7
        try:
            out = run(snapshot=tmp_path / "s", snapshot_every=0)
            break
        except Killed:
            pass
    assert_equal(out, whole)
    np.testing.assert_array_equal(out.diverged.time, whole.diverged.time)


def test_the_time_of_divergence_is_exact():
    """dX = (X > 1.5 ? X^9 : -X) dt + dW: the recursion in numpy, with the engine's own draws, says
    when each path leaves.
    """
    sde = sdesam.SDE(lambda x: jnp.where(x > 1.5, x**9, -x), lambda x, xi: xi, (), 1.0)
    out = sdesam.simulate(sde, jax.random.key(2), 40, 3.0, 0.1, times=[3.0])
    x, left = np.ones(40, np.float32), np.full(40, -1)
    for k in range(30):
        xi = np.asarray(sdesam.ensemble.standard_normals(jax.random.key(2), k, jnp.arange(40)))
        with np.errstate(all="ignore"):
            x = (
                x + np.float32(0.1) * np.where(x > 1.5, x**9, -x) + np.float32(np.sqrt(0.1)) * xi
            ).astype(np.float32)
        left = np.where((left < 0) & ~np.isfinite(x), k + 1, left)
    np.testing.assert_array_equal(out.diverged.paths, np.flatnonzero(left >= 0))
    np.testing.assert_allclose(out.diverged.time, 0.1 * left[left >= 0])
    assert len(np.unique(out.diverged.time)) > 3


def test_other_snapshots_are_refused(tmp_path):
    target = tmp_path / "run.snapshot"
    simulate(snapshot=target)
    for change, told in [
        ({"dt": 0.05}, r"dt \(0.01 there, 0.05 here\)"),
        ({"paths": 22}, r"paths \(20 there, 22 here\)"),
        ({"chunk": 5}, r"chunk \(20 there, 6 here\)"),
        ({"keep": "means"}, "keep"),
    ]:
        with pytest.raises(
            ValueError,
            match=(
                f"is of another run, which differs in .*{told}.*finish that run, delete it, or name"
                " another file"
            ),
        ):
            simulate(snapshot=target, **change)
    with jax.default_matmul_precision("float32"):
        simulate(snapshot=target)  # what it is without a word
    with (
        jax.default_matmul_precision("bfloat16"),
        pytest.raises(
            ValueError, match=r"precision of products \('float32' there, 'bfloat16' here\)"
        ),
    ):
        simulate(snapshot=target)
    twice = sdesam.SDE(lambda x: 2 * drift(x), noise, (2,), np.array([0.5, 0.2]))
    with pytest.raises(ValueError, match=r"differs in functions and numbers"):
        sdesam.simulate(twice, jax.random.key(3), 20, 0.5, 0.01, observe=OBSERVE, snapshot=target)
    arrays, meta = store.read_arrays(target)
    meta["identity"]["versions"]["sdesam"] = "0.0.1"
    store.write_arrays(target, arrays, meta)
    with pytest.raises(ValueError, match="differs in versions"):
        simulate(snapshot=target)
    target.write_bytes(target.read_bytes()[:1000])
    with pytest.raises(
        ValueError,
        match="cannot be read, so the run does not start: delete it, or name another file",
    ):
        simulate(snapshot=target)
    simulate().save(target)
    with pytest.raises(ValueError, match="is no snapshot of this version"):
        simulate(snapshot=target)
    with pytest.raises(ValueError, match="snapshot_every=-1"):
        simulate(snapshot=target, snapshot_every=-1)


def test_a_full_disk_leaves_the_old_snapshot(tmp_path, monkeypatch):
    target, real, written = tmp_path / "run.snapshot", store.write_atomically, [0]

    def full(path, write):
        written[0] += 1
        if written[0] < 4:
            return real(path, write)

        def half(file):
            write(file)
            raise OSError(errno.ENOSPC, "No space left on device")

        return real(path, half)

    monkeypatch.setattr(store, "write_atomically", full)
    with pytest.raises(
        OSError,
        match=(
            r"run.snapshot' cannot be written: No space left on device; the one before it is intact"
        ),
    ):
        simulate(snapshot=target, snapshot_every=0)
    assert [file.name for file in tmp_path.iterdir()] == ["run.snapshot"]
    monkeypatch.undo()
    assert_equal(simulate(snapshot=target), simulate())


_LONG = """
import sys, jax, numpy as np, sdesam
from tests.ensemble.test_scale import double_well, OBSERVE
out = sdesam.simulate(
    double_well(),
    jax.random.key(3),
    30_000,
    30.0,
    0.01,
    observe=OBSERVE,
    chunk=10_000,
    snapshot=sys.argv[1],
    snapshot_every=0,
)
np.savez(sys.argv[2], final=out.final, **out.mean, **{f"e{k}": v for k, v in out.stderr.items()})
"""


def test_kill_and_resume(tmp_path):
    """A process killed with SIGKILL in the middle of a run, and one that takes over; bit for bit
    the numbers of an undisturbed run.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(snapshot, out):
        return subprocess.Popen(
            [sys.executable, "-c", _LONG, str(tmp_path / snapshot), str(tmp_path / out)],
            cwd=ROOT,
            env=environment,
        )

    undisturbed, victim = start("other", "undisturbed.npz"), start("run", "never.npz")
    try:
        until = time.monotonic() + 90
        while (
            not (tmp_path / "run").exists()
            or store.read_arrays(tmp_path / "run")[1]["position"]["done"] < 10_000
        ):
            assert time.monotonic() < until
            assert victim.poll() is None, "it must be killed before it is through"
            time.sleep(0.01)
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
        assert not (tmp_path / "never.npz").exists()
        position = store.read_arrays(tmp_path / "run")[1]["position"]
        assert 10_000 <= position["done"] < 30_000
        resumed = start("run", "resumed.npz")
        assert resumed.wait(90) == 0
        assert undisturbed.wait(90) == 0
    finally:
        for process in (undisturbed, victim):
            process.kill()
            process.wait()
    with np.load(tmp_path / "undisturbed.npz") as a, np.load(tmp_path / "resumed.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


_SHARE = """
import sys, jax, numpy as np
jax.distributed.initialize(
    f"127.0.0.1:{sys.argv[1]}",
    num_processes=2,
    process_id=int(sys.argv[2]),
    initialization_timeout=60,
)
from tests.ensemble.test_scale import simulate
out = simulate(paths=21, chunk=3, keep="values")
try:
    simulate(paths=1)
except ValueError as error:
    assert "2 processes for 1 paths" in str(error), error
else:
    raise AssertionError("one path for two processes")
np.savez(
    sys.argv[3],
    final=out.final,
    values=out.values["x"],
    **out.mean,
    **{f"e{k}": v for k, v in out.stderr.items()},
)
"""


def test_two_processes(tmp_path):
    """Two real processes on this machine, of one device each: each has the whole result, the draws
    are those of one process.
    """
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    files = [tmp_path / f"{k}.npz" for k in range(2)]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _SHARE, str(port), str(k), str(files[k])],
            cwd=ROOT,
            env=environment,
        )
        for k in range(2)
    ]
    try:
        assert [process.wait(90) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.wait()
    whole = simulate(paths=21, keep="values")
    found = [dict(np.load(file)) for file in files]
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    # rounding of another placement, as above
    np.testing.assert_allclose(found[0]["final"], whole.final, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0]["values"], whole.values["x"], rtol=1e-5, atol=1e-6)
    for name in OBSERVE:
        np.testing.assert_allclose(found[0][name], whole.mean[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[0][f"e{name}"], whole.stderr[name], rtol=1e-4, atol=1e-6)


_CACHED = """
import sys, jax
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
from tests.ensemble.test_scale import simulate
simulate()
sys.exit(10 + len(hits))
"""


def test_compiled_code_is_kept_for_the_next_process(tmp_path):
    """jax's persistent cache, where the user turns it on: the second process finds what the first
    compiled.
    """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **cache}
    runs, kept = [], []
    for _ in range(2):
        runs.append(
            subprocess.run(
                [sys.executable, "-c", _CACHED], cwd=ROOT, env=environment, timeout=90
            ).returncode
        )
        kept.append(
            {
                file.name
                for file in tmp_path.iterdir()
                if file.name.startswith("jit_follow-") and "atime" not in file.name
            }
        )
    assert runs[0] >= 10
    assert len(kept[0]) == 1
    assert kept[1] == kept[0]
    assert runs[1] >= runs[0] + 2, "start and steps, at least"
