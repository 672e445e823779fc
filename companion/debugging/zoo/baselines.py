"""What people look at without a doctor: the first loss, one batch learnt by heart, the curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from companion.debugging.subject import Subject, seeded

__all__ = ["first_loss_is_off", "looks_different", "misses_one_batch", "taught_checks_alarm"]

_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, AttributeError)


def taught_checks_alarm(subject: Subject, *, steps: int = 60) -> bool:
    """Whether one of the two most taught checks objects: the initial loss, and overfitting one batch [1]_.

    References
    ----------
    .. [1] Karpathy, "A Recipe for Training Neural Networks", 2019.
    """
    try:
        return first_loss_is_off(subject) or misses_one_batch(subject, steps=steps)
    except _ERRORS:
        return True  # nobody overlooks a traceback


def first_loss_is_off(subject: Subject, *, tolerance: float = 0.15) -> bool:
    """Whether a fresh model's loss is further from ln(classes) than a share of it."""
    if subject.loss is None or not subject.outputs:
        raise ValueError("the subject has no loss or no classes: give it both")
    expected = math.log(subject.outputs)
    with torch.no_grad():
        loss = float(subject.loss(subject.model(), subject.batches[0]))
    return not abs(loss - expected) <= tolerance * expected


def misses_one_batch(subject: Subject, *, steps: int = 60, share: float = 0.3) -> bool:
    """Whether the loss on one small batch stays above a share of the first after so many steps."""
    if subject.loss is None or subject.make_optimizer is None or subject.train_step is None:
        raise ValueError("the subject has no loss, optimizer or training step: give it all three")
    batch = {name: tensor[:4] for name, tensor in subject.batches[0].items()}
    with seeded(0):
        model = subject.make_model()
        optimizer = subject.make_optimizer(model)
        for group in optimizer.param_groups:
            group["lr"] *= 10  # one batch bears it, and an hour is not spent
        first = float(subject.loss(model.eval(), batch).detach())
        for _ in range(steps):
            subject.train_step(model, optimizer, [batch])
        last = float(subject.loss(model.eval(), batch).detach())
    return not last < share * first


def looks_different(seen: float | None, clean: Sequence[float | None]) -> bool:
    """Whether a held-out loss is visibly worse than those of the right code with other seeds.

    A lower one does not alarm anybody. Visible is what lies above the highest by more than the clean ones
    spread, and by one in a hundred at least.
    """
    known = [loss for loss in clean if loss is not None]
    if not known:
        raise ValueError("no clean run has a loss: measure the right code first")
    if seen is None:
        return True
    margin = max(max(known) - min(known), 0.01 * max(known))
    return seen > max(known) + margin
