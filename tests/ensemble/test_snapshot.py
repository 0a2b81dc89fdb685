"""Snapshots: read by the very run that wrote them and by no other, whole, of any dtype, used by one
run at a time.
"""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam._util import store
from sdesam.ensemble import hardware
from sdesam.ensemble.snapshot import fingerprint

ROOT = Path(sdesam.__file__).parent.parent
TABLE = np.linspace(0.0, 1.0, 1000, dtype=np.float32)
OTHER = TABLE.copy()
# the smallest change there is, where a printed table is elided
OTHER[517] = np.nextafter(OTHER[517], np.float32(2))


class Killed(BaseException):
    pass


def decay(**options):
    sde = sdesam.SDE(
        lambda x: -x, lambda x, xi: 0.1 * xi, noise_shape=(2,), x0=options.pop("x0", np.ones(2))
    )
    options = {"paths": 4, "horizon": 1.0, "dt": 0.25, "observe": {"x": lambda x: x}} | options
    return sdesam.simulate(sde, jax.random.key(0), **options)


def jitted(table):
    return jax.jit(lambda x: (jnp.asarray(table) * x).sum())


def in_scan(table):
    return lambda x: jax.lax.scan(
        lambda total, row: (total + jitted(table)(x), None), 0.0, jnp.arange(2.0)
    )[0]


def in_while(table):
    return lambda x: jax.lax.while_loop(lambda k: jitted(table)(k) < 10, lambda k: k + 1.0, x)


def in_cond(table):
    return lambda x: jax.lax.cond(x > 0, jitted(table), lambda x: x, x)


def in_switch(table):
    return lambda x: jax.lax.switch(1, [jnp.sin, jnp.cos, jitted(table)], x)


def in_custom_jvp(table):
    fn = jax.custom_jvp(jitted(table))
    fn.defjvp(lambda x, dx: (fn(*x), dx[0]))
    return fn


def in_custom_vjp(table):
    fn = jax.custom_vjp(jitted(table))
    fn.defvjp(lambda x: (fn(x), None), lambda _, cotangent: (cotangent,))
    return fn


def in_rule_of_custom_vjp(table):
    fn = jax.custom_vjp(jnp.sin)
    fn.defvjp(lambda x: (jnp.sin(x), x), lambda x, cotangent: (cotangent * jitted(table)(x),))
    return jax.grad(fn)


def in_remat(table):
    return jax.grad(jax.checkpoint(jitted(table)))


def in_shard_map(table):
    mesh = jax.make_mesh((1,), ("a",))
    return jax.shard_map(
        jitted(table), mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )


def in_map_of_maps(table):
    return lambda x: jax.vmap(jax.vmap(lambda y: jitted(table)(y) + x))(jnp.ones((2, 2)))


def in_solve(table):
    return lambda x: jax.lax.custom_linear_solve(
        lambda v: 2 * v, x, lambda _, b: jitted(table)(b), symmetric=True
    )


def in_literal(table):
    return lambda x: x * float(table[517])


def in_argument_of_reduce(table):
    return lambda x: jax.lax.reduce(jnp.ones(3), np.float32(table[517]), jax.lax.add, (0,)) * x


