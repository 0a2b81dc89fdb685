"""SDEs written by hand: noise that is linear in `xi`, vectors of the state's structure, and calls
where they cannot be.
"""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
A = RANDOM.normal(size=(2, 3))
ONES = jnp.ones(2)


def sde(noise, shape=(2,), x0=ONES, **options):
    return sdesam.SDE(lambda x: jax.tree.map(lambda leaf: -leaf, x), noise, shape, x0, **options)


def own_numbers(x, xi):
    return xi * RANDOM.normal()


NOT_LINEAR = {
    "a coefficient": (
        lambda x, xi: jnp.full_like(x, 0.1),
        "does not depend on xi, as the coefficient",
    ),
    "a coefficient of the state": (lambda x, xi: 0.1 * x, "does not depend on xi"),
    "a coefficient that vanishes at the start": (
        lambda x, xi: 0.1 * (x - 1),
        "does not depend on xi",
    ),
    "affine": (lambda x, xi: 0.1 * xi + 0.01, "is not 0 for xi = 0"),
    "affine by a hair": (lambda x, xi: xi + 1e-4, "is not 0 for xi = 0"),
    "a drift inside": (lambda x, xi: 0.1 * xi - 0.01 * x, "is not 0 for xi = 0"),
    "a key of its own": (
        lambda x, xi: 0.1 * xi + 0.1 * jax.random.normal(KEY, x.shape),
        "is not 0 for xi = 0",
    ),
    "numbers of numpy": (
        lambda x, xi: 0.1 * xi + RANDOM.normal(size=2).astype(np.float32),
        "is not 0 for xi = 0",
    ),
    "a factor of numpy": (own_numbers, "gives for 32 a - 24 b not"),
    "square": (lambda x, xi: 0.1 * xi**2, "gives for 32 a - 24 b not"),
    "a small square": (lambda x, xi: xi + 0.01 * xi**2, "gives for 32 a - 24 b not"),
    "absolute value": (lambda x, xi: jnp.abs(xi), "gives for 32 a - 24 b not"),
    "sign": (lambda x, xi: jnp.sign(xi), "gives for 32 a - 24 b not"),
    "clipped": (lambda x, xi: jnp.clip(xi, -5, 5), "gives for 32 a - 24 b not"),
    "bounded": (lambda x, xi: jnp.tanh(xi), "gives for 32 a - 24 b not"),
    "product of two": (lambda x, xi: xi * xi[::-1], "gives for 32 a - 24 b not"),
    "norm": (lambda x, xi: xi * jnp.linalg.norm(xi), "gives for 32 a - 24 b not"),
    "square beside the start": (
        lambda x, xi: 0.1 * xi + (x - 1) * xi**2,
        "gives for 32 a - 24 b not",
    ),
    "exponential": (lambda x, xi: jnp.expm1(xi), "gives for 32 a - 24 b not"),
}


@pytest.mark.parametrize("kind", NOT_LINEAR)
def test_noise_that_is_not_linear(kind):
    noise, told = NOT_LINEAR[kind]
    with pytest.raises(
        ValueError,
        match=(
            f"apply_noise must be linear in xi, the product A\\(x\\) xi such as .*, but it {told}"
        ),
    ):
        sde(noise)


def test_noise_of_many_paths_that_is_not_linear():
    for noise in (lambda x, xi: 0.1 * x, lambda x, xi: xi**2):
        with pytest.raises(ValueError, match="apply_noise must be linear in xi"):
            sde(noise, batched=True)
    with pytest.raises(ValueError, match="apply_noise must be linear in xi"):
        sde(lambda x, xi: {"a": xi[0], "b": xi[1] + 1}, x0={"a": 1.0, "b": 2.0})


LINEAR = {
    "none": lambda x, xi: 0 * xi,
    "zeros": lambda x, xi: jnp.zeros_like(x),
    "multiple": lambda x, xi: 0.1 * xi,
    "of the state": lambda x, xi: x * xi,
    "vanishes at the start": lambda x, xi: (x - 1) * xi,
    "undefined beside the start": lambda x, xi: jnp.sqrt(1 - x) * xi,
    "centred": lambda x, xi: xi - jnp.mean(xi),
    "matrix": lambda x, xi: jnp.asarray(A[:, :2], x.dtype) @ xi,
    "a step of a loop": lambda x, xi: jax.lax.fori_loop(0, 3, lambda _, v: 0.5 * v, xi),
    "branch of the state": lambda x, xi: jnp.where(x > 0, xi, 2 * xi),
    "rotated": lambda x, xi: jnp.fft.irfft(jnp.fft.rfft(xi.astype(jnp.float32)), 2).astype(x.dtype),
    "of a key": lambda x, xi: jax.random.normal(KEY, x.shape).astype(x.dtype) * xi,
    "difference of close numbers": lambda x, xi: (x + xi) - x,
    "solved": (
        lambda x, xi: jnp.linalg.solve(jnp.eye(2) + 0.1, xi.astype(jnp.float32)).astype(x.dtype)
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", LINEAR)
def test_noise_that_is_linear(kind, dtype):
    sde(LINEAR[kind], x0=jnp.ones(2, dtype))


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        ("float32", [1e-30, 1e-6, 1e6, 1e30]),
        ("float16", [1e-7, 1e-5, 1e-3, 1e3, 3e4]),
        ("bfloat16", [1e-30, 1e-5, 1e6, 1e30]),
    ],
)
def test_noise_of_any_size(dtype, scales):
    for scale in scales:
        factor = jnp.asarray(scale, dtype)
        sde(lambda x, xi, factor=factor: factor * xi, x0=jnp.full(2, 0.5, dtype))
        sde(lambda x, xi, factor=factor: factor * x * xi, x0=jnp.full(2, 0.5, dtype))


