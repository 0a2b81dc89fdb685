"""W3, a network: the digits MLP 64-64-10 (4,810 parameters) on n = 512 images, float32.

(a) the m-USAM SDE at order (1,2) (both terms of the drift with tr V, and the noise), 8 paths, 200
steps, against one forward and backward pass over the data per step; (b) the discrete optimizers, b
= 64, 8 seeds, 200 steps.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdesam
from sdesam._util.keys import seed_key

from .timing import Contender, Run, Statistics, on_all_devices
from .w1 import moments, per_path

PATHS, STEPS = 8, 200
SAMPLES, WIDTH = 512, 64
LR, RHO, BATCH, MICRO = 0.1, 0.1, 64, 16
NAMES = ("loss",)
SAM, M_SAM = ("sam", "m-sam") if "m-sam" in sdesam.VARIANTS else ("usam", "m-usam")
MICROS = (16, 4, 1)


@cache
def problem() -> sdesam.FiniteSum:
    """The images and the network."""
    return sdesam.problems.digits(train=SAMPLES, width=WIDTH)


def _statistics(out: sdesam.Result, paths: int) -> Statistics:
    return {"loss": np.stack([out.mean["loss"], out.stderr["loss"] ** 2 * paths], axis=-1)}


def _statistics_of(states: Any) -> Statistics:
    return {"loss": moments(jax.vmap(problem().loss)(states))[None]}


# ---- (a)


def derived() -> sdesam.SDE:
    """The SDE by algebra."""
    return sdesam.derive("m-usam", order=(1, 2)).bind(
        problem(), lr=LR, rho=RHO, batch=BATCH, micro=MICRO
    )


def _prepare_sde(paths: int, steps: int) -> Run:
    sde = derived()

    def run(seed: int) -> Statistics:
        key, end = seed_key(seed), steps * LR
        return _statistics(
            sdesam.simulate(
                sde, key, paths, end, LR, times=[end], observe=["loss"], progress=False
            ),
            paths,
        )

    return run


def _prepare_diffrax(paths: int, steps: int) -> Run:
    import diffrax

    sde, solver = derived(), diffrax.Euler()

    def one(key: jax.Array) -> Any:
        terms = sde.to_diffrax(solver, diffrax.UnsafeBrownianPath(sde.noise_shape, key))
        return diffrax.diffeqsolve(
            terms, solver, 0.0, steps * LR, dt0=LR, y0=sde.x0, adjoint=diffrax.ForwardMode()
        ).ys

    many = per_path(one, paths)
    return lambda seed: _statistics_of(jax.tree.map(lambda leaf: leaf[:, -1], many(seed)))


def _prepare_naive(paths: int, steps: int) -> Run:
    made = problem()

    def gradients(x: Any) -> Any:
        return jax.vmap(jax.grad(made.sample_loss), (None, 0))(x, made.data)

    def modified(x: Any) -> Any:
        g = gradients(x)
        mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), g)
        norm2 = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(mean))
        trace = (
            sum(
                jnp.sum((a - b) ** 2)
                for a, b in zip(jax.tree.leaves(g), jax.tree.leaves(mean), strict=True)
            )
            / SAMPLES
        )
        return jnp.mean(jax.vmap(made.sample_loss, (None, 0))(x, made.data)) + RHO / 2 * (
            norm2 + trace / MICRO
        )

    def one(key: jax.Array) -> Any:
        def body(carry: Any, _: Any) -> Any:
            key, x = carry
            key, sub = jax.random.split(key)
            xi = jax.random.normal(sub, (SAMPLES,))
            weights = (xi - xi.mean()) * (LR / (SAMPLES * BATCH)) ** 0.5
            noise = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), gradients(x))
            return (
                key,
                jax.tree.map(
                    lambda a, b, s: a - LR * b + LR**0.5 * s, x, jax.grad(modified)(x), noise
                ),
            ), None

        return jax.lax.scan(body, (key, made.x0), None, length=steps)[0][1]

    many = per_path(one, paths)
    return lambda seed: _statistics_of(many(seed))


def _prepare_passes(together: bool, paths: int, steps: int) -> Run:
    """Forward and backward over the data, once per step: gradient descent."""
    made = problem()

    def loss(x: Any) -> Any:
        return jnp.mean(jax.vmap(made.sample_loss, (None, 0))(x, made.data))

    def one(shift: jax.Array) -> Any:
        start = jax.tree.map(lambda leaf: leaf + shift, made.x0)
        return jax.lax.fori_loop(
            0,
            steps,
            lambda k, x: jax.tree.map(lambda a, g: a - LR * g, x, jax.grad(loss)(x)),
            start,
        )

    many = on_all_devices(
        lambda seed, shifts: jax.vmap(one)(shifts) if together else jax.lax.map(one, shifts), paths
    )

    def run(seed: int) -> Statistics:
        jax.block_until_ready(many(0, jnp.full(paths, 1e-6 * seed)))
        return None

    return run


# ---- (b)


def _prepare_chain(variant: str, micro: int | None, paths: int, steps: int) -> Run:
    chain = sdesam.Chain(variant, problem(), LR, None if variant == "sgd" else RHO, BATCH, micro)

    def run(seed: int) -> Statistics:
        out = sdesam.train(
            chain,
            seed_key(seed),
            paths,
            steps,
            times=[steps * LR],
            observe=["loss"],
            progress=False,
        )
        return _statistics(out, paths)

    return run


CONTENDERS = (
    Contender("SDE", "ours", _prepare_sde, "simulate() of the derived SDE"),
    Contender(
        "one pass, vmap",
        "floor",
        partial(_prepare_passes, True),
        "one forward and backward pass over the data per step, paths vmapped",
    ),
    Contender(
        "one pass, map",
        "floor",
        partial(_prepare_passes, False),
        "the same, paths one after the other on each device",
    ),
    Contender(
        "diffrax",
        "peer",
        _prepare_diffrax,
        "sde.to_diffrax(): Euler, matrix-free",
        0.2,
        ("diffrax",),
    ),
    Contender(
        "jax, naive", "peer", _prepare_naive, "vmap over paths, per-sample gradients formed", 0.1
    ),
    Contender(
        "SGD", "ours", partial(_prepare_chain, "sgd", None), "train() with one pass over a batch"
    ),
    Contender("SAM", "ours", partial(_prepare_chain, SAM, None), f"train(): {SAM}"),
    *(
        Contender(f"m-SAM, m={m}", "ours", partial(_prepare_chain, M_SAM, m), f"train(): {M_SAM}")
        for m in MICROS
    ),
)
