"""Testing a hypothesis: its coefficients (the limit), and its weak error (the rate)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace as replaced
from functools import partial
from typing import Any

from sdesam.optim import Chain
from sdesam.problems import FiniteSum, check_problem
from sdesam.symbolic import check_order
from sdesam.variants import Variant
from sdesam.variants import variant as find_variant
from sdesam.verify.coefficients import (
    SAME,
    Expansion,
    Finding,
    expand,
    name_terms,
    nearer_than_read,
    summarised,
)
from sdesam.verify.exact.enumerate import MOST_BATCHES
from sdesam.verify.hypothesis._rate import RATES, path_radius, weak_slope
from sdesam.verify.hypothesis._settings import (
    RuleNumbers,
    chain_at,
    own_settings,
    rate_setting,
    settings_on,
)
from sdesam.verify.hypothesis._stated import Hypothesis, Stated
from sdesam.verify.hypothesis._verdict import Part, Verdict


def check(
    hypothesis: Hypothesis,
    variant: str | Variant,
    problem: FiniteSum | None = None,
    order: tuple[int, int] = (1, 2),
    replace: bool = True,
    eps: float = 0.0,
    lam: float | None = None,
    **own: float,
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
        own: the rule's own numbers, by name.

    Returns:
        A :class:`Verdict`: `confirmed`, `refuted` (at which powers, by how much, and by which
        factor where there is one), or `inconclusive`. Where what is stated differs from what is
        right by a combination of coloured trees, the wrong terms are named, with the stated and the
        right coefficient as formulas in the sizes.

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
        rho^1: stated 2, right 1 (of -rho Hbar gbar)
      weak error falls like eta^0.4...; order asks for 1
    covariance: not stated
    """
    if not isinstance(hypothesis, Hypothesis):
        raise TypeError(
            f"hypothesis={hypothesis!r}: it must be a sdesam.Hypothesis(drift=... or potential=...,"
            " covariance=...)"
        )
    declared, (alpha, beta) = find_variant(variant), check_order(order)
    numbers = RuleNumbers(declared, replace, eps, lam, own)
    ours = own_settings(numbers)
    extra = settings_on(check_problem(problem), numbers) if problem is not None else []
    note = ""
    if problem is not None and not extra:
        note = (
            f"problem {problem.name!r} has more mini-batches than the {MOST_BATCHES} that can be"
            " listed, so it was not used; a version with fewer samples would decide"
        )
    settings = ours + extra
    stated = [Stated(hypothesis, setting) for setting in settings]
    if stated[0].has_covariance:
        for each in stated:
            each.check_covariance()
    chains = [partial(chain_at, declared, s) for s in settings]
    expanded = [
        expand(s.setting, *s.fields(), chain, (alpha, beta))
        for s, chain in zip(stated, chains, strict=True)
    ]
    findings = [
        _with_terms(finding, (expanded[: len(ours)], expanded[len(ours) :]))
        for finding in summarised([expansion for parts in expanded for expansion in parts])
    ]
    drift = covariance = None
    if stated[0].has_drift:
        found = tuple(f for f in findings if f.part == "drift")
        if numbers.smooth:
            right = {f.status for f in found} == {"confirmed"}
            slope = weak_slope(
                hypothesis, declared, rate_setting(numbers), (alpha, beta), patient=right
            )
            drift = Part(found, slope, float(alpha), note)
            if drift.status == "refuted" and not drift.too_slow:
                first = [parts[0] for parts in expanded[: len(ours)]]
                drift = replaced(
                    drift, contradiction=_contradiction(drift, first, stated, chains, (alpha, beta))
                )
        else:
            drift = Part(found, note=note, remark=numbers.rough)
    if stated[0].has_covariance:
        covariance = Part(tuple(f for f in findings if f.part == "covariance"), note=note)
    config: dict[str, Any] = {
        "variant": declared.name,
        "order": [alpha, beta],
        "replace": replace,
        "settings": [str(s) for s in settings],
    }
    config |= numbers.own
    if declared.normalised:
        config["eps"] = numbers.eps
    if declared.weighted:
        config["lam"] = numbers.lam
    return Verdict(drift, covariance, config)


def _with_terms(finding: Finding, groups: Sequence[Sequence[Sequence[Expansion]]]) -> Finding:
    """A refuted finding with the terms that are wrong, as seen in the first group of settings, all
    of one problem, in which the coefficient is refuted.
    """
    missing = finding.factor is not None and abs(finding.factor) < SAME
    if finding.status != "refuted" or missing:
        return finding
    for group in groups:
        same = [e for parts in group for e in parts if e.part == finding.part]
        found = [f for e in same for f in e.findings() if f.power == finding.power]
        if any(f.status == "refuted" for f in found):
            return replaced(finding, terms=name_terms(same, finding.power, finding.factor))
    return finding


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
    # A drift may be one formula for tiny eta and another one beyond. Its coefficients are those of
    # the first, its weak error is that of the second: they may contradict each other, and then
    # nothing is decided.
    lr = RATES[0][-1]
    rho = path_radius(stated[0].setting, chains[0], lr, order)
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
