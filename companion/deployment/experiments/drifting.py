"""A prediction log of a real server, in which the traffic changes at a known place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from companion.deployment.experiments.clients import SteadyClients
from companion.deployment.experiments.processes import serving
from companion.deployment.watching import read_log, rehearse

__all__ = ["drifted_log", "false_alarms"]


def drifted_log(
    folder: Path, log: Path, usual: Sequence[str], changed: Sequence[str], *, clients: int = 8
) -> None:
    """Let a server answer usual texts, then changed ones, and write its prediction log.

    Parameters
    ----------
    folder : Path
        An exported model.
    log : Path
        The log's folder.
    usual, changed : sequence of str
        Each is asked once, in this order.
    clients : int
        That wait for each other's answers.

    Raises
    ------
    RuntimeError
        When not all of them were answered.
    """
    with serving(folder, "--threads", 1, "--prediction-log", log) as server:
        for texts in (usual, changed):
            with SteadyClients(server.url, texts, count=len(texts), connections=clients) as asked:
                pass
            statuses = [one.status for one in asked.told]
            if statuses.count(200) != len(texts):
                raise RuntimeError(f"of {len(texts)} texts {statuses.count(200)} were answered")


def false_alarms(log: Path, *, usual: int, window: int, rounds: int = 200, seed: int = 0) -> dict[str, Any]:
    """Rehearse the alarm on answers from before anything changed.

    Parameters
    ----------
    log : Path
    usual : int
        Answers, the first ones, in which nothing changed.
    window : int
        Answers of a window.
    rounds : int
    seed : int

    Returns
    -------
    dict
        Alarms, rounds and the rate with its interval.
    """
    (answers,) = read_log(log).versions.values()
    found = rehearse(answers.take(slice(0, usual)), window=window, rounds=rounds, seed=seed)
    return {"alarms": found.alarms, "rounds": found.windows, "rate": found.rate.to_dict()}
