"""Checks of batches: tokens, mask and labels of the same text in the same row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from companion.data import Batch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__: list[str] = []

_LENGTHS = (5, 3, 7, 4)

Row = tuple[list[int], Any]


def rows_of(subject: Subject, shift: int = 0) -> list[Row]:
    """Return rows of different lengths, no token twice in one row and no row like another, and labels."""
    words = [token for token in range(subject.vocab_size) if token != subject.pad_token_id]
    lengths = [min(length, subject.max_length) for length in _LENGTHS]
    if sum(lengths) > len(words) or len(set(lengths)) < 2:
        raise NotApplicable("there are too few words, or places, for four rows that differ")
    rows, start = [], len(words) - sum(lengths)
    for number, length in enumerate(lengths):
        label: Any = (number + shift) % max(subject.classes, 2)
        rows.append((words[start : start + length], float(label) if subject.kind == "regression" else label))
        start += length
    return rows


def collated(subject: Subject, rows: list[Row]) -> Batch:
    """Return a subject's batch of rows."""
    assert subject.collate is not None
    batch = subject.collate(rows)
    if not isinstance(batch, dict | object) or "input_ids" not in batch:
        raise NotApplicable("its batches have no input_ids")
    return batch


def places(row: list[int], ids: Tensor) -> int | None:
    """Return where a row's tokens start in (seq,); None if they are not there in one piece."""
    wanted = torch.tensor(row)
    windows = ids.unfold(0, len(row), 1) if len(ids) >= len(row) else ids.new_empty(0, len(row))
    found = (windows == wanted).all(dim=1).nonzero()
    return int(found[0]) if len(found) else None


@check(family="training", component="batching", needs=("make_model", "collate"), likelihood=0.9)
def rows_keep_their_tokens(subject: Subject) -> Finding:
    """Does a batch have all tokens of every row, and each row its own label?"""
    rows = rows_of(subject)
    batch = collated(subject, rows)
    ids = batch["input_ids"]
    order = [
        next((at for at in range(len(ids)) if places(row, ids[at]) is not None), None) for row, _ in rows
    ]
    evidence = {"rows": float(len(rows)), "found": float(sum(at is not None for at in order))}
    if None in order:
        return rows_keep_their_tokens.problem(
            f"{order.count(None)} of {len(rows)} rows are not in their batch as they were given",
            evidence,
            why="The model reads other texts than those that the labels are for.",
            fix="Pad to the longest row: cut nothing, and change no token.",
            where="collate",
        )
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.numel() != len(rows) or subject.by_token:
        return rows_keep_their_tokens.ok("all rows are in their batch as they were given", evidence)
    given = torch.tensor([float(label) for _, label in rows])
    wrong = int((labels.view(-1).float()[torch.tensor(order)] != given).sum())
    if wrong:
        return rows_keep_their_tokens.problem(
            f"{wrong} of {len(rows)} labels are not at the row that they were given with",
            {**evidence, "labels elsewhere": float(wrong)},
            why="Labels next to the wrong texts are noise at best.",
            fix="Sort or shuffle rows with their labels, never one without the other.",
            where="collate",
        )
    return rows_keep_their_tokens.ok("all rows are in their batch, each with its label", evidence)


@check(family="training", component="batching", needs=("make_model", "collate"), likelihood=0.9)
def mask_marks_the_padding(subject: Subject) -> Finding:
    """Is the mask 1 for all of a row's tokens and 0 for all of its padding?"""
    rows = rows_of(subject)
    batch = collated(subject, rows)
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise NotApplicable("its batches have no mask (batch, seq)")
    given = torch.zeros_like(ids, dtype=torch.bool)
    padding = torch.ones_like(given)
    for at in range(len(ids)):
        found = [(place, row) for row, _ in rows if (place := places(row, ids[at])) is not None]
        if not found:
            raise NotApplicable("the rows are not in their batch as they were given")
        place, row = found[0]
        given[at, place : place + len(row)] = True
    # What else collate adds (a start, an end) is no padding: only the padding token is.
    padding = ~given & (ids == subject.pad_token_id)
    hidden, shown = int((given & (mask == 0)).sum()), int((padding & (mask != 0)).sum())
    evidence = {
        "real tokens hidden": float(hidden),
        "padding shown": float(shown),
        "padding": float(padding.sum()),
    }
    if hidden or shown > len(rows):
        said = (
            "it is the wrong way round"
            if hidden and shown
            else "some are hidden"
            if hidden
            else "padding is shown"
        )
        return mask_marks_the_padding.problem(
            f"the mask hides {hidden} of {int(given.sum())} real tokens and shows {shown} of "
            f"{int(padding.sum())} "
            f"pads: {said}",
            evidence,
            why="The model reads padding, or does not read the text; how much depends on the "
            "batch's longest row.",
            fix="Make the mask along with the padding: 1 for each token of the row, 0 for each pad.",
            where="collate",
        )
    odd = ~given & (mask == 0) & (ids != subject.pad_token_id)
    if odd.any():
        return mask_marks_the_padding.problem(
            f"{int(odd.sum())} places are padded with token {int(ids[odd][0])}; the padding token is "
            f"{subject.pad_token_id}",
            {**evidence, "padded with another token": float(odd.sum())},
            why="Whatever looks for the padding token does not find it.",
            fix="Pad with the tokenizer's pad_token_id.",
            where="collate",
            likelihood=0.4,
        )
    return _one_side(given | (mask != 0), evidence)


def _one_side(real: Tensor, evidence: dict[str, float]) -> Finding:
    """Check that all padding is on one side."""
    left, right = ~real[:, 0], ~real[:, -1]
    if bool(left.any()) and bool(right.any()):
        return mask_marks_the_padding.problem(
            f"{int(left.sum())} rows are padded on the left and {int(right.sum())} on the right",
            evidence,
            why="Places, and the token that a text is judged by, differ from row to row.",
            fix="Pad all rows on one side.",
            where="collate",
            likelihood=0.5,
        )
    return mask_marks_the_padding.ok("the mask is 1 for all tokens and 0 for all padding", evidence)


@check(family="training", component="labels", needs=("make_model", "collate"), likelihood=0.9)
def labels_stay_out_of_the_input(subject: Subject) -> Finding:
    """Is the input the same whatever the labels are?"""
    one, other = collated(subject, rows_of(subject)), collated(subject, rows_of(subject, shift=1))
    if "labels" not in one or subject.by_token:
        raise NotApplicable("the batches have no label for each text")
    changed = [
        name
        for name, value in one.items()
        if name not in ("labels", "label")
        and isinstance(value, Tensor)
        and (value.shape != other[name].shape or not torch.equal(value, other[name]))
        and not torch.equal(value, one["labels"])
    ]
    if changed:
        return labels_stay_out_of_the_input.problem(
            f"with other labels {', '.join(changed)} is another one: the answer is part of the question",
            {"inputs that change": float(len(changed))},
            why="The model looks perfect until it has to answer alone.",
            fix="Make everything but `labels` of the text alone.",
            where="collate",
        )
    return labels_stay_out_of_the_input.ok("other labels leave the input as it is", {})
