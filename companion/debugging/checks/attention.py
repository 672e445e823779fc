"""Attention: the same answer as torch's on the same weights, and a mean of values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion.debugging.anatomy import AttentionPart, attention_parts, config_value, observe, padded_ids
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.oracle import Variation, attend, right_ways, weights_behind, wrong_ways
from companion.debugging.subject import Subject
from companion.debugging.wrapped import matrix_of

__all__ = ["SAME", "attention_comparison", "attention_weights"]

SAME = 1e-4
"""Share of the output's spread up to which two ways to compute attention are one."""
UNEXPLAINED = 0.01
"""Share of attention's output that may be no mean of values."""
_OPEN_SCALES = (
    "attention_multiplier",
    "scale_attn_weights",
    "query_pre_attn_scalar",
    "relative_attention_num_buckets",
)


@dataclass(frozen=True)
class _Seen:
    """A jittered model's attention at work on ids whose second row ends in padding."""

    model: nn.Module
    ids: Tensor
    mask: Tensor | None
    parts: list[AttentionPart]

    @property
    def real(self) -> Tensor:
        """Bool (batch, seq): what is not padding."""
        return torch.ones_like(self.ids).bool() if self.mask is None else self.mask.bool()


def _look(subject: Subject, *, rows: int = 3, seq: int = 7) -> _Seen:
    model = subject.model(jitter=True)
    ids, mask = padded_ids(subject, rows, seq)
    calls = observe(model, lambda it: subject.scores(it, ids, mask))
    parts = attention_parts(model, calls)
    if not parts:
        raise NotApplicable("no self-attention was found: no three projections of one input that meet again")
    return _Seen(model, ids, mask, parts)


@check(family="model", component="attention", needs=("make_model",), likelihood=0.95)
def attention_comparison(subject: Subject) -> Finding:
    """Does attention give what torch's own gives with the same queries, keys and values?"""
    seen = _look(subject)
    across = _across_batch(seen)
    if across:
        return attention_comparison.problem(
            f"{across[0]} takes (seq, batch, width) and was given {tuple(seen.ids.shape)} as (batch, seq): "
            "texts attend to each other",
            {"rows": seen.ids.size(0), "tokens": seen.ids.size(1)},
            where=across[0],
            why="What a text says depends on its neighbours in the batch, and not on its own other words.",
            fix="Build nn.MultiheadAttention with batch_first=True.",
        )
    skipped = [part for part in seen.parts if part.unused]
    if skipped:
        return attention_comparison.problem(
            f"{skipped[0].unused[0]} is never called, though the other projections are",
            {"modules": len(skipped)},
            where=", ".join(name for part in skipped for name in part.unused),
            why="Another projection does its work: keys and values, for one, are then the same.",
            fix="Use each of the query, key and value projections once.",
        )
    placed = [part for part in map(lambda it: it.placed(seen.ids), seen.parts) if part is not None]
    same, unknown = 0, 0
    leaks: dict[str, bool] = {}
    faults: list[tuple[AttentionPart, Variation]] = []
    for part in placed:
        free = _scale_is_free(subject, part)
        if _match(seen, subject, part, right_ways(_base(part, seen.model), free)) is not None:
            same += 1
            continue
        others = list(wrong_ways(_base(part, seen.model)))
        way = (
            _match(seen, subject, part, others) if not faults else _match(seen, subject, part, [faults[0][1]])
        )
        if way is None or (free and way.scale != "head") or not _confirmed(subject, seen, way, leaks):
            unknown += way is None
            same += way is not None
        else:
            faults.append((part, way))
    if faults:
        way = faults[0][1]
        return attention_comparison.problem(
            f"in {len(faults)} of {len(placed)} attention modules {way.fault}: that reproduces the output "
            "exactly, and torch's own attention does not",
            {
                "modules": len(placed),
                "wrong": len(faults),
                "distance": _distance(seen, subject, faults[0][0]),
            },
            where=", ".join(part.name for part, _ in faults),
            why="Each token takes its information from the wrong places, and training adapts to it: the loss "
            "looks normal.",
            fix=way.fix,
        )
    if not same:
        raise NotApplicable(
            f"{unknown} attention modules change scores between projection and softmax in a way that is not "
            "known here"
        )
    return attention_comparison.ok(
        f"{same} of {len(placed)} attention modules give the output of torch's on the same weights",
        {"modules": len(placed), "same": same},
    )


