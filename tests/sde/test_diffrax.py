"""An SDE as diffrax terms: path by path against the engine, and against formulas written out; wrong
solvers refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.sde.diffrax import is_additive

diffrax = pytest.importorskip("diffrax")

DT = 1 / 8
STEPS = 8


class Recorded(diffrax.AbstractBrownianPath):
    """The Brownian path that was used elsewhere: its values at the multiples of DT."""

    values: jax.Array
    t0 = 0.0
    t1 = STEPS * DT
    levy_area = diffrax.BrownianIncrement

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        at = [jnp.round(jnp.asarray(t) / DT).astype(int) for t in (t0, t1)]
        return self.values[at[1]] - self.values[at[0]]


def solve(sde, solver, control, **options):
    terms = sde.to_diffrax(solver, control)
    return diffrax.diffeqsolve(terms, solver, 0.0, STEPS * DT, dt0=DT, y0=sde.x0, **options).ys


def with_its_noise(sde):
    """The same SDE with its Brownian motion in the state, so that the engine tells which noise it
    used, however it draws it.
    """

    def apply(state, xi):
        return {"x": sde.apply_noise(state["x"], xi), "w": xi}

    start = {"x": sde.x0, "w": jnp.zeros(sde.noise_shape)}
    return sdesam.SDE(
        lambda s: {"x": sde.drift(s["x"]), "w": jnp.zeros_like(s["w"])},
        apply,
        sde.noise_shape,
        start,
    )


def nested_problem():
    flat = sdesam.problems.quadratic(dim=3, samples=6, seed=2)

    def loss(p, sample):
        return flat.sample_loss(jnp.concatenate([p["a"][0], p["b"]["c"]]), sample)

    return sdesam.FiniteSum(loss, flat.data, {"a": (flat.x0[:1],), "b": {"c": flat.x0[1:]}})


def derived(problem):
    return sdesam.derive("m-usam").bind(
        problem, lr=0.1, rho=0.3, batch=4, micro=2, expectation="exact"
    )


def test_the_same_increments_give_the_same_path():
    """Euler-Maruyama by the engine and by diffrax on the same Brownian path, a derived SDE with
    noise that depends on x: to rounding.
    """
    with jax.enable_x64(True):
        sde = derived(nested_problem())
        times = np.arange(STEPS + 1) * DT
        out = sdesam.simulate(
            with_its_noise(sde),
            jax.random.key(0),
            3,
            STEPS * DT,
            DT,
            times=times,
            keep="trajectories",
            devices=jax.devices()[:1],
        )
        saved = diffrax.SaveAt(ts=times)
        theirs = jax.jit(
            jax.vmap(lambda w: solve(sde, diffrax.Euler(), Recorded(w), saveat=saved))
        )(jnp.asarray(out.trajectory["w"]))
        for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(out.trajectory["x"]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
            assert abs(a[0] - b[1]).max() > 1e-3, "the control: the noise of another path"


def test_means_agree():
    """diffrax's own Brownian paths and the engine's. 5 standard errors of the difference of two
    means, 2 numbers: false alarm 1.2e-6.
    """
    paths = 1000
    sde = derived(sdesam.problems.torus(dim=2, samples=5, seed=3))

    def one(key):
        path = diffrax.UnsafeBrownianPath(sde.noise_shape, key)
        return solve(sde, diffrax.Euler(), path, adjoint=diffrax.ForwardMode())[-1]

    theirs = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), paths)), float)
    ours = np.asarray(sdesam.simulate(sde, jax.random.key(0), paths, STEPS * DT, DT).final, float)
    error = np.hypot(theirs.std(axis=0), ours.std(axis=0)) / np.sqrt(paths)
    assert np.all(abs(theirs.mean(axis=0) - ours.mean(axis=0)) < 5 * error)
    moved = abs(ours.mean(axis=0) - np.asarray(sde.x0))
    assert np.all(moved > 10 * error), "the control: a start that does not move would be noticed"


def geometric():
    return sdesam.SDE(lambda x: -0.5 * x, lambda x, xi: 0.4 * x * xi, (), 1.0)


def recorded(shape=()):
    steps = np.random.default_rng(3).normal(size=(STEPS, *shape)) * np.sqrt(DT)
    return Recorded(jnp.asarray(np.concatenate([np.zeros((1, *shape)), steps.cumsum(axis=0)])))


def test_milstein_differentiates_the_noise():
    """Its step for dX = a X dt + s X dW, written out. With an operator diffrax would be silently
    wrong, so the matrix is formed.
    """
    with jax.enable_x64(True):
        x, path, sde = 1.0, recorded(), geometric()
        for w in np.diff(path.values):
            x *= 1 - 0.5 * DT + 0.4 * w + 0.5 * 0.4**2 * (w**2 - DT)
        assert float(solve(sde, diffrax.ItoMilstein(), path)[-1]) == pytest.approx(x, rel=1e-12)
        assert abs(float(solve(sde, diffrax.Euler(), path)[-1]) - x) > 1e-3
        # noise that commutes, of a shape other than the state's: each component by itself
        plane = sdesam.SDE(
            lambda x: -0.5 * x, lambda x, xi: 0.4 * x * xi[0, :2], (1, 3), jnp.ones(2)
        )
        wide = recorded((1, 3))
        ones = [
            solve(sde, diffrax.ItoMilstein(), Recorded(wide.values[:, 0, k]))[-1] for k in range(2)
        ]
        np.testing.assert_allclose(solve(plane, diffrax.ItoMilstein(), wide)[-1], ones, rtol=1e-12)


def test_additive_noise_is_told_from_multiplicative():
    assert is_additive(sdesam.SDE(lambda x: -x, lambda x, xi: 0.1 * xi, (), 1.0))
    assert is_additive(
        sdesam.SDE(lambda x: -x, lambda x, xi: 0.1 * xi + 0 * jax.jit(lambda y: 2 * y)(xi), (), 1.0)
    )
    assert not is_additive(geometric())
    assert not is_additive(
        sdesam.SDE(
            lambda x: -x, lambda x, xi: jax.lax.cond(x > 0, lambda: xi, lambda: 2 * xi), (), 1.0
        )
    )
    assert not is_additive(derived(sdesam.problems.quadratic()))


def test_stratonovich_solvers_where_the_noise_is_additive():
    """Heun's method for dX = -X dt + s dW, written out: there the Ito and the Stratonovich solution
    are the same.
    """
    with jax.enable_x64(True):
        sde, path, x = sdesam.SDE(lambda x: -x, lambda x, xi: 0.5 * xi, (), 1.0), recorded(), 1.0
        for w in np.diff(path.values):
            ahead = x - x * DT + 0.5 * w
            x += -(x + ahead) / 2 * DT + 0.5 * w
        assert float(solve(sde, diffrax.Heun(), path)[-1]) == pytest.approx(x, rel=1e-12)


def test_bad_input():
    sde, path = geometric(), recorded()
    for solver in (
        diffrax.Heun(),
        diffrax.EulerHeun(),
        diffrax.SRA1(),
        diffrax.HalfSolver(diffrax.Midpoint()),
    ):
        with pytest.raises(
            ValueError,
            match=r"converges to the Stratonovich solution.*diffrax.Euler\(\).*B - \(1/2\) sum_j",
        ):
            sde.to_diffrax(solver, path)
    for solver in (diffrax.Tsit5(), diffrax.Euler, "euler"):
        with pytest.raises(TypeError, match="it must be a diffrax solver for SDEs"):
            sde.to_diffrax(solver, path)
    with pytest.raises(
        TypeError,
        match=r"it must be a diffrax path, such as diffrax.UnsafeBrownianPath\(\(\), key\)",
    ):
        sde.to_diffrax(diffrax.Euler(), jax.random.key(0))
    with pytest.raises(ValueError, match=r"needs the shape noise_shape=\(\)"):
        sde.to_diffrax(diffrax.Euler(), recorded((2,)))
    with pytest.raises(ValueError, match="ravel them"):
        derived(nested_problem()).to_diffrax(diffrax.ItoMilstein(), recorded((6,)))
    assert sde.to_diffrax(diffrax.HalfSolver(diffrax.Euler()), path)


def test_diffrax_missing_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffrax", None)
    with pytest.raises(
        ModuleNotFoundError, match="needs diffrax, which is not installed: pip install diffrax"
    ):
        geometric().to_diffrax(None, None)
