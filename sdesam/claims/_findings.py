"""Measurements and controls as a claim finds them: vectors and numbers beside what is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdesam.claims._base import Control, Measurement, Outcome


def distance(stated: Any, measured: Any) -> float:
    """How far a stated vector is from a measured one, relative to the measured; absolute where
    that is 0.

    >>> distance([3.0, 4.5], [3.0, 4.0])
    0.1
    """
    stated, measured = np.asarray(stated, float), np.asarray(measured, float)
    return float(np.linalg.norm(stated - measured) / (np.linalg.norm(measured) or 1.0))


@dataclass
class Findings:
    """Collects the measurements and the controls of a claim; each compares two vectors or numbers.

    Args:
        tolerance: relative, of every comparison that names none of its own.
        basis: where the tolerance comes from.
    """

    tolerance: float
    basis: str
    measurements: list[Measurement] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)

    def agree(
        self,
        name: str,
        predicted: Any,
        measured: Any,
        tolerance: float | None = None,
        basis: str | None = None,
    ) -> None:
        """A prediction beside a measurement: numbers as they are, vectors by their distance.

        The tolerance is relative, and absolute where 0 is predicted.
        """
        allowed = self.tolerance if tolerance is None else tolerance
        why = self.basis if basis is None else basis
        if np.ndim(measured):
            pair = 0.0, distance(predicted, measured)
        else:
            pair = float(predicted), float(measured)
            allowed *= abs(pair[0]) or 1.0
        self.measurements.append(Measurement(name, *pair, allowed, why))

    def broken(self, name: str, stated: Any, measured: Any, tolerance: float | None = None) -> None:
        """A theory broken on purpose, which must be far from the measurement."""
        allowed = self.tolerance if tolerance is None else tolerance
        self.controls.append(Control(name, distance(stated, measured), allowed))

    def mended(self, name: str, stated: Any, measured: Any, tolerance: float | None = None) -> None:
        """A right theory in the place of a wrong one, which must be near to the measurement."""
        allowed = self.tolerance if tolerance is None else tolerance
        self.controls.append(Control(name, distance(stated, measured), allowed, mended=True))

    def outcome(self, remark: str, data: Mapping[str, Any] | None = None) -> Outcome:
        """All that was found."""
        return Outcome(tuple(self.measurements), tuple(self.controls), remark, data or {})
