"""Checks of the training step: what reaches the optimizer, in which order, and from which loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from companion.data import Batch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.spying import (
    Gradients,
    NoDropout,
    Recording,
    apart,
    gradients_of,
    length,
    row_count,
    some_rows,
    watch,
)
from companion.debugging.subject import Subject, seeded

__all__: list[str] = []

_NEEDS = ("make_model", "make_optimizer", "train_step", "batches")
_ROWS = 8
_NOISE, _ALARM = 1e-3, 1e-2
"""Distances between the directions of two gradients: what arithmetic explains, and what it cannot."""


def learner(subject: Subject, start: nn.Module | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model in training mode and its optimizer; with the weights of another if one is given."""
    model = subject.model(jitter=True)
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
        return some_rows(first, range(min(rows, _ROWS))), some_rows(
            second, range(min(row_count(second), _ROWS))
        )
    if rows < 2:
        raise NotApplicable("there is one row of data: two steps on it have one gradient")
    half = min(rows // 2, _ROWS)
    return some_rows(first, range(half)), some_rows(first, range(half, 2 * half))


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.9)
def parameters_move(subject: Subject) -> Finding:
    """Does every parameter with a gradient move in two real steps?"""
    model, optimizer = learner(subject)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batches = two_batches(subject)
    records = [watch(subject, model, optimizer, [batch], dropout=True) for batch in batches]
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
            f"none of the {len(trained)} parameters with a gradient moved in two steps",
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
            f"{_listed(names)}",
            evidence,
            why="They keep the values they were drawn with, and the rest learns around them.",
            fix="Give the optimizer all of model.parameters(), after the model is complete and "
            "on its device, "
            "with a learning rate above zero.",
            where=_listed(names, 20),
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


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.9)
def order_of_the_step(subject: Subject) -> Finding:
    """Are there backward, clipping and one step, in this order, with the gradients still there?"""
    model, optimizer = learner(subject)
    record = watch(subject, model, optimizer, [two_batches(subject)[0]])
    events = " -> ".join(record.events) or "nothing"
    evidence = {
        "optimizer steps": float(len(record.at_step)),
        "gradient norm at the step": length(record.at_step[-1]) if record.at_step else 0.0,
        "gradient norm afterwards": length(record.left),
    }
    said = _wrong_order(record, evidence)
    if said is None:
        return order_of_the_step.ok(f"in order: {events}", evidence)
    summary, why, fix = said
    return order_of_the_step.problem(
        f"{summary} (seen: {events})", evidence, why=why, fix=fix, where="the training step"
    )


def _wrong_order(record: Recording, evidence: dict[str, float]) -> tuple[str, str, str] | None:
    """Return what is wrong, what it costs and what to do; None if nothing is."""
    if not record.at_step:
        return (
            "the optimizer took no step",
            "The model stays as it was made.",
            "Call optimizer.step() once for each batch, after backward.",
        )
    if len(record.at_step) > 1:
        return (
            f"the optimizer took {len(record.at_step)} steps on one batch, expected 1",
            "Gradients are used more than once, and a schedule counted in steps no longer fits.",
            "Call optimizer.step() once for each batch, after the last part's backward.",
        )
    norm = evidence["gradient norm at the step"]
    if not math.isfinite(norm):
        return (
            f"the gradient at the step is {norm}",
            "One such step turns the weights into NaN.",
            "Find the first module whose output or gradient is not finite; skip a step that has none.",
        )
    if norm == 0 and record.received:
        return (
            "the gradients were gone when the optimizer took its step: zero_grad came "
            "between backward and step",
            "Only weight decay and old momentum move the model.",
            "Zero the gradients before backward, or after the step.",
        )
    if norm == 0:
        return (
            "no gradient reached the model before the optimizer took its step",
            "The model stays as it was made.",
            "Call loss.backward(), on a loss that was neither detached nor computed under no_grad.",
        )
    step = record.events.index("step")
    changed = _scaled_after(record.at_step[-1], record.left)
    if ("clip" in record.events[step:] and "clip" not in record.events[:step]) or changed is not None:
        found = f": it was multiplied by {changed:.3g} then" if changed is not None else ""
        return (
            f"the gradient is clipped after the step that used it{found}",
            "Nothing is clipped at all: a single odd batch can throw the weights far off.",
            "Clip between backward and optimizer.step().",
        )
    return None


