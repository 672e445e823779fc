"""Checks of the training step: what reaches the optimizer, in which order, and from which loss."""

from __future__ import annotations

import math
from itertools import cycle

import torch
from torch import Tensor, nn

from companion.data import Batch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.spying import (
    Gradients,
    Recording,
    apart,
    length,
    row_count,
    some_rows,
    watch,
)
from companion.debugging.subject import Subject, seeded

__all__ = ["calls_by_step", "learner", "listed", "one_gradient", "two_batches"]

NEEDS = ("make_model", "make_optimizer", "train_step", "batches")
ROWS = 8
PATIENCE = 32
"""Calls of a training step, of which one has to take a step of the optimizer."""
NOISE, ALARM = 1e-3, 1e-2
"""Distances between the directions of two gradients: what arithmetic explains, and what it cannot."""


def learner(subject: Subject, start: nn.Module | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model in training mode and its optimizer; with the weights of another if one is given."""
    model = subject.model(jitter=start is None)
    if start is not None:
        model.load_state_dict(start.state_dict())
    model.zero_grad(set_to_none=True)
    model.train()
    assert subject.make_optimizer is not None
    return model, subject.make_optimizer(model)


def two_batches(subject: Subject) -> tuple[Batch, Batch]:
    """Return two small batches with different rows."""
    first = subject.batches[0]
    rows = row_count(first)
    if len(subject.batches) > 1:
        second = subject.batches[1]
        return some_rows(first, range(min(rows, ROWS))), some_rows(
            second, range(min(row_count(second), ROWS))
        )
    if rows < 2:
        raise NotApplicable("there is one row of data: two steps on it have one gradient")
    half = min(rows // 2, ROWS)
    return some_rows(first, range(half)), some_rows(first, range(half, 2 * half))


def calls_by_step(
    subject: Subject, model: nn.Module, optimizer: torch.optim.Optimizer, *, dropout: bool = False
) -> list[list[Recording]]:
    """Call a training step until the optimizer has taken two steps; return the calls that led to each.

    A call should be a step. Some count calls, and let the optimizer take a step at every few of them: then
    the calls of the second step are sure to be complete. The last list ends without a step if none came.
    """
    batches, found = cycle(two_batches(subject)), list[list[Recording]]()
    for _ in range(2):
        found.append([])
        for _ in range(PATIENCE):
            if found[-1]:
                found[-1][-1].left = {}  # of all but the last: gradients are large
            found[-1].append(watch(subject, model, optimizer, [next(batches)], dropout=dropout))
            if found[-1][-1].at_step:
                break
        else:
            break
    return found


@check(family="training", component="training step", needs=NEEDS, likelihood=0.9)
def parameters_move(subject: Subject) -> Finding:
    """Does every parameter with a gradient move in two real steps?"""
    model, optimizer = learner(subject)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    records = [record for calls in calls_by_step(subject, model, optimizer, dropout=True) for record in calls]
    received = set().union(*(record.received for record in records))
    trained = {name: value for name, value in model.named_parameters() if name in received}
    if not trained:
        raise NotApplicable("no backward pass reached the model: see the order of the step")
    still = [name for name, value in trained.items() if torch.equal(value.detach(), before[name])]
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    forgotten = [name for name in still if id(trained[name]) not in known]
    held = [
        name
        for name in still
        if name not in forgotten and _should_move(optimizer, trained[name], records, name)
    ]
    evidence = {
        "parameters with a gradient": float(len(trained)),
        "that did not move": float(len(forgotten) + len(held)),
    }
    if len(still) == len(trained):
        return parameters_move.problem(
            f"none of the {len(trained)} parameters with a gradient moved in {len(records)} calls",
            evidence,
            why="The model stays as it was made; the loss only wobbles with the batches.",
            fix="Call optimizer.step() after backward and before zero_grad, with the parameters "
            "of this model.",
            component="optimizer" if len(forgotten) == len(trained) else "training step",
        )
    if forgotten or held:
        names = forgotten or held
        return parameters_move.problem(
            f"{len(names)} of {len(trained)} parameters got a gradient and did not move in two steps: "
            f"{listed(names)}",
            evidence,
            why="They keep the values they were drawn with, and the rest learns around them.",
            fix="Give the optimizer all of model.parameters(), after the model is complete and "
            "on its device, "
            "with a learning rate above zero.",
            where=listed(names, 20),
            component="optimizer",
        )
    return parameters_move.ok(f"all {len(trained)} parameters with a gradient moved in two steps", evidence)


def _should_move(
    optimizer: torch.optim.Optimizer, parameter: Tensor, records: list[Recording], name: str
) -> bool:
    """Whether float32 would show the step: a tiny one is lost next to a large weight."""
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    largest = max((float(g[name].abs().max()) for r in records for g in r.at_step if name in g), default=0.0)
    if group.get("lr") == 0:
        return True
    return float(group.get("lr") or 1e-3) * largest > 1e-6 * max(float(parameter.detach().abs().max()), 1e-6)


@check(family="training", component="training step", needs=NEEDS, likelihood=0.9)
def gradients_are_zeroed(subject: Subject) -> Finding:
    """Is a step's gradient that of its own batch alone?"""
    model, optimizer = learner(subject)
    first, second = two_batches(subject)
    old = watch(subject, model, optimizer, [first])
    twin, other = learner(subject, model)
    noisy, third = learner(subject, model)
    record = watch(subject, model, optimizer, [second])
    seen = one_gradient(record)
    expected = one_gradient(watch(subject, twin, other, [second]))
    again = one_gradient(watch(subject, noisy, third, [second], seed=1))
    noise = apart(expected, again)
    if not noise < NOISE:
        raise NotApplicable("the step is random even without dropout: two gradients of one batch differ")
    if not apart(one_gradient(old), expected) > 3 * ALARM:
        raise NotApplicable("the two batches have nearly the same gradient")
    distance = apart(seen, expected)
    old_norm = math.hypot(*record.found.values())
    evidence = {"distance between directions": distance, "norm of what backward found there": old_norm}
    # What is left over can be small next to a sum over many tokens: then it counts if it was seen there.
    if not distance < ALARM or (old_norm > 0 and distance > max(1e-5, 10 * noise)):
        return gradients_are_zeroed.problem(
            f"the second step's gradient is {distance:.2g} away in direction from that of its batch alone; "
            "expected 0: gradients are left over from the step before",
            evidence,
            why="Each step follows the sum of all batches so far; clipping hides how long that has become.",
            fix="Call optimizer.zero_grad() once in each step: before the first backward or after the step.",
            where="the training step",
        )
    return gradients_are_zeroed.ok("the second step's gradient is that of its own batch", evidence)


def one_gradient(record: Recording) -> Gradients:
    """Return the gradient with which a training step took its only step."""
    if len(record.at_step) != 1 or not 0 < length(record.at_step[0]) < math.inf:
        raise NotApplicable("there is no single finite gradient at a step: see the order of the step")
    return record.at_step[0]


@check(family="training", component="training step", needs=NEEDS, likelihood=0.7)
def training_mode(subject: Subject) -> Finding:
    """Is the model in training mode while it is trained?"""
    model, optimizer = learner(subject)
    if not any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p for module in model.modules()):
        raise NotApplicable("the model has no dropout: both modes are one")
    batch = two_batches(subject)[0]
    record = watch(subject, model, optimizer, [batch], dropout=True)
    evidence = {"calls in training mode": float(sum(record.training)), "calls": float(len(record.training))}
    if not record.training:
        raise NotApplicable("the step did not call the model")
    fix = "Call model.train() at the start of each training step."
    if not all(record.training):
        return training_mode.problem(
            "the training step calls the model in evaluation mode: dropout never happens",
            evidence,
            why="The model overfits sooner than its settings promise.",
            fix=fix,
            where="the training step",
        )
    if not model.training:
        return training_mode.problem(
            "the training step leaves the model in evaluation mode: the next one runs without dropout",
            evidence,
            why="The model overfits sooner than its settings promise.",
            fix=fix,
            where="the training step",
        )
    if subject.evaluate is not None and _stays_in_evaluation(subject, batch):
        return training_mode.problem(
            "the evaluation leaves the model in evaluation mode, and the next training step does not put it "
            "back: from there on dropout never happens",
            evidence,
            component="dropout",
            why="The first epoch trains with dropout, all others without.",
            fix=f"{fix} Where the loop does it, all is well.",
            where="the training step",
            likelihood=0.4,
        )
    return training_mode.ok("the model is in training mode while it is trained", evidence)


def _stays_in_evaluation(subject: Subject, batch: Batch) -> bool:
    """Whether a training step that follows an evaluation calls the model in evaluation mode."""
    assert subject.evaluate is not None
    model, optimizer = learner(subject)
    with seeded(0):
        subject.evaluate(model, [batch])
    return not all(watch(subject, model, optimizer, [batch], dropout=True).training)


def listed(names: list[str], most: int = 4) -> str:
    """Name the first few, and count the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
