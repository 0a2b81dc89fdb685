"""What the full presets share: ResNet-18 on CIFAR-10, trained with `sdesam.networks`, within the
minutes that are given.

All optimizers of an experiment share batch-norm statistics among as many images, the smallest m:
else the norm would change with m, beside the perturbation. n-SAM is not among them: at each step it
needs a gradient over all images, hundreds of passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache, partial
from math import floor, nan
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.lab import Experiment
from sdesam.lab.runs import Numbers, Run
from sdesam.networks import Recipe, ResNet, State, Trainer, measure, steps_in_turn
from sdesam.networks.throughput import PLAIN
from sdesam.optim.optimizer import Groups
from sdesam.problems import cifar10

from . import _digits as digits

Config = Mapping[str, Any]

TRAINING, START, COST, GROUPS = (
    f"CIFAR-10 {what}" for what in ("training", "bad minimum", "cost of a step", "micro-batches")
)
BATCH = 128
BLOCKS = (2, 2, 2, 2)
FIT = {"lr": 0.05, "weight_decay": 0.0, "augment": False, "label_noise": 0.9, "until": 0.999}
ENOUGH = 10
"""Epochs below which a second seed is not worth having."""
SHARE = 0.9
"""Of the minutes that is planned: the rest is for compilation, pictures, and steps that take longer
than those measured.
"""


def configurations(
    seeds: int,
    epochs: int,
    micro: Sequence[int],
    train: int,
    width: int,
    rho: float,
    *,
    lr: float = 0.1,
    augment: bool = True,
    start: str = "random",
    levels: Sequence[float] = (0.0,),
) -> list[dict[str, Any]]:
    """The cost of a step, and SGD, SAM, m-SAM and RW-SAM for each seed and share of wrong labels.

    Args:
        seeds: how many.
        epochs: of each run.
        micro: sizes of micro-batches, beside the mini-batch of 128.
        train: how many images to train on, the first ones.
        width: channels of the first stage; 64 is ResNet-18.
        rho: perturbation radius.
        lr: learning rate at the start of the cosine.
        augment: whether images are shifted and mirrored.
        start: `"random"` or `"bad minimum"`.
        levels: shares of wrong labels.
    """
    sizes = sorted(set(micro), reverse=True)
    if len(sizes) < 2 or any(BATCH % m or m >= BATCH for m in sizes):
        wanted = ", ".join(str(m) for m in range(1, BATCH) if BATCH % m == 0)
        raise ValueError(
            f"micro={','.join(map(str, micro))}: a trend over m needs at least two of {wanted}"
            f" beside the mini-batch of {BATCH} (SAM)"
        )
    if not BATCH <= train <= 50_000:
        raise ValueError(
            f"train={train}: it must be from {BATCH}, a mini-batch, to 50000, all images"
        )
    conditions = [
        digits.SGD,
        *({"variant": "m-sam", "micro": m} for m in (BATCH, *sizes)),
        digits.RW_SAM,
    ]
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    common = {
        "blocks": BLOCKS,
        "width": width,
        "dtype": dtype,
        "train": train,
        "batch": BATCH,
        "ghost": sizes[-1],
    }
    common |= {
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "augment": augment,
        "rho": rho,
    }
    found: list[dict[str, Any]] = [
        {
            "run": COST,
            **common,
            "conditions": conditions,
            "rounds": 5,
            "device": jax.devices()[0].device_kind,
        }
    ]
    for seed in range(seeds):
        for level in levels:
            runs = [
                {
                    "run": TRAINING,
                    **common,
                    **c,
                    "epochs": epochs,
                    "label_noise": level,
                    "start": start,
                    "seed": seed,
                }
                for c in conditions
            ]
            del runs[0]["rho"]
            found += [*_starts(runs[0]), *runs]
    return found


def _starts(config: Config) -> list[dict[str, Any]]:
    """The run that gives a training run its start: the bad minimum of its seed, or none."""
    if config.get("start") != "bad minimum":
        return []
    shared = (
        "blocks",
        "width",
        "dtype",
        "train",
        "batch",
        "ghost",
        "momentum",
        "schedule",
        "epochs",
        "seed",
    )
    return [{"run": START, **{name: config[name] for name in shared}, **FIT}]


def _groups(config: Config) -> list[dict[str, Any]]:
    """The run that finds out how micro-batches are run fastest, for what has some."""
    if config["run"] in (START, GROUPS) or (
        config.get("micro", BATCH) == BATCH and config["run"] != COST
    ):
        return []
    shared = {name: config[name] for name in ("blocks", "width", "dtype", "batch", "ghost")}
    return [{"run": GROUPS, **shared, "device": jax.devices()[0].device_kind}]


def needs(config: Config) -> list[Config]:
    """How micro-batches are run, and where a training run starts."""
    return [*_groups(config), *_starts(config)]


@lru_cache(maxsize=1)
def images(path: str | None) -> cifar10.Images:
    """The data set, read once."""
    if path is None:
        raise ValueError(
            "this preset trains on CIFAR-10: say where it is with --data PATH, a folder or tar"
            f" ({cifar10.KINDS}); {cifar10.GET}"
        )
    return cifar10.load(path)


def execute(config: Config, needed: Sequence[Run], device: Any, data: cifar10.Images) -> Numbers:
    """Any of the runs."""
    with jax.default_device(device):
        groups = next(
            (run.numbers.values["fastest"] for run in needed if run.config["run"] == GROUPS), None
        )
        work = {TRAINING: _train, START: _bad_minimum, COST: _cost, GROUPS: _ways}[config["run"]]
        return work(config, {run.config["run"]: run for run in needed}, groups, data)


def _train(config: Config, needed: Mapping[str, Run], groups: Any, data: cifar10.Images) -> Numbers:
    trainer = _trainer(config, groups)
    start = unpack(trainer, needed[START]) if START in needed else None
    some = relabelled(data.subset(config["train"]), config["label_noise"], config["seed"])
    run = trainer.run(some, config["seed"], config["epochs"], start)
    curves = {
        name: np.append(values, np.full(config["epochs"] + 1 - len(values), nan))
        for name, values in run.records.items()
    }
    return Numbers(
        {"diverged": run.diverged is not None, "diverged in epoch": run.diverged}, curves
    )


def _bad_minimum(
    config: Config, needed: Mapping[str, Run], groups: Any, data: cifar10.Images
) -> Numbers:
    """Fit wrong labels, then the true ones, each until (nearly) all training images are right or
    the epochs are over.
    """
    trainer, some, state = _trainer(config, None), data.subset(config["train"]), None
    values: dict[str, Any] = {"diverged": False}
    for name, share in (("wrong", config["label_noise"]), ("true", 0.0)):
        run = trainer.run(
            relabelled(some, share, config["seed"]),
            config["seed"],
            config["epochs"],
            state,
            config["until"],
        )
        state = run.state
        last = {
            what: float(run.records[what][-1])
            for what in ("epoch", "train_accuracy", "test_accuracy")
        }
        values |= {f"{what}, {name} labels": value for what, value in last.items()}
        if run.diverged is not None:
            raise ArithmeticError(f"fitting the {name} labels diverged in epoch {run.diverged}")
    return Numbers(
        values,
        {
            f"params.{k}": np.asarray(leaf)
            for k, leaf in enumerate(jax.tree.leaves((state.params, state.statistics)))
        },
    )


def unpack(trainer: Trainer, run: Run) -> State:
    """The end of a fit."""
    like = trainer.start(0)
    structure = jax.tree.structure((like.params, like.statistics))
    leaves = [jnp.asarray(run.numbers.arrays[f"params.{k}"]) for k in range(structure.num_leaves)]
    params, statistics = jax.tree.unflatten(structure, leaves)
    return like._replace(params=params, statistics=statistics)


def _cost(config: Config, needed: Mapping[str, Run], groups: Any, data: cifar10.Images) -> Numbers:
    """Milliseconds per step of each optimizer and of a plain step of SGD, in turn, and the seconds
    of an epoch with its measurements.
    """
    some = data.subset(config["train"])
    trainers = {digits.label(c): _trainer({**config, **c}, groups) for c in config["conditions"]}
    seconds = steps_in_turn(trainers, some, config["rounds"])
    steps = config["train"] // BATCH
    measuring = _seconds_to_measure(trainers["SGD"], some)
    return Numbers(
        {
            "milliseconds": {name: [1e3 * one for one in times] for name, times in seconds.items()},
            "images per second": {name: BATCH / median(times) for name, times in seconds.items()},
            "passes": {name: trainer.recipe.passes for name, trainer in trainers.items()},
            "seconds of an epoch": {
                name: steps * median(seconds[name]) + measuring for name in trainers
            },
            "micro-batches": groups,
        }
    )


def _ways(config: Config, needed: Mapping[str, Run], groups: Any, data: cifar10.Images) -> Numbers:
    """How micro-batches are run fastest on this device. XLA's own convolutions are no choice in
    compiled loops on CPU (see `ResNet`).
    """
    direct = [] if jax.default_backend() == "cpu" else ["accumulate, direct", "vmap, direct"]
    ways = [*direct, *(f"{groups}, patches" for groups in ("accumulate", "vmap"))]
    smallest = {"variant": "m-sam", "rho": 0.1, "micro": config["ghost"], "augment": False}
    seconds = steps_in_turn(
        {way: _trainer({**config, **smallest}, way) for way in ways},
        data.subset(min(4 * BATCH, len(data.train_labels))),
        rounds=3,
    )
    best = {way: median(seconds[way]) for way in ways}
    return Numbers(
        {
            "fastest": min(best, key=lambda way: best[way]),
            "milliseconds": {way: 1e3 * one for way, one in best.items()},
        }
    )


def _trainer(config: Config, groups: str | None) -> Trainer:
    """The trainer of a run; one that was compiled stays."""
    given = {field.name: config[field.name] for field in fields(Recipe) if field.name in config}
    if given.get("variant", "sgd") == "sgd":
        given.pop("rho", None)
    network = ResNet(tuple(config["blocks"]), config["width"], dtype=config["dtype"])
    if groups is not None and given.get("micro", BATCH) < BATCH:
        way, convolution = groups.split(", ")
        return _kept(replace(network, convolution=convolution), Recipe(**given), way)
    return _kept(network, Recipe(**given), "accumulate")


@lru_cache(maxsize=16)
def _kept(network: ResNet, recipe: Recipe, groups: Groups) -> Trainer:
    return Trainer(network, recipe, groups)


def relabelled(data: cifar10.Images, share: float, seed: int) -> cifar10.Images:
    """With a share of the training labels replaced by one of the nine others, drawn evenly; at 0.9
    they say nothing about the image.
    """
    rng, labels = np.random.default_rng(seed), data.train_labels.copy()
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return replace(data, train_labels=labels)


def _seconds_to_measure(trainer: Trainer, data: cifar10.Images) -> float:
    """What is measured after each epoch, compilation apart; as in `Trainer.run`."""
    test = jnp.asarray(data.test_images), jnp.asarray(data.test_labels, jnp.int32)
    sample = jnp.asarray(data.train_images[:256]), jnp.asarray(data.train_labels[:256], jnp.int32)
    state = trainer.start(0)
    measure(trainer.network, state, test, sample)
    began = time.perf_counter()
    measure(trainer.network, state, test, sample)
    return time.perf_counter() - began


def epoch_seconds(config: Config, device: Any, data: cifar10.Images) -> float:
    """The time that an epoch of SGD takes, compilation apart, from two steps."""
    with jax.default_device(device):
        some, trainer = data.subset(config["train"]), _trainer({**config, "variant": "sgd"}, None)
        train = jnp.asarray(some.train_images), jnp.asarray(some.train_labels, jnp.int32)
        state, _, _ = trainer.epoch(trainer.start(0), train, 0, total=10, steps=1)
        began = time.perf_counter()
        trainer.epoch(state, train, 0, total=10, steps=1)
        return (time.perf_counter() - began) * (config["train"] // BATCH)


def fit(
    make: Callable[..., list[dict[str, Any]]],
    cost: Run,
    minutes: float,
    wanted: Mapping[str, Any],
    given: Collection[str],
) -> tuple[dict[str, Any], list[str]]:
    """The most seeds with which each run still has `ENOUGH` epochs (or all that are wanted), then
    the most epochs; one seed if need be.

    Args:
        make: the runs of the experiment.
        cost: what its steps cost.
        minutes: for all of it.
        wanted: the options.
        given: those that stay.

    Raises:
        ValueError: not even one epoch of each optimizer fits.
    """
    of_epoch = cost.numbers.values["seconds of an epoch"]
    one = make("full", **{**wanted, "seeds": 1, "epochs": 1})[1:]
    each = sum(
        of_epoch[digits.label(c)] if c["run"] == TRAINING else 2 * of_epoch["SGD"] for c in one
    )
    available = SHARE * 60 * minutes - cost.seconds
    if each > available:
        listed = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in of_epoch.items())
        raise ValueError(
            f"--minutes {minutes:g} is too small: one epoch of each of {len(one)} runs takes"
            f" {each / 60:.2g} minutes here ({listed}), beside {cost.seconds / 60:.2g} to compile"
            " and to measure that; give more minutes, or smaller train="
        )
    most = floor(available / each)  # epochs of each optimizer, over all seeds
    epochs, seeds = wanted["epochs"], wanted["seeds"]
    if "seeds" not in given:
        seeds = max(1, min(seeds, most // (epochs if "epochs" in given else min(ENOUGH, epochs))))
    if "epochs" not in given:
        epochs = max(1, min(epochs, most // seeds))
    left_out = []
    for name, found in (("epochs", epochs), ("seeds", seeds)):
        if found < wanted[name]:
            left_out.append(f"{wanted[name] - found} of the {wanted[name]} {name} wanted")
    return {"epochs": epochs, "seeds": seeds}, left_out


def summarise(
    first: Callable[[Sequence[Run]], dict[str, Any]], stored: Sequence[Run]
) -> dict[str, Any]:
    """As in the quick preset; and what was done, in words, with the speed of the steps."""
    summary = first(stored)
    words = {COST: _cost_lines, START: _start_lines, TRAINING: _training_lines}
    lines = [line for run in stored for line in words[run.config["run"]](run)]
    return {
        **summary,
        "lines": [
            "n-SAM is left out: its gradient over all images at each step costs hundreds of passes",
            *lines,
            *summary["lines"],
        ],
    }


def _cost_lines(run: Run) -> list[str]:
    values, device = run.numbers.values, run.provenance.get("device")
    plain = np.array(values["milliseconds"][PLAIN])
    lines = [
        f"{device}, {PLAIN}: {median(plain):.3g} ms, {values['images per second'][PLAIN]:.0f}"
        " images/s"
    ]
    for name, passes in values["passes"].items():
        ratio = median(np.array(values["milliseconds"][name]) / plain)
        lines.append(
            f"{device}, {name}: {values['images per second'][name]:.0f} images/s; a step takes"
            f" {ratio:.2f} plain ones for {passes:.3g} forward-backward passes:"
            f" {ratio / passes:.2f} each"
        )
    lines.append(
        f"m-SAM is run as {values['micro-batches']!r}: in the perturbed pass no two micro-batches"
        " have the same weights, or share a product"
    )
    return lines


def _start_lines(run: Run) -> list[str]:
    lines = []
    for labels in ("wrong", "true"):
        right, epochs, tested = (
            run.numbers.values[f"{what}, {labels} labels"]
            for what in ("train_accuracy", "epoch", "test_accuracy")
        )
        failed = (
            ""
            if right >= run.config["until"]
            else ", which is NOT a fit: give more epochs, or fewer images with train="
        )
        lines.append(
            f"bad minimum of seed {run.config['seed']}, {labels} labels: {100 * right:.1f} % right"
            f" after {epochs:.0f} epochs (test accuracy {100 * tested:.1f} %){failed}"
        )
    return lines


def _training_lines(run: Run) -> list[str]:
    values, arrays, noise = run.numbers.values, run.numbers.arrays, run.config["label_noise"]
    found = (
        f"test accuracy {100 * arrays['test_accuracy'][-1]:.2f} %, tr V"
        f" {arrays['trace_cov'][-1]:.3g}"
    )
    if values["diverged"]:
        found = f"DIVERGED in epoch {values['diverged in epoch']}"
    whose = (
        f"seed {run.config['seed']},"
        f" {digits.label(run.config)}{f', {noise:.0%} wrong labels' if noise else ''}"
    )
    return [
        f"{whose}: {found}; {run.config['epochs']} epochs in {run.seconds / 60:.1f} minutes,"
        f" {np.nanmedian(arrays['images_per_second']):.0f} images/s"
    ]


def with_full(quick: Experiment, runs: Callable[..., list[dict[str, Any]]]) -> Experiment:
    """An experiment on digits with its full preset on CIFAR-10: the same statistics, the same
    picture.
    """
    full = replace(
        quick,
        title=f"{quick.title}: ResNet-18 on CIFAR-10",
        runs=runs,
        execute=execute,
        summarise=partial(summarise, quick.summarise),
        needs=needs,
        epoch_seconds=epoch_seconds,
        alone=True,
        data=images,
        fit=partial(fit, runs),
    )
    return replace(quick, full=full)
