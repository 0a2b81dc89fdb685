"""SDEs as jax functions, and their simulation."""

from sdesam.sde.equation import SDE, bind
from sdesam.sde.simulate import simulate

__all__ = ["SDE", "bind", "simulate"]
