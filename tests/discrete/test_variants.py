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
from sdesam.exact import one_step
from sdesam.exact.quadratic import Quadratic

M_DNSAM = Variant("m-dnsam", "m-DNSAM", "micro-batch", True, "", "", normaliser="data set")
SIZES = {"lr": 0.1, "rho": 0.2, "batch": 4, "micro": 2, "eps": 0.1}


def declared(**fields):
    return Variant(
        **{
            "name": "mine",
            "title": "",
            "perturbation": "micro-batch",
            "micro": False,
            "summary": "",
            "source": "",
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"normaliser": "owm"},
            (
                "unknown normaliser 'owm': the valid names are none, own, data set; did you mean"
                " 'own'?"
            ),
        ),
        (
            {"perturbation": "microbatch"},
            "unknown perturbation 'microbatch': .* did you mean 'micro-batch'?",
        ),
        (
            {"perturbation": "friendly"},
            (
                "unknown perturbation 'friendly': .*; a rule of another kind cannot be declared,"
                " but its SDE can be"
            ),
        ),
        (
            {"perturbation": lambda *gradients: 0},
            "unknown perturbation <function .*; a rule of another kind cannot be declared",
        ),
        ({"perturbation": None}, "unknown perturbation None"),
        (
            {"weights": "Gibbs"},
            "unknown weights 'Gibbs': the valid names are equal, gibbs; did you mean 'gibbs'?",
        ),
        ({"weights": ["equal"]}, "unknown weights"),
        ({"name": ""}, "name='': a variant needs a name"),
        (
            {"perturbation": "none", "normaliser": "own"},
            "normaliser='own': mine has no perturbation to normalise; leave normaliser out",
        ),
        (
            {"perturbation": "none", "micro": True},
            "micro=True: with perturbation='none' all micro-batches of mine move alike",
        ),
        (
            {"perturbation": "data set", "micro": True},
            "micro=True: with perturbation='data set' all micro-batches of mine move alike",
        ),
        (
            {"perturbation": "none", "weights": "gibbs"},
            "weights='gibbs': they weigh the samples of a micro-batch",
        ),
        (
            {"perturbation": "data set", "weights": "gibbs"},
            "weights='gibbs': they weigh the samples of a micro-batch",
        ),
    ],
)
def test_contradictions_and_misprints(fields, message):
    with pytest.raises(ValueError, match=message) as raised:
        declared(**fields)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=message):
        replace(declared(), **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"micro": "no"},
        {"micro": 1},
        {"micro": None},
        {"name": 3},
        {"title": None},
        {"source": ["a paper"]},
    ],
)
def test_fields_of_another_type(fields):
    (name,) = fields
    with pytest.raises(TypeError, match=f"^{name}=.*: it must be"):
        declared(**fields)


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
        == {
            "perturbation": "micro-batch",
            "normaliser": "data set",
            "weights": "equal",
            "micro": True,
        }
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
    other = replace(M_DNSAM, normaliser="own")
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
    # a registered name for another rule, and the rule of one name under another's
    bare = replace(VARIANTS["sam"], normaliser="none")
    assert sdesam.derive(bare) == sdesam.derive("usam")
    assert sdesam.Chain(bare, problem, 0.1, 0.1).config["rule"]["normaliser"] == "none"


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
