"""What the parts behind the edge tell whoever counts: queue, batches, waiting, named events.

A batcher, a cache or a rollout takes a `ServingObserver` and calls it; it never imports a metrics library.
`companion.deployment.metrics.ServerMetrics` is the one that shows up under `/metrics`.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["ServingObserver", "Unobserved"]


class ServingObserver(Protocol):
    """Is told what happens between a request and its answer. No method blocks or raises."""

    def queue(self, length: int, oldest_age_s: float) -> None:
        """Take the state of the queue.

        Call it when the queue changes, and at least once a second while something waits: a queue that does
        not move is what an alarm has to see. Changes close to each other may be told as one.

        Parameters
        ----------
        length : int
            How many questions wait.
        oldest_age_s : float
            How long the oldest of them has waited, in seconds; 0 for an empty queue.
        """

    def waited(self, seconds: float) -> None:
        """Take how long one question waited before its run began."""

    def batch(self, *, texts: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Take one run of the model.

        Parameters
        ----------
        texts : int
            How many questions ran together.
        tokens, padded_tokens : int
            Their tokens without and with padding.
        seconds : float
            How long the run took.
        """

    def event(self, name: str) -> None:
        """Count something by name, such as ``deadline-passed`` or ``cache-hit``.

        Names come from the program, never from a request: each becomes a time series.
        """


class Unobserved:
    """The observer of a part that nobody watches."""

    def queue(self, length: int, oldest_age_s: float) -> None:
        """Do nothing."""

    def waited(self, seconds: float) -> None:
        """Do nothing."""

    def batch(self, *, texts: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Do nothing."""

    def event(self, name: str) -> None:
        """Do nothing."""
