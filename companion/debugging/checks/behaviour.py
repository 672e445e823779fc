"""Who sees whom, and in which order."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from companion.debugging.checks.places import claims_positions
from companion.debugging.checks.probing import (
    LENGTH,
    MOVED,
    STILL,
    Culprit,
    Probe,
    difference,
    first_to_move,
    other_token,
    probe,
    trace,
)
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = [
    "both_sides_are_seen",
    "causality",
    "order_matters",
    "prefixes_give_the_same_scores",
    "the_past_is_seen",
]

_ENDS = (1, 2, 3, 5, 8, LENGTH - 1)


def influence(look: Probe, *, together: bool = True) -> Tensor:
    """Return (seq, seq): how much a change of the token of a row moves the scores at the token of a column.

    In spreads; of a model with one row of scores for a text there is one column. All changed texts are one
    batch, which is quick; a model that mixes the texts of a batch needs ``together=False`` to be understood.
    """
    ids = look.ids()
    seq = ids.size(1)
    texts = [ids, *(other_token(look.subject, ids, place) for place in range(seq))]
    scores = look(torch.cat(texts)) if together else torch.cat([look(text) for text in texts])
    change = (scores[1:] - scores[:1]).abs() / look.spread
    return change.amax(dim=-1) if look.subject.by_token else change.amax(dim=-1, keepdim=True)


def _needs_tokens(subject: Subject) -> None:
    if not subject.by_token:
        raise NotApplicable("there are no scores for each token")


def _needs_causal(subject: Subject) -> None:
    if not subject.causal:
        raise NotApplicable("only a causal language model must not see what comes later")
    _needs_tokens(subject)


@check(family="model", component="attention", needs=("make_model",), likelihood=0.9)
def causality(subject: Subject) -> Finding:
    """Does any token see what comes after it?"""
    _needs_causal(subject)
    look = probe(subject)
    seen = influence(look)
    if seen.tril(-1).max() >= MOVED:
        seen = influence(look, together=False)
    past, future = seen.triu(), seen.tril(-1)
    if past.max() < MOVED:
        raise NotApplicable("changing a token moves no score at all, neither before nor after it")
    changed, moved = divmod(int(future.argmax()), seen.size(1))
    worst = float(future.max())
    evidence = {"moved before": worst, "moved at or after": float(past.max())}
    if worst < MOVED:
        return causality.ok(
            f"changing a token moves no score before it (at most {worst:.1e} spreads)", evidence
        )
    leaks = (future > MOVED).nonzero()
    reach = int((leaks[:, 0] - leaks[:, 1]).max())
    culprit = _leak(look, changed)
    return causality.problem(
        f"changing token {changed} moves the scores at token {moved} by {worst:.2g} spreads, expected 0; "
        f"tokens see up to {reach} of what comes later",
        {**evidence, "tokens ahead": float(reach)},
        why="The model reads the answer instead of predicting it: the loss looks good, and generation, where "
        "there is no future to read, is poor.",
        fix="Let token i attend to tokens 0 to i alone: fill the scores above the diagonal with the lowest "
        "number before a softmax over keys. Let norms work on one token at a time.",
        where=culprit.where,
        component=culprit.component,
    )


def _leak(look: Probe, changed: int) -> Culprit:
    ids = look.ids()
    other = other_token(look.subject, ids, changed)
    return first_to_move(
        look.model, lambda: look(ids), lambda: look(other), lambda x: _tokens(x)[:, :changed]
    )


def _tokens(x: Tensor) -> Tensor:
    """Return an output whose second axis is tokens as it is; raise IndexError for others."""
    if x.size(1) != LENGTH:
        raise IndexError
    return x


@check(family="model", component="attention", needs=("make_model",), likelihood=0.8)
def the_past_is_seen(subject: Subject) -> Finding:
    """Does each token of a decoder see itself and what came before it?"""
    _needs_causal(subject)
    seen = influence(probe(subject))
    itself = seen.diagonal()
    before = torch.stack([seen[:place, place].max() for place in range(1, len(seen))])
    evidence = {"least by itself": float(itself.min()), "least by the past": float(before.min())}
    if before.min() < STILL:
        place = int(before.argmin()) + 1
        return the_past_is_seen.problem(
            f"changing any of the {place} tokens before token {place} moves its scores by at most "
            f"{float(before.min()):.1e} spreads: it does not see them",
            evidence,
            why="A language model that does not see the past can learn no more than how common pairs of "
            "words are.",
            fix="Look at the causal mask (it must keep the lower triangle) and at whether attention's output "
            "is added to the residual sum.",
        )
    if itself.max() < STILL:
        return the_past_is_seen.ok(
            "each token's scores come from those before it alone: inputs are shifted", evidence
        )
    if itself.min() < STILL:
        place = int(itself.argmin())
        return the_past_is_seen.problem(
            f"changing token {place} moves its own scores by {float(itself.min()):.1e} spreads, and "
            "those of others "
            f"by up to {float(itself.max()):.2g}",
            evidence,
            why="The next word depends on the present one most of all.",
            fix="Let the causal mask keep its diagonal, and add each part's input to its output.",
        )
    return the_past_is_seen.ok("each token sees itself and the past", evidence)


@check(family="model", component="attention", needs=("make_model",), likelihood=0.8)
def both_sides_are_seen(subject: Subject) -> Finding:
    """Does an encoder see what comes before and after, and a classifier more than one token?"""
    if subject.causal:
        raise NotApplicable("a causal language model sees one side alone")
    seen = influence(probe(subject))
    if not subject.by_token:
        return _whole_text(seen[:, 0])
    later = torch.stack([seen[place + 1 :, place].max() for place in range(len(seen) - 1)])
    earlier = torch.stack([seen[:place, place].max() for place in range(1, len(seen))])
    evidence = {"least by later tokens": float(later.min()), "least by earlier tokens": float(earlier.min())}
    if min(later.min(), earlier.min()) >= STILL:
        return both_sides_are_seen.ok("each token sees some on both sides", evidence)
    if subject.kind == "encoder" and earlier.min() >= STILL and later.max() < STILL:
        raise NotApplicable("each token sees the earlier ones alone: this is a decoder without its head")
    side = "after" if later.min() < STILL else "before"
    blind = int((later if side == "after" else earlier).lt(STILL).sum())
    return both_sides_are_seen.problem(
        f"{blind} of {len(later)} tokens do not see any token {side} them: changing those moves no score",
        {**evidence, "blind tokens": float(blind)},
        why="An encoder's answer for a word may use its whole sentence. This one cannot.",
        fix="Give an encoder no causal mask, and look at whether attention's output reaches the residual "
        "sum.",
    )


def _whole_text(moved: Tensor) -> Finding:
    seen = int(moved.ge(STILL).sum())
    evidence = {"tokens seen": float(seen), "tokens": float(len(moved))}
    if seen > 1:
        return both_sides_are_seen.ok(f"{seen} of {len(moved)} tokens move a text's scores", evidence)
    only = f"token {int(moved.argmax())} alone moves" if seen else "no token moves"
    return both_sides_are_seen.problem(
        f"{only} a text's scores, of {len(moved)} tokens",
        evidence,
        why="The classifier does not read the text.",
        fix="Read the scores from a token that sees all others: the first one of an encoder (which must "
        "have no "
        "causal mask), the last real one of a decoder, or a mean over real tokens.",
    )


@check(family="model", component="positions", needs=("make_model",), likelihood=0.8)
def order_matters(subject: Subject) -> Finding:
    """Does the order of words change anything?"""
    look = probe(subject)
    ids = look.ids()
    swapped, changed = ids.clone(), other_token(subject, ids, 3)
    swapped[:, [3, 6]] = ids[:, [6, 3]]
    if bool((ids[:, 3] == ids[:, 6]).any()):
        raise NotApplicable("the vocabulary is too small for two different words in a row")
    steps = [trace(look.model, partial(look, given)) for given in (ids, changed, swapped)]
    ends = [_last(look(given), subject.by_token) for given in (ids, changed, swapped)]
    if look.moved(ends[0], ends[1]) < MOVED:
        raise NotApplicable("another word in the middle moves nothing at the end")
    # What knows of earlier words must know their order. Later ones of a decoder can tell it from
    # how much each of them saw, positions or not, and an encoder's scores cannot tell it without positions.
    pairs = [
        (name, *map(_at_the_end, (a, b, c)))
        for (name, _, a), (_, _, b), (_, _, c) in zip(*steps, strict=False)
    ]
    told = [
        (name, difference(before, swap) / difference(before, change))
        for name, before, change, swap in pairs
        if before is not None and difference(before, change) > MOVED * max(float(before.std()), 1e-12)
    ]
    known = difference(ends[0], ends[2]) / difference(ends[0], ends[1])
    told.append(("the scores", known))
    name, ratio = min(told, key=lambda pair: pair[1])
    evidence = {"a swap against another word": ratio}
    if ratio < _LOST <= known and subject.causal and not claims_positions(look.model):
        # A mean over what came before knows no order; a mean over such means does.
        return order_matters.ok(
            f"without positions, a swap of two words moves the scores by {known:.2g} of what another moves",
            evidence,
        )
    if ratio >= _LOST:
        return order_matters.ok(
            f"a swap of two words moves at least {ratio:.2g} of what another word moves", evidence
        )
    return order_matters.problem(
        f"swapping words 3 and 6 moves the output of {name} at the last token by {ratio:.1e} of what "
        "another word "
        "moves: the order of words is lost there",
        evidence,
        why="A sum over words knows no order. Without positions 'dog bites man' is 'man bites dog'.",
        fix="Add a position's vector to each word's, or turn queries and keys by it, and give each token "
        "its own place.",
        where=name,
    )


_LOST = 1e-4
"""Of what another word moves: less than that is float32's noise."""


