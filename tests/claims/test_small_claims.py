"""The cheap claims: verdicts as recorded, controls caught, and the same for other seeds."""

import numpy as np
import pytest

import sdesam
from sdesam.claims import Control, Outcome, claim
from sdesam.claims.li_tai_e import _equation
from sdesam.claims.luo2025_rw import _above, acts_like
from sdesam.claims.monzio import _enumerated_sde, _Setting
from sdesam.verify.exact.float64 import covariance, drift

CASES = [(name, 0) for name in ("L-3.9", "L-RW2", "LTE", "MC-quad", "MC-sad", "SVAG")]
CASES += [(name, seed) for name in ("L-3.9", "L-RW2", "MC-sad") for seed in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "seed"),
    [pytest.param(*case, marks=pytest.mark.slow) if case == ("LTE", 0) else case for case in CASES],
)
def test_verdict_is_the_recorded_one(name, seed):
    registered = claim(name)
    outcome = registered.run("quick", seed)
    assert outcome.controls, "a claim without a control is no check"
    assert [control.name for control in outcome.controls if not control.caught] == []
    assert [m for m in outcome.measurements if m.unclear or not m.agrees] == []
    assert outcome.status == registered.recorded


def test_measurements_and_controls_have_names_of_their_own():
    for name in ("L-3.9", "L-RW2", "MC-sad"):
        outcome = claim(name).run("quick", 0)
        for many in (outcome.measurements, outcome.controls):
            names = [one.name for one in many]
            assert len(set(names)) == len(names)
        assert all(m.basis for m in outcome.measurements)


def test_the_paper_and_the_derivation_agree_on_sgd():
    problem = sdesam.problems.torus(dim=2, samples=3)
    points = np.random.default_rng(0).uniform(0, 6, size=(4, 2))
    B, C = _equation(problem, points, lr=0.1, coefficient=0.25, noise=1.0)
    derived = sdesam.derive("sgd").bind(problem, lr=0.1, batch=2)
    assert np.allclose(drift(derived, points), B, atol=1e-15)
    assert np.allclose(covariance(derived, points), C, atol=1e-15)


def test_the_order_1_form_belongs_to_the_untruncated_covariance():
    setting = _Setting(curvature=1.0, noise=1.0, rho=0.5, lr=0.25)
    chain = sdesam.Chain("usam", setting.problem, lr=0.25, rho=0.5)
    sde = _enumerated_sde(chain, 0.0)
    x = np.array([[2.0]])
    assert np.allclose(drift(sde, x), -3.0, atol=1e-12)
    assert np.allclose(covariance(sde, x), 0.25 * 1.5**2, atol=1e-12)
    assert setting.order_1() == pytest.approx(0.25 * 1.5**2 / (2 * 1.5))


@pytest.mark.slow
@pytest.mark.parametrize(("lam", "status"), [(2.0, "refuted"), (0.0, "inconclusive")])
def test_what_rw_sam_acts_like_on_fewer_digits(lam, status):
    """L-RW3 at a reduced size: refuted as on record; without weights RW-SAM is SAM, which is no
    smaller m and no larger one.
    """
    problem = sdesam.problems.digits(train=64, width=8)
    outcome = acts_like(
        problem,
        0,
        {"one direction": sdesam.NormEstimate()},
        [lam],
        batches=256,
        runs=8,
        trained_with=lam,
    )
    assert [control.name for control in outcome.controls if not control.caught] == []
    assert [m.unclear for m in outcome.measurements] == [status == "inconclusive"] * 2, (
        "at the start, and after training"
    )
    assert outcome.status == status
    assert claim("L-RW3").recorded == "refuted"


def test_a_one_sided_claim_without_an_effect_is_not_confirmed():
    """Above 0 by more than four standard errors; below; between; and exactly 0, with or without an
    error.
    """
    control = (Control("broken", 1.0, 0.1),)
    for effect, error, status in (
        (1.0, 0.2, "confirmed"),
        (-1.0, 0.2, "refuted"),
        (0.5, 0.2, "inconclusive"),
        (-0.5, 0.2, "inconclusive"),
    ):
        assert Outcome((_above("effect", effect, error),), control).status == status
    for error in (0.0, 0.2):
        assert Outcome((_above("effect", 0.0, error),), control).status == "inconclusive"


def test_claims_that_hold_by_definition_say_so():
    """Sigma^b is the covariance of the step: setting the two side by side measures nothing, and the
    table says so.
    """
    for name in ("L-3.3", "L-3.6"):
        assert "holds by definition" in claim(name).title
        assert "covariance" not in claim(name).prediction
    outcome = claim("L-3.3").run("quick", 0)
    assert "it is not counted" in outcome.remark
    assert all("drift" in measurement.name for measurement in outcome.measurements)
