"""What one optimizer step is, declared as data.

Every variant of the family performs ``x+ = x - eta * mean_I grad f_I(x + rho u_I)``, the mean over
the ``b/m`` micro-batches ``I`` of a mini-batch; variants differ in the perturbation ``u_I``. The
symbolic side and the discrete step kernel both read the same declaration, so an SDE and its chain
cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sdesam._names import unknown

Perturbation = Literal["none", "micro-batch", "data set"]
Normaliser = Literal["none", "own", "data set"]
Weights = Literal["equal", "gibbs"]
Law = Literal["rademacher", "gaussian", "exact"]

_OTHER_RULES = (
    "; a rule of another kind cannot be declared, but its SDE can be written by hand:"
    " sdesam.SDE(drift, apply_noise, ...)"
)


@dataclass(frozen=True)
class Variant:
    """One member of the SAM family: ``u_I = v_I / sqrt(|w|^2 + eps^2)``.

    Args:
        name: the public name, as in papers, lower case.
        title: how the name is printed.
        perturbation: whose mean gradient ``v_I`` is: ``"none"`` (``u_I = 0``), ``"micro-batch"``
            (``v_I = grad f_I``) or ``"data set"`` (``v_I = grad f``).
        micro: whether the user chooses a micro-batch smaller than the mini-batch.
        summary: one line for lists and help.
        source: the paper that defines it.
        normaliser: ``w``: ``"none"`` (``u_I = v_I``), ``"own"`` (``w = v_I``) or ``"data set"``
            (``w = grad f``).
        weights: of the samples in ``v_I``: ``"equal"``, or ``"gibbs"``, proportional to ``exp(lam
            nu_i)`` with an estimate ``nu_i`` of ``|g_i|`` (:class:`NormEstimate`).

    A declaration of your own need not be registered: :func:`sdesam.derive`, :class:`sdesam.Chain`
    and all that takes the name of a variant take the declaration itself.

    Raises:
        ValueError: an unknown value, or values that contradict each other.
        TypeError: a field of another type.

    >>> m_dnsam = Variant("m-dnsam", "m-DNSAM", "micro-batch", True, "", "", normaliser="data set")
    >>> Variant("friendly", "F-SAM", "friendly", False, "", "")
    Traceback (most recent call last):
    ...
    ValueError: unknown perturbation 'friendly': the valid names are none, micro-batch, ...
    """

    name: str
    title: str
    perturbation: Perturbation
    micro: bool
    summary: str
    source: str
    normaliser: Normaliser = "none"
    weights: Weights = "equal"

    def __post_init__(self) -> None:
        for field in ("name", "title", "summary", "source"):
            if not isinstance(getattr(self, field), str):
                raise TypeError(f"{field}={getattr(self, field)!r}: it must be text")
        if not self.name:
            raise ValueError("name='': a variant needs a name")
        if not isinstance(self.micro, bool):
            raise TypeError(
                f"micro={self.micro!r}: it must be True or False, whether the user chooses a"
                " micro-batch"
            )
        for field, valid in (
            ("perturbation", Perturbation),
            ("normaliser", Normaliser),
            ("weights", Weights),
        ):
            value = getattr(self, field)
            if not isinstance(value, str) or value not in get_args(valid):
                advice = _OTHER_RULES if field == "perturbation" else ""
                raise ValueError(f"{unknown(field, value, get_args(valid))}{advice}")
        self._check_together()

    def _check_together(self) -> None:
        """Refuse values that contradict each other."""
        if self.perturbation == "none" and self.normaliser != "none":
            raise ValueError(
                f"normaliser={self.normaliser!r}: {self.name} has no perturbation to normalise;"
                " leave normaliser out"
            )
        if self.perturbation != "micro-batch" and self.weights != "equal":
            raise ValueError(
                f"weights={self.weights!r}: they weigh the samples of a micro-batch, and"
                f" {self.name} has perturbation={self.perturbation!r}; leave weights out, or choose"
                " perturbation='micro-batch'"
            )
        if self.perturbation != "micro-batch" and self.micro:
            raise ValueError(
                f"micro=True: with perturbation={self.perturbation!r} all micro-batches of"
                f" {self.name} move alike, and their mean is the mini-batch; choose micro=False, or"
                " perturbation='micro-batch'"
            )

    @property
    def rule(self) -> dict[str, str | bool]:
        """All that makes the step what it is, for records of variants that are not registered."""
        return {
            "perturbation": self.perturbation,
            "normaliser": self.normaliser,
            "weights": self.weights,
            "micro": self.micro,
        }

    @property
    def needs_full_gradient(self) -> bool:
        """Whether a step needs the gradient of the whole data set."""
        return "data set" in (self.perturbation, self.normaliser)


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
