"""A time limit for the head of a request, which uvicorn does not have.

Without it a client that sends a head byte by byte holds its connection for ever. The body has a limit:
the deadline of its request.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HEAD_WITHIN_S", "TimedHeadProtocol"]

HEAD_WITHIN_S = 10.0
"""Longest time, in seconds, to the end of a head: from the connection, or from the first byte of a further
request on it."""


class TimedHeadProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools; a connection whose head does not come in time is closed.

    An answer would be no use to a client that has not finished asking. Between two requests uvicorn's own
    `timeout_keep_alive` counts, up to the next byte.
    """

    head_within_s = HEAD_WITHIN_S
    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Begin to wait for a further head with whatever comes between two requests."""
        if self._head_due is None and self.cycle is not None and self.cycle.response_complete:
            self._wait_for_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Stop waiting: the head is there."""
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting: nothing will come."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head_due = self.loop.call_later(self.head_within_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
