"""Weak errors without sampling, and the signature of an equation: how each term scales when it
alone is left out.

Along a path `rho = c eta^(alpha/beta)` the full SDE of order (alpha, beta) differs from the chain
like `eta^alpha`, and the SDE without one term differs from the full one like `eta` to a power that
the Newton polygon predicts: `j alpha/beta` for the drift term `rho^j`, `1 + j alpha/beta` for a
correction or noise term. A wrong coefficient shows as that power instead of `alpha` in the error
against the chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from sdesam._util import store
from sdesam._util.checks import check_positive
from sdesam._util.names import Status
from sdesam.ensemble import steps_of
from sdesam.optim import Chain
from sdesam.problems import FiniteSum, check_problem
from sdesam.sde import SDE
from sdesam.symbolic import ModifiedEquation, Term
from sdesam.variants import NormEstimate
from sdesam.verify.exact.quadratic import Quadratic
from sdesam.verify.exact.slopes import ROUNDING, TOLERANCE, Curve, extrapolated, fit_slope
from sdesam.verify.exact.torus import Torus

__all__ = [
    "FINE_RATES",
    "RATES",
    "TOLERANCE",
    "Ablation",
    "Curve",
    "Signature",
    "Solver",
    "check_rates",
    "extrapolated",
    "fit_slope",
    "signature",
    "solvers",
    "weak_error",
]

RATES = (1 / 32, 1 / 64, 1 / 128, 1 / 256)
"""Default learning rates on a torus."""
FINE_RATES = (1 / 128, 1 / 256, 1 / 512, 1 / 1024)
"""Default learning rates for moments on quadratics, which are cheap and become asymptotic later."""
_SIZES = {1: (16, 26, 38, 58, 94), 2: (16, 22, 30, 38, 46)}
"""Grid sizes without common factors but 2: no wave vanishes on two of them."""
_RESOLVED = 0.02
"""How far a difference may move, relative to its size, when the grid is refined, before the grid
counts as too coarse.
"""


class Solver(Protocol):
    """Expectations of a chain and of an SDE at a horizon, as arrays that can be subtracted.

    Nothing asks whether an object is a `Solver`: any class with the two methods serves. A solver on
    a grid, of which the differences on two sizes are compared, is a :class:`Torus`.
    """

    def chain(self, chain: Chain) -> np.ndarray:
        """Expectations of the chain."""
        ...

    def sde(self, sde: SDE) -> np.ndarray:
        """Expectations of the SDE."""
        ...


@dataclass(frozen=True)
class Ablation:
    """One term of an equation: what leaving it out changes.

    Args:
        name: as in `eq.terms`.
        change: `SDE_full - SDE_without`.
        knock_out: `SDE_without - chain`.
        visible: whether its predicted exponent is below `alpha`, so that a weak error of this order
            can see it.
    """

    name: str
    change: Curve
    knock_out: Curve
    visible: bool

    @property
    def finding(self) -> str:
        """What was found, in a few words."""
        if self.change.vanishes:
            return "vanishes identically on this problem"
        if not self.change.settled:
            return "no asymptotic range: smaller rates or a smaller c would show one"
        if not self.visible:
            return "invisible at this order: leaving it out does not lower the order"
        if not self.change.as_predicted:
            return "NOT as predicted"
        if self.breaks:
            return "as predicted; leaving it out breaks the equation"
        return (
            "as predicted; smaller than the full error here, it breaks the equation only at smaller"
            " rates"
        )

    @property
    def breaks(self) -> bool:
        """Whether the equation without it is seen to have a lower order against the chain."""
        return bool(
            self.knock_out.predicted is not None
            and abs(self.knock_out.slope - self.knock_out.predicted) <= 2 * TOLERANCE
        )

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the prediction.

        The knock-out's error is the full error minus the change. Where the full error has its order
        and the change a smaller exponent, the change wins in the end, also if the raw knock-out
        does not show it at these rates yet.
        """
        return self.change.vanishes or self.change.as_predicted


