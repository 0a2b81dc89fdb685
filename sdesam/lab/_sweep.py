"""Making the runs that a store does not have yet, within a time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm.auto import tqdm

from sdesam._util import store
from sdesam.lab._experiment import Config, Experiment
from sdesam.lab._workers import Cluster, Here, LostCluster, given
from sdesam.lab.runs import RunStore, key


@dataclass
class Sweep:
    """What a sweep did.

    Args:
        done: runs made now.
        found: runs that were there already.
        left: configurations left out because the time was up.
        seconds: how long it took.
    """

    done: int = 0
    found: int = 0
    left: list[Config] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f"{self.done} runs made in {self.seconds:.0f} s, {self.found} found in the store"
        return text + (
            f", {len(self.left)} LEFT OUT because the time was up: start again to go on"
            if self.left
            else ""
        )


def sweep(
    what: Experiment,
    configs: Sequence[Config],
    runs: RunStore,
    *,
    minutes: float | None = None,
    scheduler: str | None = None,
    data: str | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Make the runs that the store does not have yet.

    Args:
        what: the experiment.
        configs: its runs.
        runs: where they are stored, each as soon as it is complete.
        minutes: begin no run that would not end within them; left out, make all.
        scheduler: the address of a Dask scheduler whose workers make the runs (extra `dask`); left
            out, this machine does, a run per device.
        data: where the data set is, for an experiment that needs one; for workers, on their
            machines.
        progress: show a bar; by default on a terminal.

    Raises:
        ValueError: `minutes` too small for one epoch, no or other `data` than the experiment needs,
            a damaged run in the store, or another sweep at work in it.
        OSError: the store cannot be written, or no such scheduler.
        RuntimeError: a run failed; the message says which.
        LostCluster: the cluster has no workers any more.
    """
    check(what, minutes, data)
    begun = time.monotonic()
    result = Sweep()
    with runs.sweep():
        whole = _stages(what, configs)
        for config in (c for stage in whole for c in stage if c in runs):
            runs.check(config)  # a damaged one is found now, and not after hours of work
        stages = [[c for c in stage if c not in runs] for stage in whole]
        result.found = len({key(c) for c in configs if c in runs})
        todo = sum(map(len, stages))
        workers = Cluster(what, data, scheduler) if scheduler is not None else Here(what, data)
        with (
            workers,
            tqdm(
                total=todo,
                desc=what.name,
                delay=2,
                leave=False,
                disable=None if progress is None else not progress,
            ) as bar,
        ):
            if minutes is not None and what.fit is None and any(stages):
                _check_budget(
                    what,
                    next(config for stage in reversed(stages) for config in stage),
                    minutes,
                    data,
                )
            longest = 0.0
            for stage in stages:
                for seconds in _feed(stage, workers, runs, what):
                    result.done += 1
                    longest = max(longest, seconds)
                    bar.update()
                    # of 2 minutes 85 s are gone and the longest run took 40 s: the next one may not
                    # end in time, and is not begun. Those in progress are waited for and stored.
                    if minutes is not None and time.monotonic() - begun + longest > 60 * minutes:
                        workers.feeding = False
    result.left = [c for stage in stages for c in stage if c not in runs]
    result.seconds = time.monotonic() - begun
    return result


def check(what: Experiment, minutes: float | None, data: str | None) -> None:
    """See before any work that there are minutes, and the data set that the experiment needs.

    Raises:
        ValueError: there are not, or it is another data set.
        OSError: it cannot be read.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ValueError(f"minutes={minutes:g}: it must be a number above 0")
    if what.data is not None:
        what.data(data)


def fit(
    what: Experiment,
    options: Mapping[str, Any],
    runs: RunStore,
    minutes: float | None,
    data: str | None = None,
    progress: bool | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Options with which the sweep fits into `minutes`, and what was left out for it, in words.

    What a step costs is measured first and stored, so that a sweep that goes on has the same plan.

    Args:
        what: the experiment; one without `fit` keeps its options.
        options: those given; they stay as they are.
        runs: the store.
        minutes: for all of the sweep; None: as long as it takes.
        data: where the data set is.
        progress: as in :func:`sweep`.

    Raises:
        ValueError: not one epoch of each optimizer fits; else as :func:`sweep`.
        OSError: as :func:`sweep`.
    """
    options = what.checked(options)
    if what.fit is None or minutes is None:
        return options, []
    check(what, minutes, data)
    measured, trained, *_ = what.configurations("full", options)
    if measured not in runs:
        _check_budget(what, trained, minutes, data)
        sweep(what, [measured], runs, data=data, progress=progress)
    spent = sum(runs.load(config).seconds for config in (measured, *what.needs(measured)))
    found, left_out = what.fit(
        replace(runs.load(measured), seconds=spent),
        minutes,
        {**what.defaults, **options},
        set(options),
    )
    return {**options, **found}, left_out


def _feed(
    stage: Sequence[Config], workers: Here, runs: RunStore, what: Experiment
) -> Iterator[float]:
    """Keep the workers busy until they are not fed any more; store every run as it comes back, and
    give its seconds.
    """
    waiting = iter(stage)
    pending: dict[Any, Config] = {}
    while True:
        while (
            workers.feeding
            and len(pending) < workers.places
            and (config := next(waiting, None)) is not None
        ):
            needed = what.needs(config)
            if all(c in runs for c in needed):  # else the time was up before them
                pending[workers.submit(config, [runs.load(c) for c in needed])] = config
        # With the time up there is nothing to feed, and the loop ends when the last pending run is
        # back.
        if not pending:
            return
        for future in workers.next(list(pending)):
            config = pending.pop(future)
            try:
                numbers, seconds, origin = workers.result(future)
            except LostCluster:
                raise
            except Exception as error:
                raise RuntimeError(
                    f"the run {json.dumps(store.plain(config))} failed: {type(error).__name__}:"
                    f" {error}"
                ) from error
            runs.save(config, numbers, seconds, origin)
            yield seconds


# A walk needs the start of its seed. Two seeds, two rates:
#
#     asked for     walk 0 a, walk 0 b, walk 1 a, walk 1 b
#     stages        [start 0, start 0, start 1, start 1], [walk 0 a, walk 0 b, walk 1 a, walk 1 b]
#     unique        [start 0, start 1],                   [walk 0 a, walk 0 b, walk 1 a, walk 1 b]
#
# The needed runs may need others, so that stages are put in front until nothing is needed. A stage
# begins when the one before is complete.
def _stages(what: Experiment, configs: Sequence[Config]) -> list[list[Config]]:
    """The runs without duplicates, what others need before what needs it."""
    stages = [list(configs)]
    while needed := [n for config in stages[0] for n in what.needs(config)]:
        stages.insert(0, needed)
    seen: set[str] = set()
    unique = []
    for stage in stages:
        unique.append([c for c in stage if key(c) not in seen and not seen.add(key(c))])  # type: ignore[func-returns-value]
    return unique


def _check_budget(what: Experiment, config: Config, minutes: float, data: str | None) -> None:
    """Refuse a time in which not even one epoch of the first run fits."""
    import jax

    if what.epoch_seconds is None:
        return
    epoch = what.epoch_seconds(config, jax.devices()[0], *given(what, data))
    if epoch > 60 * minutes:
        raise ValueError(
            f"--minutes {minutes:g} is too small: one epoch of experiment {what.name!r} takes"
            f" {epoch / 60:.2g} minutes here"
        )
