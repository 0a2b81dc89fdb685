"""Atomic writes and provenance."""

import json

import numpy as np
import pytest

from sdesam import store


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    store.write_json(target, {"x": np.float32(1.5), "nan": float("nan"), "list": np.arange(3)})
    assert json.loads(target.read_text()) == {"x": 1.5, "nan": None, "list": [0, 1, 2]}

    def fail(file):
        file.write(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        store.write_atomically(target, fail)
    assert json.loads(target.read_text())["x"] == 1.5
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_check_folder_creates_nothing(tmp_path):
    store.check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        store.check_folder(tmp_path / "file" / "b")


def test_provenance_is_plain_data():
    found = store.provenance()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["jax"]
