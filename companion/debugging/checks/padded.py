"""A text with padding on one side, to run a model on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from companion.debugging.checks.probing import LENGTH, STILL, Probe, other_token, probe
from companion.debugging.checks.registry import NotApplicable
from companion.debugging.subject import Subject

__all__ = [
    "FIX",
    "REAL",
    "WHY",
    "PaddedText",
    "deaf",
    "masked_probe",
    "must_hear",
    "padded_left",
    "padded_row",
    "reads",
]

WHY = (
    "A text's scores depend on the texts that it is padded to, in training and in production: the dev "
    "score changes "
    "with the batch size."
)
FIX = (
    "Give the attention mask to every layer. Fill the scores of masked keys with the lowest number "
    "before softmax "
    "(neither multiply them, nor add 0 or 1, nor mask after it), and let norms and means leave padding out."
)


REAL = 7
"""Real tokens of a padded text."""


@dataclass(frozen=True)
class PaddedText:
    """One padded text.

    Attributes
    ----------
    ids, mask : Tensor
        Int64 (1, seq).
    left : bool
        Whether padding comes first.
    places : Tensor or None
        Int64 (1, seq): positions counted from the first real token, for models that can be told.
    """

    ids: Tensor
    mask: Tensor
    left: bool
    places: Tensor | None

    def real_part(self, x: Tensor) -> Tensor:
        """Return the real tokens of an output (1, seq, width); nothing of outputs without that axis."""
        if x.size(1) != self.ids.size(1):
            return x[:, :0]
        return x[:, self.mask[0].bool()]

    def over_words(self, look: Probe) -> PaddedText:
        """Return the same text with words where padding was, still masked."""
        return replace(self, ids=other_token(look.subject, self.ids, self.under))

    @property
    def under(self) -> slice:
        """Where padding is."""
        width = self.ids.size(1)
        return slice(0, width - REAL) if self.left else slice(REAL, width)

    def alone(self) -> PaddedText:
        """Return the text without its padding."""
        ids = self.ids[:, self.mask[0].bool()]
        places = None if self.places is None else torch.arange(REAL)[None]
        return replace(self, ids=ids, mask=torch.ones_like(ids), places=places)


def padded_row(look: Probe, *, left: bool) -> PaddedText:
    """Return a text of `REAL` tokens, padded to the length of a probe's texts."""
    text = look.subject.ids(1, REAL)  # whole: not a longer one with its end hidden
    padding = (LENGTH - REAL, 0) if left else (0, LENGTH - REAL)
    ids = functional.pad(text, padding, value=look.subject.pad_token_id)
    mask = functional.pad(torch.ones_like(text), padding)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0) if left and look.takes_places() else None
    return PaddedText(ids, mask, left, places)


def reads(look: Probe, row: PaddedText, *, mask: bool = True) -> Tensor:
    """Return the scores of a row's real tokens, (REAL, ...), or of its text."""
    given = None if not look.takes_mask() else row.mask if mask else torch.ones_like(row.mask)
    scores = look(row.ids, given, places=row.places)
    return scores[row.mask.bool()] if look.subject.by_token else scores


def masked_probe(subject: Subject) -> Probe:
    """Return a probe of a model that takes a mask; raise NotApplicable for others."""
    look = probe(subject)
    if not look.takes_mask():
        raise NotApplicable("the model takes no padding mask")
    return look


def must_hear(subject: Subject) -> bool:
    """Whether a mask that is not listened to does harm: not to a decoder whose padding is on the right."""
    return not subject.causal or padded_left(subject)


def padded_left(subject: Subject) -> bool:
    """Whether some batch has padding before its texts."""
    masks = [batch["attention_mask"] for batch in subject.batches if "attention_mask" in batch]
    return any(bool(((mask[:, 0] == 0) & (mask.sum(dim=1) > 0)).any()) for mask in masks)


def deaf(look: Probe) -> bool:
    """Whether masking words moves nothing at all: of an encoder those on the right, which count no place."""
    row = padded_row(look, left=look.subject.causal).over_words(look)
    return look.moved(reads(look, row), reads(look, row, mask=False)) < STILL
