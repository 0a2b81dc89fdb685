"""Named functions of the parameters, to be looked at along a run: those that every finite sum
has, and those of a user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam._util.functions import Function, compiled, failure
from sdesam._util.precision import wide
from sdesam.problems.arrays import describe, numeric, refuse_traced
from sdesam.problems.means import SampleLoss, grad_norm2, mean_loss, trace_cov

PyTree = Any

BUILT_IN: dict[str, Callable[..., jax.Array]] = {
    "loss": mean_loss,
    "grad_norm2": grad_norm2,
    "trace_cov": trace_cov,
}


def check_observables(functions: Any) -> dict[str, Callable[[Any], Any]]:
    """Named functions, or a sentence saying what is none."""
    if not isinstance(functions, Mapping):
        raise TypeError(
            f"observables={functions!r}: it must be a mapping from names to functions of the"
            " parameters"
        )
    for name, fn in functions.items():
        if not isinstance(name, str) or not callable(fn):
            raise TypeError(
                f"observable {name!r} is {fn!r}: observables are named functions, such as {{'x':"
                " lambda x: x}"
            )
    return dict(functions)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "arrays"],
    meta_fields=["names", "extra", "sample_loss", "chunk"],
)
@dataclass(frozen=True, eq=False)
class Observer:
    """Named functions of the parameters as one function `x -> {name: value}`. Its data are leaves:
    compiled code is shared by observers of the same functions.

    Args:
        data: that of the loss.
        arrays: those that the functions of `extra` hold, by name.
        names: of all observables, in the order in which to report them.
        extra: functions by name; the other names are built in.
        sample_loss: `(params, sample) -> scalar`; None where nothing is asked of it.
        chunk: samples per chunk of per-sample work.
    """

    data: PyTree
    arrays: dict[str, list[Any]]
    names: tuple[str, ...]
    extra: tuple[tuple[str, Function], ...]
    sample_loss: SampleLoss | None
    chunk: int

    def __call__(self, x: PyTree) -> dict[str, jax.Array]:
        """The value of every observable at `x`."""
        found = {
            name: BUILT_IN[name](self.sample_loss, self.chunk, self.data, x)
            for name in self.names
            if name not in dict(self.extra)
        }
        # in the order of the observer and not of the mapping: jax hands a dictionary back with its
        # keys sorted, so who needs an order takes it from `names`
        for name, fn in self.extra:
            try:
                value = fn.filled(self.arrays[name])(x)
            except Exception as error:
                raise failure(f"observable {name!r}", error) from error
            found[name] = _one_array(name, value)
        return found

    def check(self, x: PyTree) -> None:
        """Refuse functions that are not finite at the start `x`, where all paths are observed
        first.
        """
        own = Observer((), self.arrays, tuple(name for name, _ in self.extra), self.extra, None, 0)
        for name, value in (observe(own, x) if self.extra else {}).items():
            if isinstance(value, jax.core.Tracer):
                refuse_traced(f"what observable {name!r} reads")
            if jnp.issubdtype(value.dtype, jnp.inexact) and not bool(jnp.isfinite(value).all()):
                raise ValueError(
                    f"observable {name!r} is not finite at the start x0, but"
                    f" {np.asarray(wide(value))}: move x0, change the observable, or leave time 0"
                    " out of `times`"
                )


def _one_array(name: str, value: Any) -> jax.Array:
    if not numeric(value):
        raise TypeError(
            f"observable {name!r} must return one array, or a number, but it returns"
            f" {describe(value)}"
        )
    return jnp.asarray(value)


def make_observer(
    names: tuple[str, ...],
    functions: Mapping[str, Callable[[Any], Any]],
    sample_loss: SampleLoss | None = None,
    chunk: int = 0,
    data: PyTree = (),
    rest: PyTree = None,
) -> Observer:
    """Functions of the parameters, and those of `names` that are built in, as an :class:`Observer`.

    `rest` is what the start has beside its arrays.
    """
    # arrays that a function holds are taken out and handed in at run time: a test set of 10,000
    # images is then no constant in the compiled code, and another one compiles nothing
    extra = {name: Function.apart(fn, rest) for name, fn in check_observables(functions).items()}
    return Observer(
        data=data,
        arrays={name: arrays for name, (_, arrays) in extra.items()},
        names=names,
        extra=tuple((name, fn) for name, (fn, _) in extra.items()),
        sample_loss=sample_loss,
        chunk=chunk,
    )


@compiled()
def observe(observer: Observer, x: PyTree) -> dict[str, jax.Array]:
    """What an observer sees at `x`, compiled."""
    return observer(x)
