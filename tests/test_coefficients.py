"""Coefficients read and judged: against numpy over all mini-batches, where nothing cancels and
where everything does.
"""

from functools import partial
from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdesam
from sdesam.sampling import Sampling
from sdesam.verify.coefficients import (
    OTHER,
    SAME,
    Finding,
    Setting,
    compare_coefficients,
    differentiated,
    expand,
    interpolated,
    kept_powers,
    nearer_than_read,
)
from sdesam.verify.coefficients._reading import _limit
from sdesam.verify.hypothesis import Part

POINTS = np.random.default_rng(0).normal(size=(3, 2))


def quadratic_loss(x, sample):
    return 0.5 * x @ sample["H"] @ x - sample["c"] @ x


class Quadratics:
    """`f_i = x^T H_i x / 2 - c_i x` and m-USAM's step on them, in numpy over every ordered
    mini-batch.
    """

    def __init__(self, n, scale=1.0, seed=1, identical=False, linear=False):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(1 if identical else n, 2, 2))
        H, c = root @ root.transpose(0, 2, 1), rng.normal(size=(1 if identical else n, 2))
        if linear:  # no curvature, and a mean gradient that is zero everywhere
            H, c = 0 * H, c - c.mean(axis=0)
        self.n = n
        self.H, self.c = (
            scale * np.broadcast_to(part, (n, *part.shape[1:])).astype(np.float32).astype(float)
            for part in (H, c)
        )
        self.problem = sdesam.FiniteSum(
            quadratic_loss, {"H": self.H, "c": self.c}, np.ones(2), name="quadratics"
        )

    def directions(self, b, m, replace):
        """`G = (A0 + rho A1) x - (a0 + rho a1)` of every mini-batch: lists of these four."""
        for batch in (
            product(range(self.n), repeat=b) if replace else permutations(range(self.n), b)
        ):
            parts = [list(batch[k : k + m]) for k in range(0, b, m)]
            means = [(self.H[part].mean(axis=0), self.c[part].mean(axis=0)) for part in parts]
            yield [
                np.mean(each, axis=0)
                for each in zip(*((H, H @ H, c, H @ c) for H, c in means), strict=True)
            ]

    def fields(self, b, m, replace, tail=lambda lr, rho: 1.0):
        """The SDE of order 2, nothing dropped in rho: the drift and the covariance as jax functions
        of `(lr, rho)`.
        """
        A0, A1, a0, a1 = (
            np.array(part) for part in zip(*self.directions(b, m, replace), strict=True)
        )

        def moments(rho):
            A, a = A0 + rho * A1, a0 + rho * a1
            G = jnp.einsum("qij,pj->pqi", A, POINTS) - a
            away = G - G.mean(axis=1, keepdims=True)
            return G.mean(axis=1), A.mean(axis=0), jnp.einsum("pqi,pqj->pij", away, away) / len(A)

        def drift(lr, rho):
            mean, jacobian, _ = moments(rho)
            return -mean - lr / 2 * tail(lr, rho) * mean @ jacobian.T

        return drift, lambda lr, rho: lr * tail(lr, rho) * moments(rho)[2]

    def findings(self, b, m, replace, drift, covariance, order=(2, 3)):
        setting = Setting(self.problem, Sampling(b, m, replace), POINTS)
        return compare_coefficients(
            [setting],
            [drift and differentiated(drift)],
            [covariance and differentiated(covariance)],
            [self.chain(b, m, replace)],
            order,
        )

    def chain(self, b, m, replace):
        return lambda lr, rho: sdesam.Chain("m-usam", self.problem, lr, rho, b, m, replace)


