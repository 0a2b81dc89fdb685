"""The folder `experiments`: where it is, and what lies in it."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from sdesam._util.names import unknown
from sdesam.lab._experiment import Experiment, Preset


def names() -> list[str]:
    """The experiments there are.

    Raises:
        ValueError: the folder `experiments` is not at hand.
    """
    folder = _package()
    modules = sorted(
        m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_")
    )
    return [
        name for name in modules if "EXPERIMENT" in _text(Path(folder.__path__[0]) / f"{name}.py")
    ]


def experiment(name: str, preset: Preset = "quick") -> Experiment:
    """The experiment called `name`, as it is in a preset.

    Raises:
        ValueError: no such experiment; the message lists them.
    """
    if name not in names():
        raise unknown("experiment", name, names())
    found = importlib.import_module(f"{_package().__name__}.{name}").EXPERIMENT
    assert isinstance(found, Experiment)
    assert found.name == name
    return found.full if preset == "full" and found.full is not None else found


def import_folder(place: Path) -> ModuleType:
    """The package in a folder, loaded from there under a name of ours.

    `experiments/` becomes the module `sdesam_experiments`, and `experiments/escape.py` the module
    `sdesam_experiments.escape`. So neither Python's path nor a package of somebody else's that is
    called `experiments` has a say in what is loaded. Modules of the folder import each other by
    `from . import ...`.

    Raises:
        ValueError: this process has another folder of that name in use.
    """
    name = f"sdesam_{place.name}"
    if (known := sys.modules.get(name)) is not None:
        used = Path(str(known.__file__)).resolve().parent
        if used == place.resolve():
            return known
        raise ValueError(
            f"this process has the folder {str(used)!r} in use, and not {str(place)!r}: start a new"
            " process for that one"
        )
    spec = importlib.util.spec_from_file_location(
        name, place / "__init__.py", submodule_search_locations=[str(place)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _package() -> ModuleType:
    """The folder `experiments`: the first on Python's path, in the checkout or in the current
    folder that holds experiments.
    """
    for place in (*map(Path, sys.path), Path(__file__).resolve().parents[2], Path.cwd()):
        if _holds_experiments(place / "experiments"):
            return import_folder(place / "experiments")
    raise ValueError(
        "the folder `experiments` is not at hand: run this in a checkout of sdesam, where it lies"
    )


# A folder called `experiments` is common. It is ours, or a user's made for this program, if one of
# its files has the words EXPERIMENT and sdesam in it. Files are read as text for this, because
# importing somebody's file would run it.
def _holds_experiments(folder: Path) -> bool:
    """Whether a package holds an experiment of this project; it is read and not run, for it may be
    anyone's.
    """
    if not (folder / "__init__.py").is_file():
        return False
    return any(
        "EXPERIMENT" in text and "sdesam" in text for text in map(_text, folder.glob("*.py"))
    )


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""
