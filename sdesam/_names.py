"""One way to say that a name is unknown: what was given, what would be right, and the nearest guess."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, valid: Iterable[str]) -> ValueError:
    """The error for an unknown `name` of some `kind`, listing the `valid` ones."""
    valid = list(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}: the valid names are {', '.join(valid) or '(none)'}{guess}")
