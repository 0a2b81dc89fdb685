"""Running the optimizer, its SDE and the SDE without a term, for each micro-batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sdesam._util.checks import check_int
from sdesam._util.keys import seed_key
from sdesam.ensemble import Result, time_grid
from sdesam.optim import Chain, train
from sdesam.problems import FiniteSum, check_problem
from sdesam.sde import simulate
from sdesam.sde.stepping import check_stepping
from sdesam.symbolic import ModifiedEquation, Term, derive
from sdesam.variants import NormEstimate, Variant
from sdesam.variants import variant as find_variant
from sdesam.verify.comparison._rows import at_smaller_steps, corrected, row_of, smaller_of
from sdesam.verify.comparison._table import Comparison


def compare(
    variant: str | Variant,
    problem: FiniteSum,
    *,
    lr: float,
    rho: float | None = None,
    batch: int,
    micro: int | Sequence[int] = (),
    steps: int,
    runs: int = 64,
    order: tuple[int, int] = (2, 3),
    replace: bool = True,
    without: str | None = None,
    observe: Sequence[str] = ("loss", "grad_norm2", "trace_cov"),
    judged: str = "trace_cov",
    method: str = "heun",
    dt: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
    eps: float = 0.0,
    lam: float | None = None,
    norms: NormEstimate | None = None,
    micro_batches: int | None = None,
    halving: bool = True,
    **own: float,
) -> Comparison:
    """Run, for each micro-batch size, the optimizer, its SDE, and the SDE without one term, and
    judge.

    The two SDEs use the same noise, in antithetic pairs, so that their difference has less noise
    than either.

    Args:
        variant: a name in :data:`sdesam.variants.VARIANTS`.
        problem: the finite sum.
        lr: `eta`.
        rho: perturbation radius.
        batch: `b`.
        micro: the sizes `m` to compare, or one; left out, the mini-batch.
        steps: optimizer steps; the SDE runs to `steps * lr`.
        runs: how many runs of each, even and at least 8.
        order: of the SDE.
        replace: whether mini-batches are drawn with replacement.
        without: the term to ablate; left out, the first there is of `"rho^1 variance"`,
            `"rho^1"`, `"eta"`.
        observe: observables to record.
        judged: the observable that the verdict is about.
        method: of the SDE's time stepping.
        dt: its step; left out, `lr`, where Heun has weak error `O(lr^2)`. Euler at `dt >= lr`
            proves nothing and is refused.
        seed: of everything.
        progress: show bars; by default on a terminal.
        eps: of the normaliser.
        lam: inverse temperature of rw-sam's weights.
        norms: how rw-sam estimates gradient norms.
        micro_batches: how many fresh micro-batches a step of the SDE draws; see
            :func:`sdesam.sde.bind`.
        halving: whether a row that would be refuted is run again with `lr` halved, once or twice,
            and `rho` smaller by `2^(-alpha/beta)`: no SDE holds at step sizes that are too large.
        own: the rule's own numbers, by name.

    Returns:
        A :class:`Comparison`. A row is `confirmed` if the share's lower bound is at least 0.9 and
        the SDE without the term misses the chain by more than four standard errors; `refuted` if it
        does and the share's upper bound is below 0.9, at smaller step sizes too;
        `outside the range` if at smaller step sizes it is confirmed; else `inconclusive`. With up
        to two values of `m` the bounds are those of the 95 % interval, with more of wider ones, so
        that any verdict is wrong with probability 5 % at most.

    Raises:
        ValueError: numbers that do not fit, an unknown variant, term or observable; before any run
            starts.
    """
    check_problem(problem)
    declared = find_variant(variant)
    equation = derive(declared, order, replace)
    term = without if without is not None else _telling_term(equation)
    parsed = Term.parse(term) if isinstance(term, str) else None
    if equation.order[0] == 1 and parsed is not None and parsed.kind == "noise":
        raise ValueError(
            f"at order {equation.order} no weak error can judge the noise: choose alpha = 2, or"
            " another term"
        )
    if method == "euler" and (dt is None or dt >= lr):
        raise ValueError(
            "Euler at dt >= lr is the chain with Gaussian noise and proves nothing: choose"
            " method='heun', or dt well below lr"
        )
    ablated = equation.without(term)
    if not isinstance(judged, str):
        raise TypeError(
            f"judged={judged!r}: it must be the name of an observable, such as 'trace_cov'"
        )
    observe = list(dict.fromkeys([*([observe] if isinstance(observe, str) else observe), judged]))
    for name, shape in jax.eval_shape(problem.observer(observe), problem.x0).items():
        if shape.shape != ():
            raise ValueError(
                f"observable {name!r} has shape {shape.shape}: a comparison takes scalars"
            )
    steps = check_int("steps", steps)
    count = check_int("runs", runs, least=8)
    if count % 2:
        raise ValueError(f"runs={runs}: an even number is needed, for antithetic pairs")
    given: Any = micro if np.iterable(micro) else (micro,)
    sizes: list[int | None] = [check_int("micro", m) for m in given] or [None]
    if not isinstance(halving, bool):
        raise TypeError(f"halving={halving!r}: it must be True or False")
    options: Any = {"eps": eps, "lam": lam, "norms": norms, **own}
    horizon, step = steps * lr, lr if dt is None else dt
    # One key for both SDEs, so that their difference has less noise than either; another one for
    # the optimizer, whose randomness is of another kind.
    key_chain, key_sde = jax.random.split(seed_key(seed))

    def prepared(
        m: int | None, halvings: int = 0
    ) -> tuple[Chain, Callable[[], tuple[Result, Result, Result]]]:
        """The optimizer at a micro-batch size, `eta` halved so often, and what runs it, its SDE,
        and the SDE without the term.
        """
        # Down the path rho = c eta^(alpha/beta) both errors of the order shrink alike. At order 2
        # in eta and 3 in rho, eta / 2 comes with rho / 2^(2/3) = 0.63 rho.
        rate = lr / 2**halvings
        radius = (
            None if rho is None else rho / 2 ** (halvings * equation.order[0] / equation.order[1])
        )
        chain = Chain(declared, problem, rate, radius, batch, m, replace, **options)
        pair = [
            eq.bind(problem, rate, radius, batch, m, micro_batches=micro_batches, **options)
            for eq in (equation, ablated)
        ]
        own, sde_steps = check_stepping(horizon, step / 2**halvings, method)
        # the observation times are those of the first step sizes
        times = time_grid(None, steps, lr, "lr") * lr
        time_grid(times, sde_steps, own, "dt")  # the SDE must come by at the same times
        first, second = (
            jax.random.fold_in(key, halvings) if halvings else key for key in (key_chain, key_sde)
        )

        def results() -> tuple[Result, Result, Result]:
            common: Any = {"times": times, "observe": observe, "progress": progress}
            discrete = train(chain, first, runs=count, steps=steps * 2**halvings, **common)
            full, less = (
                simulate(
                    sde,
                    second,
                    count,
                    horizon,
                    own,
                    method,
                    keep="values",
                    antithetic=True,
                    **common,
                )
                for sde in pair
            )
            return discrete, full, less

        return chain, results

    ready = [prepared(m) for m in sizes]
    chains = [chain for chain, _ in ready]
    told: Any = {"observe": observe, "judged": judged, "term": term}
    rows = [row_of(chain.sampling.m, *results(), **told) for chain, results in ready]
    rows = corrected(rows, judged, term)
    if halving:
        for k, row in enumerate(rows):
            if row.status == "refuted":
                rows[k] = at_smaller_steps(
                    row,
                    judged,
                    lambda h, m=sizes[k]: smaller_of(*prepared(m, h), **told),  # type: ignore[misc]
                )
    config = {
        **{name: value for name, value in chains[0].config.items() if name != "micro"},
        "micro": [chain.sampling.m for chain in chains],
        "order": list(equation.order),
        "steps": steps,
        "runs": count,
        "without": term,
        "judged": judged,
        "method": method,
        "dt": step,
        "seed": seed,
        "halving": halving,
    }
    if "micro_batches" in rows[0].sde.config:
        config["micro_batches"] = [row.sde.config["micro_batches"] for row in rows]
    return Comparison(equation, term, judged, tuple(rows), config)


def _telling_term(equation: ModifiedEquation) -> str:
    return next(
        term for term in ("rho^1 variance", "rho^1", "eta", "noise") if term in equation.terms
    )
