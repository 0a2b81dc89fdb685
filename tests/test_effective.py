"""The effective micro-batch against plain numpy over all batches, and against what theory says where it can be solved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from tests.brute_force import Polynomials, batches
from tests.sde.test_enumeration import polynomial_loss

EXACT = sdesam.NormEstimate("exact")
N, B, LAM = 4, 3, 0.7


def responses(losses, x, replace, eps, lam, weighted=False):
    """`A . grad S` of m-SAM for m = 1, 2, b and the whole data set, and of RW-SAM: numpy, all batches listed."""
    g, H = losses.g(x), losses.H(x)

    def unit(v):
        return v / np.sqrt(v @ v + eps**2)

    A1 = np.mean([h @ unit(v) for h, v in zip(H, g, strict=True)], axis=0)
    whole = H.mean(0) @ unit(g.mean(0))
    w = A1 - whole

    def m_sam(m):
        return np.mean([w @ H[list(part)].mean(0) @ unit(g[list(part)].mean(0)) for part in batches(N, m, replace)])

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
        found = sdesam.effective_micro_batch(problem, x, batch=B, lam=LAM, norms=EXACT, eps=eps, replace=replace, key=jax.random.key(1), batches=4000)
    family, whole, rw = responses(losses, x, replace, eps, LAM)
    for m in (1, 2):
        at = found.sizes.index(m)
        assert abs(found.family[at] - family[m]) < 4 * found.family_stderr[at]
    np.testing.assert_allclose(found.family[-1], whole, rtol=1e-12)
    share = (rw - family[B]) / (family[1] - family[B])
    weighted = (responses(losses, x, replace, eps, LAM, weighted=True)[2] - family[B]) / (family[1] - family[B])
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
    """`f_i = x^T D_i x / 2`, `D_i` random signs and their negatives: gbar = 0, gradients of one length and nearly orthogonal, so that Rademacher
    norms are random weights. Then m-SAM's response goes like `1/sqrt(m)` and RW-SAM's like `E sqrt(N)/b`, with the descent gradient weighted
    too like `E 1/sqrt(N)`: `m_eff = b^2/(E sqrt(N))^2` and `1/(E 1/sqrt(N))^2`. That `E N` stands for both costs 1 and 4 % here (Jensen), what
    is left of inner products `b/d`, 2 %, and the standard error is 1 %."""
    d, b = 400, 8
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(128, d))
    problem = sdesam.FiniteSum(diagonal, np.concatenate([signs, -signs]).astype(np.float32), np.ones(d, np.float32))
    found = sdesam.effective_micro_batch(problem, problem.x0, batch=b, lam=0.05, key=jax.random.key(0), batches=512)
    assert 1.5 < found.samples < 0.8 * b
    assert found.step.micro == pytest.approx(b**2 / found.samples, rel=0.05)
    assert found.weighted.micro == pytest.approx(found.samples, rel=0.08)
    assert found.step.low > b > found.weighted.high
    assert "samples carry the weight" in str(found)
    # without weights it is SAM, on the same draws to rounding
    plain = sdesam.effective_micro_batch(problem, problem.x0, batch=b, lam=0.0, key=jax.random.key(0), batches=512)
    assert abs(plain.step.share) < 1e-5
    assert plain.step.micro == pytest.approx(b, rel=1e-3)
    assert plain.samples == pytest.approx(b)
    assert np.array_equal(plain.family, found.family)


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
