"""What happens around a run: refusing what cannot work, and leaving the caller's things as they were."""

from __future__ import annotations

import copy
import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Batches, Example, StreamedBatches, Task
from companion.training.config import TrainingConfig
from companion.training.distributed import Processes, shard
from companion.training.objectives import (
    CausalLanguageModelling,
    Classification,
    MaskedLanguageModelling,
    Objective,
    Regression,
)
from companion.training.vocabulary import UsedRows, use_rows

__all__ = ["check", "default_objective", "identity", "prepared", "private_random"]


def default_objective(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Objective:
    """Return the objective that fits the model's head."""
    kind = type(model).__name__
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        return CausalLanguageModelling()
    if kind.endswith("ForMaskedLM"):
        return MaskedLanguageModelling(tokenizer)
    return Regression() if model.config.problem_type == "regression" else Classification()


def check(
    model: PreTrainedModel,
    train: Sequence[Example] | Iterable[Example],
    dev: Sequence[Example] | None,
    task: Task | None,
    objective: Objective,
    config: TrainingConfig,
) -> None:
    """Refuse what would fail, or learn nonsense, an epoch later."""
    if task is not None and dev is None:
        raise ValueError("dev and task go together: the task says how the development examples are scored")
    if dev is not None and not dev:
        raise ValueError("there are no development examples: leave dev out, or give some")
    if not isinstance(train, Sequence):
        if config.max_steps is None:
            raise ValueError("max_steps is None, but a stream has no length: set how many steps to take")
        return
    if not train:
        raise ValueError("there are no training examples. Check the file or --max-examples.")
    if not isinstance(objective, Classification | Regression):
        return
    regression = isinstance(objective, Regression)
    num_labels = len(model.config.id2label or ())
    for name, split in (("training", train), ("development", dev or ())):
        for index, example in enumerate(split):
            label = example.label
            if label is None:
                raise ValueError(f"{name} example {index} has no label")
            if regression and not math.isfinite(label):
                raise ValueError(f"{name} example {index} has the target {label}, expected a finite number")
            if not regression and label not in range(num_labels):
                raise ValueError(
                    f"{name} example {index} has label {label}, but the model has {num_labels} labels: "
                    f"expected 0 to {num_labels - 1}"
                )
    if not regression and len({example.label for example in train}) < 2:
        raise ValueError("all training examples have the same label: there is nothing to learn")


def identity(
    model: PreTrainedModel,
    train: Sequence[Example] | Iterable[Example],
    objective: Objective,
    config: TrainingConfig,
) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to belong to a run: model, data, objective, choices.

    The choices that only move work around (workers, micro-batches, what is kept) may change.
    """
    shapes = "".join(f"{name}{tuple(tensor.shape)}" for name, tensor in model.named_parameters())
    data = hashlib.sha256()
    if isinstance(train, Sequence):
        for example in train:
            data.update(repr(tuple(example)).encode())
    free = {"workers", "keep", "checkpoint_every", "micro_batch_size"}
    choices = {name: value for name, value in asdict(config).items() if name not in free}
    return {
        "architecture": f"{type(model).__name__} {hashlib.sha256(shapes.encode()).hexdigest()[:16]}",
        "data": data.hexdigest()[:16] if isinstance(train, Sequence) else "a stream",
        "objective": type(objective).__name__,
        "objective.weights": dict(objective.weights),
        "objective.settings": {
            name: value
            for name, value in sorted(vars(objective).items())
            if isinstance(value, int | float | str | tuple)
        },
        **{f"config.{name}": value for name, value in choices.items()},
    }


@contextmanager
def private_random(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global random states for a run, and give them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def prepared(
    model: PreTrainedModel,
    data: Batches | StreamedBatches,
    objective: Objective,
    config: TrainingConfig,
    device: torch.device,
    processes: Processes,
) -> Iterator[tuple[PreTrainedModel, UsedRows | None]]:
    """Put a model on its device in the form it is trained in; at the end, back on the CPU as it came.

    Parameters
    ----------
    model : PreTrainedModel
    data : Batches or StreamedBatches
        Says which rows of the embedding table are used.
    objective : Objective
    config : TrainingConfig
    device : torch.device
    processes : Processes
        With more than one, a copy is sharded and trained, and its weights are gathered at the end.

    Yields
    ------
    tuple of PreTrainedModel and UsedRows or None
        The model to train.

    Raises
    ------
    ValueError
        When the optimizer cannot work on shards.
    """
    if processes.count > 1 and config.optimizer == "lamb":
        raise ValueError(
            f"optimizer is 'lamb', but {processes.count} processes share the weights: LAMB needs the norm of "
            "whole matrices, which its library does not take from shards. Use 'adamw', or one process."
        )
    trained = copy.deepcopy(model) if processes.count > 1 else model
    rows = None
    if isinstance(data, Batches) and not objective.changes_ids and config.optimizer == "adamw":
        rows = use_rows(trained, data.token_ids())  # LAMB looks at the size of the whole table
    recompute = config.activation_checkpointing and not trained.is_activation_checkpointing
    if recompute:
        trained.activation_checkpointing_enable({"use_reentrant": False})
    torch.nn.Module.to(trained, device)
    shard(trained, processes)
    finished = False
    try:
        yield trained, rows
        finished = True
    finally:
        if recompute:
            trained.activation_checkpointing_disable()
            trained.disable_input_require_grads()  # a hook that was put on with it, and would stay
        if rows and (finished or processes.count == 1):
            trained.set_input_embeddings(rows.restored())
        if trained is model:
            torch.nn.Module.to(model, "cpu")
        elif finished:
            _gather(trained, model)
        model.eval()


@torch.no_grad()
def _gather(trained: PreTrainedModel, model: PreTrainedModel) -> None:
    """Copy sharded weights, and the buffers, into a whole model. All processes take part."""
    whole = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in (*trained.named_parameters(), *trained.named_buffers()):
        whole[name].copy_(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)
