"""`sdesam verify`: claims, signatures and mutants."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sdesam._util.terminal import checking, deliver, own_output, say, unread
from sdesam.cli import _options as option
from sdesam.cli import _shared as shared
from sdesam.cli._group import cli


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
    type=option.Assignment(),
    multiple=True,
    help="signature: an argument of the problem, such as samples=3.",
)
@option.several(option.order, option.replace)
@click.option(
    "--batch",
    type=option.Integer(max=option.MOST_COUNTED),
    default=2,
    show_default=True,
    help="signature: mini-batch size.",
)
@click.option(
    "--micro",
    type=option.Integer(max=option.MOST_COUNTED),
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
    "--number",
    "own",
    type=option.Assignment(),
    multiple=True,
    help="signature: a number of the rule's own, such as sigma=0.9 for f-sam.",
)
@click.option(
    "--square",
    is_flag=True,
    help=(
        "signature of rw-sam: weights from squares of norms, which are smooth where a gradient"
        " vanishes."
    ),
)
@option.seed
@click.option(
    "--output",
    type=option.Folder(),
    default=None,
    help=(
        "Folder for report.md, report.html and figures; left out, only the figure of a signature is"
        " drawn, in figures/."
    ),
)
@option.json_file
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
    own: tuple[tuple[str, Any], ...],
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
        # An option of the signature is an error beside a claim, where it would do nothing. Its help
        # text says which those are, so that there is no second list to keep.
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
            problem = shared.load_problem(problem_name, problem_args)
            asked = report.SignatureRequest(
                problem,
                shared.load_variant(variant),
                order,  # type: ignore[arg-type]
                replace,
                batch,
                micro,
                eps,
                lam,
                square,
                own,
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
        shared.check_outputs(json_file, output=files)

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
        partial(shared.write_or_print, json_file, found.to_json()),
    )
    return 0 if found.as_recorded else 1
