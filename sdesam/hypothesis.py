"""Anyone's theorem, checked: a stated SDE against the optimizer's own one-step mean and covariance.

The exact drift of order 2 is `-Gbar - (eta/2)(D Gbar) Gbar` and the exact diffusion matrix `eta Cov(G)`, both as functions of `rho` known by
listing all mini-batches: no tree and no derived coefficient is used. Their coefficients in powers of `eta` and `rho` are set beside those of the
hypothesis (the limit), and the weak error of the hypothesised drift is measured along a path (the rate). A covariance is always judged by the
one-step covariance, because no weak error of order 1 can see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from fractions import Fraction
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sdesam.discrete import Chain
from sdesam.exact.double import Rebuild, directions, mean_step, start, to_double
from sdesam.exact.enumerate import MOST_BATCHES, count_batches, list_batches, one_step
from sdesam.exact.torus import Torus
from sdesam.exact.weak import TOLERANCE, fit_slope
from sdesam.problems import FiniteSum, torus
from sdesam.sampling import Sampling, check_perturbation
from sdesam.symbolic import check_order
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant

Status = Literal["confirmed", "refuted", "inconclusive"]
Field = Callable[[float, float], np.ndarray]
"""`(lr, rho) -> values at some points`, leading axis the points."""

SAME, OTHER = 1e-5, 1e-3
"""A coefficient whose relative deviation is below the first is right, above the second wrong. Coefficients of analytic losses come out to
about 1e-9, and the smallest wrong theory of interest is off by a few per cent."""
_POINTS = 6
_CANDIDATES = 20
"""Of so many times the points, those are kept where no micro-batch gradient is small, if eps = 0."""
_RATES = (1 / 32, 1 / 64, 1 / 128)
_PATH = 0.5
_MANY = 1000
_HORIZON = 1.0


@dataclass(frozen=True)
class Hypothesis:
    """An SDE as somebody states it: `dX = drift dt + covariance^(1/2) dW`.

    Args:
        drift: `(problem, x, lr, rho, batch, micro) -> B(x)`, structure of `x`, sign included, per unit of SDE time.
        potential: in place of a drift, the modified loss `U(x)` with `B = -grad U`; same arguments, a scalar.
        covariance: the diffusion matrix, lr included, dense of shape `(d, d)`; same arguments.

    All are jax functions; `lr` and `rho` may be traced. At least one part must be stated.

    >>> import jax
    >>> sgd = Hypothesis(potential=lambda p, x, lr, rho, batch, micro: p.loss(x) + lr / 4 * p.grad_norm2(x))
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


@dataclass(frozen=True)
class Finding:
    """One coefficient: of `eta^i rho^j` in the drift, or of `rho^j` in the covariance divided by `eta`.

    Args:
        part: `"drift"` or `"covariance"`.
        power: `(i, j)`.
        deviation: relative distance of the stated from the true coefficient, in the largest setting.
        factor: if the stated coefficient is the true one times a number, that number.
        setting: the problem and sizes where it is largest.
        settled: whether the expansions it is read from stand still when `rho` is halved.
    """

    part: str
    power: tuple[int, int]
    deviation: float
    factor: float | None
    setting: str
    settled: bool = True

    @property
    def status(self) -> Status:
        """Whether the coefficient is right."""
        if not self.settled:
            return "inconclusive"
        if not self.deviation <= OTHER:
            return "refuted"
        return "confirmed" if self.deviation <= SAME else "inconclusive"

    def __str__(self) -> str:
        i, j = self.power
        monomial = " ".join(f"{name}^{k}" for name, k in (("eta", i), ("rho", j)) if k) or "leading"
        if not self.settled:
            return f"{monomial}: the expansion in rho does not settle on {self.setting}; a smoother problem would decide"
        if self.status == "confirmed":
            return f"{monomial}: right (relative deviation {self.deviation:.0e})"
        told = f"{monomial}: off by {self.deviation:.3g} of the right coefficient, on {self.setting}"
        if self.factor is not None and abs(self.factor) < SAME:
            told += "; it is missing"
        elif self.factor is not None:
            told += f"; it is {self.factor:.4g} times the right one"
        return told


