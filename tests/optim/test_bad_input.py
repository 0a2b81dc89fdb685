"""What does not fit is refused in one sentence, while it is traced and before any step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdesam import NormEstimate, optim
from tests.optim.test_training import BATCH, DATA, START, loss, losses, momentum

SGD = optax.sgd(0.1)
NO_WORK = jax.eval_shape  # traces, computes nothing


def refused(match, make, kind=ValueError):
    with pytest.raises(kind, match=match) as raised:
        make()
    assert "\n" not in str(raised.value).split("\n---")[0]  # jax may add a note on its traceback


@pytest.mark.parametrize(
    ("match", "make"),
    [
        (
            "lam=-1: it must be a finite number of at least 0",
            lambda: optim.rw_sam(losses, SGD, 0.1, -1),
        ),
        ("rw-sam needs lam", lambda: optim.rw_sam(losses, SGD, 0.1, None)),
        ("rho=-0.1: it must be", lambda: optim.sam(loss, SGD, -0.1)),
        ("sam needs rho", lambda: optim.sam(loss, SGD, None)),
        ("eps=-1: it must be", lambda: optim.n_sam(loss, SGD, 0.1, eps=-1)),
        (
            "delta=0: it must be a finite number above 0",
            lambda: optim.rw_sam(losses, SGD, 0.1, 1.0, norms=NormEstimate(delta=0)),
        ),
        ("micro=0: it must be at least 1", lambda: optim.m_sam(loss, SGD, 0.1, 0)),
        ("m_sam needs micro", lambda: optim.m_sam(loss, SGD, 0.1, None)),
        (
            "unknown way to run groups 'scan': the valid names are vmap, accumulate",
            lambda: optim.m_sam(loss, SGD, 0.1, 2, groups="scan"),
        ),
        (
            "micro=2: sam has no micro-batches",
            lambda: optim.Optimizer("sam", loss, SGD, 0.1, micro=2),
        ),
        ("unknown variant 'assam'", lambda: optim.Optimizer("assam", loss, SGD, 0.1)),
    ],
)
def test_numbers_and_names(match, make):
    refused(match, make)


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("loss=0.1: it must be a function", lambda: optim.sam(0.1, SGD, 0.1)),
        ("optimizer=0.1: it must be an optax optimizer", lambda: optim.sam(loss, 0.1, 0.1)),
        (
            r"params\['n'\] is int32\[\]: parameters must be floating-point",
            lambda: optim.sam(loss, SGD, 0.1).init({"n": jnp.array(1)}),
        ),
        (r"params\['f'\] is <function", lambda: optim.sam(loss, SGD, 0.1).init({"f": loss})),
    ],
)
def test_kinds(match, make):
    refused(match, make, TypeError)


def test_delta_below_rounding():
    fine = NormEstimate(delta=1e-9)
    refused(
        "delta=1e-09 is below the rounding level 1e-07 of float32",
        lambda: optim.rw_sam(losses, SGD, 0.1, 1.0, norms=fine).init(START),
    )
    with jax.enable_x64(True):
        optim.rw_sam(losses, SGD, 0.1, 1.0, norms=fine).init(jnp.zeros(3, jnp.float64))
    optim.rw_sam(losses, SGD, 0.1, 1.0, norms=NormEstimate("exact", delta=1e-9)).init(START)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), START)
    refused(
        "rounding level 0.008 of bfloat16", lambda: optim.rw_sam(losses, SGD, 0.1, 1.0).init(half)
    )
    mixed = {"W": jnp.asarray(START["W"], jnp.bfloat16), "v": START["v"]}
    refused("of bfloat16", lambda: optim.rw_sam(losses, SGD, 0.1, 1.0).init(mixed))
    opt = optim.rw_sam(lambda p, b: losses(p, b).astype(jnp.bfloat16), SGD, 0.1, 1.0)
    refused(
        "of bfloat16",
        lambda: NO_WORK(lambda: opt.step(START, opt.init(START), BATCH, key=jax.random.key(0))),
    )


def step(opt, *more, params=START, state=None, batch=BATCH, **keywords):
    return lambda: NO_WORK(
        lambda: opt.step(
            params, opt.init(params) if state is None else state, batch, *more, **keywords
        )
    )


def test_batches_and_losses():
    refused(
        "micro=5 does not divide the 12 samples in the batch: choose one of 1, 2, 3, 4, 6, 12",
        step(optim.m_sam(loss, SGD, 0.1, 5)),
    )
    refused(
        "share a leading axis, the sample, but .* lengths .12, 24.",
        step(optim.m_sam(loss, SGD, 0.1, 2), batch={**BATCH, "target": DATA["target"]}),
    )
    key = jax.random.key(0)
    refused(
        "one value for each sample, shape .b,., not their mean",
        step(optim.rw_sam(loss, SGD, 0.1, 1.0), key=key),
    )
    classes = optim.rw_sam(lambda p, b: losses(p, b)[:3], SGD, 0.1, 1.0)
    refused(
        "the loss gives 3 values for a batch of 12 samples: rw-sam weighs samples",
        step(classes, key=key),
    )
    refused(
        "the loss gives 1 values for a batch of 12 samples",
        step(optim.rw_sam(lambda p, b: losses(p, b).mean(keepdims=True), SGD, 0.1, 1.0), key=key),
    )
    step(
        optim.rw_sam(lambda p, b: losses(p, b["samples"]) * b["scale"], SGD, 0.1, 1.0),
        batch={"samples": BATCH, "scale": jnp.array(2.0)},
        key=key,
    )()
    refused(
        "the loss gives tuple: .* say has_aux=True",
        step(optim.sam(lambda p, b: (loss(p, b), 1), SGD, 0.1)),
        TypeError,
    )
    refused(
        r"has_aux=True: the loss must give \(loss, aux\)",
        step(optim.sam(loss, SGD, 0.1, has_aux=True)),
        TypeError,
    )
    refused(
        r"the loss gives float32\[12, 1\]: it must be one",
        step(optim.sam(lambda p, b: losses(p, b)[:, None], SGD, 0.1)),
        TypeError,
    )


def test_keys():
    refused(
        "rw-sam estimates norms along random directions: give a key",
        step(optim.rw_sam(losses, SGD, 0.1, 1.0)),
    )
    refused(
        "has_key=True: the loss is random and needs a key",
        step(optim.sam(loss, SGD, 0.1, has_key=True)),
    )
    refused("key: nothing here is random", step(optim.sam(loss, SGD, 0.1), key=jax.random.key(0)))
    refused(
        "key must be one jax random key",
        step(optim.rw_sam(losses, SGD, 0.1, 1.0), key=3),
        TypeError,
    )


def test_states():
    sam, usam = optim.sam(loss, momentum(), 0.1), optim.usam(loss, momentum(), 0.1)
    refused(
        "the state is that of usam, and this is sam: make one with init",
        step(sam, state=usam.init(START)),
    )
    refused("state is a tuple: it must be what init", step(sam, state=(1, 2)), TypeError)
    wider = {"W": np.zeros((5, 7), np.float32), "v": np.zeros(7, np.float32)}
    refused(
        r"state.inner\[0\].trace\['W'\] has shape \[5, 7\], but these parameters need \[5, 4\]",
        step(sam, state=sam.init(wider)),
    )
    refused(
        "does not have the structure that these parameters need",
        step(sam, state=sam.init({"W": START["W"]})),
    )
    refused(
        "does not have the structure",
        step(sam, state=optim.sam(loss, optax.adam(0.1), 0.1).init(START)),
    )
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), START)
    refused(
        r"state.inner\[0\].trace\['W'\] is of bfloat16, but these parameters need float32",
        step(sam, state=sam.init(half)),
    )
    adam = optim.sam(loss, optax.adam(0.1), 0.1)
    counted = jax.tree.map(
        lambda leaf: leaf.astype(float) if leaf.dtype == jnp.int32 else leaf, adam.init(START).inner
    )
    refused(
        r"count is of float32, but these parameters need int32",
        step(adam, state=optim.State(jnp.array(0), counted, "sam")),
    )
    # some optax optimizers go over to float32 with their first step
    injected = optim.sam(loss, optax.inject_hyperparams(optax.adam)(0.1), 0.1)
    _, state, _ = jax.eval_shape(lambda: injected.step(half, injected.init(half), BATCH))
    jax.eval_shape(lambda state: injected.step(half, state, BATCH), state)
    refused("update needs the parameters", lambda: sam.update(None, sam.init(START), batch=BATCH))


def test_the_gradient_of_the_data_set():
    refused(
        "n-sam needs the gradient of the data set: give whole=", step(optim.n_sam(loss, SGD, 0.1))
    )
    refused("whole: sam does not use", step(optim.sam(loss, SGD, 0.1), whole=START))
    refused(
        "whole does not have the structure of params",
        step(optim.dnsam(loss, SGD, 0.1), whole={"W": START["W"]}),
    )
    refused(
        "chunk=0: it must be at least 1",
        lambda: optim.n_sam(loss, SGD, 0.1).whole_gradient(START, DATA, chunk=0),
    )


@pytest.mark.parametrize("params", [0.5, {"a": 0.5}, [np.float32(1), 0.5]])
def test_a_python_float_is_told_to_be_an_array(params):
    opt = optim.sam(lambda p, batch: jnp.sum(batch), SGD, rho=0.1)
    match = r"is the Python float 0\.5: .* such as jnp\.asarray\(0\.5\)$"
    refused(match, lambda: opt.init(params), TypeError)
