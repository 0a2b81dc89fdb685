"""Networks with convolutions, of equinox and of flax: one step of every variant, as a chain and as
an optimizer, against a loop over samples.

The loop takes one sample's gradient at a time, so that nothing is batched in it; the rest of it is
numpy."""

from functools import cache, partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import sdesam
from sdesam import NormEstimate, Variant, optim, variants
from sdesam.variants import gibbs, unit

LR, RHO, LAM = 0.1, 0.3, 0.7
RNG = np.random.default_rng(5)
IMAGES, LABELS = RNG.normal(size=(6, 2, 4, 4)).astype(np.float32), np.array([0, 2, 1, 1, 0, 2])
DATA = {"image": IMAGES, "label": LABELS}
INDICES = np.array([3, 0, 5, 3])
M_DNSAM = Variant(
    "m-dnsam",
    variants.gradient(
        "micro", at=unit(variants.gradient("micro"), norm_of=variants.gradient("data"))
    ),
)


class Convolutions(eqx.Module):
    """A convolution, a grouped one, a depthwise one, and a pool."""

    layers: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        conv = partial(eqx.nn.Conv2d, kernel_size=3, padding=1)
        self.layers = [
            conv(2, 4, key=keys[0]),
            conv(4, 4, groups=2, key=keys[1]),
            conv(4, 4, groups=4, key=keys[2]),
        ]
        self.head = eqx.nn.Linear(4, 3, key=keys[3])

    def __call__(self, image):
        for layer in self.layers:
            image = jnp.tanh(layer(image))
        return self.head(eqx.nn.MaxPool2d(2, 2)(image).mean((1, 2)))


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


class Attention(nn.Module):
    """A grouped convolution under remat, attention between its pixels, a scan over channels, and a
    derivative given by hand.
    """

    @nn.compact
    def __call__(self, image):
        x = nn.remat(nn.Conv)(4, (3, 3), feature_group_count=2)(jnp.moveaxis(image, 0, -1))
        x = nn.avg_pool(doubled(jnp.tanh(x))[None], (2, 2), (2, 2))[0].reshape(-1, 4)
        x = nn.MultiHeadDotProductAttention(num_heads=2)(x[None])[0].mean(0)
        last, _ = jax.lax.scan(
            lambda total, value: (jnp.sin(total + value), None), jnp.float32(0.1), x
        )
        return nn.Dense(3)(jnp.append(x, last))


@cache
def network(kind):
    """The parameters, and the loss of one sample."""
    if kind == "equinox":
        params, static = eqx.partition(Convolutions(jax.random.key(0)), eqx.is_inexact_array)

        def scores(params, image):
            return eqx.combine(params, static)(image)

    else:
        module = Attention()
        params, scores = module.init(jax.random.key(0), IMAGES[0]), module.apply

    def sample_loss(params, sample):
        return optax.softmax_cross_entropy_with_integer_labels(
            scores(params, sample["image"]), sample["label"]
        )

    return params, sample_loss


@cache
def gradient(kind):
    params, sample_loss = network(kind)
    _, rebuild = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def of_one(flat, i):
        sample = jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], DATA)
        return jax.flatten_util.ravel_pytree(jax.grad(sample_loss)(rebuild(flat), sample))[0]

    return lambda x, i: np.asarray(of_one(jnp.asarray(x, jnp.float32), i), float)


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], float)


def by_hand(kind, rule):
    """`G`, from the table of docs/theory.md, section 1."""
    g, x = gradient(kind), flat(network(kind)[0])

    def mean(y, members):
        return np.mean([g(y, i) for i in members], axis=0)

    whole, total = mean(x, range(6)), []
    for members in INDICES.reshape(-1, 2 if rule.micro else 4):
        own = np.array([g(x, i) for i in members])
        weights = (
            np.exp(LAM * np.linalg.norm(own, axis=1)) if rule.weighted else np.ones(len(members))
        )
        ascent = rule.one_ascent
        v = {"none": 0 * x, "own": weights @ own / weights.sum(), "data set": whole}[
            ascent.perturbation
        ]
        norm = {"none": 1.0, "own": np.linalg.norm(v), "data set": np.linalg.norm(whole)}[
            ascent.normaliser
        ]
        total.append(mean(x + RHO * v / norm, members))
    return np.mean(total, axis=0)


NAMED = {name: rule for name, rule in sdesam.VARIANTS.items() if rule.one_ascent}
RULES = {**NAMED, "m-dnsam": M_DNSAM}
FAST = [("equinox", "m-sam"), ("flax", "usam")]
"""The rest compiles for minutes."""
EVERY = [
    pytest.param(
        kind, rule, id=f"{kind} {name}", marks=[] if (kind, name) in FAST else pytest.mark.slow
    )
    for kind in ("equinox", "flax")
    for name, rule in RULES.items()
]
WAYS = ["shard_map", "unchecked", "pmap"]
EXACT = {"lam": LAM, "norms": NormEstimate("exact")}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(("kind", "rule"), EVERY)
def test_chain(kind, rule):
    params, sample_loss = network(kind)
    problem = sdesam.FiniteSum(sample_loss, DATA, params)
    weights = EXACT if rule.weighted else {}
    chain = sdesam.Chain(
        rule,
        problem,
        LR,
        RHO if rule.perturbed else None,
        batch=4,
        micro=2 if rule.micro else None,
        **weights,
    )
    found = chain.direction(params, INDICES.reshape(-1, 2 if rule.micro else 4))
    np.testing.assert_allclose(flat(found), by_hand(kind, rule), **CLOSE)
    if rule.name == "m-sam":  # controls: another rule, and other micro-batches
        assert abs(flat(found) - by_hand(kind, RULES["m-usam"])).max() > 1e-3
        assert abs(flat(found) - by_hand(kind, RULES["sam"])).max() > 1e-3


