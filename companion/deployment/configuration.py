"""All that can be chosen about a server, in one place, refused before anything starts when it cannot work."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.rates import check_redis_url, parse_rate
from companion.deployment.schemas import Limits

if TYPE_CHECKING:
    from companion.deployment.rollout.settings import RolloutSettings

__all__ = ["LogFormat", "ServerSettings"]

LogFormat = Literal["text", "json"]

_IN_MEMORY = "memory"
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
    cache : str, optional
        Where answers are kept, so that a question that comes again costs nothing: ``memory``, or a Redis that
        several servers share, such as ``redis://127.0.0.1:6379/0``. When it is gone the server is slower, and
        goes on.
    cache_entries : int, optional
        The most answers kept in memory. Default: 10,000.
    cache_ttl_s : float, optional
        Seconds after which an answer is forgotten. Default: an hour.
    semantic_cache : Path, optional
        A certificate (`companion.deployment.caching.certify`, its `to_dict` as JSON): similar texts get each
        other's answers as far as it allows.
    rollout : Path, optional
        A file that keeps the state of a rollout over restarts. With it, other versions can be loaded, tried
        and promoted while the server runs, by who has the admin key.
    rollout_root : Path, optional
        The only folder from below which other versions are loaded.
    rollout_settings : RolloutSettings, optional
        What a version on trial may cost, and when it is taken back.
    admin_key : Path, optional
        A file with the admin key. Default: the environment's `COMPANION_ADMIN_KEY`.

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
    cache: str | None = None
    cache_entries: int | None = None
    cache_ttl_s: float | None = None
    semantic_cache: Path | None = None
    rollout: Path | None = None
    rollout_root: Path | None = None
    rollout_settings: RolloutSettings | None = None
    admin_key: Path | None = None

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
        self._check_cache()
        self._check_rollout()

    def _check_cache(self) -> None:
        chosen = {
            "--cache-entries": self.cache_entries,
            "--cache-ttl": self.cache_ttl_s,
            "--semantic-cache": self.semantic_cache,
        }
        given = [name for name, value in chosen.items() if value is not None]
        if self.cache is None:
            if given:
                raise ValueError(f"{given[0]} is given but no cache: give --cache memory too.")
            return
        if self.cache != _IN_MEMORY:
            check_redis_url(self.cache, "the cache is neither 'memory' nor the address of a Redis: it")
            if self.cache_entries is not None:
                raise ValueError(
                    "--cache-entries counts answers in memory, but the cache is a Redis: its own maxmemory "
                    "bounds it."
                )
        if self.cache_entries is not None and self.cache_entries < 1:
            raise ValueError(f"--cache-entries is {self.cache_entries}, expected at least 1.")
        if self.cache_ttl_s is not None and not 0.001 <= self.cache_ttl_s < math.inf:
            raise ValueError(f"--cache-ttl is {self.cache_ttl_s}, expected seconds, at least 0.001.")

    def _check_rollout(self) -> None:
        if self.rollout is None:
            chosen = {
                "--rollout-root": self.rollout_root,
                "--admin-key": self.admin_key,
                "rollout_settings": self.rollout_settings,
            }
            for name, value in chosen.items():
                if value is not None:
                    raise ValueError(f"{name} is given but no rollout: give --rollout STATE_FILE too.")
        elif self.rollout.is_dir():
            raise ValueError(f"{self.rollout} is a folder, expected a file for the state of the rollout.")
        elif self.rollout_root is not None and not self.rollout_root.is_dir():
            raise ValueError(f"{self.rollout_root} is no folder, expected the one that holds the versions.")

    def but(self, **changes: Any) -> ServerSettings:
        """Return these settings with some fields changed; None leaves a field as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})
