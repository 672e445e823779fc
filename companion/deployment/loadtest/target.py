"""The server under load: its address, whether it may be loaded at all, and whether it is ready."""

from __future__ import annotations

import http.client
import ipaddress
import json
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

__all__ = ["LoadTarget", "ReadyState", "ready_state", "target_of"]

ReadyState = Literal["ready", "unknown"]

_READY = ("/health/ready", "/v2/health/ready")
_TIMEOUT_S = 10.0
_MOST = 64 * 1024
_ENDPOINTS = ("/predict", "/predict/batch", "/infer")


@dataclass(frozen=True)
class LoadTarget:
    """Where requests go.

    Attributes
    ----------
    scheme : str
        ``"http"`` or ``"https"``.
    host : str
        Without brackets.
    port : int
    prefix : str
        What stands before the server's own paths: empty, or such as ``"/reviews"``.
    """

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def origin(self) -> str:
        """Scheme, host and port, as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address, without a slash at the end."""
        return self.origin + self.prefix

    @property
    def is_loopback(self) -> bool:
        """Whether this is the machine itself. A name other than localhost is not looked up: it may change."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def target_of(url: str, *, allow_remote: bool = False) -> LoadTarget:
    """Read the address of a server, and refuse to load somebody else's.

    Parameters
    ----------
    url : str
        Such as ``"http://127.0.0.1:8000"``, without the path of an endpoint.
    allow_remote : bool
        Whether it may be another machine.

    Returns
    -------
    LoadTarget

    Raises
    ------
    ValueError
        When the address cannot be used, or is another machine's and nobody said that this is meant.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(
            f"the address is {url!r} ({error}), expected such as http://127.0.0.1:8000"
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"the address is {url!r}, expected such as http://127.0.0.1:8000")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "the address has a user, a query or a fragment: expected scheme, host and port alone"
        )
    prefix = parts.path.rstrip("/")
    if prefix.endswith(_ENDPOINTS):
        raise ValueError(
            f"the address ends with {prefix}: expected the server's own, such as http://127.0.0.1:8000; "
            "the endpoint is an option of its own"
        )
    if not prefix.isascii() or any(sign.isspace() for sign in prefix):
        raise ValueError(f"the path {prefix!r} of the address is not one: write it percent-encoded")
    port = port or (443 if parts.scheme == "https" else 80)
    target = LoadTarget(parts.scheme, parts.hostname, port, prefix)
    if not (target.is_loopback or allow_remote):
        raise ValueError(
            f"{target.host} is not this machine, and a load test of somebody else's server is an attack: "
            "if it is yours, give --allow-remote (in Python allow_remote=True)"
        )
    return target


def ready_state(target: LoadTarget, *, timeout_s: float = _TIMEOUT_S) -> ReadyState:
    """Look whether the server is ready for load.

    Parameters
    ----------
    target : LoadTarget
    timeout_s : float

    Returns
    -------
    {"ready", "unknown"}
        Unknown where the server has no address that would tell.

    Raises
    ------
    ConnectionError
        When nothing answers.
    ValueError
        When it answers that it is not ready.
    """
    for path in _READY:
        status, body = _get(target, path, timeout_s)
        if 200 <= status < 300:
            return "ready"
        if status in (429, 500, 502, 503, 504):
            raise ValueError(
                f"{target.url}{path} answers {status}{_title(body)}, expected 200: "
                "wait until the server is ready, then start again"
            )
    return "unknown"


def _get(target: LoadTarget, path: str, timeout_s: float) -> tuple[int, bytes]:
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    connection = kind(target.host, target.port, timeout=timeout_s)
    try:
        connection.request("GET", target.prefix + path)
        answer = connection.getresponse()
        return answer.status, answer.read(_MOST)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConnectionError(
            f"no HTTP server answers at {target.url} ({reason}): start it, or correct the address"
        ) from None
    finally:
        connection.close()


def _title(body: bytes) -> str:
    """Take the title out of a problem document, where there is one."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    title = document.get("title") if isinstance(document, dict) else None
    return f" ({title})" if isinstance(title, str) else ""
