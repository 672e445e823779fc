"""Coordinated omission, counted with a clock that only moves when it is told to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.inference import closed_loop, drive, open_loop

SERVICE = 0.01  # seconds


class Clock:
    """Time that passes in sleeping and working alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


class Stalling:
    """A predictor that takes 10 ms for a text, but a second for one of them."""

    labels = ("negative", "positive")
    is_regression = False

    def __init__(self, clock: Clock, stalls: set[int]) -> None:
        self.clock, self.stalls, self.calls, self.seen = clock, stalls, 0, []

    def logits(self, texts, pairs=None, *, batch_size=32):
        self.clock.now += 1.0 if self.calls in self.stalls else SERVICE
        self.calls += 1
        self.seen.append((*texts, *(pairs or ())))
        return np.zeros((len(texts), 2), dtype=np.float32)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def work(clock: Clock, stalls: set[int]):
    def send(index: int) -> None:
        clock.now += 1.0 if index in stalls else SERVICE

    return send


def test_a_stall_is_one_bad_sample_in_a_closed_loop_and_many_in_an_open_one(clock):
    closed = closed_loop(work(clock, {50}), requests=400, clock=clock)
    assert sum(seconds > 2 * SERVICE for seconds in closed.latencies) == 1
    assert closed.latencies == closed.services
    due = open_loop(work(clock, {50}), rate=50, requests=400, clock=clock, sleep=clock.sleep)
    # While it stalls 50 become due, and each of the following gains only 10 of its 20 ms.
    late = [i for i, seconds in enumerate(due.latencies) if seconds > 1.5 * SERVICE]
    assert late == list(range(50, 50 + len(late)))
    assert len(late) == 99
    assert sum(seconds > 2 * SERVICE for seconds in due.services) == 1, "what a tool sees that omits"
    for i in range(99):
        assert due.latencies[50 + i] == pytest.approx(1.0 - 0.01 * i)
    assert due.seconds == pytest.approx(399 / 50 + SERVICE)
    assert due.busy == pytest.approx((399 * SERVICE + 1) / due.seconds)


def test_p99_shows_the_stall_only_from_when_requests_were_due(clock):
    found = drive(
        Stalling(clock, {50, 400 + 50}), ["a"], rate=50, requests=400, clock=clock, sleep=clock.sleep
    )
    p99 = [
        next(item.estimate.value for item in percentiles if item.percent == 99)
        for percentiles in (found.closed_percentiles, found.service_percentiles, found.open_percentiles)
    ]
    assert p99 == pytest.approx([SERVICE, SERVICE, 0.96])
    assert found.p99_ratio == pytest.approx(96)
    assert not found.overloaded
    told = found.to_dict()
    assert (told["rate"], told["requests"], told["overloaded"]) == (50, 400, False)
    assert told["p99_ratio"] == found.p99_ratio


def test_without_a_stall_the_loops_agree(clock):
    found = drive(Stalling(clock, set()), ["a"], rate=50, requests=400, clock=clock, sleep=clock.sleep)
    assert found.p99_ratio == pytest.approx(1)
    assert found.closed.achieved_rate == pytest.approx(100)
    assert found.open.achieved_rate == pytest.approx(50, rel=0.01)
    assert found.open.latencies == pytest.approx([SERVICE] * 400)


def test_more_than_can_be_answered_is_called_so(clock):
    found = drive(Stalling(clock, set()), ["a"], rate=200, requests=400, clock=clock, sleep=clock.sleep)
    assert found.overloaded
    assert found.open.busy == pytest.approx(1)
    gaps = np.diff(found.open.latencies)
    assert gaps == pytest.approx([SERVICE - 1 / 200] * 399), "each waits longer than the one before"


def test_a_sender_that_oversleeps_is_told(clock):
    def oversleep(seconds: float) -> None:
        clock.now += seconds + 0.003

    found = open_loop(work(clock, {5}), rate=50, requests=30, clock=clock, sleep=oversleep)
    assert found.overslept == pytest.approx(0.003), "without those that waited for the stall"
    assert found.latencies[1] == pytest.approx(SERVICE + 0.003)
    exact = open_loop(work(clock, {5}), rate=50, requests=30, clock=clock, sleep=clock.sleep)
    assert exact.overslept == pytest.approx(0, abs=1e-9)


def test_few_requests_have_no_p99(clock):
    found = drive(Stalling(clock, set()), ["a"], rate=50, requests=100, clock=clock, sleep=clock.sleep)
    assert found.p99_ratio is None
    assert found.to_dict()["open_loop_from_due"][2] == {
        "percent": 99,
        "reason": "p99 needs at least 368 runs for a 95% interval, there are 100",
    }


def test_texts_and_pairs_are_sent_one_by_one_and_again(clock):
    predictor = Stalling(clock, set())
    drive(predictor, ["a", "b"], ["c", "d"], rate=5, requests=3, clock=clock, sleep=clock.sleep)
    assert predictor.seen == [("a", "c"), ("b", "d"), ("a", "c")] * 2


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    services=st.lists(st.floats(0, 3), min_size=1, max_size=40),
    rate=st.floats(0.05, 50),
)
def test_the_open_loop_is_a_queue_of_one_server(services, rate):
    """Lindley's recursion: who is due waits for the rest of those before."""
    clock = Clock()

    def send(index: int) -> None:
        clock.now += services[index]

    found = open_loop(send, rate=rate, requests=len(services), clock=clock, sleep=clock.sleep)
    waiting, expected = 0.0, []
    for service in services:
        expected.append(waiting + service)
        waiting = max(0.0, waiting + service - 1 / rate)
    assert found.latencies == pytest.approx(expected, abs=1e-6)
    assert found.services == pytest.approx(services, abs=1e-6)
    assert all(a >= b - 1e-9 for a, b in zip(found.latencies, found.services, strict=True))


def test_bad_input(clock):
    for rate in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected requests per second above 0"):
            open_loop(work(clock, set()), rate=rate, requests=5, clock=clock, sleep=clock.sleep)
        with pytest.raises(ValueError, match="expected requests per second above 0"):
            drive(Stalling(clock, set()), ["a"], rate=rate)
    for loop in (closed_loop, lambda send, **kw: open_loop(send, rate=1, **kw)):
        with pytest.raises(ValueError, match="requests is 0, expected at least 1"):
            loop(work(clock, set()), requests=0)
    with pytest.raises(ValueError, match="there are no texts"):
        drive(Stalling(clock, set()), [], rate=1)
    with pytest.raises(ValueError, match="one string"):
        drive(Stalling(clock, set()), "a", rate=1)
    with pytest.raises(ValueError, match="2 texts but 1 pairs"):
        drive(Stalling(clock, set()), ["a", "b"], ["c"], rate=1)
