"""Algebra: from the declaration of a variant to its modified equation, exactly. No jax, no numbers.

`trees` holds coloured rooted trees and their sums, `expectation` the averages over batches,
`equation` the derivation, `potential` the question whether a drift is a gradient, `printing` text
and LaTeX, `coordinates` the cross-check in explicit coordinates.
"""

from sdesam.symbolic.coordinates import coordinates
from sdesam.symbolic.equation import ModifiedEquation, Part, check_order, derive, evaluate, is_kept
from sdesam.symbolic.potential import gradient, potential
from sdesam.symbolic.roles import MARK
from sdesam.symbolic.terms import Term
from sdesam.symbolic.trees import Factor, Tree, TreeSum, batch, eps, eta, micro, rho, samples

__all__ = [
    "MARK",
    "Factor",
    "ModifiedEquation",
    "Part",
    "Term",
    "Tree",
    "TreeSum",
    "batch",
    "check_order",
    "coordinates",
    "derive",
    "eps",
    "eta",
    "evaluate",
    "gradient",
    "is_kept",
    "micro",
    "potential",
    "rho",
    "samples",
]
