"""The SAM variants, declared as data: one file per family, each with a tuple ``VARIANTS``.

A new variant is one new file in this folder; every file is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil

from sdesam._util.names import unknown
from sdesam.variants._base import TAKEN, Ascent, NormEstimate, Variant
from sdesam.variants._expressions import (
    Elementwise,
    Fresh,
    Gibbs,
    Gradient,
    RandomDirection,
    Rejection,
    Scalar,
    Sum,
    Unit,
    Vector,
    elementwise,
    fresh,
    gibbs,
    gradient,
    parameter,
    random_direction,
    reject,
    unit,
)

__all__ = [
    "VARIANTS",
    "Ascent",
    "Elementwise",
    "Fresh",
    "Gibbs",
    "Gradient",
    "NormEstimate",
    "RandomDirection",
    "Rejection",
    "Scalar",
    "Sum",
    "Unit",
    "Variant",
    "Vector",
    "elementwise",
    "fresh",
    "gibbs",
    "gradient",
    "parameter",
    "random_direction",
    "reject",
    "unit",
    "variant",
]

VARIANTS: dict[str, Variant] = {
    declared.name: declared
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_")
    for declared in importlib.import_module(f"{__name__}.{module.name}").VARIANTS
}
TAKEN.update({name: declared.direction for name, declared in VARIANTS.items()})


def variant(name: str | Variant) -> Variant:
    """The variant called `name`.

    Raises:
        ValueError: no such variant; the message lists the valid names and the nearest one.

    >>> variant("m-usam").title
    'm-USAM'
    """
    if isinstance(name, Variant):
        return name
    if not isinstance(name, str) or name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    return VARIANTS[name]