def optimizer(kind, rule, groups="vmap", **devices):
    _, sample_loss = network(kind)
    rho = RHO if rule.perturbed else 0.0
    weights = EXACT if rule.weighted else {}
    if devices and rule.one_ascent.perturbation == "own" and not rule.micro:
        devices["perturbation"] = "local"
    losses = jax.vmap(sample_loss, (None, 0))
    return optim.Optimizer(
        rule,
        losses,
        optax.sgd(LR),
        rho,
        micro=2 if rule.micro else None,
        groups=groups,
        **weights,
        **devices,
    )


@pytest.mark.parametrize(("kind", "rule"), EVERY)
def test_optimizer(kind, rule):
    params, batch = network(kind)[0], {name: leaf[INDICES] for name, leaf in DATA.items()}
    for groups in ("vmap", "accumulate") if rule.micro else ("vmap",):
        opt = optimizer(kind, rule, groups)

        @jax.jit
        def step(params, batch, opt=opt):
            whole = opt.whole_gradient(params, DATA, chunk=4) if rule.needs_full_gradient else None
            return opt.step(params, opt.init(params), batch, whole=whole)

        moved, _, info = step(params, batch)
        np.testing.assert_allclose((flat(params) - flat(moved)) / LR, by_hand(kind, rule), **CLOSE)
        assert np.isfinite(info.loss)


def on_two_devices(opt, how, params, batch):
    """The step as a function of parameters and batch, each device with half of the batch; and
    these.
    """

    def step(params, batch):
        return opt.step(params, opt.init(params), batch)[0]

    if how == "pmap":
        halves = jax.tree.map(lambda leaf: leaf.reshape(2, -1, *leaf.shape[1:]), batch)
        return jax.pmap(step, axis_name="device", in_axes=(None, 0), out_axes=None), params, halves
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P("device")), out_specs=P(), check_vma=how == "shard_map"
    )
    return jax.jit(mapped), params, batch


def some_slow(cases):
    return [
        pytest.param(*case, marks=[] if fast else pytest.mark.slow) for case, fast in cases.items()
    ]


@pytest.mark.parametrize(
    ("name", "how"),
    some_slow(
        {
            (name, how): (name, how) == ("m-sam", "shard_map")
            for name in ("m-sam", "rw-sam")
            for how in WAYS
        }
    ),
)
def test_two_devices(name, how):
    """Groups at once on each device; and exact norms, whose gradients by sample jax cannot batch
    there.
    """
    rule, batch = RULES[name], {name: leaf[INDICES] for name, leaf in DATA.items()}
    fn, params, batch = on_two_devices(
        optimizer("equinox", rule, axis_name="device"), how, network("equinox")[0], batch
    )
    halves = (
        rule
        if rule.micro
        else Variant("of each device", variants.gradient("micro", at=unit(gibbs("micro"))))
    )
    np.testing.assert_allclose(
        (flat(params) - flat(fn(params, batch))) / LR, by_hand("equinox", halves), **CLOSE
    )


def grouped(kernel, images):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", feature_group_count=2)


@pytest.mark.parametrize("how", WAYS)
def test_what_jax_cannot_batch_is_said_in_words(how):
    """Images that all micro-batches share, in a grouped convolution."""

    def loss(kernel, batch):
        return jnp.mean(grouped(kernel, IMAGES) ** 2) * jnp.mean(batch)

    params, batch = jnp.ones((2, 1, 3, 3)), jnp.ones(4)
    made = [
        optim.m_sam(loss, optax.sgd(LR), RHO, 1, groups=groups, axis_name="device")
        for groups in ("vmap", "accumulate")
    ]
    fn, *arguments = on_two_devices(made[0], how, params, batch)
    with pytest.raises(
        NotImplementedError,
        match=r"one after the other, groups='accumulate', and in the loss use jax.lax.map",
    ) as raised:
        jax.eval_shape(fn, *arguments)
    assert isinstance(raised.value.__cause__, NotImplementedError)
    fn, *arguments = on_two_devices(made[1], how, params, batch)
    jax.eval_shape(fn, *arguments)


@pytest.mark.parametrize("how", WAYS)
def test_exact_norms_of_a_grouped_convolution(how):
    """Traced alone: what it computes is a slow test's."""

    def losses(kernel, batch):
        return jnp.mean(grouped(kernel, batch) ** 2, axis=(1, 2, 3))

    opt = optim.rw_sam(
        losses,
        optax.sgd(LR),
        RHO,
        LAM,
        norms=NormEstimate("exact"),
        axis_name="device",
        perturbation="synchronised",
    )
    fn, *arguments = on_two_devices(opt, how, jnp.ones((2, 1, 3, 3)), jnp.asarray(IMAGES))
    jax.eval_shape(fn, *arguments)


def test_an_error_of_the_loss_is_the_users_own():
    """Its type, its words and its line."""

    def loss(params, batch):
        raise error

    params = {"w": jnp.ones(2)}
    for error in (
        KeyError("target"),
        NotImplementedError("no sparse inputs"),
        ZeroDivisionError(),
        TypeError("f() missing an argument"),
    ):
        for groups in ("vmap", "accumulate"):
            opt = optim.m_sam(loss, optax.sgd(LR), RHO, 2, groups=groups)
            with pytest.raises(type(error)) as raised:
                opt.step(params, opt.init(params), jnp.ones((4, 2)))
            assert raised.value is error
            assert raised.traceback[-1].name == "loss"
