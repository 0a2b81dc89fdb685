"""The store of runs: whole or absent, one folder per configuration, nothing foreign."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from sdesam._util import store
from sdesam.lab import runs
from sdesam.lab.runs import Numbers, RunStore

ROOT = Path(store.__file__).parent.parent
CONFIG = {"variant": "sam", "seed": 3, "micro": [64, 1]}
NUMBERS = Numbers({"accuracy": 0.5, "diverged": False}, {"curve": np.arange(4.0)})


def test_a_run_comes_back(tmp_path):
    store = RunStore(tmp_path / "runs")
    assert CONFIG not in store
    assert not (tmp_path / "runs").exists(), "looking creates nothing"
    store.save(CONFIG, NUMBERS, 1.25)
    run = RunStore(tmp_path / "runs").load({"seed": 3, "micro": (64, 1), "variant": "sam"})
    assert run.config == CONFIG
    assert run.numbers.values == NUMBERS.values
    assert run.seconds == 1.25
    assert run.provenance["versions"]["jax"]
    np.testing.assert_array_equal(run.numbers.arrays["curve"], NUMBERS.arrays["curve"])
    assert list(store) == [runs.key(CONFIG)]
    for other in ({**CONFIG, "seed": 4}, {**CONFIG, "more": 1}, {"variant": "sam"}):
        assert other not in store
        with pytest.raises(KeyError, match="no run with configuration"):
            store.load(other)


def test_a_stored_run_is_not_overwritten(tmp_path):
    store = RunStore(tmp_path)
    store.save(CONFIG, NUMBERS, 1.0)
    store.save(CONFIG, Numbers({"accuracy": 9.9}), 2.0)
    assert store.load(CONFIG).numbers.values["accuracy"] == 0.5


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = RunStore(tmp_path)
    folder.save({"seed": 0}, NUMBERS, 1.0)
    monkeypatch.setattr(store, "write_arrays", lambda *args: full(*args[:2]))
    with pytest.raises(OSError, match="No space left"):
        folder.save(CONFIG, NUMBERS, 1.0)
    assert CONFIG not in folder
    assert {p.name for p in tmp_path.iterdir()} == {"store.json", runs.key({"seed": 0})}


def test_no_room_is_seen_before_any_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 3 * 10**6))
    with pytest.raises(
        OSError, match=r"no room for the store .* 3 MB are free on its disk, 64 MB are needed"
    ):
        RunStore(tmp_path / "runs").check_room()
    assert not (tmp_path / "runs").exists()


def test_foreign_and_damaged_folders_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(ValueError, match="holds other things than runs"):
        RunStore(tmp_path / "photos")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        RunStore(tmp_path / "photos" / "a.jpg")
    folder = tmp_path / "runs"
    RunStore(folder).save(CONFIG, NUMBERS, 1.0)
    (folder / "store.json").write_text('{"schema": "sdesam.runs/0"}')
    with pytest.raises(
        ValueError, match=r"has schema 'sdesam\.runs/0', and this version reads 'sdesam\.runs/2'"
    ):
        RunStore(folder)
    (folder / "store.json").write_text("{")
    with pytest.raises(ValueError, match=r"unreadable store\.json"):
        RunStore(folder)


def stored(tmp_path):
    """A store with two runs, and the folder of the first."""
    folder = RunStore(tmp_path / "runs")
    folder.save(CONFIG, NUMBERS, 1.0)
    folder.save({**CONFIG, "seed": 4}, Numbers({"accuracy": 0.7}, {"curve": np.zeros(4)}), 1.0)
    return folder, folder.folder / runs.key(CONFIG)


def edited(**changes):
    """A change of `run.json` by somebody who knows how its checksum is made."""

    def change(place, other):
        meta = json.loads((place / "run.json").read_text())
        meta = {
            name: value
            for name, value in {**meta, **changes}.items()
            if value is not ... and name != "checksum"
        }
        (place / "run.json").write_text(json.dumps({**meta, "checksum": runs._checksum(meta)}))

    return change


def flipped(name, position):
    def change(place, other):
        content = bytearray((place / name).read_bytes())
        content[int(position * len(content))] ^= 1
        (place / name).write_bytes(content)

    return change


def replaced(name, content):
    def change(place, other):
        (place / name).write_bytes(content if content is not None else (other / name).read_bytes())

    return change


def removed(name, folder=False):
    def change(place, other):
        (place / name).unlink()
        if folder:
            (place / name).mkdir()

    return change


def a_file_for_a_folder(place, other):
    shutil.rmtree(place)
    place.write_text("")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            replaced("arrays.npz", None),
            "its arrays.npz is of another run, or not as it was written",
        ),
        (replaced("arrays.npz", b""), "its arrays.npz is of another run, or not as it was written"),
        *(
            (
                flipped("arrays.npz", k / 10),
                "its arrays.npz is of another run, or not as it was written",
            )
            for k in range(10)
        ),
        *(
            (
                flipped("run.json", k / 23),
                r"its run.json is not as it was written|is no JSON|has schema",
            )
            for k in range(23)
        ),
        (removed("arrays.npz"), "its arrays.npz is missing"),
        (removed("arrays.npz", folder=True), "is no ordinary file"),
        (removed("run.json"), "its run.json is missing"),
        (removed("run.json", folder=True), "is no ordinary file"),
        (lambda place, other: (shutil.rmtree(place), place.mkdir()), "its run.json is missing"),
        (a_file_for_a_folder, "its run.json cannot be read: Not a directory"),
        (replaced("run.json", b"[1, 2]"), "its run.json holds no dictionary"),
        (replaced("run.json", b"null"), "its run.json holds no dictionary"),
        (replaced("run.json", b"7"), "its run.json holds no dictionary"),
        (
            replaced("run.json", b'{"schema": "sdesam.runs/2"}'),
            "its run.json is not as it was written",
        ),
        (replaced("run.json", b"{"), "is no JSON"),
        (replaced("run.json", b"[" * 10**5), "is no JSON"),
        (replaced("run.json", None), "its arrays.npz is of another run"),
        (
            lambda place, other: (shutil.rmtree(place), shutil.copytree(other, place)),
            "has another configuration than its name says",
        ),
        (replaced("run.json", b"{}"), r"has schema None, and this version reads 'sdesam\.runs/2'"),
        (
            edited(schema="sdesam.runs/1"),
            r"has schema 'sdesam\.runs/1', and this version reads 'sdesam\.runs/2'",
        ),
        (edited(config={**CONFIG, "seed": 5}), "has another configuration than its name says"),
    ],
)
def test_damaged_runs_are_refused(change, message, tmp_path):
    folder, place = stored(tmp_path)
    other = folder.folder / runs.key({**CONFIG, "seed": 4})
    change(place, other)
    for use in (folder.load, folder.check):
        with pytest.raises(ValueError, match=rf"the run .*{place.name}' .*{message}") as found:
            use(CONFIG)
        assert "\n" not in str(found.value)
        assert "delete it" in str(found.value)
    assert folder.load({**CONFIG, "seed": 4}).numbers.values["accuracy"] == 0.7


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", "7", '{"schema": null}', '"sdesam.runs/2"', "[" * 10**5]
)
def test_a_mark_that_is_none(content, tmp_path):
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"unreadable store\.json|has schema .*, and this version reads"
    ):
        RunStore(tmp_path)
    (tmp_path / "store.json").unlink()
    (tmp_path / "store.json").mkdir()
    with pytest.raises(ValueError, match=r"unreadable store\.json"):
        RunStore(tmp_path)


_SAVES = """
import os, signal, sys, time
from sdesam._util import store; from sdesam.lab import runs
real = store.write_json
def slow(path, value):
    if path.name == "run.json":
        print("writing", flush=True)
        if sys.argv[2] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdin.read()
    real(path, value)
