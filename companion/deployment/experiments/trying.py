"""A second version beside the live one, under load: shadowed, given some callers, taken back by itself."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from companion.deployment.experiments.clients import SteadyClients
from companion.deployment.experiments.processes import ServerProcess, ask, serving
from companion.deployment.rollout.admin import ADMIN_HEADER, PREFIX
from companion.deployment.rollout.admin_key import ADMIN_KEY_VARIABLE
from companion.deployment.rollout.guarding import SequentialTest, Tolerance

__all__ = ["Step", "answers_to_alarm", "tried"]

Step = tuple[float, str, dict[str, Any] | None]
"""At which second, the last part of an address below `/admin/rollout`, and what is sent there."""

_LOOK_S = 0.1


def tried(
    live: Path,
    candidate: Path,
    texts: Sequence[str],
    steps: Sequence[Step],
    *,
    rate: float = 60.0,
    seconds: float = 6.0,
) -> dict[str, Any]:
    """Load a candidate beside a live version, steer the rollout by a timetable, and keep every answer.

    Parameters
    ----------
    live, candidate : Path
        Exported models.
    texts : sequence of str
        Asked in turn by clients that know nothing of versions.
    steps : sequence of Step
        In the order of time.
    rate : float
        Requests per second.
    seconds : float
        From the first request to the last one.

    Returns
    -------
    dict
        - ``"answers"``: for each request its second, its latency in seconds, its status, and whether the
          candidate answered.
        - ``"labels"``: for each request its text's place and the label.
        - ``"looks"``: for each look its second, answers compared, of these agreed, the canary's share and the
          shadow's.
        - ``"events"``: what the rollout says has happened; ``"steps"``: when each step was taken.
        - ``"trial"``: what was seen of the candidate, as last reported while there was one.
    """
    key = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(
            live,
            *("--threads", 1, "--rollout", Path(folder) / "state.json"),
            environment={ADMIN_KEY_VARIABLE: key},
        ) as server,
    ):
        admin = _Admin(server, key)
        loaded = admin.call("/load", {"folder": str(candidate)})
        name = loaded["candidate"]["version"]
        looks, taken, trial = list[dict[str, Any]](), list[float](), loaded["trial"]
        with SteadyClients(server.url, texts, rate=rate) as clients:
            while clients.elapsed < seconds:
                if len(taken) < len(steps) and clients.elapsed >= steps[len(taken)][0]:
                    _, path, body = steps[len(taken)]
                    admin.call(f"/{path}", body)
                    taken.append(clients.elapsed)
                status = admin.call("")
                trial = status["trial"] or trial
                looks.append(_look(clients.elapsed, status))
                time.sleep(_LOOK_S)
        status = admin.call("")
    return {
        "answers": [
            [round(one.due, 4), round(one.seconds, 5), one.status, one.version == name]
            for one in clients.told
        ],
        "labels": [[one.text, one.label] for one in clients.told],
        "looks": looks,
        "steps": taken,
        "events": status["events"],
        "trial": trial,
    }


class _Admin:
    """The control surface of one server."""

    def __init__(self, server: ServerProcess, key: str) -> None:
        self._url, self._headers = server.url + PREFIX, {ADMIN_HEADER: key}

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        method = None if path == "" else "POST"
        found = ask(self._url + path, body, method=method, headers=self._headers)
        if found.status != 200:
            raise RuntimeError(f"the rollout said {found.status} to {path or 'status'}: {found.body}")
        status: dict[str, Any] = found.body
        return status


def _look(at: float, status: dict[str, Any]) -> dict[str, Any]:
    trial = status["trial"]
    agreement = trial["agreement"] if trial else {"compared": None, "agreed": None}
    return {
        "at": at,
        "compared": agreement["compared"],
        "agreed": agreement["agreed"],
        "canary": status["canary"],
        "shadow": status["shadow"],
        "back": any(event["automatic"] for event in status["events"]),
    }


def answers_to_alarm(
    tolerance: Tolerance, shares: Sequence[float], *, most: int, runs: int
) -> list[list[int]]:
    """Count how many answers the guard needs to take back a version with a share of bad answers.

    Parameters
    ----------
    tolerance : Tolerance
    shares : sequence of float
        Shares of bad answers, each drawn at random.
    most : int
        Answers after which a run ends without an alarm, and counts as `most`.
    runs : int
        For each share.

    Returns
    -------
    list of list of int
        For each share the counts, sorted.
    """
    from numpy.random import default_rng

    found = []
    for place, share in enumerate(shares):
        counts = []
        for run in range(runs):
            bad = default_rng([place, run]).random(most) < share
            test = SequentialTest(tolerance)
            counts.append(next((at + 1 for at, one in enumerate(bad) if test.observe(bool(one))), most))
        found.append(sorted(counts))
    return found
