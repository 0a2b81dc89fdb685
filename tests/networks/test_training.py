"""Training networks with batch norm: the network against numpy, an epoch against a loop of steps
written out, divergence, bad input.
"""

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from sdesam.networks import Recipe, ResNet, Trainer, measure, steps_in_turn
from sdesam.networks.resnet import batch_norm, convolution, convolution_by_patches
from sdesam.networks.throughput import PLAIN
from sdesam.networks.trainer import PADDING, augmented, shift_and_mirror
from sdesam.problems.cifar10 import Images

RNG = np.random.default_rng(0)
PIXELS, LABELS = RNG.integers(0, 256, (70, 8, 8, 3), np.uint8), RNG.integers(0, 10, 70)
DATA = Images(PIXELS[:50], LABELS[:50], PIXELS[50:], LABELS[50:])
TRAIN = (jnp.asarray(PIXELS[:50]), jnp.asarray(LABELS[:50]))
NETWORK = ResNet(blocks=(1,), width=3)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def gap(one, other):
    return max(float(np.abs(a - b).max()) for a, b in zip(leaves(one), leaves(other), strict=True))


def test_resnet_18():
    params, statistics = jax.eval_shape(ResNet().init, jax.random.key(0))
    # of the ResNet-18 that papers train on CIFAR-10
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_173_962
    # 20 norms
    assert sum(leaf.size for leaf in jax.tree.leaves(statistics)) == 2 * (
        64 + 4 * 64 + 5 * 128 + 5 * 256 + 5 * 512
    )
    scores, _ = jax.eval_shape(
        lambda p, s: ResNet()(p, s, jnp.zeros((2, 32, 32, 3), jnp.uint8), train=False),
        params,
        statistics,
    )
    assert scores.shape == (2, 10)


def test_the_start_has_its_law():
    """Kernels of variance 2/(k k channels out), a uniform last layer, plain norms; within 5
    standard errors, 6e-7 each.
    """
    params, statistics = jax.jit(ResNet(blocks=(1, 1), width=16).init)(jax.random.key(1))
    layers = [params["stem"], *(layer for block in params["stages"] for layer in block.values())]
    assert [layer["kernel"].shape for layer in layers] == [
        (3, 3, 3, 16),
        *2 * [(3, 3, 16, 16)],
        (3, 3, 16, 32),
        (3, 3, 32, 32),
        (1, 1, 16, 32),
    ]
    for layer in layers:
        kernel = np.asarray(layer["kernel"], float)
        z = kernel * np.sqrt(kernel.shape[0] ** 2 * kernel.shape[-1] / 2)
        assert abs(np.mean(z)) < 5 / np.sqrt(z.size)
        assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / z.size)
        assert (np.asarray(layer["scale"]) == 1).all()
        assert not np.asarray(layer["bias"]).any()
    assert abs(layers[1]["kernel"] - layers[2]["kernel"]).min() > 0, "each has numbers of its own"
    assert not any(
        leaf.any()
        for leaf in leaves(
            [statistics["stem"]["mean"], statistics["stages"][1]["shortcut"]["mean"]]
        )
    )
    assert all(
        (leaf == 1).all()
        for leaf in leaves(
            [statistics["stem"]["variance"], statistics["stages"][1]["shortcut"]["variance"]]
        )
    )
    head = np.concatenate(
        [np.ravel(params["head"][name]) for name in ("weight", "bias")]
    ) * np.sqrt(32)
    assert 0.95 < abs(head).max() <= 1
    assert abs(np.mean(head**2) - 1 / 3) < 5 * np.sqrt(4 / 45 / head.size)


