"""The registry and its reports."""

import json

import pytest
from click.testing import CliRunner

from sdesam import claims, report
from sdesam.claims import Control, Measurement, Outcome, _theorem
from sdesam.cli import cli

ASKED = {
    "L-3.3",
    "L-3.4",
    "L-3.5",
    "L-3.5n",
    "L-3.6",
    "L-3.7",
    "L-3.8",
    "L-3.9",
    "LTE",
    "MC-quad",
    "MC-sad",
    "SVAG",
    "L-RW1",
    "L-RW2",
    "L-RW3",
    "WML-4d",
    "BLB",
    "LB-edge",
    "AF-diag",
    "LUO-3",
    "F-SAM",
    "VaSSO",
    "ASYNC",
    "PGN",
    "RWP",
    "MC26",
    "EDGE",
    "HB",
    "SGDM",
    "RR",
}


def test_every_claim_that_was_asked_for_is_there():
    assert set(claims.registry()) >= ASKED
    for claim in claims.registry().values():
        assert claim.statement
        assert claim.source
        assert claim.prediction
        assert claim.seconds > 0


@pytest.mark.parametrize(
    "name",
    [
        "L-3.5",
        "L-3.5w",
        "L-c",
        "L-3.5n",
        pytest.param("L-3.6", marks=pytest.mark.slow),
        "L-3.7",
        "L-3.8",
        "L-3.8w",
        "L-grad",
        "L-RW1",
    ],
)
def test_claims_of_luo_et_al(name):
    claim = claims.claim(name)
    outcome = claim.run("quick", 0)
    assert outcome.status == claim.recorded
    assert outcome.controls
    assert all(control.caught for control in outcome.controls)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", sorted(claims.registry()))
def test_no_verdict_changes_over_seeds(name, seed):
    claim = claims.claim(name)
    assert claim.run("quick", seed).status == claim.recorded


def outcome(measured=0.0, control=1.0, unclear=False, controls=1):
    return Outcome(
        (Measurement("y", 0.0, measured, 0.1, "chosen", unclear),),
        tuple(Control("broken", control, 0.1) for _ in range(controls)),
    ).status


def test_status_of_an_outcome():
    assert outcome() == "confirmed"
    assert outcome(measured=0.2) == "refuted"
    assert outcome(measured=float("nan")) == "refuted"
    assert outcome(control=0.05) == "inconclusive", "a control that slips through"
    assert Control("mended", 0.05, 0.1, mended=True).caught
    assert not Control("mended", 0.2, 0.1, mended=True).caught
    assert not Control("broken", float("nan"), 0.1).caught, (
        "what could not be measured tells nothing"
    )
    assert not Control("mended", float("nan"), 0.1, mended=True).caught
    assert outcome(controls=0) == "inconclusive", "a check without a control"
    assert outcome(unclear=True) == "inconclusive"


def test_what_did_not_settle_is_neither_right_nor_wrong():
    """A deviation with its error, as a measurement and as a control."""
    for value, error, status in (
        (0.0, 0.0, "confirmed"),
        (0.1, 0.01, "refuted"),
        (0.1, 0.1, "inconclusive"),
        (0.0, 0.1, "inconclusive"),
    ):
        measurement = _theorem.Deviation(value, error).measurement("of something")
        assert Outcome((measurement,), (Control("broken", 1.0, 0.1),)).status == status
    broken, mended = _theorem.controls_of(
        {"x": [_theorem.Deviation(0.1, 0.1)]}, {"x": [_theorem.Deviation(0.0, 0.1)]}
    )
    assert not broken.caught
    assert not mended.caught
    broken, mended = _theorem.controls_of(
        {"x": [_theorem.Deviation(0.1, 0.01)]}, {"x": [_theorem.Deviation(0.0, 0.0)]}
    )
    assert broken.caught
    assert mended.caught


def test_plan():
    assert report.plan(["L-3.5", "LTE", "L-3.5"]) == ("L-3.5", "LTE")
    assert set(report.plan(["all"])) == {*claims.registry(), "signature", "mutants"}
    with pytest.raises(ValueError, match=r"unknown claim 'L-35'.*did you mean 'L-3\.5'"):
        report.plan(["L-35"])


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_verify_writes_a_report(tmp_path):
    out = invoke(
        *["verify", "L-3.5n", "signature", "--problem", "torus1d", "--problem-arg", "samples=3"],
        *["--output", tmp_path / "report", "--json", tmp_path / "report.json"],
    )
    assert out.exit_code == 0, out.output
    assert "L-3.5n: refuted" in out.output
    assert "1 of 1 claims as recorded; signature of m-usam confirmed" in out.output
    data = json.loads((tmp_path / "report.json").read_text())
    assert set(data) == {"schema", "config", "provenance", "results"}
    assert data["results"]["claims"]["L-3.5n"]["verdict"] == "refuted"
    assert data["results"]["signatures"][0]["results"]["verdict"] == "confirmed"
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"report.md", "report.html", "signature-m-usam.pdf", "signature-m-usam.png"}
    assert "signature-m-usam.png" in (tmp_path / "report" / "report.html").read_text()
    assert "| L-3.5n |" in (tmp_path / "report" / "report.md").read_text()


def test_a_verdict_that_is_news_is_no_success(monkeypatch):
    claim = claims.claim("L-3.5n")
    wrong = type(claim)(**{**vars(claim), "recorded": "confirmed"})
    monkeypatch.setattr(report, "registry", lambda: {"L-3.5n": wrong})
    out = invoke("verify", "L-3.5n")
    assert out.exit_code == 1
    assert "NOT AS RECORDED (confirmed)" in out.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify"], "nothing to verify"),
        (["verify", "L-99"], "unknown claim 'L-99'"),
        (["verify", "signature", "--variant", "musam"], "unknown variant 'musam'"),
        (["verify", "signature", "--problem", "tori"], "unknown problem 'tori'"),
        (["verify", "signature", "--problem", "digits"], "has no exact solver"),
        (
            ["verify", "signature", "--batch", "9", "--micro", "3"],
            "more than the 5000 that are listed",
        ),
        (["verify", "signature", "--order", "2"], "a pair (alpha, beta)"),
        (["verify", "signature", "--micro", "3"], "micro=3 does not divide batch=2"),
        (["verify", "signature", "--order", "3,3"], "no SDE driven by Brownian motion"),
    ],
)
def test_bad_input(arguments, message):
    out = invoke(*arguments)
    assert out.exit_code == 2
    assert message in " ".join(out.output.split())


def test_list():
    out = invoke("verify", "--list")
    assert out.exit_code == 0
    assert "L-3.5n" in out.output
