"""Formulas inside the model: as exact as their numbers, and the ones that the config names."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from companion.debugging.anatomy import config_value, observe
from companion.debugging.checks.probing import LENGTH, probe
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject, seeded
from companion.models.transformer import TransformerConfig

__all__ = ["named_activation", "small_changes_count"]

STEP = 3e-4
"""A change that float32 resolves well, and 16 bits do not."""
_OURS = {"gelu_tanh": "gelu_pytorch_tanh"}


@check(family="model", component="normalisation", needs=("make_model",), likelihood=0.5)
def small_changes_count(subject: Subject) -> Finding:
    """Do scores follow a change of the words' vectors that only float32 can see?"""
    look = probe(subject)
    tables = [module for module in look.model.modules() if isinstance(module, nn.Embedding)]
    tables = [table for table in tables if table.num_embeddings >= subject.vocab_size]
    if not tables or any(parameter.dtype != torch.float32 for parameter in look.model.parameters()):
        raise NotApplicable("no float32 table of words was found")
    ids, weight, steps = look.ids(2), tables[0].weight, {}
    before, whole = look(ids), weight.detach().clone()
    with seeded(0):
        noise = torch.randn_like(whole) * float(whole.std())
    for factor in (0.5, 1.0):
        weight.data.copy_(whole + factor * STEP * noise)
        steps[factor] = look(ids) - before
    size = float(steps[1.0].norm())
    if not STEP * 1e-2 < size / (float(before.std()) * math.sqrt(before.numel())) < STEP * 1e2:
        raise NotApplicable("the scores do not follow the words' vectors in proportion")
    bent = float((steps[1.0] - 2 * steps[0.5]).norm()) / size
    if bent < 0.3:
        return small_changes_count.ok(
            f"half of a small change has half of its effect, to {bent:.1%}", {"off": bent}
        )
    if bent < 0.6:
        raise NotApplicable("the effect of a small change is bent, and may be so for good reasons")
    return small_changes_count.problem(
        f"half of a small change of the words' vectors misses half of its effect by {bent:.0%}; "
        "expected nearly 0",
        {"off": bent, "change": STEP},
        why="Numbers are rounded on the way, as 16 bits do: what is smaller than the last digit is lost.",
        fix="Leave the dtype to autocast, and keep norms, softmax and sums in float32.",
    )


@check(family="model", component="feed-forward", needs=("make_model",), likelihood=0.5)
def named_activation(subject: Subject) -> Finding:
    """Is the activation the one that the config names?"""
    model = subject.model()
    config = getattr(model, "config", None)
    named = config_value(model, ("hidden_act", "activation_function", "activation"))
    # By name, as an edited copy of the transformer has a config class of its own.
    ours = type(config).__name__ == TransformerConfig.__name__
    if not (ours or isinstance(config, PreTrainedConfig)) or not isinstance(named, str):
        raise NotApplicable("no config names an activation")
    name = _OURS.get(named, named)
    if name not in ACT2FN:
        raise NotApplicable(f"{named!r} is not known here")
    expected: nn.Module = ACT2FN[name]
    with seeded(0):
        calls = observe(model, lambda it: subject.scores(it, subject.ids(1, LENGTH), None))
    bends = {call.name: call.module for call in calls if _bends(call.module)}
    if not bends:
        raise NotApplicable("no module of its own bends the feed-forward part")
    x = torch.linspace(-4, 4, 101)
    apart = {where: float((module(x) - expected(x)).abs().max()) for where, module in bends.items()}
    worst = max(apart, key=lambda where: apart[where])
    evidence = {"largest difference": apart[worst], "modules": float(len(bends))}
    if apart[worst] < 1e-4:
        return named_activation.ok(f"all {len(bends)} are {named}", evidence)
    return named_activation.problem(
        f"{worst} differs from {named}, which the config names, by up to {apart[worst]:.2g}",
        evidence,
        where=worst,
        why="Weights that were trained with the one give other answers with the other, a bit in each layer.",
        fix="Take the function that the config names: GELU with erf and its tanh approximation are two.",
    )


def _bends(module: nn.Module) -> bool:
    """Whether a module is an activation: no weights, no parts, and its type says so."""
    kind = type(module)
    marks = ("gelu", "relu", "silu", "swish", "mish", "activation")
    leaf = not any(True for _ in module.children()) and not any(True for _ in module.parameters())
    return leaf and any(mark in kind.__name__.lower() for mark in marks)
