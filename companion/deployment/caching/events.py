"""What a cache tells the metrics: one word for each thing that happens to a question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol, get_args

__all__ = ["EVENTS", "CacheCounter", "CacheEvent", "CacheTally", "NamedEvents"]

CacheEvent = Literal[
    "hit",  # answered from the cache
    "miss",  # not there: passed on
    "stored",  # the answer is kept for the next one
    "bypassed",  # not looked up at all: the cache is off, or the question is not of its kind
    "led",  # the first of equal questions: it runs
    "joined",  # an equal question runs already: waits for its answer
    "left",  # gave up waiting while the run went on for others
    "audited",  # a hit that was put to the model as well
    "false_hit",  # an audited hit whose answer the model does not give
    "damaged",  # a stored value that is none: passed on
    "error",  # the store failed: passed on
    "unavailable",  # the store is known to be down and was not asked: passed on
    "dropped",  # not stored: too large, or too many answers wait to be written
    "opened",  # the store is taken to be down from now on
    "closed",  # the store is back
]
"""Everything that is counted. "opened" and "closed" happen to the store, all else to a question."""

EVENTS: tuple[CacheEvent, ...] = get_args(CacheEvent)
"""All of them: the label values of a metric."""


class CacheCounter(Protocol):
    """Counts events; called on the event loop for each question, so it must be quick and must not raise."""

    def count(self, cache: str, event: CacheEvent) -> None:
        """Count one event.

        Parameters
        ----------
        cache : str
            The name that the cache was given.
        event : str
            One of `EVENTS`.
        """


class CacheTally:
    """A counter in plain numbers: the default, and enough for tests and reports."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, CacheEvent]] = Counter()

    def count(self, cache: str, event: CacheEvent) -> None:
        """Count one event."""
        self._counts[cache, event] += 1

    def of(self, cache: str, event: CacheEvent) -> int:
        """Return how often it happened."""
        return self._counts[cache, event]

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return the counts above zero, by cache and event."""
        found: dict[str, dict[str, int]] = {}
        for (cache, event), count in sorted(self._counts.items()):
            found.setdefault(cache, {})[event] = count
        return found


class NamedEvents:
    """A counter for whoever counts events by one name: ``redis-hit``, ``semantic-false-hit``.

    Parameters
    ----------
    report : callable
        Takes a name.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def count(self, cache: str, event: CacheEvent) -> None:
        """Report one event."""
        self._report(f"{cache}-{event.replace('_', '-')}")
