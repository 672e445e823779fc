"""The loss of a subject: the model's own, the user's, or the usual one for its kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.data import Batch
from companion.debugging.adapters.batches import BatchForm
from companion.debugging.adapters.calls import named_call, takes
from companion.debugging.calling import Scores
from companion.debugging.subject import Kind, Loss

__all__ = ["loss_of", "targets_of"]

_IGNORED = -100
_ALIKE = 0.9


def loss_of(
    loss: Callable[..., Any] | None,
    model: nn.Module,
    kind: Kind,
    scores: Scores,
    form: BatchForm | None,
    *,
    flat: bool = False,
) -> Loss | None:
    """Return a function of a model and a batch.

    Parameters
    ----------
    loss : callable, optional
        Of a model and a batch, or of scores and labels, told apart by the names of its parameters. A torch
        module or function that takes scores of words gets them as (tokens, words).
    model : Module
        Tells whether models of its class compute a loss themselves.
    kind : str
    scores : callable
    form : BatchForm, optional
        How the batches look that `loss` expects.
    flat : bool
        Whether the model returns one number for each text as (batch,): `loss` then gets it so.
    """
    given = (lambda *inputs: scores(*inputs).squeeze(-1)) if flat else scores
    if loss is None:
        if _computes_loss(model):
            return lambda model, batch: _own_loss(model, batch, kind)
        if kind == "encoder":
            return None
        return lambda model, batch: _usual_loss(scores(model, *_inputs(model, batch)), batch, kind)
    if isinstance(loss, nn.Module) or getattr(loss, "__module__", "") == "torch.nn.functional":
        criterion = loss
        return lambda model, batch: _flat(criterion, given(model, *_inputs(model, batch)), batch, kind, flat)
    return _named_loss(loss, kind, given, form)


def _named_loss(function: Callable[..., Any], kind: Kind, scores: Scores, form: BatchForm | None) -> Loss:
    names = {"model", "scores", "batch", "labels"}
    plan = takes(function, ("model", "batch", "scores", "labels"), "the loss")
    if not {"batch", "labels"} & set(plan.values()) or not {"model", "scores"} & set(plan.values()):
        raise ValueError(
            f"the loss takes {', '.join(sorted(set(plan.values()) & names)) or 'nothing'}, "
            "expected (model, batch) or (logits, labels)"
        )

    def call(model: nn.Module, batch: Batch) -> Tensor:
        given: dict[str, Any] = {"model": model, "batch": form.write(batch) if form else batch}
        if "scores" in plan.values():
            given["scores"] = scores(model, *_inputs(model, batch))
        if "labels" in plan.values():
            given["labels"] = batch["labels"]
        return _tensor_of(named_call(function, plan, given))

    return call


def targets_of(batch: Batch, kind: Kind) -> Tensor:
    """Return what the scores of a batch are compared with; -100 where nothing is.

    A causal language model is to say the next token. Labels that already are the next tokens are taken as
    they are; labels that stand where the tokens stand are moved, as transformers does.
    """
    ids, labels = batch["input_ids"], batch.get("labels")
    if kind != "causal language model":
        if labels is None:
            raise ValueError("the batch has no labels: give a loss, or a loader that yields them")
        return labels
    per_token = labels is not None and labels.shape == ids.shape
    if per_token and labels is not None and _already_next(labels, ids):
        return labels.masked_fill(labels < 0, _IGNORED)
    source = labels if per_token and labels is not None else ids
    real = batch.get("attention_mask", torch.ones_like(ids)).bool()
    targets = torch.full_like(ids, _IGNORED)
    targets[:, :-1] = source[:, 1:].masked_fill(source[:, 1:] < 0, _IGNORED)
    targets[:, :-1].masked_fill_(~(real[:, :-1] & real[:, 1:]), _IGNORED)
    return targets


def _already_next(labels: Tensor, ids: Tensor) -> bool:
    """Whether labels are the tokens one further on: true of nearly all of them."""
    counted = labels[:, :-1] >= 0
    if not counted.any() or torch.equal(labels, ids):
        return False
    same = (labels[:, :-1] == ids[:, 1:])[counted].float().mean()
    return bool(same >= _ALIKE)


def _usual_loss(scores: Tensor, batch: Batch, kind: Kind) -> Tensor:
    targets = targets_of(batch, kind)
    if kind == "regression":
        return functional.mse_loss(scores.squeeze(-1), targets.to(scores.dtype))
    if kind == "classification" and scores.size(-1) == 1:  # one score stands for two classes
        return functional.binary_cross_entropy_with_logits(scores.squeeze(-1), targets.to(scores.dtype))
    return functional.cross_entropy(scores.flatten(0, -2), targets.flatten().long(), ignore_index=_IGNORED)


def _flat(
    criterion: Callable[..., Any], scores: Tensor, batch: Batch, kind: Kind, as_returned: bool
) -> Tensor:
    targets = targets_of(batch, kind)
    if as_returned:
        return _tensor_of(criterion(scores, targets.to(scores.dtype)))
    if kind == "regression":
        return _tensor_of(criterion(scores.squeeze(-1), targets.to(scores.dtype)))
    return _tensor_of(criterion(scores.flatten(0, -2), targets.flatten().long()))


def _computes_loss(model: nn.Module) -> bool:
    """Whether a model takes labels and returns an object with a loss, as those of transformers do."""
    return hasattr(model, "config") and "labels" in inspect.signature(model.forward).parameters


def _own_loss(model: nn.Module, batch: Batch, kind: Kind) -> Tensor:
    names = inspect.signature(model.forward).parameters
    given = {name: value for name, value in batch.items() if name in names}
    labels = given.get("labels")
    if kind == "causal language model" and (labels is None or labels.dim() == 1):
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        given["labels"] = batch["input_ids"].masked_fill(~real, _IGNORED)
    output = model(**given)
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"{type(model).__name__} returned no loss for a batch with {', '.join(given)}: "
            "the batch needs labels, or give a loss"
        )
    return loss


def _inputs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
    from companion.debugging.calling import mask_name

    mask = batch.get("attention_mask")
    return batch["input_ids"], mask if mask_name(model) is not None else None


def _tensor_of(result: Any) -> Tensor:
    """Return a loss, or the first of several things."""
    first = result[0] if isinstance(result, tuple | list) else result
    first = first.get("loss") if isinstance(first, dict) else first
    if not isinstance(first, Tensor) or first.dim():
        found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"the loss returned {found}, expected a tensor with one number: its mean")
    return first
