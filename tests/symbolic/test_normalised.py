"""Normalised variants: the algebra of norms against sympy's own derivatives, potentials and what
has none, printing.
"""

import itertools

import numpy as np
import pytest
import sympy as sp

import sdesam
from sdesam.symbolic import (
    Tree,
    TreeSum,
    batch,
    coordinates,
    eps,
    eta,
    gradient,
    micro,
    potential,
    printing,
    rho,
)
from sdesam.symbolic.roles import WHOLE
from sdesam.symbolic.trees import Factor, canonical, directional_derivative

X = sp.symbols("x y")
LOSSES = [sp.exp(X[0]) * X[1] ** 2 + X[0], sp.sin(X[0] * X[1]) + 2 * X[1]]
PLACE = {X[0]: sp.Rational(3, 10), X[1]: sp.Rational(-7, 10)}
OWN = Factor(True, Tree(1), -1)


def at(expressions, e=0.3):
    return np.array(
        [float(sp.N(expression.subs(PLACE).subs(eps, e), 30)) for expression in expressions]
    )


def gradient_of(scalar):
    return [sp.diff(scalar, v) for v in X]


def norm(loss):
    return sp.sqrt(sum(g**2 for g in gradient_of(loss)) + eps**2)


def pairs(losses):
    """The mean losses of all micro-batches of two samples, drawn with replacement."""
    return [(a + b) / 2 for a, b in itertools.product(losses, repeat=2)]


def test_modified_losses():
    """`f + rho E r_I` and `f + rho r`, from sympy's derivative of the scalar."""
    sam = sdesam.derive("sam", (1, 2))
    found = at(coordinates(sam.drift.subs({rho: 1}), pairs(LOSSES), X))
    listed = pairs(LOSSES)
    wanted = sum(listed) / 4 + sum(norm(f) for f in listed) / 4
    np.testing.assert_allclose(found, -at(gradient_of(wanted)), rtol=1e-12)
    whole = sum(LOSSES) / 2
    n_sam = sdesam.derive("n-sam", (1, 2))
    np.testing.assert_allclose(
        at(coordinates(n_sam.drift.subs({rho: 1}), LOSSES, X)),
        -at(gradient_of(whole + norm(whole))),
        rtol=1e-12,
    )
    # the control: SAM's loss for n-SAM
    assert (
        abs(at(coordinates(n_sam.drift.subs({rho: 1}), LOSSES, X)) + at(gradient_of(wanted))).max()
        > 1e-2
    )


@pytest.mark.parametrize("variant", ["sam", "n-sam", "dnsam"])
def test_correction_is_a_derivative(variant):
    """The eta rho^1 part against `-(1/2) ((D G_0) G_1 + (D G_1) G_0)`, differentiated by sympy."""
    losses = pairs(LOSSES) if variant == "sam" else LOSSES
    equation = sdesam.derive(variant, (2, 3))
    part = {p.name: p.trees.subs({batch: 2}) for p in equation.drift_parts}
    G0, G1 = (coordinates(-part[name], losses, X) for name in ("rho^0", "rho^1"))
    along = [
        sum(sp.diff(a, v) * b + sp.diff(c, v) * d for v, b, d in zip(X, G1, G0, strict=True))
        for a, c in zip(G0, G1, strict=True)
    ]
    np.testing.assert_allclose(
        at(coordinates(part["eta rho^1"], losses, X)), -at(along) / 2, rtol=1e-12
    )


def test_potentials():
    for variant, scalar in [
        ("sam", Factor(True, Tree(1), 1)),
        ("m-sam", Factor(True, Tree(1), 1)),
        ("n-sam", Factor(True, Tree(WHOLE), 1)),
    ]:
        found = sdesam.derive(variant, (1, 2)).potential()
        assert found == TreeSum({Tree(1): 1, Tree(-2, (), (scalar,)): rho})
        # the eta rho^1 part is (eta/2) grad f . grad phi_1
        rest = sdesam.derive(variant).without("rho^2")
        assert rest.obstruction is None
        assert len(rest.potential()) == 4
        assert gradient(rest.potential()) == -rest.drift
        assert "rho^2 part of the drift is no gradient" in sdesam.derive(variant).obstruction


