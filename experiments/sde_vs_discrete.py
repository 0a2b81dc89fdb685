"""Section 3: loss, gradient norm and tr V over time: the optimizer, its SDE, and the SDE without
the term that tells them apart.

SGD, the USAM family and the SAM family on digits, from one start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import sdesam
from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Numbers, Run

SETTING = {"train": 256, "width": 16, "batch": 16, "lr": 0.1, "steps": 60, "judged": "trace_cov"}
FAMILIES = {
    "SGD": ({"variant": "sgd"},),
    "USAM": ({"variant": "n-usam"}, *({"variant": "m-usam", "micro": m} for m in (16, 4, 1))),
    "SAM": ({"variant": "n-sam"}, *({"variant": "m-sam", "micro": m} for m in (16, 4, 1))),
}
OBSERVED = ("loss", "grad_norm2", "trace_cov")


def runs(preset: str, seeds: int | None = None) -> list[dict[str, Any]]:
    """One comparison for each optimizer; `seeds` is how many runs it rests on."""
    count = seeds or {"quick": 96, "full": 256}[preset]
    conditions = [condition for family in FAMILIES.values() for condition in family]
    return [
        {
            "run": "digits comparison",
            **SETTING,
            **c,
            **({} if c["variant"] == "sgd" else {"rho": 0.1}),
            "runs": count,
            "seed": 0,
        }
        for c in conditions
    ]


def execute(config: Mapping[str, Any], needed: Sequence[Run], device: Any) -> Numbers:
    """The optimizer, its SDE, and the SDE without one term; on all devices."""
    problem = sdesam.problems.digits(config["train"], config["width"])
    micro = [config["micro"]] if "micro" in config else []
    found = sdesam.compare(
        config["variant"],
        problem,
        lr=config["lr"],
        rho=config.get("rho"),
        batch=config["batch"],
        micro=micro,
        steps=config["steps"],
        runs=config["runs"],
        observe=OBSERVED,
        judged=config["judged"],
        seed=config["seed"],
        progress=False,
    )
    results = found.to_json()["results"]
    row = results["rows"][0]
    values = {name: row[name] for name in ("status", "reason", "shares")} | {
        "term": results["term"]
    }
    values["diverged"] = bool(
        any(row[which]["diverged"]["paths"] for which in ("chain", "sde", "without"))
    )
    series = {
        which: {what: row[which][what] for what in ("mean", "stderr")}
        for which in ("chain", "sde", "without")
    }
    return Numbers({**values, "series": series, "time": row["time"]})


def name(config: Mapping[str, Any]) -> str:
    """How figures call it."""
    variant = {
        "sgd": "SGD",
        "n-usam": "n-USAM",
        "m-usam": "m-USAM",
        "n-sam": "n-SAM",
        "m-sam": "m-SAM",
    }[config["variant"]]
    return f"{variant}, $m={config['micro']}$" if "micro" in config else variant


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """The share of the term's effect on tr V that each SDE explains."""
    lines, shares = [], {}
    for run in stored:
        v = run.numbers.values
        called = name(run.config).replace("$", "")
        shares[called] = {"status": v["status"], "without": v["term"], **v["shares"]}
        lines.append(f"{called}, without {v['term']!r}: {v['status']} - {v['reason']}")
    states = [run.numbers.values["status"] for run in stored]
    worse = next(
        (state for state in ("refuted", "outside the range") if state in states), "inconclusive"
    )
    status = "confirmed" if set(states) == {"confirmed"} else worse
    counts = ", ".join(
        f"{states.count(s)} {s}"
        for s in dict.fromkeys(("confirmed", "refuted", "inconclusive", *states))
    )
    return {
        "shares": shares,
        "lines": lines,
        "verdicts": {"the SDE follows the optimizer in tr V": {"status": status, "reason": counts}},
    }


def figure(data: Mapping[str, Any]) -> Any:
    """Observables over time by family: marks for the optimizer, solid lines for the SDE, dashed
    ones without the term.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = Figure(figsize=(2 * plots.COLUMN, 5), layout="constrained")
    panels = drawn.subplots(3, 3, sharex=True, sharey="col")
    common = data["config"]["common"]
    found = {name({**common, **run["config"]}): run for run in data["results"]["runs"]}
    for place, (family, conditions) in enumerate(FAMILIES.items()):
        row = panels[place]
        for axes, observable in zip(row, OBSERVED, strict=True):
            for k, condition in enumerate(conditions):
                run = found.get(name(condition))
                if run is None:
                    continue
                colour = plots.COLOURS[k]
                time = np.array(run["time"])
                mean, error = (
                    np.array(run["series"]["chain"][what][observable], float)
                    for what in ("mean", "stderr")
                )
                look = {
                    "fmt": plots.MARKERS[k],
                    "ms": 3,
                    "mfc": "white",
                    "mew": 0.7,
                    "lw": 0.7,
                    "color": colour,
                    "zorder": 3,
                }
                axes.errorbar(time, mean, 2 * error, label=name(condition), **look)
                axes.plot(time, run["series"]["sde"]["mean"][observable], color=colour, lw=1)
                axes.plot(
                    time,
                    run["series"]["without"]["mean"][observable],
                    color=colour,
                    lw=1,
                    ls=(0, (3, 2)),
                )
            axes.margins(x=0.03)
            if place == 0:
                axes.set_title(plots.LABELS[observable], fontsize=8)
            if place == len(FAMILIES) - 1:
                axes.set_xlabel(r"time $t=k\eta$")
        row[0].set_ylabel(f"{family} family" if family != "SGD" else "SGD")
        terms = {found[name(c)]["term"] for c in conditions if name(c) in found}
        words = "dashed: without\n" + ",\n".join(map(plots.math, sorted(terms)))
        row[-1].legend(
            fontsize=6.5,
            title=words,
            title_fontsize=6.5,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
    handles: list[Any] = [
        Line2D(
            [],
            [],
            color="0.3",
            marker="o",
            ms=3,
            mfc="white",
            ls="",
            label=r"optimizer, bars: $\pm 2$ standard errors",
        ),
        Line2D([], [], color="0.3", lw=1, label="SDE"),
        Line2D([], [], color="0.3", lw=1, ls=(0, (3, 2)), label="SDE without the term"),
    ]
    drawn.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=7)
    return drawn


EXPERIMENT = Experiment(
    name="sde_vs_discrete",
    title="The SDE beside the optimizer over time",
    shows="arXiv 2509.18001, section 3",
    runs=runs,
    execute=execute,
    summarise=summarise,
    figure=figure,
    alone=True,
)
