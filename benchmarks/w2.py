"""W2, a finite sum: the m-USAM SDE of linear regression, n = 64 samples, d = 32 parameters, 2,000
paths, 1,000 steps, float32.

With residuals r = A x - y and one sample's gradient g_i = a_i r_i, at order (1,2):

    dX = -( gbar + rho (Hbar gbar + c_m (mean_i H_i g_i - Hbar gbar)) ) dt + sqrt(eta/b) V^(1/2) dW,
    c_m = 1/m

from 0, Euler-Maruyama; the mean and variance over paths of the loss and of x_1 at the end are kept.
The noise is `sum_i w_i g_i` with a Gaussian `w` of mean zero, or a root of the matrix `V`: the same
law.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdesam
from sdesam._util.keys import seed_key

from . import floors
from .timing import Contender, Run, Statistics, on_all_devices, wide_vectors
from .w1 import moments, per_path

PATHS, STEPS, EVERY = 2000, 1000, 100
SAMPLES, DIM = 64, 32
LR, RHO, BATCH, MICRO = 0.02, 0.05, 16, 4
DT = LR
NAMES = ("loss", "x1")


@cache
def problem() -> sdesam.FiniteSum:
    """Linear regression with random inputs, scaled so that the step is stable."""
    made = sdesam.problems.linear_regression(dim=DIM, samples=SAMPLES, seed=0)
    return sdesam.FiniteSum(
        made.sample_loss, jax.tree.map(lambda a: a / 2, made.data), made.x0, name=made.name
    )


@cache
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """`A` (n, d) and `y` (n,) in float32, for those who do without the package."""
    data = problem().data
    return np.asarray(data["input"], np.float32), np.asarray(data["target"], np.float32)


def statistics_of(states: Any) -> Statistics:
    """The statistics of the final states, shape `(paths, d)`."""
    inputs, targets = arrays()
    states = np.asarray(states)
    loss = 0.5 * ((states @ inputs.T - targets) ** 2).mean(axis=1)
    return {"loss": moments(loss)[None], "x1": moments(states[:, 0])[None]}


# ---- ours


def derived() -> sdesam.SDE:
    """The SDE by algebra, as a user gets it: derivatives by jax."""
    return sdesam.derive("m-usam", order=(1, 2)).bind(
        problem(), lr=LR, rho=RHO, batch=BATCH, micro=MICRO
    )


def _ours(make: Any, paths: int, steps: int) -> Run:
    sde = make()
    arrays()  # before anything is traced

    def run(seed: int) -> Statistics:
        out = sdesam.simulate(
            sde,
            seed_key(seed),
            paths,
            steps * DT,
            DT,
            times=[steps * DT],
            observe=_OBSERVED,
            progress=False,
        )
        return {
            name: np.stack([out.mean[name], out.stderr[name] ** 2 * paths], axis=-1)
            for name in _OBSERVED
        }

    return run


def by_hand() -> sdesam.SDE:
    """The SDE by hand: products with the data over all paths."""
    inputs, targets = (jnp.asarray(a) for a in arrays())
    norms = jnp.sum(inputs**2, axis=1)

    def drift(x: jax.Array) -> jax.Array:
        r = x @ inputs.T - targets
        along = r @ inputs @ inputs.T / SAMPLES  # A gbar
        return -(r + RHO * ((1 - 1 / MICRO) * along + norms * r / MICRO)) @ inputs / SAMPLES

    def noise(x: jax.Array, xi: jax.Array) -> jax.Array:
        weights = (xi - xi.mean(axis=1, keepdims=True)) * (LR / (SAMPLES * BATCH)) ** 0.5
        return (weights * (x @ inputs.T - targets)) @ inputs

    return sdesam.SDE(drift, noise, (SAMPLES,), jnp.zeros(DIM), batched=True)


def _loss(x: jax.Array) -> jax.Array:
    inputs, targets = arrays()
    return 0.5 * jnp.mean((inputs @ x - targets) ** 2)


_OBSERVED = {"loss": _loss, "x1": lambda x: x[0]}


# ---- the step by hand, states in columns: (d, paths)


def drift_weights(r: Any, inputs: Any, matmul: Any) -> Any:
    """`c` with `drift = A^T c`, for residuals `r` of shape (n, paths): three of the four products
    with the data of a step.
    """
    n = inputs.shape[0]
    along = matmul(inputs, matmul(inputs.T, r)) / n  # A gbar
    norms = (inputs**2).sum(axis=1)[:, None]
    return -(r + RHO * ((1 - 1 / MICRO) * along + norms * r / MICRO)) / n


def noise_weights(r: Any, xi: Any) -> Any:
    """`c` with `noise = A^T c`, for standard normals `xi` of shape (n, paths)."""
    n = r.shape[0]
    return (xi - xi.mean(axis=0)) * r * np.float32((LR / (n * BATCH)) ** 0.5)


def hand_step(x: Any, xi: Any, inputs: Any, targets: Any, matmul: Any) -> Any:
    """One Euler-Maruyama step of all paths."""
    r = matmul(inputs, x) - targets[:, None]
    return x + matmul(
        inputs.T, DT * drift_weights(r, inputs, matmul) + DT**0.5 * noise_weights(r, xi)
    )


def _columns(body: Any, floor: bool = False) -> Any:
    """A loop over steps on states in columns, spread over the devices by paths."""

    def prepare(paths: int, steps: int) -> Run:
        inputs, targets = arrays()

        def fn(seed: jax.Array, ids: jax.Array) -> jax.Array:
            start = jnp.zeros((DIM, ids.shape[0]))
            return jax.lax.fori_loop(
                0,
                steps,
                lambda k, x: body(seed, k, ids, x, jnp.asarray(inputs), jnp.asarray(targets)),
                start,
            )

        many = on_all_devices(fn, paths, wide_vectors() if floor else None, columns=True)
        ids = jnp.arange(paths, dtype=jnp.uint32)

        def run(seed: int) -> Statistics:
            final = jax.block_until_ready(many(jnp.uint32(seed), ids))
            return None if floor else statistics_of(final.T)

        return run

    return prepare


def _per_step(seed: Any, k: Any, ids: Any, x: Any, inputs: Any, targets: Any) -> Any:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), ids[0]), k)
    xi = jax.random.normal(key, (SAMPLES, ids.shape[0]))
    return hand_step(x, xi, inputs, targets, jnp.matmul)


# ---- peers


def _prepare_naive(paths: int, steps: int) -> Run:
    inputs, targets = (jnp.asarray(a) for a in arrays())

    def sample_loss(x: Any, a: Any, y: Any) -> Any:
        return 0.5 * (a @ x - y) ** 2

    def gradients(x: Any) -> Any:
        return jax.vmap(jax.grad(sample_loss), (None, 0, 0))(x, inputs, targets)

    def regularised(x: Any) -> Any:
        g = gradients(x)
        mean = g.mean(axis=0)
        trace = jnp.sum((g - mean) ** 2) / SAMPLES
        return jnp.mean(0.5 * (inputs @ x - targets) ** 2) + RHO / 2 * (mean @ mean + trace / MICRO)

    def one(key: jax.Array) -> jax.Array:
        def body(carry: Any, _: Any) -> Any:
            key, x = carry
            key, sub = jax.random.split(key)
            g = gradients(x)
            g = g - g.mean(axis=0)
            factor = jnp.linalg.cholesky(LR / BATCH * (g.T @ g / SAMPLES) + 1e-9 * jnp.eye(DIM))
            return (
                key,
                x
                - DT * jax.grad(regularised)(x)
                + DT**0.5 * factor @ jax.random.normal(sub, (DIM,)),
            ), None

        return jax.lax.scan(body, (key, jnp.zeros(DIM)), None, length=steps)[0][1]

    # on one device: batched LAPACK calls on two CPU devices at once wait for each other for ever
    # (jaxlib 0.10.2)
    many = jax.jit(lambda seed: jax.vmap(one)(jax.random.split(jax.random.key(seed), paths)))
    return lambda seed: statistics_of(many(seed))


def _prepare_diffrax(everywhere: bool, paths: int, steps: int) -> Run:
    import diffrax

    sde, solver = derived(), diffrax.Euler()

    def one(key: jax.Array) -> Any:
        terms = sde.to_diffrax(solver, diffrax.UnsafeBrownianPath(sde.noise_shape, key))
        return diffrax.diffeqsolve(
            terms, solver, 0.0, steps * DT, dt0=DT, y0=sde.x0, adjoint=diffrax.ForwardMode()
        ).ys[-1]

    many = (
        per_path(one, paths)
        if everywhere
        else jax.jit(lambda seed: jax.vmap(one)(jax.random.split(jax.random.key(seed), paths)))
    )
    return lambda seed: statistics_of(many(seed))


def _prepare_numpy(paths: int, steps: int) -> Run:
    inputs, targets = arrays()

    def run(seed: int) -> Statistics:
        rng = np.random.default_rng(seed)
        x = np.zeros((DIM, paths), np.float32)
        for _ in range(steps):
            x = hand_step(
                x, rng.standard_normal((SAMPLES, paths), np.float32), inputs, targets, np.matmul
            )
        return statistics_of(x.T)

    return run


def _prepare_torchsde(paths: int, steps: int) -> Run:
    import torch
    import torchsde

    inputs, targets = (torch.tensor(a) for a in arrays())

    class Problem(torch.nn.Module):  # type: ignore[misc]
        noise_type, sde_type = "general", "ito"

        def f(self, t: Any, x: Any) -> Any:
            r = x @ inputs.T - targets
            along = (r @ inputs) @ inputs.T / SAMPLES
            weights = r + RHO * ((1 - 1 / MICRO) * along + (inputs**2).sum(dim=1) * r / MICRO)
            return -(weights @ inputs) / SAMPLES

        def g(self, t: Any, x: Any) -> Any:
            gradients = (x @ inputs.T - targets)[:, :, None] * inputs
            return (gradients - gradients.mean(dim=1, keepdim=True)).transpose(1, 2) * (
                LR / (SAMPLES * BATCH)
            ) ** 0.5

    def run(seed: int) -> Statistics:
        torch.manual_seed(seed)
        with torch.no_grad():
            ends = torch.tensor([0.0, steps * DT])
            states = torchsde.sdeint(
                Problem(), torch.zeros(paths, DIM), ends, dt=DT, method="euler"
            )
        return statistics_of(states[-1])

    return run


# ---- floors


def _normals(seed: Any, k: Any, ids: Any) -> jax.Array:
    """`(n, paths)` standard normals, two from a counter."""
    pairs = jnp.arange(SAMPLES // 2, dtype=jnp.uint32)[:, None] * jnp.uint32(2**20) + ids
    return jnp.concatenate(floors.normal_pair((seed, jnp.uint32(7)), k.astype(jnp.uint32), pairs))


def _normals_only(seed: Any, k: Any, ids: Any, x: Any, inputs: Any, targets: Any) -> Any:
    # the noise is carried, so that it is made once
    xi = _normals(seed, k, ids)
    return x + xi[:DIM] + xi[DIM:]


def _matmuls_only(seed: Any, k: Any, ids: Any, x: Any, inputs: Any, targets: Any) -> Any:
    r = inputs @ x
    return x + np.float32(1e-6) * (inputs.T @ (inputs @ (inputs.T @ r)))


CONTENDERS = (
    Contender(
        "sdesam, derived",
        "ours",
        partial(_ours, derived),
        "simulate() of a derived SDE: derivatives by jax",
    ),
    Contender(
        "sdesam, by hand",
        "ours",
        partial(_ours, by_hand),
        "simulate() of matrix products over all paths",
    ),
    Contender(
        "normals only",
        "floor",
        _columns(_normals_only, True),
        "64 random numbers per path and step, fused, added up",
    ),
    Contender(
        "matmuls only",
        "floor",
        _columns(_matmuls_only, True),
        "the four products with the data of a step",
    ),
    Contender(
        "jax, by hand",
        "peer",
        _columns(_per_step),
        "the step written by hand, jax.random.normal once per step",
        0.5,
    ),
    Contender(
        "jax, naive",
        "peer",
        _prepare_naive,
        "vmap over paths, grad of the modified loss, Cholesky of V",
        0.02,
    ),
    Contender(
        "numpy", "peer", _prepare_numpy, "the step written by hand, float32", 0.3, cpu_only=True
    ),
    Contender(
        "torchsde",
        "peer",
        _prepare_torchsde,
        "sdeint, method euler, general noise",
        0.02,
        ("torch", "torchsde"),
        True,
    ),
    Contender(
        "diffrax",
        "peer",
        partial(_prepare_diffrax, False),
        "vmap(diffeqsolve) of sde.to_diffrax(): matrix-free",
        0.1,
        ("diffrax",),
    ),
    Contender(
        "diffrax, all cores",
        "peer",
        partial(_prepare_diffrax, True),
        "the same, spread over the devices by us",
        0.1,
        ("diffrax",),
    ),
)
