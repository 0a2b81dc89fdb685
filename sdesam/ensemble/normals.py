"""Standard normal numbers by counter: the draw of (seed, step, path, component) depends on these
four and on nothing else.

Threefry-2x32-20 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3")
with the rounds written out, so that XLA makes one loop of the cipher and of the Box-Muller
transform behind it, and both words of a block are used. Its blocks are those of `jax.random`, which
on a CPU takes four to five times as long: `jax.random.bits` of 32 bits gives the exclusive-or of
two words.

The key of a step is the block of `step` under the run's key, and (pair of components, path) is the
counter under the step's key. A block cipher maps distinct counters to distinct blocks, so neither
two steps share a key nor two draws of one step a block: up to 2**32 paths, 2**31 steps and 2**32
components.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_LOG = (0.33333936, -0.25001246, 0.19962132, -0.16579814, 0.14925882, -0.14254476, 0.08654275)
"""`(log(1 + z) - z + z^2/2) / z^3` for `1 + z` in `[sqrt(1/2), sqrt 2)`, least squares at
Chebyshev's nodes: `log` is then within 1e-7 of itself.
"""
_DOMAIN = np.uint32(1)
"""The first counter word of the key of all normals. `jax.random.fold_in(key, k)` has 0 there, and
so have the keys of paths.
"""

Words = tuple[Any, Any]
"""Two arrays (or numbers) of uint32: a key, a counter or a block."""

LARGEST = {
    jnp.dtype("float32"): math.sqrt(2 * 33 * math.log(2)),
    jnp.dtype("float64"): math.sqrt(2 * 65 * math.log(2)),
}
"""The largest number that can be drawn: 6.76 and 9.49. Beyond it lie 1.4e-11 and 2.4e-21 of a
normal law.
"""


def block(key: Words, counter: Words) -> Words:
    """The block of `counter` under `key`: Threefry-2x32 with 20 rounds."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for k in range(5):
        for rotation in _ROTATIONS[k % 2]:
            x = x + y
            y = ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))) ^ x
        x = x + schedule[(k + 1) % 3]
        y = y + schedule[(k + 2) % 3] + np.uint32(k + 1)
    return x, y


# How a normal gets its address. Path 7 at step 3, components 4 and 5, in float32:
#
#     root      = block(key of the run, (_DOMAIN, 0))       the same for all normals of the run
#     step_key  = block(root, (0, 3))                       the same for all paths of the step
#     two words = block(step_key, (pair = 2, path = 7))     a radius and an angle
#     4 and 5   = sqrt(-2 log u) (cos, sin)(2 pi v)         Box and Muller
#
# No normal depends on another one, nor on which paths are computed beside it. So a chunk of any
# size, any number of devices and a run that goes on after a kill draw the same numbers, and a path
# can be drawn once more by itself. Two components come from one block because a cipher of 20 rounds
# is most of the work, and both of its words are used.


def pairs_of(count: int) -> int:
    """How many pairs hold `count` components."""
    return (count + 1) // 2


def step_keys(key: jax.Array, steps: Any) -> Words:
    """The keys of the normals of one step, or of many, under the run's key (a typed threefry
    key).
    """
    words = jax.random.key_data(key)
    root = block((words[0], words[1]), (_DOMAIN, jnp.uint32(0)))
    return block(root, (jnp.uint32(0), jnp.asarray(steps).astype(jnp.uint32)))


