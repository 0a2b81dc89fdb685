"""Who makes the runs of a sweep: this machine's devices, or the workers of a Dask scheduler."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from sdesam._util import store
from sdesam.lab._experiment import Config, Experiment
from sdesam.lab._folder import experiment
from sdesam.lab.runs import Numbers, Run, key

_CONNECT_SECONDS = 10
_POLL_SECONDS = 5.0
"""Seconds after which a cluster is asked again whether it still has workers."""
_WORKERLESS_SECONDS = 30.0
"""Seconds without a worker after which a sweep ends; a worker that its nanny starts anew is there
by then.
"""
_FETCH_SECONDS = 60.0
"""Seconds in which the numbers of a run come from its worker."""


class Here:
    """This machine: one run at a time on each device."""

    def __init__(self, what: Experiment, data: str | None):
        import jax

        self.what, self.data = what, data
        self.devices: queue.SimpleQueue[Any] = queue.SimpleQueue()
        some = jax.devices()[:1] if what.alone else jax.devices()
        for device in some:
            self.devices.put(device)
        self.places = len(some)
        # Threads and not processes: jax lets go of Python's lock while a device computes, and every
        # process would compile anew.
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
            return timed(self.what, config, needed, device, self.data)
        finally:
            self.devices.put(device)

    def next(self, pending: Iterable[Any]) -> set[Any]:
        """Wait until a run is complete."""
        return wait(pending, return_when=FIRST_COMPLETED).done

    def result(self, future: Any) -> tuple[Numbers, float, dict[str, Any]]:
        """What a complete run found; an error of the run is raised."""
        found: tuple[Numbers, float, dict[str, Any]] = future.result()
        return found

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)


class LostCluster(RuntimeError):
    """A cluster that has no workers any more, or no scheduler."""


_GO_ON = (
    "the runs that came back are stored; when there are workers again, the same sweep goes on from"
    " there"
)


class Cluster(Here):
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
            (self.what.name, self.what.folder),
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
                        wait_for(futures, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done
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
        # A call that times out means one of three things: the run is still being made (there are
        # workers: ask again), a worker died and its nanny starts another (none for a few seconds:
        # ask again), or the cluster is gone (none for half a minute: give up). Dask itself would
        # wait for ever in the third case.
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
            elif time.monotonic() - begun >= _WORKERLESS_SECONDS:
                raise LostCluster(
                    f"the Dask scheduler {self.address!r} has had no worker for"
                    f" {_WORKERLESS_SECONDS:.0f} s: {_GO_ON}"
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
    named: tuple[str, Path | None], config: Config, needed: Sequence[Run], data: str | None
) -> tuple[Numbers, float, dict[str, Any]]:
    import jax

    name, folder = named
    return timed(
        experiment(name, "quick" if data is None else "full", folder),
        config,
        needed,
        jax.devices()[0],
        data,
    )


def timed(
    what: Experiment, config: Config, needed: Sequence[Run], device: Any, data: str | None
) -> tuple[Numbers, float, dict[str, Any]]:
    opened = given(what, data)
    begun = time.monotonic()
    numbers = what.execute(config, needed, device, *opened)
    return numbers, time.monotonic() - begun, store.provenance()


def given(what: Experiment, data: str | None) -> list[Any]:
    """The data set, for an experiment that needs one."""
    return [] if what.data is None else [what.data(data)]
