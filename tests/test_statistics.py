"""Intervals and tests against numbers by hand, all permutations, and their false-alarm rates."""

from itertools import permutations, product

import numpy as np
import pytest

from sdesam import statistics


def test_interval_by_hand():
    # mean 5, s = 2, n = 4, t_{0.975, 3} = 3.18245
    found = statistics.interval([3.0, 7.0, 3.0 + 2 * (1 - 0.5**0.5), 7.0 - 2 * (1 - 0.5**0.5)])
    s = np.std([3.0, 7.0, found.mean - 2**0.5, found.mean + 2**0.5], ddof=1)
    assert found.mean == pytest.approx(5)
    assert found.upper - found.mean == pytest.approx(3.182446 * s / 2, rel=1e-6)
    assert found.mean - found.lower == pytest.approx(found.upper - found.mean)
    assert np.isnan(statistics.interval([1.0]).lower)


def test_page_against_all_permutations():
    table = np.array([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [2.0, 1.0, 3.0]])
    ranks = table.argsort(axis=1).argsort(axis=1) + 1
    L = (ranks @ np.array([1, 2, 3])).sum()
    # under the hypothesis of no order, every row is any permutation
    rows = [np.dot(p, [1, 2, 3]) for p in permutations([1, 2, 3])]
    sums = np.array([sum(three) for three in product(rows, repeat=3)])
    found = statistics.trend(table, "rises")
    assert found.statistic == L
    assert found.p == pytest.approx(np.mean(sums >= L))
    falls = statistics.trend(-table, "falls")
    assert (falls.statistic, falls.p) == (found.statistic, found.p)
    assert statistics.trend(table, "falls").p == pytest.approx(found.p_reversed)
    assert found.ends.mean == pytest.approx(np.mean([1, 2, 1]))


def test_verdicts_and_their_controls():
    rng = np.random.default_rng(0)
    table = np.arange(4.0) + rng.normal(size=(10, 4)) + 100 * rng.normal(size=(10, 1))
    assert statistics.trend(table, "rises").verdict() == "confirmed"
    assert statistics.trend(table[:, ::-1], "rises").verdict() == "refuted", "reversed order"
    assert statistics.trend(rng.permuted(table, axis=1), "rises").verdict() == "inconclusive", "labels of m permuted within seeds"
    # the spread of the seeds is 100 times the effect: a comparison that is not paired sees nothing
    assert statistics.paired(table[:, 3], table[:, 0]).verdict("rises") == "confirmed"
    assert statistics.paired(table[:, 0], table[:, 3]).verdict("rises") == "refuted"
    assert statistics.paired(table[:, 0], rng.permutation(table[:, 3])).verdict("rises") == "inconclusive", "pairs broken"


def test_false_alarm_rates():
    # 2000 tables without any order at alpha = 0.01: more than 40 alarms have probability 4e-5 (binomial)
    rng = np.random.default_rng(1)
    tables = rng.normal(size=(2000, 10, 4))
    assert sum(statistics.trend(t, "rises").p <= statistics.ALPHA for t in tables) <= 40
    assert sum(statistics.paired(t[:, 0], t[:, 1]).p <= statistics.ALPHA for t in tables) <= 40


def test_paired_by_hand():
    # differences 1, 2, 3: mean 2, s = 1, t = 2 sqrt(3) = 3.4641 on 2 degrees of freedom, p = 1 - t / sqrt(t^2 + 2)
    found = statistics.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    t = 2 * 3**0.5
    assert found.p == pytest.approx(1 - t / np.sqrt(t**2 + 2))
    assert statistics.paired([1.0, 2.0], [1.0, 2.0]).p == 1


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


def test_bands():
    mean, lower, upper = statistics.band([[1.0, 5.0], [3.0, 5.0]])
    assert mean.tolist() == [2, 5]
    assert upper[1] == lower[1] == 5
    assert lower[0] < 2 < upper[0]
