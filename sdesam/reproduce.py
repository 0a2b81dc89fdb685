"""Experiments: figures and tables of a paper, each as runs in a store, statistics with a verdict,
and a picture.

    runs(preset) --execute, one by one--> RunStore --collect--> figures/NAME/NAME.json --figure-->
    NAME.pdf, NAME.png    (full preset: NAME-full)

An experiment is a module of the folder `experiments` with an `EXPERIMENT`. Runs are resumed where a
sweep was killed; pictures are drawn from the collected JSON alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import pkgutil
import queue
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from tqdm.auto import tqdm

from sdesam import store
from sdesam._checks import check_int, check_positive
from sdesam._names import unknown
from sdesam.runs import Numbers, Run, RunStore, key

Config = Mapping[str, Any]
Preset = Literal["quick", "full"]

SCHEMA = "sdesam.experiment/1"
_DIGITS = 5
"""Significant digits of the collected curves: far below their spread, and half the file."""
_CONNECT_SECONDS = 10
_LOOK_SECONDS = 5.0
"""Seconds between two looks whether a cluster still has workers."""
_LONELY_SECONDS = 30.0
"""Seconds without a worker after which a sweep ends; a worker that its nanny starts anew is there
by then.
"""
_FETCH_SECONDS = 60.0
"""Seconds in which the numbers of a run come from its worker."""


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
    found = importlib.import_module(f"experiments.{name}").EXPERIMENT
    assert isinstance(found, Experiment)
    assert found.name == name
    return found.full if preset == "full" and found.full is not None else found


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
        workers = _Cluster(what, data, scheduler) if scheduler is not None else _Here(what, data)
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
    common = {
        name: value
        for name, value in present[0].config.items()
        if all(run.config.get(name, ()) == value for run in present)
    }
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
    from sdesam import plots

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


class _Here:
    """This machine: one run at a time on each device."""

    def __init__(self, what: Experiment, data: str | None):
        import jax

        self.what, self.data = what, data
        self.devices: queue.SimpleQueue[Any] = queue.SimpleQueue()
        some = jax.devices()[:1] if what.alone else jax.devices()
        for device in some:
            self.devices.put(device)
        self.places = len(some)
        self.pool = ThreadPoolExecutor(self.places)
        self.feeding = True

    def submit(
        self, config: Config, needed: Sequence[Run]
    ) -> Future[tuple[Numbers, float, dict[str, Any]]]:
        """Begin a run."""
        return self.pool.submit(self._work, config, needed)

    def _work(self, config: Config, needed: Sequence[Run]) -> tuple[Numbers, float, dict[str, Any]]:
        device = self.devices.get()
        try:
            return _timed(self.what, config, needed, device, self.data)
        finally:
            self.devices.put(device)

    def next(self, pending: Iterable[Any]) -> set[Any]:
        """Wait until a run is complete."""
        return wait(pending, return_when=FIRST_COMPLETED).done

    def result(self, future: Any) -> tuple[Numbers, float, dict[str, Any]]:
        """What a complete run found; an error of the run is raised."""
        found: tuple[Numbers, float, dict[str, Any]] = future.result()
        return found

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)


class LostCluster(RuntimeError):
    """A cluster that has no workers any more, or no scheduler."""


_GO_ON = (
    "the runs that came back are stored; when there are workers again, the same sweep goes on from"
    " there"
)


class _Cluster(_Here):
    """The workers of a Dask scheduler. Runs come back to this process, which alone writes the
    store: each is written once, whoever made it.
    """

    def __init__(self, what: Experiment, data: str | None, address: str):
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError("--scheduler needs Dask: pip install 'sdesam[dask]'") from error
        try:
            self.client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise OSError(
                f"no Dask scheduler answers at {address!r}: start one with `dask scheduler`, and"
                " workers with `dask worker`"
            ) from error
        self.what, self.data, self.address = what, data, address
        self.feeding = True
        # some runs in store for every thread, so that none waits for this process
        self.places = max(2, 2 * self._threads())

    def submit(self, config: Config, needed: Sequence[Run]) -> Any:
        """Send a run to the cluster."""
        return self.client.submit(
            _remote,
            self.what.name,
            dict(config),
            list(needed),
            self.data,
            pure=False,
            key=f"{self.what.name}-{key(config)}",
        )

    def next(self, pending: Iterable[Any]) -> set[Any]:
        """Wait until a run has come back; Dask gives a lost worker's runs to another."""
        from distributed import wait as wait_for

        with self.client.as_current():
            futures = list(pending)
            return set(
                self._patiently(
                    lambda: (
                        wait_for(futures, timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED").done
                    )
                )
            )

    def result(self, future: Any) -> tuple[Numbers, float, dict[str, Any]]:
        """What a run found; where its worker was lost before that was fetched, another makes the
        run again.
        """
        found: tuple[Numbers, float, dict[str, Any]] = self._patiently(
            lambda: future.result(timeout=_FETCH_SECONDS), future
        )
        return found

    def _patiently(self, call: Callable[[], Any], future: Any = None) -> Any:
        """Call until it comes back in time, as long as the cluster lives; `future` may have an
        error of its own.

        Raises:
            LostCluster: there has been no worker for a while, or the scheduler is gone.
        """
        begun = time.monotonic()
        while True:
            try:
                return call()
            except CancelledError:
                raise LostCluster(
                    f"the Dask scheduler {self.address!r} is gone: {_GO_ON}"
                ) from None
            except TimeoutError:
                if future is not None and future.status == "error":
                    raise
            if self._threads():
                begun = time.monotonic()
            elif time.monotonic() - begun >= _LONELY_SECONDS:
                raise LostCluster(
                    f"the Dask scheduler {self.address!r} has had no worker for"
                    f" {_LONELY_SECONDS:.0f} s: {_GO_ON}"
                )

    def _threads(self) -> int:
        """How many runs the workers can make at a time."""
        try:
            return sum(self.client.nthreads(callback_timeout=_CONNECT_SECONDS).values())
        # a scheduler that does not answer, or a connection that is closed
        except (
            OSError,
            RuntimeError,
        ):
            return 0

    def __exit__(self, *error: object) -> None:
        self.client.close(timeout=_CONNECT_SECONDS)


def _remote(
    name: str, config: Config, needed: Sequence[Run], data: str | None
) -> tuple[Numbers, float, dict[str, Any]]:
    import jax

    return _timed(
        experiment(name, "quick" if data is None else "full"),
        config,
        needed,
        jax.devices()[0],
        data,
    )


def _timed(
    what: Experiment, config: Config, needed: Sequence[Run], device: Any, data: str | None
) -> tuple[Numbers, float, dict[str, Any]]:
    given = _given(what, data)
    begun = time.monotonic()
    numbers = what.execute(config, needed, device, *given)
    return numbers, time.monotonic() - begun, store.provenance()


def _feed(
    stage: Sequence[Config], workers: _Here, runs: RunStore, what: Experiment
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


def _given(what: Experiment, data: str | None) -> list[Any]:
    """The data set, for an experiment that needs one."""
    return [] if what.data is None else [what.data(data)]


def _check_budget(what: Experiment, config: Config, minutes: float, data: str | None) -> None:
    """Refuse a time in which not even one epoch of the first run fits."""
    import jax

    if what.epoch_seconds is None:
        return
    epoch = what.epoch_seconds(config, jax.devices()[0], *_given(what, data))
    if epoch > 60 * minutes:
        raise ValueError(
            f"--minutes {minutes:g} is too small: one epoch of experiment {what.name!r} takes"
            f" {epoch / 60:.2g} minutes here"
        )


def import_folder(place: Path) -> ModuleType:
    """The package in a folder, whatever else of its name lies on Python's path.

    Raises:
        ValueError: another package of the name is in use already.
    """
    name = place.name
    if (known := sys.modules.get(name)) is not None:
        if known.__file__ is not None and Path(known.__file__).resolve().parent == place.resolve():
            return known
        raise ValueError(
            f"this process has another package {name!r} in use, {known.__file__}: rename that one,"
            " or start a new process"
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
    for place in (*map(Path, sys.path), Path(__file__).resolve().parent.parent, Path.cwd()):
        if _holds_experiments(place / "experiments"):
            return import_folder(place / "experiments")
    raise ValueError(
        "the folder `experiments` is not at hand: run this in a checkout of sdesam, where it lies"
    )


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
