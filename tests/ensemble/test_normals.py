"""Normals by counter: the cipher against jax's own, the law of the numbers, and their independence,
with generators that must fail.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sdesam.ensemble import normals
from sdesam.ensemble.normals import block, packed_normals, step_keys, unpack

DRAWS = 2**17
KEY = jax.random.key(20)
SIGMAS = 5.0
"""A normal statistic is beyond 5 by chance with probability 6e-7, two-sided; a test here looks at
40 of them at most: 2.3e-5.
"""
P_VALUE = 1e-6
"""The false-alarm rate of one goodness-of-fit test."""


standard_normals = jax.jit(normals.standard_normals, static_argnums=(3, 4))


def test_blocks_are_those_of_jax():
    """64 bits of `jax.random.bits` are both words of the block of their index, for any key;
    `fold_in` is the block of (0, number).
    """
    with jax.enable_x64(True):
        for seed in (0, 7, 2**63 - 1):
            key = jax.random.key(seed)
            words = jax.random.key_data(key)
            theirs = jax.random.bits(key, (1000,), jnp.uint64)
            high, low = block(
                (words[0], words[1]),
                (jnp.zeros(1000, jnp.uint32), jnp.arange(1000, dtype=jnp.uint32)),
            )
            np.testing.assert_array_equal(
                high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64), theirs
            )
            np.testing.assert_array_equal(
                jnp.stack(block((words[0], words[1]), (np.uint32(0), np.uint32(9)))),
                jax.random.key_data(jax.random.fold_in(key, 9)),
            )


def test_the_draw_depends_on_its_counter_alone():
    """Written out with `jax.random`'s own cipher: which key and which counter a draw of (seed,
    step, path, component) comes from.
    """
    from jax.extend.random import threefry_2x32

    step, path, pair = 5, 123, 2
    root = threefry_2x32(jax.random.key_data(KEY), jnp.array([1, 0], jnp.uint32))
    radius, angle = threefry_2x32(
        threefry_2x32(root, jnp.array([0, step], jnp.uint32)), jnp.array([pair, path], jnp.uint32)
    ).tolist()
    length = math.sqrt(-2 * math.log((radius + 0.5) / 2**32))
    expected = [
        length * math.cos(2 * math.pi * angle / 2**32),
        length * math.sin(2 * math.pi * angle / 2**32),
    ]
    np.testing.assert_allclose(
        standard_normals(KEY, step, jnp.array([path]), (6,), jnp.float32)[0, 4:],
        expected,
        atol=4e-6,
    )
    few = standard_normals(KEY, step, jnp.array([7, path]), (2, 3), jnp.float32)
    np.testing.assert_array_equal(
        few[1].ravel(), standard_normals(KEY, step, jnp.arange(200), (6,), jnp.float32)[path]
    )
    with jax.enable_x64(True):
        high, low = threefry_2x32(
            threefry_2x32(root, jnp.array([0, step], jnp.uint32)),
            jnp.array([2 * pair, path], jnp.uint32),
        ).tolist()
        length = math.sqrt(-2 * math.log(high / 2**32 + (low + 0.5) / 2**64))
        found = standard_normals(KEY, step, jnp.array([path]), (6,), jnp.float64)[0, 4:]
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(jnp.hypot(*found), length, rtol=1e-14)


def test_logarithm():
    """All exponents that occur, the ends and the seam of the fitted interval; a coefficient 0.1 %
    off is seen.
    """
    u = np.exp(-np.random.default_rng(0).uniform(0, 23, 200_000)).astype(np.float32)
    ends = np.array(
        [
            1,
            1 - 2.0**-24,
            2.0**-33,
            0.5,
            np.sqrt(0.5),
            np.nextafter(np.float32(0.5**0.5), np.float32(0)),
            0.25,
        ],
        np.float32,
    )
    u = np.concatenate([u, 1 - u / 100, ends])
    truth = np.log(u.astype(float))

    def error():
        return np.max(
            np.abs(np.asarray(normals._log(jnp.asarray(u)), float) - truth)
            / np.maximum(np.abs(truth), 1e-12)
        )

    assert error() < 3e-7, "a few units of the last place"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normals, "_LOG", (normals._LOG[0] * 1.001, *normals._LOG[1:]))
        assert error() > 3e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transform_at_its_ends(dtype):
    """The largest number is the one that is stated, and nothing is infinite; elsewhere numpy
    agrees.
    """
    box_muller = jax.jit(normals._box_muller)
    with jax.enable_x64(True):
        least = {"float32": 2.0**-33, "float64": 2.0**-65}[dtype]
        u = jnp.array([least, 1.0, 0.5, 1e-6, 0.9], dtype)
        for turn in np.linspace(-1, 1 - 2.0**-20, 101):
            found = box_muller(u, jnp.full(5, turn, dtype))
            expected = np.sqrt(-2 * np.log(np.asarray(u, float))) * np.exp(
                1j * np.pi * float(jnp.asarray(turn, dtype))
            )
            # relative rounding of 7e-7 at the largest number, and the series' 6e-8
            np.testing.assert_allclose(found, expected, atol=6e-6 if dtype == "float32" else 2e-14)
        assert float(normals._box_muller(u, jnp.zeros(5, dtype))[0].real) == pytest.approx(
            normals.LARGEST[jnp.dtype(dtype)], rel=1e-6
        )


@partial(jax.jit, static_argnums=(1, 2))
def _many(key, count, dtype, steps):
    """Shape (steps, paths, 4)."""
    return jax.vmap(
        lambda step: normals.standard_normals(key, step, jnp.arange(count), (4,), dtype)
    )(steps)


def table(key=KEY, count=DRAWS // 4, dtype="float32", steps=2):
    return np.asarray(_many(key, count, dtype, jnp.arange(steps)), np.float64)


def law_is_wrong(z):
    """Everything that the numbers of a normal law must show and these do not."""
    z, n, found = np.ravel(z), np.size(z), []
    for k in range(1, 9):
        moment = 0 if k % 2 else math.prod(range(1, k, 2))
        spread = math.prod(range(1, 2 * k, 2)) - moment**2
        if abs((z**k).mean() - moment) > SIGMAS * math.sqrt(spread / n):
            found.append(f"moment {k}")
    if stats.kstest(z, "norm").pvalue < P_VALUE:
        found.append("Kolmogorov-Smirnov")
    if anderson_darling(z) > 13.0:
        found.append("Anderson-Darling")
    beyond, expected = np.sum(abs(z) > 4), 2 * stats.norm.sf(4.0) * n
    if min(stats.poisson.cdf(beyond, expected), stats.poisson.sf(beyond - 1, expected)) < P_VALUE:
        found.append("tails beyond 4")
    return found


def anderson_darling(z):
    """The statistic for a fully specified law. Its tail is P(A > a) ~ 1.7 exp(-a) for large a
    (Marsaglia & Marsaglia 2004): beyond 13, 4e-6.
    """
    z = np.sort(z)
    k = np.arange(1, len(z) + 1)
    return -len(z) - np.mean((2 * k - 1) * (stats.norm.logcdf(z) + stats.norm.logsf(z[::-1])))


def dependence(a, b):
    """The correlations, in standard errors, of two tables that should be independent: of values,
    squares and both mixed.
    """
    pairs = [(a, b), (a**2 - 1, b**2 - 1), (a, b**2 - 1), (a**2 - 1, b)]
    return max(
        abs(float((p * q).mean())) / math.sqrt((p**2).mean() * (q**2).mean() / p.size)
        for p, q in pairs
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_law(dtype):
    with jax.enable_x64(dtype == "float64"):
        assert law_is_wrong(table(dtype=dtype)) == []


def test_independence():
    """Across components (of one pair and of two), neighbouring paths and steps, seeds next to each
    other, and the two halves of a seed.
    """
    z, other, high = (
        table(),
        table(jax.random.key(21)),
        table(jax.random.wrap_key_data(jnp.array([1, 20], jnp.uint32))),
    )
    assert dependence(z[..., 0], z[..., 1]) < SIGMAS
    assert dependence(z[..., 0], z[..., 2]) < SIGMAS
    assert dependence(z[..., 1], z[..., 3]) < SIGMAS
    assert dependence(z[:, :-1], z[:, 1:]) < SIGMAS
    assert dependence(z[0], z[1]) < SIGMAS
    assert dependence(z, other) < SIGMAS
    assert dependence(z, high) < SIGMAS
    transposed = np.asarray(standard_normals(KEY, 0, jnp.arange(4), (4096,), jnp.float32), float).T
    assert dependence(z[0, :4096], transposed) < SIGMAS, "paths and components are not exchanged"


def wrong(kind):
    """Generators with one fault each, as the table of `table`."""
    z = table()
    if kind == "one word used twice":
        words = jax.random.bits(KEY, (DRAWS,), jnp.uint32)
        u = words.astype(jnp.float32) * 2.0**-32 + 2.0**-33
        pair = normals._box_muller(
            u, jax.lax.bitcast_convert_type(words, jnp.int32).astype(jnp.float32) * 2.0**-31
        )
        return np.asarray(jnp.stack([pair.real, pair.imag], -1), float)
    if kind == "uniforms of 8 bits":
        bits = np.asarray(jax.random.bits(KEY, (2, DRAWS), jnp.uint8), float)
        pair = np.sqrt(-2 * np.log((bits[0] + 0.5) / 256)) * np.exp(2j * np.pi * bits[1] / 256)
        return np.stack([pair.real, pair.imag], -1)
    if kind == "variance one percent off":
        return z * 1.01
    if kind == "a mean of 0.02":
        return z + 0.02
    raise ValueError(kind)


@pytest.mark.parametrize(
    "kind",
    ["one word used twice", "uniforms of 8 bits", "variance one percent off", "a mean of 0.02"],
)
def test_wrong_laws_are_noticed(kind):
    assert law_is_wrong(wrong(kind))


def test_wrong_dependences_are_noticed(monkeypatch):
    z = table()
    assert dependence(z[0], np.roll(z[0], 1, axis=0)) < SIGMAS
    assert dependence(z[0], z[0]) > SIGMAS
    swapped = z.copy()
    swapped[1] = z[0] * np.where(np.random.default_rng(0).random(z[0].shape) < 0.5, -1, 1)
    assert dependence(swapped[0], swapped[1]) > SIGMAS, (
        "signs redrawn: only squares depend on each other"
    )
    # a cipher of one round: neighbouring counters give neighbouring words
    monkeypatch.setattr(
        normals,
        "block",
        lambda key, counter: (counter[0] + key[0] + counter[1] + key[1], counter[1] + key[1]),
    )
    packed = jax.jit(
        lambda paths: unpack(packed_normals(step_keys(KEY, 0), paths, 4, jnp.float32), (4,))
    )(jnp.arange(1000, dtype=jnp.uint32))
    assert law_is_wrong(packed)


@partial(jax.jit, static_argnums=1)
def _tail(key, count, start):
    """Counts beyond 5, 5.5 and 6 over 64 steps."""

    def body(k, total):
        z = normals.standard_normals(key, start + k, jnp.arange(count), (4,))
        size = jnp.abs(z)
        return total + jnp.array(
            [jnp.sum(size > 5), jnp.sum(size > 5.5), jnp.sum(size > 6)], jnp.int32
        )

    return jax.lax.fori_loop(0, 64, body, jnp.zeros(3, jnp.int32))


def check_tails(draws, count=2**17):
    counts = sum(
        np.asarray(_tail(KEY, count, 64 * k), np.int64) for k in range(draws // (256 * count))
    )
    expected = 2 * stats.norm.sf([5.0, 5.5, 6.0]) * draws
    for seen, mean in zip(counts, expected, strict=True):
        # each tail of the Poisson law with probability 1e-6
        assert stats.poisson.cdf(seen, mean) > 1e-6
        assert stats.poisson.sf(seen - 1, mean) > 1e-6
    return counts


def test_tails():
    """Beyond 5 standard deviations, of 3.4e7 draws about 19; with uniforms of 17 bits none is
    beyond 4.9, which shows at once.
    """
    assert check_tails(2**25)[0] > 0
    assert stats.poisson.cdf(0, 2 * stats.norm.sf(5.0) * 2**25) < 1e-6


@pytest.mark.slow
def test_a_billion_draws():
    """Moments to order 8 and tails of 1.07e9 draws; summed in float64. The same thresholds as
    above.
    """
    check_tails(2**30)

    @jax.jit
    def powers(start):
        def body(k, total):
            z = normals.standard_normals(KEY, start + k, jnp.arange(2**17), (4,))
            with_powers = jnp.cumprod(
                jnp.broadcast_to(z[..., None].astype(jnp.float64), (*z.shape, 8)), axis=-1
            )
            return total + with_powers.sum(axis=(0, 1))

        return jax.lax.fori_loop(0, 64, body, jnp.zeros(8, jnp.float64))

    with jax.enable_x64(True):
        total = sum(np.asarray(powers(64 * k)) for k in range(2**30 // (64 * 2**19)))
    for k, mean in enumerate(total / 2**30, start=1):
        moment = 0 if k % 2 else math.prod(range(1, k, 2))
        spread = math.prod(range(1, 2 * k, 2)) - moment**2
        # float32 rounding of the transform, relative 4e-6 per number, adds to the sampling error
        assert abs(mean - moment) < SIGMAS * math.sqrt(spread / 2**30) + 4e-6 * k * max(moment, 1)


def test_the_farthest_normal(monkeypatch):
    """The smallest uniform number is half of a step of 32 bits, and never 0."""
    zero = jnp.zeros(1, jnp.uint32)
    monkeypatch.setattr(normals, "block", lambda key, counter: (zero, zero))
    found = normals.normal_pair((zero, zero), jnp.uint32(0), zero, jnp.float32)
    assert abs(complex(found[0])) == pytest.approx(np.sqrt(2 * 33 * np.log(2)), rel=1e-5)
