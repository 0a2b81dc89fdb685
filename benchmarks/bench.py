"""`sdesam bench`: run workloads, compare with the targets, write the numbers and the picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdesam._util import store
from sdesam.lab import plots

from . import memory, w1, w2, w3
from .timing import Timing, in_turn, taking_part

SCHEMA = "sdesam.bench/1"
WORKLOADS = {"W1": w1, "W2": w2, "W3": w3}
PEERS = ("diffrax", "equinox", "lineax", "torch", "torchsde")


@dataclass(frozen=True)
class Size:
    """How much is run: workload -> (paths, steps, unit of steps); how often; the numbers of paths
    of the picture.
    """

    workloads: Mapping[str, tuple[int, int, int]]
    repeats: int
    sweep: tuple[int, ...]
    few_paths: int
    many_paths: int
    few_steps: int
    many_steps: int


FULL = Size(
    {
        "W1": (w1.PATHS, w1.STEPS, w1.EVERY),
        "W2": (w2.PATHS, w2.STEPS, 20),
        "W3": (w3.PATHS, w3.STEPS, 20),
    },
    repeats=5,
    sweep=(100, 1000, 10_000),
    few_paths=10**4,
    many_paths=10**6,
    few_steps=10**3,
    many_steps=10**4,
)
QUICK = Size(
    {"W1": (10_000, 100, 100), "W2": (1000, 40, 40), "W3": (2, 2, 2)},
    1,
    (),
    few_paths=2000,
    many_paths=4000,
    few_steps=100,
    many_steps=200,
)


# for all of them: jax's own default on recent GPUs is TF32
@jax.default_matmul_precision("float32")
def run(
    workloads: Sequence[str], quick: bool = False, show: Callable[[str], Any] = lambda _: None
) -> dict[str, Any]:
    """Run workloads and give what is stored as JSON.

    Args:
        workloads: among "W1", "W2", "W3".
        quick: small sizes, to see that all works; the numbers mean nothing.
        show: is told what is done.
    """
    size = QUICK if quick else FULL
    on_gpu = jax.default_backend() != "cpu"
    results: dict[str, Any] = {}
    for name in workloads:
        contenders, absent = taking_part(WORKLOADS[name].CONTENDERS, on_gpu)
        paths, steps, unit = size.workloads[name]
        timings = in_turn(
            contenders,
            paths,
            steps,
            unit,
            size.repeats,
            lambda what, name=name: show(f"{name}: {what}"),
        )
        results[name] = {
            "contenders": {
                c.name: {"kind": c.kind, "about": c.about, **timings[c.name].to_json()}
                for c in contenders
            },
            "not_taking_part": absent,
        }
        if name == "W1":
            results[name] |= _scaling(size, contenders, show)
            if not on_gpu:
                show("W1: peak memory, and many paths of many steps")
                idle, streamed = (
                    memory.measure("idle"),
                    memory.measure("w1", size.many_paths, 2 * w1.EVERY, size.many_steps),
                )
                results[name]["memory"] = {
                    "idle": idle["peak"],
                    "streamed": streamed["peak"],
                    "long": streamed["long"],
                    "seconds": streamed["seconds"],
                    "paths": size.many_paths,
                    "few_steps": 2 * w1.EVERY,
                    "steps": size.many_steps,
                }
    provenance = store.provenance()
    provenance["versions"] |= {
        name: version for name in PEERS if (version := store._version(name)) is not None
    }
    config = {
        "workloads": list(workloads),
        "quick": quick,
        "repeats": size.repeats,
        "sizes": {
            name: dict(zip(("paths", "steps", "unit"), size.workloads[name], strict=True))
            for name in workloads
        },
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "sam": w3.SAM,
        "command": " ".join(
            [
                "sdesam bench",
                *(f"--workload {name}" for name in workloads),
                *(["--quick"] if quick else []),
            ]
        ),
    }
    measured, reasons = targets(results, on_gpu)
    data = {
        "schema": SCHEMA,
        "config": config,
        "provenance": provenance,
        "results": results,
        "targets": measured,
        "not_measured": reasons,
    }
    plain: dict[str, Any] = store.plain(data)
    return plain


def _scaling(size: Size, contenders: Any, show: Callable[[str], Any]) -> dict[str, Any]:
    """Cost against the number of paths, for the picture; ours against many paths and many steps,
    for the targets.
    """
    sweep: dict[str, list[Any]] = {contender.name: [] for contender in contenders}
    for paths in size.sweep:
        timings = in_turn(
            contenders,
            paths,
            w1.STEPS,
            w1.EVERY,
            3,
            lambda what, p=paths: show(f"W1, {p} paths: {what}"),
        )
        for name, timing in timings.items():
            sweep[name].append(_without_statistics(timing))
    ours = [c for c in contenders if c.name == "sdesam"]
    show("W1: many paths, many steps")
    layouts = {
        "few": (size.few_paths, size.few_steps),
        "paths": (size.many_paths, 2 * w1.EVERY),
        "steps": (size.few_paths, size.many_steps),
    }
    costs = {
        name: _without_statistics(
            in_turn(ours, paths, steps, w1.EVERY, min(3, size.repeats))["sdesam"]
        )
        for name, (paths, steps) in layouts.items()
    }
    return {"sweep": sweep, "scaling": costs}


def _without_statistics(timing: Timing) -> dict[str, Any]:
    return {name: value for name, value in timing.to_json().items() if name != "statistics"}


def targets(
    results: Mapping[str, Any], on_gpu: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every number that is to be reached, with what was measured; and why some were not."""

    def cost(workload: str, name: str) -> float:
        entry = results[workload]["contenders"].get(name)
        if entry is None:
            raise LookupError(results[workload]["not_taking_part"].get(name, "not run"))
        return float(entry["ns_per_path_step"])

    def fastest(workload: str, *names: str) -> float:
        return min(
            cost(workload, name) for name in names if name in results[workload]["contenders"]
        )

    def w2_floor() -> float:
        return cost("W2", "normals only") + cost("W2", "matmuls only")

    def scaling(which: str) -> float:
        costs = results["W1"]["scaling"]
        return float(costs[which]["ns_per_path_step"] / costs["few"]["ns_per_path_step"])

    def peak() -> float:
        return float(results["W1"]["memory"]["streamed"] / results["W1"]["memory"]["idle"])

    def long_run(what: str) -> float:
        found = results["W1"]["memory"]
        if what == "memory":
            return float(found["long"] / found["streamed"])
        return float(
            1e9 * found["seconds"] / (found["paths"] * found["steps"]) / cost("W1", "sdesam")
        )

    def packed_or_not() -> float:
        return fastest("W1", "sdesam, packed", "sdesam")

    less, more = False, True  # whether a larger value is better
    rows: list[tuple[str, str, bool, float, float | None, Callable[[], float], bool]] = [
        (
            "W1 packed, times normals only",
            "W1",
            less,
            1.5,
            1.25,
            lambda: cost("W1", "sdesam, packed") / cost("W1", "normals only"),
            False,
        ),
        (
            "W1 array-valued drift, times packed",
            "W1",
            less,
            3,
            1.5,
            lambda: cost("W1", "sdesam") / cost("W1", "sdesam, packed"),
            False,
        ),
        (
            "W1 faster than diffrax UnsafeBrownianPath",
            "W1",
            more,
            20,
            34,
            lambda: cost("W1", "diffrax") / packed_or_not(),
            False,
        ),
        (
            "W1 faster than torchsde",
            "W1",
            more,
            20,
            34,
            lambda: cost("W1", "torchsde") / packed_or_not(),
            False,
        ),
        (
            "W1 faster than numpy",
            "W1",
            more,
            9,
            15,
            lambda: cost("W1", "numpy") / packed_or_not(),
            False,
        ),
        (
            "W2 hand-batched, times normals + matmuls",
            "W2",
            less,
            1.5,
            1.3,
            lambda: cost("W2", "sdesam, by hand") / w2_floor(),
            False,
        ),
        (
            "W2 generic autodiff, times normals + matmuls",
            "W2",
            less,
            4,
            2,
            lambda: cost("W2", "sdesam, derived") / w2_floor(),
            False,
        ),
        (
            "W2 autodiff faster than diffrax matrix-free",
            "W2",
            more,
            3.5,
            6,
            lambda: cost("W2", "diffrax") / cost("W2", "sdesam, derived"),
            False,
        ),
        (
            "W3a step, times one pass",
            "W3",
            less,
            4,
            3,
            lambda: cost("W3", "SDE") / fastest("W3", "one pass, vmap", "one pass, map"),
            False,
        ),
        (
            "W3b SAM, times SGD",
            "W3",
            less,
            1.9,
            None,
            lambda: cost("W3", "SAM") / cost("W3", "SGD"),
            False,
        ),
        *(
            (
                f"W3b m-SAM m={m}, times SAM",
                "W3",
                less,
                reach,
                1.1,
                lambda m=m: cost("W3", f"m-SAM, m={m}") / cost("W3", "SAM"),
                False,
            )  # type: ignore[misc]
            for m, reach in zip(w3.MICROS, (1.5, 2.8, 4.7), strict=True)
        ),
        ("peak memory of 1e6 paths, times an idle process", "W1", less, 1.15, 1.1, peak, False),
        (
            "W1 cost per path-step, 1e6 paths times 1e4 paths",
            "W1",
            less,
            1.2,
            None,
            lambda: scaling("paths"),
            False,
        ),
        (
            "W1 cost per path-step, 1e4 steps times 1e3 steps",
            "W1",
            less,
            1.2,
            None,
            lambda: scaling("steps"),
            False,
        ),
        (
            "W1 cost per path-step, 1e6 paths of 1e4 steps times W1",
            "W1",
            less,
            1.2,
            None,
            lambda: long_run("time"),
            False,
        ),
        (
            "peak memory, 1e6 paths of 1e4 steps times 200 steps",
            "W1",
            less,
            1.05,
            None,
            lambda: long_run("memory"),
            False,
        ),
        (
            "GPU: W1, times normals only",
            "W1",
            less,
            1.5,
            None,
            lambda: packed_or_not() / cost("W1", "normals only"),
            True,
        ),
    ]
    found, reasons = [], {}
    for name, workload, larger, reach, stretch, measure, for_gpu in rows:
        value, why = None, None
        if for_gpu != on_gpu:
            why = "no GPU here" if for_gpu else "a target for CPUs"
        elif workload not in results:
            why = f"{workload} was not run"
        else:
            try:
                value = measure()
            except LookupError as error:
                why = str(error.args[0])
        if why is not None:
            reasons[name] = why
        reached = None if value is None else bool(value >= reach if larger else value <= reach)
        found.append(
            {"name": name, "reach": reach, "stretch": stretch, "value": value, "reached": reached}
        )
    return found, reasons


