"""The folder `experiments`: what lies in it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path

from sdesam._util.bundled import bundled, import_folder
from sdesam._util.names import unknown
from sdesam.lab._experiment import Experiment, Preset


def names(folder: Path | None = None) -> list[str]:
    """The experiments there are.

    Args:
        folder: a folder of the user's own with experiments; left out, that of this project.

    Raises:
        ValueError: there is no such folder, or no module in it has an `EXPERIMENT`.
    """
    place = bundled("experiments") if folder is None else folder
    if not place.is_dir():
        raise ValueError(f"there is no folder {str(place)!r}: name one that holds experiments")
    modules = sorted(
        m.name for m in pkgutil.iter_modules([str(place)]) if not m.name.startswith("_")
    )
    # Files are read as text for this, because importing a module runs it.
    found = [name for name in modules if "EXPERIMENT" in _text(place / f"{name}.py")]
    if not found:
        raise ValueError(
            f"the folder {str(place)!r} holds no experiments: a module of it must have an"
            " EXPERIMENT = sdesam.lab.Experiment(...)"
        )
    return found


def experiment(name: str, preset: Preset = "quick", folder: Path | None = None) -> Experiment:
    """The experiment called `name`, as it is in a preset.

    Args:
        name: the name of its module.
        preset: `"quick"` or `"full"`.
        folder: a folder of the user's own with experiments; left out, that of this project.

    Raises:
        ValueError: no such experiment; the message lists them.
    """
    known = names(folder)
    if name not in known:
        raise unknown("experiment", name, known)
    package = import_folder(bundled("experiments") if folder is None else folder)
    module = importlib.import_module(f"{package.__name__}.{name}")
    found = getattr(module, "EXPERIMENT", None)
    if not isinstance(found, Experiment) or found.name != name:
        raise ValueError(
            f"{module.__file__}: EXPERIMENT must be a sdesam.lab.Experiment with"
            f" name={name!r}, like its module"
        )
    chosen = found.full if preset == "full" and found.full is not None else found
    return chosen if folder is None else replace(chosen, folder=folder.resolve())


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""
