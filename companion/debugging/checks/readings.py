"""What a loss says of scores: which target it has at each place, and how much the place counts.

Both are read off the loss's gradient with respect to the scores. For cross-entropy that is, at each token or
text, ``weight * (softmax(scores) - one_hot(target))``, however the loss is written and wherever it is
computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.data import Batch
from companion.debugging.calling import scores_of
from companion.debugging.checks.registry import NotApplicable
from companion.debugging.spying import NoDropout, copied, some_rows
from companion.debugging.subject import Subject, seeded

__all__ = ["Reading", "read", "real_tokens", "token_batch"]

_COUNTS = 0.01
"""Share of the mean weight from which on a place counts."""


@dataclass(frozen=True)
class Reading:
    """What a loss says about scores.

    Attributes
    ----------
    loss : float
    scores : Tensor
        (batch, seq, words), or (batch, classes).
    gradient : Tensor
        Of the loss with respect to the scores: the same shape.
    single : bool
        Whether a classifier gives one score, that of its second class, and the first one's here is 0: with
        ``binary_cross_entropy_with_logits`` that is the same model.
    """

    loss: float
    scores: Tensor
    gradient: Tensor
    single: bool = False

    @property
    def targets(self) -> Tensor:
        """(batch, seq) or (batch,): the score that the loss wants larger."""
        return self.gradient.argmin(dim=-1)

    @property
    def weights(self) -> Tensor:
        """(batch, seq) or (batch,): how much a place counts; these add up to 1 in a mean."""
        pull = -self.gradient.amin(dim=-1)
        probability = self.scores.softmax(dim=-1).gather(-1, self.targets[..., None])[..., 0]
        # Scores that are log-probabilities already are pulled by the target alone: nothing is pushed back.
        pushed = self.gradient.sum(dim=-1).abs() < 0.5 * pull
        return torch.where(pushed, pull / (1 - probability).clamp(min=1e-4), pull).clamp(min=0)

    @property
    def squashed(self) -> Tensor:
        """The scores as they are when they go through a softmax, or a single one through a sigmoid, first."""
        probabilities = self.scores.softmax(dim=-1)
        return functional.pad(probabilities[..., 1:], (1, 0)) if self.single else probabilities

    @property
    def counted(self) -> Tensor:
        """Bool, like `weights`: the places that count."""
        weights = self.weights
        return weights > _COUNTS * weights.max().clamp(min=1e-12)


def read(subject: Subject, batch: Batch) -> Reading:
    """Return what a subject's loss says about the scores of its model, without dropout.

    Raises
    ------
    NotApplicable
        When the loss does not come from the scores that the model returns.
    """
    model = subject.model(jitter=True)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        outputs.append(_raw_scores(output))

    handle = model.register_forward_hook(keep)
    assert subject.loss is not None
    try:
        with seeded(0), NoDropout():
            loss = subject.loss(model, copied(batch))
    finally:
        handle.remove()
    if len(outputs) != 1:
        raise NotApplicable(f"the loss calls the model {len(outputs)} times: which scores count is not known")
    if not loss.requires_grad or not outputs[0].requires_grad:
        raise NotApplicable("the loss has no gradient with respect to the scores")
    (gradient,) = torch.autograd.grad(loss, outputs[0], allow_unused=True)
    if gradient is None or not torch.isfinite(gradient).all() or not gradient.any():
        raise NotApplicable("the loss does not come from the scores that the model returns")
    scores, gradient = outputs[0].detach().float(), gradient.detach().float()
    if subject.kind != "classification" or scores.numel() != len(scores):
        return Reading(loss.detach().float().item(), scores, gradient)
    scores, gradient = (value.view(len(value), 1) for value in (scores, gradient))
    pair = functional.pad(scores, (1, 0)), torch.cat([-gradient, gradient], dim=-1)
    return Reading(loss.detach().float().item(), *pair, single=True)


def _raw_scores(output: Any) -> Tensor:
    """Return the very tensor of scores in an output: `scores_of` may return a copy in float32."""
    parts = (
        output.values()
        if isinstance(output, dict)
        else output
        if isinstance(output, tuple | list)
        else [output]
    )
    same = scores_of(output)
    given = [part for part in parts if isinstance(part, Tensor)]
    alike = [part for part in given if part.shape == same.shape]
    # One score for each text may come as (batch,).
    flat = [part for part in given if same.size(-1) == 1 and part.shape == same.shape[:-1]]
    return next(iter((*alike, *flat)), same)


def token_batch(subject: Subject) -> Batch:
    """Return up to eight rows of the batch with the most padding."""
    if getattr(getattr(subject.model(), "config", None), "is_encoder_decoder", False):
        raise NotApplicable("the scores are for another text than the one that is read")
    if any("input_ids" not in batch for batch in subject.batches):
        raise NotApplicable("the batches have no input_ids")
    most = max(subject.batches, key=lambda batch: int((real_tokens(batch, subject) == 0).sum()))
    short_first = real_tokens(most, subject).sum(dim=1).argsort()[:8]
    return some_rows(most, short_first)


def real_tokens(batch: Batch, subject: Subject) -> Tensor:
    """Return int64 (batch, seq): 1 where there is no padding.

    Without a mask: the padding token at the end of a row is padding, but for the first of several, which may
    be the end of the text.
    """
    if "attention_mask" in batch:
        return batch["attention_mask"].long()
    is_pad = batch["input_ids"] == subject.pad_token_id
    after = is_pad.flip(1).long().cumprod(dim=1).flip(1)
    return 1 - torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1] * after[:, 1:]], dim=1)
