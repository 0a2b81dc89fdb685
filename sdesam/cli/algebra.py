"""`sdesam derive`: the equation of a variant, by algebra."""

from __future__ import annotations

import click

from sdesam._util.terminal import checking, say
from sdesam.cli import _options as option
from sdesam.cli import _shared as shared
from sdesam.cli._group import cli


@cli.command(cls=option.NamingCommand)
@option.several(option.variant, option.order, option.replace, option.term)
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
        equation = shared.derive_equation(shared.load_variant(variant), order, replace, removed)
    if form == "text":
        say(equation.text())
    elif form == "latex":
        say(equation.latex())
    else:
        config = {"variant": variant, "order": order, "replace": replace, "without": removed}
        shared.write_or_print(
            "-", shared.described("sdesam.equation/1", config, equation.to_json())
        )
