"""What the experiments' summaries make of runs that are made up: each condition of each verdict
decides one case alone.
"""

import numpy as np
import pytest

from sdesam.lab.runs import Numbers, Run

digits = pytest.importorskip("experiments._digits")
from experiments import (  # noqa: E402
    covariance_trace,
    fisher_hessian,
    m_sharpness,
    rw_sam,
    sde_vs_discrete,
    variance_regularizer,
    weak_order,
)
from tests.test_experiments import made_up  # noqa: E402


def status(summary, name):
    return summary["verdicts"][name]["status"]


STATES = [
    (["confirmed", "confirmed"], "confirmed"),
    (["confirmed", "inconclusive"], "inconclusive"),
    (["confirmed", "refuted"], "refuted"),
    (["inconclusive", "refuted"], "refuted"),
    (["inconclusive", "inconclusive"], "inconclusive"),
]


@pytest.mark.parametrize(("states", "wanted"), STATES)
def test_several_verdicts_become_one(states, wanted):
    curve = {"slope": 2.0, "predicted": 2.0, "vanishes": False}
    signatures = [
        Run(
            {"variant": "m-usam", "seed": k},
            Numbers({"results": {"verdict": s, "full": curve, "terms": {}}}),
            1.0,
            {},
        )
        for k, s in enumerate(states)
    ]
    assert status(weak_order.summarise(signatures), "weak order (2,3)") == wanted
    rows = [
        Run(
            {"variant": "m-usam", "micro": k + 1},
            Numbers({"status": s, "reason": "", "term": "rho^1", "shares": {}}),
            1.0,
            {},
        )
        for k, s in enumerate(states)
    ]
    assert (
        status(sde_vs_discrete.summarise(rows), "the SDE follows the optimizer in tr V") == wanted
    )


RIGHT = {
    "softmax, V and H": 0.02,
    "softmax, V and F": 0.02,
    "misspecified, V and H": 0.3,
    "least squares, V and sigma^2 H": 0.02,
    "least squares, V and H": 3.0,
}


def fisher(change=None, cov=0.001, hessian=0.5, spread=0.0):
    """Two seeds; `spread` is how far the changed distances of the second are above those of the
    first.
    """
    runs = []
    for seed in range(2):
        for name, value in {**RIGHT, **(change or {})}.items():
            more = spread * seed if name in (change or {}) else 0.0
            runs.append(
                Run(
                    {"run": "fisher", "n": 25000, "seed": seed},
                    Numbers({name: value + more}),
                    1.0,
                    {},
                )
            )
        curves = {
            "loss": [1.0, 1e-6],
            "trace_cov": [2.0, 2 * cov],
            "hessian_trace": [4.0, 4 * hessian],
        }
        runs.append(
            Run(
                fisher_hessian.NETWORK,
                Numbers({}, {name: np.array(curve) for name, curve in curves.items()}),
                1.0,
                {},
            )
        )
    found = fisher_hessian.summarise(runs)
    return status(found, "L-FIM"), status(found, "L-FIMn")


def test_where_covariance_fisher_and_hessian_are_near():
    assert fisher() == ("confirmed", "refuted")
    for name, value in RIGHT.items():
        # what is claimed and does not hold refutes; where all holds, nothing was tested
        assert fisher({name: 0.2 if value < 0.1 else 0.02})[0] == (
            "refuted" if value < 0.1 else "inconclusive"
        ), name
    assert fisher(dict.fromkeys(RIGHT, 0.02)) == ("inconclusive", "confirmed")
    for name in RIGHT:
        assert fisher({**dict.fromkeys(RIGHT, 0.02), name: 0.2})[1] == "refuted", name
    assert fisher(cov=0.02)[0] == "inconclusive", "tr V stays"
    assert fisher(hessian=0.1)[0] == "inconclusive", "tr H goes, too"
    for name, value in RIGHT.items():
        unclear = {name: 0.02 if value < 0.1 else 0.2}
        assert fisher(unclear) == ("confirmed", "refuted"), name
        # 0.02 and 0.08: the interval reaches beyond 0.1; 0.2 and 0.26: and back
        assert fisher(unclear, spread=0.06) == ("inconclusive", "refuted"), name
    assert fisher(dict.fromkeys(RIGHT, 0.08), spread=0.06) == ("inconclusive", "inconclusive")


def one_steps(usam=(1.0, 1.0), sam=(1.0, 1.0), spread=0.0):
    """Ten seeds of both samplings, strengths and derivatives times these factors; `spread` is their
    standard deviation.
    """
    m, noise, runs = np.array([1, 2, 4, 16, 64, 128]), np.random.default_rng(0).normal(size=10), []
    for seed in range(10):
        for k, c in enumerate((1 / m, (128 - m) / (m * 127))):
            wobble = 1 + spread * noise[seed]
            arrays = {
                "strength": 0.005 * c * usam[k] * wobble,
                "derivative": 3.0 / m * sam[k] * wobble,
                "derivative of the norm": 3.0 / m,
            }
            values = {
                "n-SAM": [2.0, 0.1],
                "n-SAM predicted": 2.5,
                "n-USAM": [1.5, 0.1],
                "n-USAM predicted": 1.0,
                "norm of grad tr V": 4.0,
            }
            runs.append(Run({"replace": k == 0}, Numbers(values, arrays), 1.0, {}))
    return variance_regularizer.summarise(runs)


