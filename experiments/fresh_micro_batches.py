"""What drawing fresh micro-batches costs in accuracy: the covariance that they add to m-SAM's noise
on digits, and what it does to the loss.

A step of the SDE of SAM or m-SAM estimates expectations over micro-batches from `q` of them
(`micro_batches` of `bind`), unbiased in drift and noise given `xi`. What varies from draw to draw
adds to the covariance; here it is measured in units of the trace of SGD's noise, `eta tr V/b`. Run
with `python -m experiments.fresh_micro_batches`; about six minutes on two cores.
"""

from pathlib import Path

from sdesam import cli

SETTING = {"lr": 0.1, "rho": 0.1, "batch": 16}
MICRO = (16, 4)
NUMBERS = (4, 16, 64, 128, 256)
STEPS = 60
PAIRS = 1024
RUNS = 256
SHIFTED, REFERENCE = (16, 128), 512
SEED = 0
FIGURES = Path(__file__).resolve().parent.parent / "figures"


def excess(sde, points, pairs, key):
    """What fresh draws add to the trace of the covariance per unit of SDE time, of the noise and of
    the drift, each with its standard error.

    One row per point. From pairs of draws that share `xi`: half the mean square of their
    difference, unbiased. A drift drawn afresh in every step of length lr adds lr times its
    variance.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    @jax.jit
    def squares(x, keys):
        def one_pair(key):
            for_xi, *fresh = jax.random.split(key, 3)
            xi = jax.random.normal(for_xi, sde.noise_shape, jax.tree.leaves(x)[0].dtype)
            noises, drifts = (
                [sde.step_noise(x, xi, k) for k in fresh],
                [sde.step_drift(x, k) for k in fresh],
            )
            return jnp.stack(
                [
                    sum(
                        jnp.sum((a - b) ** 2)
                        for a, b in zip(*map(jax.tree.leaves, two), strict=True)
                    )
                    / 2
                    for two in (noises, drifts)
                ]
            )

        return jax.lax.map(one_pair, keys, batch_size=8)

    rows = []
    for x in points:
        found = np.asarray(squares(x, jax.random.split(key, pairs)), float) * (1, sde.config["lr"])
        rows.append(
            dict(
                zip(
                    ("noise", "drift"),
                    zip(
                        found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(pairs), strict=True
                    ),
                    strict=True,
                )
            )
        )
    return rows


def main() -> None:
    """Measure at the start and after 60 steps; then the loss at the end for few, some and many
    fresh micro-batches, on common `xi`.
    """
    cli.use_all_cores()
    import jax
    import numpy as np

    import sdesam
    from sdesam._util import store
    from sdesam._util.keys import seed_key

    problem = sdesam.problems.digits()
    rows = []
    for m in MICRO:
        chain = sdesam.Chain("m-sam", problem, micro=m, **SETTING)
        end = problem.x0
        for step in range(STEPS):
            end = chain.step(end, jax.random.fold_in(seed_key(SEED + 1), step))
        points = {0: problem.x0, STEPS: end}
        for q in NUMBERS:
            sde = sdesam.derive("m-sam").bind(problem, micro=m, micro_batches=q, **SETTING)
            for (step, x), found in zip(
                points.items(), excess(sde, points.values(), PAIRS, seed_key(SEED)), strict=True
            ):
                leading = SETTING["lr"] * float(problem.trace_cov(x)) / SETTING["batch"]
                rows.append(
                    {
                        "m": m,
                        "step": step,
                        "micro_batches": q,
                        **{name: tuple(np.array(pair) / leading) for name, pair in found.items()},
                    }
                )
                print(rows[-1], flush=True)
    ends = {}
    for q in (*SHIFTED, REFERENCE):
        sde = sdesam.derive("m-sam").bind(problem, micro=16, micro_batches=q, **SETTING)
        out = sdesam.simulate(
            sde,
            seed_key(SEED),
            RUNS,
            STEPS * SETTING["lr"],
            SETTING["lr"],
            "heun",
            times=[STEPS * SETTING["lr"]],
            observe=["loss"],
            keep="values",
        )
        ends[q] = np.ravel(out.values["loss"]).astype(float)
    shifts = []
    for q in SHIFTED:
        away = ends[q] - ends[REFERENCE]
        shifts.append(
            {
                "micro_batches": q,
                "loss": ends[q].mean(),
                "shift": away.mean(),
                "stderr": away.std(ddof=1) / np.sqrt(RUNS),
            }
        )
        print(shifts[-1], flush=True)
    config = {
        **SETTING,
        "problem": problem.name,
        "samples": problem.n,
        "micro": MICRO,
        "micro_batches": NUMBERS,
        "steps": STEPS,
        "pairs": PAIRS,
    }
    data = {
        "schema": "sdesam.fresh-micro-batches/1",
        "config": {
            **config,
            "runs": RUNS,
            "reference": REFERENCE,
            "seed": SEED,
            "command": "python -m experiments.fresh_micro_batches",
        },
        "provenance": store.provenance(),
        "results": {
            "excess over the trace of SGD's noise, standard error": rows,
            "loss at the end, m = 16, less that of the reference": shifts,
        },
    }
    store.write_json(FIGURES / "fresh_micro_batches.json", data)
    print("wrote", FIGURES / "fresh_micro_batches.json")


if __name__ == "__main__":
    main()
