"""What users of jax, optax, flax and equinox do: their keys, traced numbers, optimizers, states,
modules and settings.
"""

import copy
import pickle
from functools import partial

import equinox as eqx
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from optax import contrib

import sdesam
from sdesam import NormEstimate, optim
from sdesam.optim.kernel import estimated_norms, random_key
from tests.optim.test_training import BATCH, DATA, START, close, gap, loss, momentum

IMPLEMENTATIONS = ["threefry2x32", "rbg", "unsafe_rbg"]


def half_square(x, batch):
    """`f(x) = |x|^2 / 2` for every batch."""
    return jnp.sum(x**2) / 2 + 0 * jnp.sum(batch)


X, NOTHING = jnp.array([3.0, -4.0]), jnp.zeros(4)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_directions_from_keys_of_any_implementation(impl):
    """Rademacher signs, one vector of them for all samples; as a typed key or as its words."""
    G = np.random.default_rng(8).normal(size=(3, 5))
    signs = [np.array([1 - 2 * (k >> j & 1) for j in range(5)]) for k in range(32)]
    seen = set()
    with jax.enable_x64(True):
        for seed in range(6):
            key = jax.random.key(seed, impl=impl)
            x = jnp.ones(5)
            found = np.asarray(
                estimated_norms(
                    NormEstimate(), lambda x: jnp.asarray(G) @ x, x, jnp.asarray(G) @ x, key
                )
            )
            away = [abs(abs(G @ z) - found).max() for z in signs]
            assert min(away) < 1e-9
            seen.add(int(np.argmin(away)) % 16)
    assert len(seen) > 1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_keys_as_words(impl):
    """An array of words is a key of the default implementation, or of the one that has as many."""
    with jax.default_prng_impl(impl):
        for words in (jax.random.PRNGKey(3), np.asarray(jax.random.PRNGKey(3))):
            key = random_key(words)
            assert str(jax.random.key_impl(key)) == impl
            np.testing.assert_array_equal(jax.random.key_data(key), words)
    for length, impl in ((2, "threefry2x32"), (4, "rbg")):
        assert str(jax.random.key_impl(random_key(np.arange(length, dtype=np.uint32)))) == impl
    for bad in (
        np.zeros(3, np.uint32),
        np.zeros(2, np.int32),
        jax.random.split(jax.random.key(0)),
        0,
        "0",
        None,
    ):
        with pytest.raises(TypeError, match="key must be one jax random key, such as"):
            random_key(bad)


