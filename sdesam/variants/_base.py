"""What one optimizer step is, declared as data.

Every variant of the family performs ``x+ = x - eta * mean_I grad f_I(x + rho u_I)``, the mean over the ``b/m`` micro-batches
``I`` of a mini-batch; variants differ in the perturbation ``u_I``. The symbolic side and the discrete step kernel both read the
same declaration, so an SDE and its chain cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Perturbation = Literal["none", "micro-batch", "data set"]


@dataclass(frozen=True)
class Variant:
    """One member of the SAM family.

    Args:
        name: the public name, as in papers, lower case.
        title: how the name is printed.
        perturbation: whose mean gradient ``u_I`` is: ``"none"`` (``u_I = 0``), ``"micro-batch"`` (``u_I = grad f_I``) or
            ``"data set"`` (``u_I = grad f``).
        micro: whether the user chooses a micro-batch smaller than the mini-batch.
        summary: one line for lists and help.
        source: the paper that defines it.
    """

    name: str
    title: str
    perturbation: Perturbation
    micro: bool
    summary: str
    source: str
