"""Answers in a real Redis: shared, forgotten in time, and no reason to fail when it fails."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, RedisError

from companion.deployment.answering import Answer, Question
from companion.deployment.caching import CacheTally, CircuitBreaker, ExactCache, RedisStore, SingleFlight
from companion.deployment.caching.remote import MAX_PENDING
from companion.deployment.caching.sealing import question_key

BINARY = Path("/usr/bin/redis-server")
FOREVER = math.inf
PATIENT = 20.0
"""Seconds for one call where Redis is well: a busy machine must not decide a test."""


class Server:
    """A redis-server on a free port of this machine; it can be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder, self.options = folder, options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen([BINARY, *settings, *self.options], stdout=subprocess.DEVNULL)
        with self.client() as client:
            until = time.monotonic() + 60
            while True:
                try:
                    client.ping()
                    return
                except RedisError:
                    if time.monotonic() > until:
                        raise
                time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(30)

    def client(self) -> Redis:
        return Redis(port=self.port, socket_timeout=PATIENT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    if not BINARY.exists():
        reason = f"no redis-server at {BINARY}: apt-get install redis-server"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{reason} (CI=true: a missing part is a failure)", pytrace=False)
        pytest.skip(reason)
    started: list[Server] = []

    def start(*options: str) -> Server:
        started.append(Server(tmp_path, *options))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.send(signal.SIGKILL)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Answers each text with its own numbers."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        self.asked.append(question.text)
        await asyncio.sleep(0)
        return own_answer(question.text)


def own_answer(text: str) -> Answer:
    value = random.Random(text).random()
    return Answer((value, 1 - value), ("no", "yes"), "v1")


def key(text: str) -> bytes:
    return question_key(Question(text), "v1")


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.005)


# --- Redis is well


def test_servers_share_answers_and_redis_sees_no_text(server):
    redis = server()

    async def work() -> None:
        one, other = (RedisStore(redis.url, timeout_s=PATIENT, secret=b"s") for _ in range(2))
        stranger = RedisStore(redis.url, timeout_s=PATIENT, secret=b"another")
        answer = own_answer("a confidential text")
        assert await one.get(key("a confidential text"), deadline=FOREVER) is None
        assert await one.put(key("a confidential text"), answer)
        await one.flush()
        found = await other.get(key("a confidential text"), deadline=FOREVER)
        assert found == answer
        assert [value.hex() for value in found.values] == [value.hex() for value in answer.values]
        assert await stranger.get(key("a confidential text"), deadline=FOREVER) is None
        for store in (one, other, stranger):
            await store.aclose()

    run(work())
    with redis.client() as client:
        [name] = client.keys()
        assert name.startswith(b"companion:answer:")
        assert key("a confidential text").hex().encode() not in name  # who has no secret cannot guess it
        assert b"confidential" not in name + client.get(name)


def test_redis_forgets_in_time(server):
    redis = server()

    async def work() -> None:
        store = RedisStore(redis.url, timeout_s=PATIENT, ttl_s=100, prefix="mine:")
        await store.put(key("one"), own_answer("one"))
        await store.aclose()

    run(work())
    with redis.client() as client:
        [name] = client.keys()
        assert name.startswith(b"mine:")
        assert 0 < client.pttl(name) <= 100_000


def test_whatever_lies_under_the_key_is_a_miss_and_no_error(server):
    redis = server()

    async def work() -> None:
        tally = CacheTally()
        model = Model()
        store = RedisStore(redis.url, timeout_s=PATIENT, counter=tally)
        cache = ExactCache(model, store, version=lambda: "v1", counter=tally)

        async def ask(text: str) -> None:
            assert await cache.answer(Question(text), deadline=FOREVER) == own_answer(text)
            await store.flush()

        await ask("other")
        await ask("one")
        await ask("one")
        assert model.asked == ["other", "one"]
        with redis.client() as client:
            name = store._named(key("one"))
            sealed, foreign = client.get(name), client.get(store._named(key("other")))
            rubbish = [b"", b"hello", sealed[:-1], sealed + b" ", foreign, b"\x00" * 100_000, sealed[::-1]]
            for number, value in enumerate(rubbish):
                client.set(name, value)
                await ask("one")
                assert model.asked.count("one") == 2 + number
                assert client.get(name) == sealed  # and made good
            client.delete(name)
            client.rpush(name, b"a list")
            await ask("one")
        assert not store.is_down
        assert tally.of("redis", "damaged") == len(rubbish)
        assert tally.of("redis", "error") == 1
        await store.aclose()

    run(work())


def test_a_full_redis_is_still_read(server):
    redis = server("--maxmemory-policy", "noeviction")

    async def work() -> None:
        tally = CacheTally()
        store = RedisStore(redis.url, timeout_s=PATIENT, counter=tally)
        await store.put(key("one"), own_answer("one"))
        await store.flush()
        with redis.client() as client:
            client.config_set("maxmemory", "1")
        for number in range(10):
            await store.put(key(f"new {number}"), own_answer("new"))
            await store.flush()
        assert tally.of("redis", "error") == 10
        assert not store.is_down
        assert await store.get(key("one"), deadline=FOREVER) == own_answer("one")
        await store.aclose()

    run(work())


