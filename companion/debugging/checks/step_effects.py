"""What a training step does in the end: with which batch, under which limit, and whether it lasts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.data import Batch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.steps import learner, two_batches
from companion.debugging.finding import Finding
from companion.debugging.spying import Gradients, Recording, apart, length, row_count, some_rows, watch
from companion.debugging.subject import Subject, seeded

__all__: list[str] = []

_NEEDS = ("make_model", "make_optimizer", "train_step", "batches")
_EVENTS = "the training step"
_NOISE, _ALARM = 1e-3, 1e-2
"""Distances between the directions of two gradients: what arithmetic explains, and what it cannot."""
_UNDONE = 0.1
"""Share of a step that must be taken back to count."""
_HALF = 2
"""Texts in half a batch: a step on few texts is quick."""


Norms = dict[int, float]
"""The norm of a gradient by the id of its parameter."""


@dataclass(frozen=True)
class _Clipping:
    """One call of `clip_grad_norm_`: its limit, and the norms of the gradients before and after it."""

    limit: float
    before: Norms
    after: Norms


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.85)
def clipping_holds(subject: Subject) -> Finding:
    """Are the gradients at the step as long as clipping left them?"""
    model, optimizer = learner(subject)
    with _clippings() as seen:
        record = watch(subject, model, optimizer, [two_batches(subject)[0]])
    used, calls = _single(record), [call for call in seen if math.isfinite(call.limit)]
    if not calls:
        raise NotApplicable("no clipping by norm was seen")
    if _zeroed_after_clip(record):
        raise NotApplicable("the gradients that are clipped are not those of the step")
    at_step = {id(it): float(used[name].norm()) for name, it in model.named_parameters() if name in used}
    pairs = [(call, later.before) for call, later in pairwise(calls)] + [(calls[-1], at_step)]
    factors = [_scaled(call.after, later, last=later is at_step) for call, later in pairs]
    factor = next((it for it in factors if it is not None and abs(it - 1) > _ALARM), 1.0)
    limit = calls[-1].limit
    evidence = {"limit": limit, "factor after clipping": factor, "norm at the step": length(used)}
    if factor == 1.0:
        return clipping_holds.ok("the gradients at the step are as long as clipping left them", evidence)
    return clipping_holds.problem(
        f"after they were clipped to a norm of {limit:.3g} the gradients are {factor:.3g} times as long; "
        "expected 1",
        evidence,
        why="The limit is held against gradients of another length than those that the step uses: it cuts "
        "nearly always, or never.",
        fix="Clip last: after the division by a loss scale or a count, and after the last part's backward.",
        where=_EVENTS,
    )


def _scaled(before: Norms, after: Norms, *, last: bool) -> float | None:
    """Return how much longer gradients have become; None if they are others, not the same made longer."""
    both = [key for key in before.keys() & after.keys() if before[key] > 0]
    if not both:
        return None
    ratio = math.hypot(*(after[key] for key in both)) / math.hypot(*(before[key] for key in both))
    alike = all(abs(after[key] - ratio * before[key]) <= 1e-3 * ratio * before[key] for key in both)
    return ratio if alike or last else None


@contextmanager
def _clippings() -> Iterator[list[_Clipping]]:
    """Note each call of torch's clipping by norm."""
    real = nn.utils.clip_grad_norm_
    calls: list[_Clipping] = []

    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Tensor:
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        before = _norms(given)
        norm = real(given, max_norm, *args, **kwargs)
        calls.append(_Clipping(float(max_norm), before, _norms(given)))
        return norm

    vars(nn.utils)["clip_grad_norm_"] = clip_grad_norm_
    try:
        yield calls
    finally:
        vars(nn.utils)["clip_grad_norm_"] = real


def _norms(parameters: list[Tensor]) -> Norms:
    return {id(it): float(it.grad.detach().norm()) for it in parameters if it.grad is not None}


