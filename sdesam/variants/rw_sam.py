"""Reweighted SAM: the perturbation follows the samples of large gradient, and stays parallel in the
mini-batch.
"""

from sdesam.variants._base import Variant
from sdesam.variants._expressions import gibbs, gradient, unit

VARIANTS = (
    Variant(
        name="rw-sam",
        direction=gradient("batch", at=unit(gibbs("batch"))),
        title="RW-SAM",
        summary=(
            "SAM with Gibbs weights, u = sum_i p_i g_i / |sum_i p_i g_i|, p_i proportional to"
            " exp(lam nu_i), nu_i an estimate of |g_i|"
        ),
        source="Luo et al., arXiv 2509.18001, section 4",
    ),
)
