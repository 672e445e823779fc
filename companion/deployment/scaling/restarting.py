"""When a process that ended is started again, and when that is given up. Arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Restarts"]


@dataclass
class Restarts:
    """The patience with one place in which processes run.

    The first end is answered at once, the next ones ever later. A process that has served for long enough
    wipes the slate clean.

    Parameters
    ----------
    tries : int
        Ends in a row, without having served long enough, after which it is given up.
    first_s, longest_s : float
        Waits between the second end in a row and the next start; each is twice the one before.
    served_s : float
        How long is long enough.
    """

    tries: int = 5
    first_s: float = 0.5
    longest_s: float = 8.0
    served_s: float = 10.0
    in_a_row: int = field(default=0, init=False)

    def ended(self, *, ready_for_s: float | None) -> float | None:
        """Note an end.

        Parameters
        ----------
        ready_for_s : float, optional
            How long the process could answer; None when it never could.

        Returns
        -------
        float or None
            Seconds to wait before the next start; None to give up.
        """
        if ready_for_s is not None and ready_for_s >= self.served_s:
            self.in_a_row = 0
        self.in_a_row += 1
        if self.in_a_row > self.tries:
            return None
        if self.in_a_row == 1:
            return 0.0
        doubled: float = self.first_s * 2.0 ** (self.in_a_row - 2)
        return min(self.longest_s, doubled)
