"""Intervals that hold what they promise: coverage on simulated data, and what is refused."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from companion.inference import paired_difference, percentile, proportion, runs_needed

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)
values = st.lists(st.floats(0, 1e6), min_size=6, max_size=400)


# --- percentiles


def test_runs_needed_are_the_first_that_suffice():
    assert [runs_needed(percent) for percent in (50, 95, 99, 99.9)] == [6, 72, 368, 3688]
    for percent in (1, 5, 50, 90, 99):
        share = max(percent, 100 - percent) / 100
        needed = runs_needed(percent)
        assert share**needed <= 0.025 < share ** (needed - 1)
    assert runs_needed(99, level=0.9) == 299


@pytest.mark.parametrize(("percent", "runs"), [(50, 5), (95, 71), (99, 50), (99, 367), (1, 367)])
def test_a_percentile_of_too_few_runs_is_refused_with_the_number(percent, runs):
    found = percentile([float(i) for i in range(runs)], percent)
    assert found.estimate is None
    assert f"p{percent} needs at least {runs_needed(percent)} runs" in str(found.reason)
    assert f"there are {runs}" in str(found.reason)
    assert found.to_dict() == {"percent": percent, "reason": found.reason}
    assert percentile([float(i) for i in range(runs_needed(percent))], percent).estimate is not None


def test_percentiles_by_hand():
    """The ranks of Hahn and Meeker: for the median of 100, the 40th and the 61st."""
    found = percentile(range(1, 101), 50).estimate
    assert (found.value, found.low, found.high) == (50, 40, 61)
    found = percentile(range(1, 1001), 99).estimate
    assert (found.value, found.low, found.high) == (990, 983, 997)
    assert percentile(range(1, 7), 50).to_dict() == {"percent": 50, "value": 3, "low": 1, "high": 6}


@SETTINGS
@given(numbers=values, percent=st.sampled_from([10, 25, 50, 75, 90, 95]))
def test_an_interval_is_made_of_runs_around_its_value(numbers, percent):
    found = percentile(numbers, percent)
    if found.estimate is None:
        assert len(numbers) < runs_needed(percent)
        return
    estimate = found.estimate
    assert {estimate.low, estimate.value, estimate.high} <= set(numbers)
    assert estimate.low <= estimate.value <= estimate.high
    assert sum(n <= estimate.value for n in numbers) >= len(numbers) * percent / 100 - 1e-9
    shuffled = random.Random(0).sample(numbers, len(numbers))
    assert percentile(shuffled, percent) == found


@SETTINGS
@given(n=st.integers(6, 800), percent=st.sampled_from([50, 90, 95, 99]), level=st.sampled_from([0.8, 0.95]))
def test_the_ranks_cover_exactly_as_much_as_they_must(n, percent, level):
    """The exact probability, for every distribution: ranks one step inwards would leave a tail too large."""
    found = percentile(range(1, n + 1), percent, level=level).estimate
    if found is None:
        return
    share, tail = percent / 100, (1 - level) / 2
    assert binom.cdf(found.low - 1, n, share) <= tail + 1e-12
    assert binom.cdf(found.low, n, share) > tail
    assert binom.sf(found.high - 1, n, share) <= tail + 1e-12
    assert binom.sf(found.high - 2, n, share) > tail


@pytest.mark.parametrize(("percent", "n"), [(50, 60), (95, 200), (99, 500)])
def test_the_interval_brackets_the_true_percentile_at_the_nominal_rate(percent, n):
    """Log-normal, as latencies are. Ranks are whole numbers, so coverage lies at or above the level."""
    rng = np.random.default_rng(7)
    true = math.exp(NormalDist().inv_cdf(percent / 100))
    rounds = 1500
    covered = 0
    for sample in np.exp(rng.normal(size=(rounds, n))):
        found = percentile(sample.tolist(), percent).estimate
        covered += found.low <= true <= found.high
    assert 0.94 <= covered / rounds <= 0.985


def test_percentiles_of_nonsense_are_refused():
    for percent in (0, 100, -1, 101):
        with pytest.raises(ValueError, match="expected a number between 0 and 100"):
            percentile([1.0] * 10, percent)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match=r"expected a share between 0 and 1 such as 0\.95"):
            percentile([1.0] * 10, 50, level=level)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            percentile([1.0] * 10 + [bad], 50)


# --- shares


def test_clopper_pearson_by_hand():
    found = proportion(0, 10)
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 10))
    found = proportion(10, 10)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 10))


@SETTINGS
@given(n=st.integers(1, 120), truth=st.floats(0.001, 0.999))
def test_a_share_is_covered_at_least_as_often_as_promised(n, truth):
    """The exact probability of all counts whose interval holds the truth."""
    held = [count for count in range(n + 1) if proportion(count, n).low <= truth <= proportion(count, n).high]
    assert binom.pmf(held, n, truth).sum() >= 0.95 - 1e-9


def test_shares_of_nonsense_are_refused():
    for count, total in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"found {count} of {total}"):
            proportion(count, total)


# --- differences of pairs


def test_tango_published():
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014), table VI: 1 and 7 of 21 pairs."""
    found = paired_difference(1, 7, 21)
    assert found.value == pytest.approx(-6 / 21)
    assert (found.low, found.high) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))


def test_without_disagreement_there_is_still_a_width():
    z = NormalDist().inv_cdf(0.975)
    for n in (10, 1000):
        found = paired_difference(0, 0, n)
        assert found.value == 0
        assert found.high == pytest.approx(z * z / (n + z * z))
        assert found.low == pytest.approx(-found.high)


@SETTINGS
@given(
    worse=st.integers(0, 60),
    better=st.integers(0, 60),
    same=st.integers(0, 500),
    level=st.sampled_from([0.8, 0.95, 0.99]),
)
def test_a_difference_lies_in_its_interval_and_turns_round(worse, better, same, level):
    total = worse + better + same
    if not total:
        return
    found, turned = (
        paired_difference(*pair, total, level=level) for pair in ((worse, better), (better, worse))
    )
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx((worse - better) / total)
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    wider = paired_difference(worse, better, total, level=0.999)
    assert wider.low <= found.low and found.high <= wider.high


@pytest.mark.parametrize(("worse", "better"), [(0.02, 0.02), (0.06, 0.03), (0.004, 0.002)])
def test_a_difference_is_covered_at_the_nominal_rate(worse, better):
    rng, n, rounds = np.random.default_rng(3), 500, 2000
    draws = rng.multinomial(n, [worse, better, 1 - worse - better], size=rounds)
    held = sum(
        found.low <= worse - better <= found.high
        for found in (paired_difference(int(a), int(b), n) for a, b, _ in draws)
    )
    assert 0.93 <= held / rounds <= 0.99


def test_differences_of_nonsense_are_refused():
    for counts in ((-1, 0, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="expected two counts"):
            paired_difference(*counts)
