"""Does the verification notice? Wrong theories and wrong optimizers, each of which a named check
must kill.

A mutant is an SDE or a step kernel with one thing wrong. The check that is run on it is the one
that judges hypotheses: coefficients of the drift and of the covariance in powers of `eta` and
`rho`, against all mini-batches listed. A check that lets a mutant live is no check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from sdesam import symbolic
from sdesam.claims import luo2025_normalised as normalised
from sdesam.claims.luo2025 import finite_population, micro_batches
from sdesam.coefficients import Field, Finding, Setting, compare_coefficients, interpolated
from sdesam.discrete import Chain
from sdesam.discrete.kernel import StepKernel, StepNumbers
from sdesam.exact.float64 import covariance, drift
from sdesam.hypothesis import Hypothesis, Stated
from sdesam.problems import FiniteSum, torus
from sdesam.sampling import Sampling
from sdesam.sde import SDE
from sdesam.symbolic import ModifiedEquation, derive
from sdesam.variants import NormEstimate
from sdesam.variants import variant as find_variant

PyTree = Any
Change = Callable[[ModifiedEquation], ModifiedEquation]


@dataclass(frozen=True)
class Mutant:
    """One wrong theory or optimizer (or, as a check on the check, a right one).

    Args:
        name: what is wrong.
        variant: the variant that it claims to be.
        with_replacement: the sampling that it claims.
        equation: what becomes of the derived equation.
        sde: what becomes of `(drift, covariance)` at the points, given `(lr, rho, setting)`.
        numbers: what becomes of `(lr, rho, batch, micro)` before they are bound.
        kernel: the class of the step kernel.
        theory: in place of the derived equation, an SDE as stated by a claim, given the sampling;
            for normalised variants.
        right: whether it is a right theory, which must live.
    """

    name: str
    variant: str = "m-usam"
    with_replacement: bool = True
    equation: Change = lambda equation: equation
    sde: (
        Callable[[np.ndarray, np.ndarray, float, Setting], tuple[np.ndarray, np.ndarray]] | None
    ) = None
    numbers: Callable[[float, float, int, int], tuple[float, float, int, int]] = (
        lambda lr, rho, b, m: (lr, rho, b, m)
    )
    kernel: type[StepKernel] = StepKernel
    theory: Callable[[bool], Hypothesis] | None = None
    right: bool = False

    @property
    def side(self) -> str:
        """Whether the theory or the optimizer is wrong."""
        return "none" if self.right else "chain" if self.kernel is not StepKernel else "SDE"


@dataclass(frozen=True)
class Fate:
    """What the checks said of a mutant: the findings that are not `confirmed`."""

    mutant: Mutant
    killed_by: tuple[Finding, ...]

    @property
    def killed(self) -> bool:
        """Whether a check refuted it."""
        return any(finding.status == "refuted" for finding in self.killed_by)

    @property
    def as_wanted(self) -> bool:
        """Wrong and killed, or right and untouched."""
        return not self.killed_by if self.mutant.right else self.killed

    def __str__(self) -> str:
        checks = ", ".join(f"{f.part} eta^{f.power[0]} rho^{f.power[1]}" for f in self.killed_by)
        return (
            f"{self.mutant.side:<5} {self.mutant.name:<58}"
            f" {'lives' if not self.killed else 'killed by ' + checks}"
        )


def fate(mutant: Mutant, seed: int = 0) -> Fate:
    """Run the checks on one mutant, on a seeded torus problem of its own with two pairs of sizes
    that tell 1/m, 1/b, 2/b and 1/n apart.
    """
    problem, points, settings = _settings(mutant.variant, mutant.with_replacement, seed)
    micro = mutant.variant.startswith("m-")
    if mutant.theory is not None:
        return Fate(mutant, _against(mutant, seed))
    # the wrong equation keeps the name of the right one, and so takes the same numbers
    wrong = replace(
        mutant.equation(derive(mutant.variant, (2, 3), mutant.with_replacement)),
        variant=find_variant(mutant.variant),
    )
    unperturbed = wrong.variant.perturbation == "none"

    @cache
    def fields(which: int, lr: float, rho: float) -> tuple[np.ndarray, np.ndarray]:
        setting = settings[which]
        lr, rho_used, b, m = mutant.numbers(lr, rho, setting.sampling.batch, setting.sampling.m)
        sde: SDE = wrong.bind(
            problem,
            lr,
            None if unperturbed else rho_used,
            b,
            m if micro else None,
            expectation="exact",
        )
        stated = drift(sde, points), covariance(sde, points)
        return stated if mutant.sde is None else mutant.sde(*stated, lr, setting)

    def stated_part(which: int, index: int) -> Field:
        return interpolated(lambda lr, rho: fields(which, lr, rho)[index])

    findings = compare_coefficients(
        settings,
        [stated_part(k, 0) for k in range(len(settings))],
        [stated_part(k, 1) for k in range(len(settings))],
        [partial(_made, mutant, setting) for setting in settings],
        (2, 3),
    )
    return Fate(mutant, tuple(finding for finding in findings if finding.status != "confirmed"))


def _settings(
    variant: str, with_replacement: bool, seed: int
) -> tuple[FiniteSum, np.ndarray, list[Setting]]:
    problem = torus(dim=2, samples=5, seed=300 + seed)
    points = np.random.default_rng(seed).uniform(0, 2 * np.pi, size=(3, 2))
    sizes: list[tuple[int, int | None]] = (
        [(4, 2), (3, 1)] if variant.startswith("m-") else [(3, None)]
    )
    return (
        problem,
        points,
        [Setting(problem, Sampling(b, m, with_replacement), points) for b, m in sizes],
    )


def _made(mutant: Mutant, setting: Setting, lr: float, rho: float) -> Chain:
    """The mutant's optimizer."""
    rule, s = find_variant(mutant.variant), setting.sampling
    numbers: dict[str, Any] = {
        "rho": None if rule.perturbation == "none" else rho,
        "batch": s.batch,
        "micro": s.m,
        "replace": s.replace,
    }
    if rule.normaliser != "none":
        numbers["eps"] = _EPS
    if rule.weights == "gibbs":
        numbers |= {"lam": _LAM, "norms": NormEstimate("exact")}
    made = Chain(rule, setting.problem, lr, **numbers)
    made.kernel = mutant.kernel(**vars(made.kernel))
    return made


