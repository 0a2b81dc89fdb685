"""Every rule as an optimizer, against the rule written out in numpy; what a rule needs besides the
mini-batch; its own numbers; devices.
"""

from dataclasses import dataclass
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sdesam
from sdesam import NormEstimate, optim
from sdesam.optim import kernel
from sdesam.variants import (
    RandomDirection,
    Variant,
    fresh,
    gibbs,
    gradient,
    parameter,
    random_direction,
    unit,
)
from tests.brute_force import LAM, PENALTY, SIGMA, WRITTEN, Drawn, Polynomials
from tests.optim.test_bad_input import refused
from tests.optim.test_training import loss
from tests.sde.test_enumeration import polynomial_loss
from tests.sde.test_rules import RULES

LR, RHO, EPS = 0.1, 0.4, 0.2
X = np.array([0.3, -0.2, 0.5])
LOSSES = Polynomials.random(6, 3, seed=4)
SAMPLES = vars(LOSSES)
BATCH, OTHER = (3, 0, 4, 4), (5, 1, 2, 1)
ANOTHER = tuple((i + 1) % 6 for i in OTHER)
KEY = jax.random.key(7)
CLIPPED = optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(0.05))


def tree(x):
    return {"w": jnp.asarray(x[:2]), "b": jnp.asarray(x[2])}


def flat(params):
    return np.append(params["w"], params["b"])


def losses(params, batch):
    x = jnp.append(params["w"], params["b"])
    return jax.vmap(polynomial_loss, (None, 0))(x, batch)


def taken(indices):
    return {name: values[list(indices)] for name, values in SAMPLES.items()}


def u(v, of=None):
    w = v if of is None else of
    return v / np.sqrt(w @ w + EPS**2)


def rejected(v, w):
    return v - (v @ w) / (w @ w) * w


@dataclass
class Slopes:
    """Gradients at one point, and at points that are moved from it."""

    x: np.ndarray

    def __call__(self, members, at=0.0):
        return LOSSES.g(self.x + RHO * at)[list(members)].mean(0)

    def weighted(self, members, at=0.0):
        """The weights are those of the point itself."""
        p = np.exp(LAM * np.linalg.norm(LOSSES.g(self.x)[list(members)], axis=1))
        return p / p.sum() @ LOSSES.g(self.x + RHO * at)[list(members)]

    @property
    def scale(self):
        """That of ASAM."""
        return abs(self.x) + 0.01


slope = Slopes(X)
NUMPY = {
    "sgd": lambda g, s, u: g(s.B),
    "usam": lambda g, s, u: g(s.B, at=g(s.B)),
    "m-usam": lambda g, s, u: g(s.I, at=g(s.I)),
    "n-usam": lambda g, s, u: g(s.B, at=g(s.D)),
    "sam": lambda g, s, u: g(s.B, at=u(g(s.B))),
    "m-sam": lambda g, s, u: g(s.I, at=u(g(s.I))),
    "n-sam": lambda g, s, u: g(s.B, at=u(g(s.D))),
    "dnsam": lambda g, s, u: g(s.B, at=u(g(s.B), of=g(s.D))),
    "rw-sam": lambda g, s, u: g(s.B, at=u(g.weighted(s.B))),
    "rw-sam-descent": lambda g, s, u: g.weighted(s.B, at=u(g.weighted(s.B))),
    "gnp": WRITTEN["gradient-norm penalty"],
    "two-step-usam": WRITTEN["two-step usam"],
    "two-step-sam": WRITTEN["two-step sam"],
    "rwp": WRITTEN["random"],
    "r-usam": lambda g, s, u: g(s.I, at=g(s.I, at=s.z)),
    "gsam": lambda g, s, u: (moved := g(s.I, at=u(g(s.I)))) - PENALTY * rejected(g(s.I), moved),
    "asam": lambda g, s, u: g(s.I, at=u(g.scale**2 * g(s.I), of=g.scale * g(s.I))),
    "orthogonal-sam": lambda g, s, u: g(s.I, at=u(rejected(g(s.I), g(s.D)))),
    "shared-norm-sam": lambda g, s, u: g(s.I, at=u(g(s.I), of=g(s.B))),
    "extragradient": lambda g, s, u: g(s.B, at=-g(s.B)),
    **{name: WRITTEN[name] for name in ("f-usam", "f-sam", "fresh-usam", "fresh-sam")},
}
"""The rules that come with the package, as their papers write them."""

