"""The full presets on made-up images and a network of one block: end to end, their plan within
given minutes, bad input.
"""

import dataclasses

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from sdesam import lab
from sdesam.cli import cli
from sdesam.lab.runs import Numbers, Run, RunStore
from sdesam.problems.cifar10 import Images

cifar = pytest.importorskip("experiments._cifar10")

RNG = np.random.default_rng(0)
LABELS = np.arange(300) % 10
PIXELS = np.clip(
    RNG.normal(128, 40, (300, 8, 8, 3)) + 8 * LABELS[:, None, None, None], 0, 255
).astype(np.uint8)
IMAGES = Images(PIXELS[:256], LABELS[:256], PIXELS[256:], LABELS[256:])
SMALL = {"seeds": 2, "epochs": 1, "train": 256, "width": 2, "micro": "64,32"}


def small(name, monkeypatch):
    monkeypatch.setattr(cifar, "BLOCKS", (1,))
    monkeypatch.setattr("sdesam.networks.throughput._SECONDS", 0)
    return dataclasses.replace(lab.experiment(name, "full"), data=lambda path: IMAGES)


def without_times(run):
    arrays = {
        name: array.tolist()
        for name, array in run.numbers.arrays.items()
        if name not in ("seconds", "images_per_second")
    }
    return str((run.config, run.numbers.values, arrays))


@pytest.mark.slow
def test_escape(monkeypatch, tmp_path):
    """The three m, and what is measured once made up: all else compiles as many programs again."""
    what, runs = small("escape", monkeypatch), RunStore(tmp_path / "runs")
    configs = what.configurations("full", SMALL)
    assert [c.get("micro") for c in configs[2:7]] == [None, 128, 64, 32, None]
    assert {c["ghost"] for c in configs} == {32}
    runs.save(configs[0], cost().numbers, 1.0)
    (ways,) = what.needs(configs[0])
    runs.save(ways, Numbers({"fastest": "vmap, patches"}), 1.0)
    configs = [configs[0], *(c for c in configs if c["run"] == cifar.START or c.get("micro"))]
    done = lab.sweep(what, configs, runs)
    assert (done.done, done.found, done.left) == (8, 1, [])
    data = lab.collect(what, configs, runs, "full", "command", ["59 of the 60 epochs wanted"])
    written = lab.write(what, data, tmp_path)
    assert [path.name for path in written] == [
        "escape-full.json",
        "escape-full.pdf",
        "escape-full.png",
    ]
    text = lab.text(data)
    assert "left out beforehand, for the minutes given: 59 of the 60 epochs wanted" in text
    assert (
        "m=32: 64 images/s; a step takes 2.00 plain ones for 2 forward-backward passes: 1.00 each"
        in text
    )
    assert data["results"]["summary"]["verdicts"].keys() == {"L-Esc"}
    # the start of every optimizer is the bad minimum of its seed
    of_seed = [c for c in configs if c["run"] == cifar.TRAINING and c["seed"] == 0]
    assert len({runs.load(c).numbers.arrays["test_loss"][0] for c in of_seed}) == 1
    # a run made again is the same
    again = what.execute(
        of_seed[2], [runs.load(c) for c in what.needs(of_seed[2])], jax.devices()[0], IMAGES
    )
    stored = runs.load(of_seed[2])
    assert without_times(dataclasses.replace(stored, numbers=again)) == without_times(stored)


@pytest.mark.slow
def test_m_sharpness_with_its_measurements(monkeypatch, tmp_path):
    what, runs = small("m_sharpness", monkeypatch), RunStore(tmp_path / "runs")
    configs = what.configurations("full", {**SMALL, "seeds": 1})
    options, left_out = lab.fit(what, {**SMALL, "seeds": 1}, runs, 1000, "path")
    assert (options, left_out) == ({**SMALL, "seeds": 1, "micro": (64, 32)}, [])
    done = lab.sweep(what, configs, runs)
    assert (done.done, done.found, done.left) == (5, 1, [])
    data = lab.collect(what, configs, runs, "full", "command")
    assert set(data["results"]["summary"]["cost"]) == {
        "plain step of SGD",
        "SGD",
        "m=128",
        "m=64",
        "m=32",
        "RW-SAM λ=2",
    }
    assert "too few whole seeds" in lab.text(data)
    assert len(lab.write(what, data, tmp_path)) == 3


def cost(seconds=60.0, **each):
    of_epoch = {"SGD": 1.0, "m=128": 2.0, "m=32": 2.0, "m=16": 3.0, "RW-SAM λ=2": 2.0, **each}
    milliseconds = {"plain step of SGD": 1.0, **of_epoch}
    values = {
        "seconds of an epoch": of_epoch,
        "milliseconds": {name: 3 * [one] for name, one in milliseconds.items()},
        "images per second": {name: 128 / one for name, one in milliseconds.items()},
        "passes": dict.fromkeys(of_epoch, 2.0),
        "micro-batches": "vmap, patches",
    }
    return Run({}, Numbers(values), seconds, {})


