"""Kills (-9) of runs with snapshots and of sweeps: at random times, while a file is being written,
before and after it is renamed, twice.

A violation is: a run or sweep that, started again until it ends, gives other numbers than an
undisturbed one, to the last bit; one that does not start again; a run twice in the store, or
missing; a file left in the folder beside the snapshot, or the runs of the store.

    python -m tests.campaigns.kills --count 100 --seed 0
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from tests.campaigns._jobs import Job, Kill, child
from tests.campaigns._tries import Outcome, arguments, report, seeds, tell, wrong

ALLOWED = {"run": {"snapshot"}, "sweep": {"store.json"}}
"""What a folder may hold beside runs: files that the documentation names."""
SECONDS = 120


def start(job: Job, folder: Path, target: Path, kill: Kill | None = None) -> tuple[str, float]:
    """Start a process, kill it as said; how it ended, and after how many seconds."""
    process = fork_server().Process(target=child, args=(job, folder, target, kill))
    before, begun = set(names(folder)), monotonic()
    process.start()
    while process.is_alive() and monotonic() < begun + SECONDS:
        seen = (
            kill is not None
            and kill.way == "new file"
            and set(names(folder)) - before - {"snapshot", "store.json"}
        )
        if seen or (kill is not None and kill.way == "time" and monotonic() > begun + kill.seconds):
            process.kill()
        process.join(0.001 if kill is not None else 0.05)
    seconds = monotonic() - begun
    if process.is_alive():
        process.kill()
        process.join()
        return f"hangs for {SECONDS} s", seconds
    return {0: "ends", -signal.SIGKILL: "killed"}.get(process.exitcode, "fails"), seconds


@cache
def fork_server() -> Any:
    """Processes that have imported everything and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.campaigns._jobs"])
    return context


def names(folder: Path) -> Iterator[str]:
    """Files below a folder."""
    return (
        (str(place.relative_to(folder)) for place in folder.rglob("*"))
        if folder.exists()
        else iter(())
    )


def stored(folder: Path) -> dict[str, Any]:
    """The numbers of every run of a store, without times."""
    found = {}
    for place in sorted(folder.iterdir()):
        if place.name not in ALLOWED["sweep"]:
            meta = json.loads((place / "run.json").read_text())
            with np.load(place / "arrays.npz") as arrays:
                own = {
                    name: arrays[name].tobytes().hex()
                    for name in arrays.files
                    if name != "__meta__"
                }
            # what took how long differs from run to run
            values = {
                name: value for name, value in meta["values"].items() if "seconds" not in name
            }
            found[place.name] = json.dumps([meta["config"], values, own], sort_keys=True)
    return found


@cache
def undisturbed(job: Job) -> tuple[Any, float]:
    """The numbers of a job that nobody kills, and its seconds."""
    folder = Path(tempfile.mkdtemp())
    try:
        how, seconds = start(job, folder / "work", folder / "target.json")
        if how != "ends":
            raise RuntimeError(
                f"{job} {how} without a kill: {(folder / 'target.log').read_text()[-300:]}"
            )
        return result(job, folder / "work", folder / "target.json"), seconds
    finally:
        shutil.rmtree(folder)


def result(job: Job, work: Path, target: Path) -> Any:
    return json.loads(target.read_text()) if job.kind in ("simulate", "train") else stored(work)


def choose(seed: int) -> tuple[Job, list[Kill]]:
    """A job, and one kill or two."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(["simulate", "train", "sweep", "reproduce"], p=[0.4, 0.28, 0.3, 0.02]))
    job = Job(kind)
    if kind in ("simulate", "train"):
        keep = str(rng.choice(["statistics", "values", "trajectories"]))
        wild = kind == "simulate" and bool(rng.integers(2))
        job = Job(
            kind,
            int(rng.integers(1, 3)),
            int(rng.choice([3, 4, 10])),
            float(rng.choice([0.0, 0.0, 0.01])),
            keep,
            wild,
        )
    ways = [
        "time",
        "time",
        "new file",
        "before fsync",
        "after fsync",
        "before replace",
        "after replace",
    ]
    kills = [
        Kill(str(rng.choice(ways)), float(rng.uniform(0, 1)), int(rng.integers(1, 30)))
        for _ in range(int(rng.integers(1, 3)))
    ]
    return job, kills


def attempt(job: Job, kills: list[Kill]) -> Outcome:
    """Kill, start again, compare."""
    text, kind = f"{job} {kills}", job.kind
    wanted, usual = undisturbed(job)
    folder = Path(tempfile.mkdtemp())
    work, target = folder / "work", folder / "target.json"
    killed = 0
    try:
        for kill in kills:
            how, _ = start(job, work, target, Kill(kill.way, kill.seconds * usual, kill.number))
            killed += how == "killed"
            if how not in ("killed", "ends"):
                return wrong(
                    kind,
                    f"{how} after a kill",
                    f"{text}\n  {target.with_suffix('.log').read_text()[-500:]}",
                )
        there = sum(not place.parent.name.startswith(".") for place in work.glob("*/run.json"))
        how, _ = start(job, work, target)
        if how != "ends":
            return wrong(
                kind,
                f"{how} after a kill",
                f"{text}\n  {target.with_suffix('.log').read_text()[-500:]}",
            )
        own = "run" if kind in ("simulate", "train") else "sweep"
        left = (
            {place.name for place in work.iterdir()}
            - ALLOWED[own]
            - (set(wanted) if own == "sweep" else set())
        )
        if left:
            return wrong(kind, "leaves files", f"{text}\n  {sorted(left)}")
        if result(job, work, target) != wanted:
            return wrong(kind, "has other numbers than an undisturbed one", text)
        if kind == "sweep" and json.loads(target.read_text()) != len(wanted) - there:
            return wrong(kind, "makes runs twice", text)
        return Outcome(kind, f"right after {killed} kills", text)
    except Exception as error:
        return wrong(kind, "leaves a folder that cannot be read", f"{text}\n  {tell(error)}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(
        report("kills", ((seed, attempt(*choose(seed))) for seed in seeds(arguments(__doc__, 100))))
    )
