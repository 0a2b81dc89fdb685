"""Claims about training: their controls with made-up tables, and those about V, Fisher matrix and Hessian as they are."""

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
    reversed_order, controls = luo2025_training._trend("accuracy", (32, 8, 1), table[:, ::-1], "rises")
    assert not reversed_order.agrees
    assert not reversed_order.unclear
    assert not controls[0].caught, "the reversed order of a reversed table is the right one"


def test_asked_for():
    assert set(claims.registry()) >= {"L-Esc", "L-TrV", "L-Noise", "L-Gen", "L-FIM", "L-FIMn"}
