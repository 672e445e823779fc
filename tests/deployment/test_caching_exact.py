"""The exact cache in memory, the names and bytes of stored answers, and the circuit breaker."""

from __future__ import annotations

import gc
import math
import tracemalloc

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment.answering import Answer, Question
from companion.deployment.caching import (
    BorrowedAnswer,
    CacheTally,
    CircuitBreaker,
    ExactCache,
    MemoryStore,
    NamedEvents,
)
from companion.deployment.caching.sealing import MAX_VALUE_BYTES, question_key, seal, unseal
from companion.deployment.problems import NOT_READY, ProblemError

FOREVER = math.inf


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Answers with a number that grows with each call; fails for a text with "boom" in it."""

    def __init__(self, version: str = "v1") -> None:
        self.version, self.asked = version, []

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        self.asked.append(question)
        if "boom" in question.text:
            raise ProblemError(NOT_READY, "Not now.")
        return Answer((0.25, len(self.asked) / 1000), ("no", "yes"), self.version)


def asked(cache, *questions: str) -> list[Answer]:
    async def run() -> list[Answer]:
        return [await cache.answer(Question(text), deadline=FOREVER) for text in questions]

    return anyio.run(run)


def cached(model: Model, **keywords) -> ExactCache:
    return ExactCache(model, MemoryStore(**keywords), version=lambda: model.version)


# --- the cache


def test_the_same_question_runs_once():
    model, tally = Model(), CacheTally()
    cache = ExactCache(model, MemoryStore(), version=lambda: "v1", counter=tally, name="memory")
    first, again, other = asked(cache, "one", "one", "two")
    assert first == again
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    assert other != first
    assert model.asked == [Question("one"), Question("two")]
    assert tally.to_dict() == {"memory": {"hit": 1, "miss": 2, "stored": 2}}


def test_a_pair_is_another_question():
    model = Model()
    cache = cached(model)

    async def run() -> None:
        for question in (Question("a"), Question("a", "b"), Question("a", ""), Question("b", "a")):
            await cache.answer(question, deadline=FOREVER)
            await cache.answer(question, deadline=FOREVER)

    anyio.run(run)
    assert len(model.asked) == 4


def test_another_model_version_answers_for_itself():
    model = Model()
    cache = cached(model)
    [old] = asked(cache, "one")
    model.version = "v2"
    [new] = asked(cache, "one")
    assert (old.model_version, new.model_version) == ("v1", "v2")
    model.version = "v1"
    assert asked(cache, "one") == [old]
    assert len(model.asked) == 2


def test_an_answer_is_kept_under_the_model_that_gave_it():
    model = Model("v2")  # the version changed between the look-up and the answer
    store = MemoryStore()
    asked(ExactCache(model, store, version=lambda: "v1"), "one")
    assert asked(ExactCache(model, store, version=lambda: "v2"), "one")[0].model_version == "v2"
    assert len(model.asked) == 1
    asked(ExactCache(model, store, version=lambda: "v1"), "one")
    assert len(model.asked) == 2


def test_an_error_is_not_kept():
    model = Model()
    cache = cached(model)
    for _ in range(2):
        with pytest.raises(ProblemError):
            asked(cache, "boom")
    assert len(model.asked) == 2


def test_a_borrowed_answer_is_not_kept():
    class Borrows(Model):
        async def answer(self, question: Question, *, deadline: float) -> Answer:
            own = await super().answer(question, deadline=deadline)
            return BorrowedAnswer(own.values, own.labels, own.model_version, 0.99)

    model = Borrows()
    asked(cached(model), "one", "one")
    assert len(model.asked) == 2


def test_a_store_that_mixes_up_models_is_not_believed():
    class Mixed(MemoryStore):
        async def get(self, key: bytes, *, deadline: float) -> Answer | None:
            return Answer((1.0,), (), "v0")

    model = Model()
    assert asked(ExactCache(model, Mixed(), version=lambda: "v1"), "one")[0].model_version == "v1"


def test_a_model_that_is_not_loaded_says_so_itself():
    def version() -> str:
        raise ProblemError(NOT_READY, "Try again.")

    model = Model()
    with pytest.raises(ProblemError, match="Try again"):
        asked(ExactCache(model, MemoryStore(), version=version), "one")
    assert model.asked == []


def test_two_levels():
    model, slow = Model(), MemoryStore()
    for _ in range(2):
        fast = MemoryStore()  # a server that starts again
        inner = ExactCache(model, slow, version=lambda: "v1")
        asked(ExactCache(inner, fast, version=lambda: "v1"), "one", "one")
        assert fast.entries == 1
    assert len(model.asked) == 1


def test_events_have_names():
    names = []
    cache = ExactCache(Model(), MemoryStore(), version=lambda: "v1", counter=NamedEvents(names.append))
    asked(cache, "one", "one")
    assert names == ["exact-miss", "exact-stored", "exact-hit"]
    NamedEvents(names.append).count("semantic", "false_hit")
    assert names[-1] == "semantic-false-hit"


def test_the_package_opens_every_name_that_it_lists():
    import companion.deployment.caching as caching

    assert all(getattr(caching, name) is not None for name in caching.__all__)
    assert sorted(caching._HOME_OF) == sorted(caching.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        caching.nothing  # noqa: B018


# --- memory


def test_the_answer_used_longest_ago_goes_first():
    model = Model()
    asked(cached(model, max_entries=2), "a", "b", "a", "c", "a", "b")
    assert [question.text for question in model.asked] == ["a", "b", "c", "b"]


def test_an_answer_expires_however_often_it_is_used():
    model, clock = Model(), Clock()
    cache = cached(model, ttl_s=10, clock=clock)
    for seconds, runs in ((0, 1), (6, 1), (3.9, 1), (0.2, 2)):
        clock.now += seconds
        asked(cache, "one")
        assert len(model.asked) == runs


def test_memory_is_bounded():
    labels = tuple(f"label {index}" for index in range(20))
    store = MemoryStore(max_entries=10**9, max_bytes=400_000)

    async def fill(count: int) -> None:
        for number in range(count):
            values = tuple(float(number + index) for index in range(20))
            # Fresh strings, as answers from Redis have.
            own = tuple("".join(label) for label in labels)
            key = question_key(Question(str(number)), "v1")
            await store.put(key, Answer(values, own, "v" * 12))

    anyio.run(fill, 10)  # what is made once
    tracemalloc.start()
    anyio.run(fill, 3000)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.size <= 400_000
    assert 50 < store.entries < 3000
    assert used < 400_000
    assert used > 100_000  # the estimate is from above, but no fantasy


def test_an_answer_larger_than_the_store_is_dropped():
    tally = CacheTally()
    cache = ExactCache(Model(), MemoryStore(max_bytes=100), version=lambda: "v1", counter=tally)
    asked(cache, "one", "one")
    assert tally.to_dict() == {"exact": {"miss": 2, "dropped": 2}}


@pytest.mark.parametrize(
    "keywords", [{"max_entries": 0}, {"max_bytes": 0}, {"ttl_s": 0}, {"ttl_s": math.nan}]
)
def test_a_store_that_keeps_nothing_is_refused(keywords):
    with pytest.raises(ValueError, match="expected more than 0"):
        MemoryStore(**keywords)


# --- names

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # half surrogate pairs included


@settings(deadline=None)
@given(TEXT, st.none() | TEXT, TEXT, TEXT, st.none() | TEXT, TEXT)
def test_keys_are_equal_where_the_questions_are(text, pair, version, other_text, other_pair, other_version):
    key = question_key(Question(text, pair), version)
    other = question_key(Question(other_text, other_pair), other_version)
    assert (key == other) == ((text, pair, version) == (other_text, other_pair, other_version))
    assert key == question_key(Question(text, pair), version)
    assert len(key) == 20


@settings(deadline=None)
@given(st.text("ab", max_size=3), st.text("ab", max_size=3), st.integers(0, 3))
def test_a_text_split_otherwise_is_another_question(text, pair, at):
    moved = (text + pair)[:at], (text + pair)[at:]
    same = question_key(Question(text, pair), "v") == question_key(Question(*moved), "v")
    assert same == (moved == (text, pair))


# --- bytes

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LABELLED = st.lists(st.tuples(FLOATS, st.text(st.characters(exclude_categories=()), max_size=5)), min_size=1)
ANSWERS = st.one_of(
    LABELLED.map(lambda rows: Answer(tuple(v for v, _ in rows), tuple(label for _, label in rows), "v")),
    FLOATS.map(lambda value: Answer((value,), (), "v")),
)
KEYS = st.binary(min_size=20, max_size=20)


@settings(deadline=None)
@given(ANSWERS, KEYS, st.binary(max_size=64))
def test_an_answer_comes_back_bit_for_bit(answer, key, secret):
    found = unseal(seal(answer, key, secret), key, secret)
    assert found == answer
    assert [value.hex() for value in found.values] == [value.hex() for value in answer.values]


@settings(max_examples=300, deadline=None)
@given(ANSWERS, KEYS, st.data())
def test_a_damaged_value_is_a_miss(answer, key, data):
    sealed = bytearray(seal(answer, key, b"s"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    assert unseal(bytes(sealed), key, b"s") is None
    assert unseal(bytes(sealed[:place]), key, b"s") is None


@settings(deadline=None)
@given(ANSWERS, KEYS, KEYS)
def test_a_value_under_another_key_or_secret_is_a_miss(answer, key, other):
    assert (unseal(seal(answer, key), other) is None) == (key != other)
    assert unseal(seal(answer, key, b"ours"), key, b"theirs") is None


@settings(deadline=None)
@given(st.one_of(st.binary(), st.none(), st.integers(), st.text(), st.lists(st.binary())), KEYS)
def test_a_foreign_value_is_a_miss(value, key):
    assert unseal(value, key) is None


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"[]",
        b"[[0.5],[],3]",
        b'[[0.5,0.5],[],"v"]',
        b'[[0.5],["a","b"],"v"]',
        b'[[1],[],"v"]',
        b'[[true],[],"v"]',
        b'[[NaN],[],"v"]',
        b'[[1e999],[],"v"]',
        b'[[0.5],[1],"v"]',
        b"[" * 30_000,
        b"\xff",
    ],
)
def test_a_well_sealed_lie_is_a_miss(payload):
    from companion.deployment.caching import sealing

    key = b"k" * 20
    forged = sealing._MAGIC + sealing._mac(payload, key, b"") + payload
    assert unseal(forged, key) is None


def test_what_is_not_worth_keeping():
    assert seal(Answer((math.nan, 0.0), ("a", "b"), "v"), b"k" * 20) is None
    assert seal(Answer((0.5,) * 9000, ("a" * 9,) * 9000, "v"), b"k" * 20) is None
    large = Answer((0.5,) * 1000, tuple(f"label {index}" for index in range(1000)), "v")
    assert len(seal(large, b"k" * 20)) < MAX_VALUE_BYTES


# --- the circuit breaker


def test_the_breaker_opens_after_failures_in_a_row():
    breaker = CircuitBreaker(failures=3, clock=Clock())
    assert [breaker.failed(), breaker.failed()] == [False, False]
    breaker.succeeded()
    assert [breaker.failed(), breaker.failed(), breaker.is_open, breaker.failed()] == [
        False,
        False,
        False,
        True,
    ]
    assert breaker.is_open


def test_one_probe_at_a_time_and_each_wait_twice_as_long():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, cool_down_s=1, longest_s=3, clock=clock)
    assert not breaker.take_probe()  # closed: nothing to find out
    breaker.failed()
    for wait in (1, 2, 3, 3):
        assert not breaker.take_probe()
        clock.now += wait - 0.01
        assert not breaker.take_probe()
        clock.now += 0.02
        assert breaker.take_probe()
        assert not breaker.take_probe()
        breaker.probed(False)
        assert breaker.is_open
    clock.now += 3.01
    assert breaker.take_probe()
    breaker.probed(True)
    assert not breaker.is_open
    breaker.failed()
    clock.now += 1.01
    assert breaker.take_probe()  # the wait is the first one again


def test_calls_that_began_before_it_opened_change_nothing():
    clock = Clock()
    breaker = CircuitBreaker(failures=1, cool_down_s=1, clock=clock)
    assert breaker.failed()
    breaker.succeeded()
    assert breaker.is_open
    clock.now += 0.9
    assert not breaker.failed()
    clock.now += 0.2
    assert breaker.take_probe()


@pytest.mark.parametrize("keywords", [{"failures": 0}, {"cool_down_s": 0}, {"cool_down_s": 9}])
def test_a_breaker_that_never_works_is_refused(keywords):
    with pytest.raises(ValueError, match="CircuitBreaker"):
        CircuitBreaker(**keywords)