I, B, D = (gradient(scope) for scope in ("micro", "batch", "data"))  # noqa: E741
MINE = {
    "mine: two apart": (
        gradient("micro", at=gradient(fresh) - gradient(fresh(2))),
        lambda g, s, u: g(s.I, at=g(s.J) - g([(i + 1) % 6 for i in s.J])),
    ),
    "mine: weights of the mini-batch": (
        gradient("micro", at=unit(gibbs("batch")) + I),
        lambda g, s, u: g(s.I, at=u(g.weighted(s.B)) + g(s.I)),
    ),
    "mine: ascent of a mini-batch drawn apart": (
        gradient("batch", at=unit(gradient(fresh))),
        lambda g, s, u: g(s.B, at=u(g(s.J))),
    ),
    "mine: ascent of a mini-batch": (
        gradient("batch", at=random_direction()) + D,
        lambda g, s, u: g(s.B, at=s.z) + g(s.D),
    ),
    **{
        f"mine: {name}": (RULES[name], WRITTEN[name])
        for name in (
            *("unit of two steps", "ascent and noise", "mini-batch ascent", "mini-batch descent"),
            *("extra", "difference", "fresh norm", "norm of the data set"),
        )
    },
}
VARIANTS = {name: sdesam.VARIANTS[name] for name in NUMPY}
VARIANTS |= {name: Variant(name, direction) for name, (direction, _) in MINE.items()}
FORMULAS = NUMPY | {name: formula for name, (_, formula) in MINE.items()}


def numbers_of(rule):
    """What a rule is made with."""
    found = {"rho": RHO} if rule.perturbed else {}
    found |= {"eps": EPS} if rule.normalised else {}
    found |= {"micro": 2} if rule.micro else {}
    found |= {"lam": LAM, "norms": NormEstimate("exact")} if rule.weighted else {}
    return found | {name: {"sigma": SIGMA, "a": PENALTY}[name] for name in rule.parameters}


def given_to(rule, opt, params):
    """What its step is given."""
    found = {"whole": opt.whole_gradient(params, SAMPLES)} if rule.needs_full_gradient else {}
    apart = sum(scope.startswith("fresh") for scope in rule.direction.scopes)
    if apart:
        found["fresh"] = taken(OTHER) if apart == 1 else (taken(OTHER), taken(ANOTHER))
    return found | ({"key": KEY} if "direction" in rule.direction.scopes else {})


def drawn(law, x, key):
    """In place of the kernel's own draws: entries of one normal vector, or their signs."""
    z = jax.random.normal(key, (3,))
    return tree(z if law == "gaussian" else jnp.sign(z))


def by_hand(name, x=X):
    """`G(x)`."""
    rule, parts = VARIANTS[name], []
    laws = [v.law for v in rule.direction.walk() if isinstance(v, RandomDirection)]
    size = 2 if rule.micro else 4
    for j, start in enumerate(range(0, 4, size)):
        here = slice(start, start + size)
        key = jax.random.fold_in(jax.random.fold_in(KEY, 1), j)
        z = flat(drawn(laws[0], None, key)) if laws else None
        members = Drawn(BATCH[here], BATCH, range(6), OTHER[here], z)
        parts.append(FORMULAS[name](Slopes(x), members, u))
    return np.mean(parts, axis=0)


