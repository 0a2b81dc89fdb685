"""Experiments: figures and tables of a paper, each as runs in a store, statistics with a verdict,
and a picture.

    runs(preset) --execute, one by one--> RunStore --collect--> figures/NAME/NAME.json --figure-->
    NAME.pdf, NAME.png    (full preset: NAME-full)

An experiment is a module of the folder `experiments` (of this project, or of a user's own) with an
`EXPERIMENT`. Runs are resumed where a
sweep was killed; pictures are drawn from the collected JSON alone.
"""

from sdesam._bundled import import_folder
from sdesam.reproduce._data import (
    SCHEMA,
    collect,
    draw,
    drawable,
    files,
    read,
    text,
    write,
)
from sdesam.reproduce._experiment import Config, Experiment, Preset
from sdesam.reproduce._folder import experiment, names
from sdesam.reproduce._sweep import Sweep, check, fit, sweep
from sdesam.reproduce._workers import LostCluster

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
