"""Table 4: accuracy on true labels after training with wrong ones, 20, 40, 60 and 80 % of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import _digits as digits
from sdesam import plots, statistics
from sdesam.reproduce import Experiment
from sdesam.runs import Run

LEVELS = (0.2, 0.4, 0.6, 0.8)
CONDITIONS = (digits.SGD, *digits.M_SAM, digits.RW_SAM)
NAMES = tuple(map(digits.label, CONDITIONS))


def runs(preset: str, seeds: int | None = None, steps: int = digits.SETTING["steps"]) -> list[dict[str, Any]]:
    """All optimizers and shares of wrong labels for each seed."""
    count = seeds or {"quick": 10, "full": 50}[preset]
    return [digits.training(seed, condition, steps=steps, label_noise=level) for seed in range(count) for level in LEVELS for condition in CONDITIONS]


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """At each level the trend over m, and SAM and RW-SAM beside SGD; the verdict on L-Noise."""
    tables = {level: digits.Table([run for run in stored if run.config["label_noise"] == level]) for level in LEVELS}
    summary: dict[str, Any] = {"verdicts": {}, "lines": []}
    tests: dict[str, Any] = {}
    rw = digits.label(digits.RW_SAM)
    for level, table in tables.items():
        part = digits.summary_of(table, ("test_accuracy", "train_accuracy", "trace_cov"))
        summary[f"{level:.0%}"] = {name: part[name] for name in part if name not in ("verdicts", "lines")}
        if "final" not in part:
            return summary | {"lines": part["lines"]}
        tests[f"{level:.0%}: trend over m"] = digits.micro_trend(table, "test_accuracy", "rises")
        for first, second in (("m=64", "SGD"), ("m=1", "SGD"), (rw, "m=64")):
            found = statistics.paired(table.last(first, "test_accuracy"), table.last(second, "test_accuracy"))
            tests[f"{level:.0%}: {first} - {second}"] = found
        ends = ", ".join(f"{name} {100 * part['final'][name]['test_accuracy'].mean:.1f}" for name in NAMES)
        summary["lines"].append(f"{level:.0%} wrong labels: test accuracy (%) {ends}")
    p = digits.adjusted(tests)
    for name, test in tests.items():
        words = digits.reason if isinstance(test, statistics.Trend) else digits.difference
        summary["lines"].append(f"{words(test, f'{name}, accuracy (%)', 100)}; Holm: {p[name]:.2g}")  # type: ignore[arg-type]
    trends = {name: test for name, test in tests.items() if isinstance(test, statistics.Trend)}
    # every level must show it: Holm's correction is over all tests of this experiment
    states = [statistics.Trend(t.direction, t.statistic, p[name], t.p_reversed * len(p), t.ends).verdict() for name, t in trends.items()]
    status = "refuted" if "refuted" in states else "confirmed" if set(states) == {"confirmed"} else "inconclusive"
    reason = "accuracy rises as m falls: " + "; ".join(
        f"{name.split(':')[0]} {s} (Holm p = {p[name]:.2g})" for name, s in zip(trends, states, strict=True)
    )
    return summary | {"tests": tests, "p (Holm)": p, "verdicts": {"L-Noise": {"status": status, "reason": reason}}}


def figure(data: Mapping[str, Any]) -> Any:
    """Accuracy against the share of wrong labels, as the difference from SGD within seeds."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 3.1), layout="constrained")
    axes = drawn.subplots()
    common, runs = data["config"]["common"], data["results"]["runs"]
    found = {
        (digits.label({**common, **run["config"]}), {**common, **run["config"]}["label_noise"], {**common, **run["config"]}["seed"]): run
        for run in runs
    }
    seeds = sorted({where[2] for where in found})
    for k, name in enumerate(NAMES[1:]):
        gains = []
        for level in LEVELS:
            both = [(found.get((name, level, seed)), found.get(("SGD", level, seed))) for seed in seeds]
            gains.append(statistics.interval([100 * (a["test_accuracy"][-1] - b["test_accuracy"][-1]) for a, b in both if a and b]))
        colour, dash = digits.style(name, k)
        at = 100 * np.array(LEVELS) + 0.6 * (k - 2)
        bars = np.array([[g.mean - g.lower for g in gains], [g.upper - g.mean for g in gains]])
        axes.errorbar(at, [g.mean for g in gains], bars, color=colour, ls=dash, marker=plots.MARKERS[k], ms=3.5, capsize=2, label=digits.pretty(name))
    axes.axhline(0, color="0.45", lw=0.8, ls="--")
    axes.set_xticks([100 * level for level in LEVELS])
    axes.set_xlabel("wrong training labels (%)")
    axes.set_ylabel("test accuracy above SGD (points)")
    drawn.legend(fontsize=7, loc="outside upper center", ncols=3, columnspacing=1, title="bars: 95 % of the mean", title_fontsize=7)
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
