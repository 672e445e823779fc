"""The texts asked before, as vectors: bounded in number and age, searched for the nearest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from companion.deployment.answering import Answer

__all__ = ["Embed", "Neighbour", "NeighbourIndex", "unit"]

Embed = Callable[[str], NDArray[np.float32]]
"""Turns a text into a vector, equal texts into equal ones. Called in a worker thread, one text at a time."""


@dataclass(frozen=True)
class Neighbour:
    """What was found nearest.

    Attributes
    ----------
    similarity : float
        The cosine of the two vectors, -1 to 1.
    answer : Answer
        The model's answer to the neighbour.
    """

    similarity: float
    answer: Answer


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Scale a vector to length one.

    Parameters
    ----------
    vector : ndarray, shape (dimension,)

    Returns
    -------
    ndarray of float32, shape (dimension,), or None
        None for what has no direction: zero, not finite, or no vector.
    """
    found = np.asarray(vector, dtype=np.float64)
    if found.ndim != 1:
        return None
    length = float(np.linalg.norm(found))
    if not 0 < length < float("inf"):
        return None
    scaled: NDArray[np.float32] = (found / length).astype(np.float32)
    return scaled


class NeighbourIndex:
    """The last `capacity` vectors with their answers; the oldest makes room for the newest.

    A search compares with every vector: exact, and for a few thousand of them a fraction of what the vector
    itself cost. Threads may share an index.

    Parameters
    ----------
    capacity : int
        The most vectors; each takes four bytes per dimension.
    ttl_s : float
        Seconds after which one is forgotten.
    clock : callable
        Gives the time in seconds.

    Raises
    ------
    ValueError
        When a bound keeps nothing.
    """

    def __init__(
        self, capacity: int = 4096, *, ttl_s: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if capacity < 1 or not ttl_s > 0:
            raise ValueError(
                f"NeighbourIndex: capacity is {capacity}, ttl_s {ttl_s}; expected at least 1, more than 0"
            )
        self._capacity, self._ttl_s, self._clock = capacity, ttl_s, clock
        self._lock = threading.Lock()
        self._rows: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)
        self._held: list[tuple[float, Answer] | None] = [None] * capacity
        self._added = self._forgotten = 0  # ever; their difference is what is held

    def __len__(self) -> int:
        """Return how many vectors are held."""
        with self._lock:
            self._expire()
            return self._added - self._forgotten

    def nearest(self, vector: NDArray[np.float32]) -> Neighbour | None:
        """Find the vector with the largest cosine.

        Parameters
        ----------
        vector : ndarray of float32, shape (dimension,)
            From `unit`.

        Returns
        -------
        Neighbour or None
            None when nothing is held.

        Raises
        ------
        ValueError
            When the vectors held have another dimension.
        """
        with self._lock:
            self._expire()
            if self._added == self._forgotten:
                return None
            self._check(vector)
            filled = min(self._added, self._capacity)
            cosines = self._rows[:filled] @ vector
            for place in range(self._added - filled, self._forgotten):
                cosines[place % self._capacity] = -np.inf
            best = int(np.argmax(cosines))
            held = self._held[best]
            assert held is not None
            return Neighbour(min(1.0, float(cosines[best])), held[1])

    def add(self, vector: NDArray[np.float32], answer: Answer) -> None:
        """Hold a vector with its answer.

        Parameters
        ----------
        vector : ndarray of float32, shape (dimension,)
            From `unit`.
        answer : Answer

        Raises
        ------
        ValueError
            When the vectors held have another dimension.
        """
        with self._lock:
            if not self._rows.size:
                self._rows = np.zeros((self._capacity, len(vector)), dtype=np.float32)
            self._check(vector)
            if self._added - self._forgotten == self._capacity:
                self._forgotten += 1
            place = self._added % self._capacity
            self._rows[place] = vector
            self._held[place] = (self._clock(), answer)
            self._added += 1

    def clear(self) -> None:
        """Forget everything, the dimension too."""
        with self._lock:
            self._rows = np.zeros((0, 0), dtype=np.float32)
            self._held = [None] * self._capacity
            self._added = self._forgotten = 0

    def _expire(self) -> None:
        """Forget what is too old; the places are filled in the order of time."""
        oldest = self._clock() - self._ttl_s
        while self._forgotten < self._added:
            place = self._forgotten % self._capacity
            held = self._held[place]
            if held is not None and held[0] > oldest:
                return
            self._held[place] = None
            self._forgotten += 1

    def _check(self, vector: NDArray[np.float32]) -> None:
        if vector.shape != self._rows.shape[1:]:
            raise ValueError(
                f"a vector has the shape {vector.shape}, but those held have {self._rows.shape[1:]}: one "
                "index takes the vectors of one embedding function"
            )