def test_no_potential():
    """DNSAM's and RW-SAM's first-order drifts are in general no gradients, and the reason is
    told.
    """
    dnsam = sdesam.derive("dnsam", (1, 2))
    assert dnsam.potential() is None
    assert (
        "mean_i(H_i g_i / r) would have to be a multiple of 2 mean_i(H_i g_i / r) - mean_i(Hbar"
        " gbar (|g_i|^2) / r^3)" in dnsam.obstruction
    )
    assert "weights move with the parameters" in sdesam.derive("rw-sam", (1, 2)).obstruction
    # without the offending variance DNSAM is n-SAM
    assert dnsam.without("rho^1 variance").drift == sdesam.derive("n-sam", (1, 2)).drift
    # a power of the norm that does not belong
    assert not isinstance(potential(TreeSum({Tree(1, (Tree(2),), (OWN,)): 1})), TreeSum)


def test_curl_of_dnsam():
    """In coordinates: the Jacobian of the rho^1 drift is symmetric for n-SAM and not for DNSAM."""

    def curl(variant):
        part = next(p for p in sdesam.derive(variant, (1, 2)).drift_parts if p.name == "rho^1")
        field = coordinates(part.trees.subs({batch: 2}), LOSSES, X)
        return at([sp.diff(field[0], X[1]) - sp.diff(field[1], X[0])])[0]

    assert abs(curl("n-sam")) < 1e-12
    assert abs(curl("dnsam")) > 1e-2


@pytest.mark.parametrize(
    ("variant", "whole"), [("sam", "n-sam"), ("m-sam", "n-sam"), ("m-usam", "n-usam")]
)
def test_large_micro_batches_are_the_whole_set(variant, whole):
    """The limit of independent samples of every part of the drift, to order (2, 4): powers of the
    norm up to 3, and inner products.
    """
    parts = {part.name: part.trees for part in sdesam.derive(whole, (2, 4)).drift_parts}
    for part in sdesam.derive(variant, (2, 4)).drift_parts:
        assert part.trees.independent() == parts.pop(part.name), part.name
    assert not parts


def test_gradient_of_scalars_with_norms():
    """Free trees with norms against sympy: `r`, `r^3`, `g . H g / r` and `|g_i|^2 / r`."""
    whole = Factor(True, Tree(WHOLE), -1)
    f = sum(LOSSES) / 2
    g, H = sp.Matrix(gradient_of(f)), sp.hessian(f, X)
    scalars = {
        Tree(-2, (), (Factor(True, Tree(WHOLE), 3),)): norm(f) ** 3,
        canonical(Tree(1, (Tree(2), Tree(3)), (whole,))): (g.T * H * g)[0] / norm(f),
        canonical(Tree(1, (Tree(1),), (whole,))): (
            sum(d**2 for loss in LOSSES for d in gradient_of(loss)) / 2 / norm(f)
        ),
    }
    for tree, scalar in scalars.items():
        field = gradient(TreeSum({tree: 1}))
        np.testing.assert_allclose(
            at(coordinates(field, LOSSES, X)), at(gradient_of(scalar)), rtol=1e-12
        )
        assert gradient(potential(field)) == field


def edge(colour, power, *factors):
    """`H_I g_I r_I^power` or `Hbar gbar r^power`, times more factors."""
    return canonical(
        Tree(
            1,
            (Tree(1),) if colour == 1 else (Tree(2),),
            (Factor(True, Tree(colour), power), *factors),
        )
    )


@pytest.mark.parametrize(("colour", "text"), [(1, "2 mean_I(log(r_I))"), (WHOLE, "2 log(r)")])
def test_the_gradient_of_a_logarithm(colour, text):
    """`H g / r^2` is the gradient of `log r`, of a micro-batch's norm and of the whole set's."""
    field = TreeSum({edge(colour, -2): 2})
    found = potential(field)
    assert gradient(found) == field
    scalar = (
        sum(sp.log(norm(loss)) for loss in LOSSES)
        if colour == 1
        else 2 * sp.log(norm(sum(LOSSES) / 2))
    )
    np.testing.assert_allclose(
        at(coordinates(field, LOSSES, X)), at(gradient_of(scalar)), rtol=1e-12
    )
    assert printing.text(found, scalar=True) == text
    assert r"\log r" in printing.latex(found, scalar=True)


def test_a_logarithm_times_an_inner_product():
    """`log(r_I) |gbar|^2` has a gradient of two trees, of which one alone is none."""
    (tree,) = potential(TreeSum({edge(1, -2): 1}))
    both = gradient(
        TreeSum(
            {
                canonical(
                    tree._replace(factors=(*tree.factors, Factor(False, Tree(2, (Tree(3),)), 1)))
                ): 1
            }
        )
    )
    scalar = (
        sum(sp.log(norm(loss)) for loss in LOSSES)
        / 2
        * sum(g**2 for g in gradient_of(sum(LOSSES) / 2))
    )
    np.testing.assert_allclose(
        at(coordinates(both, LOSSES, X)), at(gradient_of(scalar)), rtol=1e-12
    )
    assert gradient(potential(both)) == both
    assert len(both) == 2
    for one, c in both.items():
        assert not isinstance(potential(TreeSum({one: c})), TreeSum)


