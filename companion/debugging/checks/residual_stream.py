"""The stream of vectors through the blocks: untouched where nothing is added, and reached by each part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion.debugging.anatomy import Call, attention_parts, inside, is_norm, padded_ids
from companion.debugging.checks.blocks import blocks_of, watch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Component, Finding
from companion.debugging.subject import Subject

__all__: list[str] = []

_NEEDS = ("make_model",)
_TOKENS = 9
_NEAR = 1e-3
"""Relative distance up to which two tensors are the same."""
Stays = Callable[[str, nn.Module], bool]
"""Takes a module with its name; whether its matrices and biases stay as they are."""


@dataclass(frozen=True)
class _Stream:
    """A model whose blocks can be emptied: all their matrices and biases set to 0, but for some."""

    subject: Subject
    model: nn.Module
    blocks: dict[int, str]
    calls: list[Call]
    weights: dict[str, Tensor]

    def run(self, stays: Stays, *, training: bool = False, other: bool = False) -> dict[str, Call]:
        """Return the first call of each block, with its input and its output, by its name."""
        return self.blocks_in(self.all_calls(stays, training=training, other=other))

    def all_calls(self, stays: Stays, *, training: bool = False, other: bool = False) -> list[Call]:
        """Return all calls in the order in which they ended."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.weights[name])
            for name in self.blocks.values():
                _silence(self.model.get_submodule(name), name, stays)
        return _calls(self.subject, self.model.train(training), other)

    def blocks_in(self, calls: list[Call]) -> dict[str, Call]:
        """Return the blocks among the calls."""
        found: dict[str, Call] = {}
        for call in calls:
            if id(call.module) in self.blocks and call.input.shape == call.output.shape:
                found.setdefault(call.name, call)
        return found


def _stream(subject: Subject) -> _Stream:
    model = subject.model(jitter=True)
    calls = _calls(subject, model, False)
    blocks = {id(module): name for name, module in blocks_of(model, calls)}
    if not blocks:
        raise NotApplicable("no list of blocks was found")
    weights = {name: it.detach().clone() for name, it in model.named_parameters()}
    return _Stream(subject, model, blocks, calls, weights)


def _calls(subject: Subject, model: nn.Module, other: bool) -> list[Call]:
    ids, mask = padded_ids(subject, 2, _TOKENS)
    if other:
        ids = ids.clone()
        ids[:, 1] = torch.where(ids[:, 1] == ids[:, 4], ids[:, 6], ids[:, 4])
    return watch(subject, model, ids, mask)


def _silence(block: nn.Module, name: str, stays: Stays) -> None:
    for inner, module in block.named_modules(prefix=name):
        if is_norm(module):
            for kind, parameter in module.named_parameters(recurse=False):
                if "bias" in kind:
                    parameter.zero_()  # it is what a norm gives for nothing
        elif not stays(inner, module):
            for kind, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1 or "bias" in kind:
                    parameter.zero_()


def _nothing(name: str, module: nn.Module) -> bool:
    return False


@check(family="model", component="layers", needs=_NEEDS, likelihood=0.85)
def empty_blocks_change_nothing(subject: Subject) -> Finding:
    """With all matrices at 0, does each block give its input, or its norm if norms come last?"""
    stream = _stream(subject)
    calm, other = stream.run(_nothing), stream.run(_nothing, other=True)
    looked = {name for name in calm if name in other and not _mixes(calm[name], other[name])}
    looked = {name for name in looked if not _flat(calm[name].output)}
    for training in (False, True):
        calls = stream.all_calls(_nothing, training=training)
        for name, call in stream.blocks_in(calls).items():
            # One block can stand at several places: its own norms came before its first call ended.
            earlier = calls[: next(index for index, it in enumerate(calls) if it is call)]
            norms = [it for it in earlier if inside(it.name, name) and is_norm(it.module)]
            said = _changed(call, norms) if name in looked else None
            if said is not None:
                return _touched(name, said, training)
    if not looked:
        raise NotApplicable("no block with a residual sum inside was found")
    return empty_blocks_change_nothing.ok(
        "with all matrices at 0 each block gives its input or a norm of it, in training mode too",
        {"blocks": len(looked)},
    )


def _touched(block: str, said: str, training: bool) -> Finding:
    component: Component = "dropout" if training else "layers"
    mode = "in training mode" if training else "in evaluation mode"
    return empty_blocks_change_nothing.problem(
        f"with its matrices at 0, {block} gives {said}, {mode}; expected its input",
        {},
        where=block,
        component=component,
        why="What a layer does to the stream itself is done to all that the layers before it said, "
        "again in each layer.",
        fix="Let dropout, norms and activations work on what a part adds: x = x + dropout(part(norm(x))).",
    )


