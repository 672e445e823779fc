"""A circuit breaker: who fails again and again is left alone for a while, and then asked once."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """Decides whether a service is worth asking (Nygard, "Release It!", 2nd edition, section 5.2).

    Closed: all calls go through. After so many failures in a row it opens: no call goes through, which costs
    one comparison. When the cool-down is over, one probe may be made; it closes the breaker or doubles the
    cool-down. Calls that began before it opened change nothing when they end.

    Parameters
    ----------
    failures : int
        So many in a row open it.
    cool_down_s : float
        The first wait before a probe.
    longest_s : float
        The longest.
    clock : callable
        Gives the time in seconds.

    Raises
    ------
    ValueError
        When a number is not positive, or the longest wait is shorter than the first.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        cool_down_s: float = 0.5,
        longest_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1 or not 0 < cool_down_s <= longest_s:
            raise ValueError(
                f"CircuitBreaker: failures is {failures}, cool_down_s {cool_down_s}, longest_s {longest_s}; "
                "expected at least 1, and 0 < cool_down_s <= longest_s"
            )
        self._failures, self._cool_down_s, self._longest_s = failures, cool_down_s, longest_s
        self._clock = clock
        self._in_a_row = 0
        self._wait_s = cool_down_s
        self._open_until: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are kept from going through."""
        return self._open_until is not None

    def failed(self) -> bool:
        """Report that a call failed; True when this opens the breaker."""
        if self.is_open:
            return False
        self._in_a_row += 1
        if self._in_a_row < self._failures:
            return False
        self._wait_s = self._cool_down_s
        self._open_until = self._clock() + self._wait_s
        return True

    def succeeded(self) -> None:
        """Report that a call succeeded."""
        self._in_a_row = 0

    def take_probe(self) -> bool:
        """Ask for the right to make the one probe; `probed` gives it back."""
        if self._open_until is None or self._probing or self._clock() < self._open_until:
            return False
        self._probing = True
        return True

    def probed(self, answered: bool) -> None:
        """Report how the probe ended.

        Parameters
        ----------
        answered : bool
            Whether the service is back.
        """
        self._probing = False
        if answered:
            self._open_until, self._in_a_row = None, 0
        else:
            self._wait_s = min(2 * self._wait_s, self._longest_s)
            self._open_until = self._clock() + self._wait_s
