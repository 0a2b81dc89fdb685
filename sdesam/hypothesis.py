"""Anyone's theorem, checked: a stated SDE against the optimizer's own one-step mean and covariance.

The exact drift of order 2 is `-Gbar - (eta/2)(D Gbar) Gbar` and the exact diffusion matrix
`eta Cov(G)`, both as functions of `rho` known by listing all mini-batches: no tree and no derived
coefficient is used. Their coefficients in powers of `eta` and `rho` are set beside those of the
hypothesis (the limit; `coefficients.py`), and the weak error of the hypothesised drift is measured
along a path (the rate). A covariance is always judged by the one-step covariance, because no weak
error of order 1 can see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam._functions import words
from sdesam._names import Status
from sdesam.coefficients import (
    Expansion,
    Field,
    Finding,
    Power,
    Read,
    Setting,
    differentiated,
    expand,
    nearer_than_read,
    summarised,
)
from sdesam.discrete import Chain
from sdesam.exact.enumerate import MOST_BATCHES, count_batches, list_batches, one_step
from sdesam.exact.float64 import Rebuild, directions, start, to_double
from sdesam.exact.torus import Torus
from sdesam.exact.weak import TOLERANCE, fit_slope
from sdesam.problems import FiniteSum, check_problem, torus
from sdesam.problems.arrays import describe, numeric, shapes
from sdesam.sampling import Sampling, check_perturbation
from sdesam.symbolic import check_order
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant

_POINTS = 6
_CANDIDATES = 20
"""Of so many times the points, those are kept where no micro-batch gradient is small, if eps =
0.
"""
_RATES = ((1 / 32, 1 / 64, 1 / 128), (1 / 128, 1 / 256, 1 / 512), (1 / 512, 1 / 1024, 1 / 2048))
"""Learning rates at which the weak error is measured, and smaller ones in case it does not fall as
it should at the first.
"""
_PATH = 0.5
"""`c` of the path `rho = c eta^(alpha/beta)`."""
_MANY = 1000
_HORIZON = 1.0


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

    >>> import jax
    >>> sgd = Hypothesis(
    ...     potential=lambda p, x, lr, rho, batch, micro: p.loss(x) + lr / 4 * p.grad_norm2(x)
    ... )
    >>> check(sgd, "sgd", order=(2, 2)).status
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


@dataclass(frozen=True)
class Part:
    """The verdict on a drift or a covariance, with its numbers.

    Args:
        findings: coefficient by coefficient (the limit).
        slope: of the weak error with this drift (the rate); None for a covariance.
        needed: the slope that the order asks for.
        note: what would decide, where something is open.
        remark: what was not measured, and why.
        contradiction: why the rate speaks against the coefficients, where it does.
    """

    findings: tuple[Finding, ...]
    slope: float | None = None
    needed: float | None = None
    note: str = ""
    remark: str = ""
    contradiction: str = ""

    @property
    def status(self) -> Status:
        """`refuted` if a coefficient or the rate is wrong, `confirmed` if all are right, else
        `inconclusive`.

        Where every coefficient is right the order follows from theory, so that a rate which does
        not show it has been measured at rates that are not small enough: `inconclusive`. So is a
        wrong coefficient that the rate contradicts.
        """
        found = {finding.status for finding in self.findings}
        if "refuted" in found:
            return "inconclusive" if self.contradiction else "refuted"
        if self.too_slow:
            return (
                "inconclusive"
                if found == {"confirmed"} or not np.isfinite(self.slope)  # type: ignore[arg-type]
                else "refuted"
            )
        return "confirmed" if found == {"confirmed"} and not self.note else "inconclusive"

    @property
    def too_slow(self) -> bool:
        """Whether the weak error was measured and does not fall as the order asks."""
        return (
            self.slope is not None
            and self.needed is not None
            and not self.slope >= self.needed - TOLERANCE
        )

    def __str__(self) -> str:
        lines = [self.status, *(f"  {finding}" for finding in self.findings)]
        if self.slope is not None:
            lines.append(
                f"  weak error falls like eta^{self.slope:.2f}; order asks for {self.needed:g}"
            )
        if self.too_slow and {finding.status for finding in self.findings} == {"confirmed"}:
            rate = f"1/{1 / _RATES[-1][-1]:g}"
            lines.append(
                f"  every coefficient is right, but down to eta = {rate} the weak error does not"
                " fall so fast; smaller eta would decide"
            )
        return "\n".join(
            [
                *lines,
                *(f"  {told}" for told in (self.contradiction, self.note, self.remark) if told),
            ]
        )


@dataclass(frozen=True)
class Verdict:
    """What :func:`check` found, per stated part; a part that was not stated is None."""

    drift: Part | None
    covariance: Part | None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """`refuted` if a stated part is, `confirmed` if every stated part is, else
        `inconclusive`.
        """
        found = {part.status for part in (self.drift, self.covariance) if part is not None}
        return (
            "refuted"
            if "refuted" in found
            else "confirmed"
            if found == {"confirmed"}
            else "inconclusive"
        )

    def __str__(self) -> str:
        stated = {"drift": self.drift, "covariance": self.covariance}
        return "\n".join(
            f"{name}: {part if part is not None else 'not stated'}" for name, part in stated.items()
        )


def check(
    hypothesis: Hypothesis,
    variant: str | Variant,
    problem: FiniteSum | None = None,
    order: tuple[int, int] = (1, 2),
    replace: bool = True,
    eps: float = 0.0,
    lam: float | None = None,
) -> Verdict:
    """Test a stated SDE against a variant, part by part.

    A normalised variant is smooth for `eps > 0`, which the hypothesis must state in the same way.
    At `eps = 0` its coefficients are compared where no micro-batch gradient is small, and the rate,
    which needs the whole torus, is not measured.

    Args:
        hypothesis: the SDE.
        variant: a name in :data:`sdesam.variants.VARIANTS`.
        problem: one more problem to test on, beside a torus problem of the check's own; with few
            enough mini-batches to list.
        order: `(alpha, beta)` that the SDE claims. Every kept coefficient must be right.
        replace: whether mini-batches are drawn with replacement.
        eps: of the normaliser, for a normalised variant.
        lam: of the Gibbs weights, for rw-sam, whose norms are taken as exact; its rate is not
            measured, because `|g_i|` is not smooth.

    Returns:
        A :class:`Verdict`: `confirmed`, `refuted` (at which powers, by how much, and by which
        factor where there is one), or `inconclusive`.

    Raises:
        ValueError: an order that does not exist, an `eps` or `lam` that the variant does not take,
            a drift of the wrong structure, NaN, a covariance that is not symmetric or not positive
            semi-definite.

    >>> import sdesam
    >>> wrong = Hypothesis(
    ...     potential=lambda p, x, lr, rho, batch, micro: p.loss(x) + rho * p.grad_norm2(x)
    ... )
    >>> print(check(wrong, "n-usam"))
    drift: refuted
      leading: right (relative deviation ...)
      rho^1: off by 1 of the right coefficient, on torus2d ...; it is 2 times the right one
      weak error falls like eta^0.4...; order asks for 1
    covariance: not stated
    """
    if not isinstance(hypothesis, Hypothesis):
        raise TypeError(
            f"hypothesis={hypothesis!r}: it must be a sdesam.Hypothesis(drift=... or potential=...,"
            " covariance=...)"
        )
    declared, (alpha, beta) = find_variant(variant), check_order(order)
    numbers = _RuleNumbers(declared, replace, eps, lam)
    own = own_settings(numbers)
    extra = _settings_on(check_problem(problem), numbers) if problem is not None else []
    note = ""
    if problem is not None and not extra:
        note = (
            f"problem {problem.name!r} has more mini-batches than the {MOST_BATCHES} that can be"
            " listed, so it was not used; a version with fewer samples would decide"
        )
    settings = own + extra
    stated = [Stated(hypothesis, setting) for setting in settings]
    if stated[0].has_covariance:
        for each in stated:
            each.check_covariance()
    chains = [partial(_chain, declared, s) for s in settings]
    expanded = [
        expand(s.setting, *s.fields(), chain, (alpha, beta))
        for s, chain in zip(stated, chains, strict=True)
    ]
    findings = summarised([expansion for parts in expanded for expansion in parts])
    drift = covariance = None
    if stated[0].has_drift:
        found = tuple(f for f in findings if f.part == "drift")
        if numbers.smooth:
            right = {f.status for f in found} == {"confirmed"}
            slope = _rate(
                hypothesis, declared, _rate_setting(numbers), (alpha, beta), patient=right
            )
            drift = Part(found, slope, float(alpha), note)
            if drift.status == "refuted" and not drift.too_slow:
                ours = [parts[0] for parts in expanded[: len(own)]]
                drift = replaced(
                    drift, contradiction=_contradiction(drift, ours, stated, chains, (alpha, beta))
                )
        else:
            drift = Part(found, note=note, remark=numbers.rough)
    if stated[0].has_covariance:
        covariance = Part(tuple(f for f in findings if f.part == "covariance"), note=note)
    config = {
        "variant": declared.name,
        "order": [alpha, beta],
        "replace": replace,
        "settings": [str(s) for s in settings],
    }
    if declared.normalised:
        config["eps"] = numbers.eps
    if declared.weighted:
        config["lam"] = numbers.lam
    return Verdict(drift, covariance, config)


def _contradiction(
    drift: Part,
    expansions: Sequence[Expansion],
    stated: Sequence[Stated],
    chains: Sequence[Callable[[float, float], Chain]],
    order: tuple[int, int],
) -> str:
    """Why a rate that is right speaks against coefficients that are wrong, or nothing if it does
    not.

    It does where the drift, at the smallest sizes that the rate was measured at, is nearer to the
    optimizer's than its coefficients say. The rate knows nothing of a user's problem, nor of a
    deviation too small to be seen at these sizes.
    """
    lr = _RATES[0][-1]
    rho = _path(stated[0].setting, chains[0], lr, order)
    nearer = {
        str(e.setting)
        for e, s, chain in zip(expansions, stated, chains, strict=False)
        if nearer_than_read(e, s.drift, chain, lr, rho)
    }
    if not {f.setting for f in drift.findings if f.status == "refuted"} <= nearer:
        return ""
    return (
        f"but the weak error falls as the order asks, and at eta = {lr:g}, rho = {rho:.3g} the"
        " drift is nearer to the optimizer's than these coefficients say: the stated drift is not"
        " analytic there, and one formula for all eta and rho would decide"
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


class _RuleNumbers:
    """A variant and the numbers that all settings share, checked."""

    def __init__(self, variant: Variant, replace: bool, eps: float, lam: float | None):
        unperturbed = not variant.perturbed
        norms = NormEstimate("exact") if variant.weighted else None
        _, self.eps, checked, _ = check_perturbation(
            variant, None if unperturbed else 0.0, eps, lam, norms
        )
        self.lam = checked if variant.weighted else None
        self.variant, self.replace = variant, replace
        self.singular = variant.normalised and not self.eps
        self.smooth = not self.singular and not variant.weighted
        self.rough = (
            "the weak error was not measured: at eps = 0 the step is not smooth where a micro-batch"
            " gradient vanishes; eps > 0 would show it"
            if self.singular
            else "the weak error was not measured: |g_i| is not smooth where a gradient vanishes"
        )

    def setting(self, problem: FiniteSum, b: int, m: int | None, points: np.ndarray) -> Setting:
        """A setting, with more points than wanted where some are to be left out."""
        sampling = Sampling(b, m, self.replace)
        if self.singular or self.lam is not None:
            points = away_from_zero(problem, sampling, points)
        return Setting(problem, sampling, points[:_POINTS], self.eps, self.lam)

    @property
    def candidates(self) -> int:
        """How many points to offer."""
        return _POINTS * (1 if self.smooth else _CANDIDATES)


def away_from_zero(problem: FiniteSum, sampling: Sampling, points: np.ndarray) -> np.ndarray:
    """The points in order of the least norm of a gradient of one sample, a micro-batch or the whole
    set there, largest first.
    """
    least = np.full(len(points), np.inf)
    for m in {1, sampling.m, problem.n}:
        listed = (
            np.arange(problem.n)[None, None]
            if m == problem.n
            else list_batches(Sampling(m, replace=sampling.replace), problem.n)[0]
        )
        chain = Chain("sgd", problem, lr=1.0, batch=m, replace=sampling.replace)
        least = np.minimum(
            least, np.linalg.norm(directions(chain, points, listed), axis=-1).min(axis=0)
        )
    return points[np.argsort(-least, kind="stable")]


@lru_cache(maxsize=1)
def _own_problem() -> FiniteSum:
    return torus(dim=2, samples=5, seed=11)


def own_settings(numbers: _RuleNumbers) -> list[Setting]:
    """The check's own problem and sizes.

    `(b, m)` = (4, 2), (3, 1), (4, 1) on n = 5 tell 1/m from 1/b, 2/b, 1/(b-m), 1/n and 1 from each
    other.
    """
    points = np.random.default_rng(5).uniform(0, 2 * np.pi, size=(numbers.candidates, 2))
    return [numbers.setting(_own_problem(), b, m, points) for b, m in _sizes(numbers.variant)[:3]]


def _rate_setting(numbers: _RuleNumbers) -> Setting:
    """The smallest sizes on the check's own problem: the chain's transition operator lists every
    mini-batch at every grid point.
    """
    own = own_settings(numbers)[0]
    b, m = _sizes(numbers.variant)[-1]
    return numbers.setting(own.problem, b, m, own.points)


def _sizes(variant: Variant) -> list[tuple[int, int | None]]:
    """Sizes to compare at; the last are the smallest, for the rate and for problems of many
    samples.
    """
    return [(4, 2), (3, 1), (4, 1), (2, 1)] if variant.micro else [(3, None), (2, None)]


def _settings_on(problem: FiniteSum, numbers: _RuleNumbers) -> list[Setting]:
    """The sizes on a user's problem whose mini-batches can be listed, at points near its start
    where its gradients are finite.
    """
    if problem.nonsmooth:
        raise ValueError(
            f"the loss of problem {problem.name!r} has kinks ({', '.join(problem.nonsmooth)}):"
            " coefficients are derivatives at rho = 0, which needs a smooth loss such as tanh,"
            " gelu or softplus give"
        )
    sizes = _sizes(numbers.variant) if numbers.replace or problem.n > 1 else [(1, None)]
    drawn = [Sampling(b, m, numbers.replace) for b, m in sizes if numbers.replace or b <= problem.n]
    listed = [sampling for sampling in drawn if count_batches(sampling, problem.n) <= MOST_BATCHES]
    # the largest listings take seconds and add nothing where two smaller ones are there
    listed = [
        sampling
        for k, sampling in enumerate(reversed(listed))
        if k < 2 or count_batches(sampling, problem.n) <= _MANY
    ]
    x, away = (
        start(problem),
        np.random.default_rng(5).normal(size=(numbers.candidates, problem.dim)),
    )
    settings = []
    for sampling in listed:
        for spread in (0.3, 0.1, 0.03, 0.01):
            setting = numbers.setting(
                problem, sampling.batch, sampling.micro, x + spread * (1 + abs(x)) * away
            )
            if _finite(problem, setting.points):
                settings.append(setting)
                break
        else:
            raise ValueError(
                f"problem {problem.name!r}: the loss or its gradients are not finite near x0, so"
                " nothing can be compared there"
            )
    return settings


def _finite(problem: FiniteSum, points: np.ndarray) -> bool:
    """Whether losses and gradients of all samples are finite at some points."""
    rebuild = Rebuild(problem.x0)
    losses = [float(problem.loss(rebuild(jnp.asarray(p, jnp.float32)))) for p in points]
    gradients = directions(
        Chain("sgd", problem, lr=1.0), points, np.arange(problem.n).reshape(-1, 1, 1)
    )
    return bool(np.isfinite(losses).all() and np.isfinite(gradients).all())


def _chain(variant: Variant, setting: Setting, lr: float, rho: float) -> Chain:
    s = setting.sampling
    norms = NormEstimate("exact") if variant.weighted else None
    rho_or_none = rho if variant.perturbed else None
    return Chain(
        variant,
        setting.problem,
        lr,
        rho_or_none,
        s.batch,
        s.m,
        s.replace,
        eps=setting.eps,
        lam=setting.lam,
        norms=norms,
    )


def _path(
    setting: Setting, chain: Callable[[float, float], Chain], lr: float, order: tuple[int, int]
) -> float:
    """`rho` on the path to the weak error's limit."""
    alpha, beta = order
    return _PATH * lr ** (alpha / beta) if chain(lr, 0.0).variant.perturbed else 0.0


