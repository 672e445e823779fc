"""Calls any model the same way: token ids and a mask in, scores out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Scores", "default_scores", "is_flat", "mask_name", "scores_of"]

Scores = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""Takes a model, token ids (batch, seq) and a mask (batch, seq) of 1 for real tokens; returns scores."""

_IDS = ("input_ids", "ids", "tokens", "x", "inputs", "idx", "src")
_MASKS = ("attention_mask", "mask", "padding_mask", "pad_mask")
_INVERTED = ("key_padding_mask", "src_key_padding_mask")


def mask_name(model: nn.Module) -> str | None:
    """Return the name under which a model's `forward` takes a padding mask, or None."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in (*_MASKS, *_INVERTED) if name in names), None)


def default_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Call a model by the names its `forward` has.

    Parameters
    ----------
    model : Module
    input_ids : Tensor
        Int64 (batch, seq).
    attention_mask : Tensor, optional
        (batch, seq), 1 for real tokens. Given to the model in the sense its parameter's name has: torch's
        ``key_padding_mask`` means the opposite.

    Returns
    -------
    Tensor
        Scores (batch, seq, words) or (batch, classes), float32.

    Raises
    ------
    ValueError
        When the model has no place for a mask and one is given, or when no scores come back.
    """
    parameters = inspect.signature(model.forward).parameters
    first = next((name for name in _IDS if name in parameters), None)
    arguments: dict[str, Any] = {}
    if attention_mask is not None:
        name = mask_name(model)
        if name is None:
            raise ValueError(f"{type(model).__name__}.forward has no parameter for a padding mask")
        arguments[name] = attention_mask == 0 if name in _INVERTED else attention_mask
    output = model(**{first: input_ids}, **arguments) if first else model(input_ids, **arguments)
    return scores_of(output)


def scores_of(output: Any) -> Tensor:
    """Return the scores in what a model returned: a tensor, an object or a dict with `logits`, or a tuple.

    One number for each text, (batch,), as the mean squared error wants it, is returned as (batch, 1).
    """
    found = _found(output)
    return (found if found.dim() > 1 else found.unsqueeze(-1)).float()


def is_flat(output: Any) -> bool:
    """Whether a model returned one number for each text as (batch,)."""
    try:
        return _found(output).dim() == 1
    except ValueError:
        return False


def _found(output: Any) -> Tensor:
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif hasattr(output, "last_hidden_state"):
        output = output.last_hidden_state
    elif isinstance(output, tuple | list):
        tensors = [part for part in output if isinstance(part, Tensor) and part.dim() >= 1]
        output = next((part for part in tensors if part.dim() >= 2), tensors[0] if tensors else output)
    if not isinstance(output, Tensor) or output.dim() < 1 or not torch.is_floating_point(output):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the model returned {found}, expected scores of shape (batch, seq, words) or (batch, classes): "
            "wrap the model in one that returns them, or in Python give `scores`, which calls it"
        )
    return output
