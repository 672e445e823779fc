"""What comes out of a model: shapes, the first loss, and whether scores are scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from companion.data import Batch
from companion.debugging.checks.probing import Probe
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject, seeded

__all__ = ["logits_are_not_probabilities", "shapes"]

_IGNORED = -100


@check(family="model", component="embeddings and head", needs=("make_model",), likelihood=0.8)
def shapes(subject: Subject) -> Finding:
    """Do scores have the right shape and finite values, up to the greatest length?"""
    look = Probe(subject, subject.model())
    longest = subject.max_length
    sizes = [(1, min(2, longest)), (2, min(7, longest)), (3, min(5, longest)), (1, longest)]
    least = 0
    for rows, seq in sizes:
        ids = subject.ids(rows, seq)
        try:
            scores = look(ids)
        except (IndexError, RuntimeError, ValueError) as error:
            if (rows, seq) == sizes[0] and _too_short(look, seq):
                least = seq + 1
                continue
            if (rows, seq) != sizes[-1]:
                raise
            return _too_long(longest, error)
        found = tuple(scores.shape)
        if not _right(subject, found, rows, seq):
            return _wrong_shape(subject, found, rows, seq)
        if not scores.isfinite().all():
            return _not_finite(scores, seq)
    remark = f"; fewer than {least} are too few for it, and no batch has a text so short" if least else ""
    return shapes.ok(
        f"scores have the right shape, up to {longest} tokens{remark}", {"longest": float(longest)}
    )


def _too_short(look: Probe, seq: int) -> bool:
    """Whether a text breaks a model for having so few tokens alone, and there is none such in a batch."""
    if any(bool((batch["attention_mask"].sum(dim=1) <= seq).any()) for batch in look.subject.batches):
        return False
    try:
        look(look.subject.ids(1, 7))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


def _right(subject: Subject, found: tuple[int, ...], rows: int, seq: int) -> bool:
    expected = (rows, seq) if subject.by_token else (rows,)
    if len(found) != len(expected) + 1 or found[:-1] != expected:
        return False
    if subject.outputs is None:
        return True
    if subject.by_token:
        return found[-1] >= subject.outputs  # tables are often padded to a round number of words
    return found[-1] == subject.outputs or (subject.outputs == 2 and found[-1] == 1)


def _wrong_shape(subject: Subject, found: tuple[int, ...], rows: int, seq: int) -> Finding:
    width = "width" if subject.outputs is None else str(subject.outputs)
    expected = f"({rows}, {seq}, {width})" if subject.by_token else f"({rows}, {width})"
    return shapes.problem(
        f"{rows} texts of {seq} tokens give scores of shape {found}, expected {expected}",
        {"rows": float(rows), "tokens": float(seq), "last dimension": float(found[-1])},
        why="A loss that flattens its inputs takes wrong shapes without a word, and learns from wrong pairs.",
        fix="Look at the head's width, and at where the batch and the token axis are exchanged or merged.",
    )


def _not_finite(scores: Tensor, seq: int) -> Finding:
    share = float((~scores.isfinite()).float().mean())
    return shapes.problem(
        f"{share:.0%} of the scores of texts of {seq} tokens are NaN or infinite",
        {"share": share},
        why="Nothing can be learned from them: the first step makes all weights NaN.",
        fix="Look for a softmax over nothing but minus infinity, a division by zero, or a root of a "
        "negative number.",
        component="attention",
        likelihood=0.9,
    )


def _too_long(longest: int, error: Exception) -> Finding:
    said = " ".join(str(error).split())[:120]
    return shapes.problem(
        f"a text of {longest} tokens, the greatest length, raises {type(error).__name__}: {said}",
        {"tokens": float(longest)},
        why="The longest texts stop training or, worse, the server.",
        fix="Give the position table and the causal mask as many rows as texts may have tokens, or cut "
        "texts shorter.",
        component="positions",
    )


@check(
    family="model", component="embeddings and head", needs=("make_model", "loss", "batches"), likelihood=0.9
)
def logits_are_not_probabilities(subject: Subject) -> Finding:
    """Is softmax applied once, and not twice?"""
    assert subject.loss is not None
    if subject.kind in ("encoder", "regression"):
        raise NotApplicable("there are no probabilities")
    for seed in range(3):  # by chance, softmax once and twice can cost the same
        evidence, squeezed = _losses(subject, seed)
        found, once, twice = evidence.values()
        if squeezed or abs(once - twice) > 0.01 * once:
            break
    else:
        raise NotApplicable("softmax once and twice give nearly the same loss here")
    if squeezed:
        if abs(found - once) > 1e-3 * once:
            return logits_are_not_probabilities.ok(f"scores are {squeezed}, and the loss knows", evidence)
        return logits_are_not_probabilities.problem(
            f"the model returns {squeezed}, and the loss, {found:.3f}, is a cross-entropy of them, which "
            "applies "
            "softmax again",
            evidence,
            why="Numbers between 0 and 1 differ by 1 at most: even a perfect answer keeps a high loss, "
            "and gradients "
            "vanish.",
            fix="Return what the last linear map gives. Cross-entropy applies softmax itself.",
            where="the end of forward",
        )
    if abs(found - twice) < 1e-4 * twice:
        return logits_are_not_probabilities.problem(
            f"the loss, {found:.3f}, is the cross-entropy of softmax(scores); that of the scores is "
            f"{once:.3f}",
            evidence,
            why="Probabilities differ by 1 at most: even a perfect answer keeps a high loss, and "
            "gradients vanish.",
            fix="Give the scores themselves to the cross-entropy.",
            component="loss",
            where="the loss function",
        )
    return logits_are_not_probabilities.ok(
        "scores are not squeezed, and softmax is applied once at most", evidence
    )


def _losses(subject: Subject, seed: int) -> tuple[dict[str, float], str]:
    """Return the loss of a batch and what cross-entropy makes of its scores, and how those look."""
    assert subject.loss is not None
    look = Probe(subject, subject.model(jitter=True, seed=seed))
    pairs = _scores_and_targets(look, subject.batches[0])
    if pairs is None:
        raise NotApplicable("the batches have no answers that a cross-entropy could be computed from")
    scores, targets = pairs
    with torch.no_grad(), seeded(0):
        found = float(subject.loss(look.model, subject.batches[0]))
    once = float(functional.cross_entropy(scores, targets))
    twice = float(functional.cross_entropy(scores.softmax(dim=-1), targets))
    return {"loss": found, "softmax once": once, "softmax twice": twice}, _squeezed(scores)


def _squeezed(scores: Tensor) -> str:
    """Say what scores are that all lie between 0 and 1: of jittered weights that is no chance."""
    if scores.numel() < 16 or scores.min() < 0 or scores.max() > 1:
        return ""
    sums = scores.sum(dim=-1)
    return (
        "probabilities" if torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else "numbers from 0 to 1"
    )


def _scores_and_targets(look: Probe, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Return the scores that are judged, (n, classes), and the answers, (n,)."""
    ids, mask, labels = batch.get("input_ids"), batch.get("attention_mask"), batch.get("labels")
    if ids is None:
        return None
    scores = look(ids, mask if look.takes_mask() else None)
    if look.subject.causal:
        real = torch.ones_like(ids) if mask is None else mask
        targets = ids[:, 1:].masked_fill((real[:, 1:] * real[:, :-1]) == 0, _IGNORED)
        scores = scores[:, :-1]
    elif isinstance(labels, Tensor) and labels.shape == scores.shape[:-1]:
        targets = labels
    else:
        return None
    scores, targets = scores.flatten(0, -2), targets.flatten()
    keep = targets != _IGNORED
    if not keep.any() or scores.size(-1) < 2 or not scores.isfinite().all():
        return None
    return scores[keep], targets[keep]
