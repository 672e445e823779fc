"""What clients notice when one of several servers dies: behind nginx, and without anything in front."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from companion.deployment.experiments.clients import SteadyClients
from companion.deployment.stack import Stack, StackSettings

__all__ = ["killed"]


def killed(
    folder: Path,
    texts: Sequence[str],
    *,
    servers: int = 3,
    rate: float = 60.0,
    killed_s: float = 3.0,
    back_s: float = 5.0,
    seconds: float = 8.0,
) -> dict[str, Any]:
    """Kill one of several servers under load, and bring it back.

    Parameters
    ----------
    folder : Path
        An exported model.
    texts : sequence of str
        Asked in turn.
    servers : int
    rate : float
        Requests per second.
    killed_s, back_s, seconds : float
        When it gets a SIGKILL, when it is started again, and when the clients stop.

    Returns
    -------
    dict
        ``"answers"``: for each request its second, its latency and its status; ``"killed"``, ``"asked"`` and
        ``"back"``: the seconds of the kill, of the call that starts it anew and of that call's end.

    Raises
    ------
    FileNotFoundError
        When nginx is not installed.
    """
    settings = StackSettings(folder, servers=servers, port=0, without=("redis", "prometheus"), threads=1)
    with (
        tempfile.TemporaryDirectory() as place,
        Stack(settings, Path(place) / "stack") as stack,
        SteadyClients(stack.url, texts, rate=rate) as clients,
    ):
        time.sleep(killed_s)
        victim = stack.process("server-2")
        assert victim is not None, "it was ready"
        os.kill(victim, signal.SIGKILL)
        dead = clients.elapsed
        time.sleep(max(0.0, back_s - clients.elapsed))
        asked = clients.elapsed
        stack.up()
        back = clients.elapsed
        time.sleep(max(1.0, seconds - clients.elapsed))
    answers = [[round(one.due, 4), round(one.seconds, 5), one.status] for one in clients.told]
    return {"answers": answers, "killed": dead, "asked": asked, "back": back, "servers": servers}