@dataclass(frozen=True)
class Part:
    """The verdict on a drift or a covariance, with its numbers.

    Args:
        findings: coefficient by coefficient (the limit).
        slope: of the weak error with this drift (the rate); None for a covariance.
        needed: the slope that the order asks for.
        note: what would decide, where something is open.
        remark: what was not measured, and why.
    """

    findings: tuple[Finding, ...]
    slope: float | None = None
    needed: float | None = None
    note: str = ""
    remark: str = ""

    @property
    def status(self) -> Status:
        """`refuted` if a coefficient or the rate is wrong, `confirmed` if all are right."""
        found = [finding.status for finding in self.findings]
        if "refuted" in found:
            return "refuted"
        if self.slope is not None and self.needed is not None and not self.slope >= self.needed - TOLERANCE:
            return "refuted" if np.isfinite(self.slope) else "inconclusive"
        return "confirmed" if found and set(found) == {"confirmed"} and not self.note else "inconclusive"

    def __str__(self) -> str:
        lines = [self.status, *(f"  {finding}" for finding in self.findings)]
        if self.slope is not None:
            lines.append(f"  weak error falls like eta^{self.slope:.2f}; order asks for {self.needed:g}")
        return "\n".join([*lines, *(f"  {told}" for told in (self.note, self.remark) if told)])


@dataclass(frozen=True)
class Verdict:
    """What :func:`check` found, per stated part; a part that was not stated is None."""

    drift: Part | None
    covariance: Part | None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """`refuted` if a stated part is, `confirmed` if every stated part is, else `inconclusive`."""
        found = {part.status for part in (self.drift, self.covariance) if part is not None}
        return "refuted" if "refuted" in found else "confirmed" if found == {"confirmed"} else "inconclusive"

    def __str__(self) -> str:
        stated = {"drift": self.drift, "covariance": self.covariance}
        return "\n".join(f"{name}: {part if part is not None else 'not stated'}" for name, part in stated.items())