@dataclass(frozen=True)
class Signature:
    """What :func:`signature` found."""

    equation: ModifiedEquation
    full: Curve
    terms: tuple[Ablation, ...]
    config: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=store.provenance)

    @property
    def status(self) -> Status:
        """`confirmed` if the full error has at least its order and every term its exponent;
        `refuted` if the error has a lower order.
        """
        if not self.full.settled:
            return "inconclusive"
        assert self.full.predicted is not None
        if self.full.slope < self.full.predicted - TOLERANCE:
            return "refuted"
        # an equation of which no term can be seen is confirmed by nothing
        visible = any(term.visible and not term.change.vanishes for term in self.terms)
        return (
            "confirmed" if visible and all(term.passed for term in self.terms) else "inconclusive"
        )

    def table(self) -> str:
        """Predicted and measured exponents as text."""
        alpha, beta = self.equation.order
        lines = [
            (
                f"{self.equation.variant.title} on {self.config['problem']}, order"
                f" {self.equation.order}, b = {self.config['batch']}, m = {self.config['micro']},"
                f" {'with' if self.equation.replace else 'without'} replacement{self._options()}"
            ),
            (
                f"path rho = {self.config['c']:g} eta^({Fraction(alpha, beta)}), eta ="
                f" {', '.join(f'1/{1 / r:g}' for r in self.full.rates)}"
            ),
            self._resolution(),
            "",
            f"{'':<16} {'predicted':>9} {'slope':>7} {'as eta -> 0':>16} {'size':>9}   finding",
        ]
        ok = (
            "ORDER NOT REACHED"
            if self.status == "refuted"
            else "order reached"
            if self.full.settled
            else "no asymptotic range"
        )
        lines.append(_line("full error", self.full, ok))
        lines += [_line(term.name, term.change, term.finding) for term in self.terms]
        if alpha == 1 and self.equation.noise_parts:
            lines.append(
                "at alpha = 1 no weak error can see the noise: it moves expectations by O(eta), the"
                " size of the error itself"
            )
        lines.append(f"verdict: {self.status}")
        return "\n".join(lines)

    def _options(self) -> str:
        """The numbers that only some variants have."""
        told = f", eps = {self.config['eps']:g}" if "eps" in self.config else ""
        if "lam" in self.config:
            told += f", lam = {self.config['lam']:g}, {NormEstimate(**self.config['norms'])}"
        return told

    def _resolution(self) -> str:
        """How well the numbers are known."""
        if not self.config["grids"]:
            return "moments by recursion and matrix exponentials: no grid, errors of rounding"
        curves = [
            self.full,
            *(curve for term in self.terms for curve in (term.change, term.knock_out)),
        ]
        shift = max(
            (
                max(curve.uncertainty / np.maximum(curve.values, ROUNDING))
                for curve in curves
                if not curve.vanishes
            ),
            default=0.0,
        )
        grids = " to ".join(
            str(size) for size in sorted({min(self.config["grids"]), max(self.config["grids"])})
        )
        return (
            f"grid of {grids} points a side; the last refinement moved no difference by more than"
            f" {100 * shift:.2g} % of its size"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything a figure or a report needs, as plain data."""

        def curve(c: Curve) -> dict[str, Any]:
            return {**vars(c), "vanishes": c.vanishes}

        terms = {
            t.name: {
                "change": curve(t.change),
                "knock_out": curve(t.knock_out),
                "visible": t.visible,
                "finding": t.finding,
            }
            for t in self.terms
        }
        results = {"verdict": self.status, "full": curve(self.full), "terms": terms}
        plain: dict[str, Any] = store.plain(
            {
                "schema": "sdesam.signature/1",
                "config": self.config,
                "provenance": self.provenance,
                "results": results,
            }
        )
        return plain


def weak_error(
    equation: ModifiedEquation,
    problem: FiniteSum,
    *,
    batch: int,
    micro: int | None = None,
    rates: Sequence[float] | None = None,
    c: float = 0.5,
    horizon: float = 1.0,
    eps: float = 0.0,
    lam: float | None = None,
    norms: NormEstimate | None = None,
    **own: float,
) -> Curve:
    """`sup |E phi(SDE) - E phi(chain)|` along `rho = c eta^(alpha/beta)`, without sampling.

    The supremum is over starts and low trigonometric test functions on a torus problem, over first
    and second moments from `x0` on a quadratic one.

    Args:
        equation: whose SDE is compared.
        problem: a torus problem (`period` set, d = 1 or 2, few enough mini-batches to list) or
            quadratic losses (d up to 20, any n).
        batch: `b`.
        micro: `m`.
        rates: the learning rates, decreasing; each divides the horizon. By default four that
            double.
        c: of the path.
        horizon: SDE time.
        eps: of the normaliser; on a torus some gradient vanishes, so a normalised variant needs
            `eps > 0` to be smooth.
        lam: inverse temperature of rw-sam's weights.
        norms: how rw-sam estimates gradient norms; only exact ones can be listed.
        own: the rule's own numbers, by name.

    Raises:
        ValueError: a problem that no exact solver takes, a grid of rates that cannot show a slope,
            a torus grid that cannot resolve the loss.

    >>> import sdesam
    >>> curve = weak_error(sdesam.derive("sgd"), sdesam.problems.torus(dim=1, samples=3), batch=2)
    >>> abs(curve.slope - 2) < 0.1
    True
    """
    numbers = {"batch": batch, "micro": micro, "eps": eps, "lam": lam, "norms": norms, **own}
    curve = _measure(equation, problem, (), _Path(rates, c, horizon), numbers)[0][None]
    if not curve.settled and not curve.vanishes:
        raise ValueError(
            f"no asymptotic range: over the rates {[float(f'{r:.4g}') for r in curve.rates]} with"
            f" c={c:g} the errors {[float(f'{v:.2g}') for v in curve.values]} have no steady slope;"
            " choose smaller rates or a smaller c"
        )
    return curve


def signature(
    equation: ModifiedEquation,
    problem: FiniteSum,
    *,
    batch: int,
    micro: int | None = None,
    rates: Sequence[float] | None = None,
    c: float = 0.5,
    horizon: float = 1.0,
    eps: float = 0.0,
    lam: float | None = None,
    norms: NormEstimate | None = None,
    **own: float,
) -> Signature:
    """The predicted and the measured exponent of the full error and of every term; arguments as for
    :func:`weak_error`.
    """
    alpha = equation.order[0]
    numbers = {"batch": batch, "micro": micro, "eps": eps, "lam": lam, "norms": norms, **own}
    path = _Path(rates, c, horizon)
    measured, grids = _measure(equation, problem, equation.terms, path, numbers)
    terms = tuple(
        Ablation(
            name,
            measured[name, "change"],
            measured[name, "knock-out"],
            bool(_exponent(equation, name) < alpha),
        )
        for name in equation.terms
    )
    config = {
        "variant": equation.variant.name,
        "order": list(equation.order),
        "replace": equation.replace,
        "problem": problem.name,
        "samples": problem.n,
        "batch": batch,
        "micro": batch if micro is None else micro,
        "c": c,
        "horizon": horizon,
        "rates": measured[None].rates,
        "grids": grids,
    }
    config |= own
    if equation.variant.normalised:
        config["eps"] = eps
    if equation.variant.weighted:
        config |= {"lam": lam, "norms": vars(norms or NormEstimate())}
    return Signature(equation, measured[None], terms, config)


class _Path(NamedTuple):
    """The learning rates, and `rho = c eta^(alpha/beta)` at each, up to an SDE time."""

    rates: Sequence[float] | None
    c: float
    horizon: float


def solvers(problem: FiniteSum, horizon: float) -> Iterator[Solver]:
    """Exact solvers for a problem, each finer than the one before.

    Raises:
        ValueError: no exact solver takes it.
    """
    if problem.period is None:
        if problem.dim > 20:
            raise ValueError(
                f"{problem!r} has no exact solver, which needs a period (d = 1 or 2) or quadratic"
                " losses (d up to 20); sdesam.coupled samples"
            )
        yield Quadratic(problem, horizon)
        return
    if problem.dim not in _SIZES:
        raise ValueError(f"{problem!r}: torus problems have 1 or 2 parameters")
    for size in _SIZES[problem.dim]:
        yield Torus(float(problem.period), problem.dim, size, horizon)


def check_rates(rates: Sequence[float], horizon: float) -> np.ndarray:
    """The learning rates as an array, or one sentence saying why no slope can be fitted to them."""
    grid = np.array([check_positive("a rate", rate) for rate in rates])
    if len(grid) < 3 or np.any(np.diff(grid) >= 0):
        raise ValueError(
            f"rates={list(rates)}: at least three learning rates, decreasing, are needed to show a"
            " slope"
        )
    for rate in grid:
        steps_of(check_positive("horizon", horizon), float(rate), "horizon", "the learning rate")
    return grid


def _measure(
    equation: ModifiedEquation,
    problem: FiniteSum,
    terms: Sequence[str],
    path: _Path,
    numbers: dict[str, Any],
) -> tuple[dict[Any, Curve], list[int]]:
    """The curves of the full error (key None), and of `(term, "change")` and `(term, "knock-out")`;
    the torus grid that each rate took.
    """
    check_problem(problem)
    if not isinstance(equation, ModifiedEquation):
        raise TypeError(f"equation={equation!r}: it must be what sdesam.derive gives")
    usual = FINE_RATES if problem.period is None else RATES
    grid = check_rates(usual if path.rates is None else path.rates, path.horizon)
    alpha, beta = equation.order
    unperturbed = not equation.variant.perturbed
    sizes: dict[Any, list[tuple[float, float]]] = {}
    coarsest = 0
    grids = []
    for rate in grid:
        rho = None if unperturbed else check_positive("c", path.c) * float(rate) ** (alpha / beta)
        at = {"lr": float(rate), "rho": rho, **numbers}
        chain = Chain(equation.variant, problem, replace=equation.replace, **at)
        bound = {
            term: (
                (equation.without(term) if term else equation).bind(
                    problem, expectation="exact", **at
                )
            )
            for term in (None, *terms)
        }
        found, coarsest = _resolved(problem, path.horizon, chain, bound, coarsest)
        if problem.period is not None:
            grids.append(_SIZES[problem.dim][coarsest + 1])
        for key, pair in found.items():
            sizes.setdefault(key, []).append(pair)
    curves = {
        key: Curve(
            rates=grid,
            values=np.array([size for size, _ in pairs]),
            uncertainty=np.array([moved for _, moved in pairs]),
            predicted=float(_exponent(equation, key if key is None else key[0])),
            # the next term along the path has rho to one power more, or eta where the path goes in
            # whole powers of it
            gap=1.0 if unperturbed else 1 / Fraction(alpha, beta).denominator,
        )
        for key, pairs in sizes.items()
    }
    return curves, grids


def _resolved(
    problem: FiniteSum, horizon: float, chain: Chain, bound: dict[Any, SDE], coarsest: int
) -> tuple[dict[Any, tuple[float, float]], int]:
    """Sup norm and uncertainty of every difference, on the first grid that resolves them all.

    Starts from grid number `coarsest`; also returns the grid to start from for the next, smaller
    learning rate, the last but one of this.
    """
    before: dict[Any, np.ndarray] | None = None
    for number, solver in enumerate(solvers(problem, horizon)):
        # a smaller rate makes smaller differences, which need a grid at least as fine
        if number < coarsest:
            continue
        reference = solver.chain(chain)
        values = {key: solver.sde(sde) for key, sde in bound.items()}
        differences: dict[Any, np.ndarray] = {None: values[None] - reference}
        for term in values:
            if term is not None:
                differences[term, "change"] = values[None] - values[term]
                differences[term, "knock-out"] = values[term] - reference
        # moments have no grid: what is uncertain in them is rounding
        if not isinstance(solver, Torus):
            noise = ROUNDING * max(1.0, float(abs(reference).max()))
            return {key: (float(abs(value).max()), noise) for key, value in differences.items()}, 0
        # two grids have no points in common; their interpolants are compared at places of neither
        shared = {key: solver.common(value) for key, value in differences.items()}
        if before is not None:
            moved = {key: float(abs(shared[key] - before[key]).max()) for key in shared}
            found = {
                key: (float(abs(value).max()), moved[key]) for key, value in differences.items()
            }
            if all(shift <= max(_RESOLVED * size, 10 * ROUNDING) for size, shift in found.values()):
                return found, number - 1
        before = shared
    raise ValueError(
        f"{problem!r}: a grid of {_SIZES[problem.dim][-1]} points per side does not resolve the"
        f" expectations at time {horizon:g}; choose a smoother loss or a shorter horizon"
    )


# The exponents along rho = c eta^(2/3), at order (2, 3):
#
#     rho^1       2/3         eta         1           noise         1
#     rho^2       4/3         eta rho^1   5/3         noise rho^1   5/3
#     rho^3       2
#
# `derive` keeps eta^i rho^j where i/alpha + j/beta < 1. Multiplied by alpha this says that the
# exponent i + j alpha/beta is below alpha, so that there is one rule and not two: what is kept can
# be seen above the error eta^alpha, and rho^3 is dropped. The noise of order (1, .) is kept by
# custom, has the exponent 1 = alpha, and is called invisible.


def _exponent(equation: ModifiedEquation, term: str | None) -> Fraction:
    """The power of `eta` at which a term acts along the path; `alpha` for the full error."""
    alpha, beta = equation.order
    if term is None:
        return Fraction(alpha)
    parsed = Term.parse(term)
    assert parsed is not None, "the names come from the equation"
    acts_with_eta = parsed.kind != "drift"
    return Fraction(int(acts_with_eta)) + parsed.rho * Fraction(alpha, beta)


def _line(name: str, curve: Curve, finding: str) -> str:
    predicted = f"{curve.predicted:.3f}" if curve.predicted is not None else ""
    slope = f"{curve.slope:.3f}" if np.isfinite(curve.slope) else "-"
    limit = f"{curve.limit:.3f} +- {curve.limit_error:.3f}" if np.isfinite(curve.slope) else "-"
    return f"{name:<16} {predicted:>9} {slope:>7} {limit:>16} {curve.values[-1]:>9.1e}   {finding}"
