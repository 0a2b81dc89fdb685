"""Training networks with batch norm: the steps of `sdesam.optim`, whole epochs in one compiled
loop, the data on the device.

Conventions on which papers differ:

* In training, batch norm normalises with the statistics of `ghost` consecutive images (ghost batch
  norm), by default of a micro-batch. m-SAM so run changes two things with `m`, the perturbation and
  the norm; one `ghost <= m` for all leaves the perturbation alone. Running statistics come from the
  unperturbed pass only, and take the mean over groups.
* Weight decay is added to the gradient `G` before momentum, for every parameter. It is no part of
  the loss and does not enter the perturbation.
* Images are padded with 4 black pixels, cut out at random and mirrored with probability 1/2. Each
  epoch orders the data anew; images left over after its last whole batch wait for the next.
* Learning rate: `lr (1 + cos(pi k / K)) / 2` at step `k` of `K`, or constant. No warm-up.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdesam._util.checks import check_int, check_nonnegative, check_positive
from sdesam._util.keys import seed_key
from sdesam._util.names import unknown
from sdesam.networks.measuring import measure
from sdesam.networks.resnet import ResNet
from sdesam.networks.state import State
from sdesam.optim import Optimizer
from sdesam.optim.optimizer import Groups
from sdesam.problems.cifar10 import Images
from sdesam.sampling import check_perturbation
from sdesam.variants import Variant
from sdesam.variants import variant as find_variant

__all__ = [
    "PADDING",
    "Recipe",
    "Run",
    "Schedule",
    "State",
    "Trainer",
    "augmented",
    "measure",
    "shift_and_mirror",
]

PyTree = Any
Schedule = Literal["cosine", "constant"]

PADDING = 4  # pixels on each side, customary on CIFAR
FORWARD = 1 / 3
"""The part of a pass forward and backward that is forward: backward makes two products for each."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        variant: a name in :data:`sdesam.VARIANTS`, or a variant of your own, that needs no gradient
            of the whole data set.
        rho: perturbation radius.
        micro: `m`, for m-sam and m-usam.
        lam: inverse temperature of rw-sam's weights.
        batch: mini-batch size `b`.
        lr: learning rate at the start.
        momentum: of SGD (heavy ball); 0 for none.
        weight_decay: added to the gradient as `weight_decay * x`.
        schedule: `"cosine"` or `"constant"`.
        augment: whether images are shifted and mirrored.
        ghost: how many images share batch-norm statistics; None: a micro-batch, or the mini-batch
            where there is none.

    Raises:
        ValueError: numbers out of range or that do not fit the variant, sizes that do not divide
            each other, an unknown schedule.
        TypeError: a size that is no whole number.

    >>> Recipe("m-sam", rho=0.1, micro=32, batch=100)
    Traceback (most recent call last):
    ...
    ValueError: micro=32 does not divide batch=100: choose one of 1, 2, 4, 5, 10, 20, 25, 50, 100
    """

    variant: str | Variant = "sgd"
    rho: float = 0.0
    micro: int | None = None
    lam: float | None = None
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    augment: bool = True
    ghost: int | None = None

    def __post_init__(self) -> None:
        rule = find_variant(self.variant)
        if rule.needs_full_gradient:
            raise ValueError(
                f"{rule.name} needs the gradient of the whole data set at each step: train it with"
                " sdesam.optim or as a sdesam.Chain"
            )
        check_perturbation(rule, self.rho, 0.0, self.lam, None)
        if rule.micro != (self.micro is not None):
            words = (
                "needs micro, the samples of a micro-batch"
                if rule.micro
                else "has no micro-batches; leave micro out"
            )
            raise ValueError(f"micro={self.micro!r}: {rule.name} {words}")
        check_positive("lr", self.lr)
        check_nonnegative("weight_decay", self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum!r}: it must be at least 0 and below 1")
        if self.schedule not in get_args(Schedule):
            raise unknown("schedule", self.schedule, get_args(Schedule))
        sizes = [("batch", self.batch), ("micro", self.micro), ("ghost", self.ghost)]
        given = [(name, check_int(name, size)) for name, size in sizes if size is not None]
        for (larger, number), (smaller, size) in pairwise(given):
            if number % size:
                divisors = ", ".join(str(k) for k in range(1, number + 1) if number % k == 0)
                raise ValueError(
                    f"{smaller}={size} does not divide {larger}={number}: choose one of {divisors}"
                )

    @property
    def passes(self) -> float:
        """The arithmetic of a step in forward-and-backward passes over the mini-batch; a forward
        pass alone counts 1/3.

        >>> [
        ...     round(Recipe(*given).passes, 2)
        ...     for given in [
        ...         ("sgd",),
        ...         ("sam", 0.1),
        ...         ("m-sam", 0.1, 32),
        ...         ("rw-sam", 0.1, None, 1.0),
        ...     ]
        ... ]
        [1, 2, 2, 2.33]
        """
        rule = find_variant(self.variant)
        return (1 if not rule.perturbed else 2) + (FORWARD if rule.weighted else 0)


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        records: by name, one number for each epoch, the start included (epoch 0, where what is of
            an epoch is NaN): `epoch`, `step`, `train_loss` and `train_accuracy` (means over the
            epoch's mini-batches as they were drawn and shifted, unperturbed, before each step),
            `test_loss`, `test_accuracy` (with running statistics), `trace_cov` and
            `trace_cov_stderr` (tr V), `gradient_norm`, `seconds` (of the epoch's steps) and
            `images_per_second`.
        diverged: the epoch in which the loss left the finite numbers; the run ends there. None if
            it did not.
        state: after the last step, on the device.
    """

    records: dict[str, np.ndarray]
    diverged: int | None
    state: State = field(repr=False)


