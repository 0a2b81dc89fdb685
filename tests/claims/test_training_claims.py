"""Claims about training: read from the stored experiments, and their controls with made-up tables;
those about V, Fisher matrix and Hessian as they are.
"""

import numpy as np
import pytest

from sdesam import claims, lab
from sdesam.claims import Outcome, _stored
from sdesam.verify import statistics


@pytest.mark.parametrize("name", ["L-FIM", "L-FIMn"])
@pytest.mark.parametrize("seed", range(3))
def test_fisher(name, seed):
    claim = claims.claim(name)
    outcome = claim.run("quick", seed)
    assert outcome.status == claim.recorded
    assert all(control.caught for control in outcome.controls)


def trend(table):
    return _stored.trend("accuracy", [32, 8, 1], table, statistics.trend(table, "rises"))


def status(table):
    measurement, controls = trend(table)
    return Outcome((measurement,), controls).status


STORED = {
    "L-Esc": "escape",
    "L-TrV": "covariance_trace",
    "L-Noise": "label_noise",
    "L-Gen": "m_sharpness",
}


@pytest.mark.parametrize("name", STORED)
def test_a_claim_about_training_is_what_its_experiment_found(name):
    claim = claims.claim(name)
    outcome = claim.run("quick", 0)
    assert all(control.caught for control in outcome.controls)
    place = _stored._folder(STORED[name])
    (verdict,) = lab.read(STORED[name], place)["results"]["summary"]["verdicts"].items()
    assert verdict[0] == name, "one place says what became of the claim"
    assert outcome.status == verdict[1]["status"] == claim.recorded


def test_a_claim_without_a_stored_result_is_inconclusive(monkeypatch, tmp_path):
    monkeypatch.setattr(_stored, "_folder", lambda name: tmp_path)
    outcome = claims.claim("L-Esc").run("quick", 0)
    assert outcome.status == "inconclusive"
    assert "make them with `sdesam reproduce escape`" in outcome.remark


def test_seeds_that_are_not_whole_have_no_row():
    """The last of three seeds lacks a size of m, the second diverged at one."""
    runs = [
        {"config": {"seed": seed, "micro": m}, "diverged": (seed, m) == (1, 4), "y": [9, seed + m]}
        for seed in range(3)
        for m in (1, 4, 2)
        if (seed, m) != (2, 2)
    ]
    runs.append({"config": {"seed": 0, "variant": "sgd"}, "y": [0, 0]})
    data = {"config": {"common": {"variant": "m-sam"}}, "results": {"runs": runs}}
    sizes, table = _stored.StoredTrend("t", "y", "y", "rises", {}).table(data)
    assert sizes == [4, 2, 1]
    assert table.tolist() == [[4, 2, 1]]


def test_a_trend_can_be_confirmed_refuted_or_unclear():
    rng = np.random.default_rng(0)
    table = np.arange(3.0) + 0.5 * rng.normal(size=(9, 3)) + 10 * rng.normal(size=(9, 1))
    assert status(table) == "confirmed"
    assert status(rng.normal(size=(9, 3))) == "inconclusive", "no trend is no refutation"
    reversed_order, _ = trend(table[:, ::-1])
    assert not reversed_order.agrees
    assert not reversed_order.unclear


def test_controls_of_a_trend_can_fail():
    """Where two sizes of m do not differ, the order with these two exchanged is no worse, and the
    control says so.
    """
    rng = np.random.default_rng(3)
    means = np.array([0.0, 3.0, 3.0])
    tables = [means + 0.5 * rng.normal(size=(12, 3)) for _ in range(200)]
    controls = [trend(table)[1] for table in tables]
    names = [control.name for control in controls[0]]
    assert names == [
        "accuracy: m = 32 and 8 exchanged",
        "accuracy: m = 8 and 1 exchanged",
        "accuracy: values permuted within seeds",
    ]
    caught = np.mean([[control.caught for control in one] for one in controls], axis=0)
    assert caught[0] == 1
    # exchanged, the step of zero exceeds its standard error in one case of six: 0.76 to 0.91 is
    # five standard errors about 5/6
    assert 0.76 < caught[1] < 0.91
    # one in a hundred passes by chance: more than ten of 200 have probability 1e-5
    assert caught[2] > 0.95
    confirmed = np.mean([status(table) == "confirmed" for table in tables])
    assert confirmed < 0.25, "and an order that is none is seldom confirmed"


def test_asked_for():
    assert set(claims.registry()) >= {"L-Esc", "L-TrV", "L-Noise", "L-Gen", "L-FIM", "L-FIMn"}
