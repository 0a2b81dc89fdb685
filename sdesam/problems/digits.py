"""Handwritten digits: scikit-learn's 1,797 real 8x8 images and a tanh network, the smallest real
deep-learning problem.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdesam._util.checks import check_int
from sdesam._util.precision import precisely
from sdesam.problems.arrays import check_structure
from sdesam.problems.finite_sum import FiniteSum

_IMAGES = 1797
_LOOK = 50
"""Steps of a full-batch fit between looks at the training error."""


def _network(params: Any, image: Any) -> Any:
    hidden = jnp.tanh(image @ params["W1"] + params["b1"])
    return hidden @ params["W2"] + params["b2"]


def _cross_entropy(params: Any, sample: Any) -> Any:
    scores = _network(params, sample["image"])
    return jax.nn.logsumexp(scores) - scores[sample["label"]]


def _squared(params: Any, sample: Any) -> Any:
    return 0.5 * jnp.sum(
        (_network(params, sample["image"]) - jax.nn.one_hot(sample["label"], 10)) ** 2
    )


_LOSSES = {"cross-entropy": _cross_entropy, "squared": _squared}


def digits(
    train: int = 256,
    width: int = 16,
    seed: int = 0,
    label_noise: float = 0.0,
    loss: str = "cross-entropy",
    start: Any = None,
) -> FiniteSum:
    """Mean loss of a 64-`width`-10 tanh network on the first `train` images of scikit-learn's
    digits, pixels/16 - 0.3.

    Start: `W1 ~ N(0, 1/64)`, `W2 ~ N(0, 1/width)`, zero biases. Observables `train_accuracy`, on
    the labels that are trained on, and, where images are left to test on, `test_accuracy`, on true
    labels.

    Args:
        train: how many of the 1,797 images to train on.
        width: hidden units.
        seed: of the start and of the noise.
        label_noise: the share of training labels that are replaced by one of the nine others, drawn
            evenly; 0.9 leaves no information.
        loss: "cross-entropy", or "squared" for half the squared distance of the scores from the
            one-hot label.
        start: other parameters to start from, such as another run's last ones.

    Raises:
        ValueError: too many images, a share outside [0, 1], an unknown loss.

    >>> digits()
    FiniteSum('digits', n=256, parameters=1210)
    """
    hidden = check_int("width", width)
    if check_int("train", train) > _IMAGES:
        raise ValueError(f"train={train}: there are {_IMAGES} images")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise}: it must be a share from 0 to 1")
    if loss not in _LOSSES:
        raise ValueError(f"loss={loss!r}: choose one of {', '.join(_LOSSES)}")
    first, observables = _split(train, float(label_noise), seed if label_noise else 0)
    rng = np.random.default_rng(seed)
    x0 = {
        "W1": rng.normal(size=(64, hidden)) / 8,
        "b1": np.zeros(hidden),
        "W2": rng.normal(size=(hidden, 10)) / np.sqrt(hidden),
        "b2": np.zeros(10),
    }
    if start is not None:
        x0 = check_structure(start, x0)
    return FiniteSum(_LOSSES[loss], first, x0, observables=observables, name="digits")


def bad_minimum(
    train: int = 1000,
    width: int = 64,
    seed: int = 0,
    label_noise: float = 0.9,
    rate: float = 3e-3,
    most: int = 20_000,
) -> tuple[Any, dict[str, int]]:
    """Parameters with zero training error that generalise badly: fitted to wrong labels first, then
    to the true ones, each to zero error.

    The fit is Adam on the whole training set, so nothing on the way prefers a flat minimum.

    Args:
        train: how many images to train on.
        width: hidden units.
        seed: of the start and of the wrong labels.
        label_noise: the share of wrong labels; at 0.9 they say nothing about the image.
        rate: learning rate of Adam.
        most: steps after which to give up, for each of the two fits.

    Returns:
        The parameters, and how many steps each fit took.

    Raises:
        RuntimeError: no zero training error within `most` steps.

    Source: Luo et al., arXiv 2509.18001, figures 1 and 2 (the protocol); S. Liu, Papailiopoulos &
    Achlioptas 2020 (bad minima).
    """
    x = None
    steps = {}
    for name, share in (("wrong", label_noise), ("true", 0.0)):
        problem = digits(train, width, seed, share, start=x)
        x, count, accuracy = _fit(
            _cross_entropy,
            problem.observables["train_accuracy"],
            rate,
            problem.data,
            problem.x0,
            most,
        )
        if accuracy < 1:
            raise RuntimeError(
                f"the {name} labels are not fitted within most={most} steps (accuracy"
                f" {float(accuracy):.3f}): give it more"
            )
        steps[f"steps to {name} labels"] = int(count)
    return x, steps


@partial(jax.jit, static_argnums=(0, 2))
@precisely
def _fit(sample_loss: Any, accuracy: Any, rate: float, data: Any, x: Any, most: Any) -> Any:
    """Adam on the whole data set until the training accuracy is 1: parameters, steps, accuracy."""
    adam = optax.adam(rate)

    def loss(x: Any) -> Any:
        return jnp.mean(jax.vmap(sample_loss, (None, 0))(x, data))

    def step(_: Any, state: Any) -> Any:
        x, moments = state
        update, moments = adam.update(jax.grad(loss)(x), moments)
        return optax.apply_updates(x, update), moments

    def more(state: Any) -> Any:
        return (state[1] < most) & (state[2] < 1)

    def some(state: Any) -> Any:
        moved = jax.lax.fori_loop(0, _LOOK, step, state[0])
        return moved, state[1] + _LOOK, accuracy(moved[0])

    (x, _), steps, reached = jax.lax.while_loop(more, some, ((x, adam.init(x)), 0, accuracy(x)))
    return x, steps, reached


@lru_cache(maxsize=32)
def _split(
    train: int, label_noise: float, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The training data, and the observables."""
    from sklearn.datasets import load_digits

    source = load_digits()
    data = {
        "image": (source.data / 16 - 0.3).astype(np.float32),
        "label": source.target.astype(np.int32),
    }
    first = {name: values[:train] for name, values in data.items()}
    rest = {name: values[train:] for name, values in data.items()}
    if label_noise:
        rng = np.random.default_rng([seed, 1])  # apart from the draws of the start
        wrong = rng.permutation(train)[: round(label_noise * train)]
        label = first["label"].copy()
        label[wrong] = (label[wrong] + rng.integers(1, 10, size=len(wrong))) % 10
        first["label"] = label
    observables = {"train_accuracy": jax.tree_util.Partial(_accuracy, first)}
    if train < _IMAGES:
        observables["test_accuracy"] = jax.tree_util.Partial(_accuracy, rest)
    return first, observables


def _accuracy(data: Any, params: Any) -> jax.Array:
    scores = jax.vmap(_network, (None, 0))(params, data["image"])
    return jnp.mean((jnp.argmax(scores, axis=-1) == data["label"]).astype(scores.dtype))


PROBLEMS = {"digits": digits}
