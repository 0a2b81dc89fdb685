"""Pictures from stored results: they read the JSON that a command wrote, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sdesam._util import store

# Okabe & Ito 2008: told apart with any colour vision, and in grey with the markers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LABELS = {
    "loss": r"loss $f$",
    "grad_norm2": r"$|\nabla f|^2$",
    "trace_cov": r"gradient variance $\mathrm{tr}\,V$",
    "test_accuracy": "test accuracy",
    "train_accuracy": "training accuracy",
}
COLUMN = 3.3
"""Width of a column of a paper, inches."""
_STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


def comparison(data: Mapping[str, Any], path: str | os.PathLike[str]) -> list[Path]:
    """Draw a comparison (the JSON of `sdesam compare`): observables over time, the optimizer beside
    its SDE with and without the term.

    Args:
        data: what :meth:`sdesam.Comparison.to_json` gives.
        path: where to write, without suffix; a PDF and a PNG are made.

    Returns:
        The files written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    results, config = data["results"], data["config"]
    names = list(results["rows"][0]["chain"]["mean"])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.4 * len(names), 2.9), layout="constrained")
        for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
            for k, row in enumerate(results["rows"]):
                colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
                time = np.array(row["time"])
                chain, error = (
                    np.array(row["chain"][what][name], float) for what in ("mean", "stderr")
                )
                axes.errorbar(
                    time,
                    chain,
                    2 * error,
                    fmt=marker,
                    color=colour,
                    ms=3,
                    lw=0.8,
                    mfc="white",
                    mew=0.8,
                    zorder=3,
                )
                for which, line in (("sde", "-"), ("without", (0, (4, 2)))):
                    mean, error = (
                        np.array(row[which][what][name], float) for what in ("mean", "stderr")
                    )
                    axes.plot(time, mean, color=colour, ls=line, zorder=2)
                    axes.fill_between(
                        time, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.2, lw=0
                    )
            axes.set_xlabel(r"time $t = k\eta$")
            axes.set_ylabel(LABELS.get(name, name))
            axes.margins(x=0.03)
        handles: list[Any] = [
            Line2D(
                [],
                [],
                color=COLOURS[k % 6],
                marker=MARKERS[k % 6],
                ms=3,
                mfc="white",
                ls="",
                label=f"$m={row['micro']}$",
            )
            for k, row in enumerate(results["rows"])
        ]
        handles += [
            Line2D([], [], color="0.3", marker="o", ms=3, mfc="white", ls="", label="optimizer"),
            Line2D([], [], color="0.3", label="SDE"),
            Line2D(
                [], [], color="0.3", ls=(0, (4, 2)), label=f"SDE without {math(results['term'])}"
            ),
            Patch(color="0.3", alpha=0.2, lw=0, label=r"$\pm 2$ standard errors"),
        ]
        lr, b, runs = config["lr"], config["batch"], config["runs"]
        rho = f", $\\rho={config['rho']:g}$" if config["rho"] else ""
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles),
            columnspacing=1.2,
            handletextpad=0.5,
            title=(
                f"{config['variant']} on {config['problem']}: $\\eta={lr:g}${rho}, $b={b}$, {runs}"
                " runs each"
            ),
            title_fontsize=8,
        )
        return _write(figure, path)


