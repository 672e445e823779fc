"""What a training run leaves behind, apart from the weights."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Evaluation", "StepRecord", "TrainingRun"]


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes
    ----------
    step : int
        Counts from 1.
    loss : float
        Mean loss of the batch, in nats for a classifier.
    learning_rate : float
        The rate this step was taken with.
    grad_norm : float
        Total L2 norm of the gradients before clipping.
    examples_per_second : float
        Since the start of the run, without the evaluations.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    examples_per_second: float


@dataclass(frozen=True)
class Evaluation:
    """The metrics on the development examples after an epoch.

    Attributes
    ----------
    epoch : int
        Counts from 1.
    step : int
        The last step before it.
    metrics : dict of str to float
        As returned by `companion.data.score`.
    """

    epoch: int
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainingRun:
    """The records of a finished run.

    Attributes
    ----------
    steps : tuple of StepRecord
    evaluations : tuple of Evaluation
        One per epoch when development examples were given.
    precision : str
        What ``auto`` became: ``"fp32"`` or ``"bf16"``.
    device : str
        Where it ran.
    seconds : float
        Wall-clock time, evaluations included.
    """

    steps: tuple[StepRecord, ...]
    evaluations: tuple[Evaluation, ...]
    precision: str
    device: str
    seconds: float

    @property
    def examples_per_second(self) -> float:
        """Training throughput over the whole run."""
        return self.steps[-1].examples_per_second
