"""Reads a named task into memory, wherever its data come from."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

from companion.data import glue, sentiment
from companion.data.tasks import TASKS, TaskData

__all__ = ["load"]


def load(
    name: str, *, data_dir: Path | None = None, seed: int = 0, max_examples: int | None = None
) -> TaskData:
    """Load a named task into memory.

    `sentiment` is generated, the same each time. The others come from `data_dir`, else from the settings'
    `data_dir`, else, under the `full` profile, from the hub.

    Parameters
    ----------
    name : str
        A key of `TASKS`.
    data_dir : Path, optional
        A folder in GLUE's layout (`SST-2/train.tsv`) or in the hub's (`sst2/train-*.parquet`).
    seed : int
        Chooses the subset of train when `max_examples` is given. With one seed, a smaller subset is part of
        every larger one.
    max_examples : int, optional
        Keep at most this many examples of train, drawn at random, in their original order.

    Returns
    -------
    TaskData

    Raises
    ------
    ValueError
        If the task is unknown, `max_examples` is below 1 or a file is malformed.
    FileNotFoundError
        If there is no data for the task.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples is {max_examples}, expected at least 1")
    data = _load_all(name, data_dir)
    if max_examples is None or max_examples >= len(data.train):
        return data
    positions = list(range(len(data.train)))
    random.Random(f"companion/subset/{seed}").shuffle(positions)
    return replace(data, train=tuple(data.train[position] for position in sorted(positions[:max_examples])))


@cache
def _generated() -> TaskData:
    """Generate the task once: seconds of work, and nobody can change what comes of it."""
    return sentiment.generate()


def _load_all(name: str, data_dir: Path | None) -> TaskData:
    """Load the whole task from wherever it is to be found."""
    if name == "sentiment":
        return _generated()

    from companion.settings import get_settings  # slow to import, and a generated task needs none

    settings = get_settings()
    folder = data_dir if data_dir is not None else settings.data_dir
    if folder is not None:
        return glue.read_folder(name, Path(folder))
    if settings.profile == "full":
        return glue.read_hub(name)
    raise FileNotFoundError(
        f"no data for the task {name!r}; set COMPANION_DATA_DIR to a folder with GLUE data (or pass one), or "
        "set COMPANION_PROFILE=full to take it from the hub"
    )
