"""Fingerprints of what a subject does: a bug is one when it changes some of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.data import Batch
from companion.debugging.subject import Subject, seeded
from companion.debugging.zoo.subjects import fresh_reviews

__all__ = ["KINDS", "NOISE", "Behaviours", "behaviours", "differences", "first_difference"]

Behaviours = dict[str, Any]
"""Numbers as tensors, everything else as something that can be compared."""

NOISE = 3e-5
"""Float32 noise, in parts of the spread of a tensor: differences below it are none."""

_BATCHES, _STEPS = 2, 2


def behaviours(subject: Subject, only: Sequence[str] = ()) -> Behaviours:
    """Return what a subject does: data, scores, gradients, steps, learning rates, evaluation.

    Scores are those of real tokens: what a model says about padding is nobody's business. A behaviour that
    raises an error is the error.

    Parameters
    ----------
    subject : Subject
        With all that `reference_subject` gives one.
    only : sequence of str
        Names of `KINDS`; all of them when empty.
    """
    return {name: _behaviour(subject, name) for name in only or KINDS}


def first_difference(right: Subject, other: Subject) -> str | None:
    """Return the first of `KINDS` in which two subjects differ, the cheap ones first; None if in none."""
    for name in KINDS:
        if differences({name: _behaviour(right, name)}, {name: _behaviour(other, name)}):
            return name
    return None


def _behaviour(subject: Subject, name: str) -> Any:
    with seeded(0):
        try:
            return KINDS[name](subject)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
            return f"{type(error).__name__}: {error}"


def differences(right: Behaviours, other: Behaviours) -> dict[str, float]:
    """Return the behaviours that differ, and by how much.

    Returns
    -------
    dict of str to float
        The largest difference in parts of the right one's spread, above `NOISE`; infinity where the two
        cannot be subtracted.
    """
    found = {name: _difference(right[name], other[name]) for name in right}
    return {name: value for name, value in found.items() if value > NOISE}


def _difference(right: Any, other: Any) -> float:
    if isinstance(right, dict) and isinstance(other, dict) and right.keys() == other.keys():
        return _far(list(right.values()), list(other.values()))
    if isinstance(right, Tensor) and isinstance(other, Tensor):
        return _far([right], [other])
    if isinstance(right, tuple) and isinstance(other, tuple) and len(right) == len(other):
        return max(_difference(one, two) for one, two in zip(right, other, strict=True))
    return 0.0 if type(right) is type(other) and right == other else math.inf


def _far(right: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest difference in parts of the spread of all: some gradients are nothing but noise."""
    if any(one.shape != two.shape for one, two in zip(right, other, strict=True)):
        return math.inf
    one, two = (torch.cat([tensor.detach().double().flatten() for tensor in side]) for side in (right, other))
    spread = (one.max() - one.min()).item() or one.abs().max().item() or 1.0
    difference = (one - two).abs().max().item() / spread
    return difference if math.isfinite(difference) else math.inf


def _model(subject: Subject) -> nn.Module:
    return subject.model(jitter=True)


def _real(batch: Batch, scores: Tensor) -> Tensor:
    return scores[batch["attention_mask"].bool()] if scores.dim() == 3 else scores


@torch.no_grad()
def _scores(subject: Subject) -> Tensor:
    model = _model(subject)
    return torch.cat([_real(batch, _call(subject, model, batch)) for batch in subject.batches[:_BATCHES]])


def _scores_again(subject: Subject) -> Tensor:
    _scores(subject)
    return _scores(subject)  # the generator has moved on: they differ where dropout is live


@torch.no_grad()
def _training_scores(subject: Subject) -> Tensor:
    model, batch = _model(subject).train(), subject.batches[0]
    with seeded(1):
        return _real(batch, _call(subject, model, batch))


def _call(subject: Subject, model: nn.Module, batch: Batch) -> Tensor:
    return subject.scores(model, batch["input_ids"], batch["attention_mask"])


def _fresh_weights(subject: Subject) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in subject.model().named_parameters()}


