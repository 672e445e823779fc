"""Servers with one thing made wrong on purpose: ``python -m companion.deployment.experiments.planted``.

They are the package's own server in everything but the fault, so that what is seen is the fault's doing.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from companion.deployment.app import load_onnx
from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.configuration import ServerSettings
from companion.deployment.server import serve

__all__ = ["BOUNDED", "HANG", "NO_ADMISSION", "PLANTS", "HangingModel", "main"]

HANG = "hang"
"""The model hangs for a while when a text asks for it."""
NO_ADMISSION = "no-admission"
"""Everybody is let in, and nobody has a deadline."""
BOUNDED = "bounded"
"""Nothing is wrong: what `NO_ADMISSION` is compared with, started in the same way."""
PLANTS = (HANG, NO_ADMISSION, BOUNDED)

_WORD = "hang"
_ENDLESS_S = 1e6


class HangingModel:
    """A model that stands still for some seconds when a text begins with the word ``hang``.

    Parameters
    ----------
    model : Any
        What answers.
    seconds : float
        The sleeping is interruptible by nothing: as a deadlock in a library, only that it ends.
    sleep : callable
    """

    def __init__(self, model: Any, seconds: float, sleep: Callable[[float], object] = time.sleep) -> None:
        self._model, self._seconds, self._sleep = model, seconds, sleep
        self._marked = set[tuple[int, ...]]()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """Be the model in everything else."""
        return getattr(self._model, name)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        """Turn texts into tokens, and remember which of them are to hang."""
        found = self._model.encode(texts, pairs)
        with self._lock:
            for text, encoding in zip(texts, found, strict=True):
                if text.startswith(_WORD):
                    self._marked.add(tuple(encoding.ids))
        return found

    def run(self, encodings: Sequence[Any]) -> Any:
        """Give the logits of one batch, late when one of its texts asks for it."""
        with self._lock:
            hangs = any(tuple(encoding.ids) in self._marked for encoding in encodings)
        if hangs:
            self._sleep(self._seconds)
        return self._model.run(encodings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a folder with a fault until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("plant", choices=PLANTS)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a run hangs")
    parser.add_argument("--stuck-after", type=float, default=1.0, help="when that counts as stuck")
    parser.add_argument("--timeout", type=float, default=1.0, help="time of a request, where it has one")
    chosen = parser.parse_args(arguments)
    settings = ServerSettings(port=0, threads=1, workers=1)
    if chosen.plant == HANG:
        limits = BatchingLimits(wait_s=chosen.stuck_after / 2, stuck_after_s=chosen.stuck_after)

        def load(folder: Path, threads: int) -> Any:
            return HangingModel(load_onnx(folder, threads), chosen.seconds)

        serve(chosen.folder, settings, load=load, batching=limits)
    elif chosen.plant == NO_ADMISSION:
        limits = BatchingLimits(
            requests=10**9,
            characters=10**12,
            wait_s=_ENDLESS_S / 2,
            timeout_s=_ENDLESS_S,
            longest_timeout_s=_ENDLESS_S,
            stuck_after_s=_ENDLESS_S,
        )
        serve(chosen.folder, settings, batching=limits)
    else:
        serve(chosen.folder, settings, batching=BatchingLimits(timeout_s=chosen.timeout))


if __name__ == "__main__":
    main(sys.argv[1:])
