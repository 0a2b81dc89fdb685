"""The group that all commands are in."""

from __future__ import annotations

import click

from sdesam import __version__
from sdesam._util.terminal import Program

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


@click.group(
    cls=Program,
    epilog=_STATUS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
def cli() -> None:
    """SDE simulation and theory verification for sharpness-aware minimization."""