@lru_cache(maxsize=8)
def _stated(
    theory: Callable[[bool], Hypothesis], variant: str, with_replacement: bool, seed: int
) -> list[Stated]:
    """A stated SDE, compiled once for all mutants of its variant."""
    # one pair of sizes: no mutant of a normaliser looks right where m < b
    return [
        Stated(theory(with_replacement), setting)
        for setting in _settings(variant, with_replacement, seed)[2][:1]
    ]


def _against(mutant: Mutant, seed: int) -> tuple[Finding, ...]:
    """The findings against a stated SDE: its drift at order (1,2), its covariance at (2,3)."""
    assert mutant.theory is not None
    stated = _stated(mutant.theory, mutant.variant, mutant.with_replacement, seed)
    settings = [s.setting for s in stated]
    nothing, chains = (
        [None] * len(settings),
        [partial(_made, mutant, setting) for setting in settings],
    )
    findings = (
        compare_coefficients(settings, [s.fields()[0] for s in stated], nothing, chains, (1, 2))
        if stated[0].has_drift
        else []
    )
    if stated[0].has_covariance:
        findings += compare_coefficients(
            settings, nothing, [s.fields()[1] for s in stated], chains, (2, 3)
        )
    return tuple(finding for finding in findings if finding.status != "confirmed")


def scaled(name: str, factor: Any) -> Change:
    """The equation with the coefficients of one part multiplied."""

    def change(equation: ModifiedEquation) -> ModifiedEquation:
        parts = tuple(
            replace(p, trees=p.trees * factor) if p.name == name else p for p in equation.parts
        )
        split = len(equation.drift_parts)
        return replace(equation, drift_parts=parts[:split], noise_parts=parts[split:])

    return change


