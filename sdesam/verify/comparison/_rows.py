"""One micro-batch size of a comparison: the share from three runs, the verdict, and how verdicts of
several sizes and of smaller step sizes are weighed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from sdesam._util.names import Status
from sdesam.ensemble import Result
from sdesam.optim import Chain
from sdesam.verify.comparison._explained import LEVEL, ExplainedShare, judge, share_explained

FAMILY = 0.05
"""The chance that any verdict of a comparison is wrong, however many values of `m` it has: where
there are more than two, each is first asked for `5 % / number`, and what is settled is no longer
counted (S. Holm 1979, Scand. J. Stat. 6). Observables that are not judged have no verdict."""
HALVINGS = 2
"""How often `eta` is halved, and `rho` with it, to see whether a theory that is refuted holds at
smaller step sizes.
"""
APPROACH = 2 / 3
"""If what is left unexplained falls below this part of what it was, the theory may hold at smaller
step sizes still: for a wrong term it stays as it is, for a right theory of order 2 and the term
`rho^1` it falls by 0.4 with each halving."""


@dataclass(frozen=True)
class Row:
    """One micro-batch size: three runs and what they say.

    Args:
        micro: `m`.
        chain: the optimizer.
        sde: its SDE.
        without: the SDE without the term.
        shares: by observable, each with its 95 % interval.
        status: of the judged observable.
        reason: for the status.
        smaller: the same at smaller step sizes, where they were tried.
    """

    micro: int
    chain: Result
    sde: Result
    without: Result
    shares: dict[str, ExplainedShare]
    status: Status
    reason: str
    smaller: tuple[Smaller, ...] = ()


class Smaller(NamedTuple):
    """The comparison at a smaller step size, down the path `rho = c eta^(alpha/beta)`."""

    lr: float
    rho: float
    share: ExplainedShare | None
    status: Status
    reason: str

    @property
    def sizes(self) -> str:
        """The step sizes, for a sentence."""
        return _sizes(self.lr, self.rho)


def row_of(
    micro: int,
    chain: Result,
    sde: Result,
    without: Result,
    *,
    observe: list[str],
    judged: str,
    term: str,
) -> Row:
    """A row judged alone."""
    runs = {"optimizer": chain, "SDE": sde, "SDE without the term": without}
    diverged = [f"{name}: {run.diverged}" for name, run in runs.items() if run.diverged]
    if diverged:
        # the survivors are a selected sample, and one-sided divergence is a disagreement of its own
        return Row(micro, chain, sde, without, {}, "inconclusive", "; ".join(diverged))
    # a mean over the paths whose value happens to be finite says nothing of the others: such an
    # observable has no share
    partial = {
        name: run.warnings(judged)
        for name, run in runs.items()
        if np.any(run.nonfinite.get(judged, 0))
    }
    if partial:
        return Row(
            micro,
            chain,
            sde,
            without,
            {},
            "inconclusive",
            "; ".join(f"{name}: {sentence}" for name, [sentence] in partial.items()),
        )
    finite = [
        name
        for name in observe
        if not any(np.any(run.nonfinite.get(name, 0)) for run in runs.values())
    ]
    shares = {name: share_in(chain, sde, without, name, 1 - LEVEL) for name in finite}
    return Row(micro, chain, sde, without, shares, *judge(shares[judged], judged, term))


def share_in(
    chain: Result, sde: Result, without: Result, name: str, outside: float
) -> ExplainedShare:
    """The share in one observable; the chance that the interval misses it is `outside`."""
    # the two paths of an antithetic pair are correlated on purpose; an error over single paths
    # would be wrong
    pairs = sde.diverged.total // 2  # antithetic pairs are the independent units
    table = np.stack([_pair_means(run, name) for run in (sde, without)])
    # the optimizer's runs are independent of both SDEs; these two share their noise, path by path
    covariance = np.zeros((3, 3))
    covariance[0, 0] = chain.stderr[name][-1] ** 2
    covariance[1:, 1:] = np.cov(table) / pairs
    means = table.mean(axis=1)
    quantile = float(stats.t.ppf(1 - outside / 2, pairs - 1))
    return share_explained(
        float(chain.mean[name][-1]), float(means[0]), float(means[1]), covariance, quantile
    )


# Holm's procedure, for m = 16, 8, 4, 1. A verdict rests on one end of an interval, and an end of
# the 95 % interval is wrong with probability 2.5 %. Of four verdicts one is then wrong with up to
# 10 %.
#
#     first  each row is asked for an end that is wrong with 5 % / 4 = 1.25 %
#     then   if three rows are settled so, the last one is alone: 5 % would do, and 2.5 % is asked
#            for, as in the 95 % interval that is shown
#
# The rows that are settled need no correction any more, which is why a close row profits from clear
# ones.
def corrected(rows: Sequence[Row], judged: str, term: str) -> list[Row]:
    """Rows judged together, so that any verdict is wrong with probability 5 % at most: Holm's
    procedure.

    A verdict rests on one end of an interval. Each row is first asked for an end that is wrong with
    probability `5 % / number of rows`, but never for less than the 2.5 % of the 95 % interval; rows
    that are settled so are not counted any more.
    """
    judged_rows = {k: row for k, row in enumerate(rows) if row.shares}
    waiting, found = dict(judged_rows), list(rows)
    while waiting:
        end = min((1 - LEVEL) / 2, FAMILY / len(waiting))
        told = (
            ""
            if 2 * end == 1 - LEVEL
            else f", at {1 - 2 * end:.1%} because {len(rows)} values of m are judged"
        )
        for k, row in waiting.items():
            status, reason = judge(
                share_in(row.chain, row.sde, row.without, judged, 2 * end), judged, term
            )
            found[k] = replace(row, status=status, reason=reason + told)
        settled = [k for k in waiting if found[k].status in ("confirmed", "refuted")]
        if not settled:
            break
        for k in settled:
            del waiting[k]
    return found


def smaller_of(
    chain: Chain,
    results: Callable[[], tuple[Result, Result, Result]],
    *,
    observe: list[str],
    judged: str,
    term: str,
) -> Smaller:
    """The comparison at smaller step sizes; that two of them are tried is corrected for."""
    found = results()
    row = row_of(chain.sampling.m, *found, observe=observe, judged=judged, term=term)
    if not row.shares:
        return Smaller(chain.lr, chain.rho, None, row.status, row.reason)
    share = share_in(*found, judged, (1 - LEVEL) / HALVINGS)
    return Smaller(chain.lr, chain.rho, share, *judge(share, judged, term))


def at_smaller_steps(row: Row, judged: str, at: Callable[[int], Smaller]) -> Row:
    """A refuted row, with what is found at smaller step sizes.

    A wrong theory stays wrong there. A right one comes to hold; that it does not hold where it was
    asked for refutes nothing.
    """
    tried: list[Smaller] = []
    for halvings in range(1, HALVINGS + 1):
        tried.append(at(halvings))
        if tried[-1].status == "confirmed":
            break
    status, reason = weigh(row, judged, tried)
    return replace(row, smaller=tuple(tried), status=status, reason=reason)


# Why smaller step sizes decide. Say the SDE leaves 0.30 of the term's effect unexplained. It is of
# order 2 and the term is rho^1, so that the error is of order eta^2 and the effect of order rho =
# eta^(2/3). What is left is of the order eta^2 / eta^(2/3) = eta^(4/3), and halving eta multiplies
# it by 2^(-4/3) = 0.40:
#
#     a right theory    0.30 -> 0.12 -> 0.05    below 0.1 in the end: "outside the range"
#     a wrong one       0.30 -> 0.30 -> 0.30    what is wrong does not shrink: "refuted"
#
# A theory whose rest falls for certain by a third, but not below 0.1, stays open; smaller steps
# would decide.
def weigh(row: Row, judged: str, tried: Sequence[Smaller]) -> tuple[Status, str]:
    """The verdict on a row that is refuted at its own step sizes, from what was found at smaller
    ones.
    """
    here, last = _sizes(row.chain.config["lr"], row.chain.config["rho"]), tried[-1]
    if last.status == "confirmed":
        assert last.share is not None
        return (
            "outside the range",
            (
                f"at {here} the step sizes are too large for the SDE: it closes a share"
                f" {row.shares[judged]} of the gap in {judged} without the term there, and"
                f" {last.share} at {last.sizes}, where it starts to hold, as far as seen"
            ),
        )
    refuted = [one for one in tried if one.status == "refuted"]
    if not refuted:
        why = "; ".join(f"at {one.sizes}: {one.reason}" for one in tried)
        return (
            "inconclusive",
            f"at {here} {row.reason}; whether it does at smaller step sizes cannot be said: {why}",
        )
    share = refuted[-1].share
    assert share is not None
    if 1 - share.lower < APPROACH * (1 - row.shares[judged].upper):
        return (
            "inconclusive",
            (
                f"at {here} {row.reason}; what is left falls with the step sizes, to a share"
                f" {share} at {refuted[-1].sizes}, so that these may be too large for any SDE;"
                " smaller lr and rho would decide"
            ),
        )
    return (
        "refuted",
        (
            f"at {here} {row.reason}; at {refuted[-1].sizes} it does not close it either, with a"
            f" share {share}"
        ),
    )


def _sizes(lr: float, rho: float) -> str:
    return f"lr = {lr:.3g}" + (f", rho = {rho:.3g}" if rho else "")


def _pair_means(run: Result, name: str) -> np.ndarray:
    assert run.values is not None
    values = run.values[name][:, -1].astype(np.float64)
    return np.asarray(values.reshape(-1, 2).mean(axis=1))
