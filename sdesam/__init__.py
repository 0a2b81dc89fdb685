"""SDE simulation and theory verification for sharpness-aware minimization (SAM).

    variant --derive--> modified equation --bind(problem, numbers)--> SDE   --simulate--> Result
                                            Chain(variant, problem)         --train-----> Result

`import sdesam` and a derivation need no jax; it is imported with the first problem, SDE or chain.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sdesam.sampling import Sampling
from sdesam.symbolic import ModifiedEquation, derive, equation
from sdesam.variants import VARIANTS, NormEstimate, Variant

if TYPE_CHECKING:
    from sdesam import claims, optim, problems
    from sdesam.ensemble import CostEstimate, Divergence, Result
    from sdesam.optim import Chain, train
    from sdesam.problems import FiniteSum
    from sdesam.sde import SDE, estimate, plan, simulate
    from sdesam.verify import exact
    from sdesam.verify.comparison import Comparison, compare
    from sdesam.verify.coupling import Coupled, coupled
    from sdesam.verify.effective import EffectiveMicroBatch, effective_micro_batch
    from sdesam.verify.exact import one_step, signature, weak_error
    from sdesam.verify.hypothesis import Hypothesis, check
    from sdesam.verify.identification import Identification, identify

__version__ = version("sdesam")

__all__ = [
    "SDE",
    "VARIANTS",
    "Chain",
    "Comparison",
    "CostEstimate",
    "Coupled",
    "Divergence",
    "EffectiveMicroBatch",
    "FiniteSum",
    "Hypothesis",
    "Identification",
    "ModifiedEquation",
    "NormEstimate",
    "Result",
    "Sampling",
    "Variant",
    "check",
    "claims",
    "compare",
    "coupled",
    "derive",
    "effective_micro_batch",
    "estimate",
    "exact",
    "identify",
    "one_step",
    "optim",
    "plan",
    "problems",
    "signature",
    "simulate",
    "train",
    "weak_error",
]

_WITH_JAX = {
    "SDE": "sdesam.sde",
    "estimate": "sdesam.sde",
    "plan": "sdesam.sde",
    "simulate": "sdesam.sde",
    "Chain": "sdesam.optim",
    "train": "sdesam.optim",
    "EffectiveMicroBatch": "sdesam.verify.effective",
    "effective_micro_batch": "sdesam.verify.effective",
    "Divergence": "sdesam.ensemble",
    "CostEstimate": "sdesam.ensemble",
    "Result": "sdesam.ensemble",
    "FiniteSum": "sdesam.problems",
    "Comparison": "sdesam.verify.comparison",
    "compare": "sdesam.verify.comparison",
    "Coupled": "sdesam.verify.coupling",
    "coupled": "sdesam.verify.coupling",
    "Hypothesis": "sdesam.verify.hypothesis",
    "check": "sdesam.verify.hypothesis",
    "Identification": "sdesam.verify.identification",
    "identify": "sdesam.verify.identification",
    "one_step": "sdesam.verify.exact",
    "signature": "sdesam.verify.exact",
    "weak_error": "sdesam.verify.exact",
}

_ROOMS = {
    "claims": "sdesam.claims",
    "exact": "sdesam.verify.exact",
    "optim": "sdesam.optim",
    "problems": "sdesam.problems",
}


def _bind(*arguments: Any, **options: Any) -> SDE:
    """`sdesam.sde.bind`; jax is imported with the first call."""
    from sdesam.sde import bind

    return bind(*arguments, **options)


equation.binder = _bind


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    if name in _WITH_JAX:
        return getattr(importlib.import_module(_WITH_JAX[name]), name)
    raise AttributeError(f"module 'sdesam' has no attribute {name!r}")