def plan(minutes, name="m_sharpness", run=None, **given):
    what = lab.experiment(name, "full")
    return what.fit(run or cost(), minutes, {**what.defaults, **given}, set(given))


def test_the_plan():
    # an epoch of each of five optimizers takes 10 s together; 60 s are gone
    assert plan(100) == ({"epochs": 100, "seeds": 3}, [])
    # (0.9 600 - 60) / 10 = 48 = 3 16
    assert plan(10) == (
        {"epochs": 16, "seeds": 3},
        ["84 of the 100 epochs wanted"],
    )
    assert plan(4) == (
        {"epochs": 15, "seeds": 1},
        ["85 of the 100 epochs wanted", "2 of the 3 seeds wanted"],
    )
    assert plan(10, epochs=24) == ({"epochs": 24, "seeds": 2}, ["1 of the 3 seeds wanted"])
    assert plan(10, seeds=4) == ({"epochs": 12, "seeds": 4}, ["88 of the 100 epochs wanted"])
    assert plan(1, epochs=24, seeds=4, run=cost(0)) == (
        {"epochs": 24, "seeds": 4},
        [],
    ), "what is given stays"
    assert plan(10, "escape")[0] == {
        "epochs": 13,
        "seeds": 3,
    }, "two fits before: 12 s, so 40 = 3 13 + 1"
    assert plan(10, "label_noise")[0] == {
        "epochs": 12,
        "seeds": 1,
    }, "four shares of wrong labels: 40 s"
    with pytest.raises(
        ValueError,
        match=(
            r"--minutes 1.2 is too small: one epoch of each of 5 runs takes 0.17 minutes here \(SGD"
            r" 1.0 s, m=128 2.0 s,"
        ),
    ):
        plan(1.2)


def test_minutes_too_small_are_refused_before_any_run(monkeypatch, tmp_path):
    what, runs = small("m_sharpness", monkeypatch), RunStore(tmp_path / "runs")
    slow = dataclasses.replace(what, epoch_seconds=lambda config, device, data: 600.0)
    with pytest.raises(
        ValueError,
        match=(
            r"--minutes 1 is too small: one epoch of experiment 'm_sharpness' takes 10 minutes here"
        ),
    ):
        lab.fit(slow, SMALL, runs, 1, "path")
    assert not (tmp_path / "runs").exists()


def test_a_diverged_run_is_told_and_left_out(monkeypatch, tmp_path):
    what = small("m_sharpness", monkeypatch)
    configs = [
        {**config, "lr": 1e30}
        for config in what.configurations("full", {**SMALL, "epochs": 2})
        if config.get("variant") == "sgd"
    ]
    numbers = what.execute(configs[0], [], jax.devices()[0], IMAGES)
    assert numbers.values["diverged"]
    assert len(numbers.arrays["test_loss"]) == 3, "as long as the others"
    found = what.summarise([Run(configs[0], numbers, 1.0, {})])
    assert found["diverged"] == {"SGD": 1}
    assert f"seed 0, SGD: DIVERGED in epoch {numbers.values['diverged in epoch']}" in "\n".join(
        found["lines"]
    )


def test_wrong_labels():
    for share in (0.0, 0.25, 0.9):
        found = cifar.relabelled(IMAGES, share, 3)
        assert (found.train_labels != IMAGES.train_labels).sum() == round(share * 256)
        assert found.test_labels is IMAGES.test_labels
    assert (cifar.relabelled(IMAGES, 0.9, 4).train_labels != found.train_labels).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["escape", "--preset", "full"],
            "this preset trains on CIFAR-10: say where it is with --data PATH",
        ),
        (
            ["escape", "--preset", "full"],
            "get cifar-10-python.tar.gz from https://www.cs.toronto.edu",
        ),
        (
            ["escape", "--preset", "full", "--data", "none"],
            "no CIFAR-10 at 'none': there is no such file or folder",
        ),
        (
            ["escape", "--data", "none"],
            "--data: escape with --preset quick needs no data set; leave it out",
        ),
        (
            ["rw_sam", "--preset", "full", "--data", "none"],
            "--data: rw_sam with --preset full needs no data set; leave it out",
        ),
        (
            ["escape", "--preset", "full", "--option", "steps=3"],
            "has no option 'steps': its options are seeds, epochs, micro, train, width, rho",
        ),
        (
            ["escape", "--preset", "full", "--option", "micro=32"],
            "micro=32: a trend over m needs at least two of 1, 2, 4, 8, 16, 32, 64 beside",
        ),
        (["escape", "--preset", "full", "--option", "micro=32,24"], "micro=32,24: a trend over m"),
        (
            ["escape", "--preset", "full", "--option", "micro=32,x"],
            "micro='x': it must be a whole number",
        ),
        (
            ["escape", "--preset", "full", "--option", "train=100"],
            "train=100: it must be from 128, a mini-batch, to 50000, all images",
        ),
        (["escape", "--preset", "full", "--option", "rho=-1"], "rho=-1"),
    ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = CliRunner().invoke(cli, ["reproduce", *arguments])
    assert out.exit_code == 2
    assert message in " ".join(out.output.replace("│", " ").split())
    assert not any(tmp_path.iterdir())
