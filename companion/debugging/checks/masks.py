"""The padding mask itself: which way round it is, and whether anyone listens to it."""

from __future__ import annotations

import inspect
from dataclasses import replace

import torch
from torch import Tensor

from companion.debugging.calling import default_scores, mask_name
from companion.debugging.checks.padded import (
    FIX,
    REAL,
    WHY,
    PaddedText,
    deaf,
    masked_probe,
    must_hear,
    padded_row,
    reads,
)
from companion.debugging.checks.probing import MOVED, STILL, Probe, other_token
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = ["mask_is_used", "mask_of_ones_is_no_mask", "mask_polarity"]


@check(family="model", component="attention", needs=("make_model",), likelihood=0.9)
def mask_polarity(subject: Subject) -> Finding:
    """Does a 1 in the mask mean that a token is seen?"""
    look = masked_probe(subject)
    row = padded_row(look, left=True).over_words(look)
    before = _ends(look, row.ids, row)
    visible = other_token(subject, row.ids, row.ids.size(1) - REAL + 1)
    hidden = other_token(subject, row.ids, slice(0, row.ids.size(1) - REAL))
    seen, leaked = (look.moved(before, _ends(look, ids, row)) for ids in (visible, hidden))
    evidence = {"moved by a token with 1": seen, "moved by tokens with 0": leaked}
    if not max(seen, leaked) < float("inf"):
        raise NotApplicable("the scores of a masked text are not finite: see the check of that")
    if max(seen, leaked) < MOVED:
        raise NotApplicable("neither tokens with 1 nor those with 0 move a later score")
    if seen >= STILL or leaked < MOVED:
        return mask_polarity.ok(f"a token with 1 in the mask moves others by {seen:.2g} spreads", evidence)
    return mask_polarity.problem(
        f"tokens with 0 in the mask move others by {leaked:.2g} spreads, one with 1 by {seen:.1e}: the "
        "mask is inverted",
        evidence,
        why="The model reads padding, and hides the text.",
        fix="Here 1 means real. torch's key_padding_mask and masked_fill want True for what is hidden: pass "
        "attention_mask == 0.",
        where="where the mask is given to attention",
    )


def _ends(look: Probe, ids: Tensor, row: PaddedText) -> Tensor:
    scores = look(ids, row.mask, places=row.places)
    return scores[:, -1] if look.subject.by_token else scores


@check(family="model", component="attention", needs=("make_model",), likelihood=0.8)
def mask_of_ones_is_no_mask(subject: Subject) -> Finding:
    """Are all tokens seen when the mask says so?"""
    look = masked_probe(subject)
    name = mask_name(look.model)
    parameters = inspect.signature(look.model.forward).parameters
    if name is not None and parameters[name].default is inspect.Parameter.empty:
        raise NotApplicable("the model cannot be called without a mask")
    ids = look.ids(2)
    moved = look.moved(look(ids), look(ids, torch.ones_like(ids)))
    if moved < MOVED:
        return mask_of_ones_is_no_mask.ok(
            f"a mask of ones moves nothing ({moved:.1e} spreads)", {"moved": moved}
        )
    return mask_of_ones_is_no_mask.problem(
        f"a mask of ones moves the scores by {moved:.2g} spreads against no mask; expected 0",
        {"moved": moved},
        why="The mask hides or weighs what it should leave alone, or no mask hides something.",
        fix="Let 1 mean seen, and let a missing mask mean that all is seen.",
    )


@check(family="model", component="attention", needs=("make_model",), likelihood=0.9)
def mask_is_used(subject: Subject) -> Finding:
    """Does hiding tokens by the mask change what the others say?"""
    look = masked_probe(subject)
    if subject.scores is not default_scores and mask_name(look.model) is None:
        raise NotApplicable("the model is called by a function of its own")
    if not deaf(look):
        return mask_is_used.ok("hiding tokens moves the scores of others")
    row = padded_row(look, left=subject.causal).over_words(look)
    hidden = replace(row, ids=other_token(subject, row.ids, row.under))
    if look.moved(reads(look, row), reads(look, hidden)) < MOVED:
        raise NotApplicable("the hidden tokens do not move others even when they are seen")
    if not must_hear(subject) or not _reaches(look, row):
        raise NotApplicable("the mask changes nothing, and nothing here depends on it")
    return mask_is_used.problem(
        "hiding tokens by the mask moves no score: it is ignored",
        {"moved": 0.0},
        why=WHY,
        fix=FIX,
        where="from forward's mask down to attention",
    )


def _reaches(look: Probe, row: PaddedText) -> bool:
    """Whether the function that calls the model gives it the mask at all."""
    found: list[bool] = []

    def spy(_: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given = [
            part
            for part in (*args, *kwargs.values())
            if isinstance(part, Tensor) and part.dtype != torch.int64
        ]
        exact = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)]
        found.append(bool(given) or any(torch.equal(part.cpu().bool(), row.mask.bool()) for part in exact))

    hook = look.model.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        look(row.ids, row.mask)
    finally:
        hook.remove()
    return any(found)
