"""The driver that SDEs and discrete optimizers share, and the result that it gives."""

from sdesam.ensemble.draws import Normals
from sdesam.ensemble.driver import CostEstimate, estimate_cost, run
from sdesam.ensemble.normals import standard_normals
from sdesam.ensemble.placement import (
    Keep,
    Placement,
    RunSpec,
    check_key,
    choose_placement,
    steps_of,
    time_grid,
)
from sdesam.ensemble.result import Divergence, Result

__all__ = [
    "CostEstimate",
    "Divergence",
    "Keep",
    "Normals",
    "Placement",
    "Result",
    "RunSpec",
    "check_key",
    "choose_placement",
    "estimate_cost",
    "run",
    "standard_normals",
    "steps_of",
    "time_grid",
]
