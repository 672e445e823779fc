"""When each request of an open loop is due."""

from __future__ import annotations

import random
from typing import Literal

__all__ = ["ArrivalKind", "timetable"]

ArrivalKind = Literal["poisson", "even"]


def timetable(rate: float, seconds: float, *, kind: ArrivalKind = "poisson", seed: int = 0) -> list[float]:
    """Write down the times at which requests are due.

    Clients that know nothing of each other make a Poisson process: the gaps are exponential. Even gaps are
    kinder to a server, because no two requests come together.

    Parameters
    ----------
    rate : float
        Requests per second, on average.
    seconds : float
        All times are below it.
    kind : {"poisson", "even"}
    seed : int
        Of the Poisson process; the same seed gives the same times.

    Returns
    -------
    list of float
        Seconds from the start, in order.

    Raises
    ------
    ValueError
        When the rate or the length is not above 0, or the kind is unknown.
    """
    if not (0 < rate < 1e6 and 0 < seconds < 1e6):
        raise ValueError(
            f"found a rate of {rate} for {seconds} seconds, expected two numbers between 0 and a million"
        )
    if kind == "even":
        times = [number / rate for number in range(int(rate * seconds) + 1)]
        return [time for time in times if time < seconds]
    if kind != "poisson":
        raise ValueError(f"arrivals are {kind!r}, expected 'poisson' or 'even'")
    rng = random.Random(f"companion/timetable/{seed}/{rate}")
    found, now = [], rng.expovariate(rate)
    while now < seconds:
        found.append(now)
        now += rng.expovariate(rate)
    return found
