"""The campaigns themselves: a few tries of each, and violations planted to see that they are
found.
"""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from sdesam.ensemble import Divergence
from tests.campaigns import _jobs, _odd, api, kills, memory, stores
from tests.campaigns._tries import Outcome, fault_of, planted, report, tries


def test_hangs_and_crashes_are_found_and_the_others_go_on(capsys):
    outcomes = dict(tries(planted, range(4), seconds=2))
    assert [outcomes[seed].violation for seed in range(4)] == [False, True, True, False]
    assert outcomes[1].status == "hangs for 2 s"
    assert outcomes[2].status == "crashes its process (exit code 7)"
    assert report("planted", outcomes.items()) == 1
    assert "--count 1 --seed 0 --first 2" in capsys.readouterr().out
    assert report("planted", [(0, Outcome("planted", "done"))]) == 0


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ValueError("paths=0: it must be a whole number of at least 1"), None),
        (KeyError("no run with paths 3"), None),
        (NotImplementedError("paths"), "raises NotImplementedError"),
        (AssertionError("paths"), "raises AssertionError"),
        (ValueError(), "raises ValueError without words"),
        (TypeError("paths\nare wrong"), "raises more than one line"),
        (TypeError("paths is Traced<float32[]>"), "raises raw words (Traced)"),
        (
            ValueError("truth value is ambiguous"),
            "raises a sentence that names nothing of the call",
        ),
        (ValueError("paths " * 200), "raises 1200 characters"),
    ],
)
def test_errors_are_judged(error, fault):
    assert fault_of(error, ["paths"]) == fault


def plant(monkeypatch, call, right=lambda found: True, spoiled=None):
    """The outcome of one call of the API that is made up."""

    def kind(draw):
        draw.spoiled, draw.arguments = spoiled, {"paths": 3}
        return call, right

    monkeypatch.setattr(api, "CALLS", [kind])
    return api.work(0)


def result(mean, stderr=0.1, diverged=(), lost=0):
    """Of five paths at one time."""
    broken = Divergence(np.array(diverged), np.zeros(len(diverged)), 5)
    names = {
        "mean": {"x": np.array([mean])},
        "stderr": {"x": np.array([stderr])},
        "nonfinite": {"x": np.array([lost])},
    }
    return SimpleNamespace(
        **names, diverged=broken, warnings=lambda: ["x: 2 values are not finite"] if lost else []
    )


def refuse():
    raise ValueError("paths=3: choose another")


def test_violations_of_calls_are_found(monkeypatch):
    assert not plant(monkeypatch, lambda: result(1.0)).violation
    assert not plant(monkeypatch, lambda: result(np.nan, lost=5)).violation
    assert not plant(monkeypatch, lambda: result(np.nan, diverged=[1])).violation
    assert plant(monkeypatch, lambda: result(np.nan)).status == "NaN in the mean of 'x'"
    assert plant(monkeypatch, lambda: result(1.0, np.inf)).status == "NaN in the stderr of 'x'"
    assert plant(monkeypatch, lambda: (1.0, result(np.nan))).status == "NaN in the mean of 'x'"
    counted = iter(range(2))
    assert plant(monkeypatch, lambda: result(next(counted))).status == "two identical calls differ"
    assert (
        plant(monkeypatch, lambda: result(1.0), lambda out: out.mean["x"][0] == 2).status
        == "another value than is known"
    )
    assert plant(monkeypatch, refuse).status == "a right call is refused"
    assert plant(monkeypatch, refuse, spoiled=("paths", 3)).status == "refused"


@pytest.mark.slow
def test_calls_of_the_api():
    outcomes = list(tries(api.work, range(4), environment=api.ENVIRONMENT))
    assert [outcome for _, outcome in outcomes if outcome.violation] == []


