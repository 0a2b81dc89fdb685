"""The command line: `sdesam derive`, `simulate`, `train`, `compare`, `verify`, `reproduce`,
`figures`, `bench`.

A command checks its arguments and the names of its files, does its work, writes its files, and
prints last. It returns its exit status.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
import numpy as np
from click.core import ParameterSource

from sdesam import __version__
from sdesam._process import leave_current_folder
from sdesam._terminal import (
    CouldNotFinish,
    Program,
    check_files,
    checking,
    deliver,
    own_output,
    say,
    unread,
)
from sdesam.symbolic import derive as derive_equation
from sdesam.symbolic.equation import ModifiedEquation
from sdesam.variants import VARIANTS, NormEstimate
from sdesam.variants._base import Law

if TYPE_CHECKING:
    from sdesam.engine import Result
    from sdesam.problems import FiniteSum

Command = TypeVar("Command", bound=Callable[..., Any])

OBSERVABLES = "loss,grad_norm2,trace_cov"
_MOST_DEVICES = 16
"""Each device holds a copy of the data and of its working memory."""
_MOST_SEED = 2**32 - 1
"""See :mod:`sdesam._keys`, which needs jax."""
_MOST_PATHS = 2**32
_MOST_COUNTED = 2**31 - 1
_STATUS = (
    "\b\nExit status:\n"
    "    0  done, confirmed, or as recorded\n"
    "    1  refuted, inconclusive, or other than recorded\n"
    "    2  bad usage: the arguments, and nothing was written\n"
    "    3  could not finish\n"
    "  130  interrupted\n"
    "  141  the reader of the output has gone; files are written all the same\n"
    "\nSDESAM_TRACEBACK=1 in the environment shows where an error comes from."
)


class _Numbers(click.ParamType[Any]):
    """Whole numbers with commas between, such as `16,4,1`."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers such as 16,4,1", param, ctx)


class _Integer(click.IntRange):
    """Whole numbers up to a limit, beyond which nothing can be counted."""

    name = "integer"


