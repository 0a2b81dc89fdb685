"""The data of a picture: collected from the store, written, and read again to draw it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sdesam._util import store
from sdesam.lab._experiment import Config, Experiment, Preset
from sdesam.lab.runs import RunStore

SCHEMA = "sdesam.experiment/1"
_DIGITS = 5
"""Significant digits of the collected curves: far below their spread, and half the file."""


def collect(
    what: Experiment,
    configs: Sequence[Config],
    runs: RunStore,
    preset: Preset,
    command: str,
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """The runs that are there, with their summary, as the data of the picture.

    Args:
        what: the experiment.
        configs: its runs.
        runs: the store.
        preset: of the runs.
        command: that makes them.
        left_out: what was left out beforehand, in words (:func:`fit`).

    Raises:
        ValueError: none is there.
    """
    present = [runs.load(config) for config in configs if config in runs]
    if not present:
        raise ValueError(
            f"no run of experiment {what.name!r} is complete, so there is nothing to draw: give it"
            " more time"
        )
    # The 140 runs of `escape` share ten entries of their configuration, which are written once. ()
    # is no value of JSON, so that an entry which a run lacks is never common.
    common = {
        name: value
        for name, value in present[0].config.items()
        if all(run.config.get(name, ()) == value for run in present)
    }
    # A sweep that was stopped and went on may have runs of two versions or two machines. Each
    # origin is listed once, whenever it was.
    origins = {
        json.dumps({k: v for k, v in run.provenance.items() if k != "created"}, sort_keys=True): run
        for run in present
    }
    return {
        "schema": SCHEMA,
        "config": {"experiment": what.name, "preset": preset, "command": command, "common": common},
        "provenance": {"runs": [json.loads(origin) for origin in origins], **store.provenance()},
        "results": {
            "summary": _plain(what.summarise(present)),
            "left_out": len(configs) - len(present),
            "left out beforehand": list(left_out),
            "seconds": round(sum(run.seconds for run in present), 1),
            "runs": [
                {
                    "config": {
                        name: value for name, value in run.config.items() if name not in common
                    },
                    "seconds": run.seconds,
                    **_plain(run.numbers.values),
                    **{
                        name: _plain(a)
                        for name, a in run.numbers.arrays.items()
                        if not name.startswith("params.")
                    },
                }
                for run in present
            ],
        },
    }


def write(what: Experiment, data: Mapping[str, Any], folder: Path) -> list[Path]:
    """`NAME.json` in `folder/NAME` (of the full preset: `NAME-full.json`), and the picture."""
    preset = data["config"]["preset"]
    target = _source(what.name, folder, preset)
    text = json.dumps(store.plain(data), indent=1, allow_nan=False)
    store.write_atomically(target, lambda file: file.write((_lists_in_lines(text) + "\n").encode()))
    return [target, *draw(what, folder, preset)]


def drawable(name: str, folder: Path) -> list[Preset]:
    """The presets whose data are in `folder/NAME`."""
    return [preset for preset in get_args(Preset) if _source(name, folder, preset).exists()]


def draw(what: Experiment, folder: Path, preset: Preset = "quick") -> list[Path]:
    """The picture from the data in `folder/NAME`, and from nothing else.

    Raises:
        ValueError: the data are not there, damaged, incomplete, or of another schema.
    """
    from sdesam.lab import plots

    source = _source(what.name, folder, preset)
    data = read(what.name, folder, preset)
    try:
        return plots.experiment(what.figure, data, source.with_suffix(""))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"no picture can be drawn from the data {str(source)!r} ({type(error).__name__}:"
            f" {error}): if something is missing there, make them anew with `sdesam reproduce"
            f" {what.name}`"
        ) from error


def read(name: str, folder: Path, preset: Preset = "quick") -> dict[str, Any]:
    """The data of a picture, in `folder/NAME`.

    Raises:
        ValueError: they are not there, damaged, or of another schema.
    """
    source = _source(name, folder, preset)
    try:
        data = store.read_json(source)
    except FileNotFoundError:
        raise ValueError(
            f"there are no data {str(source)!r}: make them with `sdesam reproduce {name}`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the data {str(source)!r} are damaged: {error}") from error
    schema, config = (
        (data.get("schema"), data.get("config")) if isinstance(data, dict) else (None, None)
    )
    if schema != SCHEMA or not isinstance(config, dict) or config.get("experiment") != name:
        raise ValueError(
            f"the data {str(source)!r} have schema {schema!r}, and this version draws {SCHEMA!r} of"
            f" experiment {name!r}"
        )
    return dict(data)


def files(what: Experiment, folder: Path, preset: Preset) -> list[Path]:
    """The files that :func:`write` writes."""
    return [
        _source(what.name, folder, preset).with_suffix(suffix)
        for suffix in (".json", ".pdf", ".png")
    ]


def text(data: Mapping[str, Any]) -> str:
    """The verdicts of collected data, for people."""
    results = data["results"]
    lines = [f"{data['config']['experiment']}: {len(results['runs'])} runs"]
    if results["left_out"]:
        lines[0] += f", {results['left_out']} left out"
    lines += [
        f"  left out beforehand, for the minutes given: {what}"
        for what in results.get("left out beforehand", [])
    ]
    for line in results["summary"].get("lines", []):
        lines.append(f"  {line}")
    for name, verdict in results["summary"].get("verdicts", {}).items():
        lines.append(f"  {name}: {verdict['status']} - {verdict['reason']}")
    return "\n".join(lines)


def _source(name: str, folder: Path, preset: Preset) -> Path:
    """Where the data of a picture are."""
    return folder / name / (f"{name}.json" if preset == "quick" else f"{name}-{preset}.json")


def _plain(value: Any) -> Any:
    """`value` in JSON's types, numbers with few digits."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "tolist"):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def _lists_in_lines(text: str) -> str:
    """JSON with every list of numbers in one line."""
    return re.sub(
        r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text
    )