store.write_json = slow
runs.RunStore(sys.argv[1]).save({"seed": int(sys.argv[3])}, runs.Numbers({"a": 1}), 1.0)
"""


def test_what_killed_writers_left_is_cleared(tmp_path):
    """By the next sweep; a writer that lives, and what is not ours, stay."""
    folder = RunStore(tmp_path)

    def start(how, seed):
        return subprocess.Popen(
            [sys.executable, "-c", _SAVES, str(tmp_path), how, str(seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    (tmp_path / ".unfinished-x").mkdir()
    (tmp_path / ".notes.swp").touch()
    with start("die", 0) as dead, start("live", 1) as alive:
        assert dead.stdout.readline() == alive.stdout.readline() == b"writing\n"
        assert dead.wait(30) == -signal.SIGKILL
        assert len(list((tmp_path / ".unfinished").iterdir())) == 2
        with folder.sweep():
            assert len(list((tmp_path / ".unfinished").iterdir())) == 1
        alive.communicate()
        assert alive.returncode == 0
    assert list(folder) == [runs.key({"seed": 1})]
    assert {place.name for place in tmp_path.iterdir()} == {
        "store.json",
        ".unfinished-x",
        ".notes.swp",
        runs.key({"seed": 1}),
    }


def test_many_write_at_once(tmp_path):
    """The same run, and runs of their own."""
    folder, done = RunStore(tmp_path), []

    def work(thread):
        for seed in range(10):
            for config in ({"seed": seed}, {"seed": seed, "thread": thread}):
                folder.save(config, NUMBERS, 1.0, {})
                done.append(folder.load(config).numbers.values)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [NUMBERS.values] * 120
    assert len(list(folder)) == 70
    assert {place.name for place in tmp_path.iterdir()} == {"store.json", *folder}


def test_runs_of_any_dtype_and_name(tmp_path):
    import ml_dtypes

    arrays = {
        "file": np.ones(2, ml_dtypes.bfloat16),
        "params.a/b": np.arange(3),
        "../x": np.zeros(()),
    }
    RunStore(tmp_path).save(
        CONFIG, Numbers({"nan": float("nan"), "words": ("a", "b"), 3: np.float32(0.1)}, arrays), 1.0
    )
    back = RunStore(tmp_path).load(CONFIG).numbers
    assert back.values == {"nan": None, "words": ["a", "b"], "3": float(np.float32(0.1))}
    for name, array in arrays.items():
        assert back.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(back.arrays[name], array)


def test_one_sweep_at_a_time(tmp_path):
    folder = RunStore(tmp_path)
    folder.save(CONFIG, NUMBERS, 1.0)
    with folder.sweep():
        with (
            pytest.raises(ValueError, match="another sweep is at work"),
            RunStore(tmp_path).sweep(),
        ):
            pass
        RunStore(tmp_path).save({"seed": 8}, NUMBERS, 1.0)
    with RunStore(tmp_path).sweep():
        assert set(folder) == {runs.key(CONFIG), runs.key({"seed": 8})}
    assert {place.name for place in tmp_path.iterdir()} == {"store.json", *folder}
