"""From an equation of the algebra and a problem to an SDE with numbers."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from sdesam._util.checks import check_int
from sdesam.optim.kernel import check_delta_on
from sdesam.problems import FiniteSum, check_problem
from sdesam.sampling import (
    FEW_MICRO_BATCHES,
    MOST_MICRO_BATCHES,
    Hyperparameters,
    Step,
    count_micro_batches,
    list_micro_batches,
    told_count,
)
from sdesam.sde._kernels import FreshBatches, TreeKernel
from sdesam.sde.compile import MicroBatches
from sdesam.sde.equation import SDE, Source
from sdesam.symbolic import MARK, ModifiedEquation, Part, Tree, derive, evaluate
from sdesam.variants import NormEstimate

PyTree = Any


def bind(
    equation: ModifiedEquation,
    problem: FiniteSum,
    lr: float,
    rho: float | None = None,
    batch: int = 1,
    micro: int | None = None,
    expectation: str = "sampled",
    *,
    eps: float = 0.0,
    lam: float | None = None,
    norms: NormEstimate | None = None,
    micro_batches: int | None = None,
    **own: float,
) -> SDE:
    """The SDE of a derived equation on a problem, as jax functions.

    Args:
        equation: from :func:`sdesam.derive`.
        problem: the finite sum.
        lr: `eta`.
        rho: perturbation radius; left out for a variant without perturbation.
        batch: `b`.
        micro: `m`; left out, the mini-batch.
        expectation: `"sampled"` steps with unbiased probes where the exact drift costs O(n^2), and
            with fresh micro-batches where a normalised variant has too many to list; `"exact"` does
            not.
        eps: of the normaliser `sqrt(|.|^2 + eps^2)`. At `eps = 0` a vanishing gradient perturbs
            nothing, and the theory, which asks for smooth coefficients, holds only where no
            gradient vanishes.
        lam: inverse temperature of the Gibbs weights, for rw-sam alone.
        norms: how rw-sam estimates gradient norms.
        micro_batches: how many fresh micro-batches a step draws, for SAM, m-SAM and RW-SAM. Left
            out, all are listed where they are no more than the samples (or 64), else `n/2` (at
            least 64) are drawn for the noise and an eighth of that for each drift. What is drawn is
            unbiased in drift and noise; it adds to the noise's covariance a part of size
            `rho^2 (n/q) m tr Cov_I(F_I) / tr V` of SGD's noise, `q = micro_batches` and `F_I` the
            `rho^1` part of the step, below the kept order: 5 % on digits at `rho = 0.1`, where
            with an eighth as many, 43 %, it shifted the loss by 0.3 %
            (`experiments/fresh_micro_batches.py`).
        own: the rule's own numbers, by name.

    Raises:
        ValueError: sizes that do not fit, `rho < 0`, `lr <= 0`, a loss that is not smooth enough
            for the order, too many micro-batches to list.
        TypeError: a number of another type, or one that the rule does not have or lacks.

    Changing `lr`, `rho`, `eps` or `lam` does not compile anew; nor does changing `batch` or `micro`
    but for SAM, m-SAM and RW-SAM.

    >>> import sdesam
    >>> sde = sdesam.derive("m-usam").bind(
    ...     sdesam.problems.quadratic(), lr=0.1, rho=0.1, batch=4, micro=2
    ... )
    >>> sde.drift(sde.x0).shape, sde.noise_shape
    ((2,), (8,))
    """
    check_problem(problem)
    if expectation not in ("exact", "sampled"):
        raise ValueError(f"expectation={expectation!r}: choose 'exact' or 'sampled'")
    given = Hyperparameters(lr, rho, batch, micro, equation.replace, eps, lam, norms, own)
    step = given.checked(equation.variant, problem.n)
    check_delta_on(step.norms, problem)
    lr, rho, sampling = step.lr, step.rho, step.sampling
    full = derive(equation.variant, equation.order, equation.replace)
    listed, draw = _micro_batches(full, problem.n, step, expectation, micro_batches)
    drift_trees, drift = _coefficients(equation.drift_parts, full.drift_parts, step, problem.n)
    noise_trees, noise = _coefficients(equation.noise_parts, full.noise_parts, step, problem.n)
    _check_smooth(equation, problem, (*drift_trees, *noise_trees))
    factor = evaluate(equation.noise_factor, sampling.batch, sampling.m, problem.n)
    kernel = TreeKernel(
        data=problem.data,
        drift_numbers=drift,
        noise_numbers=noise,
        noise_scale=sqrt(lr * factor / problem.n),
        eps=step.eps,
        lam=step.lam,
        own=step.own,
        listed=listed,
        sample_loss=problem.sample_loss,
        chunk=problem.chunk,
        drift_trees=drift_trees,
        noise_trees=noise_trees,
        sampled=expectation == "sampled",
        draw=draw,
        norms=step.norms,
    )
    config = {
        "variant": equation.variant.name,
        "order": list(equation.order),
        "without": list(equation.removed),
        "problem": problem.name,
        "samples": problem.n,
        "fingerprint": problem.fingerprint,
        "lr": lr,
        "rho": rho,
        "batch": sampling.batch,
        "micro": sampling.m,
        "replace": equation.replace,
        "expectation": expectation,
        **step.options(equation.variant),
    }
    if equation.whole_micro_batches:
        config["micro_batches"] = "all" if draw is None else draw.count
    # the noise is a weighted sum over the samples, and so has a normal number for each of them
    return SDE.of(kernel, (problem.n,), problem.x0, Source(problem, config))


def _micro_batches(
    equation: ModifiedEquation, n: int, step: Step, expectation: str, count: int | None
) -> tuple[MicroBatches | None, FreshBatches | None]:
    """The micro-batches that an expectation runs over, all listed or a way to draw some, or neither
    where there is none.
    """
    if not equation.whole_micro_batches or not any(
        tree.micro_batches for part in equation.parts for tree in part.trees
    ):
        if count is not None:
            raise ValueError(
                f"micro_batches={count}: {equation.variant.name} at order {equation.order} has no"
                " expectation over whole micro-batches, so that none are drawn; leave"
                " micro_batches out"
            )
        return None, None
    m = step.sampling.m
    total = count_micro_batches(m, n, equation.replace)
    random = step.norms is not None and step.norms.random
    if expectation == "exact":
        if count is not None:
            raise ValueError(
                f"micro_batches={count}: an exact expectation lists all micro-batches; leave"
                " micro_batches out"
            )
        if random:
            raise ValueError(
                "the exact expectation over random directions is not known: use"
                " norms=NormEstimate(law='exact') or expectation='sampled'"
            )
        if total > MOST_MICRO_BATCHES:
            raise ValueError(
                f"n={n}, m={m} has {told_count(total)} micro-batches, more than the"
                f" {MOST_MICRO_BATCHES} that are listed: use expectation='sampled', or fewer"
                " samples"
            )
    if expectation == "exact" or (
        count is None and not random and total <= max(n, FEW_MICRO_BATCHES)
    ):
        indices, probability = list_micro_batches(m, n, equation.replace)
        return MicroBatches(indices, probability), None
    return None, FreshBatches(
        check_int(
            "micro_batches", max(FEW_MICRO_BATCHES, n // 2) if count is None else count, least=2
        ),
        m,
        n,
        equation.replace,
        random,
    )


# A worked example: m-USAM at order (1, 2) with lr = 0.1, rho = 0.2, b = 4 and m = 2. The drift has
# three trees, gbar = [1], mean_i H_i g_i = [1 [1]] and Hbar gbar = [1 [2]]:
#
#     part               tree       coefficient    number
#     rho^0              [1]        -1             -1
#     rho^1              [1 [1]]    -1/m           0.2 * -1/2 = -0.1
#     rho^1              [1 [2]]    -(m - 1)/m     0.2 * -1/2 = -0.1
#
# Without the part "rho^1 variance", which is -(rho/m) (mean_i H_i g_i - Hbar gbar), the trees are
# the same, and the numbers are -1, 0 and -0.2. The numbers are leaves of the kernel, and the trees
# its structure: an equation, and each ablation of it, are one program.


def _coefficients(
    parts: tuple[Part, ...], full: tuple[Part, ...], step: Step, n: int
) -> tuple[tuple[Tree, ...], np.ndarray]:
    """The trees of some parts, each once, and their numbers.

    Trees that only the `full` equation has get the number 0: an equation with a term left out then
    shares its compiled code.
    """
    lr, rho, sampling = step.lr, step.rho, step.sampling
    total: dict[Tree, float] = {tree: 0.0 for part in full for tree in part.trees} if parts else {}
    # every batch is the whole set: the influence h is not needed
    silent = not sampling.replace and sampling.batch == n
    for part in parts:
        for tree, coefficient in part.trees.items():
            marked = any(node.colour == MARK for node in tree.nodes())
            exact = (
                0
                if marked and silent
                else evaluate(coefficient, sampling.batch, sampling.m, n, step.own)
            )
            powers = lr**part.term.eta * rho**part.term.rho
            total[tree] = total.get(tree, 0.0) + powers * float(exact)
    return tuple(total), np.array(list(total.values()))


def _check_smooth(equation: ModifiedEquation, problem: FiniteSum, trees: tuple[Tree, ...]) -> None:
    """Third derivatives of a loss with kinks are not what the theory means by them."""
    highest = max((len(node.children) + 1 for tree in trees for node in tree.nodes()), default=1)
    if (equation.order[0] == 2 or highest >= 3) and problem.nonsmooth:
        raise ValueError(
            f"the loss of problem {problem.name!r} is not smooth enough for order {equation.order},"
            f" whose theory asks for three derivatives: it contains {', '.join(problem.nonsmooth)}"
            " (ReLU has such a kink); use tanh, gelu or softplus, or order (1, 2)"
        )
