"""Finds the parts of a model nobody here has seen: by what is called with what, and by common names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.debugging.observing import (
    Call,
    first_tensor,
    inside,
    is_linear,
    is_norm,
    observe,
    same_tensor,
)
from companion.debugging.oracle import packings
from companion.debugging.subject import Subject
from companion.debugging.wrapped import is_projection, projections

__all__ = [
    "AttentionPart",
    "Call",
    "attention_parts",
    "block_lists",
    "config_value",
    "first_tensor",
    "inside",
    "is_linear",
    "is_norm",
    "observe",
    "padded_ids",
    "token_tables",
]

Role = Literal["query", "key", "value"]
_ROLES: dict[Role, str] = {"query": "q", "key": "k", "value": "v"}
_HEADS = ("heads", "num_heads", "n_heads", "n_head", "num_attention_heads", "nhead", "nheads", "h")
_HEAD_WIDTHS = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "d_head", "d_k", "dk")


@dataclass(frozen=True)
class AttentionPart:
    """Self-attention as it was seen at work.

    Attributes
    ----------
    name : str
        Of the module that holds the projections.
    module : Module
    query, key, value : Tensor
        What came out of the projections, (batch, seq, width).
    merged : Tensor
        What went into the output projection, (batch, seq, width).
    heads : tuple of int
        How many heads there can be: one number where the module says so.
    output : Module
        The output projection.
    output_name : str
    modules : tuple of Module
        The projections of query, key and value: one module, if they are one.
    named : bool
        Whether names tell which projection is which; otherwise the order of the calls does.
    fused : bool
        Whether query, key and value are slices of one projection; see `packed` for how they may be cut.
    unused : tuple of str
        Projections that were not called although the module has them.
    project : Module, optional
        Set where only what came out of the output projection was seen: `merged` holds that.
    """

    name: str
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    merged: Tensor
    heads: tuple[int, ...]
    output: nn.Module
    output_name: str
    modules: tuple[nn.Module, ...]
    named: bool
    fused: bool = False
    unused: tuple[str, ...] = ()
    project: nn.Module | None = None

    def packed(self, heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return what may be queries, keys and values: several ways to cut them out of one projection."""
        if self.fused and self.project is None:
            return list(packings(self.query, self.key, self.value, heads))
        return [(self.query, self.key, self.value)]

    def placed(self, ids: Tensor) -> AttentionPart | None:
        """Return it with its tensors as (batch, seq, width) of these ids; None if they have another shape."""
        shape = self.query.shape[:2]
        if shape == ids.shape and self.key.shape[:2] == shape:
            return self
        if shape == ids.T.shape and self.key.shape[:2] == shape:
            turned = {
                name: getattr(self, name).transpose(0, 1) for name in ("query", "key", "value", "merged")
            }
            return replace(self, **turned)
        return None


def padded_ids(subject: Subject, rows: int, seq: int, padding: int = 2) -> tuple[Tensor, Tensor | None]:
    """Return random ids (rows, seq), and a mask that hides the end of the second row if it can be told."""
    if not subject.takes_mask():
        return subject.ids(rows, seq), None
    seq = min(seq, subject.max_length)
    lengths = [seq] * rows
    if rows > 1 and seq > padding:
        lengths[1] -= padding
    return subject.padded(lengths)


def config_value(model: nn.Module, names: Sequence[str]) -> Any:
    """Return the first of these that a model's config has, or None."""
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    found = (config.get(name) if isinstance(config, dict) else getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), None)


def token_tables(calls: Sequence[Call], ids: Tensor) -> list[Call]:
    """Return the calls of embeddings that looked up the token ids themselves."""
    return [
        call
        for call in calls
        if isinstance(call.module, nn.Embedding)
        and call.input.shape in (ids.shape, ids.T.shape)
        and (torch.equal(call.input, ids) or torch.equal(call.input, ids.T))
    ]


def block_lists(model: nn.Module, calls: Sequence[Call]) -> dict[str, list[tuple[str, nn.Module]]]:
    """Return the lists of blocks: alike, keeping their input's shape when called, with matrices inside.

    Returns
    -------
    dict
        The list's name -> (name, block) of each place in it: one block can stand at several.
    """
    called = {id(call.module): call for call in calls}
    found = {}
    for name, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential) or not len(container):
            continue
        parts = list(container)
        at_work = [called[id(part)] for part in parts if id(part) in called]
        if len({type(part) for part in parts}) > 1 or not at_work:
            continue
        keeps = all(
            call.input.shape == call.output.shape
            and call.input.dim() == 3
            and call.output.is_floating_point()
            for call in at_work
        )
        if keeps and all(_matrices(part) >= 3 for part in parts):
            found[name] = [(f"{name}.{index}", part) for index, part in enumerate(parts)]
    return found