def test_slopes_of_the_variance_regulariser():
    def verdict(*of, **options):
        return status(one_steps(*of, **options), "theorems 3.3-3.8")

    assert verdict() == verdict((1.02, 0.98), (0.98, 1.02)) == "confirmed"
    for factors in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95)):
        assert verdict(factors) == verdict(sam=factors) == "refuted", factors
    assert verdict((1.05, 1), spread=0.2) == "inconclusive"
    fits = one_steps()["without replacement"]
    assert fits["USAM"]["c_m"]["slope / (rho/2)"].mean == pytest.approx(1)
    assert fits["USAM"]["c_m"]["largest misfit"] < 1e-12 < fits["USAM"]["1/m"]["largest misfit"]
    assert fits["USAM"]["1/m"]["m = 64 / law"].mean == pytest.approx(64 / 127)
    assert fits["n-SAM / derivative of |g|"].mean == pytest.approx(0.8)
    assert fits["n-USAM / derivative of |g|^2/2"].mean == pytest.approx(1.5)
    assert fits["n-USAM's strength / (rho/2)"].mean == pytest.approx(0.25), (
        "(1.5 - 1) / 4, in units of 1/2"
    )
    spread = one_steps(spread=0.2)["with replacement"]["USAM"]["c_m"]
    slopes = 1 + 0.2 * np.random.default_rng(0).normal(size=10)
    assert spread["standard error"] == pytest.approx(slopes.std(ddof=1) / np.sqrt(10))


def test_costs_are_ratios_to_sgd_and_accuracy_decides():
    of_sgd = {digits.label(condition): k + 1 for k, condition in enumerate(m_sharpness.CONDITIONS)}
    cost = Run(
        m_sharpness.COST,
        Numbers({"milliseconds": {name: [1.0 * k, 4.0 * k] for name, k in of_sgd.items()}}),
        1.0,
        {},
    )
    found = m_sharpness.summarise([cost, *made_up()])
    assert {name: c.mean for name, c in found["cost"].items()} == pytest.approx(of_sgd)
    assert status(found, "L-Gen") == "confirmed"
    assert status(m_sharpness.summarise([cost, *made_up(order=(3, 2, 1, 0))]), "L-Gen") == "refuted"
    assert status(m_sharpness.summarise([cost, *made_up(effect=0.0)]), "L-Gen") == "inconclusive"
    assert (
        found["tests"]["m=64 - SGD"].difference.mean
        > 0
        > found["tests"]["n-SAM - m=64"].difference.mean
    )
    assert found["p (Holm)"]["trend of accuracy"] > found["tests"]["trend of accuracy"].p


def curvatures(order):
    """Ten seeds whose tr V falls by a factor e with each m in this order, SGD's one above the
    mini-batch's; the Hessian does not care for m.
    """
    rng, runs = np.random.default_rng(1), []
    levels = {
        "SGD": 1.0,
        "RW-SAM λ=2": 0.5,
        **{f"m={m}": -float(k) for m, k in zip(digits.MICRO, order, strict=True)},
    }
    for seed in range(10):
        for condition in covariance_trace.CONDITIONS:
            name = digits.label(condition)
            sizes = {
                "trace_cov": levels[name],
                **dict.fromkeys(("hessian_trace", "eigenvalue"), max(levels[name], 0.0)),
            }
            values = {
                quantity: float(np.exp(size + 0.1 * rng.normal()))
                for quantity, size in sizes.items()
            }
            runs.append(
                Run(
                    {"of": digits.training(seed, condition), "seed": seed}, Numbers(values), 1.0, {}
                )
            )
    return covariance_trace.summarise(runs)


def test_the_trace_of_the_covariance_decides():
    found = curvatures((0, 1, 2, 3))
    assert status(found, "L-TrV") == "confirmed"
    assert status(curvatures((3, 2, 1, 0)), "L-TrV") == "refuted"
    for name in covariance_trace.QUANTITIES:
        assert found["tests"][f"log {name}, m=64 - SGD"].difference.mean == pytest.approx(
            -1, abs=0.2
        )
        assert found["tests"][f"log {name}, RW-SAM λ=2 - m=64"].difference.mean == pytest.approx(
            0.5, abs=0.2
        )


def test_what_rw_sam_acts_like():
    """log tr V: SGD 0, then -1, -2, -3, -4 at m = 64, 16, 4, 1; RW-SAM between, with a share of
    SAM's fall that is its own.
    """
    ladder = {"SGD": 0.0, "m=64": -1.0, "m=16": -2.0, "m=4": -3.0, "m=1": -4.0}
    own = {1.0: -0.5, 10.0: -1.5, 100.0: -3.0, 1000.0: -5.0}
    levels = {
        **ladder,
        **{digits.label({"variant": "rw-sam", "lam": lam}): v for lam, v in own.items()},
    }
    rng, runs = np.random.default_rng(0), []
    for seed in range(3):
        for start in rw_sam.STARTS:
            for condition in rw_sam.CONDITIONS:
                name = digits.label(condition)
                curves = {
                    "trace_cov": np.array([1.0, np.exp(levels[name] + seed)]),
                    "test_accuracy": np.array([0.5, 0.8 + 0.01 * rng.normal()]),
                }
                runs.append(
                    Run(
                        digits.training(seed, condition, start=start),
                        Numbers({"diverged": False}, curves),
                        1.0,
                        {},
                    )
                )
    found = rw_sam.summarise(runs)["from scratch"]["effective m"]
    for lam, m, at_least_64 in ((1.0, 64, 3), (10.0, 32, 0), (100.0, 4, 0), (1000.0, 1, 0)):
        one = found[digits.label({"variant": "rw-sam", "lam": lam})]
        assert one["mean"] == pytest.approx(m)
        assert one["seeds at 64 or above"] == at_least_64
        assert one[rw_sam.SHARE].mean == pytest.approx(-own[lam])
