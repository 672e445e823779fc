"""A small HTTP server whose every fault is planted, and counted."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

ANSWER = {"label": "positive", "probability": 0.9}


def numbered(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


@dataclass
class Planted:
    """What the server does to request number 1, 2, 3, ...; a request of several kinds gets the first."""

    delay_s: float = 0.0
    refuse_every: int = 0
    refuse_from: int = 0
    refusal: int = 503
    retry_after: str | None = "7"
    broken_every: int = 0
    reset_every: int = 0
    hang_every: int = 0
    stall_at: int = 0
    stall_s: float = 1.0
    ready: int = 200

    number: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connected: int = 0
    url: str = ""
    _stalled_until: float = 0.0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = head[0].split()
                if method == "GET":
                    status = self.ready if path.endswith("/health/ready") else 404
                    self._write(writer, status, {"title": "The model is still loading"})
                elif not await self._post(writer, path, headers, body):
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self.connected -= 1
            writer.close()

    async def _post(
        self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], body: bytes
    ) -> bool:
        """Answer as planted; False ends the connection."""
        self.number += 1
        number, loop = self.number, asyncio.get_running_loop()
        self.paths.append(path)
        self.headers.append(headers)
        self.bodies.append(body)
        if number == self.stall_at:
            self._stalled_until = loop.time() + self.stall_s
        while (left := self._stalled_until - loop.time()) > 0:
            await asyncio.sleep(left)
        if self.delay_s:
            until = loop.time() + self.delay_s
            while (left := until - loop.time()) > 0:  # never less than what was planted
                await asyncio.sleep(left)
        if numbered(self.hang_every, number):
            self.counts["hung"] += 1
            await asyncio.sleep(60)
        if numbered(self.reset_every, number):
            self.counts["reset"] += 1
            opened = writer.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()  # and no farewell: the client sees a reset
            return False
        if numbered(self.refuse_every, number) or (self.refuse_from and number >= self.refuse_from):
            self.counts["refused"] += 1
            extra = "" if self.retry_after is None else f"Retry-After: {self.retry_after}\r\n"
            self._write(writer, self.refusal, {"title": "The server is too busy"}, extra)
        elif numbered(self.broken_every, number):
            self.counts["broken"] += 1
            self._write(writer, 200, b'{"label": "posi')
        else:
            self.counts["ok"] += 1
            self._write(writer, 200, ANSWER)
        return True

    def _write(self, writer: asyncio.StreamWriter, status: int, content: object, extra: str = "") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}{extra}\r\n".encode() + body)


class Serving:
    """The server in a thread of its own."""

    def __init__(self, planted: Planted) -> None:
        self.planted, self.loop = planted, asyncio.new_event_loop()
        started = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self.thread.start()
        assert started.wait(30)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self.planted.handle, "127.0.0.1", 0))
        self.planted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        self.loop.run_forever()
        server.close()
        for one in asyncio.all_tasks(self.loop):
            one.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)


@pytest.fixture(scope="module")
def planted() -> Iterator[Callable[..., Planted]]:
    """Start servers with planted faults."""
    servers: list[Serving] = []

    def start(**faults: object) -> Planted:
        servers.append(Serving(Planted(**faults)))  # type: ignore[arg-type]
        return servers[-1].planted

    yield start
    for each in servers:
        each.stop()
