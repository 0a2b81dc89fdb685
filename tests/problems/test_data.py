"""Data and starts: arrays and pytrees of arrays; anything else gets one sentence that names the
leaf.
"""

import types

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam

KEY = jax.random.key(0)


class Pairs:
    """A data set as torch has it: it never says that an index is too large."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return np.ones(3), 1.0


class Frame(Pairs):
    def to_numpy(self):
        return np.ones((3, 2))


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __array__(self, dtype=None, copy=None):
        return self.array


def loss(x, s):
    return jnp.sum(jnp.stack([jnp.sum(x * leaf) for leaf in jax.tree.leaves(s)]))


ONES = np.ones(3)
STRUCTURED = np.zeros(3, [("a", float)])
BAD = {
    "data set": (Pairs(), r"data is a Pairs \(numpy.stack makes one array"),
    "data set in a dictionary": ({"x": ONES, "y": Pairs()}, r"data\['y'\] is a Pairs"),
    "data frame": ([Frame()], r"data\[0\] is a Frame \(its to_numpy\(\) is an array\)"),
    "string": ("abc", "data is the string 'abc'"),
    "strings": (["a", "b"], r"data\[0\] is the string 'a'"),
    "array of strings": ({"x": np.array(["a", "b"])}, r"data\['x'\] has the dtype <U1"),
    "objects": ((ONES, np.array([1, None, 2], object)), r"data\[1\] has the dtype object"),
    "ragged array": (
        np.array([np.ones(2), np.ones(3)], object),
        (
            r"dtype object: data must be arrays of numbers, and row 1 has the shape \(3,\), row 0"
            r" \(2,\)"
        ),
    ),
    "dates": (np.array(["2020-01-01"], "M8[D]"), "data has the dtype datetime64"),
    "records": (STRUCTURED, "data has the dtype"),
    "nothing": (None, "data is None"),
    "nothing in a dictionary": ({"x": ONES, "mask": None}, r"data\['mask'\] is None"),
    "a generator": ((k for k in range(3)), "data is a generator"),
    "values of a dictionary": ({"x": 1.0}.values(), "data is a dict_values"),
    "a range": (range(3), "data is a range"),
    "a set": ({1.0, 2.0}, "data is a set"),
    "a function": (lambda: 0, "data is a function"),
    "masked": (
        np.ma.masked_array(ONES, [True, False, False]),
        "data is a masked array, whose mask would be lost",
    ),
    "samples": (
        [(np.ones(2), 1.0), (np.ones(2), 2.0)],
        r"data is a list of tuples: give one array for each of their fields",
    ),
    "samples of numbers": ({"x": [(1.0, 2), (3.0, 4)]}, r"data\['x'\] is a list of tuples"),
}


@pytest.mark.parametrize("kind", BAD)
def test_data_that_is_no_array(kind):
    data, message = BAD[kind]
    with pytest.raises(TypeError, match=message):
        sdesam.FiniteSum(loss, data, 1.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"a": np.ones(3), "b": np.ones(2), "c": np.ones((3, 1))},
            r"leading axes have lengths \[2, 3\] \(data\['a'\]: 3, data\['b'\]: 2\)",
        ),
        ({"a": np.ones(3), "b": 1.0}, r"leading axes have lengths \[0, 3\] .*data\['b'\]: 0"),
        ((1.0, 2.0), r"leading axes have lengths \[0\]"),
        (np.ones((0, 2)), r"leading axes have lengths \[0\]"),
        ([], "no arrays"),
        ([[1.0, 2.0], [3.0]], r"data is a ragged list: row 1 has the shape \(1,\), row 0 \(2,\)"),
        (
            {"x": [[1, 2], 3]},
            r"data\['x'\] is a ragged list: row 1 has the shape \(\), row 0 \(2,\)",
        ),
        (
            np.array([1, 2, 2**40]),
            "data is 1099511627776 in row 2, beyond int32, and jax has 64 bits turned off",
        ),
        (
            {"u": np.array([[1], [2**63]], np.uint64)},
            r"data\['u'\] is 9223372036854775808 in row 1, beyond uint32",
        ),
    ],
)
def test_data_of_the_wrong_shape_or_size(data, message):
    with pytest.raises(ValueError, match=message):
        sdesam.FiniteSum(loss, data, 1.0)


GOOD = {
    "list of numbers": [1.0, 2.0, 3.0],
    "numpy numbers in a list": [np.float32(1), np.int64(2), jnp.asarray(3.0)],
    "whole numbers": [1, 2, 3],
    "nested lists": [[1.0], [2.0], [3.0]],
    "lists in a tuple": ([0.5, 1.0, 1.5], [0.5, 1, 1.5]),
    "lists in a dictionary": {"a": [[0.5], [1.0], [1.5]], "b": np.array([0.5, 1.0, 1.5])},
    "64 bits that fit": np.array([1, 2, 3], np.int64),
    "booleans beside": {"a": np.array([1.0, 2.0, 3.0]), "b": np.zeros(3, bool)},
    "half": np.array([1, 2, 3], jnp.bfloat16),
    "another library": Foreign(np.array([1.0, 2.0, 3.0])),
    "a list of arrays, a pytree": [np.array([0.5, 1.0, 1.5]), jnp.array([0.5, 1.0, 1.5])],
}


@pytest.mark.parametrize("kind", GOOD)
def test_data_that_is_an_array(kind):
    """Three samples of sums 1, 2, 3, so the mean loss at 1 is 2."""
    problem = sdesam.FiniteSum(loss, GOOD[kind], 1.0)
    assert (problem.n, problem.loss(1.0)) == (3, 2)


@pytest.mark.parametrize(
    ("x0", "error", "message"),
    [
        (Pairs(), TypeError, "x0 is a Pairs"),
        ({"w": "abc"}, TypeError, r"x0\['w'\] is the string 'abc'"),
        ({"w": np.array([None])}, TypeError, r"x0\['w'\] is an array of object"),
        (1 + 2j, TypeError, "x0 must hold floating-point arrays"),
        (
            {"w": np.ones(2), "k": 3},
            TypeError,
            r"x0 must hold floating-point arrays, not .*write 1\.0 for 1",
        ),
        ((k for k in range(3)), TypeError, "x0 is a generator"),
        (None, ValueError, "x0 has no parameters"),
        (lambda x: x, ValueError, "x0 has no parameters"),
    ],
)
def test_starts_that_are_no_parameters(x0, error, message):
    with pytest.raises(error, match=message):
        sdesam.FiniteSum(loss, ONES, x0)
    with pytest.raises(error, match=message):
        sdesam.SDE(lambda x: x, lambda x, xi: 0 * x, (), x0)


def test_empty_fields_of_a_type_of_its_own():
    """Such as the bias that a layer of a module has not."""
    data = equinox.nn.Linear(1, 3, use_bias=False, key=KEY)
    assert data.bias is None
    data = equinox.tree_at(lambda layer: layer.weight, data, jnp.array([1.0, 2.0, 3.0]))
    assert sdesam.FiniteSum(lambda x, s: x * s.weight, data, 1.0).loss(1.0) == 2


def test_points_that_are_no_arrays():
    problem = sdesam.FiniteSum(loss, ONES, 1.0)
    for point in (Pairs(), "abc", None, {"x": 1.0}, np.ones(2)):
        with pytest.raises(ValueError, match="the parameters have structure"):
            problem.loss(point)


def test_what_is_not_finite_is_named():
    def square(x, s):
        return jnp.sum((x - s["a"]) ** 2)

    with pytest.raises(
        ValueError, match=r"the loss at the start x0 is nan: it must be finite \(x0 is nan\)"
    ):
        sdesam.FiniteSum(loss, ONES, np.array([1.0, np.nan]))
    data = {"a": np.ones((5, 2)), "b": np.ones(5)}
    data["a"][3, 1] = np.nan
    with pytest.raises(
        ValueError,
        match=r"the loss at the start x0 is nan: it must be finite \(data\['a'\] is nan in row 3\)",
    ):
        sdesam.FiniteSum(square, data, np.ones(2))
    with pytest.raises(
        ValueError, match=r"the loss at the start x0 is inf: .*\(data\['a'\] is inf in row 3\)"
    ):
        sdesam.FiniteSum(
            square, {"a": np.where(np.isnan(data["a"]), np.inf, data["a"])}, np.ones(2)
        )
    with pytest.raises(
        ValueError, match=r"the loss at the start x0 is nan: .*\(that of sample 2 is not\)"
    ):
        sdesam.FiniteSum(lambda x, a: jnp.log(x - a), np.array([0.0, 0.5, 2.0, 0.1]), 1.0, chunk=2)

    def masked(x, s):
        return jnp.sum(jnp.where(jnp.isnan(s["a"]), 0, (x - jnp.nan_to_num(s["a"])) ** 2))

    assert sdesam.FiniteSum(masked, data, np.zeros(2)).loss(np.zeros(2)) == pytest.approx(9 / 5), (
        "a loss may know what to do with NaN"
    )


NORM = sdesam.FiniteSum(
    lambda x, a: 0.1 * jnp.linalg.norm(x["w"]) + jnp.sum((x["w"] - a) ** 2),
    np.ones((4, 2)),
    {"w": np.zeros(2)},
)
ROOTS = sdesam.FiniteSum(lambda x, a: jnp.sqrt(a * x), np.arange(4.0), 1.0)
BRANCH = sdesam.FiniteSum(
    lambda x, a: jnp.where(x > a, jnp.sqrt(x - a), 0.0), np.array([0.0, 2.0]), 1.0
)


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (NORM, r"its gradient\['w'\] is nan \(that of sample 0 is not\)"),
        (ROOTS, r"its gradient is nan \(that of sample 0 is not\)"),
        (BRANCH, r"its gradient is nan \(that of sample 1 is not\)"),
    ],
    ids=["norm", "root", "branch"],
)
def test_a_gradient_that_is_not_finite_is_refused_before_a_run(problem, told):
    message = (
        f"the loss at the start x0 is finite, but {told}: a norm, a root .* move x0, or smooth the"
        " loss"
    )
    with pytest.raises(ValueError, match=message):
        sdesam.train(sdesam.Chain("sgd", problem, lr=0.1, batch=2), KEY, 4, 5)
    with pytest.raises(ValueError, match=message):
        sdesam.simulate(
            sdesam.derive("sgd", order=(1, 2)).bind(problem, lr=0.1, batch=2), KEY, 4, 0.2, 0.1
        )


def test_an_observable_that_is_not_finite_at_the_start_is_refused_before_a_run():
    problem = sdesam.FiniteSum(
        lambda x, a: (x - a) ** 2, np.ones(4), 0.0, observables={"log": jnp.log, "x": lambda x: x}
    )
    chain = sdesam.Chain("sgd", problem, lr=0.1, batch=2)
    sde = sdesam.SDE(lambda x: 1 - x, lambda x, xi: 0 * xi, (), 0.0)
    message = "observable 'log' is not finite at the start x0, but -inf: .* or leave time 0 out"
    with pytest.raises(ValueError, match=message):
        sdesam.train(chain, KEY, 2, 2, observe=["x", "log"])
    with pytest.raises(ValueError, match=message):
        sdesam.simulate(sde, KEY, 2, 1.0, 0.5, observe={"log": jnp.log})
    assert sdesam.train(chain, KEY, 2, 2, observe=["x"]).diverged.count == 0
    out = sdesam.simulate(sde, KEY, 2, 1.0, 0.5, observe={"log": jnp.log}, times=[0.5, 1.0])
    np.testing.assert_allclose(out.mean["log"], np.log([0.5, 0.75]), rtol=1e-6)


def test_keys_of_samples():
    """Data may hold a random key for each sample, in sums over chunks and through a run; the same
    numbers as data are the control.
    """
    keys = jax.random.split(KEY, 7)
    numbers = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    x0 = np.array([0.5, -0.5])
    drawn = sdesam.FiniteSum(
        lambda x, key: jnp.sum((x - jax.random.normal(key, (2,))) ** 2), keys, x0, chunk=3
    )
    control = sdesam.FiniteSum(lambda x, a: jnp.sum((x - a) ** 2), numbers, x0, chunk=3)
    for name in ("loss", "grad", "trace_cov"):
        np.testing.assert_allclose(getattr(drawn, name)(x0), getattr(control, name)(x0), rtol=1e-6)
    assert drawn.fingerprint != sdesam.FiniteSum(drawn.sample_loss, keys[::-1], x0).fingerprint
    results = []
    for problem in (drawn, control):
        chain = sdesam.Chain("sgd", problem, lr=0.1, batch=2)
        sde = sdesam.derive("sgd", order=(1, 2)).bind(problem, lr=0.1, batch=2)
        results.append(
            (
                sdesam.train(chain, KEY, 2, 3, observe=["loss"]),
                sdesam.simulate(sde, KEY, 2, 0.2, 0.1),
            )
        )
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.final, other.final, rtol=1e-5)


def test_problems_are_made_outside_of_jit():
    for data, x0 in (
        (lambda a: a * np.ones(2), lambda a: 1.0),
        (lambda a: np.ones(2), lambda a: a),
        (lambda a: np.ones(2), lambda a: 1.0),
    ):
        with pytest.raises(
            TypeError,
            match=r"is traced by jax, inside jax.jit, jax.grad or jax.vmap: make a problem outside",
        ):
            jax.jit(
                lambda a, data=data, x0=x0: sdesam.FiniteSum(lambda x, s: x * s, data(a), x0(a)).n
            )(1.0)
    with pytest.raises(TypeError, match="'a', which the loss reads, is traced by jax"):
        jax.grad(lambda a: sdesam.FiniteSum(lambda x, s: a * x * s, np.ones(2), 1.0).loss(1.0))(1.0)
    problem = sdesam.FiniteSum(lambda x, s: x * s, np.ones(2), 1.0)
    assert jax.jit(jax.grad(problem.loss))(2.0) == 1


def test_strict_promotion():
    """A user may turn promotion off for code of their own."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        data = {"a": np.random.default_rng(0).normal(size=(9, 3)), "y": np.ones(9)}
        x0 = {"w": np.ones((3, 2)), "b": np.zeros(2)}
        problem = sdesam.FiniteSum(
            lambda x, s: s["y"] * jnp.sum(jnp.tanh(s["a"] @ x["w"] + x["b"])),
            data,
            x0,
            observables={"b": lambda x: x["b"]},
            chunk=4,
        )
        names = ["loss", "grad_norm2", "trace_cov", "b"]
        assert np.isfinite(problem.curvature)
        sde = sdesam.derive("m-usam").bind(problem, lr=0.1, rho=0.1, batch=4, micro=2)
        chain = sdesam.Chain("n-sam", problem, lr=0.1, rho=0.1, batch=4)
        written = sdesam.SDE(lambda x: -x, lambda x, xi: 0.1 * x * xi, (2,), jnp.ones(2))
        runs = [
            sdesam.simulate(sde, KEY, 2, 0.2, 0.1, observe=names),
            sdesam.train(chain, KEY, 2, 2, observe=names),
        ]
        runs += [sdesam.simulate(written, KEY, 2, 0.5, 0.25, "heun", observe={"x": lambda x: x})]
        assert [run.diverged.count for run in runs] == [0, 0, 0]
        with pytest.raises(ValueError, match=r"fails with .*rank"):
            sdesam.FiniteSum(lambda x, s: jnp.sum(x["w"] + x["b"]) * s["y"], data, x0)


def test_what_a_namespace_is():
    """An object that is no pytree is a leaf, and no array."""
    with pytest.raises(TypeError, match="data is a SimpleNamespace"):
        sdesam.FiniteSum(loss, types.SimpleNamespace(x=ONES), 1.0)
