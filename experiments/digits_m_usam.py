"""m-USAM on digits: what the rho^2 terms add, at rho = 0.1 and along rho = eta^(2/3), where the gap
between optimizer and SDE shrinks.

Run with `python -m experiments.digits_m_usam`; about three minutes on two cores.
"""

from pathlib import Path

from sdesam import cli

RATES = (0.2, 0.1, 0.05)
TIME = 6.0
FIGURES = Path(__file__).resolve().parent.parent / "figures"


def main() -> None:
    """Compare at each learning rate, with the `rho^2` terms ablated, and draw the gaps."""
    cli.use_all_cores()
    import sdesam
    from sdesam._util import store
    from sdesam.lab import plots

    problem = sdesam.problems.digits()
    fixed = sdesam.compare(
        "m-usam",
        problem,
        lr=0.1,
        rho=0.1,
        batch=16,
        micro=[16, 4, 1],
        steps=60,
        without="rho^2",
        judged="loss",
    )
    print(fixed.table(), "\n", flush=True)
    store.write_json(FIGURES / "digits-rho2.json", fixed.to_json())
    plots.comparison(fixed.to_json(), FIGURES / "digits-rho2")
    runs = []
    for lr in RATES:
        found = sdesam.compare(
            "m-usam",
            problem,
            lr=lr,
            rho=lr ** (2 / 3),
            batch=16,
            micro=[4],
            steps=round(TIME / lr),
            runs=256,
            without="rho^2",
            judged="loss",
        )
        print(f"eta = {lr:g}, rho = eta^(2/3) = {lr ** (2 / 3):.4g}\n{found.table()}\n", flush=True)
        runs.append(found.to_json())
    data = {
        "schema": "sdesam.path/1",
        "config": {
            "path": "rho = eta^(2/3)",
            "rates": RATES,
            "time": TIME,
            "command": "python -m experiments.digits_m_usam",
        },
        "provenance": store.provenance(),
        "results": {"comparisons": runs},
    }
    store.write_json(FIGURES / "digits-path.json", data)
    print("wrote", *plots.path(store.plain(data), FIGURES / "digits-path"))


if __name__ == "__main__":
    main()
