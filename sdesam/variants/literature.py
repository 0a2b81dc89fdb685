"""Rules of other papers, each as its paper writes it, for micro-batches of any size."""

from typing import Any

from sdesam.variants._base import Variant
from sdesam.variants._expressions import (
    elementwise,
    fresh,
    gibbs,
    gradient,
    parameter,
    random_direction,
    reject,
    unit,
)


def _size(x: Any) -> Any:
    """`|x| + 0.01`, the scale of a parameter in ASAM."""
    return abs(x) + 0.01


_own, _full = gradient("micro"), gradient("data")
_FRIENDLY = "Li et al. 2024, arXiv 2403.12350, with the full gradient for its moving average"
_APART = "a control for m-SAM: ascent and descent share no noise"
_MULTI_STEP = "Kim, Park, Choi, Lee & Lee 2023, arXiv 2302.10181"
_scaled = elementwise(_size, _own)
_penalised = gradient("micro", at=unit(_own))

VARIANTS = (
    Variant(
        "f-usam",
        gradient("micro", at=_own - parameter("sigma") * _full),
        _FRIENDLY,
        "F-USAM",
        "USAM along the gradient noise, u = grad f_I - sigma grad f",
    ),
    Variant(
        "f-sam",
        gradient("micro", at=unit(_own - parameter("sigma") * _full)),
        _FRIENDLY,
        "F-SAM",
        "SAM along the gradient noise, u the unit vector of grad f_I - sigma grad f",
    ),
    Variant(
        "fresh-usam",
        gradient("micro", at=gradient(fresh)),
        _APART,
        summary="USAM that ascends on a batch of its own, u = grad f_J",
    ),
    Variant(
        "fresh-sam",
        gradient("micro", at=unit(gradient(fresh))),
        _APART,
        summary="SAM that ascends on a batch of its own, u = grad f_J / |grad f_J|",
    ),
    Variant(
        "gnp",
        (1 - parameter("a")) * _own + parameter("a") * _penalised,
        "Zhao, Zhang & Hu 2022, arXiv 2202.03599",
        summary="gradient-norm penalty, (1-a) grad f_I(x) + a grad f_I(x + rho u) with SAM's u",
    ),
    Variant(
        "gsam",
        _penalised - parameter("a") * reject(_own, _penalised),
        "Zhuang et al. 2022, arXiv 2203.08065",
        summary="SAM less a times the part of grad f_I(x) that is orthogonal to SAM's gradient",
    ),
    Variant(
        "two-step-usam",
        gradient("micro", at=_own + gradient("micro", at=_own)),
        _MULTI_STEP,
        summary="USAM with two ascent steps, u = grad f_I(x) + grad f_I(x + rho grad f_I(x))",
    ),
    Variant(
        "two-step-sam",
        gradient("micro", at=unit(_own) + unit(_penalised)),
        _MULTI_STEP,
        summary="SAM with two ascent steps, each of length rho",
    ),
    Variant(
        "rwp",
        gradient("micro", at=random_direction()),
        "Bisla, Wang & Choromanska 2022, arXiv 2201.08025",
        summary="random weight perturbation, u = z of independent normal entries",
    ),
    Variant(
        "r-usam",
        gradient("micro", at=gradient("micro", at=random_direction())),
        "Liu et al. 2022, Random Sharpness-Aware Minimization, NeurIPS; unnormalised",
        summary="USAM whose ascent gradient is taken at a random point, u = grad f_I(x + rho z)",
    ),
    Variant(
        "asam",
        gradient("micro", at=unit(elementwise(_size, _scaled), norm_of=_scaled)),
        "Kwon, Kim, Park & Choi 2021, arXiv 2102.11600",
        summary="adaptive SAM, u = t t grad f_I / |t grad f_I| with t = |x| + 0.01",
    ),
    Variant(
        "orthogonal-sam",
        gradient("micro", at=unit(reject(_own, _full))),
        "the ablation of Li et al. 2024, arXiv 2403.12350",
        summary="SAM without the part of grad f_I along grad f",
    ),
    Variant(
        "shared-norm-sam",
        gradient("micro", at=unit(_own, norm_of=gradient("batch"))),
        "a control for m-SAM: the directions of its perturbations, with one length for all",
        summary="SAM whose micro-batches share a norm, u = grad f_I / |grad f_gamma|",
    ),
    Variant(
        "rw-sam-descent",
        gibbs("batch", at=unit(gibbs("batch"))),
        "Luo et al., arXiv 2509.18001, section 4, read so that the descent is weighted too",
        "RW-SAM (weighted descent)",
        "RW-SAM whose descent gradient has the same weights, sum_i p_i grad f_i(x + rho u)",
    ),
    Variant(
        "extragradient",
        gradient("batch", at=-gradient("batch")),
        "Korpelevich 1976, with the same mini-batch in both steps",
        summary="the gradient where a step of rate rho would lead, u = -grad f_gamma",
    ),
)