def in_numpy(params, statistics, images, group):
    """The network written out: scores, and what the stem and the second stage's shortcut saw."""
    seen = {}

    def layer(name, p, s, x, stride):
        size = p["kernel"].shape[0]
        padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
        places = [range(0, x.shape[axis], stride) for axis in (1, 2)]
        x = np.stack(
            [
                np.stack(
                    [
                        np.einsum(
                            "nhwc,hwcd->nd", padded[:, r : r + size, c : c + size], p["kernel"]
                        )
                        for c in places[1]
                    ],
                    1,
                )
                for r in places[0]
            ],
            1,
        )
        parts = x.reshape(-1, group or len(x), *x.shape[1:])
        mean, variance = (
            (parts.mean((1, 2, 3), keepdims=True), parts.var((1, 2, 3), keepdims=True))
            if group
            else (s["mean"], s["variance"])
        )
        seen[name] = np.mean(mean, axis=(0, 1, 2, 3)) if group else None
        return ((parts - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]).reshape(x.shape)

    mean, deviation = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]  # of CIFAR-10
    x = np.maximum(
        layer("stem", params["stem"], statistics["stem"], (images / 255 - mean) / deviation, 1), 0
    )
    for number, (p, s) in enumerate(zip(params["stages"], statistics["stages"], strict=True)):
        stride = 2 if number == 1 else 1
        y = np.maximum(layer("first", p["first"], s["first"], x, stride), 0)
        y = layer("second", p["second"], s["second"], y, 1)
        x = layer("shortcut", p["shortcut"], s["shortcut"], x, stride) if number == 1 else x
        x = np.maximum(x + y, 0)
    return x.mean((1, 2)) @ params["head"]["weight"] + params["head"]["bias"], seen


