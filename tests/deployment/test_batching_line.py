"""The line: who is let in, who is told to come back, what a worker gets. One thread, and a clock by hand."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment.answering import Question
from companion.deployment.batching import BatchingLimits
from companion.deployment.batching.estimating import Estimates
from companion.deployment.batching.heartbeat import Heartbeat
from companion.deployment.batching.waiter import Waiter
from companion.deployment.batching.waiting import Line
from companion.deployment.problems import ProblemError
from companion.inference.throughput.cost import BatchCost

A_SECOND = BatchCost(per_batch=1.0, per_token=0.0)
"""Whatever it holds, a batch takes a second."""
CHEAP = BatchCost(per_batch=1e-2, per_token=1e-5)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A line with everything around it."""

    def __init__(self, *, workers=1, cost=CHEAP, **limits):
        self.clock = Clock()
        self.limits = dataclasses.replace(BatchingLimits(), **limits)
        self.estimates = Estimates(cost, max_length=128)
        self.estimates.encoding_s = lambda characters: 0.0  # round numbers
        self.heartbeat = Heartbeat(workers, stuck_after_s=self.limits.stuck_after_s, clock=self.clock)
        self.line = Line(self.limits, self.estimates, self.heartbeat, clock=self.clock)

    def offer(self, text="some words here", within=math.inf):
        waiter = Waiter(Question(text), self.clock() + within)
        self.line.offer(waiter)
        return waiter

    def refused(self, *arguments, **keywords):
        with pytest.raises(ProblemError) as caught:
            self.offer(*arguments, **keywords)
        return caught.value

    def encode(self, waiters):
        for waiter in waiters:
            waiter.tokens = len(waiter.question.text)
            waiter.encoding = SimpleNamespace(ids=[1] * waiter.tokens, type_ids=[0] * waiter.tokens)
        self.line.encoded(waiters)

    def next_batch(self, worker=0):
        """Do all that comes before a batch; leave the worker in it."""
        while (work := self.line.poll(worker)) is not None:
            if work.kind == "run":
                return work.waiters
            if work.kind == "encode":
                self.encode(work.waiters)
            self.heartbeat.end(worker)
        return None


# --- admission


def test_a_full_line_refuses_and_says_when_to_come_back():
    bench = Bench(requests=3, cost=A_SECOND, wait_s=5.9)
    for _ in range(3):
        bench.offer()
    error = bench.refused()
    assert (error.problem.code, error.status_code) == ("overloaded", 503)
    assert error.headers["Retry-After"] == "3", "three seconds of work are ahead"
    assert "3 requests wait" in error.detail
    assert len(bench.line) == 3


def test_a_line_of_too_much_work_refuses():
    bench = Bench(cost=A_SECOND, wait_s=3.5, requests=100)
    for _ in range(4):
        bench.offer()
    assert bench.line.wait_s() == pytest.approx(4, rel=1e-3)
    error = bench.refused()
    assert (error.problem.code, error.headers["Retry-After"]) == ("overloaded", "1")
    bench.next_batch()
    # It began, and is work for another second; half of it later there is room.
    bench.clock.now += 0.6
    bench.offer()


def test_characters_are_bounded_but_the_longest_text_alone_is_served():
    bench = Bench(characters=100)
    bench.offer("x" * 101)
    error = bench.refused("y")
    assert (error.problem.code, "101 characters" in error.detail) == ("overloaded", True)
    bench.next_batch()
    bench.offer("y" * 100)


def test_more_workers_make_the_wait_shorter():
    one, four = Bench(cost=A_SECOND), Bench(cost=A_SECOND, workers=4)
    for bench in (one, four):
        for _ in range(3):
            bench.offer()
    assert one.line.wait_s() == pytest.approx(4 * four.line.wait_s())


def test_deadline_that_has_passed_is_504_at_once():
    bench = Bench()
    for within in (0.0, -1.0):
        error = bench.refused(within=within)
        assert (error.problem.code, error.status_code) == ("deadline-exceeded", 504)
        assert "Retry-After" not in (error.headers or {})
    assert len(bench.line) == 0


