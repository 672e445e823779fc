"""Rates: a quota that holds, a wait that is enough, and a Redis that may go away."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment import Limits
from companion.deployment.gate import caller_address
from companion.deployment.keys import add_key
from companion.deployment.rates import (
    REDIS_PAUSE_S,
    MemoryWindows,
    RateLimiter,
    RedisWindows,
    check_redis_url,
    parse_rate,
)

REDIS = shutil.which("redis-server") or "/usr/bin/redis-server"


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "amount", "seconds"),
    [("100/minute", 100, 60), ("5 per second", 5, 1), ("1000 per 2 hours", 1000, 7200), ("7/day", 7, 86400)],
)
def test_rates_that_are(text, amount, seconds):
    item = parse_rate(text)
    assert (item.amount, item.get_expiry()) == (amount, seconds)


@pytest.mark.parametrize(
    "text", ["", "100", "fast", "0/minute", "-1/minute", "1/fortnight", "1/second;9/minute"]
)
def test_rates_that_are_none(text):
    with pytest.raises(ValueError, match="for example 100/minute"):
        parse_rate(text)


def test_addresses_of_redis():
    check_redis_url("redis://127.0.0.1:6379/0")
    for url in ("", "127.0.0.1:6379", "http://x", "redis://", "unix:///x", "redis://:secret@"):
        with pytest.raises(ValueError, match="expected redis://") as refused:
            check_redis_url(url)
        assert "secret" not in str(refused.value)


# --- the window in memory

steps = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 6)), max_size=60)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(limit=st.integers(1, 12), window=st.integers(1, 30), start=st.floats(0, 100), steps=steps)
def test_no_fixed_window_admits_more_than_the_quota_and_the_wait_is_enough(limit, window, start, steps):
    async def play() -> None:
        clock = Clock(start)
        limiter = RateLimiter(f"{limit} per {window} seconds", clock=clock)
        admitted: dict[int, int] = {}
        for pause, cost in steps:
            clock.now += pause
            use = await limiter.take("a", cost)
            assert 0 <= use.remaining <= limit
            if use.allowed:
                number = int(clock.now // window)
                admitted[number] = admitted.get(number, 0) + cost
                assert 0 < use.reset_s <= window
            elif cost > limit:
                assert math.isinf(use.reset_s)
            else:
                assert use.remaining < cost, "what is left would have been enough"
                assert 0 <= use.reset_s <= 2 * window
                probe = RateLimiter(f"{limit} per {window} seconds", own=limiter._own, clock=clock)
                then, clock.now = clock.now, clock.now + math.floor(use.reset_s) + 1
                assert (await probe.take("a", cost)).allowed, "Retry-After was too short"
                number = int(clock.now // window)
                admitted[number] = admitted.get(number, 0) + cost
                assert clock.now > then
        assert max(admitted.values(), default=0) <= limit

    asyncio.run(play())


def test_the_window_slides():
    async def play() -> None:
        clock = Clock(1000.0)
        limiter = RateLimiter("10 per 10 seconds", clock=clock)
        assert [(await limiter.take("a")).allowed for _ in range(11)] == [True] * 10 + [False]
        assert (await limiter.take("b")).allowed, "each caller has a quota of its own"
        clock.now = 1010.0
        assert not (await limiter.take("a")).allowed, "the last ten seconds are still full"
        clock.now = 1015.0
        assert [(await limiter.take("a")).allowed for _ in range(6)] == [True] * 5 + [False]
        clock.now = 1040.0
        use = await limiter.take("a", 10)
        assert (use.allowed, use.remaining, use.reset_s) == (True, 0, 10.0)

    asyncio.run(play())


def test_a_refusal_costs_nothing():
    async def play() -> None:
        limiter = RateLimiter("10/minute", clock=Clock())
        assert not (await limiter.take("a", 11)).allowed
        assert not (await limiter.take("a", 1000)).allowed
        assert (await limiter.take("a", 10)).allowed

    asyncio.run(play())


def test_only_the_last_callers_are_remembered():
    async def play() -> None:
        windows = MemoryWindows(callers=3, clock=Clock())
        for caller in "abcad":  # a is seen again before d comes: b is the one that was quiet
            assert await windows.acquire_sliding_window_entry(caller, 2, 60)
        assert sorted(windows._counts) == ["a", "c", "d"]
        assert not await windows.acquire_sliding_window_entry("a", 2, 60)

    asyncio.run(play())


# --- a shared window that fails


class Flaky(MemoryWindows):
    def __init__(self) -> None:
        super().__init__(clock=Clock())
        self.works, self.asked = True, 0

    async def acquire_sliding_window_entry(self, key, limit, expiry, amount=1):
        self.asked += 1
        if not self.works:
            raise ConnectionError("gone")
        return await super().acquire_sliding_window_entry(key, limit, expiry, amount)


def test_without_redis_each_server_counts_for_itself_and_says_so_once(caplog):
    async def play() -> None:
        clock, shared = Clock(), Flaky()
        limiter = RateLimiter("3/hour", shared=shared, clock=clock)
        assert (await limiter.take("a")).remaining == 2
        shared.works = False
        assert [(await limiter.take("a")).remaining for _ in range(3)] == [2, 1, 0]
        assert not (await limiter.take("a")).allowed, "a quota all the same"
        assert shared.asked == 2, "and nobody waits for it meanwhile"
        clock.now += REDIS_PAUSE_S
        assert not (await limiter.take("a")).allowed
        assert shared.asked == 3
        shared.works = True
        clock.now += REDIS_PAUSE_S
        assert (await limiter.take("a")).remaining == 1, "the shared count goes on where it was"

    asyncio.run(play())
    words = [record.getMessage() for record in caplog.records]
    assert len(words) == 2
    assert "each server for itself: gone" in words[0]
    assert "together again" in words[1]


def test_while_one_call_tries_redis_the_others_do_not_wait():
    async def play() -> None:
        clock, shared = Clock(), Flaky()
        limiter = RateLimiter("100/hour", shared=shared, clock=clock)
        shared.works = False
        await limiter.take("a")
        clock.now += REDIS_PAUSE_S
        hanging = asyncio.Event()
        entered = asyncio.Event()

        async def hang(*arguments: object) -> bool:
            entered.set()
            await hanging.wait()
            raise ConnectionError("still gone")

        shared.acquire_sliding_window_entry = hang
        trying = asyncio.create_task(limiter.take("a"))
        await entered.wait()
        assert (await asyncio.wait_for(limiter.take("a"), 30)).allowed
        hanging.set()
        assert (await trying).allowed

    asyncio.run(play())


# --- a real Redis


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None], list[subprocess.Popen[bytes]]]]:
    if not Path(REDIS).exists():
        reason = "no redis-server: apt-get install redis-server"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{reason} (CI=true: a missing part is a failure)", pytrace=False)
        pytest.skip(reason)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                return
            except OSError:
                time.sleep(0.05)
        pytest.fail("redis-server does not answer")

    start()
    yield f"redis://127.0.0.1:{port}/0", start, started
    for process in started:
        process.kill()
        process.wait()


def test_two_servers_share_a_quota_until_redis_dies_and_after_it_returns(redis_server, caplog):
    url, start, started = redis_server

    async def play() -> None:
        clock = Clock()
        # Long timeouts: the test is about what happens, not about how fast this machine is.
        windows = [RedisWindows(url, timeout_s=30) for _ in range(2)]
        one, two = (RateLimiter("4/hour", shared=shared, clock=clock) for shared in windows)
        assert [(await server.take("a")).remaining for server in (one, two, one)] == [3, 2, 1]
        refused = await two.take("a", 2)
        assert (refused.allowed, refused.remaining) == (False, 1)
        assert 0 < refused.reset_s <= 2 * 3600
        assert (await asyncio.gather(*(one.take("b") for _ in range(50))))[0].allowed, (
            "more calls than sockets"
        )
        started[-1].kill()
        started[-1].wait()
        assert [(await one.take("a")).allowed for _ in range(5)] == [True] * 4 + [False]
        start()
        clock.now += REDIS_PAUSE_S
        assert (await one.take("a")).remaining == 3, "an empty Redis counts from nothing"
        assert (await two.take("a")).remaining == 2
        for shared in windows:
            await shared.aclose()

    asyncio.run(play())
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_a_server_whose_redis_is_not_there_answers(serving):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    client = serving(rate="2/hour", redis=f"redis://127.0.0.1:{port}/0")
    assert [client.predict({"text": "x"}).status_code for _ in range(3)] == [200, 200, 429]


# --- at the gate


def test_too_much_is_refused_with_when_to_come_back(serving, model):
    client = serving(rate="2/minute")
    first, second, third = (client.predict({"text": "x"}) for _ in range(3))
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert [answer.headers["ratelimit-policy"] for answer in (first, third)] == ['"default";q=2;w=60'] * 2
    assert first.headers["ratelimit"].startswith('"default";r=1;t=')
    assert third.headers["ratelimit"].startswith('"default";r=0;t=')
    body = third.json()
    assert body["code"] == "rate-limited"
    assert 1 <= int(third.headers["retry-after"]) <= 121
    assert body["retry_after_ms"] == 1000 * int(third.headers["retry-after"])
    assert len(model.seen) == 3, "the warm-up and two"
    for path in ("/health/live", "/health/ready", "/metrics", "/v2/health/ready"):
        answer = client.request("GET", path)
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers
    assert client.request("GET", "/nothing").status_code == 429, "unknown addresses count as well"


def test_the_quota_is_the_keys(serving, tmp_path):
    first, second = (add_key(tmp_path / "keys", "same-name")[0] for _ in range(2))
    client = serving(rate="1/minute", api_keys=tmp_path / "keys")
    statuses = [
        client.predict({"text": "x"}, **{"X-API-Key": token}).status_code for token in (first, first, second)
    ]
    assert statuses == [200, 429, 200]
    assert client.predict({"text": "x"}).status_code == 401, "and nobody's without one"


def test_every_text_of_a_batch_counts(serving, model):
    client = serving(rate="10/minute")
    three = {"items": [{"text": "x"}] * 3}
    infer = {"inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "data": ["x"] * 3}]}
    assert (
        client.request("POST", "/predict/batch", json=three).headers["ratelimit"].startswith('"default";r=7')
    )
    path = "/v2/models/companion/infer"
    assert client.request("POST", path, json=infer).headers["ratelimit"].startswith('"default";r=4')
    assert client.request("POST", "/predict/batch", json=three).status_code == 200
    seen = len(model.seen)
    answer = client.request("POST", "/predict/batch", json={"items": [{"text": "x"}] * 2})
    assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")
    assert len(model.seen) == seen
    # The refused batch has cost the one that its request cost.
    assert client.predict({"text": "x"}).status_code == 429


def test_no_batch_may_be_larger_than_a_quota(serving):
    client = serving(Limits(batch_texts=8), rate="3/minute")
    answer = client.request("POST", "/predict/batch", json={"items": [{"text": "x"}] * 4})
    assert (answer.status_code, answer.json()["code"]) == (413, "batch-too-large")
    schema = client.request("GET", "/openapi.json").json()
    assert schema["components"]["schemas"]["BatchRequest"]["properties"]["items"]["maxItems"] == 3
    assert "429" in schema["paths"]["/predict"]["post"]["responses"]
    assert "429" not in schema["paths"]["/health/ready"]["get"]["responses"]


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("10.1.2.3", 5), "address:10.1.2.3"),
        (("::ffff:10.1.2.3", 5), "address:10.1.2.3"),
        (("2001:db8:1:2:3:4:5:6", 5), "address:2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 5), "address:2001:db8:1:2::/64"),
        (("testclient", 5), "address:unknown"),
        (("fe80::1%eth0", 5), "address:fe80::/64"),
        (None, "address:unknown"),
    ],
)
def test_who_calls(client, expected):
    assert caller_address({"type": "http", "client": client}) == expected
