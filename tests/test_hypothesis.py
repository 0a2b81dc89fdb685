"""Anyone's theorem, checked: right ones confirmed, wrong ones refuted at the right power, bad ones
refused.
"""

from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.mutants import MUTANTS, RIGHT, fate


def variance(problem, x):
    g = jax.vmap(jax.grad(problem.sample_loss), (None, 0))(x, problem.data)
    away = g - g.mean(axis=0)
    return away.T @ away / problem.n


def stated(strength, noise=lambda b, m: 1 / b):
    """Theorem 3.5 with a strength of the variance regulariser and a size of the noise that may be
    wrong.
    """
    return sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: (
            p.loss(x) + rho / 2 * p.grad_norm2(x) + rho / 2 * strength(b, m) * p.trace_cov(x)
        ),
        covariance=lambda p, x, lr, rho, b, m: lr * noise(b, m) * variance(p, x),
    )


def test_a_right_theorem_is_confirmed_also_on_a_users_problem():
    problem = sdesam.problems.linear_regression(dim=3, samples=8)
    verdict = sdesam.check(stated(lambda b, m: 1 / m), "m-usam", problem)
    assert verdict.status == "confirmed", str(verdict)
    assert any("linear-regression with n=8" in setting for setting in verdict.config["settings"])


def test_a_wrong_drift_is_refuted_at_its_power_and_a_wrong_noise_by_its_factor():
    verdict = sdesam.check(stated(lambda b, m: 1 / b, noise=lambda b, m: 2 / b), "m-usam")
    assert (verdict.status, verdict.drift.status, verdict.covariance.status) == (
        "refuted",
        "refuted",
        "refuted",
    )
    wrong = [finding.power for finding in verdict.drift.findings if finding.status == "refuted"]
    assert wrong == [(0, 1)]
    assert verdict.drift.slope < 0.8, "the rate of order 1 is lost too"
    (noise,) = verdict.covariance.findings
    assert noise.factor == pytest.approx(2, abs=1e-9)
    assert "it is 2 times the right one" in str(verdict)


def told(verdict, part="drift"):
    """The sentences about wrong terms."""
    return [term for finding in getattr(verdict, part).findings for term in finding.terms]


def with_mean(strength, variance=lambda b, m: 1 / m):
    return sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: (
            p.loss(x)
            + strength * rho / 2 * p.grad_norm2(x)
            + rho / 2 * variance(b, m) * p.trace_cov(x)
        )
    )


MEAN, VARIANCE = "(of -rho Hbar gbar)", "(of -rho mean_i(H~_i g~_i))"


@pytest.mark.parametrize(
    ("hypothesis", "sentences"),
    [
        (stated(lambda b, m: 1 / b), [f"rho^1 variance: stated 1/b, right 1/m {VARIANCE}"]),
        (stated(lambda b, m: 0.5 / m), [f"rho^1 variance: stated 1/(2*m), right 1/m {VARIANCE}"]),
        (stated(lambda b, m: 2 / m), [f"rho^1 variance: stated 2/m, right 1/m {VARIANCE}"]),
        (stated(lambda b, m: 1.01 / m), [f"rho^1 variance: stated 1.01/m, right 1/m {VARIANCE}"]),
        (stated(lambda b, m: -1 / m), [f"rho^1 variance: stated -1/m, right 1/m {VARIANCE}"]),
        (stated(lambda b, m: 0), [f"rho^1 variance: stated 0, right 1/m {VARIANCE}"]),
        (with_mean(2), [f"rho^1: stated 2, right 1 {MEAN}"]),
        (with_mean(-1), [f"rho^1: stated -1, right 1 {MEAN}"]),
        (
            with_mean(0.5, lambda b, m: 1 / b),
            [
                f"rho^1: stated 1/2, right 1 {MEAN}",
                f"rho^1 variance: stated 1/b, right 1/m {VARIANCE}",
            ],
        ),
        (
            stated(lambda b, m: 1 / m**2 + 0.3),
            [
                "rho^1 variance: stated 0.55 at b=4, m=2, 1.3 at b=3, m=1, 1.3 at b=4, m=1, right"
                f" 1/m {VARIANCE}"
            ],
        ),
    ],
    ids=["1/b", "half", "double", "percent", "sign", "lost", "mean", "mean sign", "two", "odd"],
)
def test_wrong_terms_are_named(hypothesis, sentences):
    verdict = sdesam.check(hypothesis, "m-usam")
    assert told(verdict) == sentences
    for sentence in sentences:
        assert f"\n    {sentence}\n" in str(verdict)


