"""Tables 3 and 5: RW-SAM's inverse temperature lambda: accuracy, gradient variance, and the m of
the m-SAM that it acts like.

The effective micro-batch of this figure is that of the END of training: the m, interpolated in log
m, whose m-SAM ends with the same tr V from the same start. What a step of RW-SAM costs is measured
by `m_sharpness`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Run
from sdesam.verify import statistics

from . import _digits as digits

LAMBDAS = (1.0, 10.0, 100.0, 1000.0)
STARTS = {"random": "from scratch", "bad minimum": "from the bad minimum"}
SHARE = "share of SAM's fall of log tr V"
CONDITIONS = (digits.SGD, *digits.M_SAM, *({"variant": "rw-sam", "lam": lam} for lam in LAMBDAS))


def runs(
    preset: str, seeds: int | None = None, steps: int = digits.SETTING["steps"]
) -> list[dict[str, Any]]:
    """Each lambda, and m-SAM to measure it by, from both starts."""
    count = seeds or {"quick": 20, "full": 50}[preset]
    return [
        digits.training(seed, condition, steps=steps, start=start)
        for seed in range(count)
        for start in STARTS
        for condition in CONDITIONS
    ]


def effective_micro(value: float, curve: Sequence[float]) -> float:
    """The m whose m-SAM has this tr V, by interpolation of log tr V in log m; beyond the ends, the
    end.

    Args:
        value: tr V of RW-SAM.
        curve: tr V of m-SAM at `digits.MICRO`.
    """
    at, logs = np.log(np.array(digits.MICRO, float)), np.log(np.asarray(curve))
    order = np.argsort(logs, kind="stable")
    return float(np.exp(np.interp(np.log(value), logs[order], at[order])))


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """RW-SAM beside SAM for each lambda and start, and the effective m."""
    summary: dict[str, Any] = {"verdicts": {}, "lines": []}
    tests: dict[str, Any] = {}
    for start, words in STARTS.items():
        table = digits.Table([run for run in stored if run.config.get("start") == start])
        part = digits.summary_of(table)
        summary[words] = part
        if "final" not in part:
            return summary | {"lines": part["lines"]}
        ladder = table.columns([f"m={m}" for m in digits.MICRO], "trace_cov")
        part["effective m"] = {}
        for lam in LAMBDAS:
            name = digits.label({"variant": "rw-sam", "lam": lam})
            tests[f"{words}, {name} - SAM"] = statistics.paired(
                table.last(name, "test_accuracy"), table.last("m=64", "test_accuracy")
            )
            logs = [
                np.log(effective_micro(v, row))
                for v, row in zip(table.last(name, "trace_cov"), ladder, strict=True)
            ]
            middle = statistics.interval(logs)
            part["effective m"][name] = {
                end: float(np.exp(getattr(middle, end))) for end in ("mean", "lower", "upper")
            }
            part["effective m"][name]["seeds at 64 or above"] = int(
                np.sum(np.array(logs) > np.log(64) - 1e-9)
            )
            sgd, sam, own = (np.log(table.last(n, "trace_cov")) for n in ("SGD", "m=64", name))
            part["effective m"][name][SHARE] = statistics.interval((sgd - own) / (sgd - sam))
    p = digits.adjusted(tests)
    for name, test in tests.items():
        summary["lines"].append(
            f"{digits.difference(test, f'{name}, accuracy (%)', 100)}; Holm: {p[name]:.2g}"
        )
    for words in STARTS.values():
        for name, m in summary[words]["effective m"].items():
            summary["lines"].append(
                f"{words}, {name}: effective m {m['mean']:.3g} [{m['lower']:.3g},"
                f" {m['upper']:.3g}], {m['seeds at 64 or above']} of {summary[words]['seeds']}"
                f" seeds at the batch (64) or above; its fall of log tr V from SGD's is {m[SHARE]}"
                " of SAM's"
            )
    return summary | {"tests": tests, "p (Holm)": p}


def figure(data: Mapping[str, Any]) -> Any:
    """Accuracy above SAM and the ratio of tr V to SAM's against lambda, with m-SAM at the side."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 3.9), layout="constrained")
    panels = drawn.subplots(2, 1, sharex=True)
    common = data["config"]["common"]
    found: dict[Any, Any] = {}
    for run in data["results"]["runs"]:
        config = {**common, **run["config"]}
        found[config["start"], digits.label(config), config["seed"]] = run
    seeds = sorted({where[2] for where in found})
    names = [digits.label(c) for c in CONDITIONS if c != digits.M_SAM[0]]
    for s, (start, words) in enumerate(STARTS.items()):
        for axes, observable, log in zip(
            panels, ("test_accuracy", "trace_cov"), (False, True), strict=True
        ):
            for k, name in enumerate(names):
                both = [
                    (found.get((start, name, seed)), found.get((start, "m=64", seed)))
                    for seed in seeds
                ]
                pairs = np.array(
                    [(a[observable][-1], b[observable][-1]) for a, b in both if a and b]
                )
                mean, low, high = digits.ends(
                    pairs[:, 0] / pairs[:, 1] if log else 100 * (pairs[:, 0] - pairs[:, 1]), log
                )
                axes.errorbar(
                    [k + 0.16 * (2 * s - 1)],
                    [mean],
                    [[mean - low], [high - mean]],
                    fmt=plots.MARKERS[s],
                    color=plots.COLOURS[s],
                    ms=4,
                    mfc="white",
                    capsize=2,
                    label=words if k == 0 and not log else None,
                )
    for axes, at in zip(panels, (0, 1), strict=True):
        axes.axhline(at, color="0.45", lw=0.8, ls="--")
        axes.axvline(3.5, color="0.8", lw=0.8)
    panels[0].set_ylabel("test accuracy\nabove SAM (points)")
    panels[1].set_ylabel(r"$\mathrm{tr}\,V$ / that of SAM")
    digits.plain_log(panels[1])
    digits.name_places(panels[1], names)
    drawn.legend(
        fontsize=7,
        loc="outside upper center",
        ncols=2,
        title="bars: 95 % interval of the mean",
        title_fontsize=7,
    )
    return drawn


EXPERIMENT = Experiment(
    name="rw_sam",
    title="RW-SAM's inverse temperature",
    shows="arXiv 2509.18001, tables 3 and 5",
    runs=runs,
    execute=digits.execute,
    needs=digits.starts,
    summarise=summarise,
    figure=figure,
    epoch_seconds=digits.epoch_seconds,
)
