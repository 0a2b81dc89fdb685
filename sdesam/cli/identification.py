"""`sdesam identify`: the trees that an optimizer's step consists of, read off its steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from sdesam._util.terminal import checking, deliver, own_output
from sdesam.cli import _options as option
from sdesam.cli import _shared as shared
from sdesam.cli._group import cli


@cli.command(cls=option.NamingCommand)
@click.argument("variant", metavar="[VARIANT]", required=False)
@click.option(
    "--step",
    metavar="MODULE:FUNCTION",
    help="In place of VARIANT: a direction (x, samples, rho) of your own, with --problem.",
)
@click.option(
    "--problem",
    "problem_name",
    default=None,
    help="Where to look; left out, random problems that tell all trees apart.",
)
@click.option(
    "--problem-arg",
    "problem_args",
    type=option.Assignment(),
    multiple=True,
    help="An argument of the problem, such as samples=5.",
)
@click.option(
    "--sizes",
    type=option.Assignment(),
    multiple=True,
    metavar="B=M",
    help="Mini-batch and micro-batch size, such as 4=2; may be repeated.  [default: chosen]",
)
@option.several(option.order, option.replace)
@click.option(
    "--eps", type=float, default=0.0, help="Normalised variants: of the norm sqrt(|g|^2 + eps^2)."
)
@click.option("--lam", type=float, default=None, help="rw-sam: inverse temperature of the weights.")
@click.option(
    "--number",
    "own",
    type=option.Assignment(),
    multiple=True,
    help="A number of the rule's own, such as sigma=0.5 for f-usam.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "latex"]),
    default="text",
    show_default=True,
)
@option.json_file
def identify(**given: Any) -> int:
    """Find the trees that the steps of VARIANT, or of a direction of your own, consist of.

    All batches are listed at several sizes; coefficients are fractions, and formulas in n, b, m.
    The exit status is 0 where every coefficient has a formula, and 1 where the step is no
    combination of plain trees, or the problem does not tell them apart.

    \b
    Example: sdesam identify m-usam --no-replace
    Example: sdesam identify --step ./mine.py:direction --problem ./mine.py:problem
    """
    variant, step, json_file = given["variant"], given["step"], given["json_file"]
    with checking():
        if (variant is None) == (step is None):
            raise ValueError("name a VARIANT, or a direction of your own by --step: one of the two")
        if given["problem_args"] and given["problem_name"] is None:
            raise ValueError("--problem-arg: it goes with --problem; name one")
        shared.check_outputs(json_file)
        rule = shared.load_variant(variant) if step is None else shared.load_direction(step)
        problem = None
        if given["problem_name"] is not None:
            problem = shared.load_problem(given["problem_name"], given["problem_args"])
        from sdesam.verify.identification import identify as identified

        with own_output():
            found = identified(
                rule,
                given["order"],
                problem,
                given["replace"],
                _sizes(given["sizes"]),
                eps=given["eps"],
                lam=given["lam"],
                **dict(given["own"]),
            )
    config = {name: given[name] for name in ("variant", "step", "order", "replace", "problem_name")}
    text = str(found) if given["form"] == "text" else found.latex()
    deliver(
        None if json_file == "-" else text,
        partial(
            shared.write_or_print,
            json_file,
            shared.described("sdesam.identification/1", config, found.to_json()),
        ),
    )
    return 0 if found.complete else 1


def _sizes(pairs: tuple[tuple[str, Any], ...]) -> list[tuple[int, int]] | None:
    """The pairs `(b, m)` of --sizes."""
    if not pairs:
        return None
    try:
        return [(int(b), int(m)) for b, m in pairs]
    except ValueError:
        raise ValueError(
            "--sizes: give the size of a mini-batch and that of a micro-batch, such as 4=2"
        ) from None
