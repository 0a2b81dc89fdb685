"""Time-stepping schemes for SDEs, and :func:`simulate`.

The schemes are for small noise, `dX = B dt + sqrt(eta) S dW` with small `eta`, in the Ito sense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._names import unknown
from sdesam.engine import Keep, Plan, Result, run, steps_of, time_grid
from sdesam.problems.finite_sum import Observer
from sdesam.sampling import positive, whole
from sdesam.sde.equation import SDE, Kernel

PyTree = Any


class _StepNumbers(NamedTuple):
    kernel: Any
    dt: float


@dataclass(frozen=True)
class Euler:
    """Euler-Maruyama: `X+ = X + dt B(X) + sqrt(dt) A(X) xi`; weak error `O(dt)`.

    Uncorrected at `dt = eta` this IS the chain with Gaussian noise, so agreement with the chain proves nothing there.
    """

    kernel: Kernel

    def __call__(self, params: _StepNumbers, x: PyTree, key: jax.Array, xi: jax.Array) -> PyTree:
        """One step."""
        _, key_drift, _ = jax.random.split(key, 3)
        noise = _noise(self.kernel, params, x, xi)
        drift = self.kernel.step_drift(params.kernel, x, key_drift)
        return jax.tree.map(lambda x, b, s: x + params.dt * b + s, x, drift, noise)


@dataclass(frozen=True)
class Heun:
    """The small-noise Heun scheme: weak error `O(dt^2 + eta dt)`, so `O(eta^2)` at `dt = eta`, multiplicative noise included.

    `X* = X + dt B(X) + sqrt(dt) A(X) xi`, `X+ = X + (dt/2) (B(X) + B(X*)) + sqrt(dt) A(X) xi`: noise in the predictor, diffusion at the
    left point (Ito, not Stratonovich).

    Source: Milstein & Tretyakov 1997, SIAM J. Sci. Comput. 18, "Numerical methods in the weak sense for stochastic differential
    equations with small noise".
    """

    kernel: Kernel

    def __call__(self, params: _StepNumbers, x: PyTree, key: jax.Array, xi: jax.Array) -> PyTree:
        """One step."""
        _, key_drift, key_ahead = jax.random.split(key, 3)
        noise = _noise(self.kernel, params, x, xi)
        drift = self.kernel.step_drift(params.kernel, x, key_drift)
        ahead = jax.tree.map(lambda x, b, s: x + params.dt * b + s, x, drift, noise)
        # a probe of its own: with the same one, the predictor and the drift there would be correlated, which is a bias
        drift_ahead = self.kernel.step_drift(params.kernel, ahead, key_ahead)
        return jax.tree.map(lambda x, b, c, s: x + 0.5 * params.dt * (b + c) + s, x, drift, drift_ahead, noise)


METHODS: dict[str, type[Euler] | type[Heun]] = {"euler": Euler, "heun": Heun}


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
) -> Result:
    """Simulate many paths of an SDE and average observables on a time grid.

    Args:
        sde: the SDE.
        key: a jax random key; the same key gives the same paths for any `chunk`, `devices` and `times`.
        paths: how many.
        horizon: SDE time to reach, a multiple of `dt`.
        dt: the step.
        method: `"euler"` (Euler-Maruyama) or `"heun"` (small-noise Heun).
        times: SDE times to observe at, multiples of `dt`; by default about ten even ones.
        observe: names of the problem's observables (`"loss"`, `"grad_norm2"`, `"trace_cov"`, ...), or a mapping from names to functions
            `x -> array`.
        keep: `"statistics"`; `"values"` to keep each path's observables; `"trajectories"` to keep each path's states too.
        antithetic: paths `2j` and `2j+1` use opposite noise; standard errors are those of the pairs' means.
        chunk: paths advanced together; by default as many as fit the cache.
        devices: jax devices to spread paths over; by default all.
        progress: show a bar; by default on a terminal, after two seconds.

    Returns:
        A :class:`sdesam.Result`.

    Raises:
        ValueError: numbers that do not fit, an unknown observable or method.
        TypeError: `key` is no jax random key.

    >>> ou = SDE(lambda x: -x, lambda x, xi: 0.1 * xi, noise_shape=(), x0=1.0)
    >>> out = simulate(ou, jax.random.key(0), paths=100, horizon=1.0, dt=0.25, method="heun", observe={"x": lambda x: x})
    >>> out.time
    array([0.  , 0.25, 0.5 , 0.75, 1.  ])
    >>> bool(abs(out.mean["x"][-1] - (1 - 0.25 + 0.25**2 / 2) ** 4) < 4 * out.stderr["x"][-1])
    True
    """
    dt, steps = check_stepping(horizon, dt, method)
    observer, data = _observer(sde, observe)
    samples = sde.problem.chunk if sde.problem is not None else 1
    plan = Plan(
        stepper=METHODS[method](sde.kernel),
        params=_StepNumbers(sde.params, dt),
        x0=sde.x0,
        observer=observer,
        data=data,
        steps=steps,
        step_time=dt,
        # about eight vectors per sample of a chunk in a step, four while observing
        step_bytes=8 * sde.vector_bytes * samples,
        observe_bytes=4 * sde.vector_bytes * samples,
        config={**sde.config, "method": method, "dt": dt, "horizon": steps * dt},
        noise_shape=sde.noise_shape,
    )
    return run(
        plan,
        key,
        paths=whole("paths", paths),
        grid=time_grid(times, steps, dt, "dt"),
        keep=keep,
        antithetic=antithetic,
        chunk=chunk,
        devices=devices,
        progress=progress,
        label="SDE",
    )


def check_stepping(horizon: float, dt: float, method: str) -> tuple[float, int]:
    """`(dt, steps)`, or one sentence saying which number does not fit."""
    dt, horizon = positive("dt", dt), positive("horizon", horizon)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    steps = steps_of(horizon, dt, "horizon", "dt")
    if steps < 1:
        raise ValueError(f"horizon={horizon:g} is shorter than one step dt={dt:g}")
    return dt, steps


def _noise(kernel: Kernel, params: _StepNumbers, x: PyTree, xi: jax.Array) -> PyTree:
    """`sqrt(dt) A(x) xi`."""
    return kernel.apply_noise(params.kernel, x, xi * jnp.sqrt(params.dt).astype(xi.dtype))


def _observer(sde: SDE, observe: Any) -> tuple[Observer, Any]:
    if isinstance(observe, Mapping):
        return Observer(None, 0, tuple(observe), tuple(observe.items())), ()
    if isinstance(observe, str):
        observe = [observe]
    if sde.problem is None:
        if observe:
            raise ValueError("this SDE has no problem whose observables have names: give observe={name: function of x}")
        return Observer(None, 0, ()), ()
    return sde.problem.observer(observe), sde.problem.data
