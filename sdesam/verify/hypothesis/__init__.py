"""Anyone's theorem, checked: a stated SDE against the optimizer's own one-step mean and covariance.

The exact drift of order 2 is `-Gbar - (eta/2)(D Gbar) Gbar` and the exact diffusion matrix
`eta Cov(G)`, both as functions of `rho` known by listing all mini-batches: no tree and no derived
coefficient is used. Their coefficients in powers of `eta` and `rho` are set beside those of the
hypothesis (the limit; `coefficients.py`), and the weak error of the hypothesised drift is measured
along a path (the rate). A covariance is always judged by the one-step covariance, because no weak
error of order 1 can see it.
"""

from sdesam.verify.hypothesis._check import check
from sdesam.verify.hypothesis._settings import away_from_zero, own_settings
from sdesam.verify.hypothesis._stated import Hypothesis, Stated
from sdesam.verify.hypothesis._verdict import Part, Verdict

__all__ = ["Hypothesis", "Part", "Stated", "Verdict", "away_from_zero", "check", "own_settings"]
