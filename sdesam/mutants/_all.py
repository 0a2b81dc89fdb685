"""The list of mutants, and of right theories that must live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import sympy as sp

from sdesam import symbolic
from sdesam.claims import first_order_drifts
from sdesam.claims import luo2025_normalised as normalised
from sdesam.mutants._fate import EPS, LAM, Mutant
from sdesam.mutants._optimizers import ALWAYS_PERTURBED, KERNELS, NORMALISED_KERNELS
from sdesam.mutants._theories import not_centred, of_other_sampling, scaled, too_little, without
from sdesam.symbolic import derive
from sdesam.variants import variant as find_variant
from sdesam.verify.hypothesis import Hypothesis

_STATED: dict[str, Callable[[bool], Hypothesis]] = {
    "sam": lambda replace: normalised.sam(replace, EPS),
    # the printed covariance of m-SAM is for batches with replacement
    "m-sam": lambda replace: normalised.sam(replace, EPS, covariance=replace),
    "n-sam": lambda replace: normalised.n_sam(replace, EPS),
    "dnsam": lambda replace: first_order_drifts.dnsam(replace, EPS),
    "rw-sam": lambda replace: first_order_drifts.rw_sam(replace, EPS, LAM),
}


_FACTORS = {
    "10 % too large": sp.Rational(11, 10),
    "10 % too small": sp.Rational(9, 10),
    "sign flipped": -1,
    "doubled": 2,
}
_PARTS = ("rho^0", "rho^1", "rho^2", "eta", "eta rho^1", "noise", "noise rho^1")

MUTANTS: tuple[Mutant, ...] = (
    *(
        Mutant(f"{part} {name}", equation=scaled(part, factor))
        for part in _PARTS
        for name, factor in _FACTORS.items()
    ),
    *(Mutant(f"{term} missing", equation=without(term)) for term in derive("m-usam").terms),
    Mutant("1/b for 1/m", equation=lambda eq: eq.subs(symbolic.micro, symbolic.batch)),
    Mutant("2/b for 1/m", equation=lambda eq: eq.subs(symbolic.micro, symbolic.batch / 2)),
    Mutant(
        "1/(b-m) for 1/m",
        equation=lambda eq: eq.subs(symbolic.micro, symbolic.batch - symbolic.micro),
    ),
    Mutant("1/n for 1/m", equation=lambda eq: eq.subs(symbolic.micro, symbolic.samples)),
    Mutant("n for b", numbers=lambda lr, rho, b, m: (lr, rho, 5 * m, m)),
    Mutant("1/m^2 for 1/m", equation=lambda eq: eq.subs(symbolic.micro, symbolic.micro**2)),
    Mutant("rho m for rho", equation=lambda eq: eq.subs(symbolic.micro, 1)),
    Mutant(
        "eta/4 for eta/2 in the correction",
        equation=lambda eq: scaled("eta rho^1", sp.Rational(1, 2))(
            scaled("eta", sp.Rational(1, 2))(eq)
        ),
    ),
    Mutant(
        "correction with the wrong sign",
        equation=lambda eq: scaled("eta rho^1", -1)(scaled("eta", -1)(eq)),
    ),
    Mutant("USAM's theory for m-USAM", equation=lambda eq: derive("usam", eq.order, eq.replace)),
    Mutant(
        "n-USAM's theory for m-USAM", equation=lambda eq: derive("n-usam", eq.order, eq.replace)
    ),
    Mutant("SGD's theory for m-USAM", equation=lambda eq: derive("sgd", eq.order, eq.replace)),
    Mutant(
        "m-USAM's theory for n-USAM",
        variant="n-usam",
        equation=lambda eq: derive("usam", eq.order, eq.replace),
    ),
    Mutant(
        "drift with replacement for without",
        with_replacement=False,
        equation=of_other_sampling("drift"),
    ),
    Mutant(
        "noise with replacement for without",
        with_replacement=False,
        equation=of_other_sampling("noise"),
    ),
    Mutant(
        "batch factor 1/b for (n-b)/(b(n-1))",
        with_replacement=False,
        equation=lambda eq: replace(eq, replace=True),
    ),
    Mutant("drift without replacement for with", equation=of_other_sampling("drift")),
    Mutant("noise without replacement for with", equation=of_other_sampling("noise")),
    Mutant("no noise at all", sde=lambda B, C, lr, s: (B, 0 * C)),
    Mutant(
        "batch factor of another size",
        sde=lambda B, C, lr, s: (B, C * s.sampling.batch / (s.sampling.batch + 1)),
    ),
    Mutant(
        "noise of one micro-batch", sde=lambda B, C, lr, s: (B, C * s.sampling.batch / s.sampling.m)
    ),
    Mutant("noise of one sample", sde=lambda B, C, lr, s: (B, C * s.sampling.batch)),
    Mutant("noise without eta", sde=lambda B, C, lr, s: (B, C / lr)),
    Mutant("noise with eta^2", sde=lambda B, C, lr, s: (B, C * lr)),
    Mutant("noise not centred", sde=not_centred),
    Mutant("a tenth of gbar gbar^T taken from the noise", sde=too_little),
    Mutant(
        "noise made isotropic",
        sde=lambda B, C, lr, s: (B, np.trace(C, axis1=1, axis2=2)[:, None, None] * np.eye(2) / 2),
    ),
    Mutant("time scale off by 2 in the SDE", sde=lambda B, C, lr, s: (2 * B, 2 * C)),
    Mutant("ascent radius squared in the SDE", numbers=lambda lr, rho, b, m: (lr, rho**2, b, m)),
    Mutant("ascent radius halved in the SDE", numbers=lambda lr, rho, b, m: (lr, rho / 2, b, m)),
    Mutant("b doubled", numbers=lambda lr, rho, b, m: (lr, rho, 2 * b, m)),
    Mutant(
        "eta of the correction doubled",
        equation=lambda eq: scaled("eta rho^1", 2)(scaled("eta", 2)(eq)),
    ),
    *(Mutant(name, kernel=kernel) for name, kernel in KERNELS.items()),
    Mutant(
        "n-USAM perturbed from the batch",
        variant="n-usam",
        kernel=KERNELS["perturbation from the mini-batch"],
    ),
    Mutant(
        "USAM perturbed from the whole set",
        variant="usam",
        kernel=KERNELS["perturbation from the whole set"],
    ),
    Mutant("SGD with SAM's perturbation", variant="sgd", kernel=ALWAYS_PERTURBED),
    *(
        Mutant(
            f"{find_variant(variant).title}: {name}",
            variant=variant,
            kernel=kernel,
            theory=_STATED[variant],
        )
        for variant, kernels in NORMALISED_KERNELS.items()
        for name, kernel in kernels.items()
    ),
)
"""Wrong theories and wrong optimizers."""

RIGHT: tuple[Mutant, ...] = tuple(
    Mutant(
        f"{variant}, {'with' if sampling else 'without'} replacement",
        variant,
        sampling,
        theory=_STATED.get(variant),
        right=True,
    )
    for variant in ("sgd", "usam", "m-usam", "n-usam", *_STATED)
    for sampling in (True, False)
)
"""Right theories, which the same checks must let live."""
