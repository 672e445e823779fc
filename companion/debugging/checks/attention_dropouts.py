"""Dropout of attention: it acts in training, and on weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from companion.debugging.anatomy import AttentionPart, attention_parts, config_value, observe, padded_ids
from companion.debugging.checks.attention import SAME
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.oracle import weights_behind
from companion.debugging.subject import Subject, seeded

__all__ = ["attention_dropout", "dropout_comes_after_softmax"]

_DROPOUTS = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout", "attn_dropout")


@check(family="model", component="dropout", needs=("make_model",), likelihood=0.8)
def attention_dropout(subject: Subject) -> Finding:
    """Does attention drop weights in training, if it is set to?"""
    model = subject.model(jitter=True).train()
    ids, mask = padded_ids(subject, 3, 12)
    with seeded(0):
        calls = observe(model, lambda it: subject.scores(it, ids, mask))
    parts, called = attention_parts(model, calls), {id(call.module) for call in calls}
    if not parts:
        raise NotApplicable("no self-attention was found")
    named = config_value(model, _DROPOUTS)
    asked: dict[str, float] = {}
    for part in parts:
        # One that is called may well belong behind the output projection. One that is not was forgotten.
        inner = [m.p for m in part.module.modules() if isinstance(m, nn.Dropout) and id(m) not in called]
        rates = [*inner, *([float(named)] if isinstance(named, int | float) else [])]
        asked[part.name] = max(rates, default=0.0)
    drops = {part.name: _drops(subject, part) for part in parts}
    known = {name: drop for name, drop in drops.items() if drop is not None}
    wanted = [name for name in known if asked[name] > 0 or any(known.values())]
    if not wanted:
        raise NotApplicable("no attention module, and no config, names a dropout for attention")
    missing = [name for name in wanted if not known[name]]
    evidence: dict[str, float] = {
        "modules": len(known),
        "without dropout": len(missing),
        "rate": max(asked.values()),
    }
    if not missing:
        return attention_dropout.ok(f"all {len(known)} attention modules drop in training", evidence)
    return attention_dropout.problem(
        f"{len(missing)} of {len(known)} attention modules give the same twice in training, at a dropout of "
        f"{max(asked.values()):g}",
        evidence,
        where=", ".join(missing),
        why="A token can lean on one other token alone: the model overfits sooner than its settings say.",
        fix="Apply the dropout to the attention weights, between the softmax and the values.",
    )


def _drops(subject: Subject, part: AttentionPart) -> bool | None:
    """Whether attention's output changes between two passes that differ in nothing outside it."""
    model = subject.model(jitter=True)
    dict(model.named_modules())[part.name].train()
    ids, mask = padded_ids(subject, 3, 12)
    seen: list[AttentionPart] = []
    for seed in (0, 1):
        with seeded(seed):
            calls = observe(model, lambda it: subject.scores(it, ids, mask))
        seen += [found for found in attention_parts(model, calls) if found.name == part.name]
    if len(seen) != 2 or not torch.equal(seen[0].query, seen[1].query):
        return None  # something else is random
    return not torch.equal(seen[0].merged, seen[1].merged)


@check(family="model", component="dropout", needs=("make_model",), likelihood=0.5)
def dropout_comes_after_softmax(subject: Subject) -> Finding:
    """Does the dropout of attention act on weights, and not on scores?"""
    sums: dict[str, float] = {}
    for part, trained in _dropping(subject):
        of_head = part.merged.size(-1) // part.heads[0]
        weights, unexplained = weights_behind(trained.merged, trained.value, part.heads[0], of_head)
        if unexplained < 1e-3:
            sums[part.name] = float((weights.detach().sum(dim=-1) - 1).abs().max())
    if not sums:
        raise NotApplicable("no attention was seen to drop weights")
    wrong = [name for name, off in sums.items() if off < SAME]
    evidence = {"modules": float(len(sums)), "largest sum of a row minus 1": max(sums.values())}
    if not wrong:
        return dropout_comes_after_softmax.ok("dropped weights leave rows that do not sum to 1", evidence)
    return dropout_comes_after_softmax.problem(
        f"in {len(wrong)} of {len(sums)} attention modules the weights change in training, and each row "
        "still sums to 1: what is dropped are scores",
        evidence,
        where=", ".join(wrong),
        why="A score of 0 is no weight of 0: a token whose score was dropped may be looked at all the more.",
        fix="Apply the dropout to what softmax returns.",
    )


def _dropping(subject: Subject) -> Iterator[tuple[AttentionPart, AttentionPart]]:
    """Yield each attention whose output changes in training, as seen without and with dropout."""
    model = subject.model(jitter=True)
    ids = subject.ids(3, 4)  # fewer tokens than a head is wide: only then its weights can be told
    calls = observe(model, lambda it: subject.scores(it, ids, None))
    for part in attention_parts(model, calls):
        if len(part.heads) != 1 or part.merged.size(-1) // part.heads[0] < ids.size(1) or part.project:
            continue
        part.module.train()
        with seeded(0):
            seen = attention_parts(model, observe(model, lambda it: subject.scores(it, ids, None)))
        part.module.eval()
        for trained in seen:
            same_input = trained.name == part.name and torch.equal(trained.query, part.query)
            if same_input and not torch.equal(trained.merged, part.merged):
                yield part, trained
