"""What candidates are judged by: held-out examples, with labels or with the source's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from companion.data import Example, Task
from companion.inference.predictor import Predictor
from companion.inference.quality.assessment import assess, check_task
from companion.inference.quality.gate import Gate
from companion.inference.quality.record import Quality

__all__ = ["Remembered", "Yardstick", "gather"]


class Remembered:
    """A predictor that answers the same batches once, however often it is asked: a slow reference for many.

    Parameters
    ----------
    predictor : Predictor
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._answers: dict[tuple[object, ...], NDArray[np.float32]] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of the logits."""
        return self._predictor.labels

    @property
    def is_regression(self) -> bool:
        """Whether the one logit is a number to predict rather than a score."""
        return self._predictor.is_regression

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Compute logits, or look them up; see `companion.inference.Predictor`."""
        key = tuple(texts), None if pairs is None else tuple(pairs), batch_size
        if key not in self._answers:
            self._answers[key] = self._predictor.logits(texts, pairs, batch_size=batch_size)
        return self._answers[key].copy()

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Compute probabilities, each time anew; see `companion.inference.Predictor`."""
        return self._predictor.probabilities(texts, pairs, batch_size=batch_size)


@dataclass(frozen=True)
class Yardstick:
    """Held-out examples, and the source's answers to them.

    Attributes
    ----------
    reference : Predictor
        The source.
    task : Task
    examples : tuple of Example
        All labelled, by somebody or by the source itself.
    labelled : bool
        By somebody. If not, the accuracy is the share of unchanged answers. Each answer that changes can cost
        at most one right one, so that what it drops by is an upper bound of the drop in accuracy.
    """

    reference: Predictor
    task: Task
    examples: tuple[Example, ...]
    labelled: bool

    @property
    def metric(self) -> str:
        """What drops, in words."""
        return self.task.metric if self.labelled else "agreement with the source"

    @property
    def pairs(self) -> list[str] | None:
        """The second texts, where the task has them."""
        return [example.pair or "" for example in self.examples] if self.task.paired else None

    def judge(self, candidate: Predictor, max_drop: float) -> tuple[Quality, Gate]:
        """Compare a candidate with the source, and its drop with a budget in points."""
        quality = assess(self.reference, candidate, self.examples, self.task)
        return quality, quality.passes(max_drop, called=self.metric)


def gather(source: Predictor, held_out: Sequence[Example], task: Task | None = None) -> Yardstick:
    """Make evidence of held-out examples.

    Parameters
    ----------
    source : Predictor
    held_out : sequence of Example
        All with a label, or none.
    task : Task, optional
        Says the metric. Default: accuracy on the source's labels, or Pearson's correlation for a number.

    Returns
    -------
    Yardstick

    Raises
    ------
    ValueError
        When there are no examples, only some have a label, none has and the source predicts a number, or the
        source was not made for the task.
    """
    if not held_out:
        raise ValueError(
            "there are no held-out examples, without which nobody knows what a candidate costs: give "
            "labelled ones that were not trained on, or at least texts as they are in use"
        )
    count = sum(example.label is not None for example in held_out)
    if 0 < count < len(held_out):
        raise ValueError(
            f"{count} of {len(held_out)} held-out examples have a label, expected all or none: label the "
            "others, or leave them out"
        )
    labels = () if source.is_regression else source.labels
    if task is None:
        paired = held_out[0].pair is not None
        task = Task("held-out", "pearson" if source.is_regression else "accuracy", labels, paired, "")
    check_task(source, task, "the source")
    reference = Remembered(source)
    if count:
        return Yardstick(reference, task, tuple(held_out), True)
    if source.is_regression:
        raise ValueError(
            "the model predicts a number, and the held-out examples have none to compare it with: give a "
            "label column, or a task with numbers such as stsb"
        )
    own = Task(f"{task.name}, as the source labels it", "accuracy", labels, task.paired, task.description)
    pairs = [example.pair or "" for example in held_out] if task.paired else None
    chosen = reference.logits([example.text for example in held_out], pairs).argmax(axis=1)
    examples = [example._replace(label=int(label)) for example, label in zip(held_out, chosen, strict=True)]
    return Yardstick(reference, own, tuple(examples), False)
