"""Checks of the optimizer: what is in it, and what its first step does."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = ["first_step", "made", "rate_of"]

_NEEDS = ("make_model", "make_optimizer")


def made(subject: Subject) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and its optimizer."""
    model = subject.model()
    assert subject.make_optimizer is not None
    return model, subject.make_optimizer(model)


def rate_of(group: dict[str, Any]) -> float:
    """Return a group's learning rate; 0 for an optimizer that finds its own."""
    return float(group.get("lr") or 0.0)


@check(family="training", component="optimizer", needs=_NEEDS, likelihood=0.9)
def optimizer_coverage(subject: Subject) -> Finding:
    """Is every trainable parameter in the optimizer once, and no other?"""
    model, optimizer = made(subject)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids = [id(parameter) for parameter in held]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for name in sorted(trainable) if name not in {names.get(number) for number in ids}]
    foreign = sum(number not in names for number in ids)
    twice = sorted({names[number] for number in ids if number in names and ids.count(number) > 1})
    evidence = {
        "trainable parameters": float(len(trainable)),
        "missing": float(len(missing)),
        "of another model": float(foreign),
        "held twice": float(len(twice)),
    }
    if missing:
        of_other = f"; {foreign} that it has belong to another model" if foreign else ""
        return optimizer_coverage.problem(
            f"{len(missing)} of {len(trainable)} trainable parameters are not in the optimizer: "
            f"{', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}{of_other}",
            evidence,
            why="They stay as they were drawn.",
            fix="Make the optimizer of model.parameters(), after the model is complete and on its device; "
            "set requires_grad to False on what is meant to stay.",
            where=", ".join(missing[:20]),
        )
    if twice:
        return optimizer_coverage.problem(
            f"{len(twice)} parameters are in the optimizer more than once: {', '.join(twice[:4])}",
            evidence,
            why="Each of them takes two steps for one gradient.",
            fix="Put every parameter in one group.",
            where=", ".join(twice[:20]),
        )
    return optimizer_coverage.ok(f"all {len(trainable)} trainable parameters are in the optimizer", evidence)


@check(family="training", component="optimizer", needs=_NEEDS, likelihood=0.3)
def decay_groups(subject: Subject) -> Finding:
    """Are biases and norms left out of weight decay?"""
    model, optimizer = made(subject)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, sizes = [], set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.dim() <= 1 and float(group.get("weight_decay") or 0) > 0:
                decayed.append(names.get(id(parameter), "?"))
                sizes.add(float(group["weight_decay"]))
    if not any(parameter.dim() <= 1 for parameter in model.parameters()):
        raise NotApplicable("the model has neither biases nor norms")
    evidence = {"vectors with weight decay": float(len(decayed)), "weight decay": max(sizes, default=0.0)}
    if not decayed:
        return decay_groups.ok("no bias or norm has weight decay", evidence)
    if len(optimizer.param_groups) == 1 and sizes == {_default_decay(optimizer)}:
        # Nobody chose it, and it moves a weight by a hundredth of a step at most.
        return decay_groups.ok(
            "one group with the optimizer's own weight decay, biases and norms included", evidence
        )
    return decay_groups.problem(
        f"{len(decayed)} biases and weights of norms have a weight decay of {max(sizes):g}; expected 0",
        evidence,
        why="It pulls the scale of norms to zero and biases away from where they fit, and "
        "protects from nothing.",
        fix="Make two groups: matrices with weight decay, parameters of one dimension without.",
        where=", ".join(decayed[:20]),
    )


def _default_decay(optimizer: torch.optim.Optimizer) -> float | None:
    parameter = inspect.signature(type(optimizer).__init__).parameters.get("weight_decay")
    return float(parameter.default) if parameter and isinstance(parameter.default, int | float) else None


