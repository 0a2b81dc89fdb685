"""Normalised SAM: the perturbation is a gradient of unit length, of the mini-batch, the micro-batch
or the whole data set.
"""

from sdesam.variants._base import Variant
from sdesam.variants._expressions import gradient, unit

_FORET = "Foret, Kleiner, Mobahi & Neyshabur 2021"
_LUO = "Luo et al., arXiv 2509.18001, section 3"

VARIANTS = (
    Variant(
        name="sam",
        direction=gradient("batch", at=unit(gradient("batch"))),
        title="SAM",
        summary="sharpness-aware minimization, u = grad f_gamma / |grad f_gamma| of the mini-batch",
        source=_FORET,
    ),
    Variant(
        name="m-sam",
        direction=gradient("micro", at=unit(gradient("micro"))),
        title="m-SAM",
        summary=(
            "SAM with a perturbation of its own for each micro-batch, u = grad f_I / |grad f_I|"
        ),
        source=f"{_FORET}, section 4.1; {_LUO}",
    ),
    Variant(
        name="n-sam",
        direction=gradient("batch", at=unit(gradient("data"))),
        title="n-SAM",
        summary="SAM perturbed along the gradient of the whole data set, u = grad f / |grad f|",
        source=_LUO,
    ),
    Variant(
        name="dnsam",
        direction=gradient("batch", at=unit(gradient("batch"), norm_of=gradient("data"))),
        title="DNSAM",
        summary="SAM whose normaliser is deterministic, u = grad f_gamma / |grad f|",
        source="Monzio Compagnoni et al. 2023, arXiv 2301.08203",
    ),
)
