"""Stochastic gradient descent: no perturbation."""

from sdesam.variants._base import Variant
from sdesam.variants._expressions import gradient

VARIANTS = (
    Variant(
        name="sgd",
        direction=gradient("batch"),
        title="SGD",
        summary="stochastic gradient descent, u = 0",
        source="Robbins & Monro 1951; its SDE: Li, Tai & E 2017, 2019",
    ),
)