def _scaled_after(at_step: Gradients, left: Gradients) -> float | None:
    """Return the factor by which gradients shrank after the step; None if they did not."""
    used, after = length(at_step), length(left)
    if not 0 < after < 0.999 * used or not apart(at_step, left) < _NOISE:
        return None
    return after / used


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.9)
def gradients_are_zeroed(subject: Subject) -> Finding:
    """Is a step's gradient that of its own batch alone?"""
    model, optimizer = learner(subject)
    first, second = two_batches(subject)
    old = watch(subject, model, optimizer, [first])
    twin, other = learner(subject, model)
    noisy, third = learner(subject, model)
    record = watch(subject, model, optimizer, [second])
    seen = _one_gradient(record)
    expected = _one_gradient(watch(subject, twin, other, [second]))
    again = _one_gradient(watch(subject, noisy, third, [second], seed=1))
    noise = apart(expected, again)
    if not noise < _NOISE:
        raise NotApplicable("the step is random even without dropout: two gradients of one batch differ")
    if not apart(_one_gradient(old), expected) > 3 * _ALARM:
        raise NotApplicable("the two batches have nearly the same gradient")
    distance = apart(seen, expected)
    old_norm = math.hypot(*record.found.values())
    evidence = {"distance between directions": distance, "norm of what backward found there": old_norm}
    # What is left over can be small next to a sum over many tokens: then it counts if it was seen there.
    if not distance < _ALARM or (old_norm > 0 and distance > max(1e-5, 10 * noise)):
        return gradients_are_zeroed.problem(
            f"the second step's gradient is {distance:.2g} away in direction from that of its batch alone; "
            "expected 0: gradients are left over from the step before",
            evidence,
            why="Each step follows the sum of all batches so far; clipping hides how long that has become.",
            fix="Call optimizer.zero_grad() once in each step: before the first backward or after the step.",
            where="the training step",
        )
    return gradients_are_zeroed.ok("the second step's gradient is that of its own batch", evidence)


def _one_gradient(record: Recording) -> Gradients:
    if len(record.at_step) != 1 or not 0 < length(record.at_step[0]) < math.inf:
        raise NotApplicable("there is no single finite gradient at a step: see the order of the step")
    return record.at_step[0]


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.7)
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


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.9)
def accumulation_equivalence(subject: Subject) -> Finding:
    """Does a batch in two uneven parts give the gradient that it gives in one?"""
    whole, parts = _uneven_parts(subject)
    _rows_are_independent(subject, whole, parts[0])
    one = _gradient(subject, [whole])
    if not apart(one, _gradient(subject, [whole], seed=1)) < _NOISE:
        raise NotApplicable("the step is random even without dropout: two gradients of one batch differ")
    try:
        record = _record(subject, parts)
    except Exception as error:
        raise NotApplicable(f"the training step takes one batch, not parts of one ({error})") from error
    if len(record.at_step) != 1:
        return accumulation_equivalence.problem(
            f"the optimizer took {len(record.at_step)} steps on one batch in 2 parts, expected 1",
            {"optimizer steps": float(len(record.at_step))},
            why="Parts that were meant to make a larger batch are trained on as small ones.",
            fix="Call backward for each part, and optimizer.step() once after the last.",
            where="the training step",
        )
    alone = _gradient(subject, parts[:1])
    if (
        apart(record.at_step[0], alone) < _NOISE
        and abs(length(record.at_step[0]) / length(alone) - 1) < _NOISE
    ):
        raise NotApplicable("the training step looks at the first part only: it does not accumulate")
    return _compare_parts(subject, one, record.at_step[0], parts)


def _compare_parts(subject: Subject, one: Gradients, two: Gradients, parts: list[Batch]) -> Finding:
    """Compare the gradients without clipping, and then as they are."""
    ratio = length(two) / length(one)
    clipped = apart(_gradient(subject, [*parts], clip=True), _gradient(subject, [_joined(parts)], clip=True))
    distance = apart(one, two)
    evidence = {
        "distance between directions": distance,
        "length in parts / in one": ratio,
        "distance when clipped": clipped,
    }
    if not distance < _ALARM or not 0.98 < ratio < 1.02:
        last = apart(two, _gradient(subject, parts[1:]))
        guess = (
            "only the last part counts: gradients are zeroed between parts"
            if last < _NOISE
            else "each part is averaged by itself, and parts have different numbers of predicted tokens"
            if not distance < _ALARM
            else f"the sum over parts is {ratio:.3g} times too long"
        )
        return accumulation_equivalence.problem(
            f"the same rows in 2 parts give a gradient {distance:.2g} away in direction and "
            f"{ratio:.3g} times "
            f"as long as in one; expected 0 and 1: {guess}",
            evidence,
            why="The result depends on how a batch was cut up, and short texts weigh more than long ones.",
            fix="Add up the summed losses of all parts and divide once, by all that is predicted "
            "in the batch.",
            where="the training step",
        )
    if not clipped < _ALARM:
        return accumulation_equivalence.problem(
            f"clipped, the same rows in 2 parts give a gradient {clipped:.2g} away in "
            "direction from one batch's; "
            "expected 0: each part is clipped by itself",
            evidence,
            why="Parts with a large gradient lose their weight in the sum.",
            fix="Clip once, after the last part's backward.",
            where="the training step",
        )
    return accumulation_equivalence.ok(
        "a batch in two uneven parts has the gradient that it has in one", evidence
    )


def _record(subject: Subject, parts: list[Batch], *, clip: bool = False, seed: int = 0) -> Recording:
    return watch(subject, *learner(subject), parts, clip=clip, seed=seed)


def _gradient(subject: Subject, parts: list[Batch], *, clip: bool = False, seed: int = 0) -> Gradients:
    return _one_gradient(_record(subject, parts, clip=clip, seed=seed))