def test_deadline_that_load_makes_impossible_is_503_with_retry_after():
    bench = Bench(cost=A_SECOND)
    bench.offer()
    bench.next_batch()  # the only worker is busy for a second
    error = bench.refused(within=2.0)  # a second of waiting, one of work, and 80% of two seconds
    assert (error.problem.code, error.headers["Retry-After"]) == ("overloaded", "1")
    assert "2.00 s" in error.detail
    assert "1.60 s" in error.detail
    bench.offer(within=2.6)
    assert len(bench.line) == 1


def test_a_free_worker_takes_what_the_estimate_speaks_against():
    """A wrong estimate would otherwise refuse for ever, and never learn."""
    bench = Bench(cost=BatchCost(per_batch=1e6, per_token=1.0))
    waiter = bench.offer(within=0.5)
    assert bench.next_batch() == [waiter]
    assert bench.refused(within=0.5).problem.code == "overloaded"
    bench.heartbeat.end(0)
    bench.offer(within=0.5)


def test_refusal_before_the_body_agrees_with_admission():
    bench = Bench(requests=2)
    assert bench.line.refusal() is None
    bench.offer()
    assert bench.line.refusal() is None
    bench.offer()
    assert bench.line.refusal().problem.code == "overloaded"


def test_draining_lets_nobody_in_and_serves_who_waits():
    bench = Bench()
    waiter = bench.offer()
    bench.line.drain()
    for error in (bench.refused(), bench.line.refusal()):
        assert (error.problem.code, error.status_code) == ("draining", 503)
        assert error.headers == {"Retry-After": "1", "Connection": "close"}
    assert bench.next_batch() == [waiter]


def test_a_closed_line_sends_workers_home_when_it_is_empty():
    bench = Bench()
    waiter = bench.offer()
    bench.line.close()
    assert bench.refused().problem.code == "draining"
    work = bench.line.take(0)
    assert work.kind == "encode"
    bench.encode(work.waiters)
    assert bench.line.take(0).waiters == [waiter]
    assert bench.line.take(0) is None


# --- what a worker gets


def test_texts_are_encoded_before_a_batch_is_chosen():
    bench = Bench()
    first, second = bench.offer("short"), bench.offer("x" * 100)
    work = bench.line.poll(0)
    assert (work.kind, work.waiters) == ("encode", [first, second])
    assert bench.line.poll(1) is None, "another worker does not encode them again, and has no batch yet"
    bench.encode(work.waiters)
    assert bench.line.poll(0).waiters == [first, second]


def test_long_texts_are_encoded_one_by_one_and_hold_up_nobody():
    bench = Bench(workers=2)
    long, short, other = bench.offer("x" * 30_000), bench.offer("one"), bench.offer("two")
    assert bench.line.poll(0).waiters == [long]
    assert bench.line.poll(1).waiters == [short, other]
    bench.encode([short, other])
    bench.heartbeat.end(1)
    assert bench.line.poll(1).waiters == [short, other], "while the long one is still being read"


def test_few_texts_and_idle_workers_are_shared_out():
    bench = Bench(workers=3)
    for _ in range(6):
        bench.offer()
    bench.encode(bench.line.poll(0).waiters)
    bench.heartbeat.end(0)
    assert [len(bench.line.poll(worker).waiters) for worker in range(3)] == [2, 2, 2]
    assert bench.line.poll(0) is None


def test_a_deadline_that_passed_while_waiting_is_dropped_unrun():
    bench = Bench()
    late, fine = bench.offer(within=1.0), bench.offer(within=9.0)
    bench.encode(bench.line.poll(0).waiters)
    bench.clock.now += 1.0
    work = bench.line.poll(0)
    assert (work.kind, work.waiters) == ("expire", [late])
    assert late.abandoned
    assert bench.line.poll(0).waiters == [fine]


