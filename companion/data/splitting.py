"""The user's own file as a task: part of it is held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from companion.data.files import load_file
from companion.data.tasks import Task, TaskData

__all__ = ["split_file"]

_HELD_OUT = 0.1
_LEAST = 20


def split_file(
    path: Path,
    text_column: str,
    label_column: str,
    pair_column: str | None = None,
    *,
    seed: int = 0,
    max_examples: int | None = None,
    labels: Sequence[str] | None = None,
) -> TaskData:
    """Read a labelled file and hold a tenth of its rows out for development.

    Parameters
    ----------
    path : Path
        A csv, tsv, jsonl or parquet file, see `load_file`.
    text_column, label_column : str
    pair_column : str, optional
    seed : int
        Chooses the rows that are held out.
    max_examples : int, optional
        Keep at most this many rows for training.
    labels : sequence of str, optional
        Label names in index order, as for `load_file`. Default: those found.

    Returns
    -------
    TaskData
        Named after the file, scored by accuracy; `test` is empty.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_file`, and when there are too few rows or only one label.
    """
    read = load_file(
        path, text_column=text_column, label_column=label_column, pair_column=pair_column, labels=labels
    )
    if len(read.examples) < _LEAST:
        raise ValueError(
            f"{path}: rows found: {len(read.examples)}, expected at least {_LEAST} to train and to score; "
            "give more"
        )
    if len(read.labels) < 2:
        raise ValueError(
            f"{path}: column {label_column!r} holds one label only ({read.labels[0]}), expected two or more"
        )
    order = list(range(len(read.examples)))
    random.Random(seed).shuffle(order)
    held_out = max(1, round(_HELD_OUT * len(order)))
    dev, train = sorted(order[:held_out]), sorted(order[held_out:][:max_examples])
    task = Task(
        Path(path).stem, "accuracy", read.labels, pair_column is not None, f"The rows of {Path(path).name}."
    )
    return TaskData(task, tuple(read.examples[i] for i in train), tuple(read.examples[i] for i in dev))
