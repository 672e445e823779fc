"""A text's scores are its own: the others in its batch change nothing."""

from __future__ import annotations

import torch

from companion.debugging.checks.probing import MOVED, first_to_move, probe
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = ["batch_independence", "batch_order"]


@check(family="model", component="normalisation", needs=("make_model",), likelihood=0.9)
def batch_independence(subject: Subject) -> Finding:
    """Does a text get the same scores alone and among others?"""
    look = probe(subject)
    ids = look.ids(3)
    together = look(ids)
    alone = torch.cat([look(row[None]) for row in ids])
    if together.shape != alone.shape:
        raise NotApplicable(
            f"scores have the shape {tuple(together.shape)} in a batch: see the check of shapes"
        )
    moved = look.moved(together, alone)
    if moved < MOVED:
        return batch_independence.ok(
            f"the others in a batch move nothing ({moved:.1e} spreads)", {"moved": moved}
        )
    row = int((together - alone).flatten(1).abs().amax(dim=1).argmax())
    culprit = first_to_move(
        look.model,
        lambda: look(ids[row : row + 1]),
        lambda: look(ids),
        lambda x: x,
        lambda x: x[row : row + 1],
    )
    return batch_independence.problem(
        f"a text's scores move by {moved:.2g} spreads when two others are in its batch; expected 0",
        {"moved": moved},
        why="An answer depends on who else asked at that moment, and the dev score on the batch size.",
        fix="Nothing may average, sort or reshape across the batch: norms work on the last axis, heads "
        "are split with "
        "the batch axis left alone.",
        where=culprit.where,
        component=culprit.component,
    )


@check(family="model", component="attention", needs=("make_model",), likelihood=0.7)
def batch_order(subject: Subject) -> Finding:
    """Do texts keep their scores when the batch is in another order?"""
    look = probe(subject)
    ids, order = look.ids(3), torch.tensor([2, 0, 1])
    before, after = look(ids), look(ids[order])
    if look.moved(before[[0]], before[[1]]) < MOVED:
        raise NotApplicable("all texts get the same scores")
    moved = look.moved(before[order], after)
    if moved < MOVED:
        return batch_order.ok(f"each text keeps its scores ({moved:.1e} spreads)", {"moved": moved})
    return batch_order.problem(
        f"in another order of the batch, scores move by {moved:.2g} spreads; expected 0",
        {"moved": moved},
        why="Rows are mixed or exchanged: an answer belongs to another text.",
        fix="Look for view and reshape across the batch axis, and for sequence-first attention in a "
        "batch-first model.",
    )
