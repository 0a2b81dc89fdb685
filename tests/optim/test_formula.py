"""One step of each optimizer against its formula, written out in numpy on three parameters with
gradients by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sdesam
from sdesam import NormEstimate, optim
from sdesam.optim import kernel

LR, RHO, LAM, DELTA = 0.1, 0.7, 1.5, 1e-3
RNG = np.random.default_rng(0)
DATA = {"a": RNG.normal(size=(6, 3)), "c": RNG.normal(size=(6, 3))}
BATCH = {name: values[:4] for name, values in DATA.items()}
X = np.array([0.3, -0.8, 0.5])
Z = np.array([1.0, -1.0, -1.0])


def losses(params, batch):
    """`f_i(x) = (a_i . x)^2 / 2 + sum_j c_ij cos x_j`, `x = (w, b)`."""
    x = jnp.append(params["w"], params["b"])
    return (batch["a"] @ x) ** 2 / 2 + batch["c"] @ jnp.cos(x)


def mean_loss(params, batch):
    return jnp.mean(losses(params, batch))


def tree(x):
    return {"w": jnp.asarray(x[:2]), "b": jnp.asarray(x[2])}


def flat(params):
    return np.append(params["w"], params["b"])


def f(x, batch=BATCH):
    return (batch["a"] @ x) ** 2 / 2 + batch["c"] @ np.cos(x)


def g(x, batch=BATCH):
    """The gradient of each sample."""
    return batch["a"] * (batch["a"] @ x)[:, None] - batch["c"] * np.sin(x)


def unit(v, w, eps):
    return v / np.sqrt(w @ w + eps**2)


def gibbs(nu):
    weights = np.exp(LAM * nu)
    return weights / weights.sum()


def by_hand(name, eps):
    """`x - lr G`, from the table of docs/theory.md, section 1."""
    gbar, own = g(X, DATA).mean(0), g(X).mean(0)
    if name.startswith("m-"):
        halves = [{k: v[s] for k, v in BATCH.items()} for s in (slice(0, 2), slice(2, 4))]
        own_I = [g(X, half).mean(0) for half in halves]
        u = own_I if name == "m-usam" else [unit(v, v, eps) for v in own_I]
        return X - LR * np.mean(
            [g(X + RHO * u_I, half).mean(0) for half, u_I in zip(halves, u, strict=True)], axis=0
        )
    u = {
        "usam": lambda: own,
        "sam": lambda: unit(own, own, eps),
        "n-sam": lambda: unit(gbar, gbar, eps),
        "dnsam": lambda: unit(own, gbar, eps),
        "rw-sam exact": lambda: unit(v := gibbs(np.linalg.norm(g(X), axis=1)) @ g(X), v, eps),
        "rw-sam": lambda: unit(v := gibbs(abs(f(X + DELTA * Z) - f(X)) / DELTA) @ g(X), v, eps),
        "rw-sam square": lambda: unit(
            v := gibbs(((f(X + DELTA * Z) - f(X)) / DELTA) ** 2) @ g(X), v, eps
        ),
    }[name]()
    return X - LR * g(X + RHO * u).mean(0)


def made(name, eps):
    sgd, normal = optax.sgd(LR), {"eps": eps}
    return {
        "usam": lambda: optim.usam(mean_loss, sgd, RHO),
        "m-usam": lambda: optim.usam(mean_loss, sgd, RHO, micro=2),
        "sam": lambda: optim.sam(mean_loss, sgd, RHO, **normal),
        "m-sam": lambda: optim.m_sam(mean_loss, sgd, RHO, 2, **normal),
        "n-sam": lambda: optim.n_sam(mean_loss, sgd, RHO, **normal),
        "dnsam": lambda: optim.dnsam(mean_loss, sgd, RHO, **normal),
        "rw-sam exact": lambda: optim.rw_sam(
            losses, sgd, RHO, LAM, norms=NormEstimate("exact"), **normal
        ),
        "rw-sam": lambda: optim.rw_sam(losses, sgd, RHO, LAM, **normal),
        "rw-sam square": lambda: optim.rw_sam(
            losses, sgd, RHO, LAM, norms=NormEstimate(square=True), **normal
        ),
    }[name]()


NAMES = [
    "usam",
    "m-usam",
    "sam",
    "m-sam",
    "n-sam",
    "dnsam",
    "rw-sam exact",
    "rw-sam",
    "rw-sam square",
]


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_the_formula(name, monkeypatch):
    monkeypatch.setattr(kernel, "direction", lambda norms, x, key: tree(Z))
    with jax.enable_x64(True):
        all_eps = (0.0,) if "usam" in name else (0.0, 0.4)

        def step(opt, x, key):
            key = key if opt.norms is not None and opt.norms.random else None
            whole = opt.whole_gradient(x, DATA) if opt.variant.needs_full_gradient else None
            return opt.step(x, opt.init(x), BATCH, key=key, whole=whole)

        steps = jax.jit(lambda x, key: [step(made(name, eps), x, key) for eps in all_eps])
        for eps, (moved, state, info) in zip(
            all_eps, steps(tree(X), jax.random.key(0)), strict=True
        ):
            # the difference quotient loses digits: 1e-16 / delta
            np.testing.assert_allclose(
                flat(moved),
                by_hand(name, eps),
                rtol=1e-10 if name in ("rw-sam", "rw-sam square") else 1e-13,
            )
            np.testing.assert_allclose(info.loss, f(X).mean(), rtol=1e-14)
            assert int(state.count) == 1


def test_the_formulas_differ():
    """Negative control: a step that mistook a variant, or its eps, for another would miss its own
    formula.
    """
    by_name = {
        (name, eps): by_hand(name, eps)
        for name in NAMES
        for eps in (0.0, 0.4)
        if eps == 0 or "usam" not in name
    }
    results = list(by_name.values())
    for i, one in enumerate(results):
        for other in results[:i]:
            assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize("name", ["sam", "m-sam", "n-sam", "dnsam", "rw-sam exact"])
def test_a_vanishing_gradient_perturbs_nothing(name):
    """At `eps = 0` and `x = 0` every gradient of these losses is 0: so is the step, and no NaN."""
    opt = made(name, 0.0)
    x = tree(np.zeros(3, np.float32))
    whole = tree(np.zeros(3)) if opt.variant.needs_full_gradient else None
    moved, _, _ = jax.jit(opt.step)(x, opt.init(x), BATCH, whole=whole)
    assert (flat(moved) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_parameter_changes_nothing(name):
    """A leaf of no entries, such as the bias of a layer without outputs."""
    opt = made(name, 0.0 if "usam" in name else 0.4)
    key = jax.random.key(0) if opt.norms is not None and opt.norms.random else None

    def step(x):
        whole = opt.whole_gradient(x, DATA) if opt.variant.needs_full_gradient else None
        return opt.step(x, opt.init(x), BATCH, key=key, whole=whole)[0]

    found = jax.jit(step)({**tree(X), "zero": jnp.zeros((0, 3))})
    assert found["zero"].shape == (0, 3)
    np.testing.assert_allclose(flat(found), flat(jax.jit(step)(tree(X))), rtol=1e-6)


def test_a_micro_batch_whose_gradient_vanishes_leaves_the_others_alone():
    with jax.enable_x64(True):
        batch = {"a": np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]), "c": np.zeros((2, 3))}
        x = np.array([2.0, -1.0, 0.5])  # a_1 . x = 0
        opt = optim.m_sam(mean_loss, optax.sgd(LR), RHO, 1)
        moved, _, _ = jax.jit(opt.step)(tree(x), opt.init(tree(x)), batch)
        np.testing.assert_allclose(
            flat(moved), x - LR * np.array([0, 0, 0.5 + RHO]) / 2, rtol=1e-14
        )


def sample_loss(params, sample):
    return losses(params, jax.tree.map(lambda leaf: leaf[None], sample))[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_step_of_a_chain(name):
    """On a finite sum, with the same samples and directions, the optimizer's `G` is the chain's:
    they share the kernel.
    """
    with jax.enable_x64(True):
        opt = made(name, 0.0)
        problem = sdesam.FiniteSum(sample_loss, DATA, tree(X))
        weights = {"lam": LAM, "norms": opt.norms} if opt.norms else {}
        chain = sdesam.Chain(
            opt.variant, problem, lr=LR, rho=RHO, batch=4, micro=opt.micro, **weights
        )
        indices, key = np.array([3, 0, 5, 3]), jax.random.key(3)
        key = key if opt.norms and opt.norms.random else None
        batch = {k: v[indices] for k, v in DATA.items()}

        @jax.jit
        def gradient(x):
            whole = opt.whole_gradient(x, DATA) if opt.variant.needs_full_gradient else None
            return opt.gradient(x, opt.init(x), batch, key=key, whole=whole)

        found = gradient(tree(X))
        wanted = chain.direction(tree(X), indices.reshape(-1, opt.micro or 4), key)
        np.testing.assert_allclose(
            flat(found.gradient), flat(wanted), rtol=1e-9 if key is not None else 1e-13
        )
        if key is not None:  # control: in other directions the weights are others
            other = chain.direction(tree(X), indices.reshape(-1, 4), jax.random.key(5))
            assert np.abs(flat(other) - flat(wanted)).max() > 1e-4
