"""Experiments: figures and tables of a paper, each as runs in a store, statistics with a verdict,
and a picture.

    runs(preset) --execute, one by one--> RunStore --collect--> figures/NAME/NAME.json --figure-->
    NAME.pdf, NAME.png    (full preset: NAME-full)

An experiment is a module of the folder `experiments` (of this project, or of a user's own) with an
`EXPERIMENT`. Runs are resumed where a
sweep was killed; pictures are drawn from the collected JSON alone.
"""

from sdesam._util.bundled import import_folder
from sdesam.lab._data import (
    SCHEMA,
    collect,
    draw,
    drawable,
    files,
    read,
    text,
    write,
)
from sdesam.lab._experiment import Config, Experiment, Preset
from sdesam.lab._folder import experiment, names
from sdesam.lab._sweep import Sweep, check, fit, sweep
from sdesam.lab._workers import LostCluster

__all__ = [
    "SCHEMA",
    "Config",
    "Experiment",
    "LostCluster",
    "Preset",
    "Sweep",
    "check",
    "collect",
    "draw",
    "drawable",
    "experiment",
    "files",
    "fit",
    "import_folder",
    "names",
    "read",
    "sweep",
    "text",
    "write",
]
