"""m-SAM on digits: how much of the way from n-SAM to m-SAM its SDE explains, at rho = 0.1.

The ablated SDE has n-SAM's drift at `rho^1`. The smaller the effect of that, the more runs it
takes to tell: they grow with m. Run with `python -m experiments.digits_m_sam`; about six minutes on
two cores.
"""

from pathlib import Path

from sdesam import cli

RUNS = {16: 1024, 4: 256, 1: 64}
FIGURES = Path(__file__).resolve().parent.parent / "figures"


def main() -> None:
    """Compare at each micro-batch size and draw the curves."""
    cli.use_all_cores()
    import sdesam
    from sdesam._util import store
    from sdesam.lab import plots

    problem = sdesam.problems.digits()
    for m, runs in RUNS.items():
        found = sdesam.compare(
            "m-sam", problem, lr=0.1, rho=0.1, batch=16, micro=[m], steps=60, runs=runs
        )
        print(found.table(), "\n", flush=True)
        store.write_json(FIGURES / f"digits-m-sam-{m}.json", found.to_json())
        plots.comparison(found.to_json(), FIGURES / f"digits-m-sam-{m}")


if __name__ == "__main__":
    main()
