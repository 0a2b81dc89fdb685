"""Tables 1 and 3: accuracy from scratch against m, with n-SAM and RW-SAM beside it, and what a step
costs.

The paper trains CIFAR-10 and -100; the quick preset asks the same of digits, the full one of
ResNet-18 on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import numpy as np

import sdesam
from sdesam._util.keys import seed_key
from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Numbers, Run
from sdesam.verify import statistics

from . import _cifar10 as cifar
from . import _digits as digits

CONDITIONS = (digits.SGD, digits.N_SAM, *digits.M_SAM, digits.RW_SAM)
COST = {
    "run": "digits cost of a step",
    "steps": 2000,
    "rounds": 7,
    "replace": True,
    "conditions": CONDITIONS,
    "seed": 0,
}


def runs(
    preset: str, seeds: int = 20, steps: int = digits.SETTING["steps"]
) -> list[dict[str, Any]]:
    """All optimizers from each seed's random start; once, the cost of a step."""
    return [
        COST,
        *(
            digits.training(seed, condition, steps=steps)
            for seed in range(seeds)
            for condition in CONDITIONS
        ),
    ]


def full_runs(
    preset: str,
    seeds: int = 3,
    epochs: int = 100,
    micro: tuple[int, ...] = (32, 16),
    train: int = 50_000,
    width: int = 64,
    rho: float = 0.1,
) -> list[dict[str, Any]]:
    """The same on the first `train` images of CIFAR-10."""
    return cifar.configurations(seeds, epochs, micro, train, width, rho)


def needs(config: digits.Config) -> list[digits.Config]:
    """The cost is measured before anything else, so that this process does nothing beside it."""
    return [] if config["run"] == COST["run"] else [COST]


def execute(config: digits.Config, needed: Sequence[Run], device: Any) -> Numbers:
    """Train, or measure what a step costs."""
    return (
        cost(config, device)
        if config["run"] == COST["run"]
        else digits.execute(config, needed, device)
    )


def cost(config: digits.Config, device: Any) -> Numbers:
    """Milliseconds per step of each optimizer, in turn, `rounds` times; compilation apart.

    With replacement: at this size a draw without, which sorts all indices, would take longer than a
    step of SGD.
    """
    chains = {
        digits.label(c): digits.chain(digits.training(0, c, replace=config["replace"]))
        for c in config["conditions"]
    }

    def seconds(chain: sdesam.Chain) -> float:
        begun = monotonic()
        sdesam.train(
            chain,
            seed_key(0),
            runs=1,
            steps=config["steps"],
            times=[0],
            devices=[device],
            progress=False,
        )
        return (monotonic() - begun) / config["steps"]

    for chain in chains.values():
        seconds(chain)
    rounds = [
        {name: seconds(chain) for name, chain in chains.items()} for _ in range(config["rounds"])
    ]
    return Numbers({"milliseconds": {name: [1e3 * one[name] for one in rounds] for name in chains}})


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """Trend over m, n-SAM and RW-SAM beside their neighbours, cost; the verdict on L-Gen."""
    table = digits.Table(stored)
    summary = digits.summary_of(table)
    milliseconds = {
        name: times
        for run in stored
        for name, times in run.numbers.values.get("milliseconds", {}).items()
    }
    costs = {
        name: statistics.interval(np.array(times) / np.array(milliseconds["SGD"]))
        for name, times in milliseconds.items()
    }
    summary |= {"cost": costs}
    if "final" not in summary:
        return summary
    rw, sam, least = digits.label(digits.RW_SAM), f"m={table.micro[0]}", f"m={table.micro[-1]}"
    accuracy = digits.micro_trend(table, "test_accuracy", "rises")
    pairs = digits.against(
        table, ((sam, "SGD"), ("n-SAM", "SGD"), ("n-SAM", sam), (least, "SGD"), (rw, sam))
    )
    tests = {"trend of accuracy": accuracy, **pairs}
    p = digits.adjusted(tests)
    return summary | {
        "tests": tests,
        "p (Holm)": p,
        "verdicts": {
            "L-Gen": {
                "status": accuracy.corrected(p["trend of accuracy"], len(p)).verdict(),
                "reason": (
                    f"{digits.reason(accuracy, 'test accuracy (%)', 100, table.micro)}; Holm over"
                    f" {len(p)} tests: {p['trend of accuracy']:.2g}"
                ),
            }
        },
        "lines": [
            *(
                f"{n}: test accuracy {100 * f['test_accuracy'].mean:.2f} %, a step costs {costs[n]}"
                " of SGD's"
                for n, f in summary["final"].items()
            ),
            *(
                f"{digits.difference(pair, f'{name}, accuracy (%)', 100)}; Holm: {p[name]:.2g}"
                for name, pair in pairs.items()
            ),
        ],
    }


def figure(data: Mapping[str, Any]) -> Any:
    """Accuracy at the end by condition, and the cost of a step."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 3.6), layout="constrained")
    upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rows, batch = digits.by_condition(data), digits.batch_of(data)
    digits.dots(
        upper,
        {name: np.array([run["test_accuracy"][-1] for run in many]) for name, many in rows.items()},
        100,
        batch=batch,
    )
    upper.set_ylabel("test accuracy (%)")
    costs = data["results"]["summary"].get("cost", {})
    for k, name in enumerate(rows):
        if name in costs:
            c = costs[name]
            colour, _ = digits.style(name, k, rows)
            lower.bar(
                k,
                c["mean"],
                color=colour,
                width=0.6,
                yerr=[[c["mean"] - c["lower"]], [c["upper"] - c["mean"]]],
                capsize=2,
            )
    digits.name_places(lower, rows, batch)
    lower.set_ylabel("time of a step\n(SGD = 1)")
    upper.set_title("dots: seeds; bars: 95 % interval of the mean", fontsize=7)
    return drawn


EXPERIMENT = Experiment(
    name="m_sharpness",
    title="Accuracy from scratch against m",
    shows="arXiv 2509.18001, tables 1 and 3",
    runs=runs,
    execute=execute,
    needs=needs,
    summarise=summarise,
    figure=figure,
    epoch_seconds=digits.epoch_seconds,
)
EXPERIMENT = cifar.with_full(EXPERIMENT, full_runs)
