"""The main job: a discrete optimizer beside its SDE, and beside the SDE with one term knocked out.

Agreement alone proves little. The question is how much of the knocked-out term's effect the full SDE explains,

    share = 1 - |SDE - chain| / |SDE without the term - chain|,

with an interval, and whether the data could have told the two apart at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Any, Literal, get_args

import jax
import numpy as np
from scipy import stats

from sdesam import store
from sdesam._keys import seed_key
from sdesam.discrete import Chain, train
from sdesam.engine import Result, time_grid
from sdesam.problems import FiniteSum, check_problem
from sdesam.sampling import whole
from sdesam.sde import simulate
from sdesam.sde.stepping import check_stepping
from sdesam.symbolic import ModifiedEquation, derive
from sdesam.variants import NormEstimate
from sdesam.variants import variant as find_variant

SCHEMA = "sdesam.comparison/1"
LEVEL = 0.95
ENOUGH = 0.9
"""The share whose lower confidence bound confirms."""
VISIBLE = 4.0
"""Standard errors by which the knock-out must miss the chain to count as rejected; a true theory is rejected by chance with
probability 6e-5 per comparison (two-sided, normal)."""

Status = Literal["confirmed", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Share:
    """How much of a knocked-out term's effect on one observable the full SDE explains, at the final time.

    Args:
        value: `1 - |SDE - chain| / |SDE without - chain|`.
        lower: its 95 % confidence interval (Fieller's, for the ratio of the two signed differences); -inf where unbounded.
        upper: the same.
        gap: `SDE - chain`, in standard errors.
        knock_out: `SDE without - chain`, in standard errors.
        effect: `SDE without - SDE`, in standard errors: whether the term moves the observable at all.
    """

    value: float
    lower: float
    upper: float
    gap: float
    knock_out: float
    effect: float


@dataclass(frozen=True)
class Row:
    """One micro-batch size: three runs and what they say."""

    micro: int
    chain: Result
    sde: Result
    without: Result
    shares: dict[str, Share]
    status: Status
    reason: str


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
        """`refuted` if any row is, else `confirmed` if any row is, else `inconclusive`.

        A row that is inconclusive says that its runs were too few, nothing about the theory; it is named, not counted.
        """
        found = {row.status for row in self.rows}
        return "refuted" if "refuted" in found else "confirmed" if "confirmed" in found else "inconclusive"

    def table(self) -> str:
        """Means with standard errors at the final time, and the shares, as text."""
        lines = [
            f"at time {self.rows[0].chain.time[-1]:g}; in brackets the standard error of the last digits;",
            "gap: SDE - optimizer, in standard errors;",
            f"share: of the effect of {self.term!r} that the SDE explains, with its 95 % interval",
            "",
            f"{'m':>4}  {'':<14} {'optimizer':>15} {'SDE':>15} {'SDE without':>15} {'gap':>6}  share",
        ]
        for row in self.rows:
            for name, share in row.shares.items():
                cells = [with_error(r.mean[name][-1], r.stderr[name][-1]) for r in (row.chain, row.sde, row.without)]
                # an unbounded interval says nothing: the term moves this observable too little
                told = f"{share.value:.3f} [{share.lower:.3f}, {share.upper:.3f}]" if share.lower > -inf else "-"
                lines.append(f"{row.micro:>4}  {name:<14} {cells[0]:>15} {cells[1]:>15} {cells[2]:>15} {share.gap:>6.1f}  {told}")
        lines.append("")
        lines += [f"m = {row.micro}: {row.status}: {row.reason}" for row in self.rows]
        each = {status: [str(row.micro) for row in self.rows if row.status == status] for status in get_args(Status)}
        named = "; ".join(f"{status} at m = {', '.join(many)}" for status, many in each.items() if many)
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
                "time": row.chain.time,
                "chain": run(row.chain),
                "sde": run(row.sde),
                "without": run(row.without),
            }
            for row in self.rows
        ]
        results = {"verdict": self.status, "term": self.term, "judged": self.judged, "rows": rows}
        plain: dict[str, Any] = store.plain({"schema": SCHEMA, "config": self.config, "provenance": self.provenance, "results": results})
        return plain


def compare(
    variant: str,
    problem: FiniteSum,
    *,
    lr: float,
    rho: float | None = None,
    batch: int,
    micro: Sequence[int] = (),
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
) -> Comparison:
    """Run, for each micro-batch size, the optimizer, its SDE, and the SDE without one term, and judge.

    The two SDEs use the same noise, in antithetic pairs, so that their difference has less noise than either.

    Args:
        variant: a name in :data:`sdesam.variants.VARIANTS`.
        problem: the finite sum.
        lr: `eta`.
        rho: perturbation radius.
        batch: `b`.
        micro: the sizes `m` to compare; left out, the mini-batch.
        steps: optimizer steps; the SDE runs to `steps * lr`.
        runs: how many runs of each, even and at least 8.
        order: of the SDE.
        replace: whether mini-batches are drawn with replacement.
        without: the term to knock out; left out, the first there is of `"rho^1 variance"`, `"rho^1"`, `"eta"`.
        observe: observables to record.
        judged: the observable that the verdict is about.
        method: of the SDE's time stepping.
        dt: its step; left out, `lr`, where Heun has weak error `O(lr^2)`. Euler at `dt >= lr` proves nothing and is refused.
        seed: of everything.
        progress: show bars; by default on a terminal.
        eps: of the normaliser.
        lam: inverse temperature of rw-sam's weights.
        norms: how rw-sam estimates gradient norms.
        micro_batches: how many fresh micro-batches a step of the SDE draws; see :func:`sdesam.sde.bind`.

    Returns:
        A :class:`Comparison`. A row is `confirmed` if the share's lower 95 % bound is at least 0.9 and the knock-out misses the chain by
        more than four standard errors, `refuted` if the knock-out does and the share's upper bound is below 0.9, else `inconclusive`.

    Raises:
        ValueError: numbers that do not fit, an unknown variant, term or observable; before any run starts.
    """
    check_problem(problem)
    declared = find_variant(variant)
    equation = derive(declared, order, replace)
    term = without if without is not None else _telling_term(equation)
    if equation.order[0] == 1 and term.startswith("noise"):
        raise ValueError(f"at order {equation.order} no weak error can judge the noise: choose alpha = 2, or another term")
    if method == "euler" and (dt is None or dt >= lr):
        raise ValueError("Euler at dt >= lr is the chain with Gaussian noise and proves nothing: choose method='heun', or dt well below lr")
    knocked_out = equation.without(term)
    if not isinstance(judged, str):
        raise TypeError(f"judged={judged!r}: it must be the name of an observable, such as 'trace_cov'")
    observe = list(dict.fromkeys([*([observe] if isinstance(observe, str) else observe), judged]))
    for name, shape in jax.eval_shape(*problem.observer(observe), problem.x0).items():
        if shape.shape != ():
            raise ValueError(f"observable {name!r} has shape {shape.shape}: a comparison takes scalars")
    steps = whole("steps", steps)
    count = whole("runs", runs, least=8)
    if count % 2:
        raise ValueError(f"runs={runs}: an even number is needed, for antithetic pairs")
    sizes: list[int | None] = [whole("micro", m) for m in micro] or [None]
    chains = [Chain(declared, problem, lr, rho, batch, m, replace, eps=eps, lam=lam, norms=norms) for m in sizes]
    pairs = [
        tuple(eq.bind(problem, lr, rho, batch, m, eps=eps, lam=lam, norms=norms, micro_batches=micro_batches) for eq in (equation, knocked_out))
        for m in sizes
    ]
    horizon = steps * lr
    step, sde_steps = check_stepping(horizon, lr if dt is None else dt, method)
    times = time_grid(None, steps, lr, "lr") * lr
    time_grid(times, sde_steps, step, "dt")  # the SDE must come by at the same times
    key_chain, key_sde = jax.random.split(seed_key(seed))
    rows = []
    for chain, (full, less) in zip(chains, pairs, strict=True):
        discrete = train(chain, key_chain, runs=count, steps=steps, times=times, observe=observe, progress=progress)
        continuous = [
            simulate(
                sde,
                key_sde,
                paths=count,
                horizon=horizon,
                dt=step,
                method=method,
                times=times,
                observe=observe,
                keep="values",
                antithetic=True,
                progress=progress,
            )
            for sde in (full, less)
        ]
        rows.append(_row(chain.sampling.m, discrete, *continuous, observe=observe, judged=judged, term=term))
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
    }
    if "micro_batches" in pairs[0][0].config:
        config["micro_batches"] = [full.config["micro_batches"] for full, _ in pairs]
    return Comparison(equation, term, judged, tuple(rows), config)


def share_explained(chain: float, sde: float, without: float, covariance: np.ndarray, quantile: float) -> Share:
    """The share of a term's effect that the SDE explains, with Fieller's interval.

    With `A = sde - chain` and `B = without - chain` the interval of `r = A/B` is the set where `(A - rB)^2 <= q^2 Var(A - rB)`; it is
    bounded only where `B` differs from 0. The share is `1 - |r|`.

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
    var_a, var_b, cov_ab = (float(u @ covariance @ v) for u, v in ((to_a, to_a), (to_b, to_b), (to_a, to_b)))
    lower, upper = -inf, 1.0
    # q2 r^2 + q1 r + q0 <= 0
    q2, q1, q0 = b**2 - quantile**2 * var_b, -2 * (a * b - quantile**2 * cov_ab), a**2 - quantile**2 * var_a
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
        effect=(b - a) / sqrt(var_a + var_b - 2 * cov_ab) if var_a + var_b > 2 * cov_ab else 0.0 if a == b else np.inf,
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
    return next(term for term in ("rho^1 variance", "rho^1", "eta", "noise") if term in equation.terms)


def _row(micro: int, chain: Result, sde: Result, without: Result, *, observe: list[str], judged: str, term: str) -> Row:
    runs = {"optimizer": chain, "SDE": sde, "SDE without the term": without}
    diverged = [f"{name}: {run.diverged}" for name, run in runs.items() if run.diverged]
    if diverged:
        # the survivors are a selected sample, and one-sided divergence is a disagreement of its own
        return Row(micro, chain, sde, without, {}, "inconclusive", "; ".join(diverged))
    pairs = sde.diverged.total // 2  # antithetic pairs are the independent units
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, pairs - 1))
    # a mean over the paths whose value happens to be finite says nothing of the others: such an observable has no share
    partial = {name: run.warnings(judged) for name, run in runs.items() if np.any(run.nonfinite.get(judged, 0))}
    if partial:
        return Row(micro, chain, sde, without, {}, "inconclusive", "; ".join(f"{name}: {sentence}" for name, [sentence] in partial.items()))
    shares = {}
    for name in observe:
        if any(np.any(run.nonfinite.get(name, 0)) for run in runs.values()):
            continue
        table = np.stack([_pair_means(run, name) for run in (sde, without)])
        covariance = np.zeros((3, 3))
        covariance[0, 0] = chain.stderr[name][-1] ** 2
        covariance[1:, 1:] = np.cov(table) / pairs
        means = table.mean(axis=1)
        shares[name] = share_explained(float(chain.mean[name][-1]), float(means[0]), float(means[1]), covariance, quantile)
    return Row(micro, chain, sde, without, shares, *judge(shares[judged], judged, term))