def test_the_noise_of_a_derived_sde_passes():
    problem = sdesam.problems.linear_regression(dim=2, samples=9)
    bound = sdesam.derive("m-usam").bind(problem, lr=0.1, rho=0.1, batch=4, micro=2)
    again = sdesam.SDE(bound.drift, bound.apply_noise, bound.noise_shape, bound.x0)
    np.testing.assert_allclose(again.covariance(again.x0), bound.covariance(bound.x0), rtol=1e-5)


@pytest.mark.parametrize(
    ("drift", "noise", "told"),
    [
        (lambda x: jnp.log(x - 1), lambda x, xi: xi, r"drift\(x0\) is -inf"),
        (lambda x: x / (x - 1), lambda x, xi: xi, r"drift\(x0\) is inf"),
        (lambda x: -x, lambda x, xi: xi * jnp.sqrt(0.5 - x), r"apply_noise\(x0, xi\) is nan"),
        (lambda x: -x, lambda x, xi: xi / (x - 1), r"apply_noise\(x0, xi\) is -?inf"),
    ],
)
def test_what_is_not_finite_at_the_start(drift, noise, told):
    with pytest.raises(
        ValueError, match=f"{told}: drift and noise must be finite at the start; move x0"
    ):
        sdesam.SDE(drift, noise, (2,), ONES)


def test_a_leaf_that_is_not_finite_is_named():
    x0 = {"a": 1.0, "b": ONES}
    with pytest.raises(ValueError, match=r"drift\(x0\)\['b'\] is nan"):
        sdesam.SDE(lambda x: {"a": x["a"], "b": x["b"] * jnp.nan}, lambda x, xi: x, (), x0)


@pytest.mark.parametrize(
    ("value", "error", "told"),
    [
        (None, ValueError, "None"),
        ((ONES, ONES), ValueError, "float32"),
        ([1.0, 1.0], ValueError, "float"),
        ({"x": ONES}, ValueError, "'x'"),
        (1.0, ValueError, r"float.*\[\]"),
        (jnp.ones((1, 2)), ValueError, r"float32\[1, 2\]"),
        ("ab", ValueError, "str"),
        (ONES + 1j, TypeError, r"complex64\[2\]"),
        (np.array(["a", "b"]), TypeError, "an array of <U1"),
        (np.array([True, False]), TypeError, r"bool\[2\]"),
    ],
)
def test_vectors_that_are_none(value, error, told):
    message = {
        ValueError: r"must have the shapes of x0, float32\[2\], but it returns",
        TypeError: "must hold real numbers, but it returns",
    }[error]
    with pytest.raises(error, match=rf"drift\(x0\) {message} .*{told}"):
        sdesam.SDE(lambda x: value, lambda x, xi: xi, (2,), ONES)
    with pytest.raises(error, match=rf"apply_noise\(x0, xi\) {message} .*{told}"):
        sdesam.SDE(lambda x: -x, lambda x, xi: value, (2,), ONES)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_of_another_precision(dtype):
    """Of matrices of numpy, in float64; in float32: they are computed with in the precision of the
    state, which they are added to.
    """
    with jax.enable_x64(True):
        one, x0 = np.eye(2), jnp.ones(2, dtype)
        for wider in (jnp.float64, jnp.float32):
            made = sdesam.SDE(
                lambda x, to=wider: -x.astype(to), lambda x, xi, to=wider: xi.astype(to), (2,), x0
            )
            assert (made.drift(x0).dtype, made.noise(x0, KEY).dtype) == (dtype, dtype)
        made = sdesam.SDE(lambda x: -one @ x, lambda x, xi: 0.1 * one @ xi, (2,), x0)
        out, plain = (
            sdesam.simulate(each, KEY, 3, 0.5, 0.25, "heun").final
            for each in (made, sde(lambda x, xi: 0.1 * xi, x0=x0))
        )
        assert out.dtype == dtype
        np.testing.assert_allclose(out.astype(float), plain.astype(float), rtol=1e-2)


def test_vectors_of_whole_numbers():
    constant = sdesam.SDE(lambda x: np.array([1, 0]), lambda x, xi: 0 * xi, (2,), ONES)
    np.testing.assert_array_equal(sdesam.simulate(constant, KEY, 1, 1.0, 0.5).final, [[2, 1]])
    assert sdesam.SDE(lambda x: 1, lambda x, xi: 0, (), 1.0).drift(1.0) == 1


