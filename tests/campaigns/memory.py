"""Memory over many problems and many runs in one process: it rises to what caches may hold, and
then stays flat.

The last 32 programs of each kind are kept, which are full after 160 problems of five kinds. A
violation is: more live losses of problems that nobody uses any more in the last third than before;
memory of the process that goes on growing in the last third, by more than half of what the data of
its problems take, or by 16 MB over repeated runs. A problem's data take 1 MB. jax's own caches of
jaxprs, of 2,048 entries each, fill for several hundred problems, by 0.3 to 0.4 MB a problem.

    python -m tests.campaigns.memory --count 500 --seed 0    (300 different problems and 200 runs of
    one)
"""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sdesam
from tests.campaigns._tries import Outcome, arguments, report, wrong

NUMBERS = 250_000
"""Of the data of a problem: 1 MB."""
DATA = 4 * NUMBERS
REPEATED = 16 * 2**20


ALIVE: weakref.WeakSet[Loss] = weakref.WeakSet()


class Loss:
    """The loss of one problem: a function of its own, as a notebook makes it."""

    def __init__(self, scale: float):
        self.scale = scale
        ALIVE.add(self)

    def __call__(self, x: Any, sample: Any) -> Any:
        return self.scale * ((x - sample[0]) ** 2).sum()


def problem(rng: np.random.Generator) -> sdesam.FiniteSum:
    data = rng.normal(size=(100, NUMBERS // 100)).astype(np.float32)
    return sdesam.FiniteSum(Loss(float(rng.uniform(1, 2))), data, np.zeros(2, np.float32))


def different(number: int, rng: np.random.Generator) -> None:
    """A problem that was never there before, used in one of the ways there are."""
    f = problem(rng)
    key = jax.random.key(number)
    match number % 5:
        case 0:
            f.loss(f.x0), f.grad(f.x0), f.trace_cov(f.x0)
        case 1:
            sdesam.train(
                sdesam.Chain("m-usam", f, lr=0.01, rho=0.1, batch=4, micro=2),
                key,
                runs=2,
                steps=3,
                observe=["loss"],
            )
        case 2:
            sdesam.simulate(
                sdesam.derive("usam").bind(f, lr=0.01, rho=0.1, batch=4),
                key,
                paths=2,
                horizon=0.02,
                dt=0.01,
                observe=["loss"],
            )
        case 3:
            decay, size = float(rng.uniform(1, 2)), rng.normal(size=NUMBERS).astype(np.float32)
            sde = sdesam.SDE(lambda x: -decay * x, lambda x, xi: 0.1 * xi, (), 1.0)
            sdesam.simulate(
                sde,
                key,
                paths=2,
                horizon=0.5,
                dt=0.25,
                observe={"x": lambda x: x * size[0], "y": lambda x: (x * size).sum()},
            )
        case 4:
            chain = sdesam.Chain("sgd", f, lr=0.01, batch=4)
            chain.step(f.x0, key), chain.direction(f.x0, np.zeros((1, 4), int)), f.curvature


def repeated(rng: np.random.Generator) -> Callable[[int], None]:
    """One problem, run again and again."""
    f = problem(rng)
    chain, sde = (
        sdesam.Chain("usam", f, lr=0.01, rho=0.1, batch=4),
        sdesam.derive("usam").bind(f, lr=0.01, rho=0.1, batch=4),
    )

    def run(number: int) -> None:
        key = jax.random.key(number)
        sdesam.train(chain, key, runs=4, steps=3, observe=["loss"], keep="values")
        sdesam.simulate(
            sde,
            key,
            paths=4,
            horizon=0.03,
            dt=0.01,
            observe=["loss", "trace_cov"],
            keep="trajectories",
        )

    return run


def rss() -> int:
    """Memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watch(
    kind: str, work: Callable[[int], None], count: int, allowed: float
) -> Iterator[tuple[int, Outcome]]:
    """Do the work; the outcome of all of it is with the last."""
    alive, memory = [], []
    for number in range(count):
        work(number)
        if (number + 1) % max(count // 10, 1) == 0:
            gc.collect()
            alive.append(len(ALIVE))
            memory.append(rss())
        if number < count - 1:
            yield number, Outcome(kind, "done")
    late = 2 * len(memory) // 3
    # the most of each part: what is held for a while and let go makes either go up and down
    lives, grown = max(alive[late:]) - max(alive[:late]), max(memory[late:]) - max(memory[:late])
    text = f"live losses {alive}, MB of memory {[size >> 20 for size in memory]}"
    if lives > 0:
        yield count - 1, wrong(kind, "losses stay alive", text)
    elif grown > allowed:
        yield count - 1, wrong(kind, f"memory grows by {grown >> 20} MB in the last third", text)
    else:
        print(f"{kind}: {text}")
        yield count - 1, Outcome(kind, "done")


def campaign(count: int, seed: int) -> Iterator[tuple[int, Outcome]]:
    """Three in five are different problems."""
    rng, other = np.random.default_rng(seed), 3 * count // 5
    yield from watch(
        "different problems", lambda number: different(number, rng), other, other // 3 * DATA / 2
    )
    run = repeated(rng)
    yield from watch("repeated runs", run, count - other, REPEATED)


if __name__ == "__main__":
    given = arguments(__doc__, 500)
    sys.exit(
        report(
            f"memory --count {given.count} --seed {given.seed}",
            campaign(given.count, given.seed),
            single=False,
        )
    )