def test_wrong_terms_of_the_covariance_are_named():
    of_v = "(of eta Cov_i(g_i))"
    double = sdesam.check(stated(lambda b, m: 1 / m, noise=lambda b, m: 2 / b), "m-usam")
    assert told(double, "covariance") == [f"noise: stated 2/b, right 1/b {of_v}"]
    second_moment = sdesam.Hypothesis(
        covariance=lambda p, x, lr, rho, b, m: (
            lr / b * (variance(p, x) + jnp.outer(p.grad(x), p.grad(x)))
        )
    )
    (sentence,) = told(sdesam.check(second_moment, "m-usam"), "covariance")
    assert sentence == "noise: stated 1/b, right 0 (of eta gbar (gbar)^T)"
    subsets = sdesam.check(stated(lambda b, m: 1 / m), "m-usam", replace=False)
    assert told(subsets) == [f"rho^1 variance: stated 1/m, right (n - m)/(m*(n - 1)) {VARIANCE}"]
    assert told(subsets, "covariance") == [f"noise: stated 1/b, right (n - b)/(b*(n - 1)) {of_v}"]


def test_wrong_terms_of_order_2_are_named():
    """The correction of SGD is a quarter of `eta |grad f|^2`; twice that is a classical mistake.
    The noise of USAM at rho^1 has three parts, of which this covariance keeps one.
    """
    double = sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: p.loss(x) + lr / 2 * p.grad_norm2(x)
    )
    verdict = sdesam.check(double, "sgd", order=(2, 2))
    assert told(verdict) == ["eta: stated 1, right 1/2 (of -eta Hbar gbar)"]

    def own_part(p, x, lr, rho, b, m):
        def of_sample(s):
            g = jax.grad(p.sample_loss)
            return jnp.stack([g(x, s), jax.jvp(lambda y: g(y, s), (x,), (g(x, s),))[1]])

        first, second = jnp.moveaxis(jax.vmap(of_sample)(p.data), 1, 0)
        first, second = first - first.mean(axis=0), second - second.mean(axis=0)
        cross = first.T @ second / p.n
        return lr / b * (first.T @ first / p.n + rho * (cross + cross.T))

    verdict = sdesam.check(sdesam.Hypothesis(covariance=own_part), "usam", order=(2, 3))
    found = told(verdict, "covariance")
    head = "of eta*rho Cov_i(g_i, "
    assert f"noise rho^1: stated 1/b, right 1/b^2 ({head}H_i g_i) + transpose)" in found
    assert f"noise rho^1: stated 0, right (b - 1)/b^2 ({head}H_i gbar) + transpose)" in found
    assert len(found) == 3


def test_a_difference_outside_of_the_trees_is_told():
    norm = sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: (
            p.loss(x) + rho * jnp.sqrt(p.grad_norm2(x) + 0.1) + rho / (2 * m) * p.trace_cov(x)
        )
    )
    (sentence,) = told(sdesam.check(norm, "m-usam"))
    assert sentence.startswith("stated less right is no combination of plain trees")
    # a multiple of a coefficient that is no combination of trees is told as a multiple
    double = sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: p.loss(x) + 2 * rho * jnp.sqrt(p.grad_norm2(x) + 0.01)
    )
    verdict = sdesam.check(double, "n-sam", eps=0.1)
    assert "it is 2 times the right one" in str(verdict)
    assert told(verdict) == []


def test_what_a_normalised_rule_is_wrong_by_is_named():
    """The right coefficient of n-SAM is no combination of trees, what is added to it is one."""
    more = sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: (
            p.loss(x) + rho * jnp.sqrt(p.grad_norm2(x) + 0.01) + rho / (2 * b) * p.trace_cov(x)
        )
    )
    verdict = sdesam.check(more, "n-sam", eps=0.1)
    assert told(verdict) == [f"rho^1 variance: stated less right is 1/b {VARIANCE}"]


