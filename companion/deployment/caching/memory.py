"""Answers in this process: bounded in number, in bytes and in age."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from cachetools import TTLCache

from companion.deployment.answering import Answer

__all__ = ["MemoryStore"]

_ENTRY_BYTES = 700
"""What an answer costs beside its numbers and words, measured: objects, links and three hash tables."""


class MemoryStore:
    """The answers used last, for a while.

    Parameters
    ----------
    max_entries : int
        The most answers that are kept; the one that was used longest ago goes first.
    max_bytes : int
        The most memory that they take, estimated from above.
    ttl_s : float
        Seconds after which an answer is forgotten, however often it was used.
    clock : callable
        Gives the time in seconds.

    Raises
    ------
    ValueError
        When a bound keeps nothing.
    """

    def __init__(
        self,
        *,
        max_entries: int = 10_000,
        max_bytes: int = 32 * 1024 * 1024,
        ttl_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("max_entries", max_entries), ("max_bytes", max_bytes), ("ttl_s", ttl_s)):
            if not value > 0:
                raise ValueError(f"MemoryStore: {name} is {value}, expected more than 0")
        self._max_entries = max_entries
        self._answers: TTLCache[bytes, Answer] = TTLCache(max_bytes, ttl_s, timer=clock, getsizeof=_size)

    @property
    def entries(self) -> int:
        """How many answers are kept."""
        return len(self._answers)

    @property
    def size(self) -> int:
        """How many bytes they take, estimated from above."""
        return int(self._answers.currsize)

    async def get(self, key: bytes, *, deadline: float) -> Answer | None:
        """Return what was put under `key` less than `ttl_s` ago."""
        return self._answers.get(key)

    async def put(self, key: bytes, answer: Answer) -> bool:
        """Keep an answer; False for one that is larger than the whole store."""
        while key not in self._answers and len(self._answers) >= self._max_entries:
            self._answers.popitem()
        try:
            self._answers[key] = answer
        except ValueError:  # cachetools' word for a value larger than the cache
            return False
        return True

    async def aclose(self) -> None:
        """Forget everything."""
        self._answers.clear()


def _size(answer: Answer) -> int:
    """Estimate the bytes of an entry from above: labels are counted though answers often share them."""
    parts = (answer.values, answer.labels, answer.model_version, *answer.values, *answer.labels)
    return _ENTRY_BYTES + sum(map(sys.getsizeof, parts))
