"""What the experiments on digits share: chains trained from one start, tables of their ends by
seed, curves with bands.

Tables, tests and curves serve the full presets (`_cifar10`) too, where the sizes of micro-batches
are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

import jax
import numpy as np

import sdesam
from sdesam._util.keys import seed_key
from sdesam.lab import plots
from sdesam.lab.runs import Numbers, Run
from sdesam.verify import statistics

SETTING = {
    "train": 1000,
    "width": 64,
    "batch": 64,
    "lr": 0.1,
    "rho": 0.1,
    "steps": 3000,
    "replace": False,
    "observations": 16,
}
MICRO = (64, 16, 4, 1)
OBSERVED = ("loss", "train_accuracy", "test_accuracy", "trace_cov")

Config = Mapping[str, Any]

SGD = {"variant": "sgd"}
N_SAM = {"variant": "n-sam"}
M_SAM = tuple({"variant": "m-sam", "micro": m} for m in MICRO)
BAD = {
    "run": "digits bad minimum",
    "train": 1000,
    "width": 64,
    "label_noise": 0.9,
    "adam": 3e-3,
    "most_steps": 20_000,
}
LAM = 2.0
RW_SAM = {"variant": "rw-sam", "lam": LAM}


def label(config: Config) -> str:
    """The name of a condition as figures print it; `m = b` is SAM."""
    if config["variant"] == "m-sam":
        return f"m={config['micro']}"
    if config["variant"] == "rw-sam":
        return f"RW-SAM λ={config['lam']:g}"
    named = {"n-sam": "n-SAM", "fresh-sam": "fresh-SAM"}
    return named.get(config["variant"], str(config["variant"]).upper())


def training(seed: int, condition: Config, **changes: Any) -> dict[str, Any]:
    """The configuration of one training run; equal ones are shared between experiments."""
    config = {
        "run": "digits training",
        **SETTING,
        "label_noise": 0.0,
        "start": "random",
        **condition,
        **changes,
        "seed": seed,
    }
    if config["variant"] == "sgd":
        del config["rho"]
    return config


def problem(config: Config, start: Any = None) -> sdesam.FiniteSum:
    """The problem of a configuration."""
    return sdesam.problems.digits(
        config["train"], config["width"], config["seed"], config["label_noise"], start=start
    )


def chain(config: Config, start: Any = None) -> sdesam.Chain:
    """The optimizer of a configuration."""
    variant, names = config["variant"], ("lr", "rho", "batch", "micro", "lam", "replace", "sigma")
    return sdesam.Chain(
        variant, problem(config, start), **{name: config[name] for name in names if name in config}
    )


def train(config: Config, start: Any, device: Any) -> Numbers:
    """One run: curves of the observables, and the last parameters."""
    optimizer = chain(config, start)
    steps = config["steps"]
    times = np.unique(np.linspace(0, steps, config["observations"]).round()) * optimizer.lr
    out = sdesam.train(
        optimizer,
        seed_key(config["seed"]),
        runs=1,
        steps=steps,
        times=times,
        observe=OBSERVED,
        keep="values",
        devices=[device],
        progress=False,
    )
    assert out.values is not None
    curves = {name: out.values[name][0].astype(np.float64) for name in OBSERVED}
    return Numbers(
        {"diverged": bool(out.diverged)},
        {"step": np.round(out.time / optimizer.lr), **curves, **pack(out.final)},
    )


def starts(config: Config) -> list[Config]:
    """The run that gives a training run its start: the bad minimum of its seed, or none."""
    return [{**BAD, "seed": config["seed"]}] if config.get("start") == "bad minimum" else []


def bad_minimum(config: Config, device: Any) -> Numbers:
    """Fit wrong labels, then the true ones, each to zero training error."""
    with jax.default_device(device):
        x, steps = sdesam.problems.bad_minimum(
            config["train"],
            config["width"],
            config["seed"],
            config["label_noise"],
            config["adam"],
            config["most_steps"],
        )
    return Numbers(steps, {f"params.{name}": np.asarray(leaf) for name, leaf in x.items()})


def execute(config: Config, needed: Sequence[Run], device: Any) -> Numbers:
    """A bad minimum, or a training run."""
    if config["run"] == BAD["run"]:
        return bad_minimum(config, device)
    return train(config, unpack(needed[0]) if starts(config) else None, device)


def pack(final: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters of the only run, under names that stay in the store."""
    return {f"params.{name}": np.asarray(leaf[0]) for name, leaf in final.items()}


def unpack(run: Run) -> dict[str, np.ndarray]:
    """The last parameters of a run."""
    return {
        name.removeprefix("params."): array
        for name, array in run.numbers.arrays.items()
        if name.startswith("params.")
    }