def test_a_wrong_covariance_is_never_confirmed_at_order_1():
    """The drift is right and the weak rate is that of order 1; only the one-step covariance
    tells.
    """
    verdict = sdesam.check(
        stated(lambda b, m: 1 / m, noise=lambda b, m: 0.9 / b), "m-usam", order=(1, 2)
    )
    assert verdict.drift.status == "confirmed"
    assert verdict.covariance.status == verdict.status == "refuted"


def test_a_theorem_of_order_1_is_no_theorem_of_order_2():
    verdict = sdesam.check(stated(lambda b, m: 1 / m), "m-usam", order=(2, 3))
    missing = {finding.power for finding in verdict.drift.findings if finding.status == "refuted"}
    assert missing == {(0, 2), (1, 0), (1, 1)}
    assert "rho^2: off by 1" in str(verdict.drift)
    assert "it is missing" in str(verdict.drift)


def test_without_replacement():
    def finite_population(n):
        return stated(
            lambda b, m: (n - m) / (m * (n - 1)), noise=lambda b, m: (n - b) / (b * (n - 1))
        )

    assert sdesam.check(finite_population(5), "m-usam", replace=False).status == "confirmed"
    assert sdesam.check(stated(lambda b, m: 1 / m), "m-usam", replace=False).status == "refuted"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_small_problems_without_replacement(n):
    """Where the mini-batch is the data set there is no noise, and rounding of it refutes nothing;
    one sample is a mini-batch of one.
    """

    def factor(p, k):
        return (p.n - k) / (k * (p.n - 1)) if p.n > 1 else 0.0

    right = sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: (
            p.loss(x) + rho / 2 * (p.grad_norm2(x) + factor(p, m) * p.trace_cov(x))
        ),
        covariance=lambda p, x, lr, rho, b, m: lr * enumerated_covariance(p, x, b),
    )
    problem = sdesam.problems.linear_regression(dim=2, samples=n)
    verdict = sdesam.check(right, "m-usam", problem, replace=False)
    assert verdict.status == "confirmed", str(verdict)
    assert any(
        f"linear-regression with n={n}, b={min(n, 4)}" in setting
        for setting in verdict.config["settings"]
    )


def enumerated_covariance(problem, x, b):
    """The covariance of a mini-batch mean over all subsets, summed in no clever order."""
    g = jax.vmap(jax.grad(problem.sample_loss), (None, 0))(x, problem.data)
    means = g[jnp.array(list(permutations(range(problem.n), b)))].mean(axis=1)
    away = means - means.mean(axis=0)
    return away.T @ away / len(means)


def test_a_problem_that_cannot_be_listed_is_named():
    verdict = sdesam.check(
        stated(lambda b, m: 1 / m), "m-usam", sdesam.problems.digits(train=100, width=2)
    )
    assert verdict.status == "inconclusive"
    assert "a version with fewer samples would decide" in str(verdict)


def test_sizes_tell_theories_apart():
    """2/b for 1/m agrees with it wherever b = 2m: such sizes alone would confirm it."""
    wrong = stated(lambda b, m: 2 / b, noise=lambda b, m: 1 / (2 * m))
    verdict = sdesam.check(wrong, "m-usam", sdesam.problems.linear_regression(dim=3, samples=8))
    assert (verdict.drift.status, verdict.covariance.status) == ("refuted", "refuted")
    by_population = stated(lambda b, m: 1 / (b - m))
    assert sdesam.check(by_population, "m-usam").drift.status == "refuted"


@pytest.mark.slow
def test_steep_problems_are_expanded_closer():
    """A right theorem on losses whose expansion in rho converges only for small rho."""
    steep = sdesam.FiniteSum(
        lambda x, s: jax.nn.softplus(-10 * s * x) + (x - s) ** 4, np.array([1.0, -0.5, 0.3]), 0.2
    )
    log = sdesam.FiniteSum(lambda x, s: -s * jnp.log(x) + x, np.array([1.0, 0.5, 0.3]), 0.5)
    right = sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: (
            p.loss(x) + rho / 2 * p.grad_norm2(x) + rho / (2 * b) * p.trace_cov(x)
        )
    )
    for problem in (steep, log):
        verdict = sdesam.check(right, "usam", problem)
        assert verdict.status == "confirmed", str(verdict)