@pytest.mark.parametrize("power", [-4, -3, -2, -1, 1])
@pytest.mark.parametrize("colour", [1, WHOLE])
def test_a_square_beside_its_own_norm(colour, power):
    """`|g|^2 H g r^p` is a gradient, because `|g|^2 = r^2 - eps^2`: of a power, a logarithm, or
    both. `|gbar|^2 H_I g_I r_I^p` is none.
    """
    square = Factor(False, Tree(1, (Tree(1),)) if colour == 1 else Tree(3, (Tree(4),)), 1)
    field = TreeSum({edge(colour, power, square): 1})
    found = potential(field)
    assert isinstance(found, TreeSum), str(found)
    np.testing.assert_allclose(
        at(coordinates(gradient(found), LOSSES, X)), at(coordinates(field, LOSSES, X)), rtol=1e-10
    )
    other = Factor(False, Tree(2, (Tree(3),)) if colour == 1 else Tree(3, (Tree(3),)), 1)
    assert not isinstance(potential(TreeSum({edge(colour, power, other): 1})), TreeSum)


def test_derivative_of_a_logarithm():
    """`D log r [v]` and `D (log r)^2 [v]` by trees against sympy."""
    along = TreeSum({Tree(1): 1})
    v = coordinates(along, LOSSES, X)
    for power in (1, 2):
        field = TreeSum({canonical(Tree(1, (), (Factor(True, Tree(WHOLE), power, log=True),))): 1})
        wanted = [
            sum(sp.diff(component, x) * d for x, d in zip(X, v, strict=True))
            for component in coordinates(field, LOSSES, X)
        ]
        np.testing.assert_allclose(
            at(coordinates(directional_derivative(field, along), LOSSES, X)), at(wanted), rtol=1e-12
        )


def test_derivative_of_norms():
    """`D r^p [v]` by trees against sympy, for a norm of the whole set."""
    field = TreeSum({canonical(Tree(1, (Tree(1),), (Factor(True, Tree(WHOLE), -2),))): 1})
    along = TreeSum({Tree(1): 1})
    a, v = coordinates(field, LOSSES, X), coordinates(along, LOSSES, X)
    wanted = [sum(sp.diff(component, x) * d for x, d in zip(X, v, strict=True)) for component in a]
    np.testing.assert_allclose(
        at(coordinates(directional_derivative(field, along), LOSSES, X)), at(wanted), rtol=1e-12
    )


def test_printing():
    text = sdesam.derive("m-sam").text()
    for line in (
        "rho^1         -rho mean_I(H_I g_I / r_I)",
        "+ (eta*rho/2) mean_I(H_I g_I (g_I . H_I gbar) / r_I^3)",
        "noise rho^1   m*rho E[H_I g_I / r_I | i in I]",
        "U =   f + (eta/4) |gbar|^2 + rho mean_I(r_I)",
        "I: a micro-batch of m samples",
        "r_I = sqrt(|g_I|^2 + eps^2)",
    ):
        assert line in text
    assert "modified loss U, B = -grad U:   f + rho r" in sdesam.derive("n-sam", (1, 2)).text()
    assert "g^_I = sum_i p_i g_i" in sdesam.derive("rw-sam").text()
    assert r"\mathbb{E}[H_I g_I / r_I \mid i \in I]" in sdesam.derive("sam").latex()
    assert (
        r"\frac{m \rho \left(n - 1\right)}{n - m}" in sdesam.derive("m-sam", replace=False).latex()
    )
    listed = {part["term"]: part for part in sdesam.derive("sam").to_json()["drift"]}
    assert listed["rho^1"]["trees"] == [
        {
            "tree": [1, [1]],
            "coefficient": "-rho",
            "factors": [{"kind": "norm", "tree": [1], "power": -1}],
        }
    ]


def test_sizes_that_cannot_be_replaced():
    with pytest.raises(
        ValueError,
        match="in m-sam it is also the size of the micro-batches I; bind with another size",
    ):
        sdesam.derive("m-sam").subs(micro, batch)
    with pytest.raises(ValueError, match="epsilon cannot be replaced"):
        sdesam.derive("m-sam").subs(eps, eta)
    with pytest.raises(ValueError, match="has no coordinates"):
        coordinates(sdesam.derive("rw-sam").drift, LOSSES, X)
