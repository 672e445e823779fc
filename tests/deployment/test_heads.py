"""A slow-loris client without nginx: its connection ends, and nobody else's."""

from __future__ import annotations

import asyncio
import socket

import pytest

from companion.deployment import ServerSettings
from companion.deployment.heads import TimedHeadProtocol
from companion.deployment.server import configure

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


async def echo(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def asking(monkeypatch):
    """Run a scenario with the port of a server that gives a head 0.3 s, and an idle connection longer."""
    import uvicorn

    monkeypatch.setattr(TimedHeadProtocol, "head_within_s", 0.3)
    config = configure(echo, ServerSettings())
    assert config.http is TimedHeadProtocol
    config.timeout_keep_alive = 300
    config.timeout_graceful_shutdown = 1

    def run(scenario):
        async def main():
            server = uvicorn.Server(config)
            with socket.create_server(("127.0.0.1", 0)) as listener:
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                try:
                    async with asyncio.timeout(60):
                        await scenario(listener.getsockname()[1])
                finally:
                    server.should_exit = True
                    await serving

        asyncio.run(main())

    return run


async def ended(reader):
    """Wait for the end of a connection; return what came before it."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"P", HEAD[:-2]])
def test_a_head_that_does_not_come_ends_its_connection(asking, begun):
    async def scenario(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        assert await ended(reader) == b""

    asking(scenario)


@pytest.mark.parametrize("begun", [b"\r\n", b"P", HEAD[:-2]])
def test_and_so_does_a_further_one(asking, begun):
    async def scenario(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"once")
        assert (await reader.readuntil(b"once")).startswith(b"HTTP/1.1 200")
        writer.write(begun)
        assert await ended(reader) == b""

    asking(scenario)


def test_a_slow_body_and_an_idle_connection_are_no_slow_heads(asking):
    async def scenario(port):
        slow, to_slow = await asyncio.open_connection("127.0.0.1", port)
        to_slow.write(HEAD + b"sl")
        idle, to_idle = await asyncio.open_connection("127.0.0.1", port)
        to_idle.write(HEAD + b"idle")
        await idle.readuntil(b"idle")
        for _ in range(2):  # twice as long as a head may take
            loris, _ = await asyncio.open_connection("127.0.0.1", port)
            await ended(loris)
        to_slow.write(b"ow")
        assert (await slow.readuntil(b"slow")).startswith(b"HTTP/1.1 200")
        to_idle.write(HEAD + b"more")
        assert (await idle.readuntil(b"more")).startswith(b"HTTP/1.1 200")

    asking(scenario)
