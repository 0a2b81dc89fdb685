"""The driver that SDEs and discrete optimizers share, and the result that it gives."""

from sdesam.engine.driver import Keep, Plan, check_key, run, steps_of, time_grid
from sdesam.engine.result import Divergence, Result

__all__ = ["Divergence", "Keep", "Plan", "Result", "check_key", "run", "steps_of", "time_grid"]