def test_every_rule_that_comes_with_the_package_has_its_formula_here():
    assert set(NUMPY) == set(sdesam.VARIANTS)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_step_is_the_rule(name, monkeypatch):
    """With SGD `x - lr G`; with clipping and AdamW, two steps of an optax loop that is given `G`
    for a gradient (one alone would show the signs of `G`).
    """
    monkeypatch.setattr(kernel, "direction", drawn)
    rule = VARIANTS[name]
    with jax.enable_x64(True):
        sgd, clipped = (
            optim.from_variant(rule, losses, inner, **numbers_of(rule))
            for inner in (optax.sgd(LR), CLIPPED)
        )
        moved, state, info = jax.jit(
            lambda x: sgd.step(x, sgd.init(x), taken(BATCH), **given_to(rule, sgd, x))
        )(tree(X))
        np.testing.assert_allclose(flat(moved), X - LR * by_hand(name), rtol=1e-11)
        np.testing.assert_allclose(info.loss, losses(tree(X), taken(BATCH)).mean(), rtol=1e-13)
        assert int(state.count) == 1

        @jax.jit
        def step(x, state):
            more = given_to(rule, clipped, x)
            updates, state = clipped.update(None, state, x, batch=taken(BATCH), **more)
            return optax.apply_updates(x, updates), state

        x = other = tree(X)
        state, rest = clipped.init(x), CLIPPED.init(x)
        for _ in range(2):
            G = by_hand(name, flat(other))
            assert np.linalg.norm(G) > 0.31, "clipping is at work"
            updates, rest = CLIPPED.update(tree(G), rest, other)
            other = optax.apply_updates(other, updates)
            x, state = step(x, state)
        np.testing.assert_allclose(flat(x), flat(other), rtol=1e-9)
    if name != "sgd":
        assert abs(by_hand(name) - slope(BATCH)).max() > 1e-3, "the control: SGD"


def test_the_formulas_differ():
    """The control: an optimizer that took a rule for another would miss its formula."""
    found = {name: by_hand(name) for name in NUMPY}
    names = list(found)
    for k, one in enumerate(names):
        for other in names[:k]:
            assert abs(found[one] - found[other]).max() > 1e-4, (one, other)


def moved_tree(rule, **numbers):
    opt = optim.from_variant(rule, losses, optax.sgd(LR), **{**numbers_of(rule), **numbers})
    x = tree(X)
    return opt.step(x, opt.init(x), taken(BATCH), **given_to(rule, opt, x))[0]


def moved_by(rule, **numbers):
    moved = moved_tree(rule, **numbers)
    return jnp.append(moved["w"], moved["b"])


@pytest.mark.parametrize(("name", "number"), [("f-sam", "sigma"), ("gsam", "a"), ("gnp", "a")])
def test_numbers_of_the_rule(name, number):
    """Known, traced, negative, as a schedule of the steps taken; another number is another step."""
    rule, value = VARIANTS[name], {"sigma": SIGMA, "a": PENALTY}[number]
    with jax.enable_x64(True):
        wanted = X - LR * by_hand(name)
        many = jnp.array([value, -value, jnp.nan, jnp.inf])
        found = np.asarray(jax.jit(jax.vmap(lambda value: moved_by(rule, **{number: value})))(many))
        known = [moved_by(rule, **{number: v}) for v in (value, np.float64(-value))]
        scheduled = moved_by(rule, **{number: lambda count: value + count})
    np.testing.assert_allclose(found[0], wanted, rtol=1e-11)
    np.testing.assert_allclose(known, found[:2], rtol=1e-11)
    np.testing.assert_allclose(scheduled, wanted, rtol=1e-11)
    assert np.isnan(found[2:]).all()
    assert abs(found[1] - wanted).max() > 1e-4, "the control: the wrong number"


def test_a_schedule_counts_the_steps_taken():
    """`x+ = x - lr (c_k + 1) x` with `c_k = k`: after three steps `x (1 - lr) (1 - 2 lr) (1 - 3
    lr)`.
    """
    rule = Variant("growing", parameter("c") * gradient("batch") + gradient("batch"))
    opt = optim.from_variant(
        rule, lambda x, batch: jnp.sum(x**2) / 2, optax.sgd(LR), c=lambda count: count
    )
    x, state = jnp.array([3.0, -4.0]), None
    state, start = opt.init(x), x
    for _ in range(3):
        x, state, _ = jax.jit(opt.step)(x, state, jnp.zeros(4))
    np.testing.assert_allclose(x, start * 0.9 * 0.8 * 0.7, rtol=1e-6)