def _without(term: str) -> Change:
    return lambda equation: equation.without(term)


def _other_sampling(what: str) -> Change:
    """Drift or noise of the equation for the other sampling."""

    def change(equation: ModifiedEquation) -> ModifiedEquation:
        other = derive(equation.variant, equation.order, not equation.replace)
        if what == "drift":
            return replace(equation, drift_parts=other.drift_parts)
        return replace(equation, noise_parts=other.noise_parts)

    return change


def _gbar(setting: Setting) -> np.ndarray:
    grads = jax.vmap(setting.problem.grad)(jnp.asarray(setting.points, setting.problem.x0.dtype))
    return np.asarray(grads, float)


def _uncentred(
    B: np.ndarray, C: np.ndarray, lr: float, setting: Setting
) -> tuple[np.ndarray, np.ndarray]:
    g = _gbar(setting)
    return B, C + lr / setting.sampling.batch * g[:, :, None] * g[:, None, :]


def _minus_square(
    B: np.ndarray, C: np.ndarray, lr: float, setting: Setting
) -> tuple[np.ndarray, np.ndarray]:
    g = _gbar(setting)
    return B, C - 0.1 * lr * g[:, :, None] * g[:, None, :]


class _Chain(StepKernel):
    """A step kernel with its perturbation, its radius or its scale wrong; subclasses say which."""

    def _grad(self, params: StepNumbers, x: PyTree, indices: jax.Array) -> PyTree:
        samples = jax.tree.map(lambda leaf: leaf[indices], params.data)
        return jax.grad(lambda y: jnp.mean(jax.vmap(self.sample_loss, (None, 0))(y, samples)))(x)

    def _all(self, params: StepNumbers) -> jax.Array:
        return jnp.arange(self.n)

    def _mean(
        self,
        params: StepNumbers,
        x: PyTree,
        indices: jax.Array,
        perturbation: Callable[[jax.Array], PyTree],
    ) -> PyTree:
        steps = [
            self._grad(params, x + params.rho * perturbation(group), group) for group in indices
        ]
        return sum(steps) / len(steps)


def _kernel(
    name: str, direction: Callable[[Any, StepNumbers, PyTree, jax.Array], PyTree]
) -> type[StepKernel]:
    def wrong(self: Any, x: PyTree, indices: jax.Array, key: jax.Array | None = None) -> PyTree:
        return direction(self, self.numbers, x, indices)

    # jax knows classes one by one: a subclass of a pytree is none yet
    return jax.tree_util.register_dataclass(
        type(name, (_Chain,), {"direction": wrong}),
        data_fields=["numbers"],
        meta_fields=[part.name for part in fields(StepKernel) if part.name != "numbers"],
    )


def _renumbered(change: Callable[[StepNumbers], StepNumbers]) -> type[StepKernel]:
    return _kernel(
        "_Renumbered",
        lambda self, p, x, i: StepKernel.direction(replace(self, numbers=change(p)), x, i),
    )


def _rescaled(factor: float) -> type[StepKernel]:
    return _kernel("_Rescaled", lambda self, p, x, i: factor * StepKernel.direction(self, x, i))


