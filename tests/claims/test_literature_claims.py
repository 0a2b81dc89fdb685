"""Claims of other papers: verdicts as recorded and controls caught; and the parts that they are
made of, against numbers by hand.
"""

from itertools import product

import numpy as np
import pytest

from sdesam import claims
from sdesam.claims import _moments as moments
from sdesam.claims import stability
from sdesam.claims._findings import Findings
from sdesam.claims.noise_in_perturbation import coefficients, derivatives, listed, parts
from sdesam.problems import quadratic, torus
from sdesam.sampling import Sampling

QUICK = ("LB-edge", "VaSSO", "MC26-order", "HB", "SGDM", "SGDM-2", "RR")
SLOW = ("WML-4d", "BLB", "AF-diag", "LUO-3", "F-SAM", "ASYNC", "PGN", "RWP", "MC26", "EDGE")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_verdict_is_the_recorded_one(name):
    claim = claims.claim(name)
    outcome = claim.run("quick", 0)
    assert [control.name for control in outcome.controls if not control.caught] == []
    assert any(not control.mended for control in outcome.controls)
    assert outcome.status == claim.recorded
    names = [m.name for m in outcome.measurements]
    assert len(set(names)) == len(names)
    assert all(m.basis for m in outcome.measurements)


def test_findings_agree_or_do_not():
    found = Findings(0.1, "chosen")
    found.agree("a number", 2.0, 2.1)
    found.agree("a vector", [1.0, 0.0], [1.0, 0.05])
    found.agree("nothing", 0.0, 0.05)
    found.broken("twice", [2.0, 0.0], [1.0, 0.0])
    found.mended("right", 1.0, 1.05)
    assert found.outcome("").status == "confirmed"
    for predicted, measured in ((2.0, 2.3), ([1.0, 0.0], [1.0, 0.2]), (0.0, 0.2)):
        one = Findings(0.1, "chosen")
        one.agree("off", predicted, measured)
        one.broken("far", 3.0, 1.0)
        assert one.outcome("").status == "refuted"
    for add in (lambda f: f.broken("near", 1.05, 1.0), lambda f: f.mended("far", 1.2, 1.0)):
        one = Findings(0.1, "chosen")
        one.agree("right", 1.0, 1.0)
        add(one)
        assert one.outcome("").status == "inconclusive"


def test_moments_with_momentum_are_those_of_all_paths():
    """Three steps of two samples: eight paths, by hand."""
    K = np.array([[[1.0, 0.5]], [[3.0, -1.0]]])
    lr, beta, start = 0.2, 0.6, np.array([0.7])
    ends = []
    for path in product(range(2), repeat=3):
        x, v = 0.7, 0.0
        for i in path:
            v = beta * v + K[i, 0, 0] * x + K[i, 0, 1]
            x -= lr * v
        ends.append(x)
    found = moments.with_momentum(K, lr, beta, start, 3)
    assert np.allclose(found, [np.mean(ends), np.mean(np.square(ends))], rtol=1e-13)


def test_a_linear_equation_has_the_moments_of_the_ornstein_uhlenbeck_process():
    K = np.array([[[2.0, 1.0]], [[2.0, -1.0]]])
    found = moments.flow(moments.generator(K, 0.1, 0.5), np.array([3.0]), 0.7)
    rate = 2.0 + 0.5 * 0.1 * 4.0
    mean = 3.0 * np.exp(-0.7 * rate)
    variance = 0.1 * (1 - np.exp(-2 * 0.7 * rate)) / (2 * rate)
    assert np.allclose(found, [mean, mean**2 + variance], rtol=1e-12)


@pytest.mark.parametrize("m", [1, 2])
def test_the_largest_rate_in_one_dimension_is_where_listed_steps_are_steady(m):
    h, rho, b = np.array([0.3, 0.9, 2.0]), 0.4, 2
    lr = stability.largest(h, rho, b, m)
    for factor, steady in ((1.0, 1.0), (1.1, None)):
        growth = []
        for batch in product(h, repeat=b):
            parts = np.reshape(batch, (b // m, m)).mean(axis=1)
            growth.append((1 - factor * lr * np.mean(parts + rho * parts**2)) ** 2)
        assert steady is None or np.isclose(np.mean(growth), steady, rtol=1e-12)
    assert np.mean(growth) > 1.01


@pytest.mark.parametrize(
    ("rule", "numbers", "expected"),
    [
        ("usam", {}, (1.0, 1 / 2)),
        ("f-usam", {"sigma": 0.25}, (0.75, 1 / 2)),
        ("fresh-usam", {}, (1.0, 0.0)),
        ("n-usam", {}, (1.0, 0.0)),
    ],
)
def test_listed_slopes(rule, numbers, expected):
    problem = torus(dim=2, samples=3)
    points = np.random.default_rng(0).uniform(0, 6, size=(3, 2))
    slopes = listed(rule, problem, points, Sampling(2, 2), **numbers)
    found = coefficients(slopes, parts(*derivatives(problem, points)))
    assert np.allclose(found, [*expected, 0.0], atol=1e-12)


def test_quadratics_are_read_as_they_are():
    problem = quadratic(dim=2, samples=3)
    H, centre = problem.data["hessian"], problem.data["centre"]
    K = moments.per_sample(problem)
    assert np.allclose(K[:, :, :2], H, atol=1e-6)
    assert np.allclose(K[:, :, 2], -np.einsum("nij,nj->ni", H, centre), atol=1e-6)
