"""`sdesam reproduce` and `figures`: a paper's figures from stored runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import click

from sdesam._util.terminal import checking, deliver, say
from sdesam.cli import _options as option
from sdesam.cli import _shared as shared
from sdesam.cli._group import cli

own_folder = click.option(
    "--experiments",
    "own",
    default=None,
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder of your own with experiments, in place of those of the package.",
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
    type=option.Assignment(),
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
    type=option.Folder(),
    help="Folder of the runs; a sweep goes on there.",
)
@click.option(
    "--output",
    default="figures",
    show_default=True,
    type=option.Folder(),
    help="Folder for the pictures and their data.",
)
@own_folder
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
    own: Path | None,
) -> None:
    """Reproduce figures and tables of a paper: make the runs that the store lacks, test, draw.

    NAME is an experiment, or `all`. Runs are stored one by one, so a sweep that was stopped goes on
    where it was. Verdicts are printed, whichever they are: a finished reproduction ends with status
    0. Dask workers need this package, and a folder of your own under the same path.

    \b
    Example: sdesam reproduce escape --preset quick
             sdesam reproduce escape --preset full --data cifar-10-python.tar.gz --minutes 60
    """
    from sdesam import lab
    from sdesam.lab.runs import RunStore

    with checking():
        known = lab.names(own)
        if listing:
            for name in known:
                quick, full = (lab.experiment(name, which, own) for which in ("quick", "full"))
                more = (
                    "the same with more seeds"
                    if quick.full is None
                    else f"{full.title}; options: {shared.listed(full.defaults)}"
                )
                say(
                    f"{name:<22}{quick.title} ({quick.shows}); options:"
                    f" {shared.listed(quick.defaults)}\n{'':<22}  --preset full: {more}"
                )
            return
        if not names:
            raise ValueError(f"nothing to reproduce: name experiments, or all ({', '.join(known)})")
        chosen = [
            lab.experiment(name, preset, own)  # type: ignore[arg-type]
            for name in (known if "all" in names else dict.fromkeys(names))
        ]
        if data is not None and not any(what.data for what in chosen):
            raise ValueError(
                f"--data: {', '.join(what.name for what in chosen)} with --preset {preset} needs no"
                " data set; leave it out"
            )
        for what in chosen:
            what.configurations(preset, dict(options))  # type: ignore[arg-type]
            lab.check(what, minutes, data)
        runs = RunStore(store_folder)
        runs.check_room()
        folder = Path(output)
        shared.check_outputs(
            None,
            output=[file for what in chosen for file in lab.files(what, folder, preset)],  # type: ignore[arg-type]
        )
    # All that can be refused has been refused. From here on an experiment whose run fails ends the
    # command, and what was stored before is found by the next one.
    for what in chosen:
        begun = monotonic()
        with checking(ValueError):  # minutes, or a store in use; a run that fails is a RuntimeError
            fitting, left_out = lab.fit(what, dict(options), runs, minutes, data)
            configs = what.configurations(preset, fitting)  # type: ignore[arg-type]
            remaining = None if minutes is None else max(minutes - (monotonic() - begun) / 60, 1e-3)
            done = lab.sweep(
                what,
                configs,
                runs,
                minutes=remaining,
                scheduler=scheduler,
                data=data if what.data else None,
            )
        given = "".join(
            f" --option {name}={shared.as_word(value)}" for name, value in fitting.items()
        )
        command = (
            f"sdesam reproduce {what.name} --preset"
            f" {preset}{given}{' --data PATH' if what.data else ''}"
            f"{'' if own is None else f' --experiments {own}'}"
        )
        found = lab.collect(what, configs, runs, preset, command, left_out)  # type: ignore[arg-type]
        deliver(f"{what.name}: {done}\n{lab.text(found)}", partial(lab.write, what, found, folder))


@cli.command()
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option(
    "--output",
    default="figures",
    show_default=True,
    type=option.Folder(),
    help="Folder of the data and the pictures.",
)
@own_folder
def figures(names: tuple[str, ...], output: str, own: Path | None) -> None:
    """Draw the pictures of experiments from their stored data, and from nothing else; without NAME,
    all whose data are there.

    \b
    Example: sdesam figures escape
    """
    from sdesam import lab

    folder = Path(output)
    with checking():
        presets = {
            lab.experiment(name, folder=own).name: lab.drawable(name, folder)
            for name in names or lab.names(own)
        }
        if not any(presets.values()) and not names:
            raise ValueError(
                f"there are no data in {output!r}: make them with `sdesam reproduce all`"
            )
        drawn = [
            (lab.experiment(name, preset, own), preset, lab.read(name, folder, preset))
            for name in presets
            for preset in presets[name]
            or (["quick"] if names else [])  # without data: the sentence that says so
        ]
        shared.check_outputs(
            None,
            output=[file for what, preset, _ in drawn for file in lab.files(what, folder, preset)],
        )
    for what, preset, _ in drawn:
        deliver("", partial(lab.draw, what, folder, preset))
