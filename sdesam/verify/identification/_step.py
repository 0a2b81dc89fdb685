"""A step that can be listed: that of a rule, or a user's direction; and a problem to make it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import perm
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from sdesam.optim import Chain
from sdesam.optim.kernel import Evaluation
from sdesam.problems import FiniteSum, mean_grad
from sdesam.sampling import Hyperparameters, Sampling, count_micro_batches, list_micro_batches
from sdesam.sde.by_numbers import from_direction
from sdesam.symbolic import batch, micro
from sdesam.variants import Gradient, NormEstimate, RandomDirection, Variant, Vector
from sdesam.verify.exact.enumerate import MOST_BATCHES, list_batches
from sdesam.verify.exact.float64 import with_rho
from sdesam.verify.identification._formulas import Size
from sdesam.verify.identification._moments import Batches, chain_step, direction_step, expanded


class Step(Protocol):
    """What is identified: a step whose batches can be listed."""

    @property
    def name(self) -> str:
        """The name for tables."""
        ...

    @property
    def replace(self) -> bool:
        """Whether batches are drawn with replacement."""
        ...

    @property
    def symbols(self) -> frozenset[sp.Symbol]:
        """The sizes that the step is told: the mini-batch, the micro-batch."""
        ...

    @property
    def of_both(self) -> bool:
        """Whether gradients of the micro-batch and of its mini-batch meet in the step."""
        ...

    def count(self, size: Size) -> int:
        """How many batches there are to list, in order."""
        ...

    def expanded(
        self, problem: FiniteSum, size: Size, points: np.ndarray, highest: int
    ) -> tuple[np.ndarray, Batches]:
        """The Taylor coefficients in `rho` of each batch's step, and the batches."""
        ...


def few(step: Step, size: Size) -> bool:
    """Whether all batches of a size can be listed."""
    return step.count(size) <= MOST_BATCHES


@dataclass(frozen=True)
class RuleStep:
    """The step of a variant, as its chain makes it.

    Args:
        variant: the rule; it may draw fresh batches, but no random directions.
        replace: whether mini-batches are drawn with replacement.
        eps: of the normaliser.
        lam: of the Gibbs weights, whose norms are exact.
        own: names and values of the rule's own numbers.
    """

    variant: Variant
    replace: bool
    eps: float
    lam: float | None
    own: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        walked = list(self.variant.direction.walk())
        if any(isinstance(v, RandomDirection) for v in walked):
            raise ValueError(
                f"{self.variant.name} draws random directions, which cannot be listed, so that its"
                " step cannot be identified; sdesam.derive averages over them"
            )
        if self.variant.draws and self.of_both:
            raise ValueError(
                f"{self.variant.name} draws fresh batches beside gradients of the micro-batch and"
                " of its mini-batch: these are not listed together; write it for one of the two"
            )

    @property
    def name(self) -> str:
        """The variant's name, with the numbers of its own."""
        numbers = ", ".join(f"{name}={value:g}" for name, value in self.own)
        return f"{self.variant.name} with {numbers}" if numbers else self.variant.name

    @property
    def symbols(self) -> frozenset[sp.Symbol]:
        """The sizes that the step is told: a rule without micro-batches knows the mini-batch, and
        one that draws batches apart is listed by its micro-batches.
        """
        if not self.variant.micro:
            return frozenset([batch])
        return frozenset([micro] if self.variant.draws else [batch, micro])

    @property
    def of_both(self) -> bool:
        """Whether gradients of the micro-batch and of its mini-batch meet in the step."""
        return {"micro", "batch"} <= self.variant.direction.scopes

    def count(self, size: Size) -> int:
        """How many batches there are to list, in order."""
        if self.variant.draws:
            each = count_micro_batches(size.m, size.n, self.replace)
            return int(each ** (1 + len(self._fresh)))
        return size.n**size.b if self.replace else perm(size.n, size.b)

    @property
    def _fresh(self) -> list[str]:
        return sorted(s for s in self.variant.direction.scopes if s.startswith("fresh"))

    def expanded(
        self, problem: FiniteSum, size: Size, points: np.ndarray, highest: int
    ) -> tuple[np.ndarray, Batches]:
        """The Taylor coefficients in `rho` of each batch's step, and the batches."""
        sampling = Sampling(size.b, size.m, self.replace)
        chain = Chain(
            self.variant,
            problem,
            1.0,
            0.0 if self.variant.perturbed else None,
            size.b,
            size.m,
            self.replace,
            eps=self.eps,
            lam=self.lam,
            norms=NormEstimate("exact") if self.variant.weighted else None,
            **dict(self.own),
        )
        if self.variant.draws:
            return self._with_fresh(chain, problem, size, points, highest)
        batches = Batches(*list_batches(sampling, size.n), self.replace)
        found = expanded(chain.kernel, chain_step, problem, points, batches, highest)
        return found, batches

    # Batches that are drawn apart say nothing of sample i, and the covariance to rho^1 is that of
    # G_0 with the mean of G_1 over them: so they are averaged over first, for each micro-batch.

    def _with_fresh(
        self, chain: Chain, problem: FiniteSum, size: Size, points: np.ndarray, highest: int
    ) -> tuple[np.ndarray, Batches]:
        """Those of each micro-batch, averaged over all batches that are drawn apart."""
        indices, probability = list_micro_batches(size.m, size.n, self.replace)
        q, apart = len(indices), len(self._fresh)
        places = np.array(list(product(range(q), repeat=1 + apart)))
        together = Batches(indices[places], probability[places].prod(axis=1), self.replace)
        each = expanded(chain.kernel, fresh_step, problem, points, together, highest)
        weights = probability[places[:, 1:]].prod(axis=1)
        averaged = (weights[:, None, None, None] * each).reshape(q, q**apart, *each.shape[1:])
        return averaged.sum(axis=1), Batches(indices, probability, self.replace)


