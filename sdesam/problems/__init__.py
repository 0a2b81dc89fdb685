"""Finite sums to optimise: :class:`FiniteSum`, and ready-made ones."""

from sdesam.problems.digits import bad_minimum, digits
from sdesam.problems.finite_sum import FiniteSum, check_problem
from sdesam.problems.loading import READY, load
from sdesam.problems.means import fold_samples, mean_grad
from sdesam.problems.synthetic import linear_regression, quadratic, torus

__all__ = [
    "READY",
    "FiniteSum",
    "bad_minimum",
    "check_problem",
    "digits",
    "fold_samples",
    "linear_regression",
    "load",
    "mean_grad",
    "quadratic",
    "torus",
]
