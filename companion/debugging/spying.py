"""Watches one training step from outside: what it does, in which order, and with which gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from companion.data import Batch
from companion.debugging.subject import Subject, seeded

__all__ = ["Gradients", "NoDropout", "Recording", "apart", "copied", "length", "some_rows", "spied", "watch"]

Gradients = dict[str, Tensor]
"""A gradient by the name of its parameter; parameters without one are left out."""


@dataclass
class Recording:
    """What happened while a training step was watched.

    Attributes
    ----------
    events : list of str
        ``zero_grad``, ``backward``, ``clip`` and ``step`` as they came; several parts' backward passes in a
        row are one.
    at_step : list of dict
        All gradients, copied as the optimizer was about to use them: one dict for each of its steps.
    received : set of str
        Parameters that a backward pass reached with a gradient that is not all zero.
    training : list of bool
        Whether the model was in training mode at each call, or, if it was never called as a whole, at each
        backward pass.
    found : dict of str to float
        Norms of the gradients that the first backward pass found there, and added to.
    left : dict
        The gradients when the training step returned.
    returned : object
        What the training step returned.
    """

    events: list[str] = field(default_factory=list)
    at_step: list[Gradients] = field(default_factory=list)
    received: set[str] = field(default_factory=set)
    training: list[bool] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    left: Gradients = field(default_factory=dict)
    returned: Any = None

    def note(self, event: str) -> None:
        """Write down an event, unless it goes on from the one before."""
        if event == "step" or not self.events or self.events[-1] != event:
            self.events.append(event)


class NoDropout(TorchFunctionMode):
    """Inside it dropout does nothing, in whatever mode the model is and however it calls it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let all functions through but those that drop something."""
        name = getattr(func, "__name__", "")
        if "dropout" not in name and "attention" not in name:  # nearly always
            return func(*args, **(kwargs or {}))
        given = dict(kwargs or {})
        if name == "scaled_dot_product_attention":
            if len(args) > 5:
                args = (*args[:4], 0.0, *args[5:])
            elif len(args) == 5:
                args = (*args[:4], 0.0)
            else:
                given["dropout_p"] = 0.0
        elif name == "multi_head_attention_forward":
            given["training"] = False
        elif "dropout" in name and (args or "input" in given):
            return args[0] if args else given["input"]
        return func(*args, **given)


@contextmanager
def spied(model: nn.Module, optimizer: torch.optim.Optimizer, *, clip: bool = True) -> Iterator[Recording]:
    """Record what is done to a model and its optimizer; leave both as they were found.

    Parameters
    ----------
    model : Module
    optimizer : Optimizer
        Its own `step` and `zero_grad` are called as ever.
    clip : bool
        Whether torch's functions that clip gradients do so. They are recorded if called as
        ``nn.utils.clip_grad_norm_``, not by a name that was imported before.
    """
    record = Recording()
    with _hooked(model, record), _optimizer_watched(model, optimizer, record), _clip_watched(record, clip):
        yield record
        record.left = gradients_of(model)


def watch(
    subject: Subject,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Batch],
    *,
    dropout: bool = False,
    clip: bool = True,
    seed: int = 0,
) -> Recording:
    """Take one of a subject's training steps, and return what happened in it.

    Parameters
    ----------
    subject : Subject
        With a `train_step`.
    model, optimizer
        Go one step further.
    parts : sequence of dict
        The micro-batches. The step gets copies: some take the labels out of a batch.
    dropout, clip : bool
        Whether dropout and clipping happen.
    seed : int
        Of whatever else is random in the step.
    """
    if subject.train_step is None:
        raise ValueError("the subject has no train_step to watch: give it one")
    copies = [copied(part) for part in parts]
    quiet = nullcontext() if dropout else NoDropout()
    with seeded(seed), spied(model, optimizer, clip=clip) as record, quiet:
        record.returned = subject.train_step(model, optimizer, copies)
    return record


def gradients_of(model: nn.Module) -> Gradients:
    """Return copies of a model's gradients, those that there are."""
    return {
        name: (parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad).detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def length(gradients: Gradients) -> float:
    """Return the norm of all gradients together."""
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))


def apart(first: Gradients, second: Gradients) -> float:
    """Return the distance between two gradients' directions: 0 for the same, 2 for opposite ones.

    Clipping by norm changes no direction. NaN when one of them is zero or not finite.
    """
    norms = length(first), length(second)
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        return math.nan
    total = 0.0
    for name in first.keys() | second.keys():
        one = first[name].double() / norms[0] if name in first else torch.zeros(())
        other = second[name].double() / norms[1] if name in second else torch.zeros(())
        total += float((one - other).square().sum())
    return math.sqrt(total)