def _zeroed_after_clip(record: Recording) -> bool:
    if "clip" not in record.events or "step" not in record.events:
        return True
    last = len(record.events) - 1 - record.events[::-1].index("clip")
    step = record.events.index("step")
    return last > step or "zero_grad" in record.events[last:step]


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.85)
def the_step_lasts(subject: Subject) -> Finding:
    """Are the weights after a training step those that the optimizer made?"""
    model, optimizer = learner(subject)
    before = _weights(model)
    made: list[Tensor] = []
    handle = optimizer.register_step_post_hook(lambda *_: made.append(_weights(model)))
    try:
        watch(subject, model, optimizer, [two_batches(subject)[0]])
    finally:
        handle.remove()
    if len(made) != 1:
        raise NotApplicable(f"the optimizer takes {len(made)} steps")
    step, afterwards = made[0] - before, _weights(model) - made[0]
    long, back = float(step.norm()), float(afterwards.norm())
    if not 0 < long < math.inf:
        raise NotApplicable("the optimizer moves nothing, or not to a number")
    # Weights can be moved after a step on purpose, to a norm for instance: that does not take it back.
    taken = -float(step @ afterwards) / long**2
    against = taken * long / back if back else 0.0
    evidence = {"share of the step that is taken back": max(taken, 0.0), "moved after the step": back}
    if taken < _UNDONE or against < 0.9:
        return the_step_lasts.ok("what the optimizer did to the weights stays", evidence)
    return the_step_lasts.problem(
        f"{taken:.1%} of the optimizer's step is taken back before the training step ends; expected 0",
        evidence,
        why="The model moves a small part of what its learning rate says, or not at all.",
        fix="Keep averaged or earlier weights in a copy: nothing but the optimizer writes into the model "
        "that is trained.",
        where=_EVENTS,
    )


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([it.detach().double().flatten().cpu() for it in model.parameters()])


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.85)
def the_step_reads_its_batch(subject: Subject) -> Finding:
    """Does a batch, and each half of it, move the step that is taken on it?"""
    first, batch = two_batches(subject)
    if "input_ids" not in batch:
        raise NotApplicable("the batches have no input_ids")
    rows = [row for row in range(row_count(batch)) if _is_predicted(batch, row)][: 2 * _HALF]
    if len(rows) < 2:
        raise NotApplicable("fewer than two texts of this batch are predicted")
    batch = some_rows(batch, rows)
    halves = list(range(len(rows) // 2)), list(range(len(rows) // 2, len(rows)))
    gradient = _reader(subject, [some_rows(first, range(min(row_count(first), 2 * _HALF)))])
    expected = gradient(batch)
    still = [half for half in halves if _same(expected, gradient(_with_other_words(subject, batch, half)))]
    evidence = {"texts": float(len(rows)), "texts that move nothing": float(sum(map(len, still)))}
    if not still:
        return the_step_reads_its_batch.ok("each half of a batch moves the step", evidence)
    said = "a batch's texts" if len(still) == 2 else f"texts {still[0][0]} to {still[0][-1]} of {len(rows)}"
    return the_step_reads_its_batch.problem(
        f"other words in {said} do not move the step that is taken on them",
        evidence,
        why="The model is trained on other texts than those of the batch, or on a part of them.",
        fix="Give the model the batch that the loop drew, whole, and let each of its rows count in the loss.",
        where=_EVENTS,
    )


def _reader(subject: Subject, earlier: list[Batch]) -> Callable[..., Gradients]:
    """Return what gives the gradient of a step that follows one on another batch."""
    start = subject.model(jitter=True)

    def gradient(batch: Batch, seed: int = 0) -> Gradients:
        model, optimizer = learner(subject, start)
        for other in earlier:
            watch(subject, model, optimizer, [other])
        return _single(watch(subject, model, optimizer, [batch], clip=False, seed=seed))

    return gradient


def _is_predicted(batch: Batch, row: int) -> bool:
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return True
    # A decoder predicts from the second token on.
    return bool((labels[row].flatten()[labels.dim() > 1 :] >= 0).any())


def _with_other_words(subject: Subject, batch: Batch, rows: list[int]) -> Batch:
    """Return a batch with other words in some rows: those of the next row, as far as they go."""
    ids = batch["input_ids"]
    real = batch.get("attention_mask", ids != subject.pad_token_id).bool()
    words = torch.unique(ids[real])
    # Special tokens stay: some models look for them.
    words = words[words > 10] if int((words > 10).sum()) > 3 else words
    changed = ids.clone()
    for row in rows:
        places = real[row] & torch.isin(ids[row], words)
        shifted = (torch.searchsorted(words, ids[row][places]) + 1) % len(words)
        changed[row, places] = words[shifted]
    return {**batch, "input_ids": changed}


def _same(one: Gradients, other: Gradients) -> bool:
    return apart(one, other) < 1e-6 and abs(length(one) / length(other) - 1) < 1e-6


@check(family="training", component="training step", needs=_NEEDS, likelihood=0.8)
def padding_leaves_the_step(subject: Subject) -> Finding:
    """Is a step the same when its batch has more padding?"""
    batch = min(subject.batches, key=lambda it: it["input_ids"].size(1) if "input_ids" in it else 0)
    batch = some_rows(batch, range(min(row_count(batch), 2 * _HALF)))
    wider = _wider(subject, batch)
    model, ids, mask = subject.model(jitter=True), batch["input_ids"], batch["attention_mask"]
    with torch.no_grad(), seeded(0):
        one = subject.scores(model, ids, mask)
        two = subject.scores(model, wider["input_ids"], wider["attention_mask"])
    if subject.by_token:
        two = two[:, : one.size(1)]
        one, two = one[mask.bool()], two[mask.bool()]
    if not float((one - two).abs().max()) < 1e-3 * float(one.std(correction=0)):
        raise NotApplicable("padding moves the scores of the model itself: see the checks of that")
    gradient = _reader(subject, [])
    plain = gradient(batch)
    if not apart(plain, gradient(batch, seed=1)) < _NOISE:
        raise NotApplicable("the step is random even without dropout: two gradients of one batch differ")
    distance = apart(plain, gradient(wider))
    evidence = {"distance between directions": distance}
    if distance < _ALARM:
        return padding_leaves_the_step.ok("more padding leaves the step as it is", evidence)
    return padding_leaves_the_step.problem(
        f"with more padding the gradient of the step is {distance:.2g} away in direction; expected 0, as the "
        "scores of the model do not move",
        evidence,
        why="The step trains another model than the one that is used: its texts end with padding.",
        fix="Give the model the attention mask in the training step too, and leave padding out of the loss.",
        where=_EVENTS,
    )


def _wider(subject: Subject, batch: Batch) -> Batch:
    """Return a batch with columns of padding on the right."""
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if mask is None or ids is None or mask.shape != ids.shape or not subject.takes_mask():
        raise NotApplicable("neither the batch nor the model tells what is padding")
    if getattr(getattr(subject.model(), "config", None), "is_encoder_decoder", False):
        raise NotApplicable("the scores are for another text than the one that is read")
    if bool((mask[:, 0] == 0).any()):
        raise NotApplicable("the padding is on the left, where it moves the text")
    room = min(4, subject.max_length - ids.size(1))
    if room < 1:
        raise NotApplicable("the texts are as long as they can be")
    filler = {"input_ids": subject.pad_token_id, "labels": -100}
    return {
        name: functional.pad(value, (0, room), value=filler.get(name, 0))
        if isinstance(value, Tensor) and value.shape == ids.shape
        else value
        for name, value in batch.items()
    }


def _single(record: Recording) -> Gradients:
    if len(record.at_step) != 1 or not 0 < length(record.at_step[0]) < math.inf:
        raise NotApplicable("there is no single finite gradient at a step: see the order of the step")
    return record.at_step[0]