def epoch_seconds(config: Config, device: Any) -> float:
    """The time that one epoch takes, compilation apart; 0 for a run without epochs."""
    if "variant" not in config:
        return 0.0
    optimizer = chain(config)
    times = []
    for seed in range(2):
        begun = monotonic()
        steps = -(-config["train"] // config["batch"])
        sdesam.train(
            optimizer, seed_key(seed), runs=1, steps=steps, devices=[device], progress=False
        )
        times.append(monotonic() - begun)
    return times[-1]


def micro_sizes(names: Iterable[str]) -> list[int]:
    """The sizes of the micro-batches among conditions, from the mini-batch (SAM) down."""
    return sorted(
        (int(name.removeprefix("m=")) for name in names if name.startswith("m=")), reverse=True
    )


class Table:
    """The training runs by condition and seed; seeds that lack a condition, or diverged in one, are
    left out of all and counted.
    """

    def __init__(self, runs: Sequence[Run]):
        self.by_condition: dict[str, dict[int, Run]] = {}
        self.diverged: dict[str, int] = {}
        for run in runs:
            if "variant" not in run.config:
                continue
            name = label(run.config)
            found = self.by_condition.setdefault(name, {})
            if run.numbers.values.get("diverged"):
                self.diverged[name] = self.diverged.get(name, 0) + 1
            else:
                found[run.config["seed"]] = run
        self.names = list(self.by_condition)
        self.micro = micro_sizes(self.names)
        self.seeds = sorted(set.intersection(*(set(found) for found in self.by_condition.values())))

    def last(self, name: str, observable: str) -> np.ndarray:
        """The last values of an observable, by seed."""
        return np.array(
            [self.by_condition[name][seed].numbers.arrays[observable][-1] for seed in self.seeds]
        )

    def seconds(self, name: str) -> float:
        """The median time of a run."""
        return float(np.median([run.seconds for run in self.by_condition[name].values()]))

    def columns(self, names: Sequence[str], observable: str) -> np.ndarray:
        """Last values, shape `(seeds, conditions)`."""
        return np.stack([self.last(name, observable) for name in names], axis=1)


def summary_of(
    table: Table, observables: Sequence[str] = ("test_accuracy", "trace_cov")
) -> dict[str, Any]:
    """What every summary begins with: how many whole seeds there are, and the last values of each
    condition.
    """
    summary: dict[str, Any] = {
        "seeds": len(table.seeds),
        "diverged": table.diverged,
        "verdicts": {},
        "lines": [],
    }
    if len(table.seeds) < 2:
        summary["lines"] = ["too few whole seeds for statistics"]
    else:
        summary["final"] = {
            name: {o: statistics.interval(table.last(name, o)) for o in observables}
            for name in table.names
        }
    return summary


def adjusted(tests: Mapping[str, statistics.Trend | statistics.Paired]) -> dict[str, float]:
    """Holm's p-values of all tests of an experiment."""
    return dict(zip(tests, statistics.holm([test.p for test in tests.values()]), strict=True))


def micro_trend(table: Table, observable: str, direction: statistics.Direction) -> statistics.Trend:
    """Page's test from the largest m to the smallest, paired by seed."""
    return statistics.trend(table.columns([f"m={m}" for m in table.micro], observable), direction)


def against(table: Table, pairs: Iterable[tuple[str, str]]) -> dict[str, statistics.Paired]:
    """Differences in test accuracy of those pairs of conditions that are there."""
    return {
        f"{a} - {b}": statistics.paired(
            table.last(a, "test_accuracy"), table.last(b, "test_accuracy")
        )
        for a, b in pairs
        if a in table.names and b in table.names
    }


def reason(
    found: statistics.Trend, what: str, unit: float = 1.0, micro: Sequence[int] = MICRO
) -> str:
    """A trend in words."""
    ends = found.ends
    return (
        f"{what} {found.direction} from m = {micro[0]} to {micro[-1]}: Page's L ="
        f" {found.statistic:g}, p = {found.p:.2g} (reversed order {found.p_reversed:.2g}), least"
        f" step {found.least:+.1f} standard errors, change {unit * ends.mean:+.3g}"
        f" [{unit * ends.lower:.3g}, {unit * ends.upper:.3g}], {ends.count} seeds"
    )


def difference(found: statistics.Paired, what: str, unit: float = 1.0) -> str:
    """A paired difference in words."""
    d = found.difference
    return (
        f"{what}: {unit * d.mean:+.2f} [{unit * d.lower:.2f}, {unit * d.upper:.2f}], paired"
        f" sign-flip test p = {found.p:.2g}, {d.count} seeds"
    )


def by_condition(data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The collected training runs of each condition that did not diverge."""
    rows: dict[str, list[Any]] = {}
    for run in data["results"]["runs"]:
        config = {**data["config"]["common"], **run["config"]}
        if "variant" in config and not run.get("diverged"):
            rows.setdefault(label(config), []).append(run)
    return rows


def batch_of(data: Mapping[str, Any]) -> int:
    """The mini-batch of collected training runs."""
    configs = ({**data["config"]["common"], **run["config"]} for run in data["results"]["runs"])
    return next(int(config["batch"]) for config in configs if "variant" in config)


def curves(
    axes: Any,
    data: Mapping[str, Any],
    observable: str,
    names: Sequence[str],
    unit: float = 1.0,
    gain: bool = False,
    log: bool = False,
) -> None:
    """Mean over seeds against steps, with the 95 % interval of the mean as a band.

    Args:
        axes: where to draw.
        data: the collected data.
        observable: what.
        names: the conditions.
        unit: factor.
        gain: draw the difference from the first value of the same seed; else the spread of the
            starts hides that of the optimizers.
        log: draw the geometric mean, on a logarithmic axis.
    """
    rows = by_condition(data)
    for k, name in enumerate(names):
        if name not in rows:
            continue
        values = unit * np.array([run[observable] for run in rows[name]])
        if gain:
            values -= values[:, :1]
        parts = statistics.band(np.log(values) if log else values)
        mean, lower, upper = (np.exp(part) if log else part for part in parts)
        colour, dash = style(name, k, names)
        axes.plot(
            rows[name][0]["step"], mean, color=colour, ls=dash, label=pretty(name, batch_of(data))
        )
        axes.fill_between(rows[name][0]["step"], lower, upper, color=colour, alpha=0.2, lw=0)
    axes.margins(x=0)
    if log:
        axes.set_yscale("log")


def style(name: str, k: int, names: Iterable[str]) -> tuple[str, Any]:
    """Colour and dash of a condition, the same in every figure; among `names`, m runs from light to
    dark.
    """
    # one hue: m is an ordered quantity
    ramp, micro = (
        ("#9ECAE1", "#56A0D3", "#0072B2", "#08306B"),
        micro_sizes(names),
    )
    if name.startswith("m="):
        return (
            ramp[
                round(
                    micro.index(int(name.removeprefix("m=")))
                    * (len(ramp) - 1)
                    / max(len(micro) - 1, 1)
                )
            ],
            "-",
        )
    if name.startswith("RW"):
        return "#009E73", (0, (1, 1))
    return {"SGD": ("0.45", "--"), "n-SAM": ("#D55E00", "-.")}.get(
        name, (plots.COLOURS[k % 6], "-")
    )


def pretty(name: str, batch: int = SETTING["batch"]) -> str:  # type: ignore[assignment]
    """A condition in mathematical type."""
    if name == f"m={batch}":
        return f"SAM ($m={batch}$)"
    return (
        f"${name}$"
        if name.startswith("m=")
        else name.replace("λ=", r"$\lambda=$").replace(" $", " $")
    )


def dots(
    axes: Any,
    values: Mapping[str, np.ndarray],
    unit: float = 1.0,
    log: bool = False,
    batch: int = SETTING["batch"],
) -> None:  # type: ignore[assignment]
    """One place per condition: every seed, the mean (`log`: the geometric one) and its 95 %
    interval.
    """
    for k, (name, many) in enumerate(values.items()):
        colour, _ = style(name, k, values)
        spread = np.linspace(-0.25, 0.25, len(many)) if len(many) > 1 else np.zeros(1)
        axes.plot(k + spread, unit * np.asarray(many), ".", ms=3, mew=0, color=colour, alpha=0.7)
        mean, lower, upper = ends(unit * np.asarray(many), log)
        axes.errorbar(
            [k],
            [mean],
            [[mean - lower], [upper - mean]],
            fmt="o",
            ms=4,
            color=colour,
            mfc="white",
            capsize=2.5,
            zorder=3,
        )
    name_places(axes, values, batch)
    if log:
        plain_log(axes)


def ends(values: Any, log: bool = False) -> tuple[float, float, float]:
    """Mean and interval; `log`: of the logarithm, taken back."""
    found = statistics.interval(np.log(values) if log else values)
    parts = found.mean, found.lower, found.upper
    return tuple(float(np.exp(part)) for part in parts) if log else parts  # type: ignore[return-value]


def name_places(axes: Any, names: Iterable[str], batch: int = SETTING["batch"]) -> None:  # type: ignore[assignment]
    """Conditions along the axis."""
    words = [pretty(name, batch) for name in names]
    axes.set_xticks(range(len(words)), words, rotation=40, ha="right", rotation_mode="anchor")
    axes.margins(x=0.06)


def plain_log(axes: Any) -> None:
    """A logarithmic axis over about a decade, with ordinary numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
