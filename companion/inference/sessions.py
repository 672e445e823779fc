"""Opens a graph with onnxruntime, always with the same options. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from companion.settings import get_settings

__all__ = ["open_session", "run_all"]


def open_session(
    model: Path | bytes, *, threads: int | None = None, quiet: bool = False
) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU.

    Parameters
    ----------
    model : Path or bytes
        A file, or a serialised model.
    threads : int, optional
        Threads per run. Default: the settings' threads.
    quiet : bool
        Whether a graph that cannot run is a question and not a mistake: nothing is logged.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or get_settings().threads
    # Spinning threads win microseconds on an idle machine and lose multiples of that on a busy one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4 if quiet else 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_all(model: bytes, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> NDArray[np.float32]:
    """Run a graph on each input and return its first output, one below the other."""
    session = open_session(model)
    return np.concatenate([session.run(None, dict(feed))[0] for feed in feeds])
