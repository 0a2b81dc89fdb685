"""Steps in trees: every rule recovered from its listed batches alone, wrong ones named, and what is
no combination of plain trees told by its residual.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import sdesam
from sdesam.symbolic import Tree, batch, micro, samples
from sdesam.symbolic import evaluate as exactly
from sdesam.variants import Variant, gradient, parameter
from sdesam.verify.identification import candidates, combination, named, rational, told
from sdesam.verify.identification._formulas import Size, agreeing, basis, fitted, rank
from sdesam.verify.identification._moments import Batches, moments
from sdesam.verify.identification._sizes import chosen_sizes
from sdesam.verify.identification._step import DirectionStep, RuleStep, own_problem

OWN, GAMMA = gradient("micro"), gradient("batch")
MIXED = Variant("mixed", gradient("micro", at=GAMMA))
PENALTY = Variant(
    "penalty", (1 - parameter("a")) * OWN + parameter("a") * gradient("micro", at=OWN)
)
OFTEN = [
    ("sgd", {}),
    ("usam", {}),
    ("m-usam", {}),
    ("n-usam", {}),
    ("two-step-usam", {}),
    ("fresh-usam", {}),
    ("f-usam", {"sigma": 0.5}),
]
SELDOM = [("extragradient", {}), (MIXED, {}), (PENALTY, {"a": 0.25})]


def derived(rule, order, replace, own):
    """The equation that the algebra finds, its own numbers put in."""
    equation = sdesam.derive(rule, order=order, replace=replace)
    numbers = {sp.Symbol(k, real=True): sp.Rational(Fraction(v)) for k, v in own.items()}
    return equation, equation.drift.subs(numbers), equation.noise.subs(numbers)


def assert_recovered(rule, own, order=(2, 3), replace=True):
    found = sdesam.identify(rule, order=order, replace=replace, **own)
    equation, drift, noise = derived(rule, order, replace, own)
    for power in found.powers:
        assert power.residual < 1e-12, "relative rounding of float64"
        parts = equation.noise_parts if power.part == "influence" else equation.drift_parts
        kind = "noise" if power.part == "influence" else "drift"
        right = {
            tree: c
            for part in parts
            if part.term.kind == kind and part.term.rho == power.power
            for tree, c in part.trees.items()
        }
        for c in power.coefficients:
            for size, value in c.values.items():
                exact = right.get(c.tree, sp.Integer(0))
                exact = exactly(exact, size.b, size.m, size.n, own)
                exact = exact if power.part == "influence" else -exact
                assert value == pytest.approx(float(exact), abs=1e-8), (c.tree, size)
    assert found.left < 1e-12
    assert found.complete
    assert found.equation.drift == drift
    assert found.equation.noise == noise


@pytest.mark.parametrize(("rule", "own"), OFTEN, ids=lambda x: getattr(x, "name", str(x)))
def test_rules_are_recovered(rule, own):
    assert_recovered(rule, own)


@pytest.mark.parametrize(("rule", "own"), [("m-usam", {}), ("fresh-usam", {})])
def test_rules_are_recovered_without_replacement(rule, own):
    assert_recovered(rule, own, order=(1, 2), replace=False)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "own"), SELDOM, ids=lambda x: getattr(x, "name", str(x)))
def test_more_rules_are_recovered(rule, own):
    assert_recovered(rule, own)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "own"), [*OFTEN, *SELDOM], ids=lambda x: getattr(x, "name", str(x))
)
def test_all_rules_are_recovered_without_replacement(rule, own):
    assert_recovered(rule, own, replace=False)


@pytest.mark.slow
@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("rule", ["usam", "m-usam"])
def test_the_third_power_is_recovered(rule, replace):
    assert_recovered(rule, {}, order=(2, 4), replace=replace)


@pytest.mark.parametrize("rule", ["m-sam", "n-sam", "dnsam"])
def test_normalised_rules_are_outside(rule):
    found = sdesam.identify(rule, order=(1, 2), eps=0.1)
    zeroth, first, _ = found.powers
    assert zeroth.residual < 1e-12
    assert 1e-3 < first.residual < 1
    assert not found.complete
    assert "outside the span of plain trees" in str(found)
    with pytest.raises(ValueError, match="outside the span of plain trees"):
        found.equation  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "own"),
    [
        ("sam", {}),
        ("f-sam", {"sigma": 0.9}),
        ("gnp", {"a": 0.5}),
        ("fresh-sam", {}),
        ("rw-sam", {"lam": 1.0}),
        ("asam", {}),
        ("shared-norm-sam", {}),
    ],
)
def test_more_normalised_rules_are_outside(rule, own):
    eps = {} if rule == "asam" else {"eps": 0.1}
    assert sdesam.identify(rule, order=(1, 2), **eps, **own).residual > 1e-3


TORUS = sdesam.problems.torus(dim=2, samples=5, seed=1)


def mean_gradient(x, chosen):
    losses = jax.vmap(TORUS.sample_loss, (None, 0))
    return jax.grad(lambda y: jnp.mean(losses(y, chosen)))(x)


def usam(x, chosen, rho):
    return mean_gradient(x + rho * mean_gradient(x, chosen), chosen)


def formulas(found, part, power):
    (one,) = [p for p in found.powers if (p.part, p.power) == (part, power)]
    return {c.tree: c.formula for c in one.coefficients if c.formula != 0}


OWN_MEAN, PLAIN_MEAN = Tree(1, (Tree(1),)), Tree(1, (Tree(2),))


def test_a_direction_is_recovered_and_simulates():
    found = sdesam.identify(usam, problem=TORUS)
    equation = found.equation
    assert equation == sdesam.derive("m-usam")
    assert equation.variant.rule == {"identified": "usam"}
    numbers = {"lr": 0.1, "rho": 0.1, "batch": 4, "micro": 2, "expectation": "exact"}
    sde = equation.bind(TORUS, **numbers)
    right = sdesam.derive("m-usam").bind(TORUS, **numbers)
    np.testing.assert_array_equal(sde.drift(sde.x0), right.drift(sde.x0))
    assert sde.config["rule"] == {"identified": "usam"}
    run = {"paths": 2, "horizon": 0.5, "dt": 0.1, "observe": ["loss"]}
    out = sdesam.simulate(sde, jax.random.key(0), **run)
    assert np.isfinite(out.mean["loss"]).all()
    left_out = equation.without("rho^1 variance").bind(TORUS, **numbers)
    assert not np.allclose(left_out.drift(sde.x0), right.drift(sde.x0), atol=1e-5)


def test_a_direction_that_lost_a_factor_is_named():
    def half(x, chosen, rho):
        return mean_gradient(x + rho / 2 * mean_gradient(x, chosen), chosen)

    def unperturbed(x, chosen, rho):
        return mean_gradient(x, chosen)

    def full(x, chosen, rho):
        return mean_gradient(x + rho * TORUS.grad(x), chosen)

    found = {fn: sdesam.identify(fn, (1, 2), TORUS) for fn in (usam, half, unperturbed, full)}
    first = {fn: formulas(one, "mean", 1) for fn, one in found.items()}
    m = micro
    assert first[usam] == {OWN_MEAN: 1 / m, PLAIN_MEAN: sp.factor(1 - 1 / m)}
    assert first[half] == {OWN_MEAN: 1 / (2 * m), PLAIN_MEAN: sp.factor((1 - 1 / m) / 2)}
    assert first[unperturbed] == {}
    assert first[full] == {PLAIN_MEAN: 1}


def test_without_replacement_a_direction_holds_for_its_number_of_samples():
    found = sdesam.identify(usam, (1, 2), TORUS, replace=False)
    assert formulas(found, "mean", 1)[OWN_MEAN] == sp.factor((5 - micro) / (4 * micro))
    assert "formulas hold for n = 5" in str(found)
    other = sdesam.problems.torus(dim=2, samples=6)
    with pytest.raises(ValueError, match=r"n=5 samples alone.* the problem has n=6"):
        found.equation.bind(other, lr=0.1, rho=0.1, batch=2)
    sde = found.equation.bind(TORUS, lr=0.1, rho=0.1, batch=4, micro=2)
    right = sdesam.derive("m-usam", (1, 2), replace=False)
    right = right.bind(TORUS, lr=0.1, rho=0.1, batch=4, micro=2)
    np.testing.assert_allclose(sde.drift(sde.x0), right.drift(sde.x0), rtol=1e-6)


def test_a_direction_that_is_no_mean_over_samples_leaves_some_of_its_covariance():
    def normalised_descent(x, chosen, rho):
        g = mean_gradient(x, chosen)
        return g / jnp.sqrt(g @ g + 0.01)

    found = sdesam.identify(normalised_descent, (1, 2), TORUS)
    assert found.left > 1e-3
    assert found.residual > 1e-3


def test_moments_of_three_numbers():
    """The mean of two of three numbers without replacement, and its square, which has more in its
    covariance than the influence of single numbers.
    """
    numbers = np.array([0.0, 3.0, 6.0])
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    batches = Batches(pairs, np.full(3, 1 / 3), replace=False)
    means = numbers[pairs].mean(axis=1).reshape(3, 1, 1, 1)
    found = moments(means, batches, 3, 0)
    np.testing.assert_allclose(found.mean, [[[3.0]]])
    np.testing.assert_allclose(found.influence.ravel(), [-3, 0, 3], atol=1e-12)
    assert found.left < 1e-12
    drawn = np.array([(i, j) for i in range(3) for j in range(3)])
    batches = Batches(drawn, np.full(9, 1 / 9), replace=True)
    squares = numbers[drawn].mean(axis=1).reshape(9, 1, 1, 1) ** 2
    found = moments(squares, batches, 3, 0)
    # of sample 0: half of the square of the mean of 0 and j, over j, less its mean, times b = 2
    each = [np.mean([((a + c) / 2) ** 2 for c in numbers]) for a in numbers]
    np.testing.assert_allclose(found.influence.ravel(), 2 * (each - np.mean(each)), atol=1e-12)
    assert found.left == pytest.approx(1 - found.influence.var() / 2 / np.var(squares), abs=1e-12)
    assert found.left > 0.01


def random_factor(x, chosen, rho):
    return usam(x, chosen, rho) * np.random.default_rng().uniform()


def of_two(x, chosen, rho):
    return usam(x, chosen[:2], rho) if len(jax.tree.leaves(chosen)[0]) > 1 else x[:1]


def kinked(x, chosen, rho):
    return mean_gradient(x + jnp.maximum(rho, 0) * mean_gradient(x, chosen), chosen)


def shorter(x, chosen, rho):
    return usam(x, chosen, rho)[:1]


@pytest.mark.parametrize(
    ("direction", "told"),
    [
        (random_factor, "gives other values when it is called again"),
        (of_two, "must have the structure and the shapes of x0"),
        (kinked, "rho"),
        (shorter, "must have the structure and the shapes of x0"),
    ],
)
def test_bad_directions(direction, told):
    with pytest.raises(ValueError, match=told):
        sdesam.identify(direction, problem=TORUS)


KINKED = sdesam.FiniteSum(lambda x, s: jnp.sum(jnp.maximum(x, s)), np.ones((4, 2)), np.ones(2))
STEEP = sdesam.FiniteSum(lambda x, s: jnp.sqrt(s * (1 + x**2)), np.arange(4.0), 0.0)


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        ((usam,), {}, "a direction needs problem="),
        ((usam,), {"problem": TORUS, "eps": 0.1}, "a direction holds its numbers itself"),
        ((3,), {}, "rule=3: it must be a variant"),
        (("usan",), {}, "unknown variant"),
        (("f-usam",), {}, "f-usam needs sigma"),
        (("rwp",), {}, "draws random directions, which cannot be listed"),
        (("usam",), {"replace": 1}, "replace=1: it must be True"),
        (("usam",), {"eps": 0.1}, "does not normalise"),
        (("m-usam",), {"sizes": [(4, 2)]}, r"\(n=5, b=4, m=2\) do not tell .* apart"),
        (("m-usam",), {"sizes": [(2, 1), (4, 2)]}, "do not tell"),
        (("m-usam",), {"sizes": [(4, 3), (2, 1)]}, "does not divide"),
        (("m-usam",), {"sizes": 4}, "a list of pairs"),
        (("usam",), {"sizes": [(4, 2)]}, "the rule has no micro-batches: give m = b"),
        (("usam",), {"sizes": [(2, 2), (9, 9)]}, "at most n=2 samples or b=5 would do"),
        (("usam",), {"sizes": [(5, 3, 3), (4, 2, 2)], "problem": TORUS}, "n=4, and the problem"),
        (("m-usam",), {"problem": sdesam.problems.digits(width=2)}, "at most n=70 samples"),
        (("usam",), {"sizes": [(5, 5), (2, 2)], "replace": False}, "has no noise to identify"),
        (("m-usam",), {"order": (3, 3)}, "no SDE driven by Brownian motion"),
        (("usam",), {"problem": KINKED}, "not smooth enough for order"),
        (("usam",), {"problem": STEEP}, "is not finite at some points near x0"),
    ],
)
def test_bad_calls(arguments, options, told):
    with pytest.raises((ValueError, TypeError), match=told):
        sdesam.identify(*arguments, **options)


def test_trees_that_a_problem_cannot_tell_apart_are_named():
    line = sdesam.FiniteSum(
        lambda x, s: jnp.sum(jnp.cos(s["w"] * x + s["p"])),
        {"w": np.array([1.0, 2.0, 0.7, 1.3]), "p": np.array([0.1, 1.0, 2.0, 3.0])},
        np.array([0.3]),
        name="line",
    )
    found = sdesam.identify("m-usam", problem=line)
    # in one dimension all is commutative: H_i Hbar g_i and Hbar H_i g_i are one number
    bent = Tree(1, (Tree(2, (Tree(1),)),)), Tree(1, (Tree(2, (Tree(2),)),))
    assert any(set(bent) <= set(group) for group in found.indistinguishable)
    assert "cannot be told apart" in str(found)
    with pytest.raises(ValueError, match="on problem 'line' these trees of mean step, rho\\^2"):
        found.equation  # noqa: B018
    assert formulas(found, "mean", 1)[OWN_MEAN] == 1 / micro

    square = sdesam.identify("usam", problem=sdesam.problems.quadratic(samples=5))
    assert (Tree(1, (Tree(1), Tree(1))),) in square.indistinguishable
    assert "mean_i(T_i[g_i, g_i]) vanishes" in str(square)


def test_few_samples_do_not_tell_colours_apart():
    found = sdesam.identify("usam", problem=sdesam.problems.torus(dim=2, samples=1))
    assert (OWN_MEAN, PLAIN_MEAN) in found.indistinguishable


def test_samples_that_are_alike_have_no_noise():
    """What is left of a difference of equal numbers is rounding, and no noise outside of trees."""
    alike = sdesam.FiniteSum(
        lambda x, s: jnp.sum(jnp.cos(3 * x - s)), np.ones((4, 2)), np.array([0.3, 0.1])
    )
    found = sdesam.identify("m-usam", (1, 2), alike)
    assert found.residual < 1e-8
    assert found.left < 1e-8
    assert (Tree(0),) in found.indistinguishable
    assert found.powers[-1].in_span


def test_combinations():
    rows = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    found = combination(np.array([3.0, 4, 12, 0]), rows)
    assert found.coefficients[0] == pytest.approx(3)
    assert np.isnan(found.coefficients[1:]).all()
    assert found.together == ((1, 2), (3,))
    assert (found.scale, found.residual) == pytest.approx((13.0, 12 / 13))
    # a vector that is nothing beside the others is measured by them
    nothing = combination(np.array([1e-9, 0, 0, 0]), 0 * rows + np.eye(4) * 2)
    assert nothing.scale == pytest.approx(2e-3)
    # differences of numbers of size 1e4 that are rounding of it
    rounding = combination(np.array([1e-12, 0, 0, 0]), 1e-12 * np.eye(4), before=1e4)
    assert rounding.together == ((0,), (1,), (2,), (3,))
    assert rounding.residual == pytest.approx(1e-12)
    # more vectors than equations
    assert combination(np.ones(2), np.array([[1.0, 0], [0, 1], [1, 1]])).together == ((0, 1, 2),)


def test_rational_numbers():
    assert rational(5 / 7) == Fraction(5, 7)
    assert rational(-1 / 3 + 1e-12) == Fraction(-1, 3)
    assert rational(1 / 3 + 1e-8) != Fraction(1, 3)
    assert isinstance(rational(np.pi), float)


def test_candidates_are_all_trees():
    """The trees of m-USAM's rho^3 have four nodes; those of two-step USAM's rho^2 are all three."""
    assert len(candidates(3)) == 9
    assert len(candidates(3, marked=True)) == 17
    for variant, power in (("m-usam", 3), ("two-step-usam", 2)):
        equation = sdesam.derive(variant, (2, 4))
        (part,) = [p for p in equation.drift_parts if p.name == f"rho^{power}"]
        assert set(part.trees) <= set(candidates(power + 1))
    assert set(part.trees) == set(candidates(3))


SIZES = [Size(5, b, m) for b, m in ((4, 2), (3, 1), (4, 1))]


def test_formulas_are_told_apart():
    assert agreeing(named(True, frozenset([batch, micro])), SIZES) is None
    assert agreeing([1 / micro, 2 / batch], [Size(5, 4, 2), Size(5, 6, 3)]) == (
        1 / micro,
        2 / batch,
    )
    assert agreeing([1 / micro, 1 / (batch - micro)], [Size(5, 2, 2)]) is None


def test_formulas_are_fitted_exactly_or_not_at_all():
    c_m = (samples - micro) / (micro * (samples - 1))
    sizes = [Size(n, m, m) for n in (4, 5, 6) for m in (1, 2, 3)]
    functions = basis(2, False, False, frozenset([micro, samples]))
    assert rank(functions, sizes) == 4
    given = basis(2, True, False, frozenset([micro, samples]))
    own = (samples - 2 * micro) / (micro * (samples - 2))
    values = {size: exactly(own, size.b, size.m, size.n) for size in sizes}
    assert fitted(values, given) == sp.factor(own)
    values = {size: exactly(c_m, size.b, size.m, size.n) for size in sizes}
    assert fitted(values, functions) == sp.factor(c_m)
    assert fitted({**values, sizes[0]: Fraction(1, 7)}, functions) is None
    # three sizes and six functions: one function is a test, and two would be, three a fit
    product = {size: Fraction(1, size.m * size.b) for size in SIZES}
    powers = basis(3, False, True, frozenset([batch, micro]))
    assert fitted(product, powers) == 1 / (micro * batch)
    odd = dict(zip(SIZES, map(Fraction, (1, 10, 17)), strict=True))
    assert fitted(odd, powers) is None
    # three functions always have the values of three sizes, and nothing tests them
    assert fitted(odd, [sp.Integer(1), 1 / micro, 1 / batch]) is None
    assert fitted(dict.fromkeys(SIZES, Fraction(0)), powers) == 0


def test_stated_formulas_are_recognised():
    formulas = named(True, frozenset([batch, micro]))
    for right in ("1/b", "2/b", "(m - 1)/m", "1.01/m", "-1/m", "0.99", "m/b"):
        formula = sp.sympify(right)
        values = {s: float(formula.subs({"b": s.b, "m": s.m})) for s in SIZES}
        assert told(values, formulas) == right
    assert told(dict(zip(SIZES, (1.0, 2.0, 5.0), strict=True)), formulas) is None


def rule_step(rule, replace=True):
    return RuleStep(sdesam.VARIANTS[rule], replace, 0.0, None, ())


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("rule", ["usam", "m-usam", "fresh-usam"])
def test_chosen_sizes_tell_all_functions_apart(rule, replace):
    step = rule_step(rule, replace)
    for nodes in (2, 3):
        sizes = chosen_sizes(step, nodes, None)
        assert agreeing(named(replace, step.symbols), sizes) is None
        symbols = (step.symbols - {batch} or step.symbols) | (set() if replace else {samples})
        functions = basis(nodes, False, replace, frozenset(symbols))
        assert rank(functions, sizes) == len(functions) < len(sizes)
        assert min(size.n for size in sizes) >= nodes


def test_a_direction_is_listed_by_its_micro_batches():
    sizes = chosen_sizes(DirectionStep(usam, True, (2, 3)), 3, 20)
    assert len({size.m for size in sizes}) == len(sizes) >= 3


def test_own_problems_tell_all_trees_apart():
    for n in (4, 5):
        problem = own_problem(n)
        found = sdesam.identify("usam", problem=problem)
        assert found.indistinguishable == ()


def test_printing():
    found = sdesam.identify("m-usam", order=(1, 2), sizes=[(4, 2), (3, 1), (6, 3)])
    text = str(found)
    assert "mean_i(H_i g_i)" in text
    assert "(m - 1)/m" in text
    assert "at n=4, b=6, m=3" in text
    assert r"\langle H_i g_i \rangle_{i} & \frac{1}{m}" in found.latex()
    data = found.to_json()
    first = {row["tree"]: row for row in data["powers"][1]["trees"]}
    assert first["mean_i(H_i g_i)"]["formula"] == "1/m"
    assert first["mean_i(H_i g_i)"]["values"] == ["1", "1/2", "1/3"]
    assert repr(found.equation).startswith("identify(")


def test_a_coefficient_without_a_formula_is_told():
    def odd(x, chosen, rho):
        size = len(jax.tree.leaves(chosen)[0])
        return mean_gradient(x + rho * 2.0 ** (-(size**2)) * mean_gradient(x, chosen), chosen)

    found = sdesam.identify(odd, (1, 2), TORUS)
    assert "no formula: " in str(found)
    assert "1/32 at n=5, b=2, m=2" in str(found)
    with pytest.raises(ValueError, match="has no formula in the sizes"):
        found.equation  # noqa: B018