def test_a_truncated_covariance_may_be_negative_by_what_was_truncated():
    """`lr/b (V + rho (DV) gbar)` of n-USAM is right at order (2,3); V is singular where n - 1 <
    d.
    """

    def covariance(p, x, lr, rho, b, m):
        value, slope = jax.jvp(lambda y: variance(p, y), (x,), (p.grad(x),))
        return lr / b * (value + rho * slope)

    verdict = sdesam.check(
        sdesam.Hypothesis(covariance=covariance),
        "n-usam",
        sdesam.problems.linear_regression(dim=4, samples=3),
        order=(2, 3),
    )
    assert verdict.status == "confirmed", str(verdict)


def li_tai_e(tail):
    """`-grad(f + eta/4 |grad f|^2)` with noise `eta V/b`, the correction times a function of eta
    that is 1 at 0, the noise times its inverse.
    """

    def drift(p, x, lr, rho, b, m):
        return -p.grad(x) - lr / 4 * tail(lr) * jax.grad(p.grad_norm2)(x)

    return sdesam.Hypothesis(
        drift=drift, covariance=lambda p, x, lr, rho, b, m: lr / b * variance(p, x) / tail(lr)
    )


@pytest.mark.parametrize(
    "tail",
    [jnp.exp, lambda lr: (1 + lr) ** 4, lambda lr: jnp.expm1(lr) / lr],
    ids=["exp", "power", "0/0"],
)
def test_higher_powers_refute_no_truth(tail):
    verdict = sdesam.check(li_tai_e(tail), "sgd", order=(2, 3))
    assert verdict.status == "confirmed", str(verdict)
    assert verdict.drift.slope == pytest.approx(2, abs=0.1)


def test_one_per_cent_is_not_a_higher_power():
    verdict = sdesam.check(li_tai_e(lambda lr: 1.01 * jnp.exp(lr)), "sgd", order=(2, 3))
    assert (verdict.drift.status, verdict.covariance.status) == ("refuted", "refuted")
    assert [f.power for f in verdict.drift.findings if f.status == "refuted"] == [(1, 0)]


def test_a_power_that_is_no_whole_number_is_refuted_by_the_rate():
    verdict = sdesam.check(li_tai_e(lambda lr: 1 + jnp.sqrt(lr)), "sgd", order=(2, 3))
    assert verdict.drift.slope == pytest.approx(1.5, abs=0.1)
    assert verdict.drift.status == "refuted"
    assert {f.status for f in verdict.drift.findings} == {"confirmed", "inconclusive"}


def test_a_rate_that_speaks_against_the_coefficients():
    """Right at all sizes that the weak error is measured at, three times too large below: no rate
    can tell, and no coefficient alone may.
    """
    verdict = sdesam.check(
        li_tai_e(lambda lr: jnp.where(lr > 0.007, jnp.exp(lr), 3.0)), "sgd", order=(2, 3)
    )
    assert any(f.status == "refuted" for f in verdict.drift.findings)
    assert verdict.drift.slope == pytest.approx(2, abs=0.1)
    assert verdict.drift.status == "inconclusive"
    assert "nearer to the optimizer's than these coefficients say" in str(verdict.drift)
    assert verdict.status == "refuted", "the covariance is refuted all the same"


@pytest.mark.slow
def test_a_steep_tail_shows_the_order_at_smaller_rates():
    verdict = sdesam.check(li_tai_e(lambda lr: 1 / (1 + 100 * lr)), "sgd", order=(2, 3))
    assert verdict.status == "confirmed", str(verdict)


def test_problems_that_cannot_be_used():
    kinked = sdesam.FiniteSum(lambda x, s: jax.nn.relu(x - s), np.arange(3.0), 0.5)
    with pytest.raises(ValueError, match="has kinks"):
        sdesam.check(stated(lambda b, m: 1 / m), "m-usam", kinked)
    with pytest.raises(
        ValueError, match=r"fails on torus2d .*a hypothesis must hold for any problem"
    ):
        sdesam.check(sdesam.Hypothesis(drift=lambda p, x, lr, rho, b, m: {"w": -x["w"]}), "usam")