def test_a_maker_is_its_rule():
    """`sam` and `from_variant("sam", ...)` are one optimizer."""
    for made, same in (
        (optim.sam(losses, CLIPPED, RHO, eps=EPS), ("sam", {"eps": EPS})),
        (optim.m_sam(losses, CLIPPED, RHO, 2), ("m-sam", {"micro": 2})),
    ):
        name, more = same
        opt = optim.from_variant(name, losses, CLIPPED, RHO, **more)
        a, b = (jax.jit(one.step)(tree(X), one.init(tree(X)), taken(BATCH)) for one in (made, opt))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def half_square(x, batch, key):
    """`s |x|^2 / 2` with a factor drawn from the key; of no sample."""
    s = jax.random.uniform(key)
    return s * jnp.sum(x**2) / 2 + 0 * jnp.sum(batch), s


def factors(number, apart=None):
    """The factor that micro-batch `number` has, or the batch drawn apart for it."""
    key = jax.random.fold_in(jax.random.split(KEY)[0], number)
    return float(jax.random.uniform(key if apart is None else jax.random.fold_in(key, apart)))


RANDOM = jnp.array([3.0, -4.0])


def stepped(rule, groups, mesh=None, **more):
    """One step of `half_square` with a learning rate of 1, on one device or on two."""
    axis = {} if mesh is None else {"axis_name": "device"}
    opt = optim.from_variant(
        rule,
        half_square,
        optax.sgd(1.0),
        0.5,
        micro=2,
        groups=groups,
        has_key=True,
        has_aux=True,
        **axis,
    )

    def step(batch, fresh):
        return opt.step(
            RANDOM, opt.init(RANDOM), batch, key=KEY, fresh=fresh if "fresh" in more else None
        )[0]

    batches = jnp.zeros(8), more.get("fresh", jnp.zeros(8))
    if mesh is None:
        return jax.jit(step)(*batches)
    specs = (P("device"), P("device"))
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))(*batches)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("where", ["one device", "two devices"])
@pytest.mark.parametrize("groups", ["vmap", "accumulate"])
def test_dropout_of_a_shared_norm(groups, where, mesh):
    """The mini-batch has the keys of its micro-batches: `|grad f_gamma|` is the norm of their mean,
    `u_I = s_I x / (mean s |x|)`.
    """
    s = np.array([factors(j) for j in range(4)])
    wanted = RANDOM - np.mean(s * (1 + 0.5 * s / (s.mean() * 5))) * RANDOM
    found = stepped("shared-norm-sam", groups, mesh if where == "two devices" else None)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    own = RANDOM - np.mean(s * (1 + 0.5 / 5)) * RANDOM
    assert abs(own - wanted).max() > 1e-3, "the control: norms of their own"


@pytest.mark.parametrize("where", ["one device", "two devices"])
@pytest.mark.parametrize("groups", ["vmap", "accumulate"])
def test_dropout_of_a_batch_drawn_apart(groups, where, mesh):
    """The batch drawn apart has keys of its own: `G = mean_I s_I (x + rho s_J x)`."""
    s, t = (np.array([factors(j, apart) for j in range(4)]) for apart in (None, 1))
    found = stepped(
        "fresh-usam", groups, mesh if where == "two devices" else None, fresh=jnp.zeros(8)
    )
    np.testing.assert_allclose(found, RANDOM - np.mean(s * (1 + 0.5 * t)) * RANDOM, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("gsam", "rwp", "fresh-sam", "shared-norm-sam", "mine: mini-batch descent"),
        "mine: weights of the mini-batch",
    ],
)
def test_micro_batches_in_turn_are_those_at_once(name):
    rule = VARIANTS[name]
    with jax.enable_x64(True):
        at_once, in_turn = (moved_by(rule, groups=groups) for groups in ("vmap", "accumulate"))
    np.testing.assert_allclose(at_once, in_turn, rtol=1e-11)


