"""The effective micro-batch of RW-SAM on digits: against lambda, by norm estimate, early and late
in training, with and without label noise.

Run with `python -m experiments.rw_sam_effective`; about a minute on two cores.
"""

from pathlib import Path

from sdesam import cli

BATCH = 16
STEPS = (0, 60, 600)
LAMS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
NOISE = 0.2
FIGURES = Path(__file__).resolve().parent.parent / "figures" / "rw_sam"


def noisy(problem):
    """The same images, a share of the labels drawn anew."""
    import numpy as np

    import sdesam

    rng = np.random.default_rng(0)
    labels = np.asarray(problem.data["label"]).copy()
    wrong = rng.random(problem.n) < NOISE
    labels[wrong] = rng.integers(0, 10, wrong.sum())
    return sdesam.FiniteSum(
        problem.sample_loss,
        {**problem.data, "label": labels},
        problem.x0,
        name="digits, noisy labels",
    )


def main() -> None:
    """Train with SAM, measure at some steps of one run, draw."""
    cli.use_all_cores()
    import jax

    import sdesam
    from sdesam._util import store
    from sdesam._util.keys import seed_key
    from sdesam.lab import plots

    estimates = {
        "exact": sdesam.NormEstimate("exact"),
        "1 Rademacher": sdesam.NormEstimate(),
        "1 Gaussian": sdesam.NormEstimate("gaussian"),
        "8 Rademacher": sdesam.NormEstimate(directions=8),
        "exact, squared": sdesam.NormEstimate("exact", square=True),
    }
    rows = []
    clean = sdesam.problems.digits()
    for problem in (clean, noisy(clean)):
        chain = sdesam.Chain("sam", problem, lr=0.1, rho=0.1, batch=BATCH)
        x, done = problem.x0, 0
        for step in STEPS:
            while done < step:
                x, done = chain.step(x, jax.random.fold_in(seed_key(1), done)), done + 1
            for name, norms in estimates.items():
                for lam in LAMS:
                    found = sdesam.effective_micro_batch(
                        problem, x, batch=BATCH, lam=lam, norms=norms, key=seed_key(0), batches=1024
                    )
                    row = {
                        "problem": problem.name,
                        "step": step,
                        "norms": name,
                        "lam": lam,
                        "samples": found.samples,
                    }
                    rows.append(
                        {
                            **row,
                            "step_reading": found.step._asdict(),
                            "weighted_reading": found.weighted._asdict(),
                        }
                    )
                print(f"{problem.name}, step {step}, {name}, lam = {lam:g}: {found}", flush=True)
            sam, one = found.family[found.sizes.index(BATCH)], found.family[0]
            for name, response in (
                ("m-SAM, m = b/4", found.family[found.sizes.index(BATCH // 4)]),
                ("n-SAM", found.family[-1]),
            ):
                share = float((response - sam) / (one - sam))
                rows.append(
                    {
                        "problem": problem.name,
                        "step": step,
                        "norms": name,
                        "share": share,
                        "loss": float(problem.loss(x)),
                    }
                )
    data = {
        "schema": "sdesam.effective/1",
        "config": {
            "batch": BATCH,
            "steps": STEPS,
            "lams": LAMS,
            "noise": NOISE,
            "command": "python -m experiments.rw_sam_effective",
        },
        "provenance": store.provenance(),
        "results": {"rows": rows},
    }
    store.write_json(FIGURES / "effective.json", data)
    print("wrote", *plots.effective(store.plain(data), FIGURES / "effective"))


if __name__ == "__main__":
    main()