_CHAINS: dict[str, type[StepKernel]] = {
    "time scale off by 2 in the chain": _rescaled(2.0),
    "gradient summed over micro-batches": _kernel(
        "_Summed", lambda self, p, x, i: len(i) * StepKernel.direction(self, x, i)
    ),
    "step 10 % too long": _rescaled(1.1),
    "step uphill": _rescaled(-1.0),
    "radius 10 % too large": _renumbered(lambda p: p._replace(rho=1.1 * p.rho)),
    "radius 10 % too small": _renumbered(lambda p: p._replace(rho=0.9 * p.rho)),
    "radius doubled": _renumbered(lambda p: p._replace(rho=2 * p.rho)),
    "radius squared": _renumbered(lambda p: p._replace(rho=p.rho**2)),
    "perturbation downhill": _renumbered(lambda p: p._replace(rho=-p.rho)),
    "no perturbation": _renumbered(lambda p: p._replace(rho=0 * p.rho)),
    "perturbation from the mini-batch": _kernel(
        "_FromBatch",
        lambda self, p, x, i: self._mean(p, x, i, lambda group: self._grad(p, x, i.reshape(-1))),
    ),
    "perturbation from the whole set": _kernel(
        "_FromAll",
        lambda self, p, x, i: self._mean(p, x, i, lambda group: self._grad(p, x, self._all(p))),
    ),
    "perturbation from the other micro-batch": _kernel(
        "_Swapped",
        lambda self, p, x, i: (
            sum(self._grad(p, x + p.rho * self._grad(p, x, i[k - 1]), i[k]) for k in range(len(i)))
            / len(i)
        ),
    ),
    "perturbation from the first sample only": _kernel(
        "_First",
        lambda self, p, x, i: self._mean(p, x, i, lambda group: self._grad(p, x, group[:1])),
    ),
    "two ascent steps": _kernel(
        "_Two",
        lambda self, p, x, i: self._mean(
            p,
            x,
            i,
            lambda group: (
                self._grad(p, x, group) + self._grad(p, x + p.rho * self._grad(p, x, group), group)
            ),
        ),
    ),
    "normalised perturbation": _kernel(
        "_Normalised",
        lambda self, p, x, i: self._mean(
            p,
            x,
            i,
            lambda g: self._grad(p, x, g) / jnp.sqrt(0.01 + jnp.sum(self._grad(p, x, g) ** 2)),
        ),
    ),
    "micro-batches of one": _kernel(
        "_Ones",
        lambda self, p, x, i: self._mean(
            p, x, i.reshape(-1, 1), lambda group: self._grad(p, x, group)
        ),
    ),
    "second micro-batch not used": _kernel(
        "_Half", lambda self, p, x, i: StepKernel.direction(self, x, i[:1])
    ),
    "weight decay that nobody asked for": _kernel(
        "_Decay", lambda self, p, x, i: StepKernel.direction(self, x, i) + 0.05 * x
    ),
}


_CHAINS_ALWAYS = _kernel(
    "_Always",
    lambda self, p, x, i: self._mean(
        p._replace(rho=0.1), x, i, lambda group: self._grad(p, x, group)
    ),
)


_EPS, _LAM = 0.1, 20.0
"""About the size of a gradient on the torus problem, and its inverse: eps and the weights are far
from negligible.
"""


