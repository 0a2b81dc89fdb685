"""Each condition of each verdict decides one case alone."""

from types import SimpleNamespace

import pytest

from sdesam.mutants import MUTANTS, RIGHT, Fate
from sdesam.report import Entry, Report, kill_rate


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
def test_a_mutant_must_be_refuted_and_a_right_theory_left_alone(mutant, findings, killed, as_wanted):
    fate = Fate(mutant, tuple(map(found, findings)))
    assert (fate.killed, fate.as_wanted) == (killed, as_wanted)


def report(claim="confirmed", signature="confirmed", finding="refuted"):
    entry = Entry(SimpleNamespace(recorded="confirmed", id="X"), SimpleNamespace(status=claim), 1.0)
    fates = (Fate(MUTANTS[0], (found("refuted"),)), Fate(MUTANTS[1], (found(finding),)), Fate(RIGHT[0], ()))
    return Report((entry, entry), (SimpleNamespace(status="confirmed"), SimpleNamespace(status=signature)), fates, {}, 1.0)


def test_a_report_is_as_recorded_if_claims_signatures_and_mutants_are():
    assert report().as_recorded
    assert not report(claim="inconclusive").as_recorded
    assert not report(claim="refuted").as_recorded
    assert not report(signature="inconclusive").as_recorded
    assert not report(finding="inconclusive").as_recorded
    assert kill_rate(report(finding="inconclusive").fates) == "1 of 2 mutants killed, 1 of 1 right theories confirmed"
