"""A model that stands still: what liveness says, what readiness says, and when."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from companion.deployment.experiments.planted import HANG
from companion.deployment.experiments.processes import ask, serving

__all__ = ["hung"]

_LOOK_S = 0.1


def hung(
    folder: Path, *, hangs_s: float = 2.5, stuck_after_s: float = 0.8, watched_s: float = 5.0
) -> dict[str, Any]:
    """Let one request hang a server's only worker, and ask both of its health addresses meanwhile.

    Parameters
    ----------
    folder : Path
        An exported model.
    hangs_s : float
        How long the model stands still.
    stuck_after_s : float
        When the server is to take that for a fault.
    watched_s : float
        How long it is looked at, from the request on.

    Returns
    -------
    dict
        ``"looks"``: for each look its second, the two statuses and the code of the problem, if any;
        ``"during"``: what a request was told that came in the middle; ``"after"``: the status of one at
        the end.
    """
    arguments = ("--seconds", hangs_s, "--stuck-after", stuck_after_s)
    with serving(folder, *arguments, plant=HANG) as server:

        def hang() -> None:
            ask(f"{server.url}/predict", {"text": "hang, please"})

        culprit = threading.Thread(target=hang, daemon=True)
        begun = time.monotonic()
        culprit.start()
        looks, during = [], None
        while (now := time.monotonic() - begun) < watched_s:
            live, ready = ask(f"{server.url}/health/live"), ask(f"{server.url}/health/ready")
            code = ready.body.get("code") if ready.status != 200 else None
            looks.append({"at": now, "live": live.status, "ready": ready.status, "code": code})
            if during is None and ready.status != 200:
                found = ask(f"{server.url}/predict", {"text": "Is anybody there?"})
                during = {
                    "status": found.status,
                    "code": found.body.get("code"),
                    "retry_after": found.headers.get("retry-after"),
                    "detail": ready.body.get("detail"),
                }
            time.sleep(_LOOK_S)
        culprit.join(10)
        after = ask(f"{server.url}/predict", {"text": "And now?"}).status
    return {"looks": looks, "during": during, "after": after, "hangs": hangs_s, "stuck_after": stuck_after_s}
