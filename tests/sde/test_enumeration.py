"""Bound equations against brute force over all batches, to 1e-10 in float64: drift, correction,
covariance, each power of rho.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import sdesam
from sdesam.mutants import scaled
from sdesam.symbolic import batch, micro
from sdesam.symbolic.trees import TreeSum
from sdesam.variants import gibbs, gradient, unit
from tests.brute_force import LAM, Polynomials, moments

MICRO, BATCH, DATA = gradient("micro"), gradient("batch"), gradient("data")
OWN = {
    name: sdesam.Variant(name, gradient("micro" if name.startswith("m-") else "batch", at=u))
    for name, u in [
        ("m-dnsam", unit(MICRO, norm_of=DATA)),
        ("m-rw-sam", unit(gibbs("micro"))),
        ("rw-usam", gibbs("batch")),
        ("m-rw-usam", gibbs("micro")),
        ("rw-dnsam", unit(gibbs("batch"), norm_of=DATA)),
        ("m-rw-dnsam", unit(gibbs("micro"), norm_of=DATA)),
        ("n-sam of the data set", unit(DATA, norm_of=DATA)),
    ]
}
"""More rules with one ascent step; none is registered."""

LR = 0.3
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def polynomial_loss(x, s):
    cubic = jnp.einsum("jkl,j,k,l", s["C"], x, x, x) / 6
    return (
        s["a"] @ x
        + x @ s["A"] @ x / 2
        + cubic
        + jnp.einsum("jklp,j,k,l,p", s["Q"], x, x, x, x) / 24
    )


def ridge_loss(x, s):
    """A polynomial of one product `v . x`: a dense layer of one output."""
    z = s["v"] @ x
    return s["k"] @ jnp.stack([z, z**2 / 2, z**3 / 6, z**4 / 24])


def ridges(n, d, seed, quartic):
    """The same losses for :func:`ridge_loss` and as symmetric tensors."""
    rng = np.random.default_rng(seed)
    v, k = rng.normal(size=(n, d)), rng.normal(size=(n, 4)) * [1, 1, 1, quartic]
    powers = [
        v,
        np.einsum("nj,nk->njk", v, v),
        np.einsum("nj,nk,nl->njkl", v, v, v),
        np.einsum("nj,nk,nl,np->njklp", v, v, v, v),
    ]
    return {"v": v, "k": k}, Polynomials(
        *(k[:, i].reshape(n, *[1] * (i + 1)) * power for i, power in enumerate(powers))
    )


def powers_of_rho(values, radii):
    """The coefficients of a polynomial in rho from its values at as many radii as it has."""
    return np.linalg.solve(
        np.vander(radii, increasing=True), np.array([np.ravel(v) for v in values])
    )


def assert_equals_enumeration(
    n,
    d,
    b,
    m,
    with_replacement,
    variant,
    seed,
    order=(2, 3),
    change=lambda eq: eq,
    eps=0.0,
    bound=None,
    ridge=False,
):
    if not variant.startswith("m-"):
        m = b
    with jax.enable_x64(True):
        x = 0.5 * np.random.default_rng(seed).normal(size=d)
        data, losses = (
            ridges(n, d, seed, order[1] == 4)
            if ridge
            else (None, Polynomials.random(n, d, seed, quartic=order[1] == 4))
        )
        problem = (
            sdesam.FiniteSum(ridge_loss, data, x)
            if ridge
            else sdesam.FiniteSum(polynomial_loss, vars(losses), x)
        )
        equation = change(
            sdesam.derive(OWN.get(variant, variant), order=order, replace=with_replacement)
        )
        # a drift of order (2, beta) is a polynomial of degree beta - 1 in rho, a covariance one of
        # degree 2
        radii = np.linspace(0, 1, max(order[1], 3))
        drift = []
        # a drift is affine in eta: two rates tell the correction from the rest
        for lr in (
            LR,
            2 * LR,
        ):
            numbers = {
                "lr": lr,
                "batch": b,
                "micro": m if variant.startswith("m-") else None,
                "expectation": "exact",
            }
            numbers |= {"eps": eps, **(bound or {})}
            sdes = [
                equation.bind(problem, rho=None if variant == "sgd" else rho, **numbers)
                for rho in radii
            ]
            drift.append(powers_of_rho([sde.drift(x) for sde in sdes], radii))
        correction = drift[1] - drift[0]
        covariance = powers_of_rho([sde.covariance(x) for sde in sdes], radii)

    true = moments(losses, x, variant, b, m, with_replacement, eps)
    for j in range(order[1]):
        np.testing.assert_allclose(
            correction[j] - drift[0][j], true.mean[j], err_msg=f"mean step, rho^{j}", **CLOSE
        )
    for j in range(2):
        np.testing.assert_allclose(
            correction[j], -LR / 2 * true.correction[j], err_msg=f"correction, rho^{j}", **CLOSE
        )
        np.testing.assert_allclose(
            covariance[j],
            2 * LR * true.covariance[j].ravel(),
            err_msg=f"covariance, rho^{j}",
            **CLOSE,
        )


@st.composite
def cases(draw):
    n = draw(st.integers(1, 5))
    with_replacement = draw(st.booleans())
    b = draw(st.integers(1, 4 if with_replacement else min(4, n)))
    m = draw(st.sampled_from([k for k in range(1, b + 1) if b % k == 0]))
    variant = draw(st.sampled_from(["sgd", "usam", "m-usam", "m-usam", "n-usam"]))
    return (
        n,
        draw(st.sampled_from([2, 3])),
        b,
        m,
        with_replacement,
        variant,
        draw(st.integers(0, 10**6)),
    )


@settings(phases=[Phase.explicit], deadline=None)
@given(cases())
@example((5, 3, 4, 2, False, "m-usam", 1))
@example((5, 3, 4, 2, True, "m-usam", 1))
@example((2, 2, 2, 1, False, "m-usam", 2))
@example((2, 2, 2, 2, False, "m-usam", 2))
@example((1, 2, 1, 1, False, "m-usam", 3))
def test_cubic_losses(case):
    assert_equals_enumeration(*case)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases())
def test_many_cubic_losses(case):
    assert_equals_enumeration(*case)


@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize(
    ("variant", "m"), [("m-usam", 1), ("m-usam", 2), ("usam", 4), ("n-usam", 4)]
)
def test_rho_cubed_on_quartic_losses(variant, m, with_replacement):
    assert_equals_enumeration(5, 2, 4, m, with_replacement, variant, seed=7, order=(2, 4))


def some_slow(cases):
    """Each of them compiles for seconds."""
    return [
        pytest.param(*case, marks=[] if fast else pytest.mark.slow) for case, fast in cases.items()
    ]


@pytest.mark.parametrize(
    ("variant", "m", "order", "with_replacement"),
    some_slow(
        {
            **{("m-usam", 1, (2, 3), replaced): True for replaced in (True, False)},
            **{("m-usam", 2, (2, 4), replaced): not replaced for replaced in (True, False)},
            **{("usam", 4, (2, 3), replaced): replaced for replaced in (True, False)},
            **{("m-sam", 2, (2, 3), replaced): False for replaced in (True, False)},
        }
    ),
)
def test_losses_with_a_dense_layer(variant, m, order, with_replacement):
    """Where gradients of samples are not formed."""
    assert_equals_enumeration(
        5, 3, 4, m, with_replacement, variant, seed=9, order=order, ridge=True
    )
    if variant == "m-usam":
        with pytest.raises(AssertionError, match="Not equal"):
            assert_equals_enumeration(
                5,
                3,
                4,
                m,
                with_replacement,
                variant,
                9,
                order,
                scaled("rho^1", sp.Rational(11, 10)),
                ridge=True,
            )


@pytest.mark.parametrize(
    "change",
    [
        *(
            scaled(name, f)
            for name in ("rho^0", "rho^1", "rho^2", "eta", "eta rho^1", "noise", "noise rho^1")
            for f in (sp.Rational(11, 10), -1)
        ),
        *(
            lambda eq, t=t: eq.without(t)
            for t in ("rho^1 variance", "rho^2 variance", "noise rho^1")
        ),
        lambda eq: eq.subs(micro, batch),
        lambda eq: replace(eq, replace=not eq.replace),
        lambda eq: replace(
            eq, noise_parts=sdesam.derive("m-usam", replace=not eq.replace).noise_parts
        ),
        lambda eq: replace(
            eq, drift_parts=sdesam.derive("m-usam", replace=not eq.replace).drift_parts
        ),
        lambda eq: sdesam.derive("usam", replace=eq.replace),
        lambda eq: sdesam.derive("n-usam", replace=eq.replace),
    ],
)
def test_negative_controls(change):
    """The comparison can fail: each of these wrong equations is caught."""
    with pytest.raises(AssertionError, match="Not equal"):
        assert_equals_enumeration(
            5, 2, 4, 2, False, "m-usam", seed=11, change=lambda eq: relabelled(change(eq))
        )


def relabelled(equation, name="m-usam"):
    """A wrong equation under the name of the right one, so that it binds with the same numbers."""
    return replace(equation, variant=sdesam.VARIANTS[name])


@pytest.mark.parametrize(
    ("variant", "b", "m", "with_replacement"),
    some_slow(
        {
            **{("m-sam", 4, 2, replaced): True for replaced in (True, False)},
            **{("m-sam", 3, 1, replaced): not replaced for replaced in (True, False)},
            **{("sam", 3, None, replaced): replaced for replaced in (True, False)},
            **{("n-sam", 3, None, replaced): replaced for replaced in (True, False)},
            **{("dnsam", 3, None, replaced): not replaced for replaced in (True, False)},
        }
    ),
)
def test_normalised_variants(variant, b, m, with_replacement):
    """eps > 0, and eps = 0 where no micro-batch's gradient vanishes, as with random losses."""
    for eps, seed in [(0.4, 5), (0.0, 6)]:
        assert_equals_enumeration(4, 2, b, m, with_replacement, variant, seed=seed, eps=eps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "m"),
    some_slow({("sam", None): True, ("dnsam", None): False, ("n-sam", None): False}),
)
def test_rho_cubed_of_normalised_variants(variant, m):
    assert_equals_enumeration(4, 2, 3, m, True, variant, seed=8, order=(2, 4), eps=0.2)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.tuples(
        st.integers(2, 4),
        st.sampled_from([2, 3]),
        st.booleans(),
        st.sampled_from(["sam", "m-sam", "n-sam", "dnsam"]),
        st.integers(0, 10**6),
    )
)
@example((1, 2, False, "m-sam", 3))
@example((2, 2, False, "sam", 4))
def test_normalised_variants_on_random_losses(case):
    n, d, with_replacement, variant, seed = case
    assert_equals_enumeration(n, d, min(2, n), 1, with_replacement, variant, seed, eps=0.3)


