"""Blocks at work: residual sums, tokens kept apart, norms, the bend in the feed-forward part."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from companion.debugging.anatomy import (
    AttentionPart,
    Call,
    attention_parts,
    block_lists,
    inside,
    is_linear,
    is_norm,
    observe,
    padded_ids,
    role_of,
)
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Component, Finding
from companion.debugging.subject import Subject, seeded

__all__ = [
    "blocks_of",
    "feed_forward_nonlinearity",
    "first_block_moved",
    "normalisation_effect",
    "residual_path",
    "token_separation",
    "watch",
]


def watch(subject: Subject, model: nn.Module, ids: Tensor, mask: Tensor | None) -> list[Call]:
    """Call a subject's model, and return what each of its modules was given and gave."""
    with seeded(0):
        return observe(model, lambda it: subject.scores(it, ids, mask))


@torch.no_grad()
def _silence(modules: list[nn.Module]) -> None:
    for module in modules:
        for parameter in module.parameters():
            parameter.zero_()


def blocks_of(model: nn.Module, calls: list[Call]) -> list[tuple[str, nn.Module]]:
    """Return all blocks with their names: of a model with attention, those of lists that have some and more.

    A list of attentions alone, or of feed-forward parts or experts, holds parts of blocks: what is summed
    with them is summed outside.
    """
    lists = list(block_lists(model, calls).values())
    parts = attention_parts(model, calls)
    if parts:
        lists = [blocks for blocks in lists if any(_is_whole(*block, parts) for block in blocks)]
    return [block for blocks in lists for block in blocks]


def _is_whole(name: str, block: nn.Module, parts: list[AttentionPart]) -> bool:
    """Whether a block has attention, and two matrices or more beside it."""
    within = [part for part in parts if inside(part.name, name)]
    ours = {id(p) for part in within for module in (*part.modules, part.output) for p in module.parameters()}
    return bool(within) and sum(p.dim() > 1 and id(p) not in ours for p in block.parameters()) >= 2


def first_block_moved(
    model: nn.Module, calls: list[Call], others: list[Call], ids: Tensor
) -> tuple[Call, Call] | None:
    """Return the calls, in two passes, of the first block that was not given the same twice.

    Not the first block of all: in a model that reads another text too, that may be one which never sees
    these words.
    """
    blocks = {id(block) for _, block in blocks_of(model, calls)}
    for one, two in zip(calls, others, strict=False):
        if id(one.module) not in blocks or one.module is not two.module:
            continue
        fits = one.output.shape[:2] == ids.shape and one.input.shape == two.input.shape
        if fits and not torch.equal(one.input, two.input):
            return one, two
    return None


