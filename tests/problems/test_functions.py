"""Functions that users hand in: whatever can be called, and always with the present values of what
it reads.
"""

import dataclasses
import functools
import gc
import types
import weakref

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam._util.functions import Function, compiled

KEY = jax.random.key(0)
RATE = 1.0
TABLE = np.ones(2)
SETTINGS = {"rate": 1.0, "other": ["a", 2]}
MODULE = types.ModuleType("settings")
PATH = types.SimpleNamespace(inner=types.SimpleNamespace(rate=1.0))


class Shared:
    rate = 1.0


@dataclasses.dataclass
class Net:
    """It has an __eq__, so no hash."""

    rate: object

    def __call__(self, x):
        return self.scaled(x)

    def scaled(self, x):
        return jnp.sum(self.rate) * x

    @property
    def doubled(self):
        return 2 * self.rate


NET = Net(1.0)


def helper(x):
    return RATE * x


def body(x, _):
    return RATE * x, None


@jax.jit
def jitted(x):
    return RATE * x


@jax.checkpoint
def remat(x):
    return RATE * x


def made(rate):
    def fn(x):
        return rate * x

    def change(new):
        nonlocal rate
        rate = new

    return fn, change


CLOSURE, change_closure = made(1.0)


def set_global(value):
    global RATE
    RATE = value


