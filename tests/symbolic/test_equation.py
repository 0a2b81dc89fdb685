"""The derivation: truncation, names, potentials, equality, and the theorem in explicit
coordinates.
"""

import itertools
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

import sdesam
from sdesam.symbolic import (
    Term,
    Tree,
    TreeSum,
    batch,
    coordinates,
    eta,
    evaluate,
    gradient,
    micro,
    potential,
    rho,
    samples,
)
from sdesam.symbolic.expectation import DATA, MICRO, Sizes, mean, set_partitions
from sdesam.symbolic.trees import canonical, directional_derivative, graft, reroot

GRAD = Tree(1)
EDGE = Tree(1, (Tree(2),))
SAME_EDGE = Tree(1, (Tree(1),))


@pytest.mark.parametrize("with_replacement", [True, False])
def test_rho_1_drift_in_coordinates(with_replacement):
    """For undefined f_1, f_2 of two variables the rho^1 drift is -grad(rho/2 |grad f|^2 + rho c_m/2
    tr V), tr V written out here.
    """
    x = sp.symbols("x y")
    losses = [sp.Function(f"f{i}")(*x) for i in (1, 2)]
    rho1 = (
        sdesam.derive("m-usam", order=(1, 2), replace=with_replacement).drift
        - sdesam.derive("sgd", order=(1, 1)).drift
    )
    derived = coordinates(rho1.subs({samples: 2}), losses, x)

    grads = [[sp.diff(f, v) for v in x] for f in losses]
    gbar = [sum(g[k] for g in grads) / 2 for k in range(2)]
    trace = sum((g[k] - gbar[k]) ** 2 for g in grads for k in range(2)) / 2
    c_m = 1 / micro if with_replacement else (2 - micro) / micro
    modified = rho / 2 * sum(g**2 for g in gbar) + rho * c_m / 2 * trace
    for k, v in enumerate(x):
        assert sp.simplify(derived[k] + sp.diff(modified, v)) == 0
        wrong = modified + rho * (1 / batch - c_m) / 2 * trace  # 1/b for c_m
        assert sp.simplify(derived[k] + sp.diff(wrong, v)) != 0


def test_variance_vanishes_without_replacement_at_full_batch():
    equation = sdesam.derive("m-usam", order=(2, 4), replace=False).subs(micro, samples)
    assert equation.drift == sdesam.derive("n-usam", order=(2, 4), replace=False).drift
    assert "rho^1 variance" not in equation.terms
    assert (
        sdesam.derive("m-usam", replace=True).subs(micro, samples).drift
        != sdesam.derive("n-usam").drift
    )


def test_kept_terms():
    """Those with i/alpha + j/beta < 1, and the customary noise at alpha = 1."""

    def names(order):
        return {part.name for part in sdesam.derive("m-usam", order=order).parts}

    assert names((1, 1)) == {"rho^0", "noise"}
    assert names((1, 2)) == {"rho^0", "rho^1", "noise"}
    assert names((2, 1)) == {"rho^0", "eta", "noise"}
    assert names((2, 2)) == {"rho^0", "rho^1", "eta", "noise"}
    assert names((2, 3)) == {"rho^0", "rho^1", "rho^2", "eta", "eta rho^1", "noise", "noise rho^1"}
    assert names((2, 4)) == names((2, 3)) | {"rho^3"}
    assert [part.name for part in sdesam.derive("sgd", order=(2, 4)).drift_parts] == [
        "rho^0",
        "eta",
    ]


def test_potentials():
    """The modified loss at rho^1, (eta/4)|grad f|^2 and the eta rho^1 part; none at rho^2."""
    norm, spread = TreeSum({EDGE: 1}), TreeSum({SAME_EDGE: 1, EDGE: -1})
    loss = TreeSum({GRAD: 1})
    assert sdesam.derive("sgd").potential() == loss + norm * (eta / 4)
    theorem = loss + norm * (rho / 2) + spread * (rho / (2 * micro))
    assert sdesam.derive("m-usam", order=(1, 2)).potential() == theorem
    assert sdesam.derive("n-usam", order=(1, 2)).potential() == loss + norm * (rho / 2)
    # the eta rho^1 part is (eta/2) grad f . grad phi_1 with phi_1 = (theorem - f)/rho
    rest = sdesam.derive("m-usam").without("rho^2")
    eta_rho = rest.potential() - sdesam.derive("m-usam", order=(2, 2)).potential()
    expected = TreeSum([(canonical_free(t), c) for t, c in contract(theorem - loss).items()]) * (
        eta / 2
    )
    assert eta_rho == expected

    for variant in ("usam", "m-usam", "n-usam"):
        equation = sdesam.derive(variant)
        assert equation.potential() is None
        assert "rho^2 part of the drift is no gradient" in equation.obstruction
        assert equation.without("rho^2").obstruction is None


