"""Watches a model at work: which module was called with what, and gave what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Call", "first_tensor", "inside", "is_linear", "is_norm", "observe", "same_tensor"]


@dataclass(frozen=True)
class Call:
    """One call of a module during a forward pass.

    Attributes
    ----------
    name : str
        The module's name in the model.
    module : Module
    input, output : Tensor
        The first tensor that went in, and the first that came out.
    args, kwargs
        All that it was called with.
    """

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor of floats or ids in what a module takes or returns."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((found for part in value if (found := first_tensor(part)) is not None), None)
    return None


def observe(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Call]:
    """Run a model, and return all calls of its modules in the order in which they ended.

    Gradients stay on: torch's encoder layers take a path without calls of their parts otherwise.
    """
    calls: list[Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            taken, given = first_tensor((args, kwargs)), first_tensor(output)
            if taken is not None and given is not None:
                calls.append(Call(name, module, taken, given, args, kwargs))

        return hook

    handles = [
        module.register_forward_hook(note(name), with_kwargs=True)
        for name, module in model.named_modules()
        if module is not model
    ]
    try:
        with torch.enable_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one matrix, as `nn.Linear` and GPT-2's Conv1D are."""
    if isinstance(module, nn.Linear):
        return True
    weight = getattr(module, "weight", None)
    names = type(module).__name__.lower()
    return (
        isinstance(weight, Tensor)
        and weight.dim() == 2
        and not isinstance(module, nn.Embedding)
        and not any(True for _ in module.children())
        and ("linear" in names or "conv1d" in names or "dense" in names or "projection" in names)
    )


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises vectors: by its class's name, as long as it wraps no other module."""
    named = "norm" in type(module).__name__.lower()
    return named and not any(True for _ in module.children())


def inside(name: str, parent: str) -> bool:
    """Whether a module's name lies under another's."""
    return not parent or name == parent or name.startswith(parent + ".")


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same place."""
    return one is other or (
        one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
    )
