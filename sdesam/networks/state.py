"""What one step of training hands on to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

from sdesam.optim import State as OptimizerState

PyTree = Any


class State(NamedTuple):
    """What the next step needs.

    Args:
        params: the parameters `x`.
        statistics: running statistics of batch norm.
        optimizer: step count and momentum.
    """

    params: PyTree
    statistics: PyTree
    optimizer: OptimizerState
