"""How much one caller may ask: a sliding window, counted in this process or in Redis.

The count is that of `limits`' sliding window counter: the current window's calls, and the previous
window's by the share of it that still overlaps. Two integers per caller, whatever the rate. In Redis the
library's own scripts count, so several servers share one quota. In memory it is counted here: the library's
memory storage goes through all callers at every call and has no upper bound.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from limits import RateLimitItem

__all__ = [
    "MemoryWindows",
    "QuotaUse",
    "RateLimiter",
    "RedisWindows",
    "Windows",
    "check_redis_url",
    "parse_rate",
]

logger = logging.getLogger("companion.deployment")
T = TypeVar("T")

REDIS_TIMEOUT_S = 0.25
"""Longest time that one request waits for Redis."""
COUNTED_ALONE = "rates-counted-alone"
"""The event of a call that this server counted for itself, because Redis did not answer."""
REDIS_PAUSE_S = 5.0
"""How long Redis is left alone after it failed."""
_EXAMPLES = "for example 100/minute, 5/second or 1000 per 2 hours"


def parse_rate(text: str) -> RateLimitItem:
    """Read a rate such as ``100/minute``.

    Raises
    ------
    ValueError
        If it is not one, or lets nothing through.
    """
    from limits import parse_many

    try:
        items = parse_many(text)
    except ValueError:
        raise ValueError(f"the rate is {text!r}, expected {_EXAMPLES}.") from None
    if len(items) != 1:
        raise ValueError(f"the rate is {text!r}, which are {len(items)} rates, expected one: {_EXAMPLES}.")
    if items[0].amount < 1 or items[0].get_expiry() < 1:
        raise ValueError(f"the rate is {text!r}, which lets nothing through, expected {_EXAMPLES}.")
    return items[0]


def check_redis_url(url: str, what: str = "the address of Redis") -> None:
    """Refuse what is not the address of a Redis. The message holds no password.

    Parameters
    ----------
    url : str
    what : str
        How the message begins.

    Raises
    ------
    ValueError
        If the scheme is another, or the host is missing.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError(
            f"{what} begins with {parts.scheme or 'no scheme'!r}, expected "
            "redis://HOST:PORT/DATABASE or rediss://HOST:PORT/DATABASE."
        )


@dataclass(frozen=True)
class QuotaUse:
    """Where one caller stands.

    Attributes
    ----------
    allowed : bool
        Whether what was asked for was taken.
    remaining : int
        How much more could be taken now.
    reset_s : float
        If allowed, when the current window ends; else when as much could be taken. In seconds from now.
    """

    allowed: bool
    remaining: int
    reset_s: float


class Windows(Protocol):
    """Two windows per caller; `limits`' Redis storage has these two methods."""

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Take `amount` out of `limit` per `expiry` seconds; say whether that was possible."""

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return count and seconds to live of the previous and of the current window."""


class MemoryWindows:
    """Windows in this process, for the callers that were seen last.

    Parameters
    ----------
    callers : int
        How many are remembered; whoever has been quiet for longest is forgotten first.
    clock : callable
        Seconds that only go up.
    """

    def __init__(self, *, callers: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._callers = callers
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Take `amount` out of `limit` per `expiry` seconds; say whether that was possible."""
        number, previous, current, left = self._window(key, expiry)
        # Rounded down as the scripts in Redis do it, so that both admit the same.
        if math.floor(previous * left / expiry) + current + amount > limit:
            return False
        self._counts[key] = (number, previous, current + amount)
        self._counts.move_to_end(key)
        if len(self._counts) > self._callers:
            self._counts.popitem(last=False)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return count and seconds to live of the previous and of the current window."""
        _, previous, current, left = self._window(key, expiry)
        return previous, left, current, left + expiry

    def _window(self, key: str, expiry: int) -> tuple[int, int, int, float]:
        number, passed = divmod(self._clock(), expiry)
        then, previous, current = self._counts.get(key, (0, 0, 0))
        if then == number - 1:
            previous, current = current, 0
        elif then != number:
            previous, current = 0, 0
        return int(number), previous, current, expiry - passed


class RedisWindows:
    """Windows in Redis, by the scripts of `limits`.

    Parameters
    ----------
    url : str
        ``redis://HOST:PORT/DATABASE`` or ``rediss://...``.
    timeout_s : float
        Longest time that one call waits.

    Raises
    ------
    ValueError
        If the address is not one.
    """

    def __init__(self, url: str, *, timeout_s: float = REDIS_TIMEOUT_S) -> None:
        check_redis_url(url)
        from limits.aio.storage import RedisStorage
        from redis.asyncio import BlockingConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as BrokenConnection
        from redis.exceptions import RedisError

        self._broken, self._failure = BrokenConnection, RedisError
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=32,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # The rate limiter has something better to do than to try again: it counts in memory.
            retry=Retry(NoBackoff(), 0),
        )
        options: dict[str, Any] = {"connection_pool": self._pool}
        self._storage = RedisStorage(url, implementation="redispy", key_prefix="companion:rate", **options)

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Take `amount` out of `limit` per `expiry` seconds; say whether that was possible.

        Raises
        ------
        OSError
            If Redis does not answer, or answers that it cannot.
        """
        return await self._ask(lambda: self._storage.acquire_sliding_window_entry(key, limit, expiry, amount))

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return count and seconds to live of the previous and of the current window.

        Raises
        ------
        OSError
            If Redis does not answer, or answers that it cannot.
        """
        return await self._ask(lambda: self._storage.get_sliding_window(key, expiry))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.disconnect()

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            try:
                return await call()
            except self._broken:
                # Redis may have been started anew since this connection was made: so may all that lie idle.
                await self._pool.disconnect(inuse_connections=False)
                return await call()
        except self._failure as error:
            raise ConnectionError(str(error)) from error


