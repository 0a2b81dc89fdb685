"""Training a network with batch norm: the steps of `sdesam.optim`, whole epochs in one compiled loop, the data on the device.

Conventions on which papers differ:

* A batch-norm layer normalises a pass over a micro-batch with that micro-batch's statistics, in groups of `ghost` images (default: all of the
  micro-batch). m-SAM as it is usually run therefore changes two things with `m`, the perturbation and the norm; the same `ghost` for all
  methods (`ghost <= m`) leaves one. Running statistics are updated from the unperturbed pass only, with the mean over groups.
* Weight decay is added to the gradient `G` before momentum, for every parameter. It is no part of the loss: it does not enter the perturbation.
* Images are padded with 4 black pixels, cut out at random and mirrored with probability 1/2. The data are drawn anew in each epoch
  without replacement; the images that are left over after the last whole batch are not used in that epoch.
* Learning rate: `lr (1 + cos(pi k / K)) / 2` at step `k` of `K`, or constant. No warm-up.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdesam._names import unknown
from sdesam.optim import Optimizer
from sdesam.optim import State as OptimizerState
from sdesam.optim.optimizer import Groups
from sdesam.problems.cifar10 import Images
from sdesam.sampling import check_perturbation, positive, whole
from sdesam.training.resnet import ResNet
from sdesam.variants import NormEstimate
from sdesam.variants import variant as find_variant

PyTree = Any
Schedule = Literal["cosine", "constant"]

PADDING = 4  # pixels on each side, customary on CIFAR
FORWARD = 1 / 3  # of the arithmetic of a forward and a backward pass, whose backward part forms two products for each of the forward part


@dataclass(frozen=True)
class Method:
    """What perturbs the gradient.

    Args:
        variant: a name in :data:`sdesam.VARIANTS`.
        rho: perturbation radius.
        micro: `m`, for m-sam and m-usam.
        lam: inverse temperature of rw-sam's weights.
        whole: for n-sam, n-usam and dnsam: how many images, drawn anew at each step, stand for the data set. With fewer than all of
            them it is the variant with a larger batch of its own for the perturbation, and the label says so.
        delta: step of rw-sam's difference quotient.

    Raises:
        ValueError: numbers that do not fit the variant.

    >>> Method("m-sam", rho=0.1, micro=32).label, Method("n-sam", rho=0.1, whole=1024).label
    ('m-SAM m=32', 'n-SAM over 1024')
    """

    variant: str
    rho: float = 0.0
    micro: int | None = None
    lam: float | None = None
    whole: int | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        rule = find_variant(self.variant)
        check_perturbation(rule, self.rho, 0.0, self.lam, self.norms)
        if rule.micro and self.micro is None:
            raise ValueError(f"{self.variant} needs micro, the samples of a micro-batch")
        if not rule.micro and self.micro is not None:
            raise ValueError(f"micro={self.micro!r}: {self.variant} has no micro-batches; leave micro out, or use m-{self.variant}")
        if rule.needs_whole_set != (self.whole is not None):
            raise ValueError(
                f"{self.variant} needs whole, the number of images that stand for the data set"
                if rule.needs_whole_set
                else f"whole={self.whole!r}: {self.variant} does not use the gradient of the data set; leave it out"
            )

    @property
    def norms(self) -> NormEstimate | None:
        """How rw-sam estimates gradient norms; None: as it does by default."""
        return None if self.delta is None else NormEstimate(delta=self.delta)

    @property
    def label(self) -> str:
        """For tables and legends."""
        title = find_variant(self.variant).title
        details = (("m=", self.micro), ("lambda=", self.lam), ("over ", self.whole))
        return title + "".join(f" {name}{value:g}" for name, value in details if value is not None)

    def passes(self, batch: int) -> float:
        """The arithmetic of a step in forward-and-backward passes over the mini-batch; a forward pass alone counts 1/3.

        >>> [round(Method(*given).passes(128), 2) for given in [("sgd",), ("sam", 0.1), ("m-sam", 0.1, 32), ("rw-sam", 0.1, None, 1.0)]]
        [1, 2, 2, 2.33]
        """
        rule = find_variant(self.variant)
        if rule.perturbation == "none":
            return 1
        of_the_whole = 0 if self.whole is None else self.whole / batch
        if rule.perturbation == "data set":
            return of_the_whole + FORWARD + 1  # the forward pass gives the running statistics
        return of_the_whole + 2 + (FORWARD if rule.weights == "gibbs" else 0)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, apart from the perturbation.

    Args:
        batch: mini-batch size `b`.
        lr: learning rate at the start.
        momentum: of SGD (heavy ball); 0 for none.
        weight_decay: added to the gradient as `weight_decay * x`.
        schedule: `"cosine"` or `"constant"`.
        augment: whether images are shifted and mirrored.
        ghost: how many images share batch-norm statistics; None: a micro-batch, or the mini-batch where there is none.
        groups: how micro-batches are run. `"accumulate"`, one after the other: ordinary convolutions. `"vmap"`, all at once: each
            micro-batch has its own perturbed weights, so that convolutions become grouped ones, which few libraries do well.

    Raises:
        ValueError: numbers out of range, an unknown schedule.
        TypeError: a size that is no whole number.

    >>> Recipe(batch=64).ghost_of(Method("m-sam", rho=0.1, micro=16)), Recipe(batch=64).ghost_of(Method("sam", rho=0.1))
    (16, 64)
    """

    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    augment: bool = True
    ghost: int | None = None
    groups: Groups = "accumulate"

    def __post_init__(self) -> None:
        whole("batch", self.batch)
        positive("lr", self.lr)
        positive("weight_decay", self.weight_decay, zero=True)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum!r}: it must be at least 0 and below 1")
        if self.schedule not in get_args(Schedule):
            raise unknown("schedule", self.schedule, get_args(Schedule))
        if self.groups not in get_args(Groups):
            raise unknown("way to run groups", self.groups, get_args(Groups))
        if self.ghost is not None:
            whole("ghost", self.ghost)

    def ghost_of(self, method: Method) -> int:
        """How many images share batch-norm statistics.

        Raises:
            ValueError: sizes that do not divide each other.
        """
        micro = method.micro or self.batch
        ghost = self.ghost or micro
        for name, size, of, number in (("micro", micro, "batch", self.batch), ("ghost", ghost, "micro" if method.micro else "batch", micro)):
            if number % size:
                divisors = ", ".join(str(k) for k in range(1, number + 1) if number % k == 0)
                raise ValueError(f"{name}={size} does not divide {of}={number}: choose one of {divisors}")
        if method.whole is not None and method.whole % ghost:
            raise ValueError(f"whole={method.whole} is no multiple of the {ghost} images that share batch-norm statistics")
        return ghost


