"""Calls other people's functions by the names of their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["NAMES", "kind_of", "named_call", "refuse_parameters", "takes"]

NAMES: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "net", "network", "module"),
    "optimizer": ("optimizer", "optim", "opt"),
    "batch": ("batch", "data", "inputs", "examples"),
    "parts": ("parts", "batches", "micro_batches", "microbatches", "minibatches"),
    "schedule": ("schedule", "scheduler", "lr_scheduler", "lr_schedule", "sched"),
    "steps": ("steps", "total_steps", "num_steps", "max_steps", "num_training_steps", "training_steps"),
    "scores": ("scores", "logits", "input", "output", "outputs", "predictions", "preds", "y_pred", "y_hat"),
    "labels": ("labels", "label", "target", "targets", "y", "y_true"),
    "device": ("device",),
}
"""What a parameter stands for, by the names it goes by."""
_ROLE_OF = {name: role for role, names in NAMES.items() for name in names}
_BY_TYPE = {"Optimizer": "optimizer", "Module": "model", "LRScheduler": "schedule"}
# A parameter that has a default is left alone, unless the work cannot be done without it.
_WORK = {"model", "optimizer", "batch", "parts", "scores", "labels", "steps"}


def takes(function: Callable[..., Any], offered: tuple[str, ...], what: str) -> dict[str, str]:
    """Decide what to give to each parameter of a function.

    The rule: a parameter gets what its name stands for (`NAMES`), else what its annotation says. If then one
    parameter is left, and one of the model, the optimizer and the batch is left, they belong together. More
    than one are not guessed: ``step(a, b, c)`` could be called in six ways, and the wrong one can run.

    Parameters
    ----------
    function : callable
    offered : tuple of str
        What there is to give, of the keys of `NAMES`.
    what : str
        What the function is to the caller, for errors.

    Returns
    -------
    dict of str to str
        The parameters that get something, each with what.

    Raises
    ------
    ValueError
        When a parameter that must be given is unknown.
    """
    name = f"{what} {getattr(function, '__name__', type(function).__name__)!r}"
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise ValueError(
            f"the signature of {name} cannot be read: wrap it in a function of your own"
        ) from None
    plan: dict[str, str] = {}
    unknown = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        role = _role(parameter)
        required = parameter.default is parameter.empty
        if role in offered and (required or role in _WORK):
            plan[parameter.name] = role
        elif required:
            unknown.append(parameter.name)
    left = _left(offered, set(plan.values()))
    if len(unknown) == 1 and len(left) == 1:
        plan[unknown.pop()] = left[0]
    if unknown:
        listed = ", ".join(NAMES[role][0] for role in offered)
        raise ValueError(
            f"{name} has parameters that say nothing to the doctor: {', '.join(unknown)}. Name them after "
            f"what they take ({listed}), or give the others a default"
        )
    return plan


def kind_of(value: object) -> str:
    """Return the type of a value with its article, for errors."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def refuse_parameters(function: Callable[..., Any], name: str, makes: str) -> None:
    """Refuse a function that cannot be called without arguments.

    Parameters
    ----------
    function : callable
    name : str
        What to call it in the error.
    makes : str
        What it is there for.

    Raises
    ------
    ValueError
        When it has a parameter without a default.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a builtin: calling it will tell
        return
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [item.name for item in parameters if item.default is item.empty and item.kind not in stars]
    if required:
        raise ValueError(
            f"{name} needs {', '.join(required)}, expected a function without arguments that makes {makes}: "
            "wrap it in one"
        )


def named_call(function: Callable[..., Any], plan: Mapping[str, str], given: Mapping[str, Any]) -> Any:
    """Call a function as `takes` decided."""
    only_by_place, by_name = [], {}
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        if name in plan and parameter.kind is parameter.POSITIONAL_ONLY:
            only_by_place.append(given[plan[name]])
        elif name in plan:
            by_name[name] = given[plan[name]]
    return function(*only_by_place, **by_name)


def _role(parameter: inspect.Parameter) -> str | None:
    if role := _ROLE_OF.get(parameter.name.lower().strip("_")):
        return role
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return next((role for ending, role in _BY_TYPE.items() if text.endswith(ending)), None)


def _left(offered: tuple[str, ...], given: set[str]) -> list[str]:
    """Return what was not given of what must be; a batch can be given whole or in parts."""
    must = [role for role in ("model", "optimizer", "batch") if role in offered]
    return [role for role in must if role not in given and not (role == "batch" and "parts" in given)]