NORMALISED_MUTANTS = {
    **{
        f"{part} 10 % off": {"change": scaled(part, sp.Rational(11, 10))}
        for part in ("rho^1", "rho^2", "eta rho^1", "noise rho^1")
    },
    **{
        f"{term} missing": {"change": lambda eq, t=term: eq.without(t)}
        for term in ("rho^1 variance", "rho^2 variance", "noise rho^1")
    },
    "the noise of the other sampling": {
        "change": lambda eq: replace(
            eq, noise_parts=sdesam.derive("m-sam", replace=not eq.replace).noise_parts
        )
    },
    "n-SAM": {"change": lambda eq: relabelled(sdesam.derive("n-sam", replace=eq.replace), "m-sam")},
    "the norm of the whole set": {
        "change": lambda eq: relabelled(sdesam.derive("dnsam", replace=eq.replace), "m-sam")
    },
    "another eps": {"bound": {"eps": 0.5}},
    "SAM": {"bound": {"micro": 4}},
}


@pytest.mark.parametrize(
    "name",
    some_slow(
        {
            (name,): name not in ("n-SAM", "SAM", "the norm of the whole set")
            for name in NORMALISED_MUTANTS
        }
    ),
)
def test_negative_controls_of_normalised_variants(name):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_equals_enumeration(
            5, 2, 4, 2, False, "m-sam", seed=9, eps=0.4, **NORMALISED_MUTANTS[name]
        )


