"""Figures 1 and 2: from a bad minimum, which optimizers get away, and what happens to the gradient
variance on the way.

The bad minimum: the network is fitted without noise, by full-batch Adam, to labels of which nine in
ten are wrong (no information), and from there to the true labels, each to zero training error. The
paper's prediction: from there accuracy rises and tr V falls, the more the smaller m; n-SAM, which
perturbs along the gradient of the whole data set, does no better than SGD.

The full preset asks it of ResNet-18 on part of CIFAR-10: all of it takes long to be fitted to wrong
labels. There SGD without weight decay fits both times, images are never shifted, and n-SAM, with a
gradient over all images at each step, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Run

from . import _cifar10 as cifar
from . import _digits as digits

CONDITIONS = (digits.SGD, digits.N_SAM, *digits.M_SAM, digits.RW_SAM)


def runs(
    preset: str, seeds: int = 20, steps: int = digits.SETTING["steps"]
) -> list[dict[str, Any]]:
    """All optimizers from each seed's bad minimum."""
    return [
        digits.training(seed, condition, steps=steps, start="bad minimum")
        for seed in range(seeds)
        for condition in CONDITIONS
    ]


def full_runs(
    preset: str,
    seeds: int = 3,
    epochs: int = 60,
    micro: tuple[int, ...] = (32, 16),
    train: int = 10_000,
    width: int = 64,
    rho: float = 0.1,
) -> list[dict[str, Any]]:
    """The same on the first `train` images of CIFAR-10; `epochs` at most for each of the two fits,
    too.
    """
    return cifar.configurations(
        seeds, epochs, micro, train, width, rho, lr=0.01, augment=False, start="bad minimum"
    )


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """Trends over m, n-SAM beside SGD, and the verdict on L-Esc; that on L-TrV is in
    `covariance_trace`.
    """
    table = digits.Table(stored)
    summary = digits.summary_of(table)
    if "final" not in summary:
        return summary
    rw, sam, least = digits.label(digits.RW_SAM), f"m={table.micro[0]}", f"m={table.micro[-1]}"
    accuracy, variance = (
        digits.micro_trend(table, "test_accuracy", "rises"),
        digits.micro_trend(table, "trace_cov", "falls"),
    )
    pairs = digits.against(table, (("n-SAM", "SGD"), ("n-SAM", sam), (least, "SGD"), (rw, sam)))
    tests = {"trend of accuracy": accuracy, "trend of tr V": variance, **pairs}
    p = digits.adjusted(tests)
    return summary | {
        "tests": tests,
        "p (Holm)": p,
        "verdicts": {
            "L-Esc": {
                "status": accuracy.corrected(p["trend of accuracy"], len(p)).verdict(),
                "reason": (
                    f"{digits.reason(accuracy, 'test accuracy (%)', 100, table.micro)}; Holm over"
                    f" {len(p)} tests: {p['trend of accuracy']:.2g}"
                ),
            },
        },
        "lines": [
            *(
                f"{n}: test accuracy {100 * f['test_accuracy'].mean:.2f} %, tr V {f['trace_cov']}"
                for n, f in summary["final"].items()
            ),
            f"{digits.reason(variance, 'tr V', 1, table.micro)}; Holm: {p['trend of tr V']:.2g}",
            *(
                f"{digits.difference(pair, f'{name}, accuracy (%)', 100)}; Holm: {p[name]:.2g}"
                for name, pair in pairs.items()
            ),
        ],
    }


def figure(data: Mapping[str, Any]) -> Any:
    """Gain in test accuracy, and tr V, against steps."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 3.9), layout="constrained")
    left, right = drawn.subplots(2, 1, sharex=True)
    names = list(digits.by_condition(data))
    digits.curves(left, data, "test_accuracy", names, 100, gain=True)
    left.set_ylabel("gain in accuracy (points)")
    digits.curves(right, data, "trace_cov", names, log=True)
    right.set_ylabel(plots.LABELS["trace_cov"])
    right.set_xlabel("steps from the bad minimum")
    handles, labels = left.get_legend_handles_labels()
    drawn.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=3,
        fontsize=7,
        columnspacing=1,
        title="bands: 95 % interval of the mean",
        title_fontsize=7,
    )
    return drawn


EXPERIMENT = Experiment(
    name="escape",
    title="Escape from a bad minimum",
    shows="arXiv 2509.18001, figures 1 and 2",
    runs=runs,
    execute=digits.execute,
    needs=digits.starts,
    summarise=summarise,
    figure=figure,
    epoch_seconds=digits.epoch_seconds,
)
EXPERIMENT = cifar.with_full(EXPERIMENT, full_runs)