EQUATION = sdesam.derive("m-usam")
PROBLEM = sdesam.problems.quadratic()
CHAIN = sdesam.Chain("sgd", PROBLEM, lr=0.1, batch=2)
OU = sde(lambda x, xi: 0.1 * xi)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (EQUATION, "not ModifiedEquation: an equation has no numbers: bind it first"),
        (CHAIN, r"not Chain: an optimizer is run by sdesam\.train"),
        (PROBLEM, "not FiniteSum: a problem has no dynamics"),
        (lambda x: x, r"not function: make one by sdesam\.SDE"),
        (None, "not NoneType"),
    ],
)
def test_what_is_simulated(given, told):
    with pytest.raises(TypeError, match=rf"simulate takes a sdesam\.SDE, {told}"):
        sdesam.simulate(given, KEY, 1, 1.0, 0.5)
    with pytest.raises(TypeError, match=rf"estimate takes a sdesam\.SDE, {told}"):
        sdesam.estimate(given, 1, 1.0, 0.5)


@pytest.mark.parametrize("observe", [lambda x: x, [lambda x: x], 3, {"x": 3}, {3: lambda x: x}])
def test_what_is_observed(observe):
    bound = sdesam.derive("sgd", order=(1, 2)).bind(PROBLEM, lr=0.1, batch=2)
    with pytest.raises(TypeError, match=r"observe=|observables are named functions"):
        sdesam.simulate(bound, KEY, 1, 0.2, 0.1, observe=observe)
    with pytest.raises(
        (TypeError, ValueError), match=r"observables have names|observables are named functions"
    ):
        sdesam.simulate(OU, KEY, 1, 0.2, 0.1, observe=observe)
    with pytest.raises(TypeError, match=r"observe=.* must be a list of names"):
        sdesam.train(CHAIN, KEY, 1, 1, observe=observe)


def mean(rate):
    made = sdesam.SDE(lambda x: -rate * x, lambda x, xi: 0.1 * xi, (), 1.0)
    return sdesam.simulate(made, KEY, 4, 1.0, 0.25, observe={"x": lambda x: x}).mean["x"][-1]


class Rate(equinox.Module):
    rate: jax.Array

    def __call__(self, x):
        return -self.rate * x


def run(made, observe=()):
    return sdesam.simulate(made, KEY, 1, 1.0, 0.5, observe=observe).final


def pulled(drift):
    return sdesam.SDE(drift, lambda x, xi: xi, (), 1.0)


INSIDE = {
    "a number that the drift reads": (mean, "'rate'"),
    "an array of a module": (lambda rate: run(pulled(Rate(rate))), "'an argument'"),
    "a number that an observable reads": (
        lambda rate: run(OU, {"x": lambda x: rate * x}),
        "'rate'",
    ),
    "the start": (lambda rate: run(sde(lambda x, xi: xi, (), x0=rate)), "'an argument'"),
    "the forecast": (
        lambda rate: sdesam.estimate(pulled(lambda x: -rate * x), 1, 1.0, 0.5).steps,
        "'rate'",
    ),
}


@pytest.mark.parametrize(
    "transform",
    [jax.jit, jax.grad, lambda fn: lambda x: jax.vmap(fn)(jnp.ones(2) * x)],
    ids=["jit", "grad", "vmap"],
)
@pytest.mark.parametrize("kind", INSIDE)
def test_runs_inside_a_transformation(kind, transform):
    fn, told = INSIDE[kind]
    call = "estimate" if kind == "the forecast" else "simulate"
    with pytest.raises(
        TypeError,
        match=(
            rf"{call} runs outside of jax\.jit, jax\.grad and jax\.vmap, but {told} is traced by"
            r" one of them"
        ),
    ):
        transform(fn)(1.0)


def test_runs_under_jit_without_arguments():
    for run in (
        lambda: sdesam.simulate(OU, KEY, 1, 1.0, 0.5),
        lambda: sdesam.train(CHAIN, KEY, 1, 1),
    ):
        with pytest.raises(TypeError, match=r"runs outside of jax\.jit, jax\.grad and jax\.vmap"):
            jax.jit(lambda run=run: run().final)()
    assert (
        jax.grad(lambda x: x + float(sdesam.simulate(OU, KEY, 1, 1.0, 0.5).final.sum()))(1.0) == 1
    ), "control: nothing is traced"


def test_functions_of_an_sde_inside_a_transformation():
    def pull(rate):
        made = sdesam.SDE(lambda x: -rate * x, lambda x, xi: 0.1 * xi, (), 1.0)
        return made.drift(2.0)

    assert (jax.jit(pull)(3.0), jax.grad(pull)(3.0)) == (-6, -2)


def test_the_old_name_of_estimate():
    ou = sdesam.SDE(lambda x: -x, lambda x, xi: 0.1 * xi, (), 1.0)
    with pytest.warns(DeprecationWarning, match=r"sdesam\.plan is called sdesam\.estimate now"):
        assert sdesam.plan(ou, 1, 1.0, 0.5).steps == 2
