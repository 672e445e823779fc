"""Finds where the first NaN or infinity of a forward or a backward pass comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "NonFinite",
    "NonFiniteGradient",
    "Statistics",
    "first_nonfinite",
    "first_nonfinite_gradient",
    "statistics_of",
    "tensors_in",
]


@dataclass(frozen=True)
class Statistics:
    """What is in the floating point numbers of some tensors.

    Attributes
    ----------
    elements, nan, infinite, minus_infinite : int
        Numbers in all, and how many of them are NaN, plus infinity and minus infinity.
    low, high : float
        The smallest and largest finite number; NaN where there is none.
    dtype : str
        Of the first tensor.
    """

    elements: int
    nan: int
    infinite: int
    minus_infinite: int
    low: float
    high: float
    dtype: str

    def bad(self, *, minus_infinity: bool = False) -> bool:
        """Whether something is wrong in here. Minus infinity is a mask in most places: it counts if asked."""
        return bool(self.nan or self.infinite or (minus_infinity and self.minus_infinite))

    def __str__(self) -> str:
        """Return, for example, ``64 float32 numbers from -3.1 to 2.8, 4 of them NaN``."""
        named = {"NaN": self.nan, "+inf": self.infinite, "-inf": self.minus_infinite}
        bad = " and ".join(f"{count} {name}" for name, count in named.items() if count)
        span = f" from {self.low:.3g} to {self.high:.3g}" if self.low == self.low else ""
        return f"{self.elements} {self.dtype} numbers{span}{f', {bad} among them' if bad else ''}"


@dataclass(frozen=True)
class NonFinite:
    """A module that made a number that is not finite out of numbers that are.

    Attributes
    ----------
    module : str
        Its path in the model; empty for the model itself.
    kind : str
        Its class.
    inputs, outputs : Statistics
    parameters : tuple of str
        Those of its own parameters and buffers that are not finite themselves: then they are to blame.
    """

    module: str
    kind: str
    inputs: Statistics
    outputs: Statistics
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class NonFiniteGradient:
    """The first parameter, on the way back from the loss, whose gradient is not finite.

    Attributes
    ----------
    parameter : str
    gradient, weights : Statistics
    """

    parameter: str
    gradient: Statistics
    weights: Statistics


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating point tensors in nested tuples, lists and mappings (`ModelOutput` is one)."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


@torch.no_grad()
def statistics_of(value: Any) -> Statistics:
    """Count what is in the tensors of a nested value."""
    tensors = [tensor.detach() for tensor in tensors_in(value)]
    finite = [tensor[torch.isfinite(tensor)] for tensor in tensors]
    finite = [tensor for tensor in finite if tensor.numel()]
    return Statistics(
        elements=sum(tensor.numel() for tensor in tensors),
        nan=sum(int(tensor.isnan().sum()) for tensor in tensors),
        infinite=sum(int(tensor.isposinf().sum()) for tensor in tensors),
        minus_infinite=sum(int(tensor.isneginf().sum()) for tensor in tensors),
        low=min((float(tensor.min()) for tensor in finite), default=float("nan")),
        high=max((float(tensor.max()) for tensor in finite), default=float("nan")),
        dtype=str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
    )


def first_nonfinite(
    model: nn.Module, call: Callable[[nn.Module], Any], *, minus_infinity: bool = False
) -> NonFinite | None:
    """Run a model and find the first module whose output is not finite although its inputs are.

    Modules are taken in the order in which they finish, so that of one inside another the inner one is named,
    and the outer one only when its own lines did it.

    Parameters
    ----------
    model : Module
        Its hooks are those that it had before, whatever happens.
    call : callable
        Takes the model and runs it, forward.
    minus_infinity : bool
        Whether minus infinity counts. By default it does not: it is how many models write a mask.

    Returns
    -------
    NonFinite or None
        None when every module gave finite numbers, or was given others.

    Raises
    ------
    Exception
        What `call` raises, unless a module was found before it did.
    """
    found: list[NonFinite] = []
    given: list[Statistics] = []  # of the modules that are running, the innermost last

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(statistics_of((args, kwargs)))  # now: an operation in place would change them

    def after(name: str, module: nn.Module, output: Any) -> None:
        inputs = given.pop()
        if found or inputs.bad(minus_infinity=minus_infinity):
            return
        outputs = statistics_of(output)
        if outputs.bad(minus_infinity=minus_infinity):
            found.append(NonFinite(name, type(module).__name__, inputs, outputs, _own_nonfinite(module)))

    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            handles.append(
                module.register_forward_hook(
                    lambda module, args, output, name=name: after(name, module, output)
                )
            )
        call(model)
    except Exception:
        if not found:
            raise
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def first_nonfinite_gradient(
    model: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> NonFiniteGradient | None:
    """Go back from a loss and find the first parameter whose gradient is not finite.

    What made it lies between this parameter and the loss: the gradients of those behind it were finite.

    Parameters
    ----------
    model : Module
        Left with the gradients and hooks that it had.
    loss : callable
        Takes the model; returns a loss with a graph.

    Returns
    -------
    NonFiniteGradient or None
    """
    found: list[NonFiniteGradient] = []

    def look(name: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        if not found and (seen := statistics_of(gradient)).bad(minus_infinity=True):
            found.append(NonFiniteGradient(name, seen, statistics_of(parameter)))

    with _gradients_kept(model):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        handles = [_hooked(parameter, partial(look, name, parameter)) for name, parameter in trained]
        try:
            torch.autograd.backward(loss(model))
        finally:
            for handle in handles:
                handle.remove()
    return found[0] if found else None


def _hooked(parameter: Any, hook: Callable[[Tensor], None]) -> Any:
    return parameter.register_hook(hook)  # torch has no types for it


def _own_nonfinite(module: nn.Module) -> tuple[str, ...]:
    weights = [
        n for n, p in module.named_parameters(recurse=False) if statistics_of(p).bad(minus_infinity=True)
    ]
    # A buffer may hold a mask.
    buffers = [name for name, b in module.named_buffers(recurse=False) if statistics_of(b).bad()]
    return (*weights, *buffers)


@contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