class RateLimiter:
    """Give each caller the same quota: shared by several servers, and each for itself while that fails.

    Parameters
    ----------
    rate : str
        See `parse_rate`.
    shared : Windows, optional
        Asked first. When it raises `OSError`, calls are counted in `own` and the log says so, once; after
        `REDIS_PAUSE_S` seconds one call tries it again.
    own : Windows, optional
        Never fails; by default `MemoryWindows`.
    event : callable
        Told `COUNTED_ALONE` for every call that was counted in `own` because `shared` failed.
    clock : callable
        Seconds that only go up.

    Raises
    ------
    ValueError
        If the rate is not one.
    """

    def __init__(
        self,
        rate: str,
        *,
        shared: Windows | None = None,
        own: Windows | None = None,
        event: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._item = parse_rate(rate)
        self._shared = shared
        self._own = own or MemoryWindows(clock=clock)
        self._event = event
        self._clock = clock
        self._lost = False
        self._try_again_at = -math.inf

    @property
    def amount(self) -> int:
        """The quota of one window."""
        return int(self._item.amount)

    @property
    def window_s(self) -> int:
        """How long a window is, in seconds."""
        return int(self._item.get_expiry())

    async def take(self, caller: str, cost: int = 1) -> QuotaUse:
        """Take `cost` out of a caller's quota, or nothing when there is not as much left."""
        key = self._item.key_for(caller)
        now = self._clock()
        if self._shared is not None and now >= self._try_again_at:
            if self._lost:  # this call tries it; those that come meanwhile do not wait with it
                self._try_again_at = now + REDIS_PAUSE_S
            try:
                use = await self._take(self._shared, key, cost)
            except OSError as error:
                if not self._lost:
                    logger.warning("rate limits are counted by each server for itself: %s", error)
                self._lost = True
                self._try_again_at = self._clock() + REDIS_PAUSE_S
            else:
                if self._lost:
                    logger.warning("rate limits are counted together again")
                    self._lost = False
                return use
        if self._shared is not None:
            self._event(COUNTED_ALONE)
        return await self._take(self._own, key, cost)

    async def _take(self, windows: Windows, key: str, cost: int) -> QuotaUse:
        limit, expiry = self.amount, self.window_s
        allowed = await windows.acquire_sliding_window_entry(key, limit, expiry, cost)
        previous, previous_s, current, current_s = await windows.get_sliding_window(key, expiry)
        used = math.floor(previous * previous_s / expiry) + current
        left_s = max(0.0, current_s - expiry)
        if allowed:
            return QuotaUse(True, max(0, limit - used), left_s)
        wait_s = _until_free(limit - cost + 1, previous, previous_s, current, left_s, expiry)
        return QuotaUse(False, max(0, limit - used), wait_s)


def _until_free(
    below: int, previous: int, previous_s: float, current: int, left_s: float, expiry: int
) -> float:
    """Return the seconds until the weighted count falls below a number.

    The previous window's part falls while the current window lasts (`left_s`); then the current window
    becomes the previous one, and falls in turn.
    """
    if below <= 0:
        return math.inf  # more than the whole quota
    room = below - current
    if room > 0:
        wait_s = previous_s - room * expiry / previous if previous else 0.0
        if wait_s <= left_s:
            return max(0.0, wait_s)
    return left_s + expiry - below * expiry / current if current >= below else left_s
