"""What a comparison found, as a table for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, get_args

import numpy as np

from sdesam._util import store
from sdesam._util.names import Status
from sdesam.ensemble import Result
from sdesam.symbolic import ModifiedEquation
from sdesam.verify.comparison._rows import FAMILY, Row

SCHEMA = "sdesam.comparison/1"


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found."""

    equation: ModifiedEquation
    term: str
    judged: str
    rows: tuple[Row, ...]
    config: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=store.provenance)

    @property
    def status(self) -> Status:
        """`refuted` if any row is, else `outside the range` if any row is, else `confirmed` if any
        row is, else `inconclusive`.

        A row that is inconclusive says that its runs were too few, nothing about the theory; it is
        named, not counted.
        """
        found = {row.status for row in self.rows}
        order: tuple[Status, ...] = ("refuted", "outside the range", "confirmed")
        return next((status for status in order if status in found), "inconclusive")

    def table(self) -> str:
        """Means with standard errors at the final time, and the shares, as text."""
        lines = [
            (
                f"at time {self.rows[0].chain.time[-1]:g}; in brackets the standard error of the"
                " last digits;"
            ),
            "gap: SDE - optimizer, in standard errors;",
            (
                f"share: of the gap that is left without {self.term!r}, what the SDE closes, with"
                " its 95 % interval;"
            ),
            f"verdicts are about {self.judged} alone,",
            f"and any of them is wrong with probability {FAMILY:.0%} at most",
            "",
            (
                f"{'m':>4}  {'':<14} {'optimizer':>15} {'SDE':>15} {'SDE without':>15} {'gap':>6} "
                " share"
            ),
        ]
        for row in self.rows:
            for name, share in row.shares.items():
                cells = [
                    with_error(r.mean[name][-1], r.stderr[name][-1])
                    for r in (row.chain, row.sde, row.without)
                ]
                # an unbounded interval says nothing: the term moves this observable too little
                told = str(share) if share.lower > -inf else "-"
                lines.append(
                    f"{row.micro:>4}  {name:<14} {cells[0]:>15} {cells[1]:>15} {cells[2]:>15}"
                    f" {share.gap:>6.1f}  {told}"
                )
        lines.append("")
        lines += [f"m = {row.micro}: {row.status}: {row.reason}" for row in self.rows]
        each = {
            status: [str(row.micro) for row in self.rows if row.status == status]
            for status in get_args(Status)
        }
        named = "; ".join(
            f"{status} at m = {', '.join(many)}" for status, many in each.items() if many
        )
        lines.append(f"verdict: {self.status} ({named})")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything a figure or a report needs, as plain data."""

        def run(result: Result) -> dict[str, Any]:
            return {
                "mean": result.mean,
                "stderr": result.stderr,
                "diverged": {"paths": result.diverged.paths, "time": result.diverged.time},
                "config": result.config,
            }

        rows = [
            {
                "micro": row.micro,
                "status": row.status,
                "reason": row.reason,
                "shares": {name: vars(share) for name, share in row.shares.items()},
                "smaller": [
                    {**one._asdict(), "share": vars(one.share) if one.share else None}
                    for one in row.smaller
                ],
                "time": row.chain.time,
                "chain": run(row.chain),
                "sde": run(row.sde),
                "without": run(row.without),
            }
            for row in self.rows
        ]
        results = {"verdict": self.status, "term": self.term, "judged": self.judged, "rows": rows}
        plain: dict[str, Any] = store.plain(
            {
                "schema": SCHEMA,
                "config": self.config,
                "provenance": self.provenance,
                "results": results,
            }
        )
        return plain


def with_error(value: float, error: float) -> str:
    """A value with the standard error of its last digits.

    >>> with_error(5.38347, 0.0124)
    '5.383(12)'
    """
    if not (np.isfinite(value) and np.isfinite(error) and error > 0):
        return f"{value:.6g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f}({round(error * 10**digits)})"
