"""One step of rules as expressions, against the rule written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.variants import (
    Variant,
    elementwise,
    fresh,
    gibbs,
    gradient,
    parameter,
    random_direction,
    unit,
)
from tests.brute_force import LAM, WRITTEN, Drawn, Polynomials
from tests.sde.test_enumeration import polynomial_loss
from tests.sde.test_rules import NORMALISED, OWN, RULES

RHO = 0.4
X = np.array([0.3, -0.2])
LOSSES = Polynomials.random(5, 2, seed=4)
BATCH = (3, 0, 4, 4)
DRAWING = [name for name, direction in RULES.items() if Variant(name, direction).draws]


def chain(direction, **numbers):
    problem = sdesam.FiniteSum(polynomial_loss, vars(LOSSES), X)
    return sdesam.Chain(
        Variant("mine", direction), problem, lr=0.1, rho=RHO, batch=4, micro=2, **numbers
    )


def slope(members, at=None):
    return LOSSES.g(X if at is None else X + RHO * at)[list(members)].mean(0)


def by_hand(name, eps, drawn=(), z=0.0):
    def u(v, of=None):
        w = v if of is None else of
        return v / np.sqrt(w @ w + eps**2)

    parts = [
        WRITTEN[name](slope, Drawn(BATCH[k : k + 2], BATCH, range(5), drawn, z), u) for k in (0, 2)
    ]
    return np.mean(parts, axis=0)


@pytest.mark.parametrize("name", [name for name in RULES if name not in DRAWING])
def test_a_step_is_the_rule(name):
    eps = 0.3 if name in NORMALISED else 0.0
    with jax.enable_x64(True):
        found = chain(RULES[name], eps=eps, **OWN.get(name, {})).direction(
            X, np.array(BATCH).reshape(2, 2)
        )
    np.testing.assert_allclose(found, by_hand(name, eps), rtol=1e-12)
    assert abs(np.asarray(found) - slope(BATCH)).max() > 1e-3, "the control: SGD"


def test_what_a_rule_draws_is_apart():
    """A step with a batch drawn apart is that of one of the batches that can be drawn, each
    micro-batch has its own, and two of different numbers are different.
    """
    indices, keys = np.array(BATCH).reshape(2, 2), jax.random.split(jax.random.key(3), 40)
    with jax.enable_x64(True):
        one = chain(gradient("micro", at=gradient(fresh)))
        steps = np.array([one.direction(X, indices, key) for key in keys])
        two = chain(gradient("micro", at=gradient(fresh) - gradient(fresh(2))))
        apart = np.array([two.direction(X, indices, key) for key in keys])
    pairs = [(i, j) for i in range(5) for j in range(5)]
    each = [np.array([slope(BATCH[k : k + 2], at=slope(pair)) for pair in pairs]) for k in (0, 2)]
    possible = (each[0][:, None] + each[1][None]) / 2
    distance = abs(possible[None] - steps[:, None, None]).max(-1)
    assert distance.min((1, 2)).max() < 1e-12
    which = [np.unravel_index(d.argmin(), d.shape) for d in distance]
    # of 40 steps, both micro-batches drawing alike in all has probability below 1e-30
    assert any(set(pairs[a]) != set(pairs[b]) for a, b in which)
    assert len({tuple(step) for step in steps.round(12)}) > 20
    # a difference that is zero in all of 40 steps has probability below 1e-30
    assert abs(apart - slope(BATCH)).max() > 1e-3


@pytest.mark.parametrize("law", ["gaussian", "rademacher"])
def test_random_directions(law):
    """`grad f_I(x + rho z)`: what `z` must have been has the moments of its law."""
    quadratic = sdesam.problems.quadratic(dim=2, samples=3, seed=1)
    rule = Variant("mine", gradient("micro", at=random_direction(law)))
    moved = sdesam.Chain(rule, quadratic, 0.1, 0.5, batch=1, micro=1)
    still = sdesam.Chain("sgd", quadratic, 0.1, batch=1)
    x, index = quadratic.x0, np.array([[1]])
    keys = jax.random.split(jax.random.key(0), 4000)
    steps = jax.vmap(lambda key: moved.direction(x, index, key))(keys)
    hessian = np.asarray(quadratic.data["hessian"][1], float)
    z = np.linalg.solve(hessian, np.asarray(steps - still.direction(x, index), float).T) / 0.5
    # standard errors 0.016 for means, 0.016 to 0.022 for second moments: six of them, 2e-9 each
    np.testing.assert_allclose(z.mean(1), 0, atol=0.1)
    np.testing.assert_allclose(z @ z.T / 4000, np.eye(2), atol=0.14)
    assert (abs(abs(z) - 1) < 1e-3).all() == (law == "rademacher")


def test_weighted_descent():
    """`sum_i p_i grad f_i(x + rho v)`, with the weights of `x`."""
    weights = {"lam": LAM, "norms": sdesam.NormEstimate("exact")}
    with jax.enable_x64(True):
        found = chain(gibbs("micro", at=gibbs("micro")), **weights).direction(
            X, np.array(BATCH).reshape(2, 2)
        )
    g, total = LOSSES.g(X), []
    for members in ([3, 0], [4, 4]):
        p = np.exp(LAM * np.linalg.norm(g[members], axis=1))
        p /= p.sum()
        total.append(p @ LOSSES.g(X + RHO * (p @ g[members]))[members])
    np.testing.assert_allclose(found, np.mean(total, axis=0), rtol=1e-12)


def test_asam():
    """`u = t t g / |t g|`, `t = |x| + c`: Kwon et al. 2021, arXiv 2102.11600."""

    def size(x):
        return jnp.abs(x) + 0.1

    scaled = elementwise(size, gradient("micro"))
    with jax.enable_x64(True):
        found = chain(
            gradient("micro", at=unit(elementwise(size, scaled), norm_of=scaled)), eps=0.2
        ).direction(X, np.array(BATCH).reshape(2, 2))
    t, total = abs(X) + 0.1, []
    for k in (0, 2):
        g = slope(BATCH[k : k + 2])
        total.append(slope(BATCH[k : k + 2], at=t * t * g / np.sqrt(np.sum((t * g) ** 2) + 0.2**2)))
    np.testing.assert_allclose(found, np.mean(total, axis=0), rtol=1e-12)


def unit_vector(v, eps=0.2):
    return v / np.sqrt(v @ v + eps**2)


def rejected(v, w):
    return v - (v @ w) / (w @ w) * w


def gsam(own, members, a):
    moved = slope(members, at=unit_vector(own))
    return moved - a * rejected(own, moved)


def asam(own, members):
    t = abs(X) + 0.01
    return slope(members, at=t * t * own / np.sqrt(np.sum((t * own) ** 2) + 0.2**2))


FROM_PAPERS = {
    "gsam": lambda own, members: gsam(own, members, 0.7),
    "orthogonal-sam": lambda own, members: slope(
        members, at=unit_vector(rejected(own, slope(range(5))))
    ),
    "shared-norm-sam": lambda own, members: slope(
        members, at=own / np.sqrt(slope(BATCH) @ slope(BATCH) + 0.2**2)
    ),
    "asam": asam,
    "extragradient": lambda own, members: slope(BATCH, at=-slope(BATCH)),
}


@pytest.mark.parametrize("name", FROM_PAPERS)
def test_a_step_of_a_rule_that_comes_with_the_package(name):
    rule = sdesam.VARIANTS[name]
    numbers = {"a": 0.7} if rule.parameters else {}
    numbers |= {"eps": 0.2} if rule.normalised else {}
    numbers |= {"micro": 2} if rule.micro else {}
    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(polynomial_loss, vars(LOSSES), X)
        chain = sdesam.Chain(rule, problem, lr=0.1, rho=RHO, batch=4, **numbers)
        found = chain.direction(X, np.array(BATCH).reshape(-1, 2 if rule.micro else 4))
    parts = [FROM_PAPERS[name](slope(BATCH[k : k + 2]), BATCH[k : k + 2]) for k in (0, 2)]
    np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-12)


def test_what_a_vector_leaves_of_itself_where_the_other_vanishes():
    """`reject(g, 0)` is `g`, and not NaN."""
    v = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    left = sdesam.optim.kernel._rejected(v, jax.tree.map(jnp.zeros_like, v))
    jax.tree.map(np.testing.assert_array_equal, left, v)


def test_a_gradient_that_occurs_twice_is_computed_once():
    """The penalty `(1-a) g_I + a grad f_I(x + rho u)` costs two gradients, as SAM does."""
    own, a = gradient("micro"), parameter("a")
    penalty = (1 - a) * own + a * gradient("micro", at=unit(own))

    def work(direction, **numbers):
        with jax.enable_x64(True):
            one = chain(direction, eps=0.1, **numbers)
            indices = np.array(BATCH).reshape(2, 2)
            compiled = jax.jit(lambda x: one.direction(x, indices)).lower(X).compile()
        return compiled.cost_analysis()["flops"]

    assert work(penalty, a=0.3) < 1.2 * work(gradient("micro", at=unit(own)))