KINDS = [
    value for name, value in list(globals().items()) if name.startswith("in_") or name == "jitted"
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_number_in_a_function_is_part_of_its_fingerprint(kind):
    found = [
        fingerprint([(kind(table), (np.float32(0.5),))]) for table in (TABLE, TABLE.copy(), OTHER)
    ]
    assert found[0] == found[1] != found[2]


def test_what_is_part_of_a_fingerprint():
    def of(fn, *arguments):
        return fingerprint([(fn, arguments)])

    two = np.ones(2, np.float32)
    different = [
        of(jnp.sin, two),
        of(jnp.cos, two),
        of(jnp.sin, 2 * two),
        of(jnp.sin, two.astype(np.float16)),
        of(lambda x: jnp.sin(jnp.sin(x)), two),
        of(lambda x: x + 1, two),
        of(lambda x: x - 1, two),
        of(lambda x, y: x - y, two, 2 * two),
        of(lambda x, y: y - x, two, 2 * two),
        of(lambda x: jnp.cumsum(x), two),
        of(lambda x: jnp.cumsum(x, axis=0)[::-1], two),
        of(lambda x: jnp.sort(x), two),
        of(lambda x: -jnp.sort(-x), two),
        of(lambda key: jax.random.normal(key), jax.random.key(0)),
        of(lambda key: jax.random.normal(key), jax.random.key(1)),
        of(lambda key: jax.random.normal(key), jax.random.key(0, impl="rbg")),
        fingerprint([(jnp.sin, (two,)), (jnp.cos, (two,))]),
        fingerprint([(jnp.cos, (two,)), (jnp.sin, (two,))]),
    ]
    assert len(set(different)) == len(different)
    inner = jax.jit(jnp.sin)
    # each calls the one before twice: 2**14 calls, hashed one by one, would take a minute
    for _ in range(14):
        inner = jax.jit(lambda x, inner=inner: inner(inner(x)))
    assert of(inner, two) == of(inner, two)


_PRINTS = """
import jax, jax.numpy as jnp, numpy as np
from tests.ensemble.test_snapshot import *
mesh = jax.make_mesh((1, 1), ("alpha", "beta"))
many = jax.shard_map(
    jitted(TABLE),
    mesh=mesh,
    in_specs=jax.P(),
    out_specs=jax.P(),
    axis_names={"alpha", "beta"},
    check_vma=False,
)
print(
    fingerprint(
        [(many, (np.float32(0.5),)), *[(kind(TABLE), (np.float32(0.5),)) for kind in KINDS]]
    )
)
"""


def test_fingerprints_of_two_processes_agree():
    """Sets in another order, functions at other addresses."""
    found = {
        subprocess.run(
            [sys.executable, "-c", _PRINTS],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(found) == 1


def test_another_table_within_jit_is_another_run(tmp_path):
    """Killed with test set A, resumed with B: refused, in a drift, in the noise and in an
    observable.
    """

    def run(**changed):
        of = {name: jitted(changed.get(name, TABLE)) for name in ("drift", "noise", "observable")}
        sde = sdesam.SDE(
            lambda x: -x * of["drift"](1.0), lambda x, xi: xi * of["noise"](1.0), (), 1.0
        )
        options = {"observe": {"x": lambda x: of["observable"](x)}, "snapshot": tmp_path / "s"}
        return sdesam.simulate(sde, jax.random.key(0), 2, 0.2, 0.1, **options)

    run()
    run()
    for name in ("drift", "noise", "observable"):
        with pytest.raises(
            ValueError, match="is of another run, which differs in functions and numbers"
        ):
            run(**{name: OTHER})


def _ask(x):
    return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct((), np.float32), x)


def _ask_io(x):
    return jax.experimental.io_callback(np.asarray, jax.ShapeDtypeStruct((), np.float32), x)


@pytest.mark.parametrize(
    "ask", [_ask, _ask_io, jax.jit(_ask), lambda x: jax.lax.cond(x > 0, _ask, jnp.sin, x)]
)
def test_callbacks_are_refused(ask, tmp_path):
    with pytest.raises(
        ValueError,
        match=(
            r"calls back into Python \((pure|io)_callback\), whose results a snapshot cannot know:"
            r" leave the call out"
        ),
    ):
        decay(observe={"x": lambda x: ask(x.sum())}, snapshot=tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_printing_is_no_callback(tmp_path, capfd):
    def loud(x, word):
        jax.debug.print(word + " {}", x)
        return x

    out = decay(observe={"x": lambda x: loud(x, "one")}, snapshot=tmp_path / "s")
    again = decay(observe={"x": lambda x: loud(x, "two")}, snapshot=tmp_path / "s")
    np.testing.assert_array_equal(out.mean["x"], again.mean["x"])


def test_settings_are_part_of_a_run(tmp_path, monkeypatch):
    target = tmp_path / "s"
    decay(snapshot=target)
    with (
        jax.threefry_partitionable(False),
        pytest.raises(ValueError, match=r"differs in settings of jax"),
    ):
        decay(snapshot=target)
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"differs in .*settings of jax"):
        decay(x0=np.ones(2, np.float32), snapshot=target)
    with (
        jax.default_matmul_precision("bfloat16"),
        pytest.raises(ValueError, match="precision of products"),
    ):
        decay(snapshot=target)
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "instruction_set", lambda: "x86_64 avx2")
        with pytest.raises(
            ValueError, match=r"differs in instructions of the CPU \(.* there, 'x86_64 avx2' here\)"
        ):
            decay(snapshot=target)
    flags = os.environ["XLA_FLAGS"]
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{flags} --xla_cpu_max_isa=AVX2")
        with pytest.raises(ValueError, match="differs in flags of XLA"):
            decay(snapshot=target)
        patch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count=64 {flags}")
        decay(snapshot=target)  # devices are counted for themselves


def test_many_observation_times_are_part_of_a_run(tmp_path):
    times = np.arange(1, 1202) / 1024
    decay(horizon=2.0, dt=1 / 1024, times=times, snapshot=tmp_path / "s")
    decay(horizon=2.0, dt=1 / 1024, times=times, snapshot=tmp_path / "s")
    assert (tmp_path / "s").stat().st_size < 100_000
    with pytest.raises(ValueError, match="differs in observation steps"):
        decay(
            horizon=2.0,
            dt=1 / 1024,
            times=np.append(times[:-1], 1300 / 1024),
            snapshot=tmp_path / "s",
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_runs_of_any_dtype_are_saved_and_resumed(dtype, tmp_path, monkeypatch):
    """States, values of observables of other dtypes, trajectories: bit for bit, stopped after every
    second snapshot.
    """
    kind = jnp.dtype(dtype)
    sde = sdesam.SDE(
        lambda x: -x,
        lambda x, xi: (jnp.float32(0.1) * xi).astype(x.dtype),
        noise_shape=(2,),
        x0=jnp.ones(2, kind),
    )
    observe = {
        "low": lambda x: x[0].astype(jnp.bfloat16),
        "whole": lambda x: (8 * x[0]).astype(jnp.int4),
        "above": lambda x: x[0] > 0.5,
        "lower": lambda x: x[0].astype(jnp.float8_e5m2),
    }

    def run(**options):
        return sdesam.simulate(
            sde,
            jax.random.key(0),
            6,
            1.0,
            0.25,
            observe=observe,
            keep="trajectories",
            chunk=2,
            **options,
        )

    whole = run()
    real, left = store.write_arrays, [0]

    def write_and_die(*arguments):
        real(*arguments)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(store, "write_arrays", write_and_die)
    stops = 0
    while True:
        left[0] = 2
        try:
            resumed = run(snapshot=tmp_path / "s", snapshot_every=0)
            break
        except Killed:
            stops += 1
    monkeypatch.undo()
    assert stops > 3
    resumed.save(tmp_path / "out.npz")
    for out in (resumed, sdesam.Result.load(tmp_path / "out.npz")):
        assert out.final.dtype == out.trajectory.dtype == kind
        assert out.values["low"].dtype == jnp.bfloat16
        assert out.values["whole"].dtype == jnp.int4
        assert out.values["above"].dtype == bool
        assert out.values["lower"].dtype == jnp.float8_e5m2
        np.testing.assert_array_equal(out.final.view(np.uint8), whole.final.view(np.uint8))
        np.testing.assert_array_equal(
            out.trajectory.view(np.uint8), whole.trajectory.view(np.uint8)
        )
        for name in observe:
            np.testing.assert_array_equal(
                out.values[name].view(np.uint8), whole.values[name].view(np.uint8)
            )
            np.testing.assert_array_equal(out.mean[name], whole.mean[name])


def test_arrays_travel_between_processes_in_any_dtype(monkeypatch):
    """The bytes that a process sends, as another one reads them."""
    from jax.experimental import multihost_utils

    arrays = {
        "a": np.arange(3).astype(jnp.bfloat16),
        "b/c": np.ones((2, 2)),
        "d": np.array(5, jnp.int4),
    }
    monkeypatch.setattr(hardware, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda row: np.stack([row, row]))
    for found in hardware.gather(arrays):
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_other_peoples_files_stay(tmp_path):
    foreign = [".rho0.05.ab12cd", ".rho0.npz", ".notes.swp", ".run1.orig"]
    for name in foreign:
        (tmp_path / name).write_text("not yours")
    (tmp_path / ".rho0.a folder").mkdir()
    for name in ("rho0", "notes", "run[1]", "r" * 255):
        decay(snapshot=tmp_path / name)
    assert all((tmp_path / name).read_text() == "not yours" for name in foreign)


def test_what_a_killed_run_left_goes_when_it_starts_again(tmp_path):
    (tmp_path / ".s.sdesam-partial").write_bytes(b"half of a snapshot")
    (tmp_path / ".s.sdesam-lock").touch()
    decay(snapshot=tmp_path / "s")
    assert [place.name for place in tmp_path.iterdir()] == ["s"]


_HOLDS = """
import sys
from sdesam._util import store
with store.lock(sys.argv[1], ""):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_snapshot_is_used_by_one_run(tmp_path, monkeypatch):
    """Of this process or of another: the second gets a sentence, and goes on when the first has
    ended or was killed.
    """
    target, begun, go_on, found = tmp_path / "s", threading.Event(), threading.Event(), []
    (tmp_path / "link").symlink_to("s")

    def refused():
        for name in ("s", "link"):
            with pytest.raises(
                ValueError,
                match=(
                    f"{name}' is in use by another run: wait for that run to end, or name another"
                    " file"
                ),
            ):
                decay(snapshot=tmp_path / name)

    def slow(work, tick):
        begun.set()
        assert go_on.wait(60)
        real(work, tick)

    real = sdesam.ensemble.work.Work.run
    with monkeypatch.context() as patch:
        patch.setattr(sdesam.ensemble.work.Work, "run", slow)
        first = threading.Thread(target=lambda: found.append(decay(snapshot=target)))
        first.start()
        assert begun.wait(60)
        refused()
        go_on.set()
        first.join(60)
    whole = decay().mean["x"]
    np.testing.assert_array_equal(found[0].mean["x"], whole)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(target)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"held\n"
        refused()
        other.kill()
    assert sorted(place.name for place in tmp_path.iterdir()) == [".s.sdesam-lock", "link", "s"]
    np.testing.assert_array_equal(decay(snapshot=target).mean["x"], whole)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["link", "s"]


def test_damaged_and_foreign_snapshots_are_refused(tmp_path):
    target = tmp_path / "s"
    decay(snapshot=target)
    content, (arrays, meta) = target.read_bytes(), store.read_arrays(target)
    unreadable = (
        "the snapshot .*s' cannot be read, so the run does not start: delete it, or name another"
        " file"
    )

    def refused(message):
        before = target.read_bytes()
        with pytest.raises(ValueError, match=message) as found:
            decay(snapshot=target)
        assert "\n" not in str(found.value)
        assert target.read_bytes() == before, "it is left as it is"

    for wrong in (b"", content[:1000], content[:-10], b"not an archive", bytes(1000)):
        target.write_bytes(wrong)
        refused(unreadable)
    for name in arrays:
        flipped = bytearray(content)
        flipped[content.index(f"{name}.npy".encode()) + 100] ^= 4
        target.write_bytes(flipped)
        refused(unreadable)
    np.savez(
        target.with_suffix(".npz"),
        allow_pickle=False,
        __meta__=np.array('{"schema": "sdesam.snapshot/3"}'),
    )
    target.with_suffix(".npz").replace(target)
    refused(unreadable)
    decay().save(target)
    refused(
        "has schema 'sdesam.result/2', not 'sdesam.snapshot/4': it is no snapshot of this version;"
        " name another file"
    )
    for wrong in ({**meta, "schema": "sdesam.snapshot/3"}, {**meta, "schema": ["x"]}, {}):
        store.write_arrays(target, arrays, wrong)
        refused("it is no snapshot of this version")
    for wrong in (
        {"schema": meta["schema"]},
        {**meta, "identity": None},
        {**meta, "identity": [1]},
    ):
        store.write_arrays(target, arrays, wrong)
        refused(unreadable)
    target.unlink()
    decay(paths=6, snapshot=target)
    refused("is of another run, which differs in paths")


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda place: os.symlink("/dev/null", place)]
)
def test_a_snapshot_is_an_ordinary_file(make, tmp_path):
    make(tmp_path / "s")
    with pytest.raises(
        (ValueError, OSError), match=r"s' (is no ordinary file|cannot be written: it is a folder)"
    ):
        decay(snapshot=tmp_path / "s")


def test_room_and_names_are_checked_before_any_step(tmp_path, monkeypatch):
    monkeypatch.setattr(sdesam.ensemble.work.Work, "run", lambda *args: pytest.fail("it ran"))
    for name, message in (
        ("a\0", "no name of a file"),
        ("", "empty name"),
        ("n" * 256, "File name too long"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            decay(snapshot=name if name == "" else tmp_path / name)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda place: type("", (), {"total": 10**6, "free": 50})
    )
    with pytest.raises(
        OSError, match=r"s' cannot be written: 5e-05 MB are free on its disk, 9.6e-05 MB are needed"
    ):
        decay(paths=8, snapshot=tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_a_snapshot_where_files_cannot_be_locked(tmp_path, monkeypatch):
    import filelock

    def refused(*args, **keywords):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock, "lock_descriptor", refused)
    whole = decay(snapshot=tmp_path / "s")
    np.testing.assert_array_equal(decay(snapshot=tmp_path / "s").mean["x"], whole.mean["x"])
    assert [place.name for place in tmp_path.iterdir()] == ["s"]


def test_results_are_checked_before_their_arrays_are_read(tmp_path, monkeypatch):
    target = tmp_path / "r.npz"
    decay(keep="trajectories").save(target)
    arrays, meta = store.read_arrays(target)
    assert sdesam.Result.load(target).config == meta["config"]

    def refused(message, changed=None, **more):
        store.write_arrays(target, {**arrays, **(changed or {})}, {**meta, **more})
        with monkeypatch.context() as patch:
            patch.setattr(store.Archive, "read", lambda self: pytest.fail("arrays were read"))
            with pytest.raises(ValueError, match=message):
                sdesam.Result.load(target)

    refused(
        "has schema 'sdesam.result/1': this version reads 'sdesam.result/2'",
        schema="sdesam.result/1",
    )
    refused("has schema None", schema=None)
    for name in ("config", "provenance", "paths", "leaves"):
        refused(f"is no result of sdesam: its {name} is missing or of another type", **{name: None})
    refused("its leaves are no paths", leaves=[None])
    refused("it has 1 arrays of the final states, and 2 paths to them", leaves=[[], []])
    refused("or the paths that diverged, have no such shape", {"time": np.ones((2, 2))})
    refused(
        "or the paths that diverged, have no such shape",
        {"diverged.paths": np.zeros(5), "diverged.time": np.zeros(5)},
    )
    for name, array in arrays.items():
        if not name.startswith("diverged"):
            refused("is no result of sdesam", {name: np.zeros((*array.shape, 3))})
            refused("is no result of sdesam", {name: np.zeros(77)})
    refused(r"array 'values.y' has shape \[4, 5\]", {"values.y": np.zeros((4, 5))})
    refused(r"array 'other' has shape \[\]", {"other": np.zeros(())})
    monkeypatch.setattr(hardware, "available_memory", lambda: 100)
    refused("needs .* GB of memory, but 1e-07 GB are free")


def test_states_with_keys_that_are_no_words_are_saved(tmp_path):
    """A dictionary by numbers or tuples: its arrays come back in order."""
    start = {(1, 2): np.ones(2), (0, 1): np.zeros(2)}
    sde = sdesam.SDE(
        lambda x: jax.tree.map(jnp.negative, x),
        lambda x, xi: jax.tree.map(lambda a: xi, x),
        (2,),
        start,
    )
    out = sdesam.simulate(sde, jax.random.key(0), 2, 0.2, 0.1)
    out.save(tmp_path / "r.npz")
    back = sdesam.Result.load(tmp_path / "r.npz").final
    np.testing.assert_array_equal(back, [out.final[(0, 1)], out.final[(1, 2)]])
