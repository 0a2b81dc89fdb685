"""The registry of claims: one file per source, each with a tuple `CLAIMS`; every file is found by
itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from sdesam._util.names import unknown
from sdesam.claims._base import Claim, Control, Measurement, Outcome

__all__ = ["Claim", "Control", "Measurement", "Outcome", "claim", "registry"]


@lru_cache(maxsize=1)
def registry() -> dict[str, Claim]:
    """Every registered claim by its id."""
    modules = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {
        c.id: c for name in modules for c in importlib.import_module(f"{__name__}.{name}").CLAIMS
    }


def claim(name: str) -> Claim:
    """The claim called `name`.

    Raises:
        ValueError: no such claim; the message lists the valid ids.

    >>> claim("LTE").recorded
    'confirmed'
    """
    if name not in registry():
        raise unknown("claim", name, registry())
    return registry()[name]
