"""What a model is made of: tied tables, registered parameters, distinct layers, one number format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from companion.debugging.anatomy import block_lists, config_value, observe, padded_ids, token_tables
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject

__all__ = [
    "layer_count",
    "layer_distinctness",
    "leaves_of",
    "parameter_dtypes",
    "registered_parameters",
    "weight_tying",
]

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers", "depth", "num_decoder_layers")
_TIED = ("tie_word_embeddings", "tied", "tie_weights", "tie_embeddings", "weight_tying")


@check(family="model", component="embeddings and head", needs=("make_model",), likelihood=0.9)
def weight_tying(subject: Subject) -> Finding:
    """Do the word table and the output scores share their weights, if they are meant to?"""
    model = subject.model()
    ids, mask = padded_ids(subject, 2, 8)
    calls = observe(model, lambda it: subject.scores(it, ids, mask))
    tables = token_tables(calls, ids)
    if not tables:
        raise NotApplicable("no table was seen to look up the token ids")
    table = next((module for call in tables if isinstance(module := call.module, nn.Embedding)), None)
    heads = [
        call
        for call in calls
        if table is not None
        and not isinstance(call.module, nn.Embedding)
        and isinstance(weight := getattr(call.module, "weight", None), Tensor)
        and weight.shape == table.weight.shape
        and call.output.size(-1) == weight.size(0) == subject.vocab_size
        and call.output.dim() == 3
    ]
    if table is None or not heads:
        raise NotApplicable("there is no output layer of the word table's shape")
    head, name = heads[-1].module.get_parameter("weight"), heads[-1].name
    shared = head.data_ptr() == table.weight.data_ptr()
    declared = config_value(model, _TIED)
    equal = not shared and bool(torch.equal(head, table.weight)) and float(table.weight.detach().std()) > 0
    evidence: dict[str, float] = {
        "shared": float(shared),
        "equal": float(equal or shared),
        "numbers": float(table.weight.numel()),
    }
    if shared or not (equal or declared is True):
        return weight_tying.ok("one table reads and writes words" if shared else "untied by choice", evidence)
    reason = (
        "its config says that they are tied" if declared is True else "their values are the same at the start"
    )
    return weight_tying.problem(
        f"{name} has its own copy of the word table's {table.weight.numel()} numbers, and {reason}",
        evidence,
        where=f"{name}.weight, {tables[0].name}.weight",
        why="The two drift apart in training, cost memory twice, and saving and loading can tie them again.",
        fix="Assign the parameter itself: head.weight = tokens.weight, after all initialisation.",
    )


@check(family="model", component="layers", needs=("make_model",), likelihood=0.95)
def registered_parameters(subject: Subject) -> Finding:
    """Are all weights that compute the scores among the model's parameters?"""
    model = subject.model(jitter=True)
    ids, mask = padded_ids(subject, 2, 8)
    leaves = leaves_of(subject.scores(model, ids, mask))
    if not leaves:
        raise NotApplicable("the scores depend on nothing that can be trained")
    known = {id(parameter) for parameter in model.parameters()}
    strange = [leaf for leaf in leaves if id(leaf) not in known]
    evidence: dict[str, float] = {
        "used": len(leaves),
        "not registered": len(strange),
        "numbers": sum(t.numel() for t in strange),
    }
    if not strange:
        return registered_parameters.ok(f"all {len(leaves)} weights that are used are registered", evidence)
    named = {id(tensor): name for name, tensor in _hidden_tensors(model)}
    where = [named.get(id(leaf), f"a tensor of shape {tuple(leaf.shape)}") for leaf in strange]
    return registered_parameters.problem(
        f"{len(strange)} of the {len(leaves)} weights that compute the scores are not in model.parameters(): "
        f"{evidence['numbers']} numbers",
        evidence,
        where=", ".join(where[:4]) + (" and others" if len(where) > 4 else ""),
        why="No optimizer sees them, no checkpoint saves them, and .to(device) leaves them behind.",
        fix="Keep modules in nn.ModuleList or nn.ModuleDict, and tensors as nn.Parameter.",
    )