RW_SAM = {"lam": LAM, "norms": sdesam.NormEstimate("exact")}


@pytest.mark.parametrize(
    ("with_replacement", "b", "eps"), some_slow({(True, 3, 0.0): False, (False, 2, 0.4): True})
)
def test_rw_sam(with_replacement, b, eps):
    """Weights by exact norms, and their derivatives in the correction and in the noise."""
    assert_equals_enumeration(
        4, 2, b, None, with_replacement, "rw-sam", seed=12, eps=eps, bound=RW_SAM
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "b", "m", "with_replacement"),
    some_slow(
        {
            ("m-dnsam", 4, 2, False): False,
            ("m-dnsam", 3, 1, True): False,
            ("n-sam of the data set", 3, None, False): False,
            ("m-rw-sam", 4, 2, True): False,
            ("rw-usam", 3, None, True): False,
            ("m-rw-usam", 4, 2, False): True,
            ("rw-dnsam", 2, None, True): False,
            ("m-rw-dnsam", 4, 2, False): True,
        }
    ),
)
def test_rules_that_are_not_registered(variant, b, m, with_replacement):
    weights = RW_SAM if OWN[variant].weighted else {}
    eps = {"eps": 0.4} if OWN[variant].normalised else {}
    assert_equals_enumeration(4, 2, b, m, with_replacement, variant, seed=14, bound=weights, **eps)


