"""Table 6: tr V, Hessian trace and largest Hessian eigenvalue at the end of training, from scratch.

The training runs are those of `m_sharpness`, found in the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdesam._util.keys import seed_key
from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Numbers, Run
from sdesam.verify import curvature, statistics

from . import _digits as digits

CONDITIONS = (digits.SGD, *digits.M_SAM, digits.RW_SAM)
PROBES, ITERATIONS = 100, 40
QUANTITIES = {
    "trace_cov": plots.LABELS["trace_cov"],
    "hessian_trace": r"Hessian trace $\mathrm{tr}\,H$",
    "eigenvalue": r"largest eigenvalue",
}


def runs(
    preset: str, seeds: int | None = None, steps: int = digits.SETTING["steps"]
) -> list[dict[str, Any]]:
    """The curvature at the end of each training run."""
    count = seeds or {"quick": 20, "full": 50}[preset]
    return [
        {
            "run": "digits curvature",
            "probes": PROBES,
            "iterations": ITERATIONS,
            "of": digits.training(seed, condition, steps=steps),
            "seed": seed,
        }
        for seed in range(count)
        for condition in CONDITIONS
    ]


def needs(config: digits.Config) -> list[digits.Config]:
    """The training run."""
    return [config["of"]] if "of" in config else []


def execute(config: digits.Config, needed: Sequence[Run], device: Any) -> Numbers:
    """Train, or measure the curvature at the end of a training run."""
    if "of" not in config:
        return digits.execute(config, needed, device)
    with jax.default_device(device):
        problem = digits.problem(config["of"])
        x = digits.unpack(needed[0])
        trace = curvature.hessian_trace(problem, x, seed_key(config["seed"]), config["probes"])
        top = curvature.largest_eigenvalue(
            problem, x, seed_key(config["seed"]), config["iterations"]
        )
        values = {
            "trace_cov": float(problem.trace_cov(x)),
            "hessian_trace": trace.value,
            "eigenvalue": top.value,
        }
        return Numbers(
            {**values, "hessian_trace error": trace.error, "eigenvalue residual": top.error}
        )


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """Trends over m of the three quantities, SAM and RW-SAM beside SGD; the verdict on L-TrV (table
    6).
    """
    # the table reads arrays that hold the value at the end
    ends = [
        Run(
            run.config["of"],
            Numbers({}, {name: np.array([run.numbers.values[name]]) for name in QUANTITIES}),
            run.seconds,
            {},
        )
        for run in stored
    ]
    table = digits.Table(ends)
    summary = digits.summary_of(table, tuple(QUANTITIES))
    if "final" not in summary:
        return summary
    tests: dict[str, Any] = {
        f"trend of {name}": digits.micro_trend(table, name, "falls") for name in QUANTITIES
    }
    rw = digits.label(digits.RW_SAM)
    for name in QUANTITIES:
        for first, second in (("m=64", "SGD"), (rw, "m=64")):
            tests[f"log {name}, {first} - {second}"] = statistics.paired(
                np.log(table.last(first, name)), np.log(table.last(second, name))
            )
    p = digits.adjusted(tests)
    variance = tests["trend of trace_cov"]
    words = {
        name: (
            digits.reason(t, name)
            if isinstance(t, statistics.Trend)
            else digits.difference(t, name)
        )
        for name, t in tests.items()
    }
    return summary | {
        "tests": tests,
        "p (Holm)": p,
        "verdicts": {
            "L-TrV": {
                "status": variance.corrected(p["trend of trace_cov"], len(p)).verdict(),
                "reason": f"{words['trend of trace_cov']}; Holm: {p['trend of trace_cov']:.2g}",
            }
        },
        "lines": [
            *(
                f"{n}: tr V {f['trace_cov']}, tr H {f['hessian_trace']}, eigenvalue"
                f" {f['eigenvalue']}"
                for n, f in summary["final"].items()
            ),
            *(f"{words[name]}; Holm: {p[name]:.2g}" for name in tests),
        ],
    }


def figure(data: Mapping[str, Any]) -> Any:
    """The three quantities by condition."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 4.6), layout="constrained")
    rows: dict[str, list[Any]] = {}
    for run in data["results"]["runs"]:
        rows.setdefault(
            digits.label({**data["config"]["common"], **run["config"]}["of"]), []
        ).append(run)
    for axes, (name, title) in zip(
        drawn.subplots(3, 1, sharex=True), QUANTITIES.items(), strict=True
    ):
        digits.dots(
            axes,
            {
                digits.label(c): np.array([run[name] for run in rows[digits.label(c)]])
                for c in CONDITIONS
            },
            log=True,
        )
        axes.set_ylabel(title)
    return drawn


EXPERIMENT = Experiment(
    name="covariance_trace",
    title="Gradient variance and curvature at the end",
    shows="arXiv 2509.18001, table 6",
    runs=runs,
    execute=execute,
    needs=needs,
    summarise=summarise,
    figure=figure,
)
