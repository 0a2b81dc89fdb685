"""The driver that SDEs and discrete optimizers share, and the result that it gives."""

from sdesam.engine.driver import Forecast, forecast, run
from sdesam.engine.layout import Keep, Layout, Plan, check_key, lay_out, steps_of, time_grid
from sdesam.engine.normals import standard_normals
from sdesam.engine.program import Normals
from sdesam.engine.result import Divergence, Result

__all__ = [
    "Divergence",
    "Forecast",
    "Keep",
    "Layout",
    "Normals",
    "Plan",
    "Result",
    "check_key",
    "forecast",
    "lay_out",
    "run",
    "standard_normals",
    "steps_of",
    "time_grid",
]