def _parameters(subject: Subject) -> tuple[int, int]:
    """Return how many modules hold a parameter, and how many numbers there are."""
    model = subject.model()
    holders = sum(1 for _ in model.named_parameters(remove_duplicate=False))
    return holders, sum(parameter.numel() for parameter in model.parameters())


def _losses(subject: Subject) -> Tensor:
    assert subject.loss is not None
    model = _model(subject)
    with torch.no_grad():
        return torch.stack([subject.loss(model, batch) for batch in subject.batches[:_BATCHES]])


def _gradients(subject: Subject) -> dict[str, Tensor]:
    assert subject.loss is not None
    model = _model(subject)
    torch.autograd.backward(subject.loss(model, subject.batches[0]))
    return {name: torch.zeros(1) if p.grad is None else p.grad for name, p in model.named_parameters()}


def _steps(subject: Subject) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Take steps of two parts each; return what the optimizer was given, the losses, and the moves."""
    assert subject.make_optimizer is not None and subject.train_step is not None
    model = _model(subject)
    optimizer = subject.make_optimizer(model)
    given: list[Tensor] = []

    def spy(*_: Any) -> None:
        gradients = [parameter.grad for parameter in model.parameters()]
        norms = [torch.tensor(-1.0) if gradient is None else gradient.norm() for gradient in gradients]
        given.append(torch.stack(norms))

    optimizer.register_step_pre_hook(spy)
    losses = []
    with seeded(2):
        for step in range(_STEPS):
            parts = subject.batches[2 * step : 2 * step + 2]
            losses.append(float(subject.train_step(model, optimizer, parts)))
    # Adam makes a full step of a gradient that is nothing but noise.
    heard = torch.stack(given).amin(dim=0) > 1e-4 * torch.stack(given).amax()
    before = list(_model(subject).parameters())
    moves = [p - q for p, q, loud in zip(model.parameters(), before, heard, strict=True) if loud]
    return torch.tensor(losses), torch.stack(given), {str(index): move for index, move in enumerate(moves)}


def _learning_rates(subject: Subject) -> Tensor:
    assert subject.make_optimizer is not None and subject.make_schedule is not None
    optimizer = subject.make_optimizer(subject.model())
    schedule = subject.make_schedule(optimizer, 20)
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return torch.tensor(rates)


def _groups(subject: Subject) -> list[tuple[str, float, float]]:
    """Return the weight decay and the learning rate of each parameter that the optimizer has."""
    assert subject.make_optimizer is not None
    model = subject.model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (names[id(parameter)], group["weight_decay"], group["lr"])
        for group in subject.make_optimizer(model).param_groups
        for parameter in group["params"]
    ]


def _batches(subject: Subject) -> str:
    parts = [
        f"{name}{tensor.tolist()}" for batch in subject.batches for name, tensor in sorted(batch.items())
    ]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _texts(subject: Subject) -> list[tuple[list[int], list[int]]]:
    assert subject.encode is not None and subject.encode_served is not None
    return [(subject.encode(text), subject.encode_served(text)) for text, _ in fresh_reviews()]


def _evaluation(subject: Subject) -> Tensor:
    assert subject.evaluate is not None
    model = _model(subject)
    return torch.tensor([subject.evaluate(model.train(), subject.batches) for _ in range(2)])


KINDS: dict[str, Callable[[Subject], Any]] = {
    "limits": lambda subject: (subject.vocab_size, subject.max_length, subject.pad_token_id),
    "splits": lambda subject: [(name, list(rows)) for name, rows in subject.splits.items()],
    "texts": _texts,
    "batches": _batches,
    "parameters": _parameters,
    "learning rates": _learning_rates,
    "groups": _groups,
    "fresh weights": _fresh_weights,
    "scores": _scores,
    "scores, once more": _scores_again,
    "scores in training": _training_scores,
    "loss": _losses,
    "evaluation": _evaluation,
    "gradients": _gradients,
    "steps": _steps,
}
"""What is compared, the cheap first."""
