"""The verdict on a hypothesis, part by part, with its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdesam._util.names import Status
from sdesam.verify.coefficients import (
    Finding,
)
from sdesam.verify.exact.weak import TOLERANCE
from sdesam.verify.hypothesis._rate import RATES


@dataclass(frozen=True)
class Part:
    """The verdict on a drift or a covariance, with its numbers.

    Args:
        findings: coefficient by coefficient (the limit).
        slope: of the weak error with this drift (the rate); None for a covariance.
        needed: the slope that the order asks for.
        note: what would decide, where something is open.
        remark: what was not measured, and why.
        contradiction: why the rate speaks against the coefficients, where it does.
    """

    findings: tuple[Finding, ...]
    slope: float | None = None
    needed: float | None = None
    note: str = ""
    remark: str = ""
    contradiction: str = ""

    @property
    def status(self) -> Status:
        """`refuted` if a coefficient or the rate is wrong, `confirmed` if all are right, else
        `inconclusive`.

        Where every coefficient is right the order follows from theory, so that a rate which does
        not show it has been measured at rates that are not small enough: `inconclusive`. So is a
        wrong coefficient that the rate contradicts.
        """
        # coefficients    the weak error falls as asked    it does not
        #
        #   all right     confirmed                        inconclusive: eta is not small enough yet
        #   one wrong     refuted, or inconclusive where   refuted
        #                 the error contradicts it
        #   one open      inconclusive                     refuted by the rate alone
        #
        # Where the weak error was not measured the first column holds.
        found = {finding.status for finding in self.findings}
        if "refuted" in found:
            return "inconclusive" if self.contradiction else "refuted"
        if self.too_slow:
            return (
                "inconclusive"
                if found == {"confirmed"} or not np.isfinite(self.slope)  # type: ignore[arg-type]
                else "refuted"
            )
        return "confirmed" if found == {"confirmed"} and not self.note else "inconclusive"

    @property
    def too_slow(self) -> bool:
        """Whether the weak error was measured and does not fall as the order asks."""
        return (
            self.slope is not None
            and self.needed is not None
            and not self.slope >= self.needed - TOLERANCE
        )

    def __str__(self) -> str:
        lines: list[str] = [self.status]
        for finding in self.findings:
            lines += [f"  {finding}", *(f"    {term}" for term in finding.terms)]
        if self.slope is not None:
            lines.append(
                f"  weak error falls like eta^{self.slope:.2f}; order asks for {self.needed:g}"
            )
        if self.too_slow and {finding.status for finding in self.findings} == {"confirmed"}:
            rate = f"1/{1 / RATES[-1][-1]:g}"
            lines.append(
                f"  every coefficient is right, but down to eta = {rate} the weak error does not"
                " fall so fast; smaller eta would decide"
            )
        return "\n".join(
            [
                *lines,
                *(f"  {told}" for told in (self.contradiction, self.note, self.remark) if told),
            ]
        )


@dataclass(frozen=True)
class Verdict:
    """What :func:`check` found, per stated part; a part that was not stated is None."""

    drift: Part | None
    covariance: Part | None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """`refuted` if a stated part is, `confirmed` if every stated part is, else
        `inconclusive`.
        """
        found = {part.status for part in (self.drift, self.covariance) if part is not None}
        return (
            "refuted"
            if "refuted" in found
            else "confirmed"
            if found == {"confirmed"}
            else "inconclusive"
        )

    def __str__(self) -> str:
        stated = {"drift": self.drift, "covariance": self.covariance}
        return "\n".join(
            f"{name}: {part if part is not None else 'not stated'}" for name, part in stated.items()
        )