def test_known_means_tell_a_wrong_one():
    draw = _odd.Draw(0)
    draw.dtype = "float32"
    assert draw.close(1.0 + 1e-5, 1.0)
    assert not draw.close(1.01, 1.0)
    assert draw.close(1.01, 1.0, stderr=0.01, paths=20)
    assert not draw.close(1.2, 1.0, stderr=0.01, paths=20)


@pytest.mark.slow
def test_kills():
    for kill in (kills.Kill("after fsync", number=3), kills.Kill("before replace", number=2)):
        outcome = kills.attempt(kills.Job("sweep"), [kill])
        assert (outcome.violation, outcome.status) == (False, "right after 1 kills"), outcome


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda work: (work / ".store.json.x7k").write_text(""), "leaves files"),
        (
            lambda work: (work / "store.json").unlink() if (work / "store.json").exists() else None,
            "fails after a kill",
        ),
    ],
)
def test_violations_after_kills_are_found(monkeypatch, change, status):
    start, calls = kills.start, []

    def changed(job, work, target, kill=None):
        how = start(job, work, target, kill)
        calls.append(how)
        if len(calls) == 2:  # after the first run of all and the one that is killed
            change(work)
        return how

    kills.undisturbed.cache_clear()
    monkeypatch.setattr(kills, "start", changed)
    assert (
        kills.attempt(kills.Job("sweep"), [kills.Kill("after replace", number=4)]).status == status
    )


def test_memory_that_grows_is_found(monkeypatch):
    monkeypatch.setattr(memory.gc, "collect", lambda: None)
    kept = []

    def leaking(number):
        kept.append(memory.Loss(1.0))

    def outcome(work, allowed=1 << 30):
        return list(memory.watch("planted", work, 20, allowed))[-1][1]

    assert outcome(leaking).status == "losses stay alive"
    assert not outcome(lambda number: memory.Loss(1.0)).violation
    sizes = iter(range(0, 100 << 20, 10 << 20))
    monkeypatch.setattr(memory, "rss", lambda: next(sizes))
    assert (
        outcome(lambda number: None, 16 << 20).status == "memory grows by 40 MB in the last third"
    )


def test_memory_of_real_problems():
    rng = np.random.default_rng(0)
    memory.different(0, rng)
    memory.different(3, rng)


@pytest.mark.slow
def test_stores():
    outcomes = list(tries(stores.work, range(16), environment=stores.ENVIRONMENT))
    assert [outcome for _, outcome in outcomes if outcome.violation] == []


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (lambda folder: (folder / "executed").touch(), "executes what a file says"),
        (lambda folder: (folder.parent.parent / "climbed").touch(), "writes outside"),
        (lambda folder: (folder / ".out.npz.sdesam-partial").touch(), "leaves files behind"),
        (
            lambda folder: stores.yield_to("", lambda: int("x"), "out.npz"),
            "raises a sentence that names nothing of the call",
        ),
        (
            lambda folder: stores.same(np.ones(3), np.zeros(3)),
            "reads other numbers than were written",
        ),
        (lambda folder: np.ones(40 << 20).sum(), "takes"),
    ],
)
def test_violations_of_stores_are_found(monkeypatch, fault, status):
    monkeypatch.setattr(stores, "KINDS", [lambda rng, folder: str(fault(folder))])
    outcome = stores.work(0)
    assert outcome.violation
    assert outcome.status.startswith(status)


def test_hostile_files_would_do_harm(tmp_path):
    """Read by those who trust them: else a refusal of them would mean nothing."""
    for name, content in stores._damage.pickles(
        tmp_path / "executed", stores.ROWS[:4], [0, 1, 2, 3]
    ).items():
        if name in ("runs a program", "evaluates", "executes", "in the labels"):
            pickle.loads(content)
            assert (tmp_path / "executed").exists(), name
            (tmp_path / "executed").unlink()


def test_jobs_are_the_same_every_time():
    assert kills.choose(5) == kills.choose(5)
    assert _jobs.needs(_jobs.CONFIGS[0]) == [{"seed": 0, "part": "start"}]
