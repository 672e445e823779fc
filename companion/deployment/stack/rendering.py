"""The configurations of nginx, Redis and Prometheus: one template each, natively and for containers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.problems import (
    BODY_TOO_LARGE,
    DEADLINE_EXCEEDED,
    NOT_FOUND,
    RATE_LIMITED,
    ProblemType,
)
from companion.deployment.schemas import Limits

__all__ = ["UNAVAILABLE", "NginxPlace", "alert_rules", "nginx_conf", "prometheus_conf", "redis_conf"]

UNAVAILABLE = ProblemType("unavailable", 503, "No server can be reached")
"""What nginx says when there is nobody behind it; a server never does."""
_UVICORN_KEEPALIVE_S = 5
_FILES = "companion.deployment.stack"


@dataclass(frozen=True)
class NginxPlace:
    """Where an nginx runs, and whom it asks.

    Attributes
    ----------
    listen, back : str
        Where clients come in, and where its own second stage listens, as nginx writes addresses.
    servers : sequence of str
        ``HOST:PORT`` of each.
    pid_file, error_log, access_log, temporary : str
        Paths.
    worker_processes : str
        A number, or ``auto``.
    """

    listen: str
    back: str
    servers: Sequence[str]
    pid_file: str
    error_log: str
    access_log: str
    temporary: str
    worker_processes: str = "1"


def nginx_conf(
    place: NginxPlace,
    *,
    limits: Limits | None = None,
    batching: BatchingLimits | None = None,
    client_timeout_s: int = 5,
    connections_per_address: int = 1024,
    patience_s: int = 35,
) -> str:
    """Write nginx's configuration.

    Parameters
    ----------
    place : NginxPlace
    limits, batching : optional
        Those of the servers: the largest body and the longest deadline are the same on both sides.
    client_timeout_s, connections_per_address : int
        As in `StackSettings`.
    patience_s : int
        After it is told to end, how long requests may take that it has begun, in seconds.
    """
    body_bytes = (limits or Limits()).body_bytes
    longest_s = math.ceil((batching or BatchingLimits()).longest_timeout_s)
    return _render(
        "nginx.conf",
        pid_file=place.pid_file,
        error_log=place.error_log,
        access_log=place.access_log,
        temporary=place.temporary,
        worker_processes=place.worker_processes,
        listen=place.listen,
        back=place.back,
        servers="\n        ".join(f"server {name} max_fails=2 fail_timeout=2s;" for name in place.servers),
        servers_uncounted="\n        ".join(f"server {name} max_fails=0;" for name in place.servers),
        tries=str(min(3, len(place.servers))),
        body_bytes=str(body_bytes),
        longest_s=str(longest_s + 5),
        back_longest_s=str(longest_s + 10),
        server_keepalive_s=str(_UVICORN_KEEPALIVE_S - 1),
        client_timeout_s=str(client_timeout_s),
        connections_per_address=str(connections_per_address),
        patience_s=str(patience_s),
        not_found=_problem(NOT_FOUND, "/openapi.json lists what is answered."),
        body_too_large=_problem(BODY_TOO_LARGE, f"The body may have at most {body_bytes:,} bytes."),
        too_many_connections=_problem(
            RATE_LIMITED, f"One address may hold {connections_per_address:,} connections.", retry_after_s=1
        ),
        unavailable=_problem(UNAVAILABLE, "Try again in a moment.", retry_after_s=1),
        unavailable_back=_problem(
            UNAVAILABLE, "Try again in a moment.", retry_after_s=1, identity="$http_x_request_id"
        ),
        late=_problem(DEADLINE_EXCEEDED, f"No answer came within {longest_s + 5} s."),
    )


def redis_conf(*, bind: str, port: int, folder: str, protected: bool = True) -> str:
    """Write the configuration of Redis.

    Parameters
    ----------
    bind : str
        Addresses to listen on.
    port : int
    folder : str
        Its working folder, in which it writes nothing.
    protected : bool
        Whether callers from other machines are refused, as there is no password.
    """
    return _render(
        "redis.conf", bind=bind, port=str(port), folder=folder, protected="yes" if protected else "no"
    )


def prometheus_conf(*, targets: Sequence[str], rules: str, interval_s: int = 5) -> str:
    """Write the configuration of Prometheus.

    Parameters
    ----------
    targets : sequence of str
        ``HOST:PORT`` of each server.
    rules : str
        Path of the file of alert rules.
    interval_s : int
        From one look to the next, in seconds.
    """
    return _render(
        "prometheus.yml",
        targets=json.dumps(list(targets)),
        rules=json.dumps(rules),
        interval=f"{interval_s}s",
    )


def alert_rules() -> str:
    """Return the alert rules, as Prometheus reads them."""
    return _read("alerts.yml")


def _read(name: str) -> str:
    return (files(_FILES) / "files" / name).read_text(encoding="utf-8")


def _render(template: str, **values: str) -> str:
    """Fill the places ``<<name>>`` of a template; each has a value, and each value has a place."""
    text = _read(template)
    if unused := values.keys() - set(re.findall(r"<<(\w+)>>", text)):
        raise ValueError(f"{template} has no place for {', '.join(sorted(unused))}")
    return re.sub(r"<<(\w+)>>", lambda match: values[match[1]], text)


def _problem(
    problem: ProblemType, detail: str, *, retry_after_s: int | None = None, identity: str = "$asked_id"
) -> str:
    """Write a problem document into nginx's own language; `problem_document` is its model."""
    document: Mapping[str, object] = {
        "type": problem.uri,
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "code": problem.code,
        "request_id": identity,
        **({} if retry_after_s is None else {"retry_after_ms": 1000 * retry_after_s}),
        "error": detail,
    }
    return json.dumps(document).replace("'", r"\u0027")  # a quote would end nginx's string
