"""Table 4: accuracy on true labels after training with wrong ones, 20, 40, 60 and 80 % of them.

Claim L-Noise is about the first three shares. The full preset is ResNet-18 on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Run
from sdesam.verify import statistics

from . import _cifar10 as cifar
from . import _digits as digits

LEVELS = (0.2, 0.4, 0.6, 0.8)
CLAIMED = LEVELS[:3]
"""The shares that claim L-Noise is about: at 80 % m = 1 regularises too much at this rho."""
CONDITIONS = (digits.SGD, *digits.M_SAM, digits.RW_SAM)


def runs(
    preset: str, seeds: int = 10, steps: int = digits.SETTING["steps"]
) -> list[dict[str, Any]]:
    """All optimizers and shares of wrong labels for each seed."""
    return [
        digits.training(seed, condition, steps=steps, label_noise=level)
        for seed in range(seeds)
        for level in LEVELS
        for condition in CONDITIONS
    ]


def full_runs(
    preset: str,
    seeds: int = 3,
    epochs: int = 60,
    micro: tuple[int, ...] = (32, 16),
    train: int = 50_000,
    width: int = 64,
    rho: float = 0.1,
) -> list[dict[str, Any]]:
    """The same on the first `train` images of CIFAR-10."""
    return cifar.configurations(seeds, epochs, micro, train, width, rho, levels=LEVELS)


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """At each level the trend over m, and SAM and RW-SAM beside SGD; the verdict on L-Noise."""
    tables = {
        level: digits.Table([run for run in stored if run.config.get("label_noise") == level])
        for level in LEVELS
    }
    summary: dict[str, Any] = {"verdicts": {}, "lines": []}
    tests: dict[str, Any] = {}
    rw = digits.label(digits.RW_SAM)
    for level, table in tables.items():
        part = digits.summary_of(table, ("test_accuracy", "train_accuracy", "trace_cov"))
        summary[f"{level:.0%}"] = {
            name: part[name] for name in part if name not in ("verdicts", "lines")
        }
        if "final" not in part:
            return summary | {"lines": part["lines"]}
        tests[f"{level:.0%}: trend over m"] = digits.micro_trend(table, "test_accuracy", "rises")
        sam, least = f"m={table.micro[0]}", f"m={table.micro[-1]}"
        tests |= {
            f"{level:.0%}: {name}": found
            for name, found in digits.against(
                table, ((sam, "SGD"), (least, "SGD"), (rw, sam))
            ).items()
        }
        ends = ", ".join(
            f"{name} {100 * part['final'][name]['test_accuracy'].mean:.1f}" for name in table.names
        )
        summary["lines"].append(f"{level:.0%} wrong labels: test accuracy (%) {ends}")
    p = digits.adjusted(tests)
    for name, test in tests.items():
        what = f"{name}, accuracy (%)"
        trend = isinstance(test, statistics.Trend)
        words = (
            digits.reason(test, what, 100, tables[LEVELS[0]].micro)
            if trend
            else digits.difference(test, what, 100)
        )
        summary["lines"].append(f"{words}; Holm: {p[name]:.2g}")
    trends = {name: test for name, test in tests.items() if isinstance(test, statistics.Trend)}
    # every level of the claim must show it: Holm's correction is over all tests of this experiment
    states = {name: t.corrected(p[name], len(p)).verdict() for name, t in trends.items()}
    claimed = {states[f"{level:.0%}: trend over m"] for level in CLAIMED}
    status = (
        "refuted"
        if "refuted" in claimed
        else "confirmed"
        if claimed == {"confirmed"}
        else "inconclusive"
    )
    reason = "accuracy rises as m falls: " + "; ".join(
        f"{name.split(':')[0]} {state} (Holm p = {p[name]:.2g}, least step"
        f" {trends[name].least:+.1f} standard errors)"
        for name, state in states.items()
    )
    reason += f". The claim is about {', '.join(f'{level:.0%}' for level in CLAIMED)}"
    return summary | {
        "tests": tests,
        "p (Holm)": p,
        "verdicts": {"L-Noise": {"status": status, "reason": reason}},
    }


def figure(data: Mapping[str, Any]) -> Any:
    """Accuracy against the share of wrong labels, as the difference from SGD within seeds."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 3.1), layout="constrained")
    axes = drawn.subplots()
    common = data["config"]["common"]
    found = {}
    for name, many in digits.by_condition(data).items():
        for run in many:
            config = {**common, **run["config"]}
            found[name, config["label_noise"], config["seed"]] = run
    names = list(dict.fromkeys(where[0] for where in found))
    seeds = sorted({where[2] for where in found})
    for k, name in enumerate(names[1:]):
        gains = []
        for level in LEVELS:
            both = [
                (found.get((name, level, seed)), found.get(("SGD", level, seed))) for seed in seeds
            ]
            gains.append(
                statistics.interval(
                    [
                        100 * (a["test_accuracy"][-1] - b["test_accuracy"][-1])
                        for a, b in both
                        if a and b
                    ]
                )
            )
        colour, dash = digits.style(name, k, names)
        at = 100 * np.array(LEVELS) + 0.6 * (k - 2)
        bars = np.array([[g.mean - g.lower for g in gains], [g.upper - g.mean for g in gains]])
        axes.errorbar(
            at,
            [g.mean for g in gains],
            bars,
            color=colour,
            ls=dash,
            marker=plots.MARKERS[k],
            ms=3.5,
            capsize=2,
            label=digits.pretty(name, digits.batch_of(data)),
        )
    axes.axhline(0, color="0.45", lw=0.8, ls="--")
    axes.set_xticks([100 * level for level in LEVELS])
    axes.set_xlabel("wrong training labels (%)")
    axes.set_ylabel("test accuracy above SGD (points)")
    drawn.legend(
        fontsize=7,
        loc="outside upper center",
        ncols=3,
        columnspacing=1,
        title="bars: 95 % interval of the mean",
        title_fontsize=7,
    )
    return drawn


EXPERIMENT = Experiment(
    name="label_noise",
    title="Wrong labels",
    shows="arXiv 2509.18001, table 4",
    runs=runs,
    execute=digits.execute,
    summarise=summarise,
    figure=figure,
    epoch_seconds=digits.epoch_seconds,
)
EXPERIMENT = cifar.with_full(EXPERIMENT, full_runs)
