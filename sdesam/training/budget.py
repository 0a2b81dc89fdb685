"""How long a step takes, and what fits into given minutes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdesam.problems.cifar10 import Images
from sdesam.sampling import whole
from sdesam.training.resnet import ResNet
from sdesam.training.trainer import Recipe, State, Trainer


@dataclass(frozen=True)
class Plan:
    """What fits.

    Args:
        epochs: of each run.
        seeds: runs of each method.
        seconds: that all of it is expected to take.
        left_out: sentences: what was wanted and does not fit.
    """

    epochs: int
    seeds: int
    seconds: float
    left_out: tuple[str, ...]


def plan(costs: Mapping[str, float], minutes: float, epochs: int, seeds: int, enough: int = 10) -> Plan:
    """The most seeds with which each run still has `enough` epochs (or all that are wanted), then the most epochs; one seed if need be.

    Args:
        costs: seconds of an epoch of each method, by label, measurements included.
        minutes: for all of it.
        epochs: wanted.
        seeds: wanted.
        enough: epochs below which a second seed is not worth having.

    Raises:
        ValueError: not even one epoch of each method fits.

    >>> plan({"SGD": 5.0, "SAM": 10.0}, minutes=8, epochs=30, seeds=3)
    Plan(epochs=10, seeds=3, seconds=450.0, left_out=('20 of the 30 epochs wanted',))
    >>> plan({"SGD": 5.0, "SAM": 10.0}, minutes=0.2, epochs=30, seeds=3)
    Traceback (most recent call last):
    ...
    ValueError: minutes=0.2: one epoch of each method takes 0.25 minutes (SGD 5.0 s, SAM 10.0 s); give more minutes, or fewer or cheaper methods
    """
    each = sum(costs.values())
    whole("epochs", epochs)
    whole("seeds", seeds)
    if each > 60 * minutes:
        listed = ", ".join(f"{label} {seconds:.1f} s" for label, seconds in costs.items())
        raise ValueError(
            f"minutes={max(minutes, 0):.3g}: one epoch of each method takes {each / 60:.2f} minutes ({listed}); "
            "give more minutes, or fewer or cheaper methods"
        )
    most = math.floor(60 * minutes / each)  # epochs of each method, over all seeds
    fitting = max(1, min(seeds, most // min(enough, epochs)))
    chosen = min(epochs, most // fitting)
    left_out = []
    if chosen < epochs:
        left_out.append(f"{epochs - chosen} of the {epochs} epochs wanted")
    if fitting < seeds:
        left_out.append(f"{seeds - fitting} of the {seeds} seeds wanted")
    return Plan(chosen, fitting, chosen * fitting * each, tuple(left_out))


def seconds_per_epoch(trainer: Trainer, steps: int = 20) -> float:
    """Estimated from the first `steps` steps of an epoch, after one to warm up, and one measurement; the epoch is compiled if it is not yet."""
    state, _, _ = trainer.epoch(trainer.start(0), 0, total=steps + 1, steps=1)
    steps = min(steps, trainer.steps_per_epoch)
    trainer.measure(state)  # compiles
    began = time.perf_counter()
    trainer.measure(state)
    measured = time.perf_counter() - began
    began = time.perf_counter()
    trainer.epoch(state, 0, total=steps + 1, steps=steps)
    return (time.perf_counter() - began) * trainer.steps_per_epoch / steps + measured


def throughput(network: ResNet, data: Images, trainers: Sequence[Trainer], steps: int = 30, rounds: int = 5) -> list[dict[str, Any]]:
    """Time per step of each trainer beside a plain compiled SGD step that knows nothing of this package, in turn.

    The plain step is `jax.jit` of gradient, momentum and weight decay on one batch that lies ready on the device, called from a python loop that
    waits at the end; the trainers also draw and shift their batches.

    Args:
        network: the network.
        data: the images.
        trainers: all of one batch size.
        steps: of each round.
        rounds: of which the median is taken.

    Returns:
        One row each: `label`, `groups`, `ghost`, `seconds_per_step` (median), `fastest`, `slowest`, `images_per_second`, `passes`
        (:meth:`Method.passes`), `ratio` (to the plain step, median over rounds) and `overhead`, `ratio / passes`: 1 is a step that
        costs its passes and nothing else.
    """
    batch = trainers[0].recipe.batch
    if any(trainer.recipe.batch != batch for trainer in trainers):
        raise ValueError("trainers of different batch sizes: time per step cannot be compared")
    contenders: list[Callable[[], float]] = [_plain(network, data, trainers[0].recipe, steps), *(_of(trainer, steps) for trainer in trainers)]
    times = np.array([[contender() for contender in contenders] for _ in range(rounds + 1)])[1:]  # the first round warms up
    rows: list[dict[str, Any]] = [{"label": "plain SGD step", "groups": None, "ghost": batch, "passes": 1.0}]
    rows += [
        {
            "label": trainer.method.label,
            "groups": trainer.recipe.groups if trainer.method.micro else None,
            "ghost": trainer.recipe.ghost_of(trainer.method),
            "passes": trainer.method.passes(batch),
        }
        for trainer in trainers
    ]
    for row, column in zip(rows, times.T, strict=True):
        row["seconds_per_step"], row["fastest"], row["slowest"] = median(column), min(column), max(column)
        row["images_per_second"] = batch / row["seconds_per_step"]
        row["ratio"] = median(column / times[:, 0])
        row["overhead"] = row["ratio"] / row["passes"]
    return rows


def _of(trainer: Trainer, steps: int) -> Callable[[], float]:
    kept: list[State] = [trainer.start(0)]
    steps = min(steps, trainer.steps_per_epoch)

    def seconds() -> float:
        began = time.perf_counter()
        kept[0], _, _ = trainer.epoch(kept[0], 0, total=10**6, steps=steps)  # reads the loss: waits
        return (time.perf_counter() - began) / steps

    return seconds


def _plain(network: ResNet, data: Images, recipe: Recipe, steps: int) -> Callable[[], float]:
    optimizer = optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.sgd(recipe.lr, momentum=recipe.momentum or None))

    def step(params: Any, statistics: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            scores, new = network(params, statistics, images, len(images))
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels)), new

        (value, statistics), g = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(g, state, params)
        return (optax.apply_updates(params, updates), statistics, state), value

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    params, statistics = jax.jit(network.init)(jax.random.key(0))
    kept: list[Any] = [(params, statistics, optimizer.init(params))]
    images, labels = jax.device_put((data.train_images[: recipe.batch], data.train_labels[: recipe.batch].astype(np.int32)))

    def seconds() -> float:
        began = time.perf_counter()
        value = None
        for _ in range(steps):
            kept[0], value = compiled(*kept[0], images, labels)
        jax.block_until_ready((kept[0], value))
        return (time.perf_counter() - began) / steps

    return seconds