class _Folder(click.Path):
    """A folder, which need not be there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value or self.fail(
            "the name is empty: name a folder, or . for the current one", param, ctx
        )


class _Words(click.ParamType[Any]):
    """Names with commas between."""

    name = "NAME,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(part.strip() for part in str(value).split(",") if part.strip()))
        return names or self.fail(
            f"{value!r} names nothing: name at least one, such as loss", param, ctx
        )


class _Setting(click.ParamType[Any]):
    """`KEY=VALUE` with a number or a word."""

    name = "KEY=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        try:
            return key, json.loads(text)
        except (ValueError, RecursionError):  # no JSON, or more of it than can be read
            return key, text


def _options(*many: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(many):
            command = option(command)
        return command

    return decorate


_variant = click.argument("variant", metavar="VARIANT")
_NAMES = (
    "\b\nVariants:\n"
    + "\n".join(f"  {v.name:<8} {v.summary}" for v in VARIANTS.values())
    + "\n\n\b\nProblems: digits, linear-regression, quadratic, torus1d, torus2d,\n  or your own:"
    " module:function, path/to/file.py:function"
    + "\n\n\b\nObservables: loss, grad_norm2, trace_cov, and the problem's own (digits:"
    " train_accuracy, test_accuracy)"
)
_order = click.option(
    "--order",
    type=_Numbers(),
    default="2,3",
    show_default=True,
    help="(alpha, beta): weak error eta^alpha + rho^beta.",
)
_replace = click.option(
    "--replace/--no-replace",
    default=True,
    show_default=True,
    help="Draw mini-batches with replacement.",
)
_term = click.option(
    "--without",
    "removed",
    multiple=True,
    metavar="TERM",
    help="Leave a named term out; may be repeated.",
)
_json = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False),
    help="Also write JSON to this file ('-': standard output only).",
)
_setting = _options(
    click.option(
        "--problem",
        "problem_name",
        default="digits",
        show_default=True,
        help="Ready-made, module:function or file.py:function.",
    ),
    click.option(
        "--problem-arg",
        "problem_args",
        type=_Setting(),
        multiple=True,
        help="An argument of the problem, such as width=64.",
    ),
    click.option("--lr", type=float, default=0.1, show_default=True, help="Learning rate eta."),
    click.option(
        "--rho",
        type=float,
        default=None,
        help="Perturbation radius; needed unless the variant has none.",
    ),
    click.option(
        "--batch",
        type=_Integer(max=_MOST_COUNTED),
        default=16,
        show_default=True,
        help="Mini-batch size b.",
    ),
)
_perturbation = _options(
    click.option(
        "--eps",
        type=float,
        default=0.0,
        show_default=True,
        help="Normalised variants: of the norm sqrt(|g|^2 + eps^2).",
    ),
    click.option(
        "--lam", type=float, default=None, help="rw-sam: inverse temperature of the weights."
    ),
    click.option(
        "--norms",
        "law",
        type=click.Choice(get_args(Law)),
        default=None,
        help="rw-sam: how gradient norms are estimated.  [default: rademacher]",
    ),
    click.option(
        "--directions",
        type=_Integer(max=_MOST_COUNTED),
        default=None,
        help="rw-sam: random directions of an estimate.  [default: 1]",
    ),
    click.option(
        "--square",
        is_flag=True,
        default=None,
        help="rw-sam: weights from the unbiased squares of norms.",
    ),
    click.option(
        "--delta",
        type=float,
        default=None,
        help="rw-sam: step of the difference quotient of an estimate.  [default: 0.001]",
    ),
)
_micro_batches = click.option(
    "--micro-batches",
    type=_Integer(max=_MOST_COUNTED),
    default=None,
    help="sam, m-sam, rw-sam: fresh micro-batches of a step.  [default: all, or n/2]",
)
_micro = click.option(
    "--micro",
    type=_Integer(max=_MOST_COUNTED),
    default=None,
    help="Micro-batch size m; left out, the mini-batch.",
)
_observe = click.option(
    "--observe", type=_Words(), default=OBSERVABLES, show_default=True, help="Observables."
)
_seed = click.option(
    "--seed",
    type=_Integer(0, _MOST_SEED),
    default=0,
    show_default=True,
    help="Seed of everything random.",
)
_save = click.option(
    "--save",
    type=click.Path(dir_okay=False),
    help="Also write everything, final states included, to this .npz file.",
)
_steps = click.option(
    "--steps",
    type=_Integer(max=_MOST_COUNTED),
    default=60,
    show_default=True,
    help="Optimizer steps.",
)
_method = click.option(
    "--method",
    type=click.Choice(["heun", "euler", "richardson"]),
    default="heun",
    show_default=True,
    help="heun: small-noise Heun.",
)
_snapshot = click.option(
    "--snapshot",
    type=click.Path(dir_okay=False),
    help="Write the state of the run to this file every minute; if it is there, go on from it.",
)
_dt = click.option("--dt", type=float, default=None, help="Time step; left out, lr.")


@click.group(
    cls=Program,
    epilog=_STATUS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
def cli() -> None:
    """SDE simulation and theory verification for sharpness-aware minimization."""


@cli.command(epilog=_NAMES)
@_options(_variant, _order, _replace, _term)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "latex", "json"]),
    default="text",
    show_default=True,
)
def derive(
    variant: str, order: tuple[int, ...], replace: bool, removed: tuple[str, ...], form: str
) -> None:
    """Derive the SDE of VARIANT.

    \b
    Example: sdesam derive m-usam --order 2,3 --format latex
    """
    with checking():
        equation = _equation(variant, order, replace, removed)
    if form == "text":
        say(equation.text())
    elif form == "latex":
        say(equation.latex())
    else:
        config = {"variant": variant, "order": order, "replace": replace, "without": removed}
        _write_or_print("-", _described("sdesam.equation/1", config, equation.to_json()))


@cli.command(epilog=_NAMES)
@_options(_variant, _setting, _micro, _perturbation, _micro_batches, _order, _replace, _term)
@click.option(
    "--paths", type=_Integer(max=_MOST_PATHS), default=64, show_default=True, help="How many paths."
)
@click.option(
    "--horizon",
    type=float,
    default=6.0,
    show_default=True,
    help="SDE time to reach; k steps of the optimizer are k lr.",
)
@_options(_dt, _method)
@click.option(
    "--expectation",
    type=click.Choice(["sampled", "exact"]),
    default="sampled",
    show_default=True,
    help="Where the exact drift costs O(n^2).",
)
@click.option(
    "--normals",
    type=click.Choice(["counter", "jax"]),
    default="counter",
    show_default=True,
    help="jax: from jax.random, slower.",
)
@click.option(
    "--plan",
    "planning",
    is_flag=True,
    help="Only say how many steps, how much memory and time the run would need.",
)
@_options(_observe, _seed, _json, _save, _snapshot)
def simulate(
    *,
    variant: str,
    problem_name: str,
    problem_args: tuple[tuple[str, Any], ...],
    lr: float,
    rho: float | None,
    batch: int,
    micro: int | None,
    eps: float,
    lam: float | None,
    law: Law | None,
    directions: int | None,
    square: bool | None,
    delta: float | None,
    micro_batches: int | None,
    order: tuple[int, ...],
    replace: bool,
    removed: tuple[str, ...],
    paths: int,
    horizon: float,
    dt: float | None,
    method: str,
    expectation: str,
    normals: str,
    planning: bool,
    observe: tuple[str, ...],
    seed: int,
    json_file: str | None,
    save: str | None,
    snapshot: str | None,
) -> None:
    """Simulate the SDE of VARIANT on a problem.

    \b
    Example: sdesam simulate m-usam --problem digits --rho 0.1 --micro 4 --paths 16
    """
    with checking():
        equation = _equation(variant, order, replace, removed)
        if planning and (json_file, save, snapshot) != (None, None, None):
            raise ValueError("--plan writes nothing: leave --json, --save and --snapshot out")
        _check_outputs(json_file, save=save, snapshot=snapshot)
        problem = _problem(problem_name, problem_args)
        from sdesam._keys import seed_key
        from sdesam.sde import estimate
        from sdesam.sde import simulate as run

        norms = _norms(law, directions, square, delta)
        step = lr if dt is None else dt
        with own_output():
            sde = equation.bind(
                problem,
                lr,
                rho,
                batch,
                micro,
                expectation,
                eps=eps,
                lam=lam,
                norms=norms,
                micro_batches=micro_batches,
            )
            if planning:
                needed = estimate(
                    sde,
                    paths,
                    horizon,
                    step,
                    method,
                    observe=observe,
                    normals=normals,  # type: ignore[arg-type]
                )
            else:
                key = seed_key(seed)
                out = run(
                    sde,
                    key,
                    paths,
                    horizon,
                    step,
                    method,
                    observe=observe,
                    normals=normals,  # type: ignore[arg-type]
                    snapshot=snapshot,
                )
    if planning:
        say(str(needed))
    else:
        _report(
            out,
            json_file,
            save,
            {"problem_spec": problem_name, "problem_args": dict(problem_args), "seed": seed},
        )


@cli.command(epilog=_NAMES)
@_options(_variant, _setting, _micro, _perturbation, _replace)
@click.option(
    "--runs", type=_Integer(max=_MOST_PATHS), default=64, show_default=True, help="How many runs."
)
@_options(_steps, _observe, _seed, _json, _save, _snapshot)
def train(
    *,
    variant: str,
    problem_name: str,
    problem_args: tuple[tuple[str, Any], ...],
    lr: float,
    rho: float | None,
    batch: int,
    micro: int | None,
    eps: float,
    lam: float | None,
    law: Law | None,
    directions: int | None,
    square: bool | None,
    delta: float | None,
    replace: bool,
    runs: int,
    steps: int,
    observe: tuple[str, ...],
    seed: int,
    json_file: str | None,
    save: str | None,
    snapshot: str | None,
) -> None:
    """Run VARIANT as a discrete optimizer on a problem, many times from the same start.

    \b
    Example: sdesam train m-usam --problem digits --rho 0.1 --micro 4 --runs 16
    """
    with checking():
        _check_outputs(json_file, save=save, snapshot=snapshot)
        _variant_or_fail(variant)
        problem = _problem(problem_name, problem_args)
        from sdesam._keys import seed_key
        from sdesam.discrete import Chain
        from sdesam.discrete import train as run

        norms = _norms(law, directions, square, delta)
        with own_output():
            chain = Chain(
                variant, problem, lr, rho, batch, micro, replace, eps=eps, lam=lam, norms=norms
            )
            out = run(chain, seed_key(seed), runs, steps, observe=observe, snapshot=snapshot)
    _report(
        out,
        json_file,
        save,
        {"problem_spec": problem_name, "problem_args": dict(problem_args), "seed": seed},
    )


@cli.command(epilog=_NAMES)
@_options(_variant, _setting)
@click.option(
    "--micro",
    type=_Numbers(),
    default=None,
    help="Micro-batch sizes to compare; left out, the mini-batch.",
)
@_options(_perturbation, _micro_batches, _order, _replace)
@click.option(
    "--without",
    "term",
    metavar="TERM",
    default=None,
    help="The term to knock out.  [default: rho^1 variance, where there is one]",
)
@click.option(
    "--runs",
    type=_Integer(max=_MOST_PATHS),
    default=64,
    show_default=True,
    help="Runs of the optimizer and paths of each SDE.",
)
@_options(_steps, _dt, _method, _observe)
@click.option(
    "--judge",
    "judged",
    default="trace_cov",
    show_default=True,
    help="The observable that the verdict is about.",
)
@click.option(
    "--halving/--no-halving",
    default=True,
    show_default=True,
    help="Where the SDE is refuted, see whether it holds at half and a quarter of lr.",
)
@_seed
@click.option(
    "--output",
    default="figures",
    show_default=True,
    type=_Folder(),
    help="Folder for the figure and the numbers.",
)
@click.option("--name", default=None, help="Name of the files.  [default: compare-VARIANT-PROBLEM]")
@_json
def compare(
    *,
    variant: str,
    problem_name: str,
    problem_args: tuple[tuple[str, Any], ...],
    lr: float,
    rho: float | None,
    batch: int,
    micro: tuple[int, ...] | None,
    eps: float,
    lam: float | None,
    law: Law | None,
    directions: int | None,
    square: bool | None,
    delta: float | None,
    micro_batches: int | None,
    order: tuple[int, ...],
    replace: bool,
    term: str | None,
    runs: int,
    steps: int,
    dt: float | None,
    method: str,
    observe: tuple[str, ...],
    judged: str,
    halving: bool,
    seed: int,
    output: str,
    name: str | None,
    json_file: str | None,
) -> int:
    """Set VARIANT beside its SDE, and beside the SDE with one term knocked out; say whether they
    agree.

    For each micro-batch size: a table with standard errors, the share of the term's effect that the
    SDE explains with its 95 % interval, a verdict; a figure (PDF, PNG) and the numbers (JSON) in
    the output folder.

    \b
    Example: sdesam compare m-usam --problem digits --rho 0.1 --micro 16,4,1
    """
    with checking():
        equation = _equation(variant, order, replace, ())
        problem = _problem(problem_name, problem_args)
        stem = f"compare-{variant}-{problem.name}" if name is None else name
        if not stem or Path(stem).name != stem:
            raise ValueError(
                f"--name {stem!r}: it must be a plain file name; --output names the folder"
            )
        _check_outputs(json_file, output=_files(output, stem, ".json", ".pdf", ".png"))
        from sdesam import plots
        from sdesam.comparison import compare as run

        with own_output():
            found = run(
                variant,
                problem,
                lr=lr,
                rho=rho,
                batch=batch,
                micro=tuple(dict.fromkeys(micro or ())),
                steps=steps,
                runs=runs,
                order=(equation.order[0], equation.order[1]),
                replace=replace,
                without=term,
                observe=observe,
                judged=judged,
                method=method,
                dt=dt,
                seed=seed,
                eps=eps,
                lam=lam,
                norms=_norms(law, directions, square, delta),
                micro_batches=micro_batches,
                halving=halving,
            )
    data = found.to_json()
    data["config"] |= {"problem_spec": problem_name, "problem_args": dict(problem_args)}
    deliver(
        None if json_file == "-" else f"{equation.text()}\n\n{found.table()}",
        partial(_write_or_print, str(Path(output, f"{stem}.json")), data),
        partial(plots.comparison, data, Path(output, stem)),
        partial(_write_or_print, json_file, data),
    )
    if found.status != "confirmed":
        return 1
    for row in found.rows:
        for label, out in (
            ("optimizer", row.chain),
            ("SDE", row.sde),
            ("SDE without the term", row.without),
        ):
            _check_finite(out, f"m = {row.micro}, {label}: ")
    return 0


@cli.command()
@click.argument("names", metavar="CLAIM...", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="List the registered claims.")
@click.option(
    "--preset",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="full: more seeds.",
)
@click.option("--variant", default="m-usam", show_default=True, help="signature: the variant.")
@click.option(
    "--problem",
    "problem_name",
    default="torus2d",
    show_default=True,
    help="signature: a torus or quadratic problem.",
)
@click.option(
    "--problem-arg",
    "problem_args",
    type=_Setting(),
    multiple=True,
    help="signature: an argument of the problem, such as samples=3.",
)
@_options(_order, _replace)
@click.option(
    "--batch",
    type=_Integer(max=_MOST_COUNTED),
    default=2,
    show_default=True,
    help="signature: mini-batch size.",
)
@click.option(
    "--micro",
    type=_Integer(max=_MOST_COUNTED),
    default=None,
    help="signature: micro-batch size.  [default: 1 for m- variants]",
)
@click.option(
    "--eps",
    type=float,
    default=None,
    help="signature: of the norms.  [default: 0.2 for normalised variants]",
)
@click.option(
    "--lam",
    type=float,
    default=None,
    help="signature of rw-sam: inverse temperature of its weights, whose norms are exact.",
)
@click.option(
    "--square",
    is_flag=True,
    help=(
        "signature of rw-sam: weights from squares of norms, which are smooth where a gradient"
        " vanishes."
    ),
)
@_seed
@click.option(
    "--output",
    type=_Folder(),
    default=None,
    help=(
        "Folder for report.md, report.html and figures; left out, only the figure of a signature is"
        " drawn, in figures/."
    ),
)
@_json
def verify(
    *,
    names: tuple[str, ...],
    listing: bool,
    preset: str,
    variant: str,
    problem_name: str,
    problem_args: tuple[tuple[str, Any], ...],
    order: tuple[int, ...],
    replace: bool,
    batch: int,
    micro: int | None,
    eps: float | None,
    lam: float | None,
    square: bool,
    seed: int,
    output: str | None,
    json_file: str | None,
) -> int:
    """Check claims of the registry, the signature of an equation, or the checks themselves.

    CLAIM is a claim's id, `signature` (how each term scales when it alone is left out), `mutants`
    (wrong theories that the checks must notice), or `all` (every claim, the signatures of m-usam
    and m-sam, and the mutants).

    \b
    Example: sdesam verify L-3.5 L-3.9
    Example: sdesam verify signature --variant m-usam --problem torus2d
    Example: sdesam verify all --json report.json --output report
    """
    from sdesam.claims import registry

    if listing:
        for known in registry().values():
            say(
                f"{known.id:<8} {known.title:<52} recorded: {known.recorded:<12} about"
                f" {known.seconds:.0f} s"
            )
        say("signature, mutants, all")
        return 0
    with checking():
        if not names:
            raise ValueError(
                "nothing to verify: name claims, signature, mutants or all (--list shows them)"
            )
        from sdesam import report

        jobs = report.plan(names)
        asked = None
        context = click.get_current_context()
        given = [
            option.opts[0]
            for option in context.command.params
            if str(getattr(option, "help", "")).startswith("signature")
            or option.name in ("order", "replace")
            if context.get_parameter_source(str(option.name)) is not ParameterSource.DEFAULT
        ]
        if given and "signature" not in jobs:
            raise ValueError(
                f"{', '.join(given)}: a claim has numbers of its own; leave it out, or verify"
                " signature"
            )
        if "signature" in names or given:
            problem = _problem(problem_name, problem_args)
            asked = report.SignatureRequest(
                problem,
                variant,
                order,  # type: ignore[arg-type]
                replace,
                batch,
                micro,
                eps,
                lam,
                square,
            )
            with own_output():
                asked.check()
        # a signature alone is a table and a figure; the report is written where a folder is named
        folder = (
            None
            if output is None and asked is None
            else Path("figures" if output is None else output)
        )
        files = (
            []
            if folder is None
            else report.files(jobs, asked, folder, pictures_only=output is None)
        )
        _check_outputs(json_file, output=files)

    def show(text: str) -> None:
        if json_file != "-":
            say(text)
        if unread() and not files and json_file is None:
            raise BrokenPipeError  # nobody reads what is found, and it is written nowhere

    with own_output():
        found = report.run(jobs, preset, seed, asked, show)
    deliver(
        None if json_file == "-" else "",
        *(
            []
            if folder is None
            else [partial(report.write, found, folder, pictures_only=output is None)]
        ),
        partial(_write_or_print, json_file, found.to_json()),
    )
    return 0 if found.as_recorded else 1


@cli.command()
@click.option(
    "--workload",
    "workloads",
    type=click.Choice(["W1", "W2", "W3"]),
    multiple=True,
    help="W1: a small ensemble; W2: a finite sum; W3: a network. May be repeated.  [default: all]",
)
@click.option(
    "--quick", is_flag=True, help="Small sizes, to see that all works; the numbers mean nothing."
)
@click.option(
    "--output",
    default="figures",
    show_default=True,
    type=_Folder(),
    help="Folder for the table, the picture and the numbers.",
)
@_json
def bench(workloads: tuple[str, ...], quick: bool, output: str, json_file: str | None) -> None:
    """Measure speed beside diffrax, torchsde, numpy and floors, in turn on this machine; some
    minutes.

    Targets of the project are printed as reached or not. Run it from a checkout, on a machine that
    does nothing else.

    \b
    Example: sdesam bench --workload W1
    """
    with checking():
        _check_outputs(json_file, output=_files(output, "bench", ".json", ".md", ".pdf", ".png"))
        folder = Path(__file__).resolve().parent.parent / "benchmarks"
        if not (folder / "bench.py").exists():
            raise ValueError(
                "the benchmarks are not part of the installed package: run this from a checkout of"
                " the source"
            )
        from sdesam.reproduce import import_folder

        import_folder(folder)
    from benchmarks import bench as benchmark

    data = benchmark.run(
        workloads or tuple(benchmark.WORKLOADS), quick, lambda what: click.echo(what, err=True)
    )
    absent = sorted(
        {
            name
            for result in data["results"].values()
            for name, why in result["not_taking_part"].items()
            if "not installed" in why
        }
    )
    if absent:
        click.echo(
            f"not taking part because they are not installed: {', '.join(absent)}; pip install"
            " 'sdesam[bench]' adds them",
            err=True,
        )
    stem = Path(output, "bench")
    deliver(
        None if json_file == "-" else benchmark.table(data),
        partial(_write_or_print, f"{stem}.json", data),
        partial(_write_text, Path(f"{stem}.md"), f"{benchmark.table(data)}\n"),
        *([partial(benchmark.draw, data, stem)] if "W1" in data["results"] else []),
        partial(_write_or_print, json_file, data),
    )


@cli.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="List the experiments.")
@click.option(
    "--preset",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="full: CIFAR-10 with ResNet-18, or more seeds; --list says.",
)
@click.option(
    "--option",
    "options",
    type=_Setting(),
    multiple=True,
    help="An option of the experiment, such as seeds=3; see --list.",
)
@click.option(
    "--data",
    default=None,
    type=click.Path(),
    help="CIFAR-10, for the full preset: a folder or tar of its batches, or of JPEG files.",
)
@click.option(
    "--minutes",
    type=float,
    default=None,
    help=(
        "End within these minutes, with fewer runs and on CIFAR-10 fewer epochs; say what is left"
        " out."
    ),
)
@click.option(
    "--scheduler",
    default=None,
    metavar="ADDRESS",
    help="A Dask scheduler whose workers make the runs, such as tcp://host:8786.",
)
@click.option(
    "--store",
    "store_folder",
    default="runs",
    show_default=True,
    type=_Folder(),
    help="Folder of the runs; a sweep goes on there.",
)
@click.option(
    "--output",
    default="figures",
    show_default=True,
    type=_Folder(),
    help="Folder for the pictures and their data.",
)
def reproduce(
    *,
    names: tuple[str, ...],
    listing: bool,
    preset: str,
    options: tuple[tuple[str, Any], ...],
    data: str | None,
    minutes: float | None,
    scheduler: str | None,
    store_folder: str,
    output: str,
) -> None:
    """Reproduce figures and tables of a paper: make the runs that the store lacks, test, draw.

    NAME is an experiment, or `all`. Runs are stored one by one, so a sweep that was stopped goes on
    where it was. Verdicts are printed, whichever they are: a finished reproduction ends with status
    0. Dask workers need this package and the folder `experiments` at hand.

    \b
    Example: sdesam reproduce escape --preset quick
             sdesam reproduce escape --preset full --data cifar-10-python.tar.gz --minutes 60
    """
    from sdesam import reproduce as work
    from sdesam.runs import RunStore

    with checking():
        known = work.names()
        if listing:
            for name in known:
                quick, full = work.experiment(name), work.experiment(name, "full")
                more = (
                    "the same with more seeds"
                    if quick is full
                    else f"{full.title}; options: {_listed(full.defaults)}"
                )
                say(
                    f"{name:<22}{quick.title} ({quick.shows}); options:"
                    f" {_listed(quick.defaults)}\n{'':<22}  --preset full: {more}"
                )
            return
        if not names:
            raise ValueError(f"nothing to reproduce: name experiments, or all ({', '.join(known)})")
        chosen = [
            work.experiment(name, preset)  # type: ignore[arg-type]
            for name in (known if "all" in names else dict.fromkeys(names))
        ]
        if data is not None and not any(what.data for what in chosen):
            raise ValueError(
                f"--data: {', '.join(what.name for what in chosen)} with --preset {preset} needs no"
                " data set; leave it out"
            )
        for what in chosen:
            what.configurations(preset, dict(options))  # type: ignore[arg-type]
            work.check(what, minutes, data)
        runs = RunStore(store_folder)
        runs.check_room()
        folder = Path(output)
        _check_outputs(
            None,
            output=[file for what in chosen for file in work.files(what, folder, preset)],  # type: ignore[arg-type]
        )
    for what in chosen:
        begun = monotonic()
        with checking(ValueError):  # minutes, or a store in use; a run that fails is a RuntimeError
            fitting, left_out = work.fit(what, dict(options), runs, minutes, data)
            configs = what.configurations(preset, fitting)  # type: ignore[arg-type]
            remaining = None if minutes is None else max(minutes - (monotonic() - begun) / 60, 1e-3)
            done = work.sweep(
                what,
                configs,
                runs,
                minutes=remaining,
                scheduler=scheduler,
                data=data if what.data else None,
            )
        given = "".join(f" --option {name}={_word(value)}" for name, value in fitting.items())
        command = (
            f"sdesam reproduce {what.name} --preset"
            f" {preset}{given}{' --data PATH' if what.data else ''}"
        )
        found = work.collect(what, configs, runs, preset, command, left_out)  # type: ignore[arg-type]
        deliver(
            f"{what.name}: {done}\n{work.text(found)}", partial(work.write, what, found, folder)
        )


@cli.command()
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option(
    "--output",
    default="figures",
    show_default=True,
    type=_Folder(),
    help="Folder of the data and the pictures.",
)
def figures(names: tuple[str, ...], output: str) -> None:
    """Draw the pictures of experiments from their stored data, and from nothing else; without NAME,
    all whose data are there.

    \b
    Example: sdesam figures escape
    """
    from sdesam import reproduce as work

    folder = Path(output)
    with checking():
        presets = {
            work.experiment(name).name: work.drawable(name, folder)
            for name in names or work.names()
        }
        if not any(presets.values()) and not names:
            raise ValueError(
                f"there are no data in {output!r}: make them with `sdesam reproduce all`"
            )
        drawn = [
            (work.experiment(name, preset), preset, work.read(name, folder, preset))
            for name in presets
            for preset in presets[name]
            or (["quick"] if names else [])  # without data: the sentence that says so
        ]
        _check_outputs(
            None,
            output=[file for what, preset, _ in drawn for file in work.files(what, folder, preset)],
        )
    for what, preset, _ in drawn:
        deliver("", partial(work.draw, what, folder, preset))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    use_all_cores()
    if "jax" not in sys.modules and os.environ.get("SDESAM_TRACEBACK", "0") not in ("", "0"):
        os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")
    cli.main(args=arguments, prog_name="sdesam")


def use_all_cores() -> None:
    """One jax device per core, on which paths are spread; XLA alone leaves cores idle on small
    problems.

    This is a choice for the process, so the program makes it and the library does not. A user's own
    setting wins.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags and "jax" not in sys.modules:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        os.environ["XLA_FLAGS"] = (
            f"{flags} --xla_force_host_platform_device_count={min(cores, _MOST_DEVICES)}".strip()
        )


