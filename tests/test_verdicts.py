"""Each condition of each verdict decides one case alone."""

from types import SimpleNamespace

import numpy as np
import pytest

import sdesam
from sdesam.claims import Control, Measurement, Outcome
from sdesam.mutants import MUTANTS, RIGHT, Fate
from sdesam.report import Entry, Report, kill_rate
from sdesam.verify.coefficients import Finding
from sdesam.verify.exact import Curve
from sdesam.verify.exact.weak import Ablation, Signature
from sdesam.verify.hypothesis import Part, Verdict


def found(status):
    return SimpleNamespace(status=status, part="drift", power=(0, 1))


@pytest.mark.parametrize(
    ("mutant", "findings", "killed", "as_wanted"),
    [
        (MUTANTS[0], ["refuted"], True, True),
        (MUTANTS[0], ["inconclusive", "refuted"], True, True),
        (MUTANTS[0], ["inconclusive"], False, False),
        (MUTANTS[0], [], False, False),
        (RIGHT[0], [], False, True),
        (RIGHT[0], ["inconclusive"], False, False),
        (RIGHT[0], ["refuted"], True, False),
    ],
)
def test_a_mutant_must_be_refuted_and_a_right_theory_left_alone(
    mutant, findings, killed, as_wanted
):
    fate = Fate(mutant, tuple(map(found, findings)))
    assert (fate.killed, fate.as_wanted) == (killed, as_wanted)


def report(claim="confirmed", signature="confirmed", finding="refuted"):
    entry = Entry(SimpleNamespace(recorded="confirmed", id="X"), SimpleNamespace(status=claim), 1.0)
    fates = (
        Fate(MUTANTS[0], (found("refuted"),)),
        Fate(MUTANTS[1], (found(finding),)),
        Fate(RIGHT[0], ()),
    )
    return Report(
        (entry, entry),
        (SimpleNamespace(status="confirmed"), SimpleNamespace(status=signature)),
        fates,
        {},
        1.0,
    )


def test_a_report_is_as_recorded_if_claims_signatures_and_mutants_are():
    assert report().as_recorded
    assert not report(claim="inconclusive").as_recorded
    assert not report(claim="refuted").as_recorded
    assert not report(signature="inconclusive").as_recorded
    assert not report(finding="inconclusive").as_recorded
    assert (
        kill_rate(report(finding="inconclusive").fates)
        == "1 of 2 mutants killed, 1 of 1 right theories confirmed"
    )


RIGHT_PART, WRONG_PART, OPEN_PART = (
    Part((Finding("drift", (0, 0), *of),))
    for of in ((0.0, 1.0, "a"), (0.1, None, "a"), (1e-4, None, "a"))
)


@pytest.mark.parametrize(
    ("drift", "covariance", "status"),
    [
        (RIGHT_PART, RIGHT_PART, "confirmed"),
        (RIGHT_PART, None, "confirmed"),
        (None, RIGHT_PART, "confirmed"),
        (RIGHT_PART, WRONG_PART, "refuted"),
        (WRONG_PART, RIGHT_PART, "refuted"),
        (WRONG_PART, OPEN_PART, "refuted"),
        (RIGHT_PART, OPEN_PART, "inconclusive"),
        (OPEN_PART, RIGHT_PART, "inconclusive"),
        (None, OPEN_PART, "inconclusive"),
    ],
)
def test_a_theorem_is_as_good_as_its_parts(drift, covariance, status):
    assert Verdict(drift, covariance).status == status


ETAS = np.array([1 / 8, 1 / 16, 1 / 32, 1 / 64])


def curve(slope, predicted, size=1.0, bend=0.0):
    """`size eta^slope`; every second value is larger by a share of `bend`."""
    return Curve(
        ETAS, size * ETAS**slope * (1 + bend * np.array([0, 1, 0, 1])), np.zeros(4), predicted
    )


NOTHING = Curve(ETAS, np.full(4, 1e-14), np.zeros(4), 2 / 3)
FINE = Ablation("rho^1", curve(2 / 3, 2 / 3), curve(2 / 3, 2 / 3), visible=True)


