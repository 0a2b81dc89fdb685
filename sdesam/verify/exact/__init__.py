"""Expectations without sampling: enumerated steps, moments on quadratics, transition operators on a
torus; weak errors and signatures.
"""

from sdesam.verify.exact.enumerate import OneStep, one_step
from sdesam.verify.exact.quadratic import Quadratic
from sdesam.verify.exact.torus import Torus
from sdesam.verify.exact.weak import Curve, Signature, signature, weak_error

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
