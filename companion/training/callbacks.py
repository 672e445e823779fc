"""What may look into a run, and end it, without being part of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from companion.data import Batch
from companion.training.config import TrainingConfig
from companion.training.records import Evaluation, StepRecord

__all__ = ["Callback", "Diverged", "EarlyStopping", "RunState"]


class Diverged(ValueError):
    """A run whose loss or predictions stopped being finite."""


@dataclass
class RunState:
    """Where a run is: what the loop changes and what a checkpoint restores.

    Attributes
    ----------
    model : torch.nn.Module
    tokenizer : PreTrainedTokenizerBase
    optimizer : torch.optim.Optimizer
    schedule : torch.optim.lr_scheduler.LRScheduler
    scaler : torch.amp.GradScaler
        Does nothing unless the precision is fp16.
    config : TrainingConfig
    device : torch.device
    total_steps : int
        Steps of the whole run, unless it is stopped.
    step : int
        Optimizer steps done.
    epoch : int
        The epoch under way; counts from 0.
    batch : int
        Batches of this epoch done.
    order : str
        Running SHA-256 of the example indices.
    steps, evaluations : list
        The records so far.
    inputs : dict of str to Tensor
        The last micro-batch, on the device.
    stop : bool
        Set it to end the run after this step, as if it had been the last one.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    config: TrainingConfig
    device: torch.device
    total_steps: int
    step: int = 0
    epoch: int = 0
    batch: int = 0
    order: str = ""
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    inputs: Batch = field(default_factory=dict)
    stop: bool = False


class Callback:
    """Does nothing; override what you need.

    A callback that keeps state of its own rebuilds it in `on_start` from the records, so that a resumed run
    goes on as if it had never been interrupted. It must leave torch's random state as it finds it.
    """

    def on_start(self, state: RunState) -> None:
        """Before the first step, or the first one after a checkpoint was restored."""

    def on_gradients(self, state: RunState) -> None:
        """With the gradients of the whole batch, unscaled and not yet clipped, before the weights change."""

    def on_step(self, state: RunState, record: StepRecord) -> None:
        """After the weights have changed."""

    def on_evaluation(self, state: RunState, evaluation: Evaluation) -> None:
        """After the development examples were scored."""

    def on_end(self, state: RunState) -> None:
        """After the last step; not called when the run raises."""


class EarlyStopping(Callback):
    """Ends a run when the development metric no longer improves.

    Parameters
    ----------
    metric : str
        A key of `Evaluation.metrics`.
    patience : int
        Evaluations without improvement that are waited for.
    min_delta : float
        What counts as an improvement, at least.
    higher_is_better : bool, optional
        Default: true, except for ``loss``.

    Raises
    ------
    ValueError
        When `patience` is below 1 or `min_delta` below 0; during the run, when there is no such metric.
    """

    def __init__(
        self, metric: str, *, patience: int = 1, min_delta: float = 0.0, higher_is_better: bool | None = None
    ) -> None:
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"patience is {patience} and min_delta {min_delta}: expected at least 1 and at least 0"
            )
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        higher = metric != "loss" if higher_is_better is None else higher_is_better
        self._sign = 1 if higher else -1

    def on_evaluation(self, state: RunState, evaluation: Evaluation) -> None:
        """Look at all evaluations so far: what was before an interruption counts too."""
        if self.metric not in evaluation.metrics:
            known = ", ".join(evaluation.metrics)
            raise ValueError(f"early stopping watches {self.metric!r}, but the evaluation has: {known}")
        best, waited = -float("inf"), 0
        for done in state.evaluations:
            value = self._sign * done.metrics[self.metric]
            best, waited = (value, 0) if value > best + self.min_delta else (best, waited + 1)
        state.stop = state.stop or waited >= self.patience
