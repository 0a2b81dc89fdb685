"""Rules as expressions: their equations, bound, against a listing of everything that a step draws,
in numpy.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest
import sympy as sp

import sdesam
from sdesam.mutants import scaled
from sdesam.variants import Variant, fresh, gradient, parameter, random_direction, unit
from tests.brute_force import PENALTY, SIGMA, Polynomials, written_moments
from tests.sde.test_enumeration import CLOSE, LR, polynomial_loss, powers_of_rho

I, B, D, J = gradient("micro"), gradient("batch"), gradient("data"), gradient(fresh)  # noqa: E741
sigma, a, z = parameter("sigma"), parameter("a"), random_direction("rademacher")
TWICE = gradient("micro", at=I)
RULES = {
    "f-usam": gradient("micro", at=I - sigma * D),
    "f-sam": gradient("micro", at=unit(I - sigma * D)),
    "fresh-usam": gradient("micro", at=J),
    "fresh-sam": gradient("micro", at=unit(J)),
    "gradient-norm penalty": (1 - a) * I + a * gradient("micro", at=unit(I)),
    "two-step usam": gradient("micro", at=I + TWICE),
    "two-step sam": gradient("micro", at=unit(I) + unit(gradient("micro", at=unit(I)))),
    "unit of two steps": gradient("micro", at=unit(TWICE)),
    "random": gradient("micro", at=z),
    "ascent and noise": gradient("micro", at=I + 0.5 * z),
    "noisy ascent": gradient("micro", at=z + gradient("micro", at=z)),
    "mini-batch ascent": gradient("micro", at=2 * B - I),
    "mini-batch descent": gradient("batch", at=I),
    "extra": 2 * gradient("micro", at=-D) - I,
    "difference": gradient("micro", at=unit(2 * D - I / 2)),
    "fresh norm": gradient("micro", at=unit(D, norm_of=J)),
    "ascent of the data set": gradient("micro", at=unit(gradient("data", at=unit(I)))),
    "norm of the data set": gradient("micro", at=unit(I, norm_of=2 * D)),
}
OWN = {"f-usam": {"sigma": SIGMA}, "f-sam": {"sigma": SIGMA}}
OWN |= {"gradient-norm penalty": {"a": PENALTY}}
NORMALISED = [name for name, direction in RULES.items() if Variant(name, direction).normalised]


def assert_equals_listing(name, sizes, change=lambda eq: eq, seed=3, **changed):
    """Drift to `rho^2`, correction to `rho^1` and covariance to `rho^1`, to 1e-10."""
    n, d, b, m, with_replacement = sizes
    eps = 0.3 if name in NORMALISED else 0.0
    with jax.enable_x64(True):
        x = 0.5 * np.random.default_rng(seed).normal(size=d)
        losses = Polynomials.random(n, d, seed)
        problem = sdesam.FiniteSum(polynomial_loss, vars(losses), x)
        equation = change(sdesam.derive(Variant(name, RULES[name]), replace=with_replacement))
        radii = np.linspace(0, 1, 3)
        numbers = {"batch": b, "micro": m, "eps": eps, "expectation": "exact", **OWN.get(name, {})}
        sdes = [
            [equation.bind(problem, lr=lr, rho=rho, **numbers | changed) for rho in radii]
            for lr in (LR, 2 * LR)
        ]
        drift = [powers_of_rho([sde.drift(x) for sde in row], radii) for row in sdes]
        covariance = powers_of_rho([sde.covariance(x) for sde in sdes[0]], radii)
    true = written_moments(losses, x, name, b, m, with_replacement, eps)
    correction = drift[1] - drift[0]
    for j in range(3):
        mean = correction[j] - drift[0][j]
        np.testing.assert_allclose(mean, true.mean[j], err_msg=f"mean step, rho^{j}", **CLOSE)
    for j in range(2):
        found, wanted = correction[j], -LR / 2 * true.correction[j]
        np.testing.assert_allclose(found, wanted, err_msg=f"correction, rho^{j}", **CLOSE)
        wanted = LR * true.covariance[j].ravel()
        np.testing.assert_allclose(covariance[j], wanted, err_msg=f"covariance, rho^{j}", **CLOSE)


SIZES = [(5, 2, 4, 2, False), (3, 2, 4, 2, True)]


@pytest.mark.parametrize("name", RULES)
def test_equations_of_rules(name):
    assert_equals_listing(name, SIZES[0])


OFTEN = ("f-sam", "fresh-usam", "random", "mini-batch descent", "fresh norm")
"""Each compiles for seconds: the other rules, whose partitions are the same, are slow tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in RULES]
)
def test_equations_of_rules_with_replacement(name):
    assert_equals_listing(name, SIZES[1])


CONTROLS = {
    **{
        f"{part} 10 % off": ("two-step usam", scaled(part, sp.Rational(11, 10)), {})
        for part in ("rho^1", "rho^2", "eta", "eta rho^1", "noise rho^1")
    },
    "no variance": ("f-usam", lambda eq: eq.without("rho^1 variance"), {}),
    "another sigma": ("f-usam", lambda eq: eq, {"sigma": 0.5}),
    "another sigma in the norm": ("f-sam", lambda eq: eq, {"sigma": 0.5}),
    "a fresh batch treated as the same": (
        "fresh-usam",
        lambda eq: replace(sdesam.derive("m-usam", replace=eq.replace), variant=eq.variant),
        {},
    ),
    "the mini-batch treated as the micro-batch": (
        "mini-batch descent",
        lambda eq: replace(sdesam.derive("m-usam", replace=eq.replace), variant=eq.variant),
        {},
    ),
    "no loop": ("random", lambda eq: eq.without("rho^2"), {}),
    "one step of ascent": (
        "unit of two steps",
        lambda eq: replace(sdesam.derive("m-sam", replace=eq.replace), variant=eq.variant),
        {},
    ),
    "the noise of the other sampling": (
        "mini-batch ascent",
        lambda eq: replace(
            eq, noise_parts=sdesam.derive(eq.variant, replace=not eq.replace).noise_parts
        ),
        {},
    ),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_negative_controls(control):
    name, change, numbers = CONTROLS[control]
    with pytest.raises(AssertionError, match="Not equal"):
        assert_equals_listing(name, SIZES[0], change, **numbers)


def test_drawn_drifts_are_unbiased():
    """Loops along random signs, and micro-batches drawn afresh: the mean of many draws is the exact
    drift. Six standard errors in four numbers: a false alarm in 1e8.
    """
    problem = sdesam.problems.torus(dim=2, samples=5)
    for direction, numbers in [
        (gradient("micro", at=z), {}),
        (gradient("micro", at=unit(J)), {"eps": 0.3, "micro_batches": 20}),
    ]:
        equation = sdesam.derive(Variant("mine", direction))
        sizes = {"lr": 0.1, "rho": 0.8, "batch": 4, "micro": 2}
        drawn = equation.bind(problem, **sizes, **numbers)
        numbers.pop("micro_batches", None)
        exact = equation.bind(problem, **sizes, **numbers, expectation="exact")
        keys = jax.random.split(jax.random.key(1), 2000)
        many = np.asarray(jax.vmap(lambda key, s=drawn: s.step_drift(problem.x0, key))(keys), float)
        error = many.std(0) / np.sqrt(len(many))
        assert (abs(many.mean(0) - exact.drift(problem.x0)) < 6 * error + 1e-6).all()
        assert (error > 1e-5).any(), "the draws are draws"