READERS = {
    "a global": (lambda x: RATE * x, set_global),
    "a global of a function that is called": (lambda x: helper(x), set_global),
    "a global of an inner function": (
        lambda x: jax.vmap(lambda v: RATE * v)(x[None])[0],
        set_global,
    ),
    "the body of a loop": (lambda x: jax.lax.scan(body, x, None, length=1)[0], set_global),
    "a function under jax.jit": (jitted, set_global),
    "a function under jax.jit that is called": (lambda x: jitted(x), set_global),
    "a function under jax.checkpoint": (lambda x: remat(x), set_global),
    "an array, changed in place": (
        lambda x: TABLE[1] * x,
        lambda value: TABLE.__setitem__(1, value),
    ),
    "a dictionary": (lambda x: SETTINGS["rate"] * x, lambda value: SETTINGS.update(rate=value)),
    "a module": (lambda x: MODULE.rate * x, lambda value: setattr(MODULE, "rate", value)),
    "a class": (lambda x: Shared.rate * x, lambda value: setattr(Shared, "rate", value)),
    "an object in an object": (
        lambda x: PATH.inner.rate * x,
        lambda value: setattr(PATH.inner, "rate", value),
    ),
    "an object that is called": (lambda x: NET(x), lambda value: setattr(NET, "rate", value)),
    "an object": (NET, lambda value: setattr(NET, "rate", value)),
    "a method": (NET.scaled, lambda value: setattr(NET, "rate", value)),
    "a property": (lambda x: NET.doubled / 2 * x, lambda value: setattr(NET, "rate", value)),
    "getattr": (
        lambda x: NET.rate * x,
        lambda value: setattr(NET, "rate", value),
    ),
    "a closure": (CLOSURE, change_closure),
    "a partial": (
        functools.partial(lambda table, x: table[0] * x, TABLE),
        lambda value: TABLE.__setitem__(0, value),
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_what_a_function_reads_is_what_it_is_now(kind):
    """Of objects made before the change, and of new ones."""
    rate, change = READERS[kind]
    change(1.0)
    old = None
    for value in (1.0, 2.0):
        change(value)
        sde = sdesam.SDE(lambda x: -rate(x), lambda x, xi: 0 * xi, (), 1.0)
        old = old or sde
        assert (sde.drift(1.0), old.drift(1.0)) == (-value, -value)
    assert Function(rate) == Function(rate)
    now = Function(rate)
    change(1.0)
    assert Function(rate) != now


def test_all_that_takes_functions_looks_again():
    """A problem, what is built on it, and an SDE, made before a global changes; (1 - rate/4)^2
    after two Euler steps.
    """

    def loss(x, a):
        return RATE * x * a

    set_global(1.0)
    problem = sdesam.FiniteSum(loss, np.ones(2), 1.0, observables={"seen": lambda x: RATE * x})
    chain, bound = (
        sdesam.Chain("sgd", problem, lr=0.5, batch=1),
        sdesam.derive("sgd", order=(1, 2)).bind(problem, lr=0.5, batch=1),
    )
    sde = sdesam.SDE(lambda x: -RATE * x, lambda x, xi: 0 * RATE * xi, (), 1.0)
    outer, nested = (
        sdesam.SDE(fn, lambda x, xi: 0 * xi, (), 1.0)
        for fn in (lambda x: -problem.loss(x), lambda x: sde.drift(x))
    )
    method = sdesam.SDE(sde.drift, sde.apply_noise, (), 1.0)
    for value in (1.0, 2.0):
        set_global(value)
        assert (problem.loss(1.0), problem.grad(1.0), problem.trace_cov(1.0)) == (value, value, 0)
        assert (chain.step(1.0, KEY), bound.drift(1.0), outer.drift(1.0)) == (
            1 - value / 2,
            -value,
            -value,
        )
        assert (nested.drift(1.0), method.drift(1.0)) == (-value, -value)
        assert jax.jit(lambda sde: sde.drift(1.0))(sde) == -value
        out = sdesam.train(chain, KEY, 1, 1, observe=["loss", "seen"])
        assert (out.mean["loss"][0], out.mean["seen"][0], out.final[0]) == (
            value,
            value,
            1 - value / 2,
        )
        out = sdesam.simulate(sde, KEY, 1, 0.5, 0.25, observe={"seen": lambda x: RATE * x})
        assert (out.final[0], out.mean["seen"][0]) == ((1 - value / 4) ** 2, value)
    set_global(1.0)


def test_a_drift_may_read_the_very_sde_that_it_is_part_of():
    """Its name stood for another one when the drift was written."""
    traces, sde = 0, sdesam.SDE(lambda x: -x, lambda x, xi: 0 * xi, (), 1.0)

    def drift(x):
        nonlocal traces
        traces += 1
        return sde.x0 - x

    sde = sdesam.SDE(drift, lambda x, xi: 0 * xi, (), 1.0)
    assert sde.drift(3.0) == -2
    before = traces
    assert sde.drift(4.0) == -3
    assert traces == before
    # and through another one
    outer = sdesam.SDE(lambda x: 2 * sde.drift(x), lambda x, xi: 0 * xi, (), 1.0)
    assert outer.drift(3.0) == -4
    sde = sdesam.SDE(lambda x: -outer.x0 * x, lambda x, xi: 0 * xi, (), 1.0)
    assert outer.drift(3.0) == -6


def test_equal_functions_are_traced_once():
    """Also where they count how often: what a function changes itself is no input."""
    traces = 0

    def loss(x, a):
        nonlocal traces
        traces += 1
        return RATE * (x - a) ** 2

    problems = [sdesam.FiniteSum(loss, np.arange(3.0), 1.0) for _ in range(2)]
    before = traces
    for problem in problems:
        problem.loss(2.0)
        problem.check_gradient()
    once = traces
    sdesam.FiniteSum(loss, np.arange(3.0) + 1, 1.0).check_gradient()
    assert traces <= once + 1, "the check of its shape, and nothing compiled"
    assert problem.sample_loss is problem.sample_loss
    assert before > 0


def test_methods_and_partials_made_anew_share_their_code():
    data = np.ones(2)
    losses = [lambda: NET.scaled, lambda: functools.partial(jnp.multiply, np.ones(2))]
    for loss in losses:
        assert Function(loss()) == Function(loss())
        assert hash(Function(loss())) == hash(Function(loss()))
    assert Function(functools.partial(jnp.multiply, data)) != Function(
        functools.partial(jnp.multiply, 2 * data)
    )


class Module(equinox.Module):
    w: jax.Array
    name: str = "linear"

    def __call__(self, x):
        return -self.w * x

    def noise(self, x, xi):
        return self.w * xi

    def loss(self, x, a):
        return jnp.sum((self.w * x - a) ** 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    w: jax.Array

    def __call__(self, x):
        return -self.w * x

    def noise(self, x, xi):
        return self.w * xi

    def loss(self, x, a):
        return jnp.sum((self.w * x - a) ** 2)


class Slots(Registered):
    __slots__ = ("w",)

    def __init__(self, w):
        self.w = w


class Plain(Registered):
    __hash__ = None

    def __init__(self, w):
        self.w = np.asarray(w)


@pytest.mark.parametrize("kind", [Module, Registered, Slots, Plain])
def test_modules_and_methods(kind):
    """`w = 2`: drift -2 x, noise 2 xi, losses (2 x - 1)^2 in two coordinates."""
    net, ones = kind(jnp.full(2, 2.0)), jnp.ones(2)
    sde = sdesam.SDE(net, net.noise, (2,), ones)
    np.testing.assert_array_equal(sde.drift(ones), [-2, -2])
    np.testing.assert_array_equal(sde.covariance(ones), 4 * np.eye(2))
    problem = sdesam.FiniteSum(net.loss, np.ones((5, 2)), ones, observables={"net": net})
    assert (problem.loss(ones), problem.trace_cov(ones)) == (2, 0)
    chain = sdesam.Chain("sgd", problem, lr=0.1, batch=4)
    assert sdesam.train(chain, KEY, 2, 1, observe=["net"]).mean["net"][0].tolist() == [-2, -2]
    many = sdesam.SDE(net, net.noise, (2,), ones, batched=True)
    observe = {"net": net, "method": functools.partial(net.loss, a=1.0)}
    out = [sdesam.simulate(one, KEY, 3, 0.5, 0.25, observe=observe) for one in (sde, many)]
    np.testing.assert_allclose(out[0].final, out[1].final, rtol=1e-6)
    assert out[0].mean["net"][0].tolist() == [-2, -2]
    assert out[0].mean["method"][0] == 2


def test_arrays_of_modules_are_runtime_values():
    traces = 0

    def drift(w, x):
        nonlocal traces
        traces += 1
        return -w * x

    def noise(x, xi):
        return 0 * xi

    for w in (1.0, 2.0):
        sde = sdesam.SDE(jax.tree_util.Partial(drift, jnp.full(2, w)), noise, (2,), jnp.ones(2))
        before = traces
        assert sde.drift(sde.x0)[0] == -w
    assert traces == before


def test_a_module_as_start():
    """Its floating-point arrays are the parameters; functions get the module back, dropout and
    activation included.
    """
    net = equinox.nn.Sequential(
        [
            equinox.nn.MLP(2, 1, 3, 1, activation=jnp.tanh, key=KEY),
            equinox.nn.Dropout(0.5, inference=True),
        ]
    )
    inputs, targets = np.random.default_rng(0).normal(size=(7, 2)), np.linspace(0, 1, 7)

    def loss(net, sample):
        return jnp.sum((net(sample[0]) - sample[1]) ** 2)

    problem = sdesam.FiniteSum(
        loss, (inputs, targets), net, observables={"p": lambda net: net.layers[1].p}
    )
    arrays, rest = equinox.partition(net, equinox.is_inexact_array)
    W, b = (
        np.asarray(net.layers[0].layers[0].weight, float),
        np.asarray(net.layers[0].layers[0].bias, float),
    )
    v, c = (
        np.asarray(net.layers[0].layers[1].weight, float),
        np.asarray(net.layers[0].layers[1].bias, float),
    )
    found = np.tanh(inputs @ W.T + b) @ v.T + c
    wanted = np.mean((found[:, 0] - targets) ** 2)
    assert problem.dim == 3 * 2 + 3 + 3 + 1
    assert jax.tree.structure(problem.x0) == jax.tree.structure(arrays)
    for x in (net, arrays, problem.x0):
        assert float(problem.loss(x)) == pytest.approx(wanted, rel=1e-5)
    wanted = jax.grad(
        lambda arrays: jnp.mean(
            jax.vmap(lambda *s: loss(equinox.combine(arrays, rest), s))(inputs, targets)
        )
    )(arrays)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        problem.grad(net),
        wanted,
    )
    sde = sdesam.derive("sgd", order=(1, 2)).bind(problem, lr=0.1, batch=4)
    out = sdesam.simulate(sde, KEY, 2, 0.2, 0.1, observe=["loss", "p"])
    assert out.mean["p"].tolist() == [0.5, 0.5, 0.5]
    assert np.isfinite(out.mean["loss"]).all()
    last = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), out.final)
    assert float(problem.loss(equinox.combine(last, rest))) == float(problem.loss(last))
    chain = sdesam.Chain("m-sam", problem, lr=0.1, rho=0.1, batch=4, micro=2)
    assert jax.tree.structure(chain.step(net, KEY)) == jax.tree.structure(arrays)
    with pytest.raises(ValueError, match="the parameters have structure"):
        problem.loss(net.layers[0])


