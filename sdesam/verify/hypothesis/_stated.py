"""An SDE as somebody states it, and its drift and covariance at points, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam._util.functions import words
from sdesam.problems import FiniteSum
from sdesam.problems.arrays import describe, numeric, shapes
from sdesam.verify.coefficients import (
    Field,
    Power,
    Read,
    Setting,
    differentiated,
)
from sdesam.verify.exact.float64 import Rebuild, start, to_double


@dataclass(frozen=True)
class Hypothesis:
    """An SDE as somebody states it: `dX = drift dt + covariance^(1/2) dW`.

    Args:
        drift: `(problem, x, lr, rho, batch, micro) -> B(x)`, structure of `x`, sign included, per
            unit of SDE time.
        potential: in place of a drift, the modified loss `U(x)` with `B = -grad U`; same arguments,
            a scalar.
        covariance: the diffusion matrix, lr included, dense of shape `(d, d)`; same arguments.

    All are jax functions; `lr` and `rho` may be traced. At least one part must be stated.

    >>> import sdesam
    >>> sgd = Hypothesis(
    ...     potential=lambda p, x, lr, rho, batch, micro: p.loss(x) + lr / 4 * p.grad_norm2(x)
    ... )
    >>> sdesam.check(sgd, "sgd", order=(2, 2)).status
    'confirmed'
    """

    drift: Callable[..., Any] | None = None
    potential: Callable[..., Any] | None = None
    covariance: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.drift is not None and self.potential is not None:
            raise ValueError("a hypothesis states a drift or a potential, not both")
        if self.drift is None and self.potential is None and self.covariance is None:
            raise ValueError("a hypothesis must state a drift, a potential or a covariance")
        for name, fn in vars(self).items():
            if fn is not None and not callable(fn):
                raise TypeError(
                    f"{name}={fn!r}: it must be a function (problem, x, lr, rho, batch, micro)"
                )


class Stated:
    """A hypothesis on the points of a setting, in float64."""

    def __init__(self, hypothesis: Hypothesis, setting: Setting, points: np.ndarray | None = None):
        self.setting = setting
        self.points = setting.points if points is None else points
        self.has_drift = hypothesis.drift is not None or hypothesis.potential is not None
        self.has_covariance = hypothesis.covariance is not None
        self.what = "drift" if hypothesis.potential is None else "potential"
        problem, sampling, d = setting.problem, setting.sampling, setting.problem.dim
        rebuild = Rebuild(problem.x0)
        # The problem is rebuilt in float64: a right theory of float32 losses would be off by 1e-7,
        # and its derivatives by far more.
        with jax.enable_x64(True):
            self.problem = FiniteSum(
                problem.sample_loss,
                to_double(problem.data),
                rebuild(jnp.asarray(start(problem))),
                problem.period,
                problem.observables,
                name=problem.name,
                chunk=problem.chunk,
            )

        def drift(x: jax.Array, lr: jax.Array, rho: jax.Array) -> jax.Array:
            numbers = (lr, rho, sampling.batch, sampling.m)
            if hypothesis.potential is not None:
                descent: jax.Array = jax.grad(
                    lambda y: -_scalar(hypothesis.potential(self.problem, rebuild(y), *numbers))  # type: ignore[misc]
                )(x)
                return descent
            value = hypothesis.drift(self.problem, rebuild(x), *numbers)  # type: ignore[misc]
            if shapes(value) != shapes(problem.x0) or not all(map(_real, jax.tree.leaves(value))):
                raise ValueError(
                    f"the drift is {describe(value)}: it must be real, of the shapes of the"
                    f" parameters, {describe(problem.x0)}"
                )
            flat: jax.Array = ravel_pytree(value)[0]
            return flat

        def covariance(x: jax.Array, lr: jax.Array, rho: jax.Array) -> jax.Array:
            value = hypothesis.covariance(
                self.problem, rebuild(x), lr, rho, sampling.batch, sampling.m
            )  # type: ignore[misc]
            if not _real(value) or jnp.shape(value) != (d, d):
                raise ValueError(
                    f"the covariance is {describe(value)}: it must be real and dense, of shape"
                    f" ({d}, {d})"
                )
            return jnp.asarray(value)

        self._drift = jax.jit(jax.vmap(drift, (0, None, None)))
        self._covariance = jax.jit(jax.vmap(covariance, (0, None, None)))

    def drift(self, lr: float, rho: float) -> np.ndarray:
        """`B` at the points, shape `(p, d)`."""
        return self._evaluate(self.what, self._drift, lr, rho)

    def covariance(self, lr: float, rho: float) -> np.ndarray:
        """The diffusion matrix at the points, shape `(p, d, d)`, checked to be symmetric."""
        value = self._evaluate("covariance", self._covariance, lr, rho)
        if abs(value - value.transpose(0, 2, 1)).max() > 1e-9 * abs(value).max():
            raise ValueError("the covariance is not symmetric: it must equal its transpose")
        return value

    def check_covariance(self, lr: float = 0.1) -> None:
        """Refuse a covariance with a negative eigenvalue at `rho = 0`; for `rho > 0` a truncated
        one may be negative by what was truncated.
        """
        value = self.covariance(lr, 0.0)
        if not np.isfinite(value).all():
            return  # a formula may divide by rho
        least = float(np.linalg.eigvalsh(value).min())
        if least < -1e-9 * abs(value).max():
            raise ValueError(
                f"the covariance is not positive semi-definite: it has the eigenvalue {least:.3g}"
                f" at lr={lr:g}, rho=0"
            )

    def fields(self) -> tuple[Field | None, Field | None]:
        """The readers of the coefficients of drift and covariance, None for what is not stated."""
        return (
            self._reader(self.what, self._drift, self.drift) if self.has_drift else None,
            (
                self._reader("covariance", self._covariance, self.covariance)
                if self.has_covariance
                else None
            ),
        )

    def _reader(
        self,
        what: str,
        fn: Callable[..., jax.Array],
        evaluate: Callable[[float, float], np.ndarray],
    ) -> Field:
        read = differentiated(lambda lr, rho: fn(jnp.asarray(self.points), lr, rho))

        def told(powers: Sequence[Power], scales: tuple[float, float]) -> dict[Power, Read] | None:
            evaluate(*scales)  # what fails by itself says so in its own words
            try:
                return read(powers, scales)
            except Exception as error:
                raise ValueError(
                    f"the {what} cannot be differentiated in lr and rho on {self.setting}, and so"
                    f" not expanded: {words(error)}"
                ) from error

        return told

    def _evaluate(
        self, what: str, fn: Callable[..., jax.Array], lr: float, rho: float
    ) -> np.ndarray:
        try:
            with jax.enable_x64(True):
                return np.asarray(fn(jnp.asarray(self.points), jnp.float64(lr), jnp.float64(rho)))
        except Exception as error:
            own = jax.tree.map(jnp.shape, self.setting.problem.x0)
            raise ValueError(
                f"the {what} fails on {self.setting}, whose parameters have the shapes {own} (a"
                f" hypothesis must hold for any problem): {words(error)}"
            ) from error


def _scalar(value: Any) -> jax.Array:
    if not _real(value) or jnp.shape(value) != ():
        raise ValueError(
            f"the potential is {describe(value)}: it must be a scalar, the modified loss"
        )
    return jnp.asarray(value, float)


def _real(value: Any) -> bool:
    """Whether it is a real number, or an array of them."""
    return numeric(value) and not jnp.issubdtype(jnp.result_type(value), jnp.complexfloating)
