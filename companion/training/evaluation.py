"""Measures a model on the development examples, during a run and after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Example, Task, batches, labels_of, score
from companion.training.callbacks import Diverged
from companion.training.objectives import Objective, Regression
from companion.training.prediction import predict_logits

__all__ = ["evaluate", "mean_loss"]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dev: Sequence[Example],
    *,
    task: Task | None,
    objective: Objective,
    max_length: int,
    seed: int = 0,
) -> dict[str, float]:
    """Score a model by the task's metric or, without a task, by the objective.

    Parameters
    ----------
    model : PreTrainedModel
        On any device; left in the mode it was found in.
    tokenizer : PreTrainedTokenizerBase
    dev : sequence of Example
    task : Task or None
    objective : Objective
    max_length : int
    seed : int
        For what the objective draws.

    Returns
    -------
    dict of str to float
        The metric that counts first.

    Raises
    ------
    Diverged
        When a prediction is not finite.
    """
    if task is not None:
        logits = predict_logits(model, tokenizer, dev, max_length=max_length)
        if not np.isfinite(logits).all():
            raise Diverged(
                "the predictions are not finite: the last steps broke the weights. Lower the learning rate."
            )
        return score(task, labels_of(dev), logits)
    return mean_loss(model, tokenizer, dev, objective=objective, max_length=max_length, seed=seed)


def mean_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    objective: Objective,
    max_length: int,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Average an objective over examples, without gradients and without dropout.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    examples : sequence of Example
    objective : Objective
    max_length : int
    batch_size : int
    seed : int
        For what the objective draws: the same each time, so that evaluations can be compared.

    Returns
    -------
    dict of str to float
        ``loss``, the weighted sum, first; then each term.
    """
    sums = dict.fromkeys(objective.weights, 0.0)
    counts = dict.fromkeys(objective.weights, 0)
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches(
            examples,
            tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            regression=isinstance(objective, Regression),
        ):
            whole = objective.prepare(batch, generator)
            inputs = {name: tensor.to(model.device) for name, tensor in whole.items()}
            for name, value in objective.sums(model, inputs).items():
                sums[name] += value.item()
            for name, count in objective.counts(whole).items():
                counts[name] += count
    model.train(was_training)
    means = {name: sums[name] / max(1, counts[name]) for name in sums}
    total = sum(objective.weights[name] * mean for name, mean in means.items())
    return {"loss": total} | {name: mean for name, mean in means.items() if name != "loss"}
