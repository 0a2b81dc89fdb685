"""Unnormalised SAM: the perturbation is a plain gradient, of the mini-batch, the micro-batch or the
whole data set.
"""

from sdesam.variants._base import Variant
from sdesam.variants._expressions import gradient

_SOURCE = "Andriushchenko & Flammarion 2022; Luo et al., arXiv 2509.18001, section 3"

VARIANTS = (
    Variant(
        name="usam",
        direction=gradient("batch", at=gradient("batch")),
        title="USAM",
        summary="unnormalised SAM, u = grad f_gamma of the mini-batch",
        source=_SOURCE,
    ),
    Variant(
        name="m-usam",
        direction=gradient("micro", at=gradient("micro")),
        title="m-USAM",
        summary="unnormalised SAM, u = grad f_I of each micro-batch of size m",
        source=_SOURCE,
    ),
    Variant(
        name="n-usam",
        direction=gradient("batch", at=gradient("data")),
        title="n-USAM",
        summary="unnormalised SAM, u = grad f of the whole data set",
        source=_SOURCE,
    ),
)
