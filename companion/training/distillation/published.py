"""The table of the DistilBERT paper as data, and what follows from it.

Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019, table 1
(https://arxiv.org/abs/1910.01108): development sets of GLUE, medians of five runs, in percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["PUBLISHED", "PUBLISHED_ABLATION", "Published", "average", "implied", "retention"]


@dataclass(frozen=True)
class Published:
    """One row of the table.

    Attributes
    ----------
    scores : mapping of str to float
        By task, in percent: Matthews correlation for CoLA, the authors' choice for the others.
    average : float
        As printed in the row, not computed from it.
    parameters : int
        As printed, in millions.
    seconds : float
        As printed: a pass over the STS-B development set on a CPU with batch size 1.
    """

    scores: Mapping[str, float]
    average: float
    parameters: int
    seconds: float


_TASKS = ("CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI")


def _row(average: float, parameters: int, seconds: float, *scores: float) -> Published:
    return Published(MappingProxyType(dict(zip(_TASKS, scores, strict=True))), average, parameters, seconds)


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "BERT-base": _row(79.5, 110, 668.0, 56.3, 86.7, 88.6, 91.8, 89.6, 69.3, 92.7, 89.0, 53.5),
        "DistilBERT": _row(77.0, 66, 410.0, 51.3, 82.2, 87.5, 89.2, 88.5, 59.9, 91.3, 86.9, 56.3),
    }
)
"""The paper's two rows, as printed."""

PUBLISHED_ABLATION: Mapping[str, float] = MappingProxyType(
    {"without KL": -2.96, "without cosine": -1.46, "without MLM": -0.31, "random initialisation": -3.69}
)
"""Table 4 of the paper: change of the GLUE average, in points. No spread is given."""


def average(scores: Mapping[str, float], *, without: tuple[str, ...] = ()) -> float:
    """Average a row.

    Parameters
    ----------
    scores : mapping of str to float
    without : tuple of str
        Tasks to leave out, such as ``("WNLI",)``, whose development set was built to punish learning from the
        training set: many models score below the more frequent class.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        When a task to leave out is not there, or nothing is left.
    """
    unknown = [name for name in without if name not in scores]
    if unknown:
        raise ValueError(f"no task {unknown[0]!r} to leave out; there are: {', '.join(scores)}")
    kept = [score for name, score in scores.items() if name not in without]
    if not kept:
        raise ValueError("no task is left to average over: leave out fewer")
    return sum(kept) / len(kept)


def implied(row: Published, task: str) -> float:
    """Compute what a task's score must be for the printed average to be right.

    Parameters
    ----------
    row : Published
    task : str

    Returns
    -------
    float
        To within ``0.05 * len(row.scores)``, as the average is printed with one decimal.
    """
    others = sum(score for name, score in row.scores.items() if name != task)
    return row.average * len(row.scores) - others


def retention(
    teacher: Mapping[str, float], student: Mapping[str, float], *, without: tuple[str, ...] = ()
) -> float:
    """Divide the student's average by the teacher's.

    Parameters
    ----------
    teacher, student : mapping of str to float
        The same tasks.
    without : tuple of str
        Tasks to leave out of both averages.

    Returns
    -------
    float
        A share: 0.97 where the student keeps 97%.

    Raises
    ------
    ValueError
        When the tasks differ.
    """
    if teacher.keys() != student.keys():
        odd = ", ".join(sorted(teacher.keys() ^ student.keys()))
        raise ValueError(f"only one of the two has a score for {odd}: expected the same tasks for both")
    return average(student, without=without) / average(teacher, without=without)
