"""What one optimizer step is, declared as data.

Every variant performs ``x+ = x - lr * G``, with ``G`` the mean of a *direction* ``F_I`` over the
``b/m`` micro-batches ``I`` of a mini-batch. The direction is an expression
(:mod:`sdesam.variants._expressions`). The symbolic side and the discrete step kernel both read the
same declaration, so an SDE and its chain cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sdesam.variants._expressions import (
    Gibbs,
    Gradient,
    RandomDirection,
    Sum,
    Unit,
    Vector,
    check_vector,
    latex,
)

Law = Literal["rademacher", "gaussian", "exact"]
TAKEN: dict[str, Vector] = {}
"""The directions of the rules that come with the package, by name."""


@dataclass(frozen=True)
class Variant:
    """A rule: the name of an optimizer, and the direction of its step.

    Args:
        name: the public name, as in papers, lower case.
        direction: the direction ``F_I`` of one micro-batch, an expression made by
            :func:`~sdesam.variants.gradient` and its companions. A rule that speaks of
            micro-batches lets its user choose their size.
        source: the paper that defines it.
        title: how the name is printed; left out, the name in capitals.
        summary: one line for lists and help; left out, the direction.

    A declaration of your own need not be registered: :func:`sdesam.derive`, :class:`sdesam.Chain`
    and all that takes the name of a variant take the declaration itself.

    Raises:
        ValueError: a direction that is zero, no name, or the name of another rule of the package.
        TypeError: a field of another type.

    >>> from sdesam.variants import gradient, parameter, unit
    >>> friendly = Variant(
    ...     "friendly",
    ...     gradient(
    ...         "micro", at=gradient("micro") - parameter("sigma") * gradient("data")
    ...     ),
    ... )
    >>> friendly.title, sorted(friendly.parameters)
    ('FRIENDLY', ['sigma'])
    >>> Variant("scaled", 0.1)
    Traceback (most recent call last):
    ...
    TypeError: direction=0.1: it must be a vector of a rule, such as gradient('micro')
    """

    name: str
    direction: Vector
    source: str = ""
    title: str = ""
    summary: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "source", "title", "summary"):
            if not isinstance(getattr(self, field), str):
                raise TypeError(f"{field}={getattr(self, field)!r}: it must be text")
        if not self.name:
            raise ValueError("name='': a variant needs a name")
        check_vector("direction", self.direction)
        if not any(isinstance(v, (Gradient, Gibbs)) for v in self.direction.walk()):
            raise ValueError(
                f"direction={self.direction}: it follows no gradient; begin with gradient('micro')"
            )
        if TAKEN.get(self.name, self.direction) != self.direction:
            raise ValueError(
                f"name={self.name!r}: it is the name of another rule, {TAKEN[self.name]}; choose"
                " another"
            )
        if not self.title:
            object.__setattr__(self, "title", self.name.upper())
        if not self.summary:
            object.__setattr__(self, "summary", str(self.direction))

    @property
    def rule(self) -> dict[str, str]:
        """All that makes the step what it is, for records of variants that are not registered."""
        return {"direction": str(self.direction)}

    @property
    def micro(self) -> bool:
        """Whether the user chooses a micro-batch smaller than the mini-batch."""
        return "micro" in self.direction.scopes

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the rule's own numbers."""
        return self.direction.parameters

    @property
    def needs_full_gradient(self) -> bool:
        """Whether a step needs the gradient of the whole data set."""
        return "data" in self.direction.scopes

    @property
    def perturbed(self) -> bool:
        """Whether a gradient is taken anywhere but at the parameters themselves."""
        return any(isinstance(v, (Gradient, Gibbs)) and v.at for v in self.direction.walk())

    @property
    def normalised(self) -> bool:
        """Whether anything is divided by a norm."""
        return any(isinstance(v, Unit) for v in self.direction.walk())

    @property
    def weighted(self) -> bool:
        """Whether samples have Gibbs weights."""
        return any(isinstance(v, Gibbs) for v in self.direction.walk())

    @property
    def draws(self) -> bool:
        """Whether a step draws more than its mini-batch: other batches, or directions."""
        return any(
            isinstance(v, RandomDirection) or getattr(v, "scope", "").startswith("fresh")
            for v in self.direction.walk()
        )

    @property
    def one_ascent(self) -> Ascent | None:
        """The rule in three words, where it is one gradient at a point moved along one other; None
        for any other rule.
        """
        return _one_ascent(self.direction)

    def latex(self) -> str:
        """The algorithm as LaTeX.

        >>> from sdesam.variants import variant
        >>> print(variant("usam").latex())
        x^+ = x - \\eta \\nabla f_{\\gamma}\\left(x + \\rho \\nabla f_{\\gamma}(x)\\right)
        """
        direction = latex(self.direction)
        if not self.micro:
            return rf"x^+ = x - \eta {direction}"
        many = isinstance(self.direction, Sum)
        direction = rf"\left({direction}\right)" if many else direction
        return rf"x^+ = x - \eta \frac{{m}}{{b}} \sum_{{I \subset \gamma}} {direction}"


