"""Intervals and tests against numbers by hand, all permutations, and their false-alarm rates."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from sdesam.verify import statistics


def test_interval_by_hand():
    # mean 5, s = 2, n = 4, t_{0.975, 3} = 3.18245
    found = statistics.interval([3.0, 7.0, 3.0 + 2 * (1 - 0.5**0.5), 7.0 - 2 * (1 - 0.5**0.5)])
    s = np.std([3.0, 7.0, found.mean - 2**0.5, found.mean + 2**0.5], ddof=1)
    assert found.mean == pytest.approx(5)
    assert found.upper - found.mean == pytest.approx(3.182446 * s / 2, rel=1e-6)
    assert found.mean - found.lower == pytest.approx(found.upper - found.mean)
    assert np.isnan(statistics.interval([1.0]).lower)


@pytest.mark.parametrize(
    "table",
    [
        [[1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [2.0, 1.0, 3.0]],
        [[1.0, 2.0, 2.0], [3.0, 3.0, 3.0], [1.0, 1.0, 2.0]],
    ],
)
def test_page_against_all_permutations(table):
    """Under no order every row is any permutation of its own values, ties included."""
    table = np.array(table)
    ranks = stats.rankdata(table, axis=1)
    L = (ranks @ np.array([1, 2, 3])).sum()
    rows = [[np.dot(p, [1, 2, 3]) for p in permutations(row)] for row in ranks]
    sums = np.array([sum(three) for three in product(*rows)])
    found = statistics.trend(table, "rises")
    assert found.statistic == L
    assert found.p == pytest.approx(np.mean(sums >= L), rel=1e-12)
    assert found.p_reversed == pytest.approx(np.mean(sums <= L), rel=1e-12)
    falls = statistics.trend(-table, "falls")
    assert (falls.statistic, falls.p, falls.least) == (found.statistic, found.p, found.least)
    assert statistics.trend(table, "falls").p == pytest.approx(found.p_reversed)
    assert found.ends.mean == pytest.approx(np.mean(table[:, 2] - table[:, 0]))


@pytest.mark.parametrize(("seeds", "conditions"), [(6, 7), (20, 4), (50, 5)])
def test_page_is_exact_in_larger_tables(seeds, conditions):
    """Against the same law by other means: `scipy`'s where it lists one, drawn permutations else.
    The normal approximation is 10 % off there.
    """
    rng = np.random.default_rng(2)
    table = rng.normal(size=(seeds, conditions)) + 0.12 * np.arange(conditions)
    found = statistics.trend(table, "rises").p
    if seeds <= 12:
        assert found == pytest.approx(stats.page_trend_test(table, method="exact").pvalue, rel=1e-9)
        return
    ranks, positions = stats.rankdata(table, axis=1), np.arange(1, conditions + 1)
    least = (ranks @ positions).sum()
    drawn = sum(
        (rng.permuted(np.broadcast_to(ranks, (20_000, *ranks.shape)), axis=2) @ positions).sum(
            axis=1
        )
        for _ in range(1)
    )
    p = np.mean(drawn >= least - 1e-9)
    # five standard errors: one false alarm in a million
    assert abs(found - p) < 5 * np.sqrt(found * (1 - found) / 20_000)


def test_a_trend_over_too_many_conditions():
    with pytest.raises(ValueError, match="over 13 conditions: at most 12"):
        statistics.trend(np.zeros((3, 13)), "rises")


def test_verdicts_and_their_controls():
    rng = np.random.default_rng(0)
    table = np.arange(4.0) + rng.normal(size=(10, 4)) + 100 * rng.normal(size=(10, 1))
    assert statistics.trend(table, "rises").verdict() == "confirmed"
    assert statistics.trend(table[:, ::-1], "rises").verdict() == "refuted", "reversed order"
    assert statistics.trend(table[:, [0, 2, 1, 3]], "rises").verdict() == "inconclusive", (
        "two conditions exchanged"
    )
    assert statistics.trend(rng.permuted(table, axis=1), "rises").verdict() == "inconclusive", (
        "labels of m permuted within seeds"
    )
    # the spread of the seeds is 100 times the effect: a comparison that is not paired sees nothing
    assert statistics.paired(table[:, 3], table[:, 0]).verdict("rises") == "confirmed"
    assert statistics.paired(table[:, 0], table[:, 3]).verdict("rises") == "refuted"
    assert (
        statistics.paired(table[:, 0], rng.permutation(table[:, 3])).verdict("rises")
        == "inconclusive"
    ), "pairs broken"


DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "whole units": lambda rng, shape: rng.integers(0, 3, size=shape).astype(float),
    "mostly ties": lambda rng, shape: (rng.uniform(size=shape) < 0.1).astype(float),
    "heavy tails": lambda rng, shape: rng.standard_t(1.5, size=shape),
}


@pytest.mark.parametrize("law", DRAWS)
@pytest.mark.parametrize("seeds", [2, 3, 8, 10, 20])
def test_false_alarm_rates(law, seeds):
    """1000 tables without any order at alpha = 0.01: more than 26 alarms have probability 1e-5
    (binomial), for each of the 40 tests.
    """
    rng = np.random.default_rng([seeds, len(law)])
    tables = DRAWS[law](rng, (1000, seeds, 4))
    assert sum(statistics.paired(t[:, 0], t[:, 1]).p <= statistics.ALPHA for t in tables) <= 26
    tables = tables[:: 5 if seeds > 10 else 1]
    most = 11 if seeds > 10 else 26  # of 200: probability 1e-5
    assert sum(statistics.trend(t, "rises").p <= statistics.ALPHA for t in tables) <= most


def test_two_seeds_decide_nothing():
    """Equal differences, and differences of whole units: of four patterns of signs two are as far
    out.
    """
    found = statistics.paired([0.01, 0.01], [0.0, 0.0])
    assert (found.p, found.verdict("rises")) == (0.5, "inconclusive")
    assert statistics.paired([3.0, 4.0], [2.0, 2.0]).verdict("rises") == "inconclusive"
    assert statistics.paired(np.ones(7), np.zeros(7)).verdict("rises") == "inconclusive"
    assert statistics.paired(np.ones(8), np.zeros(8)).verdict("rises") == "confirmed"
    assert statistics.paired(np.zeros(8), np.ones(8)).verdict("rises") == "refuted"


@pytest.mark.parametrize(
    ("means", "most"), [((0, 5, 4.5), 0.1), ((0, 5, 5), 0.25), ((0, 0, 5), 0.25), ((0, 0, 0), 0.02)]
)
def test_an_order_that_is_none_is_not_confirmed(means, most):
    """Of 300 tables; a step of zero exceeds its standard error in one case of six (with 10 seeds
    0.17), a step of -0.5 in 2 of 100.
    """
    rng = np.random.default_rng(4)
    tables = np.array(means) + rng.normal(size=(300, 10, 3))
    assert np.mean([statistics.trend(t, "rises").verdict() == "confirmed" for t in tables]) < most
    if means == (0, 5, 4.5):
        assert (
            np.mean([statistics.trend(t, "rises").p <= statistics.ALPHA for t in tables]) > 0.5
        ), "Page's test alone is content"


def test_an_order_is_confirmed():
    rng = np.random.default_rng(5)
    tables = np.array([0, 2.5, 5]) + rng.normal(size=(100, 10, 3))
    assert np.mean([statistics.trend(t, "rises").verdict() == "confirmed" for t in tables]) > 0.95
    assert statistics.trend(np.tile([1.0, 2.0, 3.0], (5, 1)), "rises").verdict() == "confirmed", (
        "no spread at all"
    )
    assert statistics.trend(np.tile([1.0, 3.0, 2.0], (50, 1)), "rises").verdict() == "inconclusive"


def test_least_step_by_hand():
    # steps 1, 2, 3 and 4, 4, 4: means 2 and 4, standard errors 1/sqrt(3) and 0
    table = np.array([[0.0, 1.0, 5.0], [0.0, 2.0, 6.0], [0.0, 3.0, 7.0]])
    assert statistics.trend(table, "rises").least == pytest.approx(2 * 3**0.5)
    assert statistics.trend(table, "falls").least == -np.inf
    assert statistics.trend(np.zeros((3, 3)), "rises").least == 0


@pytest.mark.parametrize(
    ("p", "p_reversed", "least", "verdict"),
    [
        (0.01, 1.0, 1.0, "confirmed"),
        (0.011, 1.0, 1.0, "inconclusive"),
        (0.01, 1.0, 0.99, "inconclusive"),
        (1.0, 0.01, -5.0, "refuted"),
        (1.0, 0.011, -5.0, "inconclusive"),
    ],
)
def test_verdict_of_a_trend(p, p_reversed, least, verdict):
    assert (
        statistics.Trend(
            "rises", 0.0, p, p_reversed, statistics.interval([0.0, 1.0]), least
        ).verdict()
        == verdict
    )


def test_paired_by_hand():
    # differences 1, -2, 3: of the eight sums 6, 2, 0, -4 and their negatives, six are at least 2 in
    # size
    assert statistics.paired([2.0, 0.0, 6.0], [1.0, 2.0, 3.0]).p == pytest.approx(6 / 8)
    assert statistics.paired([1.0, 2.0], [1.0, 2.0]).p == 1
    # 20 seeds: patterns are drawn, and the p-value is that of all of them within five standard
    # errors
    rng = np.random.default_rng(3)
    away = rng.normal(size=20) + 0.4
    exact = np.mean(
        abs(np.array([np.dot(away, 1 - 2 * (k >> np.arange(20) & 1)) for k in range(0, 2**20, 37)]))
        >= abs(away.sum())
    )
    assert statistics.paired(away, np.zeros(20)).p == pytest.approx(
        exact, abs=5 * np.sqrt(exact / 2**15) + 5 * np.sqrt(exact * 37 / 2**20)
    )


def test_holm_by_hand():
    assert statistics.holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_bad_tables():
    with pytest.raises(ValueError, match="at least 2 seeds and 3 conditions, not shape"):
        statistics.trend(np.zeros((5, 2)), "rises")
    with pytest.raises(ValueError, match="not finite"):
        statistics.trend([[1.0, 2.0, np.nan]] * 3, "rises")
    with pytest.raises(ValueError, match="the same seeds twice"):
        statistics.paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        statistics.paired([1.0, np.nan], [1.0, 2.0])


def test_bands():
    mean, lower, upper = statistics.band([[1.0, 5.0], [3.0, 5.0]])
    assert mean.tolist() == [2, 5]
    assert upper[1] == lower[1] == 5
    assert lower[0] < 2 < upper[0]


def test_a_trend_among_several_tests():
    """One of five: Holm's p for the order, and five times the p of the reversed one."""
    found = statistics.trend([[1.0, 2.0, 3.0], [0.0, 2.0, 4.0], [1.0, 1.5, 2.0]], "rises")
    several = found.corrected(statistics.holm([found.p, 0.5, 0.5, 0.5, 0.5])[0], 5)
    assert several.p == pytest.approx(5 / 6**3)
    assert several.p_reversed == 1.0
    assert several.ends == found.ends
    assert (found.verdict(), several.verdict()) == ("confirmed", "inconclusive")
