"""`sdesam simulate`, `train` and `compare`: ensembles of paths and of runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from sdesam._util.terminal import checking, deliver, own_output, say
from sdesam.cli import _options as option
from sdesam.cli import _shared as shared
from sdesam.cli._group import cli


@cli.command(cls=option.NamingCommand)
@shared.rule_request
@option.several(option.micro, option.micro_batches, option.order, option.term)
@click.option(
    "--paths",
    type=option.Integer(max=option.MOST_PATHS),
    default=64,
    show_default=True,
    help="How many paths.",
)
@click.option(
    "--horizon",
    type=float,
    default=6.0,
    show_default=True,
    help="SDE time to reach; k steps of the optimizer are k lr.",
)
@option.several(option.dt, option.method)
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
@option.several(option.observe, option.seed, option.json_file, option.save, option.snapshot)
def simulate(
    *,
    rule: shared.RuleRequest,
    micro: int | None,
    micro_batches: int | None,
    order: tuple[int, ...],
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
        equation = shared.derive_equation(rule.load_variant(), order, rule.replace, removed)
        if planning and (json_file, save, snapshot) != (None, None, None):
            raise ValueError("--plan writes nothing: leave --json, --save and --snapshot out")
        shared.check_outputs(json_file, save=save, snapshot=snapshot)
        problem = rule.load_problem()
        from sdesam._util.keys import seed_key
        from sdesam.sde import estimate
        from sdesam.sde import simulate as run

        norms = rule.norm_estimate()
        step = rule.lr if dt is None else dt
        with own_output():
            sde = equation.bind(
                problem,
                rule.lr,
                rule.rho,
                rule.batch,
                micro,
                expectation,
                eps=rule.eps,
                lam=rule.lam,
                norms=norms,
                micro_batches=micro_batches,
                **rule.numbers,
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
        shared.report_result(
            out,
            json_file,
            save,
            {**rule.problem_config, "seed": seed},
        )


@cli.command(cls=option.NamingCommand)
@shared.rule_request
@option.micro
@click.option(
    "--runs",
    type=option.Integer(max=option.MOST_PATHS),
    default=64,
    show_default=True,
    help="How many runs.",
)
@option.several(
    option.steps, option.observe, option.seed, option.json_file, option.save, option.snapshot
)
def train(
    *,
    rule: shared.RuleRequest,
    micro: int | None,
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
        shared.check_outputs(json_file, save=save, snapshot=snapshot)
        declared = rule.load_variant()
        problem = rule.load_problem()
        from sdesam._util.keys import seed_key
        from sdesam.optim import Chain
        from sdesam.optim import train as run

        norms = rule.norm_estimate()
        with own_output():
            chain = Chain(
                declared,
                problem,
                rule.lr,
                rule.rho,
                rule.batch,
                micro,
                rule.replace,
                eps=rule.eps,
                lam=rule.lam,
                norms=norms,
                **rule.numbers,
            )
            out = run(chain, seed_key(seed), runs, steps, observe=observe, snapshot=snapshot)
    shared.report_result(
        out,
        json_file,
        save,
        {**rule.problem_config, "seed": seed},
    )


@cli.command(cls=option.NamingCommand)
@shared.rule_request
@click.option(
    "--micro",
    type=option.IntegerList(),
    default=None,
    help="Micro-batch sizes to compare; left out, the mini-batch.",
)
@option.several(option.micro_batches, option.order)
@click.option(
    "--without",
    "term",
    metavar="TERM",
    default=None,
    help="The term to ablate.  [default: rho^1 variance, where there is one]",
)
@click.option(
    "--runs",
    type=option.Integer(max=option.MOST_PATHS),
    default=64,
    show_default=True,
    help="Runs of the optimizer and paths of each SDE.",
)
@option.several(option.steps, option.dt, option.method, option.observe)
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
@option.seed
@click.option(
    "--output",
    default="figures",
    show_default=True,
    type=option.Folder(),
    help="Folder for the figure and the numbers.",
)
@click.option("--name", default=None, help="Name of the files.  [default: compare-VARIANT-PROBLEM]")
@option.json_file
def compare(
    *,
    rule: shared.RuleRequest,
    micro: tuple[int, ...] | None,
    micro_batches: int | None,
    order: tuple[int, ...],
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
    """Set VARIANT beside its SDE, and beside the SDE with one term ablated; say whether they
    agree.

    For each micro-batch size: a table with standard errors, the share of the term's effect that the
    SDE explains with its 95 % interval, a verdict; a figure (PDF, PNG) and the numbers (JSON) in
    the output folder.

    \b
    Example: sdesam compare m-usam --problem digits --rho 0.1 --micro 16,4,1
    """
    with checking():
        declared = rule.load_variant()
        equation = shared.derive_equation(declared, order, rule.replace, ())
        problem = rule.load_problem()
        stem = f"compare-{declared.name}-{problem.name}" if name is None else name
        if not stem or Path(stem).name != stem:
            raise ValueError(
                f"--name {stem!r}: it must be a plain file name; --output names the folder"
            )
        shared.check_outputs(
            json_file, output=shared.with_suffixes(output, stem, ".json", ".pdf", ".png")
        )
        from sdesam.lab import plots
        from sdesam.verify.comparison import compare as run

        with own_output():
            found = run(
                declared,
                problem,
                lr=rule.lr,
                rho=rule.rho,
                batch=rule.batch,
                micro=tuple(dict.fromkeys(micro or ())),
                steps=steps,
                runs=runs,
                order=(equation.order[0], equation.order[1]),
                replace=rule.replace,
                without=term,
                observe=observe,
                judged=judged,
                method=method,
                dt=dt,
                seed=seed,
                eps=rule.eps,
                lam=rule.lam,
                norms=rule.norm_estimate(),
                micro_batches=micro_batches,
                halving=halving,
                **rule.numbers,  # type: ignore[arg-type]
            )
    data = found.to_json()
    data["config"] |= rule.problem_config
    deliver(
        None if json_file == "-" else f"{equation.text()}\n\n{found.table()}",
        partial(shared.write_or_print, str(Path(output, f"{stem}.json")), data),
        partial(plots.comparison, data, Path(output, stem)),
        partial(shared.write_or_print, json_file, data),
    )
    # a verdict other than `confirmed` comes first: values that are not finite are part of its
    # reason
    if found.status != "confirmed":
        return 1
    for row in found.rows:
        for label, out in (
            ("optimizer", row.chain),
            ("SDE", row.sde),
            ("SDE without the term", row.without),
        ):
            shared.check_finite(out, f"m = {row.micro}, {label}: ")
    return 0