def test_the_network_in_numpy():
    """Two stages, the second of half the size and two blocks, with running statistics and with
    those of every two images.
    """
    network = ResNet(blocks=(1, 2), width=2)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params, statistics = jax.tree.map(
        lambda leaf: RNG.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes
    )
    for layer in (
        params["stem"],
        *(layer for block in params["stages"] for layer in block.values()),
    ):
        layer["kernel"] = RNG.normal(size=layer["kernel"].shape).astype(np.float32)
    call = jax.jit(network, static_argnames=("train", "ghost"))
    for options, group in (({"train": False}, None), ({"train": True, "ghost": 2}, 2)):
        scores, new = call(params, statistics, PIXELS[:4], **options)
        wanted, seen = in_numpy(params, statistics, PIXELS[:4], group)
        assert np.ptp(wanted) > 0.5
        np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-3)
        for name, of in (
            ("stem", lambda s: s["stem"]["mean"]),
            ("shortcut", lambda s: s["stages"][1]["shortcut"]["mean"]),
        ):
            old, now = of(statistics), of(new)
            np.testing.assert_allclose(
                now, 0.9 * old + 0.1 * seen[name] if group else old, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("convolve", [convolution, convolution_by_patches])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_convolutions(convolve, size, stride):
    x, kernel = (
        RNG.normal(size=(2, 6, 6, 3)).astype(np.float32),
        RNG.normal(size=(size, size, 3, 5)).astype(np.float32),
    )
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    wanted = np.stack(
        [
            np.stack(
                [
                    np.einsum("nhwc,hwcd->nd", padded[:, r : r + size, c : c + size], kernel)
                    for c in range(0, 6, stride)
                ],
                axis=1,
            )
            for r in range(0, 6, stride)
        ],
        axis=1,
    )
    np.testing.assert_allclose(convolve(x, kernel, stride), wanted, atol=1e-4)


@pytest.mark.parametrize("group", [2, 6, None])
def test_batch_norm(group):
    x = RNG.normal(2.0, 3.0, size=(6, 4, 4, 3)).astype(np.float32)
    p = {
        "scale": np.array([1.0, 2.0, 3.0], np.float32),
        "bias": np.array([0.0, 1.0, -1.0], np.float32),
    }
    s = {
        "mean": np.array([1.0, 0.0, 2.0], np.float32),
        "variance": np.array([1e-5, 4.0, 9.0], np.float32),
    }
    found, new = batch_norm(p, s, jnp.asarray(x), group, decay=0.9)
    if group is None:
        np.testing.assert_allclose(
            found,
            (x - s["mean"]) / np.sqrt(s["variance"] + 1e-5) * p["scale"] + p["bias"],
            rtol=1e-4,
            atol=1e-4,
        )
        assert gap(new, s) == 0
        return
    parts = x.reshape(-1, group * 16, 3)
    normal = (parts - parts.mean(1, keepdims=True)) / np.sqrt(
        parts.var(1, keepdims=True) + 1e-5
    ) * p["scale"] + p["bias"]
    np.testing.assert_allclose(
        np.asarray(found).reshape(normal.shape), normal, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(new["mean"], 0.9 * s["mean"] + 0.1 * parts.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(
        new["variance"], 0.9 * s["variance"] + 0.1 * parts.var(1, ddof=1).mean(0), rtol=1e-4
    )


@pytest.mark.parametrize("group", [2, 6])
def test_derivatives_of_batch_norm(group):
    """`scale/s (w - mean w - n mean(w n))` with `n` the normalised values: through the mean and
    through the variance, by hand.
    """
    x, w = RNG.normal(2.0, 1.5, size=(6, 2, 2, 3)), RNG.normal(size=(6, 2, 2, 3))
    p = {"scale": np.array([1.0, 2.0, -0.5]), "bias": np.array([0.0, 1.0, -1.0])}
    s = {"mean": jnp.zeros(3), "variance": jnp.ones(3)}

    def weighted(p, x):
        return jnp.sum(w * batch_norm(p, s, x, group, 0.9)[0])

    found, along = jax.jit(jax.grad(weighted, argnums=(0, 1)))(
        jax.tree.map(jnp.float32, p), jnp.float32(x)
    )
    parts, weights = x.reshape(-1, group * 4, 3), w.reshape(-1, group * 4, 3)
    size = np.sqrt(parts.var(1, keepdims=True) + 1e-5)
    normal = (parts - parts.mean(1, keepdims=True)) / size
    wanted = (
        p["scale"]
        / size
        * (
            weights
            - weights.mean(1, keepdims=True)
            - normal * (weights * normal).mean(1, keepdims=True)
        )
    )
    np.testing.assert_allclose(np.asarray(along).reshape(wanted.shape), wanted, atol=1e-4)
    np.testing.assert_allclose(found["scale"], (weights * normal).sum((0, 1)), atol=1e-3)
    np.testing.assert_allclose(found["bias"], w.sum((0, 1, 2)), atol=1e-4)


def test_crops_reach_every_place_equally_often():
    """Pixels say where they were: 9 rows by 9 columns by 2 sides, uniform by a chi-square test of
    false-alarm rate 1e-6.
    """
    n, middle = 8100, 6
    place = np.stack(
        [*np.meshgrid(np.arange(12), np.arange(12), indexing="ij"), np.zeros((12, 12), int)],
        axis=-1,
    ).astype(np.uint8)
    found = np.asarray(
        jax.jit(augmented)(jnp.broadcast_to(place, (n, *place.shape)), jax.random.key(5)), int
    )
    here, left = found[:, middle, middle], found[:, middle, middle - 1]
    mirrored = here[:, 1] < left[:, 1]
    rows, columns = (
        here[:, 0] - middle + PADDING,
        np.where(mirrored, left[:, 1], here[:, 1]) - middle + PADDING,
    )
    counts = np.zeros((9, 9, 2))
    np.add.at(counts, (rows, columns, mirrored.astype(int)), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 1e-6


@dataclass(frozen=True)
class Linear:
    """In place of a network: scores linear in the mean colour. Its statistics note a number that
    tells batches apart.
    """

    def init(self, key):
        return {"w": jnp.zeros((3, 10))}, {"seen": jnp.zeros(12), "at": jnp.zeros(())}

    def __call__(self, params, statistics, images, *, train, ghost=None):
        told = jnp.sum(images[0].astype(jnp.float32).ravel() * jnp.arange(images[0].size))
        seen = {
            "seen": statistics["seen"].at[statistics["at"].astype(int)].set(told),
            "at": statistics["at"] + 1,
        }
        return jnp.mean(images.astype(jnp.float32) / 255, axis=(1, 2)) @ params["w"], (
            seen if train else statistics
        )


def test_every_batch_is_shifted_by_a_key_of_its_own(monkeypatch):
    def drawn(images, key):
        return jax.random.bits(key, images.shape, jnp.uint8)

    monkeypatch.setattr("sdesam.networks.trainer.augmented", drawn)
    run = Trainer(Linear(), Recipe(batch=8)).run(DATA, seed=0, epochs=2, samples=2)
    seen = np.asarray(run.state.statistics["seen"])
    assert len(np.unique(seen)) == 12, "two epochs of six batches"


@pytest.mark.parametrize(
    ("schedule", "momentum", "decay"), [("constant", 0.0, 0.0), ("cosine", 0.5, 0.1)]
)
def test_records_of_softmax_regression(schedule, momentum, decay):
    """Losses, accuracies and parameters of two epochs in numpy: means over batches, each before its
    step.
    """
    recipe = Recipe(
        batch=16, lr=2.0, schedule=schedule, momentum=momentum, weight_decay=decay, augment=False
    )
    run = Trainer(Linear(), recipe).run(DATA, seed=3, epochs=2, samples=2)
    x, w, v, count = PIXELS[:50].mean((1, 2)) / 255, np.zeros((3, 10)), np.zeros((3, 10)), 0
    for epoch in range(2):
        key, _ = jax.random.split(
            jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), epoch)
        )
        losses, right = [], []
        for part in np.asarray(jax.random.permutation(key, 50))[:48].reshape(3, 16):
            scores = x[part] @ w
            chance = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            losses.append(-np.log(chance[np.arange(16), LABELS[part]]).mean())
            right.append((scores.argmax(1) == LABELS[part]).mean())
            v = momentum * v + x[part].T @ (chance - np.eye(10)[LABELS[part]]) / 16 + decay * w
            w = w - 2.0 * (1 if schedule == "constant" else (1 + np.cos(np.pi * count / 6)) / 2) * v
            count += 1
        assert run.records["train_loss"][epoch + 1] == pytest.approx(np.mean(losses), rel=1e-4)
        assert run.records["train_accuracy"][epoch + 1] == pytest.approx(np.mean(right), abs=1e-5)
    np.testing.assert_allclose(run.state.params["w"], w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        run.records["images_per_second"][1:] * run.records["seconds"][1:], 48
    )


def test_shift_and_mirror():
    rows, columns, mirror = (
        RNG.integers(0, 2 * PADDING + 1, 20),
        RNG.integers(0, 2 * PADDING + 1, 20),
        RNG.integers(0, 2, 20).astype(bool),
    )
    found = np.asarray(shift_and_mirror(TRAIN[0][:20], rows, columns, mirror))
    for k in range(20):
        around = np.pad(PIXELS[k], ((PADDING,) * 2, (PADDING,) * 2, (0, 0)))
        wanted = around[rows[k] : rows[k] + 8, columns[k] : columns[k] + 8]
        np.testing.assert_array_equal(found[k], wanted[:, ::-1] if mirror[k] else wanted)
    still = shift_and_mirror(
        TRAIN[0][:20], np.full(20, PADDING), np.full(20, PADDING), np.zeros(20, bool)
    )
    np.testing.assert_array_equal(still, PIXELS[:20])


@cache
def trainer(variant="sgd", rho=0.0, micro=None, groups="accumulate"):
    """Shared by the tests: compiled once."""
    return Trainer(
        NETWORK,
        Recipe(variant, rho, micro, batch=16, lr=0.05, weight_decay=0.01, augment=False),
        groups,
    )


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def gradient(params, statistics, images, labels):
    scores, new = NETWORK(params, statistics, images, train=True)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels)), new