def test_a_module_as_state():
    net = equinox.nn.MLP(2, 1, 3, 1, key=KEY)

    def drift(net):
        return jax.tree.map(lambda leaf: -leaf if equinox.is_inexact_array(leaf) else leaf, net)

    def noise(net, xi):
        return equinox.filter_grad(lambda net: xi * jnp.sum(net(jnp.ones(2))))(net)

    sde = sdesam.SDE(drift, noise, (), net)
    arrays = equinox.filter(net, equinox.is_inexact_array)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, -b), sde.drift(net), arrays)
    out = sdesam.simulate(sde, KEY, 2, 0.5, 0.25, observe={"net": lambda net: net(jnp.ones(2))[0]})
    assert out.mean["net"][0] == pytest.approx(float(net(jnp.ones(2))[0]))


def test_modules_of_flax():
    from flax import linen, nnx

    class Dense(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(1)(jnp.tanh(linen.Dense(3)(x)))

    inputs, module = np.ones((4, 2), np.float32), Dense()
    with pytest.raises(
        TypeError, match=r"x0 is a flax.linen module, which holds no parameters: `x0 = module.init"
    ):
        sdesam.FiniteSum(lambda x, s: x(s), inputs, module)
    x0 = module.init(KEY, inputs[0])
    problem = sdesam.FiniteSum(lambda x, s: module.apply(x, s)[0] ** 2, inputs, x0)
    assert float(problem.loss(x0)) == pytest.approx(float(module.apply(x0, inputs[0])[0] ** 2))
    net = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    with pytest.raises(
        TypeError, match=r"x0 is a flax.nnx module: its parameters are `graph, x0, rest = nnx.split"
    ):
        sdesam.FiniteSum(lambda x, s: x(s), inputs, net)
    graph, x0, rest = nnx.split(net, nnx.Param, ...)
    problem = sdesam.FiniteSum(
        lambda x, s: nnx.merge(graph, x, rest)(s)[0] ** 2,
        inputs,
        x0,
        observables={"net": lambda x: net(inputs[0])},
    )
    assert float(problem.loss(x0)) == pytest.approx(float(net(inputs[0])[0] ** 2), rel=1e-5)
    chain = sdesam.Chain("m-usam", problem, lr=0.1, rho=0.1, batch=4, micro=2)
    assert np.isfinite(sdesam.train(chain, KEY, 2, 2, observe=["loss", "net"]).mean["loss"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sdesam.FiniteSum(3, np.ones(2), 1.0), "sample_loss=3: it must be a function"),
        (lambda: sdesam.SDE(-1, lambda x, xi: xi, (), 1.0), "drift=-1: it must be a function"),
        (
            lambda: sdesam.FiniteSum(lambda x, a: x * a, np.ones(2), 1.0, observables={"x": 3}),
            "observable 'x' is 3: observables are named functions",
        ),
        (
            lambda: sdesam.FiniteSum(lambda x, a: x * a, np.ones(2), 1.0, observables=["x"]),
            r"observables=\['x'\]: it must be a mapping",
        ),
    ],
)
def test_what_cannot_be_called(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("value", [(1, 2), None, {"a": 1}, [1.0], "text"])
def test_observables_return_one_array(value):
    problem = sdesam.FiniteSum(
        lambda x, a: x * a, np.ones(2), 1.0, observables={"odd": lambda x: value}
    )
    sde = sdesam.SDE(lambda x: -x, lambda x, xi: xi, (), 1.0)
    message = "observable 'odd' must return one array, or a number, but it returns"
    with pytest.raises(TypeError, match=message):
        sdesam.train(sdesam.Chain("sgd", problem, lr=0.1, batch=1), KEY, 1, 1, observe=["odd"])
    with pytest.raises(TypeError, match=message):
        sdesam.simulate(sde, KEY, 1, 1.0, 0.5, observe={"odd": lambda x: value}, times=[0.5])


def forgotten(make, count):
    """Which of `count` functions are alive after each was handed to `make`."""
    references = []

    def one(k):
        def fn(x, a, table=np.ones(1000)):  # noqa: B008
            return (x - a) ** 2 * table[k]

        references.append(weakref.ref(fn))
        make(fn)

    for k in range(count):
        one(k)
    gc.collect()
    return [k for k, reference in enumerate(references) if reference() is not None]


def test_dead_functions_are_forgotten():
    """Compiled code is kept for the last 32 of each kind, and the functions of these alone."""
    apply = compiled(static=1)(lambda fn, x: fn(x, 1.0))
    assert forgotten(lambda fn: apply(Function(fn), 2.0), 35) == list(range(3, 35))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rate"], meta_fields=["fn"])
@dataclasses.dataclass(frozen=True, eq=False)
class Carrying:
    rate: float
    fn: Function


def test_dead_functions_of_objects_are_forgotten():
    """Where a function is part of the structure of an argument, too; objects that differ in numbers
    share a program.
    """
    traces = []

    @compiled()
    def apply(of, x):
        traces.append(1)
        return of.rate * of.fn(x, 1.0)

    def use(fn):
        assert apply(Carrying(2.0, Function(fn)), 3.0) == 8
        assert apply(Carrying(3.0, Function(fn)), 3.0) == 12

    assert forgotten(use, 35) == list(range(3, 35))
    assert len(traces) == 35


@pytest.mark.slow
def test_memory_stays_flat():
    """Of 300 problems and what is built on them the last 32 are alive, which may share a loss with
    the engine's programs.
    """

    def use(loss):
        problem = sdesam.FiniteSum(loss, np.arange(3.0), 1.0)
        problem.trace_cov(problem.x0)
        sdesam.train(sdesam.Chain("sgd", problem, lr=0.1, batch=1), KEY, 1, 1, observe=["loss"])

    assert forgotten(use, 300) == list(range(268, 300))
