"""Measurements on a model with gradients: norms and updates per layer, and memory.

Works on plain and on sharded parameters (FSDP2). On sharded ones every function that measures is collective:
all processes call it at the same step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import psutil
import torch
from torch import nn
from torch.nn.utils import get_total_norm

from companion.training.vocabulary import UsedRows

__all__ = [
    "Layers",
    "copy_weights",
    "gradient_norms",
    "gradients_are_finite",
    "memory_in_use",
    "parameters_by_layer",
    "update_ratios",
]

Layers: TypeAlias = Mapping[str, Sequence[nn.Parameter]]
"""The trainable parameters of each layer, by its name, from the input to the output."""


def parameters_by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Group a model's trainable parameters by layer.

    A layer is an entry of the outermost `torch.nn.ModuleList` on the way to a parameter. What is not in one
    is ``embeddings`` when it is an embedding table or its path says so, otherwise ``head``.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    dict of str to list of torch.nn.Parameter
        ``embeddings``, ``layer 0`` and so on, ``head``. With several stacks their names come first:
        ``encoder layer 0``, ``decoder layer 0``. A tied parameter occurs once, under its first name.
    """
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    entries = {name: _entry(name, lists) for name, _ in model.named_parameters()}
    stacks = _stack_names(dict.fromkeys(entry[0] for entry in entries.values() if entry))
    groups: dict[str, list[nn.Parameter]] = {"embeddings": []}
    head: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if entry := entries[name]:
            groups.setdefault(f"{stacks[entry[0]]}layer {entry[1]}", []).append(parameter)
        else:
            (groups["embeddings"] if _is_embedding(model, name) else head).append(parameter)
    groups["head"] = head
    return {name: parameters for name, parameters in groups.items() if parameters}


def gradient_norms(layers: Layers) -> dict[str, float]:
    """Return the L2 norm of each layer's gradient; parameters without one count as zero."""
    return _floats(
        {name: _norm([p.grad for p in group if p.grad is not None]) for name, group in layers.items()}
    )


def gradients_are_finite(layers: Layers) -> bool:
    """Look for NaN and infinity in the gradients of the vectors (biases, scales of norms) of all layers.

    They are a thousandth of the gradient, yet what goes wrong on the way back through a layer reaches those
    of the layers below it. So this is cheap enough for every step.
    """
    vectors = [p.grad for group in layers.values() for p in group if p.ndim < 2 and p.grad is not None]
    return bool(torch.isfinite(_norm(vectors)))


def copy_weights(layers: Layers) -> dict[str, list[torch.Tensor]]:
    """Copy the weights, for `update_ratios` after the step."""
    return {name: [p.detach().clone() for p in group] for name, group in layers.items()}


@torch.no_grad()
def update_ratios(before: Mapping[str, Sequence[torch.Tensor]], layers: Layers) -> dict[str, float]:
    """Return the norm of each layer's change divided by the norm of its weights before.

    Parameters
    ----------
    before : mapping of str to sequence of Tensor
        From `copy_weights`; overwritten with the change, which saves a second copy.
    layers : mapping of str to sequence of torch.nn.Parameter
        The same parameters, after the step.

    Returns
    -------
    dict of str to float
        Infinite where weights that were all zero have changed.
    """
    sizes = _floats({name: _norm(tensors) for name, tensors in before.items()})
    for name, group in layers.items():
        for old, parameter in zip(before[name], group, strict=True):
            old.sub_(parameter.detach())
    changes = _floats({name: _norm(tensors) for name, tensors in before.items()})
    return {
        name: change / sizes[name] if sizes[name] else float("inf") if change else 0.0
        for name, change in changes.items()
    }


def memory_in_use(device: torch.device) -> int:
    """Return bytes: on CUDA the most that were allocated so far, elsewhere those resident in the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _entry(name: str, lists: set[str]) -> tuple[str, str] | None:
    """Return the outermost list on the way to a parameter, and the index in it."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        if (path := ".".join(parts[:end])) in lists:
            return path, parts[end]
    return None


def _stack_names(paths: Mapping[str, None]) -> dict[str, str]:
    """Name each list by what only its path has, with a space after it; a single list needs no name."""
    parts = {path: path.split(".") for path in paths}
    common = set.intersection(*map(set, parts.values())) if parts else set()
    own = {path: [part for part in names if part not in common] for path, names in parts.items()}
    return {path: "".join(f"{part} " for part in names) for path, names in own.items()}


def _is_embedding(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, nn.Embedding | UsedRows) or "embed" in name.lower()


def _norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    norm = get_total_norm(tensors)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _floats(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Fetch all values from the device at once."""
    if not values:
        return {}
    devices = [value.device for value in values.values() if value.device.type != "cpu"]
    device = devices[0] if devices else torch.device("cpu")
    stacked = torch.stack([value.detach().float().to(device) for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))
