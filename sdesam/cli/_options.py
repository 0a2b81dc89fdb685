"""The options that several commands have, and the types of their values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from sdesam.variants import VARIANTS
from sdesam.variants._base import Law

Command = TypeVar("Command", bound=Callable[..., Any])

OBSERVABLES = "loss,grad_norm2,trace_cov"

MOST_SEED = 2**32 - 1
"""See :mod:`sdesam._util.keys`, which needs jax."""

MOST_PATHS = 2**32

MOST_COUNTED = 2**31 - 1


class IntegerList(click.ParamType[Any]):
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


class Integer(click.IntRange):
    """Whole numbers up to a limit, beyond which nothing can be counted."""

    name = "integer"


class Folder(click.Path):
    """A folder, which need not be there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value or self.fail(
            "the name is empty: name a folder, or . for the current one", param, ctx
        )


class Names(click.ParamType[Any]):
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


class Assignment(click.ParamType[Any]):
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


def several(*many: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(many):
            command = option(command)
        return command

    return decorate


variant = click.argument("variant", metavar="VARIANT")


class NamingCommand(click.Command):
    """A command whose help ends with the names of variants, problems and observables."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names; problems need jax, so that they are imported for the help alone."""
        from sdesam.problems.loading import READY

        variants = "\n".join(f"  {v.name:<15} {v.summary}" for v in VARIANTS.values())
        self.epilog = (
            f"\b\nVariants:\n{variants}\n  or your own: module:NAME, path/to/file.py:NAME of a"
            f" sdesam.Variant\n\n\b\nProblems: {', '.join(READY)},\n  or your own:"
            " module:function, path/to/file.py:function\n\n\b\nObservables: loss, grad_norm2,"
            " trace_cov, and the problem's own (digits: train_accuracy, test_accuracy)"
        )
        super().format_epilog(ctx, formatter)


order = click.option(
    "--order",
    type=IntegerList(),
    default="2,3",
    show_default=True,
    help="(alpha, beta): weak error eta^alpha + rho^beta.",
)

replace = click.option(
    "--replace/--no-replace",
    default=True,
    show_default=True,
    help="Draw mini-batches with replacement.",
)

term = click.option(
    "--without",
    "removed",
    multiple=True,
    metavar="TERM",
    help="Leave a named term out; may be repeated.",
)

json_file = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False),
    help="Also write JSON to this file ('-': standard output only).",
)

setting = several(
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
        type=Assignment(),
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
        type=Integer(max=MOST_COUNTED),
        default=16,
        show_default=True,
        help="Mini-batch size b.",
    ),
)

perturbation = several(
    click.option(
        "--eps",
        type=float,
        default=0.0,
        show_default=True,
        help="Normalised variants: of the norm sqrt(|g|^2 + eps^2).",
    ),
    click.option(
        "--number",
        "own",
        type=Assignment(),
        multiple=True,
        help="A number of the rule's own, such as sigma=0.9 for f-sam.",
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
        type=Integer(max=MOST_COUNTED),
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

micro_batches = click.option(
    "--micro-batches",
    type=Integer(max=MOST_COUNTED),
    default=None,
    help="sam, m-sam, rw-sam: fresh micro-batches of a step.  [default: all, or n/2]",
)

micro = click.option(
    "--micro",
    type=Integer(max=MOST_COUNTED),
    default=None,
    help="Micro-batch size m; left out, the mini-batch.",
)

observe = click.option(
    "--observe", type=Names(), default=OBSERVABLES, show_default=True, help="Observables."
)

seed = click.option(
    "--seed",
    type=Integer(0, MOST_SEED),
    default=0,
    show_default=True,
    help="Seed of everything random.",
)

save = click.option(
    "--save",
    type=click.Path(dir_okay=False),
    help="Also write everything, final states included, to this .npz file.",
)

steps = click.option(
    "--steps",
    type=Integer(max=MOST_COUNTED),
    default=60,
    show_default=True,
    help="Optimizer steps.",
)

method = click.option(
    "--method",
    type=click.Choice(["heun", "euler", "richardson"]),
    default="heun",
    show_default=True,
    help="heun: small-noise Heun.",
)

snapshot = click.option(
    "--snapshot",
    type=click.Path(dir_okay=False),
    help="Write the state of the run to this file every minute; if it is there, go on from it.",
)

dt = click.option("--dt", type=float, default=None, help="Time step; left out, lr.")
