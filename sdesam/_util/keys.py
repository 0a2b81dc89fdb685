"""Random keys from seeds."""

from __future__ import annotations

import jax

from sdesam._util.checks import check_int

MOST = 2**32 - 1
"""Of a larger seed jax, where it has 64 bits turned off, would use the lowest 32 bits alone: two
seeds would be one.
"""


def seed_key(seed: int) -> jax.Array:
    """The key of a seed from 0 to 2**32 - 1, of the kind whose draws do not depend on how paths are
    laid out, whatever jax's default is.

    >>> str(jax.random.key_impl(seed_key(0)))
    'threefry2x32'
    """
    number = check_int("seed", seed, least=0)
    if number > MOST:
        raise ValueError(f"seed={number}: it must be at most 2**32 - 1 = {MOST}")
    # threefry by name: the default of jax can be set to a generator whose draws depend on how an
    # array lies on devices, and the same seed would then give other paths on other hardware
    return jax.random.key(number, impl="threefry2x32")
