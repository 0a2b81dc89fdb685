"""Theorems 3.3 to 3.8: how strongly discrete steps regularise, measured, against 1/m.

One step from one point is repeated with many mini-batches; steps of different optimizers use the
SAME mini-batches, so their difference has little noise. With the difference quotient of the step in
rho,

    USAM:  E G_m - E G_n-USAM = rho c_m grad(tr V) / 2 + O(rho^2)      strength s = <., grad tr V> /
    |grad tr V|^2 = rho c_m / 2 SAM:   E G_m - E G_SGD    = rho grad E|grad f_I| + O(rho^2)
    set beside the derivative of E|grad f_I|, itself sampled

where `c_m = 1/m` with replacement and `(n-m)/(m(n-1))` without. Nothing here is taken from the
package's algebra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import sdesam
from sdesam._util.keys import seed_key
from sdesam.lab import Experiment, plots
from sdesam.lab.runs import Numbers, Run
from sdesam.verify import statistics

SIZES = (1, 2, 4, 16, 64, 128)
SAMPLINGS = {True: "with replacement", False: "without replacement"}
SETTING = {
    "train": 128,
    "width": 16,
    "batch": 128,
    "rho": 0.01,
    "warm": 150,
    "warm_lr": 0.1,
    "draws": 256,
}
WITHIN = 0.03
"""How near to rho/2 the fitted slope must be."""


def runs(preset: str, seeds: int | None = None) -> list[dict[str, Any]]:
    """Each seed is another start, another point and other batches; both samplings."""
    count = seeds or {"quick": 10, "full": 30}[preset]
    return [
        {"run": "digits one step", **SETTING, "replace": replace, "seed": seed}
        for seed in range(count)
        for replace in SAMPLINGS
    ]


def execute(config: Mapping[str, Any], needed: Sequence[Run], device: Any) -> Numbers:
    """The mean one-step direction of each optimizer, along two fixed vectors."""
    with jax.default_device(device):
        start = sdesam.problems.digits(config["train"], config["width"], config["seed"])
        warm = sdesam.Chain("sgd", start, config["warm_lr"], batch=16)
        point = jax.tree.map(
            lambda leaf: leaf[0],
            sdesam.train(
                warm,
                seed_key(config["seed"]),
                1,
                config["warm"],
                times=[0],
                devices=[device],
                progress=False,
            ).final,
        )
        problem = sdesam.problems.digits(
            config["train"], config["width"], config["seed"], start=point
        )
        flat, back = ravel_pytree(problem.x0)
        down = ravel_pytree(jax.grad(lambda x: _trace(problem, x))(problem.x0))[0]
        unit = down / jnp.linalg.norm(down)

        def along(variant: str, micro: int | None = None) -> np.ndarray:
            """`<G, unit>` of each draw; the mini-batches are those of the key, the same for every
            optimizer.
            """
            # lr = 1: a step is the direction
            rho = None if variant == "sgd" else config["rho"]
            chain = sdesam.Chain(
                variant, problem, 1.0, rho, config["batch"], micro, config["replace"]
            )
            key = seed_key(1000 + config["seed"])
            out = sdesam.train(
                chain,
                key,
                config["draws"],
                1,
                times=[0],
                chunk=64,
                devices=[device],
                progress=False,
            )
            return np.asarray(
                jax.vmap(lambda x: (flat - ravel_pytree(x)[0]) @ unit)(out.final), np.float64
            )

        plain, whole, whole_sam = along("sgd"), along("n-usam"), along("n-sam")
        usam = np.array([along("m-usam", m) - whole for m in SIZES])
        sam = np.array([along("m-sam", m) - plain for m in SIZES])
        norm = float(jnp.linalg.norm(down))
        predicted = [_norm_derivative(problem, m, config, unit) for m in SIZES]
        g = ravel_pytree(problem.grad(problem.x0))[0]
        product = jax.jvp(lambda y: ravel_pytree(problem.grad(back(y)))[0], (flat,), (unit,))[1]

    def mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return values.mean(axis=-1), values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])

    strengths, errors = mean(usam / norm)
    derivatives, derivative_errors = mean(sam / config["rho"])
    n_sam, n_sam_error = mean((whole_sam - plain) / config["rho"])
    n_usam, n_usam_error = mean((whole - plain) / config["rho"])
    return Numbers(
        {
            "norm of grad tr V": norm,
            "n-SAM": [float(n_sam), float(n_sam_error)],
            "n-SAM predicted": float(g @ product / jnp.linalg.norm(g)),
            "n-USAM": [float(n_usam), float(n_usam_error)],
            "n-USAM predicted": float(g @ product),
        },
        {
            "strength": strengths,
            "strength error": errors,
            "derivative": derivatives,
            "derivative error": derivative_errors,
            "derivative of the norm": np.array([p[0] for p in predicted]),
            "derivative of the norm error": np.array([p[1] for p in predicted]),
        },
    )


def _trace(problem: sdesam.FiniteSum, x: Any) -> jax.Array:
    """The trace of V, from per-sample gradients."""
    each = jax.vmap(lambda sample: ravel_pytree(jax.grad(problem.sample_loss)(x, sample))[0])(
        problem.data
    )
    return jnp.sum((each - each.mean(axis=0)) ** 2) / problem.n


def _norm_derivative(
    problem: sdesam.FiniteSum, m: int, config: Mapping[str, Any], unit: jax.Array
) -> tuple[float, float]:
    """The derivative of `E|grad f_I|` along `unit`, over micro-batches drawn by numpy; exact for m
    = 1. With its standard error.
    """
    rng = np.random.default_rng([config["seed"], m])
    if m == 1:
        picked = np.arange(problem.n)[:, None]
    elif config["replace"]:
        picked = rng.integers(0, problem.n, (4000, m))
    else:
        picked = rng.permuted(np.broadcast_to(np.arange(problem.n), (4000, problem.n)), axis=1)[
            :, :m
        ]
    slopes = np.asarray(
        _slopes(problem.sample_loss, problem.data, problem.x0, jnp.asarray(picked), unit),
        np.float64,
    )
    return float(slopes.mean()), 0.0 if m == 1 else float(slopes.std(ddof=1) / np.sqrt(len(slopes)))


@partial(jax.jit, static_argnums=0)
def _slopes(sample_loss: Any, data: Any, x: Any, picked: jax.Array, unit: jax.Array) -> jax.Array:
    flat, back = ravel_pytree(x)

    def each(y: jax.Array) -> jax.Array:
        return jax.vmap(lambda sample: ravel_pytree(jax.grad(sample_loss)(back(y), sample))[0])(
            data
        )

    gradients, moved = jax.jvp(each, (flat,), (unit,))

    def one(indices: jax.Array) -> jax.Array:
        g, dg = gradients[indices].mean(axis=0), moved[indices].mean(axis=0)
        return g @ dg / jnp.linalg.norm(g)

    slopes: jax.Array = jax.lax.map(one, picked, batch_size=100)
    return slopes


def factor(m: np.ndarray, n: int, replace: bool) -> np.ndarray:
    """`c_m`: 1/m, or the finite-population factor."""
    return 1 / m if replace else (n - m) / (m * (n - 1))


def summarise(stored: Sequence[Run]) -> dict[str, Any]:
    """Slopes through the origin, one per seed, with the standard error over seeds."""
    summary: dict[str, Any] = {"verdicts": {}, "lines": []}
    rho, n = SETTING["rho"], int(SETTING["train"])
    at = np.array(SIZES, float)
    good, off = [], []
    for replace, words in SAMPLINGS.items():
        rows = [run for run in stored if run.config["replace"] == replace]
        if len(rows) < 2:
            return summary | {"lines": ["too few whole seeds for statistics"]}
        table = np.stack([run.numbers.arrays["strength"] for run in rows])
        fits = {}
        for law, c in (("1/m", 1 / at), ("c_m", factor(at, n, replace))):
            slopes = table @ c / (c @ c) / (rho / 2)
            residual = table / (rho / 2) - slopes[:, None] * c
            fits[law] = {
                "slope / (rho/2)": statistics.interval(slopes),
                "standard error": float(slopes.std(ddof=1) / np.sqrt(len(slopes))),
            }
            fits[law]["largest misfit"] = float(abs(residual.mean(axis=0)).max())
            # 1/m and c_m differ most, relative to themselves, at large m
            ratio = statistics.interval(table[:, SIZES.index(64)] / (rho / 2) / c[SIZES.index(64)])
            fits[law]["m = 64 / law"] = ratio
        slope = fits["c_m"]["slope / (rho/2)"]
        sam = np.stack([run.numbers.arrays["derivative"] for run in rows])
        norm = np.stack([run.numbers.arrays["derivative of the norm"] for run in rows])
        quotient = (sam * norm).sum(axis=1) / (norm * norm).sum(axis=1)
        zero = np.array(
            [run.numbers.values["n-SAM"][0] / run.numbers.values["n-SAM predicted"] for run in rows]
        )
        flat = np.array(
            [
                run.numbers.values["n-USAM"][0] / run.numbers.values["n-USAM predicted"]
                for run in rows
            ]
        )
        none = [
            (r.numbers.values["n-USAM"][0] - r.numbers.values["n-USAM predicted"])
            / r.numbers.values["norm of grad tr V"]
            / 0.5
            for r in rows
        ]
        part = {
            "n-USAM's strength / (rho/2)": statistics.interval(none),
            "USAM": fits,
            "SAM / derivative of E|g_I|": statistics.interval(quotient),
        }
        part |= {
            "n-SAM / derivative of |g|": statistics.interval(zero),
            "n-USAM / derivative of |g|^2/2": statistics.interval(flat),
        }
        summary[words] = part
        none_found = part["n-USAM's strength / (rho/2)"]
        for found in (slope, part["SAM / derivative of E|g_I|"]):
            good.append(found.lower >= 1 - WITHIN and found.upper <= 1 + WITHIN)
            off.append(found.lower > 1 + WITHIN or found.upper < 1 - WITHIN)
        summary["lines"] += [
            (
                f"{words}: USAM slope against c_m, in units of rho/2: {slope}, standard error"
                f" {fits['c_m']['standard error']:.2g}; at m = 64 strength / c_m"
                f" {fits['c_m']['m = 64 / law']}, strength / (1/m) {fits['1/m']['m = 64 / law']}"
            ),
            (
                f"{words}: SAM's regularisation / derivative of E|grad f_I|:"
                f" {part['SAM / derivative of E|g_I|']}"
            ),
            (
                f"{words}: n-SAM's / derivative of |grad f|: {part['n-SAM / derivative of |g|']}; "
                f"n-USAM's / derivative of |grad f|^2/2: {part['n-USAM / derivative of |g|^2/2']} "
            ),
            (
                f"{words}: strength of grad tr V in n-USAM's step, in units of rho/2 (0: none):"
                f" {none_found}"
            ),
        ]
    status = "confirmed" if all(good) else "refuted" if any(off) else "inconclusive"
    return summary | {
        "verdicts": {
            "theorems 3.3-3.8": {
                "status": status,
                "reason": (
                    f"the slopes are {'' if all(good) else 'not '}within {WITHIN:.0%} of rho/2"
                ),
            }
        }
    }


def figure(data: Mapping[str, Any]) -> Any:
    """USAM's strength against 1/m, and its share of 1/m against m; SAM's regularisation against the
    derivative of E|grad f_I|.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(plots.COLUMN, 6.2), layout="constrained")
    line, share, sam = drawn.subplots(3, 1)
    at, rho, n = np.array(SIZES, float), SETTING["rho"], int(SETTING["train"])
    fine = np.geomspace(1, n, 200)
    runs = data["results"]["runs"]
    for k, (replace, words) in enumerate(SAMPLINGS.items()):
        rows = [run for run in runs if run["config"]["replace"] == replace]
        look = {
            "fmt": plots.MARKERS[k],
            "ms": 4,
            "mfc": "white",
            "color": plots.COLOURS[k],
            "zorder": 3,
            "capsize": 2,
        }
        for axes, places, unit in ((line, 1 / at, 1 / rho), (share, at, 2 * at / rho)):
            mean, low, high = statistics.band([unit * np.array(run["strength"]) for run in rows])
            axes.errorbar(places, mean, [mean - low, high - mean], label=words, **look)
        share.plot(
            fine,
            factor(fine, n, replace) * fine,
            color=plots.COLOURS[k],
            ls=("-", "--")[k],
            lw=0.9,
            label=("$1$", r"$(n-m)/(n-1)$")[k],
        )
        x, y = (
            np.array([run[name] for run in rows]).ravel()
            for name in ("derivative of the norm", "derivative")
        )
        sam.plot(
            x, y, plots.MARKERS[k], ms=3.5, mfc="none", mew=0.7, color=plots.COLOURS[k], label=words
        )
    none = [(run["n-USAM"][0] - run["n-USAM predicted"]) / run["norm of grad tr V"] for run in runs]
    line.plot(0, np.mean(none), "x", ms=5, color="0.3", label="n-USAM", zorder=4)
    line.plot([0, 1], [0, 0.5], color="0.6", lw=0.8, label=r"slope $\frac{1}{2}$")
    line.set_xlabel("$1/m$")
    line.set_ylabel(r"strength of $\nabla\,\mathrm{tr}V$, $/\rho$")
    share.axhline(0, color="0.3", lw=0.8, ls=":")
    share.set_xscale("log")
    share.set_xticks(SIZES, [str(m) for m in SIZES])
    share.minorticks_off()
    share.set_xlabel("micro-batch $m$")
    share.set_ylabel(r"strength / $(\rho/2m)$")
    line.set_title("USAM; bars: 95 % interval of the mean", fontsize=7)
    n_sam = np.array([[run["n-SAM predicted"], run["n-SAM"][0]] for run in runs])
    sam.plot(*n_sam.T, "x", ms=4, color="0.3", label=r"n-SAM, against $\partial|\nabla f|$")
    ends = np.array(sam.get_xlim())
    sam.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
    sam.set_xlabel(r"derivative of $E|\nabla f_I|$ along $\nabla\,\mathrm{tr}V$")
    sam.set_ylabel(r"SAM's step minus SGD's, $/\rho$")
    sam.set_title("SAM: every $m$ and seed", fontsize=7)
    for axes in (line, share, sam):
        axes.legend(fontsize=6.5)
    return drawn


EXPERIMENT = Experiment(
    name="variance_regularizer",
    title="The variance regulariser, measured",
    shows="arXiv 2509.18001, theorems 3.3 to 3.8",
    runs=runs,
    execute=execute,
    summarise=summarise,
    figure=figure,
)