@dataclass(frozen=True)
class Ascent:
    """A rule ``grad f_S(x + rho v / |w|)`` in three words, for code that is faster for such rules.

    Args:
        perturbation: whose gradient ``v`` is: ``"none"`` for a rule without one, ``"own"`` (the
            samples of the descent) or ``"data set"``.
        normaliser: whose norm divides: ``"none"``, ``"own"`` (that of ``v``) or ``"data set"``.
        weighted: whether the samples in ``v`` have Gibbs weights.
    """

    perturbation: Literal["none", "own", "data set"]
    normaliser: Literal["none", "own", "data set"] = "none"
    weighted: bool = False


def _one_ascent(direction: Vector) -> Ascent | None:
    if not isinstance(direction, Gradient) or direction.scope not in ("micro", "batch"):
        return None
    if direction.at is None:
        return Ascent("none")
    unit = direction.at if isinstance(direction.at, Unit) else None
    v = direction.at if unit is None else unit.vector
    if not isinstance(v, (Gradient, Gibbs)) or v.at is not None:
        return None
    whose: dict[str, Literal["own", "data set"]] = {direction.scope: "own", "data": "data set"}
    perturbation = whose.get(v.scope)
    if perturbation is None:
        return None
    weighted = isinstance(v, Gibbs)
    if unit is None:
        return Ascent(perturbation, "none", weighted)
    if unit.norm_of == v:
        return Ascent(perturbation, "own", weighted)
    if unit.norm_of == Gradient("data"):
        return Ascent(perturbation, "data set", weighted)
    return None


@dataclass(frozen=True)
class NormEstimate:
    """How RW-SAM estimates the gradient norms of samples without their gradients.

    With ``a_k = (f_i(x + delta z_k) - f_i(x)) / delta``, which is ``g_i . z_k`` up to ``O(delta)``,
    and random directions ``z_k`` of mean 0 and covariance ``I``, the estimate is ``nu_i =
    sqrt(mean_k a_k^2)``: ``|a_1|`` for one direction, which costs one forward pass. Its square is
    unbiased for ``|g_i|^2``; ``nu_i`` itself is biased low, by a factor between ``1/sqrt 2`` and 1
    for Rademacher entries and of ``sqrt(2/pi)`` for Gaussian ones, and no longer as the directions
    grow in number.

    Args:
        law: of the entries of ``z_k``: ``"rademacher"`` (least variance among independent entries),
            ``"gaussian"``, or ``"exact"`` for ``nu_i = |g_i|`` from per-sample gradients.
        directions: how many ``z_k``; each costs one forward pass.
        square: weights from the unbiased ``nu_i^2`` in place of ``nu_i``.
        delta: the step of the difference quotient. Its own error is about ``delta |z . H_i z| /
            2``; rounding adds, relative to ``|g_i|``, about ``e |f_i| / (delta |g_i|)`` from the
            losses and ``e max|x| / delta`` from the parameters, ``e`` the rounding level (1e-7 in
            float32): as gradients shrink in training, the first of these grows. A step that is lost
            in one of them at the start is refused.

    Raises:
        ValueError: an unknown law, no directions, directions for exact norms, ``delta <= 0``.
        TypeError: ``square`` is no truth value.

    Source: Luo et al., arXiv 2509.18001, section 4 (one Rademacher direction).

    >>> NormEstimate(law="uniform")
    Traceback (most recent call last):
    ...
    ValueError: law='uniform': choose one of rademacher, gaussian, exact
    """

    law: Law = "rademacher"
    directions: int = 1
    square: bool = False
    delta: float = 1e-3

    def __post_init__(self) -> None:
        if self.law not in get_args(Law):
            raise ValueError(f"law={self.law!r}: choose one of {', '.join(get_args(Law))}")
        if (
            isinstance(self.directions, bool)
            or not isinstance(self.directions, int)
            or self.directions < 1
        ):
            raise ValueError(
                f"directions={self.directions!r}: it must be a whole number of at least 1"
            )
        if self.law == "exact" and self.directions != 1:
            raise ValueError(
                f"directions={self.directions}: exact norms are taken from gradients, not along"
                " directions; leave directions out"
            )
        if type(self.square) is not bool:
            raise TypeError(f"square={self.square!r}: it must be True or False")
        if (
            isinstance(self.delta, bool)
            or not isinstance(self.delta, (int, float))
            or not 0 < self.delta < float("inf")
        ):
            raise ValueError(f"delta={self.delta!r}: it must be a finite number above 0")

    @property
    def random(self) -> bool:
        """Whether it draws directions."""
        return self.law != "exact"

    def __str__(self) -> str:
        square = " squared" if self.square else ""
        along = (
            "gradients of samples"
            if not self.random
            else f"{self.directions} {self.law} direction{'s' * (self.directions > 1)}"
        )
        return f"norms{square} from {along}"
