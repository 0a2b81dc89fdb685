"""The discrete optimizers."""

from sdesam.discrete.chain import Chain, train

__all__ = ["Chain", "train"]