def by_hand(recipe, seed, epochs):
    """SGD and m-SAM, written out in numpy but for the gradients, on the batches of the trainer."""
    params, statistics, _ = jax.tree.map(np.asarray, trainer().start(seed))
    velocity = jax.tree.map(np.zeros_like, params)
    per_epoch, count, m = 50 // recipe.batch, 0, recipe.micro or recipe.batch
    for epoch in range(epochs):
        key, _ = jax.random.split(
            jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)
        )
        order = np.asarray(jax.random.permutation(key, 50))
        for k in range(per_epoch):
            total, seen = jax.tree.map(np.zeros_like, params), []
            for part in np.split(
                order[k * recipe.batch : (k + 1) * recipe.batch], recipe.batch // m
            ):
                (_, new), g = jax.tree.map(
                    np.asarray, gradient(params, statistics, PIXELS[part], LABELS[part])
                )
                seen.append(new)
                if recipe.rho:
                    length = np.sqrt(sum(float((leaf**2).sum()) for leaf in leaves(g)))
                    moved = jax.tree.map(
                        lambda x, g, length=length: x + np.float32(recipe.rho / length) * g,
                        params,
                        g,
                    )
                    _, g = jax.tree.map(
                        np.asarray, gradient(moved, statistics, PIXELS[part], LABELS[part])
                    )
                total = jax.tree.map(np.add, total, g)
            rate = np.float32(recipe.lr) * (1 + np.cos(np.pi * count / (epochs * per_epoch))) / 2
            G = jax.tree.map(
                lambda t, x: t * m / recipe.batch + recipe.weight_decay * x, total, params
            )
            velocity = jax.tree.map(lambda v, g: recipe.momentum * v + g, velocity, G)
            params = jax.tree.map(
                lambda x, v, rate=rate: np.float32(x - rate * v), params, velocity
            )
            statistics = jax.tree.map(lambda *many: sum(many) / len(many), *seen)
            count += 1
    return params, statistics