@check(family="training", component="optimizer", needs=_NEEDS, likelihood=0.5)
def adam_settings(subject: Subject) -> Finding:
    """Are Adam's running means of sensible length, and corrected at the start?"""
    model, optimizer = made(subject)
    group = optimizer.param_groups[0]
    if "betas" not in group or len(group["betas"]) != 2:
        return _unnamed_means(subject)
    first, second = (float(beta) for beta in group["betas"])
    eps = group.get("eps")
    eps = float(eps) if isinstance(eps, int | float) else 0.0
    evidence = {"beta 1": first, "beta 2": second, "eps": eps}
    lion = "lion" in type(optimizer).__name__.lower()
    if not 0 <= first <= 0.99 or not (0.8 if not lion else 0.5) <= second < 1 or eps > 1e-3:
        return adam_settings.problem(
            f"betas are {first:g} and {second:g}, eps is {eps:g}; usual are 0.9, 0.95 to "
            "0.999, and 1e-8 to 1e-6",
            evidence,
            why="A gradient's mean that is too long lags behind, a square's that is too short "
            "makes steps jump.",
            fix="Use betas=(0.9, 0.999) and eps=1e-8, and change them one at a time.",
        )
    ratio = first_step(model, optimizer)
    evidence["first step / learning rate"] = ratio
    uncorrected = (1 - first) / math.sqrt(1 - second)
    if abs(uncorrected - 1) > 0.3 and abs(ratio / uncorrected - 1) < 0.05:
        return _uncorrected(ratio, evidence)
    return adam_settings.ok(f"betas are {first:g} and {second:g}, eps is {eps:g}", evidence)


def _unnamed_means(subject: Subject) -> Finding:
    """Look at an optimizer that does not tell its betas: is its first step that of an uncorrected Adam?"""
    small, large = (first_step(*made(subject), gradient=size) for size in (1.0, 100.0))
    if abs(large / small - 1) > 0.01:
        raise NotApplicable("the optimizer is no Adam")
    usual = [(1 - 0.9) / math.sqrt(1 - second) for second in (0.999, 0.98, 0.95)]
    evidence = {"first step / learning rate": small}
    if not any(abs(small / uncorrected - 1) < 0.02 for uncorrected in usual):
        return adam_settings.ok(f"the first step is {small:.3g} times the learning rate", evidence)
    return _uncorrected(small, evidence)


def _uncorrected(ratio: float, evidence: dict[str, float]) -> Finding:
    return adam_settings.problem(
        f"the first step is {ratio:.3g} times the learning rate, expected 1: "
        "the running means are not corrected for starting at zero",
        evidence,
        why="The first hundreds of steps have the wrong size, as if the learning rate were another one.",
        fix="Divide the means by 1 - beta ** step (Kingma & Ba, 2015, algorithm 1), or use "
        "torch.optim.AdamW.",
    )


def first_step(model: nn.Module, optimizer: torch.optim.Optimizer, *, gradient: float = 1.0) -> float:
    """Return how far a weight goes in the first step with one gradient everywhere, in learning rates."""
    group = max(optimizer.param_groups, key=lambda group: rate_of(group) if group["params"] else -1.0)
    if not rate_of(group):
        raise NotApplicable("the learning rate is zero")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    watched: Tensor = group["params"][0]
    before = watched.detach().clone()
    optimizer.step()
    moved = before * (1 - rate_of(group) * float(group.get("weight_decay") or 0)) - watched.detach()
    return float(moved.median()) / rate_of(group)


@check(family="training", component="optimizer", needs=_NEEDS, likelihood=0.4)
def decay_is_proportional(subject: Subject) -> Finding:
    """Does weight decay shrink large weights more than small ones?"""
    model, optimizer = made(subject)
    groups = [group for group in optimizer.param_groups if group["params"] and group.get("weight_decay")]
    if not groups:
        raise NotApplicable("there is no weight decay")
    watched: Tensor = max(groups[0]["params"], key=lambda parameter: parameter.numel())
    with torch.no_grad():
        watched.copy_(torch.linspace(0.1, 1.0, watched.numel()).view_as(watched))
    before = watched.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = (before - watched.detach()).flatten()
    if not bool((moved.abs() > 0).any()):
        raise NotApplicable("without a gradient the optimizer leaves weights as they are")
    share = float(moved[0] / moved[-1])
    evidence = {"smallest weight's step / largest weight's": share, "smallest / largest weight": 0.1}
    if share < 0.5:
        return decay_is_proportional.ok("a tenth of the weight shrinks by a tenth", evidence)
    return decay_is_proportional.problem(
        f"a weight ten times smaller shrinks {share:.2g} times as much; expected 0.1",
        evidence,
        why="The decay goes through Adam's division by the size of the gradient: what is rarely used is "
        "pulled to zero at full speed, and the number given as weight decay means little.",
        fix="Use AdamW, which takes the decay off the weights themselves (Loshchilov & Hutter, 2019).",
    )
