"""The error of each scheme in its step, on SDEs whose answers are known, and the rule of Heun's two
probes.

Additive: `dX = -X dt + s dW`, `E X(1) = x0 / e`, `E X(1)^2 = x0^2 e^-2 + s^2 (1 - e^-2) / 2`.
Multiplicative: `dX = -X dt + s X dW`, `E X(1)^2 = x0^2 exp(-2 + s^2)`. Moments of a scheme follow
exactly from its formula by recursion; the engine is compared with that recursion within standard
errors, the recursion with the SDE to see the order."""

from math import exp, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.sde import stepping

START = 1.5
SIGMAS = 4.5
"""7e-6 two-sided per number; the 12 numbers below: 8e-5."""


def second_moment(kind, method, s, dt):
    """`E X^2` at time 1 of a scheme, from `m2+ = a m2 + c`."""
    if method == "richardson":
        return 2 * second_moment(kind, "euler", s, dt / 2) - second_moment(kind, "euler", s, dt)
    mean, spread = (1 - dt, 1.0) if method == "euler" else (1 - dt + dt**2 / 2, 1 - dt / 2)
    moment = START**2
    for _ in range(round(1 / dt)):
        noise = s**2 * dt * spread**2
        moment = mean**2 * moment + noise * (1 if kind == "additive" else moment)
    return moment


def exact(kind, s):
    return (
        START**2 * exp(-2) + s**2 * (1 - exp(-2)) / 2
        if kind == "additive"
        else START**2 * exp(-2 + s**2)
    )


def simulated(kind, method, s, dt, paths=40_000, **options):
    noise = (lambda x, xi: s * xi) if kind == "additive" else (lambda x, xi: s * x * xi)
    sde = sdesam.SDE(lambda x: -x, noise, (), START)
    out = sdesam.simulate(
        sde,
        jax.random.key(11),
        paths,
        1.0,
        dt,
        method,
        times=[1.0],
        observe={"x2": lambda x: x * x},
        **options,
    )
    return float(out.mean["x2"][0]), float(out.stderr["x2"][0])


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
@pytest.mark.parametrize("method", ["euler", "heun", "richardson"])
def test_the_engine_steps_as_the_formula_says(kind, method):
    s, dt = 0.5, 0.25
    value, error = simulated(kind, method, s, dt)
    assert abs(value - second_moment(kind, method, s, dt)) < SIGMAS * error
    # controls: at this dt the other schemes are told apart
    for other in {"euler", "heun", "richardson"} - {method}:
        if abs(second_moment(kind, other, s, dt) - second_moment(kind, method, s, dt)) > 10 * error:
            assert abs(value - second_moment(kind, other, s, dt)) > SIGMAS * error
    assert abs(value - second_moment(kind, "euler", s, dt / 2)) > SIGMAS * error


@pytest.mark.parametrize(
    ("kind", "method", "order"),
    [
        ("additive", "euler", 1),
        ("multiplicative", "euler", 1),
        ("additive", "richardson", 2),
        ("multiplicative", "richardson", 2),
        # large noise: small-noise Heun is no better than Euler in order
        (
            "multiplicative",
            "heun",
            1,
        ),
    ],
)
def test_order_in_the_step(kind, method, order):
    """Slopes of the signed error over three halvings at fixed noise; their limit, not only their
    rate, is the SDE's answer.
    """
    steps = 0.5 ** np.arange(7, 11)
    errors = np.array([second_moment(kind, method, 0.8, dt) - exact(kind, 0.8) for dt in steps])
    slopes = np.log2(errors[:-1] / errors[1:])
    np.testing.assert_allclose(slopes, order, atol=0.1)
    assert abs(errors[-1]) < abs(errors[0]) < 0.1


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("richardson", 2)])
@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_order_for_small_noise(kind, method, order):
    """On `s^2 = dt = eta`: Heun `O(dt^2 + eta dt)` is of order 2 here, for additive and for
    multiplicative noise.
    """
    steps = 0.5 ** np.arange(7, 11)
    errors = np.array(
        [second_moment(kind, method, sqrt(dt), dt) - exact(kind, sqrt(dt)) for dt in steps]
    )
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.1)