def test_a_cancelled_question_leaves_no_answer_for_the_next_one(server):
    """A reply that nobody waits for must not be read by the next command on that connection."""
    redis = server()

    async def work() -> None:
        store = RedisStore(redis.url, timeout_s=PATIENT, connections=3)
        texts = [f"text {number}" for number in range(20)]
        for text in texts:
            await store.put(key(text), own_answer(text))
        await store.flush()
        rng = random.Random(0)
        for _ in range(30):
            tasks = {text: asyncio.create_task(store.get(key(text), deadline=FOREVER)) for text in texts}
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            left = set(rng.sample(texts, 8))
            for text in left:
                tasks[text].cancel()
            for text, task in tasks.items():
                if text in left:
                    await asyncio.wait({task})
                else:
                    assert await task == own_answer(text)
        assert not store.is_down
        await store.aclose()

    run(work())


# --- Redis is not well


def test_redis_killed_and_returned_in_the_middle(server):
    redis = server()

    async def work() -> None:
        tally, model = CacheTally(), Model()
        breaker = CircuitBreaker(cool_down_s=0.01, longest_s=0.05)
        store = RedisStore(redis.url, timeout_s=PATIENT, breaker=breaker, counter=tally)
        answerer = SingleFlight(ExactCache(model, store, version=lambda: "v1"))
        stop, answered = asyncio.Event(), 0
        rng = random.Random(0)

        async def client() -> None:
            nonlocal answered
            while not stop.is_set():
                text = f"text {rng.randrange(40)}"
                assert await answerer.answer(Question(text), deadline=FOREVER) == own_answer(text)
                answered += 1
                await asyncio.sleep(0.001)

        async def more(count: int) -> None:
            goal = answered + count
            await until(lambda: answered >= goal or any(task.done() for task in clients))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        await more(100)
        assert not store.is_down
        redis.send(signal.SIGKILL)
        await until(lambda: store.is_down)
        await more(100)
        assert store.is_down
        assert tally.of("redis", "unavailable") >= 50
        redis.start()
        await until(lambda: not store.is_down)
        await more(100)
        before = len(model.asked)
        await more(100)
        assert len(model.asked) - before < 100  # answers are found again
        stop.set()
        await asyncio.gather(*clients)
        assert tally.of("redis", "opened") == tally.of("redis", "closed") >= 1
        await store.aclose()

    run(work())


def test_a_redis_that_hangs_is_left_alone_until_it_answers(server):
    redis = server()

    async def work() -> None:
        clock, tally = Clock(), CacheTally()
        breaker = CircuitBreaker(failures=3, cool_down_s=10, longest_s=10, clock=clock)
        store = RedisStore(redis.url, timeout_s=0.05, breaker=breaker, counter=tally)
        redis.send(signal.SIGSTOP)
        for asked in (1, 2, 3):
            assert not store.is_down
            assert await store.get(key("one"), deadline=FOREVER) is None
            assert tally.of("redis", "error") == asked
        assert store.is_down
        clock.now += 11
        assert await store.get(key("one"), deadline=FOREVER) is None  # does not wait for the ping
        await until(lambda: not breaker._probing)
        assert store.is_down
        redis.send(signal.SIGCONT)
        while store.is_down:  # a ping on a busy machine may come too late, the next one will not
            clock.now += 11
            await store.get(key("one"), deadline=FOREVER)
            await until(lambda: not breaker._probing)
        assert tally.of("redis", "closed") == 1
        await store.aclose()

    run(work())