@dataclass(frozen=True)
class Setting:
    """A problem, the sizes of its batches and the points at which coefficients are compared.

    Args:
        problem: few enough mini-batches to list.
        sampling: how they are drawn.
        points: shape `(p, d)`.
        radius: the largest `rho` used for the expansion.
        eps: of the normaliser.
        lam: of the Gibbs weights, whose norms are exact.
    """

    problem: FiniteSum
    sampling: Sampling
    points: np.ndarray
    radius: float = 0.4
    eps: float = 0.0
    lam: float | None = None

    def __str__(self) -> str:
        return f"{self.problem.name} with n={self.problem.n}, b={self.sampling.batch}, m={self.sampling.m}"


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

    A normalised variant is smooth for `eps > 0`, which the hypothesis must state in the same way. At `eps = 0` its coefficients are
    compared where no micro-batch gradient is small, and the rate, which needs the whole torus, is not measured.

    Args:
        hypothesis: the SDE.
        variant: a name in :data:`sdesam.variants.VARIANTS`.
        problem: one more problem to test on, beside a torus problem of the check's own; with few enough mini-batches to list.
        order: `(alpha, beta)` that the SDE claims. Every kept coefficient must be right.
        replace: whether mini-batches are drawn with replacement.
        eps: of the normaliser, for a normalised variant.
        lam: of the Gibbs weights, for rw-sam, whose norms are taken as exact; its rate is not measured, because `|g_i|` is not smooth.

    Returns:
        A :class:`Verdict`: `confirmed`, `refuted` (at which powers, by how much, and by which factor where there is one), or `inconclusive`.

    Raises:
        ValueError: an order that does not exist, an `eps` or `lam` that the variant does not take, a drift of the wrong structure, NaN, a
            covariance that is not symmetric or not positive semi-definite.

    >>> import sdesam
    >>> wrong = Hypothesis(potential=lambda p, x, lr, rho, batch, micro: p.loss(x) + rho * p.grad_norm2(x))
    >>> print(check(wrong, "n-usam"))
    drift: refuted
      leading: right (relative deviation ...)
      rho^1: off by 1 of the right coefficient, on torus2d with n=5, ...; it is 2 times the right one
      weak error falls like eta^0.4...; order asks for 1
    covariance: not stated
    """
    declared, (alpha, beta) = find_variant(variant), check_order(order)
    numbers = _Numbers(declared, replace, eps, lam)
    settings = own_settings(numbers)
    note = ""
    if problem is not None:
        extra = _settings_on(problem, numbers)
        settings += extra
        if not extra:
            few = not replace and problem.n < min(b for b, _ in _sizes(declared))
            reason = "too few samples for a mini-batch" if few else f"more mini-batches than the {MOST_BATCHES} that can be listed"
            note = f"problem {problem.name!r} has {reason}, so it was not used; a version with {'more' if few else 'fewer'} samples would decide"
    stated = [Stated(hypothesis, setting) for setting in settings]
    findings = compare_coefficients(
        settings,
        [s.drift if s.has_drift else None for s in stated],
        [s.covariance if s.has_covariance else None for s in stated],
        [partial(_chain, declared, s) for s in settings],
        (alpha, beta),
    )
    drift = covariance = None
    if stated[0].has_drift:
        found = tuple(f for f in findings if f.part == "drift")
        if numbers.smooth:
            drift = Part(found, _rate(hypothesis, declared, _rate_setting(numbers), (alpha, beta)), float(alpha), note)
        else:
            drift = Part(found, note=note, remark=numbers.rough)
    if stated[0].has_covariance:
        covariance = Part(tuple(f for f in findings if f.part == "covariance"), note=note)
    config = {"variant": declared.name, "order": [alpha, beta], "replace": replace, "settings": [str(s) for s in settings]}
    if declared.normaliser != "none":
        config["eps"] = numbers.eps
    if declared.weights == "gibbs":
        config["lam"] = numbers.lam
    return Verdict(drift, covariance, config)


def kept_powers(order: tuple[int, int], part: str) -> list[tuple[int, int]]:
    """The powers `(i, j)` of `(eta, rho)` that an SDE of this order must have right; for a covariance, those of `covariance / eta`.

    At `alpha = 1` the leading covariance is asked for by custom, though no weak error sees it.
    """
    alpha, beta = order

    def kept(i: int, j: int) -> bool:
        return Fraction(i, alpha) + Fraction(j, beta) < 1

    if part == "drift":
        return [(i, j) for i in range(2) for j in range(beta) if kept(i, j)]
    return [(0, j) for j in range(beta) if kept(1, j) or j == 0]


def compare_coefficients(
    settings: Sequence[Setting],
    drifts: Sequence[Field | None],
    covariances: Sequence[Field | None],
    chains: Sequence[Callable[[float, float], Chain]],
    order: tuple[int, int],
) -> list[Finding]:
    """Stated against true coefficients, each in the setting where they are farthest apart.

    Args:
        settings: where to compare.
        drifts: per setting, the stated drift `(lr, rho) -> (p, d)`; None where none is stated.
        covariances: per setting, the stated diffusion matrix `(lr, rho) -> (p, d, d)`.
        chains: per setting, the optimizer at given `(lr, rho)`.
        order: which powers to compare.
    """
    worst: dict[tuple[str, tuple[int, int]], Finding] = {}
    for setting, drift, covariance, chain in zip(settings, drifts, covariances, chains, strict=True):
        unperturbed = chain(0.1, 0.0).variant.perturbation == "none"
        lrs = _nodes(3, 0.3) + 0.02
        radius, truth, settled = _expansion(setting, chain, order, unperturbed)
        for part, stated, eta_power in (("drift", drift, 0), ("covariance", covariance, 1)):
            if stated is None:
                continue
            found = _stated_expansion(stated, lrs, np.zeros(1) if unperturbed else _nodes(9, radius), eta_power)
            right = truth[part]
            leading = float(np.linalg.norm(right[0, 0]))
            for i, j in kept_powers(order, part):
                if j >= right.shape[1]:
                    continue  # a variant without perturbation has no powers of rho
                finding = _finding(part, (i, j), found[i, j], right[i, j], leading, str(setting), settled)
                before = worst.get((part, (i, j)))
                if before is None or finding.deviation > before.deviation:
                    worst[part, (i, j)] = finding
    return list(worst.values())


class Stated:
    """A hypothesis on the points of a setting, in float64."""

    def __init__(self, hypothesis: Hypothesis, setting: Setting, points: np.ndarray | None = None):
        self.setting = setting
        self.points = setting.points if points is None else points
        self.has_drift = hypothesis.drift is not None or hypothesis.potential is not None
        self.has_covariance = hypothesis.covariance is not None
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
                descent: jax.Array = jax.grad(lambda y: -_scalar(hypothesis.potential(self.problem, rebuild(y), *numbers)))(x)  # type: ignore[misc]
                return descent
            value = hypothesis.drift(self.problem, rebuild(x), *numbers)  # type: ignore[misc]
            if jax.tree.map(jnp.shape, value) != jax.tree.map(jnp.shape, problem.x0):
                raise ValueError(
                    f"the drift has the shapes {jax.tree.map(jnp.shape, value)}: it must have those of the parameters, "
                    f"{jax.tree.map(jnp.shape, problem.x0)}"
                )
            flat: jax.Array = ravel_pytree(value)[0]
            return flat

        def covariance(x: jax.Array, lr: jax.Array, rho: jax.Array) -> jax.Array:
            value: jax.Array = jnp.asarray(hypothesis.covariance(self.problem, rebuild(x), lr, rho, sampling.batch, sampling.m))  # type: ignore[misc]
            if value.shape != (d, d):
                raise ValueError(f"the covariance has shape {value.shape}: it must be dense, ({d}, {d})")
            return value

        self._drift = jax.jit(jax.vmap(drift, (0, None, None)))
        self._covariance = jax.jit(jax.vmap(covariance, (0, None, None)))

    def drift(self, lr: float, rho: float) -> np.ndarray:
        """`B` at the points, shape `(p, d)`."""
        return self._evaluate("drift", self._drift, lr, rho)

    def covariance(self, lr: float, rho: float) -> np.ndarray:
        """The diffusion matrix at the points, shape `(p, d, d)`, checked to be one."""
        value = self._evaluate("covariance", self._covariance, lr, rho)
        size = max(float(abs(value).max()), 1e-300)
        if abs(value - value.transpose(0, 2, 1)).max() > 1e-9 * size:
            raise ValueError("the covariance is not symmetric: it must equal its transpose")
        # for rho > 0 a truncated covariance may be negative by what was truncated
        least = float(np.linalg.eigvalsh(value).min())
        if rho == 0 and least < -1e-9 * size:
            raise ValueError(f"the covariance is not positive semi-definite: it has the eigenvalue {least:.3g} at lr={lr:g}, rho={rho:g}")
        return value

    def _evaluate(self, what: str, fn: Callable[..., jax.Array], lr: float, rho: float) -> np.ndarray:
        try:
            with jax.enable_x64(True):
                value = np.asarray(fn(jnp.asarray(self.points), jnp.float64(lr), jnp.float64(rho)))
        except Exception as error:
            own = jax.tree.map(jnp.shape, self.setting.problem.x0)
            raise ValueError(
                f"the {what} fails on {self.setting}, whose parameters have the shapes {own} (a hypothesis must hold for any problem): {error}"
            ) from error
        if not np.isfinite(value).all():
            raise ValueError(f"the {what} is not finite at some of the points it is checked at, on {self.setting}")
        return value


class _Numbers:
    """A variant and the numbers that all settings share, checked."""

    def __init__(self, variant: Variant, replace: bool, eps: float, lam: float | None):
        unperturbed = variant.perturbation == "none"
        norms = NormEstimate("exact") if variant.weights == "gibbs" else None
        _, self.eps, checked, _ = check_perturbation(variant, None if unperturbed else 0.0, eps, lam, norms)
        self.lam = checked if variant.weights == "gibbs" else None
        self.variant, self.replace = variant, replace
        self.singular = variant.normaliser != "none" and not self.eps
        self.smooth = not self.singular and variant.weights == "equal"
        self.rough = (
            "the weak error was not measured: at eps = 0 the step is not smooth where a micro-batch gradient vanishes; eps > 0 would show it"
            if self.singular
            else "the weak error was not measured: |g_i| is not smooth where a gradient vanishes"
        )

    def setting(self, problem: FiniteSum, b: int, m: int | None, points: np.ndarray, radius: float = 0.4) -> Setting:
        """With more points than wanted where some are to be left out."""
        sampling = Sampling(b, m, self.replace)
        if self.singular or self.lam is not None:
            points = away_from_zero(problem, sampling, points)
        return Setting(problem, sampling, points[:_POINTS], radius, self.eps, self.lam)

    @property
    def candidates(self) -> int:
        """How many points to offer."""
        return _POINTS * (1 if self.smooth else _CANDIDATES)


def away_from_zero(problem: FiniteSum, sampling: Sampling, points: np.ndarray) -> np.ndarray:
    """The points in order of the least norm of a gradient of one sample, a micro-batch or the whole set there, largest first."""
    least = np.full(len(points), np.inf)
    for m in {1, sampling.m, problem.n}:
        listed = np.arange(problem.n)[None, None] if m == problem.n else list_batches(Sampling(m, replace=sampling.replace), problem.n)[0]
        chain = Chain("sgd", problem, lr=1.0, batch=m, replace=sampling.replace)
        least = np.minimum(least, np.linalg.norm(directions(chain, points, listed), axis=-1).min(axis=0))
    return points[np.argsort(-least, kind="stable")]


def own_settings(numbers: _Numbers) -> list[Setting]:
    """The check's own problem and sizes.

    `(b, m)` = (4, 2), (3, 1), (4, 1) on n = 5 tell 1/m from 1/b, 2/b, 1/(b-m), 1/n and 1 from each other.
    """
    problem = torus(dim=2, samples=5, seed=11)
    points = np.random.default_rng(5).uniform(0, 2 * np.pi, size=(numbers.candidates, 2))
    return [numbers.setting(problem, b, m, points) for b, m in _sizes(numbers.variant)[:3]]


def _rate_setting(numbers: _Numbers) -> Setting:
    """The smallest sizes on the check's own problem: the chain's transition operator lists every mini-batch at every grid point."""
    own = own_settings(numbers)[0]
    b, m = _sizes(numbers.variant)[-1]
    return numbers.setting(own.problem, b, m, own.points)


def _sizes(variant: Variant) -> list[tuple[int, int | None]]:
    """Sizes to compare at; the last are the smallest, for the rate and for problems of many samples."""
    return [(4, 2), (3, 1), (4, 1), (2, 1)] if variant.micro else [(3, None), (2, None)]


def _settings_on(problem: FiniteSum, numbers: _Numbers) -> list[Setting]:
    """The sizes on a user's problem whose mini-batches can be listed, at points near its start where its gradients are finite."""
    if problem.nonsmooth:
        raise ValueError(
            f"the loss of problem {problem.name!r} has kinks ({', '.join(problem.nonsmooth)}): coefficients are read from an expansion in rho, "
            "which needs a smooth loss such as tanh, gelu or softplus give"
        )
    variant, replace = numbers.variant, numbers.replace
    listed = [Sampling(b, m, replace) for b, m in _sizes(variant) if (replace or b <= problem.n)]
    listed = [sampling for sampling in listed if count_batches(sampling, problem.n) <= MOST_BATCHES]
    # the largest listings take seconds and add nothing where two smaller ones are there
    listed = [sampling for k, sampling in enumerate(reversed(listed)) if k < 2 or count_batches(sampling, problem.n) <= _MANY]
    x, away = start(problem), np.random.default_rng(5).normal(size=(numbers.candidates, problem.dim))
    settings = []
    for sampling in listed:
        for spread in (0.3, 0.1, 0.03, 0.01):
            setting = numbers.setting(problem, sampling.batch, sampling.micro, x + spread * (1 + abs(x)) * away)
            radii = (0.0, 1e-3) if variant.perturbation != "none" else (0.0, 0.0)
            step, shifted = (one_step(_chain(variant, setting, 0.1, rho), setting.points).mean for rho in radii)
            losses = [float(problem.loss(Rebuild(problem.x0)(jnp.asarray(p, jnp.float32)))) for p in setting.points]
            if np.isfinite(step).all() and np.isfinite(shifted).all() and np.isfinite(losses).all():
                # the expansion in rho starts where rho H is below about one half, and is refined from there
                growth = float(abs(shifted - step).max() / 1e-3 / max(abs(step).max(), 1e-300))
                settings.append(replaced(setting, radius=min(0.4, 0.4 / max(growth, 1e-300))))
                break
        else:
            raise ValueError(f"problem {problem.name!r}: the loss or its gradients are not finite near x0, so nothing can be compared there")
    return settings


