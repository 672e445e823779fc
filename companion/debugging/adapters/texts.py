"""Texts to probe a model with that does not take just any tokens: it looks for an end, for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion.debugging.subject import Subject, seeded

__all__ = ["needed_texts"]

_ROWS, _LENGTH = 32, 64


def needed_texts(subject: Subject) -> tuple[Tensor, ...]:
    """Return texts that a model takes which refuses random tokens.

    They are the loader's, or random words that the token ends that the configuration calls the end of a
    text. Only texts can be missed: of a model that also takes the loader's words in another order, random
    tokens fail for their numbers, and that is for the checks to say.

    Returns
    -------
    tuple of Tensor
        Token ids, int64 (seq,) each; none for a model that takes random ones, or that takes nothing.
    """
    model = subject.model()
    random = subject.ids(2, 8)

    def runs(ids: Tensor, mask: Tensor | None = None) -> bool:
        try:
            with torch.no_grad(), seeded(0):
                subject.scores(model, ids, mask if subject.takes_mask() else None)
        except Exception:  # what is wrong with the model, the checks find
            return False
        return True

    if runs(random):
        return ()
    for batch in subject.batches[:1]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if runs(ids, mask) and not runs(_shuffled(ids, mask), mask):
            return _texts_of(subject.batches)
    ended = _ended(subject, getattr(model, "config", None))
    if ended is not None and runs(ended[:2]):
        return tuple(ended)
    return ()


def _shuffled(ids: Tensor, mask: Tensor) -> Tensor:
    """Return the words of a batch, each at a place drawn at random, with its padding left where it is."""
    real = mask.bool()
    words, generator = ids[real], torch.Generator().manual_seed(0)
    shuffled = ids.clone()
    shuffled[real] = words[torch.randperm(len(words), generator=generator)]
    return shuffled


def _texts_of(batches: Sequence[dict[str, Tensor]]) -> tuple[Tensor, ...]:
    rows = [
        ids[mask.bool()]
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    return tuple(row for row in rows if len(row) > 2)


def _ended(subject: Subject, config: Any) -> Tensor | None:
    """Return random texts with the end of a text at their end and nowhere else."""
    end = getattr(config, "eos_token_id", None)
    if not isinstance(end, int) or not 0 <= end < subject.vocab_size:
        return None
    ids = subject.ids(_ROWS, _LENGTH)
    word = next(token for token in range(subject.vocab_size) if token not in (end, subject.pad_token_id))
    ids = ids.masked_fill(ids == end, word)
    ids[:, -1] = end
    return ids
