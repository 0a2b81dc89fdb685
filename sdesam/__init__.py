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
    from sdesam import claims, exact, optim, problems
    from sdesam.comparison import Comparison, compare
    from sdesam.coupling import Coupled, coupled
    from sdesam.discrete import Chain, train
    from sdesam.effective import EffectiveMicroBatch, effective_micro_batch
    from sdesam.engine import CostEstimate, Divergence, Result
    from sdesam.exact import one_step, signature, weak_error
    from sdesam.hypothesis import Hypothesis, check
    from sdesam.identification import Identification, identify
    from sdesam.problems import FiniteSum
    from sdesam.sde import SDE, estimate, plan, simulate

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
    "Chain": "sdesam.discrete",
    "train": "sdesam.discrete",
    "EffectiveMicroBatch": "sdesam.effective",
    "effective_micro_batch": "sdesam.effective",
    "Divergence": "sdesam.engine",
    "CostEstimate": "sdesam.engine",
    "Result": "sdesam.engine",
    "FiniteSum": "sdesam.problems",
    "Comparison": "sdesam.comparison",
    "compare": "sdesam.comparison",
    "Coupled": "sdesam.coupling",
    "coupled": "sdesam.coupling",
    "Hypothesis": "sdesam.hypothesis",
    "check": "sdesam.hypothesis",
    "Identification": "sdesam.identification",
    "identify": "sdesam.identification",
    "one_step": "sdesam.exact",
    "signature": "sdesam.exact",
    "weak_error": "sdesam.exact",
}


def _bind(*arguments: Any, **options: Any) -> SDE:
    """`sdesam.sde.bind`; jax is imported with the first call."""
    from sdesam.sde import bind

    return bind(*arguments, **options)


equation.binder = _bind


def __getattr__(name: str) -> Any:
    if name in ("claims", "exact", "optim", "problems"):
        return importlib.import_module(f"sdesam.{name}")
    if name in _WITH_JAX:
        return getattr(importlib.import_module(_WITH_JAX[name]), name)
    raise AttributeError(f"module 'sdesam' has no attribute {name!r}")
