"""Tasks by name, and `load`, which reads any of them into memory."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["TASKS", "Example", "Metric", "Task", "TaskData", "labels_of", "load"]

Metric = Literal["accuracy", "matthews", "f1", "pearson"]


class Example(NamedTuple):
    """One text, or one pair of texts, with its label.

    Attributes
    ----------
    text : str
        The text, or the first one of a pair.
    label : int, float or None
        Class index (position in `Task.labels`), regression target, or None if not known.
    pair : str or None
        The second text of a paired task.
    """

    text: str
    label: int | float | None = None
    pair: str | None = None


@dataclass(frozen=True)
class Task:
    """What is predicted and how it is scored.

    Attributes
    ----------
    name : str
        Name under which `load` finds it.
    metric : {"accuracy", "matthews", "f1", "pearson"}
        The metric that `score` always includes.
    labels : tuple of str
        Label names in index order; empty for a regression task.
    paired : bool
        Whether each example has two texts.
    description : str
        One line for people.
    """

    name: str
    metric: Metric
    labels: tuple[str, ...]
    paired: bool
    description: str

    @property
    def num_labels(self) -> int:
        """Width of the model's output: the number of labels, 1 for regression."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number."""
        return not self.labels


@dataclass(frozen=True)
class TaskData:
    """A task with its examples.

    Attributes
    ----------
    task : Task
    train, dev, test : tuple of Example
        `test` is empty where no labelled test split is public.
    """

    task: Task
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...] = ()


def labels_of(examples: Iterable[Example]) -> list[int | float]:
    """Return the labels of examples that must all have one.

    Parameters
    ----------
    examples : iterable of Example

    Returns
    -------
    list of int or float

    Raises
    ------
    ValueError
        When an example has no label.
    """
    labels = [example.label for example in examples]
    if None in labels:
        raise ValueError(f"example {labels.index(None)} has no label, expected every example to have one")
    return [label for label in labels if label is not None]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "sentiment", "accuracy", ("negative", "positive"), False, "generated reviews, new words in test"
        ),
        Task("sst2", "accuracy", ("negative", "positive"), False, "GLUE: sentiment of film review phrases"),
        Task("cola", "matthews", ("unacceptable", "acceptable"), False, "GLUE: is the sentence grammatical"),
        Task("mrpc", "f1", ("not_equivalent", "equivalent"), True, "GLUE: do two sentences say the same"),
        Task(
            "rte",
            "accuracy",
            ("entailment", "not_entailment"),
            True,
            "GLUE: does the first entail the second",
        ),
        Task("wnli", "accuracy", ("not_entailment", "entailment"), True, "GLUE: does the pronoun mean this"),
        Task("stsb", "pearson", (), True, "GLUE: similarity of two sentences, 0 to 5"),
        Task("imdb", "accuracy", ("negative", "positive"), False, "sentiment of whole film reviews"),
    )
}
"""All named tasks. Label order is the hub's."""


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


def _load_all(name: str, data_dir: Path | None) -> TaskData:
    """Load the whole task from wherever it is to be found."""
    if name == "sentiment":
        from companion.data import sentiment

        return sentiment.generate()

    from companion.data import glue
    from companion.settings import get_settings

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
