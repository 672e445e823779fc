"""What a task is, and the tasks that have names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["TASKS", "Example", "Metric", "Task", "TaskData", "labels_of"]

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
