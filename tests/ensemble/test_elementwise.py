"""Small states by components: what is made of a function against jax.vmap of it, and what it must
not be used for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.autodiff.elementwise import elementwise
from sdesam.ensemble import compiled, draws
from sdesam.ensemble.normals import standard_normals
from sdesam.sde import stepping

SHARED = jnp.array([[1.0, -2.0], [0.5, 3.0]])


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, x: a[0] * x + x[::-1],
        lambda a, x: jnp.stack([x[1], x[0] * x[1] ** 3]),
        lambda a, x: jnp.where(x > 0, jnp.tanh(x), jnp.exp(x)),
        lambda a, x: (a * x).sum(axis=1) / jnp.linalg.norm(x),
        lambda a, x: jnp.max(jnp.outer(x, x) + a, axis=0),
        lambda a, x: jax.nn.relu(x) + jax.nn.softplus(x) + jnp.roll(x, 1),
        lambda a, x: jax.grad(lambda y: jnp.sum(jnp.sin(a * y)) * y[0] * y[1])(x),
        lambda a, x: a @ x + x @ a @ x,
        lambda a, x: jnp.einsum("kij,kj->ik", jnp.stack([a, x * a]), jnp.stack([x, a[1]])).sum(
            axis=1
        ),
        lambda a, x: jax.jvp(jax.grad(lambda y: jnp.sum(jnp.cos(y) ** 2)), (x,), (a[1],))[1],
        lambda a, x: {"first": x[0], "second": jnp.reshape(x, (1, 2)).T},
        lambda a, x: jnp.ones(2),
    ],
)
def test_the_same_as_vmap(fn):
    x = jax.random.normal(jax.random.key(0), (5, 2))
    made = elementwise(fn, SHARED, jax.ShapeDtypeStruct((2,), x.dtype))
    expected = [
        part
        for leaf in jax.tree.leaves(jax.vmap(lambda x: fn(SHARED, x))(x))
        for part in np.reshape(leaf, (5, -1)).T
    ]
    np.testing.assert_allclose(made(SHARED, [x[:, 0], x[:, 1]], 5), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, x: jnp.sort(x),
        lambda a, x: jax.lax.while_loop(lambda y: y[0] > 1, lambda y: y / 2, x),
        lambda a, x: jnp.broadcast_to(x, (40, 2)).sum(axis=0),  # too large
        lambda a, x: jax.lax.fori_loop(0, 3, lambda k, y: y / 2, x),
    ],
)
def test_what_is_not_elementwise_is_left_alone(fn):
    assert elementwise(fn, SHARED, jax.ShapeDtypeStruct((2,), jnp.float32)) is None


def test_nothing_to_sum_and_another_precision():
    """What has no terms, and what changes precision on the way, is left alone."""
    noise = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((0,), jnp.float32)
    assert elementwise(lambda a, of: of[0] + of[1].sum(), 1.0, noise) is None
    assert elementwise(lambda a, of: of[0] + jnp.zeros((2, 0)) @ of[1], 1.0, noise) is None
    half, one = jnp.bfloat16, jnp.eye(2, dtype=jnp.bfloat16)
    assert (
        elementwise(
            lambda a, x: jax.lax.dot(x.astype(half), one, preferred_element_type=jnp.float32) - x,
            1.0,
            noise[0],
        )
        is None
    )
    sde = sdesam.SDE(lambda x: -x, lambda x, xi: jnp.zeros_like(x) + xi.sum(), (0,), jnp.ones(2))
    assert sdesam.simulate(sde, jax.random.key(0), 2, 0.2, 0.1).final == pytest.approx(0.81)


def test_keys_may_be_there_but_not_be_used():
    varying = (jax.ShapeDtypeStruct((), jnp.float32), jax.eval_shape(lambda: jax.random.key(0)))
    unused = elementwise(lambda a, of: (jax.random.split(of[1]), of[0] + a)[1], 1.0, varying)
    assert unused(1.0, [jnp.zeros(2)], 2)[0].tolist() == [1, 1]
    assert elementwise(lambda a, of: of[0] + jax.random.normal(of[1]), 1.0, varying) is None


def root(x):
    return jnp.stack([jnp.sqrt(1 + x[1] ** 2), 0.5 * x[0]])


DT, STEPS, PATHS = 0.1, 7, 6


def by_hand(drift, noise, start, shape, sign=None):
    """Euler-Maruyama in numpy, with the numbers of the counter."""
    x = np.tile(np.asarray(start, float), (PATHS, 1))
    for k in range(STEPS):
        of = np.arange(PATHS) if sign is None else np.arange(PATHS) // 2
        xi = np.asarray(standard_normals(jax.random.key(3), k, jnp.asarray(of), shape), float) * (
            1 if sign is None else sign.reshape(-1, 1)
        )
        x = np.array(
            [
                one + DT * np.asarray(drift(one)) + DT**0.5 * np.asarray(noise(one, z))
                for one, z in zip(x, xi, strict=True)
            ]
        )
    return x


@pytest.mark.parametrize("antithetic", [False, True])
def test_a_small_sde_gets_the_numbers_of_its_paths(antithetic):
    """Three numbers for two components; the same path alone, in a chunk, or with its mirror
    image.
    """
    drift, noise, start = (
        lambda x: -x + 0.3 * x[::-1] ** 2,
        lambda x, xi: root(x) * (xi[0] - 0.5 * xi[1:]),
        [1.0, 0.5],
    )
    sde = sdesam.SDE(drift, noise, (3,), jnp.array(start))
    out = sdesam.simulate(
        sde, jax.random.key(3), PATHS, STEPS * DT, DT, antithetic=antithetic, chunk=4
    )
    sign = np.where(np.arange(PATHS) % 2, -1, 1) if antithetic else None
    np.testing.assert_allclose(
        out.final, by_hand(drift, noise, start, (3,), sign), rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize("method", ["euler", "heun", "richardson"])
def test_what_is_small(method):
    """One or two components of a written SDE, as an array or a tree; a third one, or a sort, is
    not.
    """

    def small(x0, drift=lambda x: jax.tree.map(lambda leaf: -leaf, x)):
        sde = sdesam.SDE(
            drift, lambda x, xi: jax.tree.map(lambda leaf: 0.1 * leaf * xi[0], x), (2,), x0
        )
        request = stepping._Request("simulate", 1.0, DT, method, None, (), "counter", None)
        plan = stepping._plan(sde, jax.random.key(0), request)[0]
        draw = draws.Draw(plan.noise_shape, "float32", "counter", antithetic=False, carried=False)
        return compiled.small(jax.tree.map(jnp.asarray, plan.stepper), draw, plan.x0) is not None

    assert small(jnp.array(1.0))
    two = method != "richardson"  # which carries a pair of states
    assert small(jnp.ones(2)) == two
    assert small({"a": jnp.array(1.0), "b": jnp.ones(1)}) == two
    assert not small(jnp.ones(3))
    assert not small(jnp.ones(2), lambda x: jnp.sort(x))


def test_a_tree_of_two_numbers():
    """The same paths as the array of the two."""
    array = sdesam.SDE(lambda x: -(x**3), lambda x, xi: root(x) * xi, (2,), jnp.array([1.0, 0.5]))

    def noise(x, xi):
        moved = root(jnp.array([x["a"], x["b"][0]])) * xi
        return {"a": moved[0], "b": moved[1:]}

    tree = sdesam.SDE(
        lambda x: jax.tree.map(lambda leaf: -(leaf**3), x),
        noise,
        (2,),
        {"a": jnp.array(1.0), "b": jnp.array([0.5])},
    )
    one, other = (
        sdesam.simulate(sde, jax.random.key(3), PATHS, STEPS * DT, DT).final
        for sde in (array, tree)
    )
    np.testing.assert_allclose(np.column_stack([other["a"], other["b"]]), one, rtol=1e-5)


def test_the_general_way_gives_the_same():
    """A drift that sorts nothing, but is not elementwise, on the same paths; one that is wrong is
    seen.
    """

    def run(drift):
        sde = sdesam.SDE(drift, lambda x, xi: root(x) * xi, (2,), jnp.array([1.0, 0.5]))
        return sdesam.simulate(sde, jax.random.key(3), PATHS, STEPS * DT, DT, "heun").final

    def general(x):
        return jnp.stack([-x[0], jnp.sort(jnp.stack([x[1], x[1]]))[0]])

    np.testing.assert_allclose(run(lambda x: jnp.stack([-x[0], x[1]])), run(general), rtol=1e-5)
    assert abs(run(lambda x: jnp.stack([-x[0], 1.01 * x[1]])) - run(general)).max() > 1e-3
