"""What a task is, and the tasks that have names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["TASKS", "Example", "Metric", "Task", "TaskData", "check_labels", "labels_of", "made_up"]

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


def made_up(count: int) -> tuple[str, ...]:
    """Return the names that transformers gives to labels without any: they say nothing about the task."""
    return tuple(f"LABEL_{index}" for index in range(count))


def check_labels(task: Task, labels: Sequence[str], name: str, *, is_regression: bool) -> None:
    """Refuse a model that was made for another task.

    Parameters
    ----------
    task : Task
    labels : sequence of str
        The model's; those of `made_up` fit every task with as many.
    name : str
        What to call the model in the error: its folder.
    is_regression : bool
        Whether the model predicts a number.

    Raises
    ------
    ValueError
        When the one has labels that the other has not, or has them in another order.
    """
    fits = task.is_regression or tuple(labels) in (task.labels, made_up(task.num_labels))
    if task.is_regression != is_regression or not fits:
        raise ValueError(
            f"{name} predicts {', '.join(labels)}; {task.name} has {', '.join(task.labels) or 'numbers'}. "
            "Choose the task that the model was trained for."
        )


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