DEGENERATE = {
    "the mini-batch is the data set": (Quadratics(4), 4, 2, False),
    "the micro-batch too": (Quadratics(4), 4, 4, False),
    "identical samples": (Quadratics(3, identical=True), 2, 1, True),
    "identical samples, subsets": (Quadratics(3, identical=True), 2, 2, False),
    "a gradient that is zero everywhere": (Quadratics(3, linear=True), 2, 1, True),
    "one sample": (Quadratics(1), 2, 1, True),
    "one sample, a subset": (Quadratics(1), 1, 1, False),
    "small": (Quadratics(3, scale=1e-4), 2, 1, True),
    "large": (Quadratics(3, scale=1e4), 2, 1, True),
    "large, and the mini-batch is the data set": (Quadratics(3, scale=1e4), 3, 1, False),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_right_theories_whose_coefficients_vanish_are_right(case):
    """What is left of a coefficient that is zero is rounding, and is not divided by rounding."""
    losses, b, m, replace = DEGENERATE[case]
    drift, covariance = losses.fields(b, m, replace)
    # sums in another order, as somebody else would have them
    shuffled = np.random.default_rng(0).permutation(losses.n)
    losses.H, losses.c = losses.H[shuffled], losses.c[shuffled]
    for finding in losses.findings(b, m, replace, drift, covariance):
        assert finding.status == "confirmed", str(finding)


@pytest.mark.parametrize("case", DEGENERATE)
def test_what_is_stated_in_place_of_zero_is_wrong(case):
    """The control: one per cent more gradient, and noise where there is none, or one per cent more
    of it.
    """
    losses, b, m, replace = DEGENERATE[case]
    drift, covariance = losses.fields(b, m, replace)
    g = np.einsum("nij,pj->pni", losses.H, POINTS) - losses.c
    noise = 0.01 / b * np.einsum("pni,pnj->pij", g, g) / losses.n
    found = losses.findings(
        b,
        m,
        replace,
        lambda lr, rho: drift(lr, rho) + 0.01 * g[:, 0],
        lambda lr, rho: covariance(lr, rho) + lr * noise,
    )
    assert {f.part for f in found if f.power == (0, 0) and f.status == "refuted"} == {
        "drift",
        "covariance",
    }
    vanishing = [f for f in found if f.vanishes and f.status == "refuted"]
    assert all("it must vanish" in str(f) for f in vanishing)
    if not replace and b == losses.n > 1:
        assert [(f.part, f.power) for f in vanishing] == [("covariance", (0, 0))]


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_each_coefficient_is_judged_by_its_own_size(scale):
    """One per cent of one coefficient, on losses so flat or steep that the others are 10^8 times as
    large or small.
    """
    losses = Quadratics(3, scale=scale)
    drift, covariance = losses.fields(2, 1, True)
    setting, chain = Setting(losses.problem, Sampling(2, 1, True), POINTS), losses.chain(2, 1, True)
    for expansion in expand(
        setting, differentiated(drift), differentiated(covariance), chain, (2, 3)
    ):
        for (i, j), right in expansion.right.items():
            if (i, j) in expansion.vanishing:
                continue
            power = i + (expansion.part == "covariance")
            stated = {"drift": drift, "covariance": covariance}
            whole = stated[expansion.part]
            stated[expansion.part] = lambda lr, rho, i=power, j=j, c=right, whole=whole: (
                whole(lr, rho) + 0.01 * c * lr**i * rho**j
            )
            wrong = {
                (f.part, f.power)
                for f in losses.findings(2, 1, True, **stated)
                if f.status == "refuted"
            }
            assert wrong == {(expansion.part, (i, j))}


@pytest.mark.parametrize(
    "tail",
    [
        lambda lr, rho: jnp.exp(lr),
        lambda lr, rho: (1 + lr) ** -4,
        lambda lr, rho: 1 / (1 - 0.5 * lr),
        lambda lr, rho: jnp.expm1(lr) / lr,  # 0/0 at lr = 0
        lambda lr, rho: jnp.cos(3 * lr * rho) + lr * rho**3,
        lambda lr, rho: jnp.exp(40 * lr),
    ],
)
def test_higher_powers_leave_the_coefficients_right(tail):
    losses = Quadratics(3)
    found = losses.findings(2, 1, True, *losses.fields(2, 1, True, tail))
    assert {f.status for f in found} == {"confirmed"}, "\n".join(map(str, found))


def test_what_is_read_of_an_analytic_field():
    """`exp(-2 lr) / (1 - 3 rho)`: the coefficient of `lr^i rho^j` is `(-2)^i / i! 3^j`."""
    powers = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    found = differentiated(lambda lr, rho: jnp.exp(-2 * lr) / (1 - 3 * rho))(powers, (2.0, 2.0))
    for (i, j), (value, error) in found.items():
        right = (-2.0) ** i * 3.0**j
        assert abs(value - right) <= max(error, 1e-9 * abs(right))
        assert error < SAME / 2 * abs(right)


def test_what_is_read_of_a_second_power():
    found = differentiated(lambda lr, rho: 3 * lr**2 * rho)([(2, 1)], (1.0, 1.0))
    assert found[2, 1].value == pytest.approx(3, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_a_tail_on_a_scale_of_its_own(scale):
    """Far out `(1 + lr)^-4` stands still at zero, which is not its coefficient."""
    found = differentiated(lambda lr, rho: (1 + lr) ** -4 * jnp.exp(-rho))(
        [(0, 1), (1, 1)], (scale, scale)
    )
    for power, right in {(0, 1): -1.0, (1, 1): 4.0}.items():
        assert abs(found[power].value - right) < 1e-7
        assert found[power].error < 1e-7


def test_what_is_not_analytic_is_not_read():
    def one(field, power):
        return differentiated(field)([power], (1.0, 1.0))[power]

    # a coefficient that falls so slowly is never called zero, and one that grows without limit is
    # no coefficient
    value, error = one(lambda lr, rho: rho**1.2, (0, 1))
    assert 0.5 * value < error < 2 * value
    value, error = one(lambda lr, rho: jnp.sqrt(lr), (1, 0))
    assert value - error > OTHER
    assert differentiated(lambda lr, rho: lr + jnp.nan)([(0, 0)], (1.0, 1.0)) is None
    # finite near zero alone
    value, error = one(lambda lr, rho: jnp.where(lr > 1e-3, jnp.inf, lr), (1, 0))
    assert value == pytest.approx(1)
    assert error < 1e-9


def test_what_cannot_be_differentiated_says_so():
    def drift(p, x, lr, rho, batch, micro):
        return -p.grad(x) * jax.pure_callback(
            lambda r: r, jax.ShapeDtypeStruct((), rho.dtype), rho, vmap_method="sequential"
        )

    with pytest.raises(ValueError, match="the drift cannot be differentiated in lr and rho on "):
        sdesam.check(sdesam.Hypothesis(drift=drift), "m-usam")


def test_a_covariance_must_vanish_with_eta():
    losses = Quadratics(3)
    _, covariance = losses.fields(2, 1, True)
    found = losses.findings(
        2, 1, True, None, lambda lr, rho: covariance(lr, rho) + 1e-3 * jnp.eye(2)
    )
    assert [(f.power, f.status) for f in found] == [
        ((0, 0), "confirmed"),
        ((0, 1), "confirmed"),
        ((-1, 0), "refuted"),
    ]


def two_settings(first, second, order=(1, 2)):
    """A drift on two problems, and what is kept of the findings."""
    one, two = Quadratics(3), Quadratics(3, seed=2)
    settings = [Setting(q.problem, Sampling(2, 1, True), POINTS) for q in (one, two)]
    drifts = [
        differentiated(change(q.fields(2, 1, True)[0]))
        for q, change in ((one, first), (two, second))
    ]
    return compare_coefficients(
        settings, drifts, [None, None], [q.chain(2, 1, True) for q in (one, two)], order
    )


def right(drift):
    return drift


def wrong(drift):
    return lambda lr, rho: drift(lr, rho) + 0.05 * rho


def rough(drift):
    """Not to be read: the coefficient of `rho^1` falls with the interval, but slowly."""
    return lambda lr, rho: drift(lr, rho) + 0.5 * rho**1.2


@pytest.mark.parametrize(
    ("first", "second", "status", "told"),
    [
        (right, right, "confirmed", {"confirmed"}),
        (wrong, right, "refuted", {"refuted"}),
        (right, wrong, "refuted", {"refuted"}),
        (right, rough, "inconclusive", {"inconclusive"}),
        (wrong, rough, "refuted", {"refuted", "inconclusive"}),
        (rough, wrong, "refuted", {"refuted", "inconclusive"}),
    ],
)
def test_more_evidence_takes_nothing_away(first, second, status, told):
    found = two_settings(first, second)
    assert {f.status for f in found if f.power == (0, 1)} == told
    assert Part(tuple(found)).status == status
    open_ones = [f for f in found if f.status == "inconclusive"]
    assert all("open on quadratics with n=3" in str(f) for f in open_ones)
    assert bool(open_ones) == (rough in (first, second)), "what is open is never dropped"


@pytest.mark.parametrize(
    ("deviation", "error", "status"),
    [
        (0.9 * SAME, 0.0, "confirmed"),
        (0.9 * SAME, 0.2 * SAME, "inconclusive"),
        (1.1 * SAME, 0.0, "inconclusive"),
        (0.9 * OTHER, 0.0, "inconclusive"),
        (1.1 * OTHER, 0.0, "refuted"),
        (1.1 * OTHER, 0.2 * OTHER, "inconclusive"),
        (np.nan, 0.0, "refuted"),
        (np.inf, 0.0, "refuted"),
        (0.0, np.inf, "inconclusive"),
    ],
)
def test_status_of_a_finding(deviation, error, status):
    assert Finding("drift", (0, 0), deviation, None, "somewhere", error).status == status


FINE, BAD, OPEN = (
    Finding("drift", (0, 1), *numbers)
    for numbers in ((0.0, 1.0, "a"), (0.1, None, "b"), (0.0, 1.0, "c", 1.0))
)


@pytest.mark.parametrize(
    ("part", "status"),
    [
        (Part((FINE,)), "confirmed"),
        (Part((FINE,), 0.95, 1.0), "confirmed"),
        (Part((FINE, BAD)), "refuted"),
        (Part((BAD, OPEN), 1.0, 1.0), "refuted"),
        (Part((FINE, OPEN)), "inconclusive"),
        (Part((FINE,), note="not used"), "inconclusive"),
        # every coefficient right: the order follows, whatever is measured; one of them open: the
        # rate decides
        (Part((FINE,), 0.5, 1.0), "inconclusive"),
        (Part((FINE, OPEN), 0.5, 1.0), "refuted"),
        (Part((FINE, OPEN), np.nan, 1.0), "inconclusive"),
        (Part((FINE,), np.nan, 1.0), "inconclusive"),
        (Part((FINE, BAD), 1.0, 1.0, contradiction="why"), "inconclusive"),
        (Part(()), "inconclusive"),
    ],
)
def test_status_of_a_part(part, status):
    assert part.status == status


def test_kept_powers():
    assert kept_powers((1, 2), "drift") == [(0, 0), (0, 1)]
    assert kept_powers((2, 3), "drift") == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert kept_powers((1, 2), "covariance") == [(0, 0)]
    assert kept_powers((2, 3), "covariance") == [(0, 0), (0, 1)]


def test_nearer_than_read():
    """A drift that is wrong below eta = 0.0075 alone is right where the rate is measured."""
    losses = Quadratics(3)
    drift, _ = losses.fields(2, 1, True)
    setting, chain = Setting(losses.problem, Sampling(2, 1, True), POINTS), losses.chain(2, 1, True)

    def switched(lr, rho):
        return drift(lr, rho) * jnp.where(lr > 0.0075, 1, 2)

    (expansion,) = expand(setting, differentiated(switched), None, chain, (2, 3))
    assert "refuted" in {f.status for f in expansion.findings()}
    near = partial(nearer_than_read, expansion, switched, chain, rho=0.02)
    assert near(lr=1 / 128)
    assert not near(lr=1 / 1024)


@pytest.mark.parametrize("variant", ["m-usam", "m-sam"])
def test_the_optimizers_own_coefficients_against_numbers(variant):
    """Derivatives at rho = 0 against polynomials through the enumerated step at small rho."""
    from sdesam.verify.exact.enumerate import list_batches, one_step
    from sdesam.verify.exact.float64 import mean_step, step_coefficients

    problem, numbers = (
        sdesam.problems.torus(dim=2, samples=3),
        ({"eps": 0.2} if variant == "m-sam" else {}),
    )
    listed = list_batches(Sampling(2, 1), 3)

    def chain(rho):
        return sdesam.Chain(variant, problem, 0.1, rho, 2, 1, **numbers)

    found = step_coefficients(chain(0.0), POINTS, *listed, (3, 2))
    for field, coefficients in (
        (lambda lr, rho: mean_step(chain(rho), POINTS, *listed)[0], found.mean),
        (lambda lr, rho: mean_step(chain(rho), POINTS, *listed)[1], found.correction),
        (lambda lr, rho: one_step(chain(rho), POINTS).covariance, found.covariance),
    ):
        numeric = interpolated(field, degree=12)(
            [(0, j) for j in range(len(coefficients))], (0.0, 0.2)
        )
        for j, coefficient in enumerate(coefficients):
            np.testing.assert_allclose(numeric[0, j].value, coefficient, atol=1e-8)


def test_scales_of_samples():
    from sdesam.verify.exact.float64 import sample_sizes

    losses = Quadratics(3)
    g = np.einsum("nij,pj->pni", losses.H, POINTS) - losses.c
    bent = np.einsum("nij,pnj->pni", losses.H, g)
    expected = [np.mean(np.sum(v**2, axis=-1), axis=1) for v in (g, bent)]
    np.testing.assert_allclose(sample_sizes(losses.problem, POINTS), expected, rtol=1e-12)


def test_a_network_in_layers_has_coefficients_too():
    """Where a step takes inner products in place of perturbed weights, its derivatives in rho are
    those of the plain step.
    """
    from sdesam.verify.exact.float64 import start, step_coefficients

    def loss(x, sample):
        return -jax.nn.log_softmax(jnp.tanh(sample["input"] @ x["W"]) @ x["v"])[sample["label"]]

    rng = np.random.default_rng(0)
    data = {"input": rng.normal(size=(2, 12)), "label": np.array([0, 1])}
    x0 = {"W": 0.3 * rng.normal(size=(12, 3)), "v": rng.normal(size=(3, 2))}
    problem = sdesam.FiniteSum(loss, data, x0)
    single = np.arange(2).reshape(2, 1, 1)
    found = step_coefficients(
        sdesam.Chain("m-usam", problem, 0.1, 0.1, 1, 1),
        start(problem)[None],
        single,
        np.full(2, 0.5),
        (2, 1),
    )
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), problem.x0)
        rows = jax.tree.map(
            lambda leaf: (
                jnp.asarray(np.asarray(leaf), jnp.float64) if leaf.dtype == jnp.float32 else leaf
            ),
            problem.data,
        )
        expected = 0.0
        for i in range(2):
            grad = jax.grad(lambda y, i=i: loss(y, jax.tree.map(lambda leaf: leaf[i], rows)))
            expected += (
                jax.flatten_util.ravel_pytree(jax.jvp(grad, (wide,), (grad(wide),))[1])[0] / 2
            )
    np.testing.assert_allclose(found.mean[1, 0], expected, rtol=1e-10, atol=1e-14)


def test_a_move_that_is_small_by_chance_is_no_rest():
    """From 0.5 to 0.5 and on to 0.1: that one step moved nothing says nothing of the limit."""
    still = [np.array(value) for value in (1.0, 0.5, 0.5 + 1e-12, 0.1)]
    assert _limit(still).error > 0.01


def test_a_polynomial_of_the_stated_degree_is_read_right():
    read = interpolated(lambda lr, rho: np.array(1 + 2 * lr * rho - 3 * lr**4 * rho**4))
    found = read([(0, 0), (1, 1), (4, 3), (4, 4)], (0.5, 2.0))
    for power, right in {(0, 0): 1, (1, 1): 2, (4, 3): 0, (4, 4): -3}.items():
        assert found[power].value == pytest.approx(right, abs=1e-8)
