"""Opens a graph with onnxruntime, always with the same options. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from companion.settings import get_settings

__all__ = ["Memory", "open_session", "run_all"]


@dataclass(frozen=True)
class Memory:
    """Where onnxruntime takes the memory for intermediate results from.

    Attributes
    ----------
    arena : bool
        Whether it keeps what it once took, for later runs. If not, it takes and returns each block.
    pattern : bool
        Whether it remembers for every shape that it has seen where each result was, and takes one block for
        all of them.
    shrink : bool
        Whether the arena gives back after each run what is in no use.
    """

    arena: bool = True
    pattern: bool = True
    shrink: bool = False

    def run_options(self) -> onnxruntime.RunOptions | None:
        """Return what each run of a session has to be told."""
        if not self.shrink:
            return None
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options


def open_session(
    model: Path | bytes,
    *,
    threads: int | None = None,
    quiet: bool = False,
    memory: Memory | None = None,
    profile: Path | None = None,
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
    memory : Memory, optional
    profile : Path, optional
        Write how long each operator of each run takes, into a file whose name begins like this; the
        session's ``end_profiling`` completes it and returns its name.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or get_settings().threads
    # Spinning threads win microseconds on an idle machine and lose multiples of that on a busy one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4 if quiet else 3
    memory = memory or Memory()
    options.enable_cpu_mem_arena, options.enable_mem_pattern = memory.arena, memory.pattern
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_all(model: bytes, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> NDArray[np.float32]:
    """Run a graph on each input and return its first output, one below the other."""
    session = open_session(model)
    return np.concatenate([session.run(None, dict(feed))[0] for feed in feeds])