@check(family="model", component="layers", needs=_NEEDS, likelihood=0.85)
def each_part_reaches_the_stream(subject: Subject) -> Finding:
    """Does attention reach a block's output without the feed-forward part, and that one without attention?"""
    stream = _stream(subject)
    name, parts = _first_attention(stream)

    def attention(inner: str, module: nn.Module) -> bool:
        return any(_belongs(inner, module, part, name) for part in parts)

    def feed_forward(inner: str, module: nn.Module) -> bool:
        return not attention(inner, module)

    alone, other = stream.run(attention)[name], stream.run(attention, other=True)[name]
    if alone.input.shape != other.input.shape:
        raise NotApplicable("the block is called with another shape for another text")
    moved = _moved_elsewhere(alone, other)
    if moved is None:
        raise NotApplicable("another word changes the input of the block at all places")
    evidence = {"moved by attention alone": moved}
    silent = ""
    if _mixes(stream.run(_nothing)[name], stream.run(_nothing, other=True)[name]):
        raise NotApplicable("tokens meet outside of attention")
    if evidence["moved by attention alone"] < _NEAR:
        silent = "the attention"
    elif any(
        parameter.dim() > 1
        for inner, module in stream.model.get_submodule(name).named_modules(prefix=name)
        if not is_norm(module) and feed_forward(inner, module)
        for parameter in module.parameters(recurse=False)
    ):
        empty, full = stream.run(_nothing)[name], stream.run(feed_forward)[name]
        silent = "the feed-forward part" if _near(full.output, empty.output) else ""
    if not silent:
        return each_part_reaches_the_stream.ok("each part reaches the stream by itself", evidence)
    return each_part_reaches_the_stream.problem(
        f"with the other part at 0, {silent} of {name} does not reach its output",
        evidence,
        where=name,
        why="What a part says is lost wherever the other one does not pass it on.",
        fix="Add each part to the stream that the part before it left: x = x + attention(norm(x)), then "
        "x = x + feed_forward(norm(x)).",
    )


_Part = tuple[str, tuple[int, ...]]
"""The module of an attention, and the ids of its projections."""


def _first_attention(stream: _Stream) -> tuple[str, list[_Part]]:
    """Return the first block in which attention is found, and its attentions."""
    found = attention_parts(stream.model, stream.calls)
    others = stream.blocks_in(_calls(stream.subject, stream.model, True))
    for name, call in stream.blocks_in(stream.calls).items():
        if name not in others or _near(call.input, others[name].input):
            continue  # of an encoder whose text is another one
        parts = [
            (part.name, (*map(id, part.modules), id(part.output)))
            for part in found
            if inside(part.name, name)
        ]
        if parts:
            return name, parts
    raise NotApplicable("no attention was found in the blocks")


def _belongs(inner: str, module: nn.Module, part: _Part, block: str) -> bool:
    return id(module) in part[1] or (part[0] != block and inside(inner, part[0]))


def _changed(call: Call, norms: list[Call]) -> str | None:
    """Return what a silenced block gives, if it is neither its input nor the last norm of it."""
    if _proportional(call.output, call.input):
        return None
    chain = [call.input]
    for norm in norms:
        if norm.output.shape == call.input.shape and any(_proportional(norm.input, it) for it in chain):
            chain.append(norm.output)
    for index, given in enumerate(chain[1:], start=1):
        if _proportional(call.output, given):
            return None if index == len(chain) - 1 else "a norm of its input"
    x, y = call.input.detach(), call.output.detach()
    missing = float(((y == 0) & (x != 0)).float().mean())
    return f"its input with {missing:.0%} of the numbers at 0" if missing > 0.01 else "other numbers"


def _mixes(call: Call, other: Call) -> bool:
    """Whether tokens still meet in a silenced block, as in a Fourier transform or a pool."""
    if call.input.shape != other.input.shape:
        return True
    moved = _moved_elsewhere(call, other)
    return moved is None or moved > _NEAR


def _moved_elsewhere(call: Call, other: Call) -> float | None:
    """Return how far the output moved, in spreads, where the input did not; None if it moved everywhere."""
    spread = float(call.output.detach().std())
    moved = (call.output - other.output).detach().abs().amax(-1)
    same = (call.input - other.input).detach().abs().amax(-1) <= 1e-6 * spread
    return float(moved[same].max()) / spread if bool(same.any()) else None


def _flat(x: Tensor) -> bool:
    """Whether all tokens are alike: then the sum is elsewhere or missing, which another check asks."""
    return float(x.detach().flatten(0, 1).std(0).mean()) < 1e-5


def _near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _NEAR * other.norm())


def _proportional(one: Tensor, other: Tensor) -> bool:
    """Whether a tensor is another one times a positive number."""
    if one.shape != other.shape:
        return False
    x, y = one.detach().double().flatten(), other.detach().double().flatten()
    factor = float(x @ y) / max(float(y @ y), 1e-12)
    return factor > 0 and bool((x - factor * y).norm() <= _NEAR * x.norm())
