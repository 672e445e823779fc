"""The client of the checks: connections that are kept, replies that are bounded, nothing that raises."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Asker", "Reply", "ask_all", "ask_together"]

_LONGEST = 1 << 20
_TIMEOUT = 60.0
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes
    ----------
    status : int
        0 when nothing did; then `trouble` says why.
    body : bytes
        At most a mebibyte.
    content_type, retry_after : str
    trouble : str
    sent_at, ended_at : float
        By `time.monotonic`, in seconds: when all of it was sent, and when all was received.
    port : int
        The client's end of the connection; 0 when there was none.
    """

    status: int = 0
    body: bytes = b""
    content_type: str = ""
    retry_after: str = ""
    trouble: str = ""
    sent_at: float = 0.0
    ended_at: float = 0.0
    port: int = 0

    @property
    def is_json(self) -> bool:
        """Whether it is declared as JSON, a problem document included."""
        kind = self.content_type.partition(";")[0].strip().lower()
        return kind == "application/json" or kind.endswith("+json")

    def says(self) -> str:
        """Say what came, briefly."""
        if not self.status:
            return self.trouble
        return f"{self.status} {self.body[:120].decode(errors='replace')}"


class Asker:
    """One connection to 127.0.0.1, kept between requests where the server keeps it.

    Parameters
    ----------
    port : int
    timeout : float
        Seconds for the whole of one reply.
    """

    def __init__(self, port: int, timeout: float = _TIMEOUT) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._timeout = timeout
        self._used = False

    def ask(self, text: object, *, again: bool = True) -> Reply:
        """Put a text to ``POST /predict``; see `send`."""
        return self.send("POST", "/predict", json.dumps({"text": text}).encode(), again=again)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = _JSON,
        *,
        again: bool = True,
    ) -> Reply:
        """Send a request and read the reply.

        A server may close a kept connection at any moment: what fails on one that was used before is sent
        once more on a fresh one, unless `again` is false.
        """
        reply = self._once(method, path, body, headers)
        if not reply.status and self._used and again and "time" not in reply.trouble:
            self._used = False
            reply = self._once(method, path, body, headers)
        self._used = bool(reply.status)
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        sent, port = time.monotonic(), 0
        try:
            self._connection.request(method, path, body, dict(headers))
            sent, port = time.monotonic(), self._connection.sock.getsockname()[1]
            response = self._connection.getresponse()
            content = bytearray()
            while chunk := response.read1(1 << 16):
                content += chunk
                if len(content) > _LONGEST:
                    raise OSError("the reply has more than a mebibyte")
                if time.monotonic() - sent > self._timeout:
                    raise TimeoutError("timed out")
            response.close()  # read1 leaves it open at its end, and the connection could not be used again
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            said = " ".join(str(error).split()) or type(error).__name__
            return Reply(
                trouble=f"no reply ({said[:120]})", sent_at=sent, ended_at=time.monotonic(), port=port
            )
        return Reply(
            response.status,
            bytes(content),
            response.getheader("Content-Type", "") or "",
            response.getheader("Retry-After", "") or "",
            "",
            sent,
            time.monotonic(),
            port,
        )


def ask_all(
    port: int,
    texts: Sequence[str],
    *,
    clients: int,
    seconds: float | None = None,
    keep: bool = True,
    timeout: float = _TIMEOUT,
) -> list[Reply]:
    """Ask all texts, each once, as a few clients that wait for a reply before they ask again.

    Parameters
    ----------
    port : int
    texts : sequence of str
    clients : int
    seconds : float, optional
        After this no further text is asked; the list is then shorter.
    keep : bool
        Whether a client keeps its connection. If not, each request has a connection of its own.
    timeout : float
        Seconds for the whole of one reply.

    Returns
    -------
    list of Reply
        In the order of the texts.
    """
    replies: list[Reply | None] = [None] * len(texts)
    places, lock = iter(range(len(texts))), threading.Lock()
    until = None if seconds is None else time.monotonic() + seconds

    def work() -> None:
        with contextlib.closing(Asker(port, timeout)) as asker:
            while until is None or time.monotonic() < until:
                with lock:
                    place = next(places, None)
                if place is None:
                    return
                replies[place] = asker.ask(texts[place])
                if not keep:
                    asker.close()

    _run_threads([work] * clients)
    return [reply for reply in replies if reply is not None]


def ask_together(port: int, texts: Sequence[str]) -> list[Reply]:
    """Ask all texts at the same moment, each on its own connection; return the replies in their order."""
    replies = [Reply()] * len(texts)
    line = threading.Barrier(len(texts))

    def work(place: int) -> None:
        with contextlib.closing(Asker(port)) as asker:
            line.wait()
            replies[place] = asker.ask(texts[place])

    _run_threads([lambda place=place: work(place) for place in range(len(texts))])  # type: ignore[misc]
    return replies


def _run_threads(works: Iterable[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
