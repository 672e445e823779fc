"""Finds out a model's sizes: from its configuration, or by calling it and watching its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from companion.debugging.calling import Scores
from companion.debugging.subject import seeded

__all__ = ["Sizes", "probe"]

_WORDS = ("vocab_size", "n_vocab", "vocabulary_size", "num_tokens", "ntoken")
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_length",
    "max_len",
    "block_size",
    "max_seq_len",
    "context_length",
    "n_ctx",
)
_CLASSES = ("num_labels", "num_classes", "n_classes", "classes")
# RoBERTa's tables keep rows for the padding token's number and all below it, which no place uses.
_OFFSET = ("roberta", "xlm-roberta", "camembert")
_LONGEST = 128
_PATTERN = (1, 0, 1, 1, 0, 0, 1, 0)


@dataclass(frozen=True)
class Sizes:
    """What a model's configuration or a call of it says; None for what they do not.

    Attributes
    ----------
    vocab_size, max_length, pad_token_id : int or None
    outputs : int or None
        Numbers in the last dimension of the scores.
    by_token : bool or None
        Whether there are scores for each token.
    """

    vocab_size: int | None
    max_length: int | None
    pad_token_id: int | None
    outputs: int | None
    by_token: bool | None


def probe(model: nn.Module, scores: Scores) -> Sizes:
    """Look at a model, and call it with a few made-up tokens. A model that breaks tells what it can.

    Parameters
    ----------
    model : Module
        Of its own: it is put into evaluation mode.
    scores : callable
        How it is called.
    """
    model.eval()
    config = getattr(model, "config", None)
    seen = _Tables(model)
    answer = seen.watch(lambda ids: scores(model, ids, None))
    words = _number(config, _WORDS) or seen.words or _largest_table(model)
    length = _number(config, _LENGTHS)
    if length is not None and getattr(config, "model_type", None) in _OFFSET:
        length -= int(getattr(config, "pad_token_id", 0) or 0) + 1
    if length is None:
        length = seen.places or (None if answer is None else _longest(model, scores))
    return Sizes(
        vocab_size=words,
        max_length=length,
        pad_token_id=_padding(config, seen.padding, words),
        outputs=_number(config, _CLASSES) if answer is None else answer.size(-1),
        by_token=None if answer is None else answer.dim() == 3,
    )


class _Tables:
    """Watches which embedding is asked for the tokens, and which for places."""

    def __init__(self, model: nn.Module) -> None:
        self.tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        self.words: int | None = None
        self.places: int | None = None
        self.padding: int | None = None

    def watch(self, call: Any) -> Tensor | None:
        """Call the model with a pattern of two tokens; return its answer, or None if it has none."""
        handles = [table.register_forward_hook(self._look) for table in self.tables]
        try:
            with torch.no_grad(), seeded(0):
                answer = call(torch.tensor([_PATTERN, _PATTERN]))
            return answer if isinstance(answer, Tensor) else None
        except Exception:  # a broken model is what the doctor is for: the checks will say so
            return None
        finally:
            for handle in handles:
                handle.remove()

    def _look(self, table: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        assert isinstance(table, nn.Embedding)
        asked = inputs[0].reshape(-1, inputs[0].size(-1))[0].tolist()
        if asked == list(_PATTERN):
            self.words = self.words or table.num_embeddings
            self.padding = table.padding_idx if self.padding is None else self.padding
        elif asked == list(range(asked[0], asked[0] + len(_PATTERN))):
            self.places = self.places or table.num_embeddings - asked[0]


def _longest(model: nn.Module, scores: Scores) -> int | None:
    """Return how many tokens a model takes, tried out from long to short; `_LONGEST` at most."""
    length = _LONGEST
    while length >= 4:
        try:
            with torch.no_grad(), seeded(0):
                scores(model, torch.ones(1, length, dtype=torch.long), None)
            return length
        except Exception:
            length //= 2
    return None


def _number(config: Any, names: tuple[str, ...]) -> int | None:
    """Return the first of a configuration's numbers that is a size."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _largest_table(model: nn.Module) -> int | None:
    sizes = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    return max(sizes, default=None)


def _padding(config: Any, of_table: int | None, words: int | None) -> int | None:
    """Return the padding token's number; of a model without one the one that ends a text, as is usual."""
    for value in (getattr(config, "pad_token_id", None), of_table, getattr(config, "eos_token_id", None)):
        if isinstance(value, int) and 0 <= value < (words or value + 1):
            return value
    return None
