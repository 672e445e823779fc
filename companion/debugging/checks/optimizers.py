"""Checks of the optimizer and its schedule: what is in it, and how fast it goes."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__: list[str] = []

_NEEDS = ("make_model", "make_optimizer")
_SCHEDULED_STEPS = 200


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
    ratio = _first_step(model, optimizer)
    evidence["first step / learning rate"] = ratio
    uncorrected = (1 - first) / math.sqrt(1 - second)
    if abs(uncorrected - 1) > 0.3 and abs(ratio / uncorrected - 1) < 0.05:
        return _uncorrected(ratio, evidence)
    return adam_settings.ok(f"betas are {first:g} and {second:g}, eps is {eps:g}", evidence)


def _unnamed_means(subject: Subject) -> Finding:
    """Look at an optimizer that does not tell its betas: is its first step that of an uncorrected Adam?"""
    small, large = (_first_step(*made(subject), gradient=size) for size in (1.0, 100.0))
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


def _first_step(model: nn.Module, optimizer: torch.optim.Optimizer, *, gradient: float = 1.0) -> float:
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


@check(family="training", component="schedule", needs=(*_NEEDS, "make_schedule"), likelihood=0.6)
def schedule_shape(subject: Subject) -> Finding:
    """Does the learning rate rise, fall, and last as long as the training?"""
    factors, _ = factors_of(subject)
    peak = max(factors)
    if not peak > 0:
        return schedule_shape.problem(
            "the learning rate is zero at all steps",
            {"highest factor": peak},
            why="Nothing is learned.",
            fix="Check what the schedule multiplies.",
        )
    zero = [factor < 1e-6 * peak for factor in factors]
    tail = next((index for index, is_zero in enumerate(reversed(zero)) if not is_zero), 0) / len(factors)
    head = next((index for index, is_zero in enumerate(zero) if not is_zero), 0)
    evidence = {
        "highest / chosen rate": peak,
        "last / highest": factors[-1] / peak,
        "share of steps at zero at the end": tail,
        "steps at zero at the start": float(head),
    }
    said = _wrong_shape(factors, evidence)
    if said is None:
        return schedule_shape.ok(
            f"it starts at {factors[0]:.2g}, is {peak:.2g} at most and ends at "
            f"{factors[-1]:.2g} of the chosen rate",
            evidence,
        )
    summary, why, fix, likelihood = said
    return schedule_shape.problem(summary, evidence, why=why, fix=fix, likelihood=likelihood)


def _wrong_shape(factors: list[float], evidence: dict[str, float]) -> tuple[str, str, str, float] | None:
    """Return what is wrong, what it costs, what to do and how likely it matters; None if nothing is wrong."""
    peak, tail, head = (
        max(factors),
        evidence["share of steps at zero at the end"],
        factors.index(max(factors)),
    )
    count = "Make the schedule of the number of optimizer steps, and step it once for each of them."
    if any(factor < 0 or not math.isfinite(factor) for factor in factors):
        return "the learning rate is negative or not finite", "The model is pushed uphill.", count, 0.9
    if evidence["steps at zero at the start"] > 1:
        steps = int(evidence["steps at zero at the start"])
        return f"the first {steps} steps have a learning rate of zero", "They teach nothing.", count, 0.6
    if tail > 0.1:
        return (
            f"the learning rate is zero in the last {tail:.0%} of the steps",
            "The run ends long before it stops.",
            count,
            0.6,
        )
    if peak > 1.5:
        return (
            f"the learning rate goes up to {peak:.3g} times the chosen one",
            "A rate that was chosen with care is not the one that is used.",
            "Let the schedule's factor be 1 at most.",
            0.6,
        )
    if peak < 0.5:
        return (
            f"the learning rate never gets above {peak:.3g} of the chosen one",
            "The run is slower than its settings say.",
            "Let the schedule's factor reach 1 after the warm-up.",
            0.5,
        )
    bottom = min(range(head, len(factors)), key=lambda step: factors[step])
    climb = [after - before for before, after in zip(factors[bottom:], factors[bottom + 1 :], strict=False)]
    if (
        factors[bottom] < 0.1 * peak
        and climb
        and max(factors[bottom:]) > 0.5 * peak
        and max(climb) < 0.3 * peak
    ):
        return (
            f"the learning rate falls to {factors[bottom]:.2g} by step {bottom} of "
            f"{len(factors)}, and rises again",
            "A cosine that goes on past its end undoes what it settled.",
            count,
            0.5,
        )
    return _wrong_warm_up(factors, head)


def _wrong_warm_up(factors: list[float], head: int) -> tuple[str, str, str, float] | None:
    """Judge where a schedule that rises has its highest point, and whether one that falls gets down."""
    peak, steps = max(factors), len(factors)
    rising = factors[head] > factors[0] * 1.05
    if rising and head > 0.6 * steps and factors[-1] > 0.5 * peak:
        return (
            f"the learning rate rises for {head} of {steps} steps",
            "The warm-up takes up the run.",
            "Warm up for a tenth of the steps or less, and come down from there.",
            0.5,
        )
    falling = [before - after for before, after in zip(factors[head:], factors[head + 1 :], strict=False)]
    steady = bool(falling) and min(falling) >= 0 and sum(fall > 0 for fall in falling) > 0.9 * len(falling)
    if steady and 0.6 * peak < factors[-1] < 0.98 * peak:
        return (
            f"the learning rate falls at every step, and only to {factors[-1] / peak:.2g} of its highest",
            "The run ends before the schedule does, without its quiet last part.",
            "Make the schedule of the number of optimizer steps that are really taken.",
            0.3,
        )
    return None


@check(family="training", component="schedule", needs=(*_NEEDS, "make_schedule"), likelihood=0.2)
def warm_up(subject: Subject) -> Finding:
    """Does Adam start slowly where a fast start is risky?"""
    factors, optimizer = factors_of(subject)
    if "betas" not in optimizer.param_groups[0]:
        raise NotApplicable("the optimizer is no Adam")
    if not subject.fresh:
        raise NotApplicable("the model is trained already")
    base = max(float(group.get("initial_lr") or rate_of(group)) for group in optimizer.param_groups)
    rate, constant = base * max(factors), max(factors) - min(factors) < 1e-6
    post = has_post_norm(subject)
    evidence = {
        "first / highest": factors[0] / max(max(factors), 1e-30),
        "highest rate": rate,
        "post-norm": float(post),
    }
    # A constant rate is a choice, and layers with a norm in front of them stand it.
    risky = rate >= 9.99e-4 and (post or not constant)
    if factors[0] > 0.9 * max(factors) and risky:
        return warm_up.problem(
            f"the first step has the full learning rate of {rate:.2g}; expected a rise over the first steps",
            evidence,
            why="Adam's first steps are all of full length, on means of one or two gradients; "
            "with a norm after "
            "each sum the gradients near the output are large then (Xiong et al., 2020).",
            fix="Let the learning rate rise over the first 5 to 10% of the steps, or lower it.",
        )
    return warm_up.ok(f"the first step has {factors[0]:.2g} of the chosen rate {base:.2g}", evidence)


def factors_of(subject: Subject, steps: int = _SCHEDULED_STEPS) -> tuple[list[float], torch.optim.Optimizer]:
    """Return the learning rate at each step as a share of the chosen one, and the optimizer."""
    _, optimizer = made(subject)
    group = max(optimizer.param_groups, key=lambda group: rate_of(group))
    chosen = rate_of(group)
    if not chosen > 0:
        raise NotApplicable("the learning rate is zero")
    assert subject.make_schedule is not None
    schedule: Any = subject.make_schedule(optimizer, steps)
    if "metrics" in inspect.signature(schedule.step).parameters:
        raise NotApplicable("the schedule follows a metric, not the steps")
    if type(schedule).__name__ in ("OneCycleLR", "CyclicLR", "CosineAnnealingWarmRestarts"):
        raise NotApplicable(f"{type(schedule).__name__} has a shape and a highest rate of its own")
    factors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer takes no step here: there are no gradients
        for _ in range(steps):
            factors.append(rate_of(group) / chosen)
            schedule.step()
    return factors, optimizer


def has_post_norm(subject: Subject) -> bool:
    """Whether what leaves each layer is normalised: every token's vector has a mean square of 1."""
    model = subject.model()
    layers = max(
        (list(module) for module in model.modules() if isinstance(module, nn.ModuleList)), key=len, default=[]
    )
    squares: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.dim() == 3:
            squares.append(hidden.detach().float().square().mean(dim=-1))

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.no_grad():
            subject.scores(model, subject.ids(), None)
    finally:
        for handle in handles:
            handle.remove()
    return (
        subject.fresh and bool(squares) and all(bool(((value - 1).abs() < 0.02).all()) for value in squares)
    )