def test_a_shared_norm_in_turn_has_the_memory_of_one_micro_batch():
    params = {"W": jnp.ones((3, 1000)), "v": jnp.ones(1000)}
    batch = {"input": jnp.ones((64, 3)), "target": jnp.ones(64)}
    memory = {}
    for groups in ("vmap", "accumulate"):
        opt = optim.from_variant(
            "shared-norm-sam", loss, optax.sgd(LR), RHO, micro=1, groups=groups
        )
        lowered = jax.jit(opt.step).lower(params, opt.init(params), batch)
        memory[groups] = lowered.compile().memory_analysis().temp_size_in_bytes
    assert memory["accumulate"] < memory["vmap"] / 10  # 64 micro-batches


@pytest.mark.parametrize("groups", ["vmap", "accumulate"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_norm_of_a_mini_batch_in_half_precision(dtype, groups):
    """`f_i = a_i x^2 / 2` with 5000 ones: `x + x / |grad f_gamma| = 2`. Sums in half precision stop
    growing at 256 or 2048.
    """
    opt = optim.from_variant(
        "shared-norm-sam",
        lambda x, batch: jnp.mean(x**2 * batch) / 2,
        optax.sgd(1.0),
        1.0,
        micro=1,
        groups=groups,
    )
    x = dtype(1.0)
    found = jax.jit(opt.gradient)(x, opt.init(x), jnp.ones(5000, dtype)).gradient
    assert (found, found.dtype) == (2, dtype)


@pytest.mark.parametrize("name", NUMPY)
def test_strict_promotion_of_types_and_ranks(name):
    rule = VARIANTS[name]

    def in_half(params, batch):
        x = jnp.concatenate([params["w"], params["b"][None]])
        a = batch["a"].astype(x.dtype)
        return jnp.tanh(a @ x) ** 2

    own = {number: lambda count: jnp.float32(0.5) for number in rule.parameters}
    numbers = numbers_of(rule) | own
    opt = optim.from_variant(rule, in_half, optax.sgd(LR, momentum=0.9), **numbers)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree(X))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        moved, state, _ = jax.eval_shape(
            lambda x: opt.step(x, opt.init(x), taken(BATCH), **given_to(rule, opt, x)), params
        )
    leaves = jax.tree.leaves((moved, state.inner))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def on_two_devices(rule, mesh, **more):
    numbers = {**numbers_of(rule), **more}
    opt = optim.from_variant(rule, losses, optax.sgd(LR), axis_name="device", **numbers)
    given = given_to(rule, optim.from_variant(rule, losses, CLIPPED, **numbers_of(rule)), tree(X))
    key = given.pop("key", None)
    specs = {name: P() if name == "whole" else P("device") for name in given}

    def step(batch, given):
        return opt.step(tree(X), opt.init(tree(X)), batch, key=key, **given)[0]

    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P("device"), specs), out_specs=P())
    return flat(jax.jit(mapped)(taken(BATCH), given))


UNDIVIDED = "mine: mini-batch descent"
MICRO = [name for name, rule in VARIANTS.items() if rule.micro and name != UNDIVIDED]
WHOLE = [name for name, rule in VARIANTS.items() if not rule.micro]
FREE = ("sgd", "n-usam", "n-sam")
"""The mean over devices is their direction, whatever the devices do."""


@pytest.mark.parametrize("name", MICRO + WHOLE)
def test_two_devices_are_one(name, mesh, monkeypatch):
    """Each device holds one micro-batch of two samples, or half of a mini-batch."""
    monkeypatch.setattr(kernel, "direction", drawn)
    rule = VARIANTS[name]
    choice = name in WHOLE and name not in FREE
    with jax.enable_x64(True):
        wanted = X - LR * by_hand(name)
        found = on_two_devices(rule, mesh, **({"perturbation": "synchronised"} if choice else {}))
        alone = on_two_devices(rule, mesh, perturbation="local") if choice else None
    np.testing.assert_allclose(found, wanted, rtol=1e-11)
    assert not choice or abs(alone - wanted).max() > 1e-4, "the control: each device alone"


