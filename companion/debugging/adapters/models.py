"""Models and optimizers that exist already, made again and again without touching the ones given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from companion.debugging.adapters.calls import kind_of, named_call, refuse_parameters, takes
from companion.debugging.subject import MakeModel, MakeOptimizer, MakeSchedule, copies_of

__all__ = ["maker_of", "optimizer_maker", "schedule_maker"]


def maker_of(model: nn.Module | Callable[[], Any], fresh: bool | None) -> tuple[MakeModel, bool]:
    """Return what makes models on the CPU, and whether their weights are fresh ones.

    Parameters
    ----------
    model : Module or callable
        Copied if it is a module: what happens to it later does not count.
    fresh : bool, optional
        Default: those of a factory are fresh, and those of a module are not.

    Raises
    ------
    ValueError
        When a module cannot be copied, or a factory makes something else.
    """
    if isinstance(model, nn.Module):
        try:
            origin = copy.deepcopy(model).cpu()
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} cannot be copied ({error}): give a function that makes a new one"
            ) from error
        origin.zero_grad(set_to_none=True)
        return copies_of(origin), bool(fresh)
    name = getattr(model, "__name__", type(model).__name__)

    def make() -> nn.Module:
        made = model()
        if not isinstance(made, nn.Module):
            raise ValueError(f"{name}() returned {kind_of(made)}, expected a torch.nn.Module")
        return made.cpu()

    refuse_parameters(model, name, "a model")
    return make, True if fresh is None else fresh


def optimizer_maker(
    optimizer: torch.optim.Optimizer | Callable[..., Any] | None, model: object
) -> MakeOptimizer | None:
    """Return what makes an optimizer for a model.

    Parameters
    ----------
    optimizer : Optimizer or callable, optional
        An optimizer is made again for a copy: the parameter that it holds becomes the copy's at the same
        place. One that is not the model's stays in it, as in the original. The learning rate is the one
        before a schedule changed it. A function takes a model.
    model : Module or callable
        The one that the optimizer was made for.
    """
    if optimizer is None:
        return None
    if isinstance(optimizer, torch.optim.Optimizer):
        if not isinstance(model, nn.Module):
            raise ValueError(
                "an optimizer belongs to one model, and the model is given as a factory: "
                "give a function that takes a model and returns its optimizer"
            )
        return _made_again(optimizer, model)
    plan = takes(optimizer, ("model",), "the optimizer factory")

    def make(model: nn.Module) -> torch.optim.Optimizer:
        made = named_call(optimizer, plan, {"model": model})
        if not isinstance(made, torch.optim.Optimizer):
            raise ValueError(f"the optimizer factory returned {kind_of(made)}, expected a torch optimizer")
        return made

    return make


def schedule_maker(schedule: Callable[..., Any] | None) -> MakeSchedule | None:
    """Return what makes a schedule from an optimizer and the number of steps.

    Raises
    ------
    ValueError
        When it is a schedule instead of a function that makes one.
    """
    if schedule is None:
        return None
    if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
        raise ValueError(
            "a schedule belongs to one optimizer and cannot be copied: give a function of (optimizer, steps) "
            "that makes one"
        )
    plan = takes(schedule, ("optimizer", "steps"), "the schedule factory")
    return lambda optimizer, steps: named_call(schedule, plan, {"optimizer": optimizer, "steps": steps})


def _made_again(optimizer: torch.optim.Optimizer, model: nn.Module) -> MakeOptimizer:
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    groups: list[tuple[list[int | Parameter], dict[str, Any]]] = []
    for group in optimizer.param_groups:
        options = {name: value for name, value in group.items() if name != "params"}
        if "initial_lr" in options:
            options["lr"] = options.pop("initial_lr")
        members = [places.get(id(item), Parameter(item.detach().clone())) for item in group["params"]]
        groups.append((members, options))
    kind = type(optimizer)
    accepted = inspect.signature(kind).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in accepted}

    def make(other: nn.Module) -> torch.optim.Optimizer:
        parameters = list(other.parameters())
        if len(parameters) != len(places):
            raise ValueError(
                f"the optimizer was made for a model of {len(places)} parameters, and this one has "
                f"{len(parameters)}"
            )
        made = [
            {"params": [parameters[item] if isinstance(item, int) else item for item in members], **options}
            for members, options in groups
        ]
        return kind(made, **defaults)

    return make