def contract(phi):
    """`grad f . grad phi`: hang the gradient of phi from a gradient of f."""
    return TreeSum([(Tree(9, (rooted,)), c) for rooted, c in gradient(phi).items()])


def canonical_free(tree):
    return min(reroot(canonical(tree)))


def test_gradient_of_a_scalar_is_recognised_and_a_single_tree_is_not():
    path = TreeSum({canonical_free(Tree(1, (Tree(2), Tree(3)))): 1})
    assert potential(gradient(path)) == path
    assert not isinstance(potential(TreeSum({Tree(1, (Tree(2), Tree(3))): 1})), TreeSum)


def test_gradient_in_coordinates():
    """The free-tree gradient against sympy's own derivative of the contracted scalar."""
    x = sp.symbols("x y")
    losses = [sp.exp(x[0]) * x[1] ** 2, sp.sin(x[0] * x[1])]
    g = [[sp.diff(f, v) for v in x] for f in losses]
    H = [sp.hessian(f, x) for f in losses]
    scalar = (
        sum((sp.Matrix(g[i]).T * H[i] * sp.Matrix(g[j]))[0] for i in range(2) for j in range(2)) / 4
    )
    derived = coordinates(
        gradient(TreeSum({canonical_free(Tree(1, (Tree(1), Tree(2)))): 1})), losses, x
    )
    for k, v in enumerate(x):
        assert sp.simplify(derived[k] - sp.diff(scalar, v)) == 0


def test_micro_batch_equal_to_batch_is_the_plain_variant():
    for with_replacement in (True, False):
        m_usam = sdesam.derive("m-usam", replace=with_replacement)
        assert m_usam != sdesam.derive("usam", replace=with_replacement)
        assert m_usam.subs(micro, batch) == sdesam.derive("usam", replace=with_replacement)
        assert hash(m_usam.subs(micro, batch)) == hash(
            sdesam.derive("usam", replace=with_replacement)
        )
    assert sdesam.derive("sgd", replace=True) != sdesam.derive("sgd", replace=False)


def test_without():
    equation = sdesam.derive("m-usam")
    assert not equation.without("noise").noise_parts
    assert [p.name for p in equation.without("noise rho^1").noise_parts] == ["noise"]
    assert [p.name for p in equation.without("eta").drift_parts] == ["rho^0", "rho^1", "rho^2"]
    assert [p.name for p in equation.without("rho^1").drift_parts] == [
        "rho^0",
        "rho^2",
        "eta",
        "eta rho^1",
    ]
    assert equation.without("rho^1 variance").drift == equation.drift + TreeSum(
        {SAME_EDGE: 1, EDGE: -1}
    ) * (rho / micro)
    with pytest.raises(
        ValueError, match=r"unknown term 'rho\^1 varience'.*did you mean 'rho\^1 variance'"
    ):
        equation.without("rho^1 varience")


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 3), (2, 2), (2, 4), (3, 4)])
@pytest.mark.parametrize("with_replacement", [True, False])
def test_expectations_over_micro_batches(m, n, with_replacement):
    """Scalars a_i in place of derivatives: E of a product of batch means, against all batches
    listed.
    """
    values = np.random.default_rng(n).normal(size=(n, 4))
    tagged = Tree(MICRO, (Tree(MICRO), Tree(MICRO), Tree(DATA)))
    picked = (
        itertools.product(range(n), repeat=m)
        if with_replacement
        else itertools.permutations(range(n), m)
    )
    listed = [values[list(b)].mean(0) for b in picked]
    truth = np.mean([v[0] * v[1] * v[1] * values[:, 1].mean() for v in listed])

    def value(tree):
        """Root: column 0; leaves: column 1; each colour averaged on its own."""
        blocks = {}
        for node, column in [(tree, 0), *((child, 1) for child in tree.children)]:
            blocks.setdefault(node.colour, []).append(values[:, column])
        return np.prod([np.mean(np.prod(block, axis=0)) for block in blocks.values()])

    derived = mean(tagged, Sizes(micro, micro), with_replacement)
    total = sum(float(evaluate(c, b=m, m=m, n=n)) * value(tree) for tree, c in derived.items())
    assert total == pytest.approx(truth, rel=1e-12)


def test_set_partitions_are_counted_by_bell_numbers():
    assert [len(list(set_partitions(range(k)))) for k in range(6)] == [1, 1, 2, 5, 15, 52]