@pytest.mark.parametrize("groups", ["vmap", "accumulate"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_dropout_has_one_draw_for_both_passes(impl, groups):
    """`f_I(x) = s_I |x|^2/2`, `G = mean_I s_I (1 + rho s_I) x`, with keys of any implementation,
    also as jax's default.
    """

    def noisy(x, batch, key):
        s = jax.random.uniform(key)
        return s * half_square(x, batch), {"s": s, "square": s**2}

    with jax.default_prng_impl(impl):
        opt = optim.usam(
            noisy, optax.sgd(1.0), 0.5, micro=2, groups=groups, has_key=True, has_aux=True
        )
        moved, _, info = jax.jit(opt.step)(X, opt.init(X), NOTHING, key=jax.random.key(7))
    s, square = info.aux["s"], info.aux["square"]
    np.testing.assert_allclose(X - moved, (s + 0.5 * square) * X, rtol=1e-5)
    assert square - s**2 > 1e-4, "micro-batches have draws of their own"


def test_chains_and_internal_draws_whatever_the_default_implementation():
    problem = sdesam.problems.quadratic()
    sde = sdesam.derive("usam").bind(problem, lr=0.1, rho=0.1, batch=4)
    with jax.default_prng_impl("rbg"):
        assert str(jax.random.key_impl(jax.random.key(0))) == "rbg", "the control"
        for variant, numbers in (("sgd", {}), ("rw-sam", {"rho": 0.1, "lam": 1.0})):
            chain = sdesam.Chain(variant, problem, lr=0.1, batch=4, **numbers)
            assert np.isfinite(chain.step(problem.x0, jax.random.key(0))).all()
        sdesam.estimate(sde, paths=4, horizon=1.0, dt=0.1)


@pytest.mark.slow
def test_comparisons_whatever_the_default_implementation():
    def share():
        found = sdesam.compare(
            "usam",
            sdesam.problems.quadratic(),
            lr=0.1,
            rho=0.1,
            batch=4,
            steps=4,
            runs=8,
            progress=False,
        )
        return found.rows[0].shares[found.judged].value

    wanted = share()
    with jax.default_prng_impl("rbg"):
        assert share() == wanted


@pytest.mark.parametrize(
    "value", [0.01, np.float64(0.01), np.float32(0.01), jnp.float32(0.01), 1, np.int64(1)]
)
@pytest.mark.parametrize("x64", [False, True])
def test_injected_hyperparameters_are_set_as_optax_sets_them(value, x64):
    with jax.enable_x64(x64):
        x, batch = jnp.array([3.0, -4.0], jnp.float32), jnp.zeros(4, jnp.float32)
        opt = optim.usam(half_square, optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), 0.5)
        _, state, _ = opt.step(x, opt.init(x), batch)
        state.inner.hyperparams["learning_rate"] = value
        moved, state, _ = opt.step(x, state, batch)
        np.testing.assert_allclose(moved, x - float(value) * 1.5 * x, rtol=1e-6)
        opt.step(moved, state, batch)
        state.inner.hyperparams["learning_rate"] = "0.01"
        with pytest.raises(
            TypeError,
            match=(
                r"state.inner.hyperparams\['learning_rate'\] is '0.01': it must be a number or an"
                r" array"
            ),
        ):
            opt.step(x, state, batch)


def test_wider_numbers_in_a_state():
    """As after loading with 64 bits turned on."""
    opt = optim.sam(loss, optax.adam(0.1), 0.1)
    with jax.enable_x64(True):
        state = opt.init(START)
        wide = jax.tree.map(
            lambda leaf: leaf.astype(np.float64 if leaf.dtype == np.float32 else np.int64),
            jax.device_get(state),
        )
        jax.eval_shape(lambda: opt.step(START, wide, BATCH))


def one(maker, lr, rho, **numbers):
    opt = maker(
        (
            half_square
            if maker is not optim.rw_sam
            else lambda x, batch: half_square(x, batch) + batch
        ),
        optax.sgd(lr),
        rho,
        **numbers,
    )
    norms = {"key": jax.random.key(0)} if maker is optim.rw_sam else {}
    whole = {"whole": X} if opt.variant.needs_full_gradient else {}
    return opt.step(X, opt.init(X), NOTHING, **norms, **whole)[0]


MAKERS = {
    "usam": (optim.usam, {}, 1.0),
    "m-usam": (optim.usam, {"micro": 2}, 1.0),
    "sam": (optim.sam, {}, 5.0),
    "m-sam": (optim.m_sam, {"micro": 2}, 5.0),
    "m-sam in turn": (optim.m_sam, {"micro": 2, "groups": "accumulate"}, 5.0),
    "n-sam": (optim.n_sam, {}, 5.0),
    "dnsam": (optim.dnsam, {}, 5.0),
    "rw-sam": (optim.rw_sam, {"lam": 1.0}, 5.0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_numbers_that_jax_traces(name):
    """`x+ = x - lr (1 + rho/r) x`, `r = 1` or `|x| = 5`: over many numbers at once, and its
    derivatives by each of them.
    """
    maker, numbers, r = MAKERS[name]
    lrs, rhos = jnp.array([0.1, 0.2]), jnp.array([0.5, 1.0])
    found, slopes = jax.jit(
        lambda: (
            jax.vmap(partial(one, maker, **numbers))(lrs, rhos),
            jax.jacfwd(partial(one, maker, **numbers), (0, 1))(0.1, 0.5),
        )
    )()
    np.testing.assert_allclose(
        found, [X - lr * (1 + rho / r) * X for lr, rho in zip(lrs, rhos, strict=True)], rtol=1e-5
    )
    np.testing.assert_allclose(slopes[0], -(1 + 0.5 / r) * X, rtol=1e-5)
    np.testing.assert_allclose(slopes[1], -0.1 / r * X, rtol=1e-5)


def test_eps_and_lambda_that_jax_traces_and_schedules():
    """`u = x / sqrt(25 + eps^2)`; and of two losses `x_i^2 / 2` the weights `exp(lam |x_i|)`."""

    def found(eps):
        return one(optim.sam, 0.1, 0.5, eps=eps)

    def wanted(eps):
        return X - 0.1 * (1 + 0.5 / np.sqrt(25 + eps**2)) * X

    np.testing.assert_allclose(jax.jit(found)(12.0), wanted(12.0), rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(lambda: found(lambda count: 12.0 + count))(), wanted(12.0), rtol=1e-6
    )
    np.testing.assert_allclose(found(jnp.float32(12.0)), wanted(12.0), rtol=1e-6)

    def weighted(lam):  # f_i = x_i^2 / 2 at x = (1, 2): g_i = x_i e_i, G_i = x_i + rho u_i over 2
        opt = optim.rw_sam(
            lambda x, batch: (x * batch) ** 2 / 2,
            optax.sgd(1.0),
            0.5,
            lam,
            norms=NormEstimate("exact"),
        )
        x, batch = jnp.array([1.0, 2.0]), jnp.ones(2)
        return opt.step(x, opt.init(x), batch)[0]

    v = np.exp(0.7 * np.array([1.0, 2.0])) * [1, 2]
    expected = np.array([1.0, 2.0]) - (np.array([1.0, 2.0]) + 0.5 * v / np.linalg.norm(v)) / 2
    for lam in (0.7, jnp.float32(0.7), lambda count: 0.7 + count, optax.constant_schedule(0.7)):
        np.testing.assert_allclose(jax.jit(lambda lam=lam: weighted(lam))(), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(weighted)(0.7), expected, rtol=1e-5)


def test_traced_numbers_out_of_range_are_seen():
    for name in ("rho", "eps"):
        step = jax.jit(
            lambda value, name=name: one(optim.sam, 0.1, **{"rho": 0.5, "eps": 0.1, name: value})
        )
        for bad in (-1.0, np.inf, np.nan):
            assert np.isnan(step(bad)).all()
    with pytest.raises(TypeError, match=r"rho=.*Tracer.*: it must be one real number"):
        jax.jit(partial(one, optim.sam, 0.1))(jnp.ones(2))
    with pytest.raises(TypeError, match=r"rho=.*: it must be one real number"):
        one(optim.sam, 0.1, lambda count: jnp.ones(2))
    with pytest.raises(ValueError, match=r"rho=Array.*: it must be a finite number of at least 0"):
        one(optim.sam, 0.1, jnp.float32(-1))


LABELS = {"W": "moving", "v": "frozen"}
MATRICES = {"W": True, "v": False}
NEIGHBOURS = {
    "reduce on plateau": lambda: optax.chain(
        optax.clip(0.1), contrib.reduce_on_plateau(), momentum()
    ),
    "polyak": lambda: optax.polyak_sgd(0.1),
    "momo": lambda: contrib.momo(0.1),
    "masked": lambda: optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), MATRICES), momentum()
    ),
    "partition": lambda: optax.partition(
        {"moving": momentum(), "frozen": optax.set_to_zero()}, LABELS
    ),
    "schedule free": lambda: contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1),
    "apply if finite": lambda: optax.apply_if_finite(momentum(), 3),
    "flatten": lambda: optax.flatten(optax.adam(0.1)),
    "injected schedule": lambda: optax.inject_hyperparams(optax.adamw)(
        optax.cosine_decay_schedule(0.1, 10)
    ),
    "lbfgs without a search": lambda: optax.lbfgs(0.1, linesearch=None),
    "multi-steps": lambda: optax.MultiSteps(
        optax.chain(momentum(), contrib.reduce_on_plateau()), 2
    ),
}

