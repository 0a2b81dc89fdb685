"""Smith, Dherin, Barrett & De 2021: SGD that goes through the data in a random order descends a
loss with the mean of the squared mini-batch gradients.

Over an epoch of `N` mini-batches the mean end is that of a gradient flow of
`f + (lr/4) E|grad f_gamma|^2` for the time `N lr`, up to `(N lr)^3`. SGD with fresh mini-batches
has `|grad f|^2` there.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdesam.claims._base import Claim, Outcome, Preset
from sdesam.claims._findings import Findings
from sdesam.optim import Chain
from sdesam.problems import FiniteSum, torus
from sdesam.sampling import Sampling
from sdesam.verify.exact.enumerate import list_batches
from sdesam.verify.exact.float64 import directions, to_double

_SAMPLES, _POINTS = 4, 4


def _epoch(problem: FiniteSum, points: np.ndarray, lr: float, b: int) -> np.ndarray:
    """The mean of `x_N - x_0` over all orders of the data, shape `(p, d)`, by the package's SGD
    step.
    """
    chain = Chain("sgd", problem, lr=lr, batch=b, replace=False)
    ends = []
    for order in permutations(range(problem.n)):
        x = points
        for k in range(0, problem.n, b):
            x = x - lr * directions(chain, x, np.array(order[k : k + b])[None, None])[0]
        ends.append(x - points)
    return np.asarray(np.mean(ends, axis=0))


def _fields(problem: FiniteSum, points: np.ndarray, b: int) -> dict[str, np.ndarray]:
    """Gradients at every point: of f, of |grad f|^2, of the mean square over mini-batches and over
    samples, float64.
    """
    listed, chance = list_batches(Sampling(b, b, False), problem.n)
    with jax.enable_x64(True):
        data = to_double(problem.data)

        def each(x: Any) -> Any:
            return jax.vmap(jax.grad(problem.sample_loss), (None, 0))(x, data)

        def square(g: Any) -> Any:
            return jnp.sum(g**2, axis=-1)

        potentials = {
            "whole": lambda x: square(each(x).mean(axis=0)),
            "batches": lambda x: chance @ square(each(x)[listed[:, 0]].mean(axis=1)),
            "samples": lambda x: square(each(x)).mean(),
        }
        at = jnp.asarray(points)
        found = {
            name: np.asarray(jax.jit(jax.vmap(jax.grad(fn)))(at)) for name, fn in potentials.items()
        }
        found["f"] = np.asarray(jax.jit(jax.vmap(lambda x: each(x).mean(axis=0)))(at))
    return found


# A flow dx/dt = -(g + lr c) for the time T = N lr ends at x - T (g + lr c) + (T^2/2) H g + ..., and
# H g is half the gradient of |g|^2. So the coefficient of lr^2 in the end is
#
#     (N^2/4) grad |g|^2 - N c,     c = grad E|g_gamma|^2 / 4  for the claim
#
# One parameter, the samples x^2/2 and 0, b = 1: an epoch multiplies x by 1 - lr in either order.
# g = x/2, E|g_gamma|^2 = x^2/2, c = x/4, and N = 2: (4/4) x/2 - 2 x/4 = 0, which is right: the end
# x - lr x has no lr^2.
def _run(preset: Preset, seed: int) -> Outcome:
    found = Findings(1e-5, "Richardson's extrapolation in lr, from 1e-3 and halves: about 1e-7")
    told = ""
    for draw in range(seed, seed + (1 if preset == "quick" else 5)):
        problem = torus(dim=2, samples=_SAMPLES, seed=950 + draw)
        points = np.random.default_rng(draw).uniform(0, 2 * np.pi, size=(_POINTS, 2))
        for b in (1, 2):
            N = _SAMPLES // b
            parts = _fields(problem, points, b)
            one, two, four = (
                (_epoch(problem, points, lr, b) + N * lr * parts["f"]) / lr**2
                for lr in (1e-3, 2e-3, 4e-3)
            )
            # what remains of lr^3 and lr^4
            second = (8 * one - 6 * two + four) / 3
            measured = (N**2 / 4 * parts["whole"] - second) / N
            label = f"b = {b}, draw {draw}"
            found.agree(
                f"modification of the loss, grad E|grad f_gamma|^2 / 4: {label}",
                parts["batches"] / 4,
                measured,
            )
            wrong = {
                "|grad f|^2 / 4, as for fresh mini-batches": parts["whole"] / 4,
                "1/2 for 1/4": parts["batches"] / 2,
                "the sign flipped": -parts["batches"] / 4,
                "no modification": 0 * measured,
            }
            if b > 1:
                wrong["single samples for mini-batches"] = parts["samples"] / 4
            for name, stated in wrong.items():
                found.broken(f"{name}: {label}", stated, measured)
            share = np.linalg.norm(parts["batches"] - parts["whole"])
            told = told or f"{share / np.linalg.norm(parts['whole']):.2g}"
    return found.outcome(
        "E|grad f_gamma|^2 = |grad f|^2 + c_b tr V with c_b = (n-b)/(b(n-1)): shuffling regularises"
        f" tr V by itself (its gradient is {told} times as long as that of |grad f|^2 here, b ="
        " 1). With lr = rho it has half the"
        " strength of the tr V of USAM at m = b, (rho/2) c_b, so that experiments with epochs mix"
        " the two. The mean over orders says nothing about noise, of which epochs have none at the"
        " orders kept."
    )


CLAIMS = (
    Claim(
        id="RR",
        title="random reshuffling adds (lr/4) E|grad f_gamma|^2 to the loss",
        statement=(
            r"\mathbb E x_N = \text{the flow of } -\nabla\big(f + \tfrac\eta4 \mathbb E\|\nabla"
            r" f_\gamma\|^2\big) \text{ at } N\eta,\ + O((N\eta)^3)"
        ),
        source="Smith, Dherin, Barrett & De 2021, arXiv 2101.12176",
        prediction="the lr^2 part of the mean end over all orders of the data",
        recorded="confirmed",
        seconds=3,
        run=_run,
    ),
)
