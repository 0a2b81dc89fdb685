"""What is measured of a network between epochs: test loss, accuracy, the noise of its gradient."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdesam.networks.resnet import ResNet
from sdesam.networks.state import State

PyTree = Any


def measure(
    network: ResNet, state: State, test: tuple[Any, Any], sample: tuple[Any, Any], chunk: int = 500
) -> dict[str, float]:
    """What is known of a state, all of it with the running statistics.

    With `S` samples of gradients `g_i` and mean `g`: `trace_cov = (mean |g_i|^2 - |g|^2) S/(S-1)`,
    unbiased for tr V of one sample, and `gradient_norm = sqrt(max(|g|^2 - trace_cov/S, 0))`,
    without the part of `|g|^2` that is due to the sample being small. The standard error is that of
    `mean |g_i|^2`, nearly all of the trace.

    Args:
        network: the network.
        state: its parameters and running statistics.
        test: images and labels to test on.
        sample: images and labels of `S` training samples.
        chunk: test images at a time.

    Returns:
        `test_loss`, `test_accuracy`, `trace_cov`, `trace_cov_stderr`, `gradient_norm`.
    """
    loss, right = _evaluate(
        network, state.params, state.statistics, *test, min(chunk, len(test[1]))
    )
    squares, square_of_mean = _gradient_noise(network, state.params, state.statistics, *sample)
    norms2, size = np.asarray(squares, float), len(sample[1])
    # Gradients 1 and 3 of two samples: mean square 5, squared mean 4. Their difference 1 is divided
    # by n - 1 and not n: times 2/1 it is 2, the unbiased variance of 1 and 3. Of the squared mean,
    # trace/S = 1 is due to the draw of two samples, and 3 remains of |g|^2.
    trace = (norms2.mean() - float(square_of_mean)) * size / (size - 1)
    return {
        "test_loss": float(loss),
        "test_accuracy": float(right),
        "trace_cov": float(trace),
        "trace_cov_stderr": float(norms2.std(ddof=1) / math.sqrt(size)),
        "gradient_norm": (
            math.sqrt(max(float(square_of_mean) - trace / size, 0.0))
            if math.isfinite(trace)
            else math.nan
        ),
    }


@partial(jax.jit, static_argnums=(0, 5))
def _evaluate(
    network: ResNet,
    params: PyTree,
    statistics: PyTree,
    images: jax.Array,
    labels: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Mean loss and accuracy."""
    n = len(labels)
    # chunks of one size for the loop: 1,100 images in chunks of 500 are filled up to 1,500 with
    # black ones, whose label -1 no score can match and whose loss is not counted
    filled = -(-n // chunk) * chunk
    images = jnp.pad(images, ((0, filled - n), (0, 0), (0, 0), (0, 0))).reshape(
        -1, chunk, *images.shape[1:]
    )
    labels = jnp.pad(labels, (0, filled - n), constant_values=-1).reshape(-1, chunk)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        scores, _ = network(params, statistics, part[0], train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(part[1], 0))
        right = jnp.sum(jnp.argmax(scores, axis=-1).astype(jnp.int32) == part[1], dtype=jnp.int32)
        return (total[0] + jnp.sum(jnp.where(part[1] >= 0, losses, 0)), total[1] + right), None

    (loss, right), _ = jax.lax.scan(add, (jnp.float32(0), jnp.int32(0)), (images, labels))
    return loss / n, right.astype(jnp.float32) / n


@partial(jax.jit, static_argnums=0)
def _gradient_noise(
    network: ResNet, params: PyTree, statistics: PyTree, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`|g_i|^2` of each sample, and the square of the norm of their mean. One sample at a time:
    per-sample kernels would be grouped convolutions.
    """

    def loss(params: PyTree, image: jax.Array, label: jax.Array) -> jax.Array:
        scores, _ = network(params, statistics, image[None], train=False)
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(scores, label[None])
        return losses[0]

    def add(total: PyTree, sample: Any) -> tuple[PyTree, jax.Array]:
        g = jax.grad(loss)(params, *sample)
        return jax.tree.map(jnp.add, total, g), _norm2(g)

    total, squares = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (images, labels))
    return squares, _norm2(total) / len(labels) ** 2


def _norm2(tree: PyTree) -> jax.Array:
    total: jax.Array = sum(
        (jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=jnp.float32(0)
    )
    return total