FAST = ("reduce on plateau", "partition", "multi-steps")
"""Each compiles for a second."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in NEIGHBOURS],
)
def test_neighbours_of_optax_take_the_direction(name):
    """Two steps are those of an optax loop that is given `G` for a gradient."""
    inner = NEIGHBOURS[name]()
    opt, plain = (
        optim.sam(loss, inner, 0.2),
        (optax.with_extra_args_support(inner) if name != "multi-steps" else inner),
    )

    @jax.jit
    def both():
        params, state, other, rest = START, opt.init(START), START, plain.init(START)
        for _ in range(2):
            params, state, _ = opt.step(params, state, BATCH)
            own = jax.grad(loss)(other, BATCH)
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(own)))
            G = jax.grad(loss)(
                jax.tree.map(lambda p, g, norm=norm: p + 0.2 * g / norm, other, own), BATCH
            )
            updates, rest = plain.update(G, rest, other, value=loss(other, BATCH))
            other = optax.apply_updates(other, updates)
        return params, other

    found, wanted = both()
    close(found, wanted, rtol=1e-4, atol=1e-6)
    assert gap(found, START) > 1e-4
    if name == "partition":
        np.testing.assert_array_equal(found["v"], START["v"])


def test_lookahead():
    """The fast parameters are perturbed and moved; the slow ones follow every second step."""
    for maker in (optim.sam, optim.n_sam):
        opt = maker(half_square, optax.lookahead(optax.sgd(0.1), 2, 0.5), 0.5)
        params = optax.LookaheadParams.init_synced(X)
        state, whole = opt.init(params), {}
        for _ in range(2):
            whole = {"whole": opt.whole_gradient(params, NOTHING)} if maker is optim.n_sam else {}
            params, state, _ = opt.step(params, state, NOTHING, **whole)
        x = X - 0.1 * (1 + 0.5 / 5) * X
        x = x - 0.1 * (1 + 0.5 / np.linalg.norm(x)) * x
        np.testing.assert_allclose(params.slow, X + 0.5 * (x - X), rtol=1e-5)
        np.testing.assert_allclose(params.fast, params.slow, rtol=1e-6)


def told(needed):
    """An optimizer that asks for more than a gradient, and keeps what it was told."""

    def update(updates, state, params=None, **extra):
        missing = [name for name in needed if name not in extra]
        if missing:  # as python says it of a function that has them in its signature
            raise TypeError(
                f"update() missing {len(missing)} required keyword-only arguments:"
                f" {', '.join(map(repr, missing))}"
            )
        return updates, {name: extra[name] for name in needed if name != "value_fn"}

    return optax.GradientTransformationExtraArgs(lambda params: {}, update)


def test_a_line_search_has_value_and_gradient_of_its_own_function():
    """`G = 1.5 x` of the loss; value and gradient of `|x - 1|^2`, along which the search goes."""

    def searched(x):
        return jnp.sum((x - 1) ** 2)

    opt = optim.usam(half_square, told(["value", "grad", "value_fn"]), 0.5)
    updates, state = opt.update(None, opt.init(X), X, batch=NOTHING, value_fn=searched)
    np.testing.assert_allclose(updates, 1.5 * X)
    np.testing.assert_allclose(state.inner["value"], 4 + 25)
    np.testing.assert_allclose(state.inner["grad"], 2 * (X - 1))
    # given by the user, it is left alone; without a search, the value is that of the loss
    _, state = opt.update(None, opt.init(X), X, batch=NOTHING, value_fn=searched, grad=X)
    np.testing.assert_allclose(state.inner["grad"], X)
    opt = optim.usam(half_square, told(["value"]), 0.5)
    np.testing.assert_allclose(opt.step(X, opt.init(X), NOTHING)[1].inner["value"], 12.5)


def least(params, batch):
    return jnp.mean((batch @ params - 1) ** 2)


@pytest.mark.slow
def test_lbfgs_converges():
    batch = jnp.asarray(np.random.default_rng(3).normal(size=(8, 3)), jnp.float32)
    best = np.linalg.lstsq(np.asarray(batch), np.ones(8), rcond=None)[0]
    opt = optim.sam(least, optax.lbfgs(), rho=1e-3)
    params, state = jnp.ones(3), opt.init(jnp.ones(3))
    step = jax.jit(
        lambda params, state: opt.step(
            params, state, batch, value_fn=lambda params: least(params, batch)
        )
    )
    for _ in range(12):
        params, state, _ = step(params, state)
    np.testing.assert_allclose(params, best, atol=5e-3)


def test_what_an_optimizer_needs_besides_a_gradient_is_said():
    for inner, names in [
        (optax.lbfgs(), "value_fn=..."),
        (optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(3)), "value_fn=..."),
        (told(["first", "second"]), "first=..., second=..."),
    ]:
        other = optim.sam(least, inner, rho=0.05)
        with pytest.raises(
            TypeError,
            match=(
                r"^the optax optimizer needs more than a gradient: opt.step\(params, state, batch,"
                rf" {names}\)"
            ),
        ):
            jax.eval_shape(
                lambda other=other: other.step(
                    jnp.ones(3), other.init(jnp.ones(3)), jnp.ones((8, 3))
                )
            )
    line_search = optim.sam(least, optax.lbfgs(), rho=0.05)
    jax.eval_shape(
        lambda: line_search.step(
            jnp.ones(3),
            line_search.init(jnp.ones(3)),
            jnp.ones((8, 3)),
            value_fn=lambda params: jnp.sum(params),
        )
    )


def test_states_are_stored_by_every_library():
    """`flax.serialization`, pickle, a deep copy, a nested dict; training goes on to the same
    numbers.
    """
    opt = optim.sam(loss, optax.chain(optax.clip(1.0), optax.adamw(0.1)), 0.1)
    step = jax.jit(opt.step)
    params, state, _ = step(START, opt.init(START), BATCH)
    wanted = step(params, state, BATCH)
    nested = serialization.to_state_dict(state)
    assert set(nested) == {"count", "inner", "variant"}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths[:2] == [".count", ".inner[1][0].count"]
    by_path = dict(zip(paths, jax.tree.leaves(state), strict=True))
    stored = [
        serialization.from_bytes(opt.init(START), serialization.to_bytes(state)),
        serialization.from_state_dict(opt.init(START), nested),
        pickle.loads(pickle.dumps(state)),
        copy.deepcopy(state),
        jax.device_get(state),
        jax.tree.unflatten(jax.tree.structure(opt.init(START)), by_path.values()),
    ]
    for again in stored:
        assert isinstance(again, optim.State)
        assert jax.tree.structure(again) == jax.tree.structure(state)
        for one, other in zip(
            jax.tree.leaves(step(params, again, BATCH)), jax.tree.leaves(wanted), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    other = optim.usam(loss, optax.chain(optax.clip(1.0), optax.adamw(0.1)), 0.1)
    with pytest.raises(ValueError, match="the state is that of sam, and this is usam"):
        other.step(params, stored[0], BATCH)


def in_own_precision(params, batch):
    """Written for strict promotion, as its users write."""
    inputs, targets = (batch[name].astype(params["W"].dtype) for name in ("input", "target"))
    return (jnp.sum(jnp.tanh(inputs @ params["W"]) * params["v"][None], axis=1) - targets) ** 2 / 2


def strict_makers(sgd):
    mean = lambda params, batch: jnp.mean(in_own_precision(params, batch))  # noqa: E731
    norms = {"lam": 1.0, "eps": 0.1}
    return {
        "usam": optim.usam(mean, sgd, 0.1),
        "m-usam": optim.usam(mean, sgd, 0.1, micro=4, groups="accumulate"),
        "sam": optim.sam(mean, sgd, lambda count: 0.1, eps=0.1),
        "m-sam": optim.m_sam(mean, sgd, 0.1, 4),
        "n-sam": optim.n_sam(mean, sgd, 0.1),
        "dnsam": optim.dnsam(mean, sgd, 0.1, eps=0.1),
        "rw-sam": optim.rw_sam(in_own_precision, sgd, 0.1, norms=NormEstimate(delta=0.1), **norms),
        "rw-sam gaussian": optim.rw_sam(
            in_own_precision, sgd, 0.1, norms=NormEstimate("gaussian", 3, delta=0.1), **norms
        ),
        "rw-sam exact": optim.rw_sam(
            in_own_precision, sgd, 0.1, norms=NormEstimate("exact"), **norms
        ),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", strict_makers(momentum()))
def test_strict_promotion_of_types_and_ranks(name, dtype):
    opt = strict_makers(momentum())[name]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), START)
    key = {"key": jax.random.key(0)} if opt.norms is not None and opt.norms.random else {}

    def steps(params):
        state = opt.init(params)
        for _ in range(2):
            whole = (
                {"whole": opt.whole_gradient(params, DATA, chunk=7)}
                if opt.variant.needs_full_gradient
                else {}
            )
            params, state, _ = opt.step(params, state, BATCH, **key, **whole)
        return params, state

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found, state = jax.eval_shape(steps, params)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, state.inner))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", ["sgd", "m-usam", "m-sam", "dnsam", "n-sam", "rw-sam"])
def test_strict_promotion_in_chains(name):
    """Layers large enough that small groups do without copies of them, and in half precision with
    them.
    """

    def sample_loss(params, sample):
        return jnp.sum(
            (jnp.tanh(sample["a"].astype(params["U"].dtype) @ params["U"]) @ params["W"]) ** 2
        )

    rng = np.random.default_rng(3)
    data, x = (
        {"a": rng.normal(size=(6, 30)).astype(np.float32)},
        {
            "U": rng.normal(size=(30, 28)) / 6,
            "W": rng.normal(size=(28, 2)),
        },
    )
    numbers = {"rho": None if name == "sgd" else 0.1, "micro": 1 if name.startswith("m-") else None}
    numbers |= {"lam": 1.0, "norms": NormEstimate("exact")} if name == "rw-sam" else {}
    for dtype in (jnp.float32, jnp.bfloat16):
        start = jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf, dtype), x)
        chain = sdesam.Chain(
            name, sdesam.FiniteSum(sample_loss, data, start), lr=0.1, batch=4, **numbers
        )
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            found = jax.eval_shape(partial(chain.kernel, key=jax.random.key(0), xi=None), start)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


def test_modules_as_parameters():
    """Equinox modules of arrays, partitioned ones, nnx states, linen dicts: one step is
    `x - lr (1 + rho) x` leaf by leaf.
    """
    inputs = jnp.asarray(DATA["input"])

    def square(params, batch):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)) / 2 + 0 * jnp.sum(batch)

    mlp = eqx.nn.MLP(5, 1, 4, 1, key=jax.random.key(0))
    partitioned, _ = eqx.partition(mlp, eqx.is_inexact_array)
    _, state = nnx.split(nnx.Linear(5, 1, rngs=nnx.Rngs(0)))
    dense = nn.Dense(2).init(jax.random.key(0), inputs)
    for params in (
        eqx.nn.Linear(5, 1, key=jax.random.key(0)),
        partitioned,
        state,
        dense,
        flax.core.freeze(dense),
        {"a": X, "none": None},
    ):
        for maker in (optim.usam, optim.n_sam):
            opt = maker(square, optax.adamw(0.1) if maker is optim.n_sam else optax.sgd(0.1), 0.5)

            def step(params, opt=opt):
                whole = (
                    {"whole": opt.whole_gradient(params, inputs)}
                    if opt.variant.needs_full_gradient
                    else {}
                )
                return opt.step(params, opt.init(params), inputs, **whole)[0]

            assert jax.tree.structure(jax.eval_shape(step, params)) == jax.tree.structure(params)
        if not isinstance(params, dict):
            moved = jax.jit(partial(step, opt=optim.usam(square, optax.sgd(0.1), 0.5)))(params)
            close(
                jax.tree.leaves(moved),
                [leaf * (1 - 0.1 * 1.5) for leaf in jax.tree.leaves(params)],
                rtol=1e-5,
            )
    for params, place in ((mlp, "activation"), ({"a": X, "n": jnp.array(1)}, r"\['n'\]")):
        with pytest.raises(
            TypeError,
            match=(
                rf"params\.?{place}.* parameters must be floating-point arrays; .*"
                r" eqx.partition\(module"
            ),
        ):
            optim.sam(square, optax.sgd(0.1), 0.1).init(params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_over_samples(dtype):
    """The mean of many ones is one: sums in half precision stop growing at 256 or 2048."""
    ones, x = jnp.ones(5000, dtype), dtype(1.0)

    def mean(x, batch):
        return jnp.mean(x * batch)

    for groups in ("vmap", "accumulate"):
        opt = optim.usam(mean, optax.sgd(0.1), 0.0, micro=1, groups=groups)
        found = opt.gradient(x, opt.init(x), ones)
        assert (found.gradient, found.loss, found.gradient.dtype, found.loss.dtype) == (
            1,
            1,
            dtype,
            dtype,
        )
    opt = optim.n_sam(mean, optax.sgd(0.1), 0.1)
    for whole in (
        opt.whole_gradient(x, ones, chunk=1),
        opt.whole_gradient_over(x, [ones[:2]] * 600),
    ):
        assert (whole, whole.dtype) == (1, dtype)
    problem = sdesam.FiniteSum(lambda x, a: x * a, ones, x)
    for variant, micro in (("sgd", None), ("m-usam", 1), ("m-usam", 1000), ("rw-sam", None)):
        numbers = {"lam": 0.0, "norms": NormEstimate("exact")} if variant == "rw-sam" else {}
        size = 100 if variant == "rw-sam" else 5000
        chain = sdesam.Chain(
            variant,
            problem,
            0.1,
            None if variant == "sgd" else 0.1,
            batch=size,
            micro=micro,
            **numbers,
        )
        found = chain.direction(x, np.arange(size).reshape(-1, micro or size))
        assert (found, found.dtype) == (1, dtype)