def some_rows(batch: Batch, rows: Tensor | Sequence[int]) -> Batch:
    """Return some of a batch's rows; what has no row for each text stays as it is."""
    index = torch.as_tensor(rows)
    size = row_count(batch)
    return {
        name: value[index] if isinstance(value, Tensor) and value.dim() and value.size(0) == size else value
        for name, value in batch.items()
    }


def row_count(batch: Batch) -> int:
    """Return how many rows a batch has."""
    if "input_ids" in batch:
        return batch["input_ids"].size(0)
    return next((value.size(0) for value in batch.values() if isinstance(value, Tensor) and value.dim()), 0)


def copied(batch: Batch) -> Batch:
    """Return a batch of its own: some steps and losses take the labels out of theirs."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}


@contextmanager
def _hooked(model: nn.Module, record: Recording) -> Iterator[None]:
    """Record calls of the model and backward passes."""
    called: list[bool] = []
    backward: list[bool] = []

    def arrived(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            record.note("backward")
            backward.append(model.training)
            if parameter.grad is not None and bool(parameter.grad.any()):
                record.received.add(name)

        return hook

    def arriving(name: str, parameter: Tensor) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            old = parameter.grad
            record.found.setdefault(name, 0.0 if old is None else float(old.to_dense().norm()))

        return hook

    handles = [model.register_forward_pre_hook(lambda module, _: called.append(module.training))]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            arrive, done = arriving(name, parameter), arrived(name)
            handles.append(parameter.register_hook(arrive))  # type: ignore[no-untyped-call]
            after = parameter.register_post_accumulate_grad_hook(done)  # type: ignore[no-untyped-call]
            handles.append(after)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        record.training = called or backward[:1]


@contextmanager
def _optimizer_watched(
    model: nn.Module, optimizer: torch.optim.Optimizer, record: Recording
) -> Iterator[None]:
    """Record an optimizer's `step` and `zero_grad`, through attributes of this one object."""
    before: dict[str, Any] = {
        name: vars(optimizer)[name] for name in ("step", "zero_grad") if name in vars(optimizer)
    }
    real_step, real_zero = optimizer.step, optimizer.zero_grad

    def step(*args: Any, **kwargs: Any) -> Any:
        record.note("step")
        closure = args[0] if args else kwargs.pop("closure", None)
        if closure is None:
            record.at_step.append(gradients_of(model))
            return real_step(*args, **kwargs)
        seen: list[Gradients] = []

        def watched() -> Any:
            loss = closure()
            seen.append(gradients_of(model))
            return loss

        result = real_step(watched, *args[1:], **kwargs)
        record.at_step.append(seen[-1] if seen else {})
        return result

    def zero_grad(*args: Any, **kwargs: Any) -> None:
        record.note("zero_grad")
        real_zero(*args, **kwargs)

    vars(optimizer)["step"], vars(optimizer)["zero_grad"] = step, zero_grad
    try:
        yield
    finally:
        for name in ("step", "zero_grad"):
            vars(optimizer).pop(name, None)
        vars(optimizer).update(before)


@contextmanager
def _clip_watched(record: Recording, clip: bool) -> Iterator[None]:
    """Record torch's two ways to clip, and let them measure without clipping if so wished."""
    by_norm, by_value = nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_

    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Tensor:
        record.note("clip")
        return by_norm(parameters, max_norm if clip else math.inf, *args, **kwargs)

    def clip_grad_value_(parameters: Any, clip_value: float, *args: Any, **kwargs: Any) -> None:
        record.note("clip")
        by_value(parameters, clip_value if clip else math.inf, *args, **kwargs)

    replaced = {"clip_grad_norm_": clip_grad_norm_, "clip_grad_value_": clip_grad_value_}
    kept = {name: (vars(nn.utils)[name], vars(nn.utils.clip_grad)[name]) for name in replaced}
    for name, function in replaced.items():
        setattr(nn.utils, name, function)
        setattr(nn.utils.clip_grad, name, function)
    try:
        yield
    finally:
        for name, (outer, inner) in kept.items():
            setattr(nn.utils, name, outer)
            setattr(nn.utils.clip_grad, name, inner)
