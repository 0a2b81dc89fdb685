"""SAM variants to train networks with, around any optax optimizer and on the same step kernel as
the chains.
"""

from sdesam.optim.makers import dnsam, from_variant, m_sam, n_sam, rw_sam, sam, usam
from sdesam.optim.optimizer import Info, Optimizer, State

__all__ = [
    "Info",
    "Optimizer",
    "State",
    "dnsam",
    "from_variant",
    "m_sam",
    "n_sam",
    "rw_sam",
    "sam",
    "usam",
]
