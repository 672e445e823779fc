"""What the sending process told of one stage, kept until it is counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["LoadSample", "StageRecord"]

_OUTCOMES = ("ok", "refused", "failed", "unsent")


class LoadSample(NamedTuple):
    """One attempt to have a request answered; times in seconds from the start of its stage.

    Attributes
    ----------
    due : float
        When a client wanted it sent.
    sent : float or None
        When it was; None for a request that never was.
    answered : float
        When it was answered; of one that was never sent, when that was given up.
    outcome : str
        ``"ok"``, ``"refused"``, ``"failed"`` or ``"unsent"``.
    status : int
        0 where there was no answer.
    title : str
        What was wrong.
    retry_after : float or None
        Seconds that a refusal asks for.
    attempt : int
        From 0.
    late : bool
        Whether it had to wait for a connection.
    """

    due: float
    sent: float | None
    answered: float
    outcome: str
    status: int = 200
    title: str = ""
    retry_after: float | None = None
    attempt: int = 0
    late: bool = False


@dataclass
class StageRecord:
    """Everything that was told of one stage.

    Attributes
    ----------
    rate : float or None
        None for a closed loop.
    warmup : float
        Seconds at its beginning that are not measured.
    seconds : float
        All of it, the warm-up too.
    users : int
    began : float
        By the sending process's clock.
    samples : list of LoadSample
    cpu : list of tuple of float
        Seconds of the stage, and CPU seconds of the process by then.
    lags : list of tuple of float
        Seconds of the stage, and by how many the process woke up late.
    locust : tuple of int
        Requests and failures by locust's own statistics.
    done : bool
        Whether it came to its end.
    """

    rate: float | None
    warmup: float
    seconds: float
    users: int = 0
    began: float | None = None
    samples: list[LoadSample] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)
    lags: list[tuple[float, float]] = field(default_factory=list)
    locust: tuple[int, int] = (0, 0)
    done: bool = False

    @property
    def reached(self) -> float:
        """Seconds of the stage that were told of; of a stage that came to its end, all."""
        return self.seconds if self.done else min(self.seconds, self.cpu[-1][0] if self.cpu else 0.0)

    def take(self, message: dict[str, Any]) -> None:
        """Add what a message of the sending process says."""
        if "opened" in message:
            self.began, self.users = message["opened"], message["users"]
        if "samples" in message:
            titles, at = message["titles"], message["at"]
            for due, sent, answered, outcome, status, title, wait, attempt, late in message["samples"]:
                self.samples.append(
                    LoadSample(
                        due, sent, answered, _OUTCOMES[outcome], status, titles[title], wait, attempt, late
                    )
                )
            self.cpu.append((at, message["cpu"]))
            self.lags += [(at, lag) for lag in message["lags"]]
        if "done" in message:
            self.locust = (message["locust"][0], message["locust"][1])
            self.done = not message["stopped"]