def without_tree(number):
    """The equation without one of the trees of `eta rho^1`, which are what becomes of `H u` when a
    weight, a norm or a Hessian moves.
    """

    def change(equation):
        def less(part):
            trees = dict(part.trees)
            del trees[list(trees)[number]]
            return replace(part, trees=TreeSum(trees))

        return replace(
            equation,
            drift_parts=tuple(
                less(part) if part.name == "eta rho^1" else part for part in equation.drift_parts
            ),
        )

    return change


def noise_without_weights(equation):
    return replace(
        equation,
        noise_parts=sdesam.derive(
            "sam", order=equation.order, replace=equation.replace
        ).noise_parts,
    )


RW_SAM_MUTANTS = {
    "lambda doubled": {"bound": {**RW_SAM, "lam": 2 * LAM}},
    "no weights": {"bound": {**RW_SAM, "lam": 0.0}},
    "weights dropped from the noise": {"change": noise_without_weights},
    **{f"tree {k} of eta rho^1 missing": {"change": without_tree(k)} for k in range(4)},
    **{
        f"{part} 10 % off": {"change": scaled(part, sp.Rational(11, 10))}
        for part in ("rho^1", "rho^2", "eta rho^1", "noise rho^1")
    },
    "another eps": {"bound": {**RW_SAM, "eps": 0.5}},
}


RW_SAM_FAST = (
    "lambda doubled",
    "no weights",
    "weights dropped from the noise",
    "tree 0 of eta rho^1 missing",
    "rho^1 10 % off",
    "noise rho^1 10 % off",
)


@pytest.mark.parametrize(
    "name", some_slow({(name,): name in RW_SAM_FAST for name in RW_SAM_MUTANTS})
)
def test_negative_controls_of_rw_sam(name):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_equals_enumeration(
            4,
            2,
            2,
            None,
            False,
            "rw-sam",
            seed=12,
            eps=0.4,
            **{"bound": RW_SAM, **RW_SAM_MUTANTS[name]},
        )