def _at_the_end(x: Tensor) -> Tensor | None:
    return x[0, -1] if x.size(0) == 1 and x.size(1) == LENGTH else None


def _last(scores: Tensor, by_token: bool) -> Tensor:
    return scores[0, -1] if by_token else scores[0]


@check(family="model", component="attention", needs=("make_model",), likelihood=0.8)
def prefixes_give_the_same_scores(subject: Subject) -> Finding:
    """Are the scores of a whole text those that generation, token by token, would give?"""
    _needs_causal(subject)
    look = probe(subject)
    longest = subject.max_length
    ids = subject.ids(1, longest)
    whole = look(ids[:, :LENGTH])
    moved = [look.moved(whole[:, end - 1], look(ids[:, :end])[:, -1]) for end in _ENDS]
    evidence = {"moved": max(moved)}
    if longest > LENGTH:
        evidence[f"moved in {longest} tokens"] = look.moved(look(ids)[:, :LENGTH], whole)
    worst = max(evidence.values())
    if worst < MOVED:
        return prefixes_give_the_same_scores.ok(
            f"a text's scores are those of its prefixes (at most {worst:.1e} spreads apart)", evidence
        )
    end = _ENDS[max(range(len(moved)), key=moved.__getitem__)]
    if max(moved) < MOVED:
        summary = (
            f"the scores of the first {LENGTH} tokens move by {worst:.2g} spreads when {longest} are given"
        )
        shorter, longer = ids[:, :LENGTH], ids
    else:
        summary = (
            f"the scores at token {end - 1} move by {worst:.2g} spreads when tokens come after it; expected 0"
        )
        shorter, longer = ids[:, :end], ids[:, :LENGTH]
    width = shorter.size(1)
    culprit = first_to_move(
        look.model,
        lambda: look(shorter),
        lambda: look(longer),
        lambda x: x if x.size(1) == width else x[:, :0],
        lambda x: x[:, :width],
    )
    return prefixes_give_the_same_scores.problem(
        summary,
        evidence,
        why="Training scores whole texts, generation scores prefixes. Where they differ, the loss is not "
        "that of the "
        "model that is used.",
        fix="A token's scores may depend on it and on those before it alone: neither on later ones, nor "
        "on how many "
        "there are. Look at the causal mask, at what norms average over, and at where positions are "
        "counted from.",
        where=culprit.where,
        component=culprit.component,
    )
