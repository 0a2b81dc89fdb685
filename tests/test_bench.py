"""The benchmark runs, and its contenders solve the same SDE: a comparison of speeds says nothing
otherwise. No time is asserted.
"""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from sdesam.cli import cli

pytest.importorskip("benchmarks.bench", reason="not a checkout")

from benchmarks import bench, floors, w1, w2
from benchmarks.timing import Contender, taking_part

# 5 standard errors of a difference: 6e-7 each; about 80 comparisons, together 5e-5
SIGMAS = 5.0


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    out = CliRunner().invoke(
        cli, ["bench", "--workload", "W1", "--workload", "W2", "--quick", "--output", str(folder)]
    )
    assert out.exit_code == 0, out.output
    assert "| target | reach |" in out.output
    assert sorted(p.name for p in folder.iterdir()) == [
        "bench.json",
        "bench.md",
        "bench.pdf",
        "bench.png",
    ]
    return json.loads((folder / "bench.json").read_text())


@pytest.mark.slow
def test_the_json_is_complete(quick):
    assert quick["schema"] == "sdesam.bench/1"
    assert {"schema", "config", "provenance", "results", "targets", "not_measured"} == set(quick)
    assert quick["config"]["platform"] == "cpu"
    assert "force_host_platform_device_count=2" in quick["config"]["xla_flags"]
    names = [row["name"] for row in quick["targets"]]
    assert len(names) == len(set(names)) == 19
    for row in quick["targets"]:
        assert set(row) == {"name", "reach", "stretch", "value", "reached"}
        assert (
            (row["value"] is None)
            == (row["reached"] is None)
            == (row["name"] in quick["not_measured"])
        )
    assert quick["not_measured"]["W3a step, times one pass"] == "W3 was not run"
    for name, workload in (("W1", w1), ("W2", w2)):
        result = quick["results"][name]
        assert set(result["contenders"]) | set(result["not_taking_part"]) == {
            c.name for c in workload.CONTENDERS
        }
        assert all(c["ns_per_path_step"] > 0 for c in result["contenders"].values())
    memory = quick["results"]["W1"]["memory"]
    assert memory["long"] >= memory["streamed"] > memory["idle"] > 2e7


def apart(one, other):
    """Standard errors between two means, and between two variances of laws of kurtosis up to 7;
    each `(mean, variance, paths)`.
    """
    means = abs(one[0] - other[0]) / np.sqrt(one[1] / one[2] + other[1] / other[2])
    return max(means, abs(np.log(one[1] / other[1])) / np.sqrt(6 / one[2] + 6 / other[2]))


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["W1", "W2"])
def test_all_contenders_solve_the_same_sde(quick, workload):
    contenders = {
        name: c
        for name, c in quick["results"][workload]["contenders"].items()
        if c["kind"] != "floor"
    }
    assert len(contenders) >= 4

    def last(contender, name):
        return (*contender["statistics"][name][-1], contender["paths"])

    for name in bench.WORKLOADS[workload].NAMES:
        for other, contender in contenders.items():
            assert apart(last(contender, name), last(contenders["numpy"], name)) < SIGMAS, (
                f"{other} and numpy differ in {name}"
            )


@pytest.mark.parametrize(
    ("module", "wrong"),
    [(w1, {"RHO": 0.0, "LR": 0.05}), (w2, {"RHO": 0.0, "MICRO": 16, "BATCH": 8})],
)
def test_another_sde_would_be_noticed(module, wrong, monkeypatch):
    """The control, at the size of the test above: without the rho term, with another micro-batch,
    with half or twice the noise.
    """
    numpy = next(c for c in module.CONTENDERS if c.name == "numpy")
    paths, steps, _ = bench.QUICK.workloads["W1" if module is w1 else "W2"]
    right = numpy.prepare(paths, steps)(0)
    for name, value in wrong.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            other = numpy.prepare(paths, steps)(1)
        assert (
            max(apart((*right[k][-1], paths), (*other[k][-1], paths)) for k in module.NAMES)
            > SIGMAS
        ), name


def test_the_normals_of_the_floor_are_normal():
    """Mean, variance, fourth moment and correlation of 2e5 pairs, each within 5 standard errors."""
    pair = np.array(
        floors.normal_pair(
            (np.uint32(1), np.uint32(2)), np.uint32(5), np.arange(200_000, dtype=np.uint32)
        ),
        float,
    )
    size = pair[0].size
    for z in pair:
        moments = [(z.mean(), 1), (z.var() - 1, 2), ((z**4).mean() - 3, 96)]
        assert all(abs(off) < SIGMAS * np.sqrt(variance / size) for off, variance in moments)
    assert abs((pair[0] * pair[1]).mean()) < SIGMAS / np.sqrt(size)
    assert abs((pair[0] ** 2 * pair[1] ** 2).mean() - 1) < SIGMAS * np.sqrt(8 / size)


def test_peers_that_are_missing_are_told():
    absent = Contender("peer", "peer", lambda paths, steps: None, "", needs=("no_such_module",))
    there = Contender("numpy", "peer", lambda paths, steps: None, "", cpu_only=True)
    assert taking_part([absent, there], False) == (
        [there],
        {"peer": "no_such_module not installed"},
    )
    assert taking_part([there], True) == ([], {"numpy": "not for a GPU"})


def test_an_incomplete_installation_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("sdesam._util.bundled._PACKAGE", tmp_path / "sdesam")
    out = CliRunner().invoke(cli, ["bench", "--output", str(tmp_path)])
    assert out.exit_code == 2
    assert "lacks its folder 'benchmarks'" in " ".join(out.output.split())