@torch.no_grad()
def _match(seen: _Seen, subject: Subject, part: AttentionPart, ways: Iterable[Variation]) -> Variation | None:
    """Return the first way that gives the output seen, for one number of heads and one order of q, k, v."""
    masks = _possible_masks(subject)
    for way, heads in itertools.product(list(ways), part.heads):
        for order, causal in itertools.product(_orders(part, heads), masks):
            if _apart(seen, part, order, heads, causal, way) < SAME:
                return way
    return None


def _orders(part: AttentionPart, heads: int) -> list[tuple[Tensor, ...]]:
    """Return what may be queries, keys and values, where neither names nor the order of calls tell."""
    if part.named:
        return [*part.packed(heads)]
    return list(itertools.permutations((part.query, part.key, part.value)))


def _possible_masks(subject: Subject) -> tuple[bool, ...]:
    # A classifier can well be made of a decoder: then its attention is causal, and nobody says so.
    return (True,) if subject.causal else (False, True)


def _apart(
    seen: _Seen, part: AttentionPart, three: tuple[Tensor, ...], heads: int, causal: bool, way: Variation
) -> float:
    """Return the largest difference at a real token, over the spread of the output."""
    query, key, value = three
    of_head = query.size(-1) // heads
    if key.size(-1) % of_head or value.size(-1) != key.size(-1) or query.shape != part.merged.shape:
        return float("inf")
    expected = attend(query, key, value, heads, causal, seen.real, way)
    if part.project is not None:
        expected = part.project(expected)
    compared = seen.real
    if way.fault and way.mask == "right" and bool(seen.real.all(1).any()):
        # Padding's own places are anyone's choice, and these faults carry them into the words of its text.
        compared = seen.real & seen.real.all(1, keepdim=True)
    found = part.merged[compared]
    return float((expected[compared] - found).abs().max() / found.std().clamp(min=1e-12))


@torch.no_grad()
def _distance(seen: _Seen, subject: Subject, part: AttentionPart) -> float:
    causal, heads = _possible_masks(subject)[0], part.heads[0]
    return min(_apart(seen, part, order, heads, causal, Variation()) for order in part.packed(heads))


def _across_batch(seen: _Seen) -> list[str]:
    return [
        part.name
        for part in seen.parts
        if isinstance(part.module, nn.MultiheadAttention)
        and not part.module.batch_first
        and part.query.shape[:2] == seen.ids.shape
    ]


def _base(part: AttentionPart, model: nn.Module) -> float:
    """Return the base of the rotary angles that a config names."""
    names = ("rope_theta", "rotary_emb_base", "rope_base")
    base = config_value(part.module, names) or config_value(model, names)
    if base is None:
        parameters = config_value(part.module, ("rope_parameters",)) or config_value(
            model, ("rope_parameters",)
        )
        base = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    return float(base) if isinstance(base, int | float) and base > 0 else 10_000.0


def _scale_is_free(subject: Subject, part: AttentionPart) -> bool:
    """Whether a design without the usual scale is right: T5 draws its query weights smaller instead."""
    if type(part.module).__module__.startswith("transformers."):
        return True
    fresh = subject.model()
    if config_value(fresh, _OPEN_SCALES) is not None:
        return True
    if len(part.modules) < 3:
        return False
    of_head = part.query.size(-1) / part.heads[0]
    names = {id(module): name for name, module in part.module.named_modules()}
    theirs = dict(dict(fresh.named_modules())[part.name].named_modules())
    query, key = (
        matrix_of(theirs[names[id(module)]]) if id(module) in names else None for module in part.modules[:2]
    )
    if query is None or key is None:
        return False
    return of_head >= 4 and float(query.detach().std() / key.detach().std()) < 1.5 * of_head**-0.5


def _confirmed(subject: Subject, seen: _Seen, way: Variation, leaks: dict[str, bool]) -> bool:
    """Whether a missing mask shows in the model's scores: an encoder inside a decoder needs no causal one."""
    if way.mask == "right":
        return True
    if way.mask in ("none", "no future", "one late") and subject.causal:
        leaks.setdefault("future", _leaks_future(subject, seen))
        return leaks["future"]
    if way.mask in ("none", "no padding"):
        leaks.setdefault("padding", _leaks_padding(subject, seen))
        return leaks["padding"]
    return True