def judge(share: Share, observable: str, term: str) -> tuple[Status, str]:
    """The verdict on one share, and its reason."""
    interval = f"{share.value:.3f} [{share.lower:.3f}, {share.upper:.3f}]"
    if share.effect == 0:
        return "inconclusive", f"{term!r} does not move {observable} at all here: the term vanishes on this problem or at these numbers"
    if not min(abs(share.knock_out), abs(share.effect)) > VISIBLE:
        return "inconclusive", (
            f"without {term!r} the SDE misses {observable} by {abs(share.knock_out):.1f} standard errors and moves by {abs(share.effect):.1f}, "
            f"both of which must exceed {VISIBLE:g} before the runs can tell whether the term is right; more runs would"
        )
    seen = f"without {term!r} it misses by {abs(share.knock_out):.1f} standard errors"
    if share.lower >= ENOUGH:
        return "confirmed", f"the SDE explains a share {interval} of the term's effect on {observable}; {seen}"
    if share.upper < ENOUGH:
        return "refuted", f"the SDE explains only a share {interval} of the term's effect on {observable}; {seen}"
    return "inconclusive", f"the share {interval} of the term's effect on {observable} may be above or below {ENOUGH}; {seen}"


def _pair_means(run: Result, name: str) -> np.ndarray:
    assert run.values is not None
    values = run.values[name][:, -1].astype(np.float64)
    return np.asarray(values.reshape(-1, 2).mean(axis=1))
