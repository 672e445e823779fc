"""What a decoder remembers: its scores with a cache are those without."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from companion.debugging.checks.probing import LENGTH, MOVED, Culprit, Probe, first_to_move, probe
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject
from companion.models.cache import KeyValueCache

__all__: list[str] = []

_PIECES = [4, 1, 1, LENGTH - 6]
"""Tokens given at a time: a prompt, two tokens as they are written, and the start of another text."""


@check(family="model", component="attention", needs=("make_model",), likelihood=0.9)
def cached_scores_are_the_same(subject: Subject) -> Finding:
    """Does a decoder give the same scores with a cache, token by token and in pieces, as without?"""
    if not (subject.causal and subject.by_token):
        raise NotApplicable("only a causal language model remembers earlier tokens")
    look = probe(subject)
    if _cache_name(look.model) is None:
        raise NotApplicable(f"{type(look.model).__name__}.forward takes no cache that is known here")
    ids = look.ids()
    whole = look(ids)
    with _remembering(look.model):
        pieces = [look(piece) for piece in torch.split(ids, _PIECES, dim=1)]
    scores = torch.cat(pieces, dim=1) if pieces[0].dim() == 3 else pieces[0]
    if scores.shape != whole.shape:
        raise NotApplicable("with a cache the model gives scores for other tokens")
    moved = look.moved(whole, scores)
    evidence = {"moved": moved}
    if moved < MOVED:
        return cached_scores_are_the_same.ok("the scores with a cache are those without", evidence)
    culprit = _first_to_forget(look, ids)
    return cached_scores_are_the_same.problem(
        f"with a cache the scores are {moved:.2g} spreads away from those without; expected 0",
        evidence,
        why="Training never uses the cache and generation always does: the model writes worse than its loss.",
        fix="Count places, rotations and the rows of the causal mask from the length of the cache on: the "
        "first new token is not the first of the text.",
        where=culprit.where,
        component=culprit.component,
    )


def _cache_name(model: nn.Module) -> str | None:
    """Return how a model's `forward` takes its cache: as transformers does, or as the course's does."""
    parameters = inspect.signature(model.forward).parameters
    if "past_key_values" in parameters and getattr(model, "config", None) is not None:
        return "past_key_values"
    given = parameters.get("cache")
    return "cache" if given is not None and "KeyValueCache" in str(given.annotation) else None


def _first_to_forget(look: Probe, ids: Tensor) -> Culprit:
    """Return the first module that gives other numbers for the end of a text when its start is cached."""
    split = LENGTH // 2
    with _remembering(look.model) as memory:
        look(ids[:, :split])

        def whole() -> Tensor:
            memory.forget()
            return look(ids)

        return first_to_move(
            look.model,
            lambda: look(ids[:, split:]),
            whole,
            lambda x: x if x.size(1) == LENGTH - split else x[:, :0],
            lambda x: x[:, split:] if x.size(1) == LENGTH else x[:, :0],
        )


class _Memory:
    """The cache that a model's last call returned, and that its next one gets."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.name = model, str(_cache_name(model))
        self.forget()

    def forget(self) -> None:
        """Start with an empty cache."""
        own = self.name == "cache"
        self.held: Any = KeyValueCache(cast(Any, self.model.config), 1) if own else None

    def give(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Add the cache to the arguments of a call."""
        told = {} if self.name == "cache" else {"use_cache": True}
        return args, {**kwargs, **told, self.name: self.held}

    def keep(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take the cache out of what a call returned."""
        if self.name == "past_key_values":
            self.held = getattr(output, self.name, None)
            if self.held is None:
                raise NotApplicable("the model returns no cache")


@contextmanager
def _remembering(model: nn.Module) -> Iterator[_Memory]:
    """Give a model at each call the cache that its call before returned."""
    memory = _Memory(model)
    handles = [
        model.register_forward_pre_hook(memory.give, with_kwargs=True),
        model.register_forward_hook(memory.keep),
    ]
    try:
        yield memory
    finally:
        for handle in handles:
            handle.remove()
