"""How often the referee of theorems is wrong: random right theorems, and the same with one
coefficient a little off.

    python -m tests.campaigns.calibration --theorems 200

A right theorem is the optimizer's own step, written here once more from the table of variants and
averaged over every ordered mini-batch, with analytic tails in eta and rho. None may be refuted,
fewer than 2 % may stay open. Each coefficient that does not vanish is then made wrong by 1, 2, 5
and 10 %; all of these must be refuted. Nothing is sampled: a seed gives the same counts on every
run."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import sdesam
from sdesam.sampling import Sampling
from sdesam.variants import variant as find_variant
from sdesam.verify import hypothesis
from sdesam.verify.coefficients import Setting, expand, summarised
from sdesam.verify.hypothesis import _settings

DEVIATIONS = (0.01, 0.02, 0.05, 0.1)
MOST_BATCHES = 1300
TAILS = (
    lambda lr, rho: 1.0,
    lambda lr, rho: jnp.exp(lr),
    lambda lr, rho: (1 + lr) ** -4,
    lambda lr, rho: 1 + lr * jnp.sin(rho),
)


def problem_of(rng, n):
    """A ready-made problem of `n` samples whose losses are scaled by 1e-4 to 1e4."""
    kind = rng.choice(["torus1d", "torus2d", "quadratic", "linear-regression"])
    options = {"samples": n, "seed": int(rng.integers(1000))} | (
        {"dim": int(rng.integers(1, 4))} if kind in ("quadratic", "linear-regression") else {}
    )
    base, scale = sdesam.problems.load(kind, **options), float(10 ** rng.uniform(-4, 4))
    return sdesam.FiniteSum(
        lambda x, s: scale * base.sample_loss(x, s), base.data, base.x0, name=f"{scale:.1e} {kind}"
    )


def direction(loss, data, rule, eps, lam, x, batch, rho):
    """The mean over micro-batches of `grad f_I(x + rho u_I)`."""

    def grad(indices, y):
        return jax.grad(
            lambda z: jnp.mean(
                jax.vmap(loss, (None, 0))(z, jax.tree.map(lambda leaf: leaf[indices], data))
            )
        )(y)

    whole = grad(jnp.arange(jax.tree.leaves(data)[0].shape[0]), x)

    def part(indices):
        own = grad(indices, x)
        if rule.weighted:
            each = jax.vmap(lambda i: grad(i[None], x))(indices)
            own = jax.nn.softmax(lam * jnp.linalg.norm(each, axis=1)) @ each
        v = {"none": 0 * own, "own": own, "data set": whole}[rule.one_ascent.perturbation]
        w = {"none": None, "own": v, "data set": whole}[rule.one_ascent.normaliser]
        return grad(indices, x + rho * (v if w is None else v / jnp.sqrt(w @ w + eps**2)))

    return jnp.mean(jnp.stack([part(indices) for indices in batch]), axis=0)


NAMES = [name for name, rule in sdesam.VARIANTS.items() if rule.one_ascent]


def theorem(seed):
    """A random setting, a right hypothesis for it, and its order."""
    rng = np.random.default_rng([seed, 7])
    rule = find_variant(str(rng.choice(NAMES)))
    n, replace = int(rng.integers(2, 7)), bool(rng.integers(2))
    legal = [
        (b, m)
        for b in range(1, n + 1)
        for m in range(1, b + 1)
        if b % m == 0 and (rule.micro or m == b) and (n**b if replace else 1) <= MOST_BATCHES
    ]
    b, m = legal[rng.integers(len(legal))]
    problem = problem_of(rng, n)
    eps = 0.0 if not rule.normalised or rng.integers(2) else 0.1
    lam = 1.0 if rule.weighted else None
    sampling = Sampling(b, m, replace)
    points = np.asarray(problem.x0, float) + 0.3 * rng.normal(size=(120, problem.dim))
    if rule.normalised or lam is not None:
        points = hypothesis.away_from_zero(problem, sampling, points)
    listed = jnp.array(
        list(
            itertools.product(range(n), repeat=b)
            if replace
            else itertools.permutations(range(n), b)
        )
    ).reshape(-1, b // m, m)
    tail, order = TAILS[rng.integers(len(TAILS))], ((1, 2), (2, 3))[rng.integers(2)]

    def each(p, x, rho):
        return jax.lax.map(
            lambda batch: direction(p.sample_loss, p.data, rule, eps, lam, x, batch, rho), listed
        )

    def drift(p, x, lr, rho, batch, micro):
        def mean(y):
            return each(p, y, rho).mean(axis=0)

        G = mean(x)
        return -G - lr / 2 * tail(lr, rho) * jax.jvp(mean, (x,), (G,))[1]

    def covariance(p, x, lr, rho, batch, micro):
        away = each(p, x, rho)
        away = away - away.mean(axis=0)
        return lr * tail(lr, rho) * away.T @ away / len(away)

    return (
        Setting(problem, sampling, points[:4], eps, lam),
        rule,
        sdesam.Hypothesis(drift=drift, covariance=covariance),
        order,
    )


def judge(seed, counts):
    """Count what is said of one theorem, and of each of its coefficients made wrong."""
    setting, rule, stated_as, order = theorem(seed)
    stated = hypothesis.Stated(stated_as, setting)
    chain = partial(_settings.chain_at, rule, setting)
    label = (
        f"seed {seed}: {rule.name}, {setting}, {'with' if setting.sampling.replace else 'without'}"
        f" replacement, eps={setting.eps:g}, order {order}"
    )
    expansions = expand(setting, *stated.fields(), chain, order)
    findings = summarised(expansions)
    states = {finding.status for finding in findings}
    verdict = (
        "refuted"
        if "refuted" in states
        else "confirmed"
        if states == {"confirmed"}
        else "inconclusive"
    )
    counts["right", verdict] += 1
    if verdict != "confirmed":
        print(
            f"RIGHT THEOREM {verdict}: {label}",
            *(f"  {f.part} {f}" for f in findings if f.status != "confirmed"),
            sep="\n",
            flush=True,
        )
    for expansion in expansions:
        for power in expansion.right.keys() - expansion.vanishing:
            for deviation in DEVIATIONS:
                # only this one coefficient is another one: what is read of the rest stays
                value, error = expansion.found[power]
                read = expansion.found[power]._replace(
                    value=value + deviation * expansion.right[power], error=error
                )
                altered = type(expansion)(
                    **{**vars(expansion), "found": {**expansion.found, power: read}}
                )
                state = next(f.status for f in altered.findings() if f.power == power)
                counts["wrong", state] += 1
                if state != "refuted":
                    print(
                        f"WRONG BY {deviation:.0%} {state}: {label}, {expansion.part} {power}",
                        flush=True,
                    )


def main():
    """Run the campaign; exit status 1 if a count is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--theorems", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    asked = parser.parse_args()
    counts = Counter()
    for seed in range(asked.first, asked.first + asked.theorems):
        judge(seed, counts)
    for kind in ("right", "wrong"):
        print(
            kind, {state: counts[kind, state] for state in ("confirmed", "refuted", "inconclusive")}
        )
    wrong = counts["wrong", "confirmed"] + counts["wrong", "inconclusive"]
    sys.exit(
        int(
            bool(
                counts["right", "refuted"]
                or wrong
                or counts["right", "inconclusive"] > 0.02 * asked.theorems
            )
        )
    )


if __name__ == "__main__":
    main()
