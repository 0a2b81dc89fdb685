"""Coefficients in powers of `eta` and `rho`: those of a stated SDE beside the optimizer's own.

The optimizer's are derivatives at `rho = 0` of its one-step mean and covariance, all mini-batches
listed. Those of a stated field are derivatives too, taken at positive `eta` and `rho` that fall to
zero, because a formula may divide by either. So a field that depends on `eta` and `rho`
analytically, to any order, has its coefficients read right.
"""

from sdesam.verify.coefficients._compared import (
    OTHER,
    SAME,
    Expansion,
    Finding,
    Setting,
    compare_coefficients,
    expand,
    kept_powers,
    nearer_than_read,
    summarised,
)
from sdesam.verify.coefficients._naming import name_terms
from sdesam.verify.coefficients._reading import Field, Power, Read, differentiated, interpolated

__all__ = [
    "OTHER",
    "SAME",
    "Expansion",
    "Field",
    "Finding",
    "Power",
    "Read",
    "Setting",
    "compare_coefficients",
    "differentiated",
    "expand",
    "interpolated",
    "kept_powers",
    "name_terms",
    "nearer_than_read",
    "summarised",
]