def _chain(variant: Variant, setting: Setting, lr: float, rho: float) -> Chain:
    s = setting.sampling
    norms = NormEstimate("exact") if variant.weights == "gibbs" else None
    rho_or_none = None if variant.perturbation == "none" else rho
    return Chain(variant, setting.problem, lr, rho_or_none, s.batch, s.m, s.replace, eps=setting.eps, lam=setting.lam, norms=norms)


def _true(setting: Setting, chain: Callable[[float, float], Chain], rhos: np.ndarray) -> dict[str, np.ndarray]:
    """By powers of eta and rho: `-Gbar - (eta/2)(D Gbar) Gbar`, shape `(2, k, p, d)`, and `Cov G`, shape `(1, k, p, d, d)`."""
    listed = list_batches(setting.sampling, setting.problem.n)
    steps = [mean_step(chain(0.1, float(rho)), setting.points, *listed) for rho in rhos]
    drift = [np.array([-mean for mean, _ in steps]), np.array([-correction / 2 for _, correction in steps])]
    covariance = np.array([one_step(chain(0.1, float(rho)), setting.points).covariance for rho in rhos])
    return {
        "drift": np.array([_coefficients(part, rhos, axis=0) for part in drift]),
        "covariance": _coefficients(covariance, rhos, axis=0)[None],
    }


