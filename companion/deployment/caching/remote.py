"""Answers in Redis, shared by all servers; when Redis is gone the servers go on, slower."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from companion.deployment.answering import Answer
from companion.deployment.caching.breaker import CircuitBreaker
from companion.deployment.caching.events import CacheCounter, CacheTally
from companion.deployment.caching.sealing import seal, unseal

__all__ = ["RedisStore"]

logger = logging.getLogger("companion.deployment")

MAX_PENDING = 256
"""Answers that wait to be written, at most: beyond it they are not stored."""


class RedisStore:
    """Keeps sealed answers in Redis under ``PREFIX`` and a hash.

    Every call has a short timeout and is never tried twice. After three failures in a row Redis is not asked
    any more; a ping in the background, which no question waits for, finds out when it is back. Answers are
    written in the background, too. Nothing that Redis does or sends raises.

    Parameters
    ----------
    url : str
        Such as ``redis://127.0.0.1:6379/0``, ``rediss://...`` or ``unix://...``. Used at the first question,
        so Redis may start later than the server.
    ttl_s : float
        Seconds after which Redis forgets an answer.
    prefix : str
        Begins every key. Servers that share answers share it.
    timeout_s : float
        For one call, connecting included.
    secret : bytes
        At most 64 bytes. With it, keys cannot be guessed from likely texts, and values that somebody else
        wrote are not believed. Servers that share answers share it.
    connections : int
        The most at once; a call that finds none free waits within its timeout.
    breaker : CircuitBreaker, optional
        When to leave Redis alone.
    counter : CacheCounter, optional
        Told of errors, of damaged values, and when Redis goes and returns.
    name : str
        How the counter calls this store.
    clock : callable
        Gives the time in seconds, as deadlines do.

    Raises
    ------
    ValueError
        When an argument can never work: not an address of Redis, a time that is not positive, too long a
        secret.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float = 3600.0,
        prefix: str = "companion:answer:",
        timeout_s: float = 0.05,
        secret: bytes = b"",
        connections: int = 32,
        breaker: CircuitBreaker | None = None,
        counter: CacheCounter | None = None,
        name: str = "redis",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not ttl_s >= 0.001 or not timeout_s > 0 or connections < 1:
            raise ValueError(
                f"RedisStore: ttl_s is {ttl_s}, timeout_s {timeout_s}, connections {connections}; expected "
                "at least 0.001, more than 0, at least 1"
            )
        if len(secret) > 64:
            raise ValueError(f"RedisStore: the secret has {len(secret)} bytes, expected at most 64")
        self._client = _client(url, timeout_s, connections)
        self._ttl_ms, self._prefix, self._timeout_s = round(1000 * ttl_s), prefix.encode(), timeout_s
        self._secret = secret
        self._breaker = breaker or CircuitBreaker(clock=clock)
        self._counter: CacheCounter = counter or CacheTally()
        self._name, self._clock = name, clock
        self._writes: set[asyncio.Task[None]] = set()
        self._probe: asyncio.Task[None] | None = None

    @property
    def is_down(self) -> bool:
        """Whether Redis is taken to be down, and not asked."""
        return self._breaker.is_open

    async def get(self, key: bytes, *, deadline: float) -> Answer | None:
        """Return the answer under `key`, or None when there is none, or none to be had in time."""
        if not self._may_ask():
            self._counter.count(self._name, "unavailable")
            return None
        left = deadline - self._clock()
        if left <= 0:
            return None
        try:
            async with asyncio.timeout(min(self._timeout_s, left)):
                data = await self._client.get(self._named(key))
        except Exception as error:  # the library has classes of its own, and its parser raises others
            # A deadline that leaves less than the timeout says nothing about Redis.
            self._failed(error, guilty=left >= self._timeout_s or not isinstance(error, TimeoutError))
            return None
        self._breaker.succeeded()
        if data is None:
            return None
        answer = unseal(data, key, self._secret)
        if answer is None:
            self._counter.count(self._name, "damaged")
        return answer

    async def put(self, key: bytes, answer: Answer) -> bool:
        """Begin to write an answer; False where that is not even tried."""
        data = seal(answer, key, self._secret)
        if data is None or len(self._writes) >= MAX_PENDING or not self._may_ask():
            return False
        task = asyncio.create_task(self._write(self._named(key), data))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return True

    async def flush(self) -> None:
        """Wait until all answers that were put are written, or given up."""
        while self._writes:
            await asyncio.wait(set(self._writes))

    async def aclose(self) -> None:
        """Write what waits to be written, within the timeout of a call, and close the connections."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        await self.flush()
        with suppress(RedisError, OSError):
            await self._client.aclose()

    async def _write(self, name: bytes, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.set(name, data, px=self._ttl_ms)
        except Exception as error:
            self._failed(error)
        else:
            self._breaker.succeeded()

    def _named(self, key: bytes) -> bytes:
        """Hash the key once more, with the secret: a likely text can be hashed by anyone."""
        return self._prefix + blake2b(key, key=self._secret, digest_size=20).hexdigest().encode()

    def _may_ask(self) -> bool:
        """Say whether Redis is worth asking; see to it that somebody finds out when it is not."""
        if not self._breaker.is_open:
            return True
        if self._breaker.take_probe():
            self._probe = asyncio.create_task(self._ping())
        return False

    async def _ping(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await _awaited(self._client.ping())
        except Exception as error:
            self._breaker.probed(False)
            logger.debug("Redis does not answer yet: %s", type(error).__name__)
        else:
            self._breaker.probed(True)
            self._counter.count(self._name, "closed")
            logger.info("Redis answers again: answers are shared from now on")

    def _failed(self, error: Exception, *, guilty: bool = True) -> None:
        """Count an error, and open the breaker when it is one too many."""
        self._counter.count(self._name, "error")
        if isinstance(error, ResponseError):
            # Full, or a replica that cannot be written to: it answered at once, and reading may still work.
            logger.debug("Redis refused a command: %s", error)
            self._breaker.succeeded()
        elif guilty and self._breaker.failed():
            self._counter.count(self._name, "opened")
            logger.warning("Redis does not answer (%s): going on without it", type(error).__name__)


def _client(url: str, timeout_s: float, connections: int) -> Redis:
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # The default waits and tries again, ten times: a cache has something better to do.
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ValueError(
            f"RedisStore: {error}; expected an address such as redis://127.0.0.1:6379/0"
        ) from None
    return Redis.from_pool(pool)


async def _awaited(result: Any) -> Any:
    """Wait for a command whose type in the library says that it may not be a coroutine."""
    return await result
