"""The store of runs: whole or absent, one folder per configuration, nothing foreign."""

import errno
import json
import shutil
from collections import namedtuple

import numpy as np
import pytest

from sdesam import runs, store
from sdesam.runs import Numbers, RunStore

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
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 3 * 2**20))
    with pytest.raises(OSError, match=r"no room for the store .* 3 MB are free on its disk, 64 MB are needed"):
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
    record = folder / runs.key(CONFIG) / "run.json"
    good = json.loads(record.read_text())
    record.write_text(json.dumps(good)[:40])
    with pytest.raises(ValueError, match="is damaged"):
        RunStore(folder).load(CONFIG)
    record.write_text(json.dumps({**good, "config": {**CONFIG, "seed": 4}}))
    with pytest.raises(ValueError, match="has another configuration than its name says"):
        RunStore(folder).load(CONFIG)
    record.write_text(json.dumps({**good, "schema": "sdesam.runs/0"}))
    with pytest.raises(ValueError, match=r"has schema 'sdesam\.runs/0', and this version reads"):
        RunStore(folder).load(CONFIG)
    (folder / "store.json").write_text('{"schema": "sdesam.runs/0"}')
    with pytest.raises(ValueError, match=r"has schema 'sdesam\.runs/0', and this version reads 'sdesam\.runs/1'"):
        RunStore(folder)
    (folder / "store.json").write_text("{")
    with pytest.raises(ValueError, match=r"unreadable store\.json"):
        RunStore(folder)


def test_one_sweep_at_a_time_and_leftovers_are_cleared(tmp_path):
    folder = RunStore(tmp_path)
    folder.save(CONFIG, NUMBERS, 1.0)
    (tmp_path / ".unfinished-x").mkdir()
    with folder.sweep():
        assert not (tmp_path / ".unfinished-x").exists()
        with pytest.raises(ValueError, match="another sweep is at work"), RunStore(tmp_path).sweep():
            pass
    with RunStore(tmp_path).sweep():
        assert list(folder) == [runs.key(CONFIG)]
