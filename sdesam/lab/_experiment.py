"""What a module of the folder `experiments` declares: its runs, how one is executed, what they say,
how the picture is drawn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdesam._util.checks import check_int, check_positive
from sdesam.lab.runs import Numbers, Run

Config = Mapping[str, Any]
Preset = Literal["quick", "full"]


def _nothing(config: Config) -> list[Config]:
    return []


@dataclass(frozen=True)
class Experiment:
    """What a module of `experiments` declares.

    Args:
        name: of the module, too.
        title: a few words.
        shows: what it reproduces, and of what paper.
        runs: `(preset, **options) -> configurations`, seed by seed, so that a sweep cut short has
            whole seeds. All that a run depends on is in its configuration.
        execute: `(configuration, needed runs, device) -> Numbers`; arrays whose name begins with
            `params.` stay in the store.
        summarise: `(runs) -> summary`, JSON's types and this package's dataclasses;
            `summary["verdicts"]` maps a claim to its verdict and reason.
        figure: `(collected data) -> matplotlib figure`.
        needs: `configuration -> configurations` of the runs that must be there before it.
        epoch_seconds: `(configuration, device) -> seconds` that one epoch takes, measured, for
            `--minutes`; a data set comes third.
        alone: whether a run uses all devices by itself, or its time is recorded.
        data: `path -> data set` that the runs need, given with `--data`, read once, None refused;
            `execute` takes it as a fourth argument.
        fit:
            `(measured run, minutes, options, names of those that stay)
            -> (changed options, what was left out, in words)`.
            The measured run is the first configuration, with the seconds of what it needs; the
            second is one that `epoch_seconds` can measure.
        full: the full preset, where it is another experiment and not only more seeds.
        folder: the user's own folder that it was found in; None: that of this project.
    """

    name: str
    title: str
    shows: str
    runs: Callable[..., Sequence[Config]]
    execute: Callable[..., Numbers]
    summarise: Callable[[Sequence[Run]], dict[str, Any]]
    figure: Callable[[Mapping[str, Any]], Any]
    needs: Callable[[Config], Sequence[Config]] = _nothing
    epoch_seconds: Callable[..., float] | None = None
    alone: bool = False
    data: Callable[[str | None], Any] | None = None
    fit: (
        Callable[[Run, float, Mapping[str, Any], Collection[str]], tuple[dict[str, Any], list[str]]]
        | None
    ) = None
    full: Experiment | None = None
    folder: Path | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """The options and their values where they are not given."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.runs).parameters.items()
            if name != "preset"
        }

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """`options` as numbers and tuples.

        Raises:
            ValueError: an option that this experiment does not have, or a value that does not do:
                counts are whole numbers of at least 1, and where there are several, with commas
                between.
        """
        asked = dict(options)
        known = self.defaults
        for name, value in asked.items():
            if name in known and isinstance(known[name], tuple):
                several = (
                    value.split(",")
                    if isinstance(value, str)
                    else value
                    if isinstance(value, (list, tuple))
                    else [value]
                )
                asked[name] = tuple(
                    check_int(name, int(one) if str(one).strip().isdigit() else one)
                    for one in several
                )
            elif name in known:
                asked[name] = (
                    check_positive(name, value)
                    if isinstance(known[name], float)
                    else check_int(name, value)
                )
            else:
                raise ValueError(
                    f"experiment {self.name!r} has no option {name!r}: its options are"
                    f" {', '.join(known) or 'none'}"
                )
        return asked

    def configurations(
        self, preset: Preset, options: Mapping[str, Any] | None = None
    ) -> list[Config]:
        """The runs of a preset, in order.

        Raises:
            ValueError: as :meth:`checked`, or there are none.
        """
        asked = self.checked(options or {})
        configs = list(self.runs(preset, **asked))
        if not configs:
            raise ValueError(
                f"experiment {self.name!r} has no runs with {asked or preset}: ask for at least one"
                " seed"
            )
        return configs
