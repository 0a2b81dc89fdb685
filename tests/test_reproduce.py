"""Sweeps: killed and resumed, on a Dask cluster that loses a worker, within a budget; pictures from
stored data alone; bad input.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sdesam
from sdesam import lab
from sdesam._util import store
from sdesam.cli import cli
from sdesam.lab import Experiment, _data, _workers
from sdesam.lab.runs import Numbers, RunStore, key

# an experiment of its own package, so that other processes find it: one random walk per seed, and a
# start that all of a seed need
TINY = """
import os, time
from pathlib import Path
import numpy as np
from sdesam.lab import Experiment
from sdesam.lab.runs import Numbers

def runs(preset, seeds=6, pause=0.0):
    return [
        {"run": "walk", "rate": rate, "pause": pause, "seed": seed}
        for seed in range(seeds)
        for rate in (1.0, 2.0)
    ]

def needs(config):
    return [{"run": "start", "seed": config["seed"]}] if config["run"] == "walk" else []

def execute(config, needed, device):
    with open(Path(os.environ["TINY_LOG"]), "a") as log:
        log.write(f"{config['run']} {config['seed']} {config.get('rate')}\\n")
    rng = np.random.default_rng(config["seed"])
    if config["run"] == "start":
        return Numbers({}, {"params.x": rng.normal(size=3)})
    time.sleep(config["pause"])
    walk = needed[0].numbers.arrays["params.x"] + config["rate"] * rng.normal(size=(20, 3)).cumsum(
        axis=0
    )
    return Numbers({"end": float(walk[-1].sum())}, {"walk": walk[:, 0]})

def summarise(stored):
    return {
        "ends": [run.numbers.values["end"] for run in stored],
        "verdicts": {"walks": {"status": "confirmed", "reason": "they end"}},
    }

def figure(data):
    from matplotlib.figure import Figure
    drawn = Figure(figsize=(3.3, 2))
    drawn.subplots().plot(data["results"]["summary"]["ends"])
    return drawn

EXPERIMENT = Experiment("tiny", "Walks", "nothing", runs, execute, summarise, figure, needs)
"""


@pytest.fixture
def tiny(tmp_path):
    """A folder with experiments of one's own in it, and the environment of other processes."""
    package = tmp_path / "code" / "experiments"
    package.mkdir(parents=True)
    (package / "tiny.py").write_text(TINY)
    root = Path(sdesam.__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "TINY_LOG": str(tmp_path / "log"),
    }
    return tmp_path, environment


def command(*words):
    own = ("--experiments", "code/experiments")
    return [sys.executable, "-m", "sdesam.cli", "reproduce", "tiny", *own, *map(str, words)]


def contents(folder):
    """All that a store holds, but for times and places."""
    found = {}
    for name in RunStore(folder):
        meta = json.loads((folder / name / "run.json").read_text())
        arrays, _ = store.read_arrays(folder / name / "arrays.npz")
        found[name] = (meta["config"], meta["values"], {k: v.tolist() for k, v in arrays.items()})
    return found


