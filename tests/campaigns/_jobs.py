"""What the campaign of kills runs in processes of its own: simulations, trainings, sweeps, and a
switch that kills the process that it is in.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import sdesam
import sdesam.sde  # once, before processes are forked
from sdesam.cli import main as command_line
from sdesam.lab import Experiment, sweep
from sdesam.lab.runs import Numbers, RunStore


@dataclass(frozen=True)
class Job:
    """What is run, and is the same every time.

    Args:
        kind: `"simulate"`, `"train"`, `"sweep"` or `"reproduce"` (the command line).
        devices: how many.
        chunk: paths together.
        every: seconds between snapshots.
        keep: of a run.
        wild: whether some paths diverge.
    """

    kind: str
    devices: int = 1
    chunk: int = 4
    every: float = 0.0
    keep: str = "statistics"
    wild: bool = False


@dataclass(frozen=True)
class Kill:
    """When: after `seconds`, when a new file is seen, or at the `number`-th call of a function of
    `os`, before or after it.
    """

    way: str
    seconds: float = 0.0
    number: int = 1


def drift(x):
    return jax.tree.map(lambda leaf: -leaf, x)


def wild_drift(x):
    return jax.tree.map(lambda leaf: leaf**3 - leaf, x)


def noise(x, xi):
    return {"a": 0.6 * xi[0] * jnp.ones(2), "b": 0.6 * xi[1]}


def run(job: Job, folder: Path, target: Path) -> None:
    """A simulation or a training with a snapshot, its numbers written to `target`."""
    options: dict[str, Any] = {
        **{
            "keep": job.keep,
            "chunk": job.chunk,
            "devices": jax.devices()[: job.devices],
            "progress": False,
        },
        **{"snapshot": folder / "snapshot", "snapshot_every": job.every},
    }
    if job.kind == "simulate":
        sde = sdesam.SDE(
            wild_drift if job.wild else drift,
            noise,
            (2,),
            {"a": jnp.ones(2), "b": jnp.float32(0.5)},
        )
        observe = {"b": lambda x: x["b"], "a": lambda x: x["a"], "log": lambda x: jnp.log(x["b"])}
        out = sdesam.simulate(
            sde,
            jax.random.key(1),
            10,
            8.0,
            1 / 64,
            times=np.arange(0, 65) / 8,
            observe=observe,
            **options,
        )
    else:
        chain = sdesam.Chain(
            "m-usam", sdesam.problems.quadratic(), lr=0.1, rho=0.1, batch=4, micro=2
        )
        out = sdesam.train(
            chain,
            jax.random.key(1),
            10,
            120,
            times=np.arange(0, 61) * 0.2,
            observe=["loss", "trace_cov"],
            **options,
        )
    found = {
        "mean": out.mean,
        "stderr": out.stderr,
        "final": out.final,
        "values": out.values,
        "lost": out.nonfinite,
        "paths": out.diverged.paths,
    }
    target.write_text(
        json.dumps(
            [
                np.asarray(leaf).tobytes().hex()
                for leaf in jax.tree.leaves({**found, "time": out.diverged.time})
            ]
        )
    )


def execute(config: Any, needed: Any, device: Any) -> Numbers:
    """One run of the sweep: some numbers, and the count of what it needs."""
    with jax.default_device(device):
        draws = jax.random.normal(jax.random.key(config["seed"]), (2000,))
    sleep(0.02)
    return Numbers(
        {"mean": float(draws.mean()), "needed": len(needed)}, {"draws": np.asarray(draws)}
    )


def needs(config: Any) -> list[Any]:
    return [{"seed": config["seed"], "part": "start"}] if config["part"] == "end" else []


CONFIGS = [{"seed": seed, "part": "end"} for seed in range(8)]
EXPERIMENT = Experiment(
    "kills",
    "A sweep to kill",
    "",
    lambda preset: CONFIGS,
    execute,
    lambda runs: {},
    lambda data: None,
    needs=needs,
)


def child(job: Job, folder: Path, target: Path, kill: Kill | None) -> None:
    """The process that is killed."""
    # compiled for as many devices as the job has, so that every job is quick
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={max(job.devices, 1)}"
        " --xla_backend_optimization_level=0"
    )
    tqdm.set_lock(threading.RLock())  # the one between processes outlives a kill
    if kill is not None and kill.way.split()[-1] in ("fsync", "replace", "rename"):
        kill_at(kill)
    # the error of one that fails is in the file beside the target
    with open(target.with_suffix(".log"), "w") as log, redirect_stdout(log), redirect_stderr(log):
        if job.kind in ("simulate", "train"):
            run(job, folder, target)
        elif job.kind == "sweep":
            made = sweep(EXPERIMENT, CONFIGS, RunStore(folder), progress=False)
            target.write_text(json.dumps(made.done))
        else:
            words = [
                "reproduce",
                "fisher_hessian",
                "--option",
                "seeds=1",
                "--store",
                str(folder),
                "--output",
                str(target.parent / "figures"),
            ]
            try:
                command_line(words)
            except SystemExit as ended:
                if ended.code not in (0, 1):  # 1: a verdict other than confirmed
                    raise
            target.write_text("null")


def kill_at(kill: Kill) -> None:
    """Have a function of `os` kill this process, before or after it does its work."""
    when, name = kill.way.split()
    work, calls = getattr(os, name), []

    def replaced(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if when == "before" and len(calls) == kill.number:
            os.kill(os.getpid(), signal.SIGKILL)
        found = work(*args, **kwargs)
        if when == "after" and len(calls) == kill.number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(os, name, replaced)
