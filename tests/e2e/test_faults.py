"""Faults under load: what was accepted is answered, whoever dies, whatever is full, whoever is slow."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from companion.deployment.stack import Stack, StackSettings

LONG = 100_000


@pytest.fixture(scope="module")
def stack(
    program: Callable[[str], str], onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Three servers behind nginx, with answers in Redis for a second, and quotas that nobody uses up."""
    for name in ("nginx", "redis-server"):
        program(name)
    settings = StackSettings(
        onnx_folder,
        port=0,
        without=("prometheus",),
        threads=1,
        rate="1000000/hour",
        client_timeout_s=2,
        arguments=("--characters", str(LONG), "--cache-ttl", "1"),
    )
    with Stack(settings, tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture(autouse=True)
def whole(request: pytest.FixtureRequest) -> None:
    """Let every test begin with all parts there."""
    if "stack" in request.fixturenames:
        request.getfixturevalue("stack").up()


def send(stack: Stack, name: str, number: signal.Signals) -> None:
    pid = stack.process(name)
    assert pid is not None
    os.kill(pid, number)


async def ended(stack: Stack, name: str) -> None:
    async with asyncio.timeout(60):
        while stack.process(name) is not None:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_of_three_servers_is_ended_and_no_request_fails(stack, clients, number):
    async def scenario():
        async with clients.at(stack.url, clients=16) as load:
            await load.more(60)
            send(stack, "server-2", number)
            await ended(stack, "server-2")
            await load.more(100)
            await asyncio.to_thread(stack.up)  # it comes back while they ask
            await load.more(60)
        return load

    load = asyncio.run(scenario())
    assert load.failures == []
    lines = [json.loads(line) for line in (stack.state / "logs" / "nginx.json").read_text().splitlines()]
    assert all("text" not in line and line["status"] < 500 for line in lines)
    assert len(set(line["servers"] for line in lines)) >= 3


def test_all_servers_but_one_may_go(stack, clients):
    async def scenario():
        async with clients.at(stack.url) as load:
            await load.more(20)
            send(stack, "server-1", signal.SIGKILL)
            send(stack, "server-3", signal.SIGTERM)
            await ended(stack, "server-3")
            until = load.answered + 60
            async with asyncio.timeout(120):
                while load.answered < until:
                    await asyncio.sleep(0.01)
        return load

    # One server in the place of three may refuse for a moment; that loses nothing, and says when to return.
    failures = asyncio.run(scenario()).failures
    assert all(one.startswith("503: ") and "retry_after_ms" in one for one in failures), failures
    send(stack, "server-2", signal.SIGKILL)
    asyncio.run(ended(stack, "server-2"))
    nobody = httpx.post(f"{stack.url}/predict", json={"text": "ok"}, trust_env=False)
    assert (nobody.status_code, nobody.json()["code"]) == (503, "unavailable")
    assert (
        nobody.headers["retry-after"] == "1" and nobody.headers["x-request-id"] == nobody.json()["request_id"]
    )


def test_redis_is_killed_and_returns(stack, clients):
    def kept() -> set[str]:
        with redis.Redis(port=stack.ports["redis"], socket_timeout=10) as store:
            names = [bytes(name) for name in store.scan_iter(count=1000)]
        answers = [name for name in names if name.startswith(b"companion:answer:")]
        found = {"answers": len(answers) > 0, "quotas": len(answers) < len(names)}
        return {what for what, there in found.items() if there}

    async def scenario():
        async with clients.at(stack.url) as load:
            await load.more(30)
            assert kept() == {"answers", "quotas"}
            send(stack, "redis", signal.SIGKILL)
            await ended(stack, "redis")
            await load.more(60)
            await asyncio.to_thread(stack.up)
            end = time.monotonic() + 60
            while kept() < {"answers", "quotas"}:  # the servers look again after a few seconds
                assert time.monotonic() < end, f"what is shared again is {kept()}"
                await asyncio.sleep(0.1)
            await load.more(30)
        return load

    assert asyncio.run(scenario()).failures == []
    pages = [httpx.get(f"http://127.0.0.1:{stack.ports[f'server-{n}']}/metrics").text for n in (1, 2, 3)]
    alone = [re.search(r'event="rates-counted-alone"\} (\S+)', page) for page in pages]
    assert any(found and float(found[1]) > 0 for found in alone)


def test_clients_that_disconnect(stack, clients):
    body = json.dumps({"text": "It is long, " * 200}).encode()
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    ports = [stack.ports["nginx"], stack.ports["server-1"]]

    def leave(port: int, sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(sent)

    async def scenario():
        async with clients.at(stack.url) as load:
            for number in range(60):
                whole = head.encode() + body
                await asyncio.to_thread(
                    leave, ports[number % 2], whole if number % 3 else whole[: len(whole) // 2]
                )
            await load.more(30)
        return load

    assert asyncio.run(scenario()).failures == []
    url = f"http://127.0.0.1:{stack.ports['server-1']}/metrics"
    end = time.monotonic() + 30
    while True:  # its own request is the only one in flight, and nobody waits
        page = httpx.get(url).text
        if "companion_requests_in_flight 1.0" in page and "companion_queue_length 0.0" in page:
            break
        assert time.monotonic() < end, page
        time.sleep(0.1)
    assert 'code="internal-error"' not in page


def test_slow_loris_clients(stack, clients):
    async def slow(sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.ports["nginx"])
        writer.write(sent)
        return reader, writer

    async def scenario():
        heads = b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: "
        bodies = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        held = await asyncio.gather(*(slow(heads if number % 2 else bodies) for number in range(300)))
        before = [psutil.Process(stack.process(f"server-{n}")).num_fds() for n in (1, 2, 3)]
        async with clients.at(stack.url) as load:
            await load.more(40)
            # nginx ends them all; a server never hears of one.
            async with asyncio.timeout(60):
                await asyncio.gather(*(reader.read() for reader, _ in held), return_exceptions=True)
            await load.more(20)
        for _, writer in held:
            writer.close()
        return load, before

    load, before = asyncio.run(scenario())
    assert load.failures == []
    assert max(before) < 150


def test_very_long_texts(stack, clients, say):
    texts = [
        f"{number}: {'The film was superb, my cousin came along. ' * 3000}"[:LONG] for number in range(6)
    ]
    expected = [say(text) for text in texts]
    text = texts[0]

    async def scenario():
        async with (
            clients.at(stack.url) as load,
            httpx.AsyncClient(base_url=stack.url, timeout=60, trust_env=False) as http,
        ):
            asked = [http.post("/predict", json={"text": text}) for text in texts]
            answers = await asyncio.gather(*asked)
            refused = await http.post("/predict", json={"text": text + "!"})
            too_large = await http.post("/predict", json={"text": text * 20})
            await load.more(30)
        return load, answers, refused, too_large

    load, answers, refused, too_large = asyncio.run(scenario())
    assert load.failures == []
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert [answer.json()["probabilities"] for answer in answers] == expected
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-input")
    assert (too_large.status_code, too_large.json()["code"]) == (413, "body-too-large")
    assert too_large.headers["content-type"] == "application/problem+json"


@pytest.mark.mount
def test_the_disk_is_full(onnx_folder, small_disk, tmp_path, clients):
    settings = StackSettings(
        onnx_folder,
        servers=1,
        without=("nginx", "redis", "prometheus"),
        threads=1,
        arguments=(
            "--log-file",
            str(small_disk / "log"),
            "--prediction-log",
            str(small_disk / "predictions"),
        ),
    )

    async def scenario(url):
        async with clients.at(url) as load:
            await load.more(20)
            before = (small_disk / "log").read_text().count("\n")
            with (small_disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
                while True:
                    ballast.write(bytes(4096))
            await load.more(150)
            (small_disk / "ballast").unlink(missing_ok=True)
            await load.more(20)
        return load, before

    with Stack(settings, tmp_path / "state") as stack:
        load, before = asyncio.run(scenario(stack.url))
        assert load.failures == []
        text = (small_disk / "log").read_text()
    assert before > 0
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # the one that did not fit is torn
            continue
    lost = [line["lines"] for line in lines if line["event"] == "log lines were lost"]
    assert lost and sum(lost) > 0
    assert lines[-1]["event"] != "log lines were lost"
