"""What a claim is: a statement of a paper as a runnable check.

A claim predicts numbers by a formula of its own, measures them by something that does not know the
formula, and breaks the theory on purpose to show that the check could have failed. This room is the
only one with formulas from papers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdesam._util.names import Status

Preset = Literal["quick", "full"]


@dataclass(frozen=True)
class Measurement:
    """One prediction of the claim beside what was measured.

    Args:
        name: what is measured.
        predicted: by the claim.
        measured: the number found.
        tolerance: how far apart they may be: rounding, resolution or a stated number of standard
            errors.
        basis: where the tolerance comes from, with its false-alarm rate if it is statistical.
        unclear: the tolerance is too wide to say anything.
    """

    name: str
    predicted: float
    measured: float
    tolerance: float
    basis: str
    unclear: bool = False

    @property
    def agrees(self) -> bool:
        """Whether prediction and measurement are within the tolerance; False for NaN."""
        return abs(self.measured - self.predicted) <= self.tolerance


@dataclass(frozen=True)
class Control:
    """The theory broken on purpose, or, where a claim is refuted, mended: the check must reject the
    one and accept the other.

    Args:
        name: how it was broken or mended.
        measured: the distance of the altered prediction from the measurement.
        tolerance: the tolerance that a right theory meets.
        mended: whether the altered theory is a right one.
    """

    name: str
    measured: float
    tolerance: float
    mended: bool = False

    @property
    def caught(self) -> bool:
        """Whether the check tells: it rejects the broken theory, or accepts the mended one; False
        for NaN, which tells nothing.
        """
        size = abs(self.measured)
        return size <= self.tolerance if self.mended else size > self.tolerance


@dataclass(frozen=True)
class Outcome:
    """What running a claim found.

    Args:
        measurements: at least one.
        controls: at least one; a check without is no check.
        remark: what a reader should know besides, in a sentence or two.
        data: numbers for a figure or a report.
    """

    measurements: tuple[Measurement, ...]
    controls: tuple[Control, ...]
    remark: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """`inconclusive` if a control slipped through or a measurement is unclear, else whether all
        measurements agree.
        """
        # The order matters. A check whose control slipped through would have passed anything, so
        # that its agreement says nothing; and what is unclear must not hide a disagreement
        # elsewhere.
        if (
            not self.measurements
            or not self.controls
            or not all(control.caught for control in self.controls)
        ):
            return "inconclusive"
        if all(m.agrees for m in self.measurements if not m.unclear):
            return "inconclusive" if any(m.unclear for m in self.measurements) else "confirmed"
        return "refuted"


@dataclass(frozen=True)
class Claim:
    """A registered claim.

    Args:
        id: as in `docs/theory.md`.
        title: a few words.
        statement: the claim, LaTeX.
        source: paper, theorem or equation.
        prediction: what follows that can be measured, plain text.
        recorded: the verdict that this project has found; a run that finds another one is news.
        seconds: about how long the quick preset takes on two cores.
        run: `(preset, seed) -> Outcome`.
    """

    id: str
    title: str
    statement: str
    source: str
    prediction: str
    recorded: Status
    seconds: float
    run: Callable[[Preset, int], Outcome]
