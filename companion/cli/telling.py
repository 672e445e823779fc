"""What `train` says of labels: which there are, before it begins, and whether any was learned, at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import typer

from companion.data import Example, Task, TaskData, labels_of, score
from companion.training.callbacks import Callback, RunState
from companion.training.distributed import join

__all__ = ["Classes", "tell_if_nothing_is_learned"]

_FEW = 5
"""Rows below which a class cannot be learned, nor be told from a slip of the pen."""
_LISTED = 30


class Classes(Callback):
    """Says on stderr which classes a run learns and how many rows each has; warns of those with few.

    Parameters
    ----------
    data : TaskData
        With labels, not numbers. Rows that are held out count too.
    """

    def __init__(self, data: TaskData) -> None:
        counts = Counter(labels_of((*data.train, *data.dev)))
        self.counts = {label: counts[index] for index, label in enumerate(data.task.labels)}

    def on_start(self, state: RunState) -> None:
        """Speak once all mistakes in the call are told; under torchrun one process does."""
        if not join().is_first:
            return
        typer.echo(f"{'classes':20} {self._listed(self.counts)}", err=True)
        if few := {label: count for label, count in self.counts.items() if count < _FEW}:
            typer.echo(
                f"companion: warning: classes with fewer than {_FEW} rows: {self._listed(few)}. A label "
                "that is written wrongly becomes a class: correct or remove its rows, or give more like them",
                err=True,
            )

    def _listed(self, counts: dict[str, int]) -> str:
        shown = [f"{label} {count}" for label, count in counts.items()]
        rest = [f"and {len(shown) - _LISTED} more"] if len(shown) > _LISTED else []
        return ", ".join([*shown[:_LISTED], *rest])


def tell_if_nothing_is_learned(task: Task, dev: Sequence[Example], value: float) -> None:
    """Warn on stderr of a model that is no better than the best constant answer.

    Parameters
    ----------
    task : Task
        With labels, not numbers. Its metric is compared.
    dev : sequence of Example
        Held-out examples with labels.
    value : float
        The model's score on them.
    """
    truth = labels_of(dev)
    constant = {
        label: score(task, truth, np.full(len(truth), index))[task.metric]
        for index, label in enumerate(task.labels)
    }
    label = max(constant, key=lambda name: constant[name])
    if value > constant[label] or value == 1:  # all right is all right, though one label be all there is
        return
    typer.echo(
        f"companion: warning: {task.metric} {value:.4g} on held-out rows ({len(truth)}) is no better than "
        f"{constant[label]:.4g}, which always answering {label!r} gives: nothing was learned that shows. "
        "Look at --learning-rate and at the labels; companion diagnose looks for the cause",
        err=True,
    )
