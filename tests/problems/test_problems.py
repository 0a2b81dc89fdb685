"""Finite sums and ready-made problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import sdesam
from sdesam.autodiff.smoothness import nonsmooth_operations
from sdesam.verify import curvature


def test_functions_of_a_finite_sum():
    """Linear regression in numpy."""
    with jax.enable_x64(True):
        problem = sdesam.problems.linear_regression(dim=3, samples=10, seed=1)
        x = np.array([0.5, -1.0, 2.0])
        a, y = (np.asarray(problem.data[name]) for name in ("input", "target"))
        r = a @ x - y
        g = r[:, None] * a
        np.testing.assert_allclose(problem.loss(x), (r**2).mean() / 2)
        np.testing.assert_allclose(problem.grad(x), g.mean(0))
        np.testing.assert_allclose(problem.grad_norm2(x), (g.mean(0) ** 2).sum())
        np.testing.assert_allclose(problem.trace_cov(x), g.var(axis=0).sum())


def test_linear_regression_has_the_noise_that_was_asked_for():
    """What is left at the least-squares solution, of `n - d` degrees of freedom, within 5 standard
    errors.
    """
    for noise in (0.0, 0.5, 2.0):
        problem = sdesam.problems.linear_regression(dim=3, samples=4000, noise=noise, seed=1)
        a, y = (np.asarray(problem.data[name], float) for name in ("input", "target"))
        left = y - a @ np.linalg.lstsq(a, y, rcond=None)[0]
        assert left @ left / (4000 - 3) == pytest.approx(
            noise**2, rel=5 * np.sqrt(2 / 4000), abs=1e-9
        )
        assert (a**2).mean() == pytest.approx(1, rel=5 * np.sqrt(2 / 12_000))


def test_data_of_quadratics_and_tori():
    problem = sdesam.problems.quadratic(dim=3, samples=2000, seed=4)
    A, a = (np.asarray(problem.data[name], float) for name in ("hessian", "centre"))
    # G G^T / d + I / 2 with G of normal entries: mean 3/2 I, variance of an off-diagonal entry 1/d
    assert np.linalg.eigvalsh(A).min() > 0.5 - 1e-6
    assert abs(A.mean(axis=0) - 1.5 * np.eye(3)).max() < 5 * np.sqrt(2 / 3 / 2000)
    assert (a**2).mean() == pytest.approx(1, rel=5 * np.sqrt(2 / 6000))
    for dim, waves in ((1, 2), (2, 12)):
        data = sdesam.problems.torus(dim=dim, samples=3000, seed=2).data
        k = np.asarray(data["frequency"], int)
        assert k.shape == (3000, waves, dim)
        assert len({frozenset([tuple(v), tuple(-v)]) for v in k[0]}) == waves, (
            "each pair once, not 0"
        )
        assert abs(k).max() == 2
        size = 0.1 / (1 + (k[0] ** 2).sum(axis=1))
        for name in ("cos", "sin"):
            np.testing.assert_allclose(
                np.asarray(data[name], float).std(axis=0), size, rtol=5 / np.sqrt(6000)
            )


def test_the_start_of_digits_has_its_law():
    """`W1 ~ N(0, 1/64)`, `W2 ~ N(0, 1/width)`, within 5 standard errors."""
    x = sdesam.problems.digits(train=2, width=100, seed=2).x0
    for name, fan in (("W1", 64), ("W2", 100)):
        z = np.asarray(x[name], float) * np.sqrt(fan)
        assert abs(z.mean()) < 5 / np.sqrt(z.size)
        assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / z.size)
    assert not x["b1"].any()
    assert not x["b2"].any()


def test_a_fingerprint_is_of_data_and_start():
    def loss(x, a):
        return jnp.sum((x - a) ** 2)

    def of(data, x0):
        return sdesam.FiniteSum(loss, data, x0).fingerprint

    assert of(np.arange(3.0), np.ones(2)) == of(np.arange(3.0), np.ones(2))
    others = [
        (np.arange(3.0) + 1, np.ones(2)),
        (np.arange(3.0), np.zeros(2)),
        (np.arange(3), np.ones(2)),
    ]
    assert len({of(*other) for other in [(np.arange(3.0), np.ones(2)), *others]}) == 4


def test_digits_are_the_real_ones():
    source = load_digits()
    problem = sdesam.problems.digits(train=100, width=8)
    np.testing.assert_allclose(problem.data["image"], source.data[:100] / 16 - 0.3, rtol=1e-6)
    np.testing.assert_array_equal(problem.data["label"], source.target[:100])
    assert problem.dim == 64 * 8 + 8 + 8 * 10 + 10
    # the network and its accuracy in numpy
    p = {name: np.asarray(value, float) for name, value in problem.x0.items()}
    scores = np.tanh((source.data / 16 - 0.3) @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]
    right = scores.argmax(1) == source.target
    assert problem.observables["test_accuracy"](problem.x0) == pytest.approx(right[100:].mean())
    # observed together, each by its own images
    observer = problem.observer(["test_accuracy", "train_accuracy"])
    assert right[100:].mean() != right[:100].mean()
    assert observer(problem.x0) == pytest.approx(
        {"test_accuracy": right[100:].mean(), "train_accuracy": right[:100].mean()}
    )
    assert "test_accuracy" not in sdesam.problems.digits(train=1797).observables


def test_a_torus_problem_is_periodic():
    with jax.enable_x64(True):
        problem = sdesam.problems.torus(dim=2, samples=3, seed=5)
        x = np.array([0.3, 1.1])
        np.testing.assert_allclose(
            problem.grad(x), problem.grad(x + np.array([2, -4]) * np.pi), atol=1e-12
        )
        assert problem.x0.shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (lambda x, s: x * s, {"a": np.ones(3), "b": np.ones(2)}, 1.0),
            ValueError,
            r"leading axes have lengths \[2, 3\]",
        ),
        ((lambda x, s: x * s, np.float32(1), 1.0), ValueError, r"leading axes have lengths \[0\]"),
        ((lambda x, s: x * s, {}, 1.0), ValueError, "no arrays"),
        (
            (lambda x, s: x * s, np.ones(3), 1),
            TypeError,
            r"x0 must hold floating-point arrays.*write 1.0 for 1",
        ),
        ((lambda x, s: x * s, np.ones(3), {}), ValueError, "x0 has no parameters"),
        ((lambda x, s: x * s, np.ones(3), np.ones(0)), ValueError, "x0 has no parameters"),
        (
            (lambda x, s: x * s, np.ones(3), np.ones(2)),
            ValueError,
            r"must return one floating-point scalar.*float32\[2\]",
        ),
        (
            (lambda x, s: (x, s), np.ones(3), 1.0),
            ValueError,
            r"must return one floating-point scalar",
        ),
        (
            (lambda x, s: "text", np.ones(3), 1.0),
            ValueError,
            r"must return one floating-point scalar, but it returns str",
        ),
        (
            (lambda x, s: np.array("text"), np.ones(3), 1.0),
            ValueError,
            r"floating-point scalar, but it returns an array of <U4",
        ),
        (
            (lambda x, s: None, np.ones(3), 1.0),
            ValueError,
            r"must return one floating-point scalar, but it returns None",
        ),
        (
            (lambda x, s: 1, np.ones(3), 1.0),
            ValueError,
            r"floating-point scalar, but it returns int",
        ),
        (
            (lambda x, s: x[1], np.ones(3), {1: 2.0, "b": 3.0}),
            TypeError,
            "x0 is no pytree.*the keys of a dictionary must be of one type",
        ),
        (
            (lambda x, s: x, {1: np.ones(3), "b": np.ones(3)}, 1.0),
            TypeError,
            "data is no pytree.*keys of a dictionary must be of one type",
        ),
        (
            (lambda x, s: x, np.ones(3), np.array(["a", "b"])),
            TypeError,
            "x0 is an array of <U1: x0 must hold floating-point arrays",
        ),
        (
            (lambda x, s: x, np.ones(3), np.array([1], "datetime64[s]")),
            TypeError,
            r"x0 is an array of datetime64\[s\]: x0 must hold",
        ),
        (
            (lambda x, s: x, np.ones(3), np.array([None])),
            TypeError,
            "x0 is an array of object: x0 must hold floating-point arrays",
        ),
        (
            (lambda x, s: x, np.ones(3), {"a": jax.random.key(0)}),
            TypeError,
            r"x0\['a'\] is a PRNGKeyArray",
        ),
        (
            (lambda x, s: 1 / 0, np.ones(3), 1.0),
            ValueError,
            r"sample_loss\(x0, sample 0\) fails with ZeroDivisionError: division by zero$",
        ),
        (
            (lambda x, s: x if x > 0 else s, np.ones(3), 1.0),
            ValueError,
            r"sample_loss\(x0, sample 0\) fails: it asks in Python for .*use jnp",
        ),
        (
            (lambda x, s: np.sin(x), np.ones(3), 1.0),
            ValueError,
            r"sample_loss\(x0, sample 0\) fails: it asks in Python for .*use jnp",
        ),
        (
            (lambda x, s: range(3)[s], np.arange(3), 1.0),
            ValueError,
            r"sample_loss\(x0, sample 0\) fails: it asks in Python for .*use jnp",
        ),
        (
            (lambda x, s: jnp.log(x) * s, np.ones(3), -1.0),
            ValueError,
            "the loss at the start x0 is nan",
        ),
        (
            (lambda x, s: x @ s, np.ones(3), 1.0),
            ValueError,
            r"sample_loss\(x0, sample 0\) fails with",
        ),
    ],
)
def test_bad_problems(arguments, error, message):
    with pytest.raises(error, match=message):
        sdesam.FiniteSum(*arguments)


def test_empty_arrays_beside_parameters():
    def loss(x, a):
        return jnp.sum(x["empty"]) + 0.5 * jnp.sum((x["b"] - a) ** 2)

    problem = sdesam.FiniteSum(
        loss, np.array([0.0, 2.0]), {"b": np.ones(2), "empty": np.ones((0, 3))}
    )
    assert (problem.dim, float(problem.trace_cov(problem.x0)), float(problem.curvature)) == (
        2,
        2.0,
        1.0,
    )
    chain = sdesam.Chain("usam", problem, lr=0.5, rho=1.0, batch=2, replace=False)
    out = sdesam.train(chain, jax.random.key(0), runs=2, steps=1, observe=["loss"])
    np.testing.assert_allclose(out.final["b"], 1.0)  # the whole set, whose gradient there is 0
    assert out.final["empty"].shape == (2, 0, 3)
    sde = sdesam.derive("usam").bind(problem, lr=0.5, rho=1.0, batch=2)
    assert sdesam.simulate(sde, jax.random.key(0), paths=2, horizon=0.5, dt=0.5).final[
        "empty"
    ].shape == (2, 0, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda problem: sdesam.Chain("sgd", problem, lr=0.1),
        lambda problem: sdesam.derive("sgd").bind(problem, lr=0.1),
        lambda problem: sdesam.weak_error(sdesam.derive("sgd"), problem, batch=2),
        lambda problem: sdesam.signature(sdesam.derive("sgd"), problem, batch=2),
        lambda problem: sdesam.compare("sgd", problem, lr=0.1, batch=2, steps=1),
        lambda problem: sdesam.check(sdesam.Hypothesis(potential=len), "sgd", problem),
        lambda problem: sdesam.effective_micro_batch(
            problem, 1.0, batch=2, lam=1.0, key=jax.random.key(0)
        ),
        lambda problem: curvature.hessian_trace(problem, 1.0, jax.random.key(0)),
        lambda problem: curvature.largest_eigenvalue(problem, 1.0, jax.random.key(0)),
    ],
)
def test_what_is_no_problem(call):
    others = [3, "digits", sdesam.problems.digits, {"loss": 1.0}]
    for other in others:
        with pytest.raises(
            TypeError,
            match=(
                r"problem=.*: it must be a sdesam\.FiniteSum, such as sdesam\.problems\.digits\(\)"
            ),
        ):
            call(other)


def test_what_is_no_equation_no_sde_no_hypothesis():
    chain = sdesam.Chain("sgd", sdesam.problems.quadratic(), lr=0.1)
    for other in (3, "sgd", chain, sdesam.derive):
        with pytest.raises(TypeError, match=r"equation=.*: it must be what sdesam\.derive gives"):
            sdesam.weak_error(other, chain.problem, batch=2)
        with pytest.raises(TypeError, match=r"coupled takes a sdesam\.SDE, not "):
            sdesam.coupled(other, chain, jax.random.key(0), runs=2, steps=1)
        with pytest.raises(TypeError, match=r"hypothesis=.*: it must be a sdesam\.Hypothesis"):
            sdesam.check(other, "sgd")
    with pytest.raises(
        TypeError, match=r"judged=\['loss', 3\]: it must be the name of an observable"
    ):
        sdesam.compare("sgd", chain.problem, lr=0.1, batch=2, steps=1, judged=["loss", 3])


def test_more_bad_problems():
    with pytest.raises(ValueError, match=r"does not have the period 6\.28.* in coordinate 0"):
        sdesam.FiniteSum(lambda x, s: s * jnp.sum(x**2), np.ones(2), np.ones(2), period=6.28)
    sdesam.FiniteSum(lambda x, s: s * jnp.cos(x), np.ones(2), 1.0, period=2 * np.pi)
    # 0.05 % too short
    with pytest.raises(ValueError, match=r"does not have the period 6\.28 in coordinate 0"):
        sdesam.FiniteSum(lambda x, s: s * jnp.cos(x), np.ones(2), 1.0, period=6.28)
    with pytest.raises(ValueError, match="'loss' is built in"):
        sdesam.FiniteSum(lambda x, s: x * s, np.ones(2), 1.0, observables={"loss": lambda x: x})
    with pytest.raises(ValueError, match="torus problems have 1 or 2 dimensions"):
        sdesam.problems.torus(dim=3)
    with pytest.raises(ValueError, match="there are 1797 images"):
        sdesam.problems.digits(train=1798)


def test_load():
    assert sdesam.problems.load("torus1d", samples=3).n == 3
    assert sdesam.problems.load("sdesam.problems:quadratic", dim=3).dim == 3
    for spec, message in [
        ("digit", "unknown problem 'digit'.*linear-regression.*did you mean 'digits'"),
        ("no_such_module:f", "cannot be loaded"),
        ("sdesam.problems:f", "cannot be loaded"),
        ("math:sqrt", "does not take"),
        ("os:getcwd", "gives a str: it must give a sdesam.FiniteSum"),
    ]:
        with pytest.raises(ValueError, match=message):
            sdesam.problems.load(spec)
    with pytest.raises(ValueError, match=r"does not take {'widht': 3}"):
        sdesam.problems.load("digits", widht=3)


SMOOTH = {
    "tanh": lambda x: jnp.tanh(x).sum(),
    "gelu": lambda x: jax.nn.gelu(x).sum(),
    "silu": lambda x: jax.nn.silu(x).sum(),
    "softplus": lambda x: jax.nn.softplus(x).sum(),
    "logsumexp": jax.nn.logsumexp,
    "log_softmax": lambda x: jax.nn.log_softmax(x)[0],
    "kink in a constant": lambda x: x.sum() * jnp.max(jnp.arange(3.0)),
    "stopped kink": lambda x: x.sum() * jax.lax.stop_gradient(jnp.max(x)),
    "scan": lambda x: jax.lax.scan(lambda c, v: (jnp.tanh(c + v), None), 0.0, x)[0],
}
KINKED = {
    "relu": lambda x: jax.nn.relu(x).sum(),
    "leaky_relu": lambda x: jax.nn.leaky_relu(x).sum(),
    "elu": lambda x: jax.nn.elu(x).sum(),
    "abs": lambda x: jnp.abs(x).sum(),
    "max": jnp.max,
    "clip": lambda x: jnp.clip(x, 0, 1).sum(),
    "rounding": lambda x: (x * x.astype(int)).sum(),
    "where": lambda x: jnp.where(x > 0, x**2, x**3).sum(),
    "scan": lambda x: jax.lax.scan(lambda c, v: (jax.nn.relu(c + v), None), 0.0, x)[0],
    "inside jit": lambda x: jax.jit(jax.nn.relu)(x).sum(),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_losses_pass(name):
    assert nonsmooth_operations(lambda x, s: SMOOTH[name](x) * s, jnp.ones(3), 1.0) == ()


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_found(name):
    assert nonsmooth_operations(lambda x, s: KINKED[name](x) * s, jnp.ones(3), 1.0)


def test_kinks_have_their_names_in_jax():
    found = nonsmooth_operations(lambda x, s: KINKED["where"](x) * s, jnp.ones(3), 1.0)
    assert found == ("gt", "where")


def test_digits_with_wrong_labels():
    clean, noisy = (
        sdesam.problems.digits(train=200, width=4, seed=3, label_noise=share)
        for share in (0.0, 0.4)
    )
    wrong = np.asarray(clean.data["label"] != noisy.data["label"])
    assert wrong.sum() == 80, "a wrong label is never the true one"
    assert noisy.data["label"].min() >= 0
    assert noisy.data["label"].max() <= 9
    moved = np.bincount(
        np.asarray(noisy.data["label"] - clean.data["label"])[wrong] % 10, minlength=10
    )
    assert (moved[1:] > 0).all(), "to every other label"
    other = sdesam.problems.digits(train=200, width=4, seed=4, label_noise=0.4)
    assert (np.asarray(other.data["label"]) != np.asarray(noisy.data["label"])).any()
    # the same test labels, and the very same function, so that what is compiled for one seed serves
    # all
    assert (
        clean.observables["test_accuracy"]
        is sdesam.problems.digits(train=200, width=4, seed=5).observables["test_accuracy"]
    )
    assert float(clean.observables["test_accuracy"](clean.x0)) == pytest.approx(
        float(noisy.observables["test_accuracy"](clean.x0))
    )
    with pytest.raises(ValueError, match=r"label_noise=1\.2: it must be a share from 0 to 1"):
        sdesam.problems.digits(label_noise=1.2)


def test_digits_with_the_squared_loss_and_another_start():
    problem = sdesam.problems.digits(train=7, width=3, loss="squared")
    x = {name: np.asarray(leaf, np.float64) for name, leaf in problem.x0.items()}
    scores = np.tanh(np.asarray(problem.data["image"]) @ x["W1"] + x["b1"]) @ x["W2"] + x["b2"]
    wanted = (
        np.mean(np.sum((scores - np.eye(10)[np.asarray(problem.data["label"])]) ** 2, axis=1)) / 2
    )
    assert float(problem.loss(problem.x0)) == pytest.approx(wanted, rel=1e-5)
    moved = {name: leaf + 1 for name, leaf in problem.x0.items()}
    assert float(sdesam.problems.digits(train=7, width=3, start=moved).x0["b2"][0]) == 1
    with pytest.raises(ValueError, match="they must be like the start"):
        sdesam.problems.digits(train=7, width=4, start=moved)
    with pytest.raises(ValueError, match="loss='hinge': choose one of cross-entropy, squared"):
        sdesam.problems.digits(loss="hinge")


def test_a_bad_minimum_is_bad():
    x, steps = sdesam.problems.bad_minimum(train=60, width=32, seed=0)
    problem = sdesam.problems.digits(train=60, width=32, seed=0)
    assert set(steps) == {"steps to wrong labels", "steps to true labels"}
    assert float(problem.observables["train_accuracy"](x)) == 1
    # the control: the same fit without the wrong labels
    good, _ = sdesam.problems.bad_minimum(train=60, width=32, seed=0, label_noise=0.0)
    assert float(problem.observables["train_accuracy"](good)) == 1
    assert (
        float(problem.observables["test_accuracy"](x))
        < float(problem.observables["test_accuracy"](good)) - 0.05
    )
    with pytest.raises(RuntimeError, match="the wrong labels are not fitted within most=50 steps"):
        sdesam.problems.bad_minimum(train=60, width=2, seed=0, most=50)
