"""What a training run leaves behind, apart from the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from companion.training.config import TrainingConfig

__all__ = ["Evaluation", "StepRecord", "TrainingRun"]


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes
    ----------
    step : int
        Counts from 1.
    loss : float
        Mean loss of the batch, in nats for a classifier or a language model.
    learning_rate : float
        The rate this step was taken with.
    grad_norm : float
        Total L2 norm of the gradients before clipping.
    examples_per_second : float
        Since the start of the run, or since it was resumed, without the evaluations.
    terms : dict of str to float
        The mean of each term of the loss, before its weight.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    examples_per_second: float
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The metrics on the development examples.

    Attributes
    ----------
    epoch : int
        The epoch it was made in or at the end of; counts from 1.
    step : int
        The last step before it.
    metrics : dict of str to float
        As returned by `companion.data.score`; without a task, ``loss`` and the objective's terms.
    """

    epoch: int
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainingRun:
    """The records of a finished run.

    Attributes
    ----------
    config : TrainingConfig
        What was asked for.
    steps : tuple of StepRecord
    evaluations : tuple of Evaluation
    precision : str
        What ``auto`` became: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
    device : str
        Where it ran.
    processes : int
        How many computed together.
    seconds : float
        Wall-clock time, evaluations included; of a resumed run, since it was resumed.
    order : str
        SHA-256 of the example indices of all steps, in order: two runs with the same one saw the same
        examples in the same batches.
    resumed_from : int
        The step of the checkpoint that the run went on from; 0 for a run in one piece.
    """

    config: TrainingConfig
    steps: tuple[StepRecord, ...]
    evaluations: tuple[Evaluation, ...]
    precision: str
    device: str
    processes: int
    seconds: float
    order: str
    resumed_from: int

    @property
    def examples_per_second(self) -> float:
        """Training throughput over the whole run."""
        return self.steps[-1].examples_per_second