def _matrices(module: nn.Module) -> int:
    return sum(parameter.dim() == 2 for parameter in module.parameters())


def attention_parts(model: nn.Module, calls: Sequence[Call]) -> list[AttentionPart]:
    """Find self-attention: three projections of one input, whose results meet in a fourth.

    Attention over another text is not among them.
    """
    linear = projections(model, calls)
    modules = dict(model.named_modules())
    parts, start = [], 0
    while start < len(linear) - 1:
        part, used = _part_at(model, modules, linear, start)
        if part is not None:
            parts.append(part)
        start += used
    return parts + [part for call in calls if (part := _torch_attention(call)) is not None]


def _torch_attention(call: Call) -> AttentionPart | None:
    """Return torch's own attention, which calls none of its parts."""
    module = call.module
    if not isinstance(module, nn.MultiheadAttention) or module.in_proj_weight is None:
        return None
    taken = [
        *call.args[:3],
        *(call.kwargs[name] for name in ("query", "key", "value") if name in call.kwargs),
    ]
    if any(part is not taken[0] for part in taken[:3]) or call.input.dim() != 3:
        return None
    inner = functional.linear(call.input, module.in_proj_weight, module.in_proj_bias)
    query, key, value = inner.chunk(3, dim=-1)
    return AttentionPart(
        call.name, module, query, key, value, call.output, (module.num_heads,), module.out_proj,
        f"{call.name}.out_proj", (module,), named=True, fused=True, project=module.out_proj,
    )  # fmt: skip


def _part_at(
    model: nn.Module, modules: dict[str, nn.Module], linear: list[Call], start: int
) -> tuple[AttentionPart | None, int]:
    """Return the attention whose first projection is a call, and how many calls to go on."""
    first, after = linear[start], linear[start + 1]
    parent_name = first.name.rpartition(".")[0]
    parent = modules[parent_name]
    if first.output.size(-1) == 3 * after.input.size(-1) and first.output.shape[:2] == after.input.shape[:2]:
        query, key, value = first.output.chunk(3, dim=-1)
        heads = head_counts(model, parent, query.size(-1))
        part = AttentionPart(
            parent_name, parent, query, key, value, after.input, heads,
            after.module, after.name, (first.module,), named=True, fused=True,
        )  # fmt: skip
        return part, 2
    end = start + 1
    while end < len(linear) and same_tensor(linear[end].input, first.input):
        end += 1
    group = linear[start:end]
    held: dict[Role, str] = {
        role: name
        for name, child in parent.named_children()
        if is_projection(child) and (role := role_of(name))
    }
    whole = len(held) == 3
    by_role = {role_of(call.name.rpartition(".")[2]): call for call in group}
    two = whole and len(group) == 2 and "query" in by_role
    if end >= len(linear) or not (len(group) == 3 or two):
        return None, max(1, len(group))
    named = whole and {role_of(call.name.rpartition(".")[2]) for call in group} <= set(held)
    q, k, v = (group[min(place, len(group) - 1)] for place in range(3))
    if named and len(by_role) == 3:
        q, k, v = by_role["query"], by_role["key"], by_role["value"]
    merged = linear[end]
    if merged.input.shape != q.output.shape or q.output.size(-1) % v.output.size(-1):
        return None, len(group)
    unused = tuple(f"{parent_name}.{held[role]}" for role in held if whole and named and role not in by_role)
    part = AttentionPart(
        parent_name, parent, q.output, k.output, v.output, merged.input,
        head_counts(model, parent, q.output.size(-1)), merged.module, merged.name,
        (q.module, k.module, v.module), named=named, unused=unused,
    )  # fmt: skip
    return part, len(group) + 1


def role_of(name: str) -> Role | None:
    """Tell from its name whether a projection is that of queries, keys or values."""
    words = name.lower().replace("linear", "").replace("proj", "").replace("lin", "").replace("fc", "")
    words = words.replace("to_", "").replace("w_", "").strip("_")
    for role, letter in _ROLES.items():
        if words in (role, letter, f"w{letter}", f"{role}s", f"{letter}s", f"{role[:-1]}ies", f"{letter}w"):
            return role
    return None


def head_counts(model: nn.Module, module: nn.Module, width: int) -> tuple[int, ...]:
    """Return how many heads can be: what the module or the config says, or all that divide the width."""
    for owner in (module, getattr(module, "config", None), getattr(model, "config", None)):
        for name in _HEADS:
            heads = getattr(owner, name, None)
            if isinstance(heads, int) and heads > 0 and width % heads == 0:
                return (heads,)
        for name in _HEAD_WIDTHS:
            of_head = getattr(owner, name, None)
            if isinstance(of_head, int) and of_head > 0 and width % of_head == 0:
                return (width // of_head,)
    return tuple(heads for heads in range(1, width // 2 + 1) if width % heads == 0)