def test_who_leaves_is_forgotten():
    bench = Bench()
    waiters = [bench.offer() for _ in range(3)]
    bench.encode(bench.line.poll(0).waiters)
    bench.line.discard(waiters[0])
    bench.line.discard(waiters[0])
    assert bench.line.poll(0).waiters == waiters[1:]
    bench.line.discard(waiters[1])  # it is in a batch already
    assert (waiters[1].abandoned, len(bench.line)) == (True, 0)


def test_who_leaves_while_being_encoded_does_not_come_back():
    bench = Bench()
    waiter = bench.offer()
    work = bench.line.poll(0)
    bench.line.discard(waiter)
    bench.encode(work.waiters)
    bench.heartbeat.end(0)
    assert bench.line.poll(0) is None
    assert bench.line.wait_s() == 0


def test_age_of_the_oldest():
    bench = Bench()
    assert bench.line.oldest_s() == 0
    bench.offer()
    bench.clock.now += 2
    bench.offer()
    bench.clock.now += 1
    assert bench.line.oldest_s() == 3


# --- laws

arrivals = st.lists(st.integers(0, 12), min_size=1, max_size=25)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(ahead=st.integers(0, 30), arrivals=arrivals, seed=st.integers(0, 1000), window=st.integers(1, 64))
def test_nobody_starves_whatever_comes_later(ahead, arrivals, seed, window):
    """Who has n requests ahead is served within n + 1 batches."""
    rng = random.Random(seed)
    bench = Bench(window=window, requests=10_000, wait_s=5.9, cost=BatchCost(1e-6, 1e-9, 1e-12))

    def text():
        return "x" * rng.choice((1, 8, 16, 100, 128))

    for _ in range(ahead):
        bench.offer(text())
    patient = bench.offer("x" * 77)
    for number in range(ahead + 1):
        for _ in range(arrivals[number % len(arrivals)]):
            bench.offer(text())
        batch = bench.next_batch()
        bench.heartbeat.end(0)
        if patient in batch:
            break
    else:
        raise AssertionError(f"not among the first {ahead + 1} batches")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(steps=st.lists(st.sampled_from(["offer", "leave", "run", "late", "encode"]), max_size=60))
def test_everyone_is_handed_out_once_and_the_books_balance(steps):
    bench = Bench(requests=20, workers=2)
    waiting, handed, gone, reading = [], [], [], []
    for number, step in enumerate(steps):
        if step == "offer" and len(waiting) < 20:
            within = 5.0 if number % 3 else math.inf
            waiting.append(bench.offer("x" * (1 + 7 * number % 60), within))
        elif step == "leave" and waiting:
            gone.append(waiting.pop(number % len(waiting)))
            bench.line.discard(gone[-1])
        elif step == "late":
            bench.clock.now += 2.0
        elif step in ("run", "encode") and (work := bench.line.poll(number % 2)) is not None:
            assert all(waiter in waiting for waiter in work.waiters), work.kind
            if work.kind == "encode":
                reading.append(work.waiters)
            else:
                for waiter in work.waiters:
                    waiting.remove(waiter)
                    passed = waiter.deadline <= bench.clock()
                    assert passed == (work.kind == "expire")
                    (gone if passed else handed).append(waiter)
            bench.heartbeat.end(number % 2)
        if reading and step == "encode":
            bench.encode(reading.pop())
        assert len(bench.line) == len(waiting)
    assert len(set(handed) | set(gone)) == len(handed) + len(gone)
    for waiter in waiting:
        bench.line.discard(waiter)
    assert (len(bench.line), bench.line.wait_s(), bench.line._characters) == (0, 0, 0)


# --- estimates


def test_pace_follows_what_runs_and_one_hiccup_is_not_the_end():
    bench = Bench(cost=A_SECOND, wait_s=5.9)
    for _ in range(5):
        bench.offer()
    before = bench.line.wait_s()
    for _ in range(60):
        bench.estimates.ran(1, 8, 2.0, 1.0)
    assert bench.line.wait_s() > 1.8 * before
    bench.estimates.ran(1, 8, 1e9, 1.0)
    for _ in range(60):
        bench.estimates.ran(4, 8, 2.0, 4.0)
    assert bench.estimates.pace == pytest.approx(0.5, abs=0.1)