def normal_pair(step_key: Words, pair: Any, path: jax.Array, dtype: Any) -> jax.Array:
    """Components `2 pair` and `2 pair + 1` of one step as real and imaginary part.

    One complex array, because XLA computes a fused expression anew for each array that comes out of
    it.

    Args:
        step_key: of :func:`step_keys`.
        pair: number of the pair, or an array to be broadcast with `path`, uint32.
        path: numbers of the paths, uint32, shape `(k,)`, or `(k, pairs)` beside so many pairs.
        dtype: float32 or float64 (only where jax has 64 bits turned on).

    Returns:
        The shape of `path`, complex64 or complex128.
    """
    if jnp.dtype(dtype) == jnp.float32:
        radius, angle = block(step_key, (pair, path))
        # never 0, and as fine near 0, where the tails come from, as 32 bits can be
        uniform = radius.astype(jnp.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
        turn = jax.lax.bitcast_convert_type(angle, jnp.int32).astype(jnp.float32) * np.float32(
            2.0**-31
        )
    else:
        high, low = block(step_key, (pair * np.uint32(2), path))
        uniform = high.astype(dtype) * 2.0**-32 + low.astype(dtype) * 2.0**-64 + 2.0**-65
        high, low = block(step_key, (pair * np.uint32(2) + np.uint32(1), path))
        turn = (
            jax.lax.bitcast_convert_type(high, jnp.int32).astype(dtype) * 2.0**-31
            + low.astype(dtype) * 2.0**-63
        )
    return _box_muller(uniform, turn)


def packed_normals(step_key: Words, paths: jax.Array, count: int, dtype: Any) -> jax.Array:
    """The first `count` components of one step, in pairs: shape `(k, pairs_of(count))` for `k`
    paths.
    """
    pair, path = jnp.broadcast_arrays(jnp.arange(pairs_of(count), dtype=jnp.uint32), paths[:, None])
    return normal_pair(step_key, pair, path, dtype)


def unpack(packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Components one by one, shape `(k, *shape)`, of what :func:`packed_normals` gave."""
    count = math.prod(shape)
    # each twice and every other one chosen: in W2 (2,000 paths of 64 numbers) a quarter of the time
    # of stacking them
    both = jnp.where(
        jnp.arange(2 * packed.shape[1]) % 2 == 0,
        jnp.repeat(packed.real, 2, axis=1),
        jnp.repeat(packed.imag, 2, axis=1),
    )
    return both[:, :count].reshape(packed.shape[0], *shape)


def standard_normals(
    key: jax.Array,
    step: Any,
    paths: jax.Array,
    shape: tuple[int, ...] = (),
    dtype: Any = jnp.float32,
) -> jax.Array:
    """`xi ~ N(0, I)` of one step for many paths.

    Args:
        key: the run's key, a typed threefry key.
        step: number of the step, at least 0.
        paths: numbers of the paths, shape `(k,)`.
        shape: of the components.
        dtype: float32 or float64 (only where jax has 64 bits turned on).

    Returns:
        Shape `(k, *shape)`.

    >>> few = standard_normals(jax.random.key(0), 3, jnp.arange(2), (3,))
    >>> many = standard_normals(jax.random.key(0), 3, jnp.arange(5), (4,))
    >>> few.shape, bool((few == many[:2, :3]).all())
    ((2, 3), True)
    """
    return unpack(
        packed_normals(
            step_keys(key, step), jnp.asarray(paths).astype(jnp.uint32), math.prod(shape), dtype
        ),
        shape,
    )


def _box_muller(uniform: jax.Array, turn: jax.Array) -> jax.Array:
    """`sqrt(-2 log u) exp(i pi t)` for `u` in (0, 1] and `t` in [-1, 1): real and imaginary part
    are independent and normal.
    """
    radius = jnp.sqrt(-2 * (_log(uniform) if uniform.dtype == jnp.float32 else jnp.log(uniform)))
    # sine and cosine of half the angle, at most pi/2, by Taylor's series; the terms left out are
    # below 6e-8 and 2e-18
    terms = 6 if uniform.dtype == jnp.float32 else 12
    half = turn * (math.pi / 2)
    square = half * half
    sine = half * _horner(square, [(-1) ** k / math.factorial(2 * k + 1) for k in range(terms)])
    cosine = _horner(square, [(-1) ** k / math.factorial(2 * k) for k in range(terms + 1)])
    return jax.lax.complex(radius * (1 - 2 * sine * sine), radius * (2 * sine * cosine))


def _log(u: jax.Array) -> jax.Array:
    """`log u` of positive and normal float32 numbers: all of a draw takes a sixth less time than
    with the general `jnp.log`.
    """
    root_half = np.int32(0x3F3504F3)  # the bits of sqrt(1/2)
    bits = jax.lax.bitcast_convert_type(u, jnp.int32) - root_half
    z = jax.lax.bitcast_convert_type((bits & np.int32(0x7FFFFF)) + root_half, jnp.float32) - 1
    exponent = (bits >> 23).astype(jnp.float32)
    return exponent * np.float32(math.log(2)) + (
        z + z * z * (z * _horner(z, list(_LOG)) - np.float32(0.5))
    )


def _horner(x: jax.Array, coefficients: list[float]) -> jax.Array:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total
