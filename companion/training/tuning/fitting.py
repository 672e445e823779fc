"""One trial: what reports to the study, and a run of `fit` as a function of a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

from companion.data import Example, Task
from companion.training.callbacks import Callback, Diverged, RunState
from companion.training.records import Evaluation
from companion.training.tuning.records import Candidate

__all__ = ["Fitting", "Reporter", "Run", "set_dropout"]


class Reporter(Callback):
    """Reports the evaluations of a run to its trial, and ends the run when it is pruned.

    Parameters
    ----------
    trial : optuna.Trial
    evaluations : int
        Parts into which the budget is divided.
    metric : str, optional
        A key of `Evaluation.metrics`. Default: the first.

    Attributes
    ----------
    pruned : bool
        Whether the run was told to end early.
    """

    def __init__(self, trial: optuna.Trial, evaluations: int, metric: str | None = None) -> None:
        self.pruned = False
        self._trial, self._evaluations, self._metric = trial, evaluations, metric
        self._reported: set[int] = set()

    def report(self, part: int, value: float) -> bool:
        """Report a value, for a run that is not one of `fit`.

        Parameters
        ----------
        part : int
            Parts of the budget done. Trials are compared at equal parts.
        value : float

        Returns
        -------
        bool
            Whether to end the run: what it returns does not count then.
        """
        if part not in self._reported and math.isfinite(value):
            self._reported.add(part)
            self._trial.report(value, part)
            self.pruned = self.pruned or self._trial.should_prune()
        return self.pruned

    def on_evaluation(self, state: RunState, evaluation: Evaluation) -> None:
        """Report the metric at the part of the budget done."""
        metric = self._metric or next(iter(evaluation.metrics))
        if metric not in evaluation.metrics:
            known = ", ".join(evaluation.metrics)
            raise ValueError(f"the search is for {metric!r}, but the evaluation has: {known}")
        part = round(self._evaluations * state.step / state.total_steps)
        if state.step < state.total_steps:  # a run that is over anyway is not pruned
            state.stop = self.report(part, evaluation.metrics[metric]) or state.stop


Run = Callable[[Candidate, Reporter], float]


@dataclass(frozen=True)
class Fitting:
    """The run of a search over `fit`: loads the model afresh, trains it, returns its last evaluation.

    Attributes
    ----------
    source : str or Path
        A name or folder for `companion.models.load`. A fresh head is drawn from the candidate's seed.
    train, dev : sequence of Example
    task : Task
        Its metric is the value, higher is better.
    metric : str, optional
        Another key of the task's metrics. Default: the first.
    """

    source: str | Path
    train: Sequence[Example]
    dev: Sequence[Example]
    task: Task
    metric: str | None = None

    def __call__(self, candidate: Candidate, reporter: Reporter) -> float:
        """Train once.

        Parameters
        ----------
        candidate : Candidate
            Of `Candidate.extras`, ``dropout`` is understood.
        reporter : Reporter

        Returns
        -------
        float
            The metric of the last evaluation; NaN when training diverged.

        Raises
        ------
        ValueError
            When there are other extras, and as in `fit`.
        """
        from companion.models import load
        from companion.training.loop import fit

        if unknown := set(candidate.extras) - {"dropout"}:
            raise ValueError(
                f"the search space has {sorted(unknown)}: expected fields of TrainingConfig or 'dropout'"
            )
        regression = not self.task.labels
        classifier = load(
            self.source, labels=self.task.labels, regression=regression, seed=candidate.config.seed
        )
        if "dropout" in candidate.extras:
            set_dropout(classifier.model, float(candidate.extras["dropout"]))
        try:
            run = fit(
                classifier.model,
                classifier.tokenizer,
                self.train,
                config=candidate.config,
                dev=self.dev,
                task=self.task,
                callbacks=[reporter],
            )
        except Diverged:
            return math.nan
        metrics = run.evaluations[-1].metrics
        return metrics[self.metric or next(iter(metrics))]


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set the probability of every dropout module of a model, in place.

    Reaches BERT, DistilBERT, RoBERTa and GPT-2, whose attention reads it from such a module too. The model's
    configuration keeps its old values.

    Parameters
    ----------
    model : torch.nn.Module
    probability : float
        From 0 up to, not including, 1.

    Raises
    ------
    ValueError
        When the probability cannot be one, or the model has no such module.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"dropout is {probability}, expected 0 up to, not including, 1")
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no dropout modules: leave dropout out of the search space"
        )
    for module in modules:
        module.p = probability
