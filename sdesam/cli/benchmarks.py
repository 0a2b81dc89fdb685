"""`sdesam bench`: speed beside other libraries."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path

import click

from sdesam._util.bundled import bundled, import_folder
from sdesam._util.terminal import checking, deliver
from sdesam.cli import _options as option
from sdesam.cli import _shared as shared
from sdesam.cli._group import cli


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
    type=option.Folder(),
    help="Folder for the table, the picture and the numbers.",
)
@option.json_file
def bench(workloads: tuple[str, ...], quick: bool, output: str, json_file: str | None) -> None:
    """Measure speed beside diffrax, torchsde, numpy and floors, in turn on this machine; some
    minutes.

    Targets of the project are printed as reached or not. Run it on a machine that does nothing
    else. Peers that are not installed do not take part; the extra `sdesam[bench]` has them.

    \b
    Example: sdesam bench --workload W1
    """
    with checking():
        shared.check_outputs(
            json_file, output=shared.with_suffixes(output, "bench", ".json", ".md", ".pdf", ".png")
        )
        benchmark = import_module(f"{import_folder(bundled('benchmarks')).__name__}.bench")

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
        partial(shared.write_or_print, f"{stem}.json", data),
        partial(shared.write_text, Path(f"{stem}.md"), f"{benchmark.table(data)}\n"),
        *([partial(benchmark.draw, data, stem)] if "W1" in data["results"] else []),
        partial(shared.write_or_print, json_file, data),
    )