def _dnsam(replace: bool) -> Hypothesis:
    """`-grad f - rho grad(|grad f|^2/2 + c_b tr V/2) / sqrt(|grad f|^2 + eps^2)`."""

    def drift(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        factor = 1 / batch if replace else finite_population(problem.n, batch)
        slope = jax.grad(lambda y: (problem.grad_norm2(y) + factor * problem.trace_cov(y)) / 2)(x)
        return -problem.grad(x) - rho * slope / jnp.sqrt(problem.grad_norm2(x) + _EPS**2)

    return Hypothesis(drift=drift)


def _rw_sam(replace: bool) -> Hypothesis:
    """`-grad f - rho E[H_gamma u_gamma]`, all mini-batches listed."""

    def drift(problem: FiniteSum, x: Any, lr: Any, rho: Any, batch: int, micro: int) -> Any:
        def each(y: Any) -> Any:
            return jax.vmap(jax.grad(problem.sample_loss), (None, 0))(y, problem.data)

        def bent(indices: Any) -> Any:
            g = each(x)[indices]
            p = jnp.exp(_LAM * jnp.linalg.norm(g, axis=1))
            v = p @ g / p.sum()
            return jax.jvp(
                lambda y: each(y)[indices].mean(axis=0), (x,), (v / jnp.sqrt(v @ v + _EPS**2),)
            )[1]

        return -problem.grad(x) - rho * jax.vmap(bent)(
            micro_batches(problem.n, batch, replace)
        ).mean(axis=0)

    return Hypothesis(drift=drift)


_STATED: dict[str, Callable[[bool], Hypothesis]] = {
    "sam": lambda replace: normalised.sam(replace, _EPS),
    # the printed covariance of m-SAM is for batches with replacement
    "m-sam": lambda replace: normalised.sam(replace, _EPS, covariance=replace),
    "n-sam": lambda replace: normalised.n_sam(replace, _EPS),
    "dnsam": _dnsam,
    "rw-sam": _rw_sam,
}


def _along(
    perturbation: Callable[[Any, StepNumbers, PyTree, jax.Array, jax.Array], PyTree],
) -> type[StepKernel]:
    """A kernel whose perturbation is a function of
    `(kernel, numbers, x, mini-batch, micro-batch)`.
    """
    return _kernel(
        "_Along",
        lambda self, p, x, i: self._mean(
            p, x, i, lambda group: perturbation(self, p, x, i.reshape(-1), group)
        ),
    )


def _norm(v: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(v**2))


def _unit(v: jax.Array, w: jax.Array, eps: Any) -> jax.Array:
    return v / jnp.sqrt(jnp.sum(w**2) + eps**2)


def _weighted_step(
    weights: Callable[[jax.Array, StepNumbers], jax.Array], descent: bool = False
) -> type[StepKernel]:
    """RW-SAM with other weights of the per-sample gradients, or with weights in the descent
    gradient too.
    """

    def direction(self: Any, p: StepNumbers, x: PyTree, i: jax.Array) -> PyTree:
        batch = i.reshape(-1)
        each = jnp.stack([self._grad(p, x, batch[k : k + 1]) for k in range(len(batch))])
        w = weights(each, p)
        y = x + p.rho * _unit(w @ each, w @ each, p.eps)
        if not descent:
            return self._grad(p, y, batch)
        return w @ jnp.stack([self._grad(p, y, batch[k : k + 1]) for k in range(len(batch))])

    return _kernel("_Weighted", direction)


def _softmax(scale: float) -> Callable[[jax.Array, StepNumbers], jax.Array]:
    return lambda g, p: jax.nn.softmax(scale * p.lam * jnp.sqrt(jnp.sum(g**2, axis=1)))


_NORMALISED: dict[str, dict[str, type[StepKernel]]] = {
    "m-sam": {
        "no normaliser": _along(lambda k, p, x, batch, part: k._grad(p, x, part)),
        "eps dropped": _renumbered(lambda p: p._replace(eps=0 * p.eps)),
        "eps doubled": _renumbered(lambda p: p._replace(eps=2 * p.eps)),
        "|v| + eps for sqrt(|v|^2 + eps^2)": _along(
            lambda k, p, x, batch, part: k._grad(p, x, part) / (_norm(k._grad(p, x, part)) + p.eps)
        ),
        "normaliser squared": _along(
            lambda k, p, x, batch, part: (
                k._grad(p, x, part) / (jnp.sum(k._grad(p, x, part) ** 2) + p.eps**2)
            )
        ),
        "normaliser 10 % too small": _along(
            lambda k, p, x, batch, part: (
                1.1 * _unit(k._grad(p, x, part), k._grad(p, x, part), p.eps)
            )
        ),
        "l1 norm": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, part), jnp.sum(abs(k._grad(p, x, part))), p.eps
            )
        ),
        "each coordinate normalised": _along(
            lambda k, p, x, batch, part: (
                k._grad(p, x, part) / jnp.sqrt(k._grad(p, x, part) ** 2 + p.eps**2)
            )
        ),
        "norm of the mini-batch's gradient": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, part), k._grad(p, x, batch), p.eps)
        ),
        "norm of the whole set's gradient: DNSAM's": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, part), k._grad(p, x, k._all(p)), p.eps)
        ),
        "mean norm of the samples": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, part),
                jnp.mean(
                    jnp.stack([_norm(k._grad(p, x, part[j : j + 1])) for j in range(len(part))])
                ),
                p.eps,
            )
        ),
        "norm at the perturbed point": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, part), k._grad(p, x + 0.3 * k._grad(p, x, part), part), p.eps
            )
        ),
        "SAM for m-SAM": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, batch), k._grad(p, x, batch), p.eps)
        ),
        "n-SAM for m-SAM": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, k._all(p)), k._grad(p, x, k._all(p)), p.eps
            )
        ),
        "radius 10 % too large": _renumbered(lambda p: p._replace(rho=1.1 * p.rho)),
        "perturbation downhill": _renumbered(lambda p: p._replace(rho=-p.rho)),
    },
    "sam": {
        "m-SAM for SAM": _kernel(
            "_Ones",
            lambda self, p, x, i: self._mean(
                p,
                x,
                i.reshape(-1, 1),
                lambda one: _unit(self._grad(p, x, one), self._grad(p, x, one), p.eps),
            ),
        ),
        "norm of the first sample": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, part), k._grad(p, x, part[:1]), p.eps)
        ),
    },
    "n-sam": {
        "norm of the mini-batch's gradient": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, k._all(p)), k._grad(p, x, batch), p.eps
            )
        ),
        "SAM for n-SAM": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, batch), k._grad(p, x, batch), p.eps)
        ),
    },
    "dnsam": {
        "SAM for DNSAM": _along(
            lambda k, p, x, batch, part: _unit(k._grad(p, x, batch), k._grad(p, x, batch), p.eps)
        ),
        "eps dropped": _renumbered(lambda p: p._replace(eps=0 * p.eps)),
        "gradient of the whole set: n-SAM's": _along(
            lambda k, p, x, batch, part: _unit(
                k._grad(p, x, k._all(p)), k._grad(p, x, k._all(p)), p.eps
            )
        ),
    },
    "rw-sam": {
        "no weights: SAM": _renumbered(lambda p: p._replace(lam=0 * p.lam)),
        "lam doubled": _renumbered(lambda p: p._replace(lam=2 * p.lam)),
        "smallest gradients first": _weighted_step(_softmax(-1.0)),
        "weights proportional to |g_i|": _weighted_step(
            lambda g, p: jnp.sqrt(jnp.sum(g**2, axis=1)) / jnp.sum(jnp.sqrt(jnp.sum(g**2, axis=1)))
        ),
        "weights do not sum to 1": _weighted_step(lambda g, p: 1.5 * _softmax(1.0)(g, p)),
        "descent gradient weighted too": _weighted_step(_softmax(1.0), descent=True),
    },
}


