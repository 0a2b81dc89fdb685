"""Section 3: the weak order of the SDE, term by term, without sampling: the signature of m-USAM and
of smoothed m-SAM on a torus.

Along rho = c eta^(2/3) the full SDE must differ from the optimizer like eta^2, and leaving one term
out must change expectations at that term's own power.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import sdesam
from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Numbers, Run

CONDITIONS = ({"variant": "m-usam", "eps": 0.0}, {"variant": "m-sam", "eps": 0.2})
TITLES = {"m-usam": "m-USAM", "m-sam": r"m-SAM, $\epsilon=0.2$"}


def runs(preset: str, seeds: int | None = None) -> list[dict[str, Any]]:
    """Exact, so one random problem each will do; more problems are repetitions."""
    count = seeds or {"quick": 1, "full": 3}[preset]
    return [
        {"run": "signature", **c, "order": [2, 3], "batch": 2, "micro": 1, "dim": 2, "seed": seed}
        for seed in range(count)
        for c in CONDITIONS
    ]


def execute(config: Mapping[str, Any], needed: Sequence[Run], device: Any) -> Numbers:
    """The signature of one equation on one problem."""
    with jax.default_device(device):
        equation = sdesam.derive(config["variant"], tuple(config["order"]))
        problem = sdesam.problems.torus(config["dim"], seed=config["seed"])
        found = sdesam.signature(
            equation, problem, batch=config["batch"], micro=config["micro"], eps=config["eps"]
        )
    return Numbers(found.to_json())


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """Measured and predicted exponents; confirmed if every signature is."""
    states, lines, table = [], [], {}
    for run in stored:
        results = run.numbers.values["results"]
        states.append(results["verdict"])
        name = f"{run.config['variant']}, problem {run.config['seed']}"
        curves = {
            "full error": results["full"],
            **{term: found["change"] for term, found in results["terms"].items()},
        }
        table[name] = {
            term: [c["slope"], c["predicted"]] for term, c in curves.items() if not c["vanishes"]
        }
        words = ", ".join(
            f"{term} {slope:.2f} ({predicted:.2f})"
            for term, (slope, predicted) in table[name].items()
        )
        lines.append(f"{name}: {results['verdict']}; measured (predicted) exponents: {words}")
    status = (
        "confirmed"
        if set(states) == {"confirmed"}
        else "refuted"
        if "refuted" in states
        else "inconclusive"
    )
    verdict = {
        "status": status,
        "reason": f"{states.count('confirmed')} of {len(states)} signatures confirmed",
    }
    return {"exponents": table, "lines": lines, "verdicts": {"weak order (2,3)": verdict}}


def figure(data: Mapping[str, Any]) -> Any:
    """Size of each term's effect against the learning rate, the first problem of each variant."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 5.6), layout="constrained")
    for axes, condition in zip(drawn.subplots(2, 1), CONDITIONS, strict=True):
        mine = [
            run
            for run in data["results"]["runs"]
            if {**data["config"]["common"], **run["config"]}["variant"] == condition["variant"]
        ]
        if not mine:
            continue
        results = mine[0]["results"]
        curves = {"full error": results["full"]}
        curves |= {
            name: found["change"]
            for name, found in results["terms"].items()
            if "variance" not in name
        }
        for k, (name, curve) in enumerate((n, c) for n, c in curves.items() if not c["vanishes"]):
            rates, values = np.array(curve["rates"]), np.array(curve["values"])
            look = {
                "color": "black" if name == "full error" else plots.COLOURS[(k - 1) % 6],
                "marker": plots.MARKERS[k % 6],
                "ms": 3.5,
            }
            dash = ("-", "--", "-.", ":")[k % 4]
            axes.plot(rates, values, ls="", zorder=3, **look)
            axes.plot(
                rates,
                values[-1] * (rates / rates[-1]) ** curve["predicted"],
                color=look["color"],
                ls=dash,
                lw=0.9,
            )
            axes.plot(
                [],
                [],
                ls=dash,
                lw=0.9,
                label=f"{plots.math(name)}: {curve['slope']:.2f} ({curve['predicted']:.2f})",
                **look,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(rates, [f"1/{1 / rate:.0f}" for rate in rates])
        axes.minorticks_off()
        axes.set_ylabel("change when left out (sup norm)")
        axes.set_title(TITLES[condition["variant"]], fontsize=8)
        axes.legend(
            title="term: exponent\n(predicted)",
            title_fontsize=7,
            fontsize=7,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
    axes.set_xlabel(r"learning rate $\eta$,  $\rho\propto\eta^{2/3}$")
    return drawn


EXPERIMENT = Experiment(
    name="weak_order",
    title="Weak order, term by term",
    shows="arXiv 2509.18001, section 3",
    runs=runs,
    execute=execute,
    summarise=summarise,
    figure=figure,
)