def wait_for_runs(folder, count, process, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if folder.exists() and len(list(RunStore(folder))) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{count} runs did not appear: {process.communicate(timeout=5)}")


def test_kill_and_go_on(tiny):
    folder, environment = tiny
    options = ("--option", "seeds=4", "--option", "pause=0.2", "--output", folder / "figures")
    sweep = subprocess.Popen(
        command(*options, "--store", folder / "killed"),
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for_runs(folder / "killed", 7, sweep)  # four starts and some walks
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.communicate(timeout=30)
    before = contents(folder / "killed")
    assert 7 <= len(before) < 12, "the control: it was killed in the middle"
    assert not (folder / "figures" / "tiny").exists()
    again = subprocess.run(
        command(*options, "--store", folder / "killed"),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{12 - len(before)} runs made" in again.stdout
    # nothing that was stored was run again; only what was in progress, on at most as many devices
    devices = 2
    assert len((folder / "log").read_text().splitlines()) <= 12 + devices
    after = contents(folder / "killed")
    assert after == undisturbed(folder, seeds=4, pause=0.2)
    assert {name: before[name] for name in before} == {name: after[name] for name in before}
    data = json.loads((folder / "figures" / "tiny" / "tiny.json").read_text())
    assert data["results"]["left_out"] == 0
    assert (folder / "figures" / "tiny" / "tiny.pdf").exists()


def test_a_package_of_somebody_else_is_never_loaded(tmp_path, monkeypatch):
    """One called `experiments` that comes first on Python's path, or is imported already."""
    stranger = tmp_path / "experiments"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("raise SystemExit('it was run')")
    (stranger / "escape.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "experiments", type(sys)("experiments"))
    path = list(sys.path)
    assert lab.experiment("escape").name == "escape"
    assert sys.path == path
    found = sys.modules[lab.experiment("escape").runs.__module__].__file__
    assert Path(found) == Path(sdesam.__file__).parent.parent / "experiments" / "escape.py"


def test_two_folders_of_one_name_in_one_process(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "of_mine").mkdir(parents=True)
        (tmp_path / name / "of_mine" / "__init__.py").write_text(f"NAME = {name!r}")
    first, second = (lab.import_folder(tmp_path / name / "of_mine") for name in ("one", "two"))
    assert (first.NAME, second.NAME) == ("one", "two")
    assert first.__name__.startswith("sdesam_of_mine_")
    assert lab.import_folder(tmp_path / "one" / "of_mine") is first


def test_a_folder_of_ones_own(tiny):
    folder, _ = tiny
    own = folder / "code" / "experiments"
    assert lab.names(own) == ["tiny"]
    assert lab.experiment("tiny", folder=own).folder == own
    with pytest.raises(ValueError, match="unknown experiment 'tiny'"):  # it is not looked for
        lab.experiment("tiny")
    with pytest.raises(ValueError, match="unknown experiment 'escape'"):
        lab.experiment("escape", folder=own)
    with pytest.raises(ValueError, match=r"there is no folder '.*/no'"):
        lab.names(folder / "no")
    with pytest.raises(ValueError, match=r"holds no experiments: a module of it must have an EXP"):
        lab.names(folder)
    (own / "other.py").write_text((own / "tiny.py").read_text())
    with pytest.raises(ValueError, match=r"other.py: EXPERIMENT must be .* with name='other'"):
        lab.experiment("other", folder=own)


def undisturbed(folder, **options):
    """What a sweep in this process stores; a second one finds all of it."""
    spec = importlib.util.spec_from_file_location(
        "tiny", folder / "code" / "experiments" / "tiny.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    what, whole = module.EXPERIMENT, RunStore(folder / "whole")
    configs = what.configurations("quick", options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_LOG", str(folder / "another log"))
        assert lab.sweep(what, configs, whole).done == len(configs) * 3 // 2
        again = lab.sweep(what, configs, whole)
    assert (again.done, again.found, again.left) == (0, len(configs), [])
    return contents(folder / "whole")


@pytest.fixture
def cluster(tiny):
    """Starts a scheduler and workers; gives `start` and the scheduler's address."""
    folder, environment = tiny
    begun = []

    def start(*words):
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", *words],
                env=environment,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        return begun[-1]

    start(
        "distributed.cli.dask_scheduler",
        "--port",
        "0",
        "--host",
        "127.0.0.1",
        "--no-dashboard",
        "--scheduler-file",
        "scheduler.json",
    )
    end = time.monotonic() + 60
    while not (folder / "scheduler.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    address = json.loads((folder / "scheduler.json").read_text())["address"]

    def worker():
        options = (
            "--no-nanny",
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            str(folder / "scratch"),
        )
        return start("distributed.cli.dask_worker", address, *options)

    yield worker, address, begun
    for process in reversed(begun):
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.slow
def test_a_cluster_loses_a_worker(tiny, cluster):
    (folder, environment), (worker, address, begun) = tiny, cluster
    first, _second = worker(), worker()
    options = (
        "--option",
        "seeds=8",
        "--option",
        "pause=0.3",
        "--output",
        folder / "figures",
        "--store",
        folder / "runs",
        "--scheduler",
        address,
    )
    sweep = subprocess.Popen(
        command(*options),
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun.append(sweep)
    wait_for_runs(folder / "runs", 11, sweep, seconds=120)
    first.kill()
    stored = len(list(RunStore(folder / "runs")))
    assert stored < 24, "the control: it was killed in the middle"
    out, error = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, error
    assert "24 runs made" in out
    log = (folder / "log").read_text().splitlines()
    # nothing lost, nothing stored twice; run twice only what the killed worker had not handed over
    # (its queue is at most 4 runs)
    assert 24 <= len(log) <= 28
    assert contents(folder / "runs") == undisturbed(folder, seeds=8, pause=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["workers", "scheduler", "none came"])
def test_a_cluster_loses_all_workers(lost, tiny, cluster):
    """The sweep says so and ends, and a second one goes on from there."""
    (folder, environment), (worker, address, begun) = tiny, cluster
    workers = [worker(), worker()] if lost != "none came" else []
    options = (
        "--option",
        "seeds=8",
        "--option",
        "pause=0.3",
        "--output",
        folder / "figures",
        "--store",
        folder / "runs",
    )
    sweep = subprocess.Popen(
        command(*options, "--scheduler", address, "--minutes", "60"),
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun.append(sweep)
    if workers:
        wait_for_runs(folder / "runs", 11, sweep, seconds=120)
    for process in workers if lost == "workers" else begun[:1] if lost == "scheduler" else []:
        process.kill()
    _, error = sweep.communicate(timeout=90)
    assert sweep.returncode == 3, error
    told = "is gone" if lost == "scheduler" else "has had no worker for 30 s"
    assert f"the Dask scheduler '{address}' {told}: the runs that came back are stored" in error
    stored = contents(folder / "runs")
    assert (11 if workers else 0) <= len(stored) < 24
    again = subprocess.run(
        command(*options), env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    assert f"{24 - len(stored)} runs made" in again.stdout
    assert contents(folder / "runs") == undisturbed(folder, seeds=8, pause=0.3)


class FakeClient:
    """A Dask client in this process: what `finish` says happens to a run, by its number; `threads`
    are those of its workers at each look.
    """

    def __init__(self, finish, threads):
        self.finish, self.threads, self.looks, self.sent = finish, threads, 0, 0

    def __call__(self, address, **options):
        return self

    def nthreads(self, **options):
        count = self.threads(self.looks)
        self.looks += 1
        if isinstance(count, Exception):
            raise count
        return {"worker": count} if count else {}

    def submit(self, work, name, config, needed, data, **options):
        self.sent += 1
        return FakeFuture(config, self.finish(config["seed"]))

    def as_current(self):
        return contextlib.nullcontext()

    def close(self, timeout):
        assert timeout < 60


class FakeFuture:
    def __init__(self, config, ends):
        self.config, self.ends = config, ends
        self.status = "error" if isinstance(ends, Exception) else "finished" if ends else "pending"

    def result(self, timeout):
        if isinstance(self.ends, Exception):
            raise self.ends
        if self.ends == "lost":
            time.sleep(0.01)
            raise TimeoutError
        return Numbers({"square": self.config["seed"] ** 2}), 0.1, {}


def fake_wait(futures, timeout, return_when):
    done = {future for future in futures if future.status != "pending"}
    if not done:
        time.sleep(timeout)
        raise TimeoutError
    return namedtuple("waited", "done")(done)


@pytest.fixture
def fake(monkeypatch):
    import distributed

    monkeypatch.setattr("sdesam.lab._workers._POLL_SECONDS", 0.02)
    monkeypatch.setattr("sdesam.lab._workers._WORKERLESS_SECONDS", 0.1)
    monkeypatch.setattr(distributed, "wait", fake_wait)

    def make(finish, threads=lambda look: 0):
        client = FakeClient(finish, threads)
        monkeypatch.setattr(distributed, "Client", client)
        return client

    return make


@pytest.mark.parametrize(
    ("finish", "threads", "told", "stored"),
    [
        (lambda seed: "", lambda look: 0, "has had no worker for 0 s", 0),
        (
            lambda seed: "yes" if seed < 2 else "",
            lambda look: 1 if look < 3 else 0,
            "has had no worker for 0 s",
            2,
        ),
        (
            lambda seed: "yes" if seed < 2 else "lost",
            lambda look: 1 if look < 3 else 0,
            "has had no worker for 0 s",
            2,
        ),
        (
            lambda seed: "",
            lambda look: OSError("no answer") if look else 1,
            "has had no worker for 0 s",
            0,
        ),
        (lambda seed: "", lambda look: RuntimeError("closed"), "has had no worker for 0 s", 0),
        (
            lambda seed: CancelledError("scheduler-connection-lost") if seed == 2 else "yes",
            lambda look: 1,
            "is gone",
            2,
        ),
        (
            lambda seed: TimeoutError("my own") if seed == 2 else "yes",
            lambda look: 1,
            r"the run .*2.* failed: TimeoutError: my own",
            2,
        ),
    ],
)
@pytest.mark.parametrize("minutes", [None, 1000.0])
def test_no_sweep_waits_for_ever(finish, threads, told, stored, minutes, fake, tmp_path):
    fake(finish, threads)
    what, folder = experiment(), RunStore(tmp_path)
    configs = what.configurations("quick", {"seeds": 3})
    with pytest.raises(RuntimeError, match=told) as found:
        lab.sweep(what, configs, folder, scheduler="tcp://here:1", minutes=minutes)
    assert "\n" not in str(found.value)
    assert isinstance(found.value, lab.LostCluster) == ("my own" not in told)
    assert len(list(folder)) == stored


def test_workers_that_come_late_or_again_are_waited_for(fake, tmp_path):
    """Gone for a while and back, for less than the patience each time."""
    client = fake(lambda seed: "", lambda look: look % 3 == 2)
    what = experiment()
    workers = _workers.Cluster(what, None, "tcp://here:1")
    late = FakeFuture({"seed": 0}, "")
    timer = threading.Timer(0.5, lambda: setattr(late, "status", "finished"))
    timer.start()
    assert workers.next([late]) == {late}
    timer.join()
    assert client.looks > 10


def experiment(**changes):
    """An experiment in this process."""
    given = {
        "name": "tiny",
        "title": "Numbers",
        "shows": "nothing",
        "runs": lambda preset, seeds=3: [{"seed": seed} for seed in range(seeds)],
        "execute": lambda config, needed, device: Numbers({"square": config["seed"] ** 2}),
        "summarise": lambda stored: {"squares": [run.numbers.values["square"] for run in stored]},
        "figure": None,
    }
    return Experiment(**{**given, **changes})


def test_a_failed_run_is_told_and_the_others_stay(tmp_path):
    def execute(config, needed, device):
        if config["seed"] == 2:
            raise ArithmeticError("no such number")
        return Numbers({"square": 1})

    what, folder = experiment(execute=execute), RunStore(tmp_path)
    with pytest.raises(
        RuntimeError, match=r'the run \{"seed": 2\} failed: ArithmeticError: no such number'
    ):
        lab.sweep(what, what.configurations("quick"), folder)
    assert {"seed": 2} not in folder
    assert [c["seed"] for c in what.configurations("quick") if c in folder][:1] == [0]


def test_a_damaged_run_is_found_before_any_work(tmp_path):
    made = []
    what, folder = (
        experiment(execute=lambda config, needed, device: made.append(1) or Numbers({"square": 1})),
        RunStore(tmp_path),
    )
    configs = what.configurations("quick")
    lab.sweep(what, configs[:2], folder)
    (tmp_path / key(configs[1]) / "arrays.npz").write_bytes(
        (tmp_path / key(configs[0]) / "arrays.npz").read_bytes()
    )
    made.clear()
    with pytest.raises(
        ValueError,
        match=(
            f"the run .*{key(configs[1])}' is damaged .*arrays.npz.*: delete it, and it is run"
            " again"
        ),
    ):
        lab.sweep(what, configs, folder)
    assert not made


def test_a_budget(tmp_path):
    what = experiment(
        runs=lambda preset: [{"seed": seed} for seed in range(50)],
        execute=lambda config, needed, device: (
            time.sleep(0.1) or Numbers({"square": config["seed"] ** 2})
        ),
        epoch_seconds=lambda config, device: 0.01,
    )
    folder, configs = RunStore(tmp_path), what.configurations("quick")
    found = lab.sweep(what, configs, folder, minutes=0.5 / 60)
    assert 0 < found.done < 20
    assert found.done + len(found.left) == 50
    assert "LEFT OUT because the time was up" in str(found)
    assert [c in folder for c in configs] == [True] * found.done + [False] * len(found.left), (
        "in order, so that whole seeds come first"
    )
    data = lab.collect(what, configs, folder, "quick", "command")
    assert data["results"]["left_out"] == len(found.left)
    assert data["results"]["summary"]["squares"] == [k**2 for k in range(found.done)]
    slow = experiment(epoch_seconds=lambda config, device: 120.0)
    with pytest.raises(
        ValueError,
        match=r"--minutes 1 is too small: one epoch of experiment 'tiny' takes 2 minutes here",
    ):
        lab.sweep(slow, slow.configurations("quick"), RunStore(tmp_path / "b"), minutes=1)
    with pytest.raises(ValueError, match=r"minutes=-1: it must be a number above 0"):
        lab.sweep(what, configs, folder, minutes=-1)


def test_a_plan_counts_what_was_spent_on_measuring(tmp_path):
    """The seconds of the measured run and of what it needs."""
    folder, planned = RunStore(tmp_path), []
    folder.save({"seed": 0}, Numbers(), 5.0)
    folder.save({"needed": 0}, Numbers(), 7.0)

    def fit(run, minutes, options, given):
        planned.append((run.seconds, minutes, options, given))
        return {"seeds": 2}, ["one of the 3 seeds wanted"]

    what = experiment(fit=fit, needs=lambda config: [{"needed": 0}] if "seed" in config else [])
    assert lab.fit(what, {}, folder, 4.0) == ({"seeds": 2}, ["one of the 3 seeds wanted"])
    assert planned == [(12.0, 4.0, {"seeds": 3}, set())]


def test_collected_data(tmp_path):
    what = experiment(
        execute=lambda config, needed, device: Numbers(
            {"square": 1 / 3}, {"curve": np.array([1.0, np.nan, 1 / 7]), "params.x": np.ones(3)}
        ),
    )
    folder = RunStore(tmp_path)
    lab.sweep(what, what.configurations("quick"), folder)
    data = lab.collect(what, what.configurations("quick"), folder, "quick", "command")
    run = data["results"]["runs"][0]
    assert run["curve"] == [1.0, None, 0.14286]
    assert run["config"] == {"seed": 0}
    assert "params.x" not in run
    with pytest.raises(ValueError, match="no run of experiment 'tiny' is complete"):
        lab.collect(
            what, what.configurations("quick"), RunStore(tmp_path / "none"), "quick", "command"
        )
    text = _data._lists_in_lines(json.dumps(data, indent=1))
    assert json.loads(text) == json.loads(json.dumps(data))
    assert '"curve": [1.0, null, 0.14286]' in text


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_the_figures_are_drawn_from_their_data_alone(tmp_path, monkeypatch):
    committed = Path(sdesam.__file__).parent.parent / "figures"
    (tmp_path / "escape").mkdir()
    (tmp_path / "escape" / "escape.json").write_bytes(
        (committed / "escape" / "escape.json").read_bytes()
    )
    out = invoke("figures", "--output", tmp_path)
    assert out.exit_code == 0, out.output
    assert {p.name for p in (tmp_path / "escape").iterdir()} == {
        "escape.json",
        "escape.pdf",
        "escape.png",
    }
    (tmp_path / "escape" / "escape.json").write_text('{"schema": "sdesam.experiment/0"}')
    out = invoke("figures", "escape", "--output", tmp_path)
    assert out.exit_code == 2
    assert "have schema 'sdesam.experiment/0', and this version draws" in " ".join(
        out.output.split()
    )
    for config, status in (('["escape"]', 2), ('{"experiment": "escape"}', 3)):
        (tmp_path / "escape" / "escape.json").write_text(
            f'{{"schema": "sdesam.experiment/1", "config": {config}}}'
        )
        out = invoke("figures", "escape", "--output", tmp_path)
        assert out.exit_code == status, out.output
    assert "make them anew with `sdesam reproduce escape`" in " ".join(out.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["reproduce"],
            "nothing to reproduce: name experiments, or all (covariance_trace, escape,",
        ),
        (
            ["reproduce", "escpe"],
            "shared_noise, variance_regularizer, weak_order; did you mean 'escape'?",
        ),
        (
            ["reproduce", "escape", "--option", "epochs=3"],
            "experiment 'escape' has no option 'epochs': its options are seeds, steps",
        ),
        (["reproduce", "escape", "--option", "seeds=many"], "seeds='many'"),
        (["reproduce", "escape", "--option", "seeds=0"], "seeds=0"),
        (["reproduce", "escape", "--minutes", "0"], "minutes=0: it must be a number above 0"),
        (["reproduce", "escape", "--store", "{folder}/photos"], "holds other things than runs"),
        (["figures", "--output", "{folder}/none"], "there are no data in"),
        (
            ["figures", "escape", "--output", "{folder}/none"],
            "make them with `sdesam reproduce escape`",
        ),
        (["figures", "table9"], "unknown experiment 'table9'"),
    ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    out = invoke(*(a.format(folder=tmp_path) for a in arguments))
    assert out.exit_code == 2
    assert message in " ".join(out.output.replace("│", " ").split())
    assert {p.name for p in tmp_path.iterdir()} <= {"photos", "runs"}


def test_every_experiment_is_listed_and_declares_what_it_must():
    wanted = {
        "variance_regularizer",
        "weak_order",
        "sde_vs_discrete",
        "escape",
        "m_sharpness",
        "covariance_trace",
        "label_noise",
        "rw_sam",
    }
    assert set(lab.names()) >= wanted | {"fisher_hessian"}
    out = invoke("reproduce", "--list")
    assert out.exit_code == 0
    for name in lab.names():
        what = lab.experiment(name)
        assert name in out.output
        configs = what.configurations("quick")
        assert len({key(c) for c in configs}) == len(configs)
        assert len(what.configurations("full")) >= len(configs)
    trained = {c["seed"] for c in lab.experiment("escape").configurations("quick")}
    assert len(trained) >= 10
