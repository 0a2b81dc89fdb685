"""Does the verification notice? Wrong theories and wrong optimizers, each of which a named check
must kill.

A mutant is an SDE or a step kernel with one thing wrong. The check that is run on it is the one
that judges hypotheses: coefficients of the drift and of the covariance in powers of `eta` and
`rho`, against all mini-batches listed. A check that lets a mutant live is no check.
"""

from sdesam.mutants._all import MUTANTS, RIGHT
from sdesam.mutants._fate import Fate, Mutant, fate
from sdesam.mutants._theories import scaled

__all__ = ["MUTANTS", "RIGHT", "Fate", "Mutant", "fate", "scaled"]
