"""A rule of a user's own: what contradicts itself is refused when it is declared, and what does not
runs everywhere without being registered.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam import VARIANTS, Variant
from sdesam.variants import (
    elementwise,
    fresh,
    gibbs,
    gradient,
    parameter,
    random_direction,
    unit,
)
from sdesam.verify.exact import one_step
from sdesam.verify.exact.quadratic import Quadratic

I, D = gradient("micro"), gradient("data")  # noqa: E741
M_DNSAM = Variant("m-dnsam", gradient("micro", at=unit(I, norm_of=D)))
SIZES = {"lr": 0.1, "rho": 0.2, "batch": 4, "micro": 2, "eps": 0.1}


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: gradient("microbatch"), ValueError, "unknown scope 'microbatch'.* mean 'micro'"),
        (lambda: gradient(None), ValueError, "unknown scope None"),
        (lambda: gradient("fresh 0"), ValueError, "unknown scope 'fresh 0'"),
        (lambda: fresh(0), ValueError, r"fresh\(0\): it must be a whole number of at least 1"),
        (lambda: gradient("micro", at=0.1), TypeError, "at=0.1: it must be a vector of a rule"),
        (lambda: gradient("micro", at="sam"), TypeError, "at='sam': it must be a vector"),
        (lambda: gradient("micro", at=parameter("c")), TypeError, "at=.*: it must be a vector"),
        (lambda: gradient("micro", at=I - I), ValueError, "at: the vector is zero"),
        (lambda: unit(I - I), ValueError, "unit: the vector is zero, for its terms cancel"),
        (lambda: unit(I, norm_of=0 * D), ValueError, "norm_of: the vector is zero"),
        (lambda: unit(3), TypeError, "unit=3: it must be a vector"),
        (lambda: gibbs("data"), ValueError, "gibbs.'data'.: weights are those of the samples of"),
        (lambda: I * D, TypeError, "a vector is multiplied by numbers alone"),
        (lambda: I / D, TypeError, r"use unit\(v, norm_of=w\) to divide by a norm"),
        (lambda: I / 0, ValueError, "division by 0: it must be a number other than 0"),
        (lambda: I / parameter("c"), ValueError, "division by c: it must be a number"),
        (lambda: "2" * I, TypeError, "'2' multiplies no vector: it must be a number or parameter"),
        (lambda: float("nan") * I, ValueError, "nan multiplies no vector: it must be finite"),
        (lambda: True * I, TypeError, "True multiplies no vector"),
        (lambda: I + 1, TypeError, r"\+=1: it must be a vector of a rule"),
        (lambda: parameter("rho"), ValueError, "the name stands for something else already"),
        (lambda: parameter("two words"), ValueError, "the name must be a word, such as 'sigma'"),
        (lambda: parameter(3), TypeError, "the name must be text"),
        (lambda: random_direction("uniform"), ValueError, "unknown law 'uniform'"),
        (lambda: elementwise(2, I), TypeError, "it must be a function of an array"),
        (lambda: Variant("", I), ValueError, "name='': a variant needs a name"),
        (lambda: Variant(3, I), TypeError, "name=3: it must be text"),
        (lambda: Variant("mine", I, source=["a paper"]), TypeError, "source=.*: it must be text"),
        (lambda: Variant("mine", "usam"), TypeError, "direction='usam': it must be a vector"),
        (lambda: Variant("mine", I - I), ValueError, "direction: the vector is zero"),
        (lambda: Variant("mine", random_direction()), ValueError, "it follows no gradient"),
        (lambda: Variant("sam", I), ValueError, "name='sam': it is the name of another rule"),
    ],
)
def test_nonsense_is_refused_when_it_is_said(make, kind, message):
    with pytest.raises(kind, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_expressions_are_compared_by_what_they_say():
    c = parameter("c")
    assert I + I == 2 * I
    assert I + D - D == I
    assert (1 - c) * I + c * I == I
    assert hash(unit(I)) == hash(unit(I, norm_of=I))
    assert str(0.1 * I) == "1/10 gradient(micro)"


def test_a_rule_needs_its_own_numbers():
    rule = Variant("mine", gradient("micro", at=I - parameter("sigma") * D))
    problem = sdesam.problems.torus(dim=2, samples=3)
    numbers = {"lr": 0.1, "rho": 0.1, "batch": 2, "micro": 1}
    with pytest.raises(TypeError, match="mine needs sigma, a number of its own: give sigma="):
        sdesam.Chain(rule, problem, **numbers)
    with pytest.raises(TypeError, match="mine has no number sigmo; its own numbers are sigma"):
        sdesam.derive(rule).bind(problem, **numbers, sigmo=0.1)
    with pytest.raises(TypeError, match="sam has no number sigma; it has none of its own"):
        sdesam.Chain("sam", problem, lr=0.1, rho=0.1, sigma=1.0)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"sigma=.*: it must be a finite number"):
            sdesam.Chain(rule, problem, **numbers, sigma=wrong)
    with pytest.raises(TypeError, match="sigma='1': it must be a finite number"):
        sdesam.Chain(rule, problem, **numbers, sigma="1")
    assert sdesam.Chain(rule, problem, **numbers, sigma=0.5).config["sigma"] == 0.5


def test_a_rule_without_trees_says_which_part_and_what_else_there_is():
    def size(x):
        return abs(x) + 0.1

    for direction, part in [
        (gradient("micro", at=elementwise(size, I)), "elementwise.size"),
        (gradient("micro", at=unit(I, norm_of=gradient("batch"))), "the norm of gradient.batch"),
        (gibbs("batch", at=unit(gibbs("batch"))), "gibbs.batch, at=.*a moved point"),
        (gradient("micro", at=unit(I + random_direction())), "the norm of"),
        (gradient("micro", at=unit(unit(I))), "the norm of unit"),
    ]:
        with pytest.raises(ValueError, match=f"{part}.*sdesam.SDE.from_step"):
            sdesam.derive(Variant("mine", direction))


def test_a_rule_that_is_not_registered_runs_everywhere():
    """m-DNSAM: exact steps and the chain's mean, against numpy; the SDE's drift at first order,
    against the chain's.
    """
    problem = sdesam.problems.torus(dim=2, samples=3)
    chain, x = sdesam.Chain(M_DNSAM, problem, **SIZES), np.array([0.4, 1.9])
    with jax.enable_x64(True):
        data = jax.tree.map(
            lambda leaf: jnp.asarray(
                leaf, jnp.result_type(leaf) if leaf.dtype.kind == "i" else float
            ),
            problem.data,
        )
        grad = jax.jit(
            jax.grad(
                lambda y, i: jnp.mean(
                    jax.vmap(problem.sample_loss, (None, 0))(
                        y, jax.tree.map(lambda leaf: leaf[i], data)
                    )
                )
            )
        )
        own = np.array([[grad(x, np.array([i, j])) for j in range(3)] for i in range(3)])
        norm = np.sqrt(np.sum(np.asarray(grad(x, np.arange(3))) ** 2) + 0.1**2)
        G = np.array(
            [
                [grad(x + 0.2 * own[i, j] / norm, np.array([i, j])) for j in range(3)]
                for i in range(3)
            ]
        )
    # the mean over all pairs; the mini-batch has two of them, drawn alone
    np.testing.assert_allclose(one_step(chain, x).mean, G.mean((0, 1)), rtol=1e-10)
    away = G.reshape(9, 2) - G.mean((0, 1))
    np.testing.assert_allclose(one_step(chain, x).covariance, away.T @ away / 9 / 2, rtol=1e-9)

    equation = sdesam.derive(M_DNSAM, order=(1, 2))
    sde = equation.bind(problem, expectation="exact", **SIZES)
    assert (
        sde.config["rule"]
        == chain.config["rule"]
        == {"direction": "gradient(micro, at=unit(gradient(micro), norm_of=gradient(data)))"}
    )
    steps = [
        one_step(sdesam.Chain(M_DNSAM, problem, **{**SIZES, "rho": rho}), x).mean
        for rho in (0.0, 1e-4)
    ]
    drifts = [
        np.asarray(
            equation.bind(problem, expectation="exact", **{**SIZES, "rho": rho}).drift(x), float
        )
        for rho in (0.0, 1.0)
    ]
    np.testing.assert_allclose(drifts[1] - drifts[0], -(steps[1] - steps[0]) / 1e-4, rtol=2e-3)
    out = sdesam.train(chain, jax.random.key(0), runs=2, steps=2, observe=["loss"])
    both = sdesam.simulate(sde, jax.random.key(0), paths=2, horizon=0.2, dt=0.1, observe=["loss"])
    assert np.isfinite(out.mean["loss"]).all()
    assert np.isfinite(both.mean["loss"]).all()
    coupled = sdesam.coupled(
        sdesam.derive(M_DNSAM).bind(problem, **SIZES), chain, jax.random.key(0), runs=2, steps=2
    )
    assert coupled.diverged.count == 0


def test_registered_rules_are_recorded_by_name_alone():
    """So that stored results keep their names."""
    problem = sdesam.problems.torus(dim=2, samples=3)
    assert "rule" not in sdesam.Chain("m-sam", problem, **SIZES).config
    assert "rule" not in sdesam.derive("m-sam").bind(problem, **SIZES).config


def test_two_rules_of_one_name_are_told_apart():
    """In the algebra, in compiled steps, in what is recorded, and where an SDE meets a chain."""
    problem, indices = sdesam.problems.torus(dim=2, samples=3), np.array([[0, 2], [1, 1]])
    other = replace(M_DNSAM, direction=VARIANTS["m-sam"].direction)
    assert other.name == M_DNSAM.name
    assert hash(other) != hash(M_DNSAM)
    assert sdesam.derive(other) != sdesam.derive(M_DNSAM)
    assert sdesam.derive(other) == sdesam.derive("m-sam")
    chains = [sdesam.Chain(rule, problem, **SIZES) for rule in (M_DNSAM, other, "m-sam")]
    steps = [chain.direction(problem.x0, indices) for chain in chains]
    assert abs(steps[1] - steps[0]).max() > 1e-4
    np.testing.assert_array_equal(steps[1], steps[2])
    assert chains[0].config != chains[1].config
    with pytest.raises(ValueError, match="the SDE and the chain differ in rule"):
        sdesam.coupled(
            sdesam.derive(other).bind(problem, **SIZES),
            chains[0],
            jax.random.key(0),
            runs=2,
            steps=1,
        )
    # the rule of one name under another's
    bare = replace(VARIANTS["usam"], name="bare")
    assert sdesam.derive(bare) == sdesam.derive("usam")
    assert "rule" in sdesam.Chain(bare, problem, 0.1, 0.1).config


class Reported(sdesam.Chain):
    """Only adds to a chain."""

    def told(self):
        return str(self)


class Own(sdesam.Chain):
    def step(self, x, key):
        return 0 * super().step(x, key)


class Turned(sdesam.Chain):
    def direction(self, x, indices, key=None):
        return -super().direction(x, indices, key)


def runs_of(chain):
    problem = chain.problem if isinstance(chain, sdesam.Chain) else sdesam.problems.quadratic()
    sde = sdesam.derive("sgd").bind(problem, lr=0.1, batch=2)
    return {
        "train": lambda: sdesam.train(chain, jax.random.key(0), runs=2, steps=1),
        "coupled": lambda: sdesam.coupled(sde, chain, jax.random.key(0), runs=2, steps=1),
        "one_step": lambda: one_step(chain, np.zeros(2)),
        "exact": lambda: Quadratic(problem, 0.1).chain_path(chain, 1),
    }


@pytest.mark.parametrize(("kind", "name"), [(Own, "step"), (Turned, "direction")])
def test_a_step_that_would_be_ignored_is_refused(kind, name):
    problem = sdesam.problems.quadratic(samples=3)
    chain = kind("sgd", problem, lr=0.1, batch=2)
    for run in runs_of(chain).values():
        with pytest.raises(
            TypeError, match=f"{kind.__name__} has a {name} of its own, which .* would not call"
        ):
            run()
    assert chain.step(problem.x0, jax.random.key(0)).shape == (2,)  # to loop over by oneself


@pytest.mark.slow
def test_a_step_put_on_one_chain_is_refused_and_added_methods_are_not():
    problem = sdesam.problems.quadratic(samples=3)
    chain = Reported("sgd", problem, lr=0.1, batch=2)
    for run in runs_of(chain).values():
        run()
    chain.step = lambda x, key: x
    with pytest.raises(TypeError, match="Reported has a step of its own"):
        sdesam.train(chain, jax.random.key(0), runs=2, steps=1)


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        (
            lambda problem: sdesam.derive("sgd").bind(problem, lr=0.1),
            "not SDE: an SDE is run by sdesam.simulate",
        ),
        (
            lambda problem: sdesam.derive("sgd"),
            "not ModifiedEquation: its optimizer is sdesam.Chain",
        ),
        (
            lambda problem: problem,
            r"not FiniteSum: make one by sdesam.Chain\(variant, problem, lr=",
        ),
        (lambda problem: "sgd", "not str: make one by"),
    ],
)
def test_what_is_no_chain(other, hint):
    for run in runs_of(other(sdesam.problems.quadratic(samples=3))).values():
        with pytest.raises(TypeError, match=f"takes a sdesam.Chain, {hint}"):
            run()


@pytest.mark.parametrize("name", ["lr", "rho", "eps"])
def test_numbers_of_a_chain_are_known(name):
    problem = sdesam.problems.torus(dim=2, samples=3)
    for traced in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(
            TypeError,
            match=f"{name}=.*Tracer.*: it must be a number that is known when it is given",
        ):
            traced(
                lambda value: sdesam.Chain(
                    "sam", problem, **{"lr": 0.1, "rho": 0.1, "eps": 0.1, name: value}
                )
            )(jnp.ones(2) if traced is jax.vmap else 1.0)
    for value in (lambda k: 0.1, "0.1", True, np.ones(1), [0.1], None if name != "rho" else "x"):
        with pytest.raises(TypeError, match=f"{name}=.*: it must be a finite number"):
            sdesam.Chain("sam", problem, **{"lr": 0.1, "rho": 0.1, "eps": 0.1, name: value})
    for value in (jnp.float32(0.1), np.float64(0.1), jnp.bfloat16(0.1)):
        sdesam.Chain("sam", problem, **{"lr": 0.1, "rho": 0.1, "eps": 0.1, name: value})


def test_sizes_of_a_chain_are_known():
    problem = sdesam.problems.torus(dim=2, samples=3)
    with pytest.raises(TypeError, match=r"batch=.*Tracer.*: it must be a number that is known"):
        jax.jit(lambda b: sdesam.Chain("sgd", problem, 0.1, batch=b))(2)
    with pytest.raises(TypeError, match=r"batch=array\(\[1, 2\]\): it must be a whole number"):
        sdesam.Chain("sgd", problem, 0.1, batch=np.array([1, 2]))
    with pytest.raises(TypeError, match="replace='no': it must be True"):
        sdesam.Chain("sgd", problem, 0.1, replace="no")
