"""Finds out a model's sizes: from its configuration, or by calling it and watching its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from companion.debugging.adapters.faults import described
from companion.debugging.calling import Scores, is_flat
from companion.debugging.lookups import Lookup, lookups
from companion.debugging.subject import Kind, seeded

__all__ = ["Sizes", "classes_of", "counts_places", "probe", "refuse_form", "vocabulary_of"]

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
_LONGEST = 128
_PATTERNS = ((1, 0, 1, 1, 0, 0, 1, 0), (3, 2, 3, 3, 2, 2, 3, 2))
"""Two tokens each: where one of the first two is padding, places may not count up."""


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
    flat : bool
        Whether there is one number for each text, returned as (batch,).
    error : str
        What a model said that broke; empty of one that answered.
    """

    vocab_size: int | None
    max_length: int | None
    pad_token_id: int | None
    outputs: int | None
    by_token: bool | None
    flat: bool = False
    error: str = ""


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
    seen = _Seen(model, scores)
    answer = seen.answer
    words = _number(config, _WORDS) or seen.words or _largest_table(model)
    length = _number(config, _LENGTHS)
    if length is not None and seen.beyond_padding is not None:
        length = min(length, seen.beyond_padding)
    if length is None:
        length = seen.places or (None if answer is None else _longest(model, scores))
    return Sizes(
        vocab_size=words,
        max_length=length,
        pad_token_id=_padding(config, seen.padding, words),
        outputs=_number(config, _CLASSES) if answer is None else answer.size(-1),
        by_token=None if answer is None else answer.dim() == 3,
        flat=seen.flat,
        error="" if answer is not None or seen.error is None else described(seen.error),
    )


def refuse_form(sizes: Sizes, kind: Kind, model: nn.Module) -> None:
    """Refuse a task that the model's answer has the wrong form for.

    Raises
    ------
    ValueError
        When there are scores for each token and one is wanted for each text, or the other way round.
    """
    wanted = kind not in ("classification", "regression")
    if sizes.by_token is not None and sizes.by_token != wanted:
        form = "(batch, seq, numbers)" if sizes.by_token else "(batch, numbers)"
        raise ValueError(
            f"{type(model).__name__} returns {form}, and {kind} needs scores for each "
            f"{'token' if wanted else 'text'}: choose another task, or wrap it in a model that has those"
        )


def vocabulary_of(sizes: Sizes, model: nn.Module) -> int:
    """Return the size of a model's vocabulary; refuse a model that does not show it."""
    if sizes.vocab_size is None:
        raise ValueError(
            f"the vocabulary's size cannot be seen in {type(model).__name__}: it has no embedding "
            f"table and no config.vocab_size{_broken(sizes)}. Give vocab_size (--vocab-size)"
        )
    return sizes.vocab_size


def classes_of(sizes: Sizes, kind: Kind, model: nn.Module, given: int | None) -> int:
    """Return how many classes a model has, if that many are not given; refuse one that does not show it."""
    if kind != "classification":
        return int(kind == "regression")
    found = given or sizes.outputs
    if found is None:
        raise ValueError(
            f"the number of classes cannot be seen in {type(model).__name__}{_broken(sizes)}. "
            "Repair that, or give classes (--classes) to have the rest looked at"
        )
    return found


def _broken(sizes: Sizes) -> str:
    return f": its forward raised {sizes.error}" if sizes.error else ""


def counts_places(model: nn.Module, scores: Scores) -> bool:
    """Whether a table is asked for one row after the other: places are counted from a text's start."""
    return _Seen(model, scores).places is not None


class _Seen:
    """Calls a model with patterns of two tokens, and sees which tables are asked for them, and for places.

    Attributes
    ----------
    answer : Tensor or None
        Its scores; None of a model that breaks.
    flat : bool
        Whether it returned one number for each text.
    words, padding : int or None
        Rows of the table that is asked for tokens, and which of them is the padding token's.
    places : int or None
        Rows from the first one that a place asks for.
    beyond_padding : int or None
        The same of a table that keeps the rows up to the padding token's from all places, as RoBERTa's.
    error : Exception or None
        What the model raised first.
    """

    def __init__(self, model: nn.Module, scores: Scores) -> None:
        self.answer: Tensor | None = None
        self.error: Exception | None = None
        self.flat = False
        self.words: int | None = None
        self.padding: int | None = None
        self.places: int | None = None
        self.beyond_padding: int | None = None
        for pattern in _PATTERNS:
            answer = self._call(model, scores, pattern)
            self.answer = answer if self.answer is None else self.answer

    def _call(self, model: nn.Module, scores: Scores, pattern: tuple[int, ...]) -> Tensor | None:
        hook = model.register_forward_hook(self._note)
        try:
            with torch.no_grad(), seeded(0), lookups(model) as found:
                answer = scores(model, torch.tensor([pattern, pattern]), None)
            return answer if isinstance(answer, Tensor) else None
        except Exception as error:  # a broken model is what the doctor is for: the checks will say so
            self.error = self.error or error
            return None
        finally:
            hook.remove()
            for lookup in found:
                self._look(lookup, pattern)

    def _note(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self.flat = self.flat or is_flat(output)

    def _look(self, lookup: Lookup, pattern: tuple[int, ...]) -> None:
        asked = lookup.first
        if asked == list(pattern):
            self.words = self.words or len(lookup.weight)
            self.padding = lookup.padding if self.padding is None else self.padding
        elif asked and asked == list(range(asked[0], asked[0] + len(pattern))):
            self.places = self.places or len(lookup.weight) - asked[0]
            if lookup.padding is not None and asked[0] == lookup.padding + 1:
                self.beyond_padding = self.beyond_padding or self.places


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
