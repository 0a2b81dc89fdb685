"""The folders of the repository that travel with the package: `experiments`, `benchmarks` and the
stored data of `figures`.

In a checkout they lie beside the package `sdesam`. In an installed package they lie inside it, as
`sdesam/_experiments`, `sdesam/_benchmarks` and `sdesam/_figures`, because a folder called
`experiments` beside other packages could be anyone's.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent.parent


def bundled(name: str) -> Path:
    """The folder `name` of this project, in the installed package or in the checkout.

    Neither Python's path nor the current folder is looked at.

    Raises:
        ValueError: the folder is in neither, so the installation is incomplete.
    """
    for place in (_PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise ValueError(
        f"this installation of sdesam lacks its folder {name!r}: install the package again, or run"
        " this in a checkout"
    )


# Two folders of one name, and what they are called as modules:
#
#     CHECKOUT/experiments/escape.py       sdesam_experiments.escape
#     /home/me/experiments/escape.py       sdesam_experiments_1f0c93aa.escape
#
# The second name has a hash of the place, so that both can be in use in one process.
def import_folder(place: Path) -> ModuleType:
    """The package in a folder, loaded from that folder under a name that no other module has.

    Modules of the folder import each other by `from . import ...`. The folder need not have an
    `__init__.py`, and Python's path has no say in what is loaded.
    """
    place = place.resolve()
    name = f"sdesam_{place.name.lstrip('_')}"
    if place.parent not in (_PACKAGE, _PACKAGE.parent):
        name += f"_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"
    if (known := sys.modules.get(name)) is not None:
        return known
    start = place / "__init__.py"
    if start.is_file():
        spec = importlib.util.spec_from_file_location(
            name, start, submodule_search_locations=[str(place)]
        )
        assert spec is not None
    else:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(place)]
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if spec.loader is not None:
        spec.loader.exec_module(module)
    return module