def _nodes(count: int, most: float) -> np.ndarray:
    """Chebyshev nodes on `[0, most]`, ends included."""
    return most * (1 - np.cos(np.pi * np.arange(count) / (count - 1))) / 2


def _coefficients(values: np.ndarray, nodes: np.ndarray, axis: int) -> np.ndarray:
    """The coefficients of the polynomial through `values` at `nodes` along an axis, in place of that axis."""
    moved = np.moveaxis(values, axis, 0)
    scale = max(float(nodes.max()), 1e-300)  # powers of nodes in [0, 1] keep the system well conditioned
    system = np.vander(nodes / scale, increasing=True)
    solved = np.linalg.solve(system, moved.reshape(len(nodes), -1)).reshape(moved.shape)
    powers = scale ** np.arange(len(nodes), dtype=float)
    return np.moveaxis(solved / powers.reshape(-1, *[1] * (moved.ndim - 1)), 0, axis)


def _expansion(
    setting: Setting, chain: Callable[[float, float], Chain], order: tuple[int, int], unperturbed: bool
) -> tuple[float, dict[str, np.ndarray], bool]:
    """A radius at which the true coefficients stand still when it is halved, the coefficients, and whether there is one."""
    radius = setting.radius
    truth = _true(setting, chain, np.zeros(1) if unperturbed else _nodes(9, radius))
    for _ in range(8):
        if unperturbed:
            return radius, truth, True
        finer = _true(setting, chain, _nodes(9, radius / 2))
        moved = [
            _distance(truth[part][power], finer[part][power], finer[part][power], float(np.linalg.norm(finer[part][0, 0])))
            for part in truth
            for power in kept_powers(order, part)
        ]
        if max(moved) < SAME / 2:
            return radius / 2, finer, True
        radius, truth = radius / 2, finer
    return radius, truth, False


