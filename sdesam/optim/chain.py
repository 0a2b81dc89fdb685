"""The discrete optimizer as a Markov chain, run under the same driver as the SDEs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace as replaced
from typing import Any

import jax
import numpy as np

from sdesam._util.checks import check_int, check_nonnegative
from sdesam._util.functions import check_known, compiled
from sdesam._util.precision import lenient
from sdesam.ensemble import Keep, Result, RunSpec, run, time_grid
from sdesam.optim.kernel import StepKernel, StepNumbers, check_delta_on, random_key
from sdesam.problems import FiniteSum, check_problem
from sdesam.sampling import Hyperparameters
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant

PyTree = Any


class Chain:
    """A rule as a discrete optimizer on a problem: `x+ = x - lr * mean_I F_I(x)`.

    `F_I` is the direction of the rule, such as `grad f_I(x + rho u_I)`.

    Args:
        variant: a name in :data:`sdesam.variants.VARIANTS`, or a :class:`sdesam.Variant` of your
            own.
        problem: the finite sum.
        lr: `eta`.
        rho: perturbation radius; left out for a variant without perturbation.
        batch: `b`.
        micro: `m`, dividing `b`; left out, the mini-batch.
        replace: whether mini-batches are drawn with replacement.
        eps: of the normaliser `sqrt(|.|^2 + eps^2)`; at `eps = 0` a vanishing gradient perturbs
            nothing.
        lam: inverse temperature of the Gibbs weights, for rw-sam alone.
        norms: how rw-sam estimates gradient norms; left out, from one Rademacher direction.
        own: the rule's own numbers, by name.

    A subclass may add methods, but what runs a chain (:func:`train`, `sdesam.coupled`,
    `sdesam.exact`) compiles the rule of its variant: a subclass with a `step` or a `direction` of
    its own is refused there.

    Raises:
        ValueError: sizes that do not fit, `rho < 0`, `lr <= 0`, `lam < 0`, an unknown variant.
        TypeError: a number of another type; `lr` and `rho` are known numbers, not traced ones and
            not schedules.

    >>> import sdesam
    >>> chain = Chain("m-usam", sdesam.problems.quadratic(), lr=0.1, rho=0.1, batch=4, micro=2)
    >>> chain.step(chain.problem.x0, jax.random.key(0)).shape
    (2,)
    """

    def __init__(
        self,
        variant: str | Variant,
        problem: FiniteSum,
        lr: float,
        rho: float | None = None,
        batch: int = 1,
        micro: int | None = None,
        replace: bool = True,
        *,
        eps: float = 0.0,
        lam: float | None = None,
        norms: NormEstimate | None = None,
        **own: float,
    ):
        self.variant = find_variant(variant)
        self.problem = check_problem(problem)
        if not isinstance(replace, (bool, np.bool_)):
            raise TypeError(
                f"replace={replace!r}: it must be True (with replacement) or False (without)"
            )
        given = Hyperparameters(lr, rho, batch, micro, bool(replace), eps, lam, norms, own)
        step = given.checked(self.variant, problem.n)
        check_delta_on(step.norms, problem)
        self.lr, self.rho, self.sampling = step.lr, step.rho, step.sampling
        self._kernel: StepKernel = StepKernel(
            numbers=StepNumbers(problem.data, self.lr, self.rho, step.eps, step.lam, step.own),
            sample_loss=problem.sample_loss,
            chunk=problem.chunk,
            n=problem.n,
            rule=self.variant,
            norms=step.norms,
            batch=self.sampling.batch,
            micro=self.sampling.m,
            replace=self.sampling.replace,
        )
        self.config = {
            "variant": self.variant.name,
            "problem": problem.name,
            "samples": problem.n,
            "fingerprint": problem.fingerprint,
            "lr": self.lr,
            "rho": self.rho,
            "batch": self.sampling.batch,
            "micro": self.sampling.m,
            "replace": self.sampling.replace,
            **step.options(self.variant),
        }

    @property
    def kernel(self) -> StepKernel:
        """The step with its numbers, and with what the loss reads at present."""
        self._kernel = replaced(self._kernel, sample_loss=self.problem.sample_loss)
        return self._kernel

    @kernel.setter
    def kernel(self, kernel: StepKernel) -> None:
        self._kernel = kernel

    def __reads__(self) -> tuple[Any, ...]:
        return self.problem, self._kernel.numbers

    def step(self, x: PyTree, key: jax.Array) -> PyTree:
        """One step from `x` with a mini-batch drawn from `key`, a jax random key of any
        implementation.
        """
        return _step(self.kernel, self.problem.check_params(x), random_key(key))

    def direction(self, x: PyTree, indices: jax.Array, key: jax.Array | None = None) -> PyTree:
        """`G(x)` for given micro-batches: sample indices of shape `(b/m, m)`; `key` is for random
        directions, and for batches that the rule draws apart.

        Inside compiled code the values of `indices` are not known and so not checked.
        """
        wanted = (self.sampling.batch // self.sampling.m, self.sampling.m)
        if jax.numpy.shape(indices) != wanted:
            raise ValueError(
                f"indices have shape {jax.numpy.shape(indices)}: it must be (b/m, m) = {wanted}"
            )
        known = not isinstance(indices, jax.core.Tracer)
        if known and (np.min(indices) < 0 or np.max(indices) >= self.problem.n):
            raise ValueError(f"indices must be sample numbers from 0 to {self.problem.n - 1}")
        if key is None and self.variant.draws:
            raise ValueError(
                f"{self.variant.name} draws batches or directions of its own: give a key"
            )
        if key is None and self.kernel.norms is not None and self.kernel.norms.random:
            raise ValueError(
                f"{self.variant.name} estimates norms along random directions: give a key, or"
                " norms=NormEstimate(law='exact')"
            )
        key = None if key is None else random_key(key)
        return _direction(
            self.kernel, self.problem.check_params(x), jax.numpy.asarray(indices), key
        )

    def __repr__(self) -> str:
        return f"Chain({', '.join(f'{name}={value}' for name, value in self.config.items())})"


_RUN_OTHERWISE = {
    "SDE": "an SDE is run by sdesam.simulate(sde, key, paths, horizon, dt)",
    "ModifiedEquation": (
        "its optimizer is sdesam.Chain(equation.variant, problem, lr=..., batch=...)"
    ),
}


def check_chain(chain: Any, what: str) -> None:
    """Refuse what is no chain, and a chain whose step would be ignored: what is compiled is the
    rule of the variant.

    Args:
        chain: to look at.
        what: the name of what takes it.
    """
    if not isinstance(chain, Chain):
        names = [kind.__name__ for kind in type(chain).__mro__]
        given = next((name for name in names if name in _RUN_OTHERWISE), names[0])
        told = _RUN_OTHERWISE.get(
            given, "make one by sdesam.Chain(variant, problem, lr=..., batch=...)"
        )
        raise TypeError(f"{what} takes a sdesam.Chain, not {given}: {told}")
    for name in ("step", "direction"):
        if getattr(getattr(chain, name), "__func__", None) is not getattr(Chain, name):
            raise TypeError(
                f"{type(chain).__name__} has a {name} of its own, which {what} would not call,"
                " because it compiles the rule of the variant: declare the rule as a"
                " sdesam.Variant, or write the loop over your steps yourself"
            )


@lenient()
def train(
    chain: Chain,
    key: jax.Array,
    runs: int,
    steps: int,
    times: Sequence[float] | np.ndarray | None = None,
    observe: Sequence[str] = (),
    *,
    keep: Keep = "statistics",
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
    snapshot: str | os.PathLike[str] | None = None,
    snapshot_every: float = 60.0,
) -> Result:
    """Run a discrete optimizer many times from the same start and average observables on a time
    grid.

    Args:
        chain: the optimizer.
        key: a jax random key; the same key gives the same runs for any `chunk`, `devices` and
            `times`.
        runs: how many.
        steps: optimizer steps per run.
        times: SDE times `t = k lr` to observe at, multiples of `lr`; by default about ten even
            ones.
        observe: names of the problem's observables.
        keep: `"statistics"` and the final states; `"means"`, statistics alone; `"values"` to keep
            each run's observables; `"trajectories"` to keep each run's states too.
        chunk: runs advanced together; by default as many as fit the cache.
        devices: jax devices to spread runs over; by default all.
        progress: show a bar; by default on a terminal, after two seconds.
        snapshot: a file to write the state of the runs to; if it is there, they go on from it, to
            the same numbers. It stays when they are through.
        snapshot_every: seconds between two snapshots.

    Returns:
        A :class:`sdesam.Result`, its time in units of SDE time.

    Raises:
        ValueError: numbers that do not fit, an unknown observable, more devices than runs, a
            snapshot of another run or cut short.
        TypeError: `key` is no jax random key, `chain` no chain, or one with a `step` of its own.
        OSError: the snapshot cannot be written.

    >>> import sdesam
    >>> chain = Chain("sgd", sdesam.problems.quadratic(), lr=0.1, batch=4)
    >>> out = train(chain, jax.random.key(0), runs=8, steps=20, observe=["loss"])
    >>> out.time[-1], out.mean["loss"].shape
    (np.float64(2.0), (11,))
    """
    check_chain(chain, "train")
    problem, kernel = chain.problem, chain.kernel
    count = check_int("steps", steps)
    grid = time_grid(times, count, chain.lr, "lr")
    observer = problem.observer([observe] if isinstance(observe, str) else observe)
    check_known(
        "train",
        (kernel, observer, key),
        [kernel.sample_loss, *(fn for _, fn in observer.extra)],
    )
    if grid[0] == 0:
        observer.check(problem.x0)
    problem.check_gradient()
    plan = RunSpec(
        stepper=kernel,
        x0=problem.x0,
        observer=observer,
        steps=count,
        step_time=chain.lr,
        # vectors, or the indices and losses of a batch, which are more where it is large and the
        # problem small
        step_bytes=max(
            problem.vector_bytes * (4 + 4 * kernel.copies(problem.x0)),
            8 * chain.sampling.batch,
        ),
        observe_bytes=problem.vector_bytes * 4 * problem.chunk,
        config={**chain.config, "steps": count},
    )
    return run(
        plan,
        key,
        paths=check_int("runs", runs),
        grid=grid,
        keep=keep,
        chunk=chunk,
        devices=devices,
        progress=progress,
        label=chain.variant.title,
        snapshot=snapshot,
        snapshot_every=check_nonnegative("snapshot_every", snapshot_every),
    )


@compiled()
def _step(kernel: StepKernel, x: PyTree, key: jax.Array) -> PyTree:
    return kernel.step(x, kernel.draw(key), kernel.direction_key(key))


@compiled()
def _direction(kernel: StepKernel, x: PyTree, indices: jax.Array, key: jax.Array | None) -> PyTree:
    return kernel.direction(x, indices, key)