def test_the_cost_is_learned_from_what_runs():
    estimates = Estimates(CHEAP, max_length=128)
    truth = BatchCost(per_batch=2e-3, per_token=1e-4)
    for number in range(320):
        rows, tokens = 1 + number % 4, 8 * (1 + number % 13)
        estimates.ran(rows, tokens, float(truth.seconds(rows, tokens)), 1.0)
    for rows, tokens in ((1, 8), (4, 64), (2, 100)):
        expected = float(truth.seconds(rows, 8 * math.ceil(tokens / 8)))
        assert estimates.batch_s(rows, tokens) == pytest.approx(expected, rel=0.15)


def test_tokens_are_guessed_from_characters():
    estimates = Estimates(CHEAP, max_length=128)
    assert estimates.tokens(10**6) == 128
    for _ in range(100):
        estimates.encoded(1000, 500, 1e-3, cut=False)
        estimates.encoded(100_000, 128, 1e-1, cut=True)  # says nothing about tokens
    assert estimates.tokens(100) == pytest.approx(52, abs=2)
    assert estimates.encoding_s(1000) == pytest.approx(1e-3, rel=0.1)
    estimates.encoded(0, 1, 1e-3, cut=False)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("interrupted", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("slower", [0.5, 1.0, 20.0])
def test_short_texts_do_not_make_long_ones_look_endless(seed, interrupted, slower):
    """A call costs something whatever its text; and now and then something else runs meanwhile."""
    rng, estimates = random.Random(seed), Estimates(CHEAP, max_length=128)

    def call(characters):
        seconds = slower * (4e-5 + 4e-7 * characters) * rng.uniform(0.8, 1.5)
        if rng.random() < interrupted:
            seconds += rng.uniform(0, 0.1)
        estimates.encoded(characters, characters, seconds, cut=False)

    truth = slower * (4e-5 + 4e-7 * 100_000)
    for _ in range(300):
        call(rng.choice((2, 5, 32, 45, 240)))
        assert estimates.encoding_s(100_000) < 8 * truth + 0.03
    for _ in range(100):
        call(rng.choice((2, 5, 32, 45, 240)))
        call(100_000)
    assert truth / 4 < estimates.encoding_s(100_000) < 2 * truth  # what interrupts does not count in full
    assert 0 <= estimates.encoding_s(2) < 100 * slower * 4e-5


# --- heartbeat


def test_heartbeat_knows_who_is_busy_and_for_how_long():
    clock = Clock()
    heartbeat = Heartbeat(3, stuck_after_s=5, clock=clock)
    assert (heartbeat.idle, heartbeat.remaining_s(), heartbeat.stuck()) == (3, 0, [])
    heartbeat.begin(1, 2.0)
    clock.now += 0.5
    heartbeat.begin(2, 1.0)
    clock.now += 0.5
    assert (heartbeat.idle, heartbeat.remaining_s()) == (1, 1.5)
    clock.now += 4.0
    assert (heartbeat.remaining_s(), heartbeat.stuck()) == (0, []), "overdue is not stuck"
    clock.now += 0.25
    assert heartbeat.stuck() == [5.25]
    heartbeat.begin(1, 1.0)  # it came back, and goes on
    assert heartbeat.stuck() == []
    assert heartbeat.last_progress == clock.now
    clock.now += 1
    heartbeat.end(2)
    assert (heartbeat.idle, heartbeat.last_progress) == (2, clock.now)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(BatchingLimits)])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_limits_must_be_limits(name, value):
    with pytest.raises(ValueError, match=name):
        BatchingLimits(**{name: value})


def test_a_long_line_alone_is_not_stuck():
    with pytest.raises(ValueError, match=r"stuck_after_s is 2.*wait_s \(2\)"):
        BatchingLimits(wait_s=2, stuck_after_s=2)
