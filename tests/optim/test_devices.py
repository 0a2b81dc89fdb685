"""One batch on two devices: perturbations that stay local, or are synchronised, against the same on
one device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sdesam import NormEstimate, optim
from tests.optim.test_training import BATCH, START, adam, close, gap, losses, momentum, with_noise

KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))


def loss_and_residual(params, batch):
    values = losses(params, batch)
    return values, {
        "mean": jnp.mean(batch["target"]),
        "count": jnp.max(jnp.round(10 * batch["target"]).astype(int)),
    }


def spread(opt, mesh, how="shard_map", **more):
    """`opt.step` on two devices, each with half of the batch."""

    def step(params, state, batch):
        return opt.step(params, state, batch, **more)

    if how == "pmap":
        halves = jax.tree.map(lambda leaf: leaf.reshape(2, 6, *leaf.shape[1:]), BATCH)
        out = jax.pmap(step, axis_name="device", in_axes=(None, None, 0))(
            START, opt.init(START), halves
        )
        for leaf in jax.tree.leaves(out):  # the same on both devices
            np.testing.assert_array_equal(leaf[0], leaf[1])
        return jax.tree.map(lambda leaf: leaf[0], out)
    checked = how == "shard_map"
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(), P("device")), out_specs=P(), check_vma=checked
    )
    return jax.jit(mapped)(START, opt.init(START), BATCH)


def alone(opt, **more):
    return jax.jit(opt.step)(START, opt.init(START), BATCH, **more)


def same(one, other):
    close(one[0], other[0], rtol=2e-5, atol=1e-6)
    close(one[1].inner, other[1].inner, rtol=2e-5, atol=1e-6)
    close(one[2], other[2], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["shard_map", "shard_map unchecked", "pmap"])
def test_local_perturbations_are_m_sam(mesh, how):
    """SAM on two devices with local perturbations IS m-SAM with m the half of a device, keys and
    auxiliary values included.
    """
    flags = {"has_aux": True, "has_key": True}
    local = optim.sam(with_noise, adam(), 0.3, axis_name="device", perturbation="local", **flags)
    found = spread(local, mesh, how, key=KEY)
    same(found, alone(optim.m_sam(with_noise, adam(), 0.3, 6, **flags), key=KEY))


def test_micro_batches_within_devices(mesh):
    flags = {"has_aux": True, "has_key": True}
    one = alone(optim.m_sam(with_noise, momentum(), 0.3, 2, **flags), key=KEY)
    for groups in ("vmap", "accumulate"):
        same(
            spread(
                optim.m_sam(
                    with_noise, momentum(), 0.3, 2, groups=groups, axis_name="device", **flags
                ),
                mesh,
                key=KEY,
            ),
            one,
        )


@pytest.mark.parametrize("how", ["shard_map", "shard_map unchecked"])
@pytest.mark.parametrize("name", ["usam", "sam", "dnsam", "rw-sam", "rw-sam exact"])
def test_synchronised_perturbations_are_those_of_one_device(mesh, name, how):
    def made(**more):
        shared = {"has_aux": True, **more}
        if name.startswith("rw-sam"):
            norms = NormEstimate("exact") if name == "rw-sam exact" else None
            return optim.rw_sam(
                loss_and_residual,
                momentum(),
                0.3,
                2.0,
                norms=norms,
                eps=0.5 if norms else 0.0,
                **shared,
            )
        return {"usam": optim.usam, "sam": optim.sam, "dnsam": optim.dnsam}[name](
            loss_and_residual, momentum(), 0.3, **shared
        )

    more = {"key": KEY} if name == "rw-sam" else {}
    if name == "dnsam":
        more["whole"] = jax.tree.map(lambda leaf: 0.1 * leaf, START)
    one = alone(made(), **more)
    both = spread(made(axis_name="device", perturbation="synchronised"), mesh, how, **more)
    # a difference quotient of float32 losses has 1e-4 of rounding
    close(both[0], one[0], rtol=2e-3, atol=2e-4) if name == "rw-sam" else same(both, one)
    close(both[2], one[2], rtol=1e-5)
    if how == "shard_map":  # control: local perturbations give another step
        assert (
            gap(spread(made(axis_name="device", perturbation="local"), mesh, **more)[0], one[0])
            > 5e-4
        )


def test_the_gradient_of_a_data_set_on_two_devices(mesh):
    opt = optim.n_sam(losses, momentum(), 0.3, axis_name="device")

    def step(params, state, batch):
        return opt.step(params, state, batch, whole=opt.whole_gradient(params, batch, chunk=4))

    both = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("device")), out_specs=P()))(
        START, opt.init(START), BATCH
    )
    # the data set is the batch: n-SAM is SAM
    same(both, alone(optim.sam(losses, momentum(), 0.3)))


def test_a_batch_spread_over_devices_under_jit(mesh):
    """No axis name: `jit` divides the work, and the step is that of the whole batch, for any number
    of micro-batches.
    """
    sharded = jax.device_put(BATCH, NamedSharding(mesh, P("device")))
    for opt in (optim.sam(losses, momentum(), 0.3), optim.m_sam(losses, momentum(), 0.3, 4)):
        assert len(jax.tree.leaves(sharded)[0].sharding.device_set) == 2
        same(jax.jit(opt.step)(START, opt.init(START), sharded), alone(opt))


def test_bad_input(mesh):
    with pytest.raises(
        ValueError, match=r"perturbation='local' .* or together, perturbation='synchronised'"
    ):
        optim.sam(losses, momentum(), 0.3, axis_name="device")
    with pytest.raises(
        ValueError, match=r"unknown perturbation 'synchronized': .*; did you mean 'synchronised'"
    ):
        optim.sam(losses, momentum(), 0.3, axis_name="device", perturbation="synchronized")
    with pytest.raises(ValueError, match=r"perturbation='local': .* give axis_name too"):
        optim.sam(losses, momentum(), 0.3, perturbation="local")
    with pytest.raises(ValueError, match="perturbation='synchronised': m-usam leaves no choice"):
        optim.usam(
            losses, momentum(), 0.3, micro=2, axis_name="device", perturbation="synchronised"
        )
    with pytest.raises(
        ValueError,
        match=(
            r"micro=4 does not divide the 6 samples that a device holds of the batch .*: choose one"
            r" of 1, 2, 3, 6"
        ),
    ):
        spread(optim.m_sam(losses, momentum(), 0.3, 4, axis_name="device"), mesh)


@pytest.mark.parametrize("how", ["shard_map", "shard_map unchecked"])
def test_a_random_key_among_auxiliary_values_is_that_of_the_first_device(mesh, how):
    def keyed(params, batch, key):
        return jnp.mean(losses(params, batch)), jax.random.fold_in(key, 7)

    opt = optim.sam(
        keyed, momentum(), 0.1, has_aux=True, has_key=True, axis_name="device", perturbation="local"
    )
    found = spread(opt, mesh, how, key=KEY)[2].aux
    first = jax.random.fold_in(jax.random.split(KEY)[0], 0)
    np.testing.assert_array_equal(
        jax.random.key_data(found), jax.random.key_data(jax.random.fold_in(first, 7))
    )