def signature(full, *terms):
    return Signature(sdesam.derive("m-usam"), full, terms, {}, {}).status


def test_what_makes_a_signature():
    order = curve(2.0, 2.0)
    assert signature(order, FINE) == "confirmed"
    assert signature(curve(1.91, 2.0), FINE) == signature(curve(2.5, 2.0), FINE) == "confirmed", (
        "at least the order, but for a tenth"
    )
    assert signature(curve(1.89, 2.0), FINE) == "refuted"
    assert signature(curve(2.0, 2.0, bend=0.3), FINE) == "inconclusive", "no asymptotic range"
    assert signature(curve(1.5, 2.0, bend=0.3), FINE) == "inconclusive", "nor a refutation"
    wrong, rough = (
        Ablation("eta", c, curve(1.0, 1.0), visible=True)
        for c in (curve(1.2, 1.0), curve(1.0, 1.0, bend=0.3))
    )
    assert signature(order, FINE, wrong) == signature(order, FINE, rough) == "inconclusive"
    gone, unseen = (
        Ablation("rho^2", NOTHING, order, visible=True),
        Ablation("noise", curve(1.0, 1.0), order, visible=False),
    )
    assert signature(order, FINE, gone) == signature(order, FINE, unseen) == "confirmed"
    assert (
        signature(order, gone)
        == signature(order, unseen)
        == signature(order, gone, unseen)
        == "inconclusive"
    ), "nothing was seen"


def test_what_is_said_of_a_term():
    right = curve(2 / 3, 2 / 3)

    def finding(change, knock_out=right, visible=True):
        return Ablation("rho^1", change, knock_out, visible).finding

    assert finding(NOTHING) == "vanishes identically on this problem"
    assert finding(curve(2 / 3, 2 / 3, bend=0.3)).startswith("no asymptotic range")
    assert finding(right, visible=False).startswith("invisible at this order")
    assert finding(curve(0.78, 2 / 3)) == "NOT as predicted"
    assert (
        finding(curve(0.75, 2 / 3))
        == finding(right)
        == "as predicted; leaving it out breaks the equation"
    )
    assert finding(right, curve(0.85, 2 / 3)) == "as predicted; leaving it out breaks the equation"
    for other in (curve(0.88, 2 / 3), curve(2 / 3, None)):
        assert finding(right, other).startswith("as predicted; smaller than the full error here")
    assert not curve(2 / 3, None).as_predicted


def test_when_a_curve_vanishes_and_when_it_is_settled():
    assert not Curve(ETAS, np.array([1e-14, 1e-14, 1e-14, 1e-11]), np.zeros(4), 1.0).vanishes, (
        "not at every rate"
    )
    assert Curve(ETAS, np.full(4, 1e-6), np.full(4, 2e-6), 1.0).vanishes, "within its uncertainty"
    # local slopes 1 +- 0.0953 / log 2 in turn: half of their range is 0.1375
    assert curve(1.0, 1.0, bend=0.1).spread == pytest.approx(np.log(1.1) / np.log(2))
    assert not curve(1.0, 1.0, bend=0.1).settled
    assert curve(1.0, 1.0, bend=0.07).settled


def test_an_outcome_needs_measurements_and_what_is_unclear_hides_nothing():
    agrees, differs, unclear = (
        Measurement("y", 0.0, value, 0.1, "", unclear=rough)
        for value, rough in ((0.0, False), (1.0, False), (1.0, True))
    )
    caught, missed = Control("broken", 1.0, 0.1), Control("broken", 0.0, 0.1)
    assert Outcome((), (caught,)).status == "inconclusive"
    assert Outcome((agrees,), (caught, missed)).status == "inconclusive"
    assert Outcome((agrees, differs), (caught,)).status == "refuted"
    assert Outcome((differs, unclear), (caught,)).status == "refuted"
    assert Outcome((agrees, unclear), (caught,)).status == "inconclusive"
    assert Measurement("y", 0.0, 0.1, 0.1, "").agrees
    assert not Measurement("y", 0.0, -0.11, 0.1, "").agrees