class State(NamedTuple):
    """What the next step needs.

    Args:
        params: the parameters `x`.
        statistics: running statistics of batch norm.
        optimizer: step count and momentum.
    """

    params: PyTree
    statistics: PyTree
    optimizer: OptimizerState


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        config: everything that determines it.
        records: by name, one number for each epoch, the start included (epoch 0, where what is of an epoch is NaN): `epoch`, `train_loss` and
            `train_accuracy` (means over the epoch's mini-batches as they were drawn and shifted, unperturbed, before each step),
            `test_loss`, `test_accuracy` (with running statistics), `trace_cov` and `trace_cov_stderr` (tr V), `gradient_norm`, `seconds`
            (of the epoch's steps) and `images_per_second`.
        diverged: the epoch in which the loss left the finite numbers; the run ends there. None if it did not.
        state: after the last step, on the device.
    """

    config: dict[str, Any]
    records: dict[str, np.ndarray]
    diverged: int | None
    state: State = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the state."""
        return {"config": self.config, "records": self.records, "diverged": self.diverged}


class Trainer:
    """One method and one recipe on one data set: compiled once, for any number of epochs and seeds.

    Seeds are run in turn. The start, the order of the data and their shifts depend on the seed and on nothing else, so that runs of
    different methods with one seed are paired.

    Args:
        network: the network.
        data: the images; they lie on the device as bytes.
        method: the method.
        recipe: the recipe.
        samples: how many images tr V and the gradient norm are estimated from, the same ones always, as they are (no shifts), with running
            statistics.

    Raises:
        ValueError: sizes that do not divide each other, fewer images than a batch.

    >>> rng = np.random.default_rng(0)
    >>> data = Images(rng.integers(256, size=(16, 8, 8, 3), dtype=np.uint8), np.arange(16) % 10, np.zeros((4, 8, 8, 3), np.uint8), np.arange(4))
    >>> trainer = Trainer(ResNet(blocks=(1,), width=2), data, Method("m-sam", rho=0.05, micro=4), Recipe(batch=8), samples=4)
    >>> run = trainer.run(seed=0, epochs=2)
    >>> run.records["epoch"].tolist(), run.diverged
    ([0, 1, 2], None)
    """

    def __init__(self, network: ResNet, data: Images, method: Method, recipe: Recipe | None = None, samples: int = 256):
        recipe = recipe or Recipe()
        n = len(data.train_images)
        if n < recipe.batch:
            raise ValueError(f"batch={recipe.batch} exceeds the {n} images to train on")
        if method.whole is not None and method.whole > n:
            raise ValueError(f"whole={method.whole} exceeds the {n} images to train on")
        if network.classes != len(data.classes):
            raise ValueError(f"the network gives {network.classes} scores, and the data have {len(data.classes)} classes")
        self.network, self.method, self.recipe = network, method, recipe
        self.source, self.steps_per_epoch = data.source, n // recipe.batch
        self.samples = min(whole("samples", samples, least=2), n)
        ghost = recipe.ghost_of(method)
        self.optimizer = Optimizer(
            method.variant,
            partial(_losses, network, ghost),
            optax.chain(
                optax.add_decayed_weights(recipe.weight_decay) if recipe.weight_decay else optax.identity(),
                optax.trace(recipe.momentum) if recipe.momentum else optax.identity(),
                _times_rate(),
            ),
            method.rho,
            micro=method.micro,
            lam=method.lam,
            norms=method.norms,
            groups=recipe.groups,
            has_aux=True,
        )
        self._random = self.optimizer.norms is not None and self.optimizer.norms.random
        self._train = jax.device_put((data.train_images, data.train_labels.astype(np.int32)))
        self._test = jax.device_put((data.test_images, data.test_labels.astype(np.int32)))
        self._chosen = chosen = np.sort(np.random.default_rng(0).choice(n, self.samples, replace=False))
        self._sample = jax.device_put((data.train_images[chosen], data.train_labels[chosen].astype(np.int32)))
        self._epoch: Callable[..., Any] = jax.jit(self._steps, donate_argnums=0)

    def compile(self) -> float:
        """Compile the epoch now; seconds that it took. Several may be compiled in threads of their own."""
        began = time.perf_counter()
        compiled: Any = self._epoch
        self._epoch = compiled.lower(jax.eval_shape(lambda: self.start(0)), self._train, jax.random.key(0), jnp.int32(0), jnp.float32(0)).compile()
        return time.perf_counter() - began

    def relabelled(self, labels: np.ndarray) -> Trainer:
        """The same with other labels to train on, shape (n,), one compiled program for both."""
        if np.shape(labels) != self._train[1].shape:
            raise ValueError(f"labels have shape {list(np.shape(labels))}: give one for each of the {len(self._train[1])} images")
        other = copy.copy(self)
        device_labels = jnp.asarray(labels, jnp.int32)
        other._train, other._sample = (self._train[0], device_labels), (self._sample[0], device_labels[self._chosen])
        other.source = f"{self.source}, relabelled"
        return other

    def start(self, seed: int, of: State | None = None) -> State:
        """The state before the first step: drawn from `seed`, or with a copy of the parameters and running statistics `of` another state."""
        if of is None:
            params, statistics = _init(self.network, jax.random.fold_in(jax.random.key(whole("seed", seed, least=0)), 0))
        else:
            params, statistics = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (of.params, of.statistics))
        return State(params, statistics, self.optimizer.init(params))

    def epoch(self, state: State, seed: int, total: int, steps: int | None = None) -> tuple[State, float, float]:
        """An epoch, or its first `steps`: `(state, train loss, train accuracy)`. The given state is used up.

        Args:
            state: before.
            seed: of order and shifts.
            total: steps of the whole run, for the schedule.
            steps: None for all.
        """
        steps = self.steps_per_epoch if steps is None else steps
        if not 1 <= steps <= self.steps_per_epoch:
            raise ValueError(f"steps={steps}: an epoch has {self.steps_per_epoch}")
        key = jax.random.fold_in(jax.random.key(seed), 1)
        state, loss, accuracy = self._epoch(state, self._train, key, jnp.int32(steps), jnp.float32(total))
        return state, float(loss) / steps, float(accuracy) / steps

    def run(
        self,
        seed: int,
        epochs: int,
        start: State | None = None,
        until: float | None = None,
        report: Callable[[Mapping[str, float]], Any] | None = None,
    ) -> Run:
        """Train for `epochs`.

        Args:
            seed: of the start, the order of the data, their shifts and random directions.
            epochs: at least 1.
            start: start from its parameters and running statistics; momentum and schedule begin anew.
            until: stop after the first epoch whose `train_accuracy` reaches this.
            report: called with the records of each epoch as soon as they are known.

        Raises:
            ValueError: no epochs.
        """
        state = self.start(seed, start)
        total = whole("epochs", epochs) * self.steps_per_epoch
        config = {**self.config, "seed": seed, "epochs": epochs, "until": until, "start": "drawn" if start is None else "given"}
        rows: list[dict[str, float]] = []
        diverged = None
        for epoch in range(epochs + 1):
            row: dict[str, float] = {"epoch": epoch, "train_loss": math.nan, "train_accuracy": math.nan, "seconds": math.nan}
            if epoch:
                began = time.perf_counter()
                state, row["train_loss"], row["train_accuracy"] = self.epoch(state, seed, total)
                row["seconds"] = time.perf_counter() - began
            row["images_per_second"] = self.steps_per_epoch * self.recipe.batch / row["seconds"]
            rows.append({**row, **self.measure(state)})
            if report is not None:
                report(rows[-1])
            if epoch and not math.isfinite(row["train_loss"]):
                diverged = epoch
                break
            if until is not None and row["train_accuracy"] >= until:
                break
        records = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        return Run(config, records, diverged, state)

    def measure(self, state: State) -> dict[str, float]:
        """Test loss and accuracy, tr V and the gradient norm, as in :class:`Run`."""
        test = evaluate(self.network, state, *self._test)
        noise = gradient_noise(self.network, state, *self._sample)
        return {"test_loss": test["loss"], "test_accuracy": test["accuracy"], **noise}

    @property
    def config(self) -> dict[str, Any]:
        """What determines a run, beside seed and epochs."""
        return {
            "network": asdict(self.network),
            "method": asdict(self.method),
            "label": self.method.label,
            "recipe": {**asdict(self.recipe), "ghost": self.recipe.ghost_of(self.method)},
            "data": {"source": self.source, "train": len(self._train[0]), "test": len(self._test[0])},
            "samples": self.samples,
        }

    def _steps(self, state: State, data: tuple[jax.Array, jax.Array], key: jax.Array, steps: jax.Array, total: jax.Array) -> Any:
        """The first `steps` steps of an epoch; losses and accuracies summed over them. The number is a runtime value: trials compile nothing new."""
        b, n = self.recipe.batch, len(data[1])
        order = jax.random.permutation(jax.random.fold_in(key, state.optimizer.count // self.steps_per_epoch), n)

        def step(k: jax.Array, carry: Any) -> Any:
            state, loss, accuracy = carry
            chosen = jax.lax.dynamic_slice(order, (k * b,), (b,))
            state, found = self._step(state, data, chosen, jax.random.fold_in(key, -1 - state.optimizer.count), total)
            return state, loss + found[0], accuracy + found[1]

        return jax.lax.fori_loop(0, steps, step, (state, jnp.float32(0), jnp.float32(0)))

    def _step(self, state: State, data: tuple[jax.Array, jax.Array], chosen: jax.Array, key: jax.Array, total: jax.Array) -> Any:
        """One step on the images `chosen`: the state, and loss and accuracy before it."""
        shifts, directions, others, their_shifts = jax.random.split(key, 4)
        count = state.optimizer.count
        rate = self.recipe.lr * (0.5 * (1 + jnp.cos(jnp.pi * count / total)) if self.recipe.schedule == "cosine" else 1.0)
        whole_set = None
        if self.method.whole is not None:
            stand_in = self._batch(data, jax.random.choice(others, len(data[1]), (self.method.whole,), replace=False), their_shifts)
            chunk = math.gcd(self.method.whole, self.recipe.batch)
            whole_set = self.optimizer.whole_gradient(state.params, stand_in, state.statistics, chunk=chunk)
        params, optimizer, info = self.optimizer.step(
            state.params,
            state.optimizer,
            self._batch(data, chosen, shifts),
            state.statistics,
            key=directions if self._random else None,
            whole=whole_set,
            rate=rate,
        )
        statistics, accuracy = info.aux
        return State(params, statistics, optimizer), (info.loss, accuracy)

    def _batch(self, data: tuple[jax.Array, jax.Array], chosen: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        images, labels = (leaf[chosen] for leaf in data)
        if self.recipe.augment:
            place, mirror = jax.random.split(key)
            rows, columns = jax.random.randint(place, (2, len(chosen)), 0, 2 * PADDING + 1)
            images = shift_and_mirror(images, rows, columns, jax.random.bernoulli(mirror, shape=(len(chosen),)))
        return {"image": images, "label": labels}


def shift_and_mirror(images: jax.Array, rows: jax.Array, columns: jax.Array, mirror: jax.Array) -> jax.Array:
    """Cut each image out of itself with a border of `PADDING` black pixels, from a row and a column on, and mirror it left to right.

    Args:
        images: shape (n, height, width, channels).
        rows: shape (n,), from 0 to 2 PADDING; at PADDING nothing moves.
        columns: likewise.
        mirror: shape (n,), boolean.
    """
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    cut = jax.vmap(lambda image, row, column: jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:]))(padded, rows, columns)
    return jnp.where(mirror[:, None, None, None], cut[:, :, ::-1], cut)


def evaluate(network: ResNet, state: State, images: Any, labels: Any, chunk: int = 500) -> dict[str, float]:
    """Mean `loss` and `accuracy` with the running statistics.

    Args:
        network: the network.
        state: of a :class:`Trainer`.
        images: uint8, shape (n, height, width, channels).
        labels: shape (n,).
        chunk: images at a time.
    """
    loss, accuracy = _evaluate(network, state.params, state.statistics, jnp.asarray(images), jnp.asarray(labels), min(chunk, len(labels)))
    return {"loss": float(loss), "accuracy": float(accuracy)}


def gradient_noise(network: ResNet, state: State, images: Any, labels: Any) -> dict[str, float]:
    """`trace_cov`, its standard error `trace_cov_stderr`, and `gradient_norm`, estimated from per-sample gradients with the running statistics.

    With `S` samples of gradients `g_i` and mean `g`: `trace_cov = (mean |g_i|^2 - |g|^2) S/(S-1)`, unbiased for tr V of one sample, and
    `gradient_norm = sqrt(max(|g|^2 - trace_cov/S, 0))`, without the part of `|g|^2` that is due to the sample being small.
    The standard error is that of `mean |g_i|^2`, nearly all of the trace.

    Args:
        network: the network.
        state: of a :class:`Trainer`.
        images: the sample, uint8, shape (S, height, width, channels).
        labels: shape (S,).
    """
    squares, square_of_mean = _gradient_noise(network, state.params, state.statistics, jnp.asarray(images), jnp.asarray(labels))
    norms2, size = np.asarray(squares, float), len(labels)
    trace = (norms2.mean() - float(square_of_mean)) * size / (size - 1)
    return {
        "trace_cov": float(trace),
        "trace_cov_stderr": float(norms2.std(ddof=1) / math.sqrt(size)),
        "gradient_norm": math.sqrt(max(float(square_of_mean) - trace / size, 0.0)) if math.isfinite(trace) else math.nan,
    }


@partial(jax.jit, static_argnums=0)
def _init(network: ResNet, key: jax.Array) -> tuple[PyTree, PyTree]:
    return network.init(key)


@partial(jax.jit, static_argnums=(0, 5))
def _evaluate(network: ResNet, params: PyTree, statistics: PyTree, images: jax.Array, labels: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    n = len(labels)
    filled = -(-n // chunk) * chunk
    images = jnp.pad(images, ((0, filled - n), (0, 0), (0, 0), (0, 0))).reshape(-1, chunk, *images.shape[1:])
    labels = jnp.pad(labels, (0, filled - n), constant_values=-1).reshape(-1, chunk)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        scores, _ = network(params, statistics, part[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(part[1], 0))
        return (total[0] + jnp.sum(jnp.where(part[1] >= 0, losses, 0)), total[1] + jnp.sum(jnp.argmax(scores, axis=-1) == part[1])), None

    (loss, right), _ = jax.lax.scan(add, (jnp.float32(0), jnp.int32(0)), (images, labels))
    return loss / n, right / n


@partial(jax.jit, static_argnums=0)
def _gradient_noise(network: ResNet, params: PyTree, statistics: PyTree, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`|g_i|^2` of each sample, and the square of the norm of their mean. One sample at a time: per-sample kernels would be grouped convolutions."""

    def loss(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        scores, _ = network(params, statistics, image[None])
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(scores, label[None])
        return losses[0]

    def add(total: PyTree, sample: Any) -> tuple[PyTree, jax.Array]:
        g = jax.grad(loss)(params, *sample)
        return jax.tree.map(jnp.add, total, g), _norm2(g)

    total, squares = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (images, labels))
    return squares, _norm2(total) / len(labels) ** 2


def _norm2(tree: PyTree) -> jax.Array:
    total: jax.Array = sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=jnp.float32(0))
    return total


def _losses(network: ResNet, ghost: int, params: PyTree, batch: PyTree, statistics: PyTree) -> tuple[jax.Array, Any]:
    """Per-sample losses in training mode; beside them the new running statistics and the accuracy."""
    scores, new = network(params, statistics, batch["image"], ghost)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"])
    return losses, (new, jnp.mean((jnp.argmax(scores, axis=-1) == batch["label"]).astype(jnp.float32)))


def _times_rate() -> optax.GradientTransformationExtraArgs:
    """`- rate * updates`, with the rate as an argument of each step: a run of another length compiles nothing new."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, rate: Any, **extra: Any) -> tuple[PyTree, PyTree]:
        return jax.tree.map(lambda leaf: -rate * leaf, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
