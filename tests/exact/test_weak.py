"""Weak errors and signatures: the orders and exponents that theory predicts, and what is said where
they cannot be seen.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.mutants import scaled
from sdesam.verify.exact import Curve, signature, weak_error
from sdesam.verify.exact.weak import extrapolated, fit_slope

PREDICTED = {
    "rho^1": 2 / 3,
    "rho^2": 4 / 3,
    "eta": 1,
    "eta rho^1": 5 / 3,
    "noise": 1,
    "noise rho^1": 5 / 3,
}
RATES = (1 / 32, 1 / 64, 1 / 128)
FINE = (1 / 256, 1 / 512, 1 / 1024)


def assert_signature(found, every_knock_out_shows=True):
    assert found.status == "confirmed", found.table()
    assert found.full.slope == pytest.approx(2, abs=0.1)
    for term in found.terms:
        name = term.name.removesuffix(" variance")
        assert term.change.slope == pytest.approx(PREDICTED[name], abs=0.1), found.table()
        # in one dimension a change may be as small as the full error still is at these rates
        small = not every_knock_out_shows and term.change.values[-1] < 3 * found.full.values[-1]
        assert term.breaks or small, found.table()


@pytest.mark.parametrize(
    ("variant", "micro"), [("m-usam", 1), pytest.param("n-usam", None, marks=pytest.mark.slow)]
)
def test_signature_on_a_torus(variant, micro):
    assert_signature(
        signature(
            sdesam.derive(variant),
            sdesam.problems.torus(dim=2, samples=3),
            batch=2,
            micro=micro,
            rates=RATES,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize(("variant", "micro"), [("m-usam", 1), ("m-usam", 2), ("n-usam", None)])
def test_signatures_on_tori(variant, micro, with_replacement):
    equation = sdesam.derive(variant, replace=with_replacement)
    for dim in (2, 1):
        problem = sdesam.problems.torus(dim=dim, samples=4)
        assert_signature(
            signature(equation, problem, batch=2, micro=micro), every_knock_out_shows=dim == 2
        )


@pytest.mark.slow
@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize(
    ("variant", "micro"), [("m-sam", 1), ("m-sam", 2), ("n-sam", None), ("dnsam", None)]
)
def test_signatures_of_smoothed_sam(variant, micro, with_replacement):
    """eps is about the size of the gradients, so that the norm is one; grids are refined until
    every difference stands still.

    What the equation leaves out is of size eta^2 and, next, eta rho^2 = eta^(7/3), so the slope
    comes to 2 like eta^(1/3) only: 2.10 to 2.12 at the default rates, 2.06 to 2.08 at these."""
    equation = sdesam.derive(variant, replace=with_replacement)
    assert_signature(
        signature(
            equation,
            sdesam.problems.torus(dim=2, samples=4),
            batch=2,
            micro=micro,
            eps=0.2,
            rates=FINE,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize(
    ("variant", "numbers"),
    [
        ("f-usam", {"sigma": 0.7}),
        ("two-step-usam", {}),
        ("f-sam", {"sigma": 0.7, "eps": 0.2, "rates": FINE}),
        ("gnp", {"a": 0.6, "eps": 0.2, "rates": FINE}),
        ("two-step-sam", {"eps": 0.2, "rates": FINE}),
    ],
)
def test_signatures_of_other_rules(variant, numbers, with_replacement):
    equation = sdesam.derive(variant, replace=with_replacement)
    problem = sdesam.problems.torus(dim=2, samples=4)
    assert_signature(signature(equation, problem, batch=2, micro=1, **numbers))


@pytest.mark.slow
def test_order_of_smoothed_sam():
    """In one dimension, quickly: order 2 with SAM's own drift, and not with that of n-SAM or with
    another eps.
    """
    problem = sdesam.problems.torus(dim=1, samples=3)
    equation = sdesam.derive("m-sam")
    numbers = {"batch": 2, "micro": 1, "rates": RATES, "eps": 0.2}
    assert weak_error(equation, problem, **numbers).slope == pytest.approx(2, abs=0.1)
    wrong = replace(sdesam.derive("n-sam"), variant=equation.variant)
    assert weak_error(wrong, problem, **numbers).slope == pytest.approx(2 / 3, abs=0.1)


@pytest.mark.parametrize(
    ("variant", "numbers"), [("m-usam", {}), ("f-usam", {"sigma": 0.7}), ("two-step-usam", {})]
)
def test_signature_on_a_quadratic(variant, numbers):
    """rho^2 vanishes there, but for two ascent steps, and is said to; the other terms have their
    exponents.
    """
    found = signature(
        sdesam.derive(variant),
        sdesam.problems.quadratic(dim=4, samples=16),
        batch=4,
        micro=2,
        **numbers,
    )
    assert found.status == "confirmed", found.table()
    by_name = {term.name: term for term in found.terms}
    assert by_name["rho^2"].change.vanishes == (variant != "two-step-usam")
    assert ("vanishes identically" in found.table()) == (variant != "two-step-usam")
    for name in ("rho^1", "eta", "eta rho^1", "noise", "noise rho^1"):
        assert by_name[name].change.slope == pytest.approx(PREDICTED[name], abs=0.1)


@pytest.mark.slow
def test_signature_of_rw_sam_where_its_weights_are_smooth():
    """Weights from squares of norms; those of norms have a kink where a sample's gradient
    vanishes.
    """
    norms = sdesam.NormEstimate("exact", square=True)
    problem = sdesam.problems.torus(dim=1, samples=3)
    found = signature(sdesam.derive("rw-sam"), problem, batch=2, eps=0.2, lam=2.0, norms=norms)
    assert found.status == "confirmed", found.table()
    assert found.full.slope > 1.9
    assert {term.name: term.change.slope for term in found.terms} == pytest.approx(
        PREDICTED, abs=0.1
    )


def test_the_table_says_at_which_numbers_and_how_well_resolved():
    problem = sdesam.problems.torus(dim=1, samples=3)
    found = signature(sdesam.derive("n-sam", order=(1, 2)), problem, batch=2, rates=RATES, eps=0.2)
    table = found.table()
    assert "replacement, eps = 0.2\n" in table
    shift = max(
        max(c.uncertainty / c.values)
        for c in (found.full, *(c for t in found.terms for c in (t.change, t.knock_out)))
        if not c.vanishes
    )
    assert 0 < shift < 0.02
    assert (
        f"the last refinement moved no difference by more than {100 * shift:.2g} % of its size"
        in table
    )
    assert len(found.config["grids"]) == len(RATES)
    assert f"grid of {max(found.config['grids'])} points a side" in table
    weights = {"lam": 2.0, "norms": vars(sdesam.NormEstimate("exact", square=True))}
    assert (
        "eps = 0.2, lam = 2, norms squared from gradients of samples"
        in replace(found, config={**found.config, **weights}).table()
    )
    on_quadratic = replace(found, config={**found.config, "grids": []})
    assert "no grid, errors of rounding" in on_quadratic.table()


def test_order_1_cannot_see_the_noise():
    equation = sdesam.derive("m-usam", order=(1, 2))
    problem = sdesam.problems.torus(dim=2, samples=3)
    found = signature(equation, problem, batch=2, micro=1, rates=RATES)
    assert found.full.slope == pytest.approx(1, abs=0.1)
    noise = next(term for term in found.terms if term.name == "noise")
    assert not noise.visible
    assert "no weak error can see the noise" in found.table()
    assert weak_error(
        equation.without("noise"), problem, batch=2, micro=1, rates=RATES
    ).slope == pytest.approx(1, abs=0.1)


def test_order_2_on_a_quadratic_of_ten_dimensions():
    """Path rho = 0.3 eta^(2/3): slope 2 within 0.05, and at eta = 1/256 a hundred times below order
    (1,2).
    """
    problem = sdesam.problems.quadratic(dim=10, samples=64)
    numbers = {"batch": 4, "micro": 2, "c": 0.3}
    fine = weak_error(sdesam.derive("m-usam", order=(2, 3)), problem, **numbers)
    assert fine.slope == pytest.approx(2, abs=0.05)

    at_256 = [1 / 64, 1 / 128, 1 / 256]
    second = weak_error(sdesam.derive("m-usam", order=(2, 3)), problem, rates=at_256, **numbers)
    # the same rho for the other order, whose own path is eta^(1/2)
    first = []
    for rate in at_256:
        c = 0.3 * rate ** (2 / 3) / rate ** (1 / 2)
        triple = (4 * rate, 2 * rate, rate)
        first.append(
            weak_error(
                sdesam.derive("m-usam", order=(1, 2)), problem, batch=4, micro=2, c=c, rates=triple
            ).values[-1]
        )
    assert first[-1] / second.values[-1] > 100


def test_wrong_coefficients_lower_the_order():
    """The negative control of the order itself: a wrong factor in one term is seen as that term's
    exponent.

    (A factor near 1 takes smaller rates than these to show in a slope; the one-step coefficients of
    `check` catch it.)"""
    problem = sdesam.problems.torus(dim=1, samples=3)
    for term, exponent in PREDICTED.items():
        wrong = scaled(term, 3)(sdesam.derive("m-usam"))
        curve = weak_error(wrong, problem, batch=2, micro=1)
        assert curve.slope == pytest.approx(exponent, abs=0.15), term


def test_the_limit_of_a_slope_and_its_error():
    """`a eta^p (1 + b eta^d + c eta^(2d) + e eta^(3d))` with random coefficients: the exponent lies
    inside in 95 % and the plain slope does not.
    """
    rng = np.random.default_rng(0)
    rates = np.array([1 / 128, 1 / 256, 1 / 512, 1 / 1024])
    inside = plain = 0
    for _ in range(300):
        p, d = rng.choice([2 / 3, 1, 2]), rng.choice([1 / 3, 1 / 2, 1])
        b, c, e = 0.5 * rng.normal(size=3)
        curve = Curve(
            rates,
            rates**p * (1 + b * rates**d + c * rates ** (2 * d) + e * rates ** (3 * d)),
            np.zeros(4),
            p,
            d,
        )
        inside += abs(curve.limit - p) <= curve.limit_error
        plain += abs(curve.slope - p) <= curve.spread
    assert inside >= 285
    assert plain < 200


def test_the_limit_with_three_rates_and_with_uncertain_values():
    rates = np.array([1 / 32, 1 / 64, 1 / 128])
    exact = rates**2 * (1 + 0.5 * rates)
    limit, error = extrapolated(rates, exact, np.zeros(3), 1.0)
    assert abs(limit - 2) < error < 0.02
    # one per cent of noise in the values shows in the error, and not more than it must
    rough = Curve(rates, exact * np.array([1.01, 0.99, 1.01]), 0.01 * exact, 2.0)
    assert abs(rough.limit - 2) < rough.limit_error < 0.5
    assert np.isnan(extrapolated(rates[:2], exact[:2], np.zeros(2), 1.0)[0])


def test_on_quadratics_the_order_lies_within_its_error():
    """m-USAM: corrections fall like eta^(1/3), so that the slope itself is off by 0.04. That two of
    six are out has probability 2 %, at 96 %.
    """
    equation = sdesam.derive("m-usam")
    curves = [
        weak_error(
            equation, sdesam.problems.quadratic(dim=2, samples=4, seed=seed), batch=2, micro=1
        )
        for seed in range(6)
    ]
    assert sum(abs(curve.limit - 2) <= curve.limit_error for curve in curves) >= 5
    assert sum(abs(curve.slope - 2) <= curve.spread for curve in curves) <= 3
    assert np.median([curve.limit_error for curve in curves]) < 0.1
    assert {curve.gap for curve in curves} == {1 / 3}


def test_fit_slope():
    rates = np.array([1 / 8, 1 / 16, 1 / 32, 1 / 64])
    slope, error = fit_slope(rates, 3 * rates**1.5, np.zeros(4))
    assert slope == pytest.approx(1.5)
    assert error < 0.02
    # a point at its own uncertainty is left out, and too few points give no slope
    values = 3 * rates**1.5
    values[-1] = 1.0
    assert fit_slope(rates, values, np.array([0, 0, 0, 1.0]))[0] == pytest.approx(1.5)
    assert np.isnan(fit_slope(rates, values, np.ones(4))[0])
    # what stands nine times above its uncertainty is left out, what stands eleven times above it
    # counts, for less
    values = 3 * rates**1.5 * np.array([1, 1, 1, 1.5])
    assert fit_slope(rates, values, np.array([0, 0, 0, values[-1] / 9]))[0] == pytest.approx(1.5)
    assert 1.3 < fit_slope(rates, values, np.array([0, 0, 0, values[-1] / 11]))[0] < 1.499
    # of five rates the largest is not looked at, and the slope is that of equal weights
    more = np.array([1 / 4, *rates])
    bent = 3 * more**1.5 * np.array([9, 1, 1.02, 1, 1.02])
    slope, spread = fit_slope(more, bent, np.zeros(5))
    assert slope == pytest.approx(np.polyfit(np.log(rates), np.log(bent[1:]), 1)[0])
    assert spread == pytest.approx(np.log(1.02) / np.log(2), rel=1e-6)
    assert Curve(rates, np.full(4, 1e-14), np.zeros(4), 1.0).vanishes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": [0.1, 0.05]}, "at least three learning rates"),
        ({"rates": [0.1, 0.2, 0.05]}, "at least three learning rates, decreasing"),
        (
            {
                "c": 4.0,
                "rates": (1 / 4, 1 / 8, 1 / 16),
                "problem": sdesam.problems.quadratic(dim=3),
            },
            "no asymptotic range",
        ),
        ({"rates": [0.3, 0.2, 0.1]}, "horizon=1 is no multiple of the learning rate=0.3"),
        ({"problem": sdesam.problems.digits(width=2)}, "has no exact solver"),
        (
            {"problem": sdesam.FiniteSum(lambda x, s: (x - s) ** 4, np.ones(2), 1.0)},
            "is not quadratic",
        ),
        ({"batch": 9}, "more than the 5000 that are listed"),
        ({"c": 0}, "c=0"),
    ],
)
def test_bad_input(change, message):
    numbers = {
        "problem": sdesam.problems.torus(dim=1, samples=3),
        "batch": 2,
        "rates": RATES,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        weak_error(sdesam.derive("usam"), **numbers)


def test_a_torus_that_is_too_rough_is_refused():
    smooth = sdesam.problems.torus(dim=1, samples=3)
    # a wave that vanishes on grids of 16 and 32 points is seen too
    aliased = sdesam.FiniteSum(
        lambda x, s: smooth.sample_loss(x, s) + 0.1 * jnp.cos(32 * x[0]),
        smooth.data,
        smooth.x0,
        period=2 * np.pi,
    )
    with pytest.raises(ValueError, match="does not resolve the expectations"):
        weak_error(sdesam.derive("sgd"), aliased, batch=2, rates=RATES)
    rough = sdesam.FiniteSum(
        smooth.sample_loss,
        {**smooth.data, "cos": 400 * smooth.data["cos"]},
        smooth.x0,
        period=2 * np.pi,
    )
    with pytest.raises(ValueError, match="does not resolve the expectations"):
        weak_error(sdesam.derive("sgd"), rough, batch=2, rates=RATES)