@pytest.mark.parametrize(
    ("variant", "rho", "micro", "groups"),
    [("sgd", 0, None, "accumulate"), ("m-sam", 0.5, 4, "vmap")],
)
def test_epochs_equal_steps_written_out(variant, rho, micro, groups):
    run = trainer(variant, rho, micro, groups).run(DATA, seed=3, epochs=2, samples=2)
    recipe = trainer(variant, rho, micro, groups).recipe
    params, statistics = by_hand(recipe, 3, 2)
    assert gap(run.state.params, params) < 1e-4
    assert gap(run.state.statistics, statistics) < 1e-4, "of the unperturbed pass"
    # controls: another order, and no perturbation
    assert gap(run.state.params, by_hand(recipe, 4, 2)[0]) > 1e-2
    if variant != "sgd":
        assert gap(run.state.params, by_hand(trainer().recipe, 3, 2)[0]) > 1e-3


def test_what_is_measured():
    state = trainer().start(0)
    found = measure(
        NETWORK,
        state,
        (jnp.asarray(PIXELS[50:]), jnp.asarray(LABELS[50:])),
        (TRAIN[0][:12], TRAIN[1][:12]),
        chunk=7,
    )

    def losses(params, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(
            NETWORK(params, state.statistics, images, train=False)[0], labels
        )

    scores, _ = NETWORK(state.params, state.statistics, jnp.asarray(PIXELS[50:]), train=False)
    assert found["test_accuracy"] == pytest.approx(
        (np.asarray(scores).argmax(1) == LABELS[50:]).mean()
    )
    assert found["test_loss"] == pytest.approx(
        float(losses(state.params, PIXELS[50:], LABELS[50:]).mean()), rel=1e-5
    )
    g = np.concatenate(
        [
            leaf.reshape(12, -1)
            for leaf in leaves(
                jax.jit(jax.jacobian(losses))(state.params, PIXELS[:12], LABELS[:12])
            )
        ],
        axis=1,
    )
    assert found["trace_cov"] == pytest.approx(g.var(0, ddof=1).sum(), rel=1e-3)
    assert found["trace_cov_stderr"] == pytest.approx(
        (g**2).sum(1).std(ddof=1) / np.sqrt(12), rel=1e-3
    )
    assert found["gradient_norm"] == pytest.approx(
        np.sqrt(max((g.mean(0) ** 2).sum() - g.var(0, ddof=1).sum() / 12, 0)), rel=1e-2, abs=1e-3
    )


def test_runs_repeat_stop_and_start_from_others():
    shifted = Trainer(NETWORK, Recipe("rw-sam", rho=0.05, lam=2.0, batch=16, ghost=4))
    one, other, third = (shifted.run(DATA, seed, 2, samples=4) for seed in (0, 0, 1))
    assert gap(one.state.params, other.state.params) == 0
    assert gap(one.state.params, third.state.params) > 1e-2
    for name, values in one.records.items():
        if name not in ("seconds", "images_per_second"):
            np.testing.assert_array_equal(values, other.records[name])
    assert one.records["step"].tolist() == [0, 3, 6]
    assert one.diverged is None
    stopped = shifted.run(DATA, 5, 9, start=one.state, until=0.0, samples=4)
    assert stopped.records["epoch"].tolist() == [0, 1]
    assert stopped.records["test_loss"][0] == pytest.approx(one.records["test_loss"][-1], rel=1e-5)
    assert gap(one.state.params, other.state.params) == 0, "the start is still there"


def test_divergence_is_seen():
    state = trainer().start(0)
    far = state._replace(params=jax.tree.map(lambda leaf: 1e30 * leaf, state.params))
    run = trainer().run(DATA, seed=0, epochs=5, start=far, samples=2)
    assert run.diverged == 1
    assert run.records["epoch"].tolist() == [0, 1]
    assert np.isnan(run.records["train_loss"][-1])


def test_half_precision_is_near():
    half = ResNet(blocks=(1,), width=3, dtype="bfloat16")
    params, statistics = NETWORK.init(jax.random.key(0))
    wide, narrow = (
        jax.jit(partial(network, train=True))(params, statistics, TRAIN[0])
        for network in (NETWORK, half)
    )
    assert narrow[0].dtype == np.float32
    assert 1e-5 < gap(wide[0], narrow[0]) < 0.1
    assert {leaf.dtype for leaf in leaves(narrow[1])} == {np.dtype(np.float32)}


def test_times_are_those_of_one_step(monkeypatch):
    for name, seconds in (("_plain", 0.01), ("_of", 0.1)):
        monkeypatch.setattr(
            f"sdesam.networks.throughput.{name}",
            lambda *of, seconds=seconds: lambda steps: seconds * steps,
        )
    found = steps_in_turn({"SGD": Trainer(Linear(), Recipe(batch=16))}, DATA, rounds=2)
    assert [found[name] for name in (PLAIN, "SGD")] == [
        pytest.approx([0.01] * 2),
        pytest.approx([0.1] * 2),
    ]


def test_steps_are_timed_in_turn(monkeypatch):
    monkeypatch.setattr("sdesam.networks.throughput._SECONDS", 0)
    trainers = {"SGD": trainer(), "m": trainer("m-sam", 0.5, 4, "vmap")}
    found = steps_in_turn(trainers, DATA, rounds=2)
    assert list(found) == [PLAIN, "SGD", "m"]
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())
    with pytest.raises(ValueError, match="trainers of different batch sizes"):
        steps_in_turn({**trainers, "other": Trainer(NETWORK, Recipe(batch=8))}, DATA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "sma"}, "unknown variant 'sma'"),
        (
            {"variant": "n-sam", "rho": 0.1},
            "n-sam needs the gradient of the whole data set at each step",
        ),
        ({"variant": "m-sam", "rho": 0.1}, "m-sam needs micro"),
        ({"variant": "sam", "rho": 0.1, "micro": 4}, "sam has no micro-batches; leave micro out"),
        ({"variant": "sam", "rho": -1}, "rho=-1"),
        ({"lr": 0}, "lr=0"),
        ({"momentum": 1}, "momentum=1: it must be at least 0 and below 1"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        (
            {"batch": 20, "ghost": 8},
            "ghost=8 does not divide batch=20: choose one of 1, 2, 4, 5, 10, 20",
        ),
        (
            {"variant": "m-sam", "rho": 0.1, "batch": 16, "micro": 4, "ghost": 8},
            "ghost=8 does not divide micro=4",
        ),
    ],
)
def test_bad_recipes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**arguments)


def test_bad_numbers():
    for arguments, message in (
        ({"dtype": "float8"}, "unknown dtype"),
        ({"blocks": ()}, "blocks="),
        ({"decay": 1}, "decay=1"),
        ({"width": 0}, "width=0"),
    ):
        with pytest.raises(ValueError, match=message):
            ResNet(**arguments)
    with pytest.raises(ValueError, match="batch=64 exceeds the 50 images to train on"):
        Trainer(NETWORK, Recipe(batch=64)).run(DATA, 0, 1)
    with pytest.raises(ValueError, match="epochs=0"):
        trainer().run(DATA, 0, 0)
    with pytest.raises(ValueError, match="unknown way to run groups"):
        Trainer(NETWORK, Recipe("m-sam", rho=0.1, micro=4, batch=16), "loop")
