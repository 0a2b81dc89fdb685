"""W1, a small ensemble: a 2-d SDE with a state-dependent 2x2 diffusion, 100,000 paths, float32.

    f(x) = (x1^2 - 1)^2 / 4 + x2^2 / 2 + x1 x2 / 2         a quartic double well
    dX = -grad(f + rho/2 |grad f|^2) dt + sqrt(eta) L(X) dW,   L L^T = [[1 + x1^2, x1 x2 / 2], [x1
    x2 / 2, 1 + x2^2]]

from (1, 0), Euler-Maruyama; mean and variance over paths of x1, x2 and f every 100 steps, and the
final states, are kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdesam
from sdesam._util.keys import seed_key

from . import floors
from .timing import Contender, Run, Statistics, on_all_devices, wide_vectors

PATHS = 100_000
STEPS = 1000
EVERY = 100
DT, LR, RHO = 0.01, 0.1, 0.1
START = (1.0, 0.0)
NAMES = ("x1", "x2", "f")


def loss(x1: Any, x2: Any) -> Any:
    """`f`, for any array library."""
    return 0.25 * (x1 * x1 - 1) ** 2 + 0.5 * x2 * x2 + 0.5 * x1 * x2


def drift(x1: Any, x2: Any) -> tuple[Any, Any]:
    """`-grad(f + rho/2 |grad f|^2)`."""
    g1, g2 = x1 * x1 * x1 - x1 + 0.5 * x2, x2 + 0.5 * x1
    return -(g1 + RHO * ((3 * x1 * x1 - 1) * g1 + 0.5 * g2)), -(g2 + RHO * (0.5 * g1 + g2))


def root(x1: Any, x2: Any, sqrt: Any) -> tuple[Any, Any, Any]:
    """`sqrt(eta) L`: the entries 11, 21 and 22 of the Cholesky factor, in closed form."""
    p, q, r = LR * (1 + x1 * x1), LR * 0.5 * x1 * x2, LR * (1 + x2 * x2)
    a = sqrt(p)
    b = q / a
    return a, b, sqrt(r - b * b)


def step(x1: Any, x2: Any, n1: Any, n2: Any, sqrt: Any) -> tuple[Any, Any]:
    """One Euler-Maruyama step with standard normals `n1`, `n2`."""
    (d1, d2), (a, b, c), h = drift(x1, x2), root(x1, x2, sqrt), DT**0.5
    return x1 + DT * d1 + h * (a * n1), x2 + DT * d2 + h * (b * n1 + c * n2)


def moments(values: Any) -> np.ndarray:
    """Mean and variance over the first axis in float64, stacked last."""
    values = np.asarray(values, float)
    return np.stack([values.mean(axis=0), values.var(axis=0)], axis=-1)


def statistics_of(states: Any) -> Statistics:
    """The statistics of stored states, shape `(paths, times, 2)`."""
    states = np.asarray(states)
    return {
        "x1": moments(states[..., 0]),
        "x2": moments(states[..., 1]),
        "f": moments(loss(states[..., 0], states[..., 1])),
    }


# ---- ours


def _array_drift(x: jax.Array) -> jax.Array:
    return jnp.stack(drift(x[0], x[1]))


def _array_noise(x: jax.Array, xi: jax.Array) -> jax.Array:
    a, b, c = root(x[0], x[1], jnp.sqrt)
    return jnp.stack([a * xi[0], b * xi[0] + c * xi[1]])


_OBSERVED = {"x1": lambda x: x[0], "x2": lambda x: x[1], "f": lambda x: loss(x[0], x[1])}


def _ours(make: Any, observed: Any, paths: int, steps: int) -> Run:
    sde = make()
    times = np.arange(EVERY, steps + 1, EVERY) * DT

    def run(seed: int) -> Statistics:
        out = sdesam.simulate(
            sde,
            seed_key(seed),
            paths,
            steps * DT,
            DT,
            times=times,
            observe=observed,
            progress=False,
        )
        return {
            name: np.stack([out.mean[name], out.stderr[name] ** 2 * paths], axis=-1)
            for name in NAMES
        }

    return run


def ordinary() -> sdesam.SDE:
    """The SDE as a user writes it: functions of one array-valued state."""
    return sdesam.SDE(_array_drift, _array_noise, (2,), jnp.array(START))


def packed() -> sdesam.SDE:
    """The SDE by hand: a state of two numbers, so that nothing is stacked."""

    def noise(x: Any, xi: jax.Array) -> Any:
        a, b, c = root(*x, jnp.sqrt)
        return a * xi[0], b * xi[0] + c * xi[1]

    return sdesam.SDE(lambda x: drift(*x), noise, (2,), tuple(jnp.array(s) for s in START))


def streamed(paths: int, steps: int) -> None:
    """A run whose statistics alone are kept, for the measurement of memory."""
    times = np.arange(EVERY, steps + 1, EVERY) * DT
    sdesam.simulate(
        ordinary(),
        seed_key(0),
        paths,
        steps * DT,
        DT,
        times=times,
        observe=_OBSERVED,
        progress=False,
        keep="means",
    )


# ---- peers in jax


def per_path(fn: Any, paths: int) -> Any:
    """`seed -> fn(key)` of every path, vmapped, on all devices."""
    many = on_all_devices(lambda _, keys: jax.vmap(fn)(keys), paths)
    return lambda seed: many(0, jax.random.split(jax.random.key(seed), paths))


def _prepare_naive(paths: int, steps: int) -> Run:
    def one(key: jax.Array) -> jax.Array:
        def body(carry: Any, _: Any) -> Any:
            key, x = carry
            key, sub = jax.random.split(key)
            xi = jax.random.normal(sub, (2,))
            return (key, x + DT * _array_drift(x) + DT**0.5 * _array_noise(x, xi)), None

        def block(carry: Any, _: Any) -> Any:
            carry, _ = jax.lax.scan(body, carry, None, length=EVERY)
            return carry, carry[1]

        return jax.lax.scan(block, (key, jnp.array(START)), None, length=steps // EVERY)[1]

    many = per_path(one, paths)
    return lambda seed: statistics_of(many(seed))


def _prepare_per_step(paths: int, steps: int) -> Run:
    def fn(seed: jax.Array, ids: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), ids[0])  # another stream on every device

        def body(x: Any, k: Any) -> Any:
            xi = jax.random.normal(jax.random.fold_in(key, k), (2, *ids.shape))
            return step(*x, *xi, jnp.sqrt), None

        def block(x: Any, k: Any) -> Any:
            x, _ = jax.lax.scan(body, x, k * EVERY + jnp.arange(EVERY))
            return x, jnp.stack(x)

        start = tuple(jnp.full(ids.shape, s) for s in START)
        return jnp.moveaxis(jax.lax.scan(block, start, jnp.arange(steps // EVERY))[1], 2, 0)

    many = on_all_devices(fn, paths)
    return lambda seed: statistics_of(many(seed, jnp.arange(paths)))


def _prepare_diffrax(tree: bool, everywhere: bool, paths: int, steps: int) -> Run:
    import diffrax

    def matrix(t: Any, x: jax.Array, args: Any) -> jax.Array:
        a, b, c = root(x[0], x[1], jnp.sqrt)
        return jnp.stack([jnp.stack([a, jnp.zeros_like(a)]), jnp.stack([b, c])])

    end = steps * DT
    saved = diffrax.SaveAt(ts=jnp.arange(EVERY, steps + 1, EVERY) * DT)

    def one(key: jax.Array) -> Any:
        path = (
            diffrax.VirtualBrownianTree(0.0, end, DT / 2, (2,), key)
            if tree
            else diffrax.UnsafeBrownianPath((2,), key)
        )
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, x, args: _array_drift(x)), diffrax.ControlTerm(matrix, path)
        )
        options = {"saveat": saved, "adjoint": diffrax.ForwardMode()}
        return diffrax.diffeqsolve(
            terms, diffrax.Euler(), 0.0, end, dt0=DT, y0=jnp.array(START), **options
        ).ys

    many = (
        per_path(one, paths)
        if everywhere
        else jax.jit(lambda seed: jax.vmap(one)(jax.random.split(jax.random.key(seed), paths)))
    )
    return lambda seed: statistics_of(many(seed))


# ---- peers without jax


def _prepare_numpy(paths: int, steps: int) -> Run:
    def run(seed: int) -> Statistics:
        rng = np.random.default_rng(seed)
        x1, x2 = (np.full(paths, s, np.float32) for s in START)
        seen = []
        for k in range(steps):
            x1, x2 = step(x1, x2, *rng.standard_normal((2, paths), np.float32), np.sqrt)
            if (k + 1) % EVERY == 0:
                seen.append([moments(x1), moments(x2), moments(loss(x1, x2))])
        return dict(zip(NAMES, np.moveaxis(np.array(seen), 1, 0), strict=True))

    return run


def _prepare_torchsde(paths: int, steps: int) -> Run:
    import torch
    import torchsde

    class Problem(torch.nn.Module):  # type: ignore[misc]
        noise_type, sde_type = "general", "ito"

        def f(self, t: Any, x: Any) -> Any:
            return torch.stack(drift(x[:, 0], x[:, 1]), dim=1)

        def g(self, t: Any, x: Any) -> Any:
            a, b, c = root(x[:, 0], x[:, 1], torch.sqrt)
            return torch.stack(
                [torch.stack([a, torch.zeros_like(a)], dim=1), torch.stack([b, c], dim=1)], dim=1
            )

    times = torch.arange(0, steps + 1, EVERY) * DT

    def run(seed: int) -> Statistics:
        torch.manual_seed(seed)
        start = torch.tensor(START).repeat(paths, 1)
        with torch.no_grad():
            states = torchsde.sdeint(Problem(), start, times, dt=DT, method="euler")
        return statistics_of(states[1:].transpose(0, 1))

    return run


# ---- floors


def _floor(body: Any, paths: int, steps: int) -> Run:
    def many(seed: jax.Array, ids: jax.Array) -> jax.Array:
        key = (seed.astype(jnp.uint32), jnp.uint32(7))
        start = jnp.full(ids.shape, complex(*START), jnp.complex64)
        # four steps in one kernel, as ours; slower on a CPU
        unroll = 1 if jax.default_backend() == "cpu" else 4
        return jax.lax.fori_loop(
            0, steps, lambda k, x: body(key, k.astype(jnp.uint32), ids, x), start, unroll=unroll
        )

    compiled = on_all_devices(many, paths, wide_vectors())
    ids = jnp.arange(paths, dtype=jnp.uint32)

    def run(seed: int) -> Statistics:
        jax.block_until_ready(compiled(jnp.uint32(seed), ids))
        return None

    return run


def _normals_only(key: Any, k: Any, ids: Any, x: Any) -> Any:
    return x + jax.lax.complex(*floors.normal_pair(key, k, ids))


def _arithmetic_only(key: Any, k: Any, ids: Any, x: Any) -> Any:
    # a number that depends on step and path, so that the loop stays, but costs next to nothing
    cheap = (ids + k).astype(jnp.float32) * np.float32(2**-32)
    return jax.lax.complex(*step(jnp.real(x), jnp.imag(x), cheap, -cheap, jnp.sqrt))


CONTENDERS = (
    Contender(
        "sdesam",
        "ours",
        partial(_ours, ordinary, _OBSERVED),
        "simulate(), functions of one array-valued state",
    ),
    Contender(
        "sdesam, packed",
        "ours",
        partial(_ours, packed, _OBSERVED),
        "simulate(), functions of two numbers",
    ),
    Contender(
        "normals only",
        "floor",
        partial(_floor, _normals_only),
        "the random numbers alone, fused, added up",
    ),
    Contender(
        "arithmetic only",
        "floor",
        partial(_floor, _arithmetic_only),
        "the steps alone, with numbers that cost nothing",
    ),
    Contender(
        "jax, normal per step",
        "peer",
        _prepare_per_step,
        "jax.random.normal for all paths, once per step, in a scan",
        0.5,
    ),
    Contender(
        "jax, naive",
        "peer",
        _prepare_naive,
        "vmap over paths with split keys, scan over steps: what most people write",
        0.2,
    ),
    Contender(
        "numpy", "peer", _prepare_numpy, "vectorised over paths, float32", 0.2, cpu_only=True
    ),
    Contender(
        "torchsde",
        "peer",
        _prepare_torchsde,
        "sdeint, method euler",
        0.1,
        ("torch", "torchsde"),
        True,
    ),
    Contender(
        "diffrax",
        "peer",
        partial(_prepare_diffrax, False, False),
        "vmap(diffeqsolve): Euler, UnsafeBrownianPath",
        0.1,
        ("diffrax",),
    ),
    Contender(
        "diffrax, all cores",
        "peer",
        partial(_prepare_diffrax, False, True),
        "the same, spread over the devices by us",
        0.1,
        ("diffrax",),
    ),
    Contender(
        "diffrax, tree",
        "peer",
        partial(_prepare_diffrax, True, False),
        "Euler, VirtualBrownianTree",
        0.1,
        ("diffrax",),
        most_paths=2000,
    ),
)