def _rate(
    hypothesis: Hypothesis,
    variant: Variant,
    setting: Setting,
    order: tuple[int, int],
    patient: bool,
) -> float:
    """The slope of the weak error of the stated drift, with the true one-step covariance so that it
    alone is judged.

    Args:
        hypothesis: with a drift.
        variant: the optimizer.
        setting: on a torus.
        order: of the SDE.
        patient: whether to go on to smaller rates while the slope is below that of the order.
    """
    chain = partial(_chain, variant, setting)
    grids = [Torus(2 * np.pi, 2, size, _HORIZON) for size in (22, 30)]
    ends = np.cumsum([len(grid.points) for grid in grids])[:-1]
    stated = Stated(hypothesis, setting, np.concatenate([grid.points for grid in grids]))
    slope = np.nan
    for rates in _RATES if patient else _RATES[:1]:
        errors, moved = [], []
        for lr in rates:
            rho = _path(setting, chain, lr, order)
            drifts = np.split(stated.drift(lr, rho), ends)
            if not all(np.isfinite(drift).all() for drift in drifts):
                raise ValueError(
                    f"the drift is not finite at some of the points it is checked at, on {setting}"
                )
            differences = []
            for grid, drift in zip(grids, drifts, strict=True):
                covariance, expected = _optimizer_on(
                    grid, variant, setting.sampling, setting.eps, lr, rho
                )
                differences.append(grid.common(grid.flow(drift, covariance) - expected))
            errors.append(float(abs(differences[-1]).max()))
            moved.append(float(abs(differences[1] - differences[0]).max()))
        slope = fit_slope(np.array(rates), np.array(errors), np.array(moved))[0]
        if slope >= order[0] - TOLERANCE:
            break
    return slope


@lru_cache(maxsize=64)
def _optimizer_on(
    grid: Torus, variant: Variant, sampling: Sampling, eps: float, lr: float, rho: float
) -> tuple[np.ndarray, np.ndarray]:
    """On the check's own problem, `eta Cov G` at the points of a grid and the optimizer's
    expectations at the horizon.
    """
    chain = _chain(variant, Setting(_own_problem(), sampling, grid.points, eps), lr, rho)
    return lr * one_step(chain, grid.points).covariance, grid.chain(chain)


def _scalar(value: Any) -> jax.Array:
    if not _real(value) or jnp.shape(value) != ():
        raise ValueError(
            f"the potential is {describe(value)}: it must be a scalar, the modified loss"
        )
    return jnp.asarray(value, float)


def _real(value: Any) -> bool:
    """Whether it is a real number, or an array of them."""
    return numeric(value) and not jnp.issubdtype(jnp.result_type(value), jnp.complexfloating)
