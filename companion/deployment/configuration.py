"""All that can be chosen about a server, in one place, refused before anything starts when it cannot work."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.rates import check_redis_url, parse_rate
from companion.deployment.schemas import Limits

__all__ = ["LogFormat", "ServerSettings"]

LogFormat = Literal["text", "json"]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class ServerSettings:
    """How a server is run.

    Parameters
    ----------
    host : str
        Address to listen on; `0.0.0.0` for every network of this machine.
    port : int
        TCP port; 0 takes a free one, which the line on stderr names.
    threads : int, optional
        Threads to compute with, shared among the workers, at least one for each. Default: the settings'.
    workers : int, optional
        Batches that run at the same time. Default: one for each thread, because on a processor two runs of
        one thread do more than one run of two.
    processes : int
        Processes behind the port, which share threads and workers.
    model_name : str
        What KServe's clients call the model.
    limits : Limits
        What one request may cost.
    batching : BatchingLimits
        How much may wait, and for how long.
    api_keys : Path, optional
        A file made by `companion keys new`. Without, everybody may ask.
    rate : str, optional
        How much one key (without keys: one address) may ask, such as ``100/minute``. Each text counts.
    redis : str, optional
        Where the rates are counted for several servers together, such as ``redis://127.0.0.1:6379/0``.
    trusted_proxies : tuple of str
        Addresses or networks of load balancers, whose `X-Forwarded-For` is believed. Without, behind one,
        all callers would share its address and its quota.
    log_requests : bool
        Whether each request gets a line in the log.
    log_format : {"text", "json"}
        How log lines are written.
    log_file : Path, optional
        Where to; by default stderr.
    prediction_log : Path, optional
        A folder that gets a line for each answer, without its text: what `companion drift` reads.

    Raises
    ------
    ValueError
        If one of them cannot work, alone or with the others.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    threads: int | None = None
    workers: int | None = None
    processes: int = 1
    model_name: str = "companion"
    limits: Limits = field(default_factory=Limits)
    batching: BatchingLimits = field(default_factory=BatchingLimits)
    api_keys: Path | None = None
    rate: str | None = None
    redis: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    log_requests: bool = False
    log_format: LogFormat = "text"
    log_file: Path | None = None
    prediction_log: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name, value in (
            ("threads", self.threads),
            ("workers", self.workers),
            ("processes", self.processes),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1: choose another with --{name}.")
        if not _NAME.fullmatch(self.model_name):
            raise ValueError(
                f"the model's name is {self.model_name!r}, expected 1 to 64 letters, digits, dots, dashes "
                "and underscores: it is part of an address."
            )
        if self.rate is not None:
            parse_rate(self.rate)
        if self.redis is not None:
            if self.rate is None:
                raise ValueError(
                    "an address of Redis but no rate is given, and only rates are counted there."
                )
            check_redis_url(self.redis)
        if self.log_format not in get_args(LogFormat):
            raise ValueError(f"the log's format is {self.log_format!r}, expected text or json.")
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError(
                    f"the trusted proxy {network!r} is not an address, expected for example 10.0.0.7 or "
                    "10.0.0.0/8."
                ) from None

    def but(self, **changes: Any) -> ServerSettings:
        """Return these settings with some fields changed; None leaves a field as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})