def test_a_dead_redis_is_not_even_tried():
    async def work() -> None:
        connected = 0

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connected
            connected += 1
            await reader.read()
            writer.close()

        listener = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        tally = CacheTally()
        breaker = CircuitBreaker(failures=2, clock=Clock())
        url = f"redis://127.0.0.1:{port}/0"
        store = RedisStore(url, timeout_s=0.02, breaker=breaker, counter=tally)
        for _ in range(2):
            await store.get(key("one"), deadline=FOREVER)
        assert store.is_down
        await asyncio.sleep(0)
        tried = connected
        for number in range(1000):
            assert await store.get(key(str(number)), deadline=FOREVER) is None
            assert not await store.put(key(str(number)), own_answer("one"))
        assert connected == tried
        assert tally.of("redis", "unavailable") == 1000
        await store.aclose()
        listener.close()

    run(work())


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$-5\r\n\r\n",
        b"$999999999999\r\n",
        b"$five\r\nhello\r\n",
        b"*99999\r\n",
        b"%-3\r\n",
        b"\x00\xff\xfe" * 50,
        b"-ERR max number of clients reached\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"+OK\r\n+OK\r\n+OK\r\n:7\r\n*0\r\n",
        b"",
    ],
)
def test_a_server_that_talks_rubbish_is_a_miss(reply):
    async def work() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while reply and await reader.read(1000):
                writer.write(reply)
            writer.close()

        listener = await asyncio.start_server(talk, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
        store = RedisStore(url, timeout_s=0.05, breaker=CircuitBreaker(failures=100))
        model = Model()
        cache = ExactCache(model, store, version=lambda: "v1")
        for number in range(1, 4):
            assert await cache.answer(Question("one"), deadline=FOREVER) == own_answer("one")
            await store.flush()
            assert len(model.asked) == number
        await store.aclose()
        listener.close()

    run(work())


def test_a_short_deadline_is_kept_and_says_nothing_about_redis(server):
    redis = server()

    async def work() -> None:
        breaker = CircuitBreaker(failures=1)
        store = RedisStore(redis.url, timeout_s=PATIENT, breaker=breaker)
        redis.send(signal.SIGSTOP)
        begun = time.monotonic()
        assert await store.get(key("one"), deadline=time.monotonic() + 0.01) is None
        assert await store.get(key("one"), deadline=time.monotonic() - 1) is None
        assert time.monotonic() - begun < PATIENT
        assert not store.is_down
        redis.send(signal.SIGCONT)
        await store.aclose()

    run(work())


def test_answers_that_wait_to_be_written_are_bounded(server):
    redis = server()

    async def work() -> None:
        store = RedisStore(redis.url, timeout_s=PATIENT)
        redis.send(signal.SIGSTOP)
        kept = [await store.put(key(str(number)), own_answer("one")) for number in range(MAX_PENDING + 50)]
        assert kept == [True] * MAX_PENDING + [False] * 50
        redis.send(signal.SIGCONT)
        await store.aclose()

    run(work())
    with redis.client() as client:
        assert client.dbsize() == MAX_PENDING  # closing wrote them all


def test_closing_without_redis():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def work() -> None:
        clock = Clock()
        breaker = CircuitBreaker(failures=1, cool_down_s=1, clock=clock)
        store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=PATIENT, breaker=breaker)
        assert await store.get(key("one"), deadline=FOREVER) is None
        assert store.is_down
        clock.now += 2
        await store.get(key("one"), deadline=FOREVER)  # a ping is under way
        await store.aclose()

    run(work())


@pytest.mark.parametrize(
    ("url", "keywords", "words"),
    [
        ("http://127.0.0.1", {}, "expected an address such as"),
        ("redis://127.0.0.1:port", {}, "expected an address such as"),
        ("redis://127.0.0.1", {"ttl_s": 0}, "ttl_s is 0"),
        ("redis://127.0.0.1", {"timeout_s": 0}, "timeout_s 0"),
        ("redis://127.0.0.1", {"connections": 0}, "connections 0"),
        ("redis://127.0.0.1", {"secret": b"x" * 65}, "65 bytes"),
    ],
)
def test_what_can_never_work_is_refused(url, keywords, words):
    with pytest.raises(ValueError, match=words):
        RedisStore(url, **keywords)


# --- behind a served application


def counted(client: Any) -> dict[str, float]:
    """Return the named events of /metrics."""
    lines = client.request("GET", "/metrics").text.splitlines()
    parts = [line.split('"') for line in lines if line.startswith("companion_events_total{")]
    return {name: float(value.lstrip("} ")) for _, name, value in parts}


def test_redis_dies_and_returns_under_requests_and_no_client_notices(server, serving, model):
    redis = server()
    client = serving(cache=redis.url)
    texts = [f"text number {number}" for number in range(5)]
    fresh = {text: client.predict({"text": text}).json()["probabilities"] for text in texts}

    def ask(rounds: int) -> None:
        waiting = [
            (text, client.start("POST", "/predict", json={"text": text}))
            for _ in range(rounds)
            for text in texts
        ]
        for text, future in waiting:
            answer = future.result(60)
            assert answer.status_code == 200, answer.text
            assert answer.json()["probabilities"] == fresh[text]

    def ask_until(event: str) -> None:
        end = time.monotonic() + 60
        while not counted(client).get(event):
            assert time.monotonic() < end, f"no {event}"
            ask(2)

    ask_until("exact-hit")
    redis.send(signal.SIGKILL)
    ask_until("redis-opened")
    assert counted(client)["redis-error"] >= 3
    assert client.request("GET", "/health/ready").status_code == 200
    ask(5)
    redis.start()
    ask_until("redis-closed")
    hits = counted(client)["exact-hit"]
    end = time.monotonic() + 60
    while counted(client)["exact-hit"] == hits:
        assert time.monotonic() < end, "it is not used again"
        ask(2)


def test_two_servers_share_what_they_know(server, serving, model):
    redis = server()
    one, other = serving(cache=redis.url), serving(cache=redis.url)
    first = one.predict({"text": "a fine film"}).json()["probabilities"]
    end = time.monotonic() + 60
    while not counted(other).get("exact-hit"):
        assert time.monotonic() < end
        assert other.predict({"text": "a fine film"}).json()["probabilities"] == first
    with redis.client() as client:
        names = list(client.scan_iter())
        stored = b"".join(client.get(name) or b"" for name in names)
    assert names and b"fine film" not in stored + b"".join(names)


def test_a_redis_that_is_not_there_at_the_start_is_no_reason_not_to_start(serving):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        client = serving(cache=f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")
        assert {client.predict({"text": f"text {n}"}).status_code for n in range(20)} == {200}
