"""The main job: a discrete optimizer beside its SDE, and beside the SDE with one term ablated.

Agreement alone proves little. The question is how much of the gap between the optimizer and the SDE
without the term the full SDE closes,

    share = 1 - |SDE - chain| / |SDE without the term - chain|,

with an interval, and whether the data could have told the two apart at all.
"""

from sdesam.verify.comparison._compare import compare
from sdesam.verify.comparison._explained import (
    ENOUGH,
    LEVEL,
    VISIBLE,
    ExplainedShare,
    judge,
    share_explained,
)
from sdesam.verify.comparison._rows import (
    APPROACH,
    FAMILY,
    HALVINGS,
    Row,
    Smaller,
    corrected,
    weigh,
)
from sdesam.verify.comparison._table import SCHEMA, Comparison, with_error

__all__ = [
    "APPROACH",
    "ENOUGH",
    "FAMILY",
    "HALVINGS",
    "LEVEL",
    "SCHEMA",
    "VISIBLE",
    "Comparison",
    "ExplainedShare",
    "Row",
    "Smaller",
    "compare",
    "corrected",
    "judge",
    "share_explained",
    "weigh",
    "with_error",
]
