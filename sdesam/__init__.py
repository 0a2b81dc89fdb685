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
from sdesam.symbolic import ModifiedEquation, derive
from sdesam.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from sdesam import problems
    from sdesam.comparison import Comparison, compare
    from sdesam.discrete import Chain, train
    from sdesam.engine import Divergence, Result
    from sdesam.problems import FiniteSum
    from sdesam.sde import SDE, simulate

__version__ = version("sdesam")

__all__ = [
    "SDE",
    "VARIANTS",
    "Chain",
    "Comparison",
    "Divergence",
    "FiniteSum",
    "ModifiedEquation",
    "Result",
    "Sampling",
    "Variant",
    "compare",
    "derive",
    "problems",
    "simulate",
    "train",
]

_WITH_JAX = {
    "SDE": "sdesam.sde",
    "simulate": "sdesam.sde",
    "Chain": "sdesam.discrete",
    "train": "sdesam.discrete",
    "Divergence": "sdesam.engine",
    "Result": "sdesam.engine",
    "FiniteSum": "sdesam.problems",
    "Comparison": "sdesam.comparison",
    "compare": "sdesam.comparison",
}


def __getattr__(name: str) -> Any:
    if name == "problems":
        return importlib.import_module("sdesam.problems")
    if name in _WITH_JAX:
        return getattr(importlib.import_module(_WITH_JAX[name]), name)
    raise AttributeError(f"module 'sdesam' has no attribute {name!r}")