class Trainer:
    """A network and a recipe: compiled once for all data, seeds and numbers of epochs.

    Args:
        network: what is trained.
        recipe: how.
        groups: how micro-batches are run, `"accumulate"`, one after the other, or `"vmap"`, all at
            once. With weights of its own for each micro-batch the library's convolutions become
            grouped ones; `network.convolution="patches"` makes them batched products.

    Raises:
        ValueError: an unknown `groups`.

    >>> trainer = Trainer(
    ...     ResNet(blocks=(1,), width=2), Recipe("m-sam", rho=0.05, micro=8, batch=16)
    ... )
    >>> data = (
    ...     np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8),
    ...     np.arange(32) % 10,
    ... )
    >>> state, loss, accuracy = trainer.epoch(trainer.start(seed=0), data, seed=0, total=2)
    >>> int(state.optimizer.count), round(loss)
    (2, 2)
    """

    def __init__(self, network: ResNet, recipe: Recipe, groups: Groups = "accumulate"):
        self.network, self.recipe = network, recipe
        self.optimizer = Optimizer(
            recipe.variant,
            partial(_losses, network, recipe.ghost),
            optax.chain(
                optax.add_decayed_weights(recipe.weight_decay),
                optax.trace(recipe.momentum),
                _times_rate(),
            ),
            recipe.rho,
            micro=recipe.micro,
            lam=recipe.lam,
            groups=groups,
            has_aux=True,
        )
        self._random = self.optimizer.draws_directions
        # the state is given away: old and new parameters need not be in memory together
        self._steps = jax.jit(self._some_steps, donate_argnums=0)

    def start(self, seed: int, of: State | None = None) -> State:
        """The state before the first step: drawn from `seed`, or with a copy of the parameters and
        running statistics `of` another state.
        """
        if of is None:
            key = jax.random.fold_in(seed_key(seed), 0)
            params, statistics = _init(self.network, key)
        else:
            params, statistics = jax.tree.map(
                lambda leaf: jnp.array(leaf, copy=True), (of.params, of.statistics)
            )
        return State(params, statistics, self.optimizer.init(params))

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches in `images`.

        Raises:
            ValueError: none.
        """
        if images < self.recipe.batch:
            raise ValueError(f"batch={self.recipe.batch} exceeds the {images} images to train on")
        return images // self.recipe.batch

    def epoch(
        self, state: State, data: tuple[Any, Any], seed: int, total: int, steps: int | None = None
    ) -> tuple[State, float, float]:
        """An epoch, or its first `steps`: `(state, train loss, train accuracy)`. The given state is
        used up.

        Args:
            state: before.
            data: images, uint8 of shape (n, height, width, channels), and labels, shape (n,).
            seed: of order, shifts and random directions.
            total: steps of the whole run, for the schedule.
            steps: None for all.
        """
        most = self.steps_per_epoch(len(data[1]))
        steps = most if steps is None else steps
        if not 1 <= steps <= most:
            raise ValueError(f"steps={steps}: an epoch has {most}")
        key = jax.random.fold_in(seed_key(seed), 1)
        state, loss, accuracy = self._steps(state, data, key, jnp.int32(steps), jnp.float32(total))
        return state, float(loss) / steps, float(accuracy) / steps

    def run(
        self,
        images: Images,
        seed: int,
        epochs: int,
        start: State | None = None,
        until: float | None = None,
        samples: int = 256,
    ) -> Run:
        """Train for `epochs`.

        Args:
            images: the data; copied to the device.
            seed: of the start, the order of the data, their shifts and random directions.
            epochs: at least 1.
            start: start from its parameters and running statistics; momentum and schedule begin
                anew.
            until: stop after the first epoch whose `train_accuracy` reaches this.
            samples: training images, always the same, whose gradients estimate tr V and the
                gradient norm; at most all.

        Raises:
            ValueError: no epochs, fewer images than a batch, fewer than two samples.
        """
        steps = self.steps_per_epoch(len(images.train_labels))
        total = check_int("epochs", epochs) * steps
        some = np.random.default_rng(0).permutation(len(images.train_labels))[
            : check_int("samples", samples, least=2)
        ]
        state = self.start(seed, start)
        train, test = (
            (jnp.asarray(pixels), jnp.asarray(labels, jnp.int32))
            for pixels, labels in (
                (images.train_images, images.train_labels),
                (images.test_images, images.test_labels),
            )
        )
        sample = train[0][some], train[1][some]
        rows: list[dict[str, float]] = []
        diverged = None
        for epoch in range(epochs + 1):
            row: dict[str, float] = {
                "epoch": epoch,
                "step": epoch * steps,
                "train_loss": math.nan,
                "train_accuracy": math.nan,
                "seconds": math.nan,
            }
            if epoch:
                began = time.perf_counter()
                state, row["train_loss"], row["train_accuracy"] = self.epoch(
                    state, train, seed, total
                )
                row["seconds"] = time.perf_counter() - began
                diverged = None if math.isfinite(row["train_loss"]) else epoch
            row["images_per_second"] = steps * self.recipe.batch / row["seconds"]
            rows.append({**row, **measure(self.network, state, test, sample)})
            if diverged is not None or (until is not None and row["train_accuracy"] >= until):
                break
        return Run(
            {name: np.array([row[name] for row in rows]) for name in rows[0]}, diverged, state
        )

    def _some_steps(
        self,
        state: State,
        data: tuple[jax.Array, jax.Array],
        key: jax.Array,
        steps: jax.Array,
        total: jax.Array,
    ) -> Any:
        """The first `steps` steps of an epoch; losses and accuracies summed over them. The number
        is a runtime value: trials compile nothing new.
        """
        b, n = self.recipe.batch, len(data[1])
        # the epoch's number comes from the step count, so that a run that is continued goes on with
        # the order it would have had: with 50,000 images and b = 128 an epoch has 390 steps, and
        # step 390 is the first of epoch 1
        order_key, step_key = jax.random.split(
            jax.random.fold_in(key, state.optimizer.count // (n // b))
        )
        order = jax.random.permutation(order_key, n)

        def step(k: jax.Array, carry: Any) -> Any:
            state, loss, accuracy = carry
            shifts, directions = jax.random.split(jax.random.fold_in(step_key, k))
            pixels, labels = (leaf[jax.lax.dynamic_slice(order, (k * b,), (b,))] for leaf in data)
            if self.recipe.augment:
                pixels = augmented(pixels, shifts)
            # the rate of the step that is about to be made: at k = 0 the whole of lr, and at the
            # last step of K not yet zero
            share = state.optimizer.count.astype(jnp.float32) / total
            params, optimizer, info = self.optimizer.step(
                state.params,
                state.optimizer,
                {"image": pixels, "label": labels},
                state.statistics,
                key=directions if self._random else None,
                rate=self.recipe.lr
                * (
                    0.5 * (1 + jnp.cos(jnp.pi * share)) if self.recipe.schedule == "cosine" else 1.0
                ),
            )
            statistics, right = info.aux
            return State(params, statistics, optimizer), loss + info.loss, accuracy + right

        return jax.lax.fori_loop(0, steps, step, (state, jnp.float32(0), jnp.float32(0)))


def augmented(images: jax.Array, key: jax.Array) -> jax.Array:
    """Each image cut at random out of itself with a border of `PADDING` black pixels, and mirrored
    with probability 1/2.
    """
    place, mirror = jax.random.split(key)
    rows, columns = jax.random.randint(place, (2, len(images)), 0, 2 * PADDING + 1)
    return shift_and_mirror(
        images, rows, columns, jax.random.bernoulli(mirror, shape=(len(images),))
    )


def shift_and_mirror(
    images: jax.Array, rows: jax.Array, columns: jax.Array, mirror: jax.Array
) -> jax.Array:
    """Cut each image out of itself with a border of `PADDING` black pixels, from a row and a column
    on, and mirror it left to right.

    Args:
        images: shape (n, height, width, channels).
        rows: shape (n,), from 0 to 2 PADDING; at PADDING nothing moves.
        columns: likewise.
        mirror: shape (n,), boolean.
    """
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    cut = jax.vmap(
        lambda image, row, column: jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:])
    )(padded, rows, columns)
    return jnp.where(mirror[:, None, None, None], cut[:, :, ::-1], cut)


@partial(jax.jit, static_argnums=0)
def _init(network: ResNet, key: jax.Array) -> tuple[PyTree, PyTree]:
    return network.init(key)


def _losses(
    network: ResNet, ghost: int | None, params: PyTree, batch: PyTree, statistics: PyTree
) -> tuple[jax.Array, Any]:
    """Per-sample losses in training; beside them the new running statistics and the accuracy."""
    scores, new = network(params, statistics, batch["image"], train=True, ghost=ghost)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"])
    return losses, (
        new,
        jnp.mean(
            (jnp.argmax(scores, axis=-1).astype(jnp.int32) == batch["label"]).astype(jnp.float32)
        ),
    )


def _times_rate() -> optax.GradientTransformationExtraArgs:
    """`- rate * updates`, with the rate as an argument of each step: a run of another length
    compiles nothing new.
    """

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, rate: Any, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        return jax.tree.map(lambda leaf: -rate * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