_FACTORS = {
    "10 % too large": sp.Rational(11, 10),
    "10 % too small": sp.Rational(9, 10),
    "sign flipped": -1,
    "doubled": 2,
}
_PARTS = ("rho^0", "rho^1", "rho^2", "eta", "eta rho^1", "noise", "noise rho^1")

MUTANTS: tuple[Mutant, ...] = (
    *(
        Mutant(f"{part} {name}", equation=scaled(part, factor))
        for part in _PARTS
        for name, factor in _FACTORS.items()
    ),
    *(Mutant(f"{term} missing", equation=_without(term)) for term in derive("m-usam").terms),
    Mutant("1/b for 1/m", equation=lambda eq: eq.subs(symbolic.micro, symbolic.batch)),
    Mutant("2/b for 1/m", equation=lambda eq: eq.subs(symbolic.micro, symbolic.batch / 2)),
    Mutant(
        "1/(b-m) for 1/m",
        equation=lambda eq: eq.subs(symbolic.micro, symbolic.batch - symbolic.micro),
    ),
    Mutant("1/n for 1/m", equation=lambda eq: eq.subs(symbolic.micro, symbolic.samples)),
    Mutant("n for b", numbers=lambda lr, rho, b, m: (lr, rho, 5 * m, m)),
    Mutant("1/m^2 for 1/m", equation=lambda eq: eq.subs(symbolic.micro, symbolic.micro**2)),
    Mutant("rho m for rho", equation=lambda eq: eq.subs(symbolic.micro, 1)),
    Mutant(
        "eta/4 for eta/2 in the correction",
        equation=lambda eq: scaled("eta rho^1", sp.Rational(1, 2))(
            scaled("eta", sp.Rational(1, 2))(eq)
        ),
    ),
    Mutant(
        "correction with the wrong sign",
        equation=lambda eq: scaled("eta rho^1", -1)(scaled("eta", -1)(eq)),
    ),
    Mutant("USAM's theory for m-USAM", equation=lambda eq: derive("usam", eq.order, eq.replace)),
    Mutant(
        "n-USAM's theory for m-USAM", equation=lambda eq: derive("n-usam", eq.order, eq.replace)
    ),
    Mutant("SGD's theory for m-USAM", equation=lambda eq: derive("sgd", eq.order, eq.replace)),
    Mutant(
        "m-USAM's theory for n-USAM",
        variant="n-usam",
        equation=lambda eq: derive("usam", eq.order, eq.replace),
    ),
    Mutant(
        "drift with replacement for without",
        with_replacement=False,
        equation=_other_sampling("drift"),
    ),
    Mutant(
        "noise with replacement for without",
        with_replacement=False,
        equation=_other_sampling("noise"),
    ),
    Mutant(
        "batch factor 1/b for (n-b)/(b(n-1))",
        with_replacement=False,
        equation=lambda eq: replace(eq, replace=True),
    ),
    Mutant("drift without replacement for with", equation=_other_sampling("drift")),
    Mutant("noise without replacement for with", equation=_other_sampling("noise")),
    Mutant("no noise at all", sde=lambda B, C, lr, s: (B, 0 * C)),
    Mutant(
        "batch factor of another size",
        sde=lambda B, C, lr, s: (B, C * s.sampling.batch / (s.sampling.batch + 1)),
    ),
    Mutant(
        "noise of one micro-batch", sde=lambda B, C, lr, s: (B, C * s.sampling.batch / s.sampling.m)
    ),
    Mutant("noise of one sample", sde=lambda B, C, lr, s: (B, C * s.sampling.batch)),
    Mutant("noise without eta", sde=lambda B, C, lr, s: (B, C / lr)),
    Mutant("noise with eta^2", sde=lambda B, C, lr, s: (B, C * lr)),
    Mutant("noise not centred", sde=_uncentred),
    Mutant("a tenth of gbar gbar^T taken from the noise", sde=_minus_square),
    Mutant(
        "noise made isotropic",
        sde=lambda B, C, lr, s: (B, np.trace(C, axis1=1, axis2=2)[:, None, None] * np.eye(2) / 2),
    ),
    Mutant("time scale off by 2 in the SDE", sde=lambda B, C, lr, s: (2 * B, 2 * C)),
    Mutant("ascent radius squared in the SDE", numbers=lambda lr, rho, b, m: (lr, rho**2, b, m)),
    Mutant("ascent radius halved in the SDE", numbers=lambda lr, rho, b, m: (lr, rho / 2, b, m)),
    Mutant("b doubled", numbers=lambda lr, rho, b, m: (lr, rho, 2 * b, m)),
    Mutant(
        "eta of the correction doubled",
        equation=lambda eq: scaled("eta rho^1", 2)(scaled("eta", 2)(eq)),
    ),
    *(Mutant(name, kernel=kernel) for name, kernel in _CHAINS.items()),
    Mutant(
        "n-USAM perturbed from the batch",
        variant="n-usam",
        kernel=_CHAINS["perturbation from the mini-batch"],
    ),
    Mutant(
        "USAM perturbed from the whole set",
        variant="usam",
        kernel=_CHAINS["perturbation from the whole set"],
    ),
    Mutant("SGD with SAM's perturbation", variant="sgd", kernel=_CHAINS_ALWAYS),
    *(
        Mutant(
            f"{find_variant(variant).title}: {name}",
            variant=variant,
            kernel=kernel,
            theory=_STATED[variant],
        )
        for variant, kernels in _NORMALISED.items()
        for name, kernel in kernels.items()
    ),
)
"""Wrong theories and wrong optimizers."""

RIGHT: tuple[Mutant, ...] = tuple(
    Mutant(
        f"{variant}, {'with' if sampling else 'without'} replacement",
        variant,
        sampling,
        theory=_STATED.get(variant),
        right=True,
    )
    for variant in ("sgd", "usam", "m-usam", "n-usam", *_STATED)
    for sampling in (True, False)
)
"""Right theories, which the same checks must let live."""
