"""Does a part of the stack work? Each is asked what a load balancer or an operator would ask it."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from companion.deployment.stack.topology import Part

__all__ = ["PartStatus", "fault_of"]


@dataclass(frozen=True)
class PartStatus:
    """How one part of a stack is.

    Attributes
    ----------
    name : str
    pid : int or None
        None when it does not run.
    port : int
    fault : str or None
        Why it does not work; None when it does.
    """

    name: str
    pid: int | None
    port: int
    fault: str | None

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON would have it."""
        return {
            "name": self.name,
            "pid": self.pid,
            "port": self.port,
            "ok": not self.fault,
            "fault": self.fault,
        }


def fault_of(part: Part, *, timeout_s: float = 5.0) -> str | None:
    """Ask a part whether it works.

    Parameters
    ----------
    part : Part
    timeout_s : float
        Longest wait for its answer.

    Returns
    -------
    str or None
        Why it does not; None when it does.
    """
    return _ping(part.port, timeout_s) if part.health is None else _get(part.health, timeout_s)


def _get(url: str, timeout_s: float) -> str | None:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=timeout_s):
            return None
    except HTTPError as error:
        with error:
            return f"answers {error.code}{_code(error.read(1 << 16))}"
    except URLError as error:
        return _why(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return _why(error)


def _ping(port: int, timeout_s: float) -> str | None:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
            connection.sendall(b"PING\r\n")
            said = connection.recv(64)
    except OSError as error:
        return _why(error)
    return None if said == b"+PONG\r\n" else f"answers {said!r}"


def _why(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "does not listen"
    return f"breaks off ({error or type(error).__name__})"


def _code(body: bytes) -> str:
    """Return the code of a problem document."""
    try:
        return f" {json.loads(body)['code']}"
    except (ValueError, KeyError, TypeError):
        return ""