def _stated_expansion(stated: Field, lrs: np.ndarray, rhos: np.ndarray, eta_power: int) -> np.ndarray:
    values = np.array([[stated(float(lr), float(rho)) / float(lr) ** eta_power for rho in rhos] for lr in lrs])
    return _coefficients(_coefficients(values, lrs, axis=0), rhos, axis=1)


def _distance(a: np.ndarray, b: np.ndarray, truth: np.ndarray, leading: float) -> float:
    # a coefficient that is zero in truth is measured by the leading one
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(truth)), 1e-3 * leading, 1e-300)


def _finding(part: str, power: tuple[int, int], found: np.ndarray, truth: np.ndarray, leading: float, setting: str, settled: bool) -> Finding:
    deviation = _distance(found, truth, truth, leading)
    factor = None
    square = float(np.vdot(truth, truth))
    if square > 0:
        ratio = float(np.vdot(found, truth)) / square
        if _distance(found, ratio * truth, truth, leading) < 10 * SAME:
            factor = ratio
    return Finding(part, power, deviation, factor, setting, settled)


def _rate(hypothesis: Hypothesis, variant: Variant, setting: Setting, order: tuple[int, int]) -> float:
    """The slope of the weak error of the stated drift, with the true one-step covariance so that it alone is judged."""
    alpha, beta = order
    grids = [Torus(2 * np.pi, 2, size, _HORIZON) for size in (22, 30)]
    stated = [Stated(hypothesis, setting, grid.points) for grid in grids]
    errors, moved = [], []
    for lr in _RATES:
        rho = 0.0 if variant.perturbation == "none" else _PATH * lr ** (alpha / beta)
        chain = _chain(variant, setting, lr, rho)
        differences = []
        for grid, part in zip(grids, stated, strict=True):
            covariance = lr * one_step(chain, grid.points).covariance
            differences.append(grid.common(grid.flow(part.drift(lr, rho), covariance) - grid.chain(chain)))
        errors.append(float(abs(differences[-1]).max()))
        moved.append(float(abs(differences[1] - differences[0]).max()))
    return fit_slope(np.array(_RATES), np.array(errors), np.array(moved))[0]


def _scalar(value: Any) -> jax.Array:
    if jnp.shape(value) != ():
        raise ValueError(f"the potential has shape {jnp.shape(value)}: it must be a scalar, the modified loss")
    return jnp.asarray(value)
