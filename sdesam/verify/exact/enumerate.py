"""All mini-batches of a small problem, listed: exact one-step mean and covariance."""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations, product
from math import perm
from typing import NamedTuple

import numpy as np

from sdesam.optim import Chain
from sdesam.optim.chain import check_chain
from sdesam.sampling import Sampling, told_count
from sdesam.verify.exact.float64 import directions

MOST_BATCHES = 5000
"""More ordered batches than this are not listed; one-step moments of larger problems need
sampling.
"""


class OneStep(NamedTuple):
    """Mean and covariance of the step's direction `G` at some points."""

    mean: np.ndarray
    covariance: np.ndarray


def count_batches(sampling: Sampling, n: int) -> int:
    """How many ordered mini-batches there are."""
    return n**sampling.batch if sampling.replace else perm(n, sampling.batch)


@lru_cache(maxsize=64)
def list_batches(sampling: Sampling, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every mini-batch up to the order inside micro-batches and of micro-batches, with its
    probability.

    Returns:
        Sample indices of shape `(q, b/m, m)` and probabilities of shape `(q,)`.

    Raises:
        ValueError: too many to list.
    """
    total = count_batches(sampling, n)
    if total > MOST_BATCHES:
        raise ValueError(
            f"n={n}, batch={sampling.batch} has {told_count(total)} ordered mini-batches, more than"
            f" the {MOST_BATCHES} that are listed: choose fewer samples or a smaller batch"
        )
    picked = (
        product(range(n), repeat=sampling.batch)
        if sampling.replace
        else permutations(range(n), sampling.batch)
    )
    # n = 2, b = 2, m = 1 with replacement: the four ordered batches 00, 01, 10, 11 are three up to
    # the order of micro-batches, with probabilities 1/4, 1/2, 1/4. A step is a mean over
    # micro-batches of functions of sets, so orders that differ give the same step.
    counts: dict[tuple[tuple[int, ...], ...], int] = {}
    for batch in picked:
        groups = (
            tuple(sorted(batch[k : k + sampling.m])) for k in range(0, sampling.batch, sampling.m)
        )
        key = tuple(sorted(groups))
        counts[key] = counts.get(key, 0) + 1
    return np.array(list(counts)), np.array(list(counts.values())) / total


def one_step(chain: Chain, points: np.ndarray) -> OneStep:
    """`E G` and `Cov G` at some points, over all mini-batches, in float64.

    Args:
        chain: the optimizer, on a problem with at most 5000 ordered mini-batches.
        points: shape `(p, d)`, or `(d,)` for one point.

    Returns:
        `mean` of shape `(p, d)` and `covariance` of shape `(p, d, d)`; without the leading axis for
        one point.

    Raises:
        ValueError: too many mini-batches to list.

    >>> import sdesam
    >>> chain = sdesam.Chain("sgd", sdesam.problems.torus(dim=2, samples=3), lr=0.1, batch=2)
    >>> one_step(chain, np.zeros(2)).covariance.shape
    (2, 2)
    """
    points = np.asarray(points, np.float64)
    if points.ndim == 1:
        return OneStep(*(part[0] for part in one_step(chain, points[None])))
    check_chain(chain, "one_step")
    batches, probability = list_batches(chain.sampling, chain.problem.n)
    G = directions(chain, points, batches)
    mean = np.einsum("q,qpj->pj", probability, G)
    away = G - mean
    return OneStep(mean, np.einsum("q,qpj,qpk->pjk", probability, away, away))