def _attention_names(model: nn.Module, calls: list[Call]) -> set[str]:
    """Return the names of all modules that are part of an attention."""
    names = {name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    linear = {id(call.module): call.name for call in calls}
    for part in attention_parts(model, calls):
        names |= {part.output_name, *(linear[id(it)] for it in part.modules if id(it) in linear)}
    return names


@check(family="model", component="layers", needs=("make_model",), likelihood=0.9)
def residual_path(subject: Subject) -> Finding:
    """Does what goes into a block come through, beside what its parts add?"""
    ids, mask = padded_ids(subject, 2, 8)
    model = subject.model(jitter=True)
    calls = watch(subject, model, ids, mask)
    blocks = blocks_of(model, calls)
    attention = _attention_names(model, calls)
    if not blocks:
        raise NotApplicable("no list of blocks was found")
    matrices = {
        name: module
        for name, module in model.named_modules()
        if (is_linear(module) or isinstance(module, nn.MultiheadAttention))
        and any(inside(name, block) for block, _ in blocks)
    }
    lost = _first_lost(subject, matrices, ids, mask)
    if lost is None:
        count = len(blocks)
        return residual_path.ok(
            f"with all matrices at 0, {count} blocks let their input through", {"blocks": count}
        )
    ours = {name for name in attention if name in matrices}
    ours |= {name for name in matrices if any(inside(name, it) for it in attention)}
    part = ""
    if ours:
        without = _first_lost(subject, {name: matrices[name] for name in ours}, ids, mask)
        part = " of the attention" if without is not None else " of the feed-forward part"
    return residual_path.problem(
        f"with its matrices at zero, {lost} gives all tokens the same: the residual sum{part} is missing",
        {"blocks": len(blocks)},
        where=lost,
        why="Gradients and words must pass through every part: deep models then learn slowly or not at all.",
        fix="Add what came in to what each part gives: x = x + part(norm(x)).",
    )


def _first_lost(
    subject: Subject, matrices: dict[str, nn.Module], ids: Tensor, mask: Tensor | None
) -> str | None:
    """Return the first block whose output is the same for all tokens, when some matrices are zero."""
    model = subject.model(jitter=True)
    modules = dict(model.named_modules())
    _silence([modules[name] for name in matrices])
    calls = watch(subject, model, ids, mask)
    blocks = {id(module) for _, module in blocks_of(model, calls)}
    for call in calls:
        if id(call.module) in blocks:
            before, after = (float(x.detach().flatten(0, 1).std(0).mean()) for x in (call.input, call.output))
            if after < 1e-5 * before:
                return call.name
    return None


@check(family="model", component="normalisation", needs=("make_model",), likelihood=0.9)
def token_separation(subject: Subject) -> Finding:
    """Does a token stay by itself wherever attention is switched off?"""
    ids, mask = padded_ids(subject, 3, 8)
    model = subject.model(jitter=True)
    calls = watch(subject, model, ids, mask)
    attention = _attention_names(model, calls)
    outputs = [part.output_name for part in attention_parts(model, calls)]
    outputs += [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    outputs += [
        f"{name}.{inner}".lstrip(".")  # attention over another text
        for name, module in model.named_modules()
        if len({role_of(inner) for inner, _ in module.named_children()} - {None}) == 3
        for inner, child in module.named_children()
        if is_linear(child)
    ]
    blocks = {name for name, _ in blocks_of(model, calls)}
    without = [block for block in blocks if not any(inside(name, block) for name in outputs)]
    if not blocks or without or not attention:
        raise NotApplicable("not every block has an attention that could be switched off")
    if any("conv" in type(module).__name__.lower() and not is_linear(module) for module in model.modules()):
        raise NotApplicable("convolutions mix tokens too")
    changed = ids.clone()
    changed[0, 2] = ids[0, 3] if ids[0, 3] != ids[0, 2] else ids[1, 3]
    for training in (False, True):
        before, after = (_silent_calls(subject, outputs, it, mask, training) for it in (ids, changed))
        for one, two in zip(before, after, strict=False):
            if one.output.shape != two.output.shape or one.output.shape[:2] != ids.shape:
                continue
            if not (one.name in blocks or is_norm(one.module)):
                continue
            moved = (one.output - two.output).detach().abs().amax(-1)
            others = torch.ones_like(ids).bool()
            others[0, 2] = False
            spread = float(one.output.detach().std())
            if float(moved[others].max()) > 1e-3 * spread and float(moved[0, 2]) > 1e-3 * spread:
                return _mixing(one, float(moved[others].max()), training)
    return token_separation.ok(
        "without attention, a changed token moves no other token in any block", {"blocks": len(blocks)}
    )


def _silent_calls(
    subject: Subject, outputs: list[str], ids: Tensor, mask: Tensor | None, training: bool
) -> list[Call]:
    model = subject.model(jitter=True).train(training)
    modules = dict(model.named_modules())
    _silence([modules[name] for name in outputs])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return watch(subject, model, ids, mask)


def _mixing(call: Call, moved: float, training: bool) -> Finding:
    norm = "norm" in type(call.module).__name__.lower()
    component: Component = "normalisation" if norm else "layers"
    mode = "in training mode" if training else "in evaluation mode"
    return token_separation.problem(
        f"without attention, one changed token moves others by {moved:.2g} at {call.name}, {mode}, not 0",
        {"moved": moved},
        where=call.name,
        component=component,
        why="Tokens see each other past the mask: the future and other texts leak into the scores.",
        fix="Normalise each token over its own numbers, the last dimension; mix tokens in attention alone.",
    )


@check(family="model", component="normalisation", needs=("make_model",), likelihood=0.85)
def normalisation_effect(subject: Subject) -> Finding:
    """Does each norm give the same for a vector and its double?"""
    ids, mask = padded_ids(subject, 2, 8)
    model = subject.model(jitter=True)
    calls = [
        call
        for call in watch(subject, model, ids, mask)
        if is_norm(call.module)
        and not call.kwargs
        and len(call.args) == 1
        and call.input.shape == call.output.shape
    ]
    if not calls:
        raise NotApplicable("no norms were found")
    worst, where = 0.0, ""
    with torch.no_grad():
        for call in calls:
            large = call.input.detach() * (10 / call.input.detach().std().clamp(min=1e-6))
            one, two = call.module(large), call.module(2 * large)
            change = float((one - two).abs().max() / one.std().clamp(min=1e-6))
            if change > worst:
                worst, where = change, call.name
    if worst < 0.01:
        return normalisation_effect.ok(
            f"{len(calls)} norms do not mind the length of a vector", {"change": worst}
        )
    return normalisation_effect.problem(
        f"the output of {where} changes by {worst:.2g} of its spread when its input is doubled; expected 0",
        {"change": worst},
        where=where,
        why="What is not normalised grows or shrinks from layer to layer.",
        fix="Divide by the root of the variance (or of the mean square) of the last dimension.",
    )


@check(family="model", component="feed-forward", needs=("make_model",), likelihood=0.95)
def feed_forward_nonlinearity(subject: Subject) -> Finding:
    """Does something bend between the two maps of the feed-forward part?"""
    ids, mask = padded_ids(subject, 4, 16)
    model = subject.model(jitter=True)
    calls = watch(subject, model, ids, mask)
    attention = _attention_names(model, calls)
    looked, straight, least = 0, [], float("inf")
    for block, _ in blocks_of(model, calls):
        linear = [
            call
            for call in calls
            if is_linear(call.module)
            and inside(call.name, block)
            and not any(inside(call.name, name) for name in attention)
        ]
        for first, second in pairwise(linear):
            inner, taken = first.output.detach(), second.input.detach()
            # Narrow in the middle, as adapters are, a pair of maps can well be straight.
            if inner.shape != taken.shape or inner.size(-1) < first.input.size(-1):
                continue
            if not (bool((inner > 0.1).any()) and bool((inner < -0.1).any())):
                continue
            looked += 1
            bend = _bend(inner.flatten(), taken.flatten())
            least = min(least, bend)
            if bend < 1e-4:
                straight.append(f"{first.name} to {second.name}")
    if not looked:
        raise NotApplicable("no pair of matrices was found beside attention")
    evidence: dict[str, float] = {"pairs": looked, "straight": len(straight), "bend": least}
    if not straight:
        return feed_forward_nonlinearity.ok(f"{looked} feed-forward parts are not linear", evidence)
    return feed_forward_nonlinearity.problem(
        f"{len(straight)} of {looked} feed-forward parts are linear: what leaves the first matrix is what "
        "enters the second",
        evidence,
        where="; ".join(straight[:3]),
        why="Two matrices without a bend between them are one: the layer's hidden width is for nothing.",
        fix="Put the activation between the two: contract(activation(expand(x))).",
    )


def _bend(x: Tensor, y: Tensor) -> float:
    """Return the share of y's spread that no straight line in x explains."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    rest = y - x * (x @ y) / (x @ x)
    return float(rest.norm() / y.norm().clamp(min=1e-12))
