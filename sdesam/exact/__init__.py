"""Expectations without sampling: enumerated steps, moments on quadratics, transition operators on a
torus; weak errors and signatures.
"""

from sdesam.exact.enumerate import OneStep, one_step
from sdesam.exact.quadratic import Quadratic
from sdesam.exact.torus import Torus
from sdesam.exact.weak import Curve, Signature, signature, weak_error

__all__ = [
    "Curve",
    "OneStep",
    "Quadratic",
    "Signature",
    "Torus",
    "one_step",
    "signature",
    "weak_error",
]
