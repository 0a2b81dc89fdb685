"""A claim that an experiment measures: the claim reads the experiment's stored result.

The trends and the p-values are those of the experiment, from `figures/NAME/NAME.json`. What the
claim adds are controls, on the same stored runs: the conditions in another order must not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sdesam import lab
from sdesam._util.bundled import bundled
from sdesam.claims._base import Control, Measurement, Outcome, Preset
from sdesam.verify import statistics
from sdesam.verify.statistics import ALPHA

_BASIS = (
    "a p-value of the order (Page's exact test, paired by seed, Holm over all tests of the"
    f" experiment; 1 if a step is less than its standard error) of at most {ALPHA:g}: one false"
    f" alarm in {1 / ALPHA:.0f} where there is no trend"
)


@dataclass(frozen=True)
class StoredTrend:
    """A trend over the micro-batch sizes of m-SAM in a stored experiment.

    Args:
        test: its name among the tests of the experiment.
        what: what is said to rise or fall.
        observable: its name in the stored runs; the last value of a curve is taken.
        direction: as `m` falls.
        where: entries that the configuration of a run must have.
    """

    test: str
    what: str
    observable: str
    direction: statistics.Direction
    where: Mapping[str, Any]

    def table(self, data: Mapping[str, Any]) -> tuple[list[int], np.ndarray]:
        """The sizes `m`, the largest first, and the last values, shape `(seeds, sizes)`; a seed
        that lacks a size, or diverged at one, is left out.
        """
        found: dict[int, dict[int, float]] = {}
        for run in data["results"]["runs"]:
            config = {**data["config"]["common"], **run["config"]}
            config |= config.get("of", {})  # a measurement at the end of a training run
            wanted = {"variant": "m-sam", **self.where}
            if run.get("diverged") or any(config.get(k) != v for k, v in wanted.items()):
                continue
            last = np.ravel(run[self.observable])[-1]
            found.setdefault(config["seed"], {})[config["micro"]] = float(last)
        sizes = sorted({m for row in found.values() for m in row}, reverse=True)
        return sizes, np.array(
            [[row[m] for m in sizes] for row in found.values() if len(row) == len(sizes)]
        )


def trend(
    what: str, micro: list[int], table: np.ndarray, found: statistics.Trend
) -> tuple[Measurement, tuple[Control, ...]]:
    """The predicted order as a measurement that its p-value is small. Controls: any two neighbours
    exchanged, and values permuted within seeds.

    An exchanged order passes where the two sizes of m do not differ; permuted values pass by
    chance, in one case of a hundred.
    """
    direction = found.direction
    measurement = Measurement(
        f"p-value that {what} {direction} as m falls, {', '.join(map(str, micro))} (means"
        f" {', '.join(f'{v:.4g}' for v in table.mean(axis=0))})",
        0.0,
        found.p_order,
        ALPHA,
        _BASIS,
        unclear=found.verdict() == "inconclusive",
    )
    controls = []
    for k, (first, second) in enumerate(pairwise(micro)):
        order = [*range(k), k + 1, k, *range(k + 2, len(micro))]
        controls.append(
            Control(
                f"{what}: m = {first} and {second} exchanged",
                statistics.trend(table[:, order], direction).p_order,
                ALPHA,
            )
        )
    permuted = np.random.default_rng(0).permuted(table, axis=1)
    controls.append(
        Control(
            f"{what}: values permuted within seeds",
            statistics.trend(permuted, direction).p_order,
            ALPHA,
        )
    )
    return measurement, tuple(controls)


def from_experiment(
    name: str, trends: tuple[StoredTrend, ...], remark: str
) -> Callable[[Preset, int], Outcome]:
    """The `run` of a claim that experiment `name` measures.

    Without the stored result nothing is measured: the outcome is `inconclusive`, and its remark
    says which command makes it.
    """

    def run(preset: Preset, seed: int) -> Outcome:
        del seed  # the seeds are those of the stored runs
        place = _folder(name)
        stored = preset if preset in lab.drawable(name, place) else "quick"
        try:
            data = lab.read(name, place, stored)
        except ValueError as error:
            return Outcome((), (), str(error))
        measurements: list[Measurement] = []
        controls: list[Control] = []
        tables = {}
        summary = data["results"]["summary"]
        for each in trends:
            micro, table = each.table(data)
            # The order of conditions is tested on the stored runs again, so that a summary that
            # does not belong to its runs cannot pass. Holm's p is the experiment's: it depends on
            # all tests of the experiment.
            found = statistics.trend(table, each.direction).corrected(
                summary["p (Holm)"][each.test], len(summary["p (Holm)"])
            )
            measurement, more = trend(each.what, micro, table, found)
            measurements.append(measurement)
            controls += more
            tables[each.what] = table.tolist()
        command = data["config"]["command"]
        return Outcome(
            tuple(measurements),
            tuple(controls),
            f"Read from the stored runs of `{command}`. {remark}",
            tables,
        )

    return run


def _folder(name: str) -> Path:
    """The folder with the stored results of an experiment: `figures` where one works, or that of
    this project.
    """
    here = Path("figures")
    return here if lab.drawable(name, here) else bundled("figures")
