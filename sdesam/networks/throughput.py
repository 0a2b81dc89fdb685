"""How long a step takes, beside a plain compiled step of SGD that knows nothing of this package."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdesam._util.keys import seed_key
from sdesam.networks.resnet import ResNet
from sdesam.networks.trainer import Recipe, State, Trainer
from sdesam.problems.cifar10 import Images

Timer = Callable[[int], float]
"""Makes that many steps and gives the seconds that they took."""

PLAIN = "plain step of SGD"
_SECONDS = 1.0  # of a contender's turn: long enough for a clock, short enough for several rounds
_MOST_STEPS = 50


def steps_in_turn(
    trainers: Mapping[str, Trainer], images: Images, rounds: int = 5
) -> dict[str, list[float]]:
    """Seconds per step of each trainer, in turn, `rounds` times; compilation apart.

    First in each round is :data:`PLAIN`: `jax.jit` of gradient, momentum and weight decay on one
    batch that lies ready on the device, with the library's convolutions, called from a python loop
    that waits at the end. The trainers also draw, shift and mirror their batches.

    Args:
        trainers: by name; all of one network (but for how it convolves) and one batch size.
        images: to train on.
        rounds: how many.

    Returns:
        By name, a list of `rounds` times; the ratio of two names within a round does not see what
        slows the machine from round to round.

    Raises:
        ValueError: trainers of different batch sizes.
    """
    first = next(iter(trainers.values()))
    if any(trainer.recipe.batch != first.recipe.batch for trainer in trainers.values()):
        raise ValueError("trainers of different batch sizes: their steps cannot be compared")
    data = jnp.asarray(images.train_images), jnp.asarray(images.train_labels, jnp.int32)
    most = min(_MOST_STEPS, first.steps_per_epoch(len(images.train_labels)))
    timers: dict[str, Timer] = {PLAIN: _plain(first.network, first.recipe, *data)}
    timers |= {name: _of(trainer, data) for name, trainer in trainers.items()}
    steps = {}
    (device,) = data[0].devices()  # a default device is one of this thread alone

    def compiled(timer: Timer) -> None:
        with jax.default_device(device):
            timer(1)

    with ThreadPoolExecutor(
        max(1, (os.cpu_count() or 1) // 2)
    ) as pool:  # a compilation takes memory, too
        list(pool.map(compiled, timers.values()))
    for name, timer in timers.items():
        steps[name] = int(np.clip(_SECONDS / timer(1), 1, most))
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer(steps[name]) / steps[name])
    return times


def _of(trainer: Trainer, data: Any) -> Timer:
    kept: list[State] = [trainer.start(0)]

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        # reads the loss: waits
        kept[0], _, _ = trainer.epoch(kept[0], data, 0, total=10**6, steps=steps)
        return time.perf_counter() - began

    return seconds


def _plain(network: ResNet, recipe: Recipe, images: jax.Array, labels: jax.Array) -> Timer:
    network = replace(network, convolution="direct")
    optimizer = optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(recipe.lr, momentum=recipe.momentum),
    )
    images, labels = images[: recipe.batch], labels[: recipe.batch]

    def step(params: Any, statistics: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            scores, new = network(params, statistics, images, train=True)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels)), new

        (value, statistics), g = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(g, state, params)
        return (optax.apply_updates(params, updates), statistics, state), value

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    params, statistics = jax.jit(network.init)(seed_key(0))
    kept: list[Any] = [(params, statistics, optimizer.init(params))]

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        value = None
        for _ in range(steps):
            kept[0], value = compiled(*kept[0], images, labels)
        jax.block_until_ready((kept[0], value))
        return time.perf_counter() - began

    return seconds
