"""Time-stepping schemes for SDEs, and :func:`simulate`.

The schemes are for small noise, `dX = B dt + sqrt(eta) S dW` with small `eta`, in the Ito sense.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._util.checks import check_int, check_nonnegative, check_positive
from sdesam._util.functions import check_known
from sdesam._util.keys import seed_key
from sdesam._util.names import unknown
from sdesam._util.precision import lenient
from sdesam.ensemble import (
    CostEstimate,
    Keep,
    Normals,
    Result,
    RunSpec,
    estimate_cost,
    hardware,
    run,
    steps_of,
    time_grid,
)
from sdesam.problems.observing import Observer, make_observer
from sdesam.sde._kernels import Kernel
from sdesam.sde.equation import SDE

PyTree = Any


@partial(jax.tree_util.register_dataclass, data_fields=["kernel", "dt"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Euler:
    """Euler-Maruyama: `X+ = X + dt B(X) + sqrt(dt) A(X) xi`; weak error `O(dt)`.

    Uncorrected at `dt = eta` this IS the chain with Gaussian noise, so agreement with the chain
    proves nothing there.
    """

    kernel: Kernel
    dt: Any

    def __call__(self, x: PyTree, key: jax.Array, xi: jax.Array) -> PyTree:
        """One step."""
        # three keys where two would do: noise and drift then draw as those of Heun
        key_noise, key_drift, _ = jax.random.split(key, 3)
        step = self.kernel.step_both(x, self.dt, _scaled(xi, self.dt), (key_noise, key_drift))
        return jax.tree.map(jnp.add, x, step)


# Heun's error for small noise, on `dX = -X dt + s dW` with one step from x:
#
#     ahead      x - dt x + s sqrt(dt) xi
#     X+         x - (dt/2) (x + ahead) + s sqrt(dt) xi
#                = (1 - dt + dt^2/2) x + (1 - dt/2) s sqrt(dt) xi
#
# The mean has the right second order of exp(-dt). The variance s^2 dt (1 - dt/2)^2 is
# s^2 (dt - dt^2 + ..), as that of the SDE, s^2 (1 - exp(-2 dt)) / 2. That comes from the noise in
# the predictor: with `ahead = x - dt x` the variance would be s^2 dt.


@partial(jax.tree_util.register_dataclass, data_fields=["kernel", "dt"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Heun:
    """The small-noise Heun scheme: weak error `O(dt^2 + eta dt)`, so `O(eta^2)` at `dt = eta`,
    multiplicative noise included.

    `X* = X + dt B(X) + sqrt(dt) A(X) xi`, `X+ = X + (dt/2) (B(X) + B(X*)) + sqrt(dt) A(X) xi`:
    noise in the predictor, diffusion at the left point (Ito, not Stratonovich).

    Source: Milstein & Tretyakov 1997, SIAM J. Sci. Comput. 18, "Numerical methods in the weak sense
    for stochastic differential equations with small noise".
    """

    kernel: Kernel
    dt: Any

    def __call__(self, x: PyTree, key: jax.Array, xi: jax.Array) -> PyTree:
        """One step."""
        key_noise, key_drift, key_ahead = jax.random.split(key, 3)
        noise = self.kernel.step_noise(x, _scaled(xi, self.dt), key_noise)
        drift = self.kernel.step_drift(x, key_drift)
        ahead = jax.tree.map(lambda x, b, s: x + self.dt * b + s, x, drift, noise)
        # a probe of its own: with the same one, the predictor and the drift there would be
        # correlated, which is a bias
        drift_ahead = self.kernel.step_drift(ahead, key_ahead)
        return jax.tree.map(
            lambda x, b, c, s: x + 0.5 * self.dt * (b + c) + s, x, drift, drift_ahead, noise
        )


# What extrapolation gains, on the mean of `dX = -X dt + s dW` at time 1 from x = 1, where Euler's
# scheme gives (1 - dt)^(1/dt):
#
#     coarse, dt = 0.1                0.3487
#     fine, dt = 0.05                 0.3585        error -0.0094
#     2 fine - coarse                 0.3683        error  0.0004
#     exact, exp(-1)                  0.3679
#
# The same combination of two estimates that are independent would have five times the variance of
# one, 2^2 + 1^2. One Brownian motion drives both paths, so that they differ by little, and the
# variance is about that of one path.


@partial(jax.tree_util.register_dataclass, data_fields=["kernel", "dt"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Richardson:
    """Richardson extrapolation of Euler-Maruyama: weak error `O(dt^2)`, large noise and small.

    The state is a pair: a path with one step of `dt` and one with two of `dt/2`, driven by the same
    Brownian motion. An observable is `2 phi(fine) - phi(coarse)`, in which the term `O(dt)` of the
    weak error cancels and much of the variance with it; only means of observables are extrapolated,
    not paths.

    Source: Talay & Tubaro 1990, Stochastic Anal. Appl. 8, "Expansion of the global error for
    numerical schemes solving stochastic differential equations".
    """

    kernel: Kernel
    dt: Any

    def __call__(
        self, x: tuple[PyTree, PyTree], key: jax.Array, xi: jax.Array
    ) -> tuple[PyTree, PyTree]:
        """One step of `dt`; the last axis of `xi` are its halves."""
        coarse, fine = x
        whole_step, half_step = Euler(self.kernel, self.dt), Euler(self.kernel, self.dt / 2)
        keys = jax.random.split(key, 3)
        # the increment of a step is the sum of those of its halves, sqrt(dt/2) (xi_0 + xi_1)
        coarse = whole_step(
            coarse, keys[0], (xi[..., 0] + xi[..., 1]) * np.sqrt(0.5).astype(xi.dtype)
        )
        for half in (0, 1):
            fine = half_step(fine, keys[1 + half], xi[..., half])
        return coarse, fine


@partial(jax.tree_util.register_dataclass, data_fields=["single"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class _Extrapolated:
    """Observables of the pair that :class:`Richardson` carries."""

    single: Observer

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return self.single.names

    def __call__(self, x: tuple[PyTree, PyTree]) -> dict[str, jax.Array]:
        """`2 phi(fine) - phi(coarse)`."""
        coarse, fine = (self.single(state) for state in x)
        return {name: 2 * fine[name] - coarse[name] for name in fine}


METHODS: dict[str, type[Euler] | type[Heun] | type[Richardson]] = {
    "euler": Euler,
    "heun": Heun,
    "richardson": Richardson,
}


@lenient()
def simulate(
    sde: SDE,
    key: jax.Array,
    paths: int,
    horizon: float,
    dt: float,
    method: str = "euler",
    times: Sequence[float] | np.ndarray | None = None,
    observe: Sequence[str] | Mapping[str, Callable[[PyTree], Any]] = (),
    *,
    keep: Keep = "statistics",
    antithetic: bool = False,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
    normals: Normals = "counter",
    dtype: str | None = None,
    snapshot: str | os.PathLike[str] | None = None,
    snapshot_every: float = 60.0,
) -> Result:
    """Simulate many paths of an SDE and average observables on a time grid.

    Args:
        sde: the SDE.
        key: a jax random key; the same key gives the same paths for any `chunk`, `devices`, number
            of processes and `times`.
        paths: how many.
        horizon: SDE time to reach, a multiple of `dt`.
        dt: the step.
        method: `"euler"` (Euler-Maruyama), `"heun"` (small-noise Heun) or `"richardson"` (two Euler
            paths of `dt` and `dt/2` with the same noise, extrapolated: observables are
            `2 phi(fine) - phi(coarse)`, states those of the fine path).
        times: SDE times to observe at, multiples of `dt`; by default about ten even ones.
        observe: names of the problem's observables (`"loss"`, `"grad_norm2"`, `"trace_cov"`, ...),
            or a mapping from names to functions `x -> array`. They must be pure, as the functions
            of :class:`sdesam.SDE`. Define them once, and arrays that change as a
            `jax.tree_util.Partial` or a module: what is compiled then serves again.
        keep: `"statistics"` and the final states; `"means"`, statistics alone; `"values"` to keep
            each path's observables; `"trajectories"` to keep each path's states too.
        antithetic: paths `2j` and `2j+1` use opposite noise; standard errors are those of the
            pairs' means.
        chunk: paths advanced together; by default as many as fit the cache.
        devices: jax devices to spread paths over; by default all. Under `jax.distributed` every
            process advances its share of the paths and returns the whole result.
        progress: show a bar; by default on a terminal, after two seconds.
        normals: `"counter"`, or `"jax"` for numbers from `jax.random`: slower, as a reference.
        dtype: precision of the state, `"float32"` or `"float64"`; by default that of `sde.x0`.
        snapshot: a file to write the state of the run to; if it is there, the run goes on from it,
            to the same numbers. It stays when the run is through.
        snapshot_every: seconds between two snapshots.

    Returns:
        A :class:`sdesam.Result`.

    Raises:
        ValueError: numbers that do not fit, an unknown observable or method, more devices than
            paths, a run that does not fit into memory, a snapshot of another run or cut short,
            float64 where jax has 64 bits turned off, a gradient of the loss or an observable that
            is not finite at the start.
        TypeError: `sde` is no SDE, `key` no jax random key, an observable that returns no array; a
            call inside `jax.jit` or with traced numbers.
        OSError: the snapshot cannot be written.

    Warns:
        UserWarning: `dt` is beyond `2 / l`, `l` the largest curvature of the problem's loss at the
        start.

    >>> ou = SDE(lambda x: -x, lambda x, xi: 0.1 * xi, noise_shape=(), x0=1.0)
    >>> out = simulate(
    ...     ou,
    ...     jax.random.key(0),
    ...     paths=100,
    ...     horizon=1.0,
    ...     dt=0.25,
    ...     method="heun",
    ...     observe={"x": lambda x: x},
    ... )
    >>> out.time
    array([0.  , 0.25, 0.5 , 0.75, 1.  ])
    >>> bool(abs(out.mean["x"][-1] - (1 - 0.25 + 0.25**2 / 2) ** 4) < 4 * out.stderr["x"][-1])
    True
    """
    request = _Request("simulate", horizon, dt, method, times, observe, normals, dtype)
    made, grid = _plan(sde, key, request)
    out = run(
        made,
        key,
        paths=check_int("paths", paths),
        grid=grid,
        keep=keep,
        antithetic=antithetic,
        chunk=chunk,
        devices=devices,
        progress=progress,
        label="SDE",
        snapshot=snapshot,
        snapshot_every=check_nonnegative("snapshot_every", snapshot_every),
    )
    if method == "richardson":  # the coarse path was there for the observables
        fine = {
            name: pair[1]
            for name, pair in (("final", out.final), ("trajectory", out.trajectory))
            if pair is not None
        }
        out = replace(out, **fine)
    return out


@lenient()
def estimate(
    sde: SDE,
    paths: int,
    horizon: float,
    dt: float,
    method: str = "euler",
    times: Sequence[float] | np.ndarray | None = None,
    observe: Sequence[str] | Mapping[str, Callable[[PyTree], Any]] = (),
    *,
    keep: Keep = "statistics",
    antithetic: bool = False,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    normals: Normals = "counter",
    dtype: str | None = None,
) -> CostEstimate:
    """What :func:`simulate` would need with these arguments: steps, memory, and time, from a trial
    of a fraction of a second.

    Args and errors are those of :func:`simulate`; a run that cannot fit into memory is refused.

    Returns:
        A :class:`sdesam.CostEstimate`.

    >>> ou = SDE(lambda x: -x, lambda x, xi: 0.1 * xi, noise_shape=(), x0=1.0)
    >>> expected = estimate(ou, paths=1000, horizon=1.0, dt=0.25)
    >>> expected.steps, expected.chunks, expected.seconds > 0
    (4, 1, True)
    """
    request = _Request("estimate", horizon, dt, method, times, observe, normals, dtype)
    made, grid = _plan(sde, None, request)
    options: dict[str, Any] = {
        "keep": keep,
        "antithetic": antithetic,
        "chunk": chunk,
        "devices": devices,
    }
    return estimate_cost(made, seed_key(0), paths=check_int("paths", paths), grid=grid, **options)


def plan(*arguments: Any, **options: Any) -> CostEstimate:
    """The old name of :func:`estimate`, for one release."""
    warnings.warn(
        "sdesam.plan is called sdesam.estimate now, and takes the same arguments",
        DeprecationWarning,
        stacklevel=2,
    )
    return estimate(*arguments, **options)


class _Request(NamedTuple):
    """What :func:`simulate` and :func:`estimate` are asked for, as it was given."""

    call: str
    horizon: float
    dt: float
    method: str
    times: Any
    observe: Any
    normals: Normals
    dtype: str | None


def _plan(sde: SDE, key: Any, request: _Request) -> tuple[RunSpec, np.ndarray]:
    """What to run and the steps at which to observe, or one sentence saying what does not fit."""
    call, method, normals = request.call, request.method, request.normals
    check_sde(call, sde)
    dt, steps = check_stepping(request.horizon, request.dt, method)
    grid = time_grid(request.times, steps, dt, "dt")
    observer, kernel = _observer(sde, request.observe), sde.kernel
    check_known(
        call,
        (sde.x0, kernel, observer, key),
        [*vars(kernel).values(), *(fn for _, fn in observer.extra)],
    )
    x0 = _in_precision(sde.x0, request.dtype)
    if grid[0] == 0:
        observer.check(x0)
    if sde.problem is not None:
        _warn_if_unstable(sde.problem.curvature, dt, method)
        sde.problem.check_gradient()
    samples = sde.problem.chunk if sde.problem is not None else 1
    extrapolate = method == "richardson"
    made = RunSpec(
        stepper=METHODS[method](kernel, dt),
        x0=(x0, x0) if extrapolate else x0,
        observer=_Extrapolated(observer) if extrapolate else observer,
        steps=steps,
        step_time=dt,
        # about eight values of a size in a step, four vectors per sample of a chunk while observing
        step_bytes=(16 if extrapolate else 8) * sde.working_bytes,
        observe_bytes=4 * sde.vector_bytes * samples,
        config={
            **sde.config,
            "method": method,
            "dt": dt,
            "horizon": steps * dt,
            "normals": normals,
        },
        noise_shape=(*sde.noise_shape, 2) if extrapolate else sde.noise_shape,
        normals=normals,
    )
    return made, grid


def check_sde(call: str, sde: Any) -> None:
    """Say which call is meant."""
    meant = {
        "ModifiedEquation": (
            "an equation has no numbers: bind it first, sde = equation.bind(problem, lr=...,"
            " batch=...)"
        ),
        "Chain": "an optimizer is run by sdesam.train(chain, key, runs, steps)",
        "FiniteSum": (
            "a problem has no dynamics: bind an equation to it, sde ="
            " sdesam.derive('m-usam').bind(problem, lr=..., ...)"
        ),
    }
    if not isinstance(sde, SDE):
        told = meant.get(
            type(sde).__name__,
            "make one by sdesam.SDE(...), or by binding a derived equation to a problem",
        )
        raise TypeError(f"{call} takes a sdesam.SDE, not {type(sde).__name__}: {told}")


def _in_precision(x0: PyTree, dtype: str | None) -> PyTree:
    """`x0` in the precision asked for."""
    if dtype is None:
        return x0
    if dtype not in ("float32", "float64"):
        raise ValueError(
            f"dtype={dtype!r}: choose 'float32' or 'float64', or leave it out for the precision"
            " of x0"
        )
    if dtype == "float64" and not hardware.double_precision():
        raise ValueError(
            "dtype='float64', but jax has 64 bits turned off and would compute in float32: make"
            " problem and SDE and simulate within `with jax.enable_x64(True):`, or set"
            " JAX_ENABLE_X64=1 before jax starts"
        )
    return jax.tree.map(lambda leaf: leaf.astype(dtype), x0)


def _warn_if_unstable(curvature: float, dt: float, method: str) -> None:
    """On a quadratic of curvature `l` the factor of a step is `1 - z` (Euler) or `1 - z + z^2/2`
    (Heun), `z = dt l`: below 1 for `z < 2`.

    With Richardson's method the coarse path decides. A perturbation towards larger loss makes the
    drift steeper and the bound smaller.
    """
    if dt * curvature > 2:
        warnings.warn(
            f"dt={dt:g} is beyond 2 / l = {2 / curvature:.3g}, where l = {curvature:.3g} is the"
            f" largest curvature of the loss at the start: on a quadratic with it the {method}"
            " scheme grows without bound; choose a smaller dt",
            UserWarning,
            stacklevel=4,
        )


def check_stepping(horizon: float, dt: float, method: str) -> tuple[float, int]:
    """`(dt, steps)`, or one sentence saying which number does not fit."""
    dt, horizon = check_positive("dt", dt), check_positive("horizon", horizon)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    steps = steps_of(horizon, dt, "horizon", "dt")
    if steps < 1:
        raise ValueError(f"horizon={horizon:g} is shorter than one step dt={dt:g}")
    return dt, steps


def _scaled(xi: jax.Array, dt: Any) -> jax.Array:
    """`sqrt(dt) xi`."""
    return xi * jnp.sqrt(dt).astype(xi.dtype)


def _observer(sde: SDE, observe: Any) -> Observer:
    if isinstance(observe, Mapping):
        return make_observer(tuple(observe), observe, rest=sde.kernel.rest)
    names = [observe] if isinstance(observe, str) else observe
    if sde.problem is None:
        if callable(names) or names:
            raise ValueError(
                "this SDE has no problem whose observables have names: give observe={name: function"
                " of x}"
            )
        return make_observer((), {})
    return sde.problem.observer(names)