@torch.no_grad()
def _leaks_future(subject: Subject, seen: _Seen) -> bool:
    changed = seen.ids.clone()
    changed[0, -1] = seen.ids[1, 0] if seen.ids[1, 0] != changed[0, -1] else seen.ids[2, 0]
    before, after = (subject.scores(seen.model, ids, seen.mask)[0, :-1] for ids in (seen.ids, changed))
    return float((before - after).abs().max()) > 1e-3 * float(before.std())


@torch.no_grad()
def _leaks_padding(subject: Subject, seen: _Seen) -> bool:
    if seen.mask is None:
        return False
    changed = torch.where(seen.real, seen.ids, seen.ids[0])
    before, after = (subject.scores(seen.model, ids, seen.mask)[1] for ids in (seen.ids, changed))
    if subject.by_token:
        before, after = before[seen.real[1]], after[seen.real[1]]
    return float((before - after).abs().max()) > 1e-3 * float(before.abs().mean())


@check(family="model", component="attention", needs=("make_model",), likelihood=0.7)
def attention_weights(subject: Subject) -> Finding:
    """Is what attention gives a weighted mean of the values, with weights that sum to one?"""
    worst, residuals, sums, low, where = 0.0, 0.0, 0.0, 0.0, ""
    seen = _look(subject)
    usable = []
    for part in seen.parts:
        placed = part.placed(seen.ids)
        if placed is None or not _is_plain(placed):
            continue
        usable.append(placed)
    if not usable:
        raise NotApplicable(
            "no attention module with known heads, and nothing but projections inside, was found"
        )
    of_head = min(part.query.size(-1) // part.heads[0] for part in usable)
    if of_head < 4:
        raise NotApplicable(f"heads are {of_head} wide: weights cannot be told from what they give")
    seen = _look(subject, seq=min(7, of_head - 1))
    names = {part.name for part in usable}
    looked = 0
    for part in (placed for it in seen.parts if it.name in names and (placed := it.placed(seen.ids))):
        if _match(seen, subject, part, right_ways(_base(part, seen.model), True)) is not None:
            looked += 1
            continue
        weights, residual = _explained(seen, part)
        if part.fused and residual > UNEXPLAINED:
            continue  # how its one projection is cut up is not known here
        off, lowest = float((weights.sum(-1) - 1).abs().max()), max(0.0, -float(weights.min()))
        looked += 1
        residuals, sums, low = max(residuals, residual), max(sums, off), max(low, lowest)
        if max(residual, off, lowest) > worst:
            worst, where = max(residual, off, lowest), part.name
    if not looked:
        raise NotApplicable("no way is known to cut queries, keys and values out of their one projection")
    evidence: dict[str, float] = {
        "not a mean of values": residuals,
        "sums off one by": sums,
        "below zero by": low,
    }
    if residuals > UNEXPLAINED:
        summary = f"{residuals:.0%} of the output of {where} is no weighted mean of its own text's values"
    elif max(sums, low) > 0.01:
        summary = f"the weights of {where} miss a sum of one by {sums:.2g} and go below zero by {low:.2g}"
    else:
        return attention_weights.ok(f"the output of {looked} modules is a weighted mean of values", evidence)
    return attention_weights.problem(
        summary,
        evidence,
        where=where,
        why="Attention mixes values with weights that sum to one for each token and head; this does not.",
        fix="Look at the axis of the softmax, at the mask before it, at how heads are split and merged.",
    )


def _explained(seen: _Seen, part: AttentionPart) -> tuple[Tensor, float]:
    """Return the weights, and the share of the output without any: of the best way to cut a projection up."""
    rows, heads = seen.real.all(dim=1), part.heads[0]
    merged, of_head = part.merged[rows].detach(), part.query.size(-1) // heads
    ways = [weights_behind(merged, value[rows].detach(), heads, of_head) for *_, value in part.packed(heads)]
    return min(ways, key=lambda found: found[1])


def _is_plain(part: AttentionPart) -> bool:
    """Whether heads are known, and nothing but the projections has weights that could change the output."""
    of_head = part.query.size(-1) // part.heads[0]
    if not part.named or len(part.heads) > 1 or part.project is not None or part.unused:
        return False
    if part.merged.shape != part.query.shape or part.value.size(-1) % of_head:
        return False
    ours = {id(tensor) for module in (*part.modules, part.output) for tensor in module.parameters()}
    others = [name for name, tensor in part.module.named_parameters() if id(tensor) not in ours]
    # A gate, a norm or a mixture of heads would change the output; a relative bias changes scores alone.
    return all("relative" in name or "bias_table" in name for name in others)