def path(data: Mapping[str, Any], target: str | os.PathLike[str]) -> list[Path]:
    """Draw `|SDE - optimizer|` against the learning rate, with and without a term, from comparisons
    along a path `rho(eta)`.

    Args:
        data: the JSON of `experiments/digits_m_usam.py`.
        target: where to write, without suffix; a PDF and a PNG are made.

    Returns:
        The files written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    comparisons = data["results"]["comparisons"]
    rates = np.array([c["config"]["lr"] for c in comparisons])
    rows = [c["results"]["rows"][0] for c in comparisons]
    names = [name for name in ("loss", "trace_cov") if name in rows[0]["chain"]["mean"]]
    term = math(comparisons[0]["results"]["term"])

    def last(row: Any, which: str, what: str, name: str) -> float:
        return float(row[which][what][name][-1])

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.8 * len(names), 2.7), layout="constrained")
        for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
            for k, (which, label, style) in enumerate(
                (("without", f"SDE without {term}", "--"), ("sde", "SDE", "-"))
            ):
                gap = np.array(
                    [
                        abs(last(r, which, "mean", name) - last(r, "chain", "mean", name))
                        for r in rows
                    ]
                )
                error = np.array(
                    [
                        np.hypot(last(r, which, "stderr", name), last(r, "chain", "stderr", name))
                        for r in rows
                    ]
                )
                # a bar that reaches zero is cut, because a logarithm has none
                low = np.minimum(2 * error, 0.9 * gap)
                axes.errorbar(
                    rates,
                    gap,
                    (low, 2 * error),
                    color=COLOURS[1 - k],
                    marker=MARKERS[k],
                    ms=4,
                    ls=style,
                    label=label,
                    capsize=2,
                )
                if which == "sde":
                    axes.plot(
                        rates,
                        gap[0] * (rates / rates[0]) ** 2,
                        color="0.5",
                        lw=0.8,
                        ls=":",
                        label="slope 2",
                    )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
            axes.minorticks_off()
            axes.set_xlabel(r"learning rate $\eta$,  $\rho=\eta^{2/3}$")
            axes.set_ylabel("|SDE - optimizer| at the end")
            axes.set_title(LABELS[name], fontsize=8)
            axes.legend(title=r"bars: $\pm 2$ standard errors", title_fontsize=7, fontsize=7)
        return _write(figure, target)


def signature(data: Mapping[str, Any], target: str | os.PathLike[str]) -> list[Path]:
    """Draw a signature (the JSON of `sdesam verify signature`): the size of every term's effect
    against the learning rate, log-log.

    Args:
        data: what :meth:`sdesam.verify.exact.Signature.to_json` gives.
        target: where to write, without suffix; a PDF and a PNG are made.

    Returns:
        The files written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    config, results = data["config"], data["results"]
    alpha, beta = config["order"]
    curves = {
        "full error": results["full"],
        **{name: t["change"] for name, t in results["terms"].items() if "variance" not in name},
    }
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.subplots()
        styles = ("-", "--", "-.", ":")
        for k, (name, curve) in enumerate((n, c) for n, c in curves.items() if not c["vanishes"]):
            rates, values = np.array(curve["rates"]), np.array(curve["values"])
            colour = "black" if name == "full error" else COLOURS[(k - 1) % len(COLOURS)]
            label = f"{math(name)}: {curve['slope']:.2f} ({curve['predicted']:.2f})"
            axes.plot(
                rates,
                values,
                color=colour,
                marker=MARKERS[k % len(MARKERS)],
                ms=3.5,
                ls="",
                zorder=3,
            )
            # The line is not fitted: it has the slope that theory says, and passes through the
            # smallest rate. Marks that leave it towards larger rates show higher powers.
            axes.plot(
                rates,
                values[-1] * (rates / rates[-1]) ** curve["predicted"],
                color=colour,
                ls=styles[k % 4],
                lw=0.9,
            )
            axes.plot(
                [],
                [],
                color=colour,
                marker=MARKERS[k % len(MARKERS)],
                ms=3.5,
                ls=styles[k % 4],
                lw=0.9,
                label=label,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(rates, [f"1/{1 / rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set_xlabel(rf"learning rate $\eta$,  $\rho={config['c']:g}\,\eta^{{{alpha}/{beta}}}$")
        axes.set_ylabel("change when left out (sup norm)")
        axes.legend(
            title="term: exponent (predicted)",
            title_fontsize=7,
            fontsize=7,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
        sampling = "with" if config["replace"] else "without"
        axes.set_title(
            f"{config['variant']} on {config['problem']}, order ({alpha},{beta}),"
            f" $m={config['micro']}$, {sampling} replacement\nmarks: measured; lines: predicted"
            " slope",
            fontsize=8,
        )
        return _write(figure, target)


def experiment(
    figure: Callable[[Mapping[str, Any]], Any],
    data: Mapping[str, Any],
    target: str | os.PathLike[str],
) -> list[Path]:
    """Draw the figure of an experiment in the style of all others.

    Args:
        figure: `(data) -> matplotlib figure`.
        data: the JSON of `sdesam reproduce`.
        target: where to write, without suffix; a PDF and a PNG are made.

    Returns:
        The files written.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        return _write(figure(data), target)


def effective(data: Mapping[str, Any], target: str | os.PathLike[str]) -> list[Path]:
    """Draw the share of m-SAM's regularisation that RW-SAM has against lambda: a column per
    training step, a row per problem.

    Args:
        data: the JSON of `experiments/rw_sam_effective.py`.
        target: where to write, without suffix; a PDF and a PNG are made.

    Returns:
        The files written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows, batch = data["results"]["rows"], data["config"]["batch"]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    steps = data["config"]["steps"]
    names = list(dict.fromkeys(row["norms"] for row in rows if "lam" in row))
    low = 1.1 * min(row["step_reading"]["share"] for row in rows if "lam" in row)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.4 * len(steps), 2.2 * len(problems) + 0.5), layout="constrained")
        for problem, line in zip(
            problems,
            figure.subplots(len(problems), len(steps), squeeze=False, sharex=True, sharey="row"),
            strict=True,
        ):
            for step, axes in zip(steps, line, strict=True):
                here = [row for row in rows if row["problem"] == problem and row["step"] == step]
                marks = [(row["norms"], row["share"], ":") for row in here if "lam" not in row]
                for label, share, style in [(f"SAM, m = b = {batch}", 0.0, "-"), *marks]:
                    if share < low:  # far below all that is drawn
                        axes.text(
                            0.02,
                            0.02,
                            f"{label} at {share:.2f}",
                            fontsize=6,
                            va="bottom",
                            transform=axes.transAxes,
                        )
                        continue
                    axes.axhline(share, color="0.3", ls=style, lw=0.9)
                    axes.text(
                        0.02,
                        share,
                        label,
                        fontsize=6,
                        va="bottom",
                        transform=axes.get_yaxis_transform(),
                    )
                for k, name in enumerate(names):
                    mine = [row for row in here if row["norms"] == name]
                    lams = [row["lam"] for row in mine]
                    share, error = (
                        np.array([row["step_reading"][what] for row in mine])
                        for what in ("share", "stderr")
                    )
                    axes.errorbar(
                        lams,
                        share,
                        2 * error,
                        color=COLOURS[k],
                        marker=MARKERS[k],
                        ms=3,
                        mfc="white",
                        lw=0.9,
                        label=name,
                    )
                axes.set_xscale("log")
                axes.set_title(f"{problem}, step {step}, loss {here[-1]['loss']:.2g}", fontsize=7)
        for axes in figure.axes[-len(steps) :]:
            axes.set_xlabel(r"$\lambda$")
        figure.supylabel(r"regularisation: 0 for $m=b$, 1 for $m=1$", fontsize=8)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=len(names),
            title=(
                r"RW-SAM's first-order regularisation by norm estimate; bars: $\pm 2$ standard"
                r" errors"
            ),
            title_fontsize=8,
        )
        return _write(figure, target)


def _write(figure: Any, path: str | os.PathLike[str]) -> list[Path]:
    written = []
    for suffix in (".pdf", ".png"):
        target = Path(f"{path}{suffix}")
        # without a date, an unchanged picture stays an unchanged file
        stamp = {"CreationDate": None} if suffix == ".pdf" else {}
        store.write_atomically(
            target, partial(figure.savefig, format=suffix[1:], dpi=200, metadata=stamp)
        )
        written.append(target)
    return written


def math(term: str) -> str:
    """The name of a term in mathematical type."""
    symbols = {"rho^1": r"$\rho^1$", "rho^2": r"$\rho^2$", "rho^3": r"$\rho^3$", "eta": r"$\eta$"}
    return " ".join(symbols.get(word, word) for word in term.split())