def mean_norm(problem, x, size, eps, replace=True):
    g = jax.vmap(jax.grad(problem.sample_loss), (None, 0))(x, problem.data)
    listed = (
        product(range(problem.n), repeat=size) if replace else permutations(range(problem.n), size)
    )
    return jnp.mean(
        jnp.sqrt(jnp.sum(g[jnp.array(list(listed))].mean(axis=1) ** 2, axis=-1) + eps**2)
    )


def sharpness(eps, size=lambda b, m: m):
    """`f + rho E sqrt(|grad f_I|^2 + eps^2)`."""
    return sdesam.Hypothesis(
        potential=lambda p, x, lr, rho, b, m: p.loss(x) + rho * mean_norm(p, x, size(b, m), eps)
    )


def test_normalised_variants_with_eps():
    """The rate is measured too, because the step is smooth."""
    verdict = sdesam.check(sharpness(0.1), "m-sam", eps=0.1)
    assert verdict.status == "confirmed", str(verdict)
    assert verdict.drift.slope == pytest.approx(1, abs=0.1)
    assert verdict.config["eps"] == 0.1


def test_normalised_variants_without_eps():
    """Coefficients where no micro-batch gradient is small, also on a user's problem; no rate."""
    problem = sdesam.problems.linear_regression(dim=3, samples=6)
    verdict = sdesam.check(sharpness(0.0), "sam", problem)
    assert verdict.status == "confirmed", str(verdict)
    assert verdict.drift.slope is None
    assert "eps > 0 would show it" in str(verdict)
    assert any("linear-regression" in setting for setting in verdict.config["settings"])
    assert sdesam.check(sharpness(0.05), "sam").drift.status == "refuted"
    wrong = sdesam.check(sharpness(0.0, size=lambda b, m: b), "m-sam").drift
    assert [finding.power for finding in wrong.findings if finding.status == "refuted"] == [(0, 1)]


def test_reweighted_sam_is_checked_by_its_coefficients():
    """At lam = 0 it is SAM; with weights SAM's theory is refuted."""
    assert sdesam.check(sharpness(0.1), "rw-sam", eps=0.1, lam=0.0).status == "confirmed"
    verdict = sdesam.check(sharpness(0.1), "rw-sam", eps=0.1, lam=20.0)
    assert verdict.status == "refuted"
    assert "|g_i| is not smooth" in str(verdict)
    assert verdict.config["lam"] == 20.0


@pytest.mark.parametrize(
    ("variant", "numbers", "message"),
    [
        ("usam", {"eps": 0.1}, "usam does not normalise its perturbation"),
        ("sam", {"eps": -1.0}, "eps=-1.0: it must be a finite number of at least 0"),
        ("sam", {"lam": 1.0}, "sam has no Gibbs weights"),
        ("rw-sam", {}, "rw-sam needs lam"),
    ],
)
def test_numbers_that_a_variant_does_not_take(variant, numbers, message):
    with pytest.raises(ValueError, match=message):
        sdesam.check(sharpness(0.1), variant, **numbers)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "must state a drift, a potential or a covariance"),
        ({"drift": lambda *a: 0, "potential": lambda *a: 0}, "not both"),
    ],
)
def test_bad_hypotheses(parts, message):
    with pytest.raises(ValueError, match=message):
        sdesam.Hypothesis(**parts)