def test_grafting_is_a_derivative():
    assert list(graft(GRAD, GRAD)) == [EDGE]
    # (D (H_i g_i)) gbar = T_i[g_i, gbar] + H_i H_i gbar
    grown = directional_derivative(TreeSum({SAME_EDGE: 1}), TreeSum({GRAD: 1}))
    assert set(grown) == {Tree(1, (Tree(1), Tree(2))), Tree(1, (Tree(1, (Tree(2),)),))}


def test_coefficients_at_small_populations_are_defined():
    for part in sdesam.derive("m-usam", order=(2, 4), replace=False).parts:
        for c in part.trees.values():
            for n, m in [(1, 1), (2, 1), (2, 2), (3, 2)]:
                if part.name.startswith("noise") and m == n:
                    continue  # every batch is the whole set: there is no noise, and bind says so
                assert isinstance(evaluate(c, b=m, m=m, n=n), Fraction)


def test_text_latex_json():
    equation = sdesam.derive("m-usam", replace=False)
    assert "(n - m)/(m*(n - 1))) mean_i(H~_i g~_i)" in equation.text()
    assert "mean_i(|g~_i|^2) is tr V" in equation.text()
    assert "no weak error can see the noise" in sdesam.derive("sgd", order=(1, 1)).text()
    latex = sdesam.derive("m-usam", order=(1, 2)).latex()
    assert latex.count(r"\begin{align*}") == latex.count(r"\end{align*}") == 1
    assert r"\frac{\rho}{m} \langle \tilde H_i \tilde g_i \rangle_{i}" in latex
    data = sdesam.derive("m-usam", order=(1, 2)).to_json()
    assert data["drift"][1]["trees"] == [
        {"tree": [1, [1]], "coefficient": "-rho/m"},
        {"tree": [1, [2]], "coefficient": "-rho*(m - 1)/m"},
    ]
    assert (
        repr(sdesam.derive("m-usam").without("noise"))
        == "derive('m-usam', order=(2, 3), replace=True).without('noise')"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("musam",), r"unknown variant 'musam'.*sgd.*did you mean 'm-usam'"),
        (("usam", (3, 3)), r"no SDE driven by Brownian motion has alpha > 2.*kappa_3"),
        (("usam", (0, 3)), "alpha must be 1 or 2"),
        (("usam", (2, 5)), "beta must be 1, 2, 3 or 4"),
        (("usam", (2, 0)), "beta must be 1, 2, 3 or 4"),
        (("usam", (2, 2.5)), "whole numbers"),
        (("usam", 2), r"a pair \(alpha, beta\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        sdesam.derive(*arguments)


def test_only_sizes_are_replaced():
    with pytest.raises(ValueError, match="only the sizes b, m and n can"):
        sdesam.derive("usam").subs(rho, 0)
    with pytest.raises(TypeError, match="must be True"):
        sdesam.derive("usam", replace="without")


@pytest.mark.parametrize("with_replacement", [True, False])
def test_noise_factor(with_replacement):
    """c_b as derived from the trees against the closed form in `sampling`."""
    equation = sdesam.derive("sgd", replace=with_replacement)
    for b, n in [(1, 2), (2, 3), (4, 7)]:
        closed = sdesam.Sampling(b, replace=with_replacement).covariance_factor(n)
        assert evaluate(equation.noise_factor, b, b, n) == closed


def test_deriving_needs_no_jax():
    code = (
        "import sys, sdesam; sdesam.derive('m-usam', order=(2, 4)).text(); sys.exit('jax' in"
        " sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_deriving_does_little_work():
    """A stand-in for 'below a second' that does not depend on the machine: the number of trees
    stays small.
    """
    equation = sdesam.derive("m-usam", order=(2, 4))
    assert len(equation.drift) + len(equation.noise) < 40


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("eta", {"eta", "eta rho^1"}),
        ("eta rho^1", {"eta rho^1"}),
        ("noise", {"noise", "noise rho^1"}),
        ("noise rho^1", {"noise rho^1"}),
        ("rho^0", {"rho^0"}),
        ("rho^1", {"rho^1"}),
        ("rho^1 variance", set()),
    ],
)
def test_what_goes_with_a_term(name, covered):
    parts = ("rho^0", "rho^1", "rho^2", "eta", "eta rho^1", "noise", "noise rho^1")
    assert {part for part in parts if Term.parse(name).covers(Term.parse(part))} == covered


@pytest.mark.parametrize("name", ["", "drift", "eta rho^0", "rho^12", "variance", "noise  rho^1"])
def test_what_names_no_term(name):
    assert Term.parse(name) is None
