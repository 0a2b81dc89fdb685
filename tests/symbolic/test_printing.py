"""What is printed is what was derived: centred moments expand back, and the demo's headline is
pinned.
"""

from itertools import product

import pytest

import sdesam
from sdesam.symbolic import MARK, Tree, TreeSum
from sdesam.symbolic.potential import free
from sdesam.symbolic.printing import centred
from sdesam.symbolic.trees import block_sizes, canonical


def expand(total, scalar=False):
    """Deviations written out as `value - mean`: the inverse of `centred`, by another route (signs,
    not subsets of two and more).
    """
    terms = []
    for tree, coefficient in total.items():
        colours = [node.colour for node in tree.nodes()]
        repeated = {
            colour for colour, size in block_sizes(tree).items() if size > 1 and colour != MARK
        }
        places = [k for k, colour in enumerate(colours) if colour in repeated]
        for means in product([False, True], repeat=len(places)):
            to_mean = dict(zip(places, means, strict=True))
            counter = iter(range(len(colours)))

            def visit(node, to_mean=to_mean, counter=counter):
                here = next(counter)
                colour = 100 + here if to_mean.get(here) else node.colour
                return Tree(colour, tuple(visit(child) for child in node.children))

            rebuilt = visit(tree)
            terms.append(
                ((free if scalar else canonical)(rebuilt), coefficient * (-1) ** sum(means))
            )
    return TreeSum(terms)


@pytest.mark.parametrize("with_replacement", [True, False])
@pytest.mark.parametrize("variant", ["m-usam", "n-usam", "sgd"])
def test_centred_moments_expand_back(variant, with_replacement):
    for part in sdesam.derive(variant, order=(2, 4), replace=with_replacement).drift_parts:
        assert expand(centred(part.trees)) == part.trees
    potential = sdesam.derive(variant, order=(2, 2), replace=with_replacement).potential()
    assert expand(centred(potential, scalar=True), scalar=True) == potential


def test_the_headline():
    text = sdesam.derive("m-usam", order=(2, 3)).text()
    for line in (
        "rho^1         -rho Hbar gbar - (rho/m) mean_i(H~_i g~_i)",
        "- (rho^2/(2*m^2)) mean_i(T~_i[g~_i, g~_i])",
        "eta           -(eta/2) Hbar gbar",
        "S S^T = c_b Cov_i h(i),   c_b = 1/b,   h(i) =",
        "noise rho^1   (rho*(m - 1)/m) H_i gbar + (rho*(m - 1)/m) Hbar g_i + (rho/m) H_i g_i",
        "U =   f + (eta/4 + rho/2) |gbar|^2 + (rho/(2*m)) mean_i(|g~_i|^2)",
    ):
        assert line in text
    assert "c_b = (n - b)/(b*(n - 1))" in sdesam.derive("m-usam", replace=False).text()
    assert r"\frac{1}{b}\,\operatorname{Cov}_i" in sdesam.derive("sgd").latex()
    assert (
        r"\frac{n - b}{b \left(n - 1\right)}\,\operatorname{Cov}_i"
        in sdesam.derive("sgd", replace=False).latex()
    )
    assert sdesam.derive("sgd", replace=False).to_json()["noise_factor"] == "-(b - n)/(b*(n - 1))"