@pytest.mark.parametrize("part", ["drift", "potential", "covariance"])
def test_what_is_no_function_is_no_hypothesis(part):
    for other in (3, "loss", jnp.ones(2), [len]):
        with pytest.raises(TypeError, match=f"{part}=.*: it must be a function "):
            sdesam.Hypothesis(**{part: other})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"drift": lambda p, x, lr, rho, b, m: x[0]},
            "it must be real, of the shapes of the parameters",
        ),
        ({"drift": lambda p, x, lr, rho, b, m: x * jnp.nan}, "the drift is not finite"),
        ({"potential": lambda p, x, lr, rho, b, m: x}, "it must be a scalar, the modified loss"),
        (
            {"covariance": lambda p, x, lr, rho, b, m: x},
            r"it must be real and dense, of shape \(2, 2\)",
        ),
        (
            {"covariance": lambda p, x, lr, rho, b, m: None},
            "the covariance is None: it must be real and dense",
        ),
        (
            {"drift": lambda p, x, lr, rho, b, m: "text"},
            "the drift is str: it must be real, of the shapes of the parameters",
        ),
        (
            {"drift": lambda p, x, lr, rho, b, m: x * 1j},
            r"the drift is complex128\[2\]: it must be real",
        ),
        (
            {"potential": lambda p, x, lr, rho, b, m: "text"},
            "the potential fails on torus2d .*: the potential is str: it must be a scalar",
        ),
        (
            {"potential": lambda p, x, lr, rho, b, m: (1.0, 2.0)},
            "the potential is .*it must be a scalar",
        ),
        (
            {"potential": lambda p, x, lr, rho, b, m: p.loss(x) * 1j},
            r"the potential is complex128\[\]: it must be a scalar",
        ),
        (
            {"potential": lambda p, x, lr, rho, b, m: x[0] if x[0] > 0 else x[1]},
            "the potential fails on torus2d.*: it asks in Python for",
        ),
        (
            {"covariance": lambda p, x, lr, rho, b, m: lr * jnp.array([[1.0, 1.0], [0.0, 1.0]])},
            "is not symmetric",
        ),
        (
            {"covariance": lambda p, x, lr, rho, b, m: -lr * jnp.eye(2)},
            "is not positive semi-definite: it has the eigenvalue -0.1 at lr=0.1",
        ),
    ],
)
def test_bad_parts(parts, message):
    with pytest.raises(ValueError, match=message):
        sdesam.check(sdesam.Hypothesis(**parts), "usam")


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 60
    assert {mutant.side for mutant in MUTANTS} == {"SDE", "chain"}
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    "part", [part if part == 0 else pytest.param(part, marks=pytest.mark.slow) for part in range(6)]
)
def test_every_mutant_is_killed_and_every_right_theory_lives(part):
    assert not [str(f) for f in map(fate, (*RIGHT, *MUTANTS)[part::6]) if not f.as_wanted]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 20))
def test_no_fate_changes_over_seeds(seed):
    assert not [
        str(f) for f in (fate(mutant, seed) for mutant in (*RIGHT, *MUTANTS)) if not f.as_wanted
    ]


def test_mutants_differ_from_what_they_mutate():
    """A mutant of an equation is another equation: none is a right theory by accident of its
    sizes.
    """
    for mutant in MUTANTS:
        if mutant.theory is not None:
            assert mutant.side == "chain"
            continue
        equation = sdesam.derive(mutant.variant, (2, 3), mutant.with_replacement)
        assert (
            mutant.equation(equation) != equation
            or mutant.sde
            or mutant.side == "chain"
            or mutant.numbers(0.1, 0.2, 4, 2) != (0.1, 0.2, 4, 2)
        )


def test_one_step_of_a_mutant_kernel_is_another_step():
    problem = sdesam.problems.torus(dim=2, samples=4, seed=300)
    x, indices = np.array([0.4, 1.0], np.float32), np.array([[0, 1], [2, 3]])
    for variant, numbers in (("m-usam", {}), ("m-sam", {"eps": 0.1})):
        chain = sdesam.Chain(variant, problem, 0.1, 0.3, 4, 2, **numbers)
        right = np.asarray(chain.direction(x, indices))
        for mutant in MUTANTS:
            if mutant.side == "chain" and mutant.variant == variant:
                chain.kernel = mutant.kernel(**vars(chain.kernel))
                assert not np.allclose(chain.direction(x, indices), right), mutant.name


def test_a_theorem_about_a_rule_of_ones_own():
    """F-USAM descends `f + rho (1-sigma)/2 |grad f|^2 + rho/(2m) tr V`; a control leaves sigma
    out.
    """

    def stated(sigma):
        def potential(p, x, lr, rho, batch, micro):
            kept = rho * (1 - sigma) / 2 * p.grad_norm2(x)
            return p.loss(x) + kept + rho / (2 * micro) * p.trace_cov(x)

        return sdesam.Hypothesis(potential=potential)

    verdict = sdesam.check(stated(0.7), "f-usam", sigma=0.7)
    assert verdict.status == "confirmed"
    assert verdict.config["sigma"] == 0.7
    assert sdesam.check(stated(0.0), "f-usam", sigma=0.7).status == "refuted"
    with pytest.raises(TypeError, match="f-usam needs sigma"):
        sdesam.check(stated(0.7), "f-usam")
