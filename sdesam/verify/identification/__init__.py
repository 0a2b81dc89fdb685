"""Which equation is it? The coloured trees that a step consists of, found from its steps alone.

All batches of a step are listed at several sizes, so that its mean and the influence of each sample
are exact. Trees evaluated at the same points are a basis; least squares gives coefficients, a rank
check says which trees a problem cannot tell apart, and the residual whether the step is made of
trees at all. Exact fractions give formulas in the sizes (`docs/theory.md`, section 10).
"""

from sdesam.verify.identification._candidates import candidates
from sdesam.verify.identification._formulas import Size, named, population, told
from sdesam.verify.identification._identify import identify
from sdesam.verify.identification._moments import tree_values
from sdesam.verify.identification._result import IN_SPAN, Coefficient, Identification, Power
from sdesam.verify.identification._span import combination, rational

__all__ = [
    "IN_SPAN",
    "Coefficient",
    "Identification",
    "Power",
    "Size",
    "candidates",
    "combination",
    "identify",
    "named",
    "population",
    "rational",
    "told",
    "tree_values",
]
