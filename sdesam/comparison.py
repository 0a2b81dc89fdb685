"""The main job: a discrete optimizer beside its SDE, and beside the SDE with one term knocked out.

Agreement alone proves little. The question is how much of the gap between the optimizer and the SDE
without the term the full SDE closes,

    share = 1 - |SDE - chain| / |SDE without the term - chain|,

with an interval, and whether the data could have told the two apart at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from scipy import stats

from sdesam import store
from sdesam._checks import check_int
from sdesam._keys import seed_key
from sdesam._names import Status
from sdesam.discrete import Chain, train
from sdesam.engine import Result, time_grid
from sdesam.problems import FiniteSum, check_problem
from sdesam.sde import simulate
from sdesam.sde.stepping import check_stepping
from sdesam.symbolic import ModifiedEquation, Term, derive
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant

SCHEMA = "sdesam.comparison/1"
LEVEL = 0.95
"""Of the intervals that are shown. A verdict rests on one end of such an interval, and is wrong
with probability 2.5 % at most.
"""
FAMILY = 0.05
"""The chance that any verdict of a comparison is wrong, however many values of `m` it has: where
there are more than two, each is first asked for `5 % / number`, and what is settled is no longer
counted (S. Holm 1979, Scand. J. Stat. 6). Observables that are not judged have no verdict."""
ENOUGH = 0.9
"""The share whose lower confidence bound confirms."""
VISIBLE = 4.0
"""Standard errors by which the knock-out must miss the chain to count as rejected; a true theory is
rejected by chance with probability 6e-5 per comparison (two-sided, normal)."""
HALVINGS = 2
"""How often `eta` is halved, and `rho` with it, to see whether a theory that is refuted holds at
smaller step sizes.
"""
APPROACH = 2 / 3
"""If what is left unexplained falls below this part of what it was, the theory may hold at smaller
step sizes still: for a wrong term it stays as it is, for a right theory of order 2 and the term
`rho^1` it falls by 0.4 with each halving."""


@dataclass(frozen=True)
class Share:
    """How much of the gap that is left without a term the full SDE closes, in one observable at the
    final time.

    Args:
        value: `1 - |SDE - chain| / |SDE without - chain|`.
        lower: its 95 % confidence interval (Fieller's, for the ratio of the two signed
            differences); -inf where unbounded.
        upper: the same.
        gap: `SDE - chain`, in standard errors.
        knock_out: `SDE without - chain`, in standard errors.
        effect: `SDE without - SDE`, in standard errors: whether the term moves the observable at
            all.
    """

    value: float
    lower: float
    upper: float
    gap: float
    knock_out: float
    effect: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


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
    shares: dict[str, Share]
    status: Status
    reason: str
    smaller: tuple[Smaller, ...] = ()


class Smaller(NamedTuple):
    """The comparison at a smaller step size, down the path `rho = c eta^(alpha/beta)`."""

    lr: float
    rho: float
    share: Share | None
    status: Status
    reason: str

    @property
    def sizes(self) -> str:
        """The step sizes, for a sentence."""
        return _sizes(self.lr, self.rho)


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


def compare(
    variant: str | Variant,
    problem: FiniteSum,
    *,
    lr: float,
    rho: float | None = None,
    batch: int,
    micro: int | Sequence[int] = (),
    steps: int,
    runs: int = 64,
    order: tuple[int, int] = (2, 3),
    replace: bool = True,
    without: str | None = None,
    observe: Sequence[str] = ("loss", "grad_norm2", "trace_cov"),
    judged: str = "trace_cov",
    method: str = "heun",
    dt: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
    eps: float = 0.0,
    lam: float | None = None,
    norms: NormEstimate | None = None,
    micro_batches: int | None = None,
    halving: bool = True,
) -> Comparison:
    """Run, for each micro-batch size, the optimizer, its SDE, and the SDE without one term, and
    judge.

    The two SDEs use the same noise, in antithetic pairs, so that their difference has less noise
    than either.

    Args:
        variant: a name in :data:`sdesam.variants.VARIANTS`.
        problem: the finite sum.
        lr: `eta`.
        rho: perturbation radius.
        batch: `b`.
        micro: the sizes `m` to compare, or one; left out, the mini-batch.
        steps: optimizer steps; the SDE runs to `steps * lr`.
        runs: how many runs of each, even and at least 8.
        order: of the SDE.
        replace: whether mini-batches are drawn with replacement.
        without: the term to knock out; left out, the first there is of `"rho^1 variance"`,
            `"rho^1"`, `"eta"`.
        observe: observables to record.
        judged: the observable that the verdict is about.
        method: of the SDE's time stepping.
        dt: its step; left out, `lr`, where Heun has weak error `O(lr^2)`. Euler at `dt >= lr`
            proves nothing and is refused.
        seed: of everything.
        progress: show bars; by default on a terminal.
        eps: of the normaliser.
        lam: inverse temperature of rw-sam's weights.
        norms: how rw-sam estimates gradient norms.
        micro_batches: how many fresh micro-batches a step of the SDE draws; see
            :func:`sdesam.sde.bind`.
        halving: whether a row that would be refuted is run again with `lr` halved, once or twice,
            and `rho` smaller by `2^(-alpha/beta)`: no SDE holds at step sizes that are too large.

    Returns:
        A :class:`Comparison`. A row is `confirmed` if the share's lower bound is at least 0.9 and
        the knock-out misses the chain by more than four standard errors, `refuted` if the knock-out
        does and the share's upper bound is below 0.9, at smaller step sizes too;
        `outside the range` if at smaller step sizes it is confirmed; else `inconclusive`. With up
        to two values of `m` the bounds are those of the 95 % interval, with more of wider ones, so
        that any verdict is wrong with probability 5 % at most.

    Raises:
        ValueError: numbers that do not fit, an unknown variant, term or observable; before any run
            starts.
    """
    check_problem(problem)
    declared = find_variant(variant)
    equation = derive(declared, order, replace)
    term = without if without is not None else _telling_term(equation)
    parsed = Term.parse(term) if isinstance(term, str) else None
    if equation.order[0] == 1 and parsed is not None and parsed.kind == "noise":
        raise ValueError(
            f"at order {equation.order} no weak error can judge the noise: choose alpha = 2, or"
            " another term"
        )
    if method == "euler" and (dt is None or dt >= lr):
        raise ValueError(
            "Euler at dt >= lr is the chain with Gaussian noise and proves nothing: choose"
            " method='heun', or dt well below lr"
        )
    knocked_out = equation.without(term)
    if not isinstance(judged, str):
        raise TypeError(
            f"judged={judged!r}: it must be the name of an observable, such as 'trace_cov'"
        )
    observe = list(dict.fromkeys([*([observe] if isinstance(observe, str) else observe), judged]))
    for name, shape in jax.eval_shape(problem.observer(observe), problem.x0).items():
        if shape.shape != ():
            raise ValueError(
                f"observable {name!r} has shape {shape.shape}: a comparison takes scalars"
            )
    steps = check_int("steps", steps)
    count = check_int("runs", runs, least=8)
    if count % 2:
        raise ValueError(f"runs={runs}: an even number is needed, for antithetic pairs")
    given: Any = micro if np.iterable(micro) else (micro,)
    sizes: list[int | None] = [check_int("micro", m) for m in given] or [None]
    if not isinstance(halving, bool):
        raise TypeError(f"halving={halving!r}: it must be True or False")
    options: Any = {"eps": eps, "lam": lam, "norms": norms}
    horizon, step = steps * lr, lr if dt is None else dt
    key_chain, key_sde = jax.random.split(seed_key(seed))

    def prepared(
        m: int | None, halvings: int = 0
    ) -> tuple[Chain, Callable[[], tuple[Result, Result, Result]]]:
        """The optimizer at a micro-batch size, `eta` halved so often, and what runs it, its SDE,
        and the SDE without the term.
        """
        rate = lr / 2**halvings
        radius = (
            None if rho is None else rho / 2 ** (halvings * equation.order[0] / equation.order[1])
        )
        chain = Chain(declared, problem, rate, radius, batch, m, replace, **options)
        pair = [
            eq.bind(problem, rate, radius, batch, m, micro_batches=micro_batches, **options)
            for eq in (equation, knocked_out)
        ]
        own, sde_steps = check_stepping(horizon, step / 2**halvings, method)
        # the observation times are those of the first step sizes
        times = time_grid(None, steps, lr, "lr") * lr
        time_grid(times, sde_steps, own, "dt")  # the SDE must come by at the same times
        first, second = (
            jax.random.fold_in(key, halvings) if halvings else key for key in (key_chain, key_sde)
        )

        def results() -> tuple[Result, Result, Result]:
            common: Any = {"times": times, "observe": observe, "progress": progress}
            discrete = train(chain, first, runs=count, steps=steps * 2**halvings, **common)
            full, less = (
                simulate(
                    sde,
                    second,
                    count,
                    horizon,
                    own,
                    method,
                    keep="values",
                    antithetic=True,
                    **common,
                )
                for sde in pair
            )
            return discrete, full, less

        return chain, results

    ready = [prepared(m) for m in sizes]
    chains = [chain for chain, _ in ready]
    told: Any = {"observe": observe, "judged": judged, "term": term}
    rows = [_row(chain.sampling.m, *results(), **told) for chain, results in ready]
    rows = corrected(rows, judged, term)
    if halving:
        for k, row in enumerate(rows):
            if row.status == "refuted":
                rows[k] = _at_smaller_steps(
                    row,
                    judged,
                    lambda h, m=sizes[k]: _smaller(*prepared(m, h), **told),  # type: ignore[misc]
                )
    config = {
        **{name: value for name, value in chains[0].config.items() if name != "micro"},
        "micro": [chain.sampling.m for chain in chains],
        "order": list(equation.order),
        "steps": steps,
        "runs": count,
        "without": term,
        "judged": judged,
        "method": method,
        "dt": step,
        "seed": seed,
        "halving": halving,
    }
    if "micro_batches" in rows[0].sde.config:
        config["micro_batches"] = [row.sde.config["micro_batches"] for row in rows]
    return Comparison(equation, term, judged, tuple(rows), config)


def share_explained(
    chain: float, sde: float, without: float, covariance: np.ndarray, quantile: float
) -> Share:
    """The share of the gap without a term that the SDE closes, with Fieller's interval.

    With `A = sde - chain` and `B = without - chain` the interval of `r = A/B` is the set where
    `(A - rB)^2 <= q^2 Var(A - rB)`; it is bounded only where `B` differs from 0. The share is
    `1 - |r|`.

    Args:
        chain: mean of the optimizer's runs.
        sde: mean of the SDE.
        without: mean of the SDE without the term.
        covariance: of the three means, shape `(3, 3)`.
        quantile: `q`, of Student's t.

    Source: E. C. Fieller 1954, J. R. Stat. Soc. B 16.

    >>> share = share_explained(0.0, 0.1, 2.0, np.diag([1e-4, 1e-4, 1e-4]), 1.96)
    >>> round(share.value, 3), round(share.lower, 2), round(share.upper, 2)
    (0.95, 0.94, 0.96)
    """
    a, b = sde - chain, without - chain
    to_a, to_b = np.array([-1.0, 1.0, 0.0]), np.array([-1.0, 0.0, 1.0])
    var_a, var_b, cov_ab = (
        float(u @ covariance @ v) for u, v in ((to_a, to_a), (to_b, to_b), (to_a, to_b))
    )
    lower, upper = -inf, 1.0
    # q2 r^2 + q1 r + q0 <= 0
    q2, q1, q0 = (
        b**2 - quantile**2 * var_b,
        -2 * (a * b - quantile**2 * cov_ab),
        a**2 - quantile**2 * var_a,
    )
    if q2 > 0:
        middle, half = -q1 / (2 * q2), sqrt(max(q1**2 - 4 * q2 * q0, 0.0)) / (2 * q2)
        ends = abs(middle - half), abs(middle + half)
        lower = 1 - max(ends)
        upper = 1.0 if half >= abs(middle) else 1 - min(ends)
    return Share(
        value=1 - abs(a / b) if b else -inf,
        lower=lower,
        upper=upper,
        gap=a / sqrt(var_a) if var_a else np.nan,
        knock_out=b / sqrt(var_b) if var_b else np.nan,
        # identical runs have an effect of exactly zero, with no error
        effect=(
            (b - a) / sqrt(var_a + var_b - 2 * cov_ab)
            if var_a + var_b > 2 * cov_ab
            else 0.0
            if a == b
            else np.inf
        ),
    )


def with_error(value: float, error: float) -> str:
    """A value with the standard error of its last digits.

    >>> with_error(5.38347, 0.0124)
    '5.383(12)'
    """
    if not (np.isfinite(value) and np.isfinite(error) and error > 0):
        return f"{value:.6g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f}({round(error * 10**digits)})"


def _telling_term(equation: ModifiedEquation) -> str:
    return next(
        term for term in ("rho^1 variance", "rho^1", "eta", "noise") if term in equation.terms
    )


def _row(
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
    shares = {name: _share(chain, sde, without, name, 1 - LEVEL) for name in finite}
    return Row(micro, chain, sde, without, shares, *judge(shares[judged], judged, term))


def _share(chain: Result, sde: Result, without: Result, name: str, outside: float) -> Share:
    """The share in one observable; the chance that the interval misses it is `outside`."""
    pairs = sde.diverged.total // 2  # antithetic pairs are the independent units
    table = np.stack([_pair_means(run, name) for run in (sde, without)])
    covariance = np.zeros((3, 3))
    covariance[0, 0] = chain.stderr[name][-1] ** 2
    covariance[1:, 1:] = np.cov(table) / pairs
    means = table.mean(axis=1)
    quantile = float(stats.t.ppf(1 - outside / 2, pairs - 1))
    return share_explained(
        float(chain.mean[name][-1]), float(means[0]), float(means[1]), covariance, quantile
    )


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
                _share(row.chain, row.sde, row.without, judged, 2 * end), judged, term
            )
            found[k] = replace(row, status=status, reason=reason + told)
        settled = [k for k in waiting if found[k].status in ("confirmed", "refuted")]
        if not settled:
            break
        for k in settled:
            del waiting[k]
    return found


def _smaller(
    chain: Chain,
    results: Callable[[], tuple[Result, Result, Result]],
    *,
    observe: list[str],
    judged: str,
    term: str,
) -> Smaller:
    """The comparison at smaller step sizes; that two of them are tried is corrected for."""
    found = results()
    row = _row(chain.sampling.m, *found, observe=observe, judged=judged, term=term)
    if not row.shares:
        return Smaller(chain.lr, chain.rho, None, row.status, row.reason)
    share = _share(*found, judged, (1 - LEVEL) / HALVINGS)
    return Smaller(chain.lr, chain.rho, share, *judge(share, judged, term))


def _at_smaller_steps(row: Row, judged: str, at: Callable[[int], Smaller]) -> Row:
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


def judge(share: Share, observable: str, term: str) -> tuple[Status, str]:
    """The verdict on one share, and its reason."""
    if share.effect == 0:
        return (
            "inconclusive",
            (
                f"{term!r} does not move {observable} at all here: the term vanishes on this"
                " problem or at these numbers"
            ),
        )
    if not min(abs(share.knock_out), abs(share.effect)) > VISIBLE:
        return (
            "inconclusive",
            (
                f"without {term!r} the SDE misses {observable} by {abs(share.knock_out):.1f}"
                f" standard errors and moves by {abs(share.effect):.1f}, both of which must exceed"
                f" {VISIBLE:g} before the runs can tell whether the term is right; more runs would"
            ),
        )
    seen = f"without {term!r} it misses by {abs(share.knock_out):.1f} standard errors"
    if share.lower >= ENOUGH:
        return (
            "confirmed",
            f"the SDE closes a share {share} of the gap in {observable} without the term; {seen}",
        )
    if share.upper < ENOUGH:
        return (
            "refuted",
            (
                f"the SDE closes only a share {share} of the gap in {observable} without the term;"
                f" {seen}"
            ),
        )
    return (
        "inconclusive",
        (
            f"the share {share} of the gap in {observable} without the term may be above or below"
            f" {ENOUGH}; {seen}"
        ),
    )


def _pair_means(run: Result, name: str) -> np.ndarray:
    assert run.values is not None
    values = run.values[name][:, -1].astype(np.float64)
    return np.asarray(values.reshape(-1, 2).mean(axis=1))
