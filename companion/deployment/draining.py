"""A uvicorn server that says goodbye: first it refuses, then it answers the rest, then it ends."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Protocol

import uvicorn

__all__ = ["LINGER_S", "Drained", "DrainingServer"]

LINGER_S = 0.25
"""Shortest time, in seconds, for which a server that stops still says so: to clients that hold a connection
open, and to a load balancer that asks whether it is ready."""

_LOOK_S = 0.1  # between two looks whether a second Ctrl+C came, which uvicorn notes in an attribute


class Drained(Protocol):
    """What can stop taking in work; `companion.deployment.service.ModelService` can."""

    def drain(self) -> None:
        """Let no further question in."""

    async def drained(self) -> None:
        """Wait until everything that was accepted is answered."""


class DrainingServer(uvicorn.Server):
    """Stop in three steps: refuse, answer what was accepted, close.

    uvicorn's own end closes the port first. Whoever sends at that moment, over a connection that is open or
    half open, gets a reset and cannot know whether the request was heard. Here new requests are answered
    until nothing is left to do: with 503 `draining`, `Retry-After`, and `Connection: close`.

    Parameters
    ----------
    config : uvicorn.Config
        Its `timeout_graceful_shutdown` is the time for all three steps together.
    service : Drained
    linger_s : float
        As `LINGER_S`.
    """

    def __init__(self, config: uvicorn.Config, service: Drained, *, linger_s: float = LINGER_S) -> None:
        super().__init__(config)
        self._service = service
        self._linger_s = linger_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close the port and the connections."""
        begin, grace = time.monotonic(), self.config.timeout_graceful_shutdown
        self._service.drain()
        await self._until_answered(None if grace is None else begin + grace)
        if grace is not None:
            left = grace - (time.monotonic() - begin)
            self.config.timeout_graceful_shutdown = max(1, round(left))
        await super().shutdown(sockets)

    async def _until_answered(self, deadline: float | None) -> None:
        answered = asyncio.create_task(self._service.drained())
        linger = asyncio.create_task(asyncio.sleep(self._linger_s))
        try:
            while not (answered.done() and linger.done()):
                if self.force_exit or (deadline is not None and time.monotonic() >= deadline):
                    return
                await asyncio.wait([answered, linger], timeout=_LOOK_S, return_when=asyncio.ALL_COMPLETED)
        finally:
            answered.cancel()
            linger.cancel()
