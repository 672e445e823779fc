"""The tests that take a version back: how often wrongly, and how soon rightly."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from companion.deployment.rollout import Tolerance, Tolerances
from companion.deployment.rollout.guarding import Guard, SequentialTest

SETTINGS = settings(deadline=None, max_examples=60)
LOOSE = Tolerance(tolerated=0.2, unacceptable=0.5, false_alarm=0.2)


def fed(tolerance: Tolerance, answers: list[bool]) -> SequentialTest:
    test = SequentialTest(tolerance)
    for bad in answers:
        test.observe(bad)
    return test


@pytest.mark.parametrize("share", [0.2, 0.1])
def test_false_alarms_are_as_rare_as_stated_exactly(share):
    """All 4,096 courses of twelve answers, each with its probability: no simulation, no luck."""
    alarmed = expected = total = 0.0
    for answers in product((False, True), repeat=12):
        test = fed(LOOSE, list(answers))
        probability = share ** sum(answers) * (1 - share) ** (12 - sum(answers))
        total += probability
        alarmed += probability * test.alarm
        expected += probability * test.stake
    assert total == pytest.approx(1)
    assert 0 < alarmed <= LOOSE.false_alarm
    assert expected <= 1 + 1e-9, "as long as the share is tolerated, the stake is not expected to grow"


def test_false_alarms_stay_rare_over_a_long_life():
    tolerance = Tolerance(tolerated=0.05, unacceptable=0.2, false_alarm=0.1)
    rng, alarms, runs = random.Random(3), 0, 300
    for _ in range(runs):
        test = SequentialTest(tolerance)
        while test.answers < 1000 and not test.alarm:
            test.observe(rng.random() < tolerance.tolerated)
        alarms += test.alarm
    assert alarms <= binom.isf(0.001, runs, tolerance.false_alarm)
    assert alarms, "a test that never speaks would pass, too"


@pytest.mark.parametrize("kind", ["errors", "disagreements"])
@pytest.mark.parametrize("after", [0, 1_000, 1_000_000])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_hundred_bad_answers_suffice(kind, after, factor):
    tolerance: Tolerance = getattr(Tolerances(), kind)
    share, rng, most = min(1, factor * tolerance.unacceptable), random.Random(after + factor), 0
    for _ in range(100):
        test = SequentialTest(tolerance)
        test.answers = after  # good ones: what they leave in the stake is never below what is left here
        while not test.alarm:
            test.observe(rng.random() < share)
        most = max(most, test.bad)
    assert most <= 84, "and sixteen more may be on their way"


def test_good_answers_leave_no_less_than_nothing():
    """Why the test before may begin with an empty stake."""
    for good in (1, 10, 1000):
        lived, fresh = fed(LOOSE, [False] * good), SequentialTest(LOOSE)
        fresh.answers = good
        assert lived.stake >= fresh.stake


@SETTINGS
@given(before=st.lists(st.booleans(), max_size=60))
def test_enough_bad_answers_in_a_row_always_raise_the_alarm(before):
    tolerance = Tolerances().errors
    test = fed(tolerance, before)
    enough = test.always_enough(test.answers)
    assert test.always_enough(10**6) <= 100
    for _ in range(enough):
        test.observe(True)
    assert test.alarm


@SETTINGS
@given(answers=st.lists(st.booleans(), min_size=1, max_size=60), place=st.integers(0, 59))
def test_a_bad_answer_in_place_of_a_good_one_is_never_to_the_good(answers, place):
    place %= len(answers)
    low, high = (fed(LOOSE, [*answers[:place], bad, *answers[place + 1 :]]) for bad in (False, True))
    assert high.alarm or (not low.alarm and high.stake >= low.stake)


@SETTINGS
@given(answers=st.lists(st.booleans(), max_size=80))
def test_the_alarm_comes_once_and_with_a_bad_answer(answers):
    test = SequentialTest(LOOSE)
    raised = [bad for bad in answers if test.observe(bad)]
    assert raised in ([], [True])
    assert test.alarm == bool(raised)
    assert test.bad <= test.answers <= len(answers)


def test_a_stake_grows_by_the_formula():
    """Two answers by hand, with one alternative at a time weighted alike."""
    tolerance = Tolerance(tolerated=0.1, unacceptable=0.95, false_alarm=0.01)
    test = fed(tolerance, [True])
    # One distinct alternative, 0.95: the first weight is 1 - 1 / (1 + ln 2).
    first = 1 - 1 / (1 + 0.6931471805599453)
    assert test.stake == pytest.approx(first * 9.5 + (1 - first))
    test.observe(False)
    second = 1 / (1 + 0.6931471805599453) - 1 / (1 + 1.0986122886681098)
    left = 1 / (1 + 1.0986122886681098)
    assert test.stake == pytest.approx((first * 9.5 + second) * 0.05 / 0.9 + left)


def test_a_guard_says_why():
    guard = Guard(Tolerances())
    reasons = [guard.answered(error=True) for _ in range(20)]
    [reason] = [text for text in reasons if text]
    assert reason.startswith("errors: ")
    assert "tolerated are 0.01" in reason
    assert "0.0005" in reason
    assert guard.disagreements.answers == 0
    reasons = [guard.compared(disagrees=True) for _ in range(20)]
    assert sum(text is not None for text in reasons) == 1
    assert not any(Guard(Tolerances()).compared(disagrees=False) for _ in range(5))


@pytest.mark.parametrize(
    "values",
    [(0, 0.1, 0.1), (0.1, 0.1, 0.1), (0.2, 0.1, 0.1), (0.1, 1.0, 0.1), (0.1, 0.2, 0), (0.1, 0.2, 1)],
)
def test_tolerances_that_no_test_can_keep_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        Tolerance(*values)