def test_richardson_halves_share_their_noise():
    """The variance of `2 phi(fine) - phi(coarse)` is that of one path and not of five: the two are
    driven by one Brownian motion.
    """
    _, together = simulated("additive", "richardson", 0.5, 0.125)
    _, alone = simulated("additive", "euler", 0.5, 0.125)
    assert together < 1.3 * alone, "independent paths would have sqrt(5) = 2.2"
    sde = sdesam.SDE(lambda x: jnp.zeros_like(x), lambda x, xi: xi, (3,), np.zeros(3))
    out = sdesam.simulate(
        sde,
        jax.random.key(0),
        5,
        1.0,
        0.25,
        "richardson",
        observe={"x": lambda x: x},
        keep="trajectories",
        dtype="float32",
    )
    # without drift, fine and coarse are the same path
    np.testing.assert_allclose(out.values["x"], out.trajectory, atol=1e-5)
    assert out.final.shape == (5, 3)
    still = sdesam.SDE(lambda x: -x, lambda x, xi: 0 * xi, (), START)
    out = sdesam.simulate(
        still, jax.random.key(0), 2, 1.0, 0.25, "richardson", observe={"x": lambda x: x}
    )
    # the states are those of the fine path
    np.testing.assert_allclose(out.final, START * (1 - 0.125) ** 8, rtol=1e-6)
    np.testing.assert_allclose(
        out.mean["x"][-1], START * (2 * (1 - 0.125) ** 8 - (1 - 0.25) ** 4), rtol=1e-6
    )


class ProbedDrift:
    """`B(x) = -x`, probed as `-(1 + e) x` with `e = +-2` drawn from the key."""

    def drift(self, x):
        return -x

    def step_drift(self, x, key):
        return -(1 + 2 * jax.random.rademacher(key, (), x.dtype)) * x

    def apply_noise(self, x, xi):
        return 0.0 * xi

    def step_noise(self, x, xi, key):
        return 0.0 * xi


class OneProbe(stepping.Heun):
    """The mistake: predictor and corrector with the same probe."""

    def __call__(self, x, key, xi):
        key = jax.random.split(key, 3)[1]
        here = self.kernel.step_drift(x, key)
        ahead = self.kernel.step_drift(x + self.dt * here, key)
        return x + 0.5 * self.dt * (here + ahead)


@pytest.mark.parametrize(("scheme", "biased"), [(stepping.Heun, False), (OneProbe, True)])
def test_predictor_and_corrector_have_probes_of_their_own(scheme, biased):
    """One step from 1: `1 - dt + E[e1 e2] dt^2 / 2`, with `E[e1 e2] = 1` for independent probes and
    5 for a shared one.
    """
    dt, draws = 0.5, 20_000
    step = scheme(ProbedDrift(), dt)
    moved = jax.vmap(lambda key: step(jnp.float32(1), key, jnp.float32(0)))(
        jax.random.split(jax.random.key(4), draws)
    )
    mean, error = float(moved.mean()), float(moved.std()) / sqrt(draws)
    assert (abs(mean - (1 - dt + dt**2 / 2)) > SIGMAS * error) == biased
    if biased:
        assert abs(mean - (1 - dt + 5 * dt**2 / 2)) < SIGMAS * error


class Listening(ProbedDrift):
    """Notes every key that it is given."""

    def __init__(self):
        self.keys = []

    def note(self, key):
        self.keys.append(tuple(jax.random.key_data(key).tolist()))

    def step_drift(self, x, key):
        self.note(key)
        return -x

    def step_noise(self, x, xi, key):
        self.note(key)
        return 0.0 * x

    def step_both(self, x, dt, xi, keys):
        return dt * self.step_drift(x, keys[1]) + self.step_noise(x, xi, keys[0])


@pytest.mark.parametrize(
    ("scheme", "evaluations"), [(stepping.Euler, 2), (stepping.Heun, 3), (stepping.Richardson, 6)]
)
def test_no_two_evaluations_of_a_step_share_a_key(scheme, evaluations):
    """Noise and drift, predictor and corrector, both levels of Richardson's and both halves of the
    finer one.
    """
    kernel, x = Listening(), jnp.float32(1)
    start, xi = ((x, x), jnp.zeros(2)) if scheme is stepping.Richardson else (x, jnp.zeros(()))
    scheme(kernel, 0.5)(start, jax.random.key(4), xi)
    assert len(kernel.keys) == len(set(kernel.keys)) == evaluations
