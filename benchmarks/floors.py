"""The normals of the floors: counter-based, fused, as cheap as is known; independent of the
package, so that it cannot flatter itself.

Threefry-2x32-20 on the counter (step, path), unrolled, and Box-Muller on its two words with
polynomials in place of log, sin and cos.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """The block cipher threefry-2x32 with 20 rounds (Salmon et al. 2011)."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for r in _ROTATIONS[group % 2]:
            a = a + b
            b = (b << np.uint32(r)) | (b >> np.uint32(32 - r))
            b = b ^ a
        a = a + keys[(group + 1) % 3]
        b = b + keys[(group + 2) % 3] + np.uint32(group + 1)
    return a, b


def _polynomial(coefficients: Any, z: Any) -> Any:
    total = jnp.float32(coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * z + np.float32(c)
    return total


# Taylor in z = (pi y)^2, |y| <= 1/2: the terms left out are below 4e-9
_SIN = [
    np.pi * (-1) ** k * np.pi ** (2 * k) / float(np.prod(np.arange(1, 2 * k + 2, dtype=float)))
    for k in range(7)
]
_COS = [
    (-1) ** k * np.pi ** (2 * k) / float(np.prod(np.arange(1, 2 * k + 1, dtype=float)))
    for k in range(7)
]


def _fitted_log() -> np.ndarray:
    """`P` with `log m = z - z^2/2 + z^3 P(z)`, `z = m - 1` and `m` from 1/sqrt 2 to sqrt 2, to
    1e-7.
    """
    low, high = 0.5**0.5 - 1, 2**0.5 - 1
    z = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    powers, weight = np.vander(z, 7, increasing=True), z * z + 1e-3
    return np.linalg.lstsq(
        powers * weight[:, None], (np.log1p(z) - z + z * z / 2) / z**3 * weight, rcond=None
    )[0]


_LOG = _fitted_log()


def _log(u: Any) -> Any:
    bits = jax.lax.bitcast_convert_type(u, jnp.int32) - np.int32(0x3F3504F3)  # the bits of 1/sqrt 2
    z = (
        jax.lax.bitcast_convert_type(
            (bits & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3), jnp.float32
        )
        - 1
    )
    return (bits >> 23).astype(jnp.float32) * np.float32(np.log(2)) + (
        z + z * z * (z * _polynomial(_LOG, z) - np.float32(0.5))
    )


def normal_pair(key: Any, step: Any, path: Any) -> tuple[jax.Array, jax.Array]:
    """Two independent standard normals of (step, path), float32."""
    first, second = threefry((key[0], key[1]), (path, step))
    u = (first >> np.uint32(8)).astype(jnp.float32) * np.float32(2**-24) + np.float32(2**-25)
    radius = jnp.sqrt(-2 * _log(u))
    s = jax.lax.bitcast_convert_type(second, jnp.int32).astype(jnp.float32) * np.float32(2**-31)
    y = jnp.abs(s) - np.float32(0.5)
    z = y * y
    # cos(pi s) = -sin(pi y), sin(pi s) = sign(s) cos(pi y)
    return -radius * y * _polynomial(_SIN, z), jnp.sign(s) * radius * _polynomial(_COS, z)
