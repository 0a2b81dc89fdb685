"""The experiments' own arithmetic: verdicts on made-up runs with their controls, and one short
training run for real.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam import lab
from sdesam.lab.runs import Numbers, Run, key

digits = pytest.importorskip("experiments._digits")
from experiments import (  # noqa: E402
    escape,
    fisher_hessian,
    fresh_micro_batches,
    label_noise,
    rw_sam,
    variance_regularizer,
)


def made_up(seeds=10, order=(0, 1, 2, 3), effect=1.0):
    """Runs of `escape` whose accuracy rises by `effect` percent with each smaller m, in the given
    order of m.
    """
    rng = np.random.default_rng(0)
    levels = {"SGD": -1.0, "n-SAM": -1.0, digits.label(digits.RW_SAM): 0.0}
    levels |= {f"m={m}": float(k) for m, k in zip(digits.MICRO, order, strict=True)}
    runs = []
    for seed in range(seeds):
        start = rng.normal(scale=5)
        for condition in escape.CONDITIONS:
            level = effect * levels[digits.label(condition)]
            accuracy = 0.8 + 0.01 * (start + level + 0.3 * rng.normal())
            curves = {
                "test_accuracy": np.array([0.5, accuracy]),
                "trace_cov": np.array([1.0, np.exp(-level + 0.1 * rng.normal())]),
            }
            runs.append(
                Run(digits.training(seed, condition), Numbers({"diverged": False}, curves), 1.0, {})
            )
    return runs


def verdicts(runs):
    """The verdict on L-Esc, and what the trend of tr V in the same runs says."""
    found = escape.summarise(runs)
    assert found["verdicts"].keys() == {"L-Esc"}
    return {
        "L-Esc": found["verdicts"]["L-Esc"]["status"],
        "tr V": found["tests"]["trend of tr V"].verdict(),
    }


def test_a_verdict_and_its_controls():
    assert verdicts(made_up()) == {"L-Esc": "confirmed", "tr V": "confirmed"}
    assert verdicts(made_up(order=(3, 2, 1, 0))) == {
        "L-Esc": "refuted",
        "tr V": "refuted",
    }, "reversed"
    assert verdicts(made_up(effect=0.0)) == {
        "L-Esc": "inconclusive",
        "tr V": "inconclusive",
    }, "no effect"
    assert verdicts(made_up(order=(1, 3, 0, 2))) == {
        "L-Esc": "inconclusive",
        "tr V": "inconclusive",
    }, "another order"


def test_seeds_that_are_not_whole_are_left_out_of_all_conditions():
    runs = made_up(seeds=4)
    broken = runs[8]
    runs[8] = Run(broken.config, Numbers({"diverged": True}, broken.numbers.arrays), 1.0, {})
    table = digits.Table(runs[:-1])  # the last seed lacks a condition, the second diverged in one
    assert table.seeds == [0, 2]
    assert table.diverged == {digits.label(broken.config): 1}
    assert escape.summarise(runs[:8])["lines"] == ["too few whole seeds for statistics"]


def test_effective_micro_batch():
    curve = [0.8, 0.4, 0.2, 0.1]  # at m = 64, 16, 4, 1: a power law, tr V ~ m^(1/2)
    assert rw_sam.effective_micro(0.8 / 2**0.5, curve) == pytest.approx(32)
    assert rw_sam.effective_micro(0.2, curve) == pytest.approx(4)
    assert rw_sam.effective_micro(5.0, curve) == pytest.approx(64)
    assert rw_sam.effective_micro(0.01, curve) == pytest.approx(1)


def test_what_fresh_micro_batches_add():
    """Against the variance of a sample covariance of q draws (closed form), over all 25
    micro-batches; 5 standard errors, false alarms 6e-7 each.
    """
    data, x, numbers = (
        np.random.default_rng(21).normal(size=(5, 2)),
        np.array([0.3, -0.2]),
        {"lr": 0.1, "rho": 0.3, "batch": 4, "micro": 2, "eps": 0.2},
    )
    q, n, m, lr, rho = 8, 5, 2, 0.1, 0.3
    with jax.enable_x64(True):
        sde = sdesam.derive("m-sam").bind(
            sdesam.FiniteSum(lambda y, a: jnp.sum(jnp.sin(a * y)), data, x),
            micro_batches=q,
            **numbers,
        )
        (found,) = fresh_micro_batches.excess(sde, [x], 8000, jax.random.key(0))
    listed = np.array(list(itertools.product(range(n), repeat=m)))
    v, bent = (
        (data * np.cos(data * x))[listed].mean(axis=1),
        -(data**2 * np.sin(data * x))[listed].mean(axis=1),
    )
    F = m * rho * (bent * v / np.sqrt(np.sum(v**2, axis=1, keepdims=True) + 0.04))
    F -= F.mean(axis=0)
    xi = np.random.default_rng(0).normal(size=(20_000, n))
    W = (xi - xi.mean(axis=1, keepdims=True))[:, listed].sum(axis=2) * n / m * np.sqrt(lr / 4 / n)
    W -= W.mean(axis=1, keepdims=True)
    both = np.mean(W[:, :, None] ** 2 * F**2, axis=1)
    cross, w2, f2 = W @ F / len(F), np.mean(W**2, axis=1)[:, None], np.mean(F**2, axis=0)
    noise = np.sum(both / q - (q - 2) / (q * (q - 1)) * cross**2 + w2 * f2 / (q * (q - 1)), axis=1)
    away = found["noise"][0] - noise.mean()
    error = np.hypot(found["noise"][1], noise.std() / np.sqrt(len(noise)))
    assert abs(away) < 5 * error
    assert abs(found["noise"][0] - noise.mean() * q / (q - 1)) > 5 * error, (
        "control: another number of draws"
    )
    # whose own check is in `tests/sde/test_micro_batches.py`: it is unbiased
    assert found["drift"][0] > 0


def test_finite_population_factor():
    m = np.array([1.0, 2.0, 5.0])
    assert variance_regularizer.factor(m, 5, True).tolist() == [1, 0.5, 0.2]
    assert variance_regularizer.factor(m, 5, False).tolist() == [1, 3 / 8, 0]


def test_equal_runs_are_shared():
    trained = {key(c) for c in lab.experiment("m_sharpness").configurations("quick")}
    curvature = lab.experiment("covariance_trace")
    assert {key(c["of"]) for c in curvature.configurations("quick")} <= trained
    from_bad = {key(c) for c in escape.EXPERIMENT.configurations("quick")}
    assert (
        len(from_bad & {key(c) for c in lab.experiment("rw_sam").configurations("quick")}) == 20 * 5
    )
    assert not trained & {key(c) for c in label_noise.EXPERIMENT.configurations("quick")}


def test_a_short_training_run(tmp_path):
    condition = {"variant": "m-sam", "micro": 4}
    config = digits.training(0, condition, train=40, width=4, batch=8, steps=6, observations=3)
    out = digits.execute(config, [], jax.devices()[1])
    assert out.arrays["step"].tolist() == [0, 3, 6]
    problem = digits.problem(config)
    end = digits.unpack(Run(config, out, 1.0, {}))
    assert out.arrays["loss"][-1] == pytest.approx(float(problem.loss(end)), rel=1e-5)
    assert out.arrays["loss"][0] == pytest.approx(float(problem.loss(problem.x0)), rel=1e-5)
    again = digits.execute(config, [], jax.devices()[0])
    np.testing.assert_allclose(again.arrays["loss"], out.arrays["loss"], rtol=1e-6)
    other = digits.execute({**config, "seed": 1}, [], jax.devices()[0])
    assert abs(other.arrays["loss"][0] - out.arrays["loss"][0]) > 1e-3
    assert digits.epoch_seconds(config, jax.devices()[0]) > 0
    assert digits.epoch_seconds({**digits.BAD, "seed": 0}, jax.devices()[0]) == 0, (
        "a run without epochs"
    )


def test_noise_of_least_squares_is_sigma_squared_times_the_hessian():
    found = fisher_hessian.least_squares(50_000, 0)
    assert found["least squares, V and sigma^2 H"] < 0.03
    assert found["least squares, V and H"] > 0.5