def _norms(
    law: Law | None, directions: int | None, square: bool | None, delta: float | None
) -> NormEstimate | None:
    if law == "exact" and delta is not None:
        raise ValueError(
            f"--delta {delta:g}: exact norms are taken from gradients, not from differences; leave"
            " --delta out"
        )
    given = {"law": law, "directions": directions, "square": square, "delta": delta}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return NormEstimate(**asked) if asked else None


def _equation(
    variant: str, order: tuple[int, ...], replace: bool, removed: Sequence[str]
) -> ModifiedEquation:
    equation = derive_equation(variant, order, replace)  # type: ignore[arg-type]
    for term in removed:
        equation = equation.without(term)
    return equation


def _word(value: Any) -> str:
    """The value of an option as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(
        name if value is None else f"{name}={_word(value)}" for name, value in options.items()
    )


def _variant_or_fail(name: str) -> None:
    from sdesam.variants import variant

    variant(name)


def _problem(name: str, arguments: tuple[tuple[str, Any], ...]) -> FiniteSum:
    from sdesam.problems.loading import is_users_own, load

    here = os.getcwd()
    if is_users_own(name) and here not in sys.path:
        sys.path.append(
            here
        )  # a module may lie in the folder that one works in; it hides no installed one
    with own_output():
        return load(name, **dict(arguments))


def _files(folder: str, stem: str, *suffixes: str) -> list[Path]:
    return [Path(folder, f"{stem}{suffix}") for suffix in suffixes]


def _check_outputs(
    json_file: str | None, *, output: Sequence[Path] = (), **files: str | None
) -> None:
    """See before any work that everything can be written; `files` are named as their options
    are.
    """
    for option, file in files.items():
        if file == "-":
            raise ValueError(f"--{option} -: only --json goes to the standard output; name a file")
    check_files(
        [
            *files.items(),
            ("json", None if json_file == "-" else json_file),
            *(("output", file) for file in output),
        ]
    )


def _report(out: Result, json_file: str | None, save: str | None, asked: dict[str, Any]) -> None:
    results = {
        "time": out.time,
        "mean": out.mean,
        "stderr": out.stderr,
        "diverged": {
            "paths": out.diverged.paths,
            "time": out.diverged.time,
            "total": out.diverged.total,
        },
        "nonfinite": out.nonfinite,
    }
    deliver(
        None if json_file == "-" else "\n".join([_series(out), str(out.diverged), *out.warnings()]),
        partial(_write_result, out, save),
        partial(
            _write_or_print, json_file, _described("sdesam.run/1", {**out.config, **asked}, results)
        ),
    )
    if out.diverged.count == out.diverged.total:
        raise CouldNotFinish("every path diverged; a smaller lr, dt or rho would help")
    _check_finite(out)


def _check_finite(out: Result, of: str = "") -> None:
    """No status of success with means that are no numbers."""
    for name, mean in out.mean.items():
        bad = ~np.isfinite(mean)
        if bad.any():
            times = np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim))))
            raise CouldNotFinish(
                f"{of}the mean of {name!r} is not finite at {len(times)} of {len(out.time)} times,"
                f" first at {out.time[times[0]]:g}"
            )


def _series(out: Result) -> str:
    from sdesam.comparison import with_error

    names = [name for name, mean in out.mean.items() if mean.ndim == 1]
    lines = [f"{'time':>8} " + " ".join(f"{name:>16}" for name in names)]
    for k, time in enumerate(out.time):
        lines.append(
            f"{time:>8.4g} "
            + " ".join(f"{with_error(out.mean[n][k], out.stderr[n][k]):>16}" for n in names)
        )
    lines += [
        f"not shown: {name}, of shape {mean.shape[1:]}; --json and --save hold it"
        for name, mean in out.mean.items()
        if mean.ndim > 1
    ]
    return "\n".join(lines)


def _described(schema: str, config: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Results with what they are and where they came from."""
    from sdesam import store

    return {
        "schema": schema,
        "config": config,
        "provenance": store.provenance(),
        "results": results,
    }


def _write_result(out: Result, file: str | None) -> list[Path]:
    if file is None:
        return []
    out.save(file)
    return [Path(file)]


def _write_text(file: Path, text: str) -> list[Path]:
    from sdesam import store

    store.write_atomically(file, lambda stream: stream.write(text.encode()))
    return [file]


def _write_or_print(file: str | None, data: dict[str, Any]) -> list[Path]:
    """Data as JSON to a file or, for `-`, to the standard output; the files that were written."""
    from sdesam import store

    if file is None:
        return []
    if file == "-":
        say(json.dumps(store.plain(data), indent=1, allow_nan=False))
        return []
    store.write_json(file, data)
    return [Path(file)]


if __name__ == "__main__":
    leave_current_folder()
    main()
