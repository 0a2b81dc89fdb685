"""Which rules lower the gradient variance: those whose ascent shares noise with their descent?

Luo et al. say that noise in the perturbation adds `(rho/2) c tr V` to the loss. The coefficient `c`
is derived for each rule (of the unnormalised rule of the same expression, which has one):

| rule | perturbation follows | coefficient `c` of `tr V` |
| --- | --- | --- |
| SGD, n-SAM | nothing, the full gradient | 0 |
| fresh-SAM, m = 4 | a micro-batch of its own | 0 |
| SAM | the mini-batch | `c_64` |
| F-SAM, m = 4 | the gradient noise of the micro-batch, `g_I - 0.9 gbar` | `c_4` |
| m-SAM, m = 4 | the micro-batch | `c_4` |

with `c_k = (n-k)/(k(n-1))`. If the coefficient decides, fresh-SAM loses what m-SAM has, although
its perturbations have the same law, and F-SAM keeps it. They are paired by seed, from a bad minimum
and from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Run
from sdesam.verify import statistics

from . import _digits as digits

M = 4
SAM, M_SAM = ({"variant": "m-sam", "micro": m} for m in (digits.SETTING["batch"], M))
FRESH = {"variant": "fresh-sam", "micro": M}
FRIENDLY = {"variant": "f-sam", "micro": M, "sigma": 0.9}
CONDITIONS = (digits.SGD, digits.N_SAM, FRESH, SAM, FRIENDLY, M_SAM)
STARTS = {"bad minimum": "from a bad minimum", "random": "from scratch"}


def coefficient(name: str, n: int = digits.SETTING["train"]) -> float:  # type: ignore[assignment]
    """`c` of `tr V` in the derived loss of a condition."""
    size = {"SAM": digits.SETTING["batch"], f"m={M}": M, "F-SAM": M}.get(name)
    return 0.0 if size is None else (n - size) / (size * (n - 1))  # type: ignore[operator]


def runs(
    preset: str, seeds: int = 20, steps: int = digits.SETTING["steps"]
) -> list[dict[str, Any]]:
    """All rules from each seed's bad minimum and from its random start."""
    return [
        digits.training(seed, condition, steps=steps, start=start)
        for seed in range(seeds)
        for start in STARTS
        for condition in CONDITIONS
    ]


def _named(table: digits.Table, observable: str) -> dict[str, np.ndarray]:
    """Last values by rule; m = b is SAM."""
    sam = f"m={digits.SETTING['batch']}"
    return {"SAM" if name == sam else name: table.last(name, observable) for name in table.names}


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """Last values by start and rule, and paired differences of `log tr V`."""
    summary: dict[str, Any] = {"starts": {}, "tests": {}, "lines": []}
    for start, words in STARTS.items():
        table = digits.Table([run for run in stored if run.config.get("start") == start])
        told = digits.summary_of(table)
        if "final" not in told:
            return told
        variance, accuracy = _named(table, "trace_cov"), _named(table, "test_accuracy")
        pairs = {
            f"{words}: {a} - {b}": statistics.paired(np.log(variance[a]), np.log(variance[b]))
            for a, b in ((f"m={M}", "fresh-SAM"), ("F-SAM", "fresh-SAM"), ("F-SAM", f"m={M}"))
        }
        pairs[f"{words}: fresh-SAM - n-SAM"] = statistics.paired(
            np.log(variance["fresh-SAM"]), np.log(variance["n-SAM"])
        )
        summary["tests"] |= pairs
        summary["starts"][start] = {
            name: {
                "coefficient": coefficient(name),
                "trace_cov": statistics.interval(np.log(variance[name])),
                "test_accuracy": statistics.interval(accuracy[name]),
                "each": variance[name].tolist(),
            }
            for name in variance
        }
        summary |= {"seeds": told["seeds"], "diverged": told["diverged"]}
    p = digits.adjusted(summary["tests"])
    summary["p (Holm)"] = p
    for start, words in STARTS.items():
        for name, found in summary["starts"][start].items():
            summary["lines"].append(
                f"{words}, {name}: c = {found['coefficient']:.4f}, tr V"
                f" {np.exp(found['trace_cov'].mean):.3f}, test accuracy"
                f" {100 * found['test_accuracy'].mean:.2f} %"
            )
    for name, pair in summary["tests"].items():
        summary["lines"].append(
            f"{digits.difference(pair, f'{name}, log tr V')}; Holm: {p[name]:.2g}"
        )
    kept = [f"{w}: m={M} - fresh-SAM" for w in STARTS.values()]
    summary["verdicts"] = {}
    summary["kept"] = {name: summary["tests"][name].difference.upper < 0 for name in kept}
    return summary


def figure(data: Mapping[str, Any]) -> Any:
    """Tr V at the end against the derived coefficient, a panel for each start."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 4.4), layout="constrained")
    panels = drawn.subplots(2, 1)
    starts = data["results"]["summary"]["starts"]
    for axes, (start, words) in zip(panels, STARTS.items(), strict=True):
        found = dict(sorted(starts[start].items(), key=lambda item: item[1]["coefficient"]))
        digits.dots(axes, {name: np.array(one["each"]) for name, one in found.items()}, log=True)
        told = [
            f"{digits.pretty(name)}\n$c={one['coefficient']:.3f}$" for name, one in found.items()
        ]
        axes.set_xticks(range(len(found)), told, fontsize=6, rotation=0, ha="center")
        axes.set_ylabel(plots.LABELS["trace_cov"])
        axes.set_title(f"{words}, 3,000 steps", fontsize=8)
    drawn.supxlabel(
        r"rule, and its derived coefficient $c$ of $(\rho/2)\,\mathrm{tr}\,V$", fontsize=8
    )
    return drawn


EXPERIMENT = Experiment(
    name="shared_noise",
    title="Rules with and without noise that ascent and descent share",
    shows="the mechanism of arXiv 2509.18001, theorem 3.5",
    runs=runs,
    execute=digits.execute,
    needs=digits.starts,
    summarise=summarise,
    figure=figure,
    epoch_seconds=digits.epoch_seconds,
)
