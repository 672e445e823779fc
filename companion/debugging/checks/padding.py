"""Padding: neither what is in it, nor how much of it there is, nor on which side, may move a real score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from companion.debugging.checks.padded import (
    FIX,
    REAL,
    WHY,
    PaddedText,
    deaf,
    masked_probe,
    must_hear,
    padded_left,
    padded_row,
    reads,
)
from companion.debugging.checks.probing import MOVED, Culprit, Probe, first_to_move, probe
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = [
    "a_row_of_padding_is_harmless",
    "left_padding",
    "padding_amount",
    "padding_content",
]


@check(family="model", component="attention", needs=("make_model",), likelihood=0.9)
def padding_content(subject: Subject) -> Finding:
    """Does it matter which tokens are under the mask?"""
    look = masked_probe(subject)
    row = padded_row(look, left=subject.causal)
    before = reads(look, row)
    changed = row.over_words(look)
    moved = look.moved(before, reads(look, changed))
    if moved == float("inf"):
        raise NotApplicable("the scores of a padded text are not finite: see the check of that")
    unmasked = look.moved(reads(look, row, mask=False), reads(look, changed, mask=False))
    if max(moved, unmasked) < MOVED:
        raise NotApplicable("not even without a mask does the padding move a score")
    evidence = {"moved": moved, "moved without a mask": unmasked}
    if moved < MOVED:
        return padding_content.ok(f"other tokens under the mask move nothing ({moved:.1e} spreads)", evidence)
    if deaf(look) and not must_hear(subject):
        raise NotApplicable(
            "the mask changes nothing, and padding on the right is not seen by a causal model anyway"
        )
    if not _padding_leaks(look, row):
        return padding_content.ok(
            "the model knows padding by its token id: other ids are no padding to it", evidence
        )
    _must_be_right(look)
    culprit = _moved_first(look, row, changed)
    return padding_content.problem(
        f"other tokens under the mask move the scores of real ones by {moved:.2g} spreads, expected 0; "
        "without a mask "
        f"it is {unmasked:.2g}",
        evidence,
        why=WHY,
        fix=FIX,
        where=culprit.where,
        component=culprit.component,
    )


def _padding_leaks(look: Probe, row: PaddedText) -> bool:
    """Whether the vectors of padding reach real tokens, with the padding's own id kept.

    Some models find what is padding by its id, as well as or instead of by the mask: for those, other ids
    under the mask are other texts.
    """
    tables = [m for m in look.model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings > 2]
    before = reads(look, row)

    def shift(_: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not args or args[0].shape != row.mask.shape or not torch.equal(args[0].cpu(), row.ids):
            return None
        noise = torch.linspace(-1, 1, output.size(-1), device=output.device) * (row.mask == 0)[..., None].to(
            output
        )
        hit.append(True)
        return output + float(output.std()) * noise

    hit: list[bool] = []
    hooks = [table.register_forward_hook(shift) for table in tables]
    try:
        after = reads(look, row)
    finally:
        for hook in hooks:
            hook.remove()
    return not hit or look.moved(before, after) >= MOVED


def _must_be_right(look: Probe) -> None:
    """Raise NotApplicable for a model that is right with padding on the left, where no batch is given."""
    if look.subject.batches or look.subject.causal or not look.takes_mask():
        return
    row = padded_row(look, left=True)
    try:
        moved = look.moved(reads(look, row.alone()), reads(look, row))
    except NotApplicable:
        return
    if moved < MOVED:
        raise NotApplicable("the model is made for padding on the left, and no batch has it elsewhere")


def _moved_first(look: Probe, one: PaddedText, other: PaddedText) -> Culprit:
    found = first_to_move(
        look.model,
        lambda: look(one.ids, one.mask, places=one.places),
        lambda: look(other.ids, other.mask, places=other.places),
        one.real_part,
        other.real_part,
    )
    if not found.where and not look.subject.by_token:
        return Culprit("how one vector of a text is made of those of its tokens", "embeddings and head")
    return found


def _padded(subject: Subject) -> bool:
    return any(
        bool((batch["attention_mask"] == 0).any()) for batch in subject.batches if "attention_mask" in batch
    )


@check(family="model", component="attention", needs=("make_model",), likelihood=0.8)
def padding_amount(subject: Subject) -> Finding:
    """Does a text get the same scores alone and padded to more?"""
    if subject.causal:
        raise NotApplicable(
            "padding on the right comes after all real tokens, which a causal model does not see"
        )
    look = probe(subject)
    takes = look.takes_mask()
    if not takes and not _padded(subject):
        raise NotApplicable("the model takes no mask, and no batch is padded")
    row = padded_row(look, left=False)
    alone = reads(look, row.alone())
    unmasked = look.moved(alone, reads(look, row, mask=False))
    moved = look.moved(alone, reads(look, row)) if takes else unmasked
    evidence = {"moved": moved, "moved without a mask": unmasked}
    if moved == float("inf"):
        raise NotApplicable("the scores of a padded text are not finite: see the check of that")
    if max(moved, unmasked) < MOVED:
        raise NotApplicable("not even without a mask does padding move a score")
    if moved < MOVED:
        return padding_amount.ok(f"padding moves no real score ({moved:.1e} spreads)", evidence)
    _must_be_right(look)
    culprit = _moved_first(look, row.alone(), row) if takes else Culprit()
    how = "masked" if takes else "with no mask to tell it from words"
    return padding_amount.problem(
        f"{row.ids.size(1) - REAL} padding tokens, {how}, move the scores of a text of {REAL} by "
        f"{moved:.2g} spreads; "
        "expected 0",
        evidence,
        why=WHY,
        fix=FIX,
        where=culprit.where or ("" if takes else "forward, which has no parameter for a mask"),
        component=culprit.component,
    )


@check(family="model", component="positions", needs=("make_model",), likelihood=0.8)
def left_padding(subject: Subject) -> Finding:
    """Does a text padded on the left get the scores that it gets alone?"""
    wanted = padded_left(subject)
    if not subject.causal and not wanted:
        raise NotApplicable("no batch is padded on the left")
    look = masked_probe(subject)
    row = padded_row(look, left=True)
    alone, padded = reads(look, row.alone()), reads(look, row)
    unmasked = look.moved(alone, reads(look, row, mask=False))
    moved = look.moved(alone, padded)
    told = ", with position_ids counted from the first real token" if row.places is not None else ""
    evidence = {"moved": moved, "moved without a mask": unmasked}
    if moved == float("inf"):
        if not wanted and any(isinstance(part, nn.MultiheadAttention) for part in look.model.modules()):
            raise NotApplicable(
                "torch's own attention gives NaN to padding on the left, but no batch is padded so"
            )
        return _not_finite_left(evidence)
    if max(moved, unmasked) < MOVED:
        raise NotApplicable("not even without a mask does padding on the left move a score")
    if moved < MOVED:
        return left_padding.ok(f"padding on the left moves nothing ({moved:.1e} spreads){told}", evidence)
    if not wanted:
        raise NotApplicable(
            f"padding on the left would move scores by {moved:.2g} spreads, but no batch is padded so: "
            "keep padding on "
            "the right, also in generation, or count positions from the first real token"
        )
    culprit = _moved_first(look, row.alone(), row)
    return left_padding.problem(
        f"{row.ids.size(1) - REAL} masked tokens on the left move the scores of a text by {moved:.2g} "
        f"spreads{told}; "
        "expected 0",
        evidence,
        why="Shorter texts of a batch are read from the wrong places on: they do worse than the longest one.",
        fix="Count positions from the first real token, (attention_mask.cumsum(1) - 1).clamp(min=0), and "
        "mask padding.",
        where=culprit.where,
        component=culprit.component if culprit.component in ("attention", "normalisation") else None,
    )


def _not_finite_left(evidence: dict[str, float]) -> Finding:
    return left_padding.problem(
        "a text padded on the left gets NaN: padding sees nothing, and its NaN reaches real tokens in "
        "the next layer",
        evidence,
        why="Decoders generate from batches padded on the left: all but the longest text would give nothing.",
        fix="Fill masked scores with torch.finfo(dtype).min instead of minus infinity, or let each token "
        "see itself.",
        component="attention",
    )


@check(family="model", component="attention", needs=("make_model",), likelihood=0.6)
def a_row_of_padding_is_harmless(subject: Subject) -> Finding:
    """Does a text without a single token leave the others alone, and stay finite?"""
    look = masked_probe(subject)
    ids = look.ids(3)
    mask = torch.ones_like(ids)
    before = look(ids, mask)
    mask[1] = 0
    after = look(ids, mask)
    others = look.moved(before[[0, 2]], after[[0, 2]])
    finite = bool(after[1].isfinite().all())
    evidence = {"moved others": others, "finite": float(finite)}
    if others >= MOVED:
        return a_row_of_padding_is_harmless.problem(
            f"a row of padding alone moves the scores of the other texts by {others:.2g} spreads; expected 0",
            evidence,
            why="One empty text spoils a whole batch.",
            fix="Nothing may average across the batch, and masked scores are filled with "
            "torch.finfo(dtype).min.",
        )
    if finite:
        return a_row_of_padding_is_harmless.ok(
            "a row of padding alone stays finite and moves no other", evidence
        )
    if not _empty_rows(subject):
        raise NotApplicable("a row of padding alone gives NaN, but no batch has one, and no text becomes one")
    return a_row_of_padding_is_harmless.problem(
        "a text without a token gets NaN, and there are such texts",
        evidence,
        why="One empty text makes the loss NaN, and the next step all weights.",
        fix="Fill masked scores with torch.finfo(dtype).min instead of minus infinity, or leave empty "
        "texts out.",
    )


def _empty_rows(subject: Subject) -> bool:
    masks = [batch["attention_mask"] for batch in subject.batches if "attention_mask" in batch]
    if any(bool((mask.sum(dim=1) == 0).any()) for mask in masks):
        return True
    return subject.encode is not None and len(subject.encode("")) == 0
