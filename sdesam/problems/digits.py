"""Handwritten digits: scikit-learn's 1,797 real 8x8 images and a tanh network, the smallest real deep-learning problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.problems.finite_sum import FiniteSum
from sdesam.sampling import whole

_IMAGES = 1797


def _network(params: Any, image: Any) -> Any:
    hidden = jnp.tanh(image @ params["W1"] + params["b1"])
    return hidden @ params["W2"] + params["b2"]


def _cross_entropy(params: Any, sample: Any) -> Any:
    scores = _network(params, sample["image"])
    return jax.nn.logsumexp(scores) - scores[sample["label"]]


def digits(train: int = 256, width: int = 16, seed: int = 0) -> FiniteSum:
    """Cross entropy of a 64-`width`-10 tanh network on the first `train` images of scikit-learn's digits, pixels/16 - 0.3.

    Start: `W1 ~ N(0, 1/64)`, `W2 ~ N(0, 1/width)`, zero biases. Observables `train_accuracy` and, where images are left to test on,
    `test_accuracy`.

    Args:
        train: how many of the 1,797 images to train on.
        width: hidden units.
        seed: of the start.

    >>> digits()
    FiniteSum('digits', n=256, parameters=1210)
    """
    from sklearn.datasets import load_digits

    hidden = whole("width", width)
    if whole("train", train) > _IMAGES:
        raise ValueError(f"train={train}: there are {_IMAGES} images")
    source = load_digits()
    data = {"image": (source.data / 16 - 0.3).astype(np.float32), "label": source.target.astype(np.int32)}
    rng = np.random.default_rng(seed)
    x0 = {
        "W1": rng.normal(size=(64, hidden)) / 8,
        "b1": np.zeros(hidden),
        "W2": rng.normal(size=(hidden, 10)) / np.sqrt(hidden),
        "b2": np.zeros(10),
    }
    first = {name: values[:train] for name, values in data.items()}
    rest = {name: values[train:] for name, values in data.items()}
    observables = {"train_accuracy": _accuracy(first)}
    if train < _IMAGES:
        observables["test_accuracy"] = _accuracy(rest)
    return FiniteSum(_cross_entropy, first, x0, observables=observables, name="digits")


def _accuracy(data: dict[str, np.ndarray]) -> Callable[[Any], jax.Array]:
    def accuracy(params: Any) -> jax.Array:
        scores = jax.vmap(_network, (None, 0))(params, data["image"])
        return jnp.mean((jnp.argmax(scores, axis=-1) == data["label"]).astype(scores.dtype))

    return accuracy
