"""The old place of :mod:`sdesam.autodiff.outer_products`."""

from sdesam.autodiff.outer_products import (
    Factors,
    dense_layers,
    deviations,
    factors,
    held,
    loss_along,
    squared_norm_of_mean,
)

__all__ = [
    "Factors",
    "dense_layers",
    "deviations",
    "factors",
    "held",
    "loss_along",
    "squared_norm_of_mean",
]
