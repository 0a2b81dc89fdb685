"""The driver that SDEs and discrete optimizers share, and the result that it gives."""

from sdesam.engine.draws import Normals
from sdesam.engine.driver import CostEstimate, estimate_cost, run
from sdesam.engine.normals import standard_normals
from sdesam.engine.placement import (
    Keep,
    Placement,
    RunSpec,
    check_key,
    choose_placement,
    steps_of,
    time_grid,
)
from sdesam.engine.result import Divergence, Result

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