@pytest.mark.parametrize("name", [UNDIVIDED, "shared-norm-sam"])
def test_a_batch_spread_over_devices_under_jit(name, mesh):
    """No axis name: `jit` divides the work."""
    rule = VARIANTS[name]
    with jax.enable_x64(True):
        opt = optim.from_variant(rule, losses, optax.sgd(LR), **numbers_of(rule))
        batch = jax.device_put(taken(BATCH), NamedSharding(mesh, P("device")))
        moved, _, _ = jax.jit(opt.step)(tree(X), opt.init(tree(X)), batch)
    np.testing.assert_allclose(flat(moved), X - LR * by_hand(name), rtol=1e-11)


@pytest.mark.parametrize("how", ["shard_map unchecked", "pmap"])
def test_a_shared_norm_on_devices_of_any_kind(how, mesh):
    rule = VARIANTS["shared-norm-sam"]
    numbers = numbers_of(rule) | {"micro": 1, "axis_name": "device"}
    with jax.enable_x64(True):
        opt = optim.from_variant(rule, losses, optax.sgd(LR), **numbers)
        x, batch = tree(X), taken(BATCH)
        if how == "pmap":
            halves = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), batch)
            step = jax.pmap(lambda batch: opt.step(x, opt.init(x), batch)[0], axis_name="device")
            found = [flat(jax.tree.map(lambda leaf, k=k: leaf[k], step(halves))) for k in (0, 1)]
        else:
            step = jax.shard_map(
                lambda batch: opt.step(x, opt.init(x), batch)[0],
                mesh=mesh,
                in_specs=P("device"),
                out_specs=P(),
                check_vma=False,
            )
            found = [flat(jax.jit(step)(batch))]
        alone = flat(moved_tree(rule, micro=1))
    for one in found:
        np.testing.assert_allclose(one, alone, rtol=1e-11)


def test_a_unit_vector_of_a_mini_batch_leaves_a_choice(mesh):
    """Normalised gradient descent: the mean of unit vectors is not the unit vector of the mean."""
    rule = Variant("normalised", unit(gradient("batch")))
    refused(
        "say whether the devices perturb alone",
        lambda: optim.from_variant(rule, losses, CLIPPED, axis_name="device"),
    )
    with jax.enable_x64(True):
        together, alone = (
            on_two_devices(rule, mesh, perturbation=how) for how in ("synchronised", "local")
        )
    np.testing.assert_allclose(together, X - LR * u(slope(BATCH)), rtol=1e-11)
    halves = (u(slope(BATCH[:2])) + u(slope(BATCH[2:]))) / 2
    np.testing.assert_allclose(alone, X - LR * halves, rtol=1e-11)


def made(rule, **numbers):
    return lambda: optim.from_variant(rule, losses, optax.sgd(LR), **numbers)


