"""The equations of rules as expressions: what is known of them, what they print."""

import pytest

import sdesam
from sdesam.variants import Variant, fresh, gradient, parameter, random_direction, unit

I, D, J = gradient("micro"), gradient("data"), gradient(fresh)  # noqa: E741
sigma, a = parameter("sigma"), parameter("a")


@pytest.mark.parametrize(
    ("direction", "text"),
    [
        # the first terms of theory.md, section 7: potentials of the drift
        (
            gradient("micro", at=I - sigma * D),
            "(rho*(1 - sigma)/2) |gbar|^2 + (rho/(2*m)) mean_i(|g~_i|^2)",
        ),
        (gradient("micro", at=J), "(rho/2) |gbar|^2"),
        ((1 - a) * I + a * gradient("micro", at=unit(I)), "a*rho mean_I(r_I)"),
        (
            gradient("micro", at=I + gradient("micro", at=I)),
            "rho |gbar|^2 + (rho/m) mean_i(|g~_i|^2)",
        ),
    ],
)
def test_modified_losses(direction, text):
    equation = sdesam.derive(Variant("mine", direction), order=(1, 2))
    found = equation.describe_potential().replace("-(rho*(sigma - 1)/2)", "(rho*(1 - sigma)/2)")
    assert found.replace("- (rho*(sigma - 1)/2)", "+ (rho*(1 - sigma)/2)") == f"f + {text}"


def test_random_directions_give_the_trace_of_the_hessian():
    equation = sdesam.derive(Variant("mine", gradient("micro", at=random_direction())), (1, 3))
    assert equation.describe_potential() == "f + (rho^2/2) e . Hbar e"
    assert "e: each vector of an orthonormal basis" in equation.text()
    assert [part.name for part in equation.drift_parts] == ["rho^0", "rho^2"]


def test_a_norm_of_a_combination():
    equation = sdesam.derive(Variant("mine", gradient("micro", at=unit(I - sigma * D))))
    assert "mean_I(H_I g_I / |g_I - sigma gbar|)" in equation.text()
    assert r"\|g_{I} - \sigma \bar g\|" in equation.latex().replace("g_I", "g_{I}")
    assert equation.potential() is None
    assert "is not decided here" in equation.obstruction
    assert equation.to_json()["drift"][1]["trees"][0]["factors"][0]["mix"] == ["1", "-sigma"]


def test_a_unit_vector_after_two_steps_descends_a_loss_at_second_order():
    """`u = grad f_I(x + rho u_0) / |...|` with `u_0 = g_I / |g_I|`: the `rho^2` part of its drift,
    `T[g,g]/(2 r^2) + H H g / r^2 - H g (g . H g) / r^4`, is the gradient of `g . H g / (2 r^2)`,
    which is half the curvature along the gradient. That of one step alone is none.
    """
    twice = Variant("mine", gradient("micro", at=unit(gradient("micro", at=unit(I)))))
    found = sdesam.derive(twice).describe_potential()
    assert found.endswith("(rho^2/2) mean_I(g_I . H_I g_I / r_I^2)")
    assert sdesam.derive("m-sam").potential() is None


def test_the_second_order_of_a_norm():
    """On scalars `f = x^2/2`: `u = grad f(x + rho u_0)/sqrt(|.|^2 + eps^2)` with `u_0 = c x` is
    `x (1 + rho c)/sqrt(x^2 (1 + rho c)^2 + eps^2)`, whose series is known.
    """
    import sympy as sp

    from sdesam.symbolic import eps, rho
    from sdesam.symbolic.coordinates import coordinates

    x = sp.Symbol("x", positive=True)
    rule = Variant("mine", gradient("data", at=unit(gradient("micro", at=I))))
    drift = sdesam.derive(rule, order=(1, 4)).drift
    (found,) = coordinates(drift, [x**2 / 2], [x])
    moved = x * (1 + rho)
    truth = -(x + rho * moved / sp.sqrt(moved**2 + eps**2))
    for power in range(4):
        terms = [sp.series(e, rho, 0, 4).removeO().coeff(rho, power) for e in (found, truth)]
        at = {x: sp.Rational(3, 10), eps: sp.Rational(2, 5)}
        assert abs(float((terms[0] - terms[1]).subs(at))) < 1e-12


def test_latex_of_a_rule():
    rule = Variant("mine", (1 - a) * I + a * gradient("micro", at=unit(I)))
    assert rule.latex() == (
        r"x^+ = x - \eta \frac{m}{b} \sum_{I \subset \gamma} \left(\left(1 - a\right)"
        r" \nabla f_{I}(x) + a \nabla f_{I}\left(x + \rho"
        r" \frac{\nabla f_{I}(x)}{\|\nabla f_{I}(x)\|}\right)\right)"
    )
