"""Claims about training: their controls with made-up tables, and those about V, Fisher matrix and
Hessian as they are.
"""

import numpy as np
import pytest

from sdesam import claims
from sdesam.claims import Outcome, luo2025_training


@pytest.mark.parametrize("name", ["L-FIM", "L-FIMn"])
@pytest.mark.parametrize("seed", range(3))
def test_fisher(name, seed):
    claim = claims.claim(name)
    outcome = claim.run("quick", seed)
    assert outcome.status == claim.recorded
    assert all(control.caught for control in outcome.controls)


def status(table):
    measurement, controls = luo2025_training._trend("accuracy", (32, 8, 1), table, "rises")
    return Outcome((measurement,), controls).status


def test_a_trend_can_be_confirmed_refuted_or_unclear():
    rng = np.random.default_rng(0)
    table = np.arange(3.0) + 0.5 * rng.normal(size=(9, 3)) + 10 * rng.normal(size=(9, 1))
    assert status(table) == "confirmed"
    assert status(rng.normal(size=(9, 3))) == "inconclusive", "no trend is no refutation"
    reversed_order, _ = luo2025_training._trend("accuracy", (32, 8, 1), table[:, ::-1], "rises")
    assert not reversed_order.agrees
    assert not reversed_order.unclear


def test_controls_of_a_trend_can_fail():
    """Where two sizes of m do not differ, the order with these two exchanged is no worse, and the
    control says so.
    """
    rng = np.random.default_rng(3)
    means = np.array([0.0, 3.0, 3.0])
    tables = [means + 0.5 * rng.normal(size=(12, 3)) for _ in range(200)]
    controls = [
        luo2025_training._trend("accuracy", (32, 8, 1), table, "rises")[1] for table in tables
    ]
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
