"""Residual networks for small images in plain jax: parameters and running statistics are pytrees,
images are (n, height, width, channels).

ResNet-18 as it is used on CIFAR: a 3x3 stem without pooling, four stages of two blocks, batch norm.
Parameters, statistics and the norms' arithmetic are float32; convolutions compute in `dtype`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._util.checks import check_int
from sdesam._util.names import unknown

PyTree = Any
Compute = Literal["float32", "bfloat16"]
Convolution = Literal["auto", "direct", "patches"]

_EPS = 1e-5  # of batch norm, as in most implementations
# of CIFAR-10's pixels over 255, by channel; any other fixed numbers would do for other images
_MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32).reshape(1, 1, 1, 3)
_STD = np.array([0.2470, 0.2435, 0.2616], np.float32).reshape(1, 1, 1, 3)
_FLOAT = jnp.float32  # also where jax has 64 bits turned on


@dataclass(frozen=True)
class ResNet:
    """A residual network with batch norm.

    Args:
        blocks: residual blocks of each stage; each stage after the first halves height and width
            and doubles the channels.
        width: channels of the first stage.
        classes: scores that it gives.
        dtype: what convolutions compute in, `"float32"` or `"bfloat16"`.
        decay: of the running statistics: `new = decay * old + (1 - decay) * batch`.
        convolution: `"direct"`, the library's; `"patches"`, a matrix product with the shifted
            images side by side, nine times the memory; `"auto"`, patches on CPU and direct
            elsewhere. XLA's weight gradients inside compiled loops on CPU take tens of times what
            they take outside (jax issue 12868), and weights of their own for each micro-batch make
            direct convolutions grouped ones, but matrix products batched ones.

    Raises:
        ValueError: a size below 1, `decay` outside [0, 1), an unknown `dtype` or `convolution`.

    Source: He, Zhang, Ren & Sun, "Deep residual learning", 2016; the CIFAR form of ResNet-18 with
    widths 64 to 512 is the one of the SAM papers.

    >>> network = ResNet()  # ResNet-18
    >>> params, statistics = jax.eval_shape(network.init, jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    11173962
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    classes: int = 10
    dtype: Compute = "float32"
    decay: float = 0.9
    convolution: Convolution = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "blocks", tuple(check_int("blocks", number) for number in self.blocks)
        )
        if not self.blocks:
            raise ValueError(
                "blocks=(): give the number of blocks of each stage, such as (2, 2, 2, 2)"
            )
        check_int("width", self.width)
        check_int("classes", self.classes, least=2)
        if self.dtype not in get_args(Compute):
            raise unknown("dtype", self.dtype, get_args(Compute))
        if self.convolution not in get_args(Convolution):
            raise unknown("convolution", self.convolution, get_args(Convolution))
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay!r}: it must be at least 0 and below 1")

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """`(parameters, running statistics)`: kernels normal of variance 2/(k k channels out),
        scales 1, biases 0, the last layer uniform.
        """
        number = iter(range(10_000))

        def kernel(size: int, inward: int, outward: int) -> jax.Array:
            draw = jax.random.normal(
                jax.random.fold_in(key, next(number)), (size, size, inward, outward), _FLOAT
            )
            return draw * jnp.sqrt(_FLOAT(2 / (size * size * outward)))

        def norm(channels: int) -> tuple[PyTree, PyTree]:
            params = {"scale": jnp.ones(channels, _FLOAT), "bias": jnp.zeros(channels, _FLOAT)}
            return params, {
                "mean": jnp.zeros(channels, _FLOAT),
                "variance": jnp.ones(channels, _FLOAT),
            }

        def layer(size: int, inward: int, outward: int) -> tuple[PyTree, PyTree]:
            norm_params, norm_statistics = norm(outward)
            return {"kernel": kernel(size, inward, outward), **norm_params}, norm_statistics

        params: PyTree = {"stages": []}
        statistics: PyTree = {"stages": []}
        params["stem"], statistics["stem"] = layer(3, 3, self.width)
        inward = self.width
        for stage, repeats in enumerate(self.blocks):
            outward = self.width * 2**stage
            for repeat in range(repeats):
                layers = {"first": layer(3, inward, outward), "second": layer(3, outward, outward)}
                if inward != outward or self._stride(stage, repeat) != 1:
                    layers["shortcut"] = layer(1, inward, outward)
                params["stages"].append({name: pair[0] for name, pair in layers.items()})
                statistics["stages"].append({name: pair[1] for name, pair in layers.items()})
                inward = outward
        limit = inward**-0.5
        weight_key, bias_key = jax.random.split(jax.random.fold_in(key, next(number)))
        params["head"] = {
            "weight": jax.random.uniform(
                weight_key, (inward, self.classes), _FLOAT, minval=-limit, maxval=limit
            ),
            "bias": jax.random.uniform(
                bias_key, (self.classes,), _FLOAT, minval=-limit, maxval=limit
            ),
        }
        return params, statistics

    def __call__(
        self,
        params: PyTree,
        statistics: PyTree,
        images: jax.Array,
        *,
        train: bool,
        ghost: int | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """`(scores, new running statistics)`.

        Args:
            params: from :meth:`init`.
            statistics: running means and variances.
            images: uint8, shape (n, height, width, 3).
            train: whether the statistics to normalise with are those of these images; else the
                running ones.
            ghost: in training, how many consecutive images share them (ghost batch norm); None for
                all. The running statistics take the mean over the groups.

        Returns:
            Scores in float32, shape (n, classes), and the running statistics after these images
            (unchanged to evaluate).

        Raises:
            ValueError: `ghost` does not divide the images.
        """
        group = (ghost or len(images)) if train else None
        if group is not None and len(images) % group:
            raise ValueError(f"ghost={ghost} does not divide the {len(images)} images")
        compute = jnp.dtype(self.dtype)
        by_patches = self.convolution == "patches" or (
            self.convolution == "auto" and jax.default_backend() == "cpu"
        )
        convolve = convolution_by_patches if by_patches else convolution

        def layer(p: PyTree, s: PyTree, x: jax.Array, stride: int = 1) -> tuple[jax.Array, PyTree]:
            return batch_norm(
                p, s, convolve(x, p["kernel"].astype(compute), stride), group, self.decay
            )

        x = (images.astype(jnp.float32) / 255 - _MEAN) / _STD
        new: PyTree = {"stages": []}
        x, new["stem"] = layer(params["stem"], statistics["stem"], x.astype(compute))
        x = jax.nn.relu(x)
        places = [
            self._stride(stage, repeat)
            for stage, repeats in enumerate(self.blocks)
            for repeat in range(repeats)
        ]
        for stride, p, s in zip(places, params["stages"], statistics["stages"], strict=True):
            after: PyTree = {}
            y, after["first"] = layer(p["first"], s["first"], x, stride)
            y, after["second"] = layer(p["second"], s["second"], jax.nn.relu(y))
            if "shortcut" in p:
                x, after["shortcut"] = layer(p["shortcut"], s["shortcut"], x, stride)
            x = jax.nn.relu(x + y)
            new["stages"].append(after)
        features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return features @ params["head"]["weight"] + params["head"]["bias"][None], new

    @staticmethod
    def _stride(stage: int, repeat: int) -> int:
        return 2 if stage and not repeat else 1


def convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution of images, shape (n, height, width, channels), with an odd `kernel`, shape
    (k, k, in, out), as many zeros around as needed.
    """
    border = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(border, border)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolution_by_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A convolution as one matrix product."""
    size, outward = kernel.shape[0], kernel.shape[-1]
    border = size // 2
    height, width = x.shape[1], x.shape[2]
    padded = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    shifted = [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, outward)


def batch_norm(
    p: PyTree, s: PyTree, x: jax.Array, group: int | None, decay: float
) -> tuple[jax.Array, PyTree]:
    """`scale (x - mean) / sqrt(variance + 1e-5) + bias` by channel, in float32, given back in the
    dtype of `x`; and the running statistics.

    Statistics are those of `group` consecutive images, or the running ones if it is None. The
    running variance takes the unbiased one, as is customary.
    """
    wide = x.astype(jnp.float32)
    if group is None:
        mean, variance, new = _by_channel(s["mean"], wide), _by_channel(s["variance"], wide), s
    else:
        groups = wide.reshape(-1, group, *x.shape[1:])
        axes = (1, 2, 3)
        mean = jnp.mean(groups, axes, keepdims=True)
        # one pass over memory
        variance = jnp.maximum(jnp.mean(groups**2, axes, keepdims=True) - mean**2, 0)
        count = group * x.shape[1] * x.shape[2]
        seen = {"mean": mean, "variance": variance * (count / max(count - 1, 1))}
        new = {
            name: decay * s[name] + (1 - decay) * jnp.mean(value, axis=(0, 1, 2, 3))
            for name, value in seen.items()
        }
        wide = groups
    factor = _by_channel(p["scale"], wide) * jax.lax.rsqrt(variance + _EPS)
    normal = wide * factor + (_by_channel(p["bias"], wide) - mean * factor)
    return normal.reshape(x.shape).astype(x.dtype), new


def _by_channel(values: jax.Array, like: jax.Array) -> jax.Array:
    """One value for each channel, the last axis, with as many axes as `like`."""
    return values.reshape((1,) * (like.ndim - 1) + (-1,))
