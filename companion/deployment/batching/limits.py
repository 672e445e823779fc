"""How much may wait, how much may ride together, how long anything may take: one table of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["BatchingLimits"]


@dataclass(frozen=True)
class BatchingLimits:
    """What the batcher takes in, and what it makes of it.

    Attributes
    ----------
    requests : int
        The most requests that wait.
    wait_s : float
        The longest estimated wait, in seconds, at which another request is let in.
    characters : int
        The most characters that wait, so that a line of the longest texts has bounded memory. A text that
        alone has more is let in when nothing else waits.
    padded_tokens : int
        The most padded tokens of a batch: its rows times its padded length. A text that alone has more runs
        alone.
    batch_size : int
        The most texts of a batch.
    window : int
        Of this many, the oldest, a batch is chosen. A larger window finds better neighbours, and lets more
        requests be overtaken: the throughput grows by little, and the slowest hundredth waits for it.
    timeout_s : float
        Time of a request that does not say how long it waits.
    longest_timeout_s : float
        Time of a request that says it waits longer.
    stuck_after_s : float
        After so long in one run, or so long in the line, something hangs. Longer than `wait_s`: a line that
        is only long is no reason to take a server out of service.

    Raises
    ------
    ValueError
        If a limit is not above 0, or `stuck_after_s` is not above `wait_s`.
    """

    requests: int = 512
    wait_s: float = 3.0
    characters: int = 4_000_000
    padded_tokens: int = 1024
    batch_size: int = 16
    window: int = 8
    timeout_s: float = 10.0
    longest_timeout_s: float = 60.0
    stuck_after_s: float = 6.0

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(
                    f"BatchingLimits: {field.name} is {value}, expected a finite number above 0."
                )
        if self.stuck_after_s <= self.wait_s:
            raise ValueError(
                f"BatchingLimits: stuck_after_s is {self.stuck_after_s}, expected more than wait_s "
                f"({self.wait_s}): a line of that length is allowed, and no sign that something hangs."
            )
