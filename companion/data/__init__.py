"""Data: tasks by name, the user's own files, batches and scores.

`load` gives a task's examples, `load_file` and `stream_file` those of a file, `batches` turns examples into
padded tensors, `score` compares predictions with labels. Only `batches` needs torch, and only when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from companion.data.files import FileData, load_file, stream_file, stream_texts
from companion.data.loading import load
from companion.data.metrics import score
from companion.data.rows import BadRow
from companion.data.splitting import split_file
from companion.data.tasks import TASKS, Example, Task, TaskData, check_labels, labels_of

if TYPE_CHECKING:
    from companion.data.batching import Batches, StreamedBatches, batches
    from companion.data.encoding import Batch

__all__ = [
    "TASKS",
    "BadRow",
    "Batch",
    "Batches",
    "Example",
    "FileData",
    "StreamedBatches",
    "Task",
    "TaskData",
    "batches",
    "check_labels",
    "labels_of",
    "load",
    "load_file",
    "score",
    "split_file",
    "stream_file",
    "stream_texts",
]


def __getattr__(name: str) -> Any:
    if name in {"Batch", "Batches", "StreamedBatches", "batches"}:
        from companion.data import batching

        return getattr(batching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
