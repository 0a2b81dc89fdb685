"""Stochastic gradient descent: no perturbation."""

from sdesam.variants._base import Variant

VARIANTS = (
    Variant(
        name="sgd",
        title="SGD",
        perturbation="none",
        micro=False,
        summary="stochastic gradient descent, u = 0",
        source="Robbins & Monro 1951; its SDE: Li, Tai & E 2017, 2019",
    ),
)