def leaves_of(scores: Tensor) -> list[Tensor]:
    """Return the tensors that a result depends on and that gradients flow to."""
    seen: set[Any] = set()
    leaves: list[Tensor] = []
    waiting: list[Any] = [scores.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return leaves


def _hidden_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that sit in plain attributes, lists and dicts, and in modules that sit there."""
    private = set(vars(nn.Module()))
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in private:
                yield from _tensors_in(f"{name}.{key}".lstrip("."), value, depth=3)


def _tensors_in(name: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        for inner, parameter in value.named_parameters():
            yield f"{name}.{inner}", parameter
    elif depth and isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _tensors_in(f"{name}[{index}]", part, depth - 1)
    elif depth and isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors_in(f"{name}[{key!r}]", part, depth - 1)


def _lists(subject: Subject, model: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    ids, mask = padded_ids(subject, 2, 8)
    return block_lists(model, observe(model, lambda it: subject.scores(it, ids, mask)))


@check(family="model", component="layers", needs=("make_model",), likelihood=0.8)
def layer_count(subject: Subject) -> Finding:
    """Are there as many blocks at work as the config says?"""
    model = subject.model()
    names = [name for name in _LAYERS if isinstance(config_value(model, (name,)), int)]
    declared = {int(config_value(model, (name,))) for name in names}
    if not declared or max(declared) < 1:
        raise NotApplicable("no config says how many layers there are")
    ids, mask = padded_ids(subject, 2, 8)
    calls = observe(model, lambda it: subject.scores(it, ids, mask))
    lists = block_lists(model, calls)
    if not lists:
        raise NotApplicable("no list of blocks was found")
    times = Counter(id(call.module) for call in calls)
    at_work = {
        name: sum(times[key] for key in {id(block) for _, block in blocks}) for name, blocks in lists.items()
    }
    evidence: dict[str, float] = {"declared": max(declared), "at work": max(at_work.values())}
    if set(at_work.values()) & declared:
        return layer_count.ok(f"{max(at_work.values())} blocks compute, as the config says", evidence)
    return layer_count.problem(
        f"{max(at_work.values())} blocks compute, and the config says {max(declared)} layers",
        evidence,
        where=", ".join(at_work),
        why="The model is not as deep as everyone thinks it is.",
        fix="Build one block for each layer, and call each of them once.",
    )


@check(family="model", component="layers", needs=("make_model",), likelihood=0.95)
def layer_distinctness(subject: Subject) -> Finding:
    """Has each layer weights of its own, and did it start from its own draw?"""
    model = subject.model()
    lists = {name: blocks for name, blocks in _lists(subject, model).items() if len(blocks) > 1}
    if not lists:
        raise NotApplicable("no list of two or more blocks was found")
    shared = [
        f"{one[0]}, {two[0]}"
        for blocks in lists.values()
        for index, one in enumerate(blocks)
        for two in blocks[index + 1 :]
        if _storages(one[1]) & _storages(two[1])
    ]
    if shared and not _may_share(model):
        return layer_distinctness.problem(
            f"{len(shared)} pairs of layers share their weights: one layer stands at several places",
            {"pairs": len(shared)},
            where="; ".join(shared[:3]),
            why="The model has the parameters of fewer layers than it seems to, and learns with fewer.",
            fix="Build each layer anew: [Block(...) for _ in range(n)], not [block] * n.",
        )
    # torch's own encoder copies one layer: known, and left as it is.
    owners = dict(model.named_modules())
    drawn = {
        name: blocks
        for name, blocks in lists.items()
        if not type(owners[name.rpartition(".")[0]]).__module__.startswith("torch.nn")
    }
    copies = [
        (one[0], two[0])
        for blocks in drawn.values()
        for one, two in pairwise(blocks)
        if subject.fresh and not shared and _same_draw(one[1], two[1])
    ]
    if copies:
        return layer_distinctness.problem(
            f"{len(copies) + 1} layers start with the same numbers: one was drawn, the others are copies",
            {"pairs": len(copies)},
            where="; ".join(", ".join(pair) for pair in copies[:3]),
            why="Copies start out doing the same work, and part ways only slowly.",
            fix="Build each layer anew, or draw its weights again after copying.",
            likelihood=0.8,
        )
    count = sum(len(blocks) for blocks in lists.values())
    return layer_distinctness.ok(f"{count} layers have weights of their own", {"layers": count})


def _storages(block: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in block.parameters() if parameter.dim() > 1}


def _may_share(model: nn.Module) -> bool:
    """Whether a config says that layers share weights, as ALBERT's or a universal transformer's does."""
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    fields = vars(config) if hasattr(config, "__dict__") else {}
    groups = fields.get("num_hidden_groups")
    return bool(groups) or any(
        value is True and any(word in name for word in ("share", "recur", "universal"))
        for name, value in fields.items()
    )


def _same_draw(one: nn.Module, two: nn.Module) -> bool:
    theirs = dict(two.named_parameters())
    drawn = [(name, p) for name, p in one.named_parameters() if p.dim() > 1 and float(p.detach().std()) > 0]
    return bool(drawn) and all(name in theirs and torch.equal(p, theirs[name]) for name, p in drawn)


@check(family="model", component="layers", needs=("make_model",), likelihood=0.6)
def parameter_dtypes(subject: Subject) -> Finding:
    """Do all matrices have one number format, and norms none that is coarser?"""
    model = subject.model()
    floats = [(name, p) for name, p in model.named_parameters() if p.is_floating_point()]
    if not floats:
        raise NotApplicable("the model has no parameters of floats")
    matrices = Counter(p.dtype for _, p in floats if p.dim() > 1)
    usual = (matrices or Counter(p.dtype for _, p in floats)).most_common(1)[0][0]
    odd = [
        name
        for name, p in floats
        if (p.dim() > 1 and p.dtype != usual)
        or (p.dim() <= 1 and torch.finfo(p.dtype).eps > torch.finfo(usual).eps)
    ]
    evidence: dict[str, float] = {"parameters": len(floats), "odd": len(odd)}
    if not odd:
        return parameter_dtypes.ok(f"all {len(floats)} parameters fit {usual}", evidence)
    return parameter_dtypes.problem(
        f"{len(odd)} of {len(floats)} parameters do not have the format of the others, {usual}",
        evidence,
        where=", ".join(odd[:4]),
        why="Mixed formats lose small updates in some layers, or raise errors far away from here.",
        fix="Convert the whole model once: model.to(dtype).",
    )
