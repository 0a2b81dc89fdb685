"""The discrete side: :class:`Chain`, one optimizer on a finite sum, and :func:`train`, many runs of
it; optimizers to train networks with, around any optax optimizer and on the same step of a rule.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sdesam.optim.chain import Chain, train

if TYPE_CHECKING:
    from sdesam.optim.makers import dnsam, from_variant, m_sam, n_sam, rw_sam, sam, usam
    from sdesam.optim.optimizer import Info, Optimizer, State

__all__ = [
    "Chain",
    "Info",
    "Optimizer",
    "State",
    "dnsam",
    "from_variant",
    "m_sam",
    "n_sam",
    "rw_sam",
    "sam",
    "train",
    "usam",
]


def __getattr__(name: str) -> Any:
    # a chain needs no optax, whose import takes a sixth of a second
    if name not in __all__:
        raise AttributeError(f"module 'sdesam.optim' has no attribute {name!r}")
    module = "optimizer" if name in ("Info", "Optimizer", "State") else "makers"
    return getattr(importlib.import_module(f"sdesam.optim.{module}"), name)