def table(data: Mapping[str, Any]) -> str:
    """The numbers as text (which is Markdown too)."""
    lines = (
        ["Small sizes, to see that all works: these numbers mean nothing.\n"]
        if data["config"]["quick"]
        else []
    )
    for name, result in data["results"].items():
        best = min(
            c["ns_per_path_step"] for c in result["contenders"].values() if c["kind"] == "ours"
        )
        lines += [
            f"| {name} | | ns per path and step | times our best | spread | compile, s |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for contender, c in result["contenders"].items():
            cells = (
                f"{c['ns_per_path_step']:.4g} | {c['ns_per_path_step'] / best:.2f} |"
                f" {100 * c['spread']:.0f} % | {c['compile_seconds']:.1f}"
            )
            lines.append(f"| {contender} | {c['kind']}: {c['about']} | {cells} |")
        lines += [
            f"| {contender} | | not taking part: {why} | | | |"
            for contender, why in result["not_taking_part"].items()
        ]
        lines.append("")
    lines += ["| target | reach | stretch | value | |", "| --- | ---: | ---: | ---: | --- |"]
    for row in data["targets"]:
        verdict = {
            True: "reached",
            False: "NOT reached",
            None: f"not measured: {data['not_measured'].get(row['name'])}",
        }[row["reached"]]
        value = "" if row["value"] is None else f"{row['value']:.3g}"
        lines.append(
            f"| {row['name']} | {row['reach']:g} |"
            f" {'' if row['stretch'] is None else format(row['stretch'], 'g')} | {value} |"
            f" {verdict} |"
        )
    return "\n".join(lines)


def draw(data: Mapping[str, Any], path: str | os.PathLike[str]) -> list[Path]:
    """Cost per path-step against the number of paths: ours and the peers as lines with marks, the
    floor as a bare line.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    result = data["results"]["W1"]
    with mpl.rc_context(plots._STYLE):
        figure = Figure(figsize=(3.5, 3.0), layout="constrained")
        axes = figure.subplots()
        peers = 0
        for name, c in result["contenders"].items():
            points = sorted(
                {
                    (p["paths"], p["ns_per_path_step"])
                    for p in [*result["sweep"][name], c, *_more(result, name)]
                }
            )
            paths, costs = np.array(points).T
            if c["kind"] == "floor":
                axes.plot(
                    paths,
                    costs,
                    color="0.5",
                    lw=0.9,
                    ls="-" if name == "normals only" else ":",
                    label=f"{name} (floor)",
                )
                continue
            ours = c["kind"] == "ours"
            k = 0 if name == "sdesam" else 1 if ours else (peers := peers + 1) + 1
            axes.plot(
                paths,
                costs,
                color="black" if ours else plots.COLOURS[(k - 2) % 6],
                marker=plots.MARKERS[k % 6],
                ms=3,
                mfc="white" if k % 2 else None,
                lw=1.6 if ours else 1.0,
                ls="-" if ours else ("--" if k > 6 else "-"),
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("number of paths")
        axes.set_ylabel("nanoseconds per path and step")
        figure.legend(
            loc="outside lower center", ncols=2, fontsize=6.5, columnspacing=1.0, handlelength=2.4
        )
        axes.set_title(
            f"W1 on {data['provenance']['device']}, {data['provenance']['devices']} devices",
            fontsize=8,
        )
        return plots._write(figure, path)


def _more(result: Mapping[str, Any], name: str) -> list[Any]:
    return (
        [result["scaling"]["paths"]]
        if name == "sdesam" and result["scaling"]["paths"]["paths"] > 10**5
        else []
    )
