"""SDEs as jax functions, and their simulation."""

from sdesam.sde.binding import bind
from sdesam.sde.equation import SDE
from sdesam.sde.stepping import estimate, plan, simulate

__all__ = ["SDE", "bind", "estimate", "plan", "simulate"]