def fresh_step(kernel: Any, x: Any, indices: jax.Array, rho: jax.Array) -> Any:
    """The direction of a micro-batch, the first row of `indices`, where the other rows are the
    batches that the rule draws apart, in the order of their names.
    """
    kernel = with_rho(kernel, rho)
    rule = kernel.rule
    full = partial(mean_grad, kernel.sample_loss, kernel.chunk, kernel.numbers.data)
    own = "micro" if rule.micro else "batch"
    apart = sorted(scope for scope in rule.direction.scopes if scope.startswith("fresh"))

    def losses_of(chosen: jax.Array) -> Callable[[Any], tuple[jax.Array, Any]]:
        samples = jax.tree.map(lambda leaf: leaf[chosen], kernel.numbers.data)
        return lambda y: (jax.vmap(kernel.sample_loss, (None, 0))(y, samples), None)

    losses = {name: losses_of(row) for name, row in zip([own, *apart], indices, strict=True)}
    known: dict[Vector, Any] = (
        {Gradient("data"): full(x)} if Gradient("data") in rule.direction.walk() else {}
    )
    evaluation = Evaluation(losses, x, kernel.numbers.ascent, known, kernel.norms, None)
    evaluation.full_gradient = full
    return evaluation.direction(rule.direction)


@dataclass(frozen=True)
class DirectionStep:
    """The step of a user's direction `(x, samples, rho)`, the mean over micro-batches.

    Args:
        direction: the function.
        replace: whether mini-batches are drawn with replacement.
        order: `(alpha, beta)`, for what is checked of the direction.
    """

    direction: Callable[..., Any]
    replace: bool
    order: tuple[int, int]

    @property
    def name(self) -> str:
        """The function's name."""
        return str(getattr(self.direction, "__name__", type(self.direction).__name__))

    @property
    def symbols(self) -> frozenset[sp.Symbol]:
        """The size that the step is told: it sees one micro-batch."""
        return frozenset([micro])

    @property
    def of_both(self) -> bool:
        """Never: the direction sees one micro-batch, and no mini-batch."""
        return False

    def count(self, size: Size) -> int:
        """How many micro-batches there are to list."""
        return count_micro_batches(size.m, size.n, self.replace)

    def expanded(
        self, problem: FiniteSum, size: Size, points: np.ndarray, highest: int
    ) -> tuple[np.ndarray, Batches]:
        """The Taylor coefficients in `rho` of each micro-batch's direction, and the
        micro-batches.
        """
        given = Hyperparameters(1.0, 0.0, size.m, size.m, self.replace)
        kernel, _, _ = from_direction(self.direction, problem, given, self.order, "exact", None)
        listed = list_micro_batches(size.m, size.n, self.replace)
        batches = Batches(*listed, self.replace)
        return expanded(kernel, direction_step, problem, points, batches, highest), batches


def waves_loss(x: Any, sample: Any) -> Any:
    """A sum of cosines of three random waves, smooth and without a symmetry."""
    return jnp.sum(jnp.cos(sample["waves"] @ x + sample["phases"]))


def own_problem(n: int) -> FiniteSum:
    """A random smooth problem in three dimensions with `n` samples, which tells trees apart.

    No derivative of a wave vanishes, and no two samples have gradients that are parallel.
    """
    rng = np.random.default_rng([n, 7])
    data = {
        "waves": rng.normal(size=(n, 3, 3)),
        "phases": rng.uniform(0, 2 * np.pi, size=(n, 3)),
    }
    return FiniteSum(waves_loss, data, np.zeros(3), name="random-waves")