def _uneven_parts(subject: Subject) -> tuple[Batch, list[Batch]]:
    """Cut a batch in two: the rows where most is predicted, and those with the least; as many of each."""
    batch = max(subject.batches, key=row_count)
    rows = min(row_count(batch), _ROWS) // 2 * 2
    if rows < 2:
        raise NotApplicable("no batch has two rows to put into two parts")
    batch = some_rows(batch, range(rows))
    order = torch.argsort(_predicted(batch), descending=True, stable=True)
    parts = [some_rows(batch, order[: rows // 2]), some_rows(batch, order[rows // 2 :])]
    return some_rows(batch, order), parts


def _predicted(batch: Batch) -> Tensor:
    """Return (rows,): how much is predicted, or at least read, in each row."""
    labels = batch.get("labels")
    if (
        isinstance(labels, Tensor)
        and labels.dim() == 2
        and labels.size(1) > 1
        and bool((labels == -100).any())
    ):
        return (labels != -100).sum(dim=1)
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(dim=1)
    return torch.zeros(row_count(batch))


def _joined(parts: list[Batch]) -> Batch:
    size = row_count(parts[0])
    return {
        name: torch.cat([part[name] for part in parts])
        if isinstance(value, Tensor) and value.dim() and value.size(0) == size
        else value
        for name, value in parts[0].items()
    }


def _rows_are_independent(subject: Subject, whole: Batch, part: Batch) -> None:
    """Refuse a model whose scores depend on the other rows: its parts differ whatever the step does."""
    if "input_ids" not in whole:
        return
    mask = "attention_mask" if "attention_mask" in whole and subject.takes_mask() else None
    model = subject.model(jitter=True)
    with torch.no_grad():
        together = subject.scores(model, whole["input_ids"], whole[mask] if mask else None)
        alone = subject.scores(model, part["input_ids"], part[mask] if mask else None)
    if float((together[: len(alone)] - alone).abs().max()) > 1e-3 * max(float(together.std()), 1e-12):
        raise NotApplicable("a row's scores depend on the rows beside it")


@check(family="training", component="training step", needs=(*_NEEDS, "loss"), likelihood=0.7)
def step_follows_the_loss(subject: Subject) -> Finding:
    """Is the gradient at the step, and the number returned, that of the mean loss?"""
    batch = two_batches(subject)[0]
    record = _record(subject, [batch])
    taken = _one_gradient(record)
    model, _ = learner(subject)
    assert subject.loss is not None
    with seeded(0), NoDropout():
        loss = subject.loss(model, {name: value for name, value in batch.items()})
        loss.backward()  # type: ignore[no-untyped-call]
    asked = gradients_of(model)
    if not length(asked) > 0:
        raise NotApplicable("the loss has no gradient")
    distance, ratio = apart(taken, asked), length(taken) / length(asked)
    evidence = {"distance between directions": distance, "length of step's / of loss's": ratio}
    if not distance < 1.0:
        return step_follows_the_loss.problem(
            f"the step's gradient is {distance:.2g} away in direction from the loss's; expected 0"
            + (": it goes uphill" if distance > 1.9 else ""),
            evidence,
            why="The number that is watched is not the one that is trained on.",
            fix="Compute the loss in one function, and call backward on what it returns.",
            likelihood=0.5,
        )
    predicted = {"rows": row_count(batch), "predicted tokens": int(_predicted(batch).sum())}
    summed = next((what for what, size in predicted.items() if _is_sum(ratio, size, subject)), None)
    if summed is not None and distance < _ALARM:
        return step_follows_the_loss.problem(
            f"the gradient is {ratio:.4g} times as long as the mean loss's: it is a sum over the {summed}",
            evidence,
            why="The step's length grows with the batch; clipping then cuts every step, and "
            "decides it alone.",
            fix=f"Divide the loss, or the gradients, by the number of {summed}.",
            likelihood=0.6,
        )
    return _returned(record.returned, loss.item(), predicted, evidence)


def _is_sum(ratio: float, size: int, subject: Subject) -> bool:
    slack = 0.2 if subject.by_token else 0.02  # a language model predicts a token less for each row
    return size >= 4 and 1 - slack < ratio / size < 1.02


def _returned(returned: Any, loss: float, sizes: dict[str, int], evidence: dict[str, float]) -> Finding:
    """Judge the number that the step returned, if it is one.

    What a step returns for a batch in parts is not judged: many return the last part's loss, for a glance.
    """
    number = _number(returned)
    if number is None or not loss:
        return step_follows_the_loss.ok("the step's gradient is that of the mean loss", evidence)
    evidence = {**evidence, "returned": number, "mean loss": loss}
    summed = next(
        (what for what, size in sizes.items() if size >= 4 and abs(number / loss / size - 1) < 0.01), None
    )
    if summed is not None:
        return step_follows_the_loss.problem(
            f"the step returns {number:.4g}, the sum over the {summed}; the mean loss is {loss:.4g}",
            evidence,
            why="The curve that is drawn follows the size of the batches.",
            fix=f"Divide what is returned by the number of {summed}.",
            likelihood=0.2,
        )
    return step_follows_the_loss.ok("the step's gradient is that of the mean loss", evidence)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach())
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
