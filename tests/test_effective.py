"""The effective micro-batch against plain numpy over all batches, and against what theory says
where it can be solved.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.verify import effective
from tests.brute_force import Polynomials, batches
from tests.sde.test_enumeration import polynomial_loss

EXACT = sdesam.NormEstimate("exact")
N, B, LAM = 4, 3, 0.7


def responses(losses, x, replace, eps, lam, weighted=False):
    """`A . grad S` of m-SAM for m = 1, 2, b and the whole data set, and of RW-SAM: numpy, all
    batches listed.
    """
    g, H = losses.g(x), losses.H(x)

    def unit(v):
        return v / np.sqrt(v @ v + eps**2)

    A1 = np.mean([h @ unit(v) for h, v in zip(H, g, strict=True)], axis=0)
    whole = H.mean(0) @ unit(g.mean(0))
    w = A1 - whole

    def m_sam(m):
        return np.mean(
            [
                w @ H[list(part)].mean(0) @ unit(g[list(part)].mean(0))
                for part in batches(N, m, replace)
            ]
        )

    def rw_sam(batch):
        members = list(batch)
        p = np.exp(lam * np.linalg.norm(g[members], axis=1))
        p /= p.sum()
        q = p if weighted else np.full(len(p), 1 / len(p))
        return w @ np.einsum("i,ijk->jk", q, H[members]) @ unit(p @ g[members])

    family = {m: m_sam(m) for m in (1, 2, B)}
    return family, w @ whole, np.mean([rw_sam(batch) for batch in batches(N, B, replace)])


@pytest.mark.parametrize(("replace", "eps"), [(True, 0.0), (False, 0.3)])
def test_against_all_batches_listed(replace, eps):
    """Within 4 standard errors: 6e-5 each; four numbers in each case."""
    losses, x = Polynomials.random(N, 2, seed=4), np.array([-0.5, 0.6])
    with jax.enable_x64(True):
        problem = sdesam.FiniteSum(polynomial_loss, vars(losses), x)
        found = sdesam.effective_micro_batch(
            problem,
            x,
            batch=B,
            lam=LAM,
            norms=EXACT,
            eps=eps,
            replace=replace,
            key=jax.random.key(1),
            batches=4000,
        )
    family, whole, rw = responses(losses, x, replace, eps, LAM)
    for m in (1, 2):
        at = found.sizes.index(m)
        assert abs(found.family[at] - family[m]) < 4 * found.family_stderr[at]
    np.testing.assert_allclose(found.family[-1], whole, rtol=1e-12)
    share = (rw - family[B]) / (family[1] - family[B])
    weighted = (responses(losses, x, replace, eps, LAM, weighted=True)[2] - family[B]) / (
        family[1] - family[B]
    )
    assert found.step.stderr < 0.02
    assert abs(found.step.share - share) < 4 * found.step.stderr
    assert abs(found.weighted.share - weighted) < 4 * found.weighted.stderr
    # controls: another lambda, and the other reading
    other = (responses(losses, x, replace, eps, 2 * LAM)[2] - family[B]) / (family[1] - family[B])
    assert abs(found.step.share - other) > 8 * found.step.stderr
    assert abs(found.step.share - weighted) > 8 * found.step.stderr


def diagonal(x, signs):
    return 0.5 * jnp.sum(signs * x**2)


def test_where_noise_dominates_it_is_b_squared_over_the_effective_samples():
    """`f_i = x^T D_i x / 2`, `D_i` random signs and their negatives: gbar = 0, gradients of one
    length and nearly orthogonal, so that Rademacher norms are random weights. Then m-SAM's response
    goes like `1/sqrt(m)` and RW-SAM's like `E sqrt(N)/b`, with the descent gradient weighted too
    like `E 1/sqrt(N)`: `m_eff = b^2/(E sqrt(N))^2` and `1/(E 1/sqrt(N))^2`. That `E N` stands for
    both costs 1 and 4 % here (Jensen), what is left of inner products `b/d`, 2 %, and the standard
    error is 1 %."""
    d, b = 400, 8
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(128, d))
    problem = sdesam.FiniteSum(
        diagonal, np.concatenate([signs, -signs]).astype(np.float32), np.ones(d, np.float32)
    )
    found = sdesam.effective_micro_batch(
        problem, problem.x0, batch=b, lam=0.05, key=jax.random.key(0), batches=512
    )
    assert 1.5 < found.samples < 0.8 * b
    assert found.step.micro == pytest.approx(b**2 / found.samples, rel=0.05)
    assert found.weighted.micro == pytest.approx(found.samples, rel=0.08)
    assert found.step.low > b > found.weighted.high
    assert "samples carry the weight" in str(found)
    # without weights it is SAM, on the same draws to rounding
    plain = sdesam.effective_micro_batch(
        problem, problem.x0, batch=b, lam=0.0, key=jax.random.key(0), batches=512
    )
    assert abs(plain.step.share) < 1e-5
    assert plain.step.micro == pytest.approx(b, rel=1e-3)
    assert plain.samples == pytest.approx(b)
    assert np.array_equal(plain.family, found.family)


SIZES = (1, 2, 4, 8)


def summary(step, family=None, replace=True, noise=None):
    """What is made of blocks whose responses are known: the family's is `1 + 2 sqrt(c_m)`, SAM's
    that at m = 4; `noise` by column, 400 blocks.
    """
    n = 20
    c = [1 / m if replace else (n - m) / (m * (n - 1)) for m in SIZES]
    family = 1 + 2 * np.sqrt(c) if family is None else np.array(family)
    row = np.array([*family, family[2], step, 2.0, 3.5])
    values = np.tile(row, (400, 1))
    if noise is not None:
        rng = np.random.default_rng(5)
        values = values + np.array(noise) * rng.normal(size=values.shape)
    layout = effective._Layout(None, 1, n, 4, 8, replace, EXACT, SIZES)
    return effective._summary(layout, values, 1.0)


@pytest.mark.parametrize("replace", [True, False])
def test_the_size_is_read_off_the_family(replace):
    """Where the response is linear in `sqrt(c_m)` the interpolation is exact, between sizes and
    beyond the block: `c_m` solved for m by hand.
    """
    for c in (1.0, 0.6, 0.25, 0.1, 0.02):
        found = summary(1 + 2 * np.sqrt(c), replace=replace).step
        m = 1 / c if replace else 20 / (1 + 19 * c)
        assert (found.micro, found.low, found.high) == pytest.approx((m, m, m))
        one, batch = 3.0, 1 + 2 * np.sqrt(1 / 4 if replace else 16 / (4 * 19))
        assert found.share == pytest.approx((1 + 2 * np.sqrt(c) - batch) / (one - batch))
        assert found.stderr == pytest.approx(0, abs=1e-9)
    assert summary(3.1, replace=replace).step.micro == 0, "more than m = 1"
    assert summary(0.9, replace=replace).step.micro == np.inf, "less than the whole data set"
    assert summary(2.0).samples == pytest.approx(3.5)
    assert summary(2.0, replace=replace).sizes == (*SIZES, np.inf if replace else 20)


def test_the_interval_of_the_size_is_one_of_95_per_cent():
    """Noise in the response alone: the ends are as far from it as 1.96 of its standard errors,
    within what 500 resamples and 400 blocks tell.
    """
    noise = [0, 0, 0, 0, 0, 0.4, 0, 0]
    found = summary(2.0, noise=noise)
    error = 0.4 / np.sqrt(400)
    low, high = (1 + 2 / np.sqrt(m) for m in (found.step.high, found.step.low))
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.2)
    # the responses of m = 1 and m = 4 are 1 apart
    assert found.step.stderr == pytest.approx(error / 1.0, rel=0.15)
    assert found.step.low < found.step.micro < found.step.high


def test_no_size_where_the_family_does_not_fall_or_is_not_told_apart():
    """Each condition alone; what is within four standard errors speaks against nothing."""
    rising = [3.0, 2.4, 2.0, 2.1]
    assert np.isnan(summary(2.0, family=rising).step.micro)
    assert np.isfinite(
        summary(2.0, family=rising, noise=[0, 0, 0.8, 0.8, 0, 0, 0, 0]).step.micro
    ), "0.1, of 0.06"
    assert np.isnan(summary(2.0, family=rising, noise=[0, 0, 0.2, 0.2, 0, 0, 0, 0]).step.micro), (
        "0.1, of 0.014"
    )
    assert np.isnan(summary(2.0, family=[3.0, 2.4, 2.0, 0.9]).step.micro), "the data set's is 1"
    assert np.isnan(summary(2.0, noise=[6.0, 0, 0, 0, 0, 0, 0, 0]).step.micro), (
        "m = 1 and m = b differ by 1, of 0.3"
    )
    assert np.isfinite(summary(2.0, noise=[3.0, 0, 0, 0, 0, 0, 0, 0]).step.micro), "by 1, of 0.15"


def test_bad_input():
    problem = sdesam.problems.torus(dim=2, samples=6)
    numbers = {"batch": 4, "lam": 1.0, "key": jax.random.key(0)}
    for change, error, message in [
        ({"batch": 1}, ValueError, "choose batch >= 2"),
        ({"lam": -1.0}, ValueError, "lam=-1.0: it must be a finite number of at least 0"),
        ({"batch": 7, "replace": False}, ValueError, "batch=7 exceeds the 6 samples"),
        ({"batches": 10}, ValueError, "batches=10: choose at least 64"),
        ({"key": 0}, TypeError, "key must be one jax random key"),
        ({"along": np.zeros(2, np.float32)}, ValueError, "along is zero or not finite"),
    ]:
        with pytest.raises(error, match=message):
            sdesam.effective_micro_batch(problem, problem.x0, **(numbers | change))
    with pytest.raises(ValueError, match="they must be like the start"):
        sdesam.effective_micro_batch(problem, np.zeros(3), **numbers)
