"""Words that the whole package shares: what a verdict may say, and how to say that a name is
unknown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

Status = Literal["confirmed", "refuted", "inconclusive", "outside the range"]
"""Of a verdict. `outside the range` is said by a comparison alone: there the step sizes are too
large for any SDE.
"""


def unknown(kind: str, name: object, valid: Iterable[str]) -> ValueError:
    """The error for an unknown `name` of some `kind`, listing the `valid` ones."""
    valid = list(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(
        f"unknown {kind} {name!r}: the valid names are {', '.join(valid) or '(none)'}{guess}"
    )