@pytest.mark.parametrize(
    ("kind", "match", "make"),
    [
        (TypeError, "^f-sam needs sigma, a number of its own: give sigma=", made("f-sam", rho=RHO)),
        (
            TypeError,
            "^sigam=0.5: f-sam has no number sigam; its own numbers are sigma$",
            made("f-sam", rho=RHO, sigma=0.5, sigam=0.5),
        ),
        (
            TypeError,
            "^sigma=0.5: sam has no number sigma; it has none of its own$",
            made("sam", rho=RHO, sigma=0.5),
        ),
        (
            ValueError,
            "^sigma=nan: it must be",
            made("f-sam", rho=RHO, sigma=float("nan")),
        ),
        (TypeError, "^sigma='much': it must be", made("f-sam", rho=RHO, sigma="much")),
        (ValueError, "^f-sam needs rho", made("f-sam", sigma=0.5)),
        (ValueError, "^rho=-0.1: it must be", made("f-sam", rho=-0.1, sigma=0.5)),
        (ValueError, "^rho=0.1: sgd has no perturbation", made("sgd", rho=0.1)),
        (ValueError, "^unknown variant 'fsam'", made("fsam", rho=RHO)),
        (ValueError, "^micro=2: extragradient has no", made("extragradient", rho=RHO, micro=2)),
        (
            ValueError,
            "takes the gradient of the data set at a moved point.*sdesam.Chain",
            made(Variant("far", RULES["ascent of the data set"]), rho=RHO),
        ),
        (
            ValueError,
            "axis_name='device': .* whole mini-batch at a point of each micro-batch",
            made(VARIANTS[UNDIVIDED], rho=RHO, axis_name="device"),
        ),
        (
            ValueError,
            "perturbation='synchronised': asam leaves no choice",
            made("asam", rho=RHO, axis_name="device", perturbation="synchronised"),
        ),
    ],
)
def test_what_a_rule_is_made_with(kind, match, make):
    refused(match, make, kind)


@pytest.mark.parametrize("word", sorted({*signature(optim.from_variant).parameters} - {"own"}))
def test_words_of_the_maker_are_no_numbers_of_a_rule(word):
    refused("the name stands for something else already", lambda: parameter(word))


def step_of(rule, batch=BATCH, numbers=None, **given):
    def run():
        opt = optim.from_variant(rule, losses, optax.sgd(LR), **(numbers or numbers_of(rule)))
        x = tree(np.float32(X))
        jax.eval_shape(lambda: opt.step(x, opt.init(x), taken(batch), **given))

    return run


@pytest.mark.parametrize(
    ("match", "run"),
    [
        (
            "^fresh-sam takes gradients of samples drawn apart: give fresh=..., another mini-batch",
            step_of(VARIANTS["fresh-sam"]),
        ),
        (
            "give fresh=..., a tuple of 2 mini-batches as large as batch",
            step_of(VARIANTS["mine: two apart"], fresh=taken(OTHER)),
        ),
        (
            "^fresh: asam has no batch that is drawn apart; leave it out",
            step_of(VARIANTS["asam"], fresh=taken(OTHER)),
        ),
        (
            "^fresh holds 2 samples and the batch 4: .*; give 4",
            step_of(VARIANTS["fresh-sam"], fresh=taken(OTHER[:2])),
        ),
        ("^rwp draws random directions: give a key", step_of(VARIANTS["rwp"])),
        ("^key: nothing here is random", step_of(VARIANTS["asam"], key=KEY)),
        (
            "^f-sam needs the gradient of the data set: give whole=",
            step_of(VARIANTS["f-sam"]),
        ),
        ("^whole: gsam does not use", step_of(VARIANTS["gsam"], whole=tree(X))),
    ],
)
def test_what_a_step_is_given(match, run):
    refused(match, run)


def test_a_batch_apart_of_any_size_where_there_are_no_micro_batches():
    """The ascent may have more samples than the descent."""
    rule = VARIANTS["fresh-usam"]
    with jax.enable_x64(True):
        opt = optim.from_variant(rule, losses, optax.sgd(LR), RHO)
        x = tree(X)
        moved, _, _ = jax.jit(opt.step)(x, opt.init(x), taken(BATCH), fresh=taken(range(6)))
    wanted = X - LR * slope(BATCH, at=slope(range(6)))
    np.testing.assert_allclose(flat(moved), wanted, rtol=1e-11)


def test_the_state_is_that_of_its_rule():
    asam = optim.from_variant("asam", losses, CLIPPED, RHO)
    gnp = optim.from_variant("gnp", losses, CLIPPED, RHO, a=0.5)
    x = tree(X)
    refused(
        "the state is that of asam, and this is gnp",
        lambda: jax.eval_shape(lambda: gnp.step(x, asam.init(x), taken(BATCH))),
    )
